"""The skin of the head as a triangle mesh: drawn in the planar layout, one half, then mirrored.

Edge loops run around the eyes and the mouth; elsewhere points are spread with a wanted edge length (in
millimetres on the head), relaxed, and triangulated (Delaunay in the layout).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial import Delaunay, cKDTree

from .figures import Figures, LayoutSpline

LIP_SHARES = (0.3, 0.65, 1.0)  # of the way from the inner contour of the lips to their border


@dataclass(frozen=True)
class SkinMesh:
    """Symmetric skin sheet; open at lids, lips, ears and neck. Loops are vertex rows."""

    layout: np.ndarray  # [V, 2]
    triangles: np.ndarray  # [F, 3] counter-clockwise from outside
    mirror: np.ndarray  # [V]
    lid: np.ndarray  # left lid margin, closed loop
    lip: np.ndarray  # inner lip contour, closed loop over both halves
    ear: np.ndarray  # left ear base, closed loop
    nostril: np.ndarray  # left nostril rim, closed loop
    neck: np.ndarray  # neck end, left half, front to back
    eye: np.ndarray  # [R, N] loops round the left eye, from the lid margin outwards; a column is a spoke
    mouth: np.ndarray  # [Q, M] loops round the mouth, from the inner lip contour outwards
    border: int  # which of the loops round the mouth is the border of the red of the lips


def closed_curve(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points at equal arc length on the periodic cubic spline through `points` [M, D]."""
    chord = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points[np.r_[: len(points), 0]], axis=0), axis=1))]
    spline = CubicSpline(chord, points[np.r_[: len(points), 0]], bc_type="periodic")
    return spline(even_parameters(spline, chord[-1], count + 1)[:-1])


