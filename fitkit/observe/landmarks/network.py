"""The network of the built-in landmark detector: heat maps for a first position, pooled features for the
rest.

Heat maps with a soft arg-max as in Sun et al., "Integral Human Pose Regression", ECCV 2018; the features
under each heat map give a correction, the logarithm of the standard deviation and the visibility of the
point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitkit.io.options import Length, Range
from fitkit.observe.landmarks.types import MIRRORED

NUM_POINTS = 68
NUM_OUTPUTS = NUM_POINTS + 17  # then jaw points 0-16 once more as fixed points of the skin
# Output i of a mirrored crop is output MIRRORED_OUTPUTS[i] of the crop.
MIRRORED_OUTPUTS = np.concatenate([MIRRORED, NUM_POINTS + MIRRORED[:17]])


Width = Annotated[int, Range(1, 4096)]  # channels


@dataclass(frozen=True)
class NetworkOptions:
    """size: side of the crop in px, a multiple of 32; widths: channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the
    crop; blocks: residual blocks at the last four; decoder: channels on the way back at 1/16, 1/8 and 1/4."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 128
    widths: Annotated[tuple[Width, ...], Length(5, 5)] = (16, 32, 64, 128, 184)
    blocks: Annotated[tuple[Annotated[int, Range(0, 64)], ...], Length(4, 4)] = (1, 1, 2, 1)
    decoder: Annotated[tuple[Width, ...], Length(3, 3)] = (128, 96, 64)


@dataclass(frozen=True)
class NetworkOutput:
    """points: [N, 85, 2] px of the crop: the 68 points with the jaw as visible outline, then the 17 jaw
    points as fixed points of the skin; log_sigma: [N, 85] logarithm of the standard deviation of each
    coordinate in px of the crop; visibility: [N, 85] logits that the point is seen and not hidden."""

    points: Tensor
    log_sigma: Tensor
    visibility: Tensor

    def on_skin(self) -> tuple[Tensor, Tensor]:
        """Points [N, 68, 2] and standard deviations [N, 68] in px, jaw points as fixed points of the skin:
        those are points of a face model."""
        points, sigma = (
            torch.cat([x[:, NUM_POINTS:], x[:, 17:NUM_POINTS]], 1) for x in (self.points, self.log_sigma)
        )
        return points.float(), sigma.float().exp()


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class LandmarkNetwork(nn.Module):
    """Crops of faces -> points with standard deviation and visibility."""

    def __init__(self, options: NetworkOptions = NetworkOptions()):
        super().__init__()
        self.options = options
        widths, decoder = options.widths, options.decoder
        self.stem = _conv(3, widths[0], stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, stride=2), *(_Residual(b) for _ in range(n)))
            for a, b, n in zip(widths, widths[1:], options.blocks)
        )
        inputs = (widths[-1], *decoder[:-1])
        self.lateral = nn.ModuleList(_conv(a, b, 1) for a, b in zip(widths[-2:0:-1], decoder))
        self.up = nn.ModuleList(_conv(a, b, 1) for a, b in zip(inputs, decoder))
        self.merge = nn.ModuleList(_conv(b, b) for b in decoder)
        self.heat = nn.Conv2d(decoder[-1], NUM_OUTPUTS, 1)
        self.detail = nn.Parameter(torch.zeros(NUM_OUTPUTS, 4, decoder[-1]))
        self.bias = nn.Parameter(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * NUM_OUTPUTS))

    def forward(self, crops: Tensor) -> NetworkOutput:
        """crops: [N, 3, size, size] sRGB in [0, 1]."""
        return self.locate(crops)[0]

    def locate(self, crops: Tensor) -> tuple[NetworkOutput, Tensor]:
        """As `forward`, and the deepest features [N, widths[-1], size / 32, size / 32]."""
        x = self.stem(crops.sub(0.5).mul(4.0))
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for skip, lateral, up, merge in zip(skips[-2::-1], self.lateral, self.up, self.merge):
            x = merge(F.interpolate(up(x), scale_factor=2, mode="nearest") + lateral(skip))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # positions need more digits than half precision has
            return self._locate(x.float()), skips[-1]

    def _locate(self, features: Tensor) -> NetworkOutput:
        """features: [N, C, H, W] -> points under the heat maps and what the features there say."""
        H, W = features.shape[-2:]
        heat = self.heat(features).flatten(2).softmax(-1)  # [N, 85, H W]
        stride = self.options.size / W
        rows, columns = torch.meshgrid(
            torch.arange(H, device=heat.device), torch.arange(W, device=heat.device), indexing="ij"
        )
        grid = torch.stack([columns, rows], -1).reshape(H * W, 2)
        pooled = heat @ features.flatten(2).transpose(1, 2)  # [N, 85, C]
        detail = torch.einsum("nlc,ldc->nld", pooled, self.detail) + self.bias
        points = heat @ ((grid + 0.5) * stride - 0.5) + detail[..., :2]
        return NetworkOutput(points, detail[..., 2].clamp(-3.0, 4.0), detail[..., 3])
