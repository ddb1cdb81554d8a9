"""Least-squares problems of several people side by side: each its own, what they measure found together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from fitkit.energies.base import DiagonalEnergy, Joinable, Linearization, Residuals, Slot
from fitkit.energies.objective import (
    LeastSquaresProblem,
    Term,
    Weighted,
    add_slopes,
    add_weighted,
    blocked,
    cost_items,
    too_near,
    total,
)
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState
from fitkit.solvers.arrow import ArrowSystem

FEW = 0.5  # share of a group, up to which those who want to know something get a group of their own


def alike(problem: LeastSquaresProblem, x: SceneState) -> tuple:
    """Equal for problems that can be solved side by side: the same terms, cameras and light. How many photos
    each person has, and what they share, makes no difference."""
    terms = tuple((t.energy.name, t.energy.reduction, t.weight, t.kernel) for t in problem.objective.terms)
    return terms, x.camera.kind, x.illumination.shape[1:]


class JoinedProblems:
    """Problems of several people, who have nothing in common, as the `Problems` of a solver.

    problems: `alike`, frozen, each of one person; xs: where each begins. The time of a fit with few photos
    goes into calls of torch with little work in each. So an energy that is `Joinable` is evaluated once for
    all people, number by number. Whatever adds numbers up is done person by person, on the same arrays and in
    the same order as for one person alone: sums over residuals, products of matrices and normal equations. So
    on a CPU each person gets the same bits as alone, whoever else is there.
    """

    def __init__(self, problems: Sequence[LeastSquaresProblem], xs: Sequence[SceneState]):
        self.problems = tuple(problems)
        self._last = list(xs)
        self._groups: list[_Group] = []

    def costs(self, numbers: Sequence[int], xs: Sequence[SceneState]) -> list[float]:
        """What `LeastSquaresProblem.cost` says of the people `numbers` at xs."""
        if len(numbers) == 1:
            return [float(self.problems[numbers[0]].cost(xs[0]))]
        group, all_xs = self._around(numbers, xs)
        wanted = [group.numbers.index(number) for number in numbers]
        costs = dict(zip(group.numbers, group.costs(all_xs, wanted).tolist()))
        return [costs[number] for number in numbers]

    def systems(self, numbers: Sequence[int], xs: Sequence[SceneState]) -> list[ArrowSystem]:
        """What `LeastSquaresProblem.linearize` says of the people `numbers` at xs."""
        if len(numbers) == 1:
            return [self.problems[numbers[0]].linearize(xs[0])]
        group, all_xs = self._around(numbers, xs)
        return group.systems(all_xs, [group.numbers.index(number) for number in numbers])

    def retract(self, number: int, x: SceneState, step: Tensor) -> SceneState:
        return self.problems[number].retract(x, step)

    def _around(self, numbers: Sequence[int], xs: Sequence[SceneState]) -> tuple[_Group, list[SceneState]]:
        """The smallest group with these people, and where all its people are."""
        for number, x in zip(numbers, xs):
            self._last[number] = x
        fit = [
            g for g in self._groups if set(numbers) <= set(g.numbers) and len(numbers) > FEW * len(g.numbers)
        ]
        if not fit:
            fit = [_Group(numbers, [self.problems[number] for number in numbers], xs)]
            self._groups += fit
        group = min(fit, key=lambda g: len(g.numbers))
        return group, [self._last[number] for number in group.numbers]


class _Group:
    """Some of the people. energies: of each term the joint one, None where each has its own."""

    def __init__(
        self, numbers: Sequence[int], problems: Sequence[LeastSquaresProblem], xs: Sequence[SceneState]
    ):
        self.numbers, self.problems = tuple(numbers), tuple(problems)
        self.views = [x.num_views for x in xs]
        self.observations = Observations.join([_without_images(p.observations) for p in problems])
        self.terms = list(zip(*(p.objective.terms for p in problems)))
        self.energies = [_joined(terms, self.views) for terms in self.terms]
        self._sizes: dict[str, list[int]] = {}

    def costs(self, xs: Sequence[SceneState], wanted: Sequence[int]) -> Tensor:
        """[S] float64, right for the people `wanted`, counted in the group."""
        x, costs = SceneState.join(_with_offsets(xs)), []
        with torch.no_grad():
            for terms, energy in zip(self.terms, self.energies):
                if energy is None:
                    costs.append(self._own_costs(terms, xs, wanted))
                else:
                    costs.append(self._joint_costs(terms[0], energy, x))
        return too_near(x, total(costs, len(xs)).to(x.identity.device, torch.float64))

    def _own_costs(self, terms: Sequence[Term], xs: Sequence[SceneState], wanted: Sequence[int]) -> Tensor:
        own = {
            i: terms[i].cost(terms[i].energy.residuals(xs[i], self.problems[i].observations)) for i in wanted
        }
        nothing = torch.zeros_like(own[wanted[0]])
        return torch.cat([own.get(i, nothing) for i in range(len(xs))])

    def _joint_costs(self, term: Term, energy: Joinable, x: SceneState) -> Tensor:
        r = energy.residuals(x, self.observations)
        items = cost_items(term, r).split(self._sizes_of(energy, r))
        return term.weight * torch.stack([each.sum() for each in items]) / 2

    def systems(self, xs: Sequence[SceneState], wanted: Sequence[int]) -> list[ArrowSystem]:
        """Those of the people `wanted`, counted in the group."""
        x = SceneState.join(_with_offsets(xs))
        systems = [self.problems[i].objective.no_system(xs[i], self.problems[i].layout) for i in wanted]
        with torch.no_grad():
            for k, energy in enumerate(self.energies):
                if energy is None:
                    for i, system in zip(wanted, systems):
                        problem = self.problems[i]
                        problem.objective.add_term(k, system, xs[i], problem.observations, problem.layout)
                else:
                    self._add_joint(systems, k, energy, x, xs, wanted)
        return systems

    def _add_joint(
        self,
        systems: Sequence[ArrowSystem],
        k: int,
        energy: Joinable,
        x: SceneState,
        xs: Sequence[SceneState],
        wanted: Sequence[int],
    ) -> None:
        slopes = energy.slopes(x) if isinstance(energy, DiagonalEnergy) else None
        if slopes is None:
            lin = energy.linearize(x, self.observations)
        else:
            lin = Linearization(energy.residuals(x, self.observations), ())
        weighted = Weighted.of(self.terms[k][0], lin, 1.0)
        ends = list(accumulate(self._sizes_of(energy, lin.residuals)))
        first = [0, *accumulate(self.views)]
        for i, system in zip(wanted, systems):
            part = slice(ends[i - 1] if i else 0, ends[i])
            layout = self.problems[i].layout
            if slopes is None:
                own = blocked(_of_groups(lin, part, first[i]), xs[i], layout)
                add_weighted(system, own, weighted.of_groups(part), layout)
            else:
                add_slopes(system, slopes.of_groups(part, first[i]), weighted.of_groups(part), layout)

    def _sizes_of(self, energy: Joinable, r: Residuals) -> list[int]:
        """How many of the groups of residuals, which come person by person, are of each."""
        if energy.name not in self._sizes:
            assert r.person is not None and bool((r.person.diff() >= 0).all()), energy.name
            self._sizes[energy.name] = torch.bincount(r.person, minlength=len(self.problems)).tolist()
        return self._sizes[energy.name]


def _joined(terms: Sequence[Term], views: Sequence[int]) -> Joinable | None:
    """The energy of all people; None where each has its own."""
    first = terms[0]
    if not isinstance(first.energy, Joinable) or first.energy.reduction != "sum" or not first.kernel.exact:
        return None
    return first.energy.join([t.energy for t in terms], views)


def _of_groups(lin: Linearization, part: slice, first: int) -> Linearization:
    """Of the person with these groups, whose views come after `first` others."""
    slots = tuple(
        Slot(slot.view[part] - first, {name: by[part] for name, by in slot.columns.items()})
        for slot in lin.slots
    )
    return replace(lin, slots=slots)


def _without_images(observations: Observations) -> Observations:
    """Crops of any sizes, so that they can be joined."""
    images, mask = observations.images[..., :0, :0], observations.mask[..., :0, :0]
    return replace(observations, images=images, mask=mask, labels=None)


def _with_offsets(xs: Sequence[SceneState]) -> list[SceneState]:
    """Zero offsets of the landmarks where others have some: `SceneState.join` would drop them."""
    if all(x.landmark_offset is None for x in xs):
        return list(xs)
    zero = [x.identity.new_zeros(len(x.identity), 68, 3) for x in xs]
    offsets = [z if x.landmark_offset is None else x.landmark_offset for x, z in zip(xs, zero)]
    return [x.replace(landmark_offset=o) for x, o in zip(xs, offsets)]
