"""Photos that show the same picture: a photo under two names says no more than one, but would count twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitkit.io.subject import View

# Difference of small pictures in grey levels, the largest and the mean. 40 photos of 400 px and more saved
# again as JPEG of quality 30, or half as large: at most 8 and 0.9; frames of one video: at least 13, or the
# same to the bit.
MOST, MEAN = 10, 1.5
SHAPE = 0.02  # of the ratio of the sides


def copies(views: Sequence[View]) -> dict[int, int]:
    """Index of each view that shows the same picture as another one -> index of that one, which stays: the
    one with a camera, with landmarks, or with more pixels."""
    small = [v.small.astype(np.int16) for v in views]
    ratios = [v.size[0] / v.size[1] for v in views]
    means = [s.mean() for s in small]
    kept: list[int] = []
    same: dict[int, int] = {}
    for i in sorted(
        range(len(views)),
        key=lambda i: (views[i].camera is None, views[i].landmarks is None, -views[i].size[0]),
    ):
        near = (k for k in kept if abs(means[k] - means[i]) < MEAN and abs(ratios[k] / ratios[i] - 1) < SHAPE)
        match = next((k for k in near if _alike(small[k], small[i])), None)
        if match is None:
            kept.append(i)
        else:
            same[i] = match
    return same


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    difference = np.abs(a - b)
    return bool(difference.max() <= MOST and difference.mean() <= MEAN)
