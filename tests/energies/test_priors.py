import math
from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_joints, tiny_model, tiny_skinned_model, tiny_state

from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term
from fitkit.energies.priors import (
    AspectPrior,
    ExpressionPrior,
    FocalPrior,
    IdentityPrior,
    JointPrior,
    LandmarkOffsetPrior,
    LightPrior,
    MeanCoefficientPrior,
    PrincipalPrior,
    shape_spread,
)
from fitkit.energies.registry import find
from fitkit.energies.spec import Context, EnergyOptions, ExpressionOptions
from fitkit.scene.layout import BLOCKS, ParameterLayout, retract
from fitkit.tensors import move

MODEL = tiny_model(dtype=torch.float64)
STATE = tiny_state(MODEL, 3)
STATE = STATE.replace(expression=STATE.expression - 0.15)  # both signs
OFFSET_GEN = torch.Generator().manual_seed(11)
STATE = STATE.replace(landmark_offset=torch.randn(1, 68, 3, generator=OFFSET_GEN, dtype=torch.float64))
SKINNED = tiny_skinned_model(dtype=torch.float64)
STATE = STATE.replace(joints=tiny_joints(SKINNED, 3))
OBS = observe(MODEL, STATE)
OFFSETS = LandmarkOffsetPrior(0.5 + torch.rand(68, generator=OFFSET_GEN, dtype=torch.float64))
FOCAL = FocalPrior(
    STATE.camera.focal * torch.tensor([1.1, 0.8, 1.0], dtype=torch.float64),
    torch.tensor([0.05, 0.4, 0.1], dtype=torch.float64),
    torch.tensor([True, False, True]),
)
ASPECT = AspectPrior(
    STATE.camera.aspect * torch.tensor([1.1, 0.9, 1.0], dtype=torch.float64),
    torch.tensor([0.01, 0.1, 0.02], dtype=torch.float64),
    torch.tensor([True, False, True]),
)
PRINCIPAL = PrincipalPrior(
    STATE.camera.principal + torch.tensor([[3.0, -5.0], [0.0, 1.0], [-8.0, 2.0]], dtype=torch.float64),
    torch.tensor([16.0, 8.0, 4.0], dtype=torch.float64),
    torch.tensor([True, False, True]),
)
PRIORS = [
    IdentityPrior(),
    ExpressionPrior(),
    ExpressionPrior(0.2, 0.05),
    ExpressionPrior(0.2, 0.05, group_radius=0.5).freeze(STATE, OBS),
    ExpressionPrior(spread=torch.linspace(0.1, 1, STATE.expression.shape[1])),
    FOCAL,
    ASPECT,
    PRINCIPAL,
    LightPrior(STATE.illumination + 0.3),
    OFFSETS,
    JointPrior(torch.linspace(0.1, 1.0, 12)),
]
MEAN = MeanCoefficientPrior(0.2)


@pytest.mark.parametrize("energy", [*PRIORS, MEAN], ids=lambda e: e.name)
def test_derivatives(energy):
    check_everything(energy, STATE, OBS)


