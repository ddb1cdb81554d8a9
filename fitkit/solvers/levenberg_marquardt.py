"""Levenberg-Marquardt on least-squares problems, of several at the same time. Knows nothing about faces."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch


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
class SolverResult:
    """x: solution; how it was found:

    status: 'converged', 'max_iterations', 'stalled' (no step lowers the cost) or 'failed' (cost not finite at
    the start); cost_history: cost at the start and after each accepted step; message: one line; iterations:
    steps that were tried.
    """

    x: Any
    status: str
    cost_history: tuple[float, ...]
    message: str
    iterations: int


class Problems(Protocol):
    """Problems whose costs and normal equations are asked for together: those of `numbers` at xs."""

    def costs(self, numbers: Sequence[int], xs: Sequence[Any]) -> Sequence[float]: ...

    def systems(self, numbers: Sequence[int], xs: Sequence[Any]) -> Sequence[Any]: ...

    def retract(self, number: int, x: Any, step: Any) -> Any: ...


class _One:
    """A problem as the only one of several."""

    def __init__(self, problem):
        self.problem = problem

    def costs(self, numbers: Sequence[int], xs: Sequence[Any]) -> list[float]:
        return [float(self.problem.cost(x)) for x in xs]

    def systems(self, numbers: Sequence[int], xs: Sequence[Any]) -> list[Any]:
        return [self.problem.linearize(x) for x in xs]

    def retract(self, number: int, x: Any, step: Any) -> Any:
        return self.problem.retract(x, step)


def levenberg_marquardt(problem, x, options: LMOptions = LMOptions()) -> SolverResult:
    """Minimise problem.cost from x.

    The problem offers cost(x) -> float64 scalar or [1]; linearize(x) -> system with solve(damping),
    diagonal(), gradient and multiply(v); and retract(x, step). The cost never rises in an accepted step.

    Source:
        Damping by the gain ratio: Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05;
        scaling by the diagonal of the normal equations: Marquardt 1963.
    """
    return levenberg_marquardt_side_by_side(_One(problem), [x], options)[0]


def levenberg_marquardt_side_by_side(
    problems: Problems, xs: Sequence[Any], options: LMOptions = LMOptions()
) -> list[SolverResult]:
    """`levenberg_marquardt` for several problems that have nothing in common, from xs.

    Each goes its own way: its damping, its steps and its end are those that it has alone. What they want to
    know at the same time is asked for together, so that it can be found at once.
    """
    searches = [_search(problems, number, x, options) for number, x in enumerate(xs)]
    asked = {number: next(search) for number, search in enumerate(searches)}
    ends: dict[int, SolverResult] = {}
    while asked:
        # A system leads to the question for a cost, which all then have at the same time.
        for what, find in (("system", problems.systems), ("cost", problems.costs)):
            numbers = [number for number, (wanted, _) in asked.items() if wanted == what]
            answers = find(numbers, [asked[number][1] for number in numbers]) if numbers else ()
            for number, answer in zip(numbers, answers):
                try:
                    asked[number] = searches[number].send(answer)
                except StopIteration as end:
                    ends[number] = end.value
                    del asked[number]
    return [ends[number] for number in range(len(ends))]


Question = tuple[Literal["system", "cost"], Any]


def _search(
    problems: Problems, number: int, x: Any, options: LMOptions
) -> Generator[Question, Any, SolverResult]:
    """Asks for the costs and systems of one problem and returns its solution."""
    cost = yield "cost", x
    first, history, iterations = cost, [cost], 0
    if not cost < math.inf:
        return SolverResult(x, "failed", (cost,), f"the cost at the start is {cost}", 0)
    damping, growth, system, status = options.initial_damping, 2.0, None, "max_iterations"
    while status == "max_iterations" and iterations < options.max_iterations:
        anew, iterations = system is None, iterations + 1
        if system is None:
            system = yield "system", x
        diagonal = system.diagonal()
        scale = torch.maximum(diagonal, 1e-8 * diagonal.amax().clamp_min(1e-30))
        step = system.solve(damping * scale)
        predicted = -((system.gradient * step).sum() + 0.5 * (step * system.multiply(step)).sum()).double()
        usable, predicted = torch.stack([torch.isfinite(step).all().double(), predicted]).tolist()
        least = max(1e-3 * options.min_decrease * cost, 1e-15 * first)
        if usable and anew and not predicted > least:
            status = "converged"
            break
        if usable:
            candidate = problems.retract(number, x, step)
            tried = yield "cost", candidate
            if predicted > 0 and tried < math.inf and (cost - tried) / predicted > 0:
                d = 2 * ((cost - tried) / predicted) - 1
                if (cost - tried) / max(cost, 1e-30) < options.min_decrease:
                    status = "converged"
                x, cost, system = candidate, tried, None
                damping, growth = damping * max(1 - d * d * d, 1 / 10), 2.0
                history.append(cost)
                continue
        damping, growth = damping * growth, 2 * growth
        if damping > options.max_damping:
            status = "stalled"
    message = f"{status} after {iterations} iterations, cost {first:.6g} -> {cost:.6g}"
    return SolverResult(x, status, tuple(history), message, iterations)
