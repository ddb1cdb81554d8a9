"""Training of a network that predicts scene states, on the energies that the fit uses. See docs/regressor.md."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from fitkit import __version__
from fitkit.data.augment import PLAIN
from fitkit.data.face_dataset import FaceDataset
from fitkit.errors import InputError
from fitkit.evaluate.held_out import cross_view_flow
from fitkit.evaluate.machine import machine
from fitkit.export.overlay import CURVES
from fitkit.geometry.alignment import similarity_align
from fitkit.io.atomic import writing, written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.options import to_plain, unknown_key
from fitkit.io.outputs import check_folder
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import net_kind, save_predictor, start_from
from fitkit.nets.predictor import Predictor
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.render.shading import render_shaded
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState, select_people
from fitkit.train.regressor_data import (
    Batch,
    InputOptions,
    Part,
    collate,
    large_labels,
    open_data,
    prepare,
    split,
    stage_steps,
)
from fitkit.train.regressor_recipe import RegressorTraining, net_options

WEIGHTS, CARD, CHECKPOINT, LOG, BAD_BATCH = (
    "regressor.safetensors",
    "card.json",
    "checkpoint.ckpt",
    "log.csv",
    "bad_batch.json",
)
RECIPE = "recipe.yaml"
# All that a training writes, as patterns; the parts are of those that were killed, hpc_ckpt of Lightning on a cluster.
FILES = (
    WEIGHTS,
    CARD,
    CHECKPOINT,
    LOG,
    BAD_BATCH,
    RECIPE,
    f"{WEIGHTS}.part",
    f"{CARD}.part",
    f"{CHECKPOINT}.part",
    "pictures/step_*.png",
    "tensorboard/*",
    "hpc_ckpt_*.ckpt",
)


def train_regressor(
    recipe: RegressorTraining,
    folder: str | os.PathLike,
    resume: bool = False,
    model: FaceModel | None = None,
    datasets: dict[str, FaceDataset] | None = None,
    make_estimator: Callable[[str, str | None, str], FlowEstimator] = make_flow_estimator,
    step_done: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    progress: Callable[[str], None] = lambda line: None,
    begun: Callable[[int, int], None] = lambda done, count: None,
) -> Path:
    """Train, and write the weights.

    Writes into `folder`: regressor.safetensors and card.json at the end; checkpoint.ckpt every `save` steps; log.csv, events for
    TensorBoard in tensorboard/, pictures/step_N.png, recipe.yaml. With `resume` the losses go on exactly as without the
    interruption (same device, same number of threads).

    Args:
        model: the face model; None loads the recipe's. datasets: name -> data set, instead of those of the recipe's folders.
        make_estimator: makes the flow estimators that energies ask for.
        step_done: called after each step with its number and the value of each energy and their sum, 'total'; progress: with lines about
        what was done; begun: once before the first step, with the steps that are done and those of the whole training.
    Returns:
        the path of the weights.
    Raises:
        InputError: the folder holds a training and `resume` is False, or one of another recipe; data that cannot be used;
            Lightning is not installed.
        FitError: the loss or its gradient is no longer a number; the ids of the batch are in bad_batch.json.
    """
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    text = yaml.safe_dump(to_plain(recipe), sort_keys=False)
    if checkpoint.exists() and not resume:
        raise InputError(
            f"{folder}: there is a training in it; continue it with --resume, or give another folder"
        )
    claim_folder(folder, FILES, checkpoint, text, "train-regressor")
    if checkpoint.exists():
        _check_checkpoint(checkpoint)
    run = _lightning()
    model = load_model(recipe.model) if model is None else model
    torch.manual_seed(recipe.seed)
    network = net_kind(recipe.net.name).make(model, recipe.views, net_options(recipe))
    if recipe.net.start and not checkpoint.exists():
        start_from(network, recipe.net.start, model)
    training, held = open_parts(recipe, model, datasets)
    _check_stages(recipe, network, training)
    write_text(folder / RECIPE, text)
    part_of(checkpoint).unlink(missing_ok=True)  # of a training that was killed
    progress(
        ", ".join(
            f"{p.source.name}: {len(p.index)} samples, {len(h.index)} held out"
            for p, h in zip(training, held)
        )
    )
    start = checkpoint if checkpoint.exists() else None
    metrics = run(
        recipe, folder, network, model, training, held, start, make_estimator, step_done, progress, begun
    )
    if metrics is not None:
        with written_whole(folder / WEIGHTS) as part:
            save_predictor(network, recipe.net.name, part)
        write_json(folder / CARD, card(recipe, model, network, training, metrics))
    return folder / WEIGHTS


def _check_checkpoint(path: Path) -> None:
    with foreign_file(
        path, "not a readable checkpoint", "remove it to start again", limit=DATA_BYTES
    ) as file:
        missing = {"state_dict", "optimizer_states", "loops", "fitkit"} - set(file.torch())
    if missing:
        raise InputError(
            f"{path}: not a checkpoint of this training, it lacks {', '.join(sorted(missing))}; remove it to start again"
        )


def _lightning() -> Callable[..., dict[str, Any] | None]:
    try:
        from fitkit.train.regressor_loop import run
    except ImportError as error:
        raise InputError(
            f"train-regressor needs the package lightning, which cannot be imported ({error}); "
            "install it: pip install lightning"
        ) from error
    return run


def open_parts(
    recipe: RegressorTraining, model: FaceModel, datasets: dict[str, FaceDataset] | None = None
) -> tuple[list[Part], list[Part]]:
    """Training and validation parts of all data sets of the recipe.

    Raises:
        InputError: no data set, or one that cannot be used or of which everyone is held out.
    """
    if not recipe.data:
        raise InputError(f"recipe '{recipe.name}': expected at least one data set in 'data'")
    both = []
    for source in recipe.data:
        dataset = open_data(source, model, large_labels(recipe)) if datasets is None else datasets[source.name]
        both.append(
            split(source, dataset, recipe.validation.share if source.held_out < 0 else source.held_out)
        )
        if not len(both[-1][0].index):
            raise InputError(
                f"data '{source.name}': everyone in it is held out for validation; give more people, or validation.share=0"
            )
    return [a for a, _ in both], [b for _, b in both]


def _check_stages(recipe: RegressorTraining, network: Predictor, training: Sequence[Part]) -> None:
    names = [p.source.name for p in training]
    for stage in recipe.stages:
        for part in stage.free:
            if part not in network.parts():
                raise unknown_key(part, network.parts(), f"stage '{stage.name}': free")
        for name in stage.data:
            if name not in names:
                raise unknown_key(name, names, f"stage '{stage.name}': data")


def stage_lengths(recipe: RegressorTraining, training: Sequence[Part], devices: int) -> list[int]:
    """Steps of each stage."""
    return [stage_steps(stage, training, recipe.batch * devices) for stage in recipe.stages]


def stage_of_step(lengths: Sequence[int], step: int) -> tuple[int, int]:
    """Stage of step number `step` (from 0) and the step's number within it."""
    for number, length in enumerate(lengths):
        if step < length or number == len(lengths) - 1:
            return number, step
        step -= length
    raise AssertionError("no stages")


