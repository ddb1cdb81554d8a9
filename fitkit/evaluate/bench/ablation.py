"""What each energy between the photos is worth: arms of a recipe, numbers of views and sets of subjects in
one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from fitkit.errors import InputError
from fitkit.evaluate.bench.arms import Arm, expanded
from fitkit.evaluate.bench.measure import load_person, measure
from fitkit.evaluate.bench.photos import Tell, load_views
from fitkit.evaluate.bench.truth import load_truth, subject_names
from fitkit.evaluate.machine import machine
from fitkit.evaluate.tables import Row, grouped, known, mean_or_none, means, number, text_table
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.options import Length, Natural, apply_overrides, build, check_options, read_yaml, to_plain
from fitkit.io.resources import find_recipe
from fitkit.models.registry import load_model

KEPT = ("now_mean", "now_median", "seconds", "status", "error")  # of what is measured


@dataclass(frozen=True)
class AblationRecipe:
    """views: positions of the photos that are used, from 0, for each number of views; sets: name -> beginning
    of the names of its subjects; arms: fit recipes with changes, the first is what gains are stated against;
    recipe: of the arms that name none."""

    name: str
    arms: Annotated[tuple[Arm, ...], Length(1)]
    views: Annotated[tuple[Annotated[tuple[Natural, ...], Length(1)], ...], Length(1)] = ((0, 1, 2, 3, 4),)
    sets: dict[str, str] = field(default_factory=lambda: {"all": ""})
    recipe: str = "multiview"

    def __post_init__(self):
        check_options(self, f"ablation '{self.name}'")
        object.__setattr__(self, "arms", expanded(self.arms, f"ablation '{self.name}'"))

    def plan(self, arm: Arm) -> FitRecipe:
        """The recipe of an arm, under its name."""
        return replace(load_recipe(arm.recipe or self.recipe, arm.overrides), name=arm.name)


def load_ablation(name: str | os.PathLike = "ablation", overrides: Sequence[str] = ()) -> AblationRecipe:
    """A shipped recipe by name or any recipe file by path, with 'a.b=value' lines laid over it.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types.
    """
    path = find_recipe("bench", name)
    return build(AblationRecipe, apply_overrides(read_yaml(path), overrides), path.name)


def ablation(
    data: str | os.PathLike,
    recipe: AblationRecipe,
    models: Sequence[str] = ("ict", "generic"),
    subjects: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Fit every subject with every model, arm and number of views, and score the neutral shapes.

    Args:
        data: as for `bench.accuracy`; models: names or paths; subjects: names to use, empty: all.
        tell: gets one line for each model, arm and number of views.
    Returns:
        what the JSON file holds: machine, resolved recipes, one row for each fit, means by model, arm, views
            and set.
    Raises:
        InputError: unusable data, unknown subject or model, views that a subject does not have, no subject in
            any set.
    """
    names, member = subject_names(data, subjects), {}
    for name in names:
        sets = [key for key, start in recipe.sets.items() if name.startswith(start)]
        member |= {name: sets[0]} if sets else {}
    if not member:
        raise InputError(
            f"{data}: no subject belongs to a set of ablation '{recipe.name}' "
            f"({', '.join(recipe.sets.values())})"
        )
    plans = [recipe.plan(arm) for arm in recipe.arms]
    truths = {n: load_truth(Path(data) / "ground_truth" / n) for n in member}
    people = {
        views: [load_person(Path(data), n, truths[n], *load_views(Path(data) / n, views)) for n in member]
        for views in recipe.views
    }
    rows, facts = [], machine()
    for name, model in [(name, load_model(name).name) for name in models]:
        for views in recipe.views:
            for plan in plans:
                first = {"model": model, "arm": plan.name, "views": len(views)}
                some = [
                    first | {"set": member[person.name], "subject": person.name} | {k: row[k] for k in KEPT}
                    for person, row in zip(people[views], measure(people[views], name, plan))
                ]
                rows += some
                done = mean_or_none(known(some, "now_mean"))
                tell(
                    f"{model}, {len(views)} view(s), {plan.name}: "
                    + ("all failed" if done is None else f"{done:.3f} mm")
                )
    return {
        "benchmark": "ablation",
        "data": Path(data).resolve().name,
        "unit": "mm",
        "machine": facts,
        "ablation": to_plain(recipe),
        "recipes": {p.name: to_plain(p) for p in plans},
        "rows": rows,
        "summary": summarize(rows),
    }


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the subjects by model, number of views, arm and set; fits that failed are counted and left
    out of the means.

    gain: 1 - now_mean / now_mean of the first arm, for the same model, views and set, over the subjects that
    both fitted.
    """
    base: dict[tuple, Any] = {}
    for r in rows:
        base.setdefault((r["model"], r["views"], r["set"], r["subject"]), r["now_mean"])
    out = []
    for (model, views, arm, name), group in grouped(rows, "model", "views", "arm", "set").items():
        line = {"model": model, "views": views, "arm": arm, "set": name, "subjects": len(group)}
        line["failed"] = sum(r["now_mean"] is None for r in group)
        line |= means(group, ("now_mean", "now_median", "seconds"))
        both = [r for r in group if None not in (r["now_mean"], base[model, views, name, r["subject"]])]
        mine, theirs = (
            sum(r["now_mean"] for r in both),
            sum(base[model, views, name, r["subject"]] for r in both),
        )
        line["gain"] = 1 - mine / theirs if both else None
        out.append(line)
    return out


def ablation_text(report: dict[str, Any]) -> str:
    """One table for each model: arms and numbers of views down, sets across."""
    sets = report["ablation"]["sets"]
    parts = []
    for (model,), lines in grouped(report["summary"], "model").items():
        head = (
            "views",
            "evidence",
            *(f"{name} {what}" for name in sets for what in ("mean", "median", "gain %")),
            "solve s",
        )
        body = []
        for (views, arm), some in grouped(lines, "views", "arm").items():
            cells, row = {s["set"]: s for s in some}, [str(views), arm]
            for name in sets:
                s = cells.get(name, {"now_mean": None, "now_median": None, "gain": None})
                gain = None if s["gain"] is None else 100 * s["gain"]
                row += [number(s["now_mean"]), number(s["now_median"]), number(gain, 0)]
            same = [r for r in report["rows"] if (r["model"], r["views"], r["arm"]) == (model, views, arm)]
            body.append([*row, number(mean_or_none(known(same, "seconds")), 2)])
        parts += [model, text_table(head, body), ""]
    named = ", ".join(f"{name} = {start}*" for name, start in sets.items())
    parts += [
        f"Sets: {named}. mm: scan-to-mesh distance of the neutral shape, NoW protocol;",
        "gain: less error than the first arm with the same photos; solve s: wall time of the solver, mean "
        "over all subjects.",
    ]
    parts += [
        f"{r['model']} {r['arm']} {r['subject']}, {r['views']} view(s): {r['error']}"
        for r in report["rows"]
        if r["error"]
    ]
    return "\n".join(parts)
