"""nvdiffrast's CUDA rasterizer behind the common interface (optional)."""

from __future__ import annotations

import functools

import nvdiffrast.torch as dr
import torch
from torch import Tensor


@functools.lru_cache(maxsize=4)
def _context(device: str):
    return dr.RasterizeCudaContext(device=device)


def winning_triangles(clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """clip [B, V, 4], triangles [F, 3], size (H, W) -> index of the nearest triangle per pixel, [B, H, W], -1
    = none."""
    from fitkit.render.rasterizer import NEAR_MM

    H, W = size
    w, depth = clip[..., 3], clip[..., 2]
    # NDC runs from -1 to 1 over the whole image, so pixel centre i sits at (i + 0.5) * 2 / W - 1; row 0 comes
    # first.
    x = (clip[..., 0] + 0.5 * w) * (2 / W) - w
    y = (clip[..., 1] + 0.5 * w) * (2 / H) - w
    near, far = NEAR_MM, float(depth.max()) * 1.01 + 1
    if bool((depth == w).all()):
        z = depth * (far + near) / (far - near) - 2 * far * near / (far - near)
    else:
        z = w * (2 * (depth - near) / (far - near) - 1)
    position = torch.stack([x, y, z, w], -1).float().contiguous()
    raster, _ = dr.rasterize(
        _context(str(clip.device)), position, triangles.int().contiguous(), resolution=[H, W]
    )
    return raster[..., 3].long() - 1
