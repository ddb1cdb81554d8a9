"""The colours that one photo shows of a surface, and how far each is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from fitkit.geometry.color import LUMINANCE, linear_from_srgb
from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import Surface
from fitkit.render.texels import bilinear
from fitkit.scene.camera import Camera

SHARP = 4.0  # pixels per mm; more is not visible in the texture
LEAST_COSINE = 0.12  # between normal and line of sight
STEP_MM = 6.0  # a larger one from pixel to pixel is an edge of the surface
LEAST_SHARPNESS = 0.3  # share of the sharpest photo's; from here on other things matter more
DIM = 0.35  # of a view's usual light: with less a colour loses weight
ROWS = 1 << 20  # texels that are looked up at a time
DARK = 2e-3  # linear colours below this are too noisy for ratios
ALIKE = 0.55  # log units: a colour beside the face that is farther from the face's loses weight, up to twice
STRAND_MM = 1.5  # what lies nearer to such a colour loses as much


@dataclass(frozen=True)
class LookupOptions:
    """depth_tolerance: mm behind the z-buffer that still counts as visible; margin_mm: width of the ramp next
    to occluding edges; angle_power: exponent of the cosine between normal and line of sight."""

    depth_tolerance: float = 3.0
    margin_mm: float = 4.0
    angle_power: float = 3.0


@dataclass(frozen=True)
class CroppedView:
    """A photo cut to the projected mesh and scaled, with its camera and mesh.

    image: [h, w, 3] uint8; mask: [h, w] bool or None; camera: one view, in pixels of `image`;
    vertices: [V, 3] camera frame, mm.
    """

    image: np.ndarray
    mask: np.ndarray | None
    camera: Camera
    vertices: Tensor

    @classmethod
    def make(cls, image, mask, state, index: int, model: FaceModel, long_side: int) -> CroppedView:
        """Cut view `index` of `state` to the mesh; scaled down (never up) so that the longer side is at most
        `long_side`."""
        one = [index]
        vertices = state.posed(model, one)
        camera = state.camera.select(one)
        pixels, in_front = camera.project(vertices)
        pixels = pixels[0][in_front[0]].numpy()
        H, W = image.shape[:2]
        if len(pixels):
            x0, y0 = np.floor(pixels.min(0)).clip(0, (W - 2, H - 2)).astype(int)
            x1, y1 = np.ceil(pixels.max(0)).clip((x0 + 1, y0 + 1), (W - 1, H - 1)).astype(int)
        else:
            x0, y0, x1, y1 = 0, 0, W - 1, H - 1
        scale = min(1.0, long_side / max(x1 - x0 + 1, y1 - y0 + 1))
        image, camera = crop_and_scale(image, camera, (x0, y0, x1 + 1, y1 + 1), scale)
        if mask is not None:
            mask, _ = crop_and_scale(mask.astype(np.uint8) * 255, camera, (x0, y0, x1 + 1, y1 + 1), scale)
            mask = mask > 200
        return cls(image, mask, camera, vertices[0])


def crop_and_scale(
    image: np.ndarray, camera: Camera, box: tuple[int, int, int, int], scale: float
) -> tuple[np.ndarray, Camera]:
    """Cut columns x0..x1-1 and rows y0..y1-1 (box = x0, y0, x1, y1) and resize; the camera follows.

    The scaled size is rounded to whole pixels; `Camera.aspect` takes up the difference between the two axes.
    """
    x0, y0, x1, y1 = (int(b) for b in box)
    part = image[y0:y1, x0:x1]
    width, height = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    if (width, height) != (x1 - x0, y1 - y0):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        part = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=how)
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    # Pixel borders, not centres, map onto each other: q + 0.5 = s * (p - x0 + 0.5).
    principal = torch.stack(
        [(camera.principal[:, 0] - x0 + 0.5) * sx - 0.5, (camera.principal[:, 1] - y0 + 0.5) * sy - 0.5], -1
    )
    return part, replace(
        camera, focal=camera.focal * sx, principal=principal, aspect=camera.aspect * (sy / sx)
    )


@dataclass(frozen=True)
class ViewColors:
    """A view prepared for sampling at surface points.

    image: [h, w, 3] linear; depth: [h, w] mm, 0 = nothing; margin: [h, w] in [0, 1], trust in a pixel by its
    distance from edges; attributes: [V, 4] camera-frame point and cosine between normal and line of sight;
    weight: of the whole photo, pixels per mm times sharpness; light: [V, 3] that falls on the vertices,
    linear RGB.
    """

    image: np.ndarray
    depth: np.ndarray
    margin: np.ndarray
    attributes: np.ndarray
    camera: Camera
    weight: float
    light: np.ndarray
    options: LookupOptions

    @classmethod
    def of(
        cls,
        view: CroppedView,
        triangles: Tensor,
        light: np.ndarray | None = None,
        options: LookupOptions = LookupOptions(),
        doubt: np.ndarray | None = None,
    ) -> ViewColors:
        """light: None = white and the same everywhere; doubt: [V] in [0, 1], how much a colour there counts
        only if it is like that of the vertices without any; None = all colours count."""
        vertices, camera = view.vertices, view.camera
        size = view.image.shape[:2]
        surface = Surface.visible(camera.clip(vertices[None])[0], triangles, size)
        light = np.ones((len(vertices), 3), np.float32) if light is None else light
        corners = [vertices[:, 2:], torch.as_tensor(light)]
        if doubt is not None:
            corners.append(torch.as_tensor(doubt)[:, None])
        shown = surface.image(surface.interpolate(torch.cat(corners, 1)[triangles])).numpy()
        depth = np.ascontiguousarray(shown[..., 0])
        density = pixels_per_mm(vertices[None], camera)
        cosine = sight_cosine(vertices, triangles, camera)[:, None]
        image = _linear_table()[view.image]
        margin = _margin(depth, view.mask, max(2.0, options.margin_mm * density))
        if doubt is not None:
            margin *= _like_face(image, shown[..., 1:4], shown[..., 4], margin, STRAND_MM * density)
        return cls(
            image,
            depth,
            margin,
            torch.cat([vertices, cosine], -1).numpy().astype(np.float32),
            camera,
            min(density, SHARP),
            light,
            options,
        )

    def sample(
        self, matrix: scipy.sparse.csr_array, moved: np.ndarray | None = None, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colours without light [N, 3], linear, and weights [N] at surface points.

        matrix: [N, V] of the points; moved: [V] take another vertex for each, as of the other half; only:
        [V] 0 or 1, points elsewhere have no weight.
        """
        n = matrix.shape[0]
        if n > ROWS:
            parts = [self.sample(matrix[k : k + ROWS], moved, only) for k in range(0, n, ROWS)]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        at = matrix @ (self._table if moved is None else self._table[moved])
        x, y, z = at[:, 0], at[:, 1], at[:, 2]
        w = z if self.camera.kind == "perspective" else np.full_like(z, Camera.REFERENCE_DEPTH)
        w = np.maximum(w, 1.0)
        f, a = float(self.camera.focal[0]), float(self.camera.aspect[0])
        u = x / w * f + float(self.camera.principal[0, 0])
        v = y / w * (f * a) + float(self.camera.principal[0, 1])
        angle = ((at[:, 3] - LEAST_COSINE) / (1 - LEAST_COSINE)).clip(0, 1)
        H, W = self.depth.shape
        near = np.flatnonzero((angle > 0) & (u >= 0) & (v >= 0) & (u <= W - 1) & (v <= H - 1))
        rgb, weight = np.zeros((n, 3), np.float32), np.zeros(n, np.float32)
        if len(near) == 0:
            return rgb, weight
        u, v = u[near], v[near]
        pixel = (v + 0.5).astype(np.int32) * W + (u + 0.5).astype(np.int32)
        front = self.depth.reshape(-1)[pixel]
        tolerance = self.options.depth_tolerance
        visible = (front > 0) * ((2 * tolerance - (z[near] - front)) / tolerance).clip(0, 1)
        own = (
            angle[near] ** self.options.angle_power
            * visible
            * self.margin.reshape(-1)[pixel]
            * at[near, 7]
            * np.float32(self.weight)
        )
        if only is not None:
            own = own * ((matrix @ only.astype(np.float32))[near] > 0.99)
        keep = own > 0
        weight[near] = own
        rgb[near[keep]] = bilinear(self.image, u[keep], v[keep]) / at[near[keep], 4:7]
        return rgb, weight

    @cached_property
    def _table(self) -> np.ndarray:
        """[V, 8]: attributes, light, and trust in [0, 1] by how much light there is: in the dark a small
        error of the light is a large one of the albedo."""
        level = self.light.mean(-1)
        t = (level / max(DIM * float(np.quantile(level, 0.9)), 1e-6)).clip(0, 1)
        return np.concatenate([self.attributes, self.light, (t * t * (3 - 2 * t))[:, None]], 1).astype(
            np.float32
        )


