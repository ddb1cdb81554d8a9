"""A nearby state that does not depend on last decimals."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fitkit.geometry.rotation import so3_exp, so3_log
from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

HEAD_MM = 80.0  # from the middle of the head to the face
EVERY = 16  # vertices, of which one tells how far a coefficient moves the surface
# A longer focal length makes good a larger distance almost wholly, so both are told badly and matter little:
# they are rounded together, by so many steps.
COARSE = 8


def rounded(state: SceneState, model: FaceModel, step_mm: float) -> SceneState:
    """The state on a grid: identity, expression, poses and focal lengths by steps that move the surface, as
    the camera sees it, by about `step_mm`.

    What starts from it (pictures, the flow between them, tests that a pixel passes or not) is the same for
    all states nearby, unless a number of theirs lies in the middle between two steps.
    """
    length = model.rows[::EVERY].square().sum(1).mean(0).sqrt()  # [K] mm
    by_identity, by_expression = (step_mm / length.clamp_min(1e-6)).tensor_split([model.num_identity])
    pose, camera = _rounded_view(state, step_mm)
    return state.replace(
        identity=_to_step(state.identity, by_identity),
        expression=_to_step(state.expression, by_expression),
        pose=pose,
        camera=camera,
    )


def _rounded_view(state: SceneState, step_mm: float) -> tuple[Pose, Camera]:
    """Pose and focal length: turn, place and size of the head in the picture, and its distance."""
    step, camera = step_mm / HEAD_MM, state.camera
    frontal = torch.diag(state.pose.rotation.new_tensor([1.0, -1.0, -1.0]))
    turn = so3_exp(_to_step(so3_log(frontal @ state.pose.rotation), step))
    across, z = state.pose.translation.split([2, 1], 1)
    far = _to_step(z, step_mm)
    if camera.kind == "perspective":
        far = torch.where(z > 1, _to_step(z.clamp_min(1.0).log(), COARSE * step).exp(), z)
    divisor, rounded_divisor = (
        camera.depth_divisor(d[:, None].expand(-1, 1, 3))[:, 0].clamp_min(1.0) for d in (z, far)
    )
    size = camera.focal / divisor
    rounded_size = _to_step(size.log(), step).exp()
    place = _to_step(across * (size / rounded_size)[:, None], step_mm)
    return (
        Pose(frontal @ turn, torch.cat([place, far], 1)),
        replace(camera, focal=rounded_size * rounded_divisor),
    )


def _to_step(values: Tensor, step: Tensor | float) -> Tensor:
    return (values / step).round() * step
