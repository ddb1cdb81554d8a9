"""Normalised mean error of dense 3D points: AFLW2000-3D (NME_3d) and renders of Florence scans."""

from __future__ import annotations

import numpy as np

from fitkit.evaluate.distances import mean
from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.geometry.icp import icp


def nme3d_direct(points: np.ndarray, truth: np.ndarray, interocular: float) -> float:
    """Mean distance of corresponding points over the outer interocular distance, a fraction; no alignment but
    that both lose their mean z (with a weak-perspective camera the depth has no origin).

    Args:
        points, truth: [N, 3], row by row the same place; interocular: distance of the true outer eye corners,
            same unit.
    """
    shift = np.array([0, 0, np.mean(truth[:, 2]) - np.mean(points[:, 2])])
    return float(np.linalg.norm(points + shift - truth, axis=1).mean()) / interocular


def nme3d_icp(
    vertices: np.ndarray, triangles: np.ndarray, truth: np.ndarray, interocular: float, aligned: bool = True
) -> float:
    """Mean distance of true points from the predicted surface over the outer interocular distance, a
    fraction.

    Rigid ICP lays the true points onto the prediction and pairs each with its closest surface point. aligned:
    the distance is measured there (PRNet); False: ICP only finds the pairs, which are measured where they
    were (VRN, Shu et al.).

    Args:
        vertices [V, 3], triangles [F, 3]: prediction; truth: [N, 3], same frame and unit; interocular: of the
            truth.
    Source:
        PRNet (Feng et al., ECCV 2018), section 4; Jackson et al. (VRN, ICCV 2017). Differs: pairs are points
        of the surface.
    """
    registered = icp(truth, vertices, triangles)
    if aligned:
        return mean(registered.distance) / interocular
    partner = SurfaceIndex(vertices, triangles).query(registered.apply(truth))[0]
    return float(np.linalg.norm(partner - truth, axis=1).mean()) / interocular
