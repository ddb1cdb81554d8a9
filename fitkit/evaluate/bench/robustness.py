"""What the start of a fit is worth: accuracy and work from each start, and fits of perturbed landmarks or
poses. `fitkit bench init`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitkit.errors import FitkitError, InputError
from fitkit.evaluate.bench.accuracy import MEAN_FACE
from fitkit.evaluate.bench.perturbation import STARTS, run_trials, summarize_trials
from fitkit.evaluate.bench.photos import Tell, load_views
from fitkit.evaluate.bench.scores import score_neutral
from fitkit.evaluate.bench.truth import Truth, load_truth
from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import PredictedFace, face_of_fit, face_of_model
from fitkit.evaluate.tables import Row, grouped, means, number, text_table
from fitkit.fitting.predict import predict
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.io.options import to_plain
from fitkit.io.subject import Subject, subject_folders
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.types import Landmarks

SHAPE = ("now_mean", "now_median", "points_mean")
NUMBERS = (*SHAPE, "reprojection_share", "iterations", "seconds")


def measure(
    data: str | os.PathLike,
    models: Sequence[str] = ("generic",),
    recipes: Sequence[str] = ("landmarks", "multiview"),
    weights: str = "",
    trials: int = 200,
    seed: int = 0,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Fits of all subjects of a folder from each start.

    Args:
        data: folder of subject folders; where ground_truth/SUBJECT lies beside one, as in `fitkit bench
            accuracy`, its mesh is scored.
        weights: of the network; empty = the shipped one. trials: perturbed fits from each start, recipe
            `landmarks`, first model; 0 = none.
        overrides: 'key=value' changes of every recipe.
    Returns:
        what the JSON file holds: rows of fits, rows of trials, means of both.
    Raises:
        InputError: no subject, unknown model or recipe.
    """
    data = Path(data)
    names = [
        p.relative_to(data).as_posix()
        for p in subject_folders(data)
        if p != data and "ground_truth" not in p.relative_to(data).parts
    ]
    if not names:
        raise InputError(f"{data}: no subject folder below it; expected one folder for each person")
    loaded = {n: load_views(data / n, None, "auto") for n in names}
    truths = {
        n: load_truth(data / "ground_truth" / n)
        for n in names
        if (data / "ground_truth" / n / "neutral.ply").is_file()
    }
    facts, rows = machine(), []
    for model in map(load_model, models):
        for name in names:
            rows += _rows_of(name, loaded[name], model, recipes, weights, overrides, truths.get(name), tell)
    tried = run_trials(loaded, load_model(models[0]), weights, trials, seed, tell) if trials else []
    return {
        "benchmark": "init",
        "data": data.resolve().name,
        "unit": "mm",
        "machine": facts,
        "overrides": list(overrides),
        "seed": seed,
        "recipes": {r: to_plain(load_recipe(r, overrides)) for r in recipes},
        "rows": rows,
        "trials": tried,
        "summary": summarize(rows),
        "trials_summary": summarize_trials(tried),
    }


def _rows_of(
    name: str,
    loaded: tuple[Subject, Landmarks],
    model: FaceModel,
    recipes: Sequence[str],
    weights: str,
    overrides: Sequence[str],
    truth: Truth | None,
    tell: Tell,
) -> list[Row]:
    subject, found = loaded
    views, rows = len(subject.views), []

    def add(recipe: str, start: str, result: FitResult | None, error: str = "") -> None:
        row = _row(model, recipe, start, name, views, result, truth) | {"error": error}
        rows.append(row)
        known = _error(row)
        tell(
            f"{model.name} {recipe} {start} {name}: "
            + (error or f"{known:.4f}, {row['iterations']} iterations, {row['status']}")
        )

    if truth is not None:
        first = {"model": model.name, "recipe": MEAN_FACE, "start": "", "subject": name, "views": views}
        rows.append(first | {"error": "", "status": "ok"} | _shape_errors(face_of_model(model), truth))
    try:
        bare = replace(subject, views=tuple(v.replace(camera=None) for v in subject.views))
        add("prediction", "regressor", predict(bare, weights or None, model, "auto"))
    except InputError as error:
        tell(f"{model.name} prediction: not of this face model ({error})")
    for recipe in recipes:
        for start in STARTS:
            plan = load_recipe(recipe, overrides, {"init": {"source": start, "weights": weights}})
            try:
                add(recipe, start, fit_observed(subject, found, model, plan))
            except FitkitError as error:
                add(recipe, start, None, str(error))
    return rows


