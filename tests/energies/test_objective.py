from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.base import Residuals
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.priors import ExpressionPrior, IdentityPrior
from fitkit.scene.layout import BLOCKS, ParameterLayout, retract
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
TRUTH = tiny_state(MODEL, 3)
OBS = observe(MODEL, TRUTH)
START = TRUTH.replace(
    identity=torch.zeros_like(TRUTH.identity),
    pose=TRUTH.pose.retract(
        torch.tensor([[0.05, -0.08, 0.03, 6, -4, 15]], dtype=torch.float64).expand(3, -1)
    ),
)
LANDMARKS = LandmarkReprojection(MODEL, torch.full((3, 68), 1.5, dtype=torch.float64), "surface")
OBJECTIVE = Objective(
    [Term(LANDMARKS, 1.0, Kernel("huber", 3.0)), Term(IdentityPrior(), 0.5), Term(ExpressionPrior(), 2.0)]
)


class Fixed:
    """An energy without a least-squares form; `items` valid ones out of four."""

    name, reduction = "fixed", "mean"

    def __init__(self, values, valid, weight=None):
        self.values, self.valid, self.weight = values, valid, weight

    def freeze(self, state, observations):
        return self

    def residuals(self, state, observations):
        return Residuals(
            self.values + (state.camera.focal[0] - TRUTH.camera.focal[0]), self.valid, self.weight
        )


def test_terms_add_up():
    layout = ParameterLayout.of(START, BLOCKS)
    total, report = OBJECTIVE.cost(START, OBS)
    assert float(total) == pytest.approx(sum(t.value for t in report.values()))
    assert set(report) == {"lmk2d", "identity_prior", "expression_prior"}
    whole = OBJECTIVE.linearize(START, OBS, layout)
    parts = [Objective([t]).linearize(START, OBS, layout) for t in OBJECTIVE.terms]
    torch.testing.assert_close(whole.dense(), sum(p.dense() for p in parts))
    torch.testing.assert_close(whole.gradient, sum(p.gradient for p in parts))


def test_every_device_and_precision_gives_the_same_system(device, dtype):
    def moved(x):
        return x.to(device, dtype if x.is_floating_point() else None)

    landmarks = OBS.landmarks
    points = replace(landmarks, **{k: moved(getattr(landmarks, k)) for k in ("points", "sigma", "valid")})
    observations, state = replace(OBS, landmarks=points), START.to(device, dtype)
    energy = LandmarkReprojection(MODEL.to(device, dtype), moved(torch.full((3, 68), 1.5)), "surface")
    objective = Objective([replace(OBJECTIVE.terms[0], energy=energy), *OBJECTIVE.terms[1:]])
    layout = ParameterLayout.of(START, ("identity", "expression", "pose"))
    expected, found = (
        o.linearize(s, obs, layout)
        for o, s, obs in ((OBJECTIVE, START, OBS), (objective, state, observations))
    )
    assert found.gradient.device.type == device.type
    scale, close = float(expected.gradient.abs().max()), 1e-8 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(found.gradient.cpu().double(), expected.gradient, rtol=0, atol=close * scale)
    cost, _ = objective.cost(state, observations)
    assert float(cost) == pytest.approx(float(OBJECTIVE.cost(START, OBS)[0]), rel=close)


def test_mean_and_sum():
    values = torch.tensor([[[3.0], [4.0], [torch.nan], [1e30]]], dtype=torch.float64)
    valid = torch.tensor([[True, True, False, False]])
    energy = Fixed(values, valid)
    cost, report = Objective([Term(energy, 10.0)]).cost(TRUTH, OBS)
    assert float(cost) == pytest.approx(10 * (9 + 16) / 2 / 2)
    assert report["fixed"].valid == 2 and report["fixed"].rms == pytest.approx((25 / 2) ** 0.5)
    energy.reduction = "sum"
    assert float(Objective([Term(energy, 10.0)]).cost(TRUTH, OBS)[0]) == pytest.approx(10 * (9 + 16) / 2)


