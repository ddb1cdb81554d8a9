"""Mean albedo of the generic head, painted per vertex (linear RGB)."""

from __future__ import annotations

import numpy as np

from .skin_mesh import closed_curve, inside

SKIN = (0.52, 0.315, 0.225)
LIPS = (0.42, 0.165, 0.145)
BROW = (0.085, 0.055, 0.040)
TEETH = (0.70, 0.64, 0.52)
BETWEEN_TEETH = (0.34, 0.25, 0.19)
GUMS = (0.42, 0.17, 0.15)
TONGUE = (0.43, 0.16, 0.145)
HAIR = (0.095, 0.065, 0.050)


def smooth_step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def distance_to_curve(points: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Distance [N] from points to a polyline [M, D]."""
    a, b = curve[:-1], curve[1:]
    ab = b - a
    t = ((points[:, None] - a[None]) * ab[None]).sum(-1) / ((ab**2).sum(-1)[None] + 1e-12)
    foot = a[None] + np.clip(t, 0, 1)[..., None] * ab[None]
    return np.linalg.norm(points[:, None] - foot, axis=-1).min(1)


def paint(figures, mean, layout, region, names, iris, groove, skin) -> np.ndarray:
    """[V, 3] albedo in [0, 1]."""
    colour = np.tile(np.array(SKIN), (len(mean), 1))
    index = {n: i for i, n in enumerate(names)}
    folded = mean.copy()
    folded[:, 0] = np.abs(folded[:, 0])
    flat = np.nan_to_num(layout, nan=1e3)  # parts with a map of their own lie far from every feature
    flat[:, 0] = np.abs(flat[:, 0])

    def mix(target, amount):
        colour[:] = colour * (1 - amount[:, None]) + np.array(target) * amount[:, None]

    at = lambda k: figures.position[figures.ibug(k)]
    blob = lambda centre, size: np.exp(-0.5 * ((folded - centre) ** 2).sum(1) / size**2)
    mix((0.55, 0.25, 0.18), 0.35 * blob(np.array([42, 0, 90.0]), 16.0))  # cheeks
    mix((0.52, 0.24, 0.18), 0.35 * blob(at(30), 11.0))  # tip of the nose
    mix((0.40, 0.22, 0.16), 0.5 * blob(figures.eye_centre + [0, 1, 14], 9.0))  # around the eyes

    # Scalp: cropped hair behind the hairline, which is given as height over depth, with soft edges.
    line = np.interp(
        folded[:, 2],
        [-80, -35, -10, 2, 20, 30, 36, 42, 48, 58, 68, 78, 95],
        [-42, -36, -22, 8, 30, 12, 16, 34, 52, 68, 80, 90, 96],
    )
    hair = smooth_step((folded[:, 1] - line) / np.interp(folded[:, 2], [-10, 25], [34, 12]) + 0.4)
    mix(HAIR, 0.8 * hair * np.isin(region, [index["head"], index["face"], index["neck"]]))

    # Brows: a tapering band along the five brow points.
    brow = np.array([at(k) for k in range(22, 27)])
    steps = np.linspace(0, 4, 41)
    line = np.stack([np.interp(steps, np.arange(5), brow[:, k]) for k in range(3)], axis=1)
    width = np.interp(folded[:, 0], [brow[0, 0], brow[1, 0], brow[3, 0], brow[4, 0]], [3.2, 3.9, 2.6, 1.4])
    mix(
        BROW,
        0.8 * smooth_step((1.75 - distance_to_curve(folded, line) / width) / 1.3) * (region == index["face"]),
    )

    # Lips: between the outer and the inner contour, soft edge.
    outer = figures.layout[figures.curve("lip_outer", [51, 52, 53, 54, 55, 56, 57])]
    loop = closed_curve(np.concatenate([outer, outer[-2:0:-1] * [-1, 1]]), 200)
    signed = distance_to_curve(flat, np.concatenate([loop, loop[:1]])) * np.where(inside(loop, flat), 1, -1)
    mix(LIPS, 0.85 * smooth_step(signed / 0.45 + 0.6) * (flat[:, 0] < 100))

    # Lid margins and nostrils.
    margin = distance_to_curve(folded, mean[np.r_[skin.lid, skin.lid[:1]]])
    mix((0.33, 0.14, 0.11), 0.7 * np.exp(-0.5 * (margin / 0.9) ** 2) * (region == index["face"]))
    near = np.exp(-((np.linalg.norm(folded - at(42), axis=1) / 3.5) ** 2))
    mix((0.47, 0.20, 0.17), 0.9 * smooth_step(1.6 * near) * inside(skin.layout[skin.lid], flat))  # caruncles
    deep = figures.layout[figures.rows("nostril_deep")[0]]
    mix((0.05, 0.018, 0.014), 0.95 * smooth_step((0.95 - np.linalg.norm(flat - deep, axis=1)) / 0.75))

    interior = region == index["mouth_interior"]
    depth = smooth_step((at(62)[2] - folded[:, 2] - 2.0) / 12.0)
    lining = np.array(LIPS) * (1 - depth[:, None]) + np.array((0.10, 0.025, 0.025)) * depth[:, None]
    colour[interior] = lining[interior]
    crown = np.array(TEETH) * (1 - groove[:, None]) + np.array(BETWEEN_TEETH) * groove[:, None]
    colour[region == index["teeth"]] = crown[region == index["teeth"]]
    colour[region == index["gums"]] = GUMS
    # Front and upper side of the tongue are lighter than what lies in the mouth's dark.
    dark = 0.75 * smooth_step((at(62)[2] - 20.0 - mean[:, 2]) / 35.0)[:, None]
    colour[region == index["tongue"]] = (np.array(TONGUE) * (1 - dark))[region == index["tongue"]]
    for eye in ("eye_left", "eye_right"):
        rows = region == index[eye]
        r = iris[rows]
        shade = np.tile(np.array((0.72, 0.68, 0.65)), (rows.sum(), 1))
        shade[r < 1.02] = (0.11, 0.062, 0.035)
        shade[r < 0.45] = (0.012, 0.010, 0.010)
        shade[(r > 0.85) & (r < 1.0)] = (0.05, 0.032, 0.022)
        colour[rows] = shade
    return np.clip(colour, 0, 1)
