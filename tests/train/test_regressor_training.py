"""Training of a regressor on tiny people: it learns, goes on after an interruption, and says what went
wrong."""

import csv
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import LucasKanade, observe, photograph, tiny_model, tiny_state
from safetensors import safe_open
from trainings import one_thread  # noqa: F401 - a fixture

from fitkit.data.augment import PLAIN, FaceAugmentation
from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.errors import FitError, InputError, MissingWeightsError
from fitkit.nets import load_predictor
from fitkit.nets.predictor import Prediction, ViewSlot
from fitkit.observe.crop import CropOptions
from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations
from fitkit.render.rasterizer import rasterize
from fitkit.scene.state import SceneState
from fitkit.train import trainer
from fitkit.train.regressor import CHECKPOINT, loop_options, open_parts, train_regressor
from fitkit.train.regressor_data import (
    Batches,
    Draws,
    InputOptions,
    KeptSamples,
    _Broken,
    _collate,
    collate,
    draw_order,
    large_labels,
    prepare,
    split,
)
from fitkit.train.regressor_recipe import DataSource, load_regressor_training, parse_regressor_training
from fitkit.train.regressor_terms import StageCost
from fitkit.train.schedule import learning_rate, stage_of_step
from fitkit.train.validation import HeldOut, validate

MODEL = tiny_model(num_identity=4)
# People who differ by more than a pixel of 48.
MODEL = replace(MODEL, identity_basis=3 * MODEL.identity_basis)
SUPERVISED = {
    "lmk2d": {"sigma_px": 10, "weight": 0.1},
    "pose_sup": {"weight": 0.1},
    "identity_sup": {"sigma": 0.3},
    "expression_sup": {"sigma": 0.29},  # one expression for all views, which counts once
    "vertex_sup": {"sigma_mm": 2},
}
BASE = {
    "name": "tiny",
    "net": {"options": {"size": 48, "width": 0.12}},
    "data": [{"name": "a", "kind": "synthetic"}],
    "batch": 4,
    "save": 4,
    "pictures": 0,
    "log": 1,
    "accelerator": "cpu",
    "augmentation": {"shift": 0.0, "gain": 0.0, "offset": 0.0},
    "validation": {"share": 0.0},
}


class Triplets(FaceDataset):
    """Painted tiny people in three views, with all labels. Their colour goes with three of their
    coefficients, which a small network finds in few steps."""

    def __init__(self, count=8, size=64, labels=True, views=3):
        self.ids = tuple(f"p{i}/0" for i in range(count))
        self.samples = []
        for i in range(count):
            state = tiny_state(MODEL, views, size, seed=i)
            state = state.replace(expression=state.expression[:1].expand(views, -1))
            tint = tuple((1 + 0.25 * state.identity[0, :3].clamp(-2, 2)).tolist())
            seen = observe(MODEL, state, size, photograph(MODEL, state, size, tint).clamp(0, 1))
            self.samples.append(Sample(self.ids[i], replace(seen, labels=Labels(state) if labels else None)))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def people():
    return Triplets()


def recipe(stages=None, **changes):
    stages = stages or [{"name": "supervised", "steps": 8, "learning_rate": 0.003, "energies": SUPERVISED}]
    return parse_regressor_training(BASE | {"stages": stages} | changes, "tiny.yaml")


def train(settings, folder, people, **options):
    losses = {}
    path = train_regressor(
        settings,
        folder,
        model=MODEL,
        datasets={d.name: people for d in settings.data},
        step_done=lambda step, values: losses.__setitem__(step, values),
        **options,
    )
    return losses, path


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_vertex_error(people, tmp_path):
    settings = recipe(
        [{"name": "supervised", "steps": 80, "learning_rate": 0.006, "energies": SUPERVISED}],
        save=80,
        pictures=80,
    )
    losses, path = train(settings, tmp_path / "out", people)
    first, last = (np.mean([losses[s]["total"] for s in steps]) for steps in (range(1, 4), range(78, 81)))
    assert last < 0.25 * first
    for energy in SUPERVISED:
        assert losses[80][energy] < losses[1][energy]
    network = load_predictor(path, MODEL)
    _, held = split(DataSource("a", "synthetic"), people, 0.0)
    held = HeldOut(
        replace(settings, validation=replace(settings.validation, most=8)),
        [replace(held, index=np.arange(8))],
        MODEL,
        network,
    )
    errors = validate(network, MODEL, held)
    assert errors["vertex_mm"] < 0.7 * errors["mean_face_mm"] and errors["nme_percent"] < 6
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").read_text().splitlines()))
    assert [int(r["step"]) for r in rows] == list(range(1, 81))
    assert (
        float(rows[0]["lmk2d"]) == pytest.approx(losses[1]["lmk2d"], rel=1e-4)
        and rows[0]["lmk2d_people"] == "4"
    )
    assert float(rows[0]["total"]) == pytest.approx(sum(float(rows[0][n]) for n in SUPERVISED), rel=1e-4)
    assert list((tmp_path / "out" / "tensorboard").glob("events.out.tfevents*"))
    import cv2

    picture = cv2.imread(str(tmp_path / "out" / "pictures" / "step_0000080.png"))
    assert picture.shape == (4 * 48, 6 * 48, 3)
    assert np.abs(picture[:48, :48].astype(int) - picture[:48, 48:96]).mean() > 3  # a mesh lies over it
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (
        card["data"][0]["samples"] == 8
        and card["model"]["name"] == "tiny"
        and card["stages"][0]["energies"]["lmk2d"] == 0.1
    )


