"""Training of a network that predicts faces, on the energies that the fit uses. See docs/regressor.md."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitkit import __version__
from fitkit.data.face_dataset import FaceDataset
from fitkit.energies.features import FrozenNetwork
from fitkit.energies.registry import find
from fitkit.energies.spec import OWN
from fitkit.errors import FitError, InputError
from fitkit.evaluate.machine import machine
from fitkit.io.atomic import written_whole
from fitkit.io.options import to_plain, unknown_key
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import NO_REGRESSOR, OwnNetwork, load_network, net_kind, save_predictor, start_from
from fitkit.nets.predictor import Prediction, Predictor
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.train.pictures import draw_batch
from fitkit.train.records import LOG, RECIPE, claim_folder, read_checkpoint, write_json, write_recipe
from fitkit.train.regressor_data import (
    Batch,
    Batches,
    Draws,
    InputOptions,
    Part,
    draw_order,
    large_labels,
    open_data,
    split,
    stage_parts,
)
from fitkit.train.regressor_recipe import RegressorTraining, TrainingStage, parse_regressor_training
from fitkit.train.regressor_terms import StageCost, TermValue, not_predicted
from fitkit.train.schedule import learning_rate, stage_lengths, stage_of_step
from fitkit.train.trainer import Loop, LoopOptions, Task, Watch
from fitkit.train.validation import VALIDATED, HeldOut, validate

WEIGHTS, CARD, CHECKPOINT, BAD_BATCH = (
    "regressor.safetensors",
    "card.json",
    "checkpoint.ckpt",
    "bad_batch.json",
)
# All that a training writes, as patterns; the parts, and hpc_ckpt of a cluster, are of earlier versions.
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

    Writes into `folder`: regressor.safetensors and card.json at the end; checkpoint.ckpt every `save` steps;
    log.csv, events for TensorBoard in tensorboard/, pictures/step_N.png, recipe.yaml. With `resume` the
    losses go on exactly as without the interruption (same device, same number of threads).

    Args:
        model: the face model; None loads the recipe's. datasets: name -> data set, instead of those of the
            recipe's folders.
        make_estimator: makes the flow estimators that energies ask for.
        step_done: called after each step with its number and the value of each energy and their sum, 'total';
            progress: with lines about
        what was done; begun: once before the first step, with the steps that are done and those of the whole
        training.
    Returns:
        the path of the weights.
    Raises:
        InputError: the folder holds a training and `resume` is False, or one of another recipe; data that
            cannot be used.
        FitError: the loss or its gradient is no longer a number; the ids of the batch are in bad_batch.json.
    """
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    claim_folder(
        folder,
        FILES,
        checkpoint,
        recipe,
        lambda d: parse_regressor_training(d, RECIPE),
        "train-regressor",
        resume,
    )
    if checkpoint.exists():
        read_checkpoint(checkpoint)  # before anything is loaded
    model = load_model(recipe.model) if model is None else model
    torch.manual_seed(recipe.seed)
    network = net_kind(recipe.net.name).make(model, recipe.views, recipe.net.options)
    if recipe.net.start and not checkpoint.exists():
        start_from(network, recipe.net.start, model)
    if network.needs and not recipe.net.start:
        raise InputError(
            f"recipe '{recipe.name}': net.start is not set, and {recipe.net.name} needs {network.needs}; "
            f"give net.start=FILE, {NO_REGRESSOR[1][9:]}"
        )
    training, held = open_parts(recipe, model, datasets)
    _check_stages(recipe, network, training)
    write_recipe(folder, recipe)
    # Of a training of an earlier version that was killed.
    (folder / f"{CHECKPOINT}.part").unlink(missing_ok=True)
    progress(
        ", ".join(
            f"{p.source.name}: {len(p.index)} samples, {len(h.index)} held out"
            for p, h in zip(training, held)
        )
    )
    task = RegressorTask(recipe, folder, network, model, training, held, make_estimator)
    watch = Watch(step_done, progress, begun)
    metrics = Loop(task, folder, checkpoint, loop_options(recipe), watch, recipe.name).run()
    if metrics is not None:
        with written_whole(folder / WEIGHTS) as part:
            save_predictor(network, recipe.net.name, part)
        write_json(folder / CARD, card(recipe, model, network, training, metrics))
    return folder / WEIGHTS


