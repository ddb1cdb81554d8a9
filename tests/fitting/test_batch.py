"""Fits of many subjects."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from helpers import write_pts

from fitkit.cli.main import main
from fitkit.cli.progress import rate_text
from fitkit.data import subject_sets
from fitkit.errors import InputError
from fitkit.fitting import batch, batch_job, batch_records
from fitkit.fitting.batch import BatchOptions, collect, fit_batch
from fitkit.fitting.batch_records import BatchRow, read_record, read_report, summary, summary_text
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.report import FitReport, StartReport, TimeReport, Verdict
from fitkit.fitting.run import fit
from fitkit.io.array_job import Shard, array_shard, parse_shard
from fitkit.io.progress import Progress
from fitkit.scene.parameters import load_parameters

RECIPE = load_recipe(
    "landmarks", ("stages.shape.solver.max_iterations=3", "stages.landmarks.solver.max_iterations=3")
)


def fit_folder(folder, output, recipe, progress=Progress(), **options):
    return fit_batch(folder, output, recipe, BatchOptions(**options), progress)


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
    other = replace(RECIPE, crop=replace(RECIPE.crop, up=0.5))
    change = f"crop.up {RECIPE.crop.up} -> 0.5"
    with pytest.raises(
        InputError, match=f"out: its results were fitted with another recipe .{change}; batch_r"
    ):
        fit_folder(people, tmp_path / "out", other, resume=True, light=True)
    # An earlier version wrote fewer options, which have their defaults; a still earlier one wrote nothing.
    written = tmp_path / "out" / "batch_recipe.yaml"
    recipe = yaml.safe_load(written.read_text())
    del recipe["texture"]
    written.write_text(yaml.safe_dump(recipe))
    assert len(fit_folder(people, tmp_path / "out", RECIPE, resume=True, light=True)) == 2
    stages = list(RECIPE.stages)
    stages[-1] = replace(stages[-1], min_views=2)
    name = stages[-1].name
    for changed, words in (
        (tuple(stages), f"recipe .stages.{name}.min_views 1 -> 2; batch_recipe.yaml.; go on"),
        (tuple(stages[:-1]), "recipe .stages; batch_recipe.yaml.; go on"),
    ):
        with pytest.raises(InputError, match=words):
            fit_folder(people, tmp_path / "out", replace(RECIPE, stages=changed), resume=True, light=True)
    written.unlink()
    assert len(fit_folder(people, tmp_path / "out", other, resume=True, light=True)) == 2
    assert not written.exists()
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
    for options, message in (
        ({"retries": -1}, "retries: expected at least 0, got -1"),
        ({"timeout": 0.0}, "timeout: expected seconds above 0, got 0"),
        ({"engine": "slrum"}, "no engine 'slrum'; did you mean 'slurm'"),
        ({"engine_options": ("a=1",)}, "engine 'processes' has no options, got 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            fit_folder(tmp_path, tmp_path / "out", RECIPE, **options)
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
    assert "1 ok, 1 doubtful" in run.output and "mean      expected error " in run.output


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


FILES = ["batch.json", "batch.jsonl", "batch_recipe.yaml", "batch_records"]


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
    """`fit_jobs` with stubs; also for worker processes."""
    subject_sets.load_subject = lambda place, ignore: str(place)
    batch_job.fit = lambda place, **options: trouble(place) or Stub(place)
    batch_job.fit_many = lambda places, **options: [batch_job.fit(place) for place in places]
    return real_fit(jobs)


real_fit = batch_job.fit_jobs


def trouble(place):
    name = Path(place).name
    if name == "unexpected":
        raise ZeroDivisionError("a mistake of ours")
    if name == "memory":
        raise MemoryError
    if name == "unusable":
        raise InputError("photo.jpg: not an image")
    if name == "asleep":
        time.sleep(600)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(subject_sets, "load_subject", subject_sets.load_subject)
    for name in ("fit", "fit_many"):
        monkeypatch.setattr(batch_job, name, getattr(batch_job, name))
    monkeypatch.setattr(batch, "fit_jobs", stub_fit)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_bad_subjects_of_all_kinds_become_rows_and_are_tried_again(many, stub, tmp_path):
    bad = {
        "unexpected": "unexpected ZeroDivisionError: a mistake of ours; --verbose shows details",
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
    reasons = {n: rows[n].reason for n in bad}
    assert reasons == {
        "unexpected": "unexpected",
        "memory": "memory",
        "unusable": "input",
        "full": "input",
        "killed": "killed",
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b", *FILES, "c"]
    assert all(read_record(tmp_path / "out", n) == row for n, row in rows.items())
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
    # Nobody knows which of three it was: each gets another chance by itself.
    rows = fit_folder(many(), tmp_path / "both", RECIPE, workers=2, batch_size=3)
    assert [r.status for r in rows] == ["ok", "ok", "error"]


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
    assert batch._one_inside_another(["anna/old", "anna", "anna/old/x", "bob"]) == [
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


def test_the_output_is_no_subject(many, stub, tmp_path):
    people = many("anna", "ben")
    with pytest.raises(InputError, match="anna: holds photos of a subject; choose another --output"):
        fit_folder(people, people / "anna", RECIPE)
    assert [r.subject for r in fit_folder(people, people / "fits", RECIPE)] == ["anna", "ben"]
    assert [r.subject for r in fit_folder(people, people / "fits", RECIPE, resume=True)] == ["anna", "ben"]


def test_a_name_of_two_lines(many, stub, tmp_path):
    with pytest.raises(InputError, match="cannot name a result: 'two..lines' has a control character; ren"):
        fit_folder(many("anna", "two\nlines"), tmp_path / "out", RECIPE)


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
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", *FILES]


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
    people, writes, real = many("a", "b", "c"), [], batch_records.written_whole

    def full_once(path, advice):
        writes.append(path)
        return real(path if len(writes) != 3 else tmp_path / "people" / "a" / "photo.jpg" / "x", advice)

    monkeypatch.setattr(batch_records, "written_whole", full_once)
    rows = fit_folder(people, tmp_path / "out", RECIPE)
    assert [r.status for r in rows] == ["ok"] * 3 == [r["status"] for r in numbers_of(tmp_path)]
    assert len(writes) > 3


def test_names_that_are_not_utf8(many, stub, tmp_path):
    people = many("anna")
    os.mkdir(os.fsencode(people) + b"/Zo\xeb")
    open(os.fsencode(people) + b"/Zo\xeb/photo.jpg", "wb").close()
    assert [r.subject for r in fit_folder(people, tmp_path / "out", RECIPE)] == ["Zo\u00eb", "anna"]
    assert [r["subject"] for r in numbers_of(tmp_path)] == [r.subject for r in read_report(tmp_path / "out")]


# ---- what is on the disk while a batch runs ----


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_that_was_killed_goes_on_from_its_log_and_records(many, stub, tmp_path):
    """As if its process had been killed: one is in the log, one only has a record, one was being fitted."""
    people, out = many("a", "b", "c", "d"), tmp_path / "out"
    fit_folder(people, out, RECIPE)
    log = (out / "batch.jsonl").read_text().splitlines()
    (out / "batch.jsonl").write_text(log[0] + "\n" + log[1][:40])  # the second line is half written
    batch_records.write_record(out, BatchRow("c", "fitting", photos="c"))
    shutil.rmtree(out / "d")
    (out / "batch_records" / "d.json").unlink()
    (out / "batch.json").write_text('{"subjects": []}')
    seen = []
    told = Progress(lambda step: step.item and seen.append(step.item.subject))
    rows = fit_folder(people, out, RECIPE, resume=True, progress=told)
    assert seen == ["d", "c"]  # last what may have ended it
    assert [r.subject for r in rows] == ["a", "b", "c", "d"] == [r["subject"] for r in numbers_of(tmp_path)]
    done = (out / "batch.jsonl").read_text().splitlines()
    assert done[:2] == [log[0], log[1][:40]] and [json.loads(x)["subject"] for x in done[2:]] == ["d", "c"]


def test_people_side_by_side_are_fitted_together_again(many, stub, tmp_path):
    """The last digits of a group depend on who is in it."""
    people, out = many("a", "b", "c", "d", "e"), tmp_path / "out"
    fit_folder(people, out, RECIPE, batch_size=2)
    batch_records.write_record(out, BatchRow("d", "fitting", photos="d"))
    lines = (out / "batch.jsonl").read_text().splitlines()
    (out / "batch.jsonl").write_text("\n".join(x for x in lines if json.loads(x)["subject"] != "d") + "\n")
    begun = []
    real = batch.fit_jobs
    batch.fit_jobs = lambda jobs: begun.append([j.name for j in jobs]) or real(jobs)
    rows = fit_folder(people, out, RECIPE, batch_size=2, resume=True)
    assert begun == [["c", "d"]] and [r.status for r in rows] == ["ok"] * 5


def test_ctrl_c_leaves_a_table_of_what_is_done(many, stub, tmp_path):
    def stop(step):
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_folder(many("a", "b", "c"), tmp_path / "out", RECIPE, progress=Progress(stop))
    assert [r["subject"] for r in numbers_of(tmp_path)] == ["a", "b"]


def test_names_that_a_batch_needs(many, stub, tmp_path):
    for name in ("batch_records", "batch_engine", "batch.json", "batch.json/a", "x.jsonl/a", "report.html"):
        people = many(f"{name}/x" if name == "batch_engine" else name)
        with pytest.raises(InputError, match=f"its result .*{name}.* would lie where .*; rename the folder"):
            fit_folder(people, tmp_path / "out", RECIPE)
        shutil.rmtree(people)
    with pytest.raises(InputError, match="its result .*anna.json/b would lie where .*; rename the folder"):
        fit_folder(many("anna", "anna.json/b"), tmp_path / "out", RECIPE)  # anna's record is anna.json


@pytest.mark.parametrize(
    "name, message",
    [
        ("a//b", "a part of 'a//b' is empty or begins with a dot; rename it"),
        (".", "a part of '.' is empty or begins with a dot"),
        (".fitkit-1-2/a", "is empty or begins with a dot"),  # would be cleaned up
        ("a/../../b", "without '..'"),
        ("ü" * 126, "a part of it is longer than 250 bytes; rename it"),
    ],
)
def test_names_of_a_table_that_name_no_result(tmp_path, name, message):
    (tmp_path / "list.csv").write_text(f"subject,photo\nanna,a.png\n{name},a.png\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"list.csv: subject {re.escape(name)}: cannot name .*{message}"):
        fit_folder(tmp_path / "list.csv", tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("[1]", "line 1: expected a subject of a batch with its 'time', got"),
        ('{"time": "2026", "subject": "a"}', "line 1: 'status' is missing"),
        ('{"time": "2026", "subject": "a", "status": 3}', "line 1: status: expected str, got 3"),
    ],
)
def test_a_broken_log_is_one_sentence(many, stub, tmp_path, line, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "batch.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=f"batch.jsonl: {message}"):
        fit_folder(many("a"), tmp_path / "out", RECIPE, resume=True)


def test_a_broken_record_is_one_sentence(many, stub, tmp_path):
    people, out = many("a"), tmp_path / "out"
    fit_folder(people, out, RECIPE)
    (out / "batch.jsonl").unlink()
    (out / "batch_records" / "a.json").write_text("{")
    with pytest.raises(
        InputError, match="a.json: not readable as the record of a subject .*; remove .*a.json"
    ):
        fit_folder(people, out, RECIPE, resume=True)


def test_results_of_earlier_versions_are_kept(many, stub, tmp_path):
    """They have a table and neither log nor records."""
    people, out = many("a", "b"), tmp_path / "out"
    fit_folder(people, out, RECIPE)
    (out / "batch.jsonl").unlink()
    shutil.rmtree(out / "batch_records")
    table = json.loads((out / "batch.json").read_text())
    for row in table["subjects"]:
        del row["reason"]
    (out / "batch.json").write_text(json.dumps(table))
    seen = []
    rows = fit_folder(
        people, out, RECIPE, resume=True, progress=Progress(lambda step: seen.append(step.item))
    )
    assert seen == [None] and [r.status for r in rows] == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_tries_more_and_a_limit_of_time(many, stub, tmp_path):
    people, out = many("a", "asleep", "killed", "unusable"), tmp_path / "out"
    rows = {r.subject: r for r in fit_folder(people, out, RECIPE, workers=2, timeout=1.5, retries=1)}
    assert rows["a"].status == "ok" and rows["unusable"].reason == "input"
    assert (
        rows["asleep"].reason == "timeout"
        and "longer than 1.5 seconds; give it more" in rows["asleep"].message
    )
    tries = {x["subject"]: x["attempt"] for x in lines_of(out / "batch.jsonl")}
    assert tries == {"a": 1, "asleep": 2, "killed": 2, "unusable": 1}  # bad files do not get better
    assert [x["subject"] for x in lines_of(out / "batch.jsonl")].count("killed") == 1


# ---- shards ----


def test_shards_fit_all_and_are_gathered(many, stub, tmp_path):
    people, out = many("a", "b", "b/inner", "c", "d", "e", "unusable"), tmp_path / "out"
    whole = fit_folder(people, tmp_path / "whole", RECIPE, batch_size=2)
    for number in (3, 1):
        fit_folder(people, out, RECIPE, batch_size=2, shard=Shard(number, 3))
    rows = collect(people, out)
    assert [r.subject for r in rows if r.reason == "missing"] == ["d", "c"][::-1]
    assert "has not been fitted; run its shard" in next(r for r in rows if r.subject == "c").message
    with pytest.raises(InputError, match="holds this shard of a batch already"):
        fit_folder(people, out, RECIPE, batch_size=2, shard=Shard(1, 3))
    fit_folder(people, out, RECIPE, batch_size=2, shard=Shard(2, 3))
    rows = collect(people, out)
    timeless = [(r.subject, r.status, r.message, r.photos) for r in whole]
    assert [(r.subject, r.status, r.message, r.photos) for r in rows] == timeless
    assert [r["subject"] for r in numbers_of(tmp_path)] == [r.subject for r in whole]
    assert sorted(p.name for p in out.glob("*.jsonl")) == [f"batch_{i}_of_3.jsonl" for i in (1, 2, 3)]
    # 'b/inner' lies in the result of 'b': one shard fits both, one after the other.
    assert [x["subject"] for x in lines_of(out / "batch_1_of_3.jsonl")] == ["a", "b", "b/inner"]
    assert [r.subject for r in fit_folder(people, out, RECIPE, shard=Shard(9, 9))] == []


def test_the_command_with_shards(many, stub, tmp_path, monkeypatch):
    people, out = many("a", "b", "unusable"), str(tmp_path / "out")
    for name, value in {"ID": "7", "MIN": "5", "MAX": "9", "STEP": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    run = CliRunner().invoke(main, ["batch", str(people), "-o", out, "--shard", "auto", "-q"])
    assert run.exit_code == 0 and "1 subjects: 1 ok" in run.output, run.output
    run = CliRunner().invoke(main, ["batch", str(people), "-o", out, "--collect"])
    assert run.exit_code == 1 and "error (missing)" in run.output and "2 of the 3 subjects" in run.output
    run = CliRunner().invoke(main, ["batch", str(people), "-o", out, "--shard", "3/3", "-q"])
    assert run.exit_code == 1 and "1 of the 1 subjects of shard 3/3 could not be fitted" in run.output
    assert [r["reason"] for r in numbers_of(tmp_path)] == ["missing", "", "missing"]  # as it was gathered
    run = CliRunner().invoke(main, ["batch", str(people), "-o", out, "--collect", "--shard", "1/3"])
    assert run.exit_code == 1 and "--collect gathers what all shards have done; leave out" in run.output
    with pytest.raises(InputError, match="nothing: holds no batch; expected the --output of shards"):
        collect(people, tmp_path / "nothing")


def test_which_shard():
    for text in ("0/3", "4/3", "1", "a/b", "1/3/5", "1/9999999"):
        with pytest.raises(
            InputError, match="shard: expected I/N with I from 1 to N, e.g. 3/10, or auto; got"
        ):
            parse_shard(text)
    assert parse_shard("3/10") == Shard(3, 10)
    slurm = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert array_shard(slurm) == Shard(5, 8)
    grid = {"SGE_TASK_ID": "3", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "5", "SGE_TASK_STEPSIZE": "2"}
    assert array_shard(grid) == Shard(2, 3)
    assert array_shard({"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "4"}) == Shard(2, 4)
    for wrong in ({"LSB_JOBINDEX": "0", "SGE_TASK_ID": "undefined"}, {}):
        with pytest.raises(InputError, match="this is no task of a job array"):
            array_shard(wrong)
    with pytest.raises(InputError, match="job array of Slurm says SLURM_ARRAY_TASK_ID=9 of 0 to 7 by 1"):
        array_shard(slurm | {"SLURM_ARRAY_TASK_ID": "9"})


# ---- the table ----


def test_the_table_tells_reasons_slowest_and_worst():
    rows = [
        BatchRow(f"p{i}", "ok", reprojection_share=0.01, seconds=i, expected_mm=3 - i / 9) for i in range(9)
    ]
    rows += [BatchRow(f"d{i}", "doubtful", "m", "expected_error", 0.03, 0.5, expected_mm=9) for i in range(2)]
    rows += [
        BatchRow("x", "error", "m", "killed"),
        BatchRow("y", "error", "m", "input"),
        BatchRow("z", "error"),
    ]
    lines = summary_text(rows).splitlines()
    assert lines[0] == "14 subjects: 9 ok, 2 doubtful, 0 failed, 3 error"
    assert re.fullmatch(r"mean +expected error 3.7 mm, reprojection error 1.4 % of .*", lines[1])
    assert [re.split("  +", line) for line in lines[2:6]] == [
        ["doubtful (expected error)", "2", "first: d0"],
        ["error (input)", "1", "first: y"],
        ["error (killed)", "1", "first: x"],
        ["error (not told)", "1", "first: z"],
    ]
    assert lines[6] == "slowest   p8 8.0 s, p7 7.0 s, p6 6.0 s, p5 5.0 s, p4 4.0 s"
    assert lines[7].startswith("worst     d0 9.0 mm, d1 9.0 mm, p0 3.0 mm")


def test_rate_and_time_left():
    assert rate_text(120, 1000, 100, 50.0) == "120 of 1000 subjects, 2 per second, 7 min left"
    assert rate_text(990, 1000, 90, 90.0) == "990 of 1000 subjects, 1 per second, 10 s left"
    assert (
        rate_text(1, 100000, 1, 1.0).endswith("27.8 h left") and rate_text(5, 9, 0, 1.0) == "5 of 9 subjects"
    )
