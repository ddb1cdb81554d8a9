"""DF-MVR: involution, fusion of the views, where it starts, missing views, the parser, weight files."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.resources import asset_path
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.dfmvr.network import AMBIENT, FOCAL, Dfmvr, DfmvrOptions
from fitkit.nets.dfmvr.rednet import Backbone, Involution
from fitkit.nets.dfmvr.surface_light import POINTS, SeenColors, SurfaceLight, solve_positive
from fitkit.nets.dfmvr.tri_unet import AttentionGate, Stacked, TriUNet
from fitkit.nets.mvfnet.convention import rotation_of_euler
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.nets.weak_perspective import to_focal, to_orthographic
from fitkit.observe.face_parts import ten
from fitkit.observe.landmarks.builtin import read_network
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions
from fitkit.render.lit import render_lit
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState
from fitkit.train.validation import aligned_distance

MODEL = tiny_model()
SLOTS = (ViewSlot("left", (-75.0, -15.0)), ViewSlot("front", (-25.0, 25.0)), ViewSlot("right", (15.0, 75.0)))
TINY = DfmvrOptions(
    size=32,
    width=0.05,
    depth=3,
    backbone_width=0.1,
    blocks=(1, 1, 1, 1),
    parser=ParserOptions(size=64, spatial=4, joined=8),
)


def colored(model):
    """With an albedo basis of two waves."""
    wave = torch.sin(model.mean / 30.0)
    return replace(
        model,
        albedo_mean=torch.full_like(model.mean, 0.4),
        albedo_basis=0.05 * torch.stack([wave, -wave[:, [1, 2, 0]]]),
    )


def made(options=TINY, model=MODEL, loud=True):
    """A network whose every output depends on every input."""
    torch.manual_seed(0)
    network = Dfmvr(model, SLOTS, options)
    if loud:
        torch.nn.init.normal_(network.head.weight, std=0.2)
        for module in network.modules():  # as after some steps: what is seen reaches the last layer
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return made()


def pictures(people=1, seed=0, size=32):
    return torch.rand(people, 3, 3, size, size, generator=torch.Generator().manual_seed(seed))


EVERYWHERE = torch.ones(1, 3, dtype=torch.bool)


# ---- layers ----


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
def test_an_involution_is_a_sum_with_the_kernel_of_each_pixel(kernel, stride):
    torch.manual_seed(0)
    layer = Involution(32, kernel, stride).double().eval()
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    seen = torch.nn.functional.avg_pool2d(x, stride) if stride > 1 else x
    kernels = layer.span(layer.reduce(seen))
    half, out = kernel // 2, torch.zeros(2, 32, 8 // stride, 8 // stride, dtype=torch.float64)
    around = torch.nn.functional.pad(x, (half,) * 4)
    for i in range(8 // stride):
        for j in range(8 // stride):
            rows, columns = (slice(stride * n, stride * n + kernel) for n in (i, j))
            patch = around[:, :, rows, columns].flatten(2).unflatten(1, (2, 16))  # two groups of channels
            own = kernels[..., i, j].unflatten(1, (2, 1, kernel**2))
            out[..., i, j] = (patch * own).sum(-1).flatten(1)
    torch.testing.assert_close(layer(x), out)


def test_the_sizes_are_the_published_ones():
    with torch.device("meta"):  # shapes alone
        x = torch.zeros(1, 3, 4, 32, 32)
        fusion = TriUNet(3, 4, 1.0, 5, last=False)
        assert [e.levels[-1][0][0].out_channels for e in fusion.encoders] == [1024] * 3
        assert [u.out_channels for u in fusion.up] == [512, 256, 128, 64]
        assert fusion.up[0].in_channels == 3072 and fusion.merge[0][0][0].in_channels == 2048
        assert fusion.outputs == 256 and fusion(x).shape == (1, 256, 32, 32)
        backbone = Backbone("rednet", 256, 1.0, (3, 4, 6, 3))
        assert backbone.outputs == 2048 and backbone(torch.zeros(1, 256, 64, 64)).shape == (1, 2048)
        assert TriUNet(3, 4, 1.0, 5, last=True).outputs == 64
    assert len([m for m in backbone.modules() if isinstance(m, Involution)]) == 1 + 3 + 4 + 6 + 3


def test_no_weights_are_shared_by_the_encoders():
    torch.manual_seed(0)
    fusion = TriUNet(3, 3, 0.125, 3, False).eval()
    x = torch.rand(1, 3, 3, 16, 16)
    with torch.no_grad():
        assert float((fusion(x) - fusion(x[:, [2, 1, 0]])).abs().max()) > 1e-3


def test_a_gate_weighs_what_it_lets_through():
    torch.manual_seed(0)
    gate = AttentionGate(8, 8).eval()
    x, g = torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4)
    ratio = gate(g, x) / x
    assert float(ratio.std(1).max()) < 1e-6 and 0 < float(ratio.min()) and float(ratio.max()) < 1


@pytest.mark.parametrize("depth, last, outputs", [(1, False, 32), (1, True, 8), (3, False, 16), (3, True, 8)])
def test_what_the_fusion_is_compared_with(depth, last, outputs):
    fusion = Stacked(3, 4, 0.125, depth, last).eval()
    assert fusion.outputs == outputs and fusion(torch.rand(2, 3, 4, 16, 16)).shape == (2, outputs, 16, 16)


# ---- the network ----


@torch.no_grad()
def test_it_starts_at_the_mean_face_in_its_slots():
    model = load_model("generic")
    options = DfmvrOptions(size=96, width=0.02, backbone_width=0.02, blocks=(1, 1, 1, 1), masks="none")
    options = replace(options, light_from="heads", landmarks=False)
    network = Dfmvr(model, SLOTS, options).eval()
    state = network(pictures(size=96), EVERYWHERE).state
    assert not state.identity.any() and not state.expression.any() and state.albedo is None
    torch.testing.assert_close(
        yaw_pitch_roll(state.pose.rotation),
        torch.tensor([[-45.0, 0, 0], [0, 0, 0], [45.0, 0, 0]]),
        atol=1e-3,
        rtol=0,
    )
    assert state.camera.kind == "perspective" and float(state.camera.focal[0]) == pytest.approx(FOCAL * 96)
    assert network.focal == pytest.approx(FOCAL * 96)
    seen = project_points(model.landmark_basis, state).pixels[1]
    low, high = seen.amin(0), seen.amax(0)
    assert float((high - low).max()) == pytest.approx(96 / 1.6, rel=0.06)
    middle = (low + high) / 2
    assert float(middle[0]) == pytest.approx(47.5, abs=1.0)
    assert float(middle[1]) == pytest.approx(47.5 + 0.1 * float((high - low)[1]), abs=1.5)
    assert torch.equal(state.illumination[:, 1:], torch.zeros(3, 8, 3))
    torch.testing.assert_close(state.illumination[:, 0] * Y0, torch.full((3, 3), AMBIENT))
    frontal = Dfmvr(model, SLOTS, replace(options, start="frontal")).eval()
    assert (
        float(yaw_pitch_roll(frontal(pictures(size=96), EVERYWHERE).state.pose.rotation).abs().max()) < 1e-3
    )


@torch.no_grad()
def test_landmarks_alone_tell_much_of_a_face():
    """People as the synthetic ones, at the network's focal length and another distance."""
    model = load_model("generic")
    small = {"width": 0.02, "backbone_width": 0.02, "blocks": (1, 1, 1, 1), "masks": "none"}
    network = Dfmvr(model, SLOTS, DfmvrOptions(light_from="heads", **small)).eval()
    assert torch.equal(network.line.weight, Dfmvr(model, SLOTS, DfmvrOptions(**small)).line.weight)
    generator, people = torch.Generator().manual_seed(5), 12
    identity = torch.randn(people, model.num_identity, generator=generator)
    expression = 0.3 * torch.rand(people, model.num_expression, generator=generator)
    turn = 0.1 * torch.randn(people, 3, 3, generator=generator) + network.turn
    place = (network.place * torch.tensor([1.0, 1.0, 0.7])).expand(people, -1, -1).flatten(0, 1)
    rotation = rotation_of_euler(turn.flatten(0, 1))
    state = SceneState(
        identity,
        torch.arange(people).repeat_interleave(3),
        expression.repeat_interleave(3, 0),
        Pose(rotation, place - rotation @ network.anchor),
        Camera(
            torch.full((3 * people,), 0.7 * network.focal),
            torch.full((3 * people, 2), 63.5),
            torch.ones(3 * people),
            "perspective",
        ),
        torch.zeros(3 * people, 9, 1),
    )
    points = project_points(model.landmark_basis, state).pixels
    told = network.trunk.tell(points, torch.ones_like(points[..., 0]))
    row = torch.cat([told.new_zeros(len(told), network.trunk.outputs - told.shape[1]), told], 1)
    for head in (network.shape_head, network.pose_head):
        head[-1].weight.zero_()
    valid = torch.ones(people, 3, dtype=torch.bool)
    found, poses = network._with_landmarks(torch.zeros(people, sum(network.sizes)), row, valid, False)
    still = torch.zeros_like(expression)

    def apart(coefficients):
        shape, truth = (model.vertices(a, still)[:, model.face] for a in (coefficients, identity))
        return aligned_distance(shape, truth)

    assert apart(found[:, : model.num_identity]) < 0.62 * apart(torch.zeros_like(identity))
    turned = rotation_of_euler(poses[:, :3] + network.turn.repeat(people, 1))
    cosine = ((turned.transpose(1, 2) @ rotation).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert float(torch.rad2deg(cosine.clamp(-1, 1).acos()).mean()) < 3.0
    at = 100 * poses[:, 3:] + network.place.repeat(people, 1)
    assert float((at - place * torch.tensor([1, 1, 1 / 0.7])).norm(dim=1).mean()) < 40.0


def test_the_fusion_rests_until_it_has_something_to_say():
    network = made(loud=False).train()
    for name, things in network.parts().items():
        for thing in things:
            thing.requires_grad_(name == "landmarks")
            thing.train(name == "landmarks")
    calls = []
    network.fusion.register_forward_hook(lambda *_: calls.append(1))
    valid = torch.tensor([[True, True, True], [False, True, False]])
    short = network(pictures(2), valid)
    assert not calls and short.gives == ("state", "landmarks")
    network.head.bias.requires_grad_(True)  # it learns
    whole = network(pictures(2), valid)
    assert calls == [1] and whole.gives == ("state", "landmarks", "parse")
    for name in ("identity", "expression"):
        torch.testing.assert_close(getattr(short.state, name), getattr(whole.state, name))
    torch.testing.assert_close(short.state.pose.translation, whole.state.pose.translation)
    network.head.requires_grad_(False)
    torch.nn.init.ones_(network.head.bias)  # it says something
    network(pictures(2), valid)
    torch.nn.init.zeros_(network.head.bias)
    network.eval()(pictures(2), valid)  # who uses the network wants the parse
    assert calls == [1] * 3


@torch.no_grad()
@pytest.mark.parametrize("fused, side", [(0, 64), (32, 32), (96, 64)])
def test_the_fusion_sees_smaller_pictures(fused, side):
    network, sides = made(replace(TINY, size=64, fused=fused)), []
    network.fusion.register_forward_hook(lambda module, seen, found: sides.append(seen[0].shape[-1]))
    found = network(pictures(size=64), EVERYWHERE)
    assert sides == [side] and found.parse.shape[-1] == 64
    assert found.landmarks.points.shape == (3, 68, 2) and found.landmarks.jaw == "surface"


def test_angles_turn_as_they_are_called():
    angles = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.5], [0.3, -0.4, 0.2]])
    R = rotation_of_euler(angles)
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(4))
    turned = yaw_pitch_roll(R[:3])
    torch.testing.assert_close(turned[:, 0], torch.rad2deg(-angles[:3, 1]), atol=1e-4, rtol=0)
    assert [int(row.abs().argmax()) for row in turned] == [1, 0, 2]
    flip = torch.tensor([1.0, -1.0, -1.0])[:, None]
    x, y, z = (flip * rotation_of_euler(torch.diag(angles[3])[k : k + 1])[0] for k in range(3))
    torch.testing.assert_close(flip * R[3], z @ y @ x)  # the pitch is applied first


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"fusion": "unet"},
        {"fusion": "cnn"},
        {"fusion_out": "conv"},
        {"backbone": "resnet"},
        {"masks": "scaled"},
        {"masks": "integer"},
        {"masks": "none"},
        {"light": "person"},
        {"light_from": "heads"},
        {"landmarks": False},
        {"landmarks": False, "light_from": "heads"},
    ],
    ids=lambda c: "-".join(map(str, c.values())) or "default",
)
def test_all_of_a_person_comes_from_all_views(change):
    network = made(replace(TINY, **change), colored(MODEL))
    images = pictures(2)
    found = network(images, torch.ones(2, 3, dtype=torch.bool))
    state = found.state
    marks = () if change.get("landmarks") is False else ("landmarks",)
    parse = () if change.get("masks") == "none" else ("parse",)
    assert found.gives == network.gives == ("state", *marks, *parse)
    assert found.lit and found.shared_expression
    assert state.identity.shape == (2, MODEL.num_identity) and state.albedo.shape == (2, 2)
    assert state.expression.shape == (6, MODEL.num_expression) and state.illumination.shape == (6, 9, 3)
    assert torch.equal(state.expression[0], state.expression[2])
    same = torch.equal(state.illumination[0], state.illumination[1])
    assert same == (change.get("light") == "person")
    if found.parse is not None:
        assert found.parse.shape == (6, 17, 32, 32)
    for view in range(3):  # each picture matters, for each number
        other = images.clone()
        other[0, view] = other[0, view].flip(-1) * 0.5
        changed = network(other, torch.ones(2, 3, dtype=torch.bool)).state
        assert float((changed.identity - state.identity)[0].abs().max()) > 1e-5
        assert float((changed.pose.translation - state.pose.translation)[:3].abs().max()) > 1e-4
        assert torch.allclose(changed.identity[1], state.identity[1], atol=1e-5)


