"""MFNet: where it starts, what the views share, missing views, joints, light, DECA as a start, weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_skinned_model
from model_files_flame import write_flame
from scipy.spatial.transform import Rotation

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0, sh_basis
from fitkit.models.formats.flame import import_flame
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.mfnet.deca import PARTS
from fitkit.nets.mfnet.network import Mfnet, MfnetOptions, positive
from fitkit.nets.mfnet.trunks import LandmarkTrunk, ResNetTrunk
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.landmarks.builtin import read_network
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points

MODEL = tiny_model()
SKINNED = tiny_skinned_model()
SLOTS = (ViewSlot("front"), ViewSlot("left", (-70.0, -20.0)), ViewSlot("right", (20.0, 70.0)))
TINY = MfnetOptions(size=32, trunk="resnet18", hidden=24)
ALL = torch.ones(2, 3, dtype=torch.bool)


def colored(model):
    """With an albedo basis of two waves."""
    wave = torch.sin(model.mean / 30.0)
    basis = 0.05 * torch.stack([wave, -wave[:, [1, 2, 0]]])
    return replace(model, albedo_mean=torch.full_like(model.mean, 0.4), albedo_basis=basis)


def made(options=TINY, model=MODEL, loud=True):
    """A network whose every output depends on every input."""
    torch.manual_seed(0)
    network = Mfnet(model, SLOTS, options)
    if loud:
        for head in (network.shape_head, network.view_head):
            torch.nn.init.normal_(head[-1].weight, std=0.1)
            torch.nn.init.normal_(head[-1].bias, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return made(model=colored(SKINNED))


def pictures(people=2, seed=0, size=32):
    return torch.rand(people, 3, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["resnet18", "landmarks"])
@pytest.mark.parametrize("turn_about", ["face", "root"])
def test_it_starts_at_the_mean_face_in_the_middle_of_the_crop(trunk, turn_about):
    options = replace(TINY, size=64, trunk=trunk, turn_about=turn_about, up=0.1)
    state = made(options, SKINNED, loud=False)(pictures(size=64), ALL).state
    assert state.num_views == 6 and state.subject.tolist() == [0, 0, 0, 1, 1, 1]
    assert float((state.vertices(SKINNED) - SKINNED.mean).norm(dim=-1).max()) < 0.05  # mm
    assert float(yaw_pitch_roll(state.pose.rotation).abs().max()) < 1.0  # degrees
    assert float(state.joints.abs().max()) < 1e-3 and state.camera.kind == "orthographic"
    seen = project_points(SKINNED.landmark_basis, state).pixels[0]
    low, high = seen.amin(0), seen.amax(0)
    assert float((high - low).max()) == pytest.approx(64 / 1.6, rel=0.02)
    middle = (low + high) / 2 - 31.5
    assert abs(float(middle[0])) < 0.6
    assert float(middle[1]) == pytest.approx(0.1 * float((high - low)[1]), abs=0.6)
    torch.testing.assert_close(state.illumination[:, 0], torch.full((6, 3), 1 / Y0), atol=0.02, rtol=0)


@torch.no_grad()
def test_all_views_tell_the_shape_and_each_its_own_pose(network):
    images = pictures()
    state = network(images, ALL).state
    assert state.identity.shape == (2, 8) and state.albedo.shape == (2, 2)
    assert state.illumination.shape == (6, 9, 3) and network(images, ALL).lit
    for first in (0, 3):
        for name in ("expression", "joints"):
            value = getattr(state, name)
            assert torch.equal(value[first], value[first + 1]) and torch.equal(value[first], value[first + 2])
    for view in range(3):
        other = images.clone()
        other[0, view] = other[0, view].flip(-1) * 0.5
        changed = network(other, ALL).state
        for name in ("identity", "albedo"):
            assert float((getattr(changed, name) - getattr(state, name))[0].abs().max()) > 1e-4
            torch.testing.assert_close(getattr(changed, name)[1], getattr(state, name)[1])
        moved = (changed.pose.rotation - state.pose.rotation).abs().amax((1, 2)) > 1e-4
        assert moved.tolist() == [view == n for n in range(6)]
    swapped = network(images[:, [1, 0, 2]], ALL).state  # one trunk and one head for all views
    torch.testing.assert_close(swapped.pose.rotation[0], state.pose.rotation[1])
    assert not torch.allclose(swapped.identity, state.identity, atol=1e-3)


@torch.no_grad()
def test_one_photo_is_the_same_as_this_photo_in_all_views(network):
    images = pictures()
    one = torch.tensor([[False, True, False], [True, True, True]])
    state = network(images, one).state
    assert state.num_views == 4 and state.subject.tolist() == [0, 1, 1, 1]
    repeated = images.clone()
    repeated[0] = images[0, 1]
    everywhere = network(repeated, ALL).state
    for name in ("identity", "albedo"):
        torch.testing.assert_close(getattr(state, name), getattr(everywhere, name), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.pose.rotation[0], everywhere.pose.rotation[1], rtol=1e-3, atol=1e-4)
    other = torch.where(one[..., None, None, None], images, torch.rand(2, 3, 3, 32, 32))
    assert torch.equal(network(other, one).state.identity, state.identity)
    padded = network(other, one, padded=True).state
    torch.testing.assert_close(padded.identity, state.identity)
    for name in ("expression", "joints", "illumination"):
        torch.testing.assert_close(getattr(padded, name)[one.flatten()], getattr(state, name))
    torch.testing.assert_close(padded.pose.translation[one.flatten()], state.pose.translation)


def test_a_vector_can_stand_for_a_view_that_is_missing():
    network = made(replace(TINY, missing="learned"))
    network(pictures(), torch.tensor([[True, False, True]] * 2)).state.identity.sum().backward()
    assert [bool(row.abs().max() > 0) for row in network.absent.grad] == [False, True, False]
    assert "absent" not in dict(made().named_parameters())


@torch.no_grad()
def test_linear_models_and_models_with_other_joints():
    plain = made(replace(TINY, appearance=False), MODEL)(pictures(), ALL)
    assert plain.state.joints is None and plain.state.albedo is None and not plain.lit
    assert torch.equal(plain.state.illumination[:, 0], torch.full((6, 1), 1 / Y0))
    two = made(replace(TINY, joints=("jaw", "tail", "neck")), SKINNED)
    assert two.turned == ("jaw", "neck")
    turned = two(pictures(), ALL).state.joints.abs().amax((0, 2))
    assert [bool(t > 0) for t in turned] == [name in ("jaw", "neck") for name in SKINNED.joint_names]
    none = made(replace(TINY, joints=()), SKINNED)(pictures(), ALL).state.joints
    assert none.shape == (6, SKINNED.num_joints, 3) and not none.any()
    with pytest.raises(InputError, match="'root' needs a face model with joints, and 'tiny' has none"):
        made(replace(TINY, turn_about="root"), MODEL)


@torch.no_grad()
def test_light_stays_with_the_viewer_when_the_head_turns(network):
    around = torch.randn(3, 27, generator=torch.Generator().manual_seed(1))
    turn = torch.from_numpy(Rotation.from_rotvec([[0, 0, 0], [0.1, 0.7, -0.2], [0, -1.2, 0.3]]).as_matrix())
    found = network._light(around, turn.float())
    normals = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    own = around.unflatten(1, (9, 3)).clone()
    own[:, 0] += 1 / Y0
    for k in range(3):
        seen = sh_basis(normals @ turn[k].float().T) @ own[k]
        torch.testing.assert_close(sh_basis(normals) @ found[k], seen, rtol=1e-4, atol=1e-4)


def test_a_scale_stays_above_zero():
    x = torch.linspace(-6, 3, 400, requires_grad=True)
    y = positive(x)
    y.sum().backward()
    assert float(y.detach().min()) > 0 and float(x.grad.min()) > 0
    assert torch.allclose(y[x > 0.5], x[x > 0.5]) and float(x.grad.max()) <= 1 + 1e-6


def test_parts_are_all_of_the_network(network):
    assert isinstance(network.trunk, ResNetTrunk) and set(network.parts()) == {"trunk", "views", "shape"}
    for one in (network, made(replace(TINY, missing="learned"))):
        named = []
        for things in one.parts().values():
            for thing in things:
                named += list(thing.parameters()) if isinstance(thing, torch.nn.Module) else [thing]
        assert {id(p) for p in named} == {id(p) for p in one.parameters()}
    assert network.features(pictures()[0]).shape == (3, 512)
    assert net_kind("mfnet").named_views


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["resnet18", "landmarks"])
def test_weight_files(tmp_path, trunk):
    model = load_model("generic")
    network = made(replace(TINY, trunk=trunk), model)
    save_predictor(network, "mfnet", tmp_path / "net.safetensors", half=False)
    again = load_predictor(tmp_path / "net.safetensors")
    one, two = (n(pictures(), ALL).state for n in (network, again))
    assert torch.equal(one.identity, two.identity) and torch.equal(one.pose.rotation, two.pose.rotation)
    assert torch.equal(one.illumination, two.illumination)


# ---- what it starts from ----


@torch.no_grad()
def test_the_landmark_network_is_a_trunk_that_knows_where_faces_are():
    network = made(replace(TINY, size=128, trunk="landmarks"), load_model("generic"), loud=False)
    start_from(network, "builtin", None)
    assert isinstance(network.trunk, LandmarkTrunk)
    own, theirs = network.trunk.network.state_dict(), read_network(None).state_dict()
    assert all(torch.equal(own[k], theirs[k]) for k in theirs)
    assert torch.isfinite(network(pictures(size=128), ALL).state.pose.translation).all()
    with pytest.raises(
        InputError, match="builtin: expected .* trunk, which is resnet18.*or '' to start from noth"
    ):
        start_from(made(), "builtin", None)


def test_a_resnet_of_torchvision(tmp_path):
    import torchvision

    torch.manual_seed(5)
    published = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / "resnet18-x.pth"
    torch.save(published.state_dict(), path)
    network = made()
    start_from(network, path, None)
    published.fc = torch.nn.Identity()
    x = pictures()[0]
    with torch.no_grad():
        torch.testing.assert_close(network.features(x), published(x))
        scaled = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        normalized = made(replace(TINY, normalize=True))
        start_from(normalized, path, None)
        torch.testing.assert_close(normalized.features(x), published(scaled))
    with pytest.raises(InputError, match="expected the weights of torchvision's resnet34, which the trunk"):
        start_from(made(replace(TINY, trunk="resnet34")), path, None)
    with pytest.raises(InputError, match="the trunk is landmarks; give net.options.trunk=resnet50"):
        start_from(made(replace(TINY, trunk="landmarks")), path, None)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="x.pth: expected weights of torchvision, or DECA's checkpoint"):
        start_from(network, path, None)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="x.pth: not readable as weights of a network .*deca_model.tar"):
        start_from(network, path, None)


def deca_encoder(hidden, seed=0):
    """A state in the layout of DECA's E_flame, with numbers of the size of theirs."""
    torch.manual_seed(seed)
    trunk = ResNetTrunk("resnet50", False)
    outputs = sum(PARTS.values())
    weights = {f"encoder.{k}": v for k, v in trunk.network.state_dict().items()}
    size = torch.full((outputs,), 0.02)
    size[200:206] = 0.01  # pose, rad
    weights |= {
        "layers.0.weight": 0.03 * torch.randn(hidden, 2048),
        "layers.0.bias": 0.1 * torch.randn(hidden),
        "layers.2.weight": size[:, None] * torch.randn(outputs, hidden),
        "layers.2.bias": 0.2 * torch.randn(outputs),
    }
    weights["layers.2.bias"][206:209] = torch.tensor([8.0, 0.01, -0.02])  # scale, shift
    return weights


