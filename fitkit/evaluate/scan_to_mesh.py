"""Scan-to-mesh distance after the alignment of the NoW benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.geometry.icp import motion_step

# iBUG: outer, inner, inner, outer eye corner, nose bottom, mouth corners.
NOW_POINTS = (36, 39, 42, 45, 33, 48, 54)


@dataclass(frozen=True)
class ScanToMesh:
    """distances: [N] mm, one for each cropped scan vertex; aligned: the prediction's vertices in the scan
    frame."""

    distances: np.ndarray
    aligned: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.distances.mean())

    @property
    def median(self) -> float:
        return float(np.median(self.distances))


def now_crop(scan: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Indices of the scan vertices in the face sphere; scan [N, 3], points [7, 3] in the order of NOW_POINTS.

    Raises:
        DegenerateInputError: an eye corner or the nose bottom is missing (NaN).
    Source: NoW evaluator: centre = nose bottom + 0.3 (bridge - nose bottom), bridge = mean of the inner eye
    corners, radius = 1.4 (outer eye distance + |bridge - nose bottom|) / 2.
    """
    missing = [number for number, point in zip(NOW_POINTS[:5], points) if np.isnan(point).any()]
    if missing:
        raise DegenerateInputError(
            f"face sphere of NoW: expected the eye corners and the nose bottom of the scan, iBUG points "
            f"{', '.join(map(str, NOW_POINTS[:5]))}, but {missing[0]} is missing"
        )
    bridge, bottom = (points[1] + points[2]) / 2, points[4]
    center = bottom + 0.3 * (bridge - bottom)
    radius = 1.4 * (np.linalg.norm(points[3] - points[0]) + np.linalg.norm(bridge - bottom)) / 2
    return np.nonzero(np.linalg.norm(scan - center, axis=1) <= radius)[0]


def scan_to_mesh(
    vertices: np.ndarray,
    triangles: np.ndarray,
    landmarks: np.ndarray,
    scan: np.ndarray,
    scan_landmarks: np.ndarray,
    with_scale: bool = True,
    max_iterations: int = 40,
) -> ScanToMesh:
    """Unsigned distance of every given scan vertex to the aligned prediction.

    Args:
        vertices [V, 3], triangles [F, 3], landmarks [7, 3]: predicted neutral mesh and its NOW_POINTS, mm.
        scan: [N, 3] mm, already cropped; scan_landmarks: [7, 3] mm; with_scale: False for the metrical
            variant. Points that are missing in one of them (NaN) do not count.
    Raises:
        DegenerateInputError: fewer than 3 points that both have.
    Source:
        NoW protocol: similarity from the 7 landmarks, then the similarity that minimises the squared
        scan-to-mesh distance over all cropped scan vertices (Gauss-Newton on the exact closest points, stop
        at 1e-6 mm change).
    """
    to_scan = similarity_align(
        torch.from_numpy(np.asarray(landmarks, np.float64))[None],
        torch.from_numpy(np.asarray(scan_landmarks, np.float64))[None],
        with_scale=with_scale,
    )
    s, R, t = float(to_scan.scale), to_scan.rotation[0].numpy(), to_scan.translation[0].numpy()
    index = SurfaceIndex(vertices, triangles)
    scan = np.asarray(scan, np.float64)
    best, last = None, np.inf
    for _ in range(max_iterations):
        local = (scan - t) @ R / s  # the scan in the prediction's frame: the index is built once
        closest, distance, _ = index.query(local)
        distance = distance * s
        rms = float(np.sqrt((distance**2).mean()))
        if best is None or rms < best[0]:
            best = (rms, s, R, t, distance)
        if abs(last - rms) < 1e-6:
            break
        last = rms
        moved = s * closest @ R.T + t
        normal = scan - moved
        length = np.linalg.norm(normal, axis=1)
        ok = length > 1e-9
        normal = normal[ok] / length[ok, None]
        turn, shift, grow = motion_step(moved[ok] - t, normal, length[ok], with_scale)
        R, t, s = turn @ R, t + shift, s * grow
    _, s, R, t, distance = best
    return ScanToMesh(distance, s * np.asarray(vertices, np.float64) @ R.T + t)