def loop_options(recipe: RegressorTraining) -> LoopOptions:
    return LoopOptions(
        recipe.accelerator,
        recipe.devices,
        recipe.strategy,
        recipe.precision,
        recipe.clip,
        recipe.save,
        recipe.log,
        recipe.validation.every,
        recipe.pictures,
    )


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
        dataset = (
            open_data(source, model, large_labels(recipe)) if datasets is None else datasets[source.name]
        )
        both.append(
            split(source, dataset, recipe.validation.share if source.held_out < 0 else source.held_out)
        )
        if not len(both[-1][0].index):
            raise InputError(
                f"data '{source.name}': everyone in it is held out for validation; give more people, or "
                "validation.share=0"
            )
    return [a for a, _ in both], [b for _, b in both]


def _check_stages(recipe: RegressorTraining, network: Predictor, training: Sequence[Part]) -> None:
    names, parts = [p.source.name for p in training], network.parts()
    for part in recipe.net.frozen:
        if part not in parts:
            raise unknown_key(part, parts, "net.frozen")
    for stage in recipe.stages:
        for part in stage.free:
            if part not in parts:
                raise unknown_key(part, parts, f"stage '{stage.name}': free")
        if not set(stage.free or parts) - set(recipe.net.frozen):
            raise InputError(
                f"stage '{stage.name}': nothing learns in it: {', '.join(stage.free or parts)} are in "
                "net.frozen; free another part, or take them out of net.frozen"
            )
        for name in stage.data:
            if name not in names:
                raise unknown_key(name, names, f"stage '{stage.name}': data")
        _check_own(stage, recipe, network)
        for name, options in stage.energies.items():
            for part in find(name).parts_for(options):
                if part.partition(".")[0] not in network.gives:
                    raise not_predicted(stage.name, name, part, network.gives)


def _check_own(stage: TrainingStage, recipe: RegressorTraining, network: Predictor) -> None:
    """See that what an energy looks through, where that is the network itself, does not learn."""
    for name, options in stage.energies.items():
        if getattr(options, "network", "") != OWN:
            continue
        what, parts = _WITHIN[getattr(options, "looks_through", "encoder")]
        made_by = getattr(network, parts)
        if not made_by:
            raise InputError(
                f"stage '{stage.name}': energy '{name}' looks through {what} of the network itself, "
                f"and {recipe.net.name} has none; name another network with its weights"
            )
        learning = set(stage.free or network.parts()) - set(recipe.net.frozen)
        if {part for part in made_by if _can_learn(network.parts()[part])} & learning:
            raise InputError(
                f"stage '{stage.name}': energy '{name}' looks through the network itself, whose "
                f"{', '.join(made_by)} must not learn then; leave it out of 'free', or put it "
                "in net.frozen"
            )


# What an energy looks through within the network that is trained, and where that says which parts make it.
_WITHIN = {"encoder": ("the features", "feature_parts"), "parser": ("the parser", "parse_parts")}


def _can_learn(things: Sequence[nn.Module | nn.Parameter]) -> bool:
    parameters = (p for t in things for p in (t.parameters() if isinstance(t, nn.Module) else (t,)))
    return any(p.requires_grad for p in parameters)


