"""The "RMSE" of Pixel-Face and Bosphorus, under the names of what it may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitkit.evaluate.distances import mean, point_to_plane, rmse
from fitkit.evaluate.scan_to_mesh import ScanToMesh, now_crop, scan_to_mesh


@dataclass(frozen=True)
class ScanErrors:
    """s2m_mean, s2m_rmse: mean and root mean square of the scan-to-mesh distance, mm; p2plane_rmse: root mean
    square of the point-to-plane distance (nearest predicted vertex); crop: [N] scan vertices that count; fit:
    their distances."""

    s2m_mean: float
    s2m_rmse: float
    p2plane_rmse: float
    crop: np.ndarray
    fit: ScanToMesh


def scan_errors(
    vertices: np.ndarray,
    triangles: np.ndarray,
    points: np.ndarray,
    scan: np.ndarray,
    scan_points: np.ndarray,
    with_scale: bool = True,
) -> ScanErrors:
    """NoW crop and alignment, then every reading of DF-MVR's number.

    Args:
        vertices [V, 3] mm, triangles [F, 3], points [7, 3]: the prediction with its expression; scan [W, 3]
            mm, scan_points [7, 3].
    Source:
        DF-MVR (Zhao et al., 2025): its text says ICP and point-to-plane RMSE, its code computes what is
        s2m_mean here.
    """
    crop = now_crop(scan, scan_points)
    fit = scan_to_mesh(vertices, triangles, points, np.asarray(scan)[crop], scan_points, with_scale)
    plane = point_to_plane(np.asarray(scan)[crop], fit.aligned, triangles)
    return ScanErrors(mean(fit.distances), rmse(fit.distances), rmse(plane), crop, fit)
