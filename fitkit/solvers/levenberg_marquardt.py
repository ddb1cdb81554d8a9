"""Levenberg-Marquardt on a least-squares problem. Knows nothing about faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """x: solution; status: 'converged', 'max_iterations', 'stalled' (no step lowers the cost) or 'failed'
    (cost not finite at the start); cost_history: cost at the start and after each accepted step; message: one
    line."""

    x: Any
    status: str
    cost_history: tuple[float, ...]
    message: str
    iterations: int


def levenberg_marquardt(problem, x, options: LMOptions = LMOptions()) -> SolverResult:
    """Minimise problem.cost from x.

    The problem offers cost(x) -> float, linearize(x) -> system with solve(damping), diagonal(), gradient and
    multiply(v), and retract(x, step). The cost never rises in an accepted step.

    Source:
        Damping by the gain ratio: Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05;
        scaling by the diagonal of the normal equations: Marquardt 1963.
    """
    cost = problem.cost(x)
    history = [cost]
    if not cost < float("inf"):
        return SolverResult(x, "failed", (cost,), f"the cost at the start is {cost}", 0)
    damping, growth = options.initial_damping, 2.0
    system = None
    status = "max_iterations"
    done = 0
    for done in range(1, options.max_iterations + 1):  # noqa: B007 - told below
        if system is None:
            system = problem.linearize(x)
            diagonal = system.diagonal()
            floor = 1e-8 * diagonal.max().clamp_min(1e-30)
            scale = diagonal.clamp_min(float(floor))
            fresh = True
        step = system.solve(damping * scale)
        gain = -1.0
        if step is not None and bool(torch.isfinite(step).all()):
            predicted = -float(system.gradient @ step + 0.5 * (step @ system.multiply(step)))
            if fresh and not predicted > max(1e-3 * options.min_decrease * cost, 1e-15 * history[0]):
                status = "converged"
                break
            candidate = problem.retract(x, step)
            new_cost = problem.cost(candidate)
            gain = (cost - new_cost) / predicted if predicted > 0 and new_cost < float("inf") else -1.0
        fresh = False
        if gain > 0:
            decrease = (cost - new_cost) / max(cost, 1e-30)
            x, cost, system = candidate, new_cost, None
            history.append(cost)
            damping *= max(1 / 10, 1 - (2 * gain - 1) ** 3)
            growth = 2.0
            if decrease < options.min_decrease:
                status = "converged"
                break
        else:
            damping *= growth
            growth *= 2
            if damping > options.max_damping:
                status = "stalled"
                break
    return SolverResult(
        x,
        status,
        tuple(history),
        f"{status} after {done} iterations, cost {history[0]:.6g} -> {cost:.6g}",
        done,
    )
