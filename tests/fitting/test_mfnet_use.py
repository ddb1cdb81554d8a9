"""`fitkit predict` with MFNet: one photo in all views, poses from the landmarks; a fit that starts with a
predicted jaw."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from helpers import observe, tiny_model, tiny_skinned_model, tiny_state
from small_nets import SmallDepth, registered

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.fitting.initialize import landmark_start
from fitkit.fitting.network_start import Predicted, on_landmarks, pose_on_landmarks, start_of
from fitkit.fitting.predict import predict
from fitkit.geometry.rotation import so3_exp
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.mfnet.network import Mfnet, MfnetOptions
from fitkit.nets.predictor import Prediction, ViewSlot
from fitkit.nets.weak_perspective import to_focal, to_orthographic
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.depth_state import DepthState
from fitkit.scene.parameters import load_parameters
from fitkit.scene.pose import Pose
from fitkit.scene.projection import project_points

SLOTS = (ViewSlot("front", (-15.0, 15.0)), ViewSlot("left", (-75.0, -15.0)), ViewSlot("right", (15.0, 75.0)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network: the mean face, frontal, in the middle of the crop."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "regressor.safetensors"
    options = MfnetOptions(size=64, trunk="resnet18", hidden=16)
    save_predictor(Mfnet(load_model("generic"), SLOTS, options), "mfnet", path)
    return path


def away(result):
    """How far its landmarks 17 to 67 lie from those of the photos, share of the face size, worst view."""
    seen = project_points(result.model.landmark_basis, result.state).pixels
    marks = result.landmarks
    size = (marks.points.amax(1) - marks.points.amin(1)).amax(1)
    return float(((seen - marks.points).norm(dim=-1)[:, 17:].mean(1) / size).max())


@pytest.mark.slow
def test_poses_come_from_the_network_or_from_the_landmarks(anna, weights):
    own, laid = (predict(anna, weights, landmarks="files", pose=p) for p in ("network", "landmarks"))
    assert torch.equal(own.state.identity, laid.state.identity) and laid.state.camera.kind == "orthographic"
    assert away(laid) < 0.035 < away(own)  # it knows nothing of turned heads
    with pytest.raises(InputError, match="pose: expected network or landmarks, got 'deca'"):
        predict(anna, weights, landmarks="files", pose="deca")


@pytest.mark.parametrize("kind", ["orthographic", "perspective"])
def test_a_pose_on_the_landmarks_is_the_true_one(kind):
    model = tiny_model(dtype=torch.float64)
    true = to_orthographic(tiny_state(model, 3), model)
    if kind == "perspective":  # from so far away that it is the same picture
        true = to_focal(true, model, true.camera.focal * 100, true.camera.principal)
    points = project_points(model.landmark_basis, true).pixels
    turn = so3_exp(torch.tensor([0.3, -0.4, 0.2], dtype=torch.float64))
    lost = true.replace(pose=Pose(turn @ true.pose.rotation, true.pose.translation + 20.0))
    if kind == "orthographic":
        lost = lost.replace(camera=replace(lost.camera, focal=1.4 * lost.camera.focal))
    wrong, few = points.clone(), torch.ones(3, 68, dtype=torch.bool)
    wrong[:, :17] += 30.0  # the jaw has no say
    few[:, 20:] = False  # unless there is little else
    for given, valid in ((points, few | True), (wrong, few | True), (points, few)):
        ones = torch.ones(3, 68, dtype=torch.float64)
        found = pose_on_landmarks(lost, model, Landmarks(given, ones, valid, ones, "outline"))
        seen = project_points(model.landmark_basis, found).pixels
        assert found.camera.kind == kind and float((seen - points).norm(dim=-1).max()) < 0.3
        torch.testing.assert_close(found.pose.rotation, true.pose.rotation, atol=5e-3, rtol=0)
        assert torch.equal(found.identity, true.identity)


def test_depth_goes_along_with_a_pose_on_the_landmarks():
    model = tiny_model()
    state = tiny_state(model, 2)
    seen = observe(model, state)
    nearer = Pose(state.pose.rotation, state.pose.translation - torch.tensor([0.0, 0.0, 150.0]))
    depth = nearer.translation[:, 2, None, None] + torch.tensor([[-40.0, 25.0]])
    depth[:, :, 1:][1] = 0  # nothing is there
    tip = torch.tensor([3.0, -10.0, 80.0])
    said = DepthState(depth, nearer, state.camera, torch.zeros(2, dtype=torch.long), anchor=tip)
    prediction = Prediction(state.replace(pose=nearer), depth=said)
    found = on_landmarks(Predicted(prediction, seen, (0, 1), model)).prediction
    away = found.state.pose.apply(tip.expand(2, 1, 3))[:, 0, 2]
    was = nearer.apply(tip.expand(2, 1, 3))[:, 0, 2]
    assert float((away - was).abs().min()) > 50
    there = depth > 0
    apart, before = found.depth.depth - away[:, None, None], depth - was[:, None, None]
    torch.testing.assert_close(apart[there], before[there], atol=1e-2, rtol=0)
    assert not found.depth.depth[~there].any()
    assert found.depth.pose is found.state.pose and found.depth.camera is found.state.camera


@pytest.mark.slow
def test_the_command_repeats_one_photo(anna, weights, tmp_path):
    words = [
        "predict",
        str(anna / "view0.png"),
        "--weights",
        str(weights),
        "--landmarks",
        "files",
        "--no-pictures",
    ]
    run = CliRunner().invoke(main, [*words, "--repeat", "--pose", "landmarks", "-o", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["num_views"] == 1, run.output
    parameters = load_parameters(tmp_path / "out" / "parameters.npz")
    assert list(parameters.view_names) == ["view0"]
    again = CliRunner().invoke(
        main, ["predict", str(anna), *words[2:], "--repeat", "-o", str(tmp_path / "two")]
    )
    assert again.exit_code == 1 and "repeat: expected one photo to be put into all views" in again.output


def test_a_fit_starts_with_the_predicted_jaw():
    model = tiny_skinned_model()
    state = to_orthographic(tiny_state(model, 2), model)
    turned = torch.zeros(2, model.num_joints, 3)
    turned[:, model.joint_names.index("jaw"), 0] = torch.tensor([0.2, 0.3])
    state = state.replace(joints=turned)
    seen = observe(model, tiny_state(model, 3))
    chosen = torch.tensor([2, 0])
    base = landmark_start(model, seen)
    assert base.joints is None
    start = start_of(Predicted(Prediction(state), seen.select(chosen), (2, 0), model), base, seen, model)
    jaw = start.joints[:, model.joint_names.index("jaw"), 0]
    torch.testing.assert_close(jaw, torch.tensor([0.3, 0.0, 0.2]))
    other = start_of(
        Predicted(Prediction(state), seen.select(chosen), (2, 0), model), base, seen, tiny_model(1)
    )
    assert other.joints is None


def test_a_network_without_a_scene_has_no_pose_to_choose(anna, tmp_path, monkeypatch):
    registered(monkeypatch)
    path = tmp_path / "depth.safetensors"
    save_predictor(SmallDepth(), "small_depth", path)
    for words in (["--repeat"], ["--pose", "landmarks"]):
        run = CliRunner().invoke(main, ["predict", str(anna), "--weights", str(path), *words])
        assert (
            run.exit_code == 1 and "this network gives no scene; leave --repeat and --pose out" in run.output
        )
