"""From photos to observations: every view cropped around its face to one common size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from PIL import Image

from fitkit.io.options import Pixels, Range
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations

REACH = 40  # a crop's side is at most so many times the longer side of its photo, wherever the points lie
FILL = {"grey": 128, "black": 0}  # of 255
# px, side of the padded part of a photo that is held in memory; what is larger is scaled down before it is
# padded
MOST_PADDED = 10000


@dataclass(frozen=True)
class CropOptions:
    """How heads are cut out of photos."""

    # Side of the crop over the larger side of the landmark box.
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    # Shift towards the forehead, share of the height of the box.
    up: Annotated[float, Range(-5.0, 5.0)] = 0.08
    max_size: Pixels = 512  # of the common side of the crops, px
    min_size: Annotated[int, Range(1, 4096)] = 192  # the same; faces are hardly ever enlarged
    fill: Literal["grey", "black"] = "grey"  # what lies beyond the photo
    # Means, bilinear where enlarged; or cubic, as published crops are.
    resize: Literal["area", "cubic"] = "area"


def crop_views(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None],
    landmarks: Landmarks,
    options: CropOptions = CropOptions(),
) -> Observations:
    """Crop B photos [H_b, W_b, 3] uint8 around their landmarks (photo pixels).

    Returns:
        Observations; pixels outside a photo are grey, or black (`fill`), and not usable (`mask`).
    """
    boxes = []
    for points, valid in zip(landmarks.points.numpy(), landmarks.valid.numpy()):
        low, high = points[valid].min(0), points[valid].max(0)
        center = (low + high) / 2 - [0, options.up * (high - low)[1]]
        boxes.append((center, max(8, int(round(options.margin * float((high - low).max()))))))
    size = min(max(*(side for _, side in boxes), options.min_size), options.max_size)
    size = -(-size // 16) * 16  # pyramids halve it
    pictures, usable, scales, offsets = [], [], [], []
    for image, mask, (center, side) in zip(images, masks, boxes):
        H, W = image.shape[:2]
        side = min(side, REACH * max(H, W))
        step = -(-side // MOST_PADDED)
        side = -(-side // step) * step
        # Never beside the photo.
        x0, y0 = np.round(center - side / 2).clip(1 - side, (W - 1, H - 1)).astype(int)
        pictures.append(_cut(image, x0, y0, side, step, size, FILL[options.fill], options.resize))
        inside = (
            np.full(image.shape[:2], 255, np.uint8)
            if mask is None
            else np.where(mask, 255, 0).astype(np.uint8)
        )
        usable.append(_cut(inside, x0, y0, side, step, size, 0) > 254)
        scale = size / side
        scales.append(scale)
        # Resizing keeps pixel edges in place, so centre p goes to (p - x0 + 1/2) * scale - 1/2.
        offsets.append([x0 - 0.5 + 0.5 / scale, y0 - 0.5 + 0.5 / scale])
    scale, offset = (
        torch.tensor(scales, dtype=torch.float32),
        torch.tensor(np.array(offsets), dtype=torch.float32),
    )
    moved = Landmarks(
        (landmarks.points - offset[:, None]) * scale[:, None, None],
        landmarks.sigma * scale[:, None],
        landmarks.valid,
        landmarks.confidence,
        landmarks.jaw,
    )
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return Observations(stack, moved, torch.from_numpy(np.stack(usable)), scale, offset)


def _cut(
    image: np.ndarray, x0: int, y0: int, side: int, step: int, size: int, fill: int, resize: str = "area"
) -> np.ndarray:
    """The square of `side` px, filled beyond the photo, as [size, size]; blocks of step x step px, of which
    it has whole ones, become one before it is filled."""
    H, W = image.shape[:2]
    pads = np.maximum(0, [-y0, y0 + side - H, -x0, x0 + side - W])
    part = image[max(0, y0) : max(0, y0 + side), max(0, x0) : max(0, x0 + side)]
    if step > 1:
        part = _padded(part, pads % step, fill)
        part = cv2.resize(part, (part.shape[1] // step, part.shape[0] // step), interpolation=cv2.INTER_AREA)
    part = _padded(part, pads // step, fill)
    if resize == "cubic":  # with a kernel as wide as the pixels of the crop, unlike that of OpenCV
        return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
    method = cv2.INTER_AREA if part.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(part, (size, size), interpolation=method)


def _padded(image: np.ndarray, pads: np.ndarray, fill: int) -> np.ndarray:
    """pads: px at top, bottom, left, right."""
    return (
        cv2.copyMakeBorder(image, *pads.tolist(), cv2.BORDER_CONSTANT, value=(fill,) * 3)
        if pads.any()
        else image
    )
