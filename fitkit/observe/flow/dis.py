"""OpenCV's dense inverse search flow: the default, needs no weights."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.observe.flow.types import Flow

PRESETS = {"ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
           "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}


@dataclass(frozen=True)
class DisFlow:
    """Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016, as in OpenCV. On the CPU, grey."""

    preset: str = "medium"
    name = "dis"

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise InputError(f"DIS flow preset: expected one of {', '.join(PRESETS)}; got '{self.preset}'")

    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow; all pixels valid (consistency is the caller's test)."""
        engine = cv2.DISOpticalFlow_create(PRESETS[self.preset])
        out = []
        for a, b in zip(_grey(source), _grey(target)):
            out.append(engine.calc(a, b, None))
        flow = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).to(source.device)
        return Flow(flow, torch.ones(flow.shape[0], *flow.shape[2:], dtype=torch.bool, device=flow.device))


def _grey(images: Tensor) -> np.ndarray:
    if images.shape[1] == 3:
        images = torch.einsum("c,bchw->bhw", images.new_tensor([0.2989, 0.5870, 0.1140]), images)[:, None]
    return np.ascontiguousarray((images[:, 0].detach().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))