@torch.no_grad()
def test_missing_views_are_black_and_say_nothing(network):
    images, valid = pictures(2), torch.tensor([[True, False, True], [False, True, False]])
    found = network(images, valid)
    assert found.state.num_views == 3 and found.subject.tolist() == [0, 0, 1]
    other = torch.where(valid[..., None, None, None], images, torch.rand(2, 3, 3, 32, 32))
    again = network(other, valid)
    assert torch.equal(found.state.identity, again.state.identity)
    padded = network(other, valid, padded=True)
    flat = valid.flatten()
    for name in ("expression", "illumination"):
        torch.testing.assert_close(
            getattr(padded.state, name)[flat], getattr(found.state, name), rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(padded.state.pose.rotation[flat], found.state.pose.rotation)
    torch.testing.assert_close(padded.parse[flat], found.parse)
    # The same as a black picture in which the parser sees no part.
    seen = network.fusion(
        torch.cat([images[:1], network._channels(network.parse_of(images[0]))[None]], 2)
        * valid[:1, :, None, None, None]
    )
    direct = network.head(network.backbone(seen))[:, : MODEL.num_identity]
    # To the landmark network it is like the mean of the others.
    one, two = network.trunk(images[0, [0, 2]])
    told = network.shape_head(torch.cat([one, (one + two) / 2, two])[None])
    # To the linear guess it is like the usual one.
    last = network.trunk.told
    unusual = torch.cat([one[-last:], network.usual[last : 2 * last], two[-last:]]) - network.usual
    told = told[:, : MODEL.num_identity] + network.line(unusual.clamp(-8, 8)[None])[:, : MODEL.num_identity]
    direct = direct + told
    torch.testing.assert_close(found.state.identity[:1], direct, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_parse_enters_as_asked(network):
    logits = torch.randn(2, 17, 8, 8, generator=torch.Generator().manual_seed(1))
    part = ten(logits.argmax(1))
    one_hot = network._channels(logits)
    assert torch.equal(one_hot.argmax(1), part) and torch.equal(one_hot.sum(1), torch.ones(2, 8, 8))
    for kind, unit in (("scaled", 9.0), ("integer", 1.0)):
        torch.testing.assert_close(made(replace(TINY, masks=kind))._channels(logits)[:, 0], part / unit)


# ---- light from the photos ----


@torch.no_grad()
@pytest.mark.parametrize("light", ["view", "person"])
def test_the_light_of_a_rendered_face_is_found(light):
    model = load_model("generic")
    options = DfmvrOptions(
        size=96,
        width=0.02,
        backbone_width=0.02,
        blocks=(1, 1, 1, 1),
        masks="none",
        light=light,
        landmarks=False,
    )
    torch.manual_seed(0)
    network = Dfmvr(model, SLOTS, options).eval()
    start = network(torch.zeros(1, 3, 3, 96, 96), EVERYWHERE).state
    shine = torch.zeros(3, 9, 3)
    shine[:, 0] = torch.tensor([1.2, 1.0, 0.8]) / Y0
    shine[:, 1:4] = torch.tensor([0.4, -0.3, 0.2])[:, None] * torch.tensor([1.2, 1.0, 0.8])
    drawn = render_lit(model, start.replace(illumination=shine), (96, 96))
    photos = torch.where(drawn.covered[:, None], drawn.colors, 0.0)[None]
    found = network(photos, EVERYWHERE).state
    again = render_lit(model, start.replace(illumination=found.illumination), (96, 96))
    face = drawn.covered & model.face[model.triangles].all(1)[drawn.triangle.clamp_min(0)]

    def apart(other):
        return float((other - drawn.colors).abs().mean(1)[face].mean())

    even = render_lit(model, start.replace(illumination=network._ambient(shine).expand(3, -1, -1)), (96, 96))
    assert apart(again.colors) < 0.02 < 0.06 < apart(even.colors)


@torch.no_grad()
def test_light_under_a_known_albedo():
    model = colored(MODEL)
    surface = SurfaceLight(model)
    generator = torch.Generator().manual_seed(0)
    albedo = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    light = 0.1 * torch.randn(2, 9, 3, generator=generator)
    light[:, 0] += 3.0
    colors = surface.albedo_mean + (albedo @ surface.albedo_rows).unflatten(1, (-1, 3))
    seen = SeenColors(colors * (surface.harmonics @ light), torch.ones(2, POINTS))
    found, rest = surface.solve(seen, albedo, torch.zeros(9, 3))
    torch.testing.assert_close(
        surface.harmonics @ found, surface.harmonics @ light, atol=0.08, rtol=0
    )  # a ridge holds them
    assert float(rest.abs().max()) < 0.2
    _, more = surface.solve(seen, None, torch.zeros(9, 3))
    assert float(more.abs().mean()) > 3 * float(rest.abs().mean())
    # A picture that hardly shows the face says nothing.
    dark = torch.full((9, 3), 0.5)
    found, rest = surface.solve(replace(seen, weight=seen.weight * 0.01), albedo, dark)
    assert torch.equal(found, dark.expand(2, 9, 3))


def test_equations_are_solved_with_elementary_steps():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=generator)
    matrix = half @ half.transpose(-1, -2) + 0.1 * torch.eye(9)
    right = torch.randn(2, 3, 9, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(solve_positive(matrix, right), torch.linalg.solve(matrix, right))
    columns = solve_positive(matrix, right[..., None])
    torch.testing.assert_close(columns[..., 0], torch.linalg.solve(matrix, right))


# ---- the parser inside ----


def test_the_parser_never_learns(network):
    torch.manual_seed(0)
    own = Dfmvr(MODEL, SLOTS, TINY).train()
    assert own.parse_size == 64 and not own.parser.training
    before = {k: v.clone() for k, v in own.parser.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in own.parameters() if p.requires_grad], lr=0.01)
    state = own(pictures(2), torch.ones(2, 3, dtype=torch.bool)).state
    (state.identity.sum() + state.pose.rotation.sum()).backward()
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in own.parser.state_dict().items())
    assert set(own.parts()) == {"fusion", "backbone", "heads", "landmarks", "light", "parser"}
    covered = {id(p) for things in own.parts().values() for t in things for p in t.parameters()}
    assert covered == {id(p) for p in own.parameters()}


