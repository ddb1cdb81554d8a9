"""The face parser: shapes, size, missing views, starts and files."""

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from fitkit.errors import InputError
from fitkit.nets import load_network, load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.nets.parser.photos import JOIN, ByNetwork, parse_blocks
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.crop import CropOptions
from fitkit.observe.face_parts import PARTS, UNKNOWN
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


def test_all_of_it_learns(network):
    network.train()
    try:
        parse = network(pictures(2, 1), torch.ones(2, 1, dtype=torch.bool)).parse
    finally:
        network.eval()
    assert parse.shape == (2, len(PARTS), 64, 64)
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


# ---- photos ----


class Noise:
    """A parser that says what its crops of 64 px have on file, one more than the parts: nobody knows."""

    def __init__(self, *crops):
        self.crops = crops
        noise = np.random.default_rng(5).normal(size=(len(crops), len(PARTS) + 1, 64, 64))
        self.told = np.stack([[cv2.GaussianBlur(c, (0, 0), 4) for c in crop] for crop in noise]).astype("f4")

    def scores(self, images, points):
        assert images.shape == (len(self.crops), 64, 64, 3) and points.shape == (len(self.crops), 68, 2)
        return self.told


POINTS = np.random.default_rng(1).uniform(0, 100, (68, 2)) + [50, 45]


def read(parser, k, low, high):
    """What the crop number k tells of the pixels of a photo of 200 x 220 px, [C, 200, 220], by SciPy, and
    how far in the crop they lie, share of its side."""
    margin, up = parser.crops[k].margin, parser.crops[k].up
    side = round(margin * float((high - low).max()))
    corner = np.round((low + high) / 2 - [0, up * (high - low)[1]] - side / 2)
    x, y = (((np.arange(n) - c + 0.5) * 64 / side - 0.5).astype("f4") for n, c in zip((220, 200), corner))
    columns, rows = np.meshgrid(x, y)
    told = [map_coordinates(c, [rows, columns], order=1, mode="nearest") for c in parser.told[k]]
    return np.stack(told), np.minimum(np.minimum(columns, 63 - columns), np.minimum(rows, 63 - rows)) / 64


@pytest.mark.parametrize("closer", [(), (CropOptions(1.2, 0.05, 64, 64),)])
def test_what_crops_tell_of_a_photo(closer):
    """Of every pixel the part with the largest interpolated score, the closer crop alone within its rim."""
    parser = Noise(CropOptions(2.0, 0.1, 64, 64), *closer)
    image = np.zeros((200, 220, 3), np.uint8)
    found = parse_blocks(parser, image, POINTS).in_photo(255)
    box = POINTS.min(0), POINTS.max(0)
    wide, depth = read(parser, 0, *box)
    expected = wide
    if closer:
        close, deep = read(parser, 1, *box)
        weight = np.clip((deep + 0.5 / 64) / JOIN, 0, 1) * (deep > -0.5 / 64)
        assert (weight == 1).mean() > 0.1
        expected = wide + weight * (close - wide)
    looked_at = depth > 1 / 64
    best = np.sort(expected, 0)
    clear = looked_at & (best[-1] - best[-2] > 1e-4)
    expected = expected.argmax(0)
    expected[expected == len(PARTS)] = UNKNOWN
    assert clear.mean() > 0.7 and len(np.unique(expected)) > 10
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_a_network_may_look_twice(network):
    twice, once = Parser(options=ParserOptions(size=64)), Parser(options=ParserOptions(size=64, close=0))
    assert once.closer is None and ByNetwork(once).crops == (once.crop,)
    assert twice.closer == CropOptions(1.3, 0.06, 64, 64) and ByNetwork(twice).crops[1] == twice.closer
