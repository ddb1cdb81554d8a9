"""How a depth map differs from the true one, without how far away the head is."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import depth_normals


def relief_errors(depth: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Distances |d - t - m| [N] mm of the pixels `where`, m the median of d - t over them.

    Args:
        depth, truth: [H, W] mm along the axes of their cameras; where: [H, W] bool, pixels where both have a
            surface; without any the result is empty.
    """
    apart = (depth - truth)[where]
    return apart if not len(apart) else (apart - apart.median()).abs()


def normal_errors(depth: Tensor, camera: Camera, normals: Tensor, where: Tensor) -> Tensor:
    """Angles [N] in degrees between the normals of a depth map, from differences of neighbouring pixels, and
    others.

    Args:
        depth: [H, W] mm; camera: of one frame, px of the map; normals: [H, W, 3] of unit length in the camera
            frame, towards the camera; where: [H, W] bool, pixels that count if the map has a normal there.
    """
    mine, known = depth_normals(depth[None], camera)
    cosine = (mine[0] * normals).sum(-1)[where & known[0]]
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
