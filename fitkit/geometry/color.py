"""sRGB and linear light."""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of linear red, green and blue, Rec. 709
LUMA = (0.2989, 0.5870, 0.1140)  # of sRGB codes, Rec. 601, as the published codes have them


def luma(images: Tensor) -> Tensor:
    """Grey of sRGB pictures: [B, 3, H, W] -> [B, 1, H, W], same range."""
    return torch.einsum("c,bchw->bhw", images.new_tensor(LUMA), images)[:, None]


def linear_from_srgb(color: Tensor) -> Tensor:
    """IEC 61966-2-1; [0, 1] -> [0, 1], elementwise."""
    return torch.where(color <= 0.04045, color / 12.92, ((color.clamp_min(0.0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(color: Tensor) -> Tensor:
    """Inverse of `linear_from_srgb`; values outside [0, 1] are clamped."""
    color = color.clamp(0, 1)
    return torch.where(color <= 0.0031308, color * 12.92, 1.055 * color.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
