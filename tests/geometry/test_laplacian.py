import numpy as np
import pytest
import trimesh

from fitkit.geometry.laplacian import LARGEST_COTANGENT, bending, cotangent_laplacian


def uneven_square(n=7, seed=0):
    """A square of side 3 with shifted inner vertices: [V, 3] in the plane z = 2, triangles, whether a vertex
    lies on the rim."""
    x, y = np.meshgrid(np.linspace(0, 3, n), np.linspace(0, 3, n))
    rim = ((x == 0) | (y == 0) | (x == 3) | (y == 3)).ravel()
    vertices = np.stack([x.ravel(), y.ravel(), np.full(n * n, 2.0)], 1)
    vertices[~rim, :2] += np.random.default_rng(seed).uniform(-0.08, 0.08, (int((~rim).sum()), 2))
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    return (
        vertices,
        np.concatenate([np.stack([a, a + 1, a + n + 1], 1), np.stack([a, a + n + 1, a + n], 1)]),
        rim,
    )


def test_gradient_energy_and_integral_of_a_linear_function_are_exact():
    vertices, triangles, rim = uneven_square()
    stiffness, area = cotangent_laplacian(vertices, triangles)
    f = 2 * vertices[:, 0] - vertices[:, 1] + 5
    np.testing.assert_allclose(f @ stiffness @ f, (2**2 + 1) * 9)  # |grad f|^2 times the area
    np.testing.assert_allclose((stiffness @ f)[~rim], 0, atol=1e-12)
    np.testing.assert_allclose(stiffness @ np.ones(len(f)), 0, atol=1e-12)
    np.testing.assert_allclose(area.sum(), 9)
    assert abs(stiffness - stiffness.T).max() < 1e-12


def test_coordinates_on_a_sphere_are_eigenfunctions():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=3.0)
    stiffness, area = cotangent_laplacian(sphere.vertices, sphere.faces)
    energy, same_area = bending(sphere.vertices, sphere.faces)
    np.testing.assert_array_equal(same_area, area)
    value = 2 / 3.0**2  # l (l + 1) / R^2
    for axis in range(3):
        f = np.asarray(sphere.vertices)[:, axis]
        assert f @ stiffness @ f / (f @ (area * f)) == pytest.approx(value, rel=0.01)
        assert f @ energy @ f / (f @ (area * f)) == pytest.approx(value**2, rel=0.02)


def test_needles_and_loose_vertices():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1e-7, 1e-9, 0], [5, 5, 5]], float)
    stiffness, area = cotangent_laplacian(vertices, np.array([[0, 1, 2]]))
    assert np.isfinite(stiffness.toarray()).all() and abs(stiffness).max() <= LARGEST_COTANGENT
    assert area[3] == 0 and stiffness.toarray()[3].tolist() == [0, 0, 0, 0]
