"""What each energy between the photos is worth: arms of a recipe, numbers of views and sets of subjects in one table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Sequence

from fitkit.errors import InputError
from fitkit.evaluate.bench import Tell, _number, _table, load_truth, load_views, predict, score, subject_names
from fitkit.evaluate.machine import machine
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.options import Length, Natural, apply_overrides, build, check_options, read_yaml, to_plain
from fitkit.io.resources import find_recipe
from fitkit.models.registry import load_model


@dataclass(frozen=True)
class Arm:
    """A fit recipe with changes, under a name of its own."""

    name: str
    recipe: str = "multiview"
    overrides: tuple[str, ...] = ()

    def load(self) -> FitRecipe:
        return replace(load_recipe(self.recipe, self.overrides), name=self.name)


@dataclass(frozen=True)
class AblationRecipe:
    """views: positions of the photos that are used, from 0, for each number of views; sets: name -> beginning of the names of
    its subjects; arms: what is compared, the first is what gains are stated against."""

    name: str
    arms: Annotated[tuple[Arm, ...], Length(1)]
    views: Annotated[tuple[Annotated[tuple[Natural, ...], Length(1)], ...], Length(1)] = ((0, 1, 2, 3, 4),)
    sets: dict[str, str] = field(default_factory=lambda: {"all": ""})

    def __post_init__(self):
        check_options(self, f"ablation '{self.name}'")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"ablation '{self.name}': two arms have one name; there are: {', '.join(names)}")


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
        what the JSON file holds: machine, resolved recipes, one row for each fit, means by model, arm, views and set.
    Raises:
        InputError: unusable data, unknown subject or model, views that a subject does not have, no subject in any set.
    """
    names = subject_names(data)
    unknown = [s for s in subjects if s not in names]
    if unknown:
        raise InputError(f"{data}: no subject '{unknown[0]}'; there are: {', '.join(names)}")
    names = [n for n in names if not subjects or n in subjects]
    sets = recipe.sets
    member = {n: next((key for key, start in sets.items() if n.startswith(start)), None) for n in names}
    names = [n for n in names if member[n] is not None]
    if not names:
        raise InputError(
            f"{data}: no subject belongs to a set of ablation '{recipe.name}' ({', '.join(sets.values())})"
        )
    truths = {n: load_truth(Path(data) / "ground_truth" / n) for n in names}
    plans = [arm.load() for arm in recipe.arms]
    chosen = {(n, views): load_views(Path(data) / n, views) for n in names for views in recipe.views}
    rows, facts = [], machine()
    for model in [load_model(name) for name in models]:
        for views in recipe.views:
            for plan in plans:
                for n in names:
                    p = predict(n, *chosen[n, views], model, plan)
                    errors = score(p, truths[n])
                    rows.append(
                        {
                            "model": model.name,
                            "arm": plan.name,
                            "views": len(views),
                            "set": member[n],
                            "subject": n,
                            "now_mean": errors["now_mean"],
                            "now_median": errors["now_median"],
                            "seconds": p.seconds,
                            "status": p.status,
                            "error": p.error,
                        }
                    )
                done = [r["now_mean"] for r in rows[-len(names) :] if r["now_mean"] is not None]
                tell(
                    f"{model.name}, {len(views)} view(s), {plan.name}: "
                    + (f"{sum(done) / len(done):.3f} mm" if done else "all failed")
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


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the subjects by model, number of views, arm and set; fits that failed are counted and left out of the means.

    gain: 1 - now_mean / now_mean of the first arm, for the same model, views and set, over the subjects that both fitted.
    """
    out = []
    for key in dict.fromkeys((r["model"], r["views"], r["arm"], r["set"]) for r in rows):
        group = [r for r in rows if (r["model"], r["views"], r["arm"], r["set"]) == key]
        line = dict(zip(("model", "views", "arm", "set"), key)) | {
            "subjects": len(group),
            "failed": sum(r["now_mean"] is None for r in group),
        }
        for name in ("now_mean", "now_median", "seconds"):
            values = [r[name] for r in group if r[name] is not None]
            line[name] = sum(values) / len(values) if values else None
        out.append(line)
    first = {}
    for r in rows:
        first.setdefault((r["model"], r["views"], r["set"], r["subject"]), r["now_mean"])
    for line in out:
        group = [
            r
            for r in rows
            if all(r[k] == line[k] for k in ("model", "views", "arm", "set")) and r["now_mean"] is not None
        ]
        pairs = [(r["now_mean"], first[r["model"], r["views"], r["set"], r["subject"]]) for r in group]
        both = [p for p in pairs if p[1] is not None]
        line["gain"] = 1 - sum(p[0] for p in both) / sum(p[1] for p in both) if both else None
    return out


def ablation_text(report: dict[str, Any]) -> str:
    """One table for each model: arms and numbers of views down, sets across."""
    sets = report["ablation"]["sets"]
    parts = []
    for model in dict.fromkeys(s["model"] for s in report["summary"]):
        lines = [s for s in report["summary"] if s["model"] == model]
        head = (
            "views",
            "evidence",
            *(f"{name} {what}" for name in sets for what in ("mean", "median", "gain %")),
            "solve s",
        )
        body = []
        for views, arm in dict.fromkeys((s["views"], s["arm"]) for s in lines):
            cells = {s["set"]: s for s in lines if (s["views"], s["arm"]) == (views, arm)}
            row = [str(views), arm]
            for name in sets:
                s = cells.get(name, {"now_mean": None, "now_median": None, "gain": None})
                row += [
                    _number(s["now_mean"]),
                    _number(s["now_median"]),
                    _number(None if s["gain"] is None else 100 * s["gain"], 0),
                ]
            same = [r for r in report["rows"] if (r["model"], r["views"], r["arm"]) == (model, views, arm)]
            seconds = [r["seconds"] for r in same if r["seconds"] is not None]
            body.append([*row, _number(sum(seconds) / len(seconds) if seconds else None, 2)])
        parts += [model, _table(head, body), ""]
    named = ", ".join(f"{name} = {start}*" for name, start in sets.items())
    parts += [
        f"Sets: {named}. mm: scan-to-mesh distance of the neutral shape, NoW protocol;",
        "gain: less error than the first arm with the same photos; solve s: wall time of the solver, mean over all subjects.",
    ]
    parts += [
        f"{r['model']} {r['arm']} {r['subject']}, {r['views']} view(s): {r['error']}"
        for r in report["rows"]
        if r["error"]
    ]
    return "\n".join(parts)
