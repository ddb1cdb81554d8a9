"""Rounds of fits and trainings on them."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_layouts import lp_source, pie_tree

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.train.distill import distill

RECIPE = """
name: small
net: {name: fitkit_init, options: {size: 32, token: 16, heads: 2, hidden: 24}}
views: []
data: [{name: fits, kind: fits, options: {size: 96, status: [ok, doubtful]}}]
validation: {share: 0}
batch: 2
pictures: 0
accelerator: cpu
stages: [{name: s, steps: 2, learning_rate: 1.0e-3, energies: {identity_nll: {}, lmk2d: {}}}]
"""
MIXED = Path(__file__).resolve().parents[2] / "recipes" / "train" / "mixed.yaml"
FAST = ("stages.shape.solver.max_iterations=3", "stages.landmarks.solver.max_iterations=3")


@pytest.fixture
def people(anna, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(anna, tmp_path / "people" / name)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "people"


def test_two_rounds_and_going_on(people, tmp_path):
    lines = []
    report = distill(people, tmp_path / "small.yaml", tmp_path / "out", 1, fit_overrides=FAST)
    assert len(report["rounds"]) == 1
    with pytest.raises(InputError, match="holds rounds already; go on with --resume"):
        distill(people, tmp_path / "small.yaml", tmp_path / "out", 2, fit_overrides=FAST)
    first = (tmp_path / "out" / "round_1" / "training" / "regressor.safetensors").stat().st_mtime_ns
    report = distill(
        people,
        tmp_path / "small.yaml",
        tmp_path / "out",
        2,
        fit_overrides=FAST,
        resume=True,
        progress=lines.append,
    )
    assert (
        json.loads((tmp_path / "out" / "distill.json").read_text()) == report and len(report["rounds"]) == 2
    )
    one, two = report["rounds"]
    assert (
        one["fits"]["subjects"] == two["fits"]["subjects"] == 2
        and one["fits"]["iterations"] > 0
        and one["training"]["steps"] == 2
    )
    # A network of two steps is no better start than the landmarks.
    assert one["fits"]["from_the_network"] == two["fits"]["from_the_network"] == 0
    recipe = (tmp_path / "out" / "round_2" / "training" / "recipe.yaml").read_text()
    assert "round_1/training/regressor.safetensors" in recipe and "round_2/fits" in recipe
    assert any(line.startswith("round 2: fits from") for line in lines)
    assert (tmp_path / "out" / "round_1" / "training" / "regressor.safetensors").stat().st_mtime_ns >= first


def test_three_kinds_of_data_in_the_shipped_recipe(people, tmp_path):
    """A table of photos is fitted; the network learns from the fits, 300W-LP and Multi-PIE."""
    pie_tree(tmp_path / "pie")
    lp_source(tmp_path / "lp" / "AFW", "face", [0.0, 40.0])
    rows = [{"subject": f"town/{n}", "photo": f"people/{n}/view{i}.png"} for n in "ab" for i in (1, 2)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = [
        "net={name: fitkit_init, options: {size: 32, token: 16, heads: 2, hidden: 24}}",
        f"data.lp.folder={tmp_path / 'lp'}",
        f"data.pie.folder={tmp_path / 'pie'}",
        "data.pie.options.landmarks=files",
        "data.fits.options={size: 96, status: [ok, doubtful]}",
        *(f"stages.{name}.steps=1" for name in ("heads", "all", "between_views")),
        *("batch=3", "pictures=0", "accelerator=cpu", "validation.share=0"),
    ]
    report = distill(
        tmp_path / "list.jsonl", MIXED, tmp_path / "out", 1, overrides=changes, fit_overrides=FAST
    )
    assert report["photos"].endswith("list.jsonl") and report["rounds"][0]["fits"]["subjects"] == 2
    place = tmp_path / "out" / "round_1"
    assert (place / "fits" / "town" / "a" / "parameters.npz").exists()
    assert (place / "training" / "regressor.safetensors").exists()
    used = (place / "training" / "recipe.yaml").read_text()
    assert "list.jsonl" in used and "kind: 300wlp" in used and "kind: multipie" in used


def test_refusals(people, tmp_path):
    with pytest.raises(InputError, match="rounds: expected at least 1, got 0"):
        distill(people, tmp_path / "small.yaml", tmp_path / "out", 0)
    with pytest.raises(
        InputError,
        match=r"expected a data set with the name 'fits' and the kind 'fits' .* it has lp \(300wlp\), pie "
        r"\(multipie\)",
    ):
        distill(people, "mvfnet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(people, tmp_path):
    arguments = [
        "distill",
        str(people),
        str(tmp_path / "small.yaml"),
        "-o",
        str(tmp_path / "out"),
        "--rounds",
        "1",
        "-q",
    ]
    run = CliRunner().invoke(main, arguments + [x for line in FAST for x in ("--fit", line)])
    assert run.exit_code == 0, run.output
    assert "round 1: " in run.output and "of 2 fits ok, 0 from the network" in run.output