def test_energies_can_look_through_the_parser(network):
    images = pictures()[0].requires_grad_()
    logits = network.parse_of(images)
    assert logits.shape == (3, 17, 32, 32)
    logits.square().mean().backward()
    assert float(images.grad.abs().max()) > 0
    assert network.parse_of(torch.rand(1, 3, 40, 24)).shape == (1, 17, 40, 24)
    with pytest.raises(InputError, match="Dfmvr: tells no parts of the face of single pictures"):
        made(replace(TINY, masks="none")).parse_of(images)


@torch.no_grad()
def test_weights_hold_the_parser(network, tmp_path):
    save_predictor(network, "dfmvr", tmp_path / "a.safetensors", half=False)
    again = load_predictor(tmp_path / "a.safetensors", MODEL)
    images = pictures(2)
    one, two = (n(images, torch.ones(2, 3, dtype=torch.bool)) for n in (network, again))
    assert torch.equal(one.state.identity, two.state.identity) and torch.equal(one.parse, two.parse)
    other = made(loud=False)
    start_from(other, tmp_path / "a.safetensors", MODEL)
    assert torch.equal(other(images, torch.ones(2, 3, dtype=torch.bool)).parse, one.parse)


def test_a_parser_to_start_from(tmp_path):
    torch.manual_seed(3)
    save_predictor(Parser(None, (), TINY.parser), "parser", tmp_path / "parser.safetensors", half=False)
    network = made(loud=False)
    assert network.needs == "weights of a face parser"
    before = network.parse_of(pictures()[0])
    start_from(network, tmp_path / "parser.safetensors", MODEL)
    after = network.parse_of(pictures()[0])
    parser = load_predictor(tmp_path / "parser.safetensors")
    assert not torch.allclose(before, after)
    large = torch.nn.functional.interpolate(pictures()[0], size=(64, 64), mode="bilinear")
    wanted = torch.nn.functional.interpolate(parser.logits(large), size=(32, 32), mode="bilinear")
    torch.testing.assert_close(after, wanted)
    with pytest.raises(
        InputError, match="expected a parser with the options .*give them as net.options.parser"
    ):
        other = made(replace(TINY, parser=ParserOptions(size=128)), loud=False)
        start_from(other, tmp_path / "parser.safetensors", MODEL)
    with pytest.raises(InputError, match="this network looks at none"):
        start_from(made(replace(TINY, masks="none")), tmp_path / "parser.safetensors", MODEL)
    # The landmark network inside is the shipped one, or that of a file.
    shipped = read_network(None).state_dict()
    mine = network.trunk.network.state_dict()
    assert all(torch.equal(shipped[k], mine[k]) for k in mine)
    with pytest.raises(InputError, match="landmark network with .*; give the file of one like it"):
        network.load_landmarks(LandmarkNetwork(NetworkOptions(widths=(8, 8, 8, 8, 8))), "small")
    with pytest.raises(InputError, match="which is none; .*give net.options.landmarks=true"):
        start_from(made(replace(TINY, landmarks=False)), asset_path("landmarks68.safetensors"), MODEL)
    alone = made(replace(TINY, masks="none"), loud=False)
    start_from(alone, "builtin", MODEL)
    assert torch.equal(alone.trunk.network.heat.weight, shipped["heat.weight"])
    torch.manual_seed(0)
    save_predictor(
        MvfNet(MODEL, SLOTS, MvfNetOptions(size=32, width=0.06)), "mvfnet", tmp_path / "m.safetensors"
    )
    with pytest.raises(
        InputError, match="expected weights of the recipe's network, Dfmvr, got those of MvfNet"
    ):
        start_from(network, tmp_path / "m.safetensors", MODEL)


