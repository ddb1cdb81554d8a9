import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from click.testing import CliRunner
from helpers import tiny_model
from PIL import Image

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.evaluate import engine, methods
from fitkit.evaluate import predictions as prediction_files
from fitkit.evaluate.compare import compare, compare_text, mean_interval, read_report
from fitkit.evaluate.methods import Method
from fitkit.evaluate.photo_consistency import (
    held_out_errors,
    identity_spread,
    place_view,
    placing_recipe,
    share_beyond,
)
from fitkit.evaluate.predictions import read_outcome, read_prediction, write_fit
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.report import report_text, summarize, upright
from fitkit.evaluate.run import evaluate
from fitkit.export.preview import draw_error_map
from fitkit.fitting.recipe import load_recipe
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.types import Landmarks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The benchmark layout with two copies of a tiny person, and the model as a file."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = save_model_file(tiny_model(), folder / "tiny.npz")
    return layouts.bench(folder / "bench", layouts.person()), str(model)


def recipe(data, *overrides, name="bench"):
    return load_evaluate_recipe(name, ["fit=landmarks", *overrides], {"model": data[1]})


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.mark.slow
def test_predictions_then_metrics(data, tmp_path):
    lines = []
    report = evaluate(recipe(data), data[0], tmp_path, tell=lines.append)
    assert [r["id"] for r in report["rows"]] == ["multiview_00", "multiview_01"] and len(lines) == 4
    # Exact landmarks and cameras of the model itself: the fit comes close, the mean face does not.
    assert report["rows"][0]["now_mean"] < 1.0 and report["summary"][0]["failed"] == 0
    files = {p.name for p in (tmp_path / "predictions").iterdir()}
    assert {f"multiview_00.{s}" for s in ("obj", "npy", "npz", "json")} | {"recipe.yaml"} <= files
    assert not any(f.startswith(".") for f in files)
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["fit"] == "landmarks"
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["now_mean"]) == report["rows"][1]["now_mean"] and "versions" in report["machine"]
    assert Image.open(tmp_path / "error_maps" / "multiview_00.png").size[0] > 1000
    mean = evaluate(recipe(data, "predictor=mean"), data[0], tmp_path / "mean")
    assert mean["rows"][0]["now_mean"] > 1.3 * report["rows"][0]["now_mean"]
    # The same numbers from the predictions alone, in another place.
    again = evaluate(recipe(data), data[0], tmp_path / "again", tmp_path / "predictions")
    assert [r["now_mean"] for r in again["rows"]] == [r["now_mean"] for r in report["rows"]]
    assert not (tmp_path / "again" / "predictions").exists()


@pytest.mark.slow
def test_resume_makes_only_what_is_missing(data, tmp_path, monkeypatch):
    made = []
    real = Method.predict
    monkeypatch.setattr(
        Method, "predict", lambda self, name, *rest: made.append(name) or real(self, name, *rest)
    )
    settled = recipe(data, "predictor=mean")
    evaluate(settled, data[0], tmp_path, limit=1)
    with pytest.raises(InputError, match="there are predictions already; --resume goes on with them"):
        evaluate(settled, data[0], tmp_path)
    report = evaluate(settled, data[0], tmp_path, resume=True)
    assert made == ["multiview_00", "multiview_01"] and len(report["rows"]) == 2
    with pytest.raises(InputError, match="made with another recipe or model"):
        evaluate(recipe(data, "predictor=mean", "fit.seed=5"), data[0], tmp_path, resume=True)


