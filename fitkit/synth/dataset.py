"""Synthetic subjects for training: made when they are asked for, or read from a folder that `fitkit synth`
has written."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.io.foreign import foreign_file, inside, refused_as
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.mesh_files import read_mesh
from fitkit.io.options import read_yaml
from fitkit.models.correspondence import Correspondence, correspondence
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.label_crops import in_crop
from fitkit.observe.labels import LARGE, Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState
from fitkit.synth.folder import (
    RECIPE_FILE,
    read_classes,
    read_depth,
    read_normals,
    skin_mesh,
    subject_name,
)
from fitkit.synth.mitsuba import head_renderer
from fitkit.synth.recipe import SynthRecipe, check_synth_recipe
from fitkit.synth.subject import (
    SubjectPlan,
    SubjectView,
    draw_subject,
    plan_vertices,
    render_subject,
)
from fitkit.tensors import one_thread


class SynthDataset(FaceDataset):
    """Sample i is subject i of `fitkit synth` with the same recipe: the same pictures, decoded from the same
    bytes.

    Works in the workers of a DataLoader (give it `collate_fn`, a Sample is no tensor); start them with
    multiprocessing_context='spawn'.
    """

    def __init__(
        self,
        recipe: SynthRecipe,
        length: int,
        model: FaceModel | str | os.PathLike | None = None,
        labels: Collection[str] = LARGE,
    ):
        """length: number of subjects; model: instead of the recipe's; labels: which of the large ones
        (`labels.LARGE`) are kept.

        Raises:
            InputError: a length below 1, or a recipe that makes no pictures. MissingWeightsError: the model,
                or mitsuba, is not here.
        """
        check_synth_recipe(recipe, recipe.name)
        if length < 1:
            raise InputError(f"SynthDataset: expected at least 1 subject, got {length}")
        self.recipe, self.length, self.dropped = recipe, length, set(LARGE) - set(labels)
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
            sample = synth_sample(self.model, self.recipe, plan, views)
        labels = sample.truth.without(self.dropped)
        return Sample(sample.id, replace(sample.observations, labels=labels), labels)


def synth_sample(
    model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan, views: list[SubjectView]
) -> Sample:
    """Observations of the given landmarks with all labels: state, vertices, points3d (head frame),
    crop_points, crop_vertices, depth, normals, parse, visible."""
    B, size = len(views), recipe.size
    images = torch.from_numpy(np.stack([v.image for v in views])).permute(0, 3, 1, 2).float() / 255
    points = torch.from_numpy(np.stack([v.given for v in views])).float()
    sigma = torch.full((B, 68), recipe.landmark_noise if recipe.landmark_noise > 0 else torch.nan)
    marks = Landmarks(points, sigma, torch.ones(B, 68, dtype=torch.bool), torch.ones(B, 68), recipe.jaw)
    state = plan.state
    head = torch.stack([plan_vertices(model, plan, state.select([b])) for b in range(B)])
    points3d = model.landmarks.points(head, model.triangles)
    vertices, marked = state.pose.apply(head), state.pose.apply(points3d)
    labels = Labels(
        state=state,
        vertices=vertices,
        points3d=points3d,
        crop_points=in_crop(marked, state.camera),
        crop_vertices=in_crop(vertices, state.camera, marked),
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


def is_synth_folder(folder: str | os.PathLike) -> bool:
    """Whether `fitkit synth` has written it."""
    return (Path(folder) / RECIPE_FILE).is_file()


def subjects_in(folder: str | os.PathLike) -> tuple[str, ...]:
    """Names of the subjects in a folder of `fitkit synth`, sorted.

    Raises:
        InputError: there are none.
    """
    names = sorted(p.name for p in Path(folder).glob("subject_[0-9]*") if p.is_dir())
    if not names:
        raise InputError(f"{folder}: no subject in it; render some with fitkit synth")
    return tuple(names)


def open_folder(
    folder: str | os.PathLike, model: FaceModel, most: int = 0, labels: Collection[str] = LARGE
) -> FaceDataset:
    """The subjects in a folder of `fitkit synth` for a training of `model`, of whatever face model they were
    made: `SynthFolder` or `CarriedFolder`.

    Raises:
        InputError: as `SynthFolder`, or the two faces cannot be laid onto each other. MissingWeightsError:
            the face model that they were made of is not here.
    """
    read = SynthFolder(folder, model, most, labels)
    if read.made_of == model.name:
        return read
    other = load_model(read.made_of)
    if other.name == model.name:
        return read
    places = correspondence(other, model) if "crop_vertices" in labels else None
    return CarriedFolder(SynthFolder(folder, other, most, labels), places, model)


class SynthFolder(FaceDataset):
    """The subjects in a folder of `fitkit synth`, for the face model that they were made of.

    Labels as `SynthDataset` gives them. The state has the model's shape; what the renderer adds to it
    (unequal sides, closed teeth) is in points3d, crop_points and the maps, and in the vertices of the skin.
    """

    terms = "rendered people; no terms beyond those of the face model"

    def __init__(
        self, folder: str | os.PathLike, model: FaceModel, most: int = 0, labels: Collection[str] = LARGE
    ):
        """most: subjects at most, in their order; 0 = all; labels: which of the large ones (`labels.LARGE`)
        are read.

        Raises:
            InputError: no such folder, not one of `fitkit synth`, or without subjects.
        """
        folder = Path(folder)
        if not is_synth_folder(folder):
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
                f"{folder / RECIPE_FILE}: not a recipe that fitkit synth has written; render the subjects "
                "again"
            )
        with refused_as(f"{folder / RECIPE_FILE}: landmark_noise: expected px, 0 to 1000"):
            self.jaw, self.noise = recipe["jaw"], float(recipe["landmark_noise"])
            if not 0 <= self.noise <= 1000:
                raise ValueError(f"it is {self.noise:g}")
        self.folder, self.model, self.labels = folder, model, frozenset(labels)
        self.made_of = str(recipe.get("model"))  # name or path
        self.per_view = recipe.get("expression") == "per_view"
        self.ids = subjects_in(folder)[: most or None]

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
            labels = self._labels(index, state, truth, views)
        B, (H, W) = len(views), images.shape[-2:]
        sigma = torch.full((B, 68), self.noise if self.noise > 0 else torch.nan)
        marks = Landmarks(points, sigma, torch.isfinite(points).all(-1), torch.ones(B, 68), self.jaw)
        everywhere = torch.ones(B, H, W, dtype=torch.bool)
        return Sample(
            name, Observations(images, marks, everywhere, torch.ones(B), torch.zeros(B, 2), labels), labels
        )

    def _labels(self, index: int, state: SceneState, truth: Path, views: list[dict[str, Any]]) -> Labels:
        """All labels of a subject; raises as reading its scene does."""
        stems = [Path(v["image"]).stem for v in views]
        points = [
            "landmarks3d" + (f"_{s}" if v["mesh"] != "mesh.ply" else "") + ".npy"
            for s, v in zip(stems, views)
        ]
        points3d = torch.from_numpy(np.stack([_read_npy(truth / p, (68, 3)) for p in points])).to(
            state.identity
        )
        moment = torch.arange(len(views)) if self.per_view else torch.tensor([int(v["frame"]) for v in views])
        marked = state.pose.apply(points3d)
        labels = Labels(
            state=state,
            points3d=points3d,
            crop_points=in_crop(marked, state.camera),
            person=torch.full((len(views),), index),
            moment=index * len(views) + moment,
            visible=torch.from_numpy(_read_npy(truth / "visible.npy", (len(views), 68)).astype(bool)),
        )
        maps = {"depth": read_depth, "normals": read_normals, "parse": read_classes}
        for part in self.labels & set(maps):
            read = np.stack([maps[part](truth / f"{stem}_{part}.png") for stem in stems])
            value = torch.from_numpy(read).float() if part != "parse" else torch.from_numpy(read).long()
            labels = replace(labels, **{part: value.permute(0, 3, 1, 2) if part == "normals" else value})
        if self.labels & {"vertices", "crop_vertices"}:
            head, kept = state.vertices(self.model), skin_mesh(self.model)[0]
            for b, view in enumerate(views):
                head[b, kept] = torch.from_numpy(read_mesh(inside(truth, view["mesh"]))[0]).to(head)
            vertices = state.pose.apply(head)
            both = {"vertices": vertices, "crop_vertices": in_crop(vertices, state.camera, marked)}
            labels = replace(labels, **{name: both[name] for name in self.labels & set(both)})
        return labels


class CarriedFolder(FaceDataset):
    """Subjects of another face model than the training's, as `SynthFolder` reads them, with the labels that
    need no coefficients: those vertices of the training's model that lie on the other one (`crop_vertices`,
    NaN = not known), the pose of its head frame (that of the other one, whose mean landmarks are laid onto
    its own by a rigid motion), points3d, crop_points, the maps, visible, person, moment."""

    terms = SynthFolder.terms

    def __init__(self, read: SynthFolder, places: Correspondence | None, model: FaceModel):
        """read: with the model that its subjects were made of; places: where the vertices of the training's
        model lie on that one; None: crop_vertices are not wanted; model: of the training."""
        self.read, self.ids, self.places, self.model = read, read.ids, places, model
        both = read.model.landmarks.present & model.landmarks.present
        own, other = (m.landmark_basis.mean[None].double().cpu() for m in (model, read.model))
        self._other_from_own = similarity_align(own, other, both[None].cpu(), with_scale=False)

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, index: int) -> Sample:
        sample = self.read[index]
        truth = sample.truth
        assert truth is not None  # of rendered people all is known
        labels = replace(truth, state=self._scene(truth.state), vertices=None, known=("pose",))
        if self.places is not None and truth.crop_vertices is not None:
            there = truth.crop_vertices.transpose(0, 1)  # vertices first
            carried = self.places.carry(there, self.read.model).transpose(0, 1)
            known = (self.places.weight > 0)[None, :, None]
            labels = replace(labels, crop_vertices=torch.where(known, carried, torch.nan))
        return Sample(sample.id, replace(sample.observations, labels=labels), labels)

    def _scene(self, state: SceneState) -> SceneState:
        """The training's model, its mean face, where the other one is."""
        best, pose, B = self._other_from_own, state.pose, state.num_views
        rotation = pose.rotation @ best.rotation.to(pose.rotation)
        moved = pose.rotation @ best.translation.to(pose.rotation)[..., None]
        return SceneState(
            state.identity.new_zeros(1, self.model.num_identity),
            torch.zeros(B, dtype=torch.int64),
            state.identity.new_zeros(B, self.model.num_expression),
            Pose(rotation, pose.translation + moved[..., 0]),
            state.camera,
            state.illumination,
        )


