"""Pose parameters of MVF-Net and of the labels of 300W-LP, AFLW2000-3D and 3DDFA in our conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

UNITS_PER_MM = 1000.0  # their meshes are in micrometres


def rotation_of_angles(angles: Tensor) -> Tensor:
    """Pitch, yaw, roll [B, 3] rad of the labels -> camera_from_head [B, 3, 3].

    R = Rx(pitch) Ry(yaw) Rz(roll) in a frame with x right, y up, z towards the viewer; the head frame is ours
    (x to the subject's left, y up, z out of the face). Our camera frame has y down and z forward: two rows
    change their signs.
    Positive yaw: the nose points to the left side of the picture, the reverse of `yaw_pitch_roll`.
    """
    Rx, Ry, Rz = _turns(angles)
    return angles.new_tensor([1.0, -1.0, -1.0])[:, None] * (Rx @ Ry @ Rz)


def rotation_of_euler(angles: Tensor) -> Tensor:
    """The same in the reverse order, R = Rz(roll) Ry(yaw) Rx(pitch), as DF-MVR has it."""
    Rx, Ry, Rz = _turns(angles)
    return angles.new_tensor([1.0, -1.0, -1.0])[:, None] * (Rz @ Ry @ Rx)


def _turns(angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations [B, 3, 3] around x, y and z."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    one, zero = torch.ones_like(sx), torch.zeros_like(sx)

    def matrix(*rows):
        return torch.stack(rows, -1).reshape(-1, 3, 3)

    Rx = matrix(one, zero, zero, zero, cx, sx, zero, -sx, cx)
    Ry = matrix(cy, zero, -sy, zero, one, zero, sy, zero, cy)
    Rz = matrix(cz, sz, zero, -sz, cz, zero, zero, zero, one)
    return Rx, Ry, Rz


def angles_of_rotation(rotation: Tensor) -> Tensor:
    """The reverse of `rotation_of_angles`: camera_from_head [B, 3, 3] -> pitch, yaw, roll [B, 3] rad, |yaw|
    <= pi / 2."""
    R = rotation.new_tensor([1.0, -1.0, -1.0])[:, None] * rotation
    yaw = torch.asin((-R[:, 0, 2]).clamp(-1, 1))
    return torch.stack([torch.atan2(R[:, 1, 2], R[:, 2, 2]), yaw, torch.atan2(R[:, 0, 1], R[:, 0, 0])], -1)


def pose_of_labels(
    parameters: Tensor, width: int, height: int, units_per_mm: float = UNITS_PER_MM
) -> tuple[Pose, Camera]:
    """Weak-perspective label -> our pose and scaled-orthographic camera of the same picture.

    Args:
        parameters: [B, 7] pitch, yaw, roll rad, tx, ty, tz px, f px per unit of their mesh; tz plays no part.
            They place point v at (f R v + t) with y up and pixels counted from 1: column x - 1, row height -
            y, from 0.
        width, height: of the picture, px. The principal point is its middle.
    """
    rotation = rotation_of_angles(parameters[:, :3])
    scale = parameters[:, 6] * units_per_mm  # px per mm
    center = parameters.new_tensor([(width - 1) / 2, (height - 1) / 2])
    at = torch.stack([parameters[:, 3] - 1, height - parameters[:, 4]], -1)  # where the head's origin lies
    shift = (at - center) / scale[:, None]
    translation = torch.cat([shift, torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH)], 1)
    camera = Camera(
        scale * Camera.REFERENCE_DEPTH,
        center.expand(len(parameters), 2).clone(),
        torch.ones_like(scale),
        "orthographic",
    )
    return Pose(rotation, translation), camera


def labels_of_pose(pose: Pose, camera: Camera, height: int, units_per_mm: float = UNITS_PER_MM) -> Tensor:
    """The reverse of `pose_of_labels` -> [B, 7], tz = 0; camera must be scaled-orthographic with square
    pixels."""
    scale = camera.focal / Camera.REFERENCE_DEPTH
    at = camera.principal + scale[:, None] * pose.translation[:, :2]
    return torch.cat(
        [
            angles_of_rotation(pose.rotation),
            at[:, :1] + 1,
            height - at[:, 1:],
            torch.zeros_like(at[:, :1]),
            (scale / units_per_mm)[:, None],
        ],
        1,
    )
