"""Samples of rendered meshes, compiled: what a picture of a synthetic subject spends its time on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from fitkit.geometry.spherical_harmonics import Y0, Y1, Y2, Y20, Y22
from fitkit.render.backends.numba_backend import winning_triangles
from fitkit.synth.paint import LampShadow
from fitkit.synth.random_faces import COVERED
from fitkit.synth.studio import Scene

TURNED_AWAY = 0.15  # smooth normals lean over at the silhouette; beyond, the back of the surface is seen


@dataclass(frozen=True)
class Samples:
    """The nearest surface of one view, as a list of the N covered samples.

    pixel: [N] int64, row * W + column; triangle: [N] int64; values: [N, C] float32, the vertices' values
    interpolated with perspective-correct weights."""

    pixel: np.ndarray
    triangle: np.ndarray
    values: np.ndarray


def sample_mesh(clip: Tensor, triangles: Tensor, size: tuple[int, int], table: np.ndarray) -> Samples:
    """clip [V, 4] of one view, triangles [F, 3], size (H, W), table [V, C] float32: values of the vertices.

    The same surface and weights as `render.rasterizer.rasterize` and `interpolate`, without derivatives, in
    one pass.
    """
    corners, faces = clip.numpy(), triangles.numpy()
    # Most triangles of a head lie between the samples.
    near_samples = _around_samples(corners, faces, size[0], size[1])
    index = winning_triangles(clip[None], torch.from_numpy(faces[near_samples]), size)[0].numpy().reshape(-1)
    pixel = np.flatnonzero(index >= 0)
    triangle = near_samples[index[pixel]]
    values = np.empty((len(pixel), table.shape[1]), np.float32)
    _interpolate(corners, faces, triangle, pixel, size[1], np.ascontiguousarray(table, np.float32), values)
    return Samples(pixel, triangle, values)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _around_samples(clip, triangles, height, width):
    """Numbers of the triangles with a sample in the box around them, ascending."""
    x, y = np.empty(len(clip), np.float32), np.empty(len(clip), np.float32)
    for v in range(len(clip)):
        x[v], y[v] = clip[v, 0] / clip[v, 3], clip[v, 1] / clip[v, 3]
    out = np.empty(len(triangles), np.int64)
    count = 0
    for f in range(len(triangles)):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        left, right = max(min(x[a], x[b], x[c]), 0), min(max(x[a], x[b], x[c]), width - 1)
        if math.ceil(left) <= right:
            top, bottom = max(min(y[a], y[b], y[c]), 0), min(max(y[a], y[b], y[c]), height - 1)
            if math.ceil(top) <= bottom:
                out[count] = f
                count += 1
    return out[:count]


@numba.njit(cache=True, nogil=True)
def _interpolate(clip, triangles, triangle, pixel, width, table, out):
    channels = table.shape[1]
    for n in range(len(pixel)):
        p = pixel[n]
        f = triangle[n]
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


def light_samples(
    albedo: np.ndarray,
    normal: np.ndarray,
    scene: Scene,
    scene_from_head: np.ndarray,
    camera_from_head: np.ndarray,
    shine: np.ndarray,
    open_sky: np.ndarray | None = None,
    place: np.ndarray | None = None,
    shadow: LampShadow | None = None,
) -> np.ndarray:
    """`synthetic.light` for head-frame normals of any length, turned to the camera's side; linear RGB [N, 3].

    Args:
        albedo, normal: [N, 3]; scene_from_head, camera_from_head: [3, 3]; shine: [N]; open_sky: [N]; place:
            [N, 3] mm, head frame, where the shadow of the lamp, made in that frame, is looked up.
    """
    count = len(albedo)
    lamp = np.asarray(scene.lamp, np.float64)
    lamp = lamp / np.linalg.norm(lamp)
    viewer = -scene_from_head.astype(np.float64) @ camera_from_head[2].astype(np.float64)
    half = (lamp + viewer) / np.linalg.norm(lamp + viewer)
    reaches = np.ones(count, np.float32)
    if shadow is not None:
        view = shadow.view
        axes = np.stack([v.double().numpy() for v in (view.right, view.up, view.towards)])
        _reaches(
            np.ascontiguousarray(place, np.float32),
            axes,
            view.middle.double().numpy(),
            float(view.reach),
            np.ascontiguousarray(shadow.nearest.numpy()),
            reaches,
        )
    out = np.empty((count, 3), np.float32)
    _light(
        np.ascontiguousarray(albedo, np.float32),
        np.ascontiguousarray(normal, np.float32),
        np.ascontiguousarray(shine, np.float32),
        np.ones(count, np.float32) if open_sky is None else np.ascontiguousarray(open_sky, np.float32),
        reaches,
        scene_from_head.astype(np.float64),
        camera_from_head[2].astype(np.float64),
        scene.illumination.double().numpy(),
        lamp,
        half,
        float(scene.lamp_strength),
        np.asarray(scene.lamp_color, np.float64),
        float(scene.gloss),
        float(scene.shininess),
        out,
    )
    return out


@numba.njit(cache=True, nogil=True)
def _light(
    albedo,
    normal,
    shine,
    sky,
    reaches,
    frame,
    axis,
    light,
    lamp,
    half,
    strength,
    color,
    gloss,
    shininess,
    out,
):
    # Below, the highlight is less than a ten-thousandth and not worth the power.
    faint = 1e-4 ** (1 / shininess)
    for n in range(len(albedo)):
        a, b, c = np.float64(normal[n, 0]), np.float64(normal[n, 1]), np.float64(normal[n, 2])
        length = max((a * a + b * b + c * c) ** 0.5, 1e-12)
        if axis[0] * a + axis[1] * b + axis[2] * c > TURNED_AWAY * length:
            length = -length
        a, b, c = a / length, b / length, c / length
        x = frame[0, 0] * a + frame[0, 1] * b + frame[0, 2] * c
        y = frame[1, 0] * a + frame[1, 1] * b + frame[1, 2] * c
        z = frame[2, 0] * a + frame[2, 1] * b + frame[2, 2] * c
        direct = strength * max((x * lamp[0] + y * lamp[1] + z * lamp[2] + 0.15) / 1.15, 0.0) * reaches[n]
        mirrored = x * half[0] + y * half[1] + z * half[2]
        spot = gloss * mirrored**shininess * shine[n] if mirrored > faint else 0.0
        spot *= 0.3 + 0.7 * reaches[n]
        for k in range(3):
            shade = (
                Y0 * light[0, k]
                + Y1 * (y * light[1, k] + z * light[2, k] + x * light[3, k])
                + Y2 * (x * y * light[4, k] + y * z * light[5, k])
                + Y20 * (3 * z * z - 1) * light[6, k]
                + Y2 * x * z * light[7, k]
                + Y22 * (x * x - y * y) * light[8, k]
            )
            out[n, k] = albedo[n, k] * (max(shade, 0.03) * sky[n] + direct * color[k]) + spot


@numba.njit(cache=True, nogil=True)
def _reaches(place, axes, middle, reach, nearest, out):
    size = nearest.shape[0]
    scale, center = (size / 2 - 2) / reach, (size - 1) / 2
    for n in range(len(place)):
        dx, dy, dz = place[n, 0] - middle[0], place[n, 1] - middle[1], place[n, 2] - middle[2]
        x = (dx * axes[0, 0] + dy * axes[0, 1] + dz * axes[0, 2]) * scale + center
        y = (dx * axes[1, 0] + dy * axes[1, 1] + dz * axes[1, 2]) * scale + center
        depth = 2 * reach + 10 - (dx * axes[2, 0] + dy * axes[2, 1] + dz * axes[2, 2])
        total = 0.0
        for k in range(4):
            column = min(max(int(round(x + (0.8 if k % 2 else -0.8))), 0), size - 1)
            row = min(max(int(round(y + (0.8 if k // 2 else -0.8))), 0), size - 1)
            total += min(max((nearest[row, column] + 7 - depth) / 4, 0.0), 1.0)
        out[n] = total / 4


class FineLayers:
    """The picture so far at some samples per pixel side; the compiled counterpart of the layers in
    `random_faces`.

    rgb: [H, H, 3] linear; depth: [H, H] mm, 1e9 = nothing; cover: [H, H] share of what is there that does not
    belong to the face."""

    def __init__(self, ground: np.ndarray):
        self.rgb = np.ascontiguousarray(ground, np.float32)
        self.depth = np.full(ground.shape[:2], 1e9, np.float32)
        self.cover = np.zeros(ground.shape[:2], np.float32)

    def put(
        self, pixel: np.ndarray, rgb: np.ndarray, depth: np.ndarray, alpha: np.ndarray | None = None
    ) -> None:
        """Samples of a surface, where they are nearer than what is there; with alpha [N] they cover."""
        solid = np.ones(len(pixel), np.float32) if alpha is None else alpha
        _put(
            self.rgb.reshape(-1, 3),
            self.depth.reshape(-1),
            self.cover.reshape(-1),
            pixel,
            np.ascontiguousarray(rgb, np.float32),
            np.ascontiguousarray(depth, np.float32),
            np.ascontiguousarray(solid, np.float32),
            alpha is not None,
            np.float32(COVERED),
        )


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
