"""The recipes `mvdepth` at a size of seconds: g first, then f and h with g as it is; the face model's depth
as a label; depth that does not know how far away a head is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model
from PIL import Image
from trainings import one_thread, run  # noqa: F401 - a fixture

from fitkit.data.augment import PLAIN
from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.energies.rendered_depth import model_depth
from fitkit.errors import InputError
from fitkit.nets import load_predictor
from fitkit.nets.mvdepth.network import Mvdepth, MvdepthOptions
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import from_normalized
from fitkit.scene.projection import project_points
from fitkit.train.ablation import _plan, load_training_ablation
from fitkit.train.regressor_data import Draws, InputOptions, prepare
from fitkit.train.regressor_recipe import load_regressor_training
from fitkit.train.regressor_terms import StageCost
from fitkit.train.validation import relief_of

MODEL = tiny_model()
OPTIONS = (
    "size: 32, growth: 4, blocks: [1, 1, 1, 1], features: 8, hidden: 16, width: 0.1, levels: 3, "
    "trust_width: 0.05"
)
TINY = MvdepthOptions(
    size=32, growth=4, blocks=(1, 1, 1, 1), features=8, hidden=16, width=0.1, levels=3, trust_width=0.05
)
QUICK = ("save=3", "log=1", "accelerator=cpu", "validation.share=0.0", "batch=2")
SMALL = (
    f"net.options={{{OPTIONS}}}",
    "net.start=''",
    *(f"stages.{name}.steps=2" for name in ("model", "depth", "views")),
    "stages.depth.batch=2",
    "stages.views.batch=2",
    "pictures=6",
    *QUICK,
)


class People(FaceDataset):
    """Tiny people in two views with their depth, as `fitkit synth` labels them."""

    def __init__(self, count=3, size=64):
        self.ids = tuple(f"p{i}" for i in range(count))
        self.samples = [self._made(i, size) for i in range(count)]

    def _made(self, number, size):
        network = Mvdepth(MODEL, (), replace(TINY, size=size)).eval()
        torch.manual_seed(number)
        with torch.no_grad():
            state = network(torch.rand(1, 2, 3, size, size), torch.ones(1, 2, dtype=torch.bool)).state
        turn = torch.tensor([[0.0, 0.3, 0.0, 0, 0, 0], [0.0, -0.3, 0.0, 0, 0, 0]])
        state = state.replace(
            identity=torch.randn(1, MODEL.num_identity),
            expression=state.expression + 0.2,
            pose=state.pose.retract(turn),
        )
        depth = model_depth(MODEL, state, (size, size))
        images = (depth[:, None] > 0) * torch.rand(2, 3, size, size) * 0.2 + 0.4
        points = project_points(MODEL.landmark_basis, state).pixels
        ones = torch.ones(2, 68)
        marks = Landmarks(points, ones, ones > 0, ones, "surface")
        labels = Labels(
            state=state, depth=depth, person=torch.full((2,), number), moment=torch.full((2,), number)
        )
        everywhere = torch.ones(2, size, size, dtype=torch.bool)
        seen = Observations(images, marks, everywhere, torch.ones(2), torch.zeros(2, 2), labels)
        return Sample(self.ids[number], seen, labels)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def people():
    return People()


def weights_of(path, part):
    network = load_predictor(path, MODEL)
    return torch.cat([p.flatten() for thing in network.parts()[part] for p in thing.parameters()])


def test_g_learns_first_then_f_and_h_beside_it(people, tmp_path):
    data = {"synthetic": people, "makehuman": people, "pairs": people}
    settings = load_regressor_training("mvdepth", SMALL)
    whole, path = run(tmp_path / "whole", MODEL, data, settings)
    assert [set(whole[s]) - {"total"} for s in (1, 3, 5)] == [set(s.energies) for s in settings.stages]
    assert all(np.isfinite(v) for values in whole.values() for v in values.values())
    assert whole[1]["identity_consistency"] == 0  # before it learns all are the mean face
    assert whole[5]["photo_warp_depth"] > 0 and whole[3]["depth_3dmm"] > 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", MODEL, data, settings, stop=5)
    rest, _ = run(tmp_path / "cut", MODEL, data, settings, resume=True)
    assert rest == {s: whole[s] for s in range(4, 7)}
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert card["net"] == "mvdepth" and card["gives"] == ["state", "depth"]
    picture = np.array(Image.open(tmp_path / "whole" / "pictures" / "step_0000006.png"))
    assert picture.shape == (2 * 32, 2 * 3 * 32, 3)  # of each view the photo, the mesh and the depth
    # What is frozen in a stage has not moved in it.
    short = load_regressor_training("mvdepth", (*SMALL, "stages.views.steps=1"))
    stages = {}
    for count in (1, 2):
        cut = replace(short, stages=short.stages[:count])
        stages[count] = run(tmp_path / f"first{count}", MODEL, data, cut)[1]
    for part, moved in (("trunk", False), ("heads", False), ("depth", True), ("suitability", False)):
        same = torch.equal(weights_of(stages[1], part), weights_of(stages[2], part))
        assert same != moved, part
    assert not torch.equal(weights_of(stages[2], "suitability"), weights_of(path, "suitability"))


def test_a_wrong_folder_of_colours_shows_before_the_first_step(tmp_path):
    settings = load_regressor_training("mvdepth", (*SMALL, f"augmentation.references={tmp_path / 'none'}"))
    with pytest.raises(InputError, match="none: expected a folder of pictures whose colours photos may take"):
        Draws([], [], MODEL, InputOptions.of(Mvdepth(MODEL, (), TINY)), settings)


def test_the_published_recipe_runs_small(people, tmp_path):
    settings = load_regressor_training(
        "mvdepth-strict",
        (f"net.options={{{OPTIONS}, pool: mean}}", "stages.model.steps=1", "stages.depth.steps=1", *QUICK),
    )
    unlabelled = People()
    unlabelled.samples = [
        replace(s, observations=replace(s.observations, labels=Labels())) for s in people.samples
    ]
    losses, _ = run(tmp_path / "a", MODEL, {"synthetic": people, "pie": unlabelled}, settings)
    assert set(losses[2]) - {"total"} == set(settings.stages[1].energies)
    assert all(np.isfinite(v) for v in losses[2].values())
    # 1 mm is 1 / 200 of the normalized depth, and a mean over pixels has the paper's weight 1.
    depth = settings.stages[1].energies["depth_sup"]
    one_mm = depth.weight * depth.kernel.cost(torch.tensor([50 / depth.sigma_mm])) / 2
    assert float(one_mm) == pytest.approx(50 / 200, rel=0.4)
    prior = settings.stages[1].energies["depth_3dmm"]
    assert prior.weight * (50 / prior.sigma_mm) ** 2 / 2 == pytest.approx(0.02 * (50 / 200) ** 2)


def prepared(people, number, focal):
    inputs = InputOptions((), 32, Mvdepth(MODEL, (), TINY).crop, "perspective", 2, focal)
    return prepare(people[number].observations, "p", MODEL, inputs, PLAIN, np.random.default_rng(0))


def test_the_depth_of_the_predicted_face_model_is_a_label_that_nothing_learns_from(people):
    network = Mvdepth(MODEL, (), TINY).train()
    images, valid, seen = prepared(people, 0, network.focal)
    stage = load_regressor_training("mvdepth", SMALL).stages[2]
    stage = replace(stage, energies={"depth_3dmm": stage.energies["depth_3dmm"]})
    said = network(images[None], valid[None])
    cost, report = StageCost(stage, MODEL)(said, [seen])
    assert report["depth_3dmm"].people == 1
    drawn = model_depth(MODEL, said.state, (32, 32))
    assert 100 < int((drawn > 0).sum()) and not drawn.requires_grad
    known = replace(seen, labels=replace(seen.labels, prior_depth=drawn))
    assert StageCost(stage, MODEL)(said, [known])[1] == report
    other = replace(seen, labels=replace(seen.labels, prior_depth=drawn + 30 * (drawn > 0)))
    assert StageCost(stage, MODEL)(said, [other])[1] != report  # what the data say goes first
    cost.backward()
    assert network.depth.out.weight.grad.abs().max() > 0
    # How far away the head is moves both depths alike; its shape is no matter of depth_3dmm.
    assert network.model.head[-1].bias.grad[: network.model.numbers].abs().max() == 0


def test_relative_depth_does_not_know_how_far_away_a_head_is(people):
    network = Mvdepth(MODEL, (), TINY).eval()
    images, valid, seen = prepared(people, 1, network.focal)
    labels = seen.labels
    assert float((labels.state.camera.focal - network.focal).abs().max()) < 1e-3
    with torch.no_grad():
        said = network(images[None], valid[None])
    away = said.depth.distance(labels.state.pose)
    exact = replace(
        said.depth,
        depth=torch.where(labels.depth > 0, labels.depth - away[:, None, None], 0)
        + said.depth.distance()[:, None, None],
    )
    assert float((away - said.depth.distance()).abs().min()) > 0.1
    stage = load_regressor_training("mvdepth", SMALL).stages[1]
    right = replace(said, depth=exact)
    relief = replace(stage, energies={"depth_sup": stage.energies["depth_sup"]})
    assert stage.energies["depth_sup"].relief
    assert float(StageCost(relief, MODEL)(right, [seen])[0]) < 1e-6
    for name in ("depth_sup", "normal_sup"):
        term = stage.energies[name]
        if name == "depth_sup":
            term = replace(term, relief=False, relative=True)
        own = replace(stage, energies={name: term})
        plain = replace(stage, energies={name: replace(term, relative=False)})
        assert float(StageCost(own, MODEL)(right, [seen])[0]) < 1e-6
        if name == "depth_sup":
            assert float(StageCost(plain, MODEL)(right, [seen])[0]) > 1e-3
    errors = relief_of(replace(said, depth=exact), labels, MODEL)
    assert errors["relief_mm"] < 1e-3 < errors["model_relief_mm"]
    assert errors["normals_deg"] < 2 and set(errors) == {
        "relief_mm",
        "normals_deg",
        "model_relief_mm",
        "model_normals_deg",
    }
    flat = from_normalized(torch.full((2, 32, 32), 0.5), said.depth.distance())
    worse = relief_of(replace(said, depth=replace(exact, depth=flat)), labels, MODEL)
    assert worse["relief_mm"] > 3 and worse["normals_deg"] > 10
    assert relief_of(said, replace(labels, state=None), MODEL) == {}


def test_the_suitability_falls_where_photos_disagree_and_only_there(people):
    """With the weights of the recipe, of a map that is free in each pixel."""
    network = Mvdepth(MODEL, (), TINY).eval()
    images, valid, seen = prepared(people, 0, network.focal)
    labels = seen.labels
    with torch.no_grad():
        said = network(images[None], valid[None])
    true = replace(said.depth, depth=labels.depth, pose=labels.state.pose)
    gray = torch.full_like(seen.images, 0.5)
    gray[0, 0, :, :16] += 0.2  # red, in one half of one photo
    gray[0, 0, :, 16:] += 0.02
    seen = replace(seen, images=gray, labels=replace(labels, prior_depth=labels.depth))
    stage = load_regressor_training("mvdepth", SMALL).stages[2]
    stage = replace(stage, energies={k: stage.energies[k] for k in ("photo_warp_depth", "suitability_reg")})
    trust = torch.full_like(true.depth, 0.9, requires_grad=True)
    adam = torch.optim.Adam([trust], 0.02)
    for _ in range(150):
        adam.zero_grad()
        depth = replace(true, suitability=trust)
        StageCost(stage, MODEL)(replace(said, depth=depth), [seen])[0].backward()
        adam.step()
    found, face = trust.detach()[0], torch.zeros(32, 32, dtype=torch.bool)
    face[12:20, 12:20] = true.depth[0, 12:20, 12:20] > 0
    low, high = found[:, :16][face[:, :16]], found[:, 16:][face[:, 16:]]
    assert len(low) > 20 and len(high) > 20
    assert float(low.median()) < 0.75 and float(high.median()) > 0.9, (low.median(), high.median())


def test_the_ablation_leaves_out_one_loss_at_a_time():
    folders = [f"train.data.{name}.folder=a" for name in ("synthetic", "makehuman", "pairs")]
    ablation = load_training_ablation("mvdepth-losses", folders)
    plan = _plan(ablation)
    assert plan.first is not None and [s.name for s in plan.first.stages] == ["model"]
    everything = {name for s in load_regressor_training("mvdepth").stages[1:] for name in s.energies}
    left = {}
    for arm, training in plan.arms:
        views = next(s for s in training.stages if s.name == "views")
        left[arm.name] = (everything - set(views.energies), views.free)
    assert left == {
        "all (recipe mvdepth)": (set(), ("depth", "suitability")),
        "without depth": ({"depth_sup"}, ("depth", "suitability")),
        "without normals": ({"normal_sup"}, ("depth", "suitability")),
        "without the face model": ({"depth_3dmm"}, ("depth", "suitability")),
        "without photos of two views": ({"photo_warp_depth", "suitability_reg"}, ("depth", "suitability")),
        "without suitability": (set(), ("depth",)),
    }


def test_a_camera_of_other_people_is_turned_to_that_of_the_network(people):
    """Labels of pictures with another focal length: the depth is then that of a head as far away as the
    network's camera makes it."""
    sample = people[0]
    seen = sample.observations
    camera = seen.labels.state.camera
    wide = Camera(camera.focal / 2, camera.principal, camera.aspect)
    state = seen.labels.state.replace(camera=wide)
    assert float(state.camera.focal[0]) == pytest.approx(float(camera.focal[0]) / 2)
    data = People()
    data.samples[0] = replace(sample, observations=replace(seen, labels=replace(seen.labels, state=state)))
    _, _, turned = prepared(data, 0, Mvdepth(MODEL, (), TINY).focal)
    assert float(turned.labels.state.camera.focal[0]) == pytest.approx(Mvdepth(MODEL, (), TINY).focal)
    there = turned.labels.depth > 0
    middle = turned.labels.state.pose.translation[:, 2]
    assert float((turned.labels.depth - middle[:, None, None])[there].abs().max()) < 200
