import json
import logging

import numpy as np
import pytest
import yaml
from helpers import write_pts

import fitkit
from fitkit.fitting.recipe import load_recipe
from fitkit.io.options import to_plain


@pytest.mark.slow
def test_default_fit(run, anna):
    result = run("fit", anna, "stages.fine.solver.refresh=1")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(None, 1) for line in result.output.splitlines())
    assert (
        lines["status"].startswith("ok; expected error ")
        and lines["views"] == "3"
        and lines["result"] == str(anna / "fitkit")
        and lines["page"] == str(anna / "fitkit" / "report.html")
    )
    assert "px mean reprojection error" in lines["landmarks"] and lines["time"].endswith("in the solver)")
    metrics = json.loads((anna / "fitkit/metrics.json").read_text())
    assert metrics["recipe"] == "multiview" and [s["name"] for s in metrics["stages"]][-1] == "fine"
    assert sorted(p.name for p in (anna / "fitkit/overlay").iterdir()) == [
        "view0.png",
        "view1.png",
        "view2.png",
    ]


@pytest.mark.slow
def test_detail(run, anna):
    result = run("fit", anna, "--detail", "detail.refresh=1", "stages.fine.solver.refresh=1")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(None, 1) for line in result.output.splitlines())
    metrics = json.loads((anna / "fitkit/metrics.json").read_text())
    found = metrics["detail"]["sigma_mm"] > 0
    assert lines["detail"] == (
        f"{metrics['detail']['mean_mm']:.2f} mm mean displacement of the face, from "
        f"{metrics['detail']['matches']} matches"
        if found
        else "none: the matches show none beyond the face model"
    )
    assert (
        load_recipe(anna / "fitkit/recipe.yaml").detail.enabled
        and (anna / "fitkit/detail.png").is_file() == found
    )


@pytest.mark.slow
def test_no_detail(run, anna):
    result = run("fit", anna, "--no-detail", "stages.fine.solver.refresh=1")
    assert result.exit_code == 0 and "\ndetail" not in result.output
    assert (
        "detail" not in json.loads((anna / "fitkit/metrics.json").read_text())
        and not (anna / "fitkit/detail.png").exists()
    )


@pytest.mark.slow
def test_recipe_of_a_result_repeats_the_fit(run, anna, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    changed = (
        "--recipe",
        "landmarks",
        "--seed",
        5,
        "--share-expression",
        "--jaw",
        "surface",
        "camera.focal_sigma=0.2",
    )
    assert run("fit", anna, "-o", first, "--no-pictures", *changed).exit_code == 0
    recipe = load_recipe(
        "landmarks", ["landmarks.jaw=surface", "camera.focal_sigma=0.2", "seed=5", "expression.shared=true"]
    )
    assert load_recipe(first / "recipe.yaml") == recipe
    again = run("fit", anna, "-o", second, "--no-pictures", "--recipe", first / "recipe.yaml")
    assert again.exit_code == 0
    assert (first / "recipe.yaml").read_text() == (second / "recipe.yaml").read_text()
    with np.load(first / "parameters.npz") as a, np.load(second / "parameters.npz") as b:
        assert set(a.files) == set(b.files)
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key])
    assert len(set(np.load(first / "parameters.npz")["expression"][:, 0])) == 1  # shared


@pytest.mark.slow
def test_output_beside_the_photos_is_no_photo(run, anna):
    assert run("fit", anna, "--recipe", "landmarks", "-o", anna / "mine").exit_code == 0
    again = run("fit", anna, "--recipe", "landmarks", "-o", anna / "mine", "--overwrite", "--no-pictures")
    assert again.exit_code == 0 and "ignored" not in again.output


def test_photos_instead_of_a_folder(run, anna):
    """The same fit as of the folder, with the files beside them; the result is named after the first
    photo."""
    fast = ("--recipe", "landmarks", "--init", "landmarks", "--no-pictures", "camera.focal_sigma=0.2")
    assert run("fit", anna, *fast).exit_code == 0
    result = run("fit", anna / "view1.png", anna / "view0.png", anna / "view2.png", *fast)
    assert result.exit_code == 0 and f"result     {anna / 'view1_fitkit'}\n" in result.output, result.output
    with np.load(anna / "fitkit/parameters.npz") as a, np.load(anna / "view1_fitkit/parameters.npz") as b:
        assert str(b["subject_name"]) == "view1"
        for key in set(a.files) - {"subject_name"}:
            np.testing.assert_array_equal(a[key], b[key])
    alone = run("fit", anna / "view2.png", *fast)
    assert (
        alone.exit_code == 0
        and "views      1\n" in alone.output
        and (anna / "view2_fitkit/views/view2.ply").is_file()
    )


