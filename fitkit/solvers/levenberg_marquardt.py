"""Levenberg-Marquardt on least-squares problems of several people at once. Knows nothing about faces."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LMOptions:
    """max_iterations: accepted or refused steps; initial_damping: relative to the diagonal of the normal
    equations; min_decrease: stop when an accepted step lowers the cost by less than this share, or when a
    thousandth of that share is all the normal equations promise; max_damping: give up beyond."""

    max_iterations: int = 20
    initial_damping: float = 1e-3
    min_decrease: float = 1e-4
    max_damping: float = 1e8


@dataclass(frozen=True)
class SolverEnd:
    """How the solution of one person was found.

    status: 'converged', 'max_iterations', 'stalled' (no step lowers the cost) or 'failed' (cost not finite at
    the start); cost_history: cost at the start and after each accepted step; message: one line; iterations:
    steps that were tried.
    """

    status: str
    cost_history: tuple[float, ...]
    message: str
    iterations: int


@dataclass(frozen=True)
class SolverResult:
    """x: solution; people: how that of each person was found. What else it says is about the first of them,
    the only one of most problems."""

    x: Any
    people: tuple[SolverEnd, ...]

    @property
    def status(self) -> str:
        return self.people[0].status

    @property
    def cost_history(self) -> tuple[float, ...]:
        return self.people[0].cost_history

    @property
    def message(self) -> str:
        return self.people[0].message

    @property
    def iterations(self) -> int:
        return self.people[0].iterations


GOING, CONVERGED, STALLED, FAILED = range(4)
NAMES = ("max_iterations", "converged", "stalled", "failed")  # of those numbers, at the end
FEW = 0.75  # share of the people still going from which on the others are left out


def levenberg_marquardt(problem, x, options: LMOptions = LMOptions()) -> SolverResult:
    """Minimise problem.cost from x.

    The problem offers cost(x) -> [S] float64, of S people who have nothing in common; linearize(x) -> system
    with solve(damping), diagonal(), gradient and multiply(v), vectors of all people in turn; and retract(x,
    step), where a step of zeros changes nothing. Each person has a damping, steps that are accepted or not,
    and an end of its own. Who is done stays, and is left out of further work where the problem offers
    select(x, people) -> (problem, x) of these people alone, and join(xs) -> x. The cost never rises in an
    accepted step.

    Source:
        Damping by the gain ratio: Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05;
        scaling by the diagonal of the normal equations: Marquardt 1963.
    """
    whole, at = problem, _Progress.of(problem.cost(x), options)
    history, done, system = [at], [], None
    for _ in range(options.max_iterations):
        going = at.status == GOING
        left = int(going.sum())
        if left == 0:
            break
        if left <= FEW * len(going) and hasattr(problem, "select"):
            done.append((at, problem, x))
            keep = going.nonzero()[:, 0]
            problem, x = problem.select(x, keep.tolist())
            at, system = at.select(keep), None
        if system is None:
            system = problem.linearize(x)
        x, at, moved = _iteration(problem, x, at, system, options)
        history.append(at)
        system = None if moved else system
    done.append((at, problem, x))
    return SolverResult(_together(whole, done), _ends(history))


@dataclass(frozen=True)
class _Progress:
    """How far each person is, all [S]."""

    person: Tensor  # number among all
    cost: Tensor
    first: Tensor  # cost at the start
    status: Tensor
    damping: Tensor
    growth: Tensor  # of the damping, when the next step is refused
    accepted: Tensor  # whether the last step was, so that the next one is the first of a new system
    iterations: Tensor

    @staticmethod
    def of(cost: Tensor, options: LMOptions) -> _Progress:
        status = torch.where(cost < torch.inf, GOING, FAILED)
        damping, growth = torch.full_like(cost, options.initial_damping), torch.full_like(cost, 2.0)
        person = torch.arange(len(cost), device=cost.device)
        accepted, none = torch.ones_like(cost, dtype=torch.bool), torch.zeros_like(status)
        return _Progress(person, cost, cost, status, damping, growth, accepted, none)

    def select(self, people: Tensor) -> _Progress:
        return _Progress(*(getattr(self, f.name)[people] for f in fields(self)))


def _iteration(problem, x, at: _Progress, system, options: LMOptions) -> tuple[Any, _Progress, bool]:
    """Where all people are after one step of those who are still going, and whether anyone has moved."""
    S, going = len(at.cost), at.status == GOING
    diagonal = system.diagonal().reshape(S, -1)
    scale = torch.maximum(diagonal, 1e-8 * diagonal.amax(1, keepdim=True).clamp_min(1e-30))
    step = system.solve((at.damping.to(scale)[:, None] * scale).reshape(-1)).reshape(S, -1)
    usable = going & torch.isfinite(step).all(1)
    step = _of(usable, step)
    curved = system.multiply(step.reshape(-1)).reshape(S, -1)
    gradient = system.gradient.reshape(S, -1)
    predicted = -((gradient * step).sum(1) + 0.5 * (step * curved).sum(1)).to(at.cost)
    least = torch.maximum(1e-3 * options.min_decrease * at.cost, 1e-15 * at.first)
    ended = usable & at.accepted & ~(predicted > least)
    trying = usable & ~ended
    candidate, cost = x, at.cost
    if bool(trying.any()):
        candidate = problem.retract(x, _of(trying, step).reshape(-1))
        cost = problem.cost(candidate)
    gain = (at.cost - cost) / predicted
    accepted = trying & (predicted > 0) & (cost < torch.inf) & (gain > 0)
    refused = going & ~ended & ~accepted
    moved, all_moved = torch.stack([accepted.any(), (accepted == trying).all()]).tolist()
    if moved:
        x = candidate if all_moved else problem.retract(x, _of(accepted, step).reshape(-1))
    less = at.damping * torch.clamp(1 - (2 * gain - 1) ** 3, min=1 / 10)
    damping = torch.where(accepted, less, torch.where(refused, at.damping * at.growth, at.damping))
    small = (at.cost - cost) / at.cost.clamp_min(1e-30) < options.min_decrease
    status = torch.where(ended | (accepted & small), CONVERGED, at.status)
    status = torch.where(refused & (damping > options.max_damping), STALLED, status)
    after = replace(
        at,
        cost=torch.where(accepted, cost, at.cost),
        status=status,
        damping=damping,
        growth=torch.where(accepted, 2.0, torch.where(refused, at.growth * 2, at.growth)),
        accepted=accepted,
        iterations=at.iterations + going,
    )
    return x, after, moved


def _of(people: Tensor, step: Tensor) -> Tensor:
    """The step [S, N] with zeros for all but some people [S] bool."""
    return torch.where(people[:, None], step, torch.zeros_like(step))


def _together(problem, done: list[tuple[_Progress, Any, Any]]) -> Any:
    """The solution of all people, of those who were left out as they were last."""
    if len(done) == 1:
        return done[0][2]
    found = {}
    for at, part, x in done:
        for number, person in enumerate(at.person.tolist()):
            found[person] = part, x, number, len(at.person) == 1
    ends = [found[person] for person in range(len(found))]
    return problem.join([x if alone else part.select(x, [i])[1] for part, x, i, alone in ends])


def _ends(history: list[_Progress]) -> tuple[SolverEnd, ...]:
    """How each person's solution was found; history: the start, and after each iteration."""
    first, *rest = history
    costs = [[cost] for cost in first.cost.tolist()]
    last = list(zip(first.status.tolist(), first.iterations.tolist()))
    for at in rest:
        columns = (at.person, at.cost, at.accepted, at.status, at.iterations)
        for person, cost, accepted, status, iterations in zip(*(c.tolist() for c in columns)):
            costs[person] += [cost] if accepted else []
            last[person] = status, iterations
    return tuple(_end(NAMES[status], tuple(c), done) for c, (status, done) in zip(costs, last))


def _end(status: str, costs: tuple[float, ...], iterations: int) -> SolverEnd:
    message = f"{status} after {iterations} iterations, cost {costs[0]:.6g} -> {costs[-1]:.6g}"
    if status == "failed":
        message = f"the cost at the start is {costs[0]}"
    return SolverEnd(status, costs, message, iterations)
