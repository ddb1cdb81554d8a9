"""What the start of a fit is worth: accuracy and work from each start, and fits with spoiled landmarks or poses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import FitkitError, InputError
from fitkit.evaluate.bench import Prediction as ScoredMesh
from fitkit.evaluate.bench import _number, _table, load_truth, load_views, score
from fitkit.evaluate.machine import machine
from fitkit.fitting.predict import predict
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.report import view_errors
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import begin_fit, fit_observed, to_photos
from fitkit.geometry.rotation import so3_exp, so3_log
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.options import to_plain
from fitkit.io.subject import Subject, subject_folders
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.state import SceneState

STARTS = ("landmarks", "regressor", "auto")
KINDS = ("outliers", "missing", "profile", "turned")
OUTLIERS, KEPT_POINTS, PROFILE_DEG, TURN_DEG = (0.1, 0.45), 10, 40.0, (60.0, 150.0)
# A spoiled fit has arrived where the head of each view is turned as in the fit of the unspoiled landmarks, and these lie on it.
ARRIVED_DEG, ARRIVED_SHARE = 10.0, 0.06
Tell = Callable[[str], None]


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
        data: folder of subject folders; where ground_truth/SUBJECT lies beside one, as in `fitkit bench accuracy`, its mesh is scored.
        weights: of the network; empty = the shipped one. trials: spoiled fits from each start, recipe `landmarks`, first model; 0 = none.
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
    spoiled = _trials(loaded, load_model(models[0]), weights, trials, seed, tell) if trials else []
    return {
        "benchmark": "init",
        "data": data.resolve().name,
        "unit": "mm",
        "machine": facts,
        "overrides": list(overrides),
        "seed": seed,
        "recipes": {r: to_plain(load_recipe(r, overrides)) for r in recipes},
        "rows": rows,
        "trials": spoiled,
        "summary": summarize(rows),
        "trials_summary": summarize_trials(spoiled),
    }


def _rows_of(
    name: str,
    loaded: tuple[Subject, Landmarks],
    model: FaceModel,
    recipes: Sequence[str],
    weights: str,
    overrides: Sequence[str],
    truth,
    tell: Tell,
) -> list[dict[str, Any]]:
    subject, found = loaded
    rows = []

    def add(recipe: str, start: str, result, error: str = "") -> None:
        row = {
            "model": model.name,
            "recipe": recipe,
            "start": start,
            "subject": name,
            "views": len(subject.views),
            "error": error,
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
                mesh = ScoredMesh(
                    name,
                    model.name,
                    recipe,
                    result.neutral.double().numpy(),
                    model.triangles.numpy(),
                    result.landmarks3d.double().numpy(),
                )
                row |= {
                    k: v
                    for k, v in score(mesh, truth).items()
                    if k in ("now_mean", "now_median", "points_mean")
                }
        rows.append(row)
        number = row["now_mean"] if row["now_mean"] is not None else row["reprojection_share"]
        tell(
            f"{model.name} {recipe} {start} {name}: "
            + (error or f"{number:.4f}, {row['iterations']} iterations, {row['status']}")
        )

    if truth is not None:
        marks = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()
        mesh = ScoredMesh(
            name, model.name, "mean face", model.mean.double().numpy(), model.triangles.numpy(), marks
        )
        rows.append(
            {
                "model": model.name,
                "recipe": "mean face",
                "start": "",
                "subject": name,
                "views": len(subject.views),
                "error": "",
                "status": "ok",
            }
            | {k: v for k, v in score(mesh, truth).items() if k in ("now_mean", "now_median", "points_mean")}
        )
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


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the subjects by model, recipe and start; failed fits are counted and left out of the means. worst_change: largest
    relative change of a subject's error (of the reprojection where there is no truth) against the start from landmarks, per cent."""
    out = []
    for key in dict.fromkeys((r["model"], r["recipe"], r["start"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["recipe"], r["start"]) == key]
        entry: dict[str, Any] = {
            "model": key[0],
            "recipe": key[1],
            "start": key[2],
            "subjects": len(mine),
            "failed": sum(bool(r["error"]) for r in mine),
            "regressor_taken": sum(r.get("taken") == "regressor" for r in mine),
        }
        for number in (
            "now_mean",
            "now_median",
            "points_mean",
            "reprojection_share",
            "iterations",
            "seconds",
        ):
            values = [r[number] for r in mine if r.get(number) is not None]
            entry[number] = float(np.mean(values)) if values else None
        base = {
            r["subject"]: _error(r)
            for r in rows
            if (r["model"], r["recipe"], r["start"]) == (*key[:2], "landmarks")
        }
        change = [
            100 * (_error(r) / base[r["subject"]] - 1)
            for r in mine
            if _error(r) is not None and base.get(r["subject"])
        ]
        entry["worst_change_percent"] = max(change) if change else None
        out.append(entry)
    return out


def _error(row: dict[str, Any]) -> float | None:
    return row["now_mean"] if row.get("now_mean") is not None else row.get("reprojection_share")


# ---- spoiled fits ----


def _trials(
    loaded: dict[str, tuple[Subject, Landmarks]],
    model: FaceModel,
    weights: str,
    count: int,
    seed: int,
    tell: Tell,
) -> list[dict[str, Any]]:
    rows, names = [], sorted(loaded)
    plans = {
        start: load_recipe("landmarks", (), {"init": {"source": start, "weights": weights}})
        for start in STARTS
    }
    goals: dict[tuple[str, tuple[int, ...]], FitResult] = {}
    for trial in range(count):
        rng, kind = np.random.default_rng([seed, trial]), KINDS[trial % len(KINDS)]
        name, views = _choose(loaded, names, kind, rng)
        subject, found = loaded[name]
        part, marks = replace(subject, views=tuple(subject.views[v] for v in views)), found.select(views)
        if (name, views) not in goals:
            goals[name, views] = fit_observed(part, marks, model, plans["landmarks"])
        goal = goals[name, views]
        bad, turn = spoil(marks, kind, rng)
        mine = {start: _attempt(part, marks, bad, model, plans[start], turn, goal) for start in STARTS[:2]}
        mine["auto"] = _of_the_better(part, marks, bad, model, plans["auto"], turn, goal, mine)
        rows += [
            {"trial": trial, "kind": kind, "subject": name, "views": list(views), "start": start}
            | mine[start]
            for start in STARTS
        ]
        tell(
            f"trial {trial + 1} of {count}, {kind}, {name}: "
            + ", ".join(f"{r['start']} {'arrived' if r['arrived'] else 'lost'}" for r in rows[-len(STARTS) :])
        )
    return rows


def _attempt(
    part: Subject,
    marks: Landmarks,
    bad: Landmarks,
    model: FaceModel,
    plan: FitRecipe,
    turn: Tensor | None,
    goal: FitResult,
) -> dict[str, Any]:
    try:
        state, chosen, iterations = _solve(part, bad, model, plan, turn)
    except FitkitError as error:
        return _lost(error)
    away = float(
        torch.rad2deg(
            so3_log(goal.state.pose.rotation.transpose(1, 2) @ state.pose.rotation).norm(dim=-1)
        ).max()
    )
    share = float(view_errors(model, state, marks)[1].max())
    return {
        "taken": chosen["source"],
        "iterations": iterations,
        "away_deg": away,
        "share": share,
        "arrived": away < ARRIVED_DEG and share < ARRIVED_SHARE,
    }


def _of_the_better(
    part: Subject,
    marks: Landmarks,
    bad: Landmarks,
    model: FaceModel,
    plan: FitRecipe,
    turn: Tensor | None,
    goal: FitResult,
    solved: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What 'auto' comes to: it takes one of the two starts and goes on as from that one, unless the network took landmarks away."""
    try:
        observations = crop_views((v.image for v in part.views), (v.mask for v in part.views), bad, plan.crop)
        chosen = begin_fit(part, bad, model, plan, observations, "cpu")[2]
    except FitkitError as error:
        return _lost(error)
    if chosen["source"] == "landmarks" and any(chosen["stray"]):
        return _attempt(part, marks, bad, model, plan, turn, goal)
    return solved[chosen["source"]]


def _lost(error: FitkitError) -> dict[str, Any]:
    return {
        "taken": None,
        "iterations": None,
        "away_deg": None,
        "share": None,
        "arrived": False,
        "error": str(error),
    }


def _choose(loaded, names: Sequence[str], kind: str, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A subject and one to three of its views; for 'profile' views that are turned far away, where there are any."""
    turned = {n: [i for i, a in enumerate(_yaw(loaded[n][1])) if abs(a) > PROFILE_DEG] for n in names}
    if kind == "profile" and any(turned.values()):
        name = str(rng.choice([n for n in names if turned[n]]))
        pool = turned[name]
    else:
        name = str(rng.choice(list(names)))
        pool = list(range(len(loaded[name][0].views)))
    count = int(rng.integers(1, min(3, len(pool)) + 1))
    return name, tuple(sorted(rng.choice(pool, count, replace=False).tolist()))


def _yaw(marks: Landmarks) -> list[float]:
    points = torch.from_numpy(mean_face()).float()[None]
    return yaw_pitch_roll(
        weak_perspective_pose(points, torch.nan_to_num(marks.points), marks.valid.float())[1]
    )[:, 0].tolist()


def spoil(marks: Landmarks, kind: str, rng: np.random.Generator) -> tuple[Landmarks, Tensor | None]:
    """Landmarks as a bad detector gives them, and a turn [B, 3] rad of the start's poses, or None.

    'outliers': of each view a share of the points, drawn from OUTLIERS, lies anywhere in its box; 'missing': all but KEPT_POINTS
    points of each view are missing; 'profile': the points on the side that is turned away are missing; 'turned': the points are good and the head starts turned by 60 to 150 degrees about any axis.
    """
    points, valid = marks.points.clone(), marks.valid.clone()
    turn = None
    for b in range(len(points)):
        known = valid[b].nonzero()[:, 0].numpy()
        if kind == "outliers":
            pick = torch.from_numpy(
                rng.choice(known, int(round(rng.uniform(*OUTLIERS) * len(known))), replace=False)
            )
            low, high = points[b, known].amin(0), points[b, known].amax(0)
            points[b, pick] = low + (high - low) * torch.from_numpy(rng.random((len(pick), 2))).float()
        elif kind == "missing":
            gone = torch.from_numpy(rng.permutation(known)[KEPT_POINTS:].copy())
            valid[b, gone] = False
        elif kind == "profile":
            middle = points[b, 27:31, 0].mean()
            ends = (points[b, [0, 16], 0] - middle).abs()
            side = points[b, :, 0] < middle if ends[0] < ends[1] else points[b, :, 0] > middle
            side[27:36] = False
            if int((valid[b] & ~side).sum()) >= KEPT_POINTS:
                valid[b] &= ~side
    if kind == "turned":
        axis = torch.from_numpy(rng.normal(size=(len(points), 3))).float()
        angle = torch.from_numpy(np.radians(rng.uniform(*TURN_DEG, len(points)))).float()
        turn = torch.nn.functional.normalize(axis, dim=1) * angle[:, None]
    return replace(marks, points=points, valid=valid), turn


def _solve(
    subject: Subject, marks: Landmarks, model: FaceModel, recipe: FitRecipe, turn: Tensor | None
) -> tuple[SceneState, dict, int]:
    observations = crop_views(
        (v.image for v in subject.views), (v.mask for v in subject.views), marks, recipe.crop
    )
    run, state, chosen = begin_fit(subject, marks, model, recipe, observations, "cpu")
    if turn is not None:
        middle = model.landmark_basis.mean.mean(0)
        rotation = state.pose.rotation @ so3_exp(turn)
        # The face turns about its own middle and stays in its place of the picture.
        translation = state.pose.translation + ((state.pose.rotation - rotation) @ middle[:, None])[..., 0]
        state = state.replace(pose=Pose(rotation, translation))
    return to_photos(run.solve(state, lambda text, share: None), observations), chosen, run.iterations


def summarize_trials(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Share of the trials that arrived, and the iterations of all, by kind and start."""
    out = []
    for kind in (*KINDS, "all"):
        for start in STARTS:
            mine = [r for r in rows if r["start"] == start and kind in (r["kind"], "all")]
            if mine:
                steps = [r["iterations"] for r in mine if r["iterations"] is not None]
                out.append(
                    {
                        "kind": kind,
                        "start": start,
                        "trials": len(mine),
                        "arrived": sum(r["arrived"] for r in mine) / len(mine),
                        "iterations": float(np.mean(steps)) if steps else None,
                    }
                )
    return out


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
            _number(e["now_mean"]),
            _number(e["points_mean"]),
            _number(None if e["reprojection_share"] is None else 100 * e["reprojection_share"], 2),
            _number(e["worst_change_percent"], 1),
            _number(e["iterations"], 0),
            _number(e["seconds"], 2),
            f"{e['regressor_taken']} of {e['subjects']}",
        ]
        for e in report["summary"]
    ]
    out = _table(head, rows)
    if report["trials_summary"]:
        spoiled = [
            [
                e["kind"],
                e["start"],
                str(e["trials"]),
                f"{100 * e['arrived']:.0f} %",
                _number(e["iterations"], 0),
            ]
            for e in report["trials_summary"]
        ]
        out += "\n\n" + _table(["spoiled", "start", "trials", "arrived", "iterations"], spoiled)
    return out
