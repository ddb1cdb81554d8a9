from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.appearance_priors import AlbedoPrior, AlbedoVariance, LightMono
from fitkit.energies.objective import Objective, Term
from fitkit.errors import InputError

PLAIN = tiny_model(dtype=torch.float64)
BASIS = 0.05 * torch.randn(
    4, PLAIN.num_vertices, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
)
MODEL = replace(PLAIN, albedo_basis=BASIS)


def lit(channels=3, views=3):
    gen = torch.Generator().manual_seed(4)
    return tiny_state(MODEL, views).replace(
        illumination=torch.randn(views, 9, channels, generator=gen, dtype=torch.float64)
    )


def cost(energy, state, weight=1.0):
    return float(Objective([Term(energy, weight)]).cost(state, observe(MODEL, state, 32))[0].sum())


def test_light_mono_derivatives():
    state = lit()
    check_everything(LightMono(0.3), state, observe(MODEL, state, 32), ("identity", "pose", "illumination"))


def test_light_mono_is_the_mean_square_about_grey():
    state = lit()
    light = state.illumination
    assert cost(LightMono(), state, 20) == pytest.approx(
        10 * float((light - light.mean(-1, keepdim=True)).square().mean())
    )
    assert cost(LightMono(0.5), state) == pytest.approx(4 * cost(LightMono(), state))
    grey = state.replace(illumination=light[..., :1].expand(-1, -1, 3))
    assert cost(LightMono(), grey) == pytest.approx(0, abs=1e-20) and cost(LightMono(), lit(1)) == 0
    lin = LightMono().linearize(lit(1), observe(MODEL, state, 32))
    assert float(lin.slots[0].columns["illumination"].abs().max()) == 0
    # A common change of all channels costs nothing, wherever the light stands.
    assert cost(LightMono(), state.replace(illumination=light + 0.7)) == pytest.approx(
        cost(LightMono(), state)
    )


def test_albedo_prior():
    state = lit().replace(albedo=torch.tensor([[1.0, -2.0, 0.5, 0.0]], dtype=torch.float64))
    assert cost(AlbedoPrior(), state) == pytest.approx((1 + 4 + 0.25) / 2)


def test_albedo_variance():
    a = torch.tensor([[0.5, -1.0, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    state = lit().replace(albedo=a)
    T = (MODEL.albedo_mean + torch.tensordot(a[0], BASIS, 1))[MODEL.skin]
    expected = float((T - T.mean(0)).detach().square().sum() / len(T))
    value = Objective([Term(AlbedoVariance(MODEL), 2.0)]).cost(state, observe(MODEL, state, 32))[0]
    assert float(value.detach()) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(value, a)
    h = 1e-5
    for k in range(4):
        step = h * torch.eye(4, dtype=torch.float64)[k]
        ends = [
            cost(AlbedoVariance(MODEL), state.replace(albedo=a.detach() + s * step), 2.0) for s in (1, -1)
        ]
        assert float(gradient[0, k]) == pytest.approx((ends[0] - ends[1]) / 2 / h, rel=1e-6)
    even = replace(MODEL, albedo_mean=torch.full_like(MODEL.albedo_mean, 0.4))
    assert cost(
        AlbedoVariance(even), state.replace(albedo=torch.zeros(1, 4, dtype=torch.float64))
    ) == pytest.approx(0, abs=1e-20)


def test_people_of_a_batch():
    albedo = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]], dtype=torch.float64)
    two = lit().replace(identity=torch.zeros(2, 8, dtype=torch.float64), albedo=albedo)
    one = [lit().replace(albedo=two.albedo[k : k + 1]) for k in (0, 1)]
    assert cost(AlbedoVariance(MODEL), two) == pytest.approx(
        sum(cost(AlbedoVariance(MODEL), s) for s in one) / 2
    )
    assert cost(AlbedoPrior(), two) == pytest.approx(sum(cost(AlbedoPrior(), s) for s in one))


def test_missing_albedo_is_named():
    state = lit()
    for energy in (AlbedoPrior(), AlbedoVariance(MODEL)):
        with pytest.raises(
            InputError, match=f"energy '{energy.name}' needs albedo coefficients: expected state.albedo"
        ):
            energy.residuals(state, observe(MODEL, state, 32))
    with pytest.raises(InputError, match="energy 'albedo_var': face model 'tiny' has no albedo basis"):
        AlbedoVariance(PLAIN)
