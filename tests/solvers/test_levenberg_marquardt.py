import math

import pytest
import torch

from fitkit.solvers.arrow import ArrowSystem
from fitkit.solvers.levenberg_marquardt import (
    LMOptions,
    levenberg_marquardt,
    levenberg_marquardt_side_by_side,
)


class Problem:
    """Half the squared length of residual(x) for a vector x; Jacobian by autograd, one view without shared
    parameters."""

    def __init__(self, residual):
        self.residual, self.costs = residual, []

    def cost(self, x):
        cost = (0.5 * (self.residual(x) ** 2).sum()).double()
        self.costs.append(float(cost))
        return cost[None]

    def linearize(self, x):
        J, r = torch.autograd.functional.jacobian(self.residual, x), self.residual(x)
        n = len(x)
        system = ArrowSystem.zeros(1, 0, n, dtype=x.dtype, device=x.device)
        first, index = torch.tensor([0], device=x.device), torch.arange(n, device=x.device)[None]
        system.add_view(first, index, (J.T @ J)[None], (J.T @ r)[None])
        return system

    def retract(self, x, step):
        return x + step


def rosenbrock(x):
    return torch.stack([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]]).flatten()


TIGHT = LMOptions(max_iterations=200, min_decrease=1e-12)


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -4.0], [-1.2, 1.0, -0.5, 2.0, 0.3]])
def test_rosenbrock(start):
    result = levenberg_marquardt(Problem(rosenbrock), torch.tensor(start, dtype=torch.float64), TIGHT)
    assert result.status == "converged" and result.iterations < 60
    torch.testing.assert_close(result.x, torch.ones(len(start), dtype=torch.float64), atol=1e-6, rtol=0)


