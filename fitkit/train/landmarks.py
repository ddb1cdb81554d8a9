"""Training of the built-in landmark network."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fitkit.synth.shards import read_shard, render_faces
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
from fitkit.io.atomic import writing, written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.options import to_plain
from fitkit.io.termination import end_with_parent
from fitkit.observe.landmarks.network import NUM_POINTS, LandmarkNetwork, NetworkOutput
from fitkit.train.landmark_recipe import LandmarkTraining, LossOptions
from fitkit.train.records import RECIPE, claim_folder, write_text

WEIGHTS = "landmarks68.safetensors"
CHECKPOINT = "checkpoint.pt"
FILES = (
    WEIGHTS,
    CHECKPOINT,
    "log.csv",
    RECIPE,
    f"{WEIGHTS}.part",
    f"{CHECKPOINT}.part",
    "renders/shard_*.npz",
)
MAKE_ROOM = "make room, and go on from the last checkpoint with --resume"


@dataclass(frozen=True)
class Faces:
    """What is learned from: real faces and their surroundings, rendered faces; `validation`: real faces of people held out."""

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
                f"{recipe.frames.folder}: everyone in it is held out for validation; give pictures of more people"
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
    b = sigma / sqrt(3), for which sigma is the standard deviation of each coordinate (E[r^2] = 6 b^2). Its long tails
    forgive wrong labels; that a network can learn its own noise is shown in Kendall and Gal, NeurIPS 2017.
    position: mean distance over `unit`; visibility: cross entropy. Each is a mean over the points with a label.
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
            box = t[k].amax(0) - t[k].amin(0)
            errors.append(float((p[k] - t[k]).norm(dim=-1).mean() / box.prod().sqrt()))
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

    Writes into `folder`: landmarks68.safetensors (half precision; the network's options as JSON in its metadata),
    checkpoint.pt, log.csv (one line each `schedule.save` steps) and recipe.yaml. With `resume` the losses go on exactly
    as without the interruption (same device, same number of threads).

    Args:
        step_done: called after each step with its number and the terms of the loss; progress: with lines about what was done;
        begun: once before the first step, with the steps that are done and those of the whole training.
    Returns:
        the path of the weights.
    Raises:
        InputError: the folder holds a training and `resume` is False, or one of another recipe.
        FitError: the loss is no longer a number.
    """
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    text = yaml.safe_dump(to_plain(recipe), sort_keys=False)
    if checkpoint.exists() and not resume:
        raise InputError(
            f"{folder}: there is a training in it; continue it with --resume, or give another folder"
        )
    claim_folder(folder, FILES, checkpoint, text, "train-landmarks")
    torch.manual_seed(recipe.seed)
    network = LandmarkNetwork(recipe.network).to(device, memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    schedule = recipe.schedule
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": rest, "weight_decay": 0.0}],
        schedule.learning_rate,
        weight_decay=schedule.weight_decay,
    )
    first = 0
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint)
        if state["recipe"] != text:
            raise InputError(
                f"{checkpoint}: belongs to another recipe; continue with the options in {folder / RECIPE}, "
                "or give another folder"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = {k: v.to(device) for k, v in state["average"].items()}, state["step"]
        progress(f"going on after step {first}")
    write_text(folder / RECIPE, text)
    faces = load_faces(recipe, folder, progress)
    progress(
        f"{len(faces.frames)} pictures, {len(faces.renders)} rendered faces, {len(faces.validation)} pictures of people held out"
    )

    crops = LandmarkCrops(faces, recipe)
    order = range(first * schedule.batch, schedule.steps * schedule.batch)
    loader = DataLoader(
        crops,
        schedule.batch,
        sampler=order,
        num_workers=schedule.workers,
        collate_fn=collate,
        drop_last=True,
        worker_init_fn=_one_thread,
        persistent_workers=schedule.workers > 0,
    )
    smooth: dict[str, float] = {}
    begun(first, schedule.steps)
    for step, batch in enumerate(loader, first + 1):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        batch = {k: v.to(device) for k, v in batch.items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=schedule.bfloat16):
            output = network(batch["image"].to(memory_format=torch.channels_last).float() / 255)
        terms = landmark_loss(output, batch, recipe.network.size, recipe.loss)
        values = {k: float(v.detach()) for k, v in terms.items()}
        if not math.isfinite(values["total"]):
            raise FitError(
                f"step {step}: the loss is {values['total']} (crops {(step - 1) * schedule.batch} to {step * schedule.batch - 1} "
                f"of the training); lower schedule.learning_rate, and continue from {checkpoint} with --resume"
            )
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            # A short memory at first, or the random start would stay in the average.
            keep = min(schedule.average, step / (step + 10.0))
            for key, value in network.state_dict().items():
                average[key] = (
                    average[key].lerp(value, 1 - keep) if value.is_floating_point() else value.clone()
                )
        smooth = {k: 0.98 * smooth.get(k, v) + 0.02 * v for k, v in values.items()}
        step_done(step, smooth)
        if step % schedule.save == 0 or step == schedule.steps:
            best = LandmarkNetwork(recipe.network).to(device)
            best.load_state_dict(average)
            row = {"step": step, **smooth, "learning_rate": learning_rate(step, recipe)}
            if faces.validation:
                row["validation_nme_percent"] = validate(best, faces.validation, device)
            save_weights(best, folder / WEIGHTS)
            state = {
                "step": step,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "recipe": text,
            }
            with (
                written_whole(checkpoint, MAKE_ROOM) as part,
                open(part, "wb") as file,
            ):  # torch's own writer has errors of another kind
                torch.save(state, file)
            _log(folder / "log.csv", row)
            progress(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return folder / WEIGHTS


def learning_rate(step: int, recipe: LandmarkTraining) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero at the last step."""
    s = recipe.schedule
    if step <= s.warmup:
        return s.learning_rate * step / s.warmup
    return 0.5 * s.learning_rate * (1 + math.cos(math.pi * (step - s.warmup) / max(1, s.steps - s.warmup)))


def save_weights(network: LandmarkNetwork, path: Path) -> None:
    """Half precision, with the network's options as JSON under the metadata key 'network'."""
    tensors = {
        k: v.detach().cpu().to(torch.float16 if v.is_floating_point() else v.dtype).contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    with written_whole(path, MAKE_ROOM) as part:
        part.write_bytes(save(tensors, metadata={"network": json.dumps(to_plain(network.options))}))


def _read_checkpoint(path: Path) -> dict:
    with foreign_file(
        path, "not a readable checkpoint", "remove it to start again", limit=DATA_BYTES
    ) as file:
        state = file.torch()
        missing = {"step", "network", "optimizer", "average", "recipe"} - set(state)
    if missing:
        raise InputError(
            f"{path}: not a checkpoint of this training, it lacks {', '.join(sorted(missing))}; remove it to start again"
        )
    return state


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with writing(path, MAKE_ROOM), open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" for k, v in row.items()})


def _one_thread(worker: int) -> None:
    end_with_parent()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
