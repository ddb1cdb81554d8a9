"""fitkit's own model files."""

from __future__ import annotations

import os
from dataclasses import replace

from fitkit.models.face_model import FaceModel
from fitkit.models.io import load_model_file


def import_npz(path: str | os.PathLike, name: str = "") -> FaceModel:
    """Read a model file, see `load_model_file`; name: another one than that in the file."""
    model = load_model_file(path)
    return replace(model, name=name or model.name)
