from dataclasses import replace

import pytest
import torch
from helpers import observe, photograph, tiny_model, tiny_state

from fitkit.energies.features import FeatureOptions, SemanticFeatures
from fitkit.energies.objective import Objective, Term
from fitkit.errors import InputError

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96
OPTIONS = FeatureOptions(size=SIZE)
STATE = tiny_state(MODEL, 2, SIZE)
STATE = STATE.replace(
    pose=STATE.pose.retract(
        torch.tensor([[0, 0.35, 0, 0, 0, 0], [0, -0.35, 0, 0, 0, 0]], dtype=torch.float64)
    )
)
OFF = STATE.replace(identity=STATE.identity + 0.5)
OBS = observe(MODEL, STATE, SIZE, photograph(MODEL, STATE, SIZE, (1.0, 0.9, 0.8)))


class Encoder(torch.nn.Module):
    """A small network with what real ones have: normalization, dropout, pooling."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, 2, bias=False),
            torch.nn.BatchNorm2d(8),
            torch.nn.Tanh(),
            torch.nn.Dropout(0.5),
            torch.nn.AvgPool2d(3),
            torch.nn.Flatten(),
        )
        self.to(torch.float64)

    def forward(self, images):
        return self.layers(images - images.mean((2, 3), keepdim=True))


def energy_of(network=None, options=OPTIONS, observations=OBS):
    return SemanticFeatures.prepare(MODEL, observations, network or Encoder(), options)


def cost(energy, state, observations=OBS):
    return Objective([Term(energy)]).cost(state, observations)[0]


def test_is_one_minus_the_cosine():
    energy = energy_of().freeze(OFF, OBS)
    rendering, photo = energy.images(OFF)
    network = Encoder().eval()
    cosine = torch.nn.functional.cosine_similarity(network(photo), network(rendering))
    assert (
        float(cost(energy, OFF)) == pytest.approx(float((1 - cosine).mean().detach()))
        and float(cost(energy, OFF)) > 1e-3
    )
    assert energy.residuals(OFF, OBS).value.shape[:2] == (2, 1)


def test_only_what_the_other_view_sees_is_replaced():
    energy = energy_of().freeze(STATE, OBS)
    rendering, photo = energy.images(STATE)
    for g, (_, b) in enumerate(energy.shared.pairs):
        seen = energy.shared.seen[g]
        assert torch.equal(photo[g], OBS.images[b]) and torch.equal(
            rendering[g][:, ~seen], photo[g][:, ~seen]
        )
        gap = (rendering[g] - photo[g])[:, seen].abs()
        assert 500 < int(seen.sum()) and 0 < float(gap.mean()) < 0.02


def test_the_callers_network_stays_as_it_is():
    network = Encoder().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    energy = energy_of(network)
    identity = OFF.identity.clone().requires_grad_()
    cost(energy.freeze(OFF, OBS), OFF.replace(identity=identity)).backward()
    assert float(identity.grad.abs().min()) > 0
    assert network.training and all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not energy.network.training and not any(p.requires_grad for p in energy.network.parameters())


def test_grows_with_the_error():
    energy = energy_of()
    values = [
        float(cost(energy.freeze(s, OBS), s))
        for s in (STATE, STATE.replace(identity=STATE.identity + 0.25), OFF)
    ]
    assert 2 * values[0] < values[1] and 2 * values[1] < values[2]


def test_too_few_shared_pixels():
    mask = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    mask[1], mask[0, 44:48, 44:48] = True, True
    masked = replace(OBS, mask=mask)
    r = (
        energy_of(options=replace(OPTIONS, min_pixels=500), observations=masked)
        .freeze(STATE, masked)
        .residuals(STATE, masked)
    )
    assert not bool(r.valid.any())


def test_refusals():
    energy = energy_of()
    with pytest.raises(InputError, match="energy 'sem_feat': freeze it at a state first"):
        energy.residuals(STATE, OBS)
    spatial = energy_of(torch.nn.Conv2d(3, 4, 3, dtype=torch.float64)).freeze(STATE, OBS)
    message = (
        r"expected a network that gives features \[2, K\] for 2 images, got \[2, 4, 94, 94\]; pool or flatten"
    )
    with pytest.raises(InputError, match=message):
        spatial.residuals(STATE, OBS)
    one = STATE.replace(
        expression=STATE.expression[:1],
        subject=STATE.subject[:1],
        pose=STATE.pose.select([0]),
        camera=STATE.camera.select([0]),
    )
    with pytest.raises(
        InputError, match="energy 'sem_feat' compares views of one person: expected at least 2"
    ):
        energy.freeze(one, OBS)
