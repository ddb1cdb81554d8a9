"""Are error bars as wide as the errors? Share of true surface points within one and two standard
deviations."""

from __future__ import annotations

import numpy as np
import torch

from fitkit.geometry.closest_point import SurfaceIndex, barycentric
from fitkit.geometry.normals import vertex_normals


def coverage(
    aligned: np.ndarray, triangles: np.ndarray, sigma: np.ndarray, scan: np.ndarray
) -> tuple[float, float]:
    """Shares of the scan points within 1 and 2 sigma of the prediction; 0.683 and 0.954 for exact Gaussian
    error bars.

    The error of a scan point is its signed distance from the closest surface point along the smooth normal
    there, sigma is interpolated at that point.

    Args:
        aligned: [V, 3] mm, the prediction laid onto the scan; triangles: [F, 3]; sigma: [V] mm, in the scan's
            scale.
        scan: [N, 3] mm, the true surface, cropped to what is judged.
    """
    error, corner, weight = surface_errors(aligned, triangles, scan)
    width = (weight * np.asarray(sigma, np.float64)[corner]).sum(1)
    return float((error <= width).mean()), float((error <= 2 * width).mean())


def surface_errors(
    aligned: np.ndarray, triangles: np.ndarray, scan: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far scan points [N, 3] mm lie from a mesh along its smooth normals, [N] mm, and for each of them
    the closest surface point: its vertices [N, 3] and their weights [N, 3]; other arguments as of
    `coverage`."""
    closest, _, triangle = SurfaceIndex(aligned, triangles).query(scan)
    corner = np.asarray(triangles)[triangle]
    weight = barycentric(closest, np.asarray(aligned, np.float64)[corner])
    mesh = torch.from_numpy(np.asarray(aligned, np.float64))[None]
    normals = vertex_normals(mesh, torch.from_numpy(np.asarray(triangles, np.int64)))[0].numpy()
    normal = (weight[..., None] * normals[corner]).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return np.abs(((scan - closest) * normal).sum(1)), corner, weight