class ByColumns:
    """An energy with its derivatives as columns, whose squares are sums of products."""

    def __init__(self, energy):
        self.energy, self.name, self.reduction = energy, energy.name, energy.reduction

    def residuals(self, state, observations):
        return self.energy.residuals(state, observations)

    def linearize(self, state, observations):
        return self.energy.linearize(state, observations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("energy", PRIORS, ids=lambda e: e.name)
def test_a_diagonal_is_the_same_numbers_as_products_of_columns(energy, dtype):
    state, energy = STATE.to(dtype=dtype), move(energy, dtype=dtype)
    layout = ParameterLayout.of(state, BLOCKS)
    system, products = (
        Objective([Term(e, 3.0, Kernel("huber", 0.5))]).linearize(state, OBS, layout)
        for e in (energy, ByColumns(energy))
    )
    for name in ("shared", "cross", "own", "gradient"):
        assert torch.equal(getattr(system, name), getattr(products, name))
    assert float(system.diagonal().abs().max()) > 0
    assert system.coupling is None


@pytest.mark.parametrize("energy", PRIORS, ids=lambda e: e.name)
def test_alone_in_a_system_of_its_own_block_in_double_precision(energy):
    block = (
        energy.name.removesuffix("_prior").replace("light", "illumination").replace("landmark", "landmarks")
    ).replace("joint", "joints")
    layout = ParameterLayout.of(STATE, (block,))
    system = Objective([Term(energy)]).linearize(STATE, OBS, layout)
    step = system.solve(torch.full((layout.total,), 1e-12, dtype=torch.float64))
    if energy.name != "expression_prior":  # linear: one step leads to the minimum
        after = retract(STATE, step, layout)
        assert float(Objective([Term(energy)]).cost(after, OBS)[0]) < 1e-12


def test_offsets_count_in_their_own_millimetres():
    value = OFFSETS.residuals(STATE, OBS).value
    assert value.shape == (1, 68, 3)
    torch.testing.assert_close(value[0, 5] * OFFSETS.sigma_mm[5], STATE.landmark_offset[0, 5])
    assert float(OFFSETS.residuals(STATE.replace(landmark_offset=None), OBS).value.abs().max()) == 0


def test_joints_count_in_the_standard_deviations_of_the_model():
    model = replace(SKINNED, joint_sigma=torch.arange(1.0, 13.0).reshape(4, 3).double())
    context = Context(model, OBS, STATE, joint_owner=torch.tensor([0, 0, 1]))
    assert find("joint_prior").applies(context) and not find("joint_prior").applies(
        replace(context, model=MODEL)
    )
    prior = find("joint_prior").make(context, EnergyOptions())
    expected = STATE.joints[[0, 2]] / model.joint_sigma  # the first two views show one moment
    torch.testing.assert_close(prior.residuals(STATE, OBS).value, expected.reshape(2, 12, 1))
    layout = ParameterLayout.of(STATE, ("joints",), {"joints": torch.tensor([0, 0, 1])})
    system = Objective([Term(prior)]).linearize(STATE, OBS, layout)
    torch.testing.assert_close(system.diagonal(), (1 / model.joint_sigma.flatten() ** 2).repeat(2))


def test_values():
    assert float(Objective([Term(IdentityPrior())]).cost(STATE, OBS)[0]) == pytest.approx(
        float(STATE.identity.square().sum()) / 2
    )
    b = STATE.expression
    assert bool((b > 0).any()) and bool((b < 0).any())
    expected = float(torch.where(b > 0, b / 0.3, b / 0.1).square().sum()) / 2
    assert float(Objective([Term(ExpressionPrior())]).cost(STATE, OBS)[0]) == pytest.approx(expected)
    value = FOCAL.residuals(STATE, OBS).value[:, 0, 0]
    expected = torch.tensor([-math.log(1.1) / 0.05, -math.log(0.8) / 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    value = PRINCIPAL.residuals(STATE, OBS)
    assert value.value[0, :, 0].tolist() == [-3 / 16, 5 / 16] and value.valid.sum(1).tolist() == [2, 0, 2]
    still = LightPrior(STATE.illumination)
    assert float(still.residuals(STATE, OBS).value.abs().max()) == 0


def test_shared_quantities_are_counted_once():
    one = ExpressionPrior(owner=STATE.subject)
    same = STATE.replace(expression=STATE.expression[:1].expand(3, -1).clone())
    cost = [float(Objective([Term(e)]).cost(same, OBS)[0]) for e in (one, ExpressionPrior())]
    assert cost[1] == pytest.approx(3 * cost[0])
    layout = ParameterLayout.of(same, ("expression",), {"expression": torch.zeros(3)})
    system = Objective([Term(one)]).linearize(same, OBS, layout)
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Objective([Term(one)]).cost(retract(same, step, layout), OBS)[0], step)
    torch.testing.assert_close(system.gradient, gradient)
    assert int(FOCAL.residuals(STATE, OBS).valid.sum()) == 2


def test_expressions_that_may_be_one_count_as_if_they_were():
    alone = ExpressionPrior(owner=torch.arange(3), shared_weight=2.5)
    unsure = replace(alone, alike=torch.tensor([4, 0, 4]))
    cost = [e.residuals(STATE, OBS).weight[:, 0].tolist() for e in (alone, unsure)]
    assert cost == [[1.0, 1.0, 1.0], [2.5, 1.0, 2.5]]
    one = replace(alone, owner=torch.tensor([1, 0, 1]), alike=torch.tensor([4, 0, 4]))
    assert one.residuals(STATE, OBS).weight[:, 0].tolist() == [
        1.0,
        5.0,
    ]  # the second has two photos, 2.5 each


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_a_shared_expression_may_count_as_often_as_it_is_seen(radius):
    """Sharing takes freedom away and changes nothing else: the cost is that of as many equal expressions."""
    same = STATE.replace(expression=STATE.expression[:1].expand(3, -1).clone())
    shared = ExpressionPrior(owner=torch.tensor([5, 5, 5]), group_radius=radius, shared_weight=1.0)
    each = ExpressionPrior(group_radius=radius)
    cost = [float(Objective([Term(e.freeze(same, OBS))]).cost(same, OBS)[0]) for e in (shared, each)]
    assert cost[0] == pytest.approx(cost[1])
    two = ExpressionPrior(owner=torch.tensor([1, 0, 1]), shared_weight=2.5).residuals(same, OBS)
    assert two.weight is not None and two.weight[:, 0].tolist() == [1, 5]


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_the_expression_of_a_moment_counts_once(radius):
    state = STATE.replace(expression=STATE.expression[[0, 2, 0]])
    prior = ExpressionPrior(owner=torch.tensor([4, 1, 4]), group_radius=radius)
    got = Objective([Term(prior.freeze(state, OBS))]).cost(state, OBS)[0]
    two = state.select([0, 1])
    once = ExpressionPrior(group_radius=radius).freeze(two, OBS)
    assert float(got) == pytest.approx(float(Objective([Term(once)]).cost(two, OBS)[0]), rel=1e-12)


def test_group_weights_follow_the_mean_square_over_the_views_of_a_person():
    b = torch.zeros_like(STATE.expression)
    b[:, 0] = 0.4
    b[0, 1] = 0.4
    state = STATE.replace(expression=b)
    prior = ExpressionPrior(0.2, 0.05, group_radius=0.5)
    assert prior.residuals(state, OBS).weight is None
    weight = prior.freeze(state, OBS).residuals(state, OBS).weight
    torch.testing.assert_close(weight[:, 0], torch.full((3,), 1 / 17, dtype=torch.float64))
    torch.testing.assert_close(weight[:, 1], torch.full((3,), 1 / (1 + 4 / 3 / 0.25), dtype=torch.float64))
    assert bool((weight[:, 2:] == 1).all())
    assert replace(prior, owner=state.subject).freeze(state, OBS).residuals(state, OBS).weight.shape == (
        1,
        b.shape[1],
    )
    two = state.replace(identity=STATE.identity.expand(2, -1), subject=torch.tensor([0, 1, 1]))
    weight = prior.freeze(two, OBS).residuals(two, OBS).weight
    assert float(weight[0, 1]) == pytest.approx(1 / 17) and bool((weight[1:, 1] == 1).all())
    plain = ExpressionPrior(0.2, 0.05)
    assert plain.freeze(state, OBS) is plain


def test_rare_shapes_cost_more():
    names = ("jawOpen", "mouthClose", "cheekPuff_L", "mouthLeft", "mouthLowerDown_L")
    spread = shape_spread(names)
    assert spread.tolist() == pytest.approx([1, 0.1, 0.5, 0.5, 1])
    b = STATE.expression
    spread = torch.linspace(0.1, 1, b.shape[1], dtype=torch.float64)
    prior = ExpressionPrior(0.2, 0.05, spread=spread)
    torch.testing.assert_close(
        prior.residuals(STATE, OBS).value,
        ExpressionPrior(0.2, 0.05).residuals(STATE, OBS).value / spread[:, None],
    )


def test_every_person_of_a_batch_counts():
    two = STATE.replace(
        identity=torch.cat([STATE.identity, 2 * STATE.identity]), subject=torch.tensor([0, 1, 1])
    )
    cost = [float(Objective([Term(IdentityPrior())]).cost(s, OBS)[0].sum()) for s in (STATE, two)]
    assert cost[1] == pytest.approx(5 * cost[0])


def test_prior_l1_is_the_printed_formula():
    e = 0.01
    kernel = Kernel("l1", e)
    two = STATE.replace(
        identity=torch.cat([STATE.identity, 2 * STATE.identity]), subject=torch.tensor([0, 1, 1])
    )
    for state in (STATE, two):
        a, b = state.identity, state.expression / 0.2
        ours = float(Objective([Term(MEAN, 1 / e, kernel)]).cost(state, OBS)[0].sum())
        printed = float(kernel.published(a.square()).mean() + 0.5 * kernel.published(b.square()).mean())
        assert ours == pytest.approx(printed - 1.5 * e) and printed == pytest.approx(
            float(a.abs().mean() + 0.5 * b.abs().mean()), rel=0.01
        )
        parts = Objective(
            [
                Term(IdentityPrior(), 1 / (e * a.numel()), kernel),
                Term(ExpressionPrior(0.2, 0.2), 0.5 / (e * b.numel()), kernel),
            ]
        )
        assert ours == pytest.approx(float(parts.cost(state, OBS)[0].sum()))
    assert int(MEAN.residuals(two, OBS).valid.sum()) == two.identity.numel() + two.expression.numel()


def test_weight_and_kernel_of_a_term():
    plain, heavy = (Objective([Term(IdentityPrior(), w)]).cost(STATE, OBS) for w in (1.0, 2.5))
    assert float(heavy[0]) == pytest.approx(2.5 * float(plain[0]))
    assert heavy[1]["identity_prior"].rms == pytest.approx(
        float(STATE.identity.square().mean().sqrt())
    )  # without the weight
    robust, report = Objective([Term(IdentityPrior(), 1.0, Kernel("gm", 0.5))]).cost(STATE, OBS)
    assert float(robust) < float(plain[0]) and report["identity_prior"].value == pytest.approx(float(robust))


GAUSSIAN = replace(
    MODEL, expression_kind="gaussian", expression_sigma=torch.linspace(0.5, 2, 6, dtype=torch.float64)
)


def made(name, model, options=None, expression=ExpressionOptions(sigma=0.2, sigma_negative=0.07)):
    """The energy of this name as a fit, or with `expression` None a training, makes it."""
    spec = find(name)
    kind = spec.options if expression else spec.training or spec.options
    return spec.make(Context(model, OBS, STATE, expression=expression), replace(kind(), **(options or {})))


def test_gaussian_coefficients_have_the_sigma_of_the_model_for_both_signs():
    b = STATE.expression
    expected = (b / GAUSSIAN.expression_sigma)[..., None]
    for expression in (ExpressionOptions(sigma=0.2, sigma_negative=0.07), None):
        prior = made("expression_prior", GAUSSIAN, expression=expression)
        torch.testing.assert_close(prior.residuals(STATE, OBS).value, expected)
        check_everything(prior, STATE, OBS)
    # named like rare blend shapes they are none
    named = replace(GAUSSIAN, expression_names=("mouthClose",) * 6)
    torch.testing.assert_close(made("expression_prior", named).residuals(STATE, OBS).value, expected)
    rare = made("expression_prior", replace(named, expression_kind="blend_shape", expression_sigma=None))
    assert rare.spread.tolist() == pytest.approx([0.1] * 6)
    value = made("prior_l1", GAUSSIAN).residuals(STATE, OBS).value
    torch.testing.assert_close(value[:, -6:], expected)
    check_everything(made("prior_l1", GAUSSIAN), STATE, OBS)


def test_gaussian_coefficients_have_no_groups():
    """All of them count as a group with a mean square of 1 does."""
    options = {"group_radius": 0.3}
    one = STATE.replace(expression=GAUSSIAN.expression_sigma.expand(3, -1).clone())
    costs = []
    for model, expression in ((GAUSSIAN, None), (MODEL, ExpressionOptions(sigma=1.0, sigma_negative=1.0))):
        state = one if model is GAUSSIAN else one.replace(expression=torch.ones_like(one.expression))
        prior = made("expression_prior", model, options, expression).freeze(state, OBS)
        costs.append(float(Objective([Term(prior)]).cost(state, OBS)[0]))
    assert costs[0] == pytest.approx(costs[1]) == pytest.approx(18 / 2 / (1 + 1 / 0.09))
    prior = made("expression_prior", GAUSSIAN, options)
    assert prior.freeze(STATE, OBS) is prior


def test_blend_shapes_have_the_sigmas_of_the_recipe():
    fitted, trained = made("expression_prior", MODEL), made("expression_prior", MODEL, expression=None)
    assert (fitted.sigma, fitted.sigma_negative) == (0.2, 0.07)
    assert (trained.sigma, trained.sigma_negative, trained.spread) == (0.3, 0.1, None)
    assert made("prior_l1", MODEL).sigma == 0.3
