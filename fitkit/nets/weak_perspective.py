"""Scaled-orthographic stand-ins for perspective views, the kind of camera that some networks predict."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState


def to_orthographic(state: SceneState, model: FaceModel, principal: Tensor | None = None) -> SceneState:
    """The scaled-orthographic views nearest to those of `state`.

    A perspective camera sees the head along its line of sight, a scaled-orthographic one along its axis: the
    rotation is turned by the angle between the two, and the scale is that at the depth of the face's middle,
    which stays in its place of the picture.
    Of an orthographic state only the principal point moves.

    Args:
        principal: [B, 2] px of the new cameras, None: as they are. The translation makes up for it.
    Returns:
        the state with camera.kind 'orthographic' and translations with z = Camera.REFERENCE_DEPTH.
    """
    camera, pose = state.camera, state.pose
    principal = camera.principal if principal is None else principal
    middle = model.landmark_basis.mean.mean(0).to(pose.rotation)[None, None]  # [1, 1, 3] head frame
    seen = pose.apply(middle)[:, 0]
    place = camera.project(seen[:, None])[0][:, 0]
    rotation, focal = pose.rotation, camera.focal
    if camera.kind == "perspective":
        rotation = rotation_between_axis_and(seen).transpose(-1, -2) @ rotation
        # Off the axis a perspective picture is magnified by another 1 / cosine or more; that is left out.
        focal = camera.focal * Camera.REFERENCE_DEPTH / seen[:, 2].clamp_min(1.0)
    scale = focal[:, None] / Camera.REFERENCE_DEPTH * torch.stack([torch.ones_like(focal), camera.aspect], -1)
    middle_at = (rotation @ middle[0, 0][:, None])[..., 0]
    shift = (place - principal) / scale - middle_at[:, :2]
    translation = torch.cat([shift, torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH)], 1)
    return state.replace(
        pose=Pose(rotation, translation),
        camera=replace(camera, focal=focal, principal=principal, kind="orthographic"),
    )
