"""The optical-flow object and the estimator interface."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Flow:
    """displacement: [B, 2, H, W] px (x, y), source(u) matches target(u + displacement(u)); valid: [B, H, W] bool."""

    displacement: Tensor
    valid: Tensor


class FlowEstimator(Protocol):
    name: str

    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow from source to target."""
        ...
