"""Fusion of the views: a U-Net with an encoder for each of them and one decoder, whose skip connections pass
through attention gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 64  # channels of the first level, width 1


def scaled(channels: int, width: float) -> int:
    """Channels times width, a multiple of 8."""
    return max(8, 8 * round(channels * width / 8))


def normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        normed(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
        normed(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)),
    )


class Encoder(nn.Module):
    """Pictures -> a feature map for each level, each half the size of the one before."""

    def __init__(self, inputs: int, channels: list[int]):
        super().__init__()
        self.levels = nn.ModuleList(double_convolution(i, o) for i, o in zip([inputs, *channels], channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.levels[0](x)]
        for level in self.levels[1:]:
            found.append(level(nn.functional.max_pool2d(found[-1], 2)))
        return found


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip connection by what the decoder has found there.

    Source: Oktay et al., "Attention U-Net", MIDL 2018.
    """

    def __init__(self, gate: int, skip: int):
        super().__init__()
        inner = max(4, skip // 2)
        self.gate, self.skip = (
            nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner))
            for channels in (gate, skip)
        )
        self.weigh = nn.Sequential(nn.Conv2d(inner, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        return skip * self.weigh(torch.relu(self.gate(gate) + self.skip(skip)))


class TriUNet(nn.Module):
    """Several pictures of one person [S, streams, inputs, H, W] -> one feature map [S, outputs, H, W].

    streams: encoders, none of whose weights are shared; three in the paper. depth: levels, each with twice
    the channels of the one before. last: end with two convolutions; without, as in the published code, the
    output is the decoder's map beside the gated ones of the first level. H and W are multiples of
    2^(depth - 1).
    """

    def __init__(self, streams: int, inputs: int, width: float, depth: int, last: bool):
        super().__init__()
        channels = [scaled(BASE * 2**level, width) for level in range(depth)]
        self.encoders = nn.ModuleList(Encoder(inputs, channels) for _ in range(streams))
        self.up, self.gates, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = streams * channels[-1]
        for level in range(depth - 2, -1, -1):
            mine = channels[level]
            self.up.append(nn.ConvTranspose2d(below, mine, 2, stride=2))
            self.gates.append(nn.ModuleList(AttentionGate(mine, mine) for _ in range(streams)))
            joined = (1 + streams) * mine
            if level or last:
                self.merge.append(double_convolution(joined, mine))
            below = mine if level or last else joined
        self.outputs = below

    def forward(self, pictures: Tensor) -> Tensor:
        seen = [encoder(x) for encoder, x in zip(self.encoders, pictures.unbind(1))]
        x = torch.cat([levels[-1] for levels in seen], 1)
        for number, (up, gates) in enumerate(zip(self.up, self.gates)):
            x = up(x)
            skips = (levels[-2 - number] for levels in seen)
            x = torch.cat([x, *(gate(x, skip) for gate, skip in zip(gates, skips))], 1)
            if number < len(self.merge):
                x = self.merge[number](x)
        return x


class Stacked(nn.Module):
    """The views as channels of one picture through a U-Net with one encoder, or, with depth 1, through two
    convolutions alone; what `TriUNet` is compared with."""

    def __init__(self, streams: int, inputs: int, width: float, depth: int, last: bool):
        super().__init__()
        if depth == 1:
            self.outputs = scaled(BASE, width) * (1 if last else 1 + streams)
            self.fuse = double_convolution(streams * inputs, self.outputs)
        else:
            self.fuse = TriUNet(1, streams * inputs, width, depth, last)
            self.outputs = self.fuse.outputs

    def forward(self, pictures: Tensor) -> Tensor:
        stacked = pictures.flatten(1, 2)
        return self.fuse(stacked[:, None] if isinstance(self.fuse, TriUNet) else stacked)
