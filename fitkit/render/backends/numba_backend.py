"""Z-buffer compiled by numba: the fast path on the CPU. Same arithmetic and ties as the torch backend."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(cache=True, nogil=True)
def _fill(clip, triangles, near, best, index):
    H, W = best.shape
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        w0, w1, w2 = np.float64(clip[a, 3]), np.float64(clip[b, 3]), np.float64(clip[c, 3])
        z0, z1, z2 = np.float64(clip[a, 2]), np.float64(clip[b, 2]), np.float64(clip[c, 2])
        if min(w0, w1, w2) <= near or min(z0, z1, z2) <= near:
            continue
        # Rounded to the input type like the torch path, so that both see the same corner positions.
        xa, ya = np.float64(clip[a, 0] / clip[a, 3]), np.float64(clip[a, 1] / clip[a, 3])
        xb, yb = np.float64(clip[b, 0] / clip[b, 3]), np.float64(clip[b, 1] / clip[b, 3])
        xc, yc = np.float64(clip[c, 0] / clip[c, 3]), np.float64(clip[c, 1] / clip[c, 3])
        left, right = min(xa, xb, xc), max(xa, xb, xc)
        top, bottom = min(ya, yb, yc), max(ya, yb, yc)
        if right < 0 or bottom < 0 or left > W - 1 or top > H - 1:
            continue
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        x0, x1 = int(math.ceil(max(left, 0.0))), int(math.floor(min(right, W - 1.0)))
        y0, y1 = int(math.ceil(max(top, 0.0))), int(math.floor(min(bottom, H - 1.0)))
        for y in range(y0, y1 + 1):
            dya, dyb, dyc = ya - y, yb - y, yc - y
            for x in range(x0, x1 + 1):
                dxa, dxb, dxc = xa - x, xb - x, xc - x
                l0 = (dxb * dyc - dxc * dyb) / area
                l1 = (dxc * dya - dxa * dyc) / area
                l2 = (dxa * dyb - dxb * dya) / area
                if l0 >= 0 and l1 >= 0 and l2 >= 0:
                    q0, q1, q2 = l0 / w0, l1 / w1, l2 / w2
                    depth = (q0 * z0 + q1 * z1 + q2 * z2) / (q0 + q1 + q2)
                    value = np.float32(1.0 / depth)
                    if value >= best[y, x]:
                        best[y, x] = value
                        index[y, x] = f


# Each operation rounds like the one of `barycentrics` in torch, and without a check for zero as there.
@numba.njit(cache=True, nogil=True, error_model="numpy")
def _locate(clip, triangles, columns, rows, index, barycentric, depth):
    floor = clip.dtype.type(1e-20)
    H, W = index.shape
    for i in range(H):
        for j in range(W):
            f = index[i, j]
            if f < 0:
                continue
            a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            wa, wb, wc = clip[a, 3], clip[b, 3], clip[c, 3]
            ua, va = clip[a, 0] / wa - columns[j], clip[a, 1] / wa - rows[i]
            ub, vb = clip[b, 0] / wb - columns[j], clip[b, 1] / wb - rows[i]
            uc, vc = clip[c, 0] / wc - columns[j], clip[c, 1] / wc - rows[i]
            p, q, r = (ub * vc - uc * vb) / wa, (uc * va - ua * vc) / wb, (ua * vb - ub * va) / wc
            total = p + q + r
            if abs(total) < floor:
                total = floor
            p, q, r = p / total, q / total, r / total
            barycentric[i, j, 0], barycentric[i, j, 1], barycentric[i, j, 2] = p, q, r
            depth[i, j] = clip[a, 2] * p + clip[b, 2] * q + clip[c, 2] * r


def surface(clip: Tensor, triangles: Tensor, triangle: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentrics [B, H, W, 3] and depth [B, H, W] of a triangle map [B, H, W], as `Fragments` has them,
    without derivatives."""
    points, index = clip.detach().cpu().numpy(), triangle.cpu().numpy()
    faces = np.ascontiguousarray(triangles.cpu().numpy())
    columns, rows = (np.arange(n, dtype=points.dtype) for n in index.shape[:0:-1])
    barycentric, depth = np.zeros((*index.shape, 3), points.dtype), np.zeros(index.shape, points.dtype)
    for view in zip(points, index, barycentric, depth):
        _locate(np.ascontiguousarray(view[0]), faces, columns, rows, *view[1:])
    return torch.from_numpy(barycentric).to(clip.device), torch.from_numpy(depth).to(clip.device)


def winning_triangles(clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """clip [B, V, 4], triangles [F, 3], size (H, W) -> index of the nearest triangle per pixel, [B, H, W], -1
    = none."""
    from fitkit.render.rasterizer import NEAR_MM

    points = np.ascontiguousarray(clip.cpu().numpy())
    faces = np.ascontiguousarray(triangles.cpu().numpy())
    index = np.full((len(points), *size), -1, np.int64)
    best = np.zeros(size, np.float32)
    for view, out in zip(points, index):
        best[:] = 0
        _fill(view, faces, NEAR_MM, best, out)
    return torch.from_numpy(index).to(clip.device)
