"""The true pose, identity or expression in the place of the predicted one."""

import shutil
from dataclasses import replace

import layouts
import numpy as np
import pytest
import torch
from helpers import write_pts

from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model
from fitkit.scene.parameters import Parameters
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

PROTOCOL = PROTOCOLS["true_parts"]
TRUE = {part: f"nme_2d_true_{part}" for part in ("pose", "identity", "expression")}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A rendered person in two photos."""
    folder = tmp_path_factory.mktemp("rendered") / "people"
    recipe = load_synth_recipe("clean", ["size=64", "views=2", "expression=per_view", "poses=random"])
    write_subjects(recipe, 1, folder)
    return folder


def prediction(sample, state, model, views=None):
    names = [v.name for v in sample.subject().views] if views is None else views
    stored = Parameters(
        state,
        model.name,
        model.expression_names,
        sample.id,
        tuple(names),
        np.full((len(names), 2), 64),
        ("estimated",) * len(names),
    )
    return PredictedFace(sample.id, views=np.array(names, str), parameters=lambda: stored)


def wrong(state, part):
    """A scene with one part that is not true."""
    if part == "pose":
        pose = state.pose
        return state.replace(pose=replace(pose, translation=pose.translation + torch.tensor([6.0, 0, 0])))
    value = getattr(state, part)
    return state.replace(**{part: value + 0.4})


def test_the_error_goes_with_the_part_it_comes_from(people):
    model, options = load_model("generic"), PROTOCOL.options()
    (sample,) = PROTOCOL.samples(people, options)
    truth = sample.truth().state(model)
    exact = PROTOCOL.score(sample, prediction(sample, truth, model), options, "generic").values
    assert exact == pytest.approx(dict.fromkeys(("nme_2d", *TRUE.values()), 0.0), abs=1e-3)
    for part, name in TRUE.items():
        face = prediction(sample, wrong(truth, part), model)
        got = PROTOCOL.score(sample, face, options, "generic").values
        assert got["nme_2d"] > 0.3 and got[name] == pytest.approx(0.0, abs=1e-3), part
        others = [got[n] for p, n in TRUE.items() if p != part]
        assert others == pytest.approx([got["nme_2d"]] * 2), part


def test_photos_go_by_their_names(people):
    """A prediction of the second photo alone, or of both in another order."""
    model, options = load_model("generic"), PROTOCOL.options()
    (sample,) = PROTOCOL.samples(people, options)
    truth, names = sample.truth().state(model), [v.name for v in sample.subject().views]
    turned = prediction(sample, truth.select([1, 0]), model, names[::-1])
    assert PROTOCOL.score(sample, turned, options, "generic").values["nme_2d"] < 1e-3
    one = PROTOCOL.options(views=(1,))
    (sample,) = PROTOCOL.samples(people, one)
    second = prediction(sample, truth.select([1]), model)
    assert PROTOCOL.score(sample, second, one, "generic").values["nme_2d"] < 1e-3
    assert [v.name for v in sample.subject().views] == names[1:]


def test_gains():
    rows = [
        {"nme_2d": 5.0, TRUE["pose"]: 1.0, TRUE["identity"]: 4.0, TRUE["expression"]: 5.0},
        {"nme_2d": 7.0, TRUE["pose"]: 1.0, TRUE["identity"]: 6.0, TRUE["expression"]: 8.0},
    ]
    assert PROTOCOL.summarize(rows, {}, None) == {
        "gain of the true pose": 5.0,
        "gain of the true identity": 1.0,
        "gain of the true expression": -0.5,
        "pose over the others": 5.0,
    }
    assert PROTOCOL.summarize([{"nme_2d": None}], {}, None) == {}


@pytest.mark.slow
def test_a_network_on_rendered_people(people, tmp_path):
    given = ["predictor=regressor", "fit.landmarks.source=files"]
    report = evaluate(load_evaluate_recipe("true_parts", given), people, tmp_path / "out")
    row, overall = report["rows"][0], report["overall"]
    assert row["error"] == "" and all(0 < row[name] < 10 for name in ("nme_2d", *TRUE.values()))
    assert len({row[name] for name in ("nme_2d", *TRUE.values())}) == 4
    assert overall["gain of the true pose"] == pytest.approx(row["nme_2d"] - row[TRUE["pose"]])


def test_labels_of_aflw_are_coefficients_of_a_model_of_their_mesh(tmp_path):
    p = layouts.person(kind="orthographic")
    layouts.aflw2000(tmp_path / "data", p, yaws=(10.0,))
    layouts.aflw2000_model(tmp_path / "data", p, tmp_path)
    write_pts(tmp_path / "data" / "image00000.pts", p.result.landmarks.points[0].numpy())
    model = save_model_file(p.result.model, tmp_path / "tiny.npz")
    options = PROTOCOL.options(bfm=str(tmp_path))
    (sample,) = PROTOCOL.samples(tmp_path / "data", options)
    assert (sample.id, sample.group) == ("image00000", "yaw 30-60")
    state = p.result.state.select([0])
    face = prediction(sample, state, p.result.model)
    got = PROTOCOL.score(sample, face, options, str(model)).values
    assert got["nme_2d"] < 0.05  # float32 and least squares
    face = prediction(sample, wrong(state, "identity"), p.result.model)
    got = PROTOCOL.score(sample, face, options, str(model)).values
    assert got["nme_2d"] > 0.3 and got[TRUE["identity"]] < 0.05


def test_refusals(people, tmp_path):
    with pytest.raises(
        InputError, match="expected a folder of fitkit synth; of AFLW2000-3D give options.bfm"
    ):
        PROTOCOL.samples(tmp_path, PROTOCOL.options())
    (sample,) = PROTOCOL.samples(people, PROTOCOL.options())
    model = load_model("generic")
    truth = sample.truth().state(model)
    p = layouts.person()
    with pytest.raises(InputError, match="made of face model 'generic', the training has 'tiny'"):
        sample.truth().state(p.result.model)
    with pytest.raises(InputError, match="the prediction has no parameters"):
        bare = PredictedFace(sample.id, views=np.array(["view0"]))
        PROTOCOL.score(sample, bare, PROTOCOL.options(), "generic")
    folder = tmp_path / "more"
    shutil.copytree(people, folder)
    photo = next((folder / sample.id).glob("view1.*g"))
    shutil.copy(photo, photo.with_name(f"view2{photo.suffix}"))
    (more,) = PROTOCOL.samples(folder, PROTOCOL.options())
    with pytest.raises(InputError, match="expected 2 photos, as many as labels, got 3"):
        PROTOCOL.score(more, prediction(sample, truth, model), PROTOCOL.options(), "generic")
