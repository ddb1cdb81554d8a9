"""Rounds of fits and trainings on them."""

import json
import shutil

import pytest
from click.testing import CliRunner

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
