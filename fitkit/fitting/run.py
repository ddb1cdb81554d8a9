"""Fits one face to the photos of one person: reading, start, stages, report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from numbers import Integral
from types import NoneType
from typing import Any

import numpy as np
import torch

from fitkit.errors import FitkitError, InputError, check_argument
from fitkit.fitting.cameras import moments_of
from fitkit.fitting.choose_start import ChosenStart, choose_start
from fitkit.fitting.depth_evidence import check_depth, needs_depth, with_depth
from fitkit.fitting.findings import judge
from fitkit.fitting.head_masks import HeadMask, find_heads, usable_pixels
from fitkit.fitting.initialize import to_photos
from fitkit.fitting.metrics import fit_report
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.report import StartReport, TimeReport
from fitkit.fitting.result import FitResult
from fitkit.fitting.rig_check import check_rig
from fitkit.fitting.stages import StageRunner, at_start
from fitkit.fitting.together import Clock, Steps, alone, together
from fitkit.fitting.uncertainty import ErrorBars
from fitkit.io.options import to_plain
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, as_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.given import check_given
from fitkit.observe.landmarks.types import Landmarks
from fitkit.render.rasterizer import drawing_with

log = logging.getLogger("fitkit")


def fit(
    subject: str | os.PathLike | Subject | Sequence,
    *,
    model: str | FaceModel | None = None,
    recipe: str | os.PathLike | FitRecipe = "multiview",
    overrides: Sequence[str] = (),
    landmarks: Sequence | None = None,
    share_expression: bool | None = None,
    seed: int | None = None,
    device: str = "cpu",
    progress: Progress | Callable[[str, float], None] | None = None,
) -> FitResult:
    """Fit one face to all photos of one person.

    Args:
        subject: a subject folder, the path of one photo, a Subject, or a list of images (paths, PIL images,
            [H, W, 3] arrays).
        model: name or path of a face model, or the model itself; None takes the recipe's.
        recipe: name or path of a recipe; overrides: 'key=value' changes of it.
        landmarks: one [68, 2] or [68, 3] array, path of a landmark file, or None for each image, in the order
            of the list or of the subject's views (of a folder: sorted by name, 'view2' before 'view10'); px
            of the upright photo, counted from 0. They replace those in files.
        share_expression, seed: shortcuts for expression.shared and seed.
        device: torch device the fit runs on.
        progress: called with (what is done next, share done in 0..1), or a Progress.
    Raises:
        FitkitError: bad input, missing files or weights, or nothing that could be fitted.
    """
    progress = Progress.of(progress)
    face_model, settled = _settled(model, recipe, overrides, share_expression, seed, device)
    with drawing_with(settled.render.backend, torch.device(device)):
        return alone(_steps(subject, landmarks, face_model, settled, device, progress))


def fit_many(
    subjects: Sequence[str | os.PathLike | Subject | Sequence],
    *,
    model: str | FaceModel | None = None,
    recipe: str | os.PathLike | FitRecipe = "multiview",
    overrides: Sequence[str] = (),
    share_expression: bool | None = None,
    seed: int | None = None,
    device: str = "cpu",
    batch_size: int = 8,
    progress: Progress | Callable[[str, float], None] | None = None,
) -> list[FitResult | FitkitError]:
    """Fit one face to the photos of each of several people, who are solved side by side, as `fit` does.

        results = fitkit.fit_many(["anna/", "ben/", ["c1.jpg", "c2.jpg"]])
        faces = [r for r in results if not isinstance(r, fitkit.FitkitError)]

    Each may have another number of photos, see `fitkit.fitting.together`. On a CPU results are those of `fit`
    bit for bit, whoever else is there. On a GPU sums may be rounded otherwise, which decides when a solver
    stops and which matches it sees: a vertex may then lie up to some tenths of a millimetre elsewhere.

    Args:
        subjects: of each person what `fit` takes; batch_size: how many are fitted at once, whose photos are
            in memory together; progress: told of each batch. The rest as for `fit`.
    Returns:
        for each person the result, or the error that ended its fit and no other one.
    Raises:
        FitkitError: what concerns all people: recipe, model, device or batch size.
    """
    if isinstance(subjects, (str, os.PathLike, Subject)) or not isinstance(subjects, Iterable):
        raise InputError(
            "subjects: expected a list with a folder, a photo, a Subject or a list of images for each "
            f"person, got {type(subjects).__name__}"
        )
    progress, subjects = Progress.of(progress), list(subjects)
    check_argument("batch_size", batch_size, Integral, "a whole number")
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    face_model, settled = _settled(model, recipe, overrides, share_expression, seed, device)
    local = _on_device(face_model, device)
    results: list[FitResult | FitkitError] = []
    with drawing_with(settled.render.backend, torch.device(device)):
        for first in range(0, len(subjects), batch_size):
            progress.counted(first, len(subjects), text="fitting people")
            people = subjects[first : first + batch_size]
            fits = [_steps(person, None, face_model, settled, device, local=local) for person in people]
            results += together(fits)
    progress.counted(len(subjects), len(subjects))
    return results


def _settled(
    model: str | FaceModel | None,
    recipe: str | os.PathLike | FitRecipe,
    overrides: Sequence[str],
    share_expression: bool | None,
    seed: int | None,
    device: str,
) -> tuple[FaceModel, FitRecipe]:
    """The face model and the recipe that the arguments of `fit` name, on a device that is there."""
    check_argument(
        "model",
        model,
        (str, os.PathLike, FaceModel, NoneType),
        "the name or path of a face model, or a FaceModel",
    )
    check_argument(
        "recipe", recipe, (str, os.PathLike, FitRecipe), "the name or path of a recipe, or a FitRecipe"
    )
    changes: dict[str, Any] = {}
    if isinstance(model, (str, os.PathLike)):
        changes["model"] = os.fspath(model)
    if share_expression is not None:
        changes["expression"] = {"shared": share_expression}
    if seed is not None:
        changes["seed"] = seed
    if not isinstance(recipe, FitRecipe):
        recipe = load_recipe(recipe, overrides, changes)
    elif overrides or changes:
        raise InputError(
            "overrides, model, seed and share_expression change a recipe given by name or path, not a "
            "FitRecipe"
        )
    check_device(device)
    check_depth(recipe)
    return (model if isinstance(model, FaceModel) else load_model(recipe.model)), recipe


def _steps(
    subject: str | os.PathLike | Subject | Sequence,
    landmarks: Sequence | None,
    model: FaceModel,
    recipe: FitRecipe,
    device: str,
    progress: Progress = Progress(),
    local: FaceModel | None = None,
) -> Steps[FitResult]:
    """`fit` as something that asks for the solution of its problems, see `together`. local: the model on the
    device, the same one for all people; None: it is moved there."""
    progress.at(0.0, "reading photos")
    subject = as_subject(subject, landmarks)
    finding = progress.part(0.05, 0.2, "finding landmarks")
    finding.at(0.0)
    found, sources = detect_landmarks(subject, recipe.landmarks.source, device, finding)
    found = check_given(subject, found, sources, recipe.landmarks.source == "auto", device)
    subject, found, notes = usable_views(subject, found)
    notes = subject.notes + tuple(notes)
    return (yield from _observed_steps(subject, found, model, recipe, device, progress, notes, local))


def check_device(device: str) -> None:
    """Refuse a torch device that is not there."""
    check_argument("device", device, (str, torch.device), "the name of a torch device, e.g. cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{device}': cannot be used here ({str(error).splitlines()[0]}); use cpu"
        ) from error


def fit_observed(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    device: str = "cpu",
    progress: Progress = Progress(),
    notes: Sequence[str] = (),
) -> FitResult:
    """`fit` from views and landmarks that are already there; the timed part of a fit."""
    with drawing_with(recipe.render.backend, torch.device(device)):
        return alone(_observed_steps(subject, found, model, recipe, device, progress, notes))


def _observed_steps(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    device: str,
    progress: Progress,
    notes: Sequence[str],
    local: FaceModel | None = None,
) -> Steps[FitResult]:
    clock = Clock()
    start, cpu = clock.wall(), clock.cpu()
    known = found.only(model.landmarks.present)
    subject, contradictions = check_rig(subject, known, model)
    progress.at(0.2, "cropping")
    heads: list[HeadMask | None] = []
    masks = _masks(subject, known, model, recipe, device, heads)
    observations = crop_views((v.image for v in subject.views), masks, found, recipe.crop).to(device)
    local = _on_device(model, device) if local is None else local
    began = clock.wall()
    moment = moments_of(subject.views).to(observations.images.device)
    marks = observations.landmarks.only(local.landmarks.present)
    observations = replace(observations, landmarks=marks, moment=moment)
    chosen = choose_start(subject, found, local, recipe, observations, device)
    fitted = chosen.observations.landmarks.valid.to(found.valid)
    # What other landmarks than the fitted ones have placed is not kept: with those it would be another one.
    placed = (known.valid == fitted).all(1).tolist()
    found = replace(found, valid=fitted)
    if needs_depth(recipe):
        seen = with_depth(subject, found, chosen.observations, chosen.state, recipe.depth.weights, device)
        chosen = replace(chosen, observations=seen)
    runner = StageRunner(recipe, device, clock)
    solution = yield from runner.steps(at_start(chosen, local, recipe), progress.part(0.35, 0.975))
    solved = clock.wall()
    progress.at(0.97, "judging the fit")
    final, detail = to_photos(solution.state, solution.observations).to("cpu"), solution.detail
    cpu_model = model.to("cpu") if model.device.type != "cpu" else model
    report, bars = fit_report(solution, cpu_model, subject, final, found, recipe.name)
    report = replace(
        report,
        start=StartReport(chosen.source, chosen.outliers, chosen.cost, solution.iterations),
        notes=(
            *notes,
            *_mask_notes(subject, heads),
            *solution.cameras.notes,
            *_model_notes(model, bars),
            *_outlier_notes(subject, chosen),
        ),
        camera_contradictions=tuple(contradictions),
        time_s=TimeReport(
            round(solved - began, 3),
            round(clock.wall() - start, 3),
            round(clock.cpu() - cpu, 3),
        ),
    )
    report = judge(report)
    for finding in report.verdict.findings:
        log.info("%s: %s", "note" if finding.severity == "note" else "warning", finding.message)
    progress.at(1.0, "done")
    return FitResult(
        cpu_model,
        subject,
        final,
        replace(found, sigma=solution.sigma_photo()),
        report,
        to_plain(recipe),
        solution.cameras.source,
        None if bars is None else bars.identity_covariance,
        None if bars is None else bars.vertex_sigma,
        detail.displacement if detail is not None and detail.report.sigma_mm else None,
        heads=tuple(head if same else None for head, same in zip(heads, placed)),
    )


def _on_device(model: FaceModel, device: str) -> FaceModel:
    return model.to(device) if str(model.device) != device else model


def _masks(
    subject: Subject, found: Landmarks, model: FaceModel, recipe: FitRecipe, device: str, heads: list
) -> Iterator[np.ndarray | None]:
    """The pixels of each photo that the stages look at, one after the other, [H, W] bool, None = all of it.
    heads: gets what a parser took for the head, None where it was not asked."""
    options, views = recipe.masks, subject.views
    asked = options.source == "auto" and recipe.looks_at_pictures(len(views))
    finding = find_heads(views, found, model, options.weights, device) if asked else repeat(None)
    for view, head in zip(views, finding):
        heads.append(head)
        yield None if options.source == "none" else usable_pixels(view, head, inwards=False)


def _mask_notes(subject: Subject, heads: Sequence[HeadMask | None]) -> list[str]:
    return [
        f"view {view.name}: the face parser sees hardly any of the face where its landmarks are, so its mask "
        "was not used"
        for view, head in zip(subject.views, heads)
        if head is not None and not head.usable
    ]


def _model_notes(model: FaceModel, bars: ErrorBars | None) -> list[str]:
    """What a fit lacks because its model lacks it."""
    notes, lacks = [], len(model.landmarks.missing)
    if lacks:
        notes.append(f"face model '{model.name}' lacks {lacks} of the 68 landmarks; they were left out")
    if bars is not None and model.calibration is None:
        notes.append(
            f"face model '{model.name}' has no calibration; its error bars and expected error are right if "
            f"it shows people as well as 'generic', which 'fitkit model calibrate {model.name}' measures"
        )
    return notes


def _outlier_notes(subject: Subject, chosen: ChosenStart) -> list[str]:
    return [
        f"view {v.name}: {n} of its landmarks lie far from where the network sees them and were left out"
        for v, n in zip(subject.views, chosen.outliers or ())
        if n
    ]
