"""The parts that a pixel of a photo may show, by number: the classes of face parses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The ten of DF-MVR's parser; left and right are the subject's.
PARSE = (
    "background",
    "skin",
    "left_brow",
    "right_brow",
    "left_eye",
    "right_eye",
    "nose",
    "mouth",
    "upper_lip",
    "lower_lip",
)
# The same ten, then what a fit must tell from them. beard: grown hair, not its shadow; glasses: frames and
# lenses that cannot be looked through; occluder: hats, hands, microphones and whatever else is in front.
PARTS = (*PARSE, "hair", "beard", "glasses", "occluder", "neck", "ears", "clothes")
UNKNOWN = 255  # in a picture of parts: nobody knows

# Number of each part among the ten. DF-MVR takes beards for skin, all else beside the face for background.
TEN = np.array([*range(len(PARSE)), *(int(name == "beard") for name in PARTS[len(PARSE) :])], np.uint8)
# Part i of a mirrored picture is part MIRRORED_PARTS[i] of the picture.
MIRRORED_PARTS = np.array(
    [
        PARTS.index(name.replace("left", "right") if "left" in name else name.replace("right", "left"))
        for name in PARTS
    ],
    np.uint8,
)
# What belongs to the head that a face model has. Hair, glasses, clothes and background do not.
HEAD = (*PARSE[1:], "beard", "neck", "ears")


def ten(labels: Tensor) -> Tensor:
    """Numbers of PARTS, int64 of any shape, as numbers of PARSE."""
    return torch.from_numpy(TEN.astype(np.int64)).to(labels.device)[labels]


def numbers(names: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of parts by name."""
    return tuple(PARTS.index(name) for name in names)
