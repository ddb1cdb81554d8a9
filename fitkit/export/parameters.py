"""`parameters.npz` of a finished fit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fitkit.fitting.result import FitResult
from fitkit.scene.parameters import Parameters


def save_parameters(result: FitResult, path: str | os.PathLike, light: torch.Tensor | None = None) -> Path:
    """Write the parameters of a fit, see `Parameters`.

    light: [B, 9, 3] of each photo, from `fitkit.fitting.decompose`.
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
    ).write(path)
