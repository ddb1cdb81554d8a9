"""`overlay/STEM.png`: the photo beside the photo with the fitted mesh, its outlines and the landmarks over
it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from fitkit.observe.landmarks.types import CURVES
from fitkit.render.shading import Surface, average_blocks, light_surface
from fitkit.render.view_colors import crop_and_scale
from fitkit.scene.camera import Camera

if TYPE_CHECKING:
    from fitkit.fitting.result import FitResult

# px of the longer side of one half; smaller photos are scaled up to the second.
LONG_SIDE, SHORT_LONG_SIDE = (1024, 640)
# A face that spans this share of the photo is shown with the whole photo, a smaller one is cut out.
WHOLE_PHOTO = 0.45
SUPERSAMPLE = 2
OPACITY = 0.58
FARTHEST_PX = 1e6  # beyond the picture, where a line may end
OBSERVED, FITTED, CONTOUR, OUTLINE = (70, 230, 90), (255, 60, 50), (255, 236, 190), (25, 90, 190)


@torch.no_grad()
def draw_overlay(result: FitResult, index: int) -> np.ndarray:
    """Two pictures side by side for view `index`, uint8 [h, 2 w + gap, 3].

    Left the photo; right the shaded mesh over its skin area with the model's outline (dark), the feature
    lines of its landmarks (light), the observed landmarks (green) and the fitted ones (red, joined to their
    observation).
    """
    model, state = result.personal_model, result.state
    vertices = state.posed(model, [index])
    camera = state.camera.select([index])
    landmarks = model.landmarks.points(vertices, model.triangles)
    present = model.landmarks.present.numpy()
    observed = result.landmarks.points[index].double().numpy()
    valid = result.landmarks.valid[index].numpy() & present & np.isfinite(observed).all(-1)
    image = result.subject.views[index].image
    box, scale = _frame(image.shape[:2], camera, vertices[:, model.skin | model.face], observed[valid])
    photo, shown = crop_and_scale(image, camera, box, scale)
    size = photo.shape[:2]
    clip = shown.resized(1 / SUPERSAMPLE).clip(vertices)[0]
    surface = Surface.visible(clip, model.triangles, (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE))
    depth = surface.image(surface.interpolate(vertices[0][model.triangles][..., 2:]))[..., 0].numpy()
    panel = _blend_mesh(photo, model, vertices[0], surface, depth)

    front = _landmarks_in_front(landmarks, shown, depth) & present
    fitted = shown.project(landmarks)[0][0].double().numpy()
    # The crop maps pixel p to s * (p + 0.5 - corner) - 0.5, per axis.
    sides = np.array([size[1] / (box[2] - box[0]), size[0] / (box[3] - box[1])])
    seen = (observed + 0.5 - box[:2]) * sides - 0.5
    unit = max(size) / 512
    for points, closed in CURVES:
        line = list(points) + ([points[0]] if closed else [])
        for a, b in itertools.pairwise(line):
            if front[a] and front[b]:
                _line(panel, fitted[a], fitted[b], CONTOUR, 1, 0.85)
    for i in np.flatnonzero(valid):
        _line(panel, fitted[i], seen[i], (255, 190, 60), 1, 0.7)
    for i in np.flatnonzero(present):
        _dot(panel, fitted[i], FITTED, 1.35 * unit, 1.0 if front[i] else 0.4)
    for i in np.flatnonzero(valid):
        _ring(panel, seen[i], OBSERVED, 2.6 * unit, 0.95 if front[i] else 0.5)
    gap = np.full((size[0], _gap(size), 3), 255, np.uint8)
    return np.concatenate([photo, gap, panel], 1)


def _gap(size: tuple[int, ...]) -> int:
    """px between the two pictures, each (H, W)."""
    return max(4, round(6 * max(size) / 512))


def overlay_halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `draw_overlay` has put side by side: the photo, and the photo with the mesh, [h, w, 3] each.

    Raises:
        ValueError: a picture of another layout.
    """
    height, width = picture.shape[:2]
    half = next((w for w in range(width // 2, 0, -1) if 2 * w + _gap((height, w)) == width), None)
    if half is None:
        raise ValueError(f"expected two pictures side by side, got {width} x {height} px")
    return picture[:, :half], picture[:, width - half :]


def _frame(
    size, camera: Camera, skin: torch.Tensor, observed: np.ndarray
) -> tuple[tuple[int, int, int, int], float]:
    """Part of the photo to show (x0, y0, x1, y1) and its scale."""
    H, W = size
    pixels, in_front = camera.project(skin)
    points = np.concatenate([pixels[0][in_front[0]].double().numpy(), observed])
    points = points[(np.abs(points) < 10 * max(H, W)).all(-1)]
    box = (0, 0, W, H)
    if len(points):
        low, high = points.min(0), points.max(0)
        span = float((high - low).max())
        if span < WHOLE_PHOTO * max(H, W):
            center, half = (low + high) / 2, max(0.85 * span, 16)
            x0, y0 = np.floor(center - half).astype(int)
            x1, y1 = np.ceil(center + half).astype(int)
            if (
                x0 < W - 16 and y0 < H - 16 and x1 > 16 and y1 > 16
            ):  # else the mesh is off the photo: show all of it
                box = (max(x0, 0), max(y0, 0), min(x1, W), min(y1, H))
    side = max(box[2] - box[0], box[3] - box[1])
    left, top, right, bottom = (int(b) for b in box)
    return (left, top, right, bottom), min(LONG_SIDE, max(SHORT_LONG_SIDE, side)) / side


def _blend_mesh(
    photo: np.ndarray, model, vertices: torch.Tensor, surface: Surface, depth: np.ndarray
) -> np.ndarray:
    """Translucent clay over the skin (and what it encloses), then the dark lines where the surface ends or
    folds over."""
    H, W = photo.shape[:2]
    factor = SUPERSAMPLE
    if len(surface.pixel) == 0:
        return photo.copy()
    shown = (model.skin | model.face)[model.triangles].any(1)
    shaded = light_surface(surface, vertices, model.triangles, None, shown, supersample=factor)
    rgb = shaded.rgb.numpy() * np.float32([0.93, 0.99, 1.06])  # a cool tint tells clay from skin
    alpha = shaded.skin.numpy()
    # Eyeballs and teeth are no skin but lie inside it: fill small gaps, then soften the cut at the hairline
    # and neck.
    reach = max(3, round(max(H, W) / 18)) | 1
    solid = cv2.morphologyEx(
        (alpha > 0.5).astype(np.uint8),
        cv2.MORPH_CLOSE,
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)),
    )
    covered = shaded.alpha.numpy()
    soft = cv2.GaussianBlur(np.maximum(alpha, solid * covered), (0, 0), max(1.0, max(H, W) / 90))
    area = np.minimum(soft, covered)[..., None] * OPACITY
    out = photo.astype(np.float32) * (1 - area) + rgb.clip(0, 1) * 255 * area

    line = average_blocks(torch.from_numpy(_folds(depth, factor))[..., None], factor)[..., 0].numpy()
    near_skin = cv2.dilate(np.maximum(alpha, solid), np.ones((5, 5), np.uint8))
    strength = (line * 1.6).clip(0, 1)[..., None] * 0.9 * near_skin[..., None]
    out = out * (1 - strength) + np.float32(OUTLINE) * strength
    return out.round().clip(0, 255).astype(np.uint8)


def _folds(depth: np.ndarray, width: int, step: float = 5.0) -> np.ndarray:
    """1 on the near side of edges where the surface ends or jumps back by more than `step` mm, float32 [H,
    W]."""
    far = np.where(depth > 0, depth, 1e6).astype(np.float32)
    behind = cv2.dilate(far, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    edge = ((behind - far > step) & (depth > 0)).astype(np.uint8)
    return cv2.dilate(edge, np.ones((width + 1, width + 1), np.uint8)).astype(np.float32)


def _landmarks_in_front(landmarks: torch.Tensor, camera: Camera, depth: np.ndarray) -> np.ndarray:
    """[68] bool: the landmark [1, 68, 3] is not hidden behind the mesh (4 mm tolerance for those that lie in
    folds).

    depth: of the supersampled picture, 0 where the mesh does not reach.
    """
    # The farthest surface around a point counts, so that points on the outline do not flicker.
    depth = cv2.dilate(depth, np.ones((2 * SUPERSAMPLE + 1,) * 2, np.uint8))
    pixels, in_front = camera.resized(1 / SUPERSAMPLE).project(landmarks)
    H, W = depth.shape
    x, y = pixels[0].clamp(-1, max(H, W)).round().long().unbind(-1)
    inside = ((x >= 0) & (y >= 0) & (x < W) & (y < H)).numpy()
    front = depth[y.clamp(0, H - 1).numpy(), x.clamp(0, W - 1).numpy()]
    return in_front[0].numpy() & (~inside | (front == 0) | (landmarks[0, :, 2].numpy() <= front + 4.0))


def _on_layer(panel: np.ndarray, points, opacity: float, draw) -> None:
    """Draw on the few pixels around the points and blend: one way to have thin, translucent, antialiased
    strokes."""
    points = np.asarray(points, float)
    if not np.isfinite(points).all():
        return
    H, W = panel.shape[:2]
    pad = 8 + max(H, W) // 64
    x0, y0 = (np.floor(points.min(0)) - pad).clip(0, (W, H)).astype(int)
    x1, y1 = (np.ceil(points.max(0)) + pad).clip(0, (W, H)).astype(int)
    if x1 <= x0 or y1 <= y0:
        return
    part = panel[y0:y1, x0:x1]
    layer = np.ascontiguousarray(part)
    # OpenCV takes 32-bit numbers, in sixteenths of a pixel.
    draw(
        layer,
        lambda p: tuple(
            int(c) for c in np.round((np.asarray(p) - (x0, y0)).clip(-FARTHEST_PX, FARTHEST_PX) * 16)
        ),
    )
    part[:] = layer if opacity >= 1 else cv2.addWeighted(layer, opacity, part, 1 - opacity, 0)


def _line(panel, a, b, color, width, opacity) -> None:
    _on_layer(
        panel,
        [a, b],
        opacity,
        lambda layer, at: cv2.line(layer, at(a), at(b), color, width, cv2.LINE_AA, shift=4),
    )


def _dot(panel, at_point, color, radius, opacity) -> None:
    _on_layer(
        panel,
        [at_point],
        opacity,
        lambda layer, at: cv2.circle(
            layer, at(at_point), round(radius * 16), color, -1, cv2.LINE_AA, shift=4
        ),
    )


def _ring(panel, at_point, color, radius, opacity) -> None:
    _on_layer(
        panel,
        [at_point],
        opacity,
        lambda layer, at: cv2.circle(layer, at(at_point), round(radius * 16), color, 1, cv2.LINE_AA, shift=4),
    )
