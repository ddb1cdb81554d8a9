"""Trainings of one recipe with changes, side by side."""

import json
from dataclasses import replace

import layouts
import pytest
import yaml
from click.testing import CliRunner

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.evaluate.bench.arms import Arm, expanded
from fitkit.nets import load_predictor
from fitkit.train.ablation import (
    _plan,
    load_training_ablation,
    summarize,
    training_ablation,
    training_ablation_text,
)
from fitkit.train.regressor import train_regressor

TRAINING = {
    "name": "small",
    "net": {"name": "fitkit_init", "options": {"size": 32, "token": 16, "heads": 2, "hidden": 24}},
    "views": [],
    "data": [
        {"name": "s", "kind": "synthetic", "options": {"count": 5, "overrides": ["size=48", "views=1"]}}
    ],
    "validation": {"share": 0.6},
    "batch": 2,
    "pictures": 0,
    "accelerator": "cpu",
    "stages": [
        {"name": "first", "steps": 2, "energies": {"lmk2d": {}, "identity_sup": {}}},
        {"name": "second", "steps": 2, "learning_rate": 1e-3, "energies": {"lmk2d": {}, "identity_sup": {}}},
    ],
}
ABLATION = {
    "name": "both",
    "training": "small.yaml",
    "shared": ["first"],
    "held_out": ["shape_mm", "nme_percent"],
    "arms": [
        {"name": "all"},
        {"name": "no labels", "overrides": ["stages.second.energies.identity_sup=false"]},
    ],
    "evaluations": [
        {"name": "yaw", "protocol": "aflw2000", "overrides": ["fit.landmarks.source=files"]},
    ],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(TRAINING))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(ABLATION))
    return tmp_path


def load(*overrides):
    return load_training_ablation("both.yaml", overrides)


def counted(done):
    """What trains, and a list of the folders it trained into."""

    def train(settings, folder, **options):
        done.append(folder.relative_to(folder.parents[2] if "arms" in folder.parts else folder.parents[1]))
        return train_regressor(settings, folder, **options)

    return train


@pytest.mark.slow
def test_each_arm_is_trained_and_measured_and_goes_on(place):
    done, lines = [], []
    train = counted(done)

    def cut(settings, folder, **options):
        if "no_labels" in folder.parts:
            raise KeyboardInterrupt
        return train(settings, folder, **options)

    with pytest.raises(KeyboardInterrupt):
        training_ablation(load(), "out", train=cut)
    assert [str(f) for f in done] == ["shared/training", "arms/all/training"]
    assert len(json.loads((place / "out" / "ablation.json").read_text())["rows"]) == 1
    with pytest.raises(InputError, match="out: there is an ablation in it; go on with --resume, or give"):
        training_ablation(load(), "out")
    report = training_ablation(load(), "out", resume=True, train=train, progress=lines.append)
    assert [str(f) for f in done[2:]] == ["arms/no_labels/training"]  # nothing twice
    assert json.loads((place / "out" / "ablation.json").read_text()) == report
    rows = report["rows"]
    assert [(r["arm"], r["seed"], r["error"]) for r in rows] == [("all", 0, ""), ("no labels", 0, "")]
    card = json.loads((place / "out/arms/all/training/card.json").read_text())
    assert rows[0]["shape_mm"] == card["metrics"]["shape_mm"] > 0 and "vertex_mm" not in rows[0]
    assert [s["name"] for s in card["stages"]] == ["second"]
    text = training_ablation_text(report)
    assert "no labels" in text and "left out, without a folder: yaw; give evaluations.yaw.folder=" in text
    assert "all, seed 0: training" in lines
    # Another arm may be added, another recipe of the same arm not.
    more = replace(load(), arms=(*load().arms, Arm("slow", overrides=("stages.second.learning_rate=1e-6",))))
    assert len(training_ablation(more, "out", resume=True, train=train)["rows"]) == 3
    assert str(done[-1]) == "arms/slow/training" and len(done) == 4
    with pytest.raises(InputError, match="belongs to another recipe"):
        training_ablation(load("train.batch=1"), "out", resume=True)


@pytest.mark.slow
def test_arms_go_on_from_what_they_share(place):
    training_ablation(load("arms=[{name: still, overrides: [stages.second.learning_rate=1e-9]}]"), "out")
    first, arm = (
        load_predictor(place / "out" / name / "training" / "regressor.safetensors")
        for name in ("shared", "arms/still")
    )
    learned = [
        (a, b) for (a, b) in zip(first.parameters(), arm.parameters()) if a.requires_grad and a.numel() > 1
    ]
    assert learned and all((a - b).abs().max() < 1e-4 for a, b in learned)


