"""The face parser: shapes, size, missing views, starts and files."""

import pytest
import torch

from fitkit.errors import InputError
from fitkit.nets import load_network, load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.face_parts import PARTS
from fitkit.observe.landmarks.builtin import read_network
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Parser(options=ParserOptions(size=64)).eval()


def pictures(people, views):
    return torch.rand(people, views, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_each_photo_is_looked_at_for_itself(network):
    images, valid = pictures(2, 3), torch.tensor([[True, False, True], [False, True, False]])
    found = network(images, valid)
    assert found.gives == ("parse",) and found.parse.shape == (3, len(PARTS), 64, 64)
    assert found.subject.tolist() == [0, 0, 1]
    alone = network(images[1:, 1:2], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(found.parse[2], alone.parse[0], atol=1e-4, rtol=1e-4)
    padded = network(images, valid, padded=True)
    torch.testing.assert_close(padded.parse[[0, 2, 4]], found.parse, atol=1e-4, rtol=1e-4)


def test_while_it_learns_it_speaks_at_half_the_size(network):
    network.train()
    try:
        parse = network(pictures(2, 1), torch.ones(2, 1, dtype=torch.bool)).parse
    finally:
        network.eval()
    assert parse.shape == (2, len(PARTS), 32, 32)
    parse.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
    network.zero_grad(set_to_none=True)


def test_it_is_small():
    assert sum(p.numel() for p in Parser().parameters()) < 2_000_000  # 4 MB in half precision


def test_its_parts_are_all_of_it(network):
    named = [p for things in network.parts().values() for t in things for p in t.parameters()]
    assert {id(p) for p in named} == {id(p) for p in network.parameters()} and len(named) == len(
        list(network.parameters())
    )


def test_it_starts_from_the_landmark_network(network):
    other = Parser(options=ParserOptions(size=64))
    start_from(other, "builtin", None)
    theirs = read_network()
    for mine, its in ((other.stem, theirs.stem), (other.down, theirs.down)):
        for key, value in its.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], value)
    small = LandmarkNetwork(NetworkOptions(size=32, widths=(8, 8, 8, 8, 8)))
    with pytest.raises(InputError, match=r"small.pt: expected a landmark network with widths \(16, 32"):
        other.load_encoder(small, "small.pt")


@torch.no_grad()
def test_saved_and_read_it_gives_the_same(network, tmp_path):
    path = tmp_path / "regressor.safetensors"
    save_predictor(network, "parser", path)
    assert path.stat().st_size < 4e6
    images, valid = pictures(1, 1), torch.ones(1, 1, dtype=torch.bool)
    torch.testing.assert_close(
        load_predictor(path)(images, valid).parse, network(images, valid).parse, atol=0.05, rtol=0.05
    )
    frozen = load_network("parser", path)  # as energies ask for it
    assert frozen(torch.rand(2, 3, 40, 56)).shape == (2, len(PARTS), 40, 56)


def test_refusals():
    assert net_kind("parser").named_views is False
    with pytest.raises(InputError, match="net parser: takes any photos in any order"):
        Parser(views=(ViewSlot("front"),))
    with pytest.raises(InputError, match="classes: expected 17 or 10, got 11"):
        ParserOptions(classes=11)
    assert Parser(options=ParserOptions(size=64, classes=10)).classes.out_channels == 10