def test_an_interrupted_prediction_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def interrupt(*args, **arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_files.np, "savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe(data, "predictor=mean"), data[0], tmp_path)
    left = {p.name for p in (tmp_path / "predictions").iterdir()}
    assert "multiview_00.json" not in left and not any(n.startswith(".") for n in left)


def test_interrupted_command_says_what_is_kept(data, tmp_path, monkeypatch):
    real, made = Method.predict, []

    def interrupt(self, name, *rest):
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return real(self, name, *rest)

    monkeypatch.setattr(Method, "predict", interrupt)
    arguments = [
        "evaluate",
        "bench",
        data[0],
        "predictor=mean",
        "fit=landmarks",
        "--model",
        data[1],
        "-o",
        tmp_path,
    ]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert (
        result.exit_code == 130
        and f"the predictions so far are in {tmp_path / 'predictions'}, --resume goes on" in result.output
    )
    assert (
        "nothing was written" not in result.output
        and (tmp_path / "predictions" / "multiview_00.json").is_file()
    )


def test_failures_are_counted_and_named(data, tmp_path, monkeypatch):
    def broken(subject, *rest):
        if subject.name == "multiview_00":
            raise FitError("no light today")
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(methods, "fit_observed", broken)
    result = run("bench", data[0], "fit=landmarks", "--model", data[1], "-o", tmp_path, "-q")
    report = read_report(tmp_path / "metrics.json")
    assert (
        result.exit_code == 1
        and "2 of 2 samples failed" in result.output
        and "failed: multiview_00: no light today" in result.output
    )
    assert [r["error"] for r in report["rows"]] == ["no light today", "unexpected ZeroDivisionError: oops"]
    assert report["summary"][0]["failed"] == 2 and "now_mean" not in report["summary"][0]


def test_means_leave_failures_out_but_say_so():
    rows = [
        {"group": "a", "status": "ok", "x": 1.0},
        {"group": "a", "status": "failed"},
        {"group": "b", "status": "ok", "x": 4.0},
        {"group": "b", "status": "missing"},
    ]
    total, a, b = summarize(rows, ["x", "y"])
    assert (total["samples"], total["failed"]) == (4, 2) and "y" not in total
    assert total["x"] == {"mean": 2.5, "std": 1.5, "median": 2.5, "scored": 2}
    assert (a["group"], a["failed"], b["x"]["mean"]) == ("a", 1, 4.0)


def test_predictions_of_others_in_the_layout_of_now(tmp_path):
    p = layouts.person()
    folder = layouts.now(tmp_path / "data", p)
    theirs = tmp_path / "theirs" / "FaMoS_1" / "selfie"
    p.mesh(theirs / "IMG_0001.ply")
    np.savetxt(theirs / "IMG_0001.txt", p.points[layouts.SEVEN])  # as the official evaluator reads it
    result = run("now", folder, "--predictions", tmp_path / "theirs", "-o", tmp_path / "out")
    report = read_report(tmp_path / "out" / "metrics.json")
    assert (
        result.exit_code == 1
        and [r["status"] for r in report["rows"]] == ["missing", "ok"]
        and report["rows"][1]["s2m_mean"] < 1e-3
    )
    (theirs / "IMG_0001.txt").unlink()
    report = evaluate(load_evaluate_recipe("now"), folder, tmp_path / "out", tmp_path / "theirs")
    assert "expected its 7 points in FaMoS_1/selfie/IMG_0001.npy or" in report["rows"][1]["error"]


def test_our_predictions_are_what_the_evaluator_of_now_reads(tmp_path):
    """v and f lines with the vertices in order, and a [7, 3] array of points in the same frame."""
    p = layouts.person()
    write_fit(p.result, tmp_path, "FaMoS_1/selfie/IMG_0001")
    stem = tmp_path / "FaMoS_1" / "selfie" / "IMG_0001"
    lines = stem.with_suffix(".obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    triangles = (
        np.array(
            [[int(c.split("/")[0]) for c in line.split()[1:]] for line in lines if line.startswith("f ")]
        )
        - 1
    )
    np.testing.assert_allclose(vertices, p.result.neutral.numpy(), atol=1e-4)
    assert np.array_equal(triangles, p.triangles)
    points = np.load(stem.with_suffix(".npy"), allow_pickle=False)
    np.testing.assert_allclose(points, p.result.landmarks3d.numpy()[layouts.SEVEN], atol=1e-4)
    back = read_prediction(tmp_path, "FaMoS_1/selfie/IMG_0001")
    assert (
        back.model == "tiny"
        and back.parameters().state.identity.shape == (1, 8)
        and back.posed.shape == (3, 315, 3)
    )


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda f: (f / "a.json").write_text("{"),
            "a.json: cannot be read; delete it to have the sample predicted again",
        ),
        (lambda f: (f / "a.npz").write_bytes(b"x"), "a.npz: cannot be read"),
        (
            lambda f: layouts.person().mesh(
                f / "a.obj", np.random.default_rng(0).normal(size=(315, 3))[:315].repeat(2, 0)
            ),
            "belongs to a mesh of 315 vertices, a.obj has 630",
        ),
        (
            lambda f: np.savez(f / "a.npz", pixels=np.zeros((3, 5, 2))),
            r"a.npz: pixels: expected shape \['B', 68, 2\], got \[3, 5, 2\]",
        ),
        (
            lambda f: np.savez(f / "a.npz", posed=np.zeros((3, 315, 3)), focal=np.ones(2)),
            r"a.npz: focal: expected shape \[3\], got \[2\]",
        ),
        (lambda f: np.savez(f / "a.npz", views=np.zeros(3)), "a.npz: views: expected text, got float64"),
        (
            lambda f: np.savez(f / "a.npz", camera_kind="fisheye"),
            "a.npz: camera_kind: expected one of perspective, orthographic; got 'fisheye'",
        ),
    ],
)
def test_broken_prediction_files(tmp_path, break_it, message):
    write_fit(layouts.person().result, tmp_path, "a")
    break_it(tmp_path)
    with pytest.raises(InputError, match=message):
        read_outcome(tmp_path, "a")
        read_prediction(tmp_path, "a")


