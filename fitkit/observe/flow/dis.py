"""OpenCV's dense inverse search flow: the default, needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from fitkit.errors import InputError
from fitkit.observe.flow.types import Flow, check_images, flow_of_arrays, grey

PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    "fine": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

MARGIN = 16  # pixels around what differs that are searched too
LEVELS = 16  # the coarsest level of the search is so many times smaller than the images, or less


@dataclass(frozen=True)
class DisFlow:
    """Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016, as in OpenCV. On the CPU,
    grey.

    Its patches are compared after their means are taken off, so a brightness offset of one image hardly
    changes the flow. preset: OpenCV's, which end at half the resolution of the images or below; 'fine' is
    'medium' continued to their full resolution, with patches 4 pixels apart: on renderings of faces half the
    error, for twice to four times the time.
    """

    preset: str = "medium"
    name = "dis"

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise InputError(f"DIS flow preset: expected one of {', '.join(PRESETS)}; got '{self.preset}'")

    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow; all pixels valid (consistency is the caller's
        test)."""
        check_images(self.name, source, target)
        engine = cv2.DISOpticalFlow_create(PRESETS[self.preset])
        if self.preset == "fine":
            engine.setFinestScale(0)
            engine.setPatchStride(4)
        first, second = (
            (grey(images) * 255).round().clip(0, 255).astype(np.uint8) for images in (source, target)
        )
        return flow_of_arrays([_around_changes(engine, a, b) for a, b in zip(first, second)], source)


def _around_changes(engine: cv2.DISOpticalFlow, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow [H, W, 2] of two images [H, W]: nothing moves beyond the box around all that differs, so that only
    the box is searched."""
    flow, differs = np.zeros((*first.shape, 2), np.float32), first != second
    if differs.any():
        # It begins where a patch of the search in the whole images does, on all levels.
        grid = engine.getPatchStride() * LEVELS
        along = [np.flatnonzero(differs.any(axis)) for axis in (1, 0)]
        begin = [max(0, at[0] - MARGIN) // grid * grid for at in along]
        box = tuple(slice(b, at[-1] + 1 + MARGIN) for b, at in zip(begin, along))
        flow[box] = engine.calc(*(np.ascontiguousarray(image[box]) for image in (first, second)), None)
    return flow
