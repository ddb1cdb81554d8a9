import math
from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term
from fitkit.energies.registry import find
from fitkit.energies.spec import Context
from fitkit.energies.supervision import (
    CodeConsistency,
    ExpressionSupervision,
    IdentityLikelihood,
    IdentitySupervision,
    PoseSupervision,
    VertexSupervision,
)
from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.rotation import so3_exp
from fitkit.observe.labels import Labels
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose

MODEL = tiny_model(dtype=torch.float64)
STATE = tiny_state(MODEL, 3)
TRUTH = tiny_state(MODEL, 3, seed=4)
OBS = replace(
    observe(MODEL, STATE),
    labels=Labels(TRUTH, person=torch.tensor([7, 7, 7]), moment=torch.tensor([0, 1, 0])),
)
LABELLED = [
    IdentitySupervision(),
    ExpressionSupervision(),
    PoseSupervision(),
    VertexSupervision(MODEL),
    VertexSupervision(MODEL, 2.0, "head", "all"),
]


def cost(energy, state, observations=OBS, kernel=Kernel()):
    return Objective([Term(energy, 1.0, kernel)]).cost(state, observations)[0].sum()


@pytest.mark.parametrize("energy", LABELLED, ids=lambda e: e.name)
def test_zero_at_the_label(energy):
    assert float(cost(energy, TRUTH)) < 1e-18 < 1e-3 < float(cost(energy, STATE))


@pytest.mark.parametrize("energy", LABELLED[:2], ids=lambda e: e.name)
def test_derivatives_of_the_least_squares_forms(energy):
    check_everything(energy, STATE, OBS)
    noisy = replace(
        OBS, labels=replace(OBS.labels, identity_sigma=torch.rand(1, MODEL.num_identity, dtype=torch.float64))
    )
    check_everything(energy, STATE, noisy)