def test_an_interrupted_training_goes_on_with_the_same_losses(people, tmp_path):
    stages = [
        {"name": "one", "steps": 5, "learning_rate": 0.003, "energies": SUPERVISED},
        {"name": "two", "steps": 4, "learning_rate": 0.001, "energies": {"lmk2d": {}, "identity_prior": {}}},
    ]
    settings = recipe(stages, save=3, augmentation={"shift": 0.05, "missing": 0.3})
    whole, weights = train(settings, tmp_path / "whole", people)

    class Stop(Exception):
        pass

    def stop(step, values):
        if step == 5:  # after the checkpoint of step 3
            raise Stop

    with pytest.raises(Stop):
        train_regressor(settings, tmp_path / "cut", model=MODEL, datasets={"a": people}, step_done=stop)
    with pytest.raises(InputError, match="there is a training in it; continue it with --resume"):
        train(settings, tmp_path / "cut", people)
    torch.manual_seed(99)  # the random state of the process plays no part
    begun = []
    rest, again = train(
        settings, tmp_path / "cut", people, resume=True, begun=lambda *steps: begun.append(steps)
    )
    assert begun == [(3, 9)]
    assert sorted(rest) == [4, 5, 6, 7, 8, 9]
    assert all(rest[s] == whole[s] for s in rest)
    with safe_open(weights, "pt") as a, safe_open(again, "pt") as b:
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())
    logs = [(tmp_path / n / "log.csv").read_text() for n in ("whole", "cut")]
    assert logs[0] == logs[1]
    with pytest.raises(InputError, match="belongs to another recipe"):
        train(replace(settings, seed=5), tmp_path / "cut", people, resume=True)
    assert train(settings, tmp_path / "cut", people, resume=True)[0] == {}  # it was finished
    (tmp_path / "cut" / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="checkpoint.ckpt: not a readable checkpoint"):
        train(settings, tmp_path / "cut", people, resume=True)


def test_a_loss_that_is_no_number_stops_and_names_the_samples(tmp_path):
    people = Triplets(4)
    bad = people.samples[2].observations
    state = bad.labels.state
    people.samples[2] = Sample(
        "p2/0", replace(bad, labels=Labels(state.replace(identity=state.identity * torch.nan)))
    )
    sentence = (
        r"step 1: the loss is nan \(from identity_sup, vertex_sup\); the ids of its samples are in "
        r".*bad_batch.json"
    )
    with pytest.raises(FitError, match=sentence):
        train(recipe(), tmp_path / "out", people)
    content = json.loads((tmp_path / "out" / "bad_batch.json").read_text())
    assert (
        sorted(content["ids"]) == ["a/p0/0", "a/p1/0", "a/p2/0", "a/p3/0"]
        and content["terms"]["identity_sup"] == "nan"
    )
    assert (
        content["step"] == 1
        and content["stage"] == "supervised"
        and not (tmp_path / "out" / CHECKPOINT).exists()
    )


def test_a_broken_label_file_ends_the_training_with_one_sentence(tmp_path):
    with pytest.raises(InputError) as caught:
        train(recipe(), tmp_path / "out", Breaking(4))
    assert str(caught.value) == "sample a/p1/0: labels/p1.mat: cannot be read"


def test_the_error_of_a_worker_travels_as_a_value():
    # A worker process wraps an exception into its traceback; a value arrives as it is.
    settings, people = recipe(), Breaking(4)
    part = [split(settings.data[0], people, 0.0)[0]]
    draws = Draws([part], [np.array([[0, 0], [0, 1], [0, 2], [0, 3]])], MODEL, inputs_of(settings), settings)
    broken = pickle.loads(pickle.dumps(_collate([draws[i] for i in range(4)])))
    assert isinstance(broken, _Broken) and broken.message == "sample a/p1/0: labels/p1.mat: cannot be read"


class Breaking(Triplets):
    def __getitem__(self, index):
        if index == 1:
            raise InputError("labels/p1.mat: cannot be read")
        return super().__getitem__(index)


def test_two_stages_the_second_without_labels_on_its_own_data(people, tmp_path):
    unlabelled = Triplets(4, labels=False)
    stages = [
        {
            "name": "supervised",
            "steps": 2,
            "learning_rate": 0.001,
            "data": ["a"],
            "energies": SUPERVISED | {"identity_prior": {"weight": 0.01}},
        },
        {
            "name": "self",
            "steps": 2,
            "learning_rate": 0.0001,
            "data": ["b"],
            "energies": {
                "lmk2d": {},
                "lmk2d_eye": {},
                "lmk2d_lip": {},
                "photo_xview": {"options": {"points": 200, "exposure": "gain"}},
                "census_xview": {"options": {"points": 60}},
                "flow_corr": {"estimator": "dis", "options": {"size": 48, "points": 100}},
                "flow_mag": {
                    "weight": 0.1,
                    "kernel": {"name": "l2n"},
                    "options": {"size": 48, "min_pixels": 200},
                },
                "expression_prior": {},
                "prior_l1": {},
            },
        },
    ]
    settings = recipe(
        stages, batch=2, data=[{"name": "a", "kind": "synthetic"}, {"name": "b", "kind": "synthetic"}]
    )
    made, losses = [], {}

    def make(name, weights, device):
        made.append(name)
        from fitkit.observe.flow import make_flow_estimator

        return LucasKanade() if name.startswith("ptlflow:") else make_flow_estimator(name, weights, device)

    train_regressor(
        settings,
        tmp_path / "out",
        model=MODEL,
        datasets={"a": people, "b": unlabelled},
        make_estimator=make,
        step_done=lambda step, values: losses.__setitem__(step, values),
    )
    assert set(losses[2]) == {*SUPERVISED, "identity_prior", "total"} and set(losses[3]) == {
        *stages[1]["energies"],
        "total",
    }
    assert sorted(made) == ["dis", "ptlflow:pwcnet"]  # each is made once
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").read_text().splitlines()))
    assert [r["stage"] for r in rows] == ["supervised"] * 2 + ["self"] * 2
    assert rows[3]["identity_sup"] == "" and rows[3]["flow_mag_people"] == "2"
    assert all(float(rows[3][n]) > 0 for n in ("photo_xview", "flow_mag", "census_xview", "flow_corr"))


