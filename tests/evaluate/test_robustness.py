"""Fits from each start, and from perturbed landmarks."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.evaluate.bench.perturbation import (
    KEPT_POINTS,
    KINDS,
    OUTLIERS,
    STARTS,
    perturb,
    summarize_trials,
)
from fitkit.evaluate.bench.robustness import measure, summarize
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions
from fitkit.observe.landmarks.types import Landmarks


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_predictor(FitkitInit(load_model("generic"), (), FitkitInitOptions(size=32)), "fitkit_init", path)
    return str(path)


def marks(views=2):
    points = torch.rand(views, 68, 2) * 100 + torch.tensor([[[50.0, 20.0]]])
    return Landmarks(
        points,
        torch.full((views, 68), torch.nan),
        torch.ones(views, 68, dtype=torch.bool),
        torch.ones(views, 68),
        "surface",
    )


def test_how_landmarks_are_perturbed():
    good, rng = marks(), np.random.default_rng(0)
    bad, turn = perturb(good, "outliers", rng)
    moved = (bad.points != good.points).any(-1)
    assert all(OUTLIERS[0] <= n / 68 + 0.01 and n / 68 - 0.01 <= OUTLIERS[1] for n in moved.sum(1).tolist())
    assert turn is None and bool(bad.valid.all())
    low, high = good.points.amin(1, keepdim=True), good.points.amax(1, keepdim=True)
    assert bool(((bad.points >= low) & (bad.points <= high)).all())
    assert perturb(good, "missing", rng)[0].valid.sum(1).tolist() == [KEPT_POINTS] * 2
    side = perturb(good, "profile", rng)[0].valid
    assert bool((side.sum(1) >= KEPT_POINTS).all()) and bool((~side).any()) and bool(side[:, 27:36].all())
    same, turn = perturb(good, "turned", rng)
    assert torch.equal(same.points, good.points)
    angle = torch.rad2deg(turn.norm(dim=1))
    assert bool(((angle > 59.9) & (angle < 150.1)).all())
    assert torch.equal(
        perturb(good, "outliers", np.random.default_rng(5))[0].points,
        perturb(good, "outliers", np.random.default_rng(5))[0].points,
    )


@pytest.mark.slow
def test_all_starts_are_measured(anna, tmp_path, weights):
    shutil.copytree(anna, tmp_path / "data" / "anna")
    lines = []
    report = measure(tmp_path / "data", recipes=("landmarks",), weights=weights, trials=4, tell=lines.append)
    fits = [r for r in report["rows"] if r["recipe"] == "landmarks"]
    assert [r["start"] for r in fits] == list(STARTS) and all(r["iterations"] > 0 for r in fits)
    assert fits[2]["taken"] == "landmarks" and fits[2]["reprojection_share"] == pytest.approx(
        fits[0]["reprojection_share"]
    )
    assert report["rows"][0]["recipe"] == "prediction" and report["rows"][0]["iterations"] == 0
    assert [r["kind"] for r in report["trials"]] == [k for k in KINDS for _ in STARTS]
    assert all(isinstance(r["arrived"], bool) for r in report["trials"]) and len(lines) == 4 + 4
    again = measure(tmp_path / "data", recipes=(), weights=weights, trials=4)
    assert [r["away_deg"] for r in again["trials"]] == [r["away_deg"] for r in report["trials"]]


def test_means_and_shares():
    rows = [
        {
            "model": "m",
            "recipe": "r",
            "start": s,
            "subject": p,
            "error": "",
            "taken": s,
            "iterations": i,
            "seconds": 1.0,
            "reprojection_share": 0.02,
            "now_mean": e,
        }
        for s, p, e, i in (
            ("landmarks", "a", 1.0, 10),
            ("landmarks", "b", 2.0, 30),
            ("regressor", "a", 1.1, 10),
            ("regressor", "b", 1.0, 20),
        )
    ]
    one, two = summarize(rows)
    assert (
        one["now_mean"] == 1.5 and one["iterations"] == 20 and one["worst_change_percent"] == pytest.approx(0)
    )
    assert (
        two["now_mean"] == pytest.approx(1.05)
        and two["worst_change_percent"] == pytest.approx(10)
        and two["regressor_taken"] == 2
    )
    trials = [
        {"kind": k, "start": "auto", "arrived": a, "iterations": 5}
        for k, a in (("missing", True), ("missing", False), ("turned", True))
    ]
    shares = {e["kind"]: e["arrived"] for e in summarize_trials(trials)}
    assert shares == {"missing": 0.5, "turned": 1.0, "all": pytest.approx(2 / 3)}


@pytest.mark.slow
def test_the_command(anna, tmp_path, weights):
    shutil.copytree(anna, tmp_path / "data" / "anna")
    path = tmp_path / "init.json"
    run = CliRunner().invoke(
        main,
        [
            "bench",
            "init",
            str(tmp_path / "data"),
            "--recipe",
            "landmarks",
            "--weights",
            weights,
            "--trials",
            "1",
            "--json",
            str(path),
        ],
    )
    assert run.exit_code == 0, run.output
    assert (
        "regressor taken" in run.output
        and "recovered" in run.output
        and json.loads(path.read_text())["benchmark"] == "init"
    )
    with pytest.raises(InputError, match="no subject folder below it"):
        measure(path.parent / "data" / "anna")
