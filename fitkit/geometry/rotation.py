"""Rotations: the exponential map of so(3) and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Cross-product matrix: skew(v) @ x = v x x.  v [..., 3] -> [..., 3, 3]."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape[:-1], 3, 3)


def so3_exp(w: Tensor) -> Tensor:
    """Rotation vector [..., 3] (radians) -> rotation matrix [..., 3, 3].

    Source: Rodrigues' formula; below 1e-4 rad the factors sin(t)/t and (1-cos(t))/t^2 use their Taylor
    series, so the derivative at 0 is exact.
    """
    t2 = (w * w).sum(-1)[..., None, None]
    small = t2 < 1e-8
    safe = torch.where(small, torch.ones_like(t2), t2)
    t = safe.sqrt()
    a = torch.where(small, 1 - t2 / 6, torch.sin(t) / t)
    # (1 - cos(t)) / t^2 = 2 sin(t/2)^2 / t^2 without the cancellation at small angles.
    half = torch.sin(t / 2) / t
    b = torch.where(small, 0.5 - t2 / 24, 2 * half * half)
    k = skew(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    return eye + a * k + b * (k @ k)


def so3_left_jacobian(w: Tensor) -> Tensor:
    """The matrix J [..., 3, 3] with exp(w + d) = exp(J d) exp(w) for small d, at the rotation vector w
    [..., 3].

    Source: Sola et al., "A micro Lie theory for state estimation in robotics", 2018, eq. 145. Below 0.01 rad
    Taylor series, which lose nothing there.
    """
    t2 = (w * w).sum(-1)[..., None, None]
    small = t2 < 1e-4
    t = torch.where(small, torch.ones_like(t2), t2).sqrt()
    half = torch.sin(t / 2) / t
    a = torch.where(small, 0.5 - t2 / 24 + t2 * t2 / 720, 2 * half * half)
    b = torch.where(small, 1 / 6 - t2 / 120 + t2 * t2 / 5040, (t - torch.sin(t)) / t**3)
    k = skew(w)
    return torch.eye(3, dtype=w.dtype, device=w.device) + a * k + b * (k @ k)


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] -> rotation vector [..., 3] (radians, length in [0, pi]).

    Computed through the unit quaternion (largest component first), which is stable at angle pi as well.
    """
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    # Rows: 4 q_i q, the four equivalent scalings of the quaternion.
    rows = (
        (1 + trace, h - f, c - g, d - b),
        (h - f, 1 + 2 * a - trace, b + d, c + g),
        (c - g, b + d, 1 + 2 * e - trace, f + h),
        (d - b, c + g, f + h, 1 + 2 * i - trace),
    )
    q = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = q.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = q.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q = torch.nn.functional.normalize(q, dim=-1)
    q = torch.where(q[..., :1] < 0, -q, q)
    v = q[..., 1:]
    s = v.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(s, q[..., :1])
    factor = torch.where(s > 1e-7, angle / s.clamp_min(1e-30), torch.full_like(s, 2.0))
    return v * factor


def rotation_between_axis_and(direction: Tensor) -> Tensor:
    """The smallest rotations [B, 3, 3] that take the optical axis (0, 0, 1) to the directions [B, 3]."""
    d = torch.nn.functional.normalize(direction, dim=-1)
    axis = torch.stack([-d[:, 1], d[:, 0], torch.zeros_like(d[:, 0])], -1)
    sine = axis.norm(dim=-1, keepdim=True)
    return so3_exp(axis / sine.clamp_min(1e-12) * torch.atan2(sine, d[:, 2:]))