def test_every_device_and_precision_finds_the_minimum(device, dtype):
    start = torch.tensor([-1.2, 1.0], dtype=dtype, device=device)
    result = levenberg_marquardt(Problem(rosenbrock), start, LMOptions(max_iterations=200))
    assert result.x.device.type == device.type and result.x.dtype == dtype
    torch.testing.assert_close(result.x.cpu().double(), torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_cost_never_rises_and_the_history_is_that_of_the_accepted_steps(seed):
    gen = torch.Generator().manual_seed(seed)
    A = torch.randn(9, 4, generator=gen, dtype=torch.float64)
    b = torch.randn(9, generator=gen, dtype=torch.float64)

    def wild(x):
        return torch.sin(3 * A @ x) * 2 + (A @ x) - b

    problem, start = Problem(wild), 3 * torch.randn(4, generator=gen, dtype=torch.float64)
    result = levenberg_marquardt(problem, start, TIGHT)
    history = torch.tensor(result.cost_history, dtype=torch.float64)
    assert bool((history.diff() < 0).all()) and len(history) > 3
    assert result.cost_history[0] == problem.costs[0] and result.cost_history[-1] == float(
        Problem(wild).cost(result.x)
    )


def test_linear_problem_takes_one_step():
    gen = torch.Generator().manual_seed(0)
    A, b = (
        torch.randn(12, 5, generator=gen, dtype=torch.float64),
        torch.randn(12, generator=gen, dtype=torch.float64),
    )
    result = levenberg_marquardt(
        Problem(lambda x: A @ x - b),
        torch.zeros(5, dtype=torch.float64),
        LMOptions(max_iterations=1, initial_damping=1e-12),
    )
    torch.testing.assert_close(result.x, torch.linalg.lstsq(A, b[:, None]).solution[:, 0])
    assert (
        result.status == "max_iterations"
        and len(result.cost_history) == 2
        and "max_iterations after 1 iterations" in result.message
    )


def test_a_parameter_without_influence_stays():
    result = levenberg_marquardt(
        Problem(lambda x: x[:2] - 3), torch.tensor([0.0, 0, 7], dtype=torch.float64), TIGHT
    )
    torch.testing.assert_close(result.x, torch.tensor([3.0, 3, 7], dtype=torch.float64))


@pytest.mark.parametrize(
    "residual", [lambda x: x - 2, lambda x: torch.cat([x - 2, 5 + 0 * x])], ids=["cost 0", "cost left"]
)
def test_start_at_the_minimum_is_converged(residual):
    start = torch.full((2,), 2.0, dtype=torch.float64)
    result = levenberg_marquardt(Problem(residual), start)
    assert result.status == "converged" and result.iterations == 1 and torch.equal(result.x, start)


def test_stalled_when_no_step_lowers_the_cost():
    class Wrong(Problem):
        def retract(self, x, step):
            return x - step  # uphill, however short the step

    start = torch.tensor([5.0, 1.0], dtype=torch.float64)
    result = levenberg_marquardt(Wrong(rosenbrock), start, LMOptions(max_iterations=100))
    assert result.status == "stalled" and torch.equal(result.x, start) and len(result.cost_history) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_failed_when_the_cost_is_not_finite_at_the_start(value):
    result = levenberg_marquardt(Problem(lambda x: x * value), torch.ones(2, dtype=torch.float64))
    assert (
        result.status == "failed"
        and result.iterations == 0
        and f"the cost at the start is {value}" in result.message
    )


def test_steps_into_not_a_number_are_refused():
    # log needs x > 0; the first Gauss-Newton step from 8 overshoots to a negative x.
    problem = Problem(lambda x: torch.log(x))
    result = levenberg_marquardt(problem, torch.full((1,), 8.0, dtype=torch.float64), TIGHT)
    assert any(math.isnan(c) for c in problem.costs)
    assert result.status == "converged" and abs(float(result.x) - 1) < 1e-5


def test_no_iterations():
    start = torch.zeros(2, dtype=torch.float64)
    result = levenberg_marquardt(Problem(rosenbrock), start, LMOptions(max_iterations=0))
    assert (
        result.status == "max_iterations" and torch.equal(result.x, start) and result.cost_history == (0.5,)
    )


# ---- several people ----


class People:
    """Problems of several people, who have nothing in common; counts what is asked for at the same time."""

    def __init__(self, problems):
        self.problems, self.asked = problems, []

    def costs(self, numbers, xs):
        self.asked.append(("costs", list(numbers)))
        return [float(self.problems[i].cost(x)) for i, x in zip(numbers, xs)]

    def systems(self, numbers, xs):
        self.asked.append(("systems", list(numbers)))
        return [self.problems[i].linearize(x) for i, x in zip(numbers, xs)]

    def retract(self, number, x, step):
        return self.problems[number].retract(x, step)


class Uphill(Problem):
    def linearize(self, x):
        system = super().linearize(x)
        system.gradient.neg_()
        return system


def five_people():
    starts = [[-1.2, 1.0], [3.0, -4.0, 1.0], [1.0, 1.0], [2.0, 2.0], [0.5, 0.5]]
    problems = [Problem(rosenbrock) for _ in starts]
    problems[3] = Problem(lambda x: x * math.nan)
    problems[4] = Uphill(rosenbrock)
    return People(problems), [torch.tensor(start, dtype=torch.float64) for start in starts]


@pytest.mark.parametrize("options", [TIGHT, LMOptions(max_iterations=7)], ids=["end", "few"])
def test_each_of_several_people_goes_its_own_way(options):
    people, starts = five_people()
    found = levenberg_marquardt_side_by_side(people, starts, options)
    assert len({result.iterations for result in found}) > 2
    for result, problem, start in zip(found, people.problems, starts):
        alone = levenberg_marquardt(problem, start, options)
        assert torch.equal(result.x, alone.x) and result.message == alone.message
        told = [(r.status, r.iterations, r.cost_history) for r in (result, alone)]
        assert str(told[0]) == str(told[1])  # not a number is no equal of itself
    if options is TIGHT:
        ends = [result.status for result in found]
        assert ends == ["converged", "converged", "converged", "failed", "stalled"]


def test_people_ask_together_and_who_is_done_costs_nothing():
    people, starts = five_people()
    levenberg_marquardt_side_by_side(people, starts, TIGHT)
    # All but the one whose cost is not finite; one begins at the minimum, so that no step is tried.
    first = [("costs", [0, 1, 2, 3, 4]), ("systems", [0, 1, 2, 4]), ("costs", [0, 1, 4])]
    assert people.asked[:3] == first
    assert not any({2, 3} & set(numbers) for _, numbers in people.asked[3:])
    rounds = [what for what, _ in people.asked]
    assert rounds.count("costs") == max(len(p.costs) for p in people.problems)


def test_nobody_is_solved_to_nothing():
    assert levenberg_marquardt_side_by_side(People([]), []) == []
