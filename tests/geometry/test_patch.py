import numpy as np
import torch

from fitkit.geometry.patch import Patch


def square():
    """A square of side 3 in the plane z = 0, facing +z: [16, 3], triangles [18, 3]."""
    x, y = np.meshgrid(np.arange(4.0), np.arange(4.0))
    a = (4 * np.arange(3)[:, None] + np.arange(3)).ravel()
    triangles = np.concatenate([np.stack([a, a + 1, a + 5], 1), np.stack([a, a + 5, a + 4], 1)])
    return np.stack([x.ravel(), y.ravel(), np.zeros(16)], 1), triangles


def test_closest_points_say_which_way_the_surface_faces_and_where_it_ends():
    patch = Patch.whole(*square())
    points = np.array([[1.4, 1.6, 2.0], [1.4, 1.6, 2.0], [4.0, 1.4, 0.0]])
    found = patch.closest(points, np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0]]))
    np.testing.assert_allclose(found.point, [[1.4, 1.6, 0], [1.4, 1.6, 0], [3, 1.4, 0]], atol=1e-12)
    np.testing.assert_allclose(found.distance, [2, 2, 1])
    np.testing.assert_allclose(found.normal, [[0, 0, 1]] * 3)
    corners = patch.vertices[patch.triangles[found.triangle]]
    np.testing.assert_allclose((found.weights[..., None] * corners).sum(1), found.point, atol=1e-12)
    assert found.facing.tolist() == [True, False, True] and found.ends.tolist() == [False, False, True]
    assert found.same.tolist() == [True, False, False]


def test_part_of_a_mesh_knows_its_place_in_it():
    vertices, triangles = square()
    left = torch.from_numpy(vertices[:, 0] < 1.5)
    patch = Patch.of(torch.from_numpy(vertices), torch.from_numpy(triangles), left)
    assert patch.vertex.tolist() == np.flatnonzero(left).tolist()
    np.testing.assert_array_equal(patch.vertex[patch.triangles], triangles[patch.triangle])
    np.testing.assert_array_equal(patch.at(patch.vertices + 1).vertices, vertices[left] + 1)
