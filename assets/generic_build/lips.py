"""Details of the lips in the mean face that the measured sites are too far apart for: the bow of the line
where the lips meet, the edge of their red, and an even hollow below the lower lip."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .fine_skin import RED_ROWS, WHITE_ROWS, FineSkin

TUBERCLE = (-0.65, 4.0)  # mm down at the midline, width; the lower lip gives way
PILLOWS = (0.4, 10.0, 4.0)  # mm up on both sides, at mm from the midline, width
LINE = (0.15, 0.30)  # share of the red where the bow is largest, width
RIDGE = {0: 0.08, 1: 0.24, 2: 0.12, -1: -0.10, -2: -0.07}  # mm outwards, rows from the border of the red
EVEN = (2.5, 9.0)  # columns, mm from the midline: the hollow below the lower lip


def detail(skin: FineSkin, rest: np.ndarray) -> np.ndarray:
    """Displacement [Q, M, 3] of the loops round the mouth; rest: [V, 3] smooth mean skin."""
    rows, border = skin.mouth, skin.border
    base = rest[rows]
    x, corner = np.abs(base[..., 0]), np.abs(base[0, :, 0]).max()
    out = np.zeros_like(base)
    share = np.r_[0.0, RED_ROWS, 1.0, 1.0 + np.array(WHITE_ROWS), 2.0][:, None]

    bow = TUBERCLE[0] * np.exp(-((x / TUBERCLE[1]) ** 2))
    bow = bow + PILLOWS[0] * np.exp(-(((x - PILLOWS[1]) / PILLOWS[2]) ** 2))
    where = np.exp(-(((share - LINE[0]) / LINE[1]) ** 2))
    where[0] = 0.12
    out[..., 1] += bow * where * (share < 1)

    normal = np.cross(np.roll(base, -1, 1) - np.roll(base, 1, 1), np.gradient(base, axis=0))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    normal *= np.sign(normal[..., 2:].mean())
    aside = np.clip((corner - x) / 8, 0, 1)
    for step, height in RIDGE.items():
        out[border + step] += (height * aside[border + step])[:, None] * normal[border + step]

    half = base.shape[1] // 2
    below = np.zeros(base.shape[1])
    below[half - half // 2 : half + half // 2 + 1] = 1.0
    smooth = gaussian_filter1d(base, EVEN[0], axis=1, mode="wrap")
    amount = below * np.clip(share - 1, 0, 0.5) / 0.5 * np.exp(-((x / EVEN[1]) ** 2))
    out += (amount * (1 - 0.3 * (share == 2)))[..., None] * (smooth - base) * [0, 1, 1]
    return out
