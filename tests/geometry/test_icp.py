import numpy as np
import pytest
import trimesh
from helpers import tiny_model
from scipy.spatial.transform import Rotation

from fitkit.errors import DegenerateInputError
from fitkit.geometry.icp import icp, motion_step


def face():
    model = tiny_model()
    return model.mean.double().numpy(), model.triangles.numpy()


def surface_points(vertices, triangles, n=500, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.dirichlet([1, 1, 1], size=n)
    return (weight[..., None] * vertices[triangles[rng.integers(len(triangles), size=n)]]).sum(1)


@pytest.mark.parametrize("scale, with_scale", [(1.0, False), (1.03, True), (0.97, True)])
def test_a_moved_copy_is_laid_back(scale, with_scale):
    vertices, triangles = face()
    points = surface_points(vertices, triangles)
    R, t = Rotation.from_euler("xyz", [4, -5, 3], degrees=True).as_matrix(), np.array([3.0, -4, 2])
    result = icp((points - t) @ R / scale, vertices, triangles, with_scale)
    assert result.converged and result.rms < 1e-3  # mm: each iteration's change is below 1e-5 of what is left
    np.testing.assert_allclose(result.apply((points - t) @ R / scale), points, atol=5e-3)
    assert result.scale == pytest.approx(scale, abs=1e-4) and np.linalg.det(result.rotation) == pytest.approx(
        1
    )


def test_without_scale_the_size_stays():
    vertices, triangles = face()
    assert icp(1.05 * surface_points(vertices, triangles, 60), vertices, triangles).scale == 1.0


def test_points_that_fit_badly_do_not_shrink():
    vertices, triangles = face()
    inside = 0.5 * surface_points(vertices, triangles, 150) + [0, 0, 20]
    result = icp(
        np.concatenate([surface_points(vertices, triangles, 300), inside]),
        vertices,
        triangles,
        with_scale=True,
        trim=1e9,
    )
    assert 0.8 < result.scale < 1.3


def test_outliers_are_trimmed():
    vertices, triangles = face()
    points = surface_points(vertices, triangles, 250)
    points[:50] += [0, 0, 60]
    result = icp(points + [0, 2.0, 1.0], vertices, triangles)
    assert not result.used[:50].any() and result.distance[50:].max() < 0.02
    untrimmed = icp(points + [0, 2.0, 1.0], vertices, triangles, trim=1e9)
    assert untrimmed.distance[50:].mean() > 10 * result.distance[50:].mean()


def test_points_beyond_the_border_do_not_pull():
    # A square plate and a larger one 2 mm above it, shifted sideways: only the height is determined, nothing
    # slides.
    plate = trimesh.creation.box((100, 100, 1e-9)).subdivide().subdivide().subdivide()
    top = plate.faces[plate.face_normals[:, 2] > 0.5]
    x, y = np.meshgrid(np.linspace(-70, 90, 33), np.linspace(-60, 60, 25))
    result = icp(np.stack([x.ravel(), y.ravel(), np.full(x.size, 2.0)], 1), plate.vertices, top)
    np.testing.assert_allclose(result.translation, [0, 0, -2], atol=1e-6)
    np.testing.assert_allclose(result.rotation, np.eye(3), atol=1e-8)


def test_the_border_of_a_curved_patch_does_not_tilt_it():
    # Points of a ball all around one side, the patch is the cap above: the ball's centre is where it was, up
    # to what the cap cannot see.
    ball = trimesh.creation.icosphere(4, 100.0)
    cap = ball.faces[(ball.vertices[ball.faces][..., 2] > 60).all(1)]
    points = ball.vertices[
        (ball.vertices[:, 2] > 0) & ((ball.vertices[:, 2] > 60) | (ball.vertices[:, 0] > 0))
    ]
    result = icp(points + [0, 0, 3.0], ball.vertices, cap, trim=1e9)
    assert np.linalg.norm(result.apply([[0, 0, 3.0]])) < 0.3


def test_distances_are_those_of_the_moved_points():
    vertices, triangles = face()
    points = surface_points(vertices, triangles) + np.random.default_rng(1).normal(size=(500, 3))
    result = icp(points, vertices, triangles, with_scale=True)
    expected = trimesh.proximity.closest_point(
        trimesh.Trimesh(vertices, triangles, process=False), result.apply(points)
    )[1]
    np.testing.assert_allclose(result.distance, expected, atol=1e-8)
    assert result.rms == pytest.approx(np.sqrt((expected[result.used] ** 2).mean()))


def test_a_loose_set_of_triangles_is_a_surface_too():
    vertices, triangles = face()
    soup = vertices[triangles].reshape(-1, 3)
    points = surface_points(vertices, triangles)
    assert icp(points + [1.0, 1.0, 1.0], soup, np.arange(len(soup)).reshape(-1, 3)).distance.max() < 0.02


def test_step_solves_the_linear_system():
    rng = np.random.default_rng(2)
    lever, normal = rng.normal(size=(60, 3)) * 50, rng.normal(size=(60, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    # Small: the step is linear there.
    w, d, g = (np.array([1e-4, -2e-4, 3e-4]), np.array([0.1, -0.2, 0.3]), 2e-4)
    length = (normal * (np.cross(w, lever) + d + g * lever)).sum(1)
    R, shift, scale = motion_step(lever, normal, length, True)
    np.testing.assert_allclose(R, Rotation.from_rotvec(w).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(shift, d, atol=1e-10)
    assert scale == pytest.approx(np.exp(g))


def test_too_few_points():
    with pytest.raises(DegenerateInputError, match="icp: expected at least 6 points, got 5"):
        icp(np.zeros((5, 3)), *face())
