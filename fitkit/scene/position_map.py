"""What position-map networks estimate: where each point of the texture map lies in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PositionMap:
    """Position maps of B frames.

    points: [B, 3, H, W] px of the crop (x, y, z), as `Labels.crop_points`, over the face model's texture map.
    places: [68, 2] px (x, y) of the map where the 68 landmarks are; None: as the texture coordinates say.
    Networks that give the landmarks alone, [B, 3, 1, 68], have them.
    """

    points: Tensor
    places: Tensor | None = None

    def select(self, views: Sequence[int] | Tensor) -> PositionMap:
        """Those of the frames `views`, in this order."""
        return PositionMap(self.points[views], self.places)
