"""The network: where it starts, what a missing view does, its camera against the published convention; weight
files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.data.aflw2000 import DenseModel
from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp, so3_log
from fitkit.nets import load_predictor, net_kind, read_about, save_predictor, start_from
from fitkit.nets.mvfnet.convention import (
    angles_of_rotation,
    labels_of_pose,
    pose_of_labels,
    rotation_of_angles,
)
from fitkit.nets.mvfnet.network import CHANNELS, POOL_AFTER, MvfNet, MvfNetOptions
from fitkit.nets.predictor import ViewSlot, assign_views
from fitkit.nets.weak_perspective import to_orthographic
from fitkit.scene.pose import yaw_pitch_roll

SLOTS = (ViewSlot("front"), ViewSlot("left", (-70.0, -20.0)), ViewSlot("right", (20.0, 70.0)))


def small(model, size=48, **options):
    torch.manual_seed(0)
    return MvfNet(model, SLOTS, MvfNetOptions(size=size, width=0.06, **options)).eval()


def test_training_starts_at_the_mean_face_in_the_middle_of_the_crop():
    model = tiny_model()
    network = small(model, 224)
    with torch.no_grad():
        state = network(torch.rand(2, 3, 3, 224, 224), torch.ones(2, 3, dtype=torch.bool)).state
    assert (
        state.num_views == 6
        and state.subject.tolist() == [0, 0, 0, 1, 1, 1]
        and state.camera.kind == "orthographic"
    )
    assert float((state.vertices(model) - model.mean).norm(dim=-1).max()) < 0.05  # mm
    assert (
        float(so3_log(state.pose.rotation @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))).norm(dim=-1).max())
        < 0.02
    )
    points, _ = state.camera.project(
        state.pose.apply(model.landmarks.points(state.vertices(model), model.triangles))
    )
    low, high = points[0].amin(0), points[0].amax(0)
    box = high - low
    assert float(box.max()) == pytest.approx(224 / 1.5, rel=1e-2)
    middle = (low + high) / 2 - 111.5
    assert abs(float(middle[0])) < 1.5 and float(middle[1]) == pytest.approx(0.12 * float(box[1]), abs=1.5)


def test_the_published_size():
    network = MvfNet(tiny_model(), SLOTS, MvfNetOptions())
    convolutions = [m for m in network.trunk if isinstance(m, torch.nn.Conv2d)]
    assert tuple(c.out_channels for c in convolutions) == CHANNELS and len(POOL_AFTER) == 5
    with torch.no_grad():
        assert network.trunk[:-2](torch.zeros(1, 3, 224, 224)).shape == (1, 512, 7, 7)
    assert network.shape_head[0].in_features == 1536 and network.shape_head[0].out_features == 768


def test_a_missing_view_gives_no_pose_and_its_picture_has_no_say():
    model = tiny_model()
    network = small(model)
    torch.nn.init.normal_(network.shape_head[-1].weight, std=0.3)
    torch.nn.init.normal_(network.pose_head[-1].weight, std=0.3)
    torch.nn.init.normal_(network.absent)
    images = torch.rand(2, 3, 3, 48, 48)
    valid = torch.tensor([[True, False, True], [True, True, True]])
    state = network(images, valid).state
    assert state.num_views == 5 and state.subject.tolist() == [0, 0, 1, 1, 1]
    other = images.clone()
    other[0, 1] = 0.9
    again = network(other, valid).state
    assert torch.equal(state.identity, again.identity) and torch.equal(
        state.pose.rotation, again.pose.rotation
    )
    whole = network(images, torch.ones(2, 3, dtype=torch.bool)).state
    assert torch.allclose(whole.identity[1], state.identity[1], atol=1e-5)
    assert not torch.allclose(whole.identity[0], state.identity[0], atol=1e-3)
    assert torch.allclose(whole.pose.rotation[[0, 2, 3, 4, 5]], state.pose.rotation, atol=1e-5)
    state.identity.sum().backward()
    assert (
        float(network.absent.grad[1].abs().max()) > 0 and float(network.absent.grad[[0, 2]].abs().max()) == 0
    )
    assert "absent" not in {n for n, p in small(model, missing="zero").named_parameters() if p.requires_grad}


def test_labels_of_300w_lp_land_where_their_own_formula_puts_them():
    # Independent truth: the projection that the evaluation uses for AFLW2000-3D.
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3)) * 60000  # micrometres
    dense = DenseModel(
        points.ravel(), np.zeros((60, 1)), np.zeros((60, 1)), np.zeros((1, 3), np.int64), np.arange(20)
    )
    pose = np.array([0.2, 0.5, -0.1, 210.0, 240.0, 7.0, 1.3e-3])
    there = dense.in_picture(np.zeros(1), np.zeros(1), pose, 450)
    own_pose, camera = pose_of_labels(torch.from_numpy(pose)[None], 450, 450)
    pixels, _ = camera.project(own_pose.apply(torch.from_numpy(points / 1000)[None]))
    assert np.abs(pixels[0].numpy() - there[:, :2]).max() < 1e-9
    back = labels_of_pose(own_pose, camera, 450)[0].numpy()
    assert np.allclose(np.delete(back, 5), np.delete(pose, 5), atol=1e-9)


def test_positive_yaw_of_the_labels_points_the_nose_to_the_left_of_the_picture():
    rotation = rotation_of_angles(torch.tensor([[0.0, 0.5, 0.0]]))
    assert float((rotation @ torch.tensor([0.0, 0.0, 1.0]))[0, 0]) < -0.4
    assert float(yaw_pitch_roll(rotation)[0, 0]) == pytest.approx(-math.degrees(0.5), abs=1e-3)
    angles = torch.tensor([[0.3, -0.7, 0.2], [-0.4, 1.2, -0.6]])
    assert torch.allclose(angles_of_rotation(rotation_of_angles(angles)), angles, atol=1e-5)


def test_the_orthographic_stand_in_shows_nearly_the_same_picture():
    model = tiny_model()
    state = tiny_state(model, views=3, size=160)
    # Off the axis, where the line of sight matters.
    state = state.replace(
        pose=type(state.pose)(
            state.pose.rotation, state.pose.translation + torch.tensor([150.0, -80.0, 900.0])
        )
    )
    flat = to_orthographic(state, model, torch.full((3, 2), 40.0))
    points = model.landmarks.points(state.vertices(model), model.triangles)
    near, far = (s.camera.project(s.pose.apply(points))[0] for s in (state, flat))
    size = float((near.amax(1) - near.amin(1)).max())
    assert float((near - far).norm(dim=-1).max()) < 0.06 * size
    assert torch.allclose((near - far).mean(1), torch.zeros(3, 2), atol=0.02 * size)
    turned = to_orthographic(
        state.replace(
            pose=type(state.pose)(
                so3_exp(torch.tensor([0.0, 0.1, 0.0])) @ state.pose.rotation, state.pose.translation
            )
        ),
        model,
    )
    assert float((turned.pose.rotation - flat.pose.rotation).abs().max()) > 0.05
    assert torch.allclose(to_orthographic(flat, model).pose.translation, flat.pose.translation, atol=1e-3)


def test_views_go_to_slots_by_name_and_then_by_yaw():
    assert assign_views(SLOTS, [40.0, -3.0, -30.0]) == [1, 2, 0]
    assert assign_views(SLOTS, [40.0, 5.0, 3.0, 17.0]) == [2, None, 0]
    assert assign_views(SLOTS, [float("nan"), 45.0], ["left", "x"]) == [None, 0, 1]
    # Named after the subject's sides, as the Bosphorus database may be: the picture decides.
    assert assign_views(SLOTS, [2.0, 44.0, -43.0], ["front", "left", "right"]) == [0, 2, 1]
    assert assign_views(SLOTS, [12.0, -8.0, 9.0], ["front", "right", "left"]) == [
        0,
        2,
        1,
    ]  # hardly turned: the name
    assert assign_views(SLOTS, [0.0, 40.0], ["front", "left"]) == [0, None, 1]
    with pytest.raises(InputError, match=r"view 'a': yaw: expected \[least, most\] degrees"):
        ViewSlot("a", (10.0, -10.0))


def test_weights_come_back_and_wrong_files_are_told(tmp_path):
    model = tiny_model()
    network = small(model)
    torch.nn.init.normal_(network.shape_head[-1].weight)
    path = tmp_path / "regressor.safetensors"
    save_predictor(network, "mvfnet", path, half=False)
    again = load_predictor(path, model)
    images, valid = torch.rand(1, 3, 3, 48, 48), torch.ones(1, 3, dtype=torch.bool)
    assert (
        torch.equal(network(images, valid).state.identity, again(images, valid).state.identity)
        and not again.training
    )
    assert read_about(path)["views"][1] == {"name": "left", "yaw": [-70.0, -20.0]}
    with pytest.raises(
        InputError,
        match="expected face model 'tiny' with 8 identity and 6 expression shapes, got 'tiny' with 5",
    ):
        load_predictor(path, tiny_model(num_identity=5))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="x.safetensors: not readable as the weights of a regressor"):
        load_predictor(tmp_path / "x.safetensors", model)
    with pytest.raises(InputError, match="nowhere.safetensors: not readable"):
        read_about(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="landmarks68.safetensors: not the weights of a regressor"):
        from fitkit.io.resources import asset_path

        read_about(asset_path("landmarks68.safetensors"))


def test_options_that_cannot_be_used():
    with pytest.raises(InputError, match="size: expected a multiple of 16 from 16 to 2048, got 100"):
        MvfNetOptions(size=100)
    with pytest.raises(InputError, match="width: expected a number from 0.001 to 16, got 0.0"):
        MvfNetOptions(width=0.0)
    with pytest.raises(InputError, match="net: unknown key 'mvfnt'; did you mean 'mvfnet'"):
        net_kind("mvfnt")


@pytest.mark.slow
def test_a_trunk_from_vgg11_bn(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(1)
    vgg = models.vgg11_bn(weights=None).eval()
    for module in vgg.features:
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    path = tmp_path / "vgg11_bn.pth"
    torch.save(vgg.state_dict(), path)
    network = MvfNet(tiny_model(), SLOTS).eval()
    start_from(network, path, tiny_model())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():  # they pool at the same places up to the fifth convolution
        assert torch.allclose(network.trunk[:18](images), vgg.features[:18](images), atol=1e-4)
    deep = [[m.weight for m in n if isinstance(m, torch.nn.Conv2d)] for n in (network.trunk, vgg.features)]
    assert torch.equal(deep[0][5], deep[1][5]) and torch.equal(deep[0][6], deep[1][6]) and len(deep[0]) == 7
    with pytest.raises(
        InputError,
        match=r"vgg11_bn.pth: expected the weights of torchvision's vgg11_bn and net.options.width 1",
    ):
        start_from(small(tiny_model()), path, tiny_model())
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="vgg11_bn.pth: not readable as weights of a network"):
        start_from(network, path, tiny_model())


def test_a_training_starts_from_the_weights_of_another(tmp_path):
    model = tiny_model()
    first, path = small(model), tmp_path / "regressor.safetensors"
    torch.nn.init.normal_(first.shape_head[-1].weight)
    save_predictor(first, "mvfnet", path, half=False)
    torch.manual_seed(5)
    second = MvfNet(model, SLOTS, first.options)
    start_from(second, path, model)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    with pytest.raises(InputError, match="these weights belong to another network than the recipe's"):
        start_from(MvfNet(model, SLOTS[:2], first.options), path, model)


def test_gaussian_expressions_are_predicted_in_standard_deviations():
    sigma = torch.linspace(0.5, 2, 6)
    signed = replace(tiny_model(), expression_kind="gaussian", expression_sigma=sigma)
    images, valid = torch.rand(1, 3, 3, 48, 48), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        blend, gaussian = (small(m)(images, valid).state.expression for m in (tiny_model(), signed))
    assert float(blend.abs().max()) > 0
    torch.testing.assert_close(gaussian, sigma * blend)


def test_weights_whose_face_model_is_not_here_say_which_one_they_need(tmp_path):
    path = tmp_path / "network.safetensors"
    save_predictor(small(replace(tiny_model(), name="somebody")), "mvfnet", path)
    with pytest.raises(
        InputError, match="trained with face model 'somebody': unknown model .* --name somebody"
    ):
        load_predictor(path)
