"""The landmark object and the detector interface."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Landmarks:
    """68 iBUG points per view.

    points: [B, 68, 2] px, pixel (0, 0) is the centre of the top-left pixel; sigma: [B, 68] px standard deviation,
    NaN where the source states none; valid: [B, 68] bool; confidence: [B, 68] in [0, 1];
    jaw: what points 0-16 are: 'outline' (visible silhouette), 'surface' (fixed skin points, hidden ones included)
    or 'auto' (not known).
    """

    points: Tensor
    sigma: Tensor
    valid: Tensor
    confidence: Tensor
    jaw: str = "auto"


class LandmarkDetector(Protocol):
    """Finds the 68 points of one face per image; no face means valid = False everywhere."""

    name: str
    scheme: str  # 'ibug68'

    def detect(self, images: Tensor) -> Landmarks:
        """images [B, 3, H, W] in [0, 1] -> Landmarks of B views."""
        ...
