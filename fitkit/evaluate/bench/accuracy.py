"""How well faces are found whose shape is known, by face model, recipe and number of photos: `fitkit bench
accuracy`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitkit.errors import InputError
from fitkit.evaluate.bench.measure import Person, load_person, measure, outcome_text
from fitkit.evaluate.bench.photos import Tell, load_views
from fitkit.evaluate.bench.scores import COVERAGE, ERRORS, MILLIMETRES, PHOTOS
from fitkit.evaluate.bench.truth import load_truth, subject_names
from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import Outcome
from fitkit.evaluate.tables import Row, grouped, means, medians, number, percent, text_table
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.options import to_plain
from fitkit.models.registry import load_model

MEAN_FACE = "mean face"
NUMBERS = (*ERRORS, *PHOTOS, *COVERAGE, "seconds", "cpu_seconds")


def accuracy(
    data: str | os.PathLike,
    models: Sequence[str] = ("ict", "generic"),
    recipes: Sequence[str] = ("landmarks", "multiview"),
    subjects: Sequence[str] = (),
    views: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
    photos: Sequence[int] = (),
    keep: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Fit every subject with every model and recipe, then score all shapes: neutral and, where the truth has
    it, in the photos.

    Args:
        data: folder with SUBJECT/ (images, landmarks) and ground_truth/SUBJECT/.
        models, recipes: names or paths; the mean face of each model is always scored.
        subjects: names to use; empty: all. views: positions of the views to use; None: all.
        overrides: 'key=value' changes of every recipe. tell: gets one line for each finished fit.
        photos: numbers of photos; one fit with each, of photos chosen by `spread_positions`; empty: one fit
            with `views`.
        keep: folder for the predictions, by model, recipe and number of photos; those that are there are not
            made again.
    Returns:
        what the JSON file holds: machine, resolved recipes, one row for each fit, means by model, recipe and
            number of photos
        (None: not asked for; the mean face knows none).
    Raises:
        InputError: unusable data, unknown subject, model or recipe, not so many photos, or both views and
            photos given.
    """
    if photos and views is not None:
        raise InputError(
            f"views, photos: expected one of them, got views {list(views)} and photos {list(photos)}"
        )
    names = subject_names(data, subjects)
    truths = {n: load_truth(Path(data) / "ground_truth" / n) for n in names}
    plans = [load_recipe(r, overrides) for r in recipes]
    sources = list(dict.fromkeys(r.landmarks.source for r in plans)) or ["auto"]
    counts: list[int | None] = [*dict.fromkeys(photos)] or [None]
    people = {
        (source, count): [
            load_person(Path(data), n, truths[n], *load_views(Path(data) / n, views, source, count))
            for n in names
        ]
        for source in sources
        for count in counts
    }
    rows, facts = [], machine()
    for model in models:
        rows += _rows_of(people[sources[0], counts[-1]], model, None, None, keep, tell)
        for recipe in plans:
            for count in counts:
                rows += _rows_of(people[recipe.landmarks.source, count], model, recipe, count, keep, tell)
    return {
        "benchmark": "accuracy",
        "data": Path(data).resolve().name,
        "unit": "mm",
        "machine": facts,
        "overrides": list(overrides),
        "view_positions": None if views is None else list(views),
        "photos": list(photos) or None,
        "recipes": {r.name: to_plain(r) for r in plans},
        "rows": rows,
        "summary": summarize(rows),
    }


def _rows_of(
    people: Sequence[Person],
    model: str,
    recipe: FitRecipe | None,
    count: int | None,
    keep: str | os.PathLike | None,
    tell: Tell,
) -> list[Row]:
    """A row for each person, of fits or, without a recipe, of the mean face."""
    name, recipe_name = load_model(model).name, MEAN_FACE if recipe is None else recipe.name

    def first(person: Person) -> Row:
        return {"model": name, "recipe": recipe_name, "subject": person.name, "photos": count}

    def fitted(person: Person, outcome: Outcome) -> None:
        if recipe is not None:
            tell(f"{label(first(person))}: {outcome_text(outcome)}")

    folder = None if keep is None else Path(keep, name, recipe_name, str(count or "all"))
    return [
        first(person) | {"views": len(person.subject.views)} | measured
        for person, measured in zip(people, measure(people, model, recipe, folder, fitted))
    ]


