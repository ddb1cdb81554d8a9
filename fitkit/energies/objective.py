"""The weighted sum of energies: one cost for training, one set of normal equations for second-order
solvers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies import autodiff
from fitkit.energies.base import (
    DiagonalEnergy,
    Energy,
    Linearizable,
    Linearization,
    Residuals,
    Slopes,
    Staged,
)
from fitkit.energies.kernels import Kernel
from fitkit.errors import InputError
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.state import SceneState
from fitkit.solvers.arrow import ArrowSystem


@dataclass(frozen=True)
class Term:
    """An energy with its weight and robust kernel. A 'mean' energy counts as `weight` independent
    measurements."""

    energy: Energy
    weight: float = 1.0
    kernel: Kernel = Kernel()

    def cost(self, r: Residuals, people: int = 1) -> Tensor:
        """Weighted robust cost of its residuals for each person, [S]."""
        return self.weight * _scale(self, r, people) * _by_person(cost_items(self, r), r.person, people) / 2


@dataclass(frozen=True)
class TermReport:
    """value: weighted robust cost; valid: number of valid items; rms: root mean square of the valid residuals
    (in sigmas, per component, before kernel and weight)."""

    value: float
    valid: int
    rms: float


class Objective:
    """cost(state) = sum over terms of weight * sum (or mean) of trust * rho(|r|^2) / 2, of each person; see
    `Kernel.cost`."""

    def __init__(self, terms: Sequence[Term]):
        self.terms = tuple(terms)

    def freeze(self, state: SceneState, observations: Any) -> Objective:
        """All terms with visibility, matches and weights fixed at `state`."""
        with torch.no_grad():
            return Objective([replace(t, energy=t.energy.freeze(state, observations)) for t in self.terms])

    def at_share(self, done: float) -> Objective:
        """All terms as they are when this share of their stage, 0..1, is done."""
        return Objective(
            [
                replace(t, energy=t.energy.at_share(done)) if isinstance(t.energy, Staged) else t
                for t in self.terms
            ]
        )

    def cost(self, state: SceneState, observations: Any) -> tuple[Tensor, dict[str, TermReport]]:
        """Cost of each person, [S] (differentiable), and a report for each term by name, of all people. What
        an energy does not say to be of one person counts for the first."""
        people, costs, report = _people(state), [], {}
        for term in self.terms:
            r = term.energy.residuals(state, observations)
            cost = term.cost(r, people)
            masked, n = _masked(r).detach(), int(r.valid.sum())
            rms = float((masked.square().sum(-1).sum() / max(1, n * r.value.shape[-1])).sqrt())
            report[term.energy.name] = TermReport(float(cost.detach().sum()), n, rms)
            costs.append(cost)
        return total(costs, people), report

    def costs(self, state: SceneState, observations: Any) -> Tensor:
        """`cost` without the report, which asks the device for numbers."""
        people = _people(state)
        return total([t.cost(t.energy.residuals(state, observations), people) for t in self.terms], people)

    def linearize(self, state: SceneState, observations: Any, layout: ParameterLayout) -> ArrowSystem:
        """Gauss-Newton system of all terms over the free parameters of `layout`."""
        system = self.no_system(state, layout)
        self.add_to(system, state, observations, layout)
        return system

    @staticmethod
    def no_system(state: SceneState, layout: ParameterLayout) -> ArrowSystem:
        """A system to which nothing is added yet."""
        return ArrowSystem.zeros(
            layout.num_moments,
            layout.num_shared,
            layout.num_own,
            dtype=torch.float64,
            device=state.identity.device,
            num_people=layout.num_people,
            places=layout.places,
        )

    def add_to(
        self, system: ArrowSystem, state: SceneState, observations: Any, layout: ParameterLayout
    ) -> None:
        """Add the Gauss-Newton matrices and gradients of all terms to `system`."""
        for number in range(len(self.terms)):
            self.add_term(number, system, state, observations, layout)

    def add_term(
        self,
        number: int,
        system: ArrowSystem,
        state: SceneState,
        observations: Any,
        layout: ParameterLayout,
    ) -> None:
        """`add_to` for one of the terms."""
        term = self.terms[number]
        energy, slopes = term.energy, None
        with torch.no_grad():
            if isinstance(energy, DiagonalEnergy) and isinstance(system, ArrowSystem):
                slopes = energy.slopes(state)
                lin = Linearization(energy.residuals(state, observations), ())
            else:
                lin = linearization(energy, state, observations, layout)
            each = _scale(term, lin.residuals, layout.num_people)
            if isinstance(each, Tensor):
                person = lin.residuals.person
                each = each[0] if person is None else each[person][:, None]
            weighted = Weighted.of(term, lin, each)
            if slopes is None:
                add_weighted(system, lin, weighted, layout)
            else:
                add_slopes(system, slopes, weighted, layout)


def linearization(
    energy: Energy, state: SceneState, observations: Any, layout: ParameterLayout
) -> Linearization:
    """Residuals and derivatives of a frozen energy: written by hand, or by automatic differentiation."""
    if hasattr(
        energy, "linearize"
    ):  # as isinstance(energy, Linearizable), which takes a tenth of a prior's time
        return blocked(energy.linearize(state, observations), state, layout)
    return autodiff.linearize(energy, state, observations, layout.order)


def blocked(lin: Linearization, state: SceneState, layout: ParameterLayout) -> Linearization:
    """With the derivatives by blocks whose changes are those of another one, see `Within`."""
    for name, within in ((b.name, b.within) for b in layout.blocks if b.within is not None):
        matrix = within.matrix(state)
        slots = tuple(
            replace(s, columns={**s.columns, name: s.columns[within.block] @ matrix[s.view, None]})
            if within.block in s.columns
            else s
            for s in lin.slots
        )
        lin = replace(lin, slots=slots)
    return lin


def _people(state: Any) -> int:
    """How many people a state is of; of one that does not say, one."""
    identity = getattr(state, "identity", None)
    return 1 if identity is None else len(identity)


def _masked(r: Residuals) -> Tensor:
    """Values with 0 for invalid items, which may hold NaN or infinity; masked before they are squared, their
    gradient stays out as well."""
    return torch.where(r.valid[..., None], r.value, torch.zeros_like(r.value))


def cost_items(term: Term, r: Residuals) -> Tensor:
    """Robust cost of each item, without the weight of the term, [G, M]."""
    return _trust(r) * term.kernel.cost(_masked(r))


def total(costs: Sequence[Tensor], people: int) -> Tensor:
    """Of all terms, each [S]."""
    result = torch.zeros(people) if not costs else costs[0]
    for cost in costs[1:]:
        result = result + cost
    return result


def _by_person(items: Tensor, person: Tensor | None, people: int) -> Tensor:
    """Sums of the items [G, M] of each person, [S]."""
    if people == 1 or person is None:
        return F.pad(items.sum()[None], (0, people - 1))
    return items.new_zeros(people).index_add(0, person, items.sum(1))


def _trust(r: Residuals) -> Tensor:
    valid = r.valid.to(r.value.dtype)
    return valid if r.weight is None else torch.where(r.valid, r.weight, torch.zeros_like(r.weight))


def _scale(term: Term, r: Residuals, people: int) -> float | Tensor:
    """Factor of the items of each person: 1, or one over their number, [S]."""
    if term.energy.reduction == "sum":
        return 1.0
    return 1.0 / _by_person(_trust(r).detach(), r.person, people).clamp_min(1.0)


@dataclass(frozen=True)
class Weighted:
    """The rows of a linearization in the normal equations: their weights, the roots of these, and weight
    times value, all [G, M D]."""

    weight: Tensor
    root: Tensor
    pull: Tensor

    @staticmethod
    def of(term: Term, lin: Linearization, each: float | Tensor) -> Weighted:
        """each: factor of the items, one or [G, 1], see `_scale`."""
        r = lin.residuals
        value = _masked(r)
        if lin.mixed and term.kernel.by_component:
            raise InputError(
                f"energy '{term.energy.name}': its least-squares form mixes the components of an item, so it "
                f"cannot be used with kernel '{term.kernel.name}', which takes each by itself; use kernel "
                "'l2n'"
            )
        scale = term.weight * each * _trust(r)  # [G, M]
        G, M, D = value.shape
        w = (scale[..., None] * term.kernel.weights(value)).expand(G, M, D).reshape(G, M * D)
        pull = w * value.reshape(G, M * D)
        if lin.center is not None:
            center = lin.center[..., None].expand(G, M, D).reshape(G, M * D)
            pull = pull - center * pull.sum(0, keepdim=True)
        return Weighted(w, w.sqrt(), pull)

    def of_groups(self, part: slice) -> Weighted:
        """Of some of the groups."""
        # Copies: where an array lies in memory may decide how a library adds its numbers up.
        return Weighted(self.weight[part], self.root[part], self.pull[part].clone())


def add_weighted(
    system: ArrowSystem, lin: Linearization, weighted: Weighted, layout: ParameterLayout
) -> None:
    """Add the Gauss-Newton matrix and the gradient of a term to `system`."""
    names = [n for n in layout.order if any(n in slot.columns for slot in lin.slots)]
    if not names:
        return  # nothing that is free moves the term
    index, pull = layout.columns(names), weighted.pull
    jacobians = [_local(slot.columns, names, layout, pull) for slot in lin.slots]
    root = weighted.root[..., None]
    for slot, jacobian in zip(lin.slots, jacobians):
        system.add_gradient(slot.view, index, (pull[:, None] @ jacobian)[:, 0])
    system.add_rows([slot.view for slot in lin.slots], index, [j * root for j in jacobians])
    if lin.center is not None:
        # sum_g w_g |z_g - mean|^2 has the Hessian sum_g w_g J_g' J_g - (sum_g w_g J_g)' (sum_g w_g J_g) /
        # sum_g w_g
        w = weighted.weight
        total = w.sum(0).clamp_min(1e-30)
        system.add_common(lin.slots[0].view, index, jacobians[0] * (w / total.sqrt())[..., None])


def add_slopes(system: ArrowSystem, slopes: Slopes, weighted: Weighted, layout: ParameterLayout) -> None:
    """`add_weighted` for a term whose normal equations are a diagonal: the same numbers."""
    if slopes.block not in layout.sizes:
        return
    index = layout.columns([slopes.block])
    system.add_gradient(slopes.view, index, weighted.pull * slopes.value)
    row = slopes.value * weighted.root
    system.add_squares(slopes.view, index, row * row)


def _local(columns: dict[str, Tensor], names: Sequence[str], layout: ParameterLayout, like: Tensor) -> Tensor:
    """Columns by block -> [G, rows, n], the blocks `names` side by side; those that a slot does not know are
    zero. like: [G, rows]"""
    G, rows = like.shape
    parts = [
        columns[name].reshape(G, rows, -1) if name in columns else like.new_zeros(G, rows, layout.sizes[name])
        for name in names
    ]
    return torch.cat(parts, -1)


NEAREST_MM = 100.0  # from a camera to the middle of the head, which is about as wide as twice that


def too_near(x: SceneState, cost: Tensor) -> Tensor:
    """The costs [S], infinite for people with a camera inside the head."""
    if x.camera.kind != "perspective":
        return cost
    inside = torch.where(x.pose.translation[:, 2] < NEAREST_MM, torch.inf, 0.0).to(cost)
    return cost.index_add(0, x.subject, inside)


class LeastSquaresProblem:
    """All a solver sees of a fit."""

    def __init__(
        self, objective: Objective, observations: Any, layout: ParameterLayout, first_order: bool = False
    ):
        """first_order: solved by gradients alone, because its derivatives may take too long."""
        self.objective, self.observations, self.layout = objective, observations, layout
        self.first_order = first_order

    @property
    def linearizable(self) -> bool:
        """Whether normal equations can be had at a fair price."""
        return not self.first_order or all(isinstance(t.energy, Linearizable) for t in self.objective.terms)

    def cost(self, x: SceneState) -> Tensor:
        """[S] float64; infinite where a camera lies inside the head: the points behind it leave the sum, so
        that going there would look like a gain."""
        with torch.no_grad():
            cost = self.objective.costs(x, self.observations).to(x.identity.device, torch.float64)
        return too_near(x, cost)

    def linearize(self, x: SceneState) -> ArrowSystem:
        return self.objective.linearize(x, self.observations, self.layout)

    def retract(self, x: SceneState, step: Tensor) -> SceneState:
        return retract(x, step.to(x.identity), self.layout)

    def differentiable_cost(self, x: SceneState, done: float = 0.0) -> Tensor:
        """The cost with visibility, matches and weights fixed at x itself (first-order solvers), when the
        share `done` of the stage is done."""
        return self.objective.at_share(done).freeze(x, self.observations).costs(x, self.observations).sum()

    @property
    def size(self) -> int:
        return self.layout.total

    @cached_property
    def scales(self) -> Tensor:
        """[total] typical change of each free parameter."""
        return self.layout.steps.to(self.observations.images.device)
