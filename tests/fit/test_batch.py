"""Fits of many subjects."""
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import write_pts

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.export.parameters import load_parameters
from fitkit.fit.batch import fit_folder, read_report, summary
from fitkit.fit.recipe import load_recipe
from fitkit.fit.run import fit

RECIPE = load_recipe("landmarks", ("stages.shape.solver.max_iterations=3", "stages.landmarks.solver.max_iterations=3"))


@pytest.fixture
def people(anna, tmp_path):
    """anna, and a folder below with another two whose photos cannot be used."""
    shutil.copytree(anna, tmp_path / "people" / "town" / "anna")
    broken = tmp_path / "people" / "broken"
    broken.mkdir()
    (broken / "photo.png").write_bytes(b"no picture")
    return tmp_path / "people"


def numbers_of(folder):
    return json.loads((folder / "out" / "batch.json").read_text())["subjects"]


def test_every_subject_gets_its_result_and_a_broken_one_does_not_end_the_batch(people, tmp_path):
    seen = []
    rows = fit_folder(people, tmp_path / "out", RECIPE, light=True, progress=lambda *a: seen.append(a[:2]))
    assert [r.subject for r in rows] == ["broken", "town/anna"] and seen == [(0, 2), (1, 2), (2, 2)]
    assert rows[0].status == "error" and "photo.png" in rows[0].message
    good = rows[1]
    alone = fit(people / "town" / "anna", recipe=RECIPE)
    assert good.status == alone.status and good.reprojection_share == pytest.approx(alone.metrics["reprojection_share"], rel=1e-4)
    assert good.expected_mm == pytest.approx(alone.metrics["verdict"]["expected_mm"], rel=1e-3) and good.upper_mm > good.expected_mm
    assert good.message == "" and numbers_of(tmp_path)[1]["expected_mm"] == good.expected_mm
    assert good.iterations == alone.metrics["start"]["iterations"] > 0 and good.views == 3 and good.start == alone.metrics["start"]["source"]
    folder = tmp_path / "out" / "town" / "anna"
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "parameters.npz", "recipe.yaml"]
    stored = load_parameters(folder / "parameters.npz")
    assert (stored.state.identity - alone.state.identity).abs().max() < 1e-4
    table = json.loads((tmp_path / "out" / "batch.json").read_text())["subjects"]
    assert [r["subject"] for r in table] == ["broken", "town/anna"]
    numbers = summary(rows)
    assert numbers["subjects"] == 2 and numbers["error"] == 1 and numbers["iterations"] == good.iterations


def test_a_batch_goes_on_where_it_was_and_tries_errors_again(people, tmp_path):
    fit_folder(people, tmp_path / "out", RECIPE, light=True)
    with pytest.raises(InputError, match="holds a batch already; go on with --resume"):
        fit_folder(people, tmp_path / "out", RECIPE)
    before = (tmp_path / "out" / "town" / "anna" / "metrics.json").stat().st_mtime_ns
    shutil.rmtree(people / "broken")
    shutil.copytree(people / "town" / "anna", people / "broken")
    rows = fit_folder(people, tmp_path / "out", RECIPE, resume=True, light=True)
    assert [r.status != "error" for r in rows] == [True, True]
    assert (tmp_path / "out" / "town" / "anna" / "metrics.json").stat().st_mtime_ns == before
    for content, message in (("{}", "not readable as the report of a batch .no entry 'subjects'"), ("[" * 5000, "not readable .* nested deeper than 64"),
                             ('{"subjects": [{"subject": "a"}]}', "subject 1: 'status' is missing"),
                             ('{"subjects": [{"subject": "a", "status": "ok", "seconds": "x"}]}', "subject 1: seconds: expected float, got 'x'")):
        (tmp_path / "out" / "batch.json").write_text(content)
        with pytest.raises(InputError, match=f"batch.json: {message}"):
            fit_folder(people, tmp_path / "out", RECIPE, resume=True)


def test_workers_change_nothing(anna, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(anna, tmp_path / "two" / name)
    one = fit_folder(tmp_path / "two", tmp_path / "one_worker", RECIPE, light=True)
    two = fit_folder(tmp_path / "two", tmp_path / "two_workers", RECIPE, workers=2, light=True)
    assert [(r.subject, r.reprojection_share, r.iterations) for r in one] == [(r.subject, r.reprojection_share, r.iterations) for r in two]


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="workers: expected at least 1, got 0"):
        fit_folder(tmp_path, tmp_path / "out", RECIPE, workers=0)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        fit_folder(tmp_path / "nowhere", tmp_path / "out", RECIPE)
    with pytest.raises(InputError, match="no folder with photos below it"):
        fit_folder(tmp_path, tmp_path / "out", RECIPE)


def test_the_reason_of_a_doubtful_fit_is_told(people, tmp_path):
    shutil.copytree(people / "town" / "anna", people / "town" / "odd")
    points = np.loadtxt(people / "town" / "odd" / "view1.pts", skiprows=3, max_rows=68)
    write_pts(people / "town" / "odd" / "view1.pts", np.random.default_rng(0).permutation(points) - 1)
    run = CliRunner().invoke(main, ["batch", str(people / "town"), "-o", str(tmp_path / "out"), "--recipe", "landmarks", "--light", "--init", "landmarks"])
    row = numbers_of(tmp_path)[1]
    assert row["subject"] == "odd" and row["status"] == "doubtful" and row["message"].startswith("view view1 does not fit its landmarks")
    assert f"odd: doubtful, expected error {row['expected_mm']:.1f} mm: {row['message']}" in run.output and "anna: " not in run.output
    assert "1 ok, 1 doubtful" in run.output and "; mean expected error " in run.output


def test_an_earlier_report_is_read(tmp_path):
    (tmp_path / "batch.json").write_text('{"subjects": [{"subject": "a", "status": "ok", "message": "", "seconds": 1.0}]}')
    assert read_report(tmp_path)[0].expected_mm is None


def test_the_command(people, tmp_path):
    arguments = ["batch", str(people), "-o", str(tmp_path / "out"), "--recipe", "landmarks", "--light", "--init", "landmarks"]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 0, run.output
    assert "broken: error:" in run.output and "2 subjects: 1 ok, 0 doubtful, 0 failed, 1 error" in run.output
    shutil.rmtree(people / "town")
    run = CliRunner().invoke(main, [*arguments[:3], str(tmp_path / "none"), *arguments[4:]])
    assert run.exit_code == 1 and "none of the 1 subjects" in run.output
