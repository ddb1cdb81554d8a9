"""Networks that energies name: loaded from weights, never changed."""

import pytest
import torch
from helpers import tiny_model
from small_nets import SmallParser, registered

from fitkit import nets
from fitkit.energies.features import FrozenNetwork, frozen_network
from fitkit.errors import InputError
from fitkit.nets import load_network, save_predictor
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import ViewSlot


@pytest.fixture
def files(tmp_path, monkeypatch):
    registered(monkeypatch)
    monkeypatch.setattr(nets, "load_model", lambda name: tiny_model())
    torch.manual_seed(0)
    save_predictor(SmallParser(), "small_parser", tmp_path / "parser.safetensors", half=False)
    encoder = MvfNet(tiny_model(), (ViewSlot("front"),), MvfNetOptions(size=32, width=0.06))
    save_predictor(encoder, "mvfnet", tmp_path / "encoder.safetensors", half=False)
    return tmp_path


def test_a_parser_takes_pictures_of_any_size_and_keeps_the_graph(files):
    parser = load_network("parser", files / "parser.safetensors")
    images = torch.rand(2, 3, 48, 40, requires_grad=True)
    logits = parser(images)
    assert logits.shape == (2, 10, 48, 40)
    logits.square().sum().backward()
    assert float(images.grad.abs().max()) > 0
    assert all(p.grad is None for p in parser.parameters())


def test_an_encoder_gives_features_of_single_pictures(files):
    encoder = load_network("encoder", files / "encoder.safetensors")
    images = torch.rand(3, 3, 32, 32)
    features = encoder(images)
    assert features.ndim == 2 and len(features) == 3
    assert torch.allclose(encoder(images[1:2]), features[1:2], atol=1e-5)
    assert encoder(torch.rand(1, 3, 50, 50)).shape == (1, features.shape[1])


def test_a_frozen_network_stays_as_it_is_whatever_a_training_does(files):
    encoder = load_network("encoder", files / "encoder.safetensors")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    whole = torch.nn.ModuleList([encoder, torch.nn.Dropout()])
    whole.train()
    assert whole.training and not any(m.training for m in encoder.modules())
    encoder(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert frozen_network(encoder) is encoder  # energies do not copy it at each step


def test_a_network_that_goes_on_learning_is_copied():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    frozen = frozen_network(layer)
    assert isinstance(frozen, FrozenNetwork)
    assert all(p.requires_grad for p in layer.parameters()) and layer.training
    with torch.no_grad():
        layer[0].weight.zero_()
    assert float(frozen.network[0].weight.abs().max()) > 0


def test_networks_that_an_energy_cannot_use(files):
    with pytest.raises(InputError, match="network of an energy: unknown key 'parsr'; did you mean 'parser'"):
        load_network("parsr", files / "parser.safetensors")
    with pytest.raises(
        InputError, match="network 'parser' of an energy: expected 'weights', the regressor.safetensors"
    ):
        load_network("parser", "")
    with pytest.raises(
        InputError, match="encoder.safetensors: expected a network that gives 'parse', it gives state"
    ):
        load_network("parser", files / "encoder.safetensors")
    with pytest.raises(
        InputError,
        match="features of a picture, SmallParser has none; mvfnet, fitkit_init, pgn and mvdepth do",
    ):
        load_network("encoder", files / "parser.safetensors")
    with pytest.raises(InputError, match="nowhere.safetensors: not readable"):
        load_network("parser", files / "nowhere.safetensors")
    with pytest.raises(InputError, match="SmallParser: has no features of single pictures"):
        SmallParser().features(torch.rand(1, 3, 32, 32))
