"""Which pixels of a photo show the head that a face model has, by a face parser: no hair, glasses, hands,
clothes or background."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np

from fitkit.errors import InputError
from fitkit.fitting.recipe import MaskOptions
from fitkit.io.resources import asset_path
from fitkit.io.subject import View
from fitkit.nets import load_predictor
from fitkit.nets.parser.by_colors import ByColors
from fitkit.nets.parser.photos import WEIGHTS, ByNetwork, PhotoParser, parse_photo
from fitkit.observe.face_parts import HEAD, PARTS, numbers
from fitkit.observe.landmarks.types import Landmarks

COLORS = "colors"  # in the place of weights: without a network
RIM = 0.015  # of the face size: borders are told no better


def load_parser(weights: str | os.PathLike = "", device: str = "cpu") -> PhotoParser:
    """What tells the parts of a head; weights: regressor.safetensors of fitkit train-regressor parser, '' =
    the network that comes with fitkit, 'colors' = by landmarks and colours, without a network.

    Raises:
        InputError: weights of another network, or of one that tells other parts.
    """
    if os.fspath(weights) == COLORS:
        return ByColors()
    path = os.path.abspath(weights if os.fspath(weights) else asset_path(WEIGHTS))
    return _network(path, str(device), os.stat(path).st_mtime_ns if os.path.exists(path) else None)


@lru_cache(maxsize=2)
def _network(path: str, device: str, modified: int | None) -> ByNetwork:
    network = load_predictor(path)
    classes = getattr(network.options, "classes", None)
    if "parse" not in network.gives or classes != len(PARTS):
        raise InputError(
            f"{path}: expected a network that tells the {len(PARTS)} parts of fitkit train-regressor parser, "
            f"got one that gives {', '.join(network.gives)}" + (f" with {classes} parts" if classes else "")
        )
    return ByNetwork(network.to(device).requires_grad_(False))


def head_mask(parts: np.ndarray) -> np.ndarray:
    """Where a parse [H, W] shows the head that a face model has, [H, W] bool."""
    return np.isin(parts, numbers(HEAD))


def _moved(mask: np.ndarray, points: np.ndarray, inwards: bool) -> np.ndarray:
    """With its border moved by RIM, but along the edge of the photo. points: [68, 2] px, NaN = not known."""
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    width = round(RIM * float(np.sqrt(np.prod(np.maximum(high - low, 1)))))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return (cv2.erode if inwards else cv2.dilate)(mask.astype(np.uint8), disk) > 0


def usable_pixels(
    views: Sequence[View], points: Landmarks, options: MaskOptions, device: str = "cpu", use: str = "source"
) -> Iterator[np.ndarray | None]:
    """Mask of each photo, one after the other, [H, W] bool, None = all of it counts.

    Args:
        points: of the heads, px of the photos; use: which of the two options says where masks come from,
            'source' or 'texture'. Borders are told to RIM: colours are taken from that much within the head,
            evidence from that much beyond it. A photo in which the parser sees nothing of the head counts as
            given.
    Raises:
        InputError: weights of the parser that cannot be used.
    """
    wanted = getattr(options, use)
    parser = load_parser(options.weights, device) if wanted == "auto" else None
    for view, marks, valid in zip(views, points.points, points.valid):
        given = None if wanted == "none" else view.mask
        if parser is None:
            yield given
            continue
        known = marks.double().cpu().masked_fill(~valid.cpu()[:, None], float("nan")).numpy()
        seen = head_mask(parse_photo(parser, view.image, known))
        seen = _moved(seen, known, inwards=use == "texture")
        both = seen if given is None else seen & given
        yield both if both.any() else given
