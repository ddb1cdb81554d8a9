"""Head pose: camera_from_head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.geometry.rotation import so3_exp


@dataclass(frozen=True)
class Pose:
    """Rigid motion x_camera = rotation @ x_head + translation.

    rotation: [B, 3, 3]; translation: [B, 3] mm. Head: x to the subject's left, y up, z out of the face;
    camera: x right, y down, z forward, so a frontal upright face has rotation diag(1, -1, -1).
    """

    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Head-frame points [B, N, 3] or [1, N, 3] -> camera frame [B, N, 3]."""
        return points @ self.rotation.transpose(-1, -2) + self.translation[:, None]

    def retract(self, step: Tensor) -> Pose:
        """Update on the head side: x_camera = R (exp(w) x + d) + t for step = (w, d), [B, 6] rad and mm.

        A step in the head frame means the same for every camera of a rigid rig, so views whose cameras are
        known relative to each other share one step.
        """
        rotation = self.rotation @ so3_exp(step[:, :3])
        translation = self.translation + (self.rotation @ step[:, 3:, None]).squeeze(-1)
        return Pose(rotation, translation)

    def centers(self) -> Tensor:
        """Camera centres in the head frame, [B, 3] mm."""
        return -(self.rotation.transpose(-1, -2) @ self.translation[..., None]).squeeze(-1)

    def select(self, views) -> Pose:
        return Pose(self.rotation[views], self.translation[views])

    @staticmethod
    def join(parts: Sequence[Pose]) -> Pose:
        """The views of several poses, in their order."""
        return Pose(torch.cat([p.rotation for p in parts]), torch.cat([p.translation for p in parts]))


def yaw_pitch_roll(rotation: Tensor) -> Tensor:
    """Head angles [B, 3] in degrees from camera_from_head rotations [B, 3, 3].

    Positive yaw: the nose points to the right side of the image; positive pitch: the face looks up; positive
    roll: the head leans clockwise in the image. All zero for a frontal upright face.
    """
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=rotation.dtype, device=rotation.device))
    m = flip @ rotation  # to x right, y up, z towards the viewer: the identity for a frontal face
    yaw = torch.atan2(m[:, 0, 2], m[:, 2, 2])
    pitch = torch.asin(m[:, 1, 2].clamp(-1, 1))
    roll = -torch.atan2(m[:, 1, 0], m[:, 1, 1])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], -1))
