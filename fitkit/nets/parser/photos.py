"""Which part of a head each pixel of a photo shows, in the pixels of the photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch

from fitkit.nets.predictor import Predictor
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.face_parts import PARTS, UNKNOWN
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations

WEIGHTS = "parser.safetensors"  # of the network that comes with fitkit
FINEST = 512  # across a crop; its parts are not told more finely


class PhotoParser(Protocol):
    """crop: how heads are cut out for it."""

    crop: CropOptions

    def scores(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """image: [S, S, 3] uint8 sRGB; points: [68, 2] px of it, NaN = not known -> [C, S, S], the largest at
        the part that is seen; C = 17 are `face_parts.PARTS`, one more: nobody knows."""


class ByNetwork:
    """A trained network as parser of photos."""

    def __init__(self, network: Predictor):
        self.network, self.crop = network, network.crop

    @torch.inference_mode()
    def scores(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        device = next(self.network.parameters()).device
        images = torch.from_numpy(image).permute(2, 0, 1)[None, None].to(device).float() / 255
        valid = torch.ones(1, 1, dtype=torch.bool, device=device)
        return self.network(images, valid).parse[0].cpu().numpy()


def cut_out(image: np.ndarray, points: np.ndarray, crop: CropOptions) -> tuple[np.ndarray, np.ndarray]:
    """The head of a photo [H, W, 3] uint8, [S, S, 3] uint8, and its points [68, 2] px, moved along."""
    seen = _crop(image, points, crop)
    moved = (points - seen.offset[0].double().numpy()) * float(seen.scale[0])
    return _picture(seen), moved


def _crop(image: np.ndarray, points: np.ndarray, crop: CropOptions) -> Observations:
    marks = torch.from_numpy(np.asarray(points)).float()[None]
    valid = torch.isfinite(marks).all(-1)
    ones = torch.ones(valid.shape)
    return crop_views([image], [None], Landmarks(torch.nan_to_num(marks), ones, valid, ones), crop)


def _picture(seen: Observations) -> np.ndarray:
    return (seen.images[0].permute(1, 2, 0) * 255).round().byte().numpy()


@dataclass(frozen=True)
class Blocks:
    """What is told of a photo in square blocks of its pixels.

    values: [h, w]; side: of a block, px; corner: (x, y) px of the photo where the first one begins; size: (W,
    H) px of the photo.
    """

    values: np.ndarray
    side: int
    corner: tuple[int, int]
    size: tuple[int, int]

    def places(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] px of the photo in blocks, (0, 0) = the middle of the first one."""
        return (points - self.corner + 0.5) / self.side - 0.5

    def in_photo(self, beyond: int = 0) -> np.ndarray:
        """The values at the pixels of the photo, [H, W]; `beyond` where there are no blocks."""
        width, height = self.size
        out = np.full((height, width), beyond, self.values.dtype)
        inside = out[self.corner[1] :, self.corner[0] :]
        spread = self.values.repeat(self.side, 0).repeat(self.side, 1)[: inside.shape[0], : inside.shape[1]]
        inside[: spread.shape[0], : spread.shape[1]] = spread
        return out


def parse_photo(parser: PhotoParser, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Numbers of `face_parts.PARTS` [H, W] uint8 of a photo [H, W, 3] uint8, UNKNOWN where the parser does
    not look or does not know; points: [68, 2] px, NaN = not known, at least two known."""
    return parse_blocks(parser, image, points).in_photo(UNKNOWN)


def parse_blocks(parser: PhotoParser, image: np.ndarray, points: np.ndarray) -> Blocks:
    """`parse_photo` where the parser looks; large heads in blocks of pixels, at least FINEST across."""
    seen = _crop(image, points, parser.crop)
    scale, offset = float(seen.scale[0]), seen.offset[0].double().numpy()
    scores = parser.scores(_picture(seen), (points - offset) * scale)
    H, W = image.shape[:2]
    side = scores.shape[-1] / scale
    x0, y0 = np.clip(np.floor(offset).astype(int), 0, (W, H))
    x1, y1 = np.clip(np.ceil(offset + side).astype(int), (x0, y0), (W, H))
    step = max(1, int(side / FINEST))
    x, y = (
        ((np.arange(low, high, step) + (step - 1) / 2 - start) * scale).astype(np.float32)
        for low, high, start in ((x0, x1, offset[0]), (y0, y1, offset[1]))
    )
    columns, rows = np.meshgrid(x, y)
    best = np.full(columns.shape, -np.inf, np.float32)
    part = np.zeros(columns.shape, np.uint8)
    for number in np.unique(scores.argmax(0)):  # between pixels scores are interpolated, not numbers
        value = cv2.remap(scores[number], columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part[value > best] = number if number < len(PARTS) else UNKNOWN
        np.maximum(best, value, out=best)
    return Blocks(part, step, (int(x0), int(y0)), (W, H))