def test_missing_flow_weights_are_told_before_the_first_step(people, tmp_path):
    stages = [
        {"name": "one", "steps": 2, "energies": {"lmk2d": {}}},
        {"name": "two", "steps": 2, "energies": {"flow_mag": {}}},
    ]

    def make(name, weights, device):
        raise MissingWeightsError(f"{name}: not here")

    with pytest.raises(MissingWeightsError, match="ptlflow:pwcnet: not here"):
        train_regressor(
            recipe(stages),
            tmp_path / "out",
            model=MODEL,
            datasets={"a": people},
            make_estimator=make,
            step_done=lambda step, values: pytest.fail("a step was made"),
        )


def test_the_cost_is_the_mean_over_the_people_of_what_the_objective_gives_for_each():
    people = Triplets(3)
    more = {"photo_xview": {"options": {"points": 150}}, "identity_prior": {}, "prior_l1": {}}
    settings = recipe([{"name": "s", "steps": 1, "energies": SUPERVISED | more}])
    inputs = inputs_of(settings)
    prepared = [
        prepare(s.observations, s.id, MODEL, inputs, PLAIN, np.random.default_rng(0)) for s in people.samples
    ]
    batch = collate([(str(i), *p) for i, p in enumerate(prepared)])
    cost = StageCost(settings.stages[0], MODEL)
    state = SceneState.join([p.labels.state for p in batch.people])
    gen = torch.Generator().manual_seed(0)
    light = torch.full((9, 9, 1), 0.1) + torch.eye(9)[:1].T * 3
    state = state.replace(identity=state.identity + torch.randn(3, 4, generator=gen), illumination=light)
    total, report = cost(Prediction(state), batch.people)
    single = [cost(Prediction(state.select_people([i])), [batch.people[i]]) for i in range(3)]
    for name in report:
        assert report[name].value == pytest.approx(np.mean([r[name].value for _, r in single]), rel=1e-4), (
            name
        )
    assert float(total) == pytest.approx(sum(v.value for v in report.values()), rel=1e-5)
    # A person without labels is left out of the supervised energies and counts in the others.
    bare = replace(batch.people[1], labels=None)
    _, report = cost(Prediction(state), [batch.people[0], bare, batch.people[2]])
    assert report["identity_sup"].people == 2 and report["lmk2d"].people == 3
    others = single[0][1]["identity_sup"].value + single[2][1]["identity_sup"].value
    assert report["identity_sup"].value == pytest.approx(others / 3, rel=1e-5)


def test_only_known_parts_of_a_label_are_compared():
    people = Triplets(1)
    seen = people.samples[0].observations
    cost = StageCost(recipe().stages[0], MODEL)
    half = replace(seen, labels=replace(seen.labels, known=("pose",)))
    _, report = cost(Prediction(seen.labels.state), [half])
    assert (
        report["pose_sup"].people == 1
        and report["identity_sup"].people == 0
        and report["vertex_sup"].people == 0
    )
    nothing = recipe([{"name": "s", "steps": 1, "energies": {"identity_sup": {}}}])
    with pytest.raises(
        InputError, match=r"stage 's': none of its energies \(identity_sup\) can be used for these samples"
    ):
        StageCost(nothing.stages[0], MODEL)(Prediction(seen.labels.state), [half])


def inputs_of(settings):
    from fitkit.nets import net_kind

    return InputOptions.of(net_kind("mvfnet").make(MODEL, settings.views, settings.net.options))


def test_a_sample_as_the_network_takes_it():
    seen = Triplets(1).samples[0].observations
    slots = {"left": [-70, -20], "front": [-15, 15], "right": [20, 70], "far": [71, 90]}
    inputs = inputs_of(recipe(views=[{"name": n, "yaw": y} for n, y in slots.items()]))
    images, valid, out = prepare(
        seen, "x", MODEL, inputs, FaceAugmentation(shift=0.05), np.random.default_rng(1)
    )
    assert (
        images.shape == (4, 3, 48, 48)
        and valid.tolist() == [True, True, True, False]
        and float(images[3].std()) == 0
    )
    # tiny_state turns its views from -40 to 40 degrees, in this order
    state = out.labels.state
    assert state.camera.kind == "orthographic" and torch.equal(
        state.camera.principal, torch.full((3, 2), 23.5)
    )
    pixels = state.camera.project(
        state.pose.apply(MODEL.landmarks.points(state.vertices(MODEL), MODEL.triangles))
    )[0]
    box = (out.landmarks.points.amax(1) - out.landmarks.points.amin(1)).amax(1)
    assert torch.allclose(box, torch.full((3,), 48 / 1.5), rtol=0.03)
    assert (
        float((pixels - out.landmarks.points).norm(dim=-1).max()) < 2
    )  # the perspective that the camera cannot show
    # The shifted crop shows what the unshifted one shows, elsewhere.
    plain = prepare(seen, "x", MODEL, inputs, PLAIN, np.random.default_rng(1))[2]
    moved = (out.landmarks.points - plain.landmarks.points).mean(1)
    assert (
        float(moved.abs().max()) > 0.3
        and float((out.landmarks.points - plain.landmarks.points - moved[:, None]).abs().max()) < 0.2
    )
    # Crop -> picture -> the landmarks of the picture.
    photo = torch.cat([out.offset, 1 / out.scale[:, None]], 1)
    back = out.landmarks.points * photo[:, None, 2:] + photo[:, None, :2]
    assert torch.allclose(back, seen.landmarks.points, atol=1e-3)
    with pytest.raises(InputError, match="x: none of its views fits a view of the recipe: heads turned by"):
        prepare(
            seen,
            "x",
            MODEL,
            replace(inputs, views=(ViewSlot("back", (100.0, 180.0)),)),
            PLAIN,
            np.random.default_rng(0),
        )
    few = replace(seen.landmarks, valid=torch.zeros_like(seen.landmarks.valid))
    with pytest.raises(InputError, match="x: view 1: expected at least 8 landmarks to cut it around, got 0"):
        prepare(replace(seen, landmarks=few), "x", MODEL, inputs, PLAIN, np.random.default_rng(0))


