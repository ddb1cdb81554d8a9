"""Fits of many subjects."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import write_pts

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.fitting import batch
from fitkit.fitting.batch import fit_folder, read_report, summary
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.report import FitReport, StartReport, TimeReport, Verdict
from fitkit.fitting.run import fit
from fitkit.io.progress import Progress
from fitkit.scene.parameters import load_parameters

RECIPE = load_recipe(
    "landmarks", ("stages.shape.solver.max_iterations=3", "stages.landmarks.solver.max_iterations=3")
)


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
    told = Progress(lambda step: seen.append((step.done, step.count)))
    rows = fit_folder(people, tmp_path / "out", RECIPE, light=True, progress=told)
    assert [r.subject for r in rows] == ["broken", "town/anna"] and seen == [(0, 2), (1, 2), (2, 2)]
    assert rows[0].status == "error" and "photo.png" in rows[0].message
    good = rows[1]
    alone = fit(people / "town" / "anna", recipe=RECIPE)
    assert good.status == alone.status and good.reprojection_share == pytest.approx(
        alone.metrics["reprojection_share"], rel=1e-4
    )
    assert (
        good.expected_mm == pytest.approx(alone.metrics["verdict"]["expected_mm"], rel=1e-3)
        and good.upper_mm > good.expected_mm
    )
    assert (
        good.message == (*alone.warnings, "")[0]
        and numbers_of(tmp_path)[1]["expected_mm"] == good.expected_mm
    )
    assert (
        good.iterations == alone.metrics["start"]["iterations"] > 0
        and good.views == 3
        and good.start == alone.metrics["start"]["source"]
    )
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
    for content, message in (
        ("{}", "not readable as the report of a batch .no entry 'subjects'"),
        ("[" * 5000, "not readable .* nested deeper than 64"),
        ('{"subjects": [{"subject": "a"}]}', "subject 1: 'status' is missing"),
        (
            '{"subjects": [{"subject": "a", "status": "ok", "seconds": "x"}]}',
            "subject 1: seconds: expected float, got 'x'",
        ),
    ):
        (tmp_path / "out" / "batch.json").write_text(content)
        with pytest.raises(InputError, match=f"batch.json: {message}"):
            fit_folder(people, tmp_path / "out", RECIPE, resume=True)


@pytest.mark.slow
def test_workers_change_nothing(anna, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(anna, tmp_path / "two" / name)
    one = fit_folder(tmp_path / "two", tmp_path / "one_worker", RECIPE, light=True)
    two = fit_folder(tmp_path / "two", tmp_path / "two_workers", RECIPE, workers=2, light=True)
    assert [(r.subject, r.reprojection_share, r.iterations) for r in one] == [
        (r.subject, r.reprojection_share, r.iterations) for r in two
    ]


def test_subjects_side_by_side_change_nothing(people, anna, tmp_path):
    shutil.copytree(anna, people / "ben")
    one = fit_folder(people, tmp_path / "out", RECIPE, light=True)
    arguments = ["batch", str(people), "-o", str(tmp_path / "many"), "--recipe", "landmarks", "--light"]
    many = fit_folder(people, tmp_path / "two", RECIPE, light=True, batch_size=3)
    # After three iterations a solution is none yet, and rounding may decide what is said of it.
    assert [(r.subject, r.status == "error", r.views, r.photos) for r in many] == [
        (r.subject, r.status == "error", r.views, r.photos) for r in one
    ]
    assert many[1].message == one[1].message and "photo.png" in many[1].message
    assert many[0].reprojection_share == pytest.approx(one[0].reprojection_share, rel=1e-3)
    run = CliRunner().invoke(main, [*arguments, "--batch-size", "2", "--quiet"])
    assert run.exit_code == 1 and re.search("3 subjects: .* 0 failed, 1 error", run.output)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="batch size: expected at least 1, got 0"):
        fit_folder(tmp_path, tmp_path / "out", RECIPE, batch_size=0)
    with pytest.raises(InputError, match="workers: expected at least 1, got 0"):
        fit_folder(tmp_path, tmp_path / "out", RECIPE, workers=0)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        fit_folder(tmp_path / "nowhere", tmp_path / "out", RECIPE)
    with pytest.raises(InputError, match="no folder with photos below it"):
        fit_folder(tmp_path, tmp_path / "out", RECIPE)
    for output in (tmp_path, tmp_path.parent):
        with pytest.raises(
            InputError, match=f"output {output}: the folder of the photos, {tmp_path}, is it or lies in it"
        ):
            fit_folder(tmp_path, output, RECIPE)


def test_the_reason_of_a_doubtful_fit_is_told(people, tmp_path):
    shutil.copytree(people / "town" / "anna", people / "town" / "odd")
    points = np.loadtxt(people / "town" / "odd" / "view1.pts", skiprows=3, max_rows=68)
    write_pts(people / "town" / "odd" / "view1.pts", np.random.default_rng(0).permutation(points) - 1)
    run = CliRunner().invoke(
        main,
        [
            "batch",
            str(people / "town"),
            "-o",
            str(tmp_path / "out"),
            "--recipe",
            "landmarks",
            "--light",
            "--init",
            "landmarks",
        ],
    )
    row = numbers_of(tmp_path)[1]
    assert (
        row["subject"] == "odd"
        and row["status"] == "doubtful"
        and row["message"].startswith("view view1: its landmarks do not lie on the face")
    )
    assert (
        f"odd: doubtful, expected error {row['expected_mm']:.1f} mm: {row['message']}" in run.output
        and "anna: " not in run.output
    )
    assert "1 ok, 1 doubtful" in run.output and "; mean expected error " in run.output


def test_an_earlier_report_is_read(tmp_path):
    (tmp_path / "batch.json").write_text(
        '{"subjects": [{"subject": "a", "status": "ok", "message": "", "seconds": 1.0}]}'
    )
    assert read_report(tmp_path)[0].expected_mm is None


def test_the_command(people, tmp_path):
    arguments = [
        "batch",
        str(people),
        "-o",
        str(tmp_path / "out"),
        "--recipe",
        "landmarks",
        "--light",
        "--init",
        "landmarks",
    ]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1, run.output
    assert "broken: error:" in run.output and "2 subjects: 1 ok, 0 doubtful, 0 failed, 1 error" in run.output
    assert (
        "1 of the 2 subjects of " in run.output
        and "could not be fitted; " in run.output
        and "--resume tries those" in run.output
    )
    shutil.rmtree(people / "town")
    run = CliRunner().invoke(main, [*arguments[:3], str(tmp_path / "none"), *arguments[4:]])
    assert run.exit_code == 1 and "none of the 1 subjects" in run.output


# ---- what is bad about one subject is its row ----


@pytest.fixture
def many(tmp_path):
    """Make folders with one picture each, which nothing reads: `stub` stands in for the fit."""

    def make(*names):
        for name in names:
            (tmp_path / "people" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "people" / name / "photo.jpg").write_bytes(b"")
        return tmp_path / "people"

    return make


class Stub:
    """Stands in for a fit: what the batch asks of it. Its result folder is the smallest that counts as
    one."""

    report = FitReport(
        "ok",
        num_views=1,
        reprojection_share=0.01,
        start=StartReport("landmarks", iterations=3),
        time_s=TimeReport(solve=1.0),
        verdict=Verdict(expected_mm=1.0, upper_mm=1.4),
    )

    def __init__(self, place):
        self.place = place

    def save(self, target, overwrite, light, pictures):
        if self.place.endswith("full"):
            raise InputError(
                f"output {target}: cannot be written (No space left on device); nothing was left behind"
            )
        os.makedirs(target, exist_ok=True)
        for name in ("metrics.json", "parameters.npz"):
            (Path(target) / name).write_text(self.place)


def stub_fit(jobs):
    """`batch._fit` with stubs; also for worker processes."""
    batch.load_subject = lambda place, ignore: str(place)
    batch.fit = lambda place, **options: trouble(place) or Stub(place)
    batch.fit_many = lambda places, **options: [batch.fit(place) for place in places]
    return real_fit(jobs)


real_fit = batch._fit


def trouble(place):
    name = Path(place).name
    if name == "unexpected":
        raise ZeroDivisionError("a mistake of ours")
    if name == "memory":
        raise MemoryError
    if name == "unusable":
        raise InputError("photo.jpg: not an image")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def stub(monkeypatch):
    for name in ("load_subject", "fit", "fit_many", "_fit"):
        monkeypatch.setattr(batch, name, getattr(batch, name))
    monkeypatch.setattr(batch, "_fit", stub_fit)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_bad_subjects_of_all_kinds_become_rows_and_are_tried_again(many, stub, tmp_path):
    bad = {
        "unexpected": "unexpected ZeroDivisionError: a mistake of ours; for details: fitkit fit "
        ".*unexpected --verbose",
        "memory": "unexpected MemoryError: no message",
        "unusable": "photo.jpg: not an image",
        "full": "No space left on device",
        "killed": r"its process was ended by SIGKILL \(out of memory\?\) while it was fitted; try again "
        r"with --resume",
    }
    people = many("a", "b", "c", *bad)
    rows = {r.subject: r for r in fit_folder(people, tmp_path / "out", RECIPE, workers=2)}
    assert [n for n, r in rows.items() if r.status == "ok"] == ["a", "b", "c"]
    for name, message in bad.items():
        assert rows[name].status == "error" and re.search(message, rows[name].message), rows[name]
    assert [r["subject"] for r in numbers_of(tmp_path)] == sorted(rows)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b", "batch.json", "c"]
    seen = []
    for name in bad:
        shutil.move(people / name, people / f"{name}_mended")  # a name that makes no trouble
    fit_folder(
        people,
        tmp_path / "out",
        RECIPE,
        resume=True,
        progress=Progress(lambda step: step.item and seen.append(step.item.subject)),
    )
    assert sorted(seen) == sorted(f"{n}_mended" for n in bad)


def test_what_nobody_expected_is_the_row_of_one_of_those_side_by_side(many, stub, tmp_path):
    rows = fit_folder(many("a", "full", "unexpected", "b"), tmp_path / "out", RECIPE, batch_size=4)
    assert [r.status for r in rows] == ["ok", "ok", "error", "error"]
    assert "No space left on device" in rows[2].message
    assert "unexpected ZeroDivisionError: a mistake of ours" in rows[3].message


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_process_ends_those_side_by_side(many, stub, tmp_path):
    rows = fit_folder(many("a", "b", "killed"), tmp_path / "out", RECIPE, workers=2, batch_size=2)
    assert [r.status for r in rows] == ["ok", "ok", "error"] and "fewer --workers" in rows[2].message
    rows = fit_folder(many(), tmp_path / "both", RECIPE, workers=2, batch_size=3)
    assert [r.status for r in rows] == ["error"] * 3
    assert all("fewer --workers or a smaller --batch-size" in r.message for r in rows)


def test_pictures_may_be_left_out(many, stub, tmp_path, monkeypatch):
    asked, save = [], Stub.save
    monkeypatch.setattr(
        Stub, "save", lambda self, target, **how: asked.append(how) or save(self, target, **how)
    )
    people = many("a")
    for name, options in (("full", ()), ("bare", ("--no-pictures",))):
        run = CliRunner().invoke(main, ["batch", str(people), "-o", str(tmp_path / name), *options])
        assert run.exit_code == 0, run.output
    assert [how["pictures"] for how in asked] == [True, False]


def test_no_two_subjects_share_a_result(many, stub, tmp_path):
    people = many(".", "people", "other/people")
    rows = fit_folder(people, tmp_path / "out", RECIPE)
    assert [(r.subject, r.photos) for r in rows] == [
        ("people_2", "."),
        ("other/people", "other/people"),
        ("people", "people"),
    ]
    assert all(
        Path((tmp_path / "out" / r.subject / "metrics.json").read_text()) == people / r.photos for r in rows
    )
    # Now the photos of the root take the name of another's result: that is not kept for them.
    shutil.rmtree(people / "people")
    rows = fit_folder(people, tmp_path / "out", RECIPE, resume=True)
    assert (tmp_path / "out" / "people" / "metrics.json").read_text() == str(people) and [
        r.subject for r in rows
    ] == ["people", "other/people"]


def test_results_inside_results(many, stub, tmp_path):
    people = many("anna", "anna/old", "anna/new/er")
    assert batch._one_inside_another(["anna", "anna/old", "anna/old/x", "bob"]) == [
        ["anna", "bob"],
        ["anna/old"],
        ["anna/old/x"],
    ]
    assert [r.subject for r in fit_folder(people, tmp_path / "out", RECIPE)] == [
        "anna",
        "anna/new/er",
        "anna/old",
    ]
    many("anna/views")
    with pytest.raises(
        InputError,
        match="views: its result .*anna/views would lie where .*anna has files of its own; rename the folder",
    ):
        fit_folder(people, tmp_path / "other", RECIPE)


def test_what_is_no_subject(many, stub, tmp_path):
    people = many(
        "anna",
        "anna/.fitkit-4711-deadbeef",
        "anna/landmarks",
        "anna/masks",
        "anna/fitkit",
        "anna/result/overlay",
        ".hidden/bob",
        "ground_truth/anna",
    )
    for name in ("metrics.json", "parameters.npz"):
        (people / "anna" / "result" / name).write_text("")
    assert [r.subject for r in fit_folder(people, tmp_path / "out", RECIPE)] == ["anna"]


def test_two_batches_in_one_folder(many, stub, tmp_path):
    people, refused = many("a", "b"), []

    def second(step):
        with pytest.raises(
            InputError, match="out: another batch writes there; wait for its end, or choose another --output"
        ) as caught:
            fit_folder(people, tmp_path / "out", RECIPE, resume=True)
        refused.append(caught)

    assert [r.status for r in fit_folder(people, tmp_path / "out", RECIPE, progress=Progress(second))] == [
        "ok",
        "ok",
    ] and len(refused) == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "batch.json"]


def test_folders_of_others_are_left_alone(many, stub, tmp_path):
    people = many("anna")
    (tmp_path / "out" / "anna").mkdir(parents=True)
    for name in ("metrics.json", "parameters.npz"):
        (tmp_path / "out" / "anna" / name).write_text("of a single fit")
    with pytest.raises(
        InputError, match="out: holds a result of 'anna' that is of no batch; choose another folder"
    ):
        fit_folder(people, tmp_path / "out", RECIPE)
    assert sorted(os.listdir(tmp_path / "out")) == ["anna"]
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(InputError, match="loop: cannot be written"):
        fit_folder(people, tmp_path / "loop", RECIPE)


@pytest.mark.parametrize(
    "content", ["[" * 5000, '{"subjects": [{"subject": ["a"], "status": "ok"}]}', '{"subjects": 1}', "\xff"]
)
def test_a_broken_report_is_one_sentence(tmp_path, content):
    (tmp_path / "batch.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        InputError,
        match=r"batch.json: (not readable as the report of a batch \(.*\); remove .* to start "
        r"again|subject 1: subject: expected str, got )",
    ):
        read_report(tmp_path)


def test_a_report_that_cannot_be_written_for_now_ends_no_batch(many, stub, tmp_path, monkeypatch):
    people, writes, real = many("a", "b", "c"), [], batch.written_whole

    def full_once(path, advice):
        writes.append(path)
        return real(path if len(writes) != 2 else tmp_path / "people" / "a" / "photo.jpg" / "x", advice)

    monkeypatch.setattr(batch, "written_whole", full_once)
    rows = fit_folder(people, tmp_path / "out", RECIPE)
    assert [r.status for r in rows] == ["ok"] * 3 == [r["status"] for r in numbers_of(tmp_path)]


def test_names_that_are_not_utf8(many, stub, tmp_path):
    people = many("anna")
    os.mkdir(os.fsencode(people) + b"/Zo\xeb")
    open(os.fsencode(people) + b"/Zo\xeb/photo.jpg", "wb").close()
    assert [r.subject for r in fit_folder(people, tmp_path / "out", RECIPE)] == ["Zo\u00eb", "anna"]
    assert [r["subject"] for r in numbers_of(tmp_path)] == [r.subject for r in read_report(tmp_path / "out")]
