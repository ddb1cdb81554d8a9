"""`parameters.npz` of a finished fit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fitkit.fitting.result import FitResult
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.parameters import Parameters


def save_parameters(result: FitResult, path: str | os.PathLike, light: torch.Tensor | None = None) -> Path:
    """Write the parameters of a fit, see `Parameters`.

    light: [B, 9, 3] of each photo, from `fitkit.fitting.appearance`.
    """
    return Parameters(
        state=result.state,
        model_name=result.model.name,
        expression_names=tuple(result.model.expression_names),
        subject_name=result.subject.name,
        view_names=tuple(v.name for v in result.subject.views),
        image_size=np.array([v.size for v in result.subject.views], np.int64).reshape(-1, 2),
        camera_source=tuple(result.camera_source),
        identity_covariance=result.identity_covariance,
        displacement=result.displacement,
        light=light,
        landmarks=_observed(result.landmarks),
    ).write(path)


def _observed(landmarks: Landmarks) -> torch.Tensor:
    """[B, 68, 3] x, y and standard deviation of the landmarks that were used, 0 for the others."""
    table = torch.cat([landmarks.points, landmarks.sigma[..., None]], -1)
    used = landmarks.valid & torch.isfinite(table).all(-1)
    return torch.where(used[..., None], table, torch.zeros_like(table))