def with_maps(observations):
    state = observations.labels.state
    clip = state.camera.clip(state.pose.apply(state.vertices(MODEL)))
    fragments = rasterize(clip, MODEL.triangles, observations.size)
    labels = replace(
        observations.labels,
        vertices=state.pose.apply(state.vertices(MODEL)),
        depth=fragments.depth * fragments.covered,
        parse=(fragments.triangle >= 0).long(),
        normals=fragments.covered[:, None] * torch.tensor([0.0, 0.0, -1.0])[:, None, None],
        visible=torch.ones(len(clip), 68, dtype=torch.bool),
        points3d=MODEL.landmarks.points(state.vertices(MODEL), MODEL.triangles),
    )
    return replace(observations, labels=labels)


def test_a_network_with_two_crops_sees_each_in_half_of_the_samples():
    seen = Triplets(1).samples[0].observations.select(torch.tensor([1]))
    inputs = inputs_of(recipe(views=[{"name": "front", "yaw": [-15, 15]}]))
    inputs = replace(inputs, closer=replace(inputs.crop, margin=inputs.crop.margin / 1.5))
    rng, spread = np.random.default_rng(3), []
    for _ in range(40):
        marks = prepare(seen, "x", MODEL, inputs, PLAIN, rng)[2].landmarks.points[0]
        spread.append(float((marks.amax(0) - marks.amin(0)).max()))
    wide, close = min(spread), max(spread)
    assert close / wide == pytest.approx(1.5, rel=0.03)
    assert (
        10 < np.isclose(spread, close).sum() < 30
        and np.isclose(spread, close).sum() + np.isclose(spread, wide).sum() == 40
    )


def test_label_maps_arrive_at_the_energies():
    """Through the cache, the cut, the camera of the network and the batch, where they used to be dropped."""
    people = Triplets(2)
    people.samples = [replace(s, observations=with_maps(s.observations)) for s in people.samples]
    kept = KeptSamples(people)
    assert torch.equal(kept[0].truth.parse, people[0].observations.labels.parse)
    inputs = inputs_of(recipe())
    batch = collate(
        [
            (str(i), *prepare(kept[i].observations, "x", MODEL, inputs, PLAIN, np.random.default_rng(1)))
            for i in range(2)
        ]
    )
    labels = Observations.join(list(batch.people)).labels
    assert labels.depth.shape == (6, 48, 48) and labels.normals.shape == (6, 3, 48, 48)
    assert labels.visible.shape == (6, 68) and labels.points3d.shape == (6, 68, 3)
    assert labels.person.tolist() == [0, 0, 0, 1, 1, 1]
    state = labels.state
    torch.testing.assert_close(labels.vertices, state.pose.apply(state.vertices(MODEL)), rtol=1e-4, atol=0.02)
    drawn = rasterize(state.camera.clip(labels.vertices), MODEL.triangles, (48, 48))
    both = drawn.covered & (labels.depth > 0)
    assert float((drawn.covered == (labels.depth > 0)).float().mean()) > 0.95
    assert float((drawn.depth - labels.depth)[both].abs().median()) < 2
    assert torch.equal(labels.parse == 1, labels.normals.norm(dim=1) > 0.99)
    assert 0.001 < float(labels.normals[:, :2].abs().max()) < 0.1  # turned with the line of sight


def test_the_crop_of_mvfnet_is_black_beyond_the_photo_on_request():
    seen = Triplets(1).samples[0].observations
    mask = torch.ones_like(seen.mask)
    mask[:, :20] = False
    seen = replace(seen, mask=mask, images=torch.where(mask[:, None], seen.images, 0.5))
    made = {}
    for fill in ("grey", "black"):
        inputs = inputs_of(recipe(net={"options": {"size": 48, "width": 0.12, "fill": fill}}))
        made[fill] = prepare(seen, "x", MODEL, inputs, PLAIN, np.random.default_rng(1))[0][:, :, 0, 20:28]
    assert float(made["black"].max()) == 0 and float(made["grey"].min()) > 0.4


def test_views_are_taken_away_but_never_all():
    seen = Triplets(1).samples[0].observations
    inputs = inputs_of(recipe())
    counts = [
        int(prepare(seen, "x", MODEL, inputs, FaceAugmentation(missing=m), np.random.default_rng(i))[1].sum())
        for m in (0.5, 1.0)
        for i in range(20)
    ]
    assert set(counts[:20]) == {1, 2, 3} and set(counts[20:]) == {1}


def test_views_that_are_compared_change_their_colours_together(people):
    """Shu et al. change the colours of a pair alike; a loss between the views cannot tell another change from
    a wrong shape."""
    alone = {"name": "a", "steps": 1, "energies": {"lmk2d": {}}}
    compared = {"name": "b", "steps": 1, "energies": {"photo_xview": {}}}
    white = replace(people.samples[0].observations, images=torch.full((3, 3, 64, 64), 0.5))
    samples = Triplets(1)
    samples.samples = [replace(people.samples[0], observations=white)]
    inputs = None
    levels = {}
    for colors in ("auto", "view", "person"):
        settings = recipe(
            [alone, compared], augmentation={"gain": 0.5, "offset": 0.1, "shift": 0.0, "colors": colors}
        )
        inputs = inputs or inputs_of(settings)
        part = [split(settings.data[0], samples, 0.0)[0]]
        order = draw_order([1.0], [1], 1, [0])
        draws = Draws([part, part], [order, order], MODEL, inputs, settings)
        levels[colors] = [draws[k][3].images[:, 0, 24, 24] for k in range(2)]
    spread = {colors: [float(x.max() - x.min()) > 0.01 for x in both] for colors, both in levels.items()}
    assert spread == {"auto": [True, False], "view": [True, True], "person": [False, False]}
    assert float((levels["person"][1] - 0.5).abs().min()) > 0.005  # changed, but alike


