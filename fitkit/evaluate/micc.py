"""Point-to-plane distance after ICP, as on MICC Florence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.evaluate.distances import mean, point_to_plane, symmetric
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.icp import icp

CROP_MM = 95.0  # radius around the nose tip


@dataclass(frozen=True)
class MiccErrors:
    """prediction_to_scan: mean point-to-plane distance of the predicted vertices from the scan, mm;
    scan_to_prediction: of the cropped scan's vertices from the prediction; symmetric: mean of the two;
    distances: [N] mm of the cropped scan's vertices `crop` [N]; scale: of the whole alignment."""

    prediction_to_scan: float
    scan_to_prediction: float
    symmetric: float
    distances: np.ndarray
    crop: np.ndarray
    scale: float


def micc_errors(
    vertices: np.ndarray,
    triangles: np.ndarray,
    points: np.ndarray,
    scan: np.ndarray,
    scan_triangles: np.ndarray,
    scan_points: np.ndarray,
    nose_tip: np.ndarray,
    outer: np.ndarray | None = None,
    with_scale: bool = True,
    radius: float = CROP_MM,
) -> MiccErrors:
    """Similarity from 7 landmarks, ICP onto the scan, distances inside a sphere around the nose tip.

    Args:
        vertices [V, 3] mm, triangles [F, 3], points [7, 3] (NOW_POINTS): prediction;
        scan [W, 3] mm, scan_triangles [G, 3], scan_points [7, 3], nose_tip [3]: truth;
        outer: [V] bool, predicted vertices that a scan can see, None = all: the others (eyeballs, teeth) are
            asked for no partner;
        with_scale: of both alignments.
    Raises:
        DegenerateInputError: nothing of the scan or of the prediction inside the sphere.
    Source:
        Protocol of Genova et al., CVPR 2018, as MVF-Net and PGN use it: frontal scan, 95 mm around the nose
        tip, ICP with isotropic scale, point-to-plane mean. The direction is not stated there: prediction to
        scan is Genova's; we log both.
    """
    to_scan = similarity_align(
        torch.from_numpy(np.asarray(points, np.float64))[None],
        torch.from_numpy(np.asarray(scan_points, np.float64))[None],
        with_scale=with_scale,
    )
    placed = to_scan.apply(torch.from_numpy(np.asarray(vertices, np.float64))[None])[0].numpy()
    outer = np.ones(len(placed), bool) if outer is None else outer
    near = outer & (np.linalg.norm(placed - nose_tip, axis=1) <= radius)
    crop = np.flatnonzero(np.linalg.norm(scan - nose_tip, axis=1) <= radius)
    if near.sum() < 6 or len(crop) < 6:
        raise DegenerateInputError(
            f"MICC: expected face within {radius:.0f} mm of the nose tip, got {int(near.sum())} predicted "
            f"and {len(crop)} scan vertices there; are both in millimetres and the landmarks right?"
        )
    refined = icp(placed[near], scan, scan_triangles, with_scale)
    placed = refined.apply(placed)
    near = outer & (np.linalg.norm(placed - nose_tip, axis=1) <= radius)
    forward = point_to_plane(placed[near], scan, scan_triangles)
    backward = point_to_plane(scan[crop], placed, triangles)
    return MiccErrors(
        mean(forward),
        mean(backward),
        symmetric(forward, backward),
        backward,
        crop,
        float(to_scan.scale) * refined.scale,
    )