def open_curve(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points at equal arc length, ends included, on the cubic spline through `points` [M, D]."""
    chord = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    spline = CubicSpline(chord, points)
    return spline(even_parameters(spline, chord[-1], count))


def even_parameters(spline, end: float, count: int, columns=slice(None)) -> np.ndarray:
    fine = np.linspace(0, end, 4000)
    arc = np.r_[0, np.cumsum(np.linalg.norm(np.diff(spline(fine)[:, columns], axis=0), axis=1))]
    return np.interp(np.linspace(0, arc[-1], count), arc, fine)


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Even-odd test, polygon [M, 2], points [N, 2] -> bool [N]."""
    a, b = polygon[None], np.roll(polygon, -1, 0)[None]
    x, y = points[:, :1], points[:, 1:]
    crosses = (a[..., 1] > y) != (b[..., 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (b[..., 0] - a[..., 0]) * (y - a[..., 1]) / (b[..., 1] - a[..., 1]) + a[..., 0]
    return (crosses & (x < at)).sum(1) % 2 == 1


def edge_length(p: np.ndarray, lid, lip, nose, brow, ear) -> np.ndarray:
    """Wanted edge length in mm at positions [N, 3]; the other arguments are positions of feature points."""
    distance = lambda q: cKDTree(q).query(p)[0]
    wanted = np.minimum.reduce(
        [
            1.5 + 0.17 * distance(lid),
            1.6 + 0.17 * distance(lip),
            2.1 + 0.16 * np.maximum(distance(nose) - 6, 0),
            2.3 + 0.22 * np.maximum(distance(brow) - 4, 0),
            4.0 + 0.15 * distance(ear),
        ]
    )
    away = np.clip((72 - p[:, 2]) / 70, 0, 1)
    return np.minimum(wanted, 4.4 + 6.0 * away)


def ring_outwards(curve: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Offset a closed layout curve [N, 2] outwards by `distance` [N], smoothed."""
    tangent = np.roll(curve, -1, 0) - np.roll(curve, 1, 0)
    normal = np.c_[tangent[:, 1], -tangent[:, 0]]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    centre = curve.mean(0)
    if ((curve - centre) * normal).sum() < 0:
        normal = -normal
    ring = curve + normal * distance[:, None]
    for _ in range(3):
        ring = 0.5 * ring + 0.25 * (np.roll(ring, 1, 0) + np.roll(ring, -1, 0))
    # Smoothing cuts sharp corners: push the ring back to at least 0.8 of its distance.
    a, ab = curve, np.roll(curve, -1, 0) - curve
    for _ in range(4):
        t = ((ring[:, None] - a[None]) * ab[None]).sum(-1) / ((ab**2).sum(-1)[None] + 1e-12)
        foot = a[None] + np.clip(t, 0, 1)[..., None] * ab[None]
        gap = np.linalg.norm(ring[:, None] - foot, axis=-1)
        near = gap.argmin(1)
        row = np.arange(len(ring))
        apart = ring - foot[row, near]
        signed = gap[row, near] * np.where(inside(curve, ring), -1, 1)
        apart *= (np.sign(signed) / np.maximum(gap[row, near], 1e-9))[:, None]
        ring = ring + apart * np.maximum(0.8 * distance - signed, 0)[:, None]
    return ring


def build_skin(figures: Figures, spline: LayoutSpline, surface: list[int], seed: int = 1) -> SkinMesh:
    """Mesh the left half of the layout and mirror it; `surface`: the sites that the spline runs through."""
    to_head = lambda u: spline.matrix(u) @ figures.position[surface]
    on_head = figures.position

    # Boundary curves in the layout, spaced evenly on the head.
    lid_rows = figures.curve("lid", [42, 43, 44, 45, 46, 47, 42])
    lid = head_curve(figures.layout[lid_rows], to_head, 44, closed=True)
    lid = snap(lid, figures.layout[[figures.ibug(k) for k in range(42, 48)]])
    lip_rows = figures.curve("lip_inner", [62, 63, 64, 65, 66])
    lip_sites = figures.layout[lip_rows]
    loop = np.concatenate([lip_sites, lip_sites[-2:0:-1] * [-1, 1]])
    lip_full = head_curve(loop, to_head, 72, closed=True)
    lip_full = snap(lip_full, figures.layout[[figures.ibug(k) for k in (62, 63, 64, 65, 66)]])
    lip_full[37:] = lip_full[35:0:-1] * [-1, 1]
    lip = lip_full[:37].copy()
    lip[[0, -1], 0] = 0.0
    ear = head_curve(figures.layout[figures.rows("ear_base_")], to_head, 36, closed=True)
    nostril = head_curve(figures.layout[figures.rows("nostril_rim_")], to_head, 20, closed=True)
    neck = head_curve(figures.layout[figures.rows("neck_end_")], to_head, 24, closed=False)
    neck[[0, -1], 0] = 0.0

    nose_sites = on_head[[figures.ibug(k) for k in (30, 33, 34, 35)]]
    nose_sites = np.concatenate([nose_sites, nose_sites[-1:] + [[2, 6, -3]], nose_sites[1:2] + [[9, 4, -3]]])
    brow = on_head[[figures.ibug(k) for k in range(22, 27)]]
    brow = np.concatenate([brow, 0.5 * (brow[1:] + brow[:-1])])
    wanted = lambda p: edge_length(p, to_head(lid), to_head(lip), nose_sites, brow, to_head(ear))

    # Edge loops: a few rings around the eye and the mouth at fixed offsets.
    fixed = [lid, lip, ear, neck, nostril]
    mm = lambda ring: local_scale(ring, to_head)
    eye_rings, ring = [], lid
    for step in (1.1, 1.3, 1.6, 1.9, 2.2):
        ring = ring_outwards(ring, step / mm(ring))
        eye_rings.append(ring)
    nostril_ring = ring_outwards(nostril, 1.3 / mm(nostril))
    # Round the mouth: rings on the red of the lips, one exactly on its border, then outwards.
    outer_rows = figures.curve("lip_outer", [51, 52, 53, 54, 55, 56, 57])
    outer = figures.layout[outer_rows]
    border = closed_curve(np.concatenate([outer, outer[-2:0:-1] * [-1, 1]]), 720)
    border = match_loop(lip_full, border)
    border = snap(border, figures.layout[[figures.ibug(k) for k in range(51, 58)]])
    border[37:] = border[35:0:-1] * [-1, 1]
    lip_rings, ring = [], border
    for share in LIP_SHARES:
        lip_rings.append(lip_full * (1 - share) + border * share)
    for step in (1.3, 1.8, 2.2):
        ring = ring_outwards(ring, step / mm(ring))
        lip_rings.append(ring)
    for k, ring in enumerate(lip_rings):
        ring = 0.5 * (ring + (ring * [-1, 1])[np.r_[0, 71:0:-1]])
        lip_rings[k] = ring[:37].copy()
        lip_rings[k][[0, -1], 0] = 0.0
    ear_ring = ring_outwards(ear, 5.0 / mm(ear))
    ear_ring = ear_ring[ear_ring[:, 0] > 0]
    fixed += eye_rings + lip_rings + [ear_ring, nostril_ring]

    # Midline, from the neck to the outermost lip ring and from there over nose and crown to the nape.
    between = np.concatenate(
        [r[[0, -1]] for r in lip_rings[:-1]]
    )  # ends of the inner rings are on the midline already
    assert (np.abs(between[:, 0]) == 0).all()
    below = midline(neck[0, 1], lip_rings[-1][-1, 1], to_head, wanted)
    above = midline(lip_rings[-1][0, 1], neck[-1, 1], to_head, wanted)
    # The iBUG landmarks off the loops become vertices, so that they are met exactly.
    ibug = figures.layout[[figures.ibug(k) for k in range(68) if f"ibug_{k}" in figures.names]]
    for t in ibug[ibug[:, 0] == 0, 1]:
        for line in (below, above):
            near = int(np.argmin(np.abs(line[:, 1] - t)))
            if line[:, 1].min() < t < line[:, 1].max():
                line[near, 1] = t
    side = ibug[ibug[:, 0] > 0]
    drawn = to_head(np.concatenate(fixed + [below, above]))
    gap, _ = cKDTree(drawn).query(to_head(side))
    fixed += [below, above, side[gap > 0.45 * wanted(to_head(side))]]
    fixed_points = np.concatenate(fixed)

    # Free points: dart throwing on a fine grid, then relaxation with everything above held fixed.
    outline = np.concatenate([neck, [[0.0, neck[-1, 1]], [0.0, neck[0, 1]]]])
    mouth = np.concatenate([lip_rings[-1], lip_rings[-1][::-1] * [-1, 1]])
    generator = np.random.default_rng(seed)
    grid = candidates(outline, generator)
    keep = (
        inside(outline, grid) & ~inside(eye_rings[-1], grid) & ~inside(mouth, grid) & ~inside(ear_ring, grid)
    )
    keep &= ~inside(nostril_ring, grid)
    grid = grid[keep]
    grid_head = to_head(grid)
    grid_wanted = wanted(grid_head)
    chosen = throw_darts(grid_head, grid_wanted, to_head(fixed_points), generator)
    free = grid[chosen]
    free = free[free[:, 0] > 0.25 * wanted(to_head(free)) / local_scale_at(free, to_head)]
    holes = [lid, np.concatenate([lip, lip[::-1] * [-1, 1]]), ear, nostril]
    for _ in range(25):
        points = np.concatenate([fixed_points, free])
        faces = triangulate(points, outline, holes)
        free = relax(points, faces, len(fixed_points), to_head)
    points = np.concatenate([fixed_points, free])

    # Every layout point once (rings end on the midline, where the midline starts).
    points, first = merge(points)
    faces = triangulate(points, outline, holes)
    used = np.unique(faces)
    assert len(used) == len(points), "a point of the layout is in no triangle"
    side = np.flatnonzero(points[:, 0] > 1e-9)
    mirror = np.arange(len(points) + len(side))
    mirror[side] = len(points) + np.arange(len(side))
    mirror[len(points) :] = side
    full = np.concatenate([points, points[side] * [-1, 1]])
    triangles = np.concatenate([faces, mirror[faces][:, [0, 2, 1]]])
    start = np.cumsum([0] + [len(f) for f in fixed])
    at = lambda k: first[start[k] : start[k + 1]]
    whole_loop = lambda half: np.concatenate([half, mirror[half[-2:0:-1]]])
    eye = np.stack([at(0)] + [at(5 + k) for k in range(len(eye_rings))])
    mouth = np.stack([whole_loop(at(k)) for k in [1, *(5 + len(eye_rings) + np.arange(len(lip_rings)))]])
    return SkinMesh(
        full, triangles, mirror, lid=at(0), lip=mouth[0], ear=at(2), nostril=at(4), neck=at(3), eye=eye,
        mouth=mouth, border=1 + LIP_SHARES.index(1.0),
    )  # fmt: skip


def snap(curve: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Move the nearest curve point onto each site."""
    out = curve.copy()
    out[np.linalg.norm(curve[:, None] - sites[None], axis=-1).argmin(0)] = sites
    return out


def match_loop(inner: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Points of the closed curve `fine` that stand opposite the points of `inner` (both start at the upper
    midline).

    By angle around the corner of the mouth where the two are close would bunch up; so by arc length of each
    quarter.
    """
    n, m = len(inner), len(fine)
    corner_in, corner_out = n // 4, int(np.argmax(fine[: m // 2, 0]))
    corner_in = int(np.argmax(inner[: n // 2 + 1, 0]))
    bottom = m // 2
    share_in = np.r_[0, np.cumsum(np.linalg.norm(np.diff(inner[: n // 2 + 1], axis=0), axis=1))]
    at = np.interp(share_in, [0, share_in[corner_in], share_in[-1]], [0, corner_out, bottom])
    half = np.stack([np.interp(at, np.arange(m), fine[:, k]) for k in range(2)], axis=1)
    return np.concatenate([half, half[-2:0:-1] * [-1, 1]])


def head_curve(sites: np.ndarray, to_head, count: int, closed: bool) -> np.ndarray:
    """Layout curve through `sites`, resampled to `count` points evenly spaced on the head."""
    fine = closed_curve(sites, 2000) if closed else open_curve(sites, 2000)
    if closed:
        fine = np.concatenate([fine, fine[:1]])
    head = to_head(fine)
    arc = np.r_[0, np.cumsum(np.linalg.norm(np.diff(head, axis=0), axis=1))]
    goal = np.linspace(0, arc[-1], count + 1)[:-1] if closed else np.linspace(0, arc[-1], count)
    return np.stack([np.interp(goal, arc, fine[:, c]) for c in range(2)], axis=1)


def local_scale_at(u: np.ndarray, to_head) -> np.ndarray:
    """Millimetres on the head per layout unit."""
    step = 1e-2
    dx = np.linalg.norm(to_head(u + [step, 0]) - to_head(u - [step, 0]), axis=1)
    dy = np.linalg.norm(to_head(u + [0, step]) - to_head(u - [0, step]), axis=1)
    return np.sqrt(dx * dy) / (2 * step)


def local_scale(ring: np.ndarray, to_head) -> np.ndarray:
    scale = local_scale_at(ring, to_head)
    for _ in range(6):
        scale = 0.5 * scale + 0.25 * (np.roll(scale, 1) + np.roll(scale, -1))
    return scale


def midline(start: float, end: float, to_head, wanted) -> np.ndarray:
    """Points (0, t) strictly between two ordinates with the wanted spacing on the head."""
    t = np.linspace(start, end, 4000)
    head = to_head(np.c_[np.zeros_like(t), t])
    step = np.linalg.norm(np.diff(head, axis=0), axis=1)
    need = np.r_[0, np.cumsum(step / wanted(0.5 * (head[1:] + head[:-1])))]
    count = max(int(round(need[-1])), 1)
    at = np.interp(np.linspace(0, need[-1], count + 1)[1:-1], need, t)
    return np.c_[np.zeros_like(at), at]


def candidates(outline: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Layout points, dense near the origin (the face), sparse at the neck."""
    radius = np.abs(outline).max() * 1.4
    fine = generator.uniform(-1, 1, (60000, 2)) * 28
    coarse = generator.uniform(-1, 1, (30000, 2)) * radius
    both = np.concatenate([fine, coarse])
    return both[both[:, 0] > 0]


def throw_darts(points: np.ndarray, wanted: np.ndarray, taken: np.ndarray, generator) -> np.ndarray:
    """Greedy subset of points [N, 3] no closer than 0.8 `wanted` to each other and to `taken`."""
    far = cKDTree(taken).query(points)[0] > 0.75 * wanted
    alive = np.flatnonzero(far)
    alive = alive[np.argsort(wanted[alive] * generator.uniform(0.9, 1.1, len(alive)), kind="stable")]
    tree = cKDTree(points)
    dead = np.ones(len(points), bool)
    dead[alive] = False
    chosen = []
    for k in alive:
        if not dead[k]:
            chosen.append(k)
            dead[tree.query_ball_point(points[k], 0.8 * wanted[k])] = True
    return np.array(chosen)


def triangulate(points: np.ndarray, outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """Delaunay triangles with their centre inside `outline` and outside every hole, counter-clockwise."""
    unique, first = merge(points)
    back = np.full(len(unique), -1)
    for i, k in enumerate(first):
        if back[k] < 0:
            back[k] = i
    faces = Delaunay(unique).simplices
    centre = unique[faces].mean(1)
    # The outline polygon has straight edges, so shrink nothing: boundary points lie exactly on it.
    keep = inside(outline, centre) & (centre[:, 0] > 1e-9)
    for hole in holes:
        keep &= ~inside(hole, centre)
    faces = faces[keep]
    a, b, c = (unique[faces[:, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    faces = faces[np.abs(area) > 1e-9]
    area = area[np.abs(area) > 1e-9]
    faces[area < 0] = faces[area < 0][:, [0, 2, 1]]
    return back[faces]


def merge(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique points in order of first appearance, and the row of each input point among them."""
    key = np.round(points * 1e6).astype(np.int64)
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    return points[np.sort(first)], rank[inverse.ravel()]


def relax(points: np.ndarray, faces: np.ndarray, fixed: int, to_head) -> np.ndarray:
    """One step of moving each free point to the area-weighted centre of its triangles (areas on the head)."""
    head = to_head(points)
    a, b, c = (head[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) + 1e-9
    weight = np.repeat(area**0.75, 3)
    centre = np.repeat(points[faces].mean(1), 3, axis=0)
    total = np.bincount(faces.ravel(), weight, len(points))
    moved = np.stack(
        [np.bincount(faces.ravel(), weight * centre[:, k], len(points)) for k in range(2)], axis=1
    )
    moved /= np.maximum(total, 1e-12)[:, None]
    moved[total == 0] = points[total == 0]
    return moved[fixed:]