def sharpness(views: list[CroppedView], lookups: list[ViewColors]) -> np.ndarray:
    """How sharp each photo shows the face, [B] from LEAST_SHARPNESS to 1: the strength of its details at the
    resolution of the coarsest one, over that of the sharpest.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000, the Laplacian as
        measure of focus. Differs: of a Gaussian mean, where noise weighs less; its mean size over the mean
        colour, so that exposure does not count.
    """
    if len(views) < 2:
        return np.ones(len(views), np.float32)
    density = [look.weight for look in lookups]
    found = []
    for view, look, own in zip(views, lookups, density):
        scale = min(density) / own
        size = [max(8, round(side * scale)) for side in view.image.shape[1::-1]]
        grey = look.image @ np.float32(LUMINANCE)
        grey[look.margin == 0] = grey[look.margin > 0].mean() if (look.margin > 0).any() else 0
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        trust = cv2.resize(look.margin, size, interpolation=cv2.INTER_AREA) > 0.9
        if trust.sum() < 100:
            found.append(0.0)
            continue
        edges = cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F)
        found.append(float(np.abs(edges[trust]).mean() / max(grey[trust].mean(), 1e-3)))
    return (np.array(found, np.float32) / max(max(found), 1e-9)).clip(LEAST_SHARPNESS, 1)


