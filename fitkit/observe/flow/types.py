"""The optical-flow object and the estimator interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.geometry.color import luma


@dataclass(frozen=True)
class Flow:
    """displacement: [B, 2, H, W] px (x, y), source(u) matches target(u + displacement(u)); valid: [B, H, W]
    bool."""

    displacement: Tensor
    valid: Tensor

    def of(self, b: int) -> Flow:
        """That of image b alone."""
        return Flow(self.displacement[b : b + 1], self.valid[b : b + 1])


class FlowEstimator(Protocol):
    name: str

    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow from source to target, detached from both
        images."""
        ...


@runtime_checkable
class DifferentiableFlow(FlowEstimator, Protocol):
    """A frozen network: constant weights, but the graph to its input images is kept."""

    def displacement(self, source: Tensor, target: Tensor) -> Tensor:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> [B, 2, H, W] px (x, y), differentiable in both
        images."""
        ...


def check_images(name: str, source: Tensor, target: Tensor) -> None:
    """Refuse anything but two equal stacks of grey or RGB images."""
    if source.ndim != 4 or source.shape[1] not in (1, 3) or source.shape != target.shape:
        raise InputError(
            f"flow estimator '{name}': expected two stacks of images [B, 3 or 1, H, W] of one shape, "
            f"got {list(source.shape)} and {list(target.shape)}"
        )


def grey(images: Tensor) -> np.ndarray:
    """[B, 3 or 1, H, W] in [0, 1] -> luma [B, H, W] float32, weights 0.2989, 0.5870, 0.1140 (Rec. 601)."""
    if images.shape[1] == 3:
        images = luma(images)
    return np.ascontiguousarray(images[:, 0].detach().float().cpu().numpy())


def flow_of_arrays(displacements: list[np.ndarray], like: Tensor) -> Flow:
    """B arrays [H, W, 2] px -> Flow on the device and in the precision of the images `like`, every pixel
    valid."""
    flow = torch.from_numpy(np.stack(displacements)).permute(0, 3, 1, 2).to(like)
    return Flow(flow, torch.ones(flow.shape[0], *flow.shape[2:], dtype=torch.bool, device=flow.device))