# ---- comparing ----


def report(values, protocol="bench", **more):
    rows = [
        {
            "id": f"s{i}",
            "group": "",
            "status": "ok" if v is not None else "failed",
            "error": "",
            "now_mean": v,
        }
        for i, v in enumerate(values)
    ]
    return {
        "protocol": protocol,
        "data": "d",
        "options": {},
        "units": {"now_mean": "mm"},
        "rows": rows,
    } | more


def test_paired_comparison():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 3, 40)  # people differ more than the methods do
    result = compare(report([*base, None]), report([*(base - 0.1 + 0.02 * rng.normal(size=40)), 1.0]))
    row = result["rows"][0]
    assert row["pairs"] == 40 and row["difference"] == pytest.approx(-0.1, abs=0.01)
    assert row["low"] < row["difference"] < row["high"] < -0.08
    assert row["lower_in_second"] == 1 and result["unpaired"] == ["s40"] and result["failed"] == [1, 0]
    text = compare_text(result, ("old", "new"))
    assert "failed or missing: 1 in old, 0 in new" in text and "scored by only one: 1 (s40)" in text
    assert compare(report(base), report(base))["rows"][0]["low"] == 0


def test_interval_agrees_with_the_normal_theory_and_is_repeatable():
    values = np.random.default_rng(1).normal(2, 1, 400)
    expected = scipy.stats.norm.interval(0.95, values.mean(), values.std(ddof=1) / 20)
    np.testing.assert_allclose(mean_interval(values), expected, atol=0.012)  # a tenth of its width
    assert mean_interval(values) == mean_interval(values) and np.isnan(mean_interval(values[:1])).all()


def test_only_like_is_compared(tmp_path):
    with pytest.raises(InputError, match="expected two evaluations of one protocol, got 'bench' and 'now'"):
        compare(report([1.0]), report([1.0], "now"))
    with pytest.raises(InputError, match="differ in data or options"):
        compare(report([1.0]), report([1.0], options={"views": [0]}))
    with pytest.raises(InputError, match="no sample in common"):
        compare(report([]), report([1.0]))
    (tmp_path / "a.json").write_text("[]")
    assert (
        "not the metrics.json of an evaluation"
        in run("--compare", tmp_path / "a.json", tmp_path / "b.json").output
    )
    (tmp_path / "a.json").write_text(json.dumps({"rows": [], "units": {}}))
    assert (
        "it lacks rows with id and status, units, protocol"
        in run("--compare", tmp_path / "a.json", tmp_path / "b.json").output
    )
    wrong = report([1.0])
    wrong["rows"][0][next(iter(wrong["units"]))] = "one"
    (tmp_path / "a.json").write_text(json.dumps(wrong))
    assert "of a row is not a number" in run("--compare", tmp_path / "a.json", tmp_path / "b.json").output
    assert "give one of them" in run("bench", tmp_path, "--predictions", tmp_path, "--resume").output


# ---- command line and recipes ----