def learning_rate(recipe: RegressorTraining, lengths: Sequence[int], step: int) -> float:
    """Of step number `step` (from 0): a linear rise over the warm-up, then constant or half a cosine down to zero."""
    number, inside = stage_of_step(lengths, step)
    stage = recipe.stages[number]
    if inside < stage.warmup:
        return stage.learning_rate * (inside + 1) / stage.warmup
    if stage.decay == "constant":
        return stage.learning_rate
    share = (inside - stage.warmup) / max(1, lengths[number] - stage.warmup)
    return 0.5 * stage.learning_rate * (1 + float(np.cos(np.pi * share)))


# ---- validation ----

VALIDATED = (
    "vertex_mm",
    "mean_face_mm",
    "shape_mm",
    "mean_shape_mm",
    "nme_percent",
    "sigma_ratio",
    "flow_px",
)


class HeldOut:
    """The samples that are held out, read once."""

    def __init__(
        self, recipe: RegressorTraining, parts: Sequence[Part], model: FaceModel, network: Predictor
    ):
        self.recipe, self.model = recipe, model
        self.inputs = InputOptions.of(network, recipe.most_views)
        # Evenly from all of them, so that no data set is left out.
        places = [(p, i) for p in parts for i in range(len(p.index))]
        keep = (
            np.unique(
                np.linspace(0, len(places) - 1, min(recipe.validation.most, len(places))).round().astype(int)
            )
            if places
            else []
        )
        self.places = [places[k] for k in keep]
        self._samples: list | None = None

    def __len__(self) -> int:
        return len(self.places)

    def batches(self) -> list[Batch]:
        if self._samples is None:
            self._samples = []
            for part, position in self.places:
                name = part.id(position)
                sample = part.dataset[int(part.index[position])]
                self._samples.append(
                    (
                        name,
                        *prepare(
                            sample.observations,
                            name,
                            self.model,
                            self.inputs,
                            PLAIN,
                            np.random.default_rng(0),
                        ),
                    )
                )
        return [
            collate(self._samples[k : k + self.recipe.batch])
            for k in range(0, len(self._samples), self.recipe.batch)
        ]


