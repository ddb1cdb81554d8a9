"""One UV texture blended from all views of a person.

Order of work: each photo is cut to the head and scaled once (`crop_view`); every texel's surface point is
looked up in every photo in which it is visible (z-buffer, angle, distance from occluding edges); the photos
are matched to each other by one gain per channel; smooth colours are averaged widely and details taken from
the best view (two bands); texels that no photo shows are taken from the other half of the face, then spread
over the surface, guided by the model's albedo.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import scipy.spatial
import torch
from torch import Tensor

from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.membrane import Membrane
from fitkit.geometry.normals import vertex_normals
from fitkit.models.appearance import default_albedo, in_region
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import Surface
from fitkit.scene.camera import Camera


@dataclass(frozen=True)
class TextureOptions:
    """How views are blended.

    depth_tolerance: mm behind the z-buffer that still counts as visible; margin_mm: width of the ramp next to
    occluding edges; angle_power: exponent of the cosine between normal and line of sight; detail_power: how
    much the best view is preferred for details; blur: sigma of the split between the bands as a share of the
    texture side; max_views: photos used at most.
    """

    depth_tolerance: float = 3.0
    margin_mm: float = 4.0
    angle_power: float = 3.0
    detail_power: float = 4.0
    blur: float = 0.012
    max_views: int = 12


def choose_views(model: FaceModel, state, sizes: list[tuple[int, int]], most: int) -> list[int]:
    """The at most `most` views that together show the surface best, in their order; sizes: (H, W) of each
    photo.

    Greedy: each choice adds most to the sum over the vertices of the best (cosine of the viewing angle x
    resolution).
    """
    if state.num_views <= most:
        return list(range(state.num_views))
    score = np.zeros((state.num_views, model.num_vertices), np.float32)
    for i, (H, W) in enumerate(sizes):
        vertices = state.posed(model, [i])
        camera = state.camera.select([i])
        pixels, in_front = camera.project(vertices)
        inside = in_front & (pixels >= 0).all(-1) & (pixels[..., 0] <= W - 1) & (pixels[..., 1] <= H - 1)
        density = _density(vertices, camera)
        score[i] = (
            _cosine(vertices[0], model.triangles, camera).clamp_min(0) * inside[0] * min(density, SHARP)
        ).numpy()
    best = np.zeros(model.num_vertices, np.float32)
    chosen: list[int] = []
    for _ in range(most):
        gain = np.maximum(score, best).sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, score[chosen[-1]])
    return sorted(chosen)


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


def uv_clip(uv: Tensor, size: int) -> Tensor:
    """UV [T, 2] -> clip coordinates [T, 4] of a size x size picture whose top edge is v = 1."""
    w = torch.full_like(uv[:, 0], 2.0)
    x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
    return torch.stack([x * w, y * w, w, w], -1)


def blend_views(
    model: FaceModel, views: list[CroppedView], size: int, options: TextureOptions = TextureOptions()
) -> np.ndarray:
    """The blended texture in linear RGB, float32 [size, size, 3]; see the module's head for the method."""
    texels = _Texels.of(model, size)
    triangles = model.triangles
    lookups = [_Lookup.of(view, triangles, options) for view in views]
    # (rgb [N, 3], weight [N]) per view.
    samples = [look.sample(texels.matrix, look.attributes) for look in lookups]
    skin_texel = (texels.matrix @ (model.skin | model.face).numpy().astype(np.float32)) > 0.99
    gains = _view_gains(samples, skin_texel)
    eyes = texels.matrix @ _is_eye(model).astype(np.float32) > 0.5
    colour, confidence = _blend_bands(
        texels, [(rgb * g, w) for (rgb, w), g in zip(samples, gains)], eyes, options
    )

    hole = np.flatnonzero(confidence < 1)
    if len(hole):
        colour[hole] = _fill_unseen(model, texels, lookups, gains, colour, confidence, hole)
    return texels.picture(colour)