class RegressorTask(Task):
    """A network that predicts faces, its optimizer and its cost. What belongs to a stage follows from the
    number of the step."""

    def __init__(
        self,
        recipe: RegressorTraining,
        folder: Path,
        network: Predictor,
        model: FaceModel,
        training: Sequence[Part],
        held: Sequence[Part],
        make_estimator: Callable[[str, str | None, str], FlowEstimator],
    ):
        self.recipe, self.folder, self.network, self.training_parts = recipe, folder, network, training
        self.model, self.make_estimator = model, make_estimator
        self.held = HeldOut(recipe, held, model, network)
        self.learnable = {id(p) for p in network.parameters() if p.requires_grad}
        self.costs: list[StageCost] = []
        self.lengths: list[int] = []
        self.devices, self.device = 1, torch.device("cpu")
        self.values: dict[str, TermValue] = {}
        self.total = 0.0
        self.batch: Batch | None = None
        self.prediction: Prediction | None = None
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
        self.shown = ("stage", "total")

    def begin(self, device: torch.device, devices: int) -> int:
        self.device, self.devices = device, devices
        self.lengths = stage_lengths(self.recipe, self.training_parts, devices)
        self.model = self.model.to(device)
        self.costs = [
            StageCost(stage, self.model, self.recipe.seed, self.make_estimator, self._make_network)
            for stage in self.recipe.stages
        ]
        for cost in self.costs:
            cost.load_networks()
        return sum(self.lengths)

    def _make_network(self, name: str, weights: str, device: str) -> FrozenNetwork:
        own, _, looks_through = name.partition(" ")
        if own == OWN:
            return OwnNetwork(self.network, looks_through)
        return load_network(name, weights, device)

    def batches(self, first: int, rank: int) -> Iterator[Batch]:
        recipe = self.recipe
        parts = [stage_parts(stage, self.training_parts) for stage in recipe.stages]
        orders = [
            draw_order(
                [p.source.weight for p in mine],
                [len(p.index) for p in mine],
                steps * stage.batch * self.devices,
                [recipe.seed, number],
            )
            for number, (mine, steps, stage) in enumerate(zip(parts, self.lengths, recipe.stages))
        ]
        draws = Draws(parts, orders, self.model.to("cpu"), InputOptions.of(self.network), recipe)
        sizes = [stage.batch for stage in recipe.stages]
        for batch in Batches(draws, sizes, first, rank, self.devices, recipe.workers):
            yield batch.to(self.device)

    def starts(self, step: int) -> bool:
        return stage_of_step(self.lengths, step)[1] == 0

    def optimizer(self, step: int) -> torch.optim.Optimizer:
        free = {id(p) for p in self._parameters(self._things(step, free=True))}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in self.learnable & free)
            parameter.grad = None
        mine = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.Adam(mine, lr=self.rate(step))

    def rate(self, step: int) -> float:
        return learning_rate(self.recipe, self.lengths, step)

    def mode(self, step: int) -> None:
        """Frozen modules stay in evaluation mode: batch statistics do not move and nothing is dropped out."""
        self.network.train()
        for module in self._things(step, free=False):
            if isinstance(module, nn.Module):
                module.eval()

    def cost(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        number, inside = stage_of_step(self.lengths, step)
        self.batch = batch
        self.prediction = self.network(batch.images, batch.valid)
        with torch.autocast(self.device.type, enabled=False):
            cost, self.values = self.costs[number](
                self.prediction, batch.people, inside / self.lengths[number]
            )
        self.total = float(cost.detach())
        return cost, {n: v.value for n, v in self.values.items()} | {"total": self.total}

    def refusal(self, step: int, what: str, sentence: str) -> FitError:
        bad = ", ".join(n for n, v in self.values.items() if not math.isfinite(v.value))
        sentence += f" (from {bad})" if bad else ""
        path = self.folder / BAD_BATCH
        write_json(
            path,
            {
                "step": step + 1,
                "stage": self._stage(step).name,
                "what": what,
                "ids": [] if self.batch is None else list(self.batch.ids),
                "terms": {
                    n: v.value if math.isfinite(v.value) else str(v.value) for n, v in self.values.items()
                },
            },
        )
        return FitError(
            f"step {step + 1}: {sentence}; the ids of its samples are in {path}; "
            "lower the stage's learning_rate or look at the samples, and continue from "
            f"{self.folder / CHECKPOINT} with --resume"
        )

    def row(self, step: int) -> dict[str, Any]:
        values = self.values
        return {
            "stage": self._stage(step).name,
            **{n: v.value for n, v in values.items()},
            "total": self.total,
            **{f"{n}_rms": v.rms for n, v in values.items()},
            **{f"{n}_people": v.people for n, v in values.items()},
        }

    def measure(self) -> dict[str, float]:
        return validate(self.network, self.model, self.held) if len(self.held) else {}

    def picture(self) -> np.ndarray | None:
        if self.batch is None or self.prediction is None:
            return None
        return draw_batch(self.batch.images, self.batch.valid, self.prediction, self.model)

    def _stage(self, step: int) -> TrainingStage:
        return self.recipe.stages[stage_of_step(self.lengths, step)[0]]

    def _things(self, step: int, free: bool) -> list[nn.Module | nn.Parameter]:
        """What learns in the stage of this step, or what does not."""
        named, frozen = self._stage(step).free, self.recipe.net.frozen
        return [
            thing
            for name, things in self.network.parts().items()
            for thing in things
            if free == (name not in frozen and (not named or name in named))
        ]

    @staticmethod
    def _parameters(things: Iterable[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
        for thing in things:
            yield from thing.parameters() if isinstance(thing, nn.Module) else (thing,)


def card(
    recipe: RegressorTraining,
    model: FaceModel,
    network: Predictor,
    training: Sequence[Part],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """What a user of the weights should know: where they come from, how good they are, what may be done with
    them."""
    return {
        "format": "fitkit-regressor-card-1",
        "fitkit": __version__,
        "recipe": recipe.name,
        "net": recipe.net.name,
        "gives": list(network.gives),
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
        "licence": "The weights follow the terms of the data and of the face model that they were trained "
        "with; see 'data' and 'model'.",
        "machine": machine(),
    }
