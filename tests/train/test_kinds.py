"""Networks that give no scene state: depth maps, position maps, parses. Each is trained for some steps on
rendered people and predicts."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_nets import registered
from test_regressor_training import BASE, MODEL, Triplets, one_thread, train, with_maps  # noqa: F401

from fitkit.data.face_dataset import Sample
from fitkit.energies.masks import PARSE
from fitkit.errors import InputError
from fitkit.nets import load_predictor, read_about
from fitkit.observe.label_crops import in_crop
from fitkit.render.rasterizer import rasterize
from fitkit.train.regressor import open_parts, train_regressor
from fitkit.train.regressor_recipe import parse_regressor_training
from fitkit.train.validation import HeldOut, validate


def labelled(sample):
    """With depth, points in the picture, and a parse: skin, and the mouth where the mouth is. All heads are
    600 mm away: how far a face is that fills its crop, no picture tells."""
    seen = with_maps(sample.observations)
    state = seen.labels.state
    camera_points = state.pose.apply(MODEL.landmarks.points(state.vertices(MODEL), MODEL.triangles))
    drawn = rasterize(state.camera.clip(state.pose.apply(state.vertices(MODEL))), MODEL.triangles, seen.size)
    place = MODEL.mean[MODEL.triangles].mean(1)
    mouth = (place[:, 1] < -50) & (place[:, 2] > 0)
    part = torch.where(mouth, PARSE.index("mouth"), PARSE.index("skin"))
    parse = torch.where(drawn.covered, part[drawn.triangle.clamp_min(0)], 0)
    depth = torch.where(drawn.covered, drawn.depth - state.pose.translation[:, 2, None, None] + 600, 0)
    labels = replace(seen.labels, depth=depth, parse=parse, crop_points=in_crop(camera_points, state.camera))
    return Sample(sample.id, replace(seen, labels=labels))


@pytest.fixture(scope="module")
def people():
    out = Triplets(8)
    out.samples = [labelled(s) for s in out.samples]
    return out


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    registered(monkeypatch)


def recipe(net, energies, steps=120, **changes):
    stage = {"name": "s", "steps": steps, "learning_rate": 0.01, "energies": energies}
    settings = {
        "net": {"name": net},
        "views": [],
        "stages": [stage],
        "save": steps,
        "batch": 4,
        "most_views": 2,
    }
    return parse_regressor_training(BASE | settings | changes, "small.yaml")


KINDS = {
    # energies; what validation measures, and what it has to reach: a flat face at the right distance is 14 mm
    # off, and a picture of nothing but skin 59 %
    "small_depth": (
        {"depth_sup": {"sigma_mm": 20, "kernel": {"name": "l1"}}},
        "depth_mm",
        lambda v: v < 13.5,
    ),
    "small_positions": ({"lmk_posmap": {"sigma_px": 2}}, "nme_percent", lambda v: v < 12),
    "small_parser": ({"parse_sup": {}}, "parse_percent", lambda v: v > 75),
}


@pytest.mark.parametrize("net", KINDS)
def test_a_network_learns_what_it_gives_and_predicts_it(net, people, tmp_path):
    energies, measure, good = KINDS[net]
    settings = recipe(net, energies, pictures=120, validation={"share": 0.3})
    training, held = open_parts(settings, MODEL, {"a": people})
    assert len(held[0].index)
    losses, path = train(settings, tmp_path, people)
    assert losses[120]["total"] < 0.5 * losses[1]["total"]
    card = json.loads((tmp_path / "card.json").read_text())
    assert good(card["metrics"][measure]), card["metrics"]
    assert card["gives"] == list(read_about(path)["gives"]) and card["gives"] != ["state"]
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert float(rows[-1][measure]) == pytest.approx(card["metrics"][measure], rel=1e-4)
    assert (tmp_path / "pictures" / "step_0000120.png").is_file()
    # The weights know how to build the network again, without any face model.
    again = load_predictor(path)
    metrics = validate(again, MODEL, HeldOut(settings, held, MODEL, again))
    assert metrics[measure] == pytest.approx(card["metrics"][measure], rel=0.02, abs=0.05)  # half precision


@pytest.mark.parametrize("net", KINDS)
def test_an_interrupted_training_goes_on(net, people, tmp_path):
    settings = recipe(net, KINDS[net][0], steps=4, save=2)
    whole, _ = train(settings, tmp_path / "whole", people)

    def stop(step, values):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regressor(settings, tmp_path / "cut", model=MODEL, datasets={"a": people}, step_done=stop)
    assert train(settings, tmp_path / "cut", people, resume=True)[0] == {s: whole[s] for s in (3, 4)}


def test_an_energy_of_something_that_the_network_does_not_give_is_refused(people, tmp_path):
    with pytest.raises(
        InputError,
        match=r"energy 'lmk2d' needs a network that predicts a scene \(state\), and this one gives depth",
    ):
        train(recipe("small_depth", {"lmk2d": {}}, steps=1), tmp_path, people)


def test_it_is_refused_before_the_stages_in_front_of_it_are_trained(people, tmp_path):
    stages = [
        {"name": "first", "steps": 1, "energies": {"depth_sup": {}}},
        {"name": "second", "steps": 1, "energies": {"lmk_posmap": {}}},
    ]
    settings = recipe("small_depth", {"depth_sup": {}}, steps=1, stages=stages)
    steps = []
    with pytest.raises(InputError, match="stage 'second': energy 'lmk_posmap' needs a network that predicts"):
        train_regressor(
            settings, tmp_path, model=MODEL, datasets={"a": people}, step_done=lambda *s: steps.append(s)
        )
    assert steps == []


def test_frames_without_poses_cannot_be_compared(people, tmp_path):
    with pytest.raises(InputError, match="comparing frames of a person needs their poses"):
        train(recipe("small_depth", {"ssim_xview": {}, "depth_sup": {}}, steps=1), tmp_path, people)


def test_the_picture_shows_a_panel_for_each_part(people):
    from small_nets import SmallDepth, SmallParser, SmallPositions

    from fitkit.nets.predictor import Prediction
    from fitkit.train.pictures import draw_batch

    images, valid = torch.rand(1, 2, 3, 32, 32), torch.tensor([[True, False]])
    given = [kind()(images, valid) for kind in (SmallDepth, SmallPositions, SmallParser)]
    both = Prediction(depth=given[0].depth, position_map=given[1].position_map, parse=given[2].parse)
    with torch.no_grad():
        picture = draw_batch(images, valid, both, MODEL)
        alone = draw_batch(images, valid, given[0], MODEL)
    assert picture.shape == (32, 2 * 4 * 32, 3) and alone.shape == (32, 2 * 2 * 32, 3)
    photo = (images[0, 0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(picture[:, :32], photo) and not np.array_equal(picture[:, 32:64], photo)
    assert np.array_equal(picture[:, 128:160], picture[:, 160:192])  # the missing view stays as it is
