"""Coarser meshes: what has to stay is known by hand."""

import numpy as np
import trimesh

from fitkit.geometry.decimate import decimate


def grid(n=13):
    """A square of side 12 with x and y of its vertices [n * n, 3], triangles, and one corner per vertex."""
    y, x = np.mgrid[:n, :n].reshape(2, -1) * 12.0 / (n - 1)
    at = np.arange((n - 1) * n).reshape(n - 1, n)[:, :-1].ravel()
    triangles = np.concatenate([np.c_[at, at + 1, at + n + 1], np.c_[at, at + n + 1, at + n]])
    return np.c_[x, y, 0 * x], triangles


def coarse(points, triangles, count, corner=None, texture=None, weight=None, locked=None):
    points = points if np.ndim(points) == 3 else np.asarray(points)[None]
    V = points.shape[1]
    return decimate(
        points,
        triangles,
        triangles if corner is None else corner,
        np.zeros((V if corner is None else corner.max() + 1, 2)) if texture is None else texture,
        np.ones(V) if weight is None else weight,
        np.zeros(V, bool) if locked is None else locked,
        count,
    )


def area(points, triangles):
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)[:, 2] / 2


def test_a_flat_square_keeps_its_corners():
    points, triangles = grid()
    rows, left, _ = coarse(points, triangles, 10)
    assert len(np.unique(left)) == 10 and len(rows) == len(left)
    assert {0, 12, 156, 168} <= set(left.ravel().tolist())
    signed = area(points, left)
    assert (signed > 0).all() and signed.sum() == 144


def test_a_ball_stays_closed_and_turned_outwards():
    ball = trimesh.creation.icosphere(3, 10.0)
    _, left, _ = coarse(ball.vertices, ball.faces, 100)
    small = trimesh.Trimesh(ball.vertices, left, process=False)
    assert len(np.unique(left)) == 100 and small.is_watertight and small.is_winding_consistent
    assert len(left) == 2 * 100 - 4  # Euler
    middle = small.triangles_center
    assert ((small.face_normals * middle).sum(1) > 0.8 * np.linalg.norm(middle, axis=1)).all()
    assert small.volume > 0.9 * ball.volume


def test_locked_vertices_stay_and_nothing_can_be_removed_where_all_are():
    points, triangles = grid()
    locked = np.zeros(len(points), bool)
    locked[[40, 41, 100]] = True
    _, left, _ = coarse(points, triangles, 10, locked=locked)
    assert {40, 41, 100} <= set(left.ravel().tolist())
    rows, same, _ = coarse(points, triangles, 10, locked=np.ones(len(points), bool))
    np.testing.assert_array_equal(same, triangles)
    np.testing.assert_array_equal(rows, np.arange(len(triangles)))


def test_seams_keep_their_two_sides():
    points, triangles = grid()
    right = points[triangles].mean(1)[:, 0] > 6
    corner = triangles + len(points) * right[:, None]
    # The right half of the texture lies somewhere else.
    texture = np.concatenate([points[:, :2], points[:, :2] * 2 + [30, 5]])
    rows, left, sides = coarse(points, triangles, 12, corner, texture)
    shift, scale = np.where(right[rows], 1, 0)[:, None, None], np.where(right[rows], 2, 1)[:, None, None]
    np.testing.assert_allclose(texture[sides], points[left][..., :2] * scale + shift * [30, 5])
    x = points[left][..., 0]
    assert ((x <= 6).all(1) | (x >= 6).all(1)).all() and ((x > 6).any(1) == right[rows]).all()
    assert area(points, left[right[rows]]).sum() == 72


def test_what_only_moves_in_a_shape_stays_fine():
    points, triangles = grid(25)
    bump = points + [0, 0, 1] * (3 * np.exp(-((points[:, :2] - [3, 3]) ** 2).sum(1)))[:, None]
    _, left, _ = coarse(np.stack([points, bump]), triangles, 120)
    here = np.linalg.norm(points[np.unique(left), :2] - [3, 3], axis=1) < 3
    assert here.mean() > 0.6  # of a fifth of the square
    _, blind, _ = coarse(points, triangles, 120)
    away = [
        trimesh.proximity.closest_point(trimesh.Trimesh(bump, some, process=False), bump)[1].max()
        for some in (left, blind)
    ]
    assert away[0] < 0.1 < away[1]


def test_no_triangle_turns_over_in_a_shape_that_folds_the_mesh():
    rng = np.random.default_rng(0)
    points, triangles = grid()
    bent = points.copy()
    bent[:, 2] = 4 * np.sin(points[:, 0]) + rng.normal(0, 0.2, len(points))
    bent[:, 0] += 2 * np.cos(points[:, 0])
    both = np.stack([points, bent])
    rows, left, _ = coarse(both, triangles, 40)
    for some in both:
        old, new = (
            np.cross(some[t[:, 1]] - some[t[:, 0]], some[t[:, 2]] - some[t[:, 0]])
            for t in (triangles[rows], left)
        )
        along = (old * new).sum(1) / (np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1))
        assert along.min() > 0.3


def test_equal_meshes_give_equal_levels():
    ball = trimesh.creation.icosphere(3, 10.0)
    first, again = (coarse(ball.vertices, ball.faces, 150)[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_sheets_that_touch_in_a_point_are_not_pulled_apart_or_together():
    points, triangles = grid()
    other = points * [-1, -1, 1]
    both = np.concatenate([points, other[1:]])  # they share vertex 0
    number = np.r_[0, len(points) + np.arange(len(points) - 1)]
    faces = np.concatenate([triangles, number[triangles]])
    _, left, _ = coarse(both, faces, 20)
    assert (left == 0).any() and area(both, left).sum() == 288
