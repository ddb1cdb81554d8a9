"""RedNet: the layout of ResNet with involution in the place of its 3 x 3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitkit.nets.dfmvr.tri_unet import normed, scaled

GROUP = 16  # channels that share a kernel
REDUCTION = 4  # channels over those of the kernels' generator
STEM = (32, 64)
STAGES = (64, 128, 256, 512)  # channels inside the blocks of each stage
SQUEEZED = 64  # features of each place of the last map
EXPANSION = 4  # a block's channels over those inside of it


class Involution(nn.Module):
    """A convolution whose kernel is another one at each pixel, made from what is seen there; channels of one
    group share it. [B, C, H, W] -> [B, C, H / stride, W / stride].

    Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021,
    eq. 4-6. With a stride the kernels are made from the mean of the pixels that it passes over.
    """

    def __init__(self, channels: int, kernel: int = 7, stride: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.groups = channels // (GROUP if channels % GROUP == 0 else 8)
        inner = max(4, channels // REDUCTION)
        self.reduce = normed(nn.Conv2d(channels, inner, 1, bias=False))
        self.span = nn.Conv2d(inner, kernel**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        k, stride = self.kernel, self.stride
        kernels = self.span(self.reduce(x if stride == 1 else F.avg_pool2d(x, stride)))
        height, width = kernels.shape[-2:]
        kernels = kernels.unflatten(1, (self.groups, 1, k * k))
        patches = F.unfold(x, k, padding=k // 2, stride=stride)
        patches = patches.unflatten(1, (self.groups, x.shape[1] // self.groups, k * k))
        return (patches.unflatten(-1, (height, width)) * kernels).sum(3).flatten(1, 2)


def _spatial(kind: str, channels: int, stride: int) -> nn.Module:
    if kind == "rednet":
        return Involution(channels, 7, stride)
    return nn.Conv2d(channels, channels, 3, stride, 1, bias=False)


class Bottleneck(nn.Module):
    def __init__(self, kind: str, inputs: int, inner: int, stride: int):
        super().__init__()
        outputs = EXPANSION * inner
        self.path = nn.Sequential(
            normed(nn.Conv2d(inputs, inner, 1, bias=False)),
            _spatial(kind, inner, stride),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.beside = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.beside(x))


class Backbone(nn.Module):
    """Feature map [S, inputs, H, W] -> features [S, outputs]; H and W are multiples of 32.

    kind: 'rednet', or 'resnet' with 3 x 3 convolutions in the same places; blocks: of each of the four
    stages, 3, 4, 6 and 3 in RedNet-50; grid: H / 32, to end with SQUEEZED features of each place of the last
    map beside the mean over all places, or 0, for the mean alone, which hardly tells where a face is.
    """

    def __init__(self, kind: str, inputs: int, width: float, blocks: Sequence[int], grid: int = 0):
        super().__init__()
        first, second = (scaled(channels, width) for channels in STEM)
        between = Involution(first, 3) if kind == "rednet" else nn.Conv2d(first, first, 3, 1, 1, bias=False)
        layers: list[nn.Module] = [
            normed(nn.Conv2d(inputs, first, 3, 2, 1, bias=False)),
            between,
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            normed(nn.Conv2d(first, second, 3, 1, 1, bias=False)),
            nn.MaxPool2d(3, 2, 1),
        ]
        self.outputs = second
        for stage, (channels, count) in enumerate(zip(STAGES, blocks)):
            inner = scaled(channels, width)
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(Bottleneck(kind, self.outputs, inner, stride))
                self.outputs = EXPANSION * inner
        self.layers = nn.Sequential(*layers)
        self.squeeze = normed(nn.Conv2d(self.outputs, SQUEEZED, 1, bias=False)) if grid else None
        self.outputs += SQUEEZED * grid**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Bottleneck):
                # Blocks begin as what lies beside their path (Goyal et al. 2017): 16 involutions one after
                # the other blow up gradients a thousand times.
                nn.init.zeros_(module.path[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layers(x)
        whole = found.mean((2, 3))
        return whole if self.squeeze is None else torch.cat([self.squeeze(found).flatten(1), whole], 1)