def test_the_order_of_the_draws():
    order = draw_order([3.0, 1.0], [10, 4], 4000, [7])
    assert np.array_equal(order, draw_order([3.0, 1.0], [10, 4], 4000, [7]))
    assert not np.array_equal(order, draw_order([3.0, 1.0], [10, 4], 4000, [8]))
    assert (order[:, 0] == 0).mean() == pytest.approx(0.75, abs=0.03)
    first = order[order[:, 0] == 0, 1]
    assert all(
        sorted(first[k : k + 10]) == list(range(10)) for k in range(0, 100, 10)
    )  # each sample once before any comes again
    assert not np.array_equal(first[:10], first[10:20])


def test_devices_share_the_draws_of_a_step(people):
    settings = recipe()
    part = [split(settings.data[0], people, 0.0)[0]]
    draws = Draws([part], [draw_order([1.0], [8], 16, [0])], MODEL, inputs_of(settings), settings)
    whole = [b.ids for b in Batches(draws, [4])]
    two = [[b.ids for b in Batches(draws, [2], rank=r, devices=2)] for r in (0, 1)]
    assert len(whole) == 4 and [a + b for a, b in zip(*two)] == whole
    assert [b.ids for b in Batches(draws, [4], first=2)] == whole[2:]


def test_a_frozen_part_does_not_move_and_the_rate_follows_the_stage(people, tmp_path):
    stages = [
        {
            "name": "s",
            "steps": 3,
            "learning_rate": 0.01,
            "free": ["shape"],
            "warmup": 2,
            "decay": "cosine",
            "energies": {"identity_sup": {}, "lmk2d": {}},
        }
    ]
    settings = recipe(stages)
    torch.manual_seed(settings.seed)
    from fitkit.nets import net_kind

    before = net_kind("mvfnet").make(MODEL, settings.views, settings.net.options).state_dict()
    _, path = train(settings, tmp_path / "out", people)
    after = load_predictor(path, MODEL).state_dict()
    moved = {
        k.split(".")[0]
        for k in after
        if not torch.allclose(after[k].float(), before[k].float(), atol=1e-3, rtol=1e-3)
    }
    assert "trunk" not in moved and "pose_head" not in moved and "shape_head" in moved
    assert [learning_rate(settings, [3], s) for s in range(3)] == pytest.approx([0.005, 0.01, 0.01])
    assert [stage_of_step([2, 3], s) for s in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(InputError, match="stage 's': free: unknown key 'shap'; did you mean 'shape'"):
        train(recipe([stages[0] | {"free": ["shap"]}]), tmp_path / "x", people)
    with pytest.raises(InputError, match="stage 's': data: unknown key 'b'"):
        train(recipe([stages[0] | {"data": ["b"]}]), tmp_path / "x", people)


def test_epochs_are_passes_through_the_data(people, tmp_path):
    settings = recipe([{"name": "s", "epochs": 1.5, "learning_rate": 0.001, "energies": {"lmk2d": {}}}])
    assert len(train(settings, tmp_path / "out", people)[0]) == 3  # 12 samples in batches of 4


def test_people_held_out_are_measured(tmp_path):
    people = Triplets(12)
    settings = recipe(validation={"share": 0.3, "every": 4})
    training, held = open_parts(settings, MODEL, {"a": people})
    assert set(training[0].index) | set(held[0].index) == set(range(12)) and 0 < len(held[0].index) < 12
    train(settings, tmp_path / "out", people)
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").read_text().splitlines()))
    assert [bool(r["vertex_mm"]) for r in rows] == [s in (4, 8) for s in range(1, 9)]
    metrics = json.loads((tmp_path / "out" / "card.json").read_text())["metrics"]
    truth = [
        people.samples[i].observations.labels.state.vertices(MODEL)[:, MODEL.face] - MODEL.mean[MODEL.face]
        for i in held[0].index
    ]
    assert metrics["mean_face_mm"] == pytest.approx(
        np.mean([float(t.norm(dim=-1).mean()) for t in truth]), rel=1e-4
    )


def test_devices_strategy_and_precision_reach_lightning(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(trainer, "Fabric", lambda **options: asked.update(options))
    options = loop_options(recipe(strategy="ddp", devices=4, precision="bf16-mixed", clip=0.5))
    trainer.make_fabric(options, tmp_path, "tiny")
    assert asked["strategy"] == "ddp" and asked["devices"] == 4 and asked["precision"] == "bf16-mixed"
    assert options.clip == 0.5
    monkeypatch.undo()
    fabric = trainer.make_fabric(loop_options(recipe(strategy="ddp")), tmp_path, "tiny")
    assert type(fabric.strategy).__name__ == "DDPStrategy"
    with pytest.raises(InputError, match="Lightning refuses accelerator 'cpu', devices 1, strategy 'dpp'"):
        trainer.make_fabric(loop_options(recipe(strategy="dpp")), tmp_path, "tiny")


def test_mixed_precision_trains(people, tmp_path):
    losses, _ = train(
        recipe([{"name": "s", "steps": 2, "energies": SUPERVISED}], precision="bf16-mixed"),
        tmp_path / "out",
        people,
    )
    assert all(math.isfinite(v["total"]) for v in losses.values())


def test_joined_observations_keep_what_all_have(people):
    a, b = people.samples[0].observations, people.samples[1].observations
    both = Observations.join([a, b])
    assert both.num_views == 6 and both.labels.state.subject.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(
        both.labels.state.identity, torch.cat([a.labels.state.identity, b.labels.state.identity])
    )
    sure = replace(b, labels=replace(b.labels, identity_sigma=torch.full((1, 4), 0.5), known=("identity",)))
    both = Observations.join([a, sure])
    assert both.labels.identity_sigma.tolist() == [[0.0] * 4, [0.5] * 4] and both.labels.known == (
        "identity",
    )
    assert Observations.join([a, replace(b, labels=None)]).labels is None
    assert both.moment is None
    both = Observations.join([a, replace(b, moment=torch.tensor([5, 5, 7]))])  # nobody's are another's
    assert both.moment.tolist() == [0, 1, 2, 8, 8, 10]
    assert both.select(torch.tensor([3, 1])).moment.tolist() == [8, 1]


def test_only_the_large_labels_that_energies_need_are_read():
    energies = {"vertex_sup": {}, "pose_sup": {}, "photo_xview": {"options": {"parse": "none"}}}
    assert large_labels(recipe([{"name": "s", "steps": 1, "energies": energies}])) == {"vertices"}
    assert large_labels(recipe([{"name": "s", "steps": 1, "energies": {"lmk2d": {}}}])) == set()
    energies = {"depth_3dmm": {}, "photo_xview": {"options": {"parse": "pgn"}}}
    wanted = large_labels(recipe([{"name": "s", "steps": 1, "energies": energies}]))
    assert wanted == {"prior_depth", "parse", "parse_valid"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stages": []}, "expected 'stages', a list with at least one stage"),
        ({"stages": [{"name": "s", "steps": 1}]}, "stage 's': expected 'energies', a mapping"),
        (
            {"stages": [{"name": "s", "steps": 1, "energies": {"lmk2": {}}}]},
            "stage 's': energies: unknown key 'lmk2'; did you mean 'lmk2d'",
        ),
        (
            {"stages": [{"name": "s", "energies": {"lmk2d": {}}}]},
            "expected steps or epochs above 0, one of the two, got steps 0 and epochs 0",
        ),
        (
            {"stages": [{"name": "s", "steps": 1, "learning_rate": 0, "energies": {"lmk2d": {}}}]},
            "stage 's': learning_rate: expected a number from 1e-09 to",
        ),
        (
            {"stages": [{"name": "s", "steps": 1, "energies": {"lmk2d": {}}}] * 2},
            "stages: 's' is there twice",
        ),
        ({"batch": 0}, "batch: expected a whole number from 1 to 1000000, got 0"),
        (
            {"validation": {"share": 1.0}},
            "validation.share: expected a number from 0 to less than 1, got 1.0",
        ),
        ({"augmentation": {"missing": 2.0}}, "augmentation.missing: expected a number from 0 to 1, got 2.0"),
        ({"views": []}, "expected at least one of 'views'"),
        (
            {"data": [{"name": "a", "kind": "synthetic", "weight": 0}]},
            "data.a.weight: expected a number from 1e-09 to",
        ),
        (
            {"data": [{"name": "a", "kind": "300w"}]},
            "expected one of 300wlp, multipie, .*, pixel_face; got '300w'",
        ),
        ({"net": {"options": {"widht": 1}}}, "net.options: unknown key 'widht'; did you mean 'width'"),
    ],
)
def test_recipes_that_cannot_be_used(changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        recipe(**({"stages": None} | changes)) if "stages" not in changes else parse_regressor_training(
            BASE | changes, "tiny.yaml"
        )


def test_a_recipe_without_data_or_folders():
    with pytest.raises(InputError, match="expected at least one data set in 'data'"):
        open_parts(recipe(data=[]), MODEL)
    with pytest.raises(InputError, match="data 'lp': its folder is not set; give data.lp.folder=FOLDER"):
        open_parts(recipe(data=[{"name": "lp", "kind": "300wlp"}]), MODEL)
    with pytest.raises(InputError, match="everyone in it is held out"):
        open_parts(recipe(validation={"share": 0.999999}), MODEL, {"a": Triplets(2)})
    with pytest.raises(InputError, match="no train recipe 'mvfnt'; did you mean 'mvfnet'"):
        load_regressor_training("mvfnt")


def test_the_shipped_recipe():
    settings = load_regressor_training(
        "mvfnet", ["data.lp.folder=somewhere", "stages.supervised.epochs=2", "batch=3"]
    )
    assert (
        [s.name for s in settings.stages] == ["supervised", "self_supervised"]
        and settings.stages[0].epochs == 2
        and settings.batch == 3
    )
    assert [s.learning_rate for s in settings.stages] == [1e-5, 1e-6] and [
        s.data for s in settings.stages
    ] == [("lp",), ("pie",)]
    assert [v.name for v in settings.views] == ["front", "left", "right"] and settings.data[
        0
    ].folder == "somewhere"
    assert {"photo_xview", "flow_mag", "lmk2d"} <= set(settings.stages[1].energies)
    assert settings.stages[1].energies["flow_mag"].options.directions == "both"


def test_the_command(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from fitkit.cli.main import main
    from fitkit.train import regressor

    monkeypatch.setattr(regressor, "load_model", lambda name: MODEL)
    monkeypatch.setattr(regressor, "open_data", lambda source, model, labels: Triplets(4))
    recipe_file = tmp_path / "tiny.yaml"
    recipe_file.write_text(
        json.dumps(BASE | {"stages": [{"name": "s", "steps": 100, "energies": {"lmk2d": {}}}]})
    )
    arguments = ["train-regressor", str(recipe_file), "-q", "-o", str(tmp_path / "out"), "stages.s.steps=2"]
    result = CliRunner().invoke(main, arguments)
    assert (
        result.exit_code == 0 and f"written: {tmp_path / 'out' / 'regressor.safetensors'}" in result.output
    ), result.output
    again = CliRunner().invoke(main, arguments)
    assert (
        again.exit_code == 1
        and "continue it with --resume" in again.output
        and "Traceback" not in again.output
    )
    help_text = CliRunner().invoke(main, ["train-regressor", "--help"]).output
    assert "Example: fitkit train-regressor mvfnet" in help_text


def test_the_shipped_recipe_runs_at_a_small_size(people, tmp_path):
    small = [
        "net.options.size=48",
        "net.options.width=0.06",
        "batch=2",
        "accelerator=cpu",
        "validation.share=0",
        "pictures=0",
        "log=1",
    ]
    small += [
        f"stages.{s}.{key}" for s in ("supervised", "self_supervised") for key in ("epochs=0", "steps=2")
    ]
    settings = load_regressor_training(
        "mvfnet", [*small, "stages.self_supervised.energies.flow_mag.options.size=48"]
    )
    losses = {}
    train_regressor(
        settings,
        tmp_path / "out",
        model=MODEL,
        datasets={"lp": people, "pie": Triplets(4, labels=False)},
        make_estimator=lambda *asked: LucasKanade(),
        step_done=lambda step, values: losses.__setitem__(step, values),
    )
    assert set(losses[4]) == {*settings.stages[1].energies, "total"}
    assert all(math.isfinite(v) for values in losses.values() for v in values.values())


def test_ctrl_c_ends_the_training_and_it_goes_on(people, tmp_path):
    settings = recipe(save=2)

    def press(step, values):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regressor(settings, tmp_path / "out", model=MODEL, datasets={"a": people}, step_done=press)
    assert sorted(train(settings, tmp_path / "out", people, resume=True)[0]) == [3, 4, 5, 6, 7, 8]


# ---- networks that take any photos ----

ANY = {
    "net": {"name": "fitkit_init", "options": {"size": 32, "token": 16, "heads": 2, "hidden": 24}},
    "views": [],
    "most_views": 2,
}
UNSURE = SUPERVISED | {"identity_nll": {}, "lmk2d": {"sigma_px": 10, "weight": 0.1}}


@pytest.mark.slow
def test_a_network_without_named_views_trains_and_goes_on(people, tmp_path):
    stages = [
        {"name": "heads", "steps": 3, "learning_rate": 0.003, "free": ["heads", "sigma"], "energies": UNSURE},
        {"name": "all", "steps": 3, "learning_rate": 0.001, "energies": UNSURE},
    ]
    settings = recipe(
        stages,
        **ANY,
        batch=3,
        save=2,
        augmentation={"shift": 0.02, "missing": 0.3},
        validation={"share": 0.5, "most": 4, "flow": 2},
    )
    whole, path = train(settings, tmp_path / "whole", people)

    def stop(step, values):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regressor(settings, tmp_path / "cut", model=MODEL, datasets={"a": people}, step_done=stop)
    rest, _ = train(settings, tmp_path / "cut", people, resume=True)
    assert sorted(rest) == [5, 6] and all(
        rest[s] == whole[s] for s in rest
    )  # the second stage, with all parts free again
    assert all(values["identity_nll"] > 0 for values in whole.values())
    network = load_predictor(path, MODEL)
    before = net_kind_of(settings)
    moved = {
        k.split(".")[0]
        for k, v in network.state_dict().items()
        if v.dtype.is_floating_point
        and not torch.allclose(v.float(), before.state_dict()[k].float(), atol=1e-3, rtol=1e-3)
    }
    assert {"encoder", "identity_head"} <= moved
    metrics = json.loads((tmp_path / "whole" / "card.json").read_text())["metrics"]
    assert metrics["sigma_ratio"] > 0 and metrics["shape_mm"] <= metrics["vertex_mm"]


def net_kind_of(settings):
    from fitkit.nets import net_kind

    torch.manual_seed(settings.seed)
    return net_kind(settings.net.name).make(MODEL, settings.views, settings.net.options)


def test_samples_with_different_numbers_of_views_stand_in_one_batch():
    settings = recipe(**ANY)
    inputs = InputOptions.of(net_kind_of(settings), settings.most_views)
    samples = [
        (
            f"p{n}",
            *prepare(
                Triplets(1, views=n).samples[0].observations,
                "x",
                MODEL,
                inputs,
                PLAIN,
                np.random.default_rng(0),
            ),
        )
        for n in (1, 3)
    ]
    batch = collate(samples)
    assert batch.images.shape == (2, 2, 3, 32, 32) and batch.valid.tolist() == [[True, False], [True, True]]
    assert [p.num_views for p in batch.people] == [1, 2]
    chosen = {
        tuple(
            prepare(Triplets(1).samples[0].observations, "x", MODEL, inputs, PLAIN, np.random.default_rng(i))[
                2
            ]
            .offset[:, 0]
            .tolist()
        )
        for i in range(12)
    }
    assert len(chosen) == 3  # every pair of the three views comes up


def test_standard_deviations_need_a_network_that_predicts_them(people, tmp_path):
    with pytest.raises(
        InputError, match="energy 'identity_nll' needs a network that predicts standard deviations"
    ):
        train(recipe([{"name": "s", "steps": 1, "energies": {"identity_nll": {}}}]), tmp_path / "out", people)


def test_kept_samples_are_read_once_and_lose_no_more_than_their_last_bits():
    people = Triplets(2)
    asked = []

    class Counting(FaceDataset):
        ids, terms = people.ids, "own"

        def __len__(self):
            return 2

        def __getitem__(self, index):
            asked.append(index)
            return people[index]

    kept = KeptSamples(Counting())
    assert len(kept) == 2 and kept.ids == people.ids and kept.terms == "own"
    for _ in range(2):
        mine, theirs = kept[1].observations, people[1].observations
        assert (
            float((mine.images - theirs.images).abs().max()) <= 0.5 / 255 + 1e-6
            and mine.images.dtype == torch.float32
        )
        assert torch.equal(mine.landmarks.points, theirs.landmarks.points) and torch.equal(
            mine.labels.state.identity, theirs.labels.state.identity
        )
    assert asked == [1]


def test_a_data_set_may_hold_out_a_share_of_its_own(people):
    settings = recipe(
        data=[{"name": "a", "kind": "synthetic", "held_out": 0.4}, {"name": "b", "kind": "synthetic"}]
    )
    training, held = open_parts(settings, MODEL, {"a": people, "b": people})
    assert len(held[0].index) > 0 and len(held[1].index) == 0 and len(training[1].index) == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ANY | {"views": [{"name": "front"}]},
            "views: the network fitkit_init takes any photos, expected views: [], got front",
        ),
        ({"most_views": 0}, "most_views: expected a whole number from 1 to 1000, got 0"),
        (
            {"data": [{"name": "a", "kind": "synthetic", "held_out": 1.0}]},
            "data.a.held_out: expected a number from -1 to less than 1, got 1",
        ),
    ],
)
def test_recipes_for_any_photos_that_cannot_be_used(changes, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("]", r"\]")):
        recipe(**changes)


