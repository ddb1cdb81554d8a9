import numpy as np
import pytest
import trimesh
from helpers import tiny_model
from scipy.spatial.transform import Rotation

from fitkit.evaluate.scan_to_mesh import NOW_POINTS, now_crop, scan_to_mesh


def face():
    model = tiny_model()
    marks = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()[list(NOW_POINTS)]
    return model.mean.double().numpy(), model.triangles.numpy(), marks


def surface_points(vertices, triangles, n=600):
    rng = np.random.default_rng(0)
    weight = rng.dirichlet([1, 1, 1], size=n)
    return (weight[..., None] * vertices[triangles[rng.integers(len(triangles), size=n)]]).sum(1)


def moved(points, scale=1.0):
    return scale * points @ Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix().T + [
        40,
        -90,
        500,
    ]


@pytest.mark.parametrize("with_scale", [True, False])
def test_mesh_against_its_own_vertices(with_scale):
    vertices, triangles, marks = face()
    result = scan_to_mesh(vertices, triangles, marks, vertices, marks, with_scale)
    assert result.distances.shape == (len(vertices),) and result.distances.max() < 1e-9
    np.testing.assert_allclose(result.aligned, vertices, atol=1e-9)


def test_turned_and_scaled_copy():
    vertices, triangles, marks = face()
    scan = moved(surface_points(vertices, triangles), 1.3)
    result = scan_to_mesh(vertices, triangles, marks, scan, moved(marks, 1.3))
    assert result.distances.max() < 1e-8
    np.testing.assert_allclose(result.aligned, moved(vertices, 1.3), atol=1e-8)
    # Distances are those in the scan's frame and unit.
    rigid = scan_to_mesh(vertices, triangles, marks, scan, moved(marks, 1.3), with_scale=False)
    assert rigid.mean > 3 and rigid.median > 1


def test_wrong_landmarks_only_give_the_start():
    vertices, triangles, marks = face()
    scan = moved(surface_points(vertices, triangles))
    rough = moved(marks) + np.random.default_rng(1).normal(size=(7, 3)) * 3
    start = trimesh.proximity.closest_point(
        trimesh.Trimesh(
            scan_to_mesh(vertices, triangles, marks, scan, rough, max_iterations=1).aligned,
            triangles,
            process=False,
        ),
        scan,
    )[1]
    result = scan_to_mesh(vertices, triangles, marks, scan, rough)
    assert start.mean() > 0.5 and result.mean < 0.01


def test_distance_equals_trimesh_of_the_aligned_mesh():
    vertices, triangles, marks = face()
    scan = surface_points(vertices, triangles) + np.random.default_rng(2).normal(size=(600, 3)) * 2
    result = scan_to_mesh(vertices, triangles, marks, scan, marks)
    expected = trimesh.proximity.closest_point(
        trimesh.Trimesh(result.aligned, triangles, process=False), scan
    )[1]
    np.testing.assert_allclose(result.distances, expected, atol=1e-8)
    assert result.mean == pytest.approx(expected.mean()) and result.median == pytest.approx(
        np.median(expected)
    )


def test_plane_at_a_distance_is_moved_onto_the_scan():
    # A plane can be shifted onto a parallel one: nothing is left. Bumps of 2 mm on it are left with about
    # their size.
    grid = np.stack(np.meshgrid(np.linspace(-100, 100, 11), np.linspace(-100, 100, 11)), -1).reshape(-1, 2)
    plane = np.concatenate([grid, np.zeros((121, 1))], 1)
    i = (np.arange(10)[:, None] * 11 + np.arange(10)).ravel()
    triangles = np.concatenate([np.stack([i, i + 1, i + 12], 1), np.stack([i, i + 12, i + 11], 1)])
    marks = np.array(
        [[-60.0, 40, 0], [-20, 40, 0], [20, 40, 0], [60, 40, 0], [0, -10, 0], [-30, -50, 0], [30, -50, 0]]
    )
    rng = np.random.default_rng(3)
    scan = np.concatenate([rng.uniform(-90, 90, size=(400, 2)), np.full((400, 1), 7.0)], 1)
    # The landmarks say 0, the scan says 7.
    result = scan_to_mesh(plane, triangles, marks, scan, marks, with_scale=False)
    assert result.distances.max() < 1e-6
    scan[::2, 2] += 2
    bumpy = scan_to_mesh(plane, triangles, marks, scan, marks, with_scale=False)
    assert bumpy.mean == pytest.approx(1.0, abs=0.02)


def test_sphere_one_millimetre_larger():
    ball = trimesh.creation.icosphere(4, 80.0)
    directions = np.array(
        [
            [-0.5, 0.4, 0.7],
            [-0.2, 0.4, 0.8],
            [0.2, 0.4, 0.8],
            [0.5, 0.4, 0.7],
            [0, 0, 1],
            [-0.3, -0.4, 0.8],
            [0.3, -0.4, 0.8],
        ]
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    scan = trimesh.creation.icosphere(4, 81.0).vertices
    rigid = scan_to_mesh(ball.vertices, ball.faces, 80 * directions, scan, 81 * directions, with_scale=False)
    # The ball may turn freely, so scan vertices come to lie over its facets, which sag by up to 0.1 mm.
    assert rigid.mean == pytest.approx(1.0, abs=0.02) and rigid.median == pytest.approx(1.0, abs=0.02)
    assert rigid.distances.min() > 0.9 and rigid.distances.max() < 1.15
    scaled = scan_to_mesh(ball.vertices, ball.faces, 80 * directions, scan, 81 * directions)
    assert scaled.mean < 0.02


def test_crop_sphere():
    # Inner eye corners at (+-10, 30, 0), outer at (+-40, 30, 0), nose bottom in the origin: bridge (0, 30,
    # 0), centre (0, 9, 0), radius 1.4 (80 + 30) / 2 = 77.
    points = np.array(
        [[-40.0, 30, 0], [-10, 30, 0], [10, 30, 0], [40, 30, 0], [0, 0, 0], [-20, -30, 0], [20, -30, 0]]
    )
    scan = np.array([[0.0, 9, 0], [0, 85.9, 0], [0, 86.1, 0], [76.9, 9, 0], [0, 9, -77.1], [300, 0, 0]])
    assert now_crop(scan, points).tolist() == [0, 1, 3]
