"""Residuals, their linearization, and the interface of an energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class Residuals:
    """value: [G, M, D] unsquared, unreduced, divided by its standard deviation; valid: [G, M] bool;
    weight: [G, M] extra trust in [0, 1] (confidence, viewing angle), None = 1; person: [G] int64, whom each
    group is about, None: all are about the first. G counts views or view pairs."""

    value: Tensor
    valid: Tensor
    weight: Tensor | None = None
    person: Tensor | None = None


@dataclass(frozen=True)
class Slot:
    """Derivatives by the parameters of one view per group: view [G] int64; columns: block -> [G, M, D,
    width]."""

    view: Tensor
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Linearization:
    """Residuals and their derivatives.

    slots: one for each view a group depends on. center: None, or [G, M] weights that sum to 1 over the
    groups: then `residuals.value` is z - sum_g center_g z_g and the slot holds the derivatives of z. That is
    how a latent quantity shared by the views (an albedo) is eliminated in closed form.
    mixed: the D components are combinations of those of `Energy.residuals`, of the same length.
    """

    residuals: Residuals
    slots: tuple[Slot, ...]
    center: Tensor | None = None
    mixed: bool = False


class Energy(Protocol):
    """One residual, used by the solver and by network training alike. state: a SceneState, or what else it
    measures.

    reduction: 'sum' for independent measurements, 'mean' for pixel-like ones whose neighbours are not
    independent.
    """

    @property
    def name(self) -> str: ...

    @property
    def reduction(self) -> str: ...

    def freeze(self, state: Any, observations: Any) -> Energy:
        """The energy with everything discrete (visibility, matches, weights) fixed at `state`, detached."""
        ...

    def residuals(self, state: Any, observations: Any) -> Residuals: ...


@runtime_checkable
class Linearizable(Protocol):
    """An energy whose derivatives are written by hand; those of others come from
    `fitkit.energies.autodiff`."""

    def linearize(self, state: SceneState, observations: Any) -> Linearization: ...


@runtime_checkable
class Staged(Protocol):
    """An energy that changes in the course of a stage."""

    def at_share(self, done: float) -> Energy:
        """The energy as the next `freeze` takes it when this share of its stage, 0..1, is done."""
        ...


@runtime_checkable
class Joinable(Energy, Linearizable, Protocol):
    """An energy whose frozen forms, of one person each, can be one of all these people.

    What it says of a person must be the same, bit for bit, whoever else is there. Sums, products,
    quotients and roots number by number are; sums over an axis, products of matrices and functions such as
    the logarithm may depend on the size of an array: they are for each person by itself.
    """

    def join(self, parts: Sequence[Any], views: Sequence[int]) -> Any:
        """The energy of all people, Joinable as well, of the same terms of as many recipes; None where their
        options differ too much for that.

        parts: frozen, this one the first; views: how many each has. They have the views in this order. What
        is joined is given observations without images, says whom its residuals are about, and has the groups
        of a person side by side, in the order that they have alone.
        """
        ...


Plain = TypeVar("Plain", bound="PlainEnergy")


class PlainEnergy:
    """Base of energies with nothing to freeze."""

    name = ""
    reduction = "sum"

    def freeze(self: Plain, state: Any, observations: Any) -> Plain:
        return self


@dataclass(frozen=True)
class Slopes:
    """Derivatives of residuals [G, M, D] of which number n of a group moves with number n of a block alone:
    view [G] int64; block: its name; value [G, M D]."""

    view: Tensor
    block: str
    value: Tensor

    def of_groups(self, part: slice, first: int) -> Slopes:
        """Of some of the groups, their views counted from `first`."""
        return Slopes(self.view[part] - first, self.block, self.value[part])


class DiagonalEnergy(PlainEnergy, ABC):
    """Base of energies that take each number of a block by itself, so that their normal equations are a
    diagonal, whose sums need no products of matrices."""

    @abstractmethod
    def residuals(self, state: Any, observations: Any) -> Residuals: ...

    @abstractmethod
    def slopes(self, state: Any) -> Slopes: ...

    def linearize(self, state: Any, observations: Any) -> Linearization:
        r, slopes = self.residuals(state, observations), self.slopes(state)
        columns = torch.diag_embed(slopes.value).reshape(*r.value.shape, -1)
        return Linearization(r, (Slot(slopes.view, {slopes.block: columns}),))


def all_views(state: SceneState) -> Tensor:
    return torch.arange(state.num_views, device=state.expression.device)
