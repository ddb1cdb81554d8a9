"""The labelled face parse of a sample, as energies use it: classes at their own size, and weights by face
part."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.masks import weight_parse
from fitkit.energies.supervision import label
from fitkit.observe.observations import Observations

ParseScheme = Literal["none", "dfmvr", "pgn"]  # of `weight_parse`


def labelled_parse(observations: Observations, size: tuple[int, int], energy: str) -> tuple[Tensor, Tensor]:
    """The labelled part of the face at the nearest pixel, [B, h, w] int64 of size (h, w), and where it is
    known, [B, h, w] bool.

    Raises:
        InputError: no face parse among the labels; it names the energy.
    """
    parse = label(observations, "parse", energy)
    known = observations.labels.parse_valid
    known = torch.ones_like(parse, dtype=torch.bool) if known is None else known
    both = torch.stack([parse, known.to(parse)], 1).to(torch.float32)
    both = F.interpolate(both, size=size, mode="nearest-exact").to(observations.images.device)
    return both[:, 0].long(), both[:, 1] > 0


GROW_PX = 5.0  # px of a 224-pixel crop by which features are dilated


def label_weights(
    observations: Observations, mask: Tensor, scheme: str, energy: str, grow_px: float = GROW_PX
) -> Tensor:
    """`weight_parse` of the labelled parse for a mask [B, 1, h, w] of the crops at any size, the largest
    weight 1; 0 where the parse is not known. grow_px: of a 224-pixel crop, by which features are dilated; it
    grows with the crop."""
    size = mask.shape[-2:]
    parse, known = labelled_parse(observations, size, energy)
    weight = weight_parse(parse, mask * known[:, None], scheme, round(grow_px * max(size) / 224))
    return weight / weight.amax().clamp_min(1e-12)


def parse_needed(options: Any) -> frozenset[str]:
    """The label that the weights of a recipe's options ask for."""
    return frozenset({"parse"} if options.options.parse != "none" else ())
