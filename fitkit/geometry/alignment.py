"""Closed-form alignment of point sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.errors import DegenerateInputError


@dataclass(frozen=True)
class Similarity:
    """y = scale * rotation @ x + translation; scale [B], rotation [B, 3, 3] (det +1), translation [B, 3]."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        return (
            self.scale[:, None, None] * (points @ self.rotation.transpose(-1, -2)) + self.translation[:, None]
        )


def similarity_align(
    source: Tensor, target: Tensor, valid: Tensor | None = None, with_scale: bool = True
) -> Similarity:
    """Least-squares similarity (or rigid motion) that maps source points onto target points.

    Args:
        source, target: [B, N, 3], same unit, row i of one corresponds to row i of the other; valid: [B, N]
            bool; None: all rows without NaN, which stands for a point that is missing.
        with_scale: False fixes the scale at 1.
    Raises:
        DegenerateInputError: fewer than 3 valid pairs, or all on one line.
    Source:
        Umeyama, "Least-squares estimation of transformation parameters between two point patterns", TPAMI
        1991, eq. (40)-(42). Differs: the weights are 0/1 masks.
    """
    if valid is None:
        valid = ~(source + target).isnan().any(-1)
    # Unused rows may hold NaN.
    source, target = (torch.where(valid[..., None], x, torch.zeros_like(x)) for x in (source, target))
    w = valid.to(source.dtype)
    n = w.sum(1)
    if bool((n < 3).any()):
        raise DegenerateInputError(f"alignment: expected at least 3 pairs of points, got {int(n.min())}")
    w = (w / n[:, None])[..., None]
    center_s, center_t = (w * source).sum(1, keepdim=True), (w * target).sum(1, keepdim=True)
    s, t = source - center_s, target - center_t
    U, D, Vh = torch.linalg.svd((t * w).transpose(1, 2) @ s)
    if not bool((D[:, 1] > 10 * torch.finfo(D.dtype).eps * D[:, 0]).all()):
        raise DegenerateInputError("alignment: all points lie on one line; expected at least 3 that do not")
    sign = torch.ones_like(D)
    sign[:, 2] = torch.sign(torch.linalg.det(U @ Vh))
    rotation = U @ (sign[..., None] * Vh)
    if with_scale:
        scale = (D * sign).sum(-1) / (w * s * s).sum((1, 2)).clamp_min(1e-30)
    else:
        scale = torch.ones_like(n)
    translation = center_t[:, 0] - scale[:, None] * (rotation @ center_s[:, 0, :, None])[..., 0]
    return Similarity(scale, rotation, translation)
