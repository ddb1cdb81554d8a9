"""Bilinear sampling with its exact derivative; Gaussian blur."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sample(images: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear samples of images [B, C, H, W] at pixels [B, N, 2] (x, y; (0, 0) = centre of the top-left
    pixel).

    Returns: values [B, N, C] (edge pixels continue outwards), inside [B, N] bool. Differentiable in both
    arguments; the derivative by the pixel is that of the bilinear surface, see `sample_with_gradient`.
    """
    corner, fx, fy, inside = _corners(images, pixels)
    a, b, c, d = corner
    fx, fy = fx[..., None], fy[..., None]
    return (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy, inside


def sample_with_gradient(images: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `sample`, plus d value / d pixel [B, N, C, 2]: exact for the bilinear surface, 0 across an edge that
    was left."""
    (a, b, c, d), fx, fy, inside = _corners(images, pixels)
    fx, fy = fx[..., None], fy[..., None]
    value = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    last = pixels.new_tensor([images.shape[-1] - 1, images.shape[-2] - 1])
    moves = ((pixels >= 0) & (pixels <= last)).to(value)
    by_x = ((b - a) * (1 - fy) + (d - c) * fy) * moves[..., :1]
    by_y = ((c - a) * (1 - fx) + (d - b) * fx) * moves[..., 1:]
    return value, torch.stack([by_x, by_y], -1), inside


def _corners(images: Tensor, pixels: Tensor):
    B, C, H, W = images.shape
    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x <= W - 1) & (y <= H - 1)
    x, y = torch.nan_to_num(x).clamp(0, W - 1), torch.nan_to_num(y).clamp(0, H - 1)
    x0, y0 = x.detach().floor().clamp_max(max(W - 2, 0)), y.detach().floor().clamp_max(max(H - 2, 0))
    base = (y0 * W + x0).long()
    flat = images.reshape(B, C, H * W)
    right, down = (1 if W > 1 else 0), (W if H > 1 else 0)
    corners = [
        flat.gather(2, (base + k)[:, None].expand(B, C, -1)).transpose(1, 2)
        for k in (0, right, down, right + down)
    ]
    return corners, x - x0, y - y0, inside


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of [B, C, H, W], edge pixels repeated; sigma in pixels, 0 = none."""
    if sigma <= 0:
        return images
    radius = blur_radius(sigma)
    planes = _planes(images)
    if planes is not None:
        # several times faster than a convolution in torch, same kernel
        out = [
            cv2.GaussianBlur(plane, (2 * radius + 1,) * 2, sigma, borderType=cv2.BORDER_REPLICATE)
            for plane in planes
        ]
        return torch.from_numpy(np.stack(out)).reshape(images.shape)
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    C = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(C, 1, 1, -1), groups=C)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(C, 1, -1, 1), groups=C)


def _planes(images: Tensor) -> np.ndarray | None:
    """Images [B, C, H, W] as planes [B * C, H, W] for OpenCV; None for those that are not on the CPU or carry
    derivatives."""
    if images.device.type != "cpu" or images.requires_grad:
        return None
    try:
        return images.detach().reshape(-1, *images.shape[-2:]).numpy()
    except RuntimeError:  # within torch.func, where tensors stand for a value and its derivative
        return None


def blur_radius(sigma: float) -> int:
    """How many pixels to each side `gaussian_blur` reaches."""
    return max(1, int(3 * sigma + 0.5)) if sigma > 0 else 0


def erode(masks: Tensor, radius: int) -> Tensor:
    """Smallest value within `radius` pixels (a square) of masks [B, C, H, W]; beyond the border nothing
    counts."""
    if masks.device.type == "cpu" and not masks.requires_grad and len(masks):
        # many times faster than pooling in torch
        square = np.ones((2 * radius + 1,) * 2, np.uint8)
        planes = masks.detach().reshape(-1, *masks.shape[-2:]).numpy()
        return torch.from_numpy(np.stack([cv2.erode(plane, square) for plane in planes])).reshape(masks.shape)
    return -F.max_pool2d(-masks, 2 * radius + 1, stride=1, padding=radius)