def test_command_lists_and_compares(tmp_path):
    listed = run("--list")
    assert listed.exit_code == 0 and all(
        f"\n{name} " in "\n" + listed.output for name in ("now", "micc", "facescape_lab", "aflw2000")
    )
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report([value, 3.0])))
    result = run("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert result.exit_code == 0 and "+0.5" in result.output and "now_mean" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "expected PROTOCOL and DATA"),
        (("nwo", "."), "no evaluate recipe 'nwo'; did you mean 'now'?"),
        (("now", "nowhere"), "nowhere: no such folder; expected the NoW benchmark"),
        (("bench", ".", "fit"), "'fit': expected KEY=VALUE"),
        (("bench", ".", "options.subject=[a]"), "unknown key 'subject'; did you mean 'subjects'?"),
        (("bench", ".", "protocol=nwo"), "unknown key 'nwo'; did you mean 'now'?"),
        (
            ("bench", ".", "pictures=-1"),
            "bench.yaml: pictures: expected a whole number from 0 to 1000000000, got -1",
        ),
        (("bench", ".", "fit.seeed=1"), "unknown key 'seeed'"),
        (("held_out", ".", "options.folds=1"), "folds: expected 0 .* or at least 2"),
    ],
)
def test_refusals(arguments, message):
    result = run(*arguments)
    assert result.exit_code != 0
    assert re.search(message, result.output), result.output


def test_folders_that_hold_nothing(data, tmp_path):
    with pytest.raises(InputError, match="no such folder; expected predictions, or leave --predictions out"):
        evaluate(recipe(data), data[0], tmp_path / "out", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError,
        match="no prediction for any of the 2 samples; expected files such as multiview_00.obj with",
    ):
        evaluate(recipe(data), data[0], tmp_path / "out", tmp_path / "empty")
    with pytest.raises(InputError, match="limit: expected at least 1, got 0"):
        evaluate(recipe(data), data[0], tmp_path / "out", limit=0)
    with pytest.raises(InputError, match="at least 2 photos, or a folder of such folders"):
        evaluate(recipe(data, name="held_out"), tmp_path / "empty", tmp_path / "out")


def test_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(InputError, match="unknown model 'none'"):
        evaluate(recipe(data, "model=none"), data[0], tmp_path / "out")
    assert not (tmp_path / "out" / "predictions").exists()  # so the next try is not taken for a second one
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output .*file: cannot be made .*; choose another --output"):
        evaluate(recipe(data), data[0], tmp_path / "file")
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    (tmp_path / "out" / "predictions" / "recipe.yaml").write_text("a: [")
    with pytest.raises(InputError, match="recipe.yaml: not valid YAML"):
        evaluate(recipe(data), data[0], tmp_path / "out", resume=True)


def test_an_error_of_ours_in_one_sample_does_not_cost_the_others(data, tmp_path):
    settled = recipe(data, "predictor=mean", "pictures=0")
    evaluate(settled, data[0], tmp_path)
    bench, options = PROTOCOLS["bench"], settled.protocol_options()

    class Broken(type(bench)):
        def score(self, sample, *rest):
            return super().score(sample, *rest) if sample.id == "multiview_01" else 1 / 0

    samples = bench.samples(data[0], options)
    rows, _ = engine.score_predictions(Broken(), options, samples, tmp_path / "predictions", data[1])
    assert [r["status"] for r in rows] == ["failed", "ok"] and rows[1]["now_mean"] > 0
    assert rows[0]["error"] == "unexpected ZeroDivisionError: division by zero"


# ---- pictures ----


def test_error_map_has_one_colour_scale():
    model = tiny_model()
    errors = torch.zeros(model.num_vertices)
    errors[::7] = torch.nan
    low = draw_error_map(model.mean, model.triangles, errors, 5.0)
    high = draw_error_map(model.mean, model.triangles, torch.where(torch.isnan(errors), errors, 5.0), 5.0)
    bar = slice(-92, None)
    assert np.array_equal(low[:, bar], high[:, bar])  # the scale does not follow the errors
    middle = (slice(180, 200), slice(2 * 320 + 150, 2 * 320 + 170))
    assert low[middle][..., 2].mean() > low[middle][..., 1].mean()  # blue
    assert high[middle][..., 0].mean() > 2 * high[middle][..., 2].mean()  # yellow


def test_scans_are_turned_upright():
    p = layouts.person()
    turn = upright(p.points[layouts.SEVEN])
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    seen = (p.scan - p.points[30]) @ turn.T
    tip, forehead = (p.points[30] - p.scan.mean(0)) @ turn.T, (p.points[27] - p.points[8]) @ turn.T
    assert (
        np.linalg.det(turn) == pytest.approx(1)
        and tip[2] > 30
        and forehead[1] > 30
        and seen.shape == p.scan.shape
    )
    # a corner of the mouth, both: the nose bottom lies in front of them
    for missing, most in (([5], 0.1), ([5, 6], 0.7)):
        points = p.points[layouts.SEVEN].copy()
        points[missing] = np.nan
        assert np.arccos((np.trace(upright(points) @ turn.T) - 1) / 2) < most


