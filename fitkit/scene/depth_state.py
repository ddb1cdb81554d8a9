"""What depth networks estimate: a surface per frame instead of a face model's coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import views_of

# Normalized depth counts from the tip of the nose: 1 lies so far before it, 0 so far behind it. Shu et al.
# print no numbers; ours: of heads turned by 45 degrees and nodding by 30 the face that is seen fits in.
BEFORE_MM, BEHIND_MM = 50.0, 150.0
JUMP_MM = 20.0  # neighbouring pixels farther apart in depth lie across a silhouette


@dataclass(frozen=True)
class DepthState:
    """Depth maps of B frames of S people.

    depth: [B, H, W] mm along the camera's axis, 0 = no surface; pose: camera_from_head, with one head frame
    for all frames of a person, None: not known, so that frames cannot be compared; camera: intrinsics in px
    of the maps; subject: [B] int64; suitability: [B, H, W] in [0, 1], how far the colours of a pixel may be
    compared with other frames, or None = 1; anchor: [3] mm, the point of the head frame that depths count
    from, of a network that knows how far away a head is only by its pose; None: they count from the camera.
    """

    depth: Tensor
    pose: Pose | None
    camera: Camera
    subject: Tensor
    suitability: Tensor | None = None
    anchor: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape[-2], self.depth.shape[-1]

    def select(self, views: Tensor | Sequence[int]) -> DepthState:
        """The frames `views` [n] in this order; their people keep their numbers."""
        return replace(
            self,
            depth=self.depth[views],
            pose=None if self.pose is None else self.pose.select(views),
            camera=self.camera.select(views),
            subject=self.subject[views],
            suitability=None if self.suitability is None else self.suitability[views],
        )

    def select_people(self, people: Sequence[int]) -> DepthState:
        """The frames of some people, in this order."""
        views, subject = views_of(self.subject, people)
        return replace(self.select(views), subject=subject)

    def distance(self, pose: Pose | None = None) -> Tensor:
        """How far away the anchor is, or the head's origin without one, [B] mm along the camera's axis.

        pose: of the same head frame, None: the state's own.

        Raises:
            InputError: no pose is known.
        """
        pose = self.pose if pose is None else pose
        if pose is None:
            raise InputError("depth: how far away a head is follows from its pose, which is not known here")
        if self.anchor is None:
            return pose.translation[:, 2]
        return pose.rotation[:, 2] @ self.anchor.to(pose.rotation) + pose.translation[:, 2]

    def placed(self, pose: Pose, camera: Camera) -> DepthState:
        """The same relief of heads in other poses of the same head frame: as far before and behind the anchor
        as it was.

        Raises:
            InputError: no pose is known.
        """
        moved = self.distance(pose) - self.distance()
        depth = torch.where(self.depth > 0, self.depth + moved[:, None, None], self.depth)
        return replace(self, depth=depth, pose=pose, camera=camera)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Ordered pairs of different frames of one person, which are to be compared: indices i [P], j [P].

        Raises:
            InputError: their poses are not known.
        """
        if self.pose is None:
            raise InputError(
                "depth: comparing frames of a person needs their poses, which this network does not predict; "
                "leave out the energies that compare depth between frames"
            )
        same = self.subject[:, None] == self.subject[None]
        i, j = torch.where(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device))
        return i, j


def from_normalized(value: Tensor, distance: Tensor) -> Tensor:
    """Normalized depth [B, H, W] -> mm along the camera's axis, for heads whose nose tips are `distance` [B]
    mm away.

    1 is BEFORE_MM before the nose tip, 0 BEHIND_MM behind it. Source: Shu et al. eq. 7, D' = a (D - xi) + c,
    with a = -1 / 200 mm and c = 0.75, which are ours.
    """
    return distance[:, None, None] + BEHIND_MM - (BEFORE_MM + BEHIND_MM) * value


def pixel_grid(size: tuple[int, int], like: Tensor) -> Tensor:
    """Pixel centres [H * W, 2] (x, y), row after row."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).to(like)


def back_project(depth: Tensor, camera: Camera) -> Tensor:
    """Depth maps [B, H, W] mm -> camera-frame points [B, H * W, 3] mm, the inverse of `Camera.project`."""
    offset = pixel_grid(depth.shape[-2:], depth)[None] - camera.principal[:, None]
    z = depth.flatten(1)
    scale = (
        z if camera.kind == "perspective" else torch.full_like(z, camera.REFERENCE_DEPTH)
    ) / camera.focal[:, None]
    return torch.stack([offset[..., 0] * scale, offset[..., 1] * scale / camera.aspect[:, None], z], -1)


def depth_normals(depth: Tensor, camera: Camera, jump_mm: float = JUMP_MM) -> tuple[Tensor, Tensor]:
    """Unit normals towards the camera from differences of neighbouring pixels.

    Args:
        depth: [B, H, W] mm; jump_mm: see JUMP_MM.
    Returns:
        normals [B, H, W, 3] camera frame, valid [B, H, W]: the pixel and its right and lower neighbour lie on
            one surface.
    Source: Shu et al. section 5, eq. 9.
    """
    B, H, W = depth.shape
    points = back_project(depth, camera).reshape(B, H, W, 3)
    right, down = points[:, :-1, 1:] - points[:, :-1, :-1], points[:, 1:, :-1] - points[:, :-1, :-1]
    normal = torch.linalg.cross(down, right)  # x right, y down, z forward: this order points to the camera
    inner = (depth[:, :-1, :-1] > 0) & (depth[:, :-1, 1:] > 0) & (depth[:, 1:, :-1] > 0)
    inner = inner & (right[..., 2].abs() < jump_mm) & (down[..., 2].abs() < jump_mm)
    normal = torch.where(inner[..., None], normal, normal.new_tensor([0.0, 0.0, -1.0]))
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    out = depth.new_zeros(B, H, W, 3)
    valid = torch.zeros(B, H, W, dtype=torch.bool, device=depth.device)
    out[:, :-1, :-1], valid[:, :-1, :-1] = normal, inner
    return out, valid


def carry(points: Tensor, source: Pose, target: Pose) -> Tensor:
    """Camera-frame points [P, N, 3] of the source frames -> camera frames of the target frames (Shu et al.
    eq. 11)."""
    head = (points - source.translation[:, None]) @ source.rotation
    return target.apply(head)
