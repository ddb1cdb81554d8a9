"""What the coefficients of a face model mean: whose they are, how they are spread, where they end."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# gaussian: signed, with a standard deviation each, as those of a PCA; blend_shape: 0 (off) to 1 (fully on);
# rotation: of a joint, rad.
Kind = Literal["gaussian", "blend_shape", "rotation"]
RANGE: dict[Kind, tuple[float, float]] = {
    "gaussian": (-math.inf, math.inf),
    "blend_shape": (0.0, 1.0),
    "rotation": (-math.pi, math.pi),
}
LISTED = 60  # names that are written in a row; of more the first and the last


@dataclass(frozen=True, eq=False)
class Coefficients:
    """One block of coefficients of a face model.

    name: of the block, e.g. 'expression'; per: whether each person or each frame has its own; sigma: [size]
    standard deviations of gaussian ones, None of others (recipes say how strong a blend shape may be); names:
    `size` names, or none.
    """

    name: str
    size: int
    per: Literal["person", "frame"]
    kind: Kind
    sigma: Tensor | None = None
    names: tuple[str, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest value that a coefficient is made for."""
        return RANGE[self.kind]

    def unit(self, like: Tensor) -> Tensor:
        """[size], in the type and on the device of `like`: the standard deviations, or 1 where there are
        none."""
        return like.new_ones(self.size) if self.sigma is None else self.sigma.to(like)

    def in_sigmas(self, values: Tensor) -> Tensor:
        """values [..., size] over their standard deviations; as they are where there are none."""
        return values / self.unit(values)

    def __str__(self) -> str:
        """'8 coefficients, sigma 1', '6 blend shapes, 0 to 1: jawOpen, ...'."""
        kind = {"gaussian": "coefficients", "blend_shape": "blend shapes", "rotation": "rotations"}[self.kind]
        low, high = self.range
        spread = f", {low:.3g} to {high:.3g}"
        if self.sigma is not None:
            low, high = float(self.sigma.min()), float(self.sigma.max())
            spread = f", sigma {low:g}" + (f" to {high:g}" if high > low else "")
        listed = len(self.names) <= LISTED
        names = ", ".join(self.names) if listed else f"{self.names[0]} ... {self.names[-1]}"
        return f"{self.size} {kind}{spread}" + (f": {names}" if names else "")


def shapes_by_name(source: Sequence[str], target: Sequence[str]) -> Tensor:
    """[K_target, K_source] by which weights of blend shapes become those of the shapes of the same name.

    `browDown_L` and `browDownLeft` are one name. A shape of both sides that the source has as two takes their
    mean; one side of a shape that the source has as a whole takes all of it. Rows of shapes that the source
    lacks are 0.
    """
    place = {shape_and_side(name): i for i, name in enumerate(source)}
    out = torch.zeros(len(target), len(source))
    for row, name in enumerate(target):
        shape, side = shape_and_side(name)
        sides = [place[shape, s] for s in "lr" if (shape, s) in place]
        if (shape, side) in place:
            out[row, place[shape, side]] = 1.0
        elif side and (shape, "") in place:
            out[row, place[shape, ""]] = 1.0
        elif not side and len(sides) == 2:
            out[row, sides] = 0.5
    return out


def shape_and_side(name: str) -> tuple[str, str]:
    """What the spellings of a shape's name have in common: 'browDown_L', 'browDownLeft', 'brow_down_left',
    'browDown.L' -> ('browdown', 'l'); 'jawOpen' -> ('jawopen', '')."""
    found = re.fullmatch(r"(.+?)[_.]?(Left|Right|left|right|(?<=[_.])[lr]|(?<=[a-z0-9_.])[LR])", name)
    shape, side = (found[1], found[2][0].lower()) if found else (name, "")
    return re.sub(r"[^a-z0-9]", "", shape.lower()), side