# ---- views that the fit has not seen ----


def one(found: Landmarks, i: int) -> Landmarks:
    return Landmarks(
        *(getattr(found, k)[i : i + 1] for k in ("points", "sigma", "valid", "confidence")), found.jaw
    )


def test_held_out_view_of_an_exact_fit():
    p = layouts.person(expression=0.0)
    result = p.result
    marks = result.landmarks
    keep = [0, 2]
    state = result.state.replace(
        subject=result.state.subject[keep],
        expression=result.state.expression[keep],
        pose=result.state.pose.select(keep),
        camera=result.state.camera.select(keep),
        illumination=result.state.illumination[keep],
    )
    found = Landmarks(
        *(getattr(marks, k)[keep] for k in ("points", "sigma", "valid", "confidence")), marks.jaw
    )
    views = [result.subject.views[i] for i in keep]
    placed = place_view(result.model, state.identity, result.subject.views[1], one(marks, 1))
    seen, _ = placed.camera.project(
        placed.pose.apply(result.model.landmark_points(placed.identity, placed.expression))
    )
    assert float((seen[0] - marks.points[1]).norm(dim=-1).mean()) < 0.5
    good = held_out_errors(result.model, state, views, found, result.subject.views[1], one(marks, 1))
    assert good.landmarks < 1 and good.flow < 0.5 and good.photo < 3 and good.covered > 0.8
    wrong = held_out_errors(
        result.model,
        state.replace(identity=-2 * state.identity),
        views,
        found,
        result.subject.views[1],
        one(marks, 1),
    )
    assert (
        wrong.landmarks > 2 * good.landmarks
        and wrong.photo > good.photo
        and wrong.flow > good.flow
        and wrong.census > good.census
    )


def test_a_face_is_placed_as_the_recipe_says_but_for_its_identity():
    """Only what mentions the identity is taken out: no option of a stage or of the recipe gets lost."""
    whole, placing = (
        load_recipe("landmarks", changes={"camera": {"kind": "orthographic"}}),
        placing_recipe("orthographic"),
    )
    assert replace(placing, stages=whole.stages) == whole and placing.stages[0] == whole.stages[0]
    assert placing.stages[0].start == "landmarks"  # not the default
    free, energies = placing.stages[1].free, placing.stages[1].energies
    assert (
        replace(placing.stages[1], free=whole.stages[1].free, energies=whole.stages[1].energies)
        == whole.stages[1]
    )
    assert {"identity", *free} == set(whole.stages[1].free)
    assert whole.stages[1].energies == energies | {
        k: whole.stages[1].energies[k] for k in ("identity_prior", "size_prior")
    }
    assert len(placing.stages) == 2 and "identity" not in free and "identity_prior" not in energies


def test_nothing_in_common_is_no_number():
    p = layouts.person()
    result, marks = p.result, p.result.landmarks
    blind = result.subject.views[0].replace(mask=np.eye(160, dtype=bool))
    state = result.state.replace(
        subject=result.state.subject[:1],
        expression=result.state.expression[:1],
        pose=result.state.pose.select([0]),
        camera=result.state.camera.select([0]),
        illumination=result.state.illumination[:1],
    )
    got = held_out_errors(result.model, state, [blind], one(marks, 0), result.subject.views[1], one(marks, 1))
    assert (
        got.covered == 0
        and got.photo is None
        and got.census is None
        and got.flow is None
        and got.landmarks < 1
    )


def test_spread_and_share_of_coefficients():
    assert identity_spread(np.zeros((2, 5))) == 0
    rng = np.random.default_rng(0)
    assert identity_spread(rng.normal(size=(2, 20000))) == pytest.approx(1, abs=0.03)  # two people
    assert share_beyond(np.array([0.0, 3.1, -4, 2])) == 0.5