@torch.no_grad()
def validate(network: Predictor, model: FaceModel, held: HeldOut) -> dict[str, float]:
    """Errors on the samples held out; {} without any.

    vertex_mm: distance of the predicted from the labelled vertices of the face region, head frame, with expression, mean over the
    people whose identity and expression are labels; mean_face_mm: the same of the mean face; shape_mm, mean_shape_mm: the same two
    without what photos do not tell, after the similarity that fits best; nme_percent: distance of the projected from the given
    landmarks 17-67 over the square root of the landmark box's area, mean over the views; sigma_ratio: root mean square of
    identity errors over their predicted standard deviations (and those of the labels), 1 = these are right; flow_px: see
    `cross_view_flow`, of the first `validation.flow` people with two views or more, px of 224.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval()
    found: dict[str, list[float]] = {k: [] for k in VALIDATED}
    for batch in held.batches():
        batch = batch.to(device)
        prediction = network(batch.images, batch.valid)
        for i, seen in enumerate(batch.people):
            mine = select_people(prediction.state, [i])
            found["nme_percent"] += landmark_error(mine, seen, model)
            if seen.num_views > 1 and len(found["flow_px"]) < held.recipe.validation.flow:
                length = cross_view_flow(model, mine, seen)
                found["flow_px"] += [] if length is None else [length]
            labels = seen.labels
            if (
                labels is not None
                and labels.state is not None
                and {"identity", "expression"} <= set(labels.known)
            ):
                truth, shape = (
                    labels.state.vertices(model)[:, model.face],
                    mine.vertices(model)[:, model.face],
                )
                mean = model.mean[model.face].expand_as(truth)
                for key, aligned, guess in (
                    ("vertex_mm", "shape_mm", shape),
                    ("mean_face_mm", "mean_shape_mm", mean),
                ):
                    found[key].append(float((guess - truth).norm(dim=-1).mean()))
                    found[aligned].append(aligned_distance(guess, truth))
                if prediction.identity_sigma is not None:
                    own = (
                        0.0 if labels.identity_sigma is None else labels.identity_sigma
                    )  # labels may be unsure themselves
                    variance = prediction.identity_sigma[[i]] ** 2 + own**2
                    found["sigma_ratio"].append(
                        float(((mine.identity - labels.state.identity) ** 2 / variance).mean())
                    )
    network.train(training)
    out = {k: float(np.mean(v)) for k, v in found.items() if v}
    return out | {k: v**0.5 for k, v in out.items() if k == "sigma_ratio"}


def aligned_distance(source: Tensor, target: Tensor) -> float:
    """Mean distance of points [B, N, 3] from corresponding ones after the similarity of each frame that fits best, in their unit."""
    best = similarity_align(
        source, target, torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
    )
    moved = best.scale[:, None, None] * source @ best.rotation.transpose(1, 2) + best.translation[:, None]
    return float((moved - target).norm(dim=-1).mean())


def landmark_error(state: SceneState, seen: Observations, model: FaceModel) -> list[float]:
    """NME of landmarks 17-67 in per cent, one number for each view that has any."""
    marks, out = seen.landmarks, []
    pixels = project_points(model.landmark_basis, state).pixels
    for p, t, valid in zip(pixels, marks.points, marks.valid):
        box = t[valid].amax(0) - t[valid].amin(0)
        inner = valid.clone()
        inner[:17] = False
        if bool(inner.any()):
            out.append(100 * float((p[inner] - t[inner]).norm(dim=-1).mean() / box.prod().sqrt()))
    return out


# ---- pictures ----


@torch.no_grad()
def draw_batch(
    images: Tensor, valid: Tensor, state: SceneState, model: FaceModel, most: int = 4
) -> np.ndarray:
    """The pictures of the first people with the predicted mesh over them, uint8 [h, w, 3]: a row for each person, two columns
    (picture, mesh over it) for each view; a missing view stays grey."""
    size = images.shape[-1]
    cpu = state.to("cpu")
    plain = model.to("cpu") if model.device.type != "cpu" else model
    frame, rows = 0, []
    for person, there in enumerate(valid[:most].cpu()):
        row = []
        for slot, exists in enumerate(there):
            photo = images[person, slot].cpu().permute(1, 2, 0)
            row.append((photo * 255).round().byte().numpy())
            row.append(_over(photo, cpu, plain, frame, size) if exists else row[-1])
            frame += int(exists)
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows)


def _over(photo: Tensor, state: SceneState, model: FaceModel, frame: int, size: int) -> np.ndarray:
    vertices = state.pose.select([frame]).apply(
        model.vertices(state.identity[state.subject[[frame]]], state.expression[[frame]])
    )
    camera = state.camera.select([frame])
    shaded = render_shaded(
        vertices,
        model.triangles,
        camera,
        (size, size),
        select=(model.skin | model.face)[model.triangles].any(1),
    )
    alpha = 0.65 * shaded.skin[0, ..., None]
    panel = np.ascontiguousarray(
        ((photo * (1 - alpha) + shaded.rgb[0].clamp(0, 1) * alpha) * 255).round().byte().numpy()
    )
    points = (
        camera.project(model.landmarks.points(vertices, model.triangles))[0][0]
        .clamp(-size, 2 * size)
        .double()
        .numpy()
    )
    for indices, closed in CURVES:
        line = np.round(points[list(indices)] * 16).astype(np.int32)
        cv2.polylines(panel, [line[:, None]], closed, (255, 60, 50), 1, cv2.LINE_AA, shift=4)
    return panel


# ---- files ----


def card(
    recipe: RegressorTraining,
    model: FaceModel,
    network: Predictor,
    training: Sequence[Part],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """What a user of the weights should know: where they come from, how good they are, what may be done with them."""
    return {
        "format": "fitkit-regressor-card-1",
        "fitkit": __version__,
        "recipe": recipe.name,
        "net": recipe.net.name,
        "options": to_plain(network.options),
        "views": to_plain(network.views),
        "parameters": sum(p.numel() for p in network.parameters()),
        "model": {"name": model.name, "licence": model.license, "source": model.source},
        "data": [
            {
                "name": p.source.name,
                "kind": p.source.kind,
                "samples": len(p.index),
                "weight": p.source.weight,
                "terms": getattr(p.dataset, "terms", ""),
            }
            for p in training
        ],
        "stages": [
            {"name": s.name, "energies": {n: o.weight for n, o in s.energies.items()}} for s in recipe.stages
        ],
        "metrics": metrics,
        "licence": "The weights follow the terms of the data and of the face model that they were trained with; see 'data' and 'model'.",
        "machine": machine(),
    }


def claim_folder(folder: Path, files: Sequence[str], checkpoint: Path, recipe: str, writer: str) -> None:
    """See that a training may write into a folder: nothing but files of it lie there, and recipe.yaml, if there, says `recipe`.

    Raises:
        InputError: something else is there.
    """
    check_folder(folder, files, (RECIPE, checkpoint.name), writer, resume=checkpoint.exists())
    stored = folder / RECIPE
    if stored.is_file() and stored.read_bytes() != recipe.encode():
        if not checkpoint.exists():
            raise InputError(
                f"{stored}: is another recipe than that of this training, which would overwrite it; give another folder"
            )
        raise InputError(
            f"{checkpoint}: belongs to another recipe; continue with the options in {stored}, or give another folder"
        )


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def part_of(path: Path) -> Path:
    """Where a checkpoint grows: the processes of a training must agree on the name."""
    return path.with_name(path.name + ".part")


class CsvLog:
    """log.csv: one line each `log` steps; columns are the energies of all stages. After an interruption it goes on behind the last
    line of the checkpoint."""

    def __init__(self, path: Path, recipe: RegressorTraining, step: int):
        energies = list(dict.fromkeys(name for stage in recipe.stages for name in stage.energies))
        self.columns = [
            "step",
            "stage",
            "total",
            *energies,
            *(f"{n}_rms" for n in energies),
            *(f"{n}_people" for n in energies),
            "learning_rate",
            "gradient",
            *VALIDATED,
        ]
        self.path, kept = path, []
        if path.exists() and step > 0:
            with foreign_file(path, "not readable as the log of a training", "remove it") as file:
                rows = csv.DictReader(file.text().splitlines())
                kept = [
                    row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) <= step
                ]
        with written_whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, row: dict[str, Any]) -> None:
        with writing(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            csv.DictWriter(file, self.columns, extrasaction="ignore", restval="").writerow(plain)
