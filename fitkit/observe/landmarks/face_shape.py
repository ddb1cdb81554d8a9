"""What the arrangement of 68 points says: how the head leans, and how far they are from any view of a mean
face."""

from __future__ import annotations

import functools

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.models.registry import load_model

INNER = slice(17, 68)  # brows, nose, eyes and mouth: the same places of the skin in every convention


@functools.lru_cache(maxsize=1)
def mean_face() -> np.ndarray:
    """The 68 landmarks of the mean of model `generic`, [68, 3] mm, head frame."""
    model = load_model("generic")
    return model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()


def shape_residual(points: np.ndarray) -> float:
    """Root mean square distance of the inner ones of points [68 or more, 2] from the best affine picture of
    the mean face."""
    inner = points[INNER]
    basis, _ = np.linalg.qr(np.column_stack([mean_face()[INNER], np.ones(len(inner))]))
    rest = inner - basis @ (basis.T @ inner)
    return float(np.sqrt((rest**2).sum(-1).mean()))


def head_roll(points: np.ndarray) -> float:
    """Clockwise lean in radians of a head with points [68 or more, 2] (NaN = not seen) at any yaw; 0 where
    they tell no pose."""
    inner = points[INNER]
    seen = np.isfinite(inner).all(1)
    pixels, weight = (
        torch.from_numpy(v[None].astype(np.float64)) for v in (np.where(seen[:, None], inner, 0.0), seen)
    )
    try:
        _, rotation, _ = weak_perspective_pose(torch.from_numpy(mean_face()[INNER])[None], pixels, weight)
    except DegenerateInputError:
        return 0.0
    up = rotation[0, :2, 1]  # the head's +y in the picture
    return float(np.arctan2(float(up[0]), -float(up[1])))
