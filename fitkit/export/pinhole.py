"""Photos for tools that know one kind of camera only: square pixels, the optical axis in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.export.morphs import need_perspective
from fitkit.fitting.result import FitResult

UPRIGHT = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # OpenCV axes to OpenGL's
WHITE = 255
CENTRED_PX = 1e-3  # an axis this near to the middle is in it
SUBPIXEL = 4  # bits


@dataclass(frozen=True)
class Pinhole:
    """A camera with its axis in the middle of a picture. focal: px; size: (W, H) px."""

    focal: float
    size: tuple[int, int]

    @property
    def principal(self) -> tuple[float, float]:
        """(x, y) px where pixel (0, 0) is the centre of the top-left pixel."""
        return (self.size[0] - 1) / 2, (self.size[1] - 1) / 2


@dataclass(frozen=True)
class Picture:
    """A photo before such a camera: image [H, W, 3] uint8 sRGB, white where the photo ends; mask [H, W] bool:
    the pixels that may be used, as the mask of the photo says, or None without one."""

    camera: Pinhole
    image: np.ndarray
    mask: np.ndarray | None


def need_photos(result: FitResult, tool: str) -> None:
    """Refuse a result whose photos are not there, or whose cameras are no pinhole cameras.

    Raises: InputError.
    """
    need_perspective(result)
    missing = [view.name for view in result.subject.views if not view.has_photo]
    if missing:
        raise InputError(
            f"result of {result.subject.name}: {tool} needs the photos, and {missing[0]} is not there; give "
            "their folder with --photos"
        )


def own_pinhole(result: FitResult, i: int) -> Pinhole:
    """The camera that shows the whole photo i at its own scale."""
    K = result.state.camera.matrix()[i].double().numpy()
    size = result.subject.views[i].size
    half = [max(c + 0.5, n - 0.5 - c) for c, n in zip(K[:2, 2], size)]
    half[1] *= K[0, 0] / K[1, 1]
    wide = [
        n if abs(2 * h - n) < 2 * CENTRED_PX else 2 * math.ceil(h - CENTRED_PX) for h, n in zip(half, size)
    ]
    return Pinhole(float(K[0, 0]), (wide[0], wide[1]))


def head_pinhole(result: FitResult, side: int, share: float = 0.9) -> Pinhole:
    """The one square camera that shows the head of each photo: the largest one fills `share` of it."""
    posed = result.state.posed(result.personal_model).detach()
    tangent = (posed[..., :2].abs() / posed[..., 2:].clamp_min(1.0)).amax()
    return Pinhole(share * side / 2 / float(tangent), (side, side))


def take(result: FitResult, i: int, camera: Pinhole) -> Picture:
    """Photo i as this camera shows it; the photo itself where it is its camera.

    Exact: cameras at one place that look the same way differ by scale and shift alone.
    """
    view, K = result.subject.views[i], result.state.camera.matrix()[i].double().numpy()
    scale = camera.focal / K[[0, 1], [0, 1]]
    shift = np.array(camera.principal) - scale * K[:2, 2]
    mask = view.mask
    same = np.abs(scale - 1).max() < 1e-6 and np.abs(shift).max() < CENTRED_PX and camera.size == view.size
    if same:
        return Picture(camera, view.image, mask)
    image = _warped(view.image, scale, shift, camera.size, WHITE)
    usable = np.full(view.image.shape[:2], 255, np.uint8) if mask is None else 255 * mask.astype(np.uint8)
    inside = None if mask is None else _warped(usable, scale, shift, camera.size, 0) > 127
    return Picture(camera, image, inside)


def _warped(
    image: np.ndarray, scale: np.ndarray, shift: np.ndarray, size: tuple[int, int], border: int
) -> np.ndarray:
    """The picture of `size` (W, H) whose pixel q shows p, q = scale p + shift."""
    k = max(1, int(1 / scale.max()))  # whole pixels are averaged first, so that nothing fine is left to alias
    if k > 1:
        H, W = (n // k * k for n in image.shape[:2])
        image = cv2.resize(image[:H, :W], (W // k, H // k), interpolation=cv2.INTER_AREA)
        shift, scale = shift + scale * (k - 1) / 2, scale * k
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    return cv2.warpAffine(
        image,
        matrix,
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(border, border, border),
    )


def foreground(result: FitResult, i: int, picture: Picture) -> np.ndarray:
    """[H, W] bool: the mask of the photo, or without one what the fitted head covers."""
    if picture.mask is not None:
        return picture.mask
    posed = result.state.posed(result.personal_model, [i])[0].detach()
    return _silhouette(posed, result.model.triangles, picture.camera)


def _silhouette(points: Tensor, triangles: Tensor, camera: Pinhole) -> np.ndarray:
    """Where a mesh covers the picture, [H, W] bool; points: [V, 3] mm before the camera (OpenCV axes)."""
    pixels = points[:, :2] / points[:, 2:].clamp_min(1.0) * camera.focal
    corners = (pixels.double().numpy() + camera.principal)[triangles.numpy()]
    mask = np.zeros(camera.size[::-1], np.uint8)
    for triangle in np.round(corners * 2**SUBPIXEL).astype(np.int32):
        cv2.fillConvexPoly(mask, triangle, 1, shift=SUBPIXEL)
    return mask.astype(bool)
