import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_model, tiny_result
from PIL import Image
from scipy.spatial.transform import Rotation

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.evaluate import methods
from fitkit.evaluate.bench import speed as speeds
from fitkit.evaluate.bench.accuracy import MEAN_FACE, accuracy, accuracy_text, summarize
from fitkit.evaluate.bench.photos import load_views, spread_positions
from fitkit.evaluate.bench.scores import ERRORS, same_topology, score_neutral
from fitkit.evaluate.bench.speed import many_views, speed, speed_text
from fitkit.evaluate.bench.truth import Truth, load_truth
from fitkit.evaluate.predictions import PredictedFace
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.io.mesh_files import write_ply
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model

PEOPLE = ("anna", "ben")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tiny people in the layout of the benchmark data, and the model they are made of as a file."""
    folder = tmp_path_factory.mktemp("bench")
    model = tiny_model()
    for seed, name in enumerate(PEOPLE, 1):
        result = tiny_result(seed=seed, views=4, model=model)
        (folder / name).mkdir()
        for i, view in enumerate(result.subject.views):
            Image.fromarray(view.image).save(folder / name / f"view{i}.jpg", quality=95)
            points = result.landmarks.points[i].double().numpy()
            (folder / name / f"view{i}.pts").write_text(
                "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x + 1} {y + 1}" for x, y in points) + "\n}\n"
            )
        truth = folder / "ground_truth" / name
        truth.mkdir(parents=True)
        write_ply(truth / "neutral.ply", result.neutral, model.triangles)
        np.save(truth / "landmarks3d_neutral.npy", result.landmarks3d.numpy())
        np.save(truth / "face_region.npy", model.face.nonzero()[:, 0].numpy().astype(np.int32))
        if name == "anna":  # of ben nothing is known about the face in the photos
            for i, vertices in enumerate(result.vertices):
                write_ply(truth / f"view{i}.ply", vertices, model.triangles)
                np.save(
                    truth / f"landmarks3d_view{i}.npy",
                    model.landmarks.points(vertices[None], model.triangles)[0].numpy(),
                )
    return folder, str(save_model_file(model, folder.parent / "tiny.npz"))


def face(truth: Truth, **changes) -> PredictedFace:
    """The truth as a prediction, with some changes."""
    parts = {"vertices": truth.vertices, "triangles": truth.triangles, "landmarks": truth.landmarks}
    return PredictedFace("anna", **(parts | changes))


def score(prediction: PredictedFace, truth: Truth) -> dict[str, float | None]:
    return score_neutral(prediction, truth).values


def moved(truth: Truth, scale: float) -> PredictedFace:
    R, t = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix(), [5.0, -60.0, 30.0]
    return face(truth, vertices=scale * truth.vertices @ R.T + t, landmarks=scale * truth.landmarks @ R.T + t)


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_truth_scores_zero_after_any_similarity(data, scale):
    truth = load_truth(data[0] / "ground_truth" / "anna")
    got = score(moved(truth, scale), truth)
    for key in ("now_mean", "now_median", "points_mean", "vertex_similarity"):
        assert got[key] < 1e-4, key  # the .npy landmarks are float32
    assert got["size_percent"] == pytest.approx(100 * (scale - 1), abs=1e-3)
    # a rigid motion cannot undo the scale: what is left is the spread of the face about its centre
    face = truth.vertices[truth.face]
    left = (scale - 1) * np.linalg.norm(face - face.mean(0), axis=1).mean()
    assert got["vertex_rigid"] == pytest.approx(left, abs=1e-4)


def test_score_grows_with_the_offset_along_the_surface_normal(data):
    truth = load_truth(data[0] / "ground_truth" / "anna")
    bumps = np.random.default_rng(0).normal(size=(len(truth.vertices), 3))
    small, large = (face(truth, vertices=truth.vertices + a * bumps) for a in (0.3, 1.5))
    assert 0 < score(small, truth)["now_mean"] < score(large, truth)["now_mean"]
    assert (
        score(small, truth)["now_mean"] <= score(small, truth)["points_mean"] + 1e-9
    )  # refined is never worse in rms; nearly so in mean


def test_other_topology_has_no_vertex_error(data):
    truth = load_truth(data[0] / "ground_truth" / "anna")
    fewer = face(truth, triangles=truth.triangles[5:])
    assert score(fewer, truth)["vertex_similarity"] is None and score(fewer, truth)["now_mean"] is not None


def test_same_topology_ignores_order_and_further_vertices(data):
    truth = load_truth(data[0] / "ground_truth" / "anna")
    turned = np.roll(truth.triangles[::-1], 1, axis=1)
    beyond = np.concatenate(
        [turned, [[len(truth.vertices), len(truth.vertices) + 1, len(truth.vertices) + 2]]]
    )
    assert same_topology(beyond, truth)
    assert not same_topology(np.concatenate([truth.triangles[:-1], [[0, 1, 300]]]), truth)


@pytest.fixture(scope="module")
def measured(data):
    """The fits of both people, and what was told of them."""
    lines = []
    return accuracy(data[0], [data[1]], ["landmarks"], tell=lines.append), lines


@pytest.mark.slow
def test_accuracy_finds_the_people(measured):
    report, lines = measured
    assert [(r["recipe"], r["subject"]) for r in report["rows"]] == [
        (recipe, name) for recipe in (MEAN_FACE, "landmarks") for name in PEOPLE
    ]
    mean, fitted = report["summary"]
    assert (
        fitted["now_mean"] < 0.7 * mean["now_mean"]
        and fitted["vertex_similarity"] < 0.7 * mean["vertex_similarity"]
    )
    rows = [r for r in report["rows"] if r["recipe"] == "landmarks"]
    assert fitted["now_mean"] == pytest.approx(np.mean([r["now_mean"] for r in rows]))
    assert all(r["seconds"] > 0 and r["views"] == 4 and r["status"] for r in rows) and len(lines) == len(rows)
    assert (
        report["recipes"]["landmarks"]["stages"]
        and report["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    text = accuracy_text(report)
    assert "anna" in text and f"{fitted['now_mean']:.3f}" in text
    json.dumps(report, allow_nan=False)


def test_subjects_and_views_are_selected(data):
    report = accuracy(data[0], [data[1]], ["landmarks"], subjects=["ben"], views=[0, 3])
    assert {r["subject"] for r in report["rows"]} == {"ben"} and {r["views"] for r in report["rows"]} == {2}


@pytest.mark.parametrize(
    "count, number, want",
    [
        (5, 1, [2]),
        (5, 2, [1, 3]),
        (5, 3, [0, 2, 4]),
        (5, 4, [0, 1, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (8, 1, [4]),
        (8, 2, [2, 6]),
        (8, 3, [1, 4, 6]),
        (1, 1, [0]),
    ],
)
def test_photos_are_spread_evenly(count, number, want):
    assert spread_positions(count, number) == want


@pytest.mark.slow
def test_numbers_of_photos_are_compared(data):
    lines = []
    report = accuracy(data[0], [data[1]], ["landmarks"], tell=lines.append, photos=[1, 3])
    keys = [(r["recipe"], r["photos"], r["views"], r["subject"]) for r in report["rows"]]
    assert keys == [
        (MEAN_FACE, None, 3, "anna"),
        (MEAN_FACE, None, 3, "ben"),
        *(("landmarks", n, n, name) for n in (1, 3) for name in PEOPLE),
    ]
    assert report["photos"] == [1, 3] and report["view_positions"] is None
    assert [(s["recipe"], s["photos"]) for s in report["summary"]] == [
        (MEAN_FACE, None),
        ("landmarks", 1),
        ("landmarks", 3),
    ]
    assert len(lines) == 4 and lines[0].startswith("tiny landmarks anna, 1 photo: ")
    same = accuracy(data[0], [data[1]], ["landmarks"], ["anna"], views=spread_positions(4, 3))["rows"][1]
    assert {k: report["rows"][4][k] for k in ERRORS} == {k: same[k] for k in ERRORS}
    text = accuracy_text(report)
    assert "Medians over the subjects" in text and "photos_mean" in text
    json.dumps(report, allow_nan=False)


@pytest.mark.slow
def test_rows_hold_the_photos_error_and_what_the_fit_says_of_itself(data, measured):
    report = measured[0]
    anna, ben = report["rows"][2:]
    assert anna["photos_median"] < anna["photos_mean"] < 0.7 * report["rows"][0]["photos_mean"]
    assert ben["photos_mean"] is None and report["summary"][1]["photos_mean"] == anna["photos_mean"]
    result = fit_observed(*load_views(data[0] / "anna"), load_model(data[1]), load_recipe("landmarks"))
    assert anna["status"] == result.status
    assert anna["error_bar_mm"] == pytest.approx(
        float(result.vertex_sigma[result.model.face].median()), rel=1e-5
    )
    assert anna["expected_mm"] == result.metrics["verdict"].get("expected_mm")
    assert report["rows"][0]["error_bar_mm"] is None  # a mean face says nothing


def test_summary_has_medians_over_the_subjects():
    rows = [
        {
            "model": "m",
            "recipe": "r",
            "subject": str(i),
            **dict.fromkeys(ERRORS, e),
            "photos_mean": None,
            "seconds": 1.0,
        }
        for i, e in enumerate((1.0, 2.0, 6.0, None))
    ]
    (line,) = summarize(rows)
    assert line["now_mean"] == 3.0 and line["medians"]["now_mean"] == 2.0 and line["failed"] == 1
    assert line["photos_mean"] is None and line["medians"]["photos_mean"] is None


@pytest.mark.slow
def test_kept_predictions_are_not_made_again(data, tmp_path, monkeypatch):
    first = accuracy(data[0], [data[1]], ["landmarks"], ["anna"], photos=[2], keep=tmp_path)
    assert (tmp_path / "tiny" / "landmarks" / "2" / "anna.obj").is_file()
    assert (tmp_path / "tiny" / MEAN_FACE / "all" / "anna.json").is_file()
    monkeypatch.setattr(methods, "fit_observed", lambda *args: pytest.fail("a fit was made again"))
    again = accuracy(data[0], [data[1]], ["landmarks"], ["anna"], photos=[2], keep=tmp_path)
    assert again["rows"] == first["rows"] and again["summary"] == first["summary"]
    with pytest.raises(InputError, match="made with another recipe or model, or from other photos"):
        accuracy(data[0], [data[1]], ["landmarks"], ["anna"], overrides=["seed=5"], photos=[2], keep=tmp_path)


@pytest.mark.slow
def test_a_fit_that_says_that_it_failed_is_measured(data, monkeypatch):
    real, odd = methods.outcome_of, {"status": "failed", "error": "the fit failed: odd"}
    monkeypatch.setattr(methods, "outcome_of", lambda result: replace(real(result), **odd))
    row = accuracy(data[0], [data[1]], ["landmarks"], ["anna"])["rows"][1]
    assert row["status"] == "failed" and row["error"] == "" and row["now_mean"] > 0


@pytest.mark.slow
def test_failed_fits_are_counted(data, monkeypatch):
    def broken(subject, *rest):
        raise FitError("no light today") if subject.name == "anna" else FitError("too dark")

    monkeypatch.setattr(methods, "fit_observed", broken)
    report = accuracy(data[0], [data[1]], ["landmarks"])
    assert report["summary"][1]["failed"] == 2 and report["summary"][1]["now_mean"] is None
    text = accuracy_text(report)
    assert "all 2, 2 failed" in text and "anna: no light today" in text


def test_summary_states_the_gain_on_landmarks():
    def row(recipe, error):
        return {
            "model": "m",
            "recipe": recipe,
            "subject": "s",
            **dict.fromkeys(ERRORS, error),
            "seconds": 1.0,
            "cpu_seconds": 1.0,
        }

    gains = {
        s["recipe"]: s["gain_on_landmarks"]
        for s in summarize([row(MEAN_FACE, 3.0), row("landmarks", 2.0), row("multiview", 1.5)])
    }
    assert gains == {MEAN_FACE: None, "landmarks": None, "multiview": 0.25}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d, m: accuracy(d / "nowhere", [m]), "no such folder"),
        (lambda d, m: accuracy(d / "anna", [m]), "no SUBJECT/ folder with a ground_truth"),
        (lambda d, m: accuracy(d, [m], subjects=["carla"]), "no subject 'carla'; there are: anna, ben"),
        (lambda d, m: accuracy(d, [m], views=[4]), "views: expected numbers from 0 to 3"),
        (lambda d, m: accuracy(d, [m], photos=[1, 5]), "anna: photos: expected a number from 1 to 4, got 5"),
        (lambda d, m: accuracy(d, [m], photos=[0]), "anna: photos: expected a number from 1 to 4, got 0"),
        (lambda d, m: accuracy(d, [m], photos=[2], views=[0]), "views, photos: expected one of them"),
        (lambda d, m: speed(d / "anna", m, "landmarks", parts=["fit", "raster"]), "got 'raster'"),
        (lambda d, m: speed(d / "anna", m, "landmarks", repeats=0), "repeats: expected at least 1"),
    ],
)
def test_refusals(data, call, message):
    with pytest.raises(InputError, match=message):
        call(*data)


def test_truth_of_wrong_shape_is_refused(data, tmp_path):
    for name in ("neutral.ply", "landmarks3d_neutral.npy", "face_region.npy"):
        (tmp_path / name).write_bytes((data[0] / "ground_truth" / "anna" / name).read_bytes())
    np.save(tmp_path / "face_region.npy", np.array([0, 100000]))
    with pytest.raises(InputError, match="face_region.npy: expected indices of the 315 vertices"):
        load_truth(tmp_path)
    np.save(tmp_path / "landmarks3d_neutral.npy", np.zeros((51, 3)))
    with pytest.raises(InputError, match=r"expected \[68, 3\], got \[51, 3\]"):
        load_truth(tmp_path)
    (tmp_path / "landmarks3d_neutral.npy").unlink()
    with pytest.raises(InputError, match="landmarks3d_neutral.npy: cannot be read"):
        load_truth(tmp_path)


@pytest.mark.slow
def test_speed_reports_every_part(data, monkeypatch):
    monkeypatch.setattr(speeds, "VIEW_COUNTS", (2, 4))
    quick = load_recipe("landmarks", changes={"name": "adam"})
    monkeypatch.setattr(
        speeds, "load_recipe", lambda name, *rest: quick if name == "adam" else load_recipe(name, *rest)
    )
    monkeypatch.setattr(speeds, "many_views", partial(many_views, size=96))

    report = speed(data[0] / "anna", data[1], "landmarks", views=[0, 1, 3], repeats=2)
    assert (
        len(report["fit"]["runs"]) == 2
        and report["fit"]["fastest"] <= report["fit"]["seconds"] <= report["fit"]["slowest"]
    )
    assert report["adam"]["times_slower"] > 0 and report["adam"]["errors"]["vertex_similarity"] is not None
    assert [r["views"] for r in report["per_view"]["rows"]] == [2, 4] and report["per_view"]["ratio"] > 0
    assert report["rasterizer"]["torch"]["z_buffer_ms"] > 0 and 0.2 < report["rasterizer"]["covered"] < 1
    text = speed_text(report)
    for part in ("times slower", "seconds per view", "rasterizer, 512 x 512 px"):
        assert part in text


def test_many_views_show_one_person():
    model = tiny_model()
    (few, few_marks), (many, many_marks) = many_views(model, 2, 96), many_views(model, 5, 96)
    assert len(few.views) == 2 and len(many.views) == 5
    assert few.views[0].image.shape == (96, 96, 3)
    # the first view looks the same way in both, only the noise of the landmarks differs
    assert float((few_marks.points[0] - many_marks.points[0]).norm(dim=-1).mean()) < 5


@pytest.mark.slow
def test_command_prints_and_writes(data, tmp_path):
    path = tmp_path / "results" / "accuracy.json"
    run = CliRunner().invoke(
        main,
        [
            "bench",
            "accuracy",
            str(data[0]),
            "--model",
            data[1],
            "--recipe",
            "landmarks",
            "--subjects",
            "anna",
            "--views",
            "0,1,2",
            "--json",
            str(path),
            "expression.shared=true",
        ],
    )
    assert run.exit_code == 0, run.output
    assert "Means over the subjects" in run.output and "torch threads" in run.output
    written = json.loads(path.read_text())
    assert written["recipes"]["landmarks"]["expression"]["shared"] is True and written["view_positions"] == [
        0,
        1,
        2,
    ]
    assert str(data[0]) not in path.read_text()  # no absolute paths in results


def test_command_takes_numbers_of_photos(data):
    run = CliRunner().invoke(
        main,
        [
            "bench",
            "accuracy",
            str(data[0]),
            "--model",
            data[1],
            "--recipe",
            "landmarks",
            "--subjects",
            "ben",
            "--photos",
            "2,1",
        ],
    )
    assert run.exit_code == 0, run.output
    assert "landmarks ben, 2 photos: " in run.output and "landmarks ben, 1 photo: " in run.output
    run = CliRunner().invoke(main, ["bench", "accuracy", str(data[0]), "--photos", "two"])
    assert run.exit_code == 2 and "expected numbers like" in run.output


def test_command_says_what_is_wrong(data, tmp_path):
    run = CliRunner().invoke(main, ["bench", "accuracy", str(tmp_path / "none"), "--model", data[1]])
    assert run.exit_code == 1 and "no such folder" in run.output and "Traceback" not in run.output
    run = CliRunner().invoke(main, ["bench", "accuracy", str(data[0]), "--views", "a,b"])
    assert run.exit_code == 2 and "expected numbers like 0,2,4" in run.output


@pytest.mark.slow
def test_command_fails_when_a_fit_failed(data, monkeypatch):
    def broken(*args):
        raise FitError("too dark")

    monkeypatch.setattr(methods, "fit_observed", broken)
    run = CliRunner().invoke(
        main, ["bench", "accuracy", str(data[0]), "--model", data[1], "--recipe", "landmarks"]
    )
    assert run.exit_code == 1 and "too dark" in run.output and "some fits failed" in run.output


def test_adam_recipe_is_what_the_benchmark_states():
    recipe = load_recipe("adam")
    assert recipe.crop.max_size == recipe.crop.min_size == 224
    assert [(s.solver.name, s.solver.max_iterations) for s in recipe.stages] == [("adam", 200), ("adam", 800)]
    assert recipe.stages[1].energies["photo_xview"].options.points == 0  # every covered pixel


@pytest.mark.slow
def test_people_are_rendered_where_no_data_is_given(tmp_path):
    path = tmp_path / "out.json"
    args = [
        "accuracy",
        "landmarks.sigma=0.02",
        "--people",
        "1",
        "--seed",
        "3",
        "--recipe",
        "landmarks",
        "--json",
        str(path),
    ]
    result = CliRunner().invoke(main, ["bench", *args])
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["data"] == "rendered_seed_3" and report["overrides"] == ["landmarks.sigma=0.02"]
    mean_face, fitted = report["rows"]
    assert mean_face["views"] == 5 and fitted["now_mean"] < 0.75 * mean_face["now_mean"]  # 0.4 to 0.5 of it
    wrong = CliRunner().invoke(main, ["bench", "accuracy", "--people", "0"])
    assert wrong.exit_code == 1 and "expected at least one subject" in wrong.output
