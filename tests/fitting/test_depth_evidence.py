"""Fits with the depth that a network sees: photos whose brightness is their depth, and a network that reads
it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state
from small_nets import SmallNet, SmallOptions, registered

from fitkit.energies.depth import DepthPrior
from fitkit.energies.rendered_depth import model_depth
from fitkit.errors import InputError
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.fitting.batch import fit_batch
from fitkit.fitting.depth_evidence import with_depth
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit, fit_many, fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.subject import Subject, View
from fitkit.models.io import save_model_file
from fitkit.nets import NETS, NetKind, save_predictor
from fitkit.nets.predictor import Prediction, frames_of
from fitkit.observe.crop import crop_views
from fitkit.observe.labels import Labels
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import DepthState
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

MODEL = tiny_model()
SIZE, NEAR, SPAN = (
    160,
    -130.0,
    260.0,
)  # brightness 0 lies NEAR mm from the middle of the head, 1 SPAN mm behind
AWAY = 900.0  # where the network thinks that all heads are


class Reads(SmallNet):
    """Depth is what is bright; a head as wide as the mean face fills its crop."""

    gives = ("state", "depth")
    outputs = 1
    camera_kind = "perspective"

    def __init__(self, model=None, views=(), options: SmallOptions = SmallOptions(size=96)):
        super().__init__(model, views, options)
        self.model_name, self.num_identity, self.num_expression = model.name, 8, 6
        box = model.landmark_basis.mean[:, :2]
        self.scale = options.size / (self.crop.margin * float((box.amax(0) - box.amin(0)).max()))  # px per mm

    def forward(self, images, valid, padded=False):
        frames, subject = frames_of(images, valid, padded)
        light, B = frames.mean(1), len(frames)
        focal = torch.full((B,), self.scale * AWAY)
        camera = Camera(focal, torch.full((B, 2), (self.size - 1) / 2), torch.ones(B), "perspective")
        pose = Pose(
            torch.diag(torch.tensor([1.0, -1.0, -1.0])).expand(B, 3, 3),
            torch.tensor([[0.0, 0.0, AWAY]]).repeat(B, 1),
        )
        depth = torch.where(light > 0.02, AWAY + NEAR + SPAN * light, 0)
        zero = torch.zeros(len(valid), 8), torch.zeros(B, 6)
        state = SceneState(zero[0], subject, zero[1], pose, camera, torch.zeros(B, 9, 1))
        return Prediction(state, depth=DepthState(depth, pose, camera, subject, (light < 0.9).float()))


@pytest.fixture(scope="module")
def scene():
    """A person from the front, the photo of its depth, and exact landmarks."""
    state = tiny_state(MODEL, 1, SIZE, seed=5)
    state = state.replace(
        pose=Pose(torch.diag(torch.tensor([1.0, -1.0, -1.0]))[None], state.pose.translation),
        identity=1.5 * state.identity,
        expression=0 * state.expression,
    )
    depth = model_depth(MODEL, state, (SIZE, SIZE))[0]
    light = torch.where(depth > 0, (depth - state.pose.translation[0, 2] - NEAR) / SPAN, 0).clamp(0, 1)
    image = np.repeat((light * 255).round().byte().numpy()[..., None], 3, 2)
    marks = observe(MODEL, state, SIZE).landmarks
    marks = replace(marks, sigma=torch.full_like(marks.sigma, torch.nan))
    return state, Subject("front", (View("front", image),)), marks


@pytest.fixture
def weights(tmp_path, monkeypatch):
    registered(monkeypatch)
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    save_model_file(MODEL, tmp_path / "models" / "tiny.npz")
    monkeypatch.setitem(NETS, "reads", lambda: NetKind(SmallOptions, Reads, named_views=False))
    save_predictor(Reads(MODEL), "reads", tmp_path / "reads.safetensors")
    return tmp_path / "reads.safetensors"


def error(result, state):
    """Of the neutral face, mm, after a similarity."""
    truth, mine = state.neutral(MODEL), result.neutral[None].float()
    return float((similarity_align(mine, truth).apply(mine) - truth).norm(dim=-1).mean())


def test_the_depth_that_is_seen_tells_what_landmarks_from_the_front_do_not(scene, weights):
    state, subject, marks = scene
    more = ("init.source=landmarks", "camera.distance_mm=600")
    plain = fit_observed(subject, marks, MODEL, load_recipe("landmarks", more))
    less = ("crop.max_size=48", "crop.min_size=48", "stages.depth.solver={max_iterations: 2, refresh: 1}")
    recipe = load_recipe("depth", (*more, *less, f"depth.weights={weights}"))
    seen = fit_observed(subject, marks, MODEL, recipe)
    assert error(seen, state) < 0.8 * error(plain, state)
    stage = seen.metrics["stages"][-1]
    assert stage["name"] == "depth" and stage["terms"]["depth_3dmm"]["valid"] > 300


def test_the_network_s_depth_lies_where_the_fit_s_crops_show_it(scene, weights):
    state, subject, marks = scene
    recipe = load_recipe("depth")
    crops = crop_views([subject.views[0].image], [None], marks, recipe.crop)
    there = state.replace(camera=state.camera.scaled(crops.scale, crops.offset))
    seen = with_depth(subject, marks, crops, there, str(weights)).labels
    true = model_depth(MODEL, there, crops.size)
    assert seen.prior_depth.shape == seen.prior_trust.shape == true.shape
    both = (true > 0) & (seen.prior_depth > 0)
    assert int(both.sum()) > 0.8 * int((true > 0).sum())
    relief = [x[both] - x[both].mean() for x in (true, seen.prior_depth)]
    assert float((relief[0] - relief[1]).abs().mean()) < 3 < float(relief[0].abs().mean())
    assert (
        set(seen.prior_trust[both].round().tolist()) <= {0.0, 1.0}
        and not seen.prior_trust[seen.prior_depth == 0].any()
    )


def test_relief_knows_no_distance_and_pixels_count_by_their_trust():
    rng = torch.Generator().manual_seed(0)
    prior = 500 + 20 * torch.rand(2, 6, 7, generator=rng)
    prior[:, 0] = 0
    trust = torch.rand(2, 6, 7, generator=rng)
    camera = Camera(torch.full((2,), 50.0), torch.zeros(2, 2), torch.ones(2))
    pose = Pose(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.0, 0.0, 500.0]]).repeat(2, 1))
    depth = prior + torch.tensor([80.0, -40.0])[:, None, None]
    depth[:, :, 0] = 0  # the model is not there
    state = DepthState(depth, pose, camera, torch.zeros(2, dtype=torch.long))

    def residuals(depth, trust):
        seen = type("Seen", (), {"labels": Labels(prior_depth=prior, prior_trust=trust)})()
        return DepthPrior(2.0, relief=True).residuals(replace(state, depth=depth), seen)

    exact = residuals(depth, trust)
    assert exact.valid.reshape(2, 6, 7)[:, 1:, 1:].all() and int(exact.valid.sum()) == 2 * 5 * 6
    assert float(exact.value[exact.valid].abs().max()) < 1e-4
    torch.testing.assert_close(exact.weight, trust.flatten(1))
    bent = depth.clone()
    bent[0, 3, 3] += 6.0
    found = residuals(bent, trust).value.reshape(2, 6, 7)
    share = trust[0, 3, 3] / trust[0, 1:, 1:].sum()
    assert float(found[0, 3, 3]) == pytest.approx(3 * (1 - float(share)), abs=1e-4)
    assert float(found[0, 2, 2]) == pytest.approx(-3 * float(share), abs=1e-4)
    assert float(found[1, 1:, 1:].abs().max()) < 1e-4


def test_what_it_refuses(scene, weights, tmp_path):
    _, subject, marks = scene
    with pytest.raises(
        InputError, match="'depth_3dmm' compares with the depth that a network sees, and depth.weights"
    ):
        fit_observed(subject, marks, MODEL, load_recipe("depth"))
    from small_nets import SmallDepth

    save_predictor(SmallDepth(), "small_depth", tmp_path / "other.safetensors")
    recipe = load_recipe("depth", (f"depth.weights={tmp_path / 'other.safetensors'}",))
    with pytest.raises(
        InputError, match="depth.weights: expected a network that gives a scene and depth, it gives depth"
    ):
        fit_observed(subject, marks, MODEL, recipe)
    # Before a photo is read: this folder does not exist.
    with pytest.raises(InputError, match="'depth_3dmm' compares with .*, and depth.weights is not set"):
        fit(tmp_path / "nobody", model=MODEL, recipe="depth")
    with pytest.raises(InputError, match="other.safetensors: depth.weights: expected a network that gives"):
        fit_many([tmp_path / "nobody"], model=MODEL, recipe=recipe)
    with pytest.raises(InputError, match="depth.weights is not set"):
        fit_batch(tmp_path, tmp_path / "out", load_recipe("depth"))
    with pytest.raises(InputError, match="depth.weights is not set"):
        load_evaluate_recipe("bench", ["predictor=fit", "fit=depth"]).make_method().load()
