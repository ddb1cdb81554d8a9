import numpy as np
import trimesh
from helpers import tiny_model

from fitkit.geometry.closest_point import SurfaceIndex, closest_on_triangles


def brute_force(points, vertices, triangles):
    """Distance of each point to each triangle: the inside of the triangle's plane or the nearest of its
    edges."""
    best = np.full(len(points), np.inf)
    for a, b, c in vertices[triangles]:
        candidates = []
        for p, q in ((a, b), (b, c), (c, a)):
            length2 = max(((q - p) ** 2).sum(), 1e-300)
            s = np.clip((points - p) @ (q - p) / length2, 0, 1)
            candidates.append(np.linalg.norm(points - (p + s[:, None] * (q - p)), axis=1))
        normal = np.cross(b - a, c - a)
        if np.linalg.norm(normal) > 1e-12:
            normal /= np.linalg.norm(normal)
            height = (points - a) @ normal
            foot = points - height[:, None] * normal
            inside = np.all(
                [np.cross(q - p, foot - p) @ normal >= 0 for p, q in ((a, b), (b, c), (c, a))], axis=0
            )
            candidates.append(np.where(inside, np.abs(height), np.inf))
        best = np.minimum(best, np.min(candidates, axis=0))
    return best


def check(vertices, triangles, points, atol=1e-9):
    closest, distance, triangle = SurfaceIndex(vertices, triangles).query(points)
    np.testing.assert_allclose(distance, brute_force(points, vertices, triangles), atol=atol)
    np.testing.assert_allclose(np.linalg.norm(points - closest, axis=1), distance, atol=atol)
    # The reported triangle holds the reported point.
    own = np.array(
        [brute_force(q[None], vertices, triangles[t : t + 1])[0] for q, t in zip(closest, triangle)]
    )
    np.testing.assert_allclose(own, 0, atol=atol)


def test_random_triangle_soup_equals_brute_force():
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(60, 3))
    triangles = np.stack([rng.choice(60, 3, replace=False) for _ in range(40)])
    check(vertices, triangles, 2 * rng.normal(size=(200, 3)))


def test_very_uneven_triangles():
    rng = np.random.default_rng(1)
    fine = rng.normal(size=(90, 3)) * 0.05
    coarse = rng.normal(size=(9, 3)) * 20
    triangles = np.concatenate([np.arange(90).reshape(-1, 3), 90 + np.arange(9).reshape(-1, 3)])
    check(
        np.concatenate([fine, coarse]),
        triangles,
        rng.normal(size=(150, 3)) * rng.choice([0.1, 5, 40], (150, 1)),
    )


def test_triangles_without_area_and_slivers():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 30, 3))
    t = rng.uniform(-1, 2, size=(30, 1))
    line = np.stack([a, b, a + t * (b - a)], 1)  # three corners on a line, in any order
    sliver = line + 1e-7 * rng.normal(size=line.shape)
    dot = np.repeat(rng.normal(size=(5, 1, 3)), 3, 1)
    for corners, atol in ((line, 1e-7), (sliver, 1e-6), (dot, 1e-9)):
        vertices = corners.reshape(-1, 3)
        check(vertices, np.arange(len(vertices)).reshape(-1, 3), rng.normal(size=(60, 3)), atol)


def test_face_mesh_equals_trimesh():
    model = tiny_model()
    vertices, triangles = model.mean.double().numpy(), model.triangles.numpy()
    rng = np.random.default_rng(3)
    points = vertices[rng.integers(len(vertices), size=300)] + rng.normal(size=(300, 3)) * rng.choice(
        [0.5, 10, 80], (300, 1)
    )
    _, distance, _ = SurfaceIndex(vertices, triangles).query(points)
    _, expected, _ = trimesh.proximity.closest_point(
        trimesh.Trimesh(vertices, triangles, process=False), points
    )
    np.testing.assert_allclose(distance, expected, atol=1e-9)


def test_points_on_the_surface_and_single_triangle():
    corners = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    closest, distance, triangle = SurfaceIndex(corners, np.array([[0, 1, 2]])).query(
        np.array([[1.0, 1, 0], [1, 1, 3], [5, 5, 0]])
    )
    np.testing.assert_allclose(closest, [[1, 1, 0], [1, 1, 0], [2, 2, 0]], atol=1e-12)
    np.testing.assert_allclose(distance, [0, 3, np.sqrt(18)], atol=1e-12)
    assert triangle.tolist() == [0, 0, 0]
    assert len(SurfaceIndex(corners, np.array([[0, 1, 2]])).query(np.zeros((0, 3)))[1]) == 0


def test_all_regions_of_one_triangle():
    rng = np.random.default_rng(4)
    corners = np.array([[0.0, 0, 0], [3, 0, 0], [1, 2, 0]])
    points = rng.uniform(-4, 6, size=(500, 3))
    q = closest_on_triangles(points, np.repeat(corners[None], 500, 0))
    np.testing.assert_allclose(
        np.linalg.norm(points - q, axis=1), brute_force(points, corners, np.array([[0, 1, 2]])), atol=1e-12
    )
