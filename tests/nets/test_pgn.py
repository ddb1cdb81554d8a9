"""PGN: pose in closed form from the position map, any number of photos, sizes and options, weight files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fitkit.energies.landmarks3d import affine_align, landmark_places
from fitkit.errors import InputError
from fitkit.evaluate.bench.photos import load_views
from fitkit.fitting.network_start import predict_views
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.rotation import so3_exp
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.pgn.network import RANGE, Pgn, PgnOptions
from fitkit.nets.pgn.placing import place_affine, place_similarity
from fitkit.nets.pgn.prnet import REDUCTION, decoder, encoder
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions
from fitkit.scene.projection import project_points

TINY = PgnOptions(size=32, map=16, width=0.05, encoder="prnet", start="mean")
LAID = PgnOptions(size=32, map=16, width=0.05)  # the default, with the encoder of the landmark detector


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


def loud(network):
    """Last layers with large random weights, so that every output depends on every input."""
    torch.manual_seed(1)
    for part in (network.identity_head, network.expression_head, network.decoder):
        layers = [m for m in part.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        torch.nn.init.normal_(layers[-1].weight, std=0.5)
    return network.eval()


@pytest.fixture(scope="module", params=[TINY, LAID], ids=["prnet", "landmarks"])
def network(model, request):
    torch.manual_seed(0)
    return loud(Pgn(model, (), request.param))


SAMPLE = Path(__file__).parents[2] / "examples" / "sample"


def pictures(views, seed=0):
    """Noise of another colour in each view."""
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(1, views, 3, 32, 32, generator=rng) * torch.rand(1, views, 3, 1, 1, generator=rng)


def clouds(noise, seed=0):
    """Heads and what is seen of them: turned, scaled, moved and with noise."""
    rng = torch.Generator().manual_seed(seed)
    head = 40 * torch.randn(5, 68, 3, generator=rng)
    rotation = so3_exp(2 * torch.randn(5, 3, generator=rng))
    seen = 1.7 * head @ rotation.transpose(1, 2) + torch.tensor([60.0, 70.0, 40.0])
    return head, rotation, seen + noise * torch.randn(5, 68, 3, generator=rng)


@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_the_similarity_is_that_of_the_singular_value_decomposition(noise):
    head, rotation, seen = clouds(noise)
    weight = torch.ones(68)
    weight[10:20] = 0
    scale, found, shift = place_similarity(head, seen, weight)
    best = similarity_align(head, seen, weight.bool().expand(5, -1))
    torch.testing.assert_close(found, best.rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(scale, best.scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shift, best.translation, atol=1e-2, rtol=0)
    if not noise:
        torch.testing.assert_close(found, rotation, atol=1e-4, rtol=0)


def test_points_that_tell_no_pose_have_finite_gradients():
    """A map that knows nothing yet, as at the start of a training."""
    for points in (torch.full((1, 68, 3), 30.0), torch.zeros(1, 68, 3), clouds(0.0)[0][:1].flip(-1)):
        for place in (place_similarity, place_affine):
            seen = points.clone().requires_grad_()
            out = place(clouds(0.0)[0][:1], seen, torch.ones(68))
            sum(x.sum() for x in out).backward()
            assert all(x.isfinite().all() for x in (*out, seen.grad))


def test_the_affine_map_gives_the_pose_of_its_first_two_rows():
    head, rotation, seen = clouds(0.0)
    scale, found, shift = place_affine(head, seen, torch.ones(68))
    torch.testing.assert_close(found, rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(scale, torch.full((5,), 1.7), atol=1e-3, rtol=0)
    stretched = head * torch.tensor([1.2, 1.0, 0.8])  # a face of other proportions, which only it can take up
    scale, found, shift = place_affine(stretched, seen, torch.ones(68))
    linear, moved = affine_align(stretched, seen, torch.ones(5, 68, dtype=torch.bool))
    torch.testing.assert_close(scale, linear[:, :2].norm(dim=-1).mean(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found @ found.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    for weight in (torch.rand(68), torch.rand(5, 68)):  # what fits exactly does so under all weights
        torch.testing.assert_close(place_affine(head, seen, weight)[1], rotation, atol=1e-4, rtol=0)
    middle = stretched.mean(1, keepdim=True)
    torch.testing.assert_close(
        scale[:, None] * (found @ middle[:, 0, :, None])[..., 0] + shift,
        (middle @ linear.transpose(1, 2))[:, 0] + moved,
        atol=1e-2,
        rtol=0,
    )


@torch.no_grad()
@pytest.mark.parametrize("output", ["map", "points"])
def test_it_starts_at_the_mean_face_in_the_middle_of_the_crop(model, output):
    network = Pgn(model, (), replace(TINY, output=output)).eval()
    found = network(pictures(1), torch.ones(1, 1, dtype=torch.bool))
    at, state = found.position_map.points, found.state
    torch.testing.assert_close(at, RANGE * 32 * torch.sigmoid(network.start)[None])
    assert not state.identity.any() and not state.expression.any()
    frontal = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    assert float((state.pose.rotation[0] - frontal).abs().max()) < 0.02
    seen = project_points(model.landmark_basis, state).pixels[0]
    low, high = seen.amin(0), seen.amax(0)
    assert float(((low + high) / 2 - 15.5).abs().max()) < 0.7
    assert float((high - low).max()) == pytest.approx(32 / network.crop.margin, rel=0.03)
    assert float((network.landmarks(at)[0, :, :2] - seen).norm(dim=-1).mean()) < 0.5


@torch.no_grad()
@pytest.mark.parametrize("output", ["map", "points"])
def test_it_starts_at_the_mean_face_on_the_landmarks(model, output):
    """With the weights of the landmark detector, on photos that it has not seen."""
    network = Pgn(model, (), PgnOptions(output=output, width=0.05)).eval()
    start_from(network, "builtin", model)
    told = predict_views(network, model, *load_views(SAMPLE))
    assert not told.prediction.state.identity.any()
    maps, seen = told.prediction.position_map, told.observations.landmarks.points
    size = (seen.amax(1) - seen.amin(1)).prod(-1).sqrt()
    error = (network.landmarks(maps.points)[:, 17:, :2] - seen[:, 17:]).norm(dim=-1).mean(1) / size
    assert float(error.max()) < 0.05
    # Depth as in labels: of the state's own face, behind its nearest landmark.
    depth = network.landmarks(maps.points)[..., 2]
    assert float(depth.amin(1).abs().max()) < 1.0 and int(depth[0].argmin()) in range(28, 36)


def test_weights_for_the_encoder(model):
    with pytest.raises(InputError, match="x: expected the weights of the encoder, which is that of PRNet"):
        Pgn(model, (), TINY).load_encoder(LandmarkNetwork(NetworkOptions(size=32)), "x")
    with pytest.raises(InputError, match="x: expected the weights of the encoder, a landmark network with"):
        Pgn(model, (), LAID).load_encoder(LandmarkNetwork(NetworkOptions(widths=(8, 8, 8, 8, 8))), "x")
    with pytest.raises(InputError, match="start: expected 'mean' or 'none' with encoder 'prnet'"):
        replace(LAID, encoder="prnet")


@torch.no_grad()
@pytest.mark.parametrize("output", ["map", "points"])
@pytest.mark.parametrize("options", [TINY, LAID], ids=["prnet", "landmarks"])
def test_the_face_lies_on_the_landmarks_of_the_map(model, output, options):
    torch.manual_seed(0)
    network = loud(Pgn(model, (), replace(options, output=output)))
    found = network(pictures(3), torch.ones(1, 3, dtype=torch.bool))
    maps, state = found.position_map.points, found.state
    assert found.gives == ("state", "position_map")
    assert maps.shape == ((3, 3, 16, 16) if output == "map" else (3, 3, 1, 68))
    places = landmark_places(model, (16, 16)) if output == "map" else None
    marks = network.landmarks(maps)
    if output == "points":
        assert torch.equal(marks, maps[:, :, 0].transpose(1, 2))
    else:
        x, y = (places[30] + 0.5).floor().long().tolist()  # the tip of the nose, between its four texels
        around = maps[:, :, y - 1 : y + 2, x - 1 : x + 2].flatten(2)
        assert bool(
            (marks[:, 30] >= around.amin(2) - 1e-3).all() and (marks[:, 30] <= around.amax(2) + 1e-3).all()
        )
    head = model.landmark_basis.points(*state.coefficients())
    best = similarity_align(head, marks)
    torch.testing.assert_close(state.pose.rotation, best.rotation, atol=1e-3, rtol=0)
    seen = project_points(model.landmark_basis, state).pixels
    torch.testing.assert_close(seen, best.apply(head)[..., :2], atol=0.05, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("views", [1, 2, 4])
def test_identity_is_of_all_photos_expression_of_each(network, views):
    images, valid = pictures(views), torch.ones(1, views, dtype=torch.bool)
    found = network(images, valid).state
    order = torch.arange(views).flip(0)
    turned = network(images[:, order], valid).state
    torch.testing.assert_close(found.identity, turned.identity, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.expression[order], turned.expression, atol=1e-4, rtol=0)
    alone = network(images[:, :1], valid[:, :1]).state
    torch.testing.assert_close(found.expression[:1], alone.expression, atol=1e-4, rtol=0)
    assert views == 1 or not torch.allclose(found.identity, alone.identity, atol=1e-3)
    beside = torch.cat([images, torch.rand(1, 1, 3, 32, 32)], 1)
    there = torch.cat([valid, torch.zeros(1, 1, dtype=torch.bool)], 1)
    for padded in (False, True):
        other = network(beside, there, padded=padded)
        torch.testing.assert_close(other.state.identity, found.identity, atol=1e-4, rtol=0)
        torch.testing.assert_close(other.state.expression[:views], found.expression, atol=1e-4, rtol=0)


@torch.no_grad()
def test_published_sizes():
    layers, channels = encoder(1.0)
    assert channels == 512 and layers.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 512, 2, 2)
    assert [m.out_channels for m in decoder(1.0, 512, 5, 3) if isinstance(m, torch.nn.ConvTranspose2d)] == [
        256,
        128,
        64,
        32,
        16,
    ]
    options = PgnOptions(size=256, map=256, width=1.0)
    assert options.doublings == 5 and options.size // REDUCTION == 8
    assert PgnOptions().map in PgnOptions().sides


def test_the_encoder_learns_with_channels_last():
    """As trainings lay it out; there, strided convolutions of one pixel ended the process."""
    layers = encoder(0.375)[0].to(memory_format=torch.channels_last)
    layers(torch.rand(4, 3, 128, 128)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layers.parameters())


def test_the_default_is_small_enough_for_a_cpu(model):
    assert sum(p.numel() for p in Pgn(model).parameters()) < 3.1e6


def test_parts_are_all_of_it(network):
    named = [p for things in network.parts().values() for thing in things for p in thing.parameters()]
    assert {id(p) for p in named} == {id(p) for p in network.parameters()} and len(named) == len(
        list(network.parameters())
    )
    assert network.features(pictures(3)[0]).shape == (3, 24 if network.tell is None else 184)


@torch.no_grad()
def test_weight_files(network, model, tmp_path):
    path = tmp_path / "regressor.safetensors"
    save_predictor(network, "pgn", path, half=False)
    again = load_predictor(path)
    valid = torch.ones(1, 2, dtype=torch.bool)
    one, two = (n(pictures(2), valid) for n in (network, again))
    torch.testing.assert_close(one.position_map.points, two.position_map.points)
    torch.testing.assert_close(one.state.identity, two.state.identity)
    assert not net_kind("pgn").named_views


def test_options_that_do_not_fit(model):
    with pytest.raises(InputError, match="net pgn: map: expected one of 2, 4, 8, 16, 32 for pictures of 32"):
        PgnOptions(size=32, map=64)
    with pytest.raises(InputError, match="net pgn: takes any photos in any order.*got front"):
        Pgn(model, (ViewSlot("front"),))