def test_options_are_checked():
    assert net_kind("dfmvr").named_views
    with pytest.raises(InputError, match="net dfmvr: size: expected a multiple of 32"):
        DfmvrOptions(size=100)
    with pytest.raises(InputError, match="blocks: expected a list of 4 items"):
        DfmvrOptions(blocks=(3, 4, 6))


# ---- labels for its cameras ----


def test_labels_are_turned_to_its_focal_length():
    state = tiny_state(MODEL, 3, size=160)
    middle = torch.full((3, 2), 79.5)
    flat = to_orthographic(state, MODEL, middle)
    turned = to_focal(state, MODEL, 700.0, middle)
    assert turned.camera.kind == "perspective" and turned.camera.focal.tolist() == [700.0] * 3
    back = to_orthographic(turned, MODEL, middle)
    for name in ("rotation", "translation"):
        torch.testing.assert_close(getattr(back.pose, name), getattr(flat.pose, name), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(back.camera.focal, flat.camera.focal)
    # The nearer the focal length is to the true one, the nearer are the points.
    seen = project_points(MODEL.landmark_basis, state).pixels
    apart = [
        float(
            (project_points(MODEL.landmark_basis, to_focal(state, MODEL, f, middle)).pixels - seen)
            .norm(dim=-1)
            .mean()
        )
        for f in (
            float(state.camera.focal[0]),
            2 * float(state.camera.focal[0]),
            8 * float(state.camera.focal[0]),
        )
    ]
    assert apart[0] < 0.2 < apart[1] < apart[2] < 5.0
