"""A face from photos by a trained network alone: the same result as a fit, without its iterations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

import torch

from fitkit.errors import check_argument
from fitkit.fitting.initialize import initial_state, to_photos
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.regress import Predicted, predict_views, shipped_weights
from fitkit.fitting.report import SHIPPED_ERROR_MM, build_metrics, judge_safely
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import FitRun, check_device
from fitkit.io.subject import Subject, as_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, read_about
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.given import check_given
from fitkit.observe.landmarks.types import Landmarks


class _Predicted(FitRun):
    """What the report asks of a fit; nothing was solved for."""

    def focal_uncertainty(self) -> list[float | None]:
        return [None] * self.observations.num_views


@torch.no_grad()
def predict(
    subject: str | os.PathLike | Subject | Sequence,
    weights: str | os.PathLike | None = None,
    model: FaceModel | None = None,
    landmarks: str = "auto",
    device: str = "cpu",
    tell: Callable[[str, float], None] = lambda text, share: None,
) -> FitResult:
    """Predict the face in the photos of one person with a network that `fitkit train-regressor` has trained.

    Landmarks say where the faces are and, for a network with named views, which photo goes into which of them (by the yaw of the head,
    or by its name); photos for which there is no view, or a better one, are left out.

    Args:
        subject: a subject folder, the path of one photo, a Subject, or a list of images as in `fitkit.fit`; weights: regressor.safetensors, None: the network that comes with fitkit;
        model: None loads the one the weights name.
        landmarks: where the 68 points come from, see `fitkit fit --landmarks`.
        tell: called with (what is done next, share done in 0..1).
    Returns:
        a result with the predicted cameras, without error bars; its covariance of the identity is diagonal, from the standard
        deviations of the network, None where it has none; status and metrics as a fit judges them.
    Raises:
        FitkitError: weights or photos that cannot be used, or no photo that fits a view of the network.
    """
    start, cpu = time.perf_counter(), time.process_time()
    check_argument("weights", weights, (str, os.PathLike, NoneType), "the path of a weight file")
    check_argument("model", model, (FaceModel, NoneType), "a FaceModel")
    check_argument("landmarks", landmarks, str, "where they come from, e.g. 'auto'")
    check_device(device)
    typical_mm = SHIPPED_ERROR_MM if weights is None else None
    weights = shipped_weights() if weights is None else weights
    about = read_about(weights)
    model = load_model(about["model"]) if model is None else model
    network = load_predictor(weights, model).to(device)
    tell("reading photos", 0.0)
    subject = as_subject(subject)
    tell("finding landmarks", 0.1)
    found, sources = detect_landmarks(subject, landmarks, device)
    found = check_given(subject, found, sources, landmarks == "auto", device)
    subject, found, notes = usable_views(subject, found)
    notes = list(subject.notes) + list(notes)
    if any(v.camera is not None for v in subject.views):
        notes.append("cameras.json was not used: the network predicts cameras of its own")
        subject = replace(subject, views=tuple(v.replace(camera=None) for v in subject.views))
    tell("predicting", 0.7)
    began = time.perf_counter()
    predicted = predict_views(network, model.to(device), subject, found, device, os.fspath(weights))
    solved = time.perf_counter()
    order = predicted.order
    notes += [
        f"left out: {v.name}; the network takes one photo for each of {', '.join(s.name for s in network.views)}"
        for i, v in enumerate(subject.views)
        if i not in order
    ]
    subject, found = replace(subject, views=tuple(subject.views[i] for i in order)), found.select(order)
    recipe = load_recipe("landmarks", changes={"camera": {"kind": network.camera_kind}})
    return _result(
        subject,
        found,
        model,
        recipe,
        predicted,
        notes,
        {"weights": os.fspath(weights)} | about,
        {"solve": round(solved - began, 3), "start": start, "cpu": cpu},
        typical_mm,
    )


def _result(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    predicted: Predicted,
    notes: list[str],
    about: dict[str, Any],
    times: dict[str, float],
    typical_mm: float | None,
) -> FitResult:
    state, observations, local = predicted.prediction.state, predicted.observations, predicted.model
    _, cameras = initial_state(local, subject.views, observations, recipe.camera)
    run = _Predicted(local, recipe, observations, cameras)
    final = to_photos(state, observations).to("cpu")
    metrics = build_metrics(model, subject, final, found, run, cameras)
    spent = {
        "solve": times["solve"],
        "total": round(time.perf_counter() - times["start"], 3),
        "cpu": round(time.process_time() - times["cpu"], 3),
    }
    metrics |= {
        "recipe": "predict",
        "error_bars": None,
        "start": {"source": "regressor", "iterations": 0},
        "time_s": spent,
        "notes": notes,
        "typical_error_mm": typical_mm,
    }
    status, warnings = judge_safely(metrics)
    sigma = predicted.prediction.identity_sigma
    return FitResult(
        model,
        subject,
        final,
        replace(found, sigma=run.sigma_photo()),
        status,
        warnings,
        metrics,
        {"name": "predict", "regressor": about},
        cameras.source,
        identity_covariance=None if sigma is None else torch.diag(sigma[0].cpu() ** 2),
    )