def label(row: Row) -> str:
    """Which fit it is."""
    photos = f", {row['photos']} photo{'s' * (row['photos'] > 1)}" if row["photos"] else ""
    return f"{row['model']} {row['recipe']} {row['subject']}{photos}"


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the subjects by model, recipe and number of photos; fits that failed are counted and left
    out of the means.

    medians: the same numbers, medians over the subjects.
    gain_on_landmarks: 1 - now_mean / now_mean of the recipe 'landmarks' of the same model with as many
    photos.
    """
    out: dict[tuple, Row] = {}
    for (model, recipe, photos), group in grouped(rows, "model", "recipe", "photos").items():
        out[model, recipe, photos] = {
            "model": model,
            "recipe": recipe,
            "photos": photos,
            "subjects": len(group),
            "failed": sum(r["now_mean"] is None for r in group),
            "medians": medians(group, NUMBERS),
        } | means(group, NUMBERS)
    for (model, recipe, photos), line in out.items():
        base = out.get((model, "landmarks", photos), {}).get("now_mean")
        other = recipe not in ("landmarks", MEAN_FACE)
        line["gain_on_landmarks"] = (
            1 - line["now_mean"] / base if other and base and line["now_mean"] else None
        )
    return list(out.values())


def accuracy_text(report: dict[str, Any]) -> str:
    """The report as an aligned table."""
    head = (
        "model",
        "recipe",
        "subject",
        "views",
        "mean",
        "median",
        "mean*",
        "median*",
        "vertex",
        "rigid",
        "size %",
        *PHOTOS,
        "1 sigma",
        "2 sigma",
        "solve s",
        "CPU s",
        "status",
    )

    def cells(values: dict[str, Any]) -> list[str]:
        return [
            *(number(values[k]) for k in MILLIMETRES),
            number(values["size_percent"], 1),
            *(number(values[k]) for k in PHOTOS),
            *(percent(values[k]) for k in COVERAGE),
            number(values["seconds"], 2),
            number(values["cpu_seconds"], 2),
        ]

    rows = [
        [r["model"], r["recipe"], r["subject"], str(r["views"]), *cells(r), r["status"]]
        for r in report["rows"]
    ]
    totals = {"Means": [], "Medians": []}
    for s in report["summary"]:
        name = [
            s["model"],
            s["recipe"],
            f"all {s['subjects']}" + (f", {s['failed']} failed" if s["failed"] else ""),
            str(s["photos"] or ""),
        ]
        gain = (
            "" if s["gain_on_landmarks"] is None else f"{-100 * s['gain_on_landmarks']:+.0f} % on landmarks"
        )
        totals["Means"].append([*name, *cells(s), gain])
        totals["Medians"].append([*name, *cells(s["medians"]), ""])
    failures = [f"{label(r)}: {r['error']}" for r in report["rows"] if r["error"]]
    notes = [
        "mm. mean, median: scan-to-mesh distance on the NoW crop, similarity from 7 landmarks, then "
        "refined on the surface; from points",
        "spread evenly over the visible skin of the face.",
        "*: without the refinement. vertex, rigid: same-topology vertex error of the narrow face after a "
        "similarity and after",
        "a rigid motion. size %: how much too large (mean of 68 landmarks; the mean over subjects keeps "
        "the sign).",
        "photos_mean, photos_median: as mean, median, of the face with its expression in each photo, mean "
        "over the photos.",
        "1 sigma, 2 sigma: share of the scan points within so many of the error bars (exact ones: 68 %, 95 "
        "%).",
        "solve s: wall time of the solver; CPU s: crop, solver and report.",
    ]
    sums = [
        line
        for title, lines in totals.items()
        for line in (f"{title} over the subjects", text_table(head, lines), "")
    ]
    return "\n".join([text_table(head, rows), "", *sums, *notes, *failures])
