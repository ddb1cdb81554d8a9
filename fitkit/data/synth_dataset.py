"""Synthetic subjects for training, made when they are asked for; nothing touches the disk."""
from __future__ import annotations

import os

import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.synth_folder import subject_name
from fitkit.data.synth_recipe import SynthRecipe, check_synth_recipe
from fitkit.data.synth_subject import SubjectPlan, SubjectView, draw_subject, head_renderer, one_thread, render_subject
from fitkit.errors import InputError
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations


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
        self.model = model if isinstance(model, FaceModel) else load_model(recipe.model if model is None else model)
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


def synth_sample(model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan, views: list[SubjectView]) -> Sample:
    """Observations of the given landmarks with all labels: state, vertices, points3d (head frame), depth, normals, parse, visible."""
    B, size = len(views), recipe.size
    images = torch.from_numpy(np.stack([v.image for v in views])).permute(0, 3, 1, 2).float() / 255
    points = torch.from_numpy(np.stack([v.given for v in views])).float()
    sigma = torch.full((B, 68), recipe.landmark_noise if recipe.landmark_noise > 0 else torch.nan)
    marks = Landmarks(points, sigma, torch.ones(B, 68, dtype=torch.bool), torch.ones(B, 68), recipe.jaw)
    state = plan.state
    head = state.vertices(model)
    labels = Labels(
        state=state, vertices=state.pose.apply(head), points3d=model.landmarks.points(head, model.triangles),
        depth=torch.from_numpy(np.stack([v.depth for v in views])), person=torch.full((B,), plan.index),
        moment=torch.from_numpy(plan.index * recipe.pictures + (plan.moment if recipe.expression != "per_view" else np.arange(B))),
        parse=torch.from_numpy(np.stack([v.parse for v in views])).long(),
        normals=torch.from_numpy(np.stack([v.normals for v in views])).permute(0, 3, 1, 2),
        visible=torch.from_numpy(np.stack([v.visible for v in views])))
    observations = Observations(images, marks, torch.ones(B, size, size, dtype=torch.bool), torch.ones(B), torch.zeros(B, 2), labels)
    return Sample(subject_name(plan.index), observations, labels)
