"""Z-buffer in plain torch: one scatter per size class of triangles, exact depth test, any device."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PAIRS = 1 << 22  # candidate (triangle, pixel) pairs held at once, about 400 MB


def winning_triangles(clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """clip [B, V, 4], triangles [F, 3], size (H, W) -> index of the nearest triangle per pixel, [B, H, W], -1
    = none.

    Triangles are grouped by the power of two that holds their bounding box; within a group every (triangle,
    pixel) pair is tested. Pairs compete through the key bits(1/depth) << 32 | triangle: the float32 bits of a
    positive number grow with the number, so the integer maximum is the exact nearest hit.
    """
    return torch.stack([_one_view(c, triangles, size) for c in clip])


def _one_view(clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    H, W = size
    xy = clip[:, :2] / clip[:, 3:]
    corner = xy[triangles].double()  # [F, 3, 2]
    w = clip[:, 3][triangles].double()
    z = clip[:, 2][triangles].double()
    x, y = corner[..., 0], corner[..., 1]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    limit = 1e7  # keeps the casts below finite for points near the camera plane
    x0 = x.amin(1).clamp(-limit, limit).ceil().long().clamp_min(0)
    y0 = y.amin(1).clamp(-limit, limit).ceil().long().clamp_min(0)
    x1 = x.amax(1).clamp(-limit, limit).floor().long().clamp_max(W - 1)
    y1 = y.amax(1).clamp(-limit, limit).floor().long().clamp_max(H - 1)
    from fitkit.render.rasterizer import NEAR_MM

    keep = (w.amin(1) > NEAR_MM) & (z.amin(1) > NEAR_MM) & (area != 0) & (x1 >= x0) & (y1 >= y0)
    span = torch.maximum(x1 - x0, y1 - y0) + 1
    key = torch.full((H * W,), -1, dtype=torch.int64, device=clip.device)
    level = torch.where(keep, torch.ceil(torch.log2(span.clamp_min(1).double())).long(), -1)
    for power in range(int(level.max()) + 1 if len(level) else 0):
        side = 1 << power
        members = (level == power).nonzero().squeeze(1)
        for chunk in members.split(max(1, MAX_PAIRS // (side * side))):
            _scatter(key, chunk, side, x, y, w, z, area, x0, y0, x1, y1, W)
    return torch.where(key >= 0, key & 0xFFFFFFFF, -1).reshape(H, W)


def _scatter(key, chunk, side, x, y, w, z, area, x0, y0, x1, y1, W):
    step = torch.arange(side, device=key.device)
    px = (x0[chunk, None] + step)[:, None, :]  # [T, 1, side]
    py = (y0[chunk, None] + step)[:, :, None]
    X, Y, A = x[chunk, :, None, None], y[chunk, :, None, None], area[chunk, None, None]
    fx, fy = px.double(), py.double()
    dx, dy = X - fx[:, None], Y - fy[:, None]  # [T, 3, ., .]
    l0 = (dx[:, 1] * dy[:, 2] - dx[:, 2] * dy[:, 1]) / A
    l1 = (dx[:, 2] * dy[:, 0] - dx[:, 0] * dy[:, 2]) / A
    l2 = (dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0]) / A
    inside = (l0 >= 0) & (l1 >= 0) & (l2 >= 0) & (px <= x1[chunk, None, None]) & (py <= y1[chunk, None, None])
    t, r, c = inside.nonzero(as_tuple=True)
    face = chunk[t]
    q0, q1, q2 = l0[t, r, c] / w[face, 0], l1[t, r, c] / w[face, 1], l2[t, r, c] / w[face, 2]
    depth = (q0 * z[face, 0] + q1 * z[face, 1] + q2 * z[face, 2]) / (q0 + q1 + q2)
    near = (1.0 / depth).float()
    value = (near.view(torch.int32).long() << 32) | face
    pixel = (y0[face] + r) * W + x0[face] + c
    key.scatter_reduce_(0, pixel, value, reduce="amax")
