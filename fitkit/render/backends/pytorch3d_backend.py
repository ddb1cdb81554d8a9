"""PyTorch3D's mesh rasterizer behind the common interface (optional; its CPU path is slow, its GPU path
fast)."""

from __future__ import annotations

import torch
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor


def winning_triangles(clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """clip [B, V, 4], triangles [F, 3], size (H, W) -> index of the nearest triangle per pixel, [B, H, W], -1
    = none."""
    from fitkit.render.rasterizer import NEAR_MM

    H, W = size
    uv = clip[..., :2] / clip[..., 3:]
    # Its screen has +x left and +y up, and the shorter image side spans [-1, 1].
    half = min(H, W) / 2
    x = (W / 2 - (uv[..., 0] + 0.5)) / half
    y = (H / 2 - (uv[..., 1] + 0.5)) / half
    points = torch.stack([x, y, clip[..., 2]], -1)
    ok = (clip[..., 2:] > NEAR_MM).all(-1)  # [B, V]
    perspective = bool((clip[..., 2] == clip[..., 3]).all())
    faces = [triangles[ok[b][triangles].all(-1)] for b in range(len(clip))]
    kept = [ok[b][triangles].all(-1).nonzero().squeeze(1) for b in range(len(clip))]
    first = torch.tensor([0] + [len(k) for k in kept[:-1]], device=clip.device).cumsum(0)
    packed, _, _, _ = rasterize_meshes(
        Meshes(list(points), faces),
        image_size=(H, W),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=perspective,
        cull_backfaces=False,
    )
    packed = packed[..., 0]
    out = torch.full_like(packed, -1)
    for b, own in enumerate(kept):
        hit = packed[b] >= 0
        out[b][hit] = own[packed[b][hit] - first[b]]
    return out
