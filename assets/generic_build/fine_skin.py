"""More rows of vertices between the lid margins, the lips and the outermost loops round them.

The sheet of `skin_mesh.py` is what the identity modes are computed on. Folds of lids and the edges of lips
are finer than its loops, so the loops between are replaced by closer ones; all else keeps its vertices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from .skin_mesh import SkinMesh, local_scale, ring_outwards, triangulate

EYE_ROWS = (0.3, 0.7, 1.3, 2.0, 2.8, 3.5, 4.2, 4.9, 5.7, 6.8)  # mm of EYE_REACH
EYE_REACH = 8.1  # mm, of the outermost loop
CREASE = 4.9  # mm, of the loop on which the fold of the upper lid lies
RED_ROWS = (0.08, 0.2, 0.35, 0.52, 0.69, 0.86)  # shares from the inner contour to the border of the lips
WHITE_ROWS = (0.10, 0.24, 0.43, 0.68)  # and from there to the outermost loop
BAND = 2.2  # mm beyond the outermost loop round the mouth, where it meets sparse points


@dataclass(frozen=True)
class FineSkin(SkinMesh):
    """`coarse`: [V] the vertex of the sheet that this one is made of, or -1."""

    coarse: np.ndarray


def refine(skin: SkinMesh, to_head) -> FineSkin:
    """The sheet with closer loops; to_head: layout [N, 2] -> positions [N, 3]."""
    half = np.flatnonzero(skin.layout[:, 0] >= -1e-9)
    quarter = skin.mouth.shape[1] // 2 + 1
    eye, mouth = skin.eye, skin.mouth[:, :quarter]
    dropped = np.r_[eye[1:-1].ravel(), mouth[1 : skin.border].ravel(), mouth[skin.border + 1 : -1].ravel()]
    kept = np.setdiff1d(half, dropped)

    at = lambda rows: skin.layout[rows]
    eye_rows = spokes(at(eye[0]), at(eye[-1]), np.array(EYE_ROWS) / EYE_REACH, to_head)
    red = spokes(at(mouth[0]), at(mouth[skin.border]), np.array(RED_ROWS), to_head)
    white = spokes(at(mouth[skin.border]), at(mouth[-1]), np.array(WHITE_ROWS), to_head)
    for rows in (red, white):
        rows[:, [0, -1], 0] = 0.0
    band = band_outside(at(mouth[-1]), at(kept), to_head)

    parts = [eye_rows.reshape(-1, 2), red.reshape(-1, 2), white.reshape(-1, 2), band]
    points = np.concatenate([at(kept), *parts])
    coarse = np.r_[kept, np.full(len(points) - len(kept), -1)]
    first = len(kept) + np.cumsum([0] + [len(p) for p in parts])
    new = lambda k, like: first[k] + np.arange(like.shape[0] * like.shape[1]).reshape(like.shape[:2])
    row = np.searchsorted(kept, np.arange(len(skin.layout)))
    eye_loops = np.concatenate([row[eye[:1]], new(0, eye_rows), row[eye[-1:]]])
    mouth_half = np.concatenate(
        [row[mouth[:1]], new(1, red), row[mouth[[skin.border]]], new(2, white), row[mouth[-1:]]]
    )

    # Outside the loops as before, but for the band; between the loops strips.
    outside = np.r_[np.arange(len(kept)), first[3] + np.arange(len(band))]
    outline = np.concatenate([at(skin.neck), [[0.0, at(skin.neck)[-1, 1]], [0.0, at(skin.neck)[0, 1]]]])
    lips = at(mouth[-1])
    holes = [at(eye[-1]), np.concatenate([lips, lips[::-1] * [-1, 1]]), at(skin.ear), at(skin.nostril)]
    inner = np.isin(outside, np.r_[row[eye[0]], row[mouth[0]], row[mouth[skin.border]]])
    outside = outside[~inner]
    faces = [outside[triangulate(points[outside], outline, holes)]]
    head = to_head(points)
    faces += [ring_strip(a, b, head, True) for a, b in itertools.pairwise(eye_loops)]
    faces += [ring_strip(a, b, head, False) for a, b in itertools.pairwise(mouth_half)]
    faces = np.concatenate(faces)
    a, b, c = (points[faces[:, k]] for k in range(3))
    turned = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) < (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    faces[turned] = faces[turned][:, [0, 2, 1]]

    side = np.flatnonzero(points[:, 0] > 1e-9)
    mirror = np.arange(len(points) + len(side))
    mirror[side] = len(points) + np.arange(len(side))
    mirror[len(points) :] = side
    other = np.where(coarse[side] < 0, -1, skin.mirror[coarse[side]])
    loops = np.concatenate([mouth_half, mirror[mouth_half[:, -2:0:-1]]], axis=1)
    return FineSkin(
        np.concatenate([points, points[side] * [-1, 1]]),
        np.concatenate([faces, mirror[faces][:, [0, 2, 1]]]),
        mirror,
        lid=eye_loops[0],
        lip=loops[0],
        ear=row[skin.ear],
        nostril=row[skin.nostril],
        neck=row[skin.neck],
        eye=eye_loops,
        mouth=loops,
        border=1 + len(RED_ROWS),
        coarse=np.r_[coarse, other],
    )


def spokes(inner: np.ndarray, outer: np.ndarray, shares: np.ndarray, to_head) -> np.ndarray:
    """Layout points [K, N, 2] on straight spokes from `inner` [N, 2] to `outer` [N, 2] at `shares` [K] of
    their length on the head."""
    t = np.linspace(0, 1, 40)
    fine = inner[None] + t[:, None, None] * (outer - inner)[None]
    head = to_head(fine.reshape(-1, 2)).reshape(len(t), -1, 3)
    arc = np.r_[np.zeros((1, len(inner))), np.cumsum(np.linalg.norm(np.diff(head, axis=0), axis=2), axis=0)]
    out = np.empty((len(shares), len(inner), 2))
    for k in range(len(inner)):
        at = np.interp(shares * arc[-1, k], arc[:, k], t)
        out[:, k] = inner[k] + at[:, None] * (outer[k] - inner[k])
    return out


def band_outside(loop: np.ndarray, points: np.ndarray, to_head) -> np.ndarray:
    """Every second point of the loop [N, 2] moved outwards by BAND, where no other point is near: between
    the dense loop and sparse ones there would be fans of thin triangles, which show as creases."""
    whole = np.concatenate([loop, loop[-2:0:-1] * [-1, 1]])
    ring = ring_outwards(whole, BAND / local_scale(whole, to_head))[: len(loop)]
    ring[[0, -1], 0] = 0.0
    ring = ring[1:-1:2]
    gap, _ = cKDTree(to_head(points)).query(to_head(ring))
    return ring[gap > 0.6 * BAND]


def ring_strip(inner: np.ndarray, outer: np.ndarray, head: np.ndarray, closed: bool) -> np.ndarray:
    """Triangles between two rows [N] of vertices, each quad cut along its shorter diagonal."""
    n = len(inner)
    k = np.arange(n if closed else n - 1)
    j = (k + 1) % n
    a, b, c, d = inner[k], outer[k], outer[j], inner[j]
    long = np.linalg.norm(head[a] - head[c], axis=1) > np.linalg.norm(head[b] - head[d], axis=1)
    first = np.stack([np.c_[a, b, c], np.c_[a, c, d]], 1)
    second = np.stack([np.c_[a, b, d], np.c_[b, c, d]], 1)
    return np.where(long[:, None, None], second, first).reshape(-1, 3)