@pytest.mark.slow
def test_evaluations_and_seeds(place):
    layouts.aflw2000(place / "aflw", layouts.person(), yaws=(10.0,))
    given = ["evaluations.yaw.folder=aflw", "evaluations.yaw.metrics=[nme_2d]", "seeds=[0, 1]"]
    given.append("evaluations.yaw.overrides=[fit.landmarks.source=builtin]")
    report = training_ablation(load(*given, "arms=[{name: all}]"), "out")
    assert [r["seed"] for r in report["rows"]] == [0, 1]
    line = report["summary"][0]
    values = [r["shape_mm"] for r in report["rows"]]
    assert values[0] != values[1]
    assert line["seeds"] == 2 and line["shape_mm"]["mean"] == pytest.approx(sum(values) / 2)
    assert line["shape_mm"]["spread"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert "yaw failed" in line and (place / "out/arms/all/seed_1/yaw/metrics.json").is_file()
    assert "+-" in training_ablation_text(report)


def test_a_training_that_fails_is_a_row(place):
    def broken(settings, folder, **options):
        if "no_labels" in folder.parts:
            raise FitError("step 3: the loss is no number")
        return train_regressor(settings, folder, **options)

    report = training_ablation(load(), "out", train=broken)
    assert [r["error"] for r in report["rows"]] == ["", "step 3: the loss is no number"]
    assert [s["failed"] for s in report["summary"]] == [0, 1]
    assert "no labels, seed 0: step 3: the loss" in training_ablation_text(report)


def test_the_command(place, monkeypatch):
    arguments = ["bench", "trainings", "both.yaml", "arms=[{name: all}]", "train.stages.second.steps=1"]
    run = CliRunner().invoke(main, [*arguments, "-o", "out", "-q"])
    assert run.exit_code == 0, run.output
    assert "shape_mm" in run.output and "written: out/ablation.json" in run.output
    recipe = yaml.safe_load((place / "out/arms/all/training/recipe.yaml").read_text())
    assert recipe["stages"][0]["steps"] == 1
    again = CliRunner().invoke(main, [*arguments, "-o", "out", "-q"])
    assert again.exit_code == 1 and "go on with --resume" in again.output


def test_sweeps_and_means():
    arms = expanded((Arm("plain"), Arm("weight", "", ("a.b={}", "c=1"), (0.1, 10.0))), "x")
    assert [(a.name, a.overrides) for a in arms] == [
        ("plain", ()),
        ("weight 0.1", ("a.b=0.1", "c=1")),
        ("weight 10", ("a.b=10", "c=1")),
    ]
    with pytest.raises(InputError, match=r"x: arm 'w': expected '\{\}' in one of its overrides"):
        expanded((Arm("w", values=(1.0,)),), "x")
    lines = summarize(
        [
            {"arm": "a", "seed": 0, "error": "", "m": 1.0},
            {"arm": "a", "seed": 1, "error": "lost"},
            {"arm": "b", "seed": 0, "error": "", "m": 3.0},
        ]
    )
    assert lines[0] == {"arm": "a", "seeds": 2, "failed": 1, "m": {"mean": 1.0, "spread": 0.0}}
    assert lines[1]["m"]["mean"] == 3.0


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["shared=[second]"],
            "shared: expected the first of the stages first, second of recipe 'small.yaml'",
        ),
        (["shared=[first, second]"], "and not all of them; got first, second"),
        (
            ["arms=[{name: a, overrides: [stages.first.steps=5]}]"],
            "arm 'a' changes stage 'first', and the stages first are trained once for all arms",
        ),
        (["arms=[{name: a, overrides: [model=ict]}]"], "arm 'a' changes 'model'"),
        (["held_out=[shape]"], "held_out: unknown key 'shape'; did you mean 'shape_mm'"),
        (["arms=[{name: a b}, {name: a_b}]"], "arms: two would have the folder 'a_b'; rename one"),
        (["seeds=[1, 2, 1]"], "seeds: one occurs twice in [1, 2, 1]; leave it out"),
        (["evaluations.yaw.folder=nowhere"], "evaluations.yaw.folder: no such folder: nowhere"),
        (["evaluations.yaw.protocol=aflw"], "did you mean 'aflw2000'"),
        (["train.nets=1"], "unknown key 'nets'"),
    ],
)
def test_refusals(place, overrides, message):
    with pytest.raises(InputError) as caught:
        training_ablation(load(*overrides), "out")
    assert message in str(caught.value)
    assert not (place / "out").exists()


def test_the_shipped_table_has_the_losses_of_the_paper():
    plan = _plan(load_training_ablation("pgn-losses"))
    assert [s.name for s in plan.first.stages] == ["decoder", "landmarks", "codes"]
    between = [set(settings.stages[0].energies) - {"lmk_guided", "prior_l1"} for _, settings in plan.arms]
    assert between == [
        set(),
        {"photo_xview"},
        {"census_xview"},
        {"census_xview", "flow_mag"},
        {"census_xview", "sem_feat"},
        {"census_xview", "sem_feat", "flow_mag"},
    ]
    for _, settings in plan.arms:
        assert [set(s.energies) for s in settings.stages] == 2 * [set(settings.stages[0].energies)]


def test_a_run_without_its_data_leaves_the_folder_free(place):
    """What was forgotten is added, without --resume."""
    unset = "train.data=[{name: lp, kind: 300wlp}]"
    for _ in range(2):
        with pytest.raises(InputError, match="data 'lp': its folder is not set"):
            training_ablation(load(unset), "out")
