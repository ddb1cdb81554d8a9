"""A face from photos by a trained network alone: the same result as a fit, without its iterations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import torch

from fitkit.errors import InputError, check_argument
from fitkit.fitting.choose_start import ChosenStart
from fitkit.fitting.findings import SHIPPED_ERROR_MM, judge
from fitkit.fitting.initialize import initial_state, to_photos
from fitkit.fitting.metrics import fit_report
from fitkit.fitting.network_start import Predicted, on_landmarks, predict_views, shipped_weights
from fitkit.fitting.predicted_maps import PredictedMaps, maps_of
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.report import PREDICT, TimeReport
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import check_device
from fitkit.fitting.solution import Solution
from fitkit.fitting.stages import at_start
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, as_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, read_about
from fitkit.nets.predictor import Predictor
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.given import check_given
from fitkit.observe.landmarks.types import Landmarks

POSES = ("network", "landmarks")  # where those of predicted heads come from


@dataclass(frozen=True)
class TrainedNetwork:
    """A network, ready to predict. model: its face model, on the CPU; about: what its file says; weights: the
    file; typical_mm: its error for new people, None where that is not known; device: where it is."""

    network: Predictor
    model: FaceModel
    about: dict[str, Any]
    weights: str
    typical_mm: float | None
    device: str


def load_trained(
    weights: str | os.PathLike | None = None, model: FaceModel | None = None, device: str = "cpu"
) -> TrainedNetwork:
    """A network that `fitkit train-regressor` has trained; arguments as of `predict`.

    Raises:
        FitkitError: weights that cannot be used, or of another face model.
    """
    check_device(device)
    typical_mm = SHIPPED_ERROR_MM if weights is None else None
    weights = shipped_weights() if weights is None else weights
    about = read_about(weights)
    model = load_model(about["model"] or "generic") if model is None else model
    network = load_predictor(weights, model).to(device)
    return TrainedNetwork(network, model, about, os.fspath(weights), typical_mm, device)


@torch.no_grad()
def predict(
    subject: str | os.PathLike | Subject | Sequence,
    weights: str | os.PathLike | None = None,
    model: FaceModel | None = None,
    landmarks: str = "auto",
    device: str = "cpu",
    progress: Progress | Callable[[str, float], None] | None = None,
    repeat: bool = False,
    pose: str = "network",
) -> FitResult:
    """Predict the face in the photos of one person with a network that `fitkit train-regressor` has trained.

    Landmarks say where the faces are and, for a network with named views, which photo goes into which of them
    (by the yaw of the head, or by its name); photos for which there is no view, or a better one, are left
    out.

    Args:
        subject: a subject folder, the path of one photo, a Subject, or a list of images as in `fitkit.fit`;
            weights: regressor.safetensors, None: the network that comes with fitkit;
        model: None loads the one the weights name.
        landmarks: where the 68 points come from, see `fitkit fit --landmarks`.
        progress: called with (what is done next, share done in 0..1), or a Progress.
        repeat: a single photo is put into every view of a network with named views, instead of the one that
            it shows.
        pose: where heads are and how they are turned: as the 'network' says, or so that its face lies on the
            'landmarks' of the photos, in closed form.
    Returns:
        a result with the predicted cameras, without error bars; its covariance of the identity is diagonal,
        from the standard deviations of the network, None where it has none; status and metrics as a fit
        judges them.
    Raises:
        FitkitError: weights or photos that cannot be used, or no photo that fits a view of the network.
    """
    begun = time.perf_counter(), time.process_time()
    check_argument("weights", weights, (str, os.PathLike, NoneType), "the path of a weight file")
    check_argument("model", model, (FaceModel, NoneType), "a FaceModel")
    check_pose(pose)
    progress = Progress.of(progress)
    trained = load_trained(weights, model, device)
    if "state" not in trained.network.gives:
        raise InputError(
            f"{trained.weights}: expected a network that gives a scene, it gives "
            f"{', '.join(trained.network.gives)}; call fitkit.fitting.predict.predict_maps"
        )
    subject, found, notes = _faces(subject, landmarks, device, progress)
    progress.at(0.7, "predicting")
    return predict_observed(subject, found, trained, notes, repeat, begun, pose)


@torch.no_grad()
def predict_maps(
    subject: str | os.PathLike | Subject | Sequence,
    weights: str | os.PathLike,
    landmarks: str = "auto",
    device: str = "cpu",
    progress: Progress | Callable[[str, float], None] | None = None,
) -> PredictedMaps:
    """What a network says of the photos of one person beside a scene, as depth maps; arguments as those of
    `predict`.

    Raises:
        FitkitError: weights or photos that cannot be used, no photo that fits a view of the network, or a
            network that says nothing but a scene.
    """
    check_argument("weights", weights, (str, os.PathLike), "the path of a weight file")
    progress = Progress.of(progress)
    trained = load_trained(weights, None, device)
    subject, found, notes = _faces(subject, landmarks, device, progress)
    progress.at(0.7, "predicting")
    model = trained.model.to(device)
    predicted = predict_views(trained.network, model, subject, found, device, trained.weights)
    maps = maps_of(predicted, subject, {"weights": trained.weights} | trained.about, notes)
    if not maps.gives:
        raise InputError(
            f"{trained.weights}: this network gives nothing but a scene; call fitkit.fitting.predict.predict"
        )
    return maps


def check_pose(pose: str) -> None:
    """Refuse what is no place where a pose comes from.

    Raises:
        InputError: it says which there are.
    """
    if pose not in POSES:
        raise InputError(f"pose: expected {' or '.join(POSES)}, got '{pose}'")


def _faces(
    subject: str | os.PathLike | Subject | Sequence, landmarks: str, device: str, progress: Progress
) -> tuple[Subject, Landmarks, tuple[str, ...]]:
    """The photos that show a face, its landmarks, and notes."""
    check_argument("landmarks", landmarks, str, "where they come from, e.g. 'auto'")
    progress.at(0.0, "reading photos")
    subject = as_subject(subject)
    finding = progress.part(0.1, 0.7, "finding landmarks")
    finding.at(0.0)
    found, sources = detect_landmarks(subject, landmarks, device, finding)
    found = check_given(subject, found, sources, landmarks == "auto", device)
    subject, found, notes = usable_views(subject, found)
    return subject, found, (*subject.notes, *notes)


@torch.no_grad()
def predict_observed(
    subject: Subject,
    found: Landmarks,
    trained: TrainedNetwork,
    notes: Sequence[str] = (),
    repeat: bool = False,
    begun: tuple[float, float] | None = None,
    pose: str = "network",
) -> FitResult:
    """`predict` from views and landmarks that are already there.

    Args:
        begun: (perf_counter, process_time) from which on its times are counted; None: from now on.
    """
    start, cpu = begun or (time.perf_counter(), time.process_time())
    notes, network, model = list(notes), trained.network, trained.model
    if any(v.camera is not None for v in subject.views):
        notes.append("cameras.json was not used: the network predicts cameras of its own")
        subject = replace(subject, views=tuple(v.replace(camera=None) for v in subject.views))
    began = time.perf_counter()
    predicted = predict_views(
        network, model.to(trained.device), subject, found, trained.device, trained.weights, repeat
    )
    if pose == "landmarks":
        predicted = on_landmarks(predicted)
    solved = time.perf_counter()
    maps = maps_of(predicted, subject, {"weights": trained.weights} | trained.about)
    order = predicted.order
    notes += [
        f"left out: {v.name}; the network takes one photo for each of "
        f"{', '.join(s.name for s in network.views)}"
        for i, v in enumerate(subject.views)
        if i not in order
    ]
    subject, found = replace(subject, views=tuple(subject.views[i] for i in order)), found.select(order)
    recipe = load_recipe("landmarks", changes={"camera": {"kind": network.camera_kind}})
    state, observations = predicted.prediction.state, predicted.observations
    solution = _solution(predicted, subject, recipe)
    final = to_photos(state, observations).to("cpu")
    report, _ = fit_report(solution, model, subject, final, found, PREDICT)
    report = replace(
        report,
        notes=tuple(notes),
        typical_error_mm=trained.typical_mm,
        time_s=TimeReport(
            round(solved - began, 3),
            round(time.perf_counter() - start, 3),
            round(time.process_time() - cpu, 3),
        ),
    )
    sigma = predicted.prediction.identity_sigma
    return FitResult(
        model,
        subject,
        final,
        replace(found, sigma=solution.sigma_photo()),
        judge(report),
        {"name": PREDICT, "regressor": {"weights": trained.weights} | trained.about},
        solution.cameras.source,
        identity_covariance=None if sigma is None else torch.diag(sigma[0].cpu() ** 2),
        maps=maps if set(maps.gives) - {"landmarks"} else None,  # landmarks alone are no result of their own
    )


def _solution(predicted: Predicted, subject: Subject, recipe: FitRecipe) -> Solution:
    """The prediction as what a fit without stages has found."""
    observations = predicted.observations
    _, cameras = initial_state(predicted.model, subject.views, observations, recipe.camera)
    state, start = predicted.prediction.state, "regressor"
    return at_start(ChosenStart(start, state, cameras, observations), predicted.model, recipe)
