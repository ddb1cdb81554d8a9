"""A U-Net that gives a map as large as the picture, after Sela et al., ICCV 2017."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512)  # of the first levels, width 1; those below have as many as the last of these
SLOPE = 0.2  # of the leaky ReLU


def scaled(channels: int, width: float) -> int:
    """The channels of a layer at this width, a multiple of 4."""
    return max(4, 4 * round(channels * width / 4))


class UNet(nn.Module):
    """Pictures [B, inputs, size, size] in 0..1 -> one channel before its last function, [B, size, size].

    Each of the `levels` ways down is a 4 x 4 convolution with stride 2, each way up its transpose beside the
    map of the same size; instance norm but in the first and the deepest level. Sizes that cannot be halved as
    often are padded at right and below.

    Source: Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017, whose
    generator Sela et al. use; Shu et al. name them and print no layers.
    """

    def __init__(self, width: float, levels: int, bias: float, inputs: int = 3):
        """bias: what the output starts near, before its last function; inputs: channels of the pictures."""
        super().__init__()
        channels = [scaled(CHANNELS[min(k, len(CHANNELS) - 1)], width) for k in range(levels)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k, (before, outputs) in enumerate(zip([inputs, *channels], channels)):
            convolution = nn.Conv2d(before, outputs, 4, 2, 1)
            norm = [nn.InstanceNorm2d(outputs, affine=True)] if 0 < k < levels - 1 else []
            self.down.append(nn.Sequential(convolution, *norm, nn.LeakyReLU(SLOPE)))
        for k in range(levels - 1, 0, -1):
            before = channels[k] * (1 if k == levels - 1 else 2)
            self.up.append(
                nn.Sequential(
                    nn.ConvTranspose2d(before, channels[k - 1], 4, 2, 1),
                    nn.InstanceNorm2d(channels[k - 1], affine=True),
                    nn.LeakyReLU(SLOPE),
                )
            )
        self.last = nn.ConvTranspose2d(2 * channels[0], channels[0], 4, 2, 1)
        self.out = nn.Conv2d(channels[0] + inputs, 1, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-2)
        nn.init.constant_(self.out.bias, bias)
        self.step = 2**levels

    def forward(self, pictures: Tensor) -> Tensor:
        size = pictures.shape[-1]
        more = -size % self.step
        # By its last row and column: a border of another colour would be an edge.
        seen = F.pad(pictures, (0, more, 0, more), mode="replicate") if more else pictures
        maps, x = [], 2 * seen - 1
        whole = x
        for layer in self.down:
            x = layer(x)
            maps.append(x)
        for layer, beside in zip(self.up, reversed(maps[:-1])):
            x = torch.cat([layer(x), beside], 1)
        x = F.leaky_relu(self.last(x), SLOPE)
        return self.out(torch.cat([x, whole], 1))[:, 0, :size, :size]
