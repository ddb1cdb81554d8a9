"""Reading a result folder back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError, check_argument
from fitkit.fitting.report import FitReport
from fitkit.fitting.result import FitResult
from fitkit.io.foreign import foreign_file, readable
from fitkit.io.images import SUFFIXES
from fitkit.io.mesh_files import read_vertex_numbers
from fitkit.io.options import read_yaml
from fitkit.io.subject import OUTPUT_FOLDER, MissingPhoto, Subject, View, as_subject, is_result, load_photos
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.parameters import Parameters, load_parameters


def load_result(
    folder: str | os.PathLike,
    model: FaceModel | None = None,
    photos: str | os.PathLike | Subject | None = None,
) -> FitResult:
    """Read a result that a fit or a prediction has written; nothing in it is executed.

    Args:
        folder: the result folder, e.g. 'anna/fitkit'.
        model: the face model of the fit; None loads the one that the result names.
        photos: the subject folder, or Subject, whose photos were fitted; None looks where `fitkit fit` leaves
            them, in the folder around the result. Photos are known by their names and sizes; with None those
            that are not there give views that refuse to show theirs.
    Returns:
        the result, with the same numbers, meshes and verdict; saving it writes the same files. Not restored
        are the offsets of landmarks, `vertex_sigma` of results that hold numbers only, `landmarks` of results
        of earlier versions (then none of them is valid), and the `maps` of a prediction.
    Raises:
        InputError: no result folder, files that cannot be read or do not belong together, another face model,
            or photos that are not those of the fit. MissingWeightsError: the face model is not on this
            machine.
    """
    check_argument("load_result", folder, (str, os.PathLike), "the path of a result folder")
    check_argument("model", model, (FaceModel, type(None)), "a FaceModel")
    folder = Path(folder)
    if not is_result(folder):
        inner = folder / OUTPUT_FOLDER
        hint = f"; did you mean {inner}?" if is_result(inner) else ""
        raise InputError(f"{folder}: expected a result folder, with metrics.json and parameters.npz{hint}")
    parameters = load_parameters(folder / "parameters.npz")
    report = _report(folder, parameters)
    model = _model(folder, parameters) if model is None else model.to("cpu", torch.float32)
    try:
        parameters.check_model(model)
    except InputError as error:
        raise InputError(f"{folder / 'parameters.npz'}: {error}") from error
    return FitResult(
        model,
        _subject(folder, parameters, photos),
        parameters.state,
        _landmarks(parameters, report),
        report,
        read_yaml(folder / "recipe.yaml"),
        parameters.camera_source,
        parameters.identity_covariance,
        _vertex_sigma(folder / "subject.ply", model),
        parameters.displacement,
    )


def _report(folder: Path, parameters: Parameters) -> FitReport:
    path = folder / "metrics.json"
    with foreign_file(path, "not readable as the metrics of a fit") as file:
        report = FitReport.from_metrics(file.json(), str(path))
    names = tuple(view.name for view in report.views)
    if names != parameters.view_names:
        raise InputError(
            f"{path}: expected the views of the parameters.npz beside it, "
            f"{', '.join(parameters.view_names)}; got {', '.join(names) or 'none'}"
        )
    return report


def _model(folder: Path, parameters: Parameters) -> FaceModel:
    try:
        return load_model(parameters.model_name)
    except (InputError, MissingWeightsError) as error:
        raise type(error)(f"{folder}: {error}; or give the face model of the fit as `model`") from error


def _subject(folder: Path, parameters: Parameters, photos: str | os.PathLike | Subject | None) -> Subject:
    found = _beside(folder, parameters.view_names) if photos is None else as_subject(photos)
    there = {view.name: view for view in found.views}
    views = []
    for name, size in zip(parameters.view_names, parameters.image_size.tolist()):
        view = there.get(name)
        if view is not None and list(view.size) == size:
            views.append(view)
            continue
        if photos is not None:
            got = "it has none" if view is None else f"there it has {view.size[0]} x {view.size[1]}"
            raise InputError(
                f"{found.path or found.name}: expected the photo '{name}' of {folder}, {size[0]} x "
                f"{size[1]} px; {got}"
            )
        views.append(View(name, MissingPhoto(name, tuple(size), folder)))
    return Subject(parameters.subject_name, tuple(views), found.path)


def _beside(folder: Path, names: Sequence[str]) -> Subject:
    """The photos of these names around a result folder, as far as they are there and can be read."""
    place = folder.absolute().parent
    paths = sorted(p for p in place.iterdir() if readable(p.stem) in names and p.suffix.lower() in SUFFIXES)
    try:
        return replace(load_photos(paths), path=place)
    except InputError:
        return Subject(place.name, ())


def _landmarks(parameters: Parameters, report: FitReport) -> Landmarks:
    table = parameters.landmarks
    if table is None:
        table = torch.zeros(len(parameters.view_names), 68, 3)
    valid = table[..., 2] > 0
    points = table[..., :2].masked_fill(~valid[..., None], torch.nan)
    sigma = table[..., 2].masked_fill(~valid, torch.nan)
    doubts = tuple((v.name, v.landmark_doubt) for v in report.views if v.landmark_doubt)
    return Landmarks(points, sigma, valid, valid.float(), report.jaw or "auto", doubts=doubts)


def _vertex_sigma(path: Path, model: FaceModel) -> torch.Tensor | None:
    """[V] mm, or None where the result has none."""
    if not path.is_file():
        return None
    numbers = read_vertex_numbers(path, "sigma_mm")
    if numbers is not None and len(numbers) != model.num_vertices:
        raise InputError(
            f"{path}: expected {model.num_vertices} vertices, as face model '{model.name}' has, got "
            f"{len(numbers)}"
        )
    return None if numbers is None else torch.from_numpy(numbers.astype(np.float32))
