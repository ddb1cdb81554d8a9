"""Layers of PRNet: an encoder of residual blocks and a decoder of a map over the texture."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 256, 512)  # of the encoder, width 1: full size, then each half of the one before
REPEATS = {512: 1, 256: 3, 128: 3, 64: 3, 32: 2, 16: 2}  # layers of the decoder at each of its sizes
REDUCTION = 2 ** (len(CHANNELS) - 1)  # sides of the picture over those of the encoder's features


def scaled(channels: int, width: float) -> int:
    """The channels of a layer at this width, a multiple of 8."""
    return max(8, 8 * round(channels * width / 8))


class Block(nn.Module):
    """1 x 1 to half the channels, 4 x 4, 1 x 1 back; batch norm and ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half = outputs // 2
        # Every second pixel first: on the CPU, with channels last, 1 x 1 convolutions with a stride write
        # beyond their memory in the backward pass (seen with torch 2.14).
        less = [nn.MaxPool2d(1, stride)] if stride > 1 else []
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*less, nn.Conv2d(inputs, outputs, 1, bias=False))
        )
        self.layers = nn.Sequential(
            *normed(nn.Conv2d(inputs, half, 1, bias=False), half),
            *normed(conv4(half, half, stride), half),
            nn.Conv2d(half, outputs, 1, bias=False),
        )
        self.after = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.layers(x))


def encoder(width: float) -> tuple[nn.Sequential, int]:
    """Pictures [B, 3, size, size] -> features [B, C, size / 32, size / 32]; and C."""
    channels = [scaled(c, width) for c in CHANNELS]
    layers: list[nn.Module] = [*normed(conv4(3, channels[0], 1), channels[0])]
    for inputs, outputs in pairwise(channels):
        layers += [Block(inputs, outputs, 2), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers), channels[-1]


def decoder(width: float, inputs: int, doublings: int, last: int) -> nn.Sequential:
    """Features [B, inputs, h, h] -> map [B, 3, 2^doublings h, ...] before its sigmoid; last: how many layers
    of three channels it ends with."""
    layers: list[nn.Module] = []
    for number, (channels, repeats) in enumerate(REPEATS.items()):
        if number > doublings:
            break
        outputs = scaled(channels, width)
        for layer in range(repeats):
            up = number > 0 and layer == 0
            made = (
                nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False) if up else conv4(inputs, outputs, 1)
            )
            layers += normed(made, outputs)
            inputs = outputs
    for _ in range(last - 1):
        layers += normed(conv4(inputs, 3, 1), 3)
        inputs = 3
    return nn.Sequential(*layers, conv4(inputs, 3, 1, bias=True))


def conv4(inputs: int, outputs: int, stride: int, bias: bool = False) -> nn.Module:
    """4 x 4 convolution that keeps the size, or halves it."""
    if stride == 2:
        return nn.Conv2d(inputs, outputs, 4, 2, 1, bias=bias)
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(inputs, outputs, 4, bias=bias))


def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def start_from_random(module: nn.Module) -> None:
    """Weights that keep the size of what passes through."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def logit(share: Tensor) -> Tensor:
    """The reverse of the sigmoid, with shares beyond [0.02, 0.98] taken as these."""
    return torch.logit(share, eps=0.02)
