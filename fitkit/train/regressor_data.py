"""Which samples a training of a regressor sees in which step, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fitkit.data.augment import FaceAugmentation, augment, head_yaw, without_missing
from fitkit.data.color_match import reference_pictures
from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.landmark_frames import held_out
from fitkit.energies.registry import find
from fitkit.errors import FitkitError, InputError
from fitkit.io.termination import end_with_parent
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import Predictor, ViewSlot, assign_views
from fitkit.nets.weak_perspective import to_focal, to_orthographic
from fitkit.observe.label_crops import turn_labels
from fitkit.observe.labels import LARGE, Labels
from fitkit.observe.observations import Observations
from fitkit.tensors import move
from fitkit.train.readers import reader
from fitkit.train.regressor_recipe import DataSource, RegressorTraining, TrainingStage


@dataclass(frozen=True)
class Batch:
    """ids: of S samples, 'data set/sample'; images: [S, V, 3, size, size] in [0, 1], grey where a view is
    missing; valid: [S, V] bool; people: what is seen of each of them, the views that are there in the order
    of the slots."""

    ids: tuple[str, ...]
    images: Tensor
    valid: Tensor
    people: tuple[Observations, ...]

    def to(self, device: torch.device | str) -> Batch:
        return move(self, device)


@dataclass(frozen=True)
class InputOptions:
    """What becomes of a sample before the network sees it. most_views: for networks without named views;
    focal, closer: see Predictor."""

    views: tuple[ViewSlot, ...]
    size: int
    crop: Any
    camera_kind: str
    most_views: int = 4
    focal: float = 0.0
    closer: Any = None

    @staticmethod
    def of(network: Predictor, most_views: int = 4) -> InputOptions:
        n = network
        return InputOptions(n.views, n.size, n.crop, n.camera_kind, most_views, n.focal, n.closer)


def prepare(
    observations: Observations,
    where: str,
    model: FaceModel,
    inputs: InputOptions,
    augmentation: FaceAugmentation,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Observations]:
    """One sample as the network and the energies take it.

    Returns:
        images [V, 3, size, size] and valid [V] of the slots, or of the views that are there where the network
        has none, and the observations of the views that are there, in their order.
    Raises:
        InputError: none of its views belongs into a slot, or a view has too few landmarks; `where` names it.
    """
    if inputs.views:
        yaw = head_yaw(observations, model)
        slots = assign_views(inputs.views, yaw)
    else:
        B = observations.num_views
        slots = sorted(rng.permutation(B)[: inputs.most_views].tolist())
    there = [s for s, view in enumerate(slots) if view is not None]
    if not there:
        raise InputError(
            f"{where}: none of its views fits a view of the recipe: heads turned by "
            f"{', '.join(f'{y:.0f}' for y in yaw)} degrees, expected "
            f"{', '.join(f'{s.name} {s.yaw[0]:g} to {s.yaw[1]:g}' for s in inputs.views)}"
        )
    there = without_missing(there, augmentation, rng)
    seen = observations.select(torch.tensor([slots[s] for s in there]))
    closer = inputs.closer is not None and rng.random() < 0.5
    seen = augment(seen, inputs.closer if closer else inputs.crop, augmentation, rng, where)
    labels = seen.labels
    if labels is not None and labels.state is not None:
        middle = torch.full_like(labels.state.camera.principal, (inputs.size - 1) / 2)
        if inputs.camera_kind == "orthographic":
            labels = turn_labels(labels, to_orthographic(labels.state, model, middle))
        elif inputs.focal > 0:
            labels = turn_labels(labels, to_focal(labels.state, model, inputs.focal, middle))
    labels = Labels() if labels is None else labels
    if labels.person is None:  # a sample is one person
        labels = replace(labels, person=torch.zeros(seen.num_views, dtype=torch.int64))
    seen = replace(seen, labels=labels)
    images = torch.full((len(slots), 3, inputs.size, inputs.size), 0.5)
    valid = torch.zeros(len(slots), dtype=torch.bool)
    images[there], valid[there] = seen.images, True
    return images, valid, seen


def collate(samples: Sequence[tuple[str, Tensor, Tensor, Observations]]) -> Batch:
    """Samples with fewer views than others get grey ones that are not valid."""
    ids, images, valid, people = zip(*samples)
    most = max(len(v) for v in valid)
    images = [torch.cat([i, i.new_full((most - len(i), *i.shape[1:]), 0.5)]) for i in images]
    valid = [torch.cat([v, v.new_zeros(most - len(v))]) for v in valid]
    return Batch(tuple(ids), torch.stack(images), torch.stack(valid), tuple(people))


class KeptSamples(FaceDataset):
    """Samples of another data set, each read once. Pictures and classes are kept with 8 bits, normals with
    16."""

    def __init__(self, dataset: FaceDataset):
        self.dataset, self.terms, self._kept = dataset, getattr(dataset, "terms", ""), {}
        if getattr(dataset, "ids", None) is not None:
            self.ids = dataset.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._kept:
            sample = self.dataset[index]
            seen = sample.observations
            labels = seen.labels
            if labels is not None:
                labels = labels.each(Tensor.byte, ("parse",)).each(Tensor.half, ("normals",))
            images = (seen.images * 255).round().byte()
            self._kept[index] = replace(
                sample, observations=replace(seen, images=images, labels=labels), truth=None
            )
        kept = self._kept[index]
        labels = kept.observations.labels
        if labels is not None:
            labels = labels.each(Tensor.long, ("parse",)).each(Tensor.float, ("normals",))
        images = kept.observations.images.float() / 255
        return replace(
            kept, observations=replace(kept.observations, images=images, labels=labels), truth=labels
        )


# ---- which sample when ----


@dataclass(frozen=True)
class Part:
    """The samples of a data set that a training or a validation may take. index: their numbers in it."""

    source: DataSource
    dataset: FaceDataset
    index: np.ndarray

    def id(self, position: int) -> str:
        return f"{self.source.name}/{sample_id(self.dataset, int(self.index[position]))}"


def sample_id(dataset: FaceDataset, index: int) -> str:
    """The id of a sample without reading it, its number where the data set does not say."""
    ids = getattr(dataset, "ids", None)
    return str(index) if ids is None else ids[index]


def split(source: DataSource, dataset: FaceDataset, share: float) -> tuple[Part, Part]:
    """Training and validation part: people are held out by their names (the part of the id before the first
    '/'), which stays the same whatever else the data hold."""
    out = np.array(
        [share > 0 and held_out(sample_id(dataset, i).partition("/")[0], share) for i in range(len(dataset))],
        dtype=bool,
    )
    return Part(source, dataset, np.flatnonzero(~out)), Part(source, dataset, np.flatnonzero(out))


def stage_steps(stage: TrainingStage, parts: Sequence[Part], batch: int) -> int:
    """Number of steps; batch: people per step on all devices together."""
    if stage.steps:
        return stage.steps
    return max(1, math.ceil(stage.epochs * sum(len(p.index) for p in stage_parts(stage, parts)) / batch))


def stage_augmentation(augmentation: FaceAugmentation, stage: TrainingStage) -> FaceAugmentation:
    """The augmentation of a stage: colours of one person change together where one of its energies compares
    views."""
    if augmentation.colors != "auto":
        return augmentation
    compared = any(find(name).cross_view for name in stage.energies)
    return replace(augmentation, colors="person" if compared else "view")


def stage_parts(stage: TrainingStage, parts: Sequence[Part]) -> list[Part]:
    return [p for p in parts if not stage.data or p.source.name in stage.data]


def draw_order(weights: Sequence[float], sizes: Sequence[int], count: int, seed: Sequence[int]) -> np.ndarray:
    """What is drawn: [count, 2] data set and position in it.

    Data sets at random by their weights; each is gone through in a new order, and again when it is through.
    """
    rng = np.random.default_rng([*seed, 0])
    chosen = rng.choice(len(sizes), size=count, p=np.asarray(weights) / np.sum(weights))
    position = np.empty(count, np.int64)
    for d, size in enumerate(sizes):
        places = np.flatnonzero(chosen == d)
        passes = -(-len(places) // size)
        order = [np.random.default_rng([*seed, 1, d, p]).permutation(size) for p in range(passes)]
        position[places] = np.concatenate(order)[: len(places)] if order else 0
    return np.column_stack([chosen, position])


@dataclass(frozen=True)
class _Broken:
    """An error of a worker, to be raised where it can be seen as what it is."""

    message: str


class Draws(Dataset):
    """Draw number `index` of a training; it depends on the recipe's seed and the index alone."""

    def __init__(
        self,
        parts: Sequence[Sequence[Part]],
        orders: Sequence[np.ndarray],
        model: FaceModel,
        inputs: InputOptions,
        recipe: RegressorTraining,
    ):
        self.parts, self.model, self.inputs, self.recipe = parts, model, inputs, recipe
        self.augmentations = [stage_augmentation(s.augmentation, s) for s in recipe.stages]
        for folder in {a.references for a in self.augmentations if a.references}:
            reference_pictures(folder)  # that there is none shows before the first step
        self.orders, self.starts = orders, np.cumsum([0, *(len(o) for o in orders)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int):
        stage = int(np.searchsorted(self.starts, index, side="right")) - 1
        d, position = self.orders[stage][index - self.starts[stage]]
        part = self.parts[stage][d]
        name = part.id(position)
        rng = np.random.default_rng([self.recipe.seed, 2, index])
        try:
            sample = part.dataset[int(part.index[position])]
            inputs = replace(self.inputs, most_views=self.recipe.stages[stage].most_views)
            return name, *prepare(
                sample.observations, name, self.model, inputs, self.augmentations[stage], rng
            )
        except FitkitError as error:
            return _Broken(str(error) if name in str(error) else f"sample {name}: {error}")


def _collate(samples: list) -> Batch | _Broken:
    return next((s for s in samples if isinstance(s, _Broken)), None) or collate(samples)


def begin_worker(worker: int) -> None:
    """For a process that reads samples: it ends with its parent and computes on one thread."""
    import cv2

    end_with_parent()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class Batches:
    """The batches of a training from step `first` on, of one device among `devices`. batch: people per step
    and device, in each stage. Has no length: what is left over when a training goes on in the middle is
    nobody's business but its own."""

    def __init__(
        self,
        draws: Draws,
        batch: Sequence[int],
        first: int = 0,
        rank: int = 0,
        devices: int = 1,
        workers: int = 0,
    ):
        order = []
        for size, start, drawn in zip(batch, draws.starts, draws.orders):
            for step in range(len(drawn) // (size * devices)):
                begin = int(start) + (step * devices + rank) * size
                order.append(list(range(begin, begin + size)))
        order = order[first:]
        # Workers start anew: with the fork of a process whose libraries run threads they could hang.
        extra = (
            {"worker_init_fn": begin_worker, "multiprocessing_context": "spawn", "persistent_workers": True}
            if workers
            else {}
        )
        self.loader = DataLoader(
            draws, batch_sampler=order, num_workers=workers, collate_fn=_collate, **extra
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, _Broken):
                raise InputError(batch.message)
            yield batch


# ---- readers ----


def large_labels(recipe: RegressorTraining) -> set[str]:
    """Large labels (`labels.LARGE`) that the energies of a recipe compare with; no others are read."""
    wanted = set()
    for stage in recipe.stages:
        for name, options in stage.energies.items():
            spec = find(name)
            wanted |= spec.labels_for(options) | set(spec.optional)
    return (wanted | ({"parse_valid"} if "parse" in wanted else set())) & set(LARGE)


def open_data(source: DataSource, model: FaceModel, labels: Collection[str] = LARGE) -> FaceDataset:
    """The data set of a recipe's entry; labels: which of the large ones are read, where its reader has a
    choice.

    Raises:
        InputError: no folder given, or not the layout that its reader expects.
    """
    if not source.folder and source.kind != "synthetic":
        raise InputError(
            f"data '{source.name}': its folder is not set; give data.{source.name}.folder=FOLDER, or leave "
            "the data set out"
        )
    folder = Path(source.folder) if source.folder else None
    more = {"labels": labels} if source.kind in ("synthetic", "fits") else {}
    dataset = reader(source.kind)[1](folder, source.options, model, **more)
    return KeptSamples(dataset) if source.cache else dataset
