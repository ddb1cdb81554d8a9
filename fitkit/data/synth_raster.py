"""Samples of rendered meshes, compiled: what a picture of a synthetic subject spends its time on."""
from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from torch import Tensor

from fitkit.data.random_faces import COVERED
from fitkit.render.backends.numba_backend import winning_triangles


@dataclass(frozen=True)
class Samples:
    """The nearest surface of one view, as a list of the N covered samples.

    pixel: [N] int64, row * W + column; triangle: [N] int64; values: [N, C] float32, the vertices' values interpolated with
    perspective-correct weights."""

    pixel: np.ndarray
    triangle: np.ndarray
    values: np.ndarray


def sample_mesh(clip: Tensor, triangles: Tensor, size: tuple[int, int], table: np.ndarray) -> Samples:
    """clip [V, 4] of one view, triangles [F, 3], size (H, W), table [V, C] float32: values of the vertices.

    The same surface and weights as `render.rasterizer.rasterize` and `interpolate`, without derivatives, in one pass.
    """
    index = winning_triangles(clip[None], triangles, size)[0].numpy().reshape(-1)
    pixel = np.flatnonzero(index >= 0)
    values = np.empty((len(pixel), table.shape[1]), np.float32)
    _interpolate(clip.numpy(), triangles.numpy(), index, pixel, size[1], np.ascontiguousarray(table, np.float32), values)
    return Samples(pixel, index[pixel], values)


@numba.njit(cache=True, nogil=True)
def _interpolate(clip, triangles, index, pixel, width, table, out):
    channels = table.shape[1]
    for n in range(len(pixel)):
        p = pixel[n]
        f = index[p]
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        x, y = np.float64(p % width), np.float64(p // width)
        w0, w1, w2 = np.float64(clip[a, 3]), np.float64(clip[b, 3]), np.float64(clip[c, 3])
        xa, ya = np.float64(clip[a, 0]) / w0 - x, np.float64(clip[a, 1]) / w0 - y
        xb, yb = np.float64(clip[b, 0]) / w1 - x, np.float64(clip[b, 1]) / w1 - y
        xc, yc = np.float64(clip[c, 0]) / w2 - x, np.float64(clip[c, 1]) / w2 - y
        q0, q1, q2 = (xb * yc - xc * yb) / w0, (xc * ya - xa * yc) / w1, (xa * yb - xb * ya) / w2
        total = q0 + q1 + q2
        if abs(total) < 1e-20:  # a triangle seen edge-on
            q0, q1, q2, total = 1.0, 0.0, 0.0, 1.0
        q0, q1, q2 = q0 / total, q1 / total, q2 / total
        for k in range(channels):
            out[n, k] = q0 * table[a, k] + q1 * table[b, k] + q2 * table[c, k]


class FineLayers:
    """The picture so far at some samples per pixel side; the compiled counterpart of the layers in `random_faces`.

    rgb: [H, H, 3] linear; depth: [H, H] mm, 1e9 = nothing; cover: [H, H] share of what is there that does not belong to the face."""

    def __init__(self, ground: np.ndarray):
        self.rgb = np.ascontiguousarray(ground, np.float32)
        self.depth = np.full(ground.shape[:2], 1e9, np.float32)
        self.cover = np.zeros(ground.shape[:2], np.float32)

    def put(self, pixel: np.ndarray, rgb: np.ndarray, depth: np.ndarray, alpha: np.ndarray | None = None) -> None:
        """Samples of a surface, where they are nearer than what is there; with alpha [N] they cover."""
        solid = np.ones(len(pixel), np.float32) if alpha is None else alpha
        _put(self.rgb.reshape(-1, 3), self.depth.reshape(-1), self.cover.reshape(-1), pixel, np.ascontiguousarray(rgb, np.float32),
             np.ascontiguousarray(depth, np.float32), np.ascontiguousarray(solid, np.float32), alpha is not None, np.float32(COVERED))


@numba.njit(cache=True, nogil=True)
def _put(rgb, far, cover, pixel, color, depth, alpha, covers, limit):
    for n in range(len(pixel)):
        p = pixel[n]
        if depth[n] >= far[p]:
            continue
        a = alpha[n]
        for k in range(3):
            rgb[p, k] = rgb[p, k] * (1 - a) + color[n, k] * a
        if covers and a > cover[p]:
            cover[p] = a
        if a > limit:
            far[p] = depth[n]
