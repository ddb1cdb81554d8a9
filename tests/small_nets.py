"""Small real networks, one for each kind of output beside a scene state: a few convolutions that can be
trained in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from fitkit.energies.masks import PARSE
from fitkit.io.options import Range, check_options
from fitkit.nets import NETS, NetKind
from fitkit.nets.predictor import Prediction, Predictor, frames_of
from fitkit.observe.crop import CropOptions
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import DepthState
from fitkit.scene.position_map import PositionMap


@dataclass(frozen=True)
class SmallOptions:
    """size: side of the pictures, px; width: channels."""

    size: Annotated[int, Range(8, 512)] = 32
    width: Annotated[int, Range(1, 256)] = 12

    def __post_init__(self):
        check_options(self, "small net")


class SmallNet(Predictor):
    """Two convolutions that halve the picture, what they see at its full size, and `outputs` channels from
    both."""

    outputs: int
    named = False

    def __init__(self, model=None, views=(), options: SmallOptions = SmallOptions()):
        super().__init__()
        self.options, self.views, self.size = options, (), options.size
        self.crop = CropOptions(1.5, 0.0, options.size, options.size)
        w = options.width
        self.down = nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            nn.Conv2d(w, w, 3, 2, 1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
        )
        # Where a pixel lies says much about a face that is always cut in the same way.
        self.head = nn.Sequential(nn.Conv2d(w + 5, w, 3, 1, 1), nn.ReLU(), nn.Conv2d(w, self.outputs, 1))

    def maps(self, frames: Tensor) -> Tensor:
        """[B, outputs, size, size]."""
        up = nn.functional.interpolate(self.down(frames), size=frames.shape[-2:], mode="bilinear")
        line = torch.linspace(-1, 1, self.size, device=frames.device)
        place = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(frames.shape[0], -1, -1, -1)
        return self.head(torch.cat([up, frames, place], 1)).float()

    def parts(self):
        return {"down": (self.down,), "head": (self.head,)}


class SmallDepth(SmallNet):
    """Depth around 600 mm and how far the colours can be trusted."""

    gives = ("depth",)
    outputs = 2
    camera_kind = "perspective"

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        depth, trust = self.maps(frames).unbind(1)
        focal = torch.full_like(depth[:, 0, 0], 1.5 * self.size)
        middle = torch.full_like(depth[:, 0, :2], (self.size - 1) / 2)
        camera = Camera(focal, middle, torch.ones_like(focal), self.camera_kind)
        return Prediction(depth=DepthState(600 + 100 * depth, None, camera, subject, trust.sigmoid()))


class SmallParser(SmallNet):
    """Logits of the parts of a face."""

    gives = ("parse",)
    outputs = len(PARSE)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        return Prediction(parse=self.maps(frames), subject=subject)


class SmallPositions(SmallNet):
    """A position map of 16 x 16 texels, px of the picture; each texel sees the whole picture."""

    gives = ("position_map",)
    outputs = 1

    def __init__(self, model=None, views=(), options: SmallOptions = SmallOptions()):
        super().__init__(model, views, options)
        self.head = nn.Linear(options.width * (options.size // 4) ** 2, 3 * 16 * 16)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        middle = frames.new_tensor([0.5, 0.5, 0.0])[:, None, None] * (self.size - 1)
        found = self.head(self.down(frames).flatten(1)).float().unflatten(1, (3, 16, 16))
        return Prediction(position_map=PositionMap(middle + self.size / 4 * found), subject=subject)


KINDS = {"small_depth": SmallDepth, "small_parser": SmallParser, "small_positions": SmallPositions}


def registered(monkeypatch) -> None:
    """Make the networks known by name for one test."""
    for name, kind in KINDS.items():
        monkeypatch.setitem(NETS, name, lambda kind=kind: NetKind(SmallOptions, kind, named_views=False))
