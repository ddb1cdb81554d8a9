"""Triangle meshes as quads, as far as they are nearly flat."""

from __future__ import annotations

import numpy as np

# Degrees that the halves of a quad may be folded, in the first shape, in others.
FLAT, FLAT_MOVED = 20.0, 35.0
CONVEX = 0.1  # least sine of a quad's corners
COUNT = 0.5  # what any quad counts beside its evenness, 0 to 1
GAP = 1e-3  # of the best sum that the found one may miss


def pair_triangles(points: np.ndarray, triangles: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Which triangles make quads together: no triangle in two, as many and as even quads as can be.

    The two halves of a quad are nearly in a plane and it is convex, in all shapes.

    Args:
        points: [S, V, 3], the same mesh in S shapes, the neutral one first; triangles: [F, 3] int64.
        corner: [F, 3] int64, what each corner of a triangle is: triangles are neighbours where they agree in
            it at both ends of their edge.
    Returns:
        [Q, 2] int64 rows of `triangles`, sorted.
    Source: the choice is a maximum weight matching of the neighbours, as in Remacle et al., "Blossom-Quad: a
        non-uniform quadrilateral mesh generator using a minimum-cost perfect-matching algorithm", 2012.
        Differs: triangles may be left; solved as an integer program.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a quarter of a second to load
    from scipy.sparse import csr_array

    pairs = _neighbours(corner)
    quads = quad_corners(triangles, triangles, pairs)
    even, good = None, np.ones(len(pairs), bool)
    for s, some in enumerate(points):
        fold, sines, cosines = _angles(some[quads])
        good &= (fold > np.cos(np.radians(FLAT_MOVED if s else FLAT))) & (sines.min(1) > CONVEX)
        if even is None:
            even = 1 - np.abs(cosines).max(1)
    assert even is not None
    pairs, weight = pairs[good], COUNT + even[good]
    if not len(pairs):
        return pairs
    ends = np.repeat(np.arange(len(pairs)), 2)
    taken = csr_array((np.ones(len(ends)), (pairs.ravel(), ends)), shape=(len(triangles), len(pairs)))
    found = milp(
        -weight,
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(taken, ub=1),
        options={"mip_rel_gap": GAP},
    )
    assert found.x is not None, found.message
    return pairs[found.x > 0.5]


def quad_corners(values: np.ndarray, triangles: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """What belongs to the corners of triangles, values [F, 3], at those of the quads `pairs` [Q, 2]: [Q, 4].
    A quad begins where its triangles share an edge, so that these are (0, 1, 2) and (0, 2, 3)."""
    first, second = triangles[pairs[:, 0]], triangles[pairs[:, 1]]
    # Which corner the other triangle lacks.
    one, other = (
        (a[:, :, None] != b[:, None]).all(2).argmax(1) for a, b in ((first, second), (second, first))
    )
    row = np.arange(len(pairs))
    a, b, c = (values[pairs[:, 0]][row, (one + k) % 3] for k in (2, 0, 1))
    return np.stack([a, b, c, values[pairs[:, 1]][row, other]], 1)


def _neighbours(corner: np.ndarray) -> np.ndarray:
    """[E, 2] triangles with a common edge that no third one has."""
    edge = np.sort(corner[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    _, number, count = np.unique(edge, axis=0, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    order = np.argsort(number, kind="stable")
    rows = order[count[number[order]] == 2].reshape(-1, 2) // 3
    return rows[rows[:, 0] != rows[:, 1]]


def _angles(quads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of quads [Q, 4, 3]: cosine between the normals of their triangles [Q]; sines, negative where one goes
    in, and cosines of their corners [Q, 4]."""
    after = np.roll(quads, -1, 1) - quads
    after /= np.maximum(np.linalg.norm(after, axis=2, keepdims=True), 1e-12)
    before = np.roll(after, 1, 1)
    halves = [
        np.cross(quads[:, j] - quads[:, i], quads[:, k] - quads[:, i]) for i, j, k in ((0, 1, 2), (0, 2, 3))
    ]
    halves = [half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-12) for half in halves]
    normal = halves[0] + halves[1]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    sines = (np.cross(before, after) * normal[:, None]).sum(2)
    return (halves[0] * halves[1]).sum(1), sines, (before * after).sum(2)
