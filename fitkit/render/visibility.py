"""Which model points the cameras see."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.render.rasterizer import rasterize
from fitkit.scene.state import SceneState


def depth_maps(
    vertices: Tensor, triangles: Tensor, state: SceneState, size: tuple[int, int], reduction: float
) -> Tensor:
    """Depth of the nearest surface, [B, h, w] mm, 0 = nothing, rendered `reduction` times smaller than the
    crops.

    vertices: [B, V, 3] mm, head frame; size: (H, W) of the crops; pixel p of the crop lies at
    (p + 1/2) / reduction - 1/2 in the map.
    """
    h, w = round(size[0] / reduction), round(size[1] / reduction)
    with torch.no_grad():
        clip = state.camera.resized(reduction).clip(state.pose.apply(vertices))
        return rasterize(clip, triangles, (h, w)).depth


def seen_by_depth(pixels: Tensor, depth: Tensor, maps: Tensor, reduction: float, tolerance: float) -> Tensor:
    """Z-buffer test of points: pixels [B, N, 2] of the crop, depth [B, N] mm, maps [B, h, w] -> visible [B,
    N] bool.

    A point is hidden when the nearest surface at its pixel lies more than `tolerance` mm in front of it, and
    not visible when it falls outside the map or where nothing was drawn.
    """
    B, h, w = maps.shape
    place = ((pixels + 0.5) / reduction - 0.5).round()
    place = torch.nan_to_num(place, nan=-1.0).clamp(-2, max(h, w) + 2).long()
    x, y = place.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
    nearest = maps.reshape(B, -1).gather(1, y.clamp(0, h - 1) * w + x.clamp(0, w - 1))
    return inside & (nearest > 0) & (depth <= nearest + tolerance)
