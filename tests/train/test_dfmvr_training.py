"""The recipe `dfmvr` at a size of seconds: all its stages, an interruption, single views, what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import one_thread, run  # noqa: F401 - a fixture

from fitkit.data.augment import FaceAugmentation, without_missing
from fitkit.data.face_dataset import FaceDataset
from fitkit.errors import InputError
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, save_predictor
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.synth.dataset import SynthDataset
from fitkit.synth.recipe import load_synth_recipe
from fitkit.train.ablation import _plan, load_training_ablation
from fitkit.train.regressor_recipe import load_regressor_training
from fitkit.train.schedule import learning_rate

NET = "net.options={{size: 32, width: 0.05, depth: 3, backbone_width: 0.1, blocks: [1, 1, 1, 1], {}}}"
PARSER = "parser: {size: 64, spatial: 4, joined: 8}"
STAGES = ("points", "labels", "photo", "masks")
QUICK = ("save=3", "log=1", "pictures=6", "accelerator=cpu", "validation.share=0.0", "batch=2")
SMALL = (
    NET.format(PARSER),
    *(f"stages.{name}.steps=2" for name in STAGES),
    "stages.points.batch=2",
    "stages.photo.energies.photo_model.options.points=100",
    "stages.photo.energies.photo_model.options.depth_size=32",
    "stages.masks.energies.mask_parse.options.size=32",
    *QUICK,
)


class Kept(FaceDataset):
    """Samples in memory; without `parts` of their labels."""

    def __init__(self, samples, without=()):
        self.samples = [
            replace(s, observations=replace(s.observations, labels=s.observations.labels.without(without)))
            for s in samples
        ]
        self.ids = tuple(s.id for s in samples)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def samples(model):
    recipe = load_synth_recipe("clean", ["size=64", "views=3"])
    rendered = SynthDataset(recipe, 3, model, {"vertices"})
    return [rendered[i] for i in range(3)]


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("parser") / "regressor.safetensors"
    save_predictor(Parser(None, (), ParserOptions(size=64, spatial=4, joined=8)), "parser", path)
    return path


@pytest.mark.slow
def test_all_stages_run_and_go_on_after_an_interruption(model, samples, parser, tmp_path):
    data = {"synthetic": Kept(samples)}
    settings = load_regressor_training("dfmvr", [*SMALL, f"net.start={parser}"])
    whole, path = run(tmp_path / "whole", model, data, settings)
    assert [set(whole[s]) - {"total"} for s in (1, 3, 5, 7)] == [set(s.energies) for s in settings.stages]
    assert all(torch.isfinite(torch.tensor(list(v.values()))).all() for v in whole.values())
    assert whole[7]["mask_parse"] > 0 and whole[5]["photo_model"] > 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model, data, settings, stop=7)
    rest, _ = run(tmp_path / "cut", model, data, settings, resume=True)
    assert rest == {s: whole[s] for s in range(7, 9)}
    network = load_predictor(path)
    own = load_predictor(parser).state_dict()
    mine = network.parser.network.state_dict()
    assert network.gives == ("state", "landmarks", "parse") and all(torch.equal(own[k], mine[k]) for k in own)
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert card["metrics"]["steps"] == 8 and card["net"] == "dfmvr"
    picture = np.array(Image.open(tmp_path / "whole" / "pictures" / "step_0000006.png"))
    # Of each view the photo, mesh, lit model, error map and parse.
    assert picture.shape == (2 * 32, 3 * 5 * 32, 3)


@pytest.mark.slow
def test_the_published_losses_run_small(model, samples, parser, tmp_path):
    """On a model with an albedo basis; of one data set nothing but landmarks and 3D points is known, of the
    other not even these."""
    wave = torch.sin(model.mean / 30.0)
    colored = replace(model, albedo_basis=0.03 * wave[None])
    options = "masks: scaled, light: person, start: frontal, " + PARSER
    settings = load_regressor_training(
        "dfmvr-strict",
        [
            NET.format(options),
            f"net.start={parser}",
            "stages.all.energies.mask_parse.options.size=32",
            "stages.all.epochs=0",
            "stages.all.steps=2",
            *QUICK,
        ],
    )
    unknown = ("parse", "vertices", "depth", "normals", "crop_points")
    data = {
        "pixel": Kept([replace_state(s) for s in samples[:2]], unknown),
        "pie": Kept([replace_state(samples[2])], (*unknown, "points3d")),
    }
    losses, path = run(tmp_path / "a", colored, data, settings)
    assert set(losses[1]) - {"total"} == set(settings.stages[0].energies)
    assert all(np.isfinite(v) for v in losses[2].values()) and losses[2]["photo_model"] > 0
    network = load_predictor(path, colored)
    images = torch.rand(1, 3, 3, 32, 32)
    with torch.no_grad():
        assert network(images, torch.ones(1, 3, dtype=torch.bool)).state.albedo.abs().max() > 0
    with pytest.raises(InputError, match="energy 'albedo_prior' needs a network that predicts albedo coeff"):
        run(tmp_path / "b", model, data, settings)


def replace_state(sample):
    return replace(
        sample,
        observations=replace(sample.observations, labels=sample.observations.labels.without(("state",))),
    )


def test_a_training_needs_a_parser(model, samples, parser, tmp_path):
    data = {"synthetic": Kept(samples)}
    with pytest.raises(InputError, match="net.start is not set, and dfmvr needs weights of a face parser"):
        run(tmp_path / "a", model, data, load_regressor_training("dfmvr", [*SMALL, "net.start=''"]))
    without = [NET.format("masks: none, " + PARSER), *SMALL[1:], "net.start=''"]
    with pytest.raises(
        InputError, match="'mask_parse' looks through the parser of the network itself, and dfmvr"
    ):
        run(tmp_path / "b", model, data, load_regressor_training("dfmvr", without))


def test_of_a_third_of_the_people_one_view_is_left():
    rng, options = np.random.default_rng(0), FaceAugmentation(alone=1 / 3)
    drawn = [tuple(without_missing([0, 1, 2], options, rng)) for _ in range(9000)]
    shares = {views: drawn.count(views) / len(drawn) for views in set(drawn)}
    assert set(shares) == {(0, 1, 2), (0,), (1,), (2,)}
    assert shares[0, 1, 2] == pytest.approx(2 / 3, abs=0.02)
    assert all(shares[v,] == pytest.approx(1 / 9, abs=0.015) for v in range(3))
    assert without_missing([1], options, rng) == [1]


def test_the_rate_ends_where_it_is_told_to():
    settings = load_regressor_training("dfmvr", SMALL)
    (stage,) = settings.stages[3:]
    settings = replace(settings, stages=(replace(stage, steps=100),))
    rates = [learning_rate(settings, [100], step) for step in (0, 50, 99)]
    assert rates[0] == stage.learning_rate and stage.least_rate == 1e-6
    assert rates[1] == pytest.approx((stage.learning_rate + 1e-6) / 2)
    assert 1e-6 < rates[2] < 1.1e-6
    with pytest.raises(
        InputError, match="least_rate: expected at most the learning_rate 5e-05 and decay: cosine"
    ):
        load_regressor_training("dfmvr", [*SMALL, "stages.masks.least_rate=1e-4"])


@pytest.mark.parametrize("name, arms", [("dfmvr-ablation", 6), ("dfmvr-weights", 12)])
def test_the_tables_of_the_paper_can_be_planned(name, arms):
    plan = _plan(load_training_ablation(name))
    assert len(plan.arms) == arms
    options = {arm.name: training for arm, training in plan.arms}
    assert len({repr(training) for training in options.values()}) == arms  # no two are the same
