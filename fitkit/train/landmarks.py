"""Training of the built-in landmark network."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fitkit.data.landmark_frames import (
    Crop,
    LabelledFace,
    held_out,
    list_frames,
    load_frame,
    load_surroundings,
    make_crop,
)
from fitkit.errors import FitError, InputError
from fitkit.io.atomic import written_whole
from fitkit.io.options import build, to_plain
from fitkit.observe.landmarks.network import NUM_POINTS, LandmarkNetwork, NetworkOutput
from fitkit.observe.landmarks.types import box_size
from fitkit.synth.shards import read_shard, render_faces
from fitkit.train.landmark_recipe import LandmarkTraining, LossOptions
from fitkit.train.records import LOG, MAKE_ROOM, RECIPE, claim_folder, read_checkpoint, write_recipe
from fitkit.train.regressor_data import begin_worker
from fitkit.train.schedule import half_cosine
from fitkit.train.trainer import Loop, LoopOptions, Task, Watch

WEIGHTS = "landmarks68.safetensors"
CHECKPOINT = "checkpoint.pt"
FILES = (
    WEIGHTS,
    CHECKPOINT,
    LOG,
    RECIPE,
    f"{WEIGHTS}.part",
    f"{CHECKPOINT}.part",
    "tensorboard/*",
    "renders/shard_*.npz",
)


@dataclass(frozen=True)
class Faces:
    """What is learned from: real faces and their surroundings, rendered faces; `validation`: real faces of
    people held out."""

    frames: tuple[LabelledFace, ...]
    surroundings: tuple[LabelledFace, ...]
    renders: tuple[LabelledFace, ...]
    validation: tuple[LabelledFace, ...]


def load_faces(
    recipe: LandmarkTraining, folder: Path, progress: Callable[[str], None] = lambda line: None
) -> Faces:
    """Everything in memory; rendered faces are made first where they are missing."""
    frames, surroundings, validation = [], [], []
    if recipe.frames.share > 0:
        listed = list_frames(recipe.frames.folder)
        progress(
            f"{len(listed)} pictures of {len({f.person for f in listed})} people in {recipe.frames.folder}"
        )
        for number, frame in enumerate(listed):
            if held_out(frame.person):
                validation.append(load_frame(frame))
            else:
                frames.append(load_frame(frame))
                surroundings.extend(load_surroundings(frame, np.random.default_rng([recipe.seed, number])))
        if not frames:
            raise InputError(
                f"{recipe.frames.folder}: everyone in it is held out for validation; give pictures of more "
                "people"
            )
    renders = _renders(recipe, folder, progress) if recipe.frames.share < 1 else []
    return Faces(tuple(frames), tuple(surroundings), tuple(renders), tuple(validation))


def _renders(recipe: LandmarkTraining, folder: Path, progress: Callable[[str], None]) -> list[LabelledFace]:
    source, out = recipe.renders, []
    root = Path(source.folder) if source.folder else folder / "renders"
    progress(f"{source.count} rendered faces in {root}; those that are missing are made now")
    for path in render_faces(source.models, source.count, root, source.seed, source.size, source.workers):
        shard = read_shard(path)
        for image, landmarks, visible, outline in zip(
            shard.images, shard.landmarks, shard.visible, shard.outline
        ):
            points = np.concatenate([outline, landmarks[17:], landmarks[:17]])
            all_known = np.ones(len(points), bool)
            out.append(
                LabelledFace(image, points, all_known, np.concatenate([visible, visible[:17]]), all_known)
            )
    return out


class LandmarkCrops(Dataset):
    """Crop number `index` of an endless training; it depends on the recipe's seed and the index alone."""

    def __init__(self, faces: Faces, recipe: LandmarkTraining):
        self.faces, self.recipe = faces, recipe

    def __len__(self) -> int:
        return self.recipe.schedule.steps * self.recipe.schedule.batch

    def __getitem__(self, index: int) -> Crop:
        recipe, faces = self.recipe, self.faces
        rng = np.random.default_rng([recipe.seed, 1, index])
        source = faces.renders
        if rng.random() < recipe.frames.share:
            source = (
                faces.surroundings
                if faces.surroundings and rng.random() < recipe.frames.surroundings
                else faces.frames
            )
        textures = faces.surroundings or faces.renders

        def texture() -> np.ndarray:
            return textures[rng.integers(len(textures))].image

        return make_crop(
            source[rng.integers(len(source))], recipe.network.size, rng, recipe.augmentation, texture
        )


