import json

import pytest
from click.testing import CliRunner
from test_bench import PEOPLE, data  # noqa: F401, the fixture

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.evaluate import methods
from fitkit.evaluate.bench import ablation as module
from fitkit.evaluate.bench.ablation import (
    AblationRecipe,
    Arm,
    ablation,
    ablation_text,
    load_ablation,
    summarize,
)
from fitkit.evaluate.bench.photos import load_views
from fitkit.evaluate.bench.scores import score_neutral
from fitkit.evaluate.bench.truth import load_truth
from fitkit.evaluate.predictions import face_of_fit
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.models.registry import load_model

ARMS = (
    Arm("points", "landmarks"),
    Arm(
        "+ photo",
        "multiview",
        ("stages.flow.energies.flow_corr=false", "stages.fine.energies.flow_corr=false"),
    ),
)


def test_shipped_recipe_has_every_energy_and_loads():
    recipe = load_ablation()
    plans = {arm.name: recipe.plan(arm) for arm in recipe.arms}
    used = {name: {e for stage in plan.stages for e in stage.energies} for name, plan in plans.items()}
    between = {"photo_xview", "census_xview", "flow_corr", "flow_triangulated"}
    assert [len(v) for v in recipe.views] == [1, 2, 3, 5] and set(recipe.sets) == {"A", "B", "C"}
    assert used["landmarks"] & between == set() and used["all"] >= between
    for name, energy in (
        ("+ photo", "photo_xview"),
        ("+ census", "census_xview"),
        ("+ flow_corr", "flow_corr"),
        ("+ flow_triangulated", "flow_triangulated"),
    ):
        assert used[name] & between == {energy}, name
    default = load_recipe("multiview")
    last = plans["+ flow_corr + detail (multiview)"]
    assert last.stages == default.stages and last.detail == default.detail and list(plans)[-1] == last.name
    assert [name for name, plan in plans.items() if plan.detail.enabled] == [last.name]
    census = [s for s in plans["+ census"].stages if "census_xview" in s.energies]
    assert census[0].solver.refresh >= len(
        census[0].energies["census_xview"].options.sigmas
    )  # each sigma has its turn


@pytest.mark.slow
def test_rows_are_the_fits_of_their_views(data):  # noqa: F811
    folder, model = data
    recipe = AblationRecipe("tiny", ARMS, ((1,), (0, 2, 3)), {"first": PEOPLE[0], "second": PEOPLE[1]})
    report = ablation(folder, recipe, [model])
    assert [(r["views"], r["arm"], r["set"]) for r in report["rows"]] == [
        (n, a.name, s) for n in (1, 3) for a in ARMS for s in ("first", "second")
    ]
    subject, found = load_views(folder / PEOPLE[1], (0, 2, 3))
    result = fit_observed(subject, found, load_model(model), AblationRecipe("two", ARMS).plan(ARMS[1]))
    alone = score_neutral(face_of_fit(result), load_truth(folder / "ground_truth" / PEOPLE[1])).values
    assert report["rows"][-1]["now_mean"] == alone["now_mean"]  # though the fit went through files
    single = {(r["arm"], r["set"]): r["now_mean"] for r in report["rows"] if r["views"] == 1}
    assert all(
        single["points", s] == single["+ photo", s] for s in ("first", "second")
    )  # one photo has no other to compare with
    text = ablation_text(report)
    assert "+ photo" in text and "first mean" in text and "second gain %" in text


def test_gain_is_against_the_first_arm_and_failures_are_counted():
    def row(arm, subject, mean, error=""):
        return {
            "model": "m",
            "arm": arm,
            "views": 5,
            "set": "A",
            "subject": subject,
            "now_mean": mean,
            "now_median": mean,
            "seconds": 1.0,
            "status": "ok",
            "error": error,
        }

    lines = summarize(
        [row("one", "a", 1.0), row("one", "b", 3.0), row("two", "a", 1.5), row("two", "b", None, "lost")]
    )
    assert [line["now_mean"] for line in lines] == [2.0, 1.5]
    assert [line["failed"] for line in lines] == [0, 1]
    assert lines[0]["gain"] == 0 and lines[1]["gain"] == -0.5  # against the same subject alone


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda d: ablation(d, AblationRecipe("x", ARMS, ((0,),), {"A": "nobody"})),
            "no subject belongs to a set of ablation 'x' \\(nobody\\)",
        ),
        (
            lambda d: ablation(d, AblationRecipe("x", ARMS, ((0,),)), subjects=["carl"]),
            "no subject 'carl'; there are: anna, ben",
        ),
        (
            lambda d: ablation(d, AblationRecipe("x", ARMS, ((7,),)), ["generic"]),
            "anna: views: expected numbers from 0 to 3, got \\[7\\]",
        ),
        (lambda d: AblationRecipe("x", ()), "ablation 'x': arms: expected a list of 1 to 1000 items"),
        (lambda d: AblationRecipe("x", (ARMS[0], ARMS[0])), "two arms have one name"),
        (lambda d: load_ablation("ablatio"), "did you mean 'ablation'"),
        (lambda d: load_ablation("ablation", ["view=[[0]]"]), "unknown key 'view'; did you mean 'views'"),
    ],
)
def test_refusals(data, call, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        call(data[0])


def test_what_cannot_be_run_is_refused_before_the_first_fit(data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "measure", lambda *args: pytest.fail("a fit was started"))
    with pytest.raises(InputError, match="views: expected numbers from 0 to 3"):
        ablation(data[0], AblationRecipe("x", ARMS, ((0,), (0, 7))), ["generic"])
    with pytest.raises(InputError, match="unknown model 'none'"):
        ablation(data[0], AblationRecipe("x", ARMS, ((0,),)), ["generic", "none"])


@pytest.mark.slow
def test_command_prints_and_writes(data, tmp_path, monkeypatch):  # noqa: F811
    path = tmp_path / "out.json"
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "name: two\nviews: [[0, 2]]\narms:\n  - {name: points, recipe: landmarks}\n  - {name: short, "
        "recipe: landmarks, overrides: [stages.landmarks.solver.max_iterations=1]}\n"
    )
    result = CliRunner().invoke(
        main,
        ["bench", "ablation", str(data[0]), "--recipe", str(recipe), "--model", data[1], "--json", str(path)],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert (
        report["benchmark"] == "ablation"
        and len(report["rows"]) == 4
        and report["recipes"]["short"]["name"] == "short"
    )

    def broken(*args):
        raise FitError("lost")

    monkeypatch.setattr(methods, "fit_observed", broken)
    failed = CliRunner().invoke(
        main, ["bench", "ablation", str(data[0]), "--recipe", str(recipe), "--model", data[1]]
    )
    assert failed.exit_code == 1 and "some fits failed" in failed.output and "lost" in failed.output
