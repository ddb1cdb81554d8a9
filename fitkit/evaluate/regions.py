"""Shape error by region, each region laid onto the prediction by itself."""

from __future__ import annotations

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.evaluate.distances import mean
from fitkit.evaluate.scan_to_mesh import NOW_POINTS, now_crop
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.icp import icp

# iBUG points whose nearest one decides to which region a scan vertex belongs.
REGIONS = {
    "nose": range(27, 36),
    "mouth": range(48, 68),
    "eyes": (*range(17, 27), *range(36, 48)),
    "cheeks": range(0, 17),
}


def region_labels(scan: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Index into REGIONS [N] of each scan vertex [N, 3]: that of the nearest of the 68 landmarks [68, 3], of
    those that are not missing (NaN)."""
    owner = np.empty(68, int)
    for number, points in enumerate(REGIONS.values()):
        owner[list(points)] = number
    known = ~np.isnan(landmarks).any(-1)
    return owner[known][np.linalg.norm(scan[:, None] - landmarks[known], axis=-1).argmin(1)]


def region_errors(
    vertices: np.ndarray,
    triangles: np.ndarray,
    landmarks: np.ndarray,
    scan: np.ndarray,
    scan_landmarks: np.ndarray,
) -> dict[str, float]:
    """Mean scan-to-mesh distance of each region, mm, and `mean` of the four.

    The face sphere of the scan (NoW) is divided by the nearest landmark. The similarity of all 68 landmarks
    is the start; from there every region is laid onto the prediction by its own trimmed rigid ICP, so that
    the error of one region does not shift the others: a piecewise, landmark-anchored alignment. The scale
    stays that of the whole face: a region as flat as a cheek has none.

    Args:
        vertices [V, 3] mm, triangles [F, 3], landmarks [68, 3]: prediction; scan [N, 3] mm, scan_landmarks
            [68, 3]: truth; NaN where a point is missing.
    Raises:
        DegenerateInputError: fewer than 3 landmarks that both have, or no region.
    Source:
        The idea of REALY (Chai et al., ECCV 2022), whose regions, key points and non-rigid step (bICP) are
        part of its own data; this is a simpler form, so do not compare it with REALY's table.
    """
    crop = scan[now_crop(scan, scan_landmarks[list(NOW_POINTS)])]
    start = similarity_align(
        torch.from_numpy(np.asarray(scan_landmarks, np.float64))[None],
        torch.from_numpy(np.asarray(landmarks, np.float64))[None],
    )
    placed = start.apply(torch.from_numpy(np.asarray(crop, np.float64))[None])[0].numpy()
    label, out = region_labels(crop, scan_landmarks), {}
    for number, name in enumerate(REGIONS):
        part = placed[label == number]
        if len(part) < 6:
            continue
        # Back to the scan's millimetres.
        out[name] = mean(icp(part, vertices, triangles).distance) / float(start.scale)
    if not out:
        raise DegenerateInputError(
            f"regions: expected at least 6 vertices of one in the scan, got {len(crop)}"
        )
    out["mean"] = float(np.mean(list(out.values())))
    return out
