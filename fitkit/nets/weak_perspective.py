"""The cameras that networks predict instead of those of the pictures: scaled-orthographic ones, or
perspective ones of another focal length."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions
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


def to_focal(state: SceneState, model: FaceModel, focal: float | Tensor, principal: Tensor) -> SceneState:
    """Perspective views of this focal length nearest to those of `state`: the face's middle stays in its
    place of the picture, seen from the same side and as large.

    focal: px, one for all or [B]; principal: [B, 2] px of the new cameras.
    """
    flat = to_orthographic(state, model, principal)
    scale = flat.camera.focal / Camera.REFERENCE_DEPTH  # px per mm
    middle = model.landmark_basis.mean.mean(0).to(scale)[None, None]
    at = flat.pose.apply(middle)[:, 0, :2]
    place = torch.cat([at, (focal / scale)[:, None]], 1)
    rotation = rotation_between_axis_and(place) @ flat.pose.rotation
    translation = place - (rotation @ middle[0, 0][:, None])[..., 0]
    camera = replace(flat.camera, focal=torch.zeros_like(scale) + focal, kind="perspective")
    return state.replace(pose=Pose(rotation, translation), camera=camera)


def place_in_crop(points: Tensor, crop: CropOptions, focal: float) -> Tensor:
    """Where the anchor of heads lies whose 68 points fill their crops, [..., 3] mm in the camera frame.

    points: [..., 68, 3] mm from the anchor, in the axes of the camera; focal: px of the crop, whose side is
    `crop.max_size`.
    """
    low, high = points.amin(-2), points.amax(-2)
    place = -(low + high) / 2
    # The crop is cut around the box of the 68 points and moved up.
    place[..., 1] += crop.up * (high - low)[..., 1]
    place[..., 2] += focal * crop.margin * (high - low)[..., :2].amax(-1) / crop.max_size
    return place