def deca_says(weights, images):
    """Its coefficients of pictures [B, 3, h, w], by name, as its code has them."""
    trunk = ResNetTrunk("resnet50", False).eval()
    trunk.network.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    )
    with torch.no_grad():
        hidden = torch.relu(trunk(images) @ weights["layers.0.weight"].T + weights["layers.0.bias"])
        code = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    return dict(zip(PARTS, code.split(list(PARTS.values()), 1)))


def deca_harmonics(n):
    """[N, 9] of unit vectors [N, 3]: as in its renderer, in its order."""
    x, y, z = n.T
    one, two = 2 * math.pi / 3 * math.sqrt(3 / (4 * math.pi)), math.pi / 4
    mixed = two * 3 * math.sqrt(5 / (12 * math.pi))
    columns = [
        np.full_like(x, 1 / math.sqrt(4 * math.pi)),
        *(one * v for v in (x, y, z)),
        *(mixed * v for v in (x * y, x * z, y * z)),
        two * 1.5 * math.sqrt(5 / (12 * math.pi)) * (x * x - y * y),
        two * 0.5 * math.sqrt(5 / (4 * math.pi)) * (3 * z * z - 1),
    ]
    return np.stack(columns, 1)


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flame")
    write_flame(folder)
    return import_flame(folder)


