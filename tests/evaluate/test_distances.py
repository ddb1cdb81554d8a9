import numpy as np
import pytest
import trimesh

from fitkit.evaluate.distances import (
    chamfer,
    mean,
    point_to_plane,
    point_to_point,
    rmse,
    scan_to_surface,
    symmetric,
)


def plane(n=9, size=100.0, z=0.0):
    x, y = np.meshgrid(np.linspace(-size, size, n), np.linspace(-size, size, n))
    i = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    return (
        np.stack([x.ravel(), y.ravel(), np.full(n * n, z)], 1),
        np.concatenate([np.stack([i, i + 1, i + n + 1], 1), np.stack([i, i + n + 1, i + n], 1)]),
    )


def test_a_mesh_against_itself_is_zero():
    ball = trimesh.creation.icosphere(3, 80.0)
    for distances in (
        point_to_point(ball.vertices, ball.vertices),
        point_to_plane(ball.vertices, ball.vertices, ball.faces),
        scan_to_surface(ball.vertices, ball.vertices, ball.faces),
    ):
        assert distances.shape == (len(ball.vertices),) and np.abs(distances).max() < 1e-9
    assert chamfer(ball.vertices, ball.faces, ball.vertices, ball.faces) < 1e-9


def test_a_shifted_plane_is_its_shift_away():
    vertices, triangles = plane()
    points = np.random.default_rng(0).uniform(-95, 95, (200, 2))
    points = np.column_stack([points, np.full(200, -3.0)])
    np.testing.assert_allclose(point_to_plane(points, vertices, triangles), 3, atol=1e-12)
    np.testing.assert_allclose(scan_to_surface(points, vertices, triangles), 3, atol=1e-12)
    assert (
        point_to_point(points, vertices).min() >= 3 and mean(point_to_point(points, vertices)) > 5
    )  # the vertices lie 25 mm apart
    other = plane(z=3.0)
    assert chamfer(vertices, triangles, *other) == pytest.approx(3, abs=1e-12)


def test_spheres_one_millimetre_apart():
    small, large = trimesh.creation.icosphere(4, 80.0), trimesh.creation.icosphere(4, 81.0)
    assert mean(scan_to_surface(large.vertices, small.vertices, small.faces)) == pytest.approx(1, abs=1e-3)
    assert mean(scan_to_surface(small.vertices, large.vertices, large.faces)) == pytest.approx(
        1, abs=0.02
    )  # facets sag by 0.06 mm
    assert chamfer(small.vertices, small.faces, large.vertices, large.faces) == pytest.approx(1, abs=0.02)
    # Smooth normals are radial.
    np.testing.assert_allclose(point_to_plane(large.vertices, small.vertices, small.faces), 1, atol=1e-3)


def test_nearest_vertex_is_found_by_brute_force_as_well():
    rng = np.random.default_rng(1)
    points, others = rng.normal(size=(40, 3)), rng.normal(size=(70, 3))
    np.testing.assert_allclose(
        point_to_point(points, others), np.linalg.norm(points[:, None] - others, axis=-1).min(1)
    )


def test_mean_and_root_mean_square_are_different_numbers():
    assert mean(np.array([0.0, -2.0])) == 1 and rmse(np.array([0.0, -2.0])) == pytest.approx(np.sqrt(2))
    assert symmetric(np.ones(2), np.full(100, 3.0)) == 2


def test_vertices_without_a_triangle_have_no_plane():
    vertices, triangles = plane()
    loose = np.concatenate([vertices, [[0.0, 0, 5]]])
    np.testing.assert_allclose(point_to_plane(np.array([[0.0, 0, 5]]), loose, triangles), 5)
