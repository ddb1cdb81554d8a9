"""Results of `fitkit fit` as labels: what the optimizer found, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.subject_sets import SubjectSource
from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file
from fitkit.io.options import Length, Pixels, Positive
from fitkit.io.subject import Subject, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.label_crops import in_crop
from fitkit.observe.labels import LARGE, Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.parameters import Parameters, load_parameters
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

PARAMETERS, METRICS = "parameters.npz", "metrics.json"


@dataclass(frozen=True)
class FitResultsOptions:
    """photos: what was fitted, as `fitkit batch` takes it: a folder with the subject folders, one for each
    result by its name, a table of photos, or KIND:PATH, with photo_options of its kind and a landmark_folder;
    empty: the photos lie in the folder above the result, where `fitkit fit` puts it; status: of the fits that
    count; sigma: standard deviation of a coefficient where a fit states none; landmarks: 'files' those beside
    the photos where there are any, 'fit' those of the fitted face; size: side of the pictures that are read,
    px."""

    photos: str = ""
    photo_options: tuple[str, ...] = ()
    landmark_folder: str = ""
    status: Annotated[tuple[str, ...], Length(1)] = ("ok",)
    sigma: Positive = 0.5
    landmarks: str = "files"
    size: Pixels = 272


class FitResults(FaceDataset):
    """One sample for each result folder below the root. Labels: the fitted state, the standard deviations of
    its identity, and where the fitted points lie in the crops."""

    name, terms = "fits", "those of the photos and of the face model"

    def __init__(
        self,
        folder: Path,
        options: FitResultsOptions,
        model: FaceModel,
        labels: Collection[str] = LARGE,
    ):
        """labels: which of the large ones (`labels.LARGE`) are wanted; fits give vertices and crop_vertices.

        Raises InputError: no such folder, or no result with one of the wanted states in it."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected results of fitkit fit")
        self.options, self.model, self.labels = options, model, frozenset(labels)
        # Hidden folders: what a fit that was killed left half written.
        found = [
            p.parent
            for p in sorted(folder.rglob(PARAMETERS))
            if not any(n.startswith(".") for n in p.relative_to(folder).parts)
        ]
        self.folders = [p for p in found if _status(p) in options.status]
        if not self.folders:
            raise InputError(
                f"{folder}: none of {len(found)} results of fitkit fit below it has status "
                f"{' or '.join(options.status)}"
            )
        self._photos = _photos(options)
        names = [p.parent if p.name == "fitkit" else p for p in self.folders]
        self.ids = tuple(n.relative_to(folder).as_posix() if n != folder else folder.name for n in names)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        folder = self.folders[index]
        parameters = load_parameters(folder / PARAMETERS)
        try:
            parameters.check_model(self.model)
        except InputError as error:
            raise InputError(f"{folder / PARAMETERS}: {error}") from error
        subject, place = self._subject(folder, self.ids[index], parameters)
        views = {v.name: v for v in subject.views}
        missing = [n for n in parameters.view_names if n not in views]
        if missing:
            raise InputError(
                f"{folder / PARAMETERS}: its photo '{missing[0]}' is not in {place}; "
                "set the option photos to the folder of the subjects"
            )
        chosen = [views[n] for n in parameters.view_names]
        for view, size in zip(chosen, parameters.image_size.tolist()):
            if list(view.size) != size:
                raise InputError(
                    f"{folder / PARAMETERS}: photo '{view.name}' had {size[0]} x {size[1]} px when it was "
                    f"fitted, in {place} it has {view.size[0]} x {view.size[1]}"
                )
        marks = self._landmarks(parameters, chosen)
        crop = CropOptions(1.9, 0.1, self.options.size, self.options.size)
        seen = crop_views((v.image for v in chosen), (v.mask for v in chosen), marks, crop)
        state = parameters.state.to(dtype=torch.float32)
        state = state.replace(camera=state.camera.scaled(seen.scale, seen.offset))
        truth = Labels(state, self._sigma(parameters), **self._places(state))
        return Sample(self.ids[index], replace(seen, labels=truth), truth)

    def _places(self, state: SceneState) -> dict[str, torch.Tensor]:
        """crop_points, and the large labels that are wanted."""
        vertices = state.pose.apply(state.vertices(self.model))
        marked = self.model.landmarks.points(vertices, self.model.triangles)
        there = {"vertices": vertices, "crop_vertices": in_crop(vertices, state.camera, marked)}
        wanted = {name: there[name] for name in self.labels & set(there)}
        return {"crop_points": in_crop(marked, state.camera), **wanted}

    def _subject(self, folder: Path, name: str, parameters: Parameters) -> tuple[Subject, str]:
        """The photos of a result, and where they are."""
        if not self.options.photos:
            return load_subject(folder.parent, ignore=[folder]), str(folder.parent)
        # Of a batch the result has the name of the subject; others are known by what they say of themselves.
        load = self._photos.get(name) or self._photos.get(parameters.subject_name)
        if load is None:
            raise InputError(
                f"{folder / PARAMETERS}: no subject '{name}' or '{parameters.subject_name}' in "
                f"{self.options.photos}; set the option photos to what was fitted"
            )
        return load(), f"{self.options.photos}, subject {name}"

    def _landmarks(self, parameters: Parameters, views) -> Landmarks:
        own = [v.landmarks for v in views]
        B = len(views)
        if self.options.landmarks == "files" and all(o is not None for o in own):
            table = torch.stack([torch.from_numpy(o) for o in own]).float()
            return Landmarks(
                table[..., :2],
                torch.full((B, 68), torch.nan),
                torch.isfinite(table[..., :2]).all(-1),
                table[..., 2],
                "auto",
            )
        points = project_points(self.model.landmark_basis, parameters.state.to(dtype=torch.float32)).pixels
        return Landmarks(
            points,
            torch.full((B, 68), torch.nan),
            torch.ones(B, 68, dtype=torch.bool),
            torch.ones(B, 68),
            "surface",
        )

    def _sigma(self, parameters: Parameters) -> torch.Tensor:
        """[1, K_id], at most 1: that is what is known of a coefficient without any photo."""
        covariance = parameters.identity_covariance
        if covariance is None:
            return torch.full_like(parameters.state.identity, self.options.sigma).float()
        return covariance.diagonal().clamp_min(0).sqrt().clamp_max(1.0).float()[None]


def _photos(options: FitResultsOptions) -> dict[str, Callable[[], Subject]]:
    """Name -> what loads the photos of a subject."""
    if not options.photos:
        return {}
    source = SubjectSource(options.photos, options.photo_options, options.landmark_folder)
    return {entry.name: entry.load for entry in source.entries()}


def _status(folder: Path) -> str:
    with foreign_file(folder / METRICS, "not readable as the metrics of a fit") as file:
        return str(file.json()["status"])
