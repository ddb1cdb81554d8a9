"""Shu et al.'s networks: where they start, what each photo has a say in, depth that counts from the nose tip,
published layers, weight files."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model

from fitkit.energies.rendered_depth import model_depth
from fitkit.errors import InputError
from fitkit.nets import load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.mfnet.network import Mfnet, MfnetOptions
from fitkit.nets.mvdepth.network import EMPTY, FOCAL, Mvdepth, MvdepthOptions
from fitkit.nets.mvdepth.unet import UNet
from fitkit.nets.predictor import ViewSlot
from fitkit.scene.depth_state import BEFORE_MM, BEHIND_MM, DepthState, back_project, from_normalized
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points

MODEL = tiny_model()
TINY = MvdepthOptions(
    size=32, growth=4, blocks=(1, 1, 1, 1), features=8, hidden=16, width=0.1, levels=3, trust_width=0.05
)
MEAN = MODEL.landmark_basis.mean


def made(options=TINY, loud=True):
    """A network whose every output depends on its picture."""
    torch.manual_seed(0)
    network = Mvdepth(MODEL, (), options)
    if loud:
        torch.nn.init.normal_(network.model.head[-1].weight, std=0.1)
        for net in (network.depth, network.trust):
            torch.nn.init.normal_(net.out.weight, std=0.3)
        for module in network.modules():  # as after some steps
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
    return network.eval()


LAID = replace(TINY, trunk="landmarks")


@pytest.fixture(
    scope="module", params=[TINY, replace(TINY, pool="mean"), LAID], ids=["grid", "mean", "landmarks"]
)
def network(request):
    return made(request.param)


def pictures(people, views, size=32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(people, views, 3, size, size, generator=rng) * torch.rand(
        people, views, 3, 1, 1, generator=rng
    )


def there(people, views):
    return torch.ones(people, views, dtype=torch.bool)


@torch.no_grad()
def test_it_starts_at_the_mean_face_as_it_fills_the_crop_and_a_flat_depth():
    network = made(replace(TINY, base="none"), loud=False)
    found = network(pictures(1, 2), there(1, 2))
    state = found.state
    assert state.identity.shape == (1, MODEL.num_identity) and not state.identity.any()
    assert yaw_pitch_roll(state.pose.rotation).abs().max() < 1e-3
    assert torch.allclose(state.camera.focal, torch.full((2,), FOCAL * 32))
    pixels = project_points(MODEL.landmark_basis, state).pixels[0]
    low, high = pixels.amin(0), pixels.amax(0)
    side = float((high - low).max())
    assert side == pytest.approx(32 / TINY.margin, rel=0.05)  # a head is no plane
    assert float(((low + high) / 2 - 15.5)[0].abs()) < 0.5
    tip = state.pose.apply(MEAN[None])[:, 30, 2]
    torch.testing.assert_close(found.depth.distance(), tip, rtol=1e-5, atol=1e-3)
    # The sigmoid starts near its middle, which lies so far behind the nose tip.
    assert float((found.depth.depth - tip[:, None, None] - 50).abs().max()) < 15
    assert float(found.depth.suitability.mean()) == pytest.approx(0.88, abs=0.02)


@torch.no_grad()
def test_the_depth_starts_at_the_face_that_g_sees_in_its_pose():
    network = made(replace(TINY, size=96), loud=False)
    bias = network.model.head[-1].bias
    bias[-6:] = torch.tensor([0.2, -0.5, 0.1, 0.1, 0.05, 0.3])
    inner, drawn = {}, {}
    for strength in (0.0, 1.5):
        bias[:-6] = strength * torch.linspace(1.0, -1.0, len(bias) - 6)
        found = network(pictures(1, 1, 96), there(1, 1))
        assert yaw_pitch_roll(found.state.pose.rotation)[0].abs().min() > 5
        drawn[strength], depth = model_depth(MODEL, found.state, (96, 96)), found.depth.depth
        face = (drawn[strength] > 0).float()
        inner[strength] = torch.nn.functional.avg_pool2d(face, 9, 1, 4) > 0.999
        error = (depth - drawn[strength])[inner[strength]].abs().mean()
        assert int(inner[strength].sum()) > 1000 and float(error) < 0.5
        far = torch.nn.functional.max_pool2d(face, 15, 1, 7) == 0
        assert int(far.sum()) > 500 and not depth[far].any()  # nothing is there
    both = inner[0.0] & inner[1.5]
    assert float((drawn[0.0] - drawn[1.5])[both].abs().mean()) > 1  # it is no other face's depth
    bias[-6:][3] = 30.0  # far outside of the picture
    assert not network(pictures(1, 1, 96), there(1, 1)).depth.depth.any()


@torch.no_grad()
def test_each_photo_is_looked_at_by_itself_and_a_person_has_the_mean_of_its_identities(network):
    images = pictures(2, 3)
    valid = torch.tensor([[True, True, True], [True, False, True]])
    whole = network(images, valid)
    assert whole.gives == network.gives == ("state", "depth") and whole.subject.tolist() == [0, 0, 0, 1, 1]
    alone = [network(images[s : s + 1, v : v + 1], there(1, 1)) for s, v in valid.nonzero().tolist()]
    close = dict(atol=2e-4, rtol=2e-4)  # a batch is summed in another order
    torch.testing.assert_close(whole.depth.depth, torch.cat([a.depth.depth for a in alone]), **close)
    torch.testing.assert_close(
        whole.depth.suitability, torch.cat([a.depth.suitability for a in alone]), **close
    )
    torch.testing.assert_close(
        whole.state.expression, torch.cat([a.state.expression for a in alone]), **close
    )
    each = torch.cat([a.state.identity for a in alone])
    assert float(each[:3].std(0).mean()) > 1e-3
    people = torch.stack([each[:3].mean(0), each[3:].mean(0)])
    torch.testing.assert_close(whole.state.identity, people, **close)
    padded = network(images, valid, padded=True)
    torch.testing.assert_close(padded.state.identity, whole.state.identity, **close)
    torch.testing.assert_close(padded.depth.depth[valid.flatten()], whole.depth.depth, **close)
    some = whole.select([1])
    torch.testing.assert_close(some.depth.depth, whole.depth.depth[3:])
    assert some.depth.anchor is whole.depth.anchor


def test_in_a_training_each_photo_has_an_identity_and_depth_comes_when_it_learns(network):
    images, valid = pictures(2, 2), there(2, 2)
    network.train()
    try:
        found = network(images, valid)
        assert found.state.identity.shape[0] == 4 and found.state.subject.tolist() == [0, 1, 2, 3]
        assert found.subject.tolist() == found.depth.subject.tolist() == [0, 0, 1, 1]
        one = found.select([1])  # identities go with their frames
        torch.testing.assert_close(one.state.identity, found.state.identity[2:])
        assert one.state.subject.tolist() == [0, 1] and one.subject.tolist() == [0, 0]
        network.depth.eval()
        assert network(images, valid).depth is not None  # h learns
        network.trust.eval()
        assert network(images, valid).gives == ("state",)
    finally:
        network.eval()


@torch.no_grad()
def test_depth_counts_from_the_nose_tip_and_what_is_empty_has_none():
    network = made(replace(TINY, base="none"))
    images = pictures(1, 1)
    found = network(images, there(1, 1)).depth
    value = network.depth(images[0]).sigmoid()
    away = from_normalized(value, found.distance())
    torch.testing.assert_close(away, found.distance()[:, None, None] + 150 - 200 * value)
    for bias, empty in ((-8.0, True), (8.0, False)):
        before = network.depth.out.bias.clone()
        network.depth.out.bias.fill_(bias)
        depth = network(images, there(1, 1)).depth.depth
        network.depth.out.bias.copy_(before)
        assert bool((depth == 0).all()) == empty
    edge = from_normalized(torch.tensor([[[0.0, EMPTY, 0.75, 1.0]]]), torch.tensor([1000.0]))
    assert edge.flatten().tolist() == pytest.approx([1000 + BEHIND_MM, 1140, 1000, 1000 - BEFORE_MM])


def test_how_far_away_an_anchor_is():
    found = made()(pictures(1, 2), there(1, 2))
    state, anchor = found.depth, found.depth.anchor
    torch.testing.assert_close(state.distance(), state.pose.apply(anchor[None, None])[:, 0, 2])
    torch.testing.assert_close(replace(state, anchor=None).distance(), state.pose.translation[:, 2])
    with pytest.raises(InputError, match="how far away a head is follows from its pose"):
        replace(state, pose=None).distance()
    assert state.select([1]).depth.shape[0] == 1 and back_project(state.depth, state.camera).shape == (
        2,
        1024,
        3,
    )
    assert isinstance(state.select_people([0]), DepthState)


def test_the_layers_are_the_published_ones():
    with torch.device("meta"):  # shapes alone
        u = UNet(1.0, 6, 0.0)
        assert [d[0].out_channels for d in u.down] == [64, 128, 256, 512, 512, 512]
        assert [d[0].kernel_size + d[0].stride for d in u.down] == [(4, 4, 2, 2)] * 6
        assert [c[0].in_channels for c in u.up] == [512, 1024, 1024, 512, 256] and u.last.in_channels == 128
        assert u(torch.zeros(1, 3, 384, 384)).shape == (1, 384, 384)
        assert u(torch.zeros(1, 3, 360, 360)).shape == (1, 360, 360)  # inside it is 384 px large
        half = UNet(0.5, 6, 0.0)
        assert [d[0].out_channels for d in half.down] == [32, 64, 128, 256, 256, 256]


def test_weights_of_torchvision_start_the_trunk(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(1)
    theirs = models.DenseNet(4, (1, 1, 1, 1), 8)
    network = made()
    for old in (False, True):
        weights = theirs.state_dict()
        if old:  # as the first versions named them
            weights = {
                k.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.").replace("norm2.", "norm.2."): v
                for k, v in weights.items()
                if "classifier" not in k
            }
            assert any("denselayer1.norm.1.weight" in k for k in weights)
        path = tmp_path / f"{old}.pth"
        torch.save(weights, path)
        network = made()
        start_from(network, path, MODEL)
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(network.model.trunk(x), theirs.eval().features(x))
    torch.save(models.DenseNet(8, (1, 1, 1, 1), 8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        InputError, match="other.pth: expected torchvision's weights of a DenseNet with growth 4"
    ):
        start_from(network, tmp_path / "other.pth", MODEL)
    for content in ([1, 2], {"features.conv0.weight": [1]}, {5: torch.zeros(1)}):
        torch.save(content, tmp_path / "no.pth")
        with pytest.raises(InputError, match="no.pth: expected torchvision's weights of a DenseNet"):
            start_from(network, tmp_path / "no.pth", MODEL)


def test_a_wrong_start_says_which_one_would_do(tmp_path):
    network = made()
    with pytest.raises(InputError, match="got densenet; or give net.start: weights of the trunk, or '' to"):
        start_from(network, "builtin", MODEL)
    other = Mfnet(
        MODEL, (ViewSlot("front", (-20.0, 20.0)),), MfnetOptions(size=32, trunk="resnet18", hidden=8)
    )
    save_predictor(other, "mfnet", tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match="expected weights of the recipe's network, Mvdepth, got those of Mfn"
    ):
        start_from(network, tmp_path / "other.safetensors", MODEL)


def test_saved_and_read_it_says_the_same(tmp_path, network):
    save_predictor(network, "mvdepth", tmp_path / "a.safetensors", half=False)
    again = load_predictor(tmp_path / "a.safetensors", MODEL)
    with torch.no_grad():
        one, other = (n(pictures(1, 2), there(1, 2)) for n in (network, again))
    torch.testing.assert_close(one.depth.depth, other.depth.depth)
    torch.testing.assert_close(one.state.identity, other.state.identity)
    assert again.options == network.options and set(again.parts()) == {
        "trunk",
        "heads",
        "depth",
        "suitability",
    }
    assert {id(p) for p in again.parameters()} == {
        id(p) for things in again.parts().values() for t in things for p in t.parameters()
    }
    assert again.features(pictures(1, 1)[0]).ndim == 2


def test_what_it_refuses():
    with pytest.raises(
        InputError, match="net mvdepth: looks at each photo by itself; expected no named 'views'"
    ):
        Mvdepth(MODEL, (ViewSlot("front"),), TINY)
    with pytest.raises(InputError, match="net mvdepth: size: expected .* multiple of 16"):
        replace(TINY, size=360)
    with pytest.raises(InputError, match="net mvdepth: blocks"):
        replace(TINY, blocks=(1, 1))
    assert not net_kind("mvdepth").named_views


def test_half_precision_keeps_positions_whole():
    network = made()
    with torch.autocast("cpu", torch.bfloat16):
        said = network(pictures(1, 1), there(1, 1))
    assert said.state.pose.translation.dtype == said.depth.depth.dtype == torch.float32
