"""Pinhole and scaled-orthographic cameras (OpenCV axes: x right, y down, z forward)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.errors import InputError

KINDS = ("perspective", "orthographic")


@dataclass(frozen=True)
class Camera:
    """Intrinsics of B views.

    kind: 'perspective' (pixel = focal * x / z + principal) or 'orthographic' (scaled orthographic:
    pixel = focal * x / REFERENCE_DEPTH + principal, so `focal` has the same unit and size in both kinds).
    focal: [B] px; principal: [B, 2] px; pixel (0, 0) is the centre of the top-left pixel.
    aspect: [B] focal_y / focal_x (1 for square pixels).
    """

    focal: Tensor
    principal: Tensor
    aspect: Tensor
    kind: str = "perspective"

    REFERENCE_DEPTH = 1000.0  # mm

    def depth_divisor(self, points: Tensor) -> Tensor:
        """[B, N, 3] camera-frame points -> what x and y are divided by, [B, N] mm."""
        if self.kind == "perspective":
            return points[..., 2]
        return torch.full_like(points[..., 2], self.REFERENCE_DEPTH)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Camera-frame points [B, N, 3] mm -> pixels [B, N, 2], in_front [B, N] bool.

        Points at or behind the camera plane project as if they lay 1 mm in front of it and are marked.
        """
        depth = self.depth_divisor(points)
        in_front = depth > 1.0
        scale = self.focal[:, None] / depth.clamp_min(1.0)
        xy = torch.stack([points[..., 0] * scale, points[..., 1] * scale * self.aspect[:, None]], -1)
        return xy + self.principal[:, None], in_front

    def project_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of `project` at camera-frame points [B, N, 3].

        Returns: d pixel / d point [B, N, 2, 3] px per mm, d pixel / d log(focal) [B, N, 2] px.
        """
        z = self.depth_divisor(points).clamp_min(1.0)
        sx = self.focal[:, None] / z
        sy = sx * self.aspect[:, None]
        px, py = points[..., 0] * sx, points[..., 1] * sy
        zero = torch.zeros_like(sx)
        if self.kind == "perspective":
            dx, dy = -px / z, -py / z
        else:
            dx = dy = zero
        jacobian = torch.stack([torch.stack([sx, zero, dx], -1), torch.stack([zero, sy, dy], -1)], -2)
        return jacobian, torch.stack([px, py], -1)

    def scaled(self, scale: Tensor, offset: Tensor) -> Camera:
        """The same camera for an image whose pixels are q = scale * (p - offset); scale [B], offset [B,
        2]."""
        return replace(self, focal=self.focal * scale, principal=(self.principal - offset) * scale[:, None])

    def resized(self, reduction: float) -> Camera:
        """The same camera for a picture with `reduction` times fewer pixels per side (below 1: more), where
        pixel q covers the pixels around p: p + 1/2 = reduction * (q + 1/2)."""
        scale = torch.full_like(self.focal, 1 / reduction)
        return self.scaled(scale, torch.full_like(self.principal, (reduction - 1) / 2))

    def clip(self, points: Tensor) -> Tensor:
        """Camera-frame points [B, V, 3] mm -> [B, V, 4]: (u * w, v * w, depth, w), what a rasterizer takes.

        u, v are pixels, (0, 0) = centre of the top-left pixel; w is what the projection divides by
        (the depth for 'perspective', a constant for 'orthographic').
        """
        w = self.depth_divisor(points)
        uw = points[..., 0] * self.focal[:, None] + self.principal[:, None, 0] * w
        vw = points[..., 1] * (self.focal * self.aspect)[:, None] + self.principal[:, None, 1] * w
        return torch.stack([uw, vw, points[..., 2], w], -1)

    def matrix(self) -> Tensor:
        """[B, 3, 3] intrinsic matrix K (for 'orthographic': of the perspective camera at REFERENCE_DEPTH)."""
        K = torch.zeros(len(self.focal), 3, 3, dtype=self.focal.dtype, device=self.focal.device)
        K[:, 0, 0], K[:, 1, 1] = self.focal, self.focal * self.aspect
        K[:, :2, 2], K[:, 2, 2] = self.principal, 1
        return K

    def select(self, views) -> Camera:
        return replace(
            self, focal=self.focal[views], principal=self.principal[views], aspect=self.aspect[views]
        )

    @staticmethod
    def join(parts: Sequence[Camera]) -> Camera:
        """The views of several cameras of one kind, in their order."""
        kinds = sorted({p.kind for p in parts})
        if len(kinds) > 1:
            raise InputError(f"cameras: expected views of one kind, got {' and '.join(kinds)}")
        focal, principal, aspect = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("focal", "principal", "aspect")
        )
        return Camera(focal, principal, aspect, kinds[0])