def _fill_unseen(
    model: FaceModel,
    texels: _Texels,
    lookups: list[_Lookup],
    gains: np.ndarray,
    colour: np.ndarray,
    confidence: np.ndarray,
    hole: np.ndarray,
) -> np.ndarray:
    """Colours [n, 3] for the texels `hole` that no photo shows well: the other half of the face, then a
    smooth continuation.

    The photos are sampled at the mirrored surface points and multiplied by the ratio of the two halves,
    continued smoothly from where both are seen. The rest continues the ratio of seen colour to the model's
    albedo.
    """
    smooth = Membrane(model.mean, model.triangles)
    partner, paired = _mirror(model)
    vertex_colour, vertex_confidence = texels.to_vertices(colour, confidence, model.num_vertices)
    log = np.log(vertex_colour.clip(DARK))
    both = np.minimum(vertex_confidence, vertex_confidence[partner]) * paired
    ratio = smooth.solve(both, log - log[partner], np.zeros(3, np.float32))
    matrix = texels.matrix[hole]
    total, weight = np.zeros((len(hole), 3), np.float32), np.zeros(len(hole), np.float32)
    for look, gain in zip(lookups, gains):
        rgb, w = look.sample(matrix, look.attributes[partner], paired)
        total += rgb * gain * w[:, None]
        weight += w
    mirrored = total / np.maximum(weight, 1e-8)[:, None] * np.exp(matrix @ ratio)
    share = (1 - confidence[hole]) * np.minimum(1, weight / FULL)
    known, full = confidence.copy(), colour.copy()
    known[hole] += share
    full[hole] = (confidence[hole, None] * colour[hole] + share[:, None] * mirrored) / np.maximum(
        known[hole], 1e-8
    )[:, None]

    vertex_colour, vertex_confidence = texels.to_vertices(full, known, model.num_vertices)
    albedo = default_albedo(model)
    inside, wet = _is_inside(model), _is_inside(model) | _is_eye(model)
    # Inside the mouth it is dark: an unseen tooth in full light would shine through lips that do not quite
    # close.
    log_albedo = np.log((albedo * np.where(inside, INSIDE_LIGHT, 1.0)[:, None]).clip(DARK)).astype(np.float32)
    detail = np.log(vertex_colour.clip(DARK)) - log_albedo
    skin = (vertex_confidence > 0.5) & (model.skin | model.face).numpy()
    tone = np.median(detail[skin], 0) if skin.sum() >= 10 else np.zeros(3, np.float32)
    # Ratios to nearly black paint (pupils, nostrils) are noise, and highlights on eyes and teeth must not
    # spread: both would end as white blots.
    trust = vertex_confidence * (albedo.mean(1) / 0.1).clip(0.05, 1)
    detail[wet] = np.minimum(detail[wet], tone + 0.6)
    continued = np.exp(smooth.solve(trust, detail, tone) + log_albedo)
    continued[wet] = continued[wet].clip(0, 0.7)
    return known[hole, None] * full[hole] + (1 - known[hole, None]) * (matrix @ continued)


DARK = 2e-3  # linear colours below this are too noisy for ratios
INSIDE_LIGHT = 0.35
SHARP = 4.0  # pixels per mm; more is not visible in the texture
FULL = 0.05  # blending weight from which a texel counts as fully seen