def test_predict_takes_photos_too(run, anna):
    assert run("predict", anna / "view0.png", anna / "view1.png").exit_code == 0
    assert json.loads((anna / "view0_fitkit/metrics.json").read_text())["num_views"] == 2


@pytest.mark.slow
def test_quiet_prints_nothing(run, anna):
    result = run("fit", anna, "--recipe", "landmarks", "--quiet", "--no-pictures")
    assert (result.exit_code, result.output) == (0, "")
    assert (anna / "fitkit/subject.ply").is_file()


@pytest.mark.slow
def test_notes_go_to_stderr(start, anna):
    (anna / "notes.md").write_text("text")
    process = start("fit", anna, "--recipe", "landmarks", "--no-pictures")
    stdout, stderr = process.communicate()
    assert (
        process.returncode == 0
        and stdout.startswith("status     ok; expected error ")
        and len(stdout.splitlines()) == 6
    )
    assert (
        stderr == "note: ignored, not images or files of an image: notes.md\n"
    )  # and no progress bar: not a terminal


def test_verbose_tells_the_stages(run, anna):
    (anna / "notes.md").write_text("text")
    result = run("fit", anna, "--recipe", "landmarks", "--verbose", "--no-pictures")
    assert result.exit_code == 0 and "stage shape: " in result.output
    assert (
        "\nwarning: " not in result.output
        and "\nnote: ignored, not images or files of an image: notes.md\n" in result.output
    )
    assert not logging.getLogger("fitkit").handlers


def test_one_view(run, anna):
    for name in ("view1", "view2"):
        (anna / f"{name}.png").unlink(), (anna / f"{name}.pts").unlink()
    result = run("fit", anna, "--no-pictures")
    assert result.exit_code == 0 and "views      1" in result.output
    stages = json.loads((anna / "fitkit/metrics.json").read_text())["stages"]
    assert [s["name"] for s in stages][-2:] == ["shape", "landmarks"]  # the others compare views


def test_failed_fit(run, anna):
    for i in range(3):  # every point has the name of another one: no face looks like this
        path = anna / f"view{i}.pts"
        points = np.loadtxt(path, skiprows=3, max_rows=68)
        write_pts(path, np.random.default_rng(i).permutation(points) - 1)
    options = ("--recipe", "landmarks", "--quiet", "landmarks.source=files")
    result = run("fit", anna, *options)
    assert result.exit_code == 1 and f"; look at {anna / 'fitkit' / 'overlay'}" in result.output
    assert (
        "Error: the fit failed, so the face is not to be used: view view0 does not fit its landmarks: they "
        "are off by " in result.output
    )
    assert "warning: view view0 does not fit its landmarks" in result.output
    assert json.loads((anna / "fitkit/metrics.json").read_text())["status"] == "failed"
    result = run("fit", anna, *options, "--no-pictures", "--overwrite")
    assert result.exit_code == 1 and "; fit without --no-pictures to see it" in result.output
    assert not list((anna / "fitkit").rglob("*.png"))


@pytest.mark.slow
def test_python_has_the_same_defaults(anna):
    result = fitkit.fit(anna)
    assert result.recipe == to_plain(load_recipe("multiview")) and result.status == "ok"
    saved = result.save(anna / "fitkit", light=True)
    assert yaml.safe_load((saved / "recipe.yaml").read_text()) == yaml.safe_load(
        yaml.safe_dump(result.recipe)
    )


def test_unknown_size_of_the_head_is_said(anna):
    metrics = fitkit.fit(anna, recipe="landmarks").metrics
    assert metrics["scale"]["metric"] is False and "only as far as" in metrics["scale"]["note"]


def test_fit_from_images(anna):
    images = sorted(anna.glob("*.png"))
    result = fitkit.fit(images[:1], recipe="landmarks")
    assert (
        result.status == "ok"
        and result.warnings == ()
        and "one photo tells neither the depth" in result.notes[0]
    )
    with pytest.raises(fitkit.FitkitError, match="no images given"):
        fitkit.fit([])