@pytest.mark.parametrize("energy", LABELLED, ids=lambda e: e.name)
def test_gradient_of_the_scalar_form(energy):
    layout = ParameterLayout.of(STATE, ("identity", "expression", "pose", "focal"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(energy, retract(STATE, step, layout)), step)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        d = 1e-6 * torch.randn(layout.total, generator=generator, dtype=torch.float64)
        numeric = (
            float(cost(energy, retract(STATE, d, layout)) - cost(energy, retract(STATE, -d, layout))) / 2
        )
        assert float(gradient @ d) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("energy", LABELLED, ids=lambda e: e.name)
def test_descent_leads_to_the_label(energy):
    """Gradient descent on a disturbed state lowers the energy and the distance of the vertices."""
    layout = ParameterLayout.of(TRUTH, ("identity", "expression", "pose"))
    step = torch.zeros(layout.total, dtype=torch.float64)
    start = 0.2 * torch.randn(layout.total, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([step], 0.02)
    first = None
    for _ in range(120):
        optimizer.zero_grad()
        value = cost(energy, retract(TRUTH, step, layout))
        first = float(value.detach()) if first is None else first
        value.backward()
        optimizer.step()

    def error(x):
        moved, vertices = retract(TRUTH, x, layout), TRUTH.pose.apply(TRUTH.vertices(MODEL))
        return float((moved.pose.apply(moved.vertices(MODEL)) - vertices).norm(dim=-1).mean())

    assert float(cost(energy, retract(TRUTH, step.detach(), layout))) < 0.1 * first
    if not (
        isinstance(energy, VertexSupervision) and energy.frame == "head"
    ):  # that one leaves the pose where it was
        assert error(step.detach()) < error(start)


def test_values_in_their_units():
    turned = replace(
        TRUTH,
        pose=Pose(
            TRUTH.pose.rotation
            @ so3_exp(torch.deg2rad(torch.tensor([[0.0, 4.0, 0.0]], dtype=torch.float64))),
            TRUTH.pose.translation + torch.tensor([0.0, 20.0, 0.0]),
        ),
    )
    value = PoseSupervision().residuals(turned, OBS).value[..., 0]
    torch.testing.assert_close(
        value[0], torch.tensor([0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    )
    moved = replace(
        TRUTH, pose=Pose(TRUTH.pose.rotation, TRUTH.pose.translation + torch.tensor([3.0, 4.0, 0.0]))
    )
    assert float(cost(VertexSupervision(MODEL), moved)) == pytest.approx(
        25 / 2
    )  # a mean, so whatever the mesh


def test_unsure_labels_count_less():
    sigma = torch.zeros(1, MODEL.num_identity, dtype=torch.float64)
    exact = replace(OBS, labels=replace(OBS.labels, identity_sigma=sigma))
    unsure = replace(OBS, labels=replace(OBS.labels, identity_sigma=sigma + 0.4))
    assert float(cost(IdentitySupervision(), STATE, exact)) == pytest.approx(
        float(cost(IdentitySupervision(), STATE))
    )
    assert float(cost(IdentitySupervision(), STATE, unsure)) == pytest.approx(
        float(cost(IdentitySupervision(), STATE)) * 0.09 / 0.25
    )


def test_labelled_vertices_go_before_the_labelled_state():
    vertices = TRUTH.pose.apply(TRUTH.vertices(MODEL)) + 1.0
    given = replace(OBS, labels=replace(OBS.labels, vertices=vertices))
    assert float(cost(VertexSupervision(MODEL), TRUTH, given)) == pytest.approx(3 / 2)


def test_codes_of_one_person_and_of_one_instant_are_compared():
    own = STATE.replace(
        identity=torch.randn(
            3, MODEL.num_identity, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        ),
        subject=torch.arange(3),
    )
    a = own.identity
    expected = (
        sum(float((a[i] - a[j]).square().sum()) for i, j in ((0, 1), (0, 2), (1, 2))) / (2 * 0.3**2) / 2
    )
    assert float(cost(CodeConsistency("identity"), own)) == pytest.approx(expected)
    b = own.expression
    assert float(cost(CodeConsistency("expression"), own)) == pytest.approx(
        float((b[0] - b[2]).square().sum()) / (2 * 0.3**2) / 2
    )
    assert float(cost(CodeConsistency("identity"), own.replace(identity=a[:1].expand(3, -1)))) == 0
    alone = replace(OBS, labels=replace(OBS.labels, moment=torch.arange(3)))
    assert float(cost(CodeConsistency("expression"), own, alone)) == 0


def test_missing_labels_are_named():
    bare = replace(OBS, labels=None)
    for energy in LABELLED:
        with pytest.raises(
            InputError, match=f"energy '{energy.name}' needs labels with 'state', and these frames have none"
        ):
            energy.residuals(STATE, bare)
    with pytest.raises(InputError, match="'expression_consistency' needs labels with 'moment'"):
        CodeConsistency("expression").residuals(STATE, bare)


def test_the_likelihood_of_the_identity_is_that_of_a_normal_distribution():
    """Independent truth: torch.distributions; the gradient by the standard deviations as well, and the
    label's own doubt."""
    torch.manual_seed(0)
    doubt = torch.rand_like(TRUTH.identity)
    sigma = torch.rand_like(TRUTH.identity).add(0.1).requires_grad_()
    for noise in (None, doubt):
        value = cost(IdentityLikelihood(sigma), STATE, replace(OBS, labels=Labels(TRUTH, noise)))
        total = sigma if noise is None else (sigma**2 + noise**2).sqrt()
        expected = -torch.distributions.Normal(TRUTH.identity, total).log_prob(STATE.identity).sum()
        constant = sigma.numel() * (0.5 * math.log(2 * math.pi) + math.log(IdentityLikelihood.FLOOR))
        assert value.item() == pytest.approx((expected - constant).item(), rel=1e-9)
        assert torch.allclose(*(torch.autograd.grad(c, sigma)[0] for c in (value, expected)))
    with pytest.raises(InputError, match="energy 'identity_nll' needs labels with 'state'"):
        IdentityLikelihood(sigma).residuals(STATE, replace(OBS, labels=None))


def test_aligned_vertices_do_not_know_size_and_place():
    energy = VertexSupervision(MODEL, 2.0, "aligned", "all")
    grown = replace(
        MODEL,
        mean=1.3 * MODEL.mean + 5.0,
        identity_basis=1.3 * MODEL.identity_basis,
        expression_basis=1.3 * MODEL.expression_basis,
    )
    larger = replace(energy, model=grown)
    vertices = TRUTH.vertices(MODEL)
    labelled = replace(OBS, labels=Labels(TRUTH))
    assert float(cost(energy, TRUTH, labelled)) < 1e-18
    # The labels of the grown model are the vertices of the grown model: compare both with those of the plain
    # one.
    best = similarity_align(
        grown.vertices(TRUTH.identity[TRUTH.subject], TRUTH.expression),
        vertices,
        torch.ones(vertices.shape[:2], dtype=torch.bool),
    )
    assert torch.allclose(best.scale, torch.full_like(best.scale, 1 / 1.3))
    assert float(cost(larger, STATE, labelled)) == pytest.approx(
        1.3**2 * float(cost(energy, STATE, labelled)), rel=1e-9
    )

    # Independent truth: the rest that similarity_align leaves, and central differences through the whole of
    # it.
    def rest(state):
        place = state.vertices(MODEL)
        t = similarity_align(place, vertices, torch.ones(vertices.shape[:2], dtype=torch.bool))
        off = t.scale[:, None, None] * place @ t.rotation.transpose(1, 2) + t.translation[:, None] - vertices
        return (off / 2.0).square().sum(-1).mean() / 2

    assert cost(energy, STATE, labelled).item() == pytest.approx(rest(STATE).item(), rel=1e-9)
    identity = STATE.identity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(energy, STATE.replace(identity=identity), labelled), identity)
    for k in range(3):
        step = torch.zeros_like(STATE.identity)
        step[0, k] = 1e-5
        numeric = (
            rest(STATE.replace(identity=STATE.identity + step))
            - rest(STATE.replace(identity=STATE.identity - step))
        ) / 2e-5
        assert gradient[0, k].item() == pytest.approx(numeric.item(), rel=1e-5, abs=1e-9)


def test_gaussian_expressions_are_compared_in_standard_deviations():
    sigma = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    model = replace(MODEL, expression_kind="gaussian", expression_sigma=sigma)
    for name in ("expression_sup", "expression_consistency"):
        spec = find(name)
        energy, blend = (
            spec.make(Context(m, OBS, STATE), spec.options(sigma=0.2)).residuals(
                s, replace(OBS, labels=labels)
            )
            for m, s, labels in (
                (model, STATE, OBS.labels),
                (MODEL, _in(STATE, sigma), replace(OBS.labels, state=_in(TRUTH, sigma))),
            )
        )
        torch.testing.assert_close(energy.value, blend.value)
    check_everything(ExpressionSupervision(0.2, spread=sigma), STATE, OBS)


def _in(state, sigma):
    return state.replace(expression=state.expression / sigma)
