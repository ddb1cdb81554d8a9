"""Levenberg-Marquardt on least-squares problems of several people at once. Knows nothing about faces."""

from __future__ import annotations

from dataclasses import dataclass
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
    """x: solution; people: how that of each person was found. The rest is said of the first, whom a problem of
    one person is about."""

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


def levenberg_marquardt(problem, x, options: LMOptions = LMOptions()) -> SolverResult:
    """Minimise problem.cost from x.

    The problem offers cost(x) -> [S] float64, of S people who have nothing in common; linearize(x) -> system
    with solve(damping), diagonal(), gradient and multiply(v), vectors of all people in turn; and retract(x,
    step), where a step of zeros changes nothing that matters. Each person has a damping, steps that are
    accepted or not, and an end of its own; who is done, stays. The cost never rises in an accepted step.

    Source:
        Damping by the gain ratio: Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05;
        scaling by the diagonal of the normal equations: Marquardt 1963.
    """
    cost = problem.cost(x)
    S, first, history = len(cost), cost, [cost]
    status = torch.where(cost < torch.inf, GOING, FAILED)
    damping = torch.full_like(cost, options.initial_damping)
    growth = torch.full_like(cost, 2.0)
    fresh = torch.ones_like(cost, dtype=torch.bool)  # not tried yet since the last step
    iterations = torch.zeros_like(status)
    system = None
    for _ in range(options.max_iterations):
        going = status == GOING
        if not bool(going.any()):
            break
        iterations = iterations + going
        if system is None:
            system = problem.linearize(x)
            diagonal = system.diagonal().reshape(S, -1)
            scale = torch.maximum(diagonal, 1e-8 * diagonal.amax(1, keepdim=True).clamp_min(1e-30))
        step = system.solve((damping.to(scale)[:, None] * scale).reshape(-1)).reshape(S, -1)
        usable = going & torch.isfinite(step).all(1)
        step = torch.where(usable[:, None], step, torch.zeros_like(step))
        predicted = -_dots(system.gradient + 0.5 * system.multiply(step.reshape(-1)), step).to(cost)
        least = torch.maximum(1e-3 * options.min_decrease * cost, 1e-15 * first)
        ended = usable & fresh & ~(predicted > least)
        status = torch.where(ended, CONVERGED, status)
        trying = usable & ~ended
        if not bool(trying.any()) and not bool((status == GOING).any()):
            break
        candidate = problem.retract(x, torch.where(trying[:, None], step, torch.zeros_like(step)).reshape(-1))
        new_cost = problem.cost(candidate)
        gain = (cost - new_cost) / predicted
        accepted = trying & (predicted > 0) & (new_cost < torch.inf) & (gain > 0)
        if bool(accepted.any()):
            if bool((accepted == trying).all()):
                x = candidate
            else:
                x = problem.retract(
                    x, torch.where(accepted[:, None], step, torch.zeros_like(step)).reshape(-1)
                )
            system = None
        decrease = (cost - new_cost) / cost.clamp_min(1e-30)
        cost = torch.where(accepted, new_cost, cost)
        history.append(torch.where(accepted, cost, torch.nan))
        less = torch.clamp(1 - (2 * gain - 1) ** 3, min=1 / 10)
        refused = (status == GOING) & ~accepted
        damping = torch.where(accepted, damping * less, torch.where(refused, damping * growth, damping))
        growth = torch.where(accepted, torch.full_like(growth, 2.0), torch.where(refused, growth * 2, growth))
        fresh = accepted
        status = torch.where(accepted & (decrease < options.min_decrease), CONVERGED, status)
        status = torch.where(refused & (damping > options.max_damping), STALLED, status)
    return SolverResult(x, _ends(torch.stack(history), status, iterations))


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of each person, [S], of a [S N] and b [S, N]."""
    return (a.reshape(b.shape) * b).sum(1)


def _ends(history: Tensor, status: Tensor, iterations: Tensor) -> tuple[SolverEnd, ...]:
    """history: [1 + n, S], not a number where a step was not accepted."""
    people = []
    for costs, number, done in zip(history.T.tolist(), status.tolist(), iterations.tolist()):
        name = NAMES[number]
        if name == "failed":
            people.append(SolverEnd(name, (costs[0],), f"the cost at the start is {costs[0]}", 0))
            continue
        kept = tuple(c for c in costs if c == c)
        message = f"{name} after {done} iterations, cost {kept[0]:.6g} -> {kept[-1]:.6g}"
        people.append(SolverEnd(name, kept, message, done))
    return tuple(people)