def test_trust_weighs_the_mean():
    values = torch.tensor([[[3.0], [4.0], [5.0], [6.0]]], dtype=torch.float64)
    trust = torch.tensor([[1.0, 0.5, 0.5, torch.nan]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False]])
    cost, _ = Objective([Term(Fixed(values, valid, trust))]).cost(TRUTH, OBS)
    assert float(cost) == pytest.approx((9 + 8 + 12.5) / 2 / 2)  # the trusts add up to 2


def test_kernel_l1_counts_each_component():
    values = torch.tensor([[[3.0, -4.0]]], dtype=torch.float64)
    energy = Fixed(values, torch.ones(1, 1, dtype=torch.bool))
    cost = {
        name: float(Objective([Term(energy, 1.0, Kernel(name, 1e-6))]).cost(TRUTH, OBS)[0]) / 1e-6
        for name in ("l1", "l2n")
    }
    assert cost == pytest.approx({"l1": 7.0, "l2n": 5.0}, abs=1e-4)


def test_nothing_valid_costs_nothing_and_has_a_finite_gradient():
    values = torch.full((1, 4, 1), torch.nan, dtype=torch.float64)
    energy = Fixed(values, torch.zeros(1, 4, dtype=torch.bool))
    for kernel in (Kernel(), Kernel("l1", 0.1), Kernel("huber", 1.0)):
        focal = TRUTH.camera.focal.clone().requires_grad_()
        cost, report = Objective([Term(energy, 1.0, kernel)]).cost(
            TRUTH.replace(camera=replace(TRUTH.camera, focal=focal)), OBS
        )
        cost.backward()
        assert float(cost.detach()) == 0 and report["fixed"].valid == 0 and report["fixed"].rms == 0
        assert float(focal.grad.abs().max()) == 0


def test_an_energy_without_derivatives_of_its_own_gets_them():
    """Its four equal residuals are 1 + focal length of view 0 - true one, their mean counts."""
    energy = Fixed(torch.ones(1, 4, 1, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool))
    layout = ParameterLayout.of(TRUTH, ("pose", "focal"))
    system = Objective([Term(energy)]).linearize(TRUTH, OBS, layout)
    expected = torch.zeros(layout.total, dtype=torch.float64)
    expected[layout.index[0, 6]] = TRUTH.camera.focal[0]
    torch.testing.assert_close(system.gradient, expected)
    torch.testing.assert_close(system.dense(), torch.outer(expected, expected))


@pytest.mark.parametrize(
    "owners",
    [{}, {"expression": torch.zeros(3), "pose": torch.zeros(3)}],
    ids=["own", "shared"],
)
def test_both_solvers_find_the_same_minimum(owners):
    layout = ParameterLayout.of(START, ("identity", "expression", "pose"), owners)
    problem = LeastSquaresProblem(OBJECTIVE, OBS, layout)
    second = levenberg_marquardt(problem, START, LMOptions(100, min_decrease=1e-10))
    assert second.status == "converged"
    gradient = problem.linearize(second.x).gradient * problem.scales
    assert float(gradient.abs().max()) < 1e-3 * float(
        (problem.linearize(START).gradient * problem.scales).abs().max()
    )
    first = adam(problem, START, AdamOptions(150, 0.1))
    assert first.cost_history[-1] < 0.05 * first.cost_history[0]
    assert second.cost_history[-1] <= first.cost_history[-1] < 2 * second.cost_history[-1] + 1


def test_scales_follow_the_layout():
    layout = ParameterLayout.of(START, BLOCKS, {"focal": torch.zeros(3)})
    scales = LeastSquaresProblem(OBJECTIVE, OBS, layout).scales
    parts = layout.split(scales)
    assert len(scales) == layout.total and bool((scales > 0).all())
    assert torch.equal(parts["pose"], torch.tensor([0.05, 0.05, 0.05, 5, 5, 20]).expand(3, -1))
    assert torch.equal(parts["focal"], torch.full((3, 1), 0.2)) and torch.equal(
        parts["identity"], torch.ones(3, 8)
    )