def collate(crops: list[Crop]) -> dict[str, Tensor]:
    """Crops to tensors: image [N, 3, S, S] uint8 and the other fields of Crop, stacked."""
    batch = {
        k: torch.from_numpy(np.stack([getattr(c, k) for c in crops]))
        for k in ("points", "known", "visible", "visible_known")
    }
    batch["image"] = torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2)
    return batch


def landmark_loss(
    output: NetworkOutput, batch: dict[str, Tensor], size: int, options: LossOptions
) -> dict[str, Tensor]:
    """The terms of the loss and their sum `total`, all scalars.

    likelihood: negative logarithm of the density exp(-r / b) / (2 pi b^2) of the distance r of a point, with
    b = sigma / sqrt(3), for which sigma is the standard deviation of each coordinate (E[r^2] = 6 b^2). Its
    long tails forgive wrong labels; that a network can learn its own noise is shown in Kendall and Gal,
    NeurIPS 2017. position: mean distance over `unit`; visibility: cross entropy. Each is a mean over the
    points with a label.
    """
    distance = (output.points - batch["points"]).norm(dim=-1)
    known = batch["known"].to(distance.dtype)
    log_b = output.log_sigma - 0.5 * math.log(3.0)
    likelihood = (distance * torch.exp(-log_b) + 2 * log_b) * known
    entropy = nn.functional.binary_cross_entropy_with_logits(
        output.visibility, batch["visible"].to(distance.dtype), reduction="none"
    )
    terms = {
        "likelihood": likelihood.sum() / known.sum().clamp_min(1),
        "position": (distance * known).sum() / known.sum().clamp_min(1) / (options.unit * size),
        "visibility": (entropy * batch["visible_known"]).sum() / batch["visible_known"].sum().clamp_min(1),
    }
    terms["total"] = (
        terms["likelihood"] + options.position * terms["position"] + options.visibility * terms["visibility"]
    )
    return terms


@torch.no_grad()
def validate(network: LandmarkNetwork, faces: tuple[LabelledFace, ...], device: str) -> float:
    """Mean over faces of the mean distance over the square root of the landmark box's area, in per cent."""
    network.eval()
    size, errors = network.options.size, []
    for start in range(0, len(faces), 64):
        batch = collate([make_crop(f, size) for f in faces[start : start + 64]])
        points = network(batch["image"].to(device).float() / 255).points[:, :NUM_POINTS].cpu()
        truth, known = batch["points"][:, :NUM_POINTS], batch["known"][:, :NUM_POINTS]
        for p, t, k in zip(points, truth, known):
            errors.append(float((p[k] - t[k]).norm(dim=-1).mean() / box_size(t, k)))
    return 100 * float(np.mean(errors))


def train_landmarks(
    recipe: LandmarkTraining,
    folder: str | os.PathLike,
    device: str = "cpu",
    resume: bool = False,
    step_done: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    progress: Callable[[str], None] = lambda line: None,
    begun: Callable[[int, int], None] = lambda done, count: None,
) -> Path:
    """Train, and write the weights.

    Writes into `folder`: landmarks68.safetensors (half precision; the network's options as JSON in its
    metadata), checkpoint.pt, log.csv (one line each `schedule.save` steps), events for TensorBoard in
    tensorboard/, and recipe.yaml. With `resume` the losses go on exactly as without the interruption (same
    device, same number of threads).

    Args:
        step_done: called after each step with its number and the terms of the loss; progress: with lines
            about what was done;
        begun: once before the first step, with the steps that are done and those of the whole training.
    Returns:
        the path of the weights.
    Raises:
        InputError: the folder holds a training and `resume` is False, or one of another recipe.
        FitError: the loss is no longer a number.
    """
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    claim_folder(
        folder,
        FILES,
        checkpoint,
        recipe,
        lambda d: build(LandmarkTraining, d, RECIPE),
        "train-landmarks",
        resume,
    )
    if checkpoint.exists():
        read_checkpoint(checkpoint)  # before anything is loaded
    torch.manual_seed(recipe.seed)
    network = LandmarkNetwork(recipe.network)
    write_recipe(folder, recipe)
    faces = load_faces(recipe, folder, progress)
    progress(
        f"{len(faces.frames)} pictures, {len(faces.renders)} rendered faces, {len(faces.validation)} "
        "pictures of people held out"
    )
    task = LandmarkTask(recipe, folder, network, faces)
    Loop(
        task, folder, checkpoint, loop_options(recipe, device), Watch(step_done, progress, begun), recipe.name
    ).run()
    return folder / WEIGHTS


def loop_options(recipe: LandmarkTraining, device: str) -> LoopOptions:
    place, schedule = torch.device(device), recipe.schedule
    return LoopOptions(
        place.type,
        1 if place.index is None else [place.index],
        precision="bf16-mixed" if schedule.bfloat16 else "32-true",
        save=schedule.save,
        log=schedule.save,
    )


