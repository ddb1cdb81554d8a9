"""Scaled-orthographic pose from 3D-2D pairs in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.errors import DegenerateInputError


def weak_perspective_pose(points: Tensor, pixels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pose with pixel = scale * (rotation @ point)_xy + shift, least squares up to the projection onto
    rotations.

    Args:
        points: [B, N, 3] or [1, N, 3] mm, head frame; pixels: [B, N, 2]; weight: [B, N] >= 0, 0 = unused.
    Returns:
        scale [B] px per mm, rotation [B, 3, 3] camera_from_head (det +1), shift [B, 2] px.
    Raises:
        DegenerateInputError: fewer than 4 points with weight, or pixels on one point or one line.
    Source:
        Affine camera by linear least squares, then the nearest scaled rotation by SVD of its 2x3 matrix:
        Kemelmacher-Shlizerman and Basri; as in DeMenthon and Davis, "Model-based object pose in 25 lines of
        code", 1995.
    """
    if bool(((weight > 0).sum(1) < 4).any()):
        raise DegenerateInputError(
            f"pose: expected at least 4 landmarks per view, got {int((weight > 0).sum(1).min())}"
        )
    points = points.expand(len(pixels), -1, -1)
    w = (weight / weight.sum(1, keepdim=True))[..., None]
    center_x, center_u = (w * points).sum(1, keepdim=True), (w * pixels).sum(1, keepdim=True)
    x, u = points - center_x, pixels - center_u
    affine = torch.linalg.lstsq(x * w.sqrt(), u * w.sqrt()).solution.transpose(1, 2)  # [B, 2, 3]
    U, D, Vh = torch.linalg.svd(torch.nan_to_num(affine), full_matrices=False)
    # A rigid view has two equal singular values; noise and perspective do not bring one down to a thousandth.
    if not bool(torch.isfinite(affine).all()) or not bool(
        ((D[:, 0] > 1e-9) & (D[:, 1] > 1e-3 * D[:, 0])).all()
    ):
        raise DegenerateInputError("pose: the landmarks of a view all lie on one point or on one line")
    two = U @ Vh
    third = torch.linalg.cross(two[:, 0], two[:, 1])
    rotation = torch.cat([two, third[:, None]], 1)
    scale = D.mean(1)
    shift = center_u[:, 0] - scale[:, None] * (two @ center_x[:, 0, :, None])[..., 0]
    return scale, rotation, shift


def lay_onto(points: Tensor, pixels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [B] > 0 and shift [B, 2] with pixel = scale * point + shift by weighted least squares.

    points: [B, N, 2] mm; pixels: [B, N, 2]; weight: [B, N] > 0.
    """
    w = (weight / weight.sum(1, keepdim=True))[..., None]
    center_p, center_u = (w * points).sum(1, keepdim=True), (w * pixels).sum(1, keepdim=True)
    p, u = points - center_p, pixels - center_u
    # A face that is turned the wrong way round at the start of a training would get a negative scale.
    scale = ((w * p * u).sum((1, 2)) / (w * p * p).sum((1, 2)).clamp_min(1e-6)).clamp_min(1e-3)
    return scale, center_u[:, 0] - scale[:, None] * center_p[:, 0]