def _row(
    model: FaceModel,
    recipe: str,
    start: str,
    name: str,
    views: int,
    result: FitResult | None,
    truth: Truth | None,
) -> Row:
    row: Row = {
        "model": model.name,
        "recipe": recipe,
        "start": start,
        "subject": name,
        "views": views,
        "error": "",
        "status": "failed" if result is None else result.status,
        "taken": None,
        "iterations": None,
        "seconds": None,
        "reprojection_share": None,
        "now_mean": None,
    }
    if result is not None:
        row |= {
            "taken": result.metrics["start"]["source"],
            "iterations": result.metrics["start"]["iterations"],
            "seconds": result.metrics["time_s"]["solve"],
            "reprojection_share": result.metrics["reprojection_share"],
        }
        if truth is not None:
            row |= _shape_errors(face_of_fit(result), truth)
    return row


def _shape_errors(face: PredictedFace, truth: Truth) -> dict[str, float | None]:
    values = score_neutral(replace(face, sigma=None), truth).values
    return {key: values[key] for key in SHAPE}


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the subjects by model, recipe and start; failed fits are counted and left out of the means.
    worst_change: largest relative change of a subject's error (of the reprojection where there is no truth)
    against the start from landmarks, per cent."""
    out, groups = [], grouped(rows, "model", "recipe", "start")
    for (model, recipe, start), mine in groups.items():
        base = {r["subject"]: _error(r) for r in groups.get((model, recipe, "landmarks"), [])}
        change = [
            100 * (_error(r) / base[r["subject"]] - 1)
            for r in mine
            if _error(r) is not None and base.get(r["subject"])
        ]
        line = {
            "model": model,
            "recipe": recipe,
            "start": start,
            "subjects": len(mine),
            "failed": sum(bool(r["error"]) for r in mine),
            "regressor_taken": sum(r.get("taken") == "regressor" for r in mine),
        }
        out.append(line | means(mine, NUMBERS) | {"worst_change_percent": max(change) if change else None})
    return out


def _error(row: Row) -> Any:
    """Its error in mm, else that of the reprojection; None without either."""
    return row["now_mean"] if row.get("now_mean") is not None else row.get("reprojection_share")


def text(report: dict[str, Any]) -> str:
    """Both tables for a terminal."""
    head = [
        "model",
        "recipe",
        "start",
        "mean mm",
        "7 points",
        "reprojection %",
        "worst change %",
        "iterations",
        "solver s",
        "regressor taken",
    ]
    rows = [
        [
            e["model"],
            e["recipe"],
            e["start"],
            number(e["now_mean"]),
            number(e["points_mean"]),
            number(None if e["reprojection_share"] is None else 100 * e["reprojection_share"], 2),
            number(e["worst_change_percent"], 1),
            number(e["iterations"], 0),
            number(e["seconds"], 2),
            f"{e['regressor_taken']} of {e['subjects']}",
        ]
        for e in report["summary"]
    ]
    out = text_table(head, rows)
    if report["trials_summary"]:
        tried = [
            [
                e["kind"],
                e["start"],
                str(e["trials"]),
                f"{100 * e['arrived']:.0f} %",
                number(e["iterations"], 0),
            ]
            for e in report["trials_summary"]
        ]
        out += "\n\n" + text_table(["perturbed", "start", "trials", "recovered", "iterations"], tried)
    return out
