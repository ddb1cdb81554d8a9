"""Colours of the photos of a person as those of another picture: one map for all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitkit.data.samples import images_in
from fitkit.errors import InputError
from fitkit.io.images import read_image
from fitkit.observe.observations import Observations

LEVELS = 256


def match_colors(observations: Observations, folder: str, rng: np.random.Generator) -> Observations:
    """The photos with the colours of a picture of `folder`, drawn at random: in each channel the histogram of
    the faces of all photos together becomes that of the picture, by one map for all photos, so that what
    looks alike in two of them still does.

    A face is the box of its landmarks, as far as it is usable; the picture counts as a whole.

    Raises:
        InputError: no picture in the folder, or one that cannot be read.
    Source:
        Shu et al. section 4 (references of CelebA; the same transform for both images of a pair).
    """
    names = reference_pictures(folder)
    target = _histogram(names[int(rng.integers(len(names)))])
    images = (observations.images.clamp(0, 1) * (LEVELS - 1)).round().long()
    face = _faces(observations)
    matched = []
    for channel in range(3):
        seen = images[:, channel]
        own = np.bincount(seen[face].numpy(), minlength=LEVELS)
        table = torch.from_numpy(color_table(own, target[channel])).to(observations.images)
        matched.append(table[seen] / (LEVELS - 1))
    stacked = torch.stack(matched, 1).clamp(0, 1)
    # What lies beyond the photo has no colour to change.
    kept = torch.where(observations.mask[:, None], stacked, observations.images)
    return replace(observations, images=kept)


def color_table(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What each level becomes, [256] float64, so that the histogram `source` [256] becomes `target` [256]:
    levels go where as large a share of the target lies below; in between linear."""
    below = np.cumsum(source) / max(int(source.sum()), 1)
    there = target > 0
    share = np.cumsum(target)[there] / max(int(target.sum()), 1)
    return np.interp(below, share, np.flatnonzero(there).astype(np.float64))


def _faces(observations: Observations) -> Tensor:
    """[B, H, W] bool: usable pixels in the box of the landmarks; all usable ones where there are none."""
    marks, (H, W) = observations.landmarks, observations.size
    out = observations.mask.clone()
    y, x = torch.arange(H)[:, None], torch.arange(W)[None]
    for b, (points, valid) in enumerate(zip(marks.points, marks.valid)):
        if bool(valid.any()):
            low, high = points[valid].amin(0), points[valid].amax(0)
            out[b] &= (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
    return out if bool(out.any()) else observations.mask


@lru_cache(maxsize=8)
def reference_pictures(folder: str) -> tuple[Path, ...]:
    """The pictures of a folder whose colours photos may take.

    Raises:
        InputError: there is none.
    """
    names = tuple(images_in(Path(folder)))
    if not names:
        raise InputError(
            f"{folder}: expected a folder of pictures whose colours photos may take (augmentation."
            "references); there is none in it"
        )
    return names


@lru_cache(maxsize=1024)
def _histogram(path: Path) -> np.ndarray:
    """[3, 256] number of pixels."""
    picture = read_image(path)[0].reshape(-1, 3)
    return np.stack([np.bincount(picture[:, channel], minlength=LEVELS) for channel in range(3)])