def test_problem_cost_is_that_of_the_retracted_state():
    layout = ParameterLayout.of(START, ("identity", "pose"))
    problem = LeastSquaresProblem(OBJECTIVE, OBS, layout)
    step = 0.01 * torch.randn(layout.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert problem.cost(problem.retract(START, step)) == float(
        OBJECTIVE.cost(retract(START, step, layout), OBS)[0]
    )
    assert problem.size == layout.total


def test_a_camera_inside_the_head_is_never_a_gain():
    """All points lie behind such a camera, are not valid and cost nothing."""
    layout = ParameterLayout.of(TRUTH, BLOCKS)
    problem = LeastSquaresProblem(Objective([Term(LANDMARKS)]), OBS, layout)
    depth = TRUTH.pose.translation.clone()
    depth[1, 2] = -200.0
    inside = START.replace(pose=replace(TRUTH.pose, translation=depth))
    _, report = problem.objective.cost(inside, OBS)
    assert report["lmk2d"].valid < int(OBS.landmarks.valid.sum())
    assert problem.cost(inside) == float("inf") > problem.cost(START)
    flat = inside.replace(camera=replace(inside.camera, kind="orthographic"))
    assert problem.cost(flat) < float("inf")  # it looks from far away


def rig_of_moments():
    """Three moments of two cameras: what is there, where a fit starts, and who owns what."""
    moment = torch.arange(6) // 2
    truth = tiny_state(MODEL, 6)
    truth = truth.replace(expression=truth.expression[moment])
    turn = 0.05 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = truth.replace(
        identity=torch.zeros_like(truth.identity),
        expression=torch.zeros_like(truth.expression),
        pose=truth.pose.retract(turn[moment]),
        camera=replace(truth.camera, focal=1.03 * truth.camera.focal),
    )
    return truth, start, {"expression": moment, "pose": moment, "focal": torch.arange(6) % 2}, moment


def test_moments_that_are_eliminated_give_the_steps_of_shared_ones():
    truth, start, owners, moment = rig_of_moments()
    observed = observe(MODEL, truth)
    landmarks = LandmarkReprojection(MODEL, torch.full((6, 68), 1.5, dtype=torch.float64), "surface")
    objective = Objective([Term(landmarks), Term(IdentityPrior()), Term(ExpressionPrior())])
    free = ("identity", "expression", "pose", "focal")
    steps = []
    for moments in (None, moment):
        layout = ParameterLayout.of(start, free, owners, moments)
        system = LeastSquaresProblem(objective, observed, layout).linearize(start)
        assert system.num_owners * system.num_own == (0 if moments is None else 3 * 12)
        step = system.solve(torch.full((layout.total,), 0.1, dtype=torch.float64))
        steps.append(layout.split(step))
    for name in free:
        torch.testing.assert_close(steps[0][name], steps[1][name])


def test_the_head_and_the_expression_of_each_moment_are_found_again():
    truth, start, owners, moment = rig_of_moments()
    landmarks = LandmarkReprojection(MODEL, torch.full((6, 68), 1.5, dtype=torch.float64), "surface")
    layout = ParameterLayout.of(start, ("identity", "expression", "pose"), owners, moment)
    start = start.replace(camera=truth.camera)
    problem = LeastSquaresProblem(Objective([Term(landmarks)]), observe(MODEL, truth), layout)
    found = levenberg_marquardt(problem, start, LMOptions(100, min_decrease=1e-12)).x
    assert problem.cost(found) < 1e-12 * problem.cost(start)
    apart = found.pose.apply(found.vertices(MODEL)) - truth.pose.apply(truth.vertices(MODEL))
    assert float(apart.norm(dim=-1).max()) < 1e-3
    assert torch.equal(found.expression[::2], found.expression[1::2])