def test_the_shipped_recipe_of_the_initializer():
    settings = load_regressor_training("fitkit-init", ["data.synthetic.folder=people"])
    assert (
        settings.views == ()
        and settings.net.start == "builtin"
        and [s.name for s in settings.data] == ["synthetic", "clean", "frames", "fits"]
    )
    assert (
        set(settings.stages[0].energies)
        == set(settings.stages[1].energies)
        >= {"identity_nll", "lmk2d", "vertex_sup"}
    )


def test_validation_measures_how_far_the_views_disagree(people):
    """The truth itself as a network: its views agree, and no longer when the faces are turned."""
    from fitkit.geometry.rotation import so3_exp
    from fitkit.scene.pose import Pose

    class Knows(torch.nn.Module):
        def __init__(self, turn):
            super().__init__()
            self.anchor, self.turn = torch.nn.Parameter(torch.zeros(1)), turn

        def forward(self, images, valid):
            state = SceneState.join([p.labels.state for p in self.people])
            rotation = state.pose.rotation @ so3_exp(torch.tensor([[0.0, self.turn, 0.0]])).expand(
                len(state.expression), 3, 3
            )
            return Prediction(state.replace(pose=Pose(rotation, state.pose.translation)))

    settings = recipe(batch=2, validation={"share": 0.5, "most": 2, "flow": 2})
    errors = []
    for turn in (0.0, 0.12):
        network = Knows(turn)
        held = HeldOut(
            settings,
            [replace(split(settings.data[0], people, 0.0)[0], index=np.arange(2))],
            MODEL,
            type(
                "Net",
                (),
                {
                    "views": settings.views,
                    "size": 96,
                    "crop": CropOptions(1.5, 0.0, 96, 96),
                    "closer": None,
                    "camera_kind": "perspective",
                    "focal": 0.0,
                },
            ),
        )
        network.people = [p for b in held.batches() for p in b.people]
        errors.append(validate(network, MODEL, held))
    assert errors[0]["vertex_mm"] < 1e-4 and errors[0]["nme_percent"] < 0.1 and errors[0]["shape_mm"] < 1e-3
    assert errors[0]["flow_px"] < 0.6 and errors[1]["flow_px"] > 2 * errors[0]["flow_px"]


