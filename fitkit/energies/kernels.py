"""Robust kernels: functions of the squared length s = |r|^2 of a residual that is already divided by its sigma."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.errors import InputError


@dataclass(frozen=True)
class Kernel:
    """name: 'sq' s; 'l1' 2 e (sqrt(s + e^2) - e); 'huber' s below radius^2, linear beyond;
    'cauchy' radius^2 log(1 + s / radius^2); 'gm' (Geman-McClure) s / (1 + s / radius^2).

    All start as s, so far inside the radius each is the plain square. `radius` is in sigmas (for 'l1' it is e).
    """

    name: str = "sq"
    radius: float = 1.0

    def __post_init__(self):
        if self.name not in NAMES:
            raise InputError(f"kernel: expected one of {', '.join(NAMES)}; got '{self.name}'")
        if not self.radius > 0:
            raise InputError(f"kernel '{self.name}': expected a radius > 0, got {self.radius}")

    def rho(self, s: Tensor) -> Tensor:
        """Robust cost of the squared length s >= 0."""
        c = self.radius * self.radius
        if self.name == "l1":
            # the scale 2 e makes the curve start as s
            return 2 * self.radius * ((s + c).sqrt() - self.radius)
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
        if self.name == "l1":
            return self.radius / (s + c).sqrt()
        if self.name == "huber":
            return self.radius / s.clamp_min(c).sqrt()
        if self.name == "cauchy":
            return 1 / (1 + s / c)
        if self.name == "gm":
            return 1 / (1 + s / c) ** 2
        return torch.ones_like(s)


NAMES = ("sq", "l1", "huber", "cauchy", "gm")
