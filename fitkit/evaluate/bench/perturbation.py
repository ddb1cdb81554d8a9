"""Fits from perturbed landmarks or poses: how many of them come to where unperturbed landmarks lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import FitkitError
from fitkit.evaluate.bench.photos import Tell
from fitkit.evaluate.tables import Row, known, mean_or_none
from fitkit.fitting.choose_start import ChosenStart, choose_start
from fitkit.fitting.initialize import to_photos
from fitkit.fitting.metrics import view_errors
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.fitting.solution import Solution
from fitkit.fitting.stages import StageRunner, at_start
from fitkit.geometry.rotation import so3_exp, so3_log
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.state import SceneState

STARTS = ("landmarks", "regressor", "auto")
KINDS = ("outliers", "missing", "profile", "turned")
OUTLIERS, KEPT_POINTS, PROFILE_DEG, TURN_DEG = (0.1, 0.45), 10, 40.0, (60.0, 150.0)
# A perturbed fit has recovered where the head of each view is turned as in the reference, and the unperturbed
# landmarks lie on it.
RECOVERED_DEG, RECOVERED_SHARE = 10.0, 0.06
NO_ATTEMPT = {"taken": None, "iterations": None, "away_deg": None, "share": None, "arrived": False}


@dataclass(frozen=True)
class Trial:
    """subject: the photos that are fitted; marks: their landmarks; perturbed: what the fit gets instead;
    turn: [B, 3] rad, by which its start is turned, or None; reference: the fit of `marks`."""

    subject: Subject
    marks: Landmarks
    perturbed: Landmarks
    turn: Tensor | None
    reference: FitResult


def run_trials(
    loaded: dict[str, tuple[Subject, Landmarks]],
    model: FaceModel,
    weights: str,
    count: int,
    seed: int,
    tell: Tell,
) -> list[Row]:
    """Fits of recipe `landmarks` from each start, of perturbed photos drawn from the subjects; kinds in turn.

    Args:
        loaded: photos and landmarks by name; weights: of the network, empty = the shipped one.
    Returns:
        a row for each trial and start: taken: the start that was gone on from; iterations; away_deg, share:
            how far from the
        reference; arrived: it has recovered. None where the fit failed.
    """
    rows, names = [], sorted(loaded)
    plans = {
        start: load_recipe("landmarks", (), {"init": {"source": start, "weights": weights}})
        for start in STARTS
    }
    references: dict[tuple[str, tuple[int, ...]], FitResult] = {}
    for number in range(count):
        rng, kind = np.random.default_rng([seed, number]), KINDS[number % len(KINDS)]
        name, views = _choose(loaded, names, kind, rng)
        subject, found = loaded[name]
        part, marks = replace(subject, views=tuple(subject.views[v] for v in views)), found.select(views)
        if (name, views) not in references:
            references[name, views] = fit_observed(part, marks, model, plans["landmarks"])
        trial = Trial(part, marks, *perturb(marks, kind, rng), references[name, views])
        mine = {start: _attempt(trial, model, plans[start]) for start in STARTS[:2]}
        mine["auto"] = _of_the_better(trial, model, plans["auto"], mine)
        first = {"trial": number, "kind": kind, "subject": name, "views": list(views)}
        rows += [first | {"start": start} | mine[start] for start in STARTS]
        told = (f"{start} {'recovered' if mine[start]['arrived'] else 'lost'}" for start in STARTS)
        tell(f"trial {number + 1} of {count}, {kind}, {name}: {', '.join(told)}")
    return rows


def _attempt(trial: Trial, model: FaceModel, plan: FitRecipe) -> Row:
    try:
        state, solution = _solve(trial, model, plan)
    except FitkitError as error:
        return NO_ATTEMPT | {"error": str(error)}
    turned = trial.reference.state.pose.rotation.transpose(1, 2) @ state.pose.rotation
    away = float(torch.rad2deg(so3_log(turned).norm(dim=-1)).max())
    share = float(view_errors(model, state, trial.marks)[1].max())
    return {
        "taken": solution.start,
        "iterations": solution.iterations,
        "away_deg": away,
        "share": share,
        "arrived": away < RECOVERED_DEG and share < RECOVERED_SHARE,
    }


def _of_the_better(trial: Trial, model: FaceModel, plan: FitRecipe, solved: dict[str, Row]) -> Row:
    """What 'auto' comes to: it takes one of the two starts and goes on as from that one, unless the network
    took landmarks away."""
    try:
        chosen = _chosen(trial, model, plan)
    except FitkitError as error:
        return NO_ATTEMPT | {"error": str(error)}
    if chosen.source == "landmarks" and any(chosen.outliers or ()):
        return _attempt(trial, model, plan)
    return solved[chosen.source]


def _chosen(trial: Trial, model: FaceModel, recipe: FitRecipe) -> ChosenStart:
    """Where a fit of the perturbed landmarks begins."""
    views = trial.subject.views
    observations = crop_views([v.image for v in views], [v.mask for v in views], trial.perturbed, recipe.crop)
    return choose_start(trial.subject, trial.perturbed, model, recipe, observations)


def _solve(trial: Trial, model: FaceModel, recipe: FitRecipe) -> tuple[SceneState, Solution]:
    start = at_start(_chosen(trial, model, recipe), model, recipe)
    state = start.state
    if trial.turn is not None:
        middle = model.landmark_basis.mean.mean(0)
        rotation = state.pose.rotation @ so3_exp(trial.turn)
        # The face turns about its own middle and stays in its place of the picture.
        translation = state.pose.translation + ((state.pose.rotation - rotation) @ middle[:, None])[..., 0]
        state = state.replace(pose=Pose(rotation, translation))
    solution = StageRunner(recipe).solve(replace(start, state=state))
    return to_photos(solution.state, solution.observations), solution


def _choose(loaded, names: Sequence[str], kind: str, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A subject and one to three of its views; for 'profile' views that are turned far away, where there are
    any."""
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


def perturb(marks: Landmarks, kind: str, rng: np.random.Generator) -> tuple[Landmarks, Tensor | None]:
    """Landmarks as a bad detector gives them, and a turn [B, 3] rad of the start's poses, or None.

    'outliers': of each view a share of the points, drawn from OUTLIERS, lies anywhere in its box; 'missing':
    all but KEPT_POINTS points of each view are missing; 'profile': the points on the side that is turned away
    are missing; 'turned': the points are good and the head starts turned by 60 to 150 degrees about any axis.
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


def summarize_trials(rows: Sequence[Row]) -> list[Row]:
    """Share of the trials that recovered, and the iterations of all, by kind and start."""
    out = []
    for kind in (*KINDS, "all"):
        for start in STARTS:
            mine = [r for r in rows if r["start"] == start and kind in (r["kind"], "all")]
            if mine:
                out.append(
                    {
                        "kind": kind,
                        "start": start,
                        "trials": len(mine),
                        "arrived": sum(r["arrived"] for r in mine) / len(mine),
                        "iterations": mean_or_none(known(mine, "iterations")),
                    }
                )
    return out
