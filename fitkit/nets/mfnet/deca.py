"""DECA's coarse encoder: what its released checkpoint holds, in our units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0, Y1, Y2, Y20, Y22

ENCODER = "E_flame"  # of the checkpoint; the others are those of the details
FLAME_JOINTS = {"neck", "jaw", "eye_L", "eye_R"}
# What its last layer gives, one behind the other.
PARTS = {"shape": 100, "texture": 50, "expression": 50, "pose": 6, "camera": 3, "light": 27}
METRE = 1000.0  # mm
_ONE = 2 / 3 * math.pi * math.sqrt(3 / (4 * math.pi))
_TWO = math.pi / 4 * math.sqrt(5 / (4 * math.pi))
# Of its nine harmonics 1, x, y, z, xy, xz, yz, x^2-y^2, 3z^2-1: the number of ours, and what one of theirs is
# of it.
HARMONICS = (
    (0, math.sqrt(1 / (4 * math.pi)) / Y0),
    (3, _ONE / Y1),
    (1, _ONE / Y1),
    (2, _ONE / Y1),
    (4, math.sqrt(3) * _TWO / Y2),
    (7, math.sqrt(3) * _TWO / Y2),
    (5, math.sqrt(3) * _TWO / Y2),
    (8, math.sqrt(3) / 2 * _TWO / Y22),
    (6, _TWO / 2 / Y20),
)


@dataclass(frozen=True)
class DecaEncoder:
    """A ResNet-50, a hidden layer and a last one. trunk: its weights by torchvision's names; hidden: weight
    [H, 2048] and bias [H]; last: weight [n, H] and bias [n] of each of PARTS.

    Source: Feng et al., "Learning an animatable detailed 3D face model from in-the-wild images", SIGGRAPH
        2021, and its public code: layers, order of the outputs, camera, harmonics.
    """

    trunk: dict[str, Any]
    hidden: tuple[Tensor, Tensor]
    last: dict[str, tuple[Tensor, Tensor]]

    @staticmethod
    def of(weights: Mapping[str, Any], channels: int, hidden: int, where: str) -> DecaEncoder:
        """weights: the checkpoint's `ENCODER`; channels, hidden: what the network has; where: the file.

        Raises:
            InputError: other weights.
        """
        outputs = sum(PARTS.values())
        shapes = {
            "layers.0.weight": (hidden, channels),
            "layers.0.bias": (hidden,),
            "layers.2.weight": (outputs, hidden),
            "layers.2.bias": (outputs,),
        }
        for name, shape in shapes.items():
            got = getattr(weights.get(name), "shape", None)
            if got is None or tuple(got) != shape:
                raise InputError(
                    f"{where}: expected DECA's encoder with {name} of shape {list(shape)}, got "
                    f"{'none' if got is None else list(got)}; its hidden layer has 1024 units: "
                    "net.options.hidden=1024"
                )
        first, first_bias, last, last_bias = (weights[name].float() for name in shapes)
        sizes = list(PARTS.values())
        return DecaEncoder(
            {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")},
            (first, first_bias),
            dict(zip(PARTS, zip(last.split(sizes), last_bias.split(sizes)))),
        )

    def put(
        self, layer: nn.Linear, at: int, part: str, of: slice, unit: Tensor, start: Tensor | float = 0.0
    ) -> None:
        """Rows `of` a part into a layer from row `at` on, whose output x stands for start + unit * x."""
        weight, bias = (values[of] for values in self.last[part])
        place = slice(at, at + len(weight))
        with torch.no_grad():
            layer.weight[place] = weight / unit[:, None]
            layer.bias[place] = (bias - start) / unit
