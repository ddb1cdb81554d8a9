"""Which part of a head each pixel of a photo shows, in the pixels of the photo."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fitkit.nets.predictor import Predictor
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.face_parts import PARTS, UNKNOWN
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations

WEIGHTS = "parser.safetensors"  # of the network that comes with fitkit
FINEST = 512  # across the first crop; its parts are not told more finely
JOIN = 0.1  # of the side of a closer crop, from its border to where it alone counts


class PhotoParser(Protocol):
    """crops: how heads are cut out for it, each closer than the one before, to one size."""

    crops: tuple[CropOptions, ...]

    def scores(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        """images: [N, S, S, 3] uint8 sRGB, a head cut as the crops say; points: [N, 68, 2] px of them, NaN =
        not known -> [N, C, S, S], the largest at the part that is seen; C = 17 are `face_parts.PARTS`, one
        more: nobody knows."""


class ByNetwork:
    """A trained network as parser of photos. It keeps a copy whose normalizations are folded into the
    convolutions, which takes two thirds of the time."""

    def __init__(self, network: Predictor):
        self.network = _folded(network)
        self.crops = (network.crop, *([] if network.closer is None else [network.closer]))

    @torch.inference_mode()
    def scores(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        device = next(self.network.parameters()).device
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2)[None].to(device).float() / 255
        valid = torch.ones(pictures.shape[:2], dtype=torch.bool, device=device)
        return self.network(pictures, valid).parse.cpu().numpy()


def _folded(network: Predictor) -> Predictor:
    network = copy.deepcopy(network).eval()
    for layers in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(layers) - 1):
            first, second = layers[i], layers[i + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                layers[i], layers[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


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
    """`parse_photo` where the parser looks; large heads in blocks of pixels, at least FINEST across.

    Where a closer crop has something to say, its scores take the place of those before, more and more from
    its border inwards.
    """
    seen = [_crop(image, points, crop) for crop in parser.crops]
    places = [(float(s.scale[0]), s.offset[0].double().numpy()) for s in seen]
    scores = parser.scores(
        np.stack([_picture(s) for s in seen]), np.stack([(points - off) * by for by, off in places])
    )
    scale, offset = places[0]
    H, W = image.shape[:2]
    side = scores.shape[-1] / scale
    x0, y0 = np.clip(np.floor(offset).astype(int), 0, (W, H))
    x1, y1 = np.clip(np.ceil(offset + side).astype(int), (x0, y0), (W, H))
    step = max(1, int(side / FINEST))
    x, y = (np.arange(low, high, step) + (step - 1) / 2 for low, high in ((x0, x1), (y0, y1)))
    part = _likeliest(scores, [_in_crop(x, y, by, off) for by, off in places])
    return Blocks(part, step, (int(x0), int(y0)), (W, H))


def _likeliest(scores: np.ndarray, looks: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """The part with the largest score at each block, [h, w] uint8.

    Scores are interpolated, not numbers; where all pixels around agree, that is the same and left out.

    Args:
        scores: [N, C, S, S] of N crops; looks: columns [w] and rows [h] of the blocks in px of each.
    """
    size, (everywhere, *closer) = scores.shape[-1], looks
    told = scores.argmax(1).astype(np.uint8)
    part, sure = (_nearest(known, *everywhere) for known in (told[0], _even(told[0])))
    weights = np.zeros((len(closer), *part.shape), np.float32)
    for (columns, rows), own, weight in zip(closer, told[1:], weights):
        within = [np.flatnonzero((p >= -0.5) & (p < size - 0.5)) for p in (rows, columns)]
        inside, columns, rows = np.ix_(*within), columns[within[1]], rows[within[0]]
        weight[inside] = _weight(columns, rows, size)
        alone, mine = weight[inside] >= 1, _nearest(own, columns, rows)
        agree = alone | (sure[inside] & (part[inside] == mine))
        sure[inside] = agree & _nearest(_even(own), columns, rows)
        part[inside] = np.where(alone, mine, part[inside])
    unsure = ~sure
    row, column = np.nonzero(unsure)
    value = _between(scores[0], everywhere[0][column], everywhere[1][row])
    for (columns, rows), own, weight in zip(closer, scores[1:], weights):
        value += weight[unsure] * (_between(own, columns[column], rows[row]) - value)
    part[unsure] = value.argmax(0)
    part[part >= len(PARTS)] = UNKNOWN
    return part


def _in_crop(x: np.ndarray, y: np.ndarray, scale: float, offset: np.ndarray) -> tuple[np.ndarray, ...]:
    """Columns x and rows y, px of the photo, in px of a crop."""
    return tuple(((p - start) * scale).astype(np.float32) for p, start in zip((x, y), offset))


def _weight(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """How much a closer crop of `size` px counts at its columns x [w] and rows y [h] px, [h, w]."""
    x, y = (np.minimum(p, size - 1 - p) + 0.5 for p in (x, y))  # to its border
    return np.minimum(np.minimum(x, y[:, None]) / (JOIN * size), 1)


def _nearest(told: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What is told [S, S] at the pixels nearest to columns x [w] and rows y [h], [h, w]."""
    x, y = (np.rint(p).astype(np.int64).clip(0, len(told) - 1) for p in (x, y))
    return told[np.ix_(y, x)]


def _even(told: np.ndarray) -> np.ndarray:
    """Where all nine pixels around say the same: whatever is interpolated from some of them says it, too."""
    nine = np.ones((3, 3), np.uint8)
    return cv2.erode(told, nine) == cv2.dilate(told, nine)


def _between(scores: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scores [C, S, S] at N places (x, y) px, [C, N], beyond the pixels those of the nearest ones."""
    places = torch.from_numpy(np.stack([x, y], -1) * (2 / (scores.shape[-1] - 1)) - 1)[None, None]
    values = torch.from_numpy(scores)[None]
    return F.grid_sample(values, places, padding_mode="border", align_corners=True)[0, :, 0].numpy()
