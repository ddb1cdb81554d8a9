"""Which part of a head each pixel of a picture shows: a light network of two paths.

After BiSeNet (Yu et al., ECCV 2018): a context path that sees much and a spatial path that sees sharply,
joined by depthwise-separable convolutions. Different: the context path is the encoder of the landmark
detector, which knows faces, at half the size of the picture; the paths are joined level by level; no
auxiliary losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.io.options import Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of
from fitkit.observe.crop import CropOptions
from fitkit.observe.face_parts import PARTS, TEN
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions

Width = Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class ParserOptions:
    """size: side of the pictures, px, a multiple of 64; margin, up: of the crop, see CropOptions: hair and
    neck are to be seen; close, close_up: the same of a second crop of the same photo, for the small parts of
    the face, close 0: none; spatial: channels of the spatial path; joined: channels where the two paths meet;
    classes: 17 = `face_parts.PARTS`, 10 = DF-MVR's, `face_parts.PARSE`."""

    size: Annotated[int, Range(64, 1024, multiple=64)] = 256
    margin: Annotated[float, Range(1.0, 10.0)] = 2.2
    up: Annotated[float, Range(-2.0, 2.0)] = 0.18
    close: Annotated[float, Range(0.0, 10.0)] = 1.3
    close_up: Annotated[float, Range(-2.0, 2.0)] = 0.06
    spatial: Width = 24
    joined: Width = 64
    classes: Annotated[int, Range(1, 255)] = len(PARTS)

    def __post_init__(self):
        check_options(self, "net parser")
        if self.classes not in (len(PARTS), int(TEN.max()) + 1):
            raise InputError(f"net parser: classes: expected {len(PARTS)} or 10, got {self.classes}")


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        *_convolution(inputs, outputs),
    )


class _Refined(nn.Module):
    """A feature map whose channels are weighed by their mean over the picture (attention refinement)."""

    def __init__(self, width: int):
        super().__init__()
        self.weigh = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3), keepdim=True)).sigmoid()


class Parser(Predictor):
    """See README.md beside this file. Takes photos in any order and number, each for itself."""

    gives = ("parse",)
    camera_kind = "perspective"
    parse_parts = ("context", "rest")

    def __init__(
        self,
        model: FaceModel | None = None,
        views: tuple[ViewSlot, ...] = (),
        options: ParserOptions = ParserOptions(),
    ):
        super().__init__()
        if views:
            raise InputError("net parser: takes any photos in any order; expected no named 'views'")
        o = self.options = options
        self.views, self.size = (), o.size
        self.crop = CropOptions(o.margin, o.up, o.size, o.size)
        self.closer = CropOptions(o.close, o.close_up, o.size, o.size) if o.close > 0 else None
        encoder = LandmarkNetwork(NetworkOptions(size=o.size // 2))
        widths = encoder.options.widths
        self.stem, self.down = encoder.stem, encoder.down
        self.refine = _Refined(widths[-1])
        self.lateral = nn.ModuleList(_convolution(w, o.joined) for w in widths[::-1])
        self.merge = nn.ModuleList(_separable(o.joined, o.joined) for _ in widths[1:])
        self.fine = _convolution(3, o.spatial, 3, 2)
        self.spatial = nn.Sequential(
            _separable(o.spatial, 2 * o.spatial, 2), _separable(2 * o.spatial, o.joined)
        )
        self.join = _separable(o.joined, o.joined)
        self.narrow = _convolution(o.joined, o.spatial)
        self.last = _separable(2 * o.spatial, 2 * o.spatial)
        self.classes = nn.Conv2d(2 * o.spatial, o.classes, 1)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        logits = F.interpolate(
            self.logits(frames).float(), size=frames.shape[-2:], mode="bilinear", align_corners=False
        )
        return Prediction(parse=logits, subject=subject)

    def logits(self, frames: Tensor) -> Tensor:
        """frames: [B, 3, size, size] sRGB in [0, 1] -> [B, classes, size / 2, size / 2]."""
        frames = frames.sub(0.5).mul(4.0).contiguous(memory_format=torch.channels_last)
        x = self.stem(F.avg_pool2d(frames, 2))
        levels = [x]
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        levels[-1] = self.refine(levels[-1])
        x = self.lateral[0](levels[-1])
        for level, lateral, merge in zip(levels[-2::-1], self.lateral[1:], self.merge):
            x = merge(_twice(x) + lateral(level))
        sharp = self.fine(frames)
        x = self.join(x + self.spatial(sharp))
        return self.classes(self.last(torch.cat([_twice(self.narrow(x)), sharp], 1)))

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """Start the context path from a landmark network; `where` names its file.

        Raises:
            InputError: one with other layers.
        """
        own = LandmarkNetwork(NetworkOptions(size=self.options.size // 2)).options
        if (network.options.widths, network.options.blocks) != (own.widths, own.blocks):
            raise InputError(
                f"{where}: expected a landmark network with widths {own.widths} and blocks {own.blocks}, got "
                f"{network.options.widths} and {network.options.blocks}"
            )
        self.stem.load_state_dict(network.stem.state_dict())
        self.down.load_state_dict(network.down.state_dict())

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        return {
            "context": (self.stem, self.down),
            "rest": (
                self.refine,
                self.lateral,
                self.merge,
                self.fine,
                self.spatial,
                self.join,
                self.narrow,
                self.last,
                self.classes,
            ),
        }


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
