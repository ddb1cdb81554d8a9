"""Synthetic subjects for training: made when they are asked for, or read from a folder that `fitkit synth` has written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.synth.folder import RECIPE_FILE, subject_name
from fitkit.synth.mitsuba import head_renderer
from fitkit.synth.recipe import SynthRecipe, check_synth_recipe
from fitkit.synth.subject import (
    SubjectPlan,
    SubjectView,
    draw_subject,
    render_subject,
)
from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file, inside, refused_as
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import read_yaml
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState
from fitkit.tensors import one_thread


class SynthDataset(FaceDataset):
    """Sample i is subject i of `fitkit synth` with the same recipe: the same pictures, decoded from the same bytes.

    Works in the workers of a DataLoader (give it `collate_fn`, a Sample is no tensor); start them with multiprocessing_context='spawn'.
    """

    def __init__(self, recipe: SynthRecipe, length: int, model: FaceModel | str | os.PathLike | None = None):
        """length: number of subjects; model: instead of the recipe's.

        Raises:
            InputError: a length below 1, or a recipe that makes no pictures. MissingWeightsError: the model, or mitsuba, is not here.
        """
        check_synth_recipe(recipe, recipe.name)
        if length < 1:
            raise InputError(f"SynthDataset: expected at least 1 subject, got {length}")
        self.recipe, self.length = recipe, length
        self.model = (
            model if isinstance(model, FaceModel) else load_model(recipe.model if model is None else model)
        )
        head_renderer(self.model, recipe)  # a renderer that is missing shows here

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Raises IndexError beyond the length, as sequences do."""
        if not -self.length <= index < self.length:
            raise IndexError(f"subject {index} of {self.length}")
        index %= self.length
        with one_thread():
            plan = draw_subject(self.model, self.recipe, index)
            views = render_subject(self.model, self.recipe, plan, head_renderer(self.model, self.recipe))
            return synth_sample(self.model, self.recipe, plan, views)


def synth_sample(
    model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan, views: list[SubjectView]
) -> Sample:
    """Observations of the given landmarks with all labels: state, vertices, points3d (head frame), depth, normals, parse, visible."""
    B, size = len(views), recipe.size
    images = torch.from_numpy(np.stack([v.image for v in views])).permute(0, 3, 1, 2).float() / 255
    points = torch.from_numpy(np.stack([v.given for v in views])).float()
    sigma = torch.full((B, 68), recipe.landmark_noise if recipe.landmark_noise > 0 else torch.nan)
    marks = Landmarks(points, sigma, torch.ones(B, 68, dtype=torch.bool), torch.ones(B, 68), recipe.jaw)
    state = plan.state
    head = state.vertices(model)
    labels = Labels(
        state=state,
        vertices=state.pose.apply(head),
        points3d=model.landmarks.points(head, model.triangles),
        depth=torch.from_numpy(np.stack([v.depth for v in views])),
        person=torch.full((B,), plan.index),
        moment=torch.from_numpy(
            plan.index * recipe.pictures + (plan.moment if recipe.expression != "per_view" else np.arange(B))
        ),
        parse=torch.from_numpy(np.stack([v.parse for v in views])).long(),
        normals=torch.from_numpy(np.stack([v.normals for v in views])).permute(0, 3, 1, 2),
        visible=torch.from_numpy(np.stack([v.visible for v in views])),
    )
    observations = Observations(
        images, marks, torch.ones(B, size, size, dtype=torch.bool), torch.ones(B), torch.zeros(B, 2), labels
    )
    return Sample(subject_name(plan.index), observations, labels)