def _read_npy(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with foreign_file(path, "not readable as written by fitkit synth") as file:
        array = file.npy()
    if array.shape != shape:
        raise InputError(f"{path}: expected {list(shape)}, got {list(array.shape)}; render the subject again")
    return array


def _read_json(path: Path) -> dict[str, Any]:
    with foreign_file(path, "not readable as JSON of fitkit synth") as file:
        value = file.json()
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected an object as fitkit synth writes it, got a {type(value).__name__}"
        )
    return value


def _state(model: FaceModel, parameters: dict[str, Any], views: list[dict[str, Any]]) -> SceneState:
    """The labelled scene of one subject; raises KeyError, TypeError, ValueError where the files are not as
    expected."""
    place = {name: i for i, name in enumerate(model.expression_names)}
    expression = torch.zeros(len(views), model.num_expression)
    for b, weights in enumerate(parameters["expression_per_view"]):
        for name, weight in weights.items():
            expression[b, place[name]] = float(weight)
    identity = torch.tensor([parameters["identity"]], dtype=torch.float32)
    if identity.shape[1] != model.num_identity:
        raise ValueError(f"{identity.shape[1]} identity coefficients, the model has {model.num_identity}")
    joints = None
    if "joints_per_view" in parameters:
        shape = len(views), model.num_joints, 3
        joints = torch.tensor(parameters["joints_per_view"], dtype=torch.float32).reshape(shape)
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
        joints=joints,
    )
