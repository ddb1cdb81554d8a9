import numpy as np
import pytest
from helpers import tiny_model

from fitkit.evaluate.coverage import coverage
from fitkit.geometry.normals import vertex_normals


@pytest.fixture(scope="module")
def mesh():
    model = tiny_model()
    normals = vertex_normals(model.mean[None], model.triangles)[0].double().numpy()
    return model.mean.double().numpy(), model.triangles.numpy(), normals


def test_gaussian_errors_are_covered_as_they_should(mesh):
    vertices, triangles, normals = mesh
    rng = np.random.default_rng(0)
    corner = triangles[rng.integers(len(triangles), size=4000)]
    weight = rng.dirichlet(np.ones(3), 4000)
    sigma = 0.2 + 0.3 * (vertices[:, 1] > 0)  # mm
    # flat triangles: displaced along the facet's own normal the closest point is where it started, but for
    # creases
    facet = np.cross(
        vertices[corner[:, 1]] - vertices[corner[:, 0]], vertices[corner[:, 2]] - vertices[corner[:, 0]]
    )
    facet /= np.linalg.norm(facet, axis=1, keepdims=True)
    width = (weight * sigma[corner]).sum(1)
    scan = (weight[..., None] * vertices[corner]).sum(1) + facet * (width * rng.normal(size=4000))[:, None]
    one, two = coverage(vertices, triangles, sigma, scan)
    assert one == pytest.approx(0.683, abs=0.03) and two == pytest.approx(0.954, abs=0.015)


def test_too_narrow_and_too_wide(mesh):
    vertices, triangles, normals = mesh
    scan = vertices + 0.5 * normals
    assert coverage(vertices, triangles, np.full(len(vertices), 0.1), scan) == (0.0, 0.0)
    one, two = coverage(vertices, triangles, np.full(len(vertices), 0.3), scan)
    assert one < 0.1 and two > 0.9
    assert coverage(vertices, triangles, np.full(len(vertices), 5.0), scan) == (1.0, 1.0)
