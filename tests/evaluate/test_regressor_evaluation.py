"""Trained networks through the protocols."""

import json

import layouts
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers import tiny_model

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.evaluate.predictions import read_prediction
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.fitting.network_start import predict_views
from fitkit.fitting.predict import load_trained, predict, predict_observed
from fitkit.io.options import to_plain
from fitkit.io.subject import load_subject
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.detectors import detect_landmarks

SLOTS = (ViewSlot("left", (-70.0, -15.0)), ViewSlot("middle", (-15.0, 15.0)), ViewSlot("right", (15.0, 70.0)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The benchmark layout with two copies of a tiny person, the model as a file, and a network that says
    something of each picture."""
    folder = tmp_path_factory.mktemp("regressors")
    model = save_model_file(tiny_model(), folder / "tiny.npz")
    torch.manual_seed(0)
    network = MvfNet(load_model(model), SLOTS, MvfNetOptions(size=32, width=0.06))
    for head in (network.pose_head, network.shape_head):
        torch.nn.init.normal_(head[-1].weight, std=0.3)
    save_predictor(network, "mvfnet", folder / "net.safetensors", half=False)
    layouts.bench(folder / "bench", layouts.person())
    return folder


def recipe(place, *overrides, name="bench"):
    regressor = ("predictor=regressor", f"weights={place / 'net.safetensors'}", "pictures=0")
    return load_evaluate_recipe(name, (*regressor, *overrides), {"model": str(place / "tiny.npz")})


def single(place):
    """One photo of a subject, with its landmarks."""
    subject = load_subject(place / "bench" / "multiview_00")
    subject = type(subject)(subject.name, subject.views[:1], subject.path)
    return subject, detect_landmarks(subject, "files")[0]


@pytest.fixture(scope="module")
def measured(place):
    """What the network gives for both people: the report, and its folder."""
    return evaluate(recipe(place), place / "bench", place / "measured"), place / "measured"


@pytest.mark.slow
def test_a_network_is_measured_by_what_it_predicts(place, measured):
    report, output = measured
    row = report["rows"][0]
    assert report["summary"][0]["failed"] == 0 and row["now_mean"] > 0.1
    assert row["status"] in (
        "ok",
        "doubtful",
    )  # what a fit's rules say of it does not take it out of the means
    stored = read_prediction(output / "predictions", "multiview_00")
    folder = place / "bench" / "multiview_00"
    alone = predict(folder, place / "net.safetensors", load_model(place / "tiny.npz"), "files")
    np.testing.assert_allclose(stored.vertices, alone.neutral.numpy(), atol=1e-5)
    # float32, a metre away.
    np.testing.assert_allclose(stored.posed, alone.state.pose.apply(alone.vertices).numpy(), atol=1e-3)
    made = yaml.safe_load((output / "predictions" / "recipe.yaml").read_text())
    assert (
        made["predictor"] == "regressor"
        and made["weights"] == "net.safetensors"
        and len(made["sha256"]) == 64
    )
    outcome = json.loads((output / "predictions" / "multiview_00.json").read_text())
    assert outcome["solve_seconds"] > 0 and outcome["error"] == "" and outcome["model"] == "tiny"


def test_other_weights_do_not_go_on_with_its_predictions(place, tmp_path):
    evaluate(recipe(place), place / "bench", tmp_path / "out", limit=1)
    torch.manual_seed(1)
    other = MvfNet(load_model(place / "tiny.npz"), SLOTS, MvfNetOptions(size=32, width=0.06))
    save_predictor(other, "mvfnet", tmp_path / "net.safetensors", half=False)
    changed = recipe(place, f"weights={tmp_path / 'net.safetensors'}")
    with pytest.raises(InputError, match="made with another recipe or model"):
        evaluate(changed, place / "bench", tmp_path / "out", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "device, limit", [("cpu", None), ("cpu:0", 1)]
)  # the second takes the way of a GPU: one process predicts
def test_workers_change_no_number(place, tmp_path, measured, device, limit):
    lines = []
    more = evaluate(
        recipe(place), place / "bench", tmp_path, limit=limit, tell=lines.append, device=device, workers=2
    )
    rows = measured[0]["rows"][:limit]
    assert [r["id"] for r in more["rows"]] == ["multiview_00", "multiview_01"][:limit]
    assert len(lines) == 2 * len(rows)
    for a, b in zip(rows, more["rows"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "seconds"}, abs=1e-4
        )


def test_one_photo_in_all_views(place):
    subject, found = single(place)
    trained = load_trained(place / "net.safetensors", load_model(place / "tiny.npz"))
    seen = crop_views([subject.views[0].image], [None], found, trained.network.crop)
    everywhere = seen.images.expand(3, -1, -1, -1)[None]
    want = trained.network(everywhere, torch.ones(1, 3, dtype=torch.bool)).state.identity
    alone, repeated = (
        predict_views(trained.network, trained.model, subject, found, repeat=r) for r in (False, True)
    )
    assert repeated.order == (0,) and repeated.prediction.state.num_views == 1
    torch.testing.assert_close(repeated.prediction.state.identity, want)
    assert not torch.allclose(alone.prediction.state.identity, want, atol=1e-3)
    # Its pose is that of the view that it shows.
    torch.testing.assert_close(repeated.prediction.state.pose.rotation, alone.prediction.state.pose.rotation)
    result = predict_observed(subject, found, trained, repeat=True)
    assert [v.name for v in result.subject.views] == [subject.views[0].name]


def test_a_head_that_no_view_takes_is_shown_by_the_nearest(place):
    subject, found = single(place)
    model = load_model(place / "tiny.npz")
    torch.manual_seed(0)
    far = (ViewSlot("far", (120.0, 180.0)), ViewSlot("nearer", (80.0, 110.0)))
    network = MvfNet(model, far, MvfNetOptions(size=32, width=0.06)).eval()
    with pytest.raises(InputError, match="none of its photos fits a view"):
        predict_views(network, model, subject, found)
    assert predict_views(network, model, subject, found, repeat=True).prediction.state.num_views == 1


@pytest.mark.slow
def test_repeat_is_for_one_photo_and_named_views(place, tmp_path):
    report = evaluate(recipe(place, "repeat=true"), place / "bench", tmp_path / "several")
    assert "repeat: expected one photo to be put into all views of" in report["rows"][0]["error"]
    assert ", got 3; leave repeat out, or give one photo" in report["rows"][0]["error"]
    report = evaluate(recipe(place, "repeat=true", "options.views=[1]"), place / "bench", tmp_path / "one")
    assert report["rows"][0]["now_mean"] > 0
    model = load_model(place / "tiny.npz")
    any_photos = FitkitInit(model, (), FitkitInitOptions(size=32))
    save_predictor(any_photos, "fitkit_init", tmp_path / "any.safetensors")
    settled = recipe(place, "repeat=true", "options.views=[1]", f"weights={tmp_path / 'any.safetensors'}")
    with pytest.raises(InputError, match="expected a network with named views"):  # once, not for each sample
        evaluate(settled, place / "bench", tmp_path / "any")


def test_the_model_is_that_of_the_weights(place, tmp_path):
    settled = load_evaluate_recipe("now", ["predictor=regressor"])
    assert settled.model == "generic" and settled.weights == "" and to_plain(settled)["repeat"] is False
    elsewhere = save_model_file(tiny_model(), tmp_path / "another.npz")
    assert load_evaluate_recipe("now", ["predictor=regressor"], {"model": str(elsewhere)}).model == str(
        elsewhere
    )
    wrong = load_evaluate_recipe(
        "bench", ["predictor=regressor", f"weights={place / 'net.safetensors'}"], {"model": "generic"}
    )
    with pytest.raises(InputError, match="expected face model 'tiny' with .* got 'generic'"):
        evaluate(wrong, place / "bench", tmp_path / "out")
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("weights=net.safetensors",),
            "weights, repeat, part and pose are for predictor=regressor, got predictor=fit",
        ),
        (
            ("predictor=mean", "repeat=true"),
            "weights, repeat, part and pose are for predictor=regressor, got predictor=mean",
        ),
        (("predictor=regressor", "weights=none.safetensors"), "none.safetensors"),
        (("predictor=network",), "predictor: expected"),
        (("--workers", "0"), "workers: expected at least 1, got 0"),
        (("--device", "abacus"), "device 'abacus': cannot be used here"),
    ],
)
def test_refusals(place, tmp_path, arguments, message):
    result = CliRunner().invoke(
        main, ["evaluate", "bench", str(place / "bench"), "-o", str(tmp_path / "out"), *arguments]
    )
    assert result.exit_code != 0 and message in result.output, result.output


def test_the_command(place, tmp_path):
    arguments = ["bench", place / "bench", "predictor=regressor", f"weights={place / 'net.safetensors'}"]
    arguments += ["--model", place / "tiny.npz", "--limit", "1", "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0 and "now_mean" in result.output, result.output
