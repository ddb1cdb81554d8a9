"""The recipes `mfnet` and `mfnet-strict` at a size of seconds: their stages, an interruption, a model with
joints, the published losses, the table of the paper."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import LucasKanade, tiny_model, tiny_state, with_joints
from test_dfmvr_training import Kept
from trainings import one_thread, run  # noqa: F401 - a fixture

from fitkit.energies.flow_magnitude import STRICT
from fitkit.energies.landmarks import POINT_WEIGHTS, point_weights
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor
from fitkit.nets.mfnet.network import MfnetOptions
from fitkit.synth.dataset import SynthDataset
from fitkit.synth.recipe import load_synth_recipe
from fitkit.train.ablation import _plan, load_training_ablation
from fitkit.train.regressor import train_regressor
from fitkit.train.regressor_recipe import load_regressor_training
from fitkit.train.validation import opening_errors

QUICK = ("save=2", "log=1", "pictures=6", "accelerator=cpu", "validation.share=0.0")
NET = "net.options={{size: 32, trunk: {}, hidden: 16, appearance: false{}}}"
SMALL = (
    NET.format("resnet18", ""),
    "net.start=''",
    *(f"stages.{name}.steps=2" for name in ("heads", "all", "photos")),
    *(f"stages.{name}.batch=2" for name in ("heads", "all", "photos")),
    "stages.photos.energies.flow_corr.options.size=32",
    "stages.photos.energies.flow_corr.options.points=60",
    *QUICK,
)


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def samples(model):
    recipe = load_synth_recipe("clean", ["size=64", "views=3"])
    rendered = SynthDataset(recipe, 3, model, {"vertices"})
    return [rendered[i] for i in range(3)]


@pytest.mark.slow
def test_all_stages_run_and_go_on_after_an_interruption(model, samples, tmp_path):
    data = {"synthetic": Kept(samples)}
    settings = load_regressor_training("mfnet", SMALL)
    whole, path = run(tmp_path / "whole", model, data, settings)
    assert [set(whole[s]) - {"total"} for s in (1, 3, 5)] == [set(s.energies) for s in settings.stages]
    assert all(torch.isfinite(torch.tensor(list(v.values()))).all() for v in whole.values())
    assert all(whole[5][name] > 0 for name in ("flow_corr", "lmk2d", "lmk2d_eye", "lmk2d_lip"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model, data, settings, stop=3)
    rest, _ = run(tmp_path / "cut", model, data, settings, resume=True)
    assert rest == {s: whole[s] for s in range(3, 7)}
    assert load_predictor(path).gives == ("state",)
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert card["net"] == "mfnet" and card["options"]["trunk"] == "resnet18"


@pytest.mark.slow
def test_a_model_with_joints_learns_its_jaw(model, samples, tmp_path):
    """Landmarks of a head with an open mouth, for which nothing but the jaw is free to move."""
    skinned = with_joints(tiny_model(num_identity=3))
    recipe = load_synth_recipe("clean", ["size=64", "views=3"])
    rendered = [SynthDataset(recipe, 2, skinned, {"vertices"})[i] for i in range(2)]
    settings = load_regressor_training(
        "mfnet",
        [
            *(line for line in SMALL if not line.startswith("stages.heads.steps")),
            NET.format("landmarks", ", joints: [jaw]"),
            "stages.heads.steps=30",
            "stages.heads.learning_rate=3e-3",
            "stages.heads.warmup=0",
            "stages.heads.energies.joint_prior={weight: 0.1}",
        ],
    )
    settings = replace(settings, stages=settings.stages[:1])
    losses, path = run(tmp_path / "a", skinned, {"synthetic": Kept(rendered)}, settings)
    assert losses[30]["total"] < 0.7 * losses[1]["total"] and losses[30]["joint_prior"] > 0
    network = load_predictor(path, skinned)
    with torch.no_grad():
        state = network(torch.rand(1, 3, 3, 32, 32), torch.ones(1, 3, dtype=torch.bool)).state
    turned = state.joints[0].abs().amax(1)
    assert [bool(t > 0) for t in turned] == [name == "jaw" for name in skinned.joint_names]


@pytest.mark.slow
def test_the_published_losses_run_small(model, samples, tmp_path):
    """On landmarks alone, with the flow of a small frozen function in the place of RAFT's."""
    settings = load_regressor_training(
        "mfnet-strict",
        [
            "model=generic",
            "net.options={size: 32, trunk: resnet18, hidden: 16}",
            "stages.all.epochs=0",
            "stages.all.steps=2",
            "stages.all.energies.flow_mag.options.size=32",
            "batch=2",
            *QUICK,
        ],
    )
    unknown = ("state", "points3d", "crop_points", "vertices", "visible")
    losses = {}
    train_regressor(
        settings,
        tmp_path / "a",
        model=model,
        datasets={"pie": Kept(samples[:2], unknown)},
        make_estimator=lambda name, weights, device: LucasKanade(),
        step_done=lambda step, values: losses.update({step: values}),
    )
    assert set(losses[2]) - {"total"} == set(settings.stages[0].energies)
    assert all(v > 0 and torch.isfinite(torch.tensor(v)) for v in losses[2].values())