def sight_cosine(vertices: Tensor, triangles: Tensor, camera: Camera) -> Tensor:
    """Cosine between normal and line of sight [V]; vertices [V, 3] in the camera frame."""
    sight = (
        torch.nn.functional.normalize(vertices, dim=-1)
        if camera.kind == "perspective"
        else vertices.new_tensor([0.0, 0.0, 1.0])
    )
    return -(vertex_normals(vertices[None], triangles)[0] * sight).sum(-1)


def pixels_per_mm(vertices: Tensor, camera: Camera) -> float:
    """At the middle of the mesh; vertices [1, V, 3] in the camera frame."""
    return float(camera.focal[0] / camera.depth_divisor(vertices).mean().clamp_min(1.0))


def _margin(depth: np.ndarray, mask: np.ndarray | None, width: float) -> np.ndarray:
    """[H, W] in [0, 1]: 0 at edges of the surface (outline, depth steps, picture border, mask), 1 from
    `width` pixels on."""
    inside = depth > 0
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > STEP_MM
        first, second = (slice(None, -1), slice(1, None))
        index = [slice(None)] * 2
        for part in (first, second):
            index[axis] = part
            inside[tuple(index)] &= ~step
    if mask is not None:
        inside &= mask
    inside = np.pad(inside, 1)  # the picture border counts as an edge
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    t = ((distance - 1) / width).clip(0, 1)
    return t * t * (3 - 2 * t)


def _like_face(
    image: np.ndarray, light: np.ndarray, doubt: np.ndarray, margin: np.ndarray, reach: float
) -> np.ndarray:
    """[H, W] in [0, 1], less where the colour without light of a doubtful pixel, or of one nearer than
    `reach` px, is not like that of the face; 1 everywhere where hardly any of the face is seen."""
    seen = margin > 0
    face = seen & (doubt < 0.01) & (margin > 0.5)
    if face.sum() < 100:
        return np.ones_like(margin)
    log = np.log(np.maximum(image[seen], DARK) / np.maximum(light[seen], DARK))
    log -= np.median(log[face[seen]], 0)
    mean = log.mean(1)
    away = np.abs(mean) + np.abs(log - mean[:, None]).max(1)
    like = np.ones_like(margin)
    like[seen] = 1 - ((away - ALIKE) / ALIKE).clip(0, 1) * doubt[seen].clip(0, 1)
    side = 2 * max(1, round(reach)) + 1
    return cv2.erode(like, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


@lru_cache(maxsize=1)
def _linear_table() -> np.ndarray:
    return linear_from_srgb(torch.arange(256) / 255.0).numpy().astype(np.float32)