@pytest.mark.slow
def test_held_out_protocol_end_to_end(data, tmp_path):
    folder = layouts.held_out(tmp_path / "people", layouts.person(views=4))
    report = evaluate(recipe(data, name="held_out"), folder, tmp_path / "out")
    assert [r["id"] for r in report["rows"]] == ["anna/fold0", "anna/fold1"]
    assert all(r["status"] != "failed" for r in report["rows"]), report["rows"]
    assert (
        report["summary"][0]["landmarks"]["mean"] < 3 and 0 < report["overall"]["identity_spread"]["anna"] < 1
    )
    assert "identity_spread" in report_text(report)
    single = evaluate(
        recipe(data, "options.folds=0", name="held_out"), folder / "anna", tmp_path / "single", limit=1
    )
    assert single["rows"][0]["id"] == "anna/fold0" and single["overall"] == {}


def test_held_out_views_see_the_detail_layer(tmp_path):
    p = layouts.person(views=4)
    folder = layouts.held_out(tmp_path / "people", p)
    protocol, options = PROTOCOLS["held_out"], load_evaluate_recipe("held_out").protocol_options()
    sample = protocol.samples(folder / "anna", options)[0]
    names = [v.name for v in sample.subject().views]
    keep = [i for i, v in enumerate(p.result.subject.views) if v.name in names]
    state = p.result.state
    state = state.replace(
        subject=state.subject[keep],
        expression=state.expression[keep],
        pose=state.pose.select(keep),
        camera=state.camera.select(keep),
        illumination=state.illumination[keep],
    )
    subject = replace(p.result.subject, views=tuple(p.result.subject.views[i] for i in keep))
    fitted = replace(
        p.result,
        state=state,
        subject=subject,
        landmarks=p.result.landmarks.select(keep),
        camera_source=p.result.camera_source[: len(keep)],
    )
    bump = 12.0 * p.result.model.face.float()
    values = []
    for displacement in (torch.zeros_like(bump), bump):
        write_fit(replace(fitted, displacement=displacement), tmp_path, "a")
        values.append(protocol.score(sample, read_prediction(tmp_path, "a"), options, p.result.model).values)
    assert (
        values[1]["photo"] > 1.2 * values[0]["photo"]
    )  # a face 12 mm too far out takes its colours from beside the right place


# ---- accuracy must not rot ----


STORED = {"now_mean": 0.220, "points_mean": 0.481, "vertex_similarity": 0.705, "region_mean": 0.208}  # mm


@pytest.mark.slow
def test_shipped_sample_is_fitted_as_well_as_before(tmp_path):
    """The shipped photos with their true shape, recipe `multiview`, model `generic`, against stored values.
    Other processors and versions of the packages shift a fit by a few hundredths of a millimetre: 20 %."""
    root = Path(__file__).resolve().parents[2] / "examples"
    people = tmp_path / "data"
    (people / "ground_truth" / "sample").mkdir(parents=True)
    (people / "sample").mkdir()
    for file in (root / "sample").iterdir():
        if file.suffix in (".jpg", ".pts"):
            (people / "sample" / file.name).write_bytes(file.read_bytes())
    for name in ("neutral.ply", "landmarks3d_neutral.npy"):
        (people / "ground_truth" / "sample" / name).write_bytes((root / "sample_truth" / name).read_bytes())
    np.save(
        people / "ground_truth" / "sample" / "face_region.npy",
        load_model("generic").face.nonzero()[:, 0].numpy(),
    )
    row = evaluate(load_evaluate_recipe("bench", ["pictures=0"]), people, tmp_path / "out")["rows"][0]
    assert row["error"] == "" and {k: v for k, v in STORED.items() if not row[k] < 1.2 * v} == {}, row


def test_folders_that_hold_something_else_are_refused(data, tmp_path):
    for name, content in (
        ("fit", ("metrics.json", "recipe.yaml", "cameras.json")),
        ("light", ("metrics.json", "parameters.npz")),
        ("mine", ("recipe.yaml",)),
    ):
        (tmp_path / name).mkdir()
        for file in content:
            (tmp_path / name / file).write_text("mine")
        for resume in (False, name == "mine"):
            with pytest.raises(
                InputError, match="output .*: holds '.*', which evaluate (does not write|would overwrite)"
            ):
                evaluate(recipe(data), data[0], tmp_path / name, resume=resume)
        assert {p.name for p in (tmp_path / name).iterdir()} == set(content)
        assert all((tmp_path / name / file).read_text() == "mine" for file in content)