DECA = MfnetOptions(size=64, hidden=16, turn_about="root")


def test_from_deca_it_says_of_one_photo_what_deca_says(flame, tmp_path):
    weights = deca_encoder(16)
    path = tmp_path / "deca_model.tar"
    torch.save({"E_flame": weights, "E_detail": {"x": torch.zeros(1)}, "D_detail": {}}, path)
    network = made(DECA, flame, loud=False)
    start_from(network, path, None)
    image = pictures(1, size=64)[:, :1]
    with torch.no_grad():
        state = network(image.expand(1, 3, -1, -1, -1), ALL[:1]).state
    said = {k: v[0].double() for k, v in deca_says(weights, image[0]).items()}
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(state.identity[0, :100].double(), said["shape"], **close)
    torch.testing.assert_close(state.expression[0, :50].double(), said["expression"], **close)
    assert not state.identity[0, 100:].any() and not state.expression[:, 50:].any()
    jaw = flame.joint_names.index("jaw")
    torch.testing.assert_close(state.joints[0, jaw].double(), said["pose"][3:], **close)
    # Its projection: turned about the root joint, in metres, moved, scaled; the picture reaches from -1 to 1.
    assert float(said["pose"][:3].norm()) > 0.1
    vertices = state.vertices(flame)[0].double().numpy() / 1000
    root = flame.joint_basis.points(*state.coefficients()[:2])[0, 0].double().numpy() / 1000
    turn = Rotation.from_rotvec(said["pose"][:3].numpy()).as_matrix()
    seen = (vertices - root) @ turn.T + root
    scale, *shift = said["camera"].tolist()
    there = scale * (seen[:, :2] + shift) * [1, -1] * 32 + 31.5
    pixels = state.camera.project(state.posed(flame))[0][0].double().numpy()
    assert np.abs(pixels - there).max() < 0.02 and np.ptp(there[:, 0]) > 15
    normals = np.random.default_rng(0).normal(size=(20, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shading = deca_harmonics(normals @ turn.T) @ said["light"].reshape(9, 3).numpy()
    ours = sh_basis(torch.from_numpy(normals).float()) @ state.illumination[0]
    np.testing.assert_allclose(ours.numpy(), shading, rtol=1e-3, atol=1e-3)


def test_what_deca_cannot_start(flame, tmp_path):
    weights = deca_encoder(16)

    def refused(options, model, message, change=None):
        with pytest.raises(InputError, match=message):
            made(options, model, loud=False).load_trunk({"E_flame": change or weights}, "deca_model.tar")

    refused(replace(DECA, trunk="resnet18"), flame, "expected net.options.trunk resnet50 and normalize false")
    refused(replace(DECA, turn_about="face"), MODEL, "are those of FLAME; expected this face model, got 'tin")
    refused(replace(DECA, turn_about="face"), flame, "about the root joint; expected net.options.turn_about")
    refused(
        replace(DECA, hidden=8), flame, r"layers.0.weight of shape \[8, 2048\], got \[16, 2048\]; its hid"
    )
    short = {k: v for k, v in weights.items() if k != "layers.2.bias"}
    refused(DECA, flame, r"layers.2.bias of shape \[236\], got none", short)
    other = weights | {"encoder.conv1.weight": torch.zeros(1)}
    refused(DECA, flame, "expected the weights of torchvision's resnet50.*; conv1.weight is missing", other)


@pytest.mark.parametrize("name", ["layers.2.weight", "encoder.layer1.0.bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(flame, tmp_path, name):
    weights, path = deca_encoder(16), tmp_path / "deca_model.tar"
    weights[name].view(-1)[3] = torch.nan
    torch.save({"E_flame": weights}, path)
    with pytest.raises(
        InputError, match="deca_model.tar: expected finite weights, got NaN or infinity in wh"
    ):
        start_from(made(DECA, flame, loud=False), path, flame)


def test_options_are_checked():
    with pytest.raises(InputError, match="net mfnet: size: expected a multiple of 32"):
        MfnetOptions(size=100)
    with pytest.raises(InputError, match="net mfnet: trunk: expected"):
        MfnetOptions(trunk="vgg")
    with pytest.raises(InputError, match="net: unknown key 'mfnett'; did you mean 'mfnet'"):
        net_kind("mfnett")