def test_a_finished_training_that_is_gone_on_with_keeps_its_numbers(tmp_path):
    people, settings = Triplets(8), recipe(validation={"share": 0.3})
    train(settings, tmp_path / "out", people)
    before = json.loads((tmp_path / "out" / "card.json").read_text())
    assert before["metrics"]["vertex_mm"] > 0
    (tmp_path / "out" / "card.json").unlink()  # killed before it was written
    (tmp_path / "out" / f"{CHECKPOINT}.part").write_bytes(b"")
    assert train(settings, tmp_path / "out", people, resume=True)[0] == {}
    after = json.loads((tmp_path / "out" / "card.json").read_text())
    after["machine"]["load_average"] = before["machine"]["load_average"]  # of the other processes
    assert after == before
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert len(set(modes.values())) == 1 and not any(n.endswith(".part") or n.startswith(".") for n in modes)


def test_folders_that_hold_something_else_are_refused(people, tmp_path):
    settings = recipe()
    (tmp_path / "recipe.yaml").write_text("# mine\nname: tiny\n")
    with pytest.raises(
        InputError,
        match="recipe.yaml: is another recipe than that of this training, which would overwrite it",
    ):
        train(settings, tmp_path, people)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds 'notes.txt', which train-regressor does not write"):
        train(settings, tmp_path, people)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.csv").write_text("mine")
    with pytest.raises(
        InputError,
        match="holds 'log.csv', which train-regressor would overwrite, but no recipe.yaml or checkpoint.ckpt",
    ):
        train(settings, tmp_path / "other", people)
    assert (tmp_path / "recipe.yaml").read_text() == "# mine\nname: tiny\n" and (
        tmp_path / "other" / "log.csv"
    ).read_text() == "mine"


def test_a_disk_that_is_full_or_read_only_is_one_sentence(people, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="recipe.yaml: cannot be written"):
        train(recipe(), tmp_path / "file" / "out", people)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        InputError,
        match=r"checkpoint.ckpt: cannot be written \(No space left on device\); make room, and go on",
    ):
        train(recipe(), tmp_path / "out", people)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