class SynthFolder(FaceDataset):
    """The subjects in a folder of `fitkit synth`, for the face model that they were made of. Labels: the state.

    The state has the model's shape; what the renderer adds to it (unequal sides, closed teeth) is in the files, not in the labels.
    """

    terms = "rendered people; no terms beyond those of the face model"

    def __init__(self, folder: str | os.PathLike, model: FaceModel, most: int = 0):
        """most: subjects at most, in their order; 0 = all.

        Raises:
            InputError: no such folder, not one of `fitkit synth`, or without subjects.
        """
        folder = Path(folder)
        if not (folder / RECIPE_FILE).is_file():
            raise InputError(
                f"{folder}: expected a folder that fitkit synth has written; it holds no {RECIPE_FILE}"
            )
        record = read_yaml(folder / RECIPE_FILE)
        recipe = record.get("recipe") if isinstance(record, dict) else None
        if (
            not isinstance(recipe, dict)
            or "landmark_noise" not in recipe
            or recipe.get("jaw") not in ("surface", "outline")
        ):
            raise InputError(
                f"{folder / RECIPE_FILE}: not a recipe that fitkit synth has written; render the subjects again"
            )
        with refused_as(f"{folder / RECIPE_FILE}: landmark_noise: expected px, 0 to 1000"):
            self.jaw, self.noise = recipe["jaw"], float(recipe["landmark_noise"])
            if not 0 <= self.noise <= 1000:
                raise ValueError(f"it is {self.noise:g}")
        self.folder, self.model = folder, model
        self.ids = tuple(sorted(p.name for p in folder.glob("subject_[0-9]*") if p.is_dir()))[: most or None]
        if not self.ids:
            raise InputError(f"{folder}: no subject in it; render some with fitkit synth")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file of the subject that cannot be used, or another face model."""
        name = self.ids[index]
        photos, truth = self.folder / name, self.folder / "ground_truth" / name
        parameters, cameras = _read_json(truth / "params.json"), _read_json(truth / "cameras.json")
        if parameters.get("model") != self.model.name:
            raise InputError(
                f"{truth / 'params.json'}: made of face model '{parameters.get('model')}', the training has "
                f"'{self.model.name}'; train with model={parameters.get('model')}, or render other subjects"
            )
        with refused_as(
            f"{truth}: params.json and cameras.json do not tell the scene", "render the subject again"
        ):
            views = cameras["views"]
            state = _state(self.model, parameters, views)
            paths = [inside(photos, v["image"]) for v in views]
            images = (
                torch.from_numpy(np.stack([read_image(p)[0] for p in paths])).permute(0, 3, 1, 2).float()
                / 255
            )
            points = torch.from_numpy(
                np.stack([read_landmarks(p.with_suffix(".pts"))[:, :2] for p in paths])
            ).float()
            if len(state.illumination) != len(paths):
                raise ValueError(f"{len(paths)} views, {len(state.illumination)} of them with a light")
        B, (H, W) = len(views), images.shape[-2:]
        sigma = torch.full((B, 68), self.noise if self.noise > 0 else torch.nan)
        marks = Landmarks(points, sigma, torch.isfinite(points).all(-1), torch.ones(B, 68), self.jaw)
        labels, everywhere = Labels(state=state), torch.ones(B, H, W, dtype=torch.bool)
        return Sample(
            name, Observations(images, marks, everywhere, torch.ones(B), torch.zeros(B, 2), labels), labels
        )


def _read_json(path: Path) -> dict[str, Any]:
    with foreign_file(path, "not readable as JSON of fitkit synth") as file:
        value = file.json()
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected an object as fitkit synth writes it, got a {type(value).__name__}"
        )
    return value


def _state(model: FaceModel, parameters: dict[str, Any], views: list[dict[str, Any]]) -> SceneState:
    """The labelled scene of one subject; raises KeyError, TypeError, ValueError where the files are not as expected."""
    place = {name: i for i, name in enumerate(model.expression_names)}
    expression = torch.zeros(len(views), model.num_expression)
    for b, weights in enumerate(parameters["expression_per_view"]):
        for name, weight in weights.items():
            expression[b, place[name]] = float(weight)
    identity = torch.tensor([parameters["identity"]], dtype=torch.float32)
    if identity.shape[1] != model.num_identity:
        raise ValueError(f"{identity.shape[1]} identity coefficients, the model has {model.num_identity}")
    K, R, t = (torch.tensor([v[k] for v in views], dtype=torch.float32) for k in ("K", "R", "t"))
    light = torch.tensor([v["illumination_head"] for v in parameters["light_per_view"]], dtype=torch.float32)
    camera = Camera(K[:, 0, 0], K[:, :2, 2], K[:, 1, 1] / K[:, 0, 0])
    return SceneState(
        identity,
        torch.zeros(len(views), dtype=torch.int64),
        expression,
        Pose(R, t.reshape(-1, 3)),
        camera,
        light,
    )