class _Texels:
    """The covered texels of a UV layout and their surface points as a sparse [N, V] matrix of barycentric
    weights."""

    def __init__(self, index: np.ndarray, matrix: scipy.sparse.csr_array, size: int):
        self.index, self.matrix, self.size = index, matrix, size

    @classmethod
    def of(cls, model: FaceModel, size: int) -> _Texels:
        # Skin lies on top where parts share UV space: rasterize with one clip vertex per triangle corner.
        skin = (model.skin | model.face)[model.triangles].all(1)
        corners = uv_clip(model.uv[model.uv_triangles].reshape(-1, 2), size)
        corners[:, 2] = torch.where(skin, 2.0, 3.0).repeat_interleave(3)
        surface = Surface.visible(corners, torch.arange(len(corners)).reshape(-1, 3), (size, size))
        index, triangle = surface.pixel.numpy(), surface.triangle.numpy()
        bary = surface.interpolate(torch.eye(3).expand(len(skin), 3, 3)).numpy()
        columns = model.triangles.numpy().astype(np.int32)[triangle]
        matrix = scipy.sparse.csr_array(
            (bary.reshape(-1), columns.reshape(-1), np.arange(0, 3 * len(index) + 1, 3, dtype=np.int32)),
            shape=(len(index), model.num_vertices),
        )
        return cls(index, matrix, size)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """[N, C] -> [size, size, C]; texels outside the layout take the nearest covered texel's value."""
        out = np.zeros((self.size * self.size, values.shape[1]), np.float32)
        out[self.index] = values
        empty = np.ones(self.size * self.size, np.uint8)
        empty[self.index] = 0
        if len(self.index) == 0 or len(self.index) == len(empty):
            return out.reshape(self.size, self.size, -1)
        _, label = cv2.distanceTransformWithLabels(
            empty.reshape(self.size, -1), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        label = label.reshape(-1)
        source = np.zeros(label.max() + 1, np.int64)
        source[label[self.index]] = self.index
        return out[source[label]].reshape(self.size, self.size, -1)

    def to_vertices(
        self, values: np.ndarray, weight: np.ndarray, num_vertices: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texel values [N, 3] -> per-vertex mean [V, 3] (weighted) and mean weight [V]."""
        transposed = self.matrix.T
        total = transposed @ np.concatenate(
            [values * weight[:, None], weight[:, None], np.ones_like(weight[:, None])], 1
        )
        mean = total[:, :3] / np.maximum(total[:, 3:4], 1e-8)
        return mean.astype(np.float32), (total[:, 3] / np.maximum(total[:, 4], 1e-8)).astype(np.float32)


@dataclass(frozen=True)
class _Lookup:
    """A view prepared for sampling: linear image, z-buffer, usable margin, and per vertex camera point and
    cosine."""

    image: np.ndarray
    depth: np.ndarray
    margin: np.ndarray
    attributes: np.ndarray  # [V, 4]: camera-frame point, cosine between normal and line of sight
    camera: Camera
    density: float  # pixels per mm at the mesh
    options: TextureOptions

    @classmethod
    def of(cls, view: CroppedView, triangles: Tensor, options: TextureOptions) -> _Lookup:
        vertices, camera = view.vertices, view.camera
        size = view.image.shape[:2]
        surface = Surface.visible(camera.clip(vertices[None])[0], triangles, size)
        depth = surface.image(surface.interpolate(vertices[triangles][..., 2:]))[..., 0].numpy()
        density = _density(vertices[None], camera)
        cosine = _cosine(vertices, triangles, camera)[:, None]
        return cls(
            _linear_table()[view.image],
            depth,
            _margin(depth, view.mask, max(2.0, options.margin_mm * density)),
            torch.cat([vertices, cosine], -1).numpy().astype(np.float32),
            camera,
            density,
            options,
        )

    def sample(
        self, matrix, attributes: np.ndarray, paired: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colours [N, 3] (linear) and weights [N] at the surface points matrix @ attributes."""
        at = matrix @ attributes
        x, y, z = at[:, 0], at[:, 1], at[:, 2]
        w = z if self.camera.kind == "perspective" else np.full_like(z, Camera.REFERENCE_DEPTH)
        w = np.maximum(w, 1.0)
        f, a = float(self.camera.focal[0]), float(self.camera.aspect[0])
        u = x / w * f + float(self.camera.principal[0, 0])
        v = y / w * (f * a) + float(self.camera.principal[0, 1])
        angle = ((at[:, 3] - 0.12) / 0.88).clip(0, 1)
        H, W = self.depth.shape
        near = np.flatnonzero((angle > 0) & (u >= 0) & (v >= 0) & (u <= W - 1) & (v <= H - 1))
        rgb, weight = np.zeros((len(u), 3), np.float32), np.zeros(len(u), np.float32)
        if len(near) == 0:
            return rgb, weight
        u, v = u[near], v[near]
        pixel = (v + 0.5).astype(np.int32) * W + (u + 0.5).astype(np.int32)
        front = self.depth.reshape(-1)[pixel]
        behind = z[near] - front
        visible = (front > 0) * (
            (2 * self.options.depth_tolerance - behind) / self.options.depth_tolerance
        ).clip(0, 1)
        own = (
            angle[near] ** self.options.angle_power
            * visible
            * self.margin.reshape(-1)[pixel]
            * min(self.density, SHARP)
        )
        if paired is not None:
            own *= (matrix @ paired)[near] > 0.99
        weight[near] = own
        keep = own > 0
        rgb[near[keep]] = _bilinear(self.image, u[keep], v[keep])
        return rgb, weight


def _cosine(vertices: Tensor, triangles: Tensor, camera: Camera) -> Tensor:
    """Cosine between normal and line of sight [V]; vertices [V, 3] in the camera frame."""
    sight = (
        torch.nn.functional.normalize(vertices, dim=-1)
        if camera.kind == "perspective"
        else vertices.new_tensor([0.0, 0.0, 1.0])
    )
    return -(vertex_normals(vertices[None], triangles)[0] * sight).sum(-1)


def _density(vertices: Tensor, camera: Camera) -> float:
    """Pixels per mm at the middle of the mesh; vertices [1, V, 3] in the camera frame."""
    return float(camera.focal[0] / camera.depth_divisor(vertices).mean().clamp_min(1.0))


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if len(x) == 0:  # cv2.remap refuses empty maps
        return np.zeros((0, image.shape[2]), image.dtype)
    n, columns = len(x), 4096  # cv2.remap takes at most 32767 rows or columns
    pad = -n % columns
    grid = [np.pad(c.astype(np.float32), (0, pad)).reshape(-1, columns) for c in (x, y)]
    return cv2.remap(image, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(
        -1, image.shape[2]
    )[:n]


def _margin(depth: np.ndarray, mask: np.ndarray | None, width: float) -> np.ndarray:
    """[H, W] in [0, 1]: 0 at edges of the surface (outline, depth steps, picture border, mask), 1 from
    `width` pixels on."""
    inside = depth > 0
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > 6.0
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


def _view_gains(samples: list[tuple[np.ndarray, np.ndarray]], skin: np.ndarray) -> np.ndarray:
    """Factors [B, 3] that make the views agree where two of them see the same skin; their geometric mean is
    1.

    Solves log g_i - log g_j = median log (c_j / c_i) over all pairs by least squares, weighted by the number
    of texels.
    """
    B = len(samples)
    normal, right = np.eye(B) * 1e-3, np.zeros((B, 3))
    step = max(1, len(skin) // 60000)  # a sample of the texels is enough for a median
    rgb = [s[0][::step] for s in samples]
    good = [
        (s[1][::step] > 0.15) & skin[::step] & (c.min(1) > 4e-3) & (c.max(1) < 0.9)
        for s, c in zip(samples, rgb)
    ]
    for i in range(B):
        for j in range(i):
            both = good[i] & good[j]
            n = int(both.sum())
            if n < 30:
                continue
            ratio = np.median(np.log(rgb[j][both] / rgb[i][both]), 0)
            weight = np.sqrt(n)
            normal[i, i] += weight
            normal[j, j] += weight
            normal[i, j] -= weight
            normal[j, i] -= weight
            right[i] += weight * ratio
            right[j] -= weight * ratio
    log = np.linalg.solve(normal, right) if B else np.zeros((0, 3))
    return (
        np.exp((log - log.mean(0)).clip(-1.5, 1.5)).astype(np.float32) if B else np.zeros((0, 3), np.float32)
    )


def _blend_bands(
    texels: _Texels, samples, eyes: np.ndarray, options: TextureOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Two-band blend: averaged low frequencies plus the best view's details; colour [N, 3] and confidence [N]
    in [0, 1]."""
    n = len(texels.index)
    base, base_weight = np.zeros((n, 3), np.float32), np.zeros(n, np.float32)
    detail, detail_weight = np.zeros((n, 3), np.float32), np.full(n, 1e-20, np.float32)
    seen = np.zeros(n, np.float32)
    for rgb, weight in samples:
        seen += weight
        low = _low_band(texels, rgb, weight > 0, options.blur * texels.size)
        # Eyes move between the photos: there one view decides both bands.
        own = np.where(eyes, weight**options.detail_power, weight)
        sharp = weight**options.detail_power
        base += low * own[:, None]
        base_weight += own
        detail += (rgb - low) * sharp[:, None]
        detail_weight += sharp
    colour = base / np.maximum(base_weight, 1e-20)[:, None] + detail / detail_weight[:, None]
    return np.maximum(colour, 0), np.minimum(1, seen / FULL)


def _low_band(texels: _Texels, rgb: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the valid texels of the layout, [N, 3], computed at a quarter of the resolution."""
    size = texels.size
    small = max(8, size // 4)
    picture = np.zeros((size * size, 4), np.float32)
    picture[texels.index] = np.concatenate([rgb, np.ones_like(rgb[:, :1])], 1) * valid[:, None]
    picture = cv2.resize(picture.reshape(size, size, 4), (small, small), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(
        picture, (0, 0), max(0.5, sigma * small / size), borderType=cv2.BORDER_CONSTANT
    )
    picture = cv2.resize(
        picture[..., :3] / np.maximum(picture[..., 3:], 1e-6), (size, size), interpolation=cv2.INTER_LINEAR
    )
    return np.where(valid[:, None], picture.reshape(-1, 3)[texels.index], rgb)


def _mirror(model: FaceModel) -> tuple[np.ndarray, np.ndarray]:
    """Per vertex the one on the other half of the mean face, [V] int64, and whether there is one within 4 mm,
    [V] float32."""
    mean = model.mean.numpy()
    distance, partner = scipy.spatial.cKDTree(mean).query(mean * np.array([-1, 1, 1], np.float32))
    return partner, (distance < 4.0).astype(np.float32)


def _is_eye(model: FaceModel) -> np.ndarray:
    return in_region(model, ("sclera", "iris", "eyeball", "pupil", "cornea"))


def _is_inside(model: FaceModel) -> np.ndarray:
    return in_region(model, ("teeth", "gum", "tongue", "mouth_socket", "mouth_inside", "eye_socket"))


@lru_cache(maxsize=1)
def _linear_table() -> np.ndarray:
    return linear_from_srgb(torch.arange(256) / 255.0).numpy().astype(np.float32)


@lru_cache(maxsize=1)
def srgb_table() -> np.ndarray:
    """8-bit sRGB codes of 4096 equal steps of linear light, rounded."""
    return np.round(srgb_from_linear(torch.linspace(0, 1, 4096)).numpy() * 255)