class LandmarkTask(Task):
    """The landmark network, its crops and its loss. What is kept is a running average of its weights."""

    terms = ("likelihood", "position", "visibility", "total")
    columns = ("step", *terms, "learning_rate", "validation_nme_percent")
    shown = (*terms, "learning_rate")

    def __init__(self, recipe: LandmarkTraining, folder: Path, network: LandmarkNetwork, faces: Faces):
        self.recipe, self.folder, self.network, self.faces = recipe, folder, network, faces
        self.average: dict[str, Tensor] = {}
        self.smooth: dict[str, float] = {}
        self.device = torch.device("cpu")

    def begin(self, device: torch.device, devices: int) -> int:
        self.device = device
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        return self.recipe.schedule.steps

    def batches(self, first: int, rank: int) -> Iterator[dict[str, Tensor]]:
        schedule = self.recipe.schedule
        loader = DataLoader(
            LandmarkCrops(self.faces, self.recipe),
            schedule.batch,
            sampler=range(first * schedule.batch, schedule.steps * schedule.batch),
            num_workers=schedule.workers,
            collate_fn=collate,
            drop_last=True,
            worker_init_fn=begin_worker,
            persistent_workers=schedule.workers > 0,
        )
        for batch in loader:
            yield {k: v.to(self.device) for k, v in batch.items()}

    def optimizer(self, step: int) -> torch.optim.Optimizer:
        decay = [p for p in self.network.parameters() if p.ndim > 1]
        rest = [p for p in self.network.parameters() if p.ndim <= 1]
        return torch.optim.AdamW(
            [{"params": decay}, {"params": rest, "weight_decay": 0.0}],
            self.recipe.schedule.learning_rate,
            weight_decay=self.recipe.schedule.weight_decay,
        )

    def rate(self, step: int) -> float:
        return learning_rate(step + 1, self.recipe)

    def cost(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """What is told are running means."""
        output = self.network(batch["image"].to(memory_format=torch.channels_last).float() / 255)
        with torch.autocast(self.device.type, enabled=False):
            terms = landmark_loss(output, batch, self.recipe.network.size, self.recipe.loss)
        values = {k: float(v.detach()) for k, v in terms.items()}
        self.smooth = {k: 0.98 * self.smooth.get(k, v) + 0.02 * v for k, v in values.items()}
        return terms["total"], self.smooth

    def refusal(self, step: int, what: str, sentence: str) -> FitError:
        batch = self.recipe.schedule.batch
        return FitError(
            f"step {step + 1}: {sentence} (crops {step * batch} to {(step + 1) * batch - 1} of the "
            f"training); lower schedule.learning_rate, and continue from {self.folder / CHECKPOINT} with "
            "--resume"
        )

    @torch.no_grad()
    def after(self, step: int) -> None:
        # A short memory at first, or the random start would stay in the average.
        keep = min(self.recipe.schedule.average, (step + 1) / (step + 11.0))
        for key, value in self.network.state_dict().items():
            mean = self.average[key]
            self.average[key] = mean.lerp(value, 1 - keep) if value.is_floating_point() else value.clone()

    def row(self, step: int) -> dict[str, float]:
        return self.smooth

    def measure(self) -> dict[str, float]:
        if not self.faces.validation:
            return {}
        return {"validation_nme_percent": validate(self._best(), self.faces.validation, str(self.device))}

    def keep(self) -> dict[str, Any]:
        save_weights(self._best(), self.folder / WEIGHTS)
        return {"average": self.average}

    def restore(self, state: dict[str, Any]) -> None:
        self.average = {k: v.to(self.device) for k, v in state["average"].items()}

    def _best(self) -> LandmarkNetwork:
        best = LandmarkNetwork(self.recipe.network).to(self.device)
        best.load_state_dict(self.average)
        return best


def learning_rate(step: int, recipe: LandmarkTraining) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero at the last step."""
    s = recipe.schedule
    if step <= s.warmup:
        return s.learning_rate * step / s.warmup
    return s.learning_rate * half_cosine((step - s.warmup) / max(1, s.steps - s.warmup))


def save_weights(network: LandmarkNetwork, path: Path) -> None:
    """Half precision, with the network's options as JSON under the metadata key 'network'."""
    tensors = {
        k: v.detach().cpu().to(torch.float16 if v.is_floating_point() else v.dtype).contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    with written_whole(path, MAKE_ROOM) as part:
        part.write_bytes(save(tensors, metadata={"network": json.dumps(to_plain(network.options))}))
