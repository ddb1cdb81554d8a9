"""Adam on any differentiable cost: the slow path for energies without a least-squares form, and the
yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fitkit.solvers.levenberg_marquardt import SolverResult


@dataclass(frozen=True)
class AdamOptions:
    """learning_rate: step length in each parameter's own scale; it falls to a tenth along a half cosine."""

    iterations: int = 200
    learning_rate: float = 0.01


def adam(
    problem, x, options: AdamOptions = AdamOptions(), progress: Callable[[float], None] = lambda share: None
) -> SolverResult:
    """Minimise problem.differentiable_cost over the step vector by Adam; the best point met is the solution.

    The problem offers size -> int, scales -> tensor [size] (typical change of each parameter), retract(x,
    step) and differentiable_cost(x, done) -> scalar tensor, which may fix visibility anew in every call;
    done: share of the iterations that are done, which `progress` is called with as well.
    """
    step = torch.zeros(problem.size, requires_grad=True, device=problem.scales.device)
    optimizer = torch.optim.Adam([step], lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, options.iterations), eta_min=options.learning_rate / 10
    )
    history: list[float] = []
    for number in range(options.iterations):
        progress(number / options.iterations)
        optimizer.zero_grad()
        cost = problem.differentiable_cost(
            problem.retract(x, step * problem.scales), number / options.iterations
        )
        if not bool(torch.isfinite(cost)):
            message = f"the cost became {float(cost.detach())} in iteration {len(history) + 1}"
            return SolverResult(x, "failed", tuple(history), message, len(history))
        if not history or float(cost.detach()) < min(history):
            best = step.detach().clone()
        cost.backward()
        optimizer.step()
        schedule.step()
        history.append(float(cost.detach()))
    solution = problem.retract(x, best * problem.scales) if history else x
    message = "no iterations"
    if history:
        message = f"{options.iterations} Adam iterations, cost {history[0]:.6g} -> {history[-1]:.6g}"
    return SolverResult(solution, "max_iterations", tuple(history), message, len(history))