def test_the_weights_are_those_of_the_paper():
    """A cost is half the kernel's value, and 'l1' with a small radius e is e |r|."""
    (stage,) = load_regressor_training("mfnet-strict").stages
    energies, views, half = stage.energies, 3, 112.0  # half of the picture, px
    flow = energies["flow_mag"]
    assert flow.estimator == "ptlflow:raft" and flow.kernel.name == "sq"
    assert replace(flow.options, sigma_px=0.5) == STRICT["mfn"] and flow.options.sigma_px == half
    assert flow.weight / 2 == 1.0
    points = float(point_weights("mfnet", torch.zeros(1)).sum())
    assert len(POINT_WEIGHTS["mfnet"]) > 0 and points == 94.0
    for name, weight, count in (
        ("lmk2d", 1.0, 2 * views * points),
        ("lmk2d_eye", 1.0, 2 * views * 4),
        ("lmk2d_lip", 0.5, 2 * views * 3),
    ):
        e = energies[name]
        noise = half if name == "lmk2d" else half * 2**0.5  # of an offset: of two points
        slope = e.weight * e.kernel.radius / noise  # of the cost by one px of one coordinate
        assert slope == pytest.approx(weight / (count * half), rel=1e-3), name
        assert e.kernel.name == "l1" and e.sigma_px == half and e.facing
    for name in ("identity_prior", "expression_prior"):
        assert energies[name].weight == 1e-4  # half the sum of squares


def test_the_table_of_the_paper_can_be_planned():
    plan = _plan(load_training_ablation("mfnet-ablation"))
    stages = {arm.name: training.stages[0].energies for arm, training in plan.arms}
    everything = set(stages["all five"])
    assert everything == {
        *("flow_corr", "lmk2d", "lmk2d_eye", "lmk2d_lip", "identity_prior", "expression_prior")
    }
    assert {name: everything - set(energies) for name, energies in stages.items()} == {
        "start": set(),
        "without flow": {"flow_corr"},
        "without landmarks": {"lmk2d"},
        "without eyes": {"lmk2d_eye"},
        "without lips": {"lmk2d_lip"},
        "without eyes and lips": {"lmk2d_eye", "lmk2d_lip"},
        "without regularization": {"identity_prior", "expression_prior"},
        "all five": set(),
    }
    before = {name for stage in plan.first.stages for name in stage.energies}
    assert before.isdisjoint({"lmk2d_eye", "lmk2d_lip"}) and "vertex_sup" in before


def test_openings_are_measured_between_lids_and_lips(model, samples):
    truth = samples[0].observations.labels.state
    assert opening_errors(truth, truth, model)["eyes_mm"] == 0.0
    names = model.expression_names
    still = truth.replace(expression=torch.zeros_like(truth.expression))
    shut = still.replace(expression=still.expression.clone())
    shut.expression[:, [names.index("eyeBlink_L"), names.index("eyeBlink_R")]] = 1.0
    open_mouth = still.replace(expression=still.expression.clone())
    open_mouth.expression[:, names.index("jawOpen")] = 0.5
    lids, lips = opening_errors(shut, still, model), opening_errors(open_mouth, still, model)
    assert lids["eyes_mm"] > 3.0 and lids["lips_mm"] < 0.2
    assert lips["lips_mm"] > 3.0 and lips["eyes_mm"] < 0.2
    # The mean face is measured against the truth as well, whatever is predicted.
    assert lids["mean_eyes_mm"] == opening_errors(still, still, model)["mean_eyes_mm"]
    marks = tiny_model().landmarks
    triangle = marks.triangle.index_fill(0, torch.tensor([61]), -1)
    lacking = replace(tiny_model(), landmarks=replace(marks, triangle=triangle))
    state = tiny_state(lacking)
    assert set(opening_errors(state, state, lacking)) == {"eyes_mm", "mean_eyes_mm"}


def test_the_changes_that_the_recipes_suggest():
    flow = '{weight: 2.0, estimator: "ptlflow:raft", kernel: {name: sq}, options: {size: 128, mask: box}}'
    lines = ["stages.photos.energies.flow_corr=false", f"stages.photos.energies.flow_mag={flow}"]
    energies = load_regressor_training("mfnet", lines).stages[2].energies
    assert "flow_corr" not in energies and energies["flow_mag"].estimator == "ptlflow:raft"
    lines = ["model=generic", "net.options.turn_about=face", "net.start=resnet50-11ad3fa6.pth"]
    strict = load_regressor_training("mfnet-strict", [*lines, "net.options.normalize=true"])
    assert strict.net.options == MfnetOptions(turn_about="face", normalize=True, fill="black")
    prior = load_regressor_training("mfnet-strict", ["stages.all.energies.albedo_prior={weight: 1.0e-4}"])
    assert prior.stages[0].energies["albedo_prior"].weight == 1e-4
