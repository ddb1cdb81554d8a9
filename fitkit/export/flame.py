"""A result of FLAME in FLAME's own parameters: metres, radians, its joints and its frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_exp
from fitkit.models.face_model import FaceModel
from fitkit.models.skinned import SkinnedModel

SHAPE, EXPRESSION = 300, 100  # coefficients of the published model
JOINTS = ("neck", "jaw", "eye_L", "eye_R")
EYELIDS = ("eyeBlink_L", "eyeBlink_R")  # shapes that some trackers add to FLAME
METRES = 1e-3  # in a millimetre; the head frame of FLAME in fitkit is FLAME's own times 1000


@dataclass(frozen=True)
class FlameParameters:
    """B photos of one person. FLAME's frame: its published vertices, x to the subject's left, y up, z out of
    the face.

    shape: [300]; expression: [B, 100]; eyelids: [B, 2], left, right, 0 (open) to 1; neck, jaw: [B, 3] and
    eyes: [B, 6], left first, rotation vectors, rad; offset: [V, 3] m, what a detail layer adds to the
    vertices at rest; root, neck_joint: [B, 3] m, these joints at rest; rotation [B, 3, 3] and translation
    [B, 3] m: x_camera = R x + t of what the joints have turned, camera as in OpenCV (x right, y down, z
    forward).
    """

    shape: Tensor
    expression: Tensor
    eyelids: Tensor
    neck: Tensor
    jaw: Tensor
    eyes: Tensor
    offset: Tensor
    root: Tensor
    neck_joint: Tensor
    rotation: Tensor
    translation: Tensor

    def neck_in_pose(self) -> FlameParameters:
        """With the turn of the neck as part of the pose, for tools that know no neck: the head stays where it
        is, and what the neck does not carry turns along."""
        turn = so3_exp(self.neck)
        moved = self.neck_joint - (turn @ self.neck_joint[..., None])[..., 0]
        return replace(
            self,
            neck=torch.zeros_like(self.neck),
            rotation=self.rotation @ turn,
            translation=self.translation + (self.rotation @ moved[..., None])[..., 0],
        )


def flame_parameters(result: FitResult) -> FlameParameters:
    """The parameters of a result, float64.

    Raises:
        InputError: the face model of the result is not FLAME.
    """
    model = cast(SkinnedModel, need_flame(result).to(dtype=torch.float64))
    state = result.state.to(dtype=torch.float64)
    identity, expression, joints = state.coefficients()
    if joints is None:
        joints = expression.new_zeros(len(expression), len(JOINTS), 3)
    turned = {name: joints[:, j] for j, name in enumerate(model.joint_names)}
    lids = [_column(model, expression, name) for name in EYELIDS]
    own = [k for k, name in enumerate(model.expression_names) if name not in EYELIDS]
    offset = (result.personal_model.mean - result.model.mean).double()
    places = model.joint_basis.points(identity, expression) + model.joint_regressor @ offset
    return FlameParameters(
        state.identity[0],
        expression[:, own],
        torch.stack(lids, 1),
        turned["neck"],
        turned["jaw"],
        torch.cat([turned["eye_L"], turned["eye_R"]], 1),
        METRES * offset,
        METRES * places[:, 0],
        METRES * places[:, 1 + model.joint_names.index("neck")],
        state.pose.rotation,
        METRES * state.pose.translation,
    )


def need_flame(result: FitResult) -> SkinnedModel:
    """The face model of a result, which must be FLAME.

    Raises: InputError.
    """
    model = result.model
    if not is_flame(model):
        raise InputError(
            f"result of {result.subject.name}: expected the face model FLAME, got '{model.name}'; convert it "
            "first with 'fitkit convert RESULT --to flame'"
        )
    assert isinstance(model, SkinnedModel)
    return model


def is_flame(model: FaceModel) -> bool:
    """A model has the joints and the coefficients of FLAME."""
    return (
        isinstance(model, SkinnedModel)
        and sorted(model.joint_names) == sorted(JOINTS)
        and model.expression_kind == "gaussian"
        and model.num_identity == SHAPE
        and len(set(model.expression_names) - set(EYELIDS)) == EXPRESSION
    )


def about_root(rotation: Tensor, translation: Tensor, root: Tensor) -> Tensor:
    """The `transl` [B, 3] with which FLAME's code moves points as x -> R x + t: it turns them about the root
    joint [B, 3], not about the origin: R (x - root) + root + transl."""
    return translation - root + (rotation @ root[..., None])[..., 0]


def _column(model: FaceModel, expression: Tensor, name: str) -> Tensor:
    if name not in model.expression_names:
        return expression.new_zeros(len(expression))
    return expression[:, model.expression_names.index(name)]


def lids_note(flame: FlameParameters, tool: str) -> list[str]:
    """What is lost where a tool does not know eyelids."""
    largest = float(flame.eyelids.abs().max())
    return [f"{tool} knows no eyelids: shapes of up to {largest:.2f} are left out"] if largest > 0.01 else []


def detail_note(result: FitResult, tool: str) -> list[str]:
    """What is lost where a tool knows the coefficients only."""
    return [] if result.displacement is None else [f"{tool} knows no detail layer: it is left out"]


def numbers(values: Tensor) -> np.ndarray:
    """As float32, which the readers of FLAME's parameters take."""
    return values.numpy().astype(np.float32)
