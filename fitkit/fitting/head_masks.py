"""Which pixels of a photo show the head that a face model has, by the face parser: no hair, glasses, hands,
clothes or background."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError, MissingWeightsError
from fitkit.fitting.recipe import MaskOptions
from fitkit.io.resources import asset_path
from fitkit.io.subject import View
from fitkit.nets import load_predictor
from fitkit.nets.predictor import Predictor
from fitkit.observe.crop import crop_views
from fitkit.observe.face_parts import HEAD, PARTS, UNKNOWN, numbers
from fitkit.observe.landmarks.types import Landmarks

WEIGHTS = "parser.safetensors"


def load_parser(weights: str | os.PathLike = "", device: str = "cpu") -> Predictor:
    """The face parser, ready to run; weights: regressor.safetensors of a training, '' = the one that comes
    with fitkit.

    Raises:
        MissingWeightsError: that one is not there. InputError: weights of another network, or of one that
            tells other parts.
    """
    path = weights
    if not os.fspath(weights):
        try:
            path = asset_path(WEIGHTS)
        except InputError as error:
            raise MissingWeightsError(
                f"face parser: its weights {WEIGHTS} are not part of this fitkit; give those of a training "
                "(fitkit train-regressor parser) as masks.weights, or use masks.source: given and "
                "masks.texture: given"
            ) from error
    return _parser(
        os.path.abspath(path), str(device), os.stat(path).st_mtime_ns if os.path.exists(path) else None
    )


@lru_cache(maxsize=2)
def _parser(path: str, device: str, modified: int | None) -> Predictor:
    network = load_predictor(path)
    classes = getattr(network.options, "classes", None)
    if "parse" not in network.gives or classes != len(PARTS):
        raise InputError(
            f"{path}: expected a network that tells the {len(PARTS)} parts of fitkit train-regressor parser, "
            f"got one that gives {', '.join(network.gives)}" + (f" with {classes} parts" if classes else "")
        )
    return network.to(device).requires_grad_(False)


@torch.inference_mode()
def parse_photo(parser: Predictor, image: np.ndarray, points: Tensor) -> np.ndarray:
    """Numbers of `face_parts.PARTS` [H, W] uint8 of a photo [H, W, 3] uint8, UNKNOWN beyond what the parser
    looks at; points: [L, 2] px, landmarks of the head (at least two)."""
    valid = torch.ones(1, len(points), dtype=torch.bool)
    marks = Landmarks(points[None].float(), torch.ones(1, len(points)), valid, valid.float())
    seen = crop_views([image], [None], marks, parser.crop)
    device = next(parser.parameters()).device
    logits = parser(seen.images[None].to(device), valid[:, :1].to(device)).parse[0].cpu()
    # Between the pixels of the crop logits are interpolated, not classes.
    scale, offset = float(seen.scale[0]), seen.offset[0].double().numpy()
    H, W = image.shape[:2]
    side = parser.size / scale
    x0, y0 = np.maximum(np.floor(offset).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(offset + side).astype(int), (W, H))
    out = np.full((H, W), UNKNOWN, np.uint8)
    if x1 <= x0 or y1 <= y0:
        return out
    x = ((np.arange(x0, x1) - offset[0]) * scale).astype(np.float32)
    y = ((np.arange(y0, y1) - offset[1]) * scale).astype(np.float32)
    best = np.full((y1 - y0, x1 - x0), -np.inf, np.float32)
    part = np.zeros(best.shape, np.uint8)
    columns, rows = np.meshgrid(x, y)
    for number, plane in enumerate(logits.numpy()):
        value = cv2.remap(plane, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part[value > best] = number
        np.maximum(best, value, out=best)
    out[y0:y1, x0:x1] = part
    return out


def head_mask(parts: np.ndarray) -> np.ndarray:
    """Where a parse [H, W] shows the head that a face model has, [H, W] bool."""
    return np.isin(parts, numbers(HEAD))


def usable_pixels(
    views: Sequence[View], points: Landmarks, options: MaskOptions, device: str = "cpu", use: str = "source"
) -> list[np.ndarray | None]:
    """Mask of each photo, [H, W] bool, None = all of it counts.

    Args:
        points: of the heads, px of the photos; use: which of the two options says where masks come from,
            'source' or 'texture'. A photo in which the parser sees nothing of the head counts as given.
    Raises:
        MissingWeightsError, InputError: 'auto' without a parser.
    """
    wanted = getattr(options, use)
    if wanted == "none":
        return [None] * len(views)
    given = [view.mask for view in views]
    if wanted == "given":
        return given
    parser, out = load_parser(options.weights, device), []
    for view, mask, marks, valid in zip(views, given, points.points, points.valid):
        seen = head_mask(parse_photo(parser, view.image, marks[valid].cpu()))
        both = seen if mask is None else seen & mask
        out.append(both if both.any() else mask)
    return out
