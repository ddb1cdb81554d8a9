"""sRGB and linear light."""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of linear red, green and blue, Rec. 709


def linear_from_srgb(color: Tensor) -> Tensor:
    """IEC 61966-2-1; [0, 1] -> [0, 1], elementwise."""
    return torch.where(color <= 0.04045, color / 12.92, ((color.clamp_min(0.0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(color: Tensor) -> Tensor:
    """Inverse of `linear_from_srgb`; values outside [0, 1] are clamped."""
    color = color.clamp(0, 1)
    return torch.where(color <= 0.0031308, color * 12.92, 1.055 * color.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
