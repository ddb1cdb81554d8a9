"""A face from photos by a trained network alone: the same result as a fit, without its iterations."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fitkit.errors import InputError
from fitkit.fit.initialize import initial_state
from fitkit.fit.recipe import load_recipe
from fitkit.fit.report import build_metrics, judge, verdict
from fitkit.fit.result import FitResult
from fitkit.fit.run import FitRun, check_device, move, to_photos
from fitkit.io.subject import Subject, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, read_about
from fitkit.nets.predictor import assign_views
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.pose import yaw_pitch_roll


class _Predicted(FitRun):
    """What the report asks of a fit; nothing was solved for."""

    def focal_uncertainty(self) -> list[float | None]:
        return [None] * self.observations.num_views


@torch.no_grad()
def predict(subject: str | os.PathLike | Subject, weights: str | os.PathLike, model: FaceModel | None = None, landmarks: str = "auto",
            device: str = "cpu", tell: Callable[[str, float], None] = lambda text, share: None) -> FitResult:
    """Predict the face in the photos of one person with a network that `fitkit train-regressor` has trained.

    Landmarks say where the faces are and which photo goes into which of the network's views (by the yaw of the head, or by its name);
    photos for which there is no view, or a better one, are left out.

    Args:
        subject: a subject folder or a Subject; weights: regressor.safetensors; model: None loads the one the weights name.
        landmarks: where the 68 points come from, see `fitkit fit --landmarks`.
        tell: called with (what is done next, share done in 0..1).
    Returns:
        a result with the predicted cameras, without covariance and error bars; status and metrics as a fit judges them.
    Raises:
        FitkitError: weights or photos that cannot be used, or no photo that fits a view of the network.
    """
    start, cpu = time.perf_counter(), time.process_time()
    check_device(device)
    about = read_about(weights)
    model = load_model(about["model"]) if model is None else model
    network = load_predictor(weights, model).to(device)
    tell("reading photos", 0.0)
    subject = subject if isinstance(subject, Subject) else load_subject(subject)
    tell("finding landmarks", 0.1)
    found, _ = detect_landmarks(subject, landmarks, device)
    subject, found, notes = usable_views(subject, found)
    notes = list(subject.notes) + list(notes)
    if any(v.camera is not None for v in subject.views):
        notes.append("cameras.json was not used: the network predicts cameras of its own")
        subject = replace(subject, views=tuple(v.replace(camera=None) for v in subject.views))
    recipe = load_recipe("landmarks", changes={"camera": {"kind": network.camera_kind}})
    tell("predicting", 0.7)
    began = time.perf_counter()
    observations = crop_views((v.image for v in subject.views), (v.mask for v in subject.views), found, network.crop)
    turned, _ = initial_state(model, subject.views, observations, recipe.camera)
    slots = assign_views(network.views, yaw_pitch_roll(turned.pose.rotation)[:, 0].tolist(), [v.name for v in subject.views])
    there = [s for s, view in enumerate(slots) if view is not None]
    if not there:
        wanted = ", ".join(f"{v.name} {v.yaw[0]:g} to {v.yaw[1]:g}" for v in network.views)
        raise InputError(f"{subject.path or subject.name}: none of its photos fits a view of {weights} (yaw in degrees: {wanted})")
    order = [slots[s] for s in there]
    notes += [f"left out: {v.name}; the network takes one photo for each of {', '.join(s.name for s in network.views)}"
              for i, v in enumerate(subject.views) if i not in order]
    subject = replace(subject, views=tuple(subject.views[i] for i in order))
    found = replace(found, **{k: getattr(found, k)[order] for k in ("points", "sigma", "valid", "confidence")})
    observations = move(crop_views((v.image for v in subject.views), (v.mask for v in subject.views), found, network.crop), device)
    images = torch.full((1, len(network.views), 3, network.size, network.size), 0.5, device=device)
    valid = torch.zeros(1, len(network.views), dtype=torch.bool, device=device)
    images[0, there], valid[0, there] = observations.images, True
    state = network(images, valid)
    solved = time.perf_counter()
    return _result(subject, found, model, recipe, state, move(observations, device), notes, {"weights": os.fspath(weights)} | about,
                   {"solve": round(solved - began, 3), "start": start, "cpu": cpu})


def _result(subject: Subject, found: Landmarks, model: FaceModel, recipe, state, observations, notes, about: dict[str, Any],
            times: dict[str, float]) -> FitResult:
    local = model.to(state.identity.device)
    _, cameras = initial_state(local, subject.views, observations, recipe.camera)
    run = _Predicted(local, recipe, observations, cameras)
    final = to_photos(state, observations).to("cpu")
    metrics = build_metrics(model, subject, final, found, run, cameras)
    metrics |= {"recipe": "predict", "error_bars": None, "time_s": {
        "solve": times["solve"], "total": round(time.perf_counter() - times["start"], 3), "cpu": round(time.process_time() - times["cpu"], 3)}}
    status, warnings = judge(metrics)
    metrics["verdict"] = verdict(metrics)
    return FitResult(model, subject, final, replace(found, sigma=run.sigma_photo()), status, tuple(notes) + warnings, metrics,
                     {"name": "predict", "regressor": about}, cameras.source)
