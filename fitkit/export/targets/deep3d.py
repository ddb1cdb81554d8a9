"""For what takes the coefficients of Deep3DFaceRecon: one .mat file for each photo.

Source: models/bfm.py and models/facerecon_model.py of github.com/sicxu/Deep3DFaceRecon_pytorch, whose
    coefficients are those of github.com/microsoft/Deep3DFaceReconstruction.
    Lengths in 10 cm around the middle of the mean face; x right, y up, z towards the viewer; the camera, 10
    away, has a focal length of 1015 px and shows 224 x 224 px.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from scipy.spatial.transform import Rotation
from torch import Tensor

from fitkit.errors import InputError
from fitkit.export.flame import detail_note
from fitkit.export.pinhole import UPRIGHT, Pinhole, need_photos, take
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import encode_png
from fitkit.fitting.result import FitResult
from fitkit.io.result_folder import stems_of

IDENTITY, EXPRESSION = 80, 64  # coefficients
TEXTURE, LIGHT = 80, 27  # coefficients that fits do not estimate
UNIT_MM = 100.0
DISTANCE, CAMERA = 10.0, Pinhole(1015.0, (224, 224))


def write_deep3d(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """NAME.mat and NAME.png, the photo before the camera of these coefficients, for each photo."""
    _need_front(result)
    need_photos(result, "deep3d")
    notes = ["texture and light of Deep3DFaceRecon are not estimated: tex and gamma are 0"]
    notes += detail_note(result, "Deep3DFaceRecon")
    points = _landmarks(result)
    large = []
    for i, stem in enumerate(stems_of([view.name for view in result.subject.views])):
        savemat(folder / f"{stem}.mat", _coefficients(result, i) | {"lm68": points[i : i + 1]})
        (folder / f"{stem}.png").write_bytes(encode_png(take(result, i, CAMERA).image))
        if points[i].min() < 0 or points[i].max() > CAMERA.size[0] - 1:
            large.append(result.subject.views[i].name)
    if large:
        notes.append(
            f"the face leaves the picture of 224 px in {', '.join(large)}: the camera was nearer than a "
            "metre, or the face is not in the middle"
        )
    return notes


def _need_front(result: FitResult) -> None:
    model = result.model
    sizes = model.num_identity, model.num_expression, model.num_joints
    if sizes != (IDENTITY, EXPRESSION, 0) or model.expression_kind != "gaussian":
        raise InputError(
            f"result of {result.subject.name}: expected the face model of Deep3DFaceRecon (bfm-front: "
            f"{IDENTITY} identity and {EXPRESSION} expression shapes), got '{model.name}' with {sizes[0]} "
            f"and {sizes[1]}; convert it first with 'fitkit convert RESULT --to bfm-front'"
        )


def _coefficients(result: FitResult, i: int) -> dict[str, np.ndarray]:
    """Those of photo i by name, each with one row, and all 257 in a row as `coeff`."""
    state = result.state.to(dtype=torch.float64)
    turn = UPRIGHT @ state.pose.rotation[i]
    middle = result.model.mean.double().mean(0)
    moved = UPRIGHT @ (state.pose.rotation[i] @ middle + state.pose.translation[i]) / UNIT_MM
    # Their rotation is about x, then y, then z of the camera.
    angles = Rotation.from_matrix(turn.numpy()).as_euler("xyz")
    values: dict[str, Tensor] = {
        "id": state.identity[0],
        "exp": state.expression[i],
        "tex": torch.zeros(TEXTURE),
        "angle": torch.from_numpy(angles),
        "gamma": torch.zeros(LIGHT),
        "trans": moved + torch.tensor([0.0, 0.0, DISTANCE], dtype=torch.float64),
    }
    rows = {name: v.numpy().astype(np.float32)[None] for name, v in values.items()}
    return rows | {"coeff": np.concatenate(list(rows.values()), 1)}


def _landmarks(result: FitResult) -> np.ndarray:
    """[B, 68, 2] px of the pictures, where their code puts them: half a pixel from the place in the picture
    that its renderer shows, to the right and upwards."""
    state = result.state.to(dtype=torch.float64)
    model = result.model.to(dtype=torch.float64)
    points = state.pose.apply(model.landmark_points(*state.coefficients()))
    pixels = CAMERA.focal * points[..., :2] / points[..., 2:]
    return (pixels + torch.tensor([112.0, 111.0])).numpy().astype(np.float32)
