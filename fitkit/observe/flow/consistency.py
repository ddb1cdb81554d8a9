"""Forward-backward check of two flows."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.observe.flow.types import Flow
from fitkit.observe.sampling import sample


def consistent(forward: Flow, backward: Flow) -> Tensor:
    """[B, H, W] bool: where following `forward` and then `backward` leads back.

    Source: |w_f + w_b(u + w_f)|^2 < 0.01 (|w_f|^2 + |w_b|^2) + 0.5, the test of Sundaram, Brox and Keutzer,
    ECCV 2010.
    """
    w = forward.displacement
    B, _, H, W = w.shape
    y, x = torch.meshgrid(torch.arange(H, device=w.device), torch.arange(W, device=w.device), indexing="ij")
    place = torch.stack([x, y], -1).to(w).reshape(1, -1, 2) + w.permute(0, 2, 3, 1).reshape(B, -1, 2)
    back, inside = sample(backward.displacement, place)
    back = back.reshape(B, H, W, 2).permute(0, 3, 1, 2)
    gap = ((w + back) ** 2).sum(1)
    limit = 0.01 * ((w**2).sum(1) + (back**2).sum(1)) + 0.5
    return forward.valid & inside.reshape(B, H, W) & (gap < limit)
