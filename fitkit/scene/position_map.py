"""What position-map networks estimate: where each point of the texture map lies in the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PositionMap:
    """Position maps of B frames.

    points: [B, 3, H, W] px of the crop (x, y, z), as `Labels.crop_points`, over the face model's texture map.
    """

    points: Tensor
