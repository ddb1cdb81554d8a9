"""Which pixels of a photo show the head that a face model has, by a face parser: no hair, glasses, hands,
clothes or background."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch

from fitkit.errors import DegenerateInputError, InputError
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.resources import asset_path
from fitkit.io.subject import View
from fitkit.models.face_model import FaceModel
from fitkit.nets import load_predictor
from fitkit.nets.parser.by_colors import ByColors
from fitkit.nets.parser.photos import WEIGHTS, Blocks, ByNetwork, PhotoParser, parse_blocks
from fitkit.observe.face_parts import HEAD, PARTS, numbers
from fitkit.observe.landmarks.types import Landmarks

COLORS = "colors"  # in the place of weights: without a network
RIM = 0.015  # of the face size: borders are told no better
INNER = slice(17, 68)  # of the 68: from the brows to the lips
LEAST_SHARE = 0.3
ENOUGH = 8  # landmarks to place the mean face by


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
    return ByNetwork(network.to(device))


def head_mask(parts: np.ndarray) -> np.ndarray:
    """Where a parse [H, W] shows the head that a face model has, [H, W] bool."""
    return np.isin(parts, numbers(HEAD))


@dataclass(frozen=True)
class HeadMask:
    """What of a photo a parser takes for the head.

    head: bool; rim: blocks by which its borders may be off, RIM of the face size; share: of the pixels of the
    inner face, between the landmarks from the brows to the lips, that it has.
    """

    head: Blocks
    rim: int
    share: float

    @property
    def usable(self) -> bool:
        """Whether there is enough of the face in it to be believed; something in front hides less."""
        return self.share >= LEAST_SHARE

    def pixels(self, inwards: bool) -> np.ndarray:
        """It at the pixels of the photo, [H, W] bool, its border moved by the rim: inwards for colours, which
        must not be those of something else; outwards for evidence, which needs the borders. The edges of the
        photo stay."""
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * self.rim + 1, 2 * self.rim + 1))
        values = self.head.values.astype(np.uint8)
        moved = (cv2.erode if inwards else cv2.dilate)(values, disk) if values.size else values
        return replace(self.head, values=moved > 0).in_photo()


def find_heads(
    views: Sequence[View], points: Landmarks, model: FaceModel, weights: str = "", device: str = "cpu"
) -> Iterator[HeadMask]:
    """The head in each photo, one after the other.

    Args:
        points: of the heads, px of the photos; where some are not known, those of the mean face of `model` in
            the pose of the others say where to look; weights: see `load_parser`.
    Raises:
        InputError: weights of the parser that cannot be used.
    """
    parser = load_parser(weights, device)
    for view, marks in zip(views, _completed(points, model)):
        parts = parse_blocks(parser, view.image, marks)
        head = replace(parts, values=head_mask(parts.values))
        size = float(np.sqrt(np.prod(np.maximum(np.ptp(marks[np.isfinite(marks).all(1)], 0), 1))))
        yield HeadMask(head, round(RIM * size / head.side), _share(head, marks[INNER]))


def usable_pixels(view: View, head: HeadMask | None, inwards: bool) -> np.ndarray | None:
    """The pixels of a photo that count, [H, W] bool, None = all of it: those of its mask, if it has one, and
    of the head, unless that cannot be believed or nothing would be left. inwards: see `HeadMask`."""
    given = view.mask
    if head is None or not head.usable:
        return given
    seen = head.pixels(inwards)
    both = seen if given is None else seen & given
    return both if both.any() else given


def _share(head: Blocks, inner: np.ndarray) -> float:
    """Of the blocks within the hull of points [N, 2] px, NaN = not known, those of the head; 0 without
    any."""
    known, face = inner[np.isfinite(inner).all(1)], np.zeros(head.values.shape, np.uint8)
    if len(known) >= 3 and face.size:
        cv2.fillConvexPoly(face, cv2.convexHull(np.round(head.places(known)).astype(np.int32)), 1)
    return float(head.values[face > 0].mean()) if face.any() else 0.0


def _completed(points: Landmarks, model: FaceModel) -> Iterator[np.ndarray]:
    """The points of each view, [68, 2] px, those that are not known where the model's mean face has them in
    the pose of the others; NaN where neither knows them."""
    basis = model.landmark_basis.mean.detach().double().cpu()
    present = model.landmarks.present.cpu()
    for marks, valid in zip(points.points.double().cpu(), points.valid.cpu()):
        out = marks.masked_fill(~valid[:, None], torch.nan)
        both = valid & present
        if bool((~valid & present).any()) and int(both.sum()) >= ENOUGH:
            try:
                scale, rotation, shift = weak_perspective_pose(
                    basis[None], torch.nan_to_num(out)[None], both[None].double()
                )
            except DegenerateInputError:
                yield out.numpy()
                continue
            mean = scale[0] * (basis @ rotation[0, :2].T) + shift[0]
            out = torch.where((~valid & present)[:, None], mean, out)
        yield out.numpy()
