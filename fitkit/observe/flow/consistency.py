"""Forward-backward check of two flows."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.observe.flow.types import Flow
from fitkit.observe.sampling import sample


def consistent(forward: Flow, backward: Flow) -> Tensor:
    """[B, H, W] bool: `consistent_at` all pixels."""
    B, H, W = forward.valid.shape
    everywhere = torch.arange(H * W, device=forward.valid.device)
    return consistent_at(forward, backward, everywhere.expand(B, -1)).reshape(B, H, W)


def consistent_at(forward: Flow, backward: Flow, index: Tensor) -> Tensor:
    """Whether following `forward` and then `backward` leads back to the pixels `index` [B, N] (flat), [B, N]
    bool.

    Source: |w_f + w_b(u + w_f)|^2 < 0.01 (|w_f|^2 + |w_b|^2) + 0.5, the test of Sundaram, Brox and Keutzer,
    ECCV 2010.
    """
    W = forward.valid.shape[-1]
    w = forward.displacement.flatten(2).gather(2, index[:, None].expand(-1, 2, -1)).transpose(1, 2)
    place = torch.stack([index % W, index // W], -1).to(w) + w
    back, inside = sample(backward.displacement, place)
    gap = ((w + back) ** 2).sum(-1)
    limit = 0.01 * ((w**2).sum(-1) + (back**2).sum(-1)) + 0.5
    return forward.valid.flatten(1).gather(1, index) & inside & (gap < limit)
