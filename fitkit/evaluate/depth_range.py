"""Depth errors in per cent of the depth range, as on BU-3DFE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitkit.errors import DegenerateInputError
from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.geometry.icp import icp


@dataclass(frozen=True)
class ScaleShift:
    """y = scale * x + shift; shift [3]. No rotation."""

    scale: float
    shift: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        return self.scale * np.asarray(points, np.float64) + self.shift


def scale_shift(points: np.ndarray, truth: np.ndarray) -> ScaleShift:
    """Least-squares scale and shift that map points [N, 3] onto truth [N, 3]; NaN where a point is missing.

    Raises:
        DegenerateInputError: fewer than two distinct points that both have.
    """
    known = ~np.isnan(points + truth).any(-1)
    if known.sum() < 2:
        raise DegenerateInputError(f"scale: expected at least two distinct points, got {known.sum()}")
    points, truth = points[known], truth[known]
    center, goal = points.mean(0), truth.mean(0)
    spread = float(((points - center) ** 2).sum())
    if spread < 1e-12:
        raise DegenerateInputError(f"scale: expected at least two distinct points, got {len(points)}")
    scale = float(((points - center) * (truth - goal)).sum()) / spread
    return ScaleShift(scale, goal - scale * center)


def average(maps: list[ScaleShift]) -> ScaleShift:
    """One map for the whole data set: the means of scale and shift."""
    return ScaleShift(float(np.mean([m.scale for m in maps])), np.mean([m.shift for m in maps], axis=0))


def depth_range_errors(
    points: np.ndarray, scan: np.ndarray, triangles: np.ndarray, depth_range: float
) -> np.ndarray:
    """Distances [N] of predicted points from their partners on the scan, in per cent of the depth range.

    Rigid ICP only finds the partners; the motion is discarded and the distances are those without it.

    Args:
        points: [N, 3] mm, one for each pixel with predicted face depth, under the data set's ScaleShift; scan
            [V, 3] mm, triangles
        [F, 3]; depth_range: max z - min z of the scan's face, mm.
    Source:
        Shu et al., "Learning monocular face reconstruction using multi-view supervision", FG 2020, after Sela
        et al., ICCV 2017.
    """
    moved = icp(points, scan, triangles).apply(points)
    partner = SurfaceIndex(scan, triangles).query(moved)[0]
    return 100 * np.linalg.norm(partner - points, axis=1) / depth_range


def percentiles(errors: np.ndarray) -> dict[str, float]:
    """mean, std, median and 90th percentile of errors [N], same unit."""
    return {
        "mean": float(errors.mean()),
        "std": float(errors.std()),
        "median": float(np.median(errors)),
        "p90": float(np.percentile(errors, 90)),
    }
