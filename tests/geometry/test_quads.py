"""Quads of triangles against what is known by hand, and against all ways to choose."""

from itertools import combinations

import numpy as np

from fitkit.geometry.quads import pair_triangles, quad_corners

SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
HALVES = np.array([[1, 2, 0], [2, 3, 0]])


def pairs(points, triangles=HALVES, corner=None):
    points = points if np.ndim(points) == 3 else np.asarray(points)[None]
    return pair_triangles(points, triangles, triangles if corner is None else corner).tolist()


def test_two_halves_of_a_square():
    assert pairs(SQUARE) == [[0, 1]]
    (quad,) = quad_corners(HALVES, HALVES, np.array([[0, 1]])).tolist()
    assert quad == [0, 1, 2, 3]
    values = np.array([["b", "c", "a"], ["C", "d", "A"]])
    assert quad_corners(values, HALVES, np.array([[0, 1]])).tolist() == [["a", "b", "c", "d"]]


def test_what_is_folded_or_goes_in_or_differs_at_the_edge_stays_triangles():
    folded = SQUARE + [[0, 0, 0], [0, 0, 0.4], [0, 0, 0], [0, 0, 0.4]]  # by 60 degrees
    slightly = SQUARE + [[0, 0, 0], [0, 0, 0.15], [0, 0, 0], [0, 0, 0.15]]  # by 24 degrees
    hollow = SQUARE + [[0, 0, 0], [0, 0, 0], [-0.6, -0.6, 0], [0, 0, 0]]
    assert pairs(folded) == pairs(hollow) == pairs(slightly) == []
    assert pairs([SQUARE, slightly]) == [[0, 1]]  # an expression may fold more
    assert pairs([SQUARE, folded]) == pairs([SQUARE, hollow]) == []
    assert pairs(SQUARE, corner=np.array([[1, 2, 0], [4, 3, 0]])) == []


def test_three_triangles_at_one_edge_make_no_quad():
    points = np.concatenate([SQUARE, [[0.5, 0.5, 1]]])
    assert pairs(points, np.array([[1, 2, 0], [2, 3, 0], [0, 2, 4]])) == []


def test_as_many_and_as_even_as_can_be():
    """A strip of triangles, and a fan of five that surround a vertex, where one is left."""
    x = np.arange(6.0)
    strip = np.concatenate([np.c_[x, 0 * x, 0 * x], np.c_[x + 0.3, 0 * x + 1, 0 * x]])
    k = np.arange(5)
    triangles = np.concatenate([np.c_[k, k + 1, k + 6], np.c_[k + 1, k + 7, k + 6]])
    found = pairs(strip, triangles)
    assert found == [[k, k + 5] for k in range(5)]
    turn = np.arange(5) * 2 * np.pi / 5
    fan = np.r_[[[0, 0, 0]], np.c_[np.cos(turn) * [1, 1.2, 1, 0.8, 1.1], np.sin(turn), 0 * turn]]
    wheel = np.c_[np.zeros(5, int), 1 + np.arange(5), 1 + (np.arange(5) + 1) % 5]
    found = pairs(fan, wheel)
    assert len(found) == 2 and len({row for pair in found for row in pair}) == 4

    def weight(pair):
        at = fan[quad_corners(wheel, wheel, np.array([pair]))[0]]
        after = np.roll(at, -1, 0) - at
        after /= np.linalg.norm(after, axis=1)[:, None]
        return 1.5 - np.abs((np.roll(after, 1, 0) * after).sum(1)).max()

    possible = [(i, (i + 1) % 5) for i in range(5)]
    best = max(
        sum(map(weight, chosen)) for chosen in combinations(possible, 2) if len({*chosen[0], *chosen[1]}) == 4
    )
    assert abs(sum(map(weight, found)) - best) < 1e-9
