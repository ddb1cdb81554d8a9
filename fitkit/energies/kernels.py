"""Robust kernels: functions of the squared length s = |r|^2 of a residual that is already divided by its
sigma.

'l1' takes each component of the residual by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fitkit.io.options import Positive, check_options

Name = Literal["sq", "l1", "l2n", "charb", "ddf", "huber", "cauchy", "gm"]
NAMES = get_args(Name)


@dataclass(frozen=True)
class Kernel:
    """name: 'sq' s; 'l1' 2 e (sqrt(s + e^2) - e); 'huber' s below radius^2, linear beyond;
    'cauchy' radius^2 log(1 + s / radius^2); 'gm' (Geman-McClure) s / (1 + s / radius^2);
    'l2n' the same curve: 'l1' is the sum of it over the components of an item, 'l2n' takes the length of the
    whole vector; 'charb' (e^2 / 0.45) ((1 + s / e^2)^0.45 - 1), the data term of UnFlow (Meister et al., AAAI
    2018); 'ddf' (2 e^2 / 0.4) ((1 + |r| / e)^0.4 - 1), the data term of DDFlow (Liu et al., AAAI 2019), with
    |r| = sqrt(s + d^2) - d, d = e / 100, so that its weight stays finite at 0.

    All but 'ddf' start as s, so far inside the radius each is the plain square; 'ddf' has a corner at 0 and
    is 2 e |r| there outside of d. `radius` is in sigmas; for 'l1', 'l2n', 'charb' and 'ddf' it is e, the
    epsilon of the formula. `published` gives the printed formula: the same curve up to a factor and an
    offset.
    """

    name: Name = "sq"  # its formula
    radius: Positive = 1.0  # in sigmas

    def __post_init__(self):
        check_options(self, "kernel")

    @property
    def by_component(self) -> bool:
        """Whether each component of a residual counts by itself; else the length of the whole does."""
        return self.name == "l1"

    @property
    def exact(self) -> bool:
        """Whether each step of its formula is rounded correctly, so that a number comes out the same in an
        array of any length; logarithms and powers need not."""
        return self.name in ("sq", "l1", "l2n", "huber", "gm")

    def cost(self, value: Tensor) -> Tensor:
        """Robust cost of residuals [..., D], [...]."""
        s = value * value
        return self.rho(s).sum(-1) if self.by_component else self.rho(s.sum(-1))

    def weights(self, value: Tensor) -> Tensor:
        """Weights of residuals [..., D] in iteratively re-weighted least squares, [..., D], or [..., 1] for
        all components."""
        s = value * value
        return self.weight(s if self.by_component else s.sum(-1, keepdim=True))

    def rho(self, s: Tensor) -> Tensor:
        """Robust cost of the squared length s >= 0, of one component for 'l1'."""
        c = self.radius * self.radius
        if self.name in ("l1", "l2n"):
            # the scale 2 e makes the curve start as s
            return 2 * self.radius * ((s + c).sqrt() - self.radius)
        if self.name == "charb":
            return c / CHARB * torch.expm1(CHARB * torch.log1p(s / c))
        if self.name == "ddf":
            return 2 * c / DDF * torch.expm1(DDF * torch.log1p(self._length(s) / self.radius))
        if self.name == "huber":
            return torch.where(s <= c, s, 2 * self.radius * s.clamp_min(c).sqrt() - c)
        if self.name == "cauchy":
            return c * torch.log1p(s / c)
        if self.name == "gm":
            return s / (1 + s / c)
        return s

    def weight(self, s: Tensor) -> Tensor:
        """d rho / d s: the weight in iteratively re-weighted least squares."""
        c = self.radius * self.radius
        if self.name in ("l1", "l2n"):
            return self.radius / (s + c).sqrt()
        if self.name == "charb":
            return (1 + s / c) ** (CHARB - 1)
        if self.name == "ddf":
            return (
                self.radius
                * (1 + self._length(s) / self.radius) ** (DDF - 1)
                / (s + (self.radius / 100) ** 2).sqrt()
            )
        if self.name == "huber":
            return self.radius / s.clamp_min(c).sqrt()
        if self.name == "cauchy":
            return 1 / (1 + s / c)
        if self.name == "gm":
            return 1 / (1 + s / c) ** 2
        return torch.ones_like(s)

    def published(self, s: Tensor) -> Tensor:
        """The formula as printed: 'l1', 'l2n' sqrt(s + e^2); 'charb' (s + e^2)^0.45; 'ddf' (|r| + e)^0.4; the
        others are `rho`."""
        c = self.radius * self.radius
        if self.name in ("l1", "l2n"):
            return (s + c).sqrt()
        if self.name == "charb":
            return (s + c) ** CHARB
        if self.name == "ddf":
            return (self._length(s) + self.radius) ** DDF
        return self.rho(s)

    def _length(self, s: Tensor) -> Tensor:
        """|r| of 'ddf', rounded at 0. As a quotient: a difference of square roots loses its digits in single
        precision."""
        d = self.radius / 100
        return s / ((s + d * d).sqrt() + d)


CHARB, DDF = 0.45, 0.4  # exponents of UnFlow and DDFlow
