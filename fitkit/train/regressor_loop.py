"""The training loop on Lightning; imported when a training starts."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from fitkit.errors import FitError, InputError
from fitkit.io.atomic import writing, written_whole
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import Predictor
from fitkit.observe.flow.types import FlowEstimator
from fitkit.train.regressor import (
    BAD_BATCH,
    CHECKPOINT,
    LOG,
    CsvLog,
    HeldOut,
    draw_batch,
    learning_rate,
    part_of,
    stage_lengths,
    stage_of_step,
    validate,
    write_json,
)
from fitkit.train.regressor_data import Batch, Batches, Draws, InputOptions, Part, draw_order, stage_parts
from fitkit.train.regressor_recipe import RegressorTraining
from fitkit.train.regressor_terms import StageCost, TermValue

MAKE_ROOM = "make room, and go on from the last checkpoint with --resume"


class RegressorModule(LightningModule):
    """The network, its optimizer and its cost. What belongs to a stage follows from the number of the step."""

    def __init__(
        self,
        recipe: RegressorTraining,
        folder: Path,
        network: Predictor,
        model: FaceModel,
        training: Sequence[Part],
        make_estimator: Callable[[str, str | None, str], FlowEstimator],
    ):
        super().__init__()
        self.recipe, self.folder, self.network, self.training_parts = recipe, folder, network, training
        self.model = model
        self.make_estimator = make_estimator
        self.costs: list[StageCost] = []
        self.lengths: list[int] = []
        self.values: dict[str, TermValue] = {}
        self.total, self.gradient = 0.0, 0.0
        self.batch: Batch | None = None
        self.state = None

    # ---- what Lightning asks for ----

    def setup(self, stage: str) -> None:
        self.lengths = stage_lengths(self.recipe, self.training_parts, self.trainer.world_size)

    def on_fit_start(self) -> None:
        self.model = self.model.to(self.device)
        self.costs = [
            StageCost(stage, self.model, self.recipe.seed, self.make_estimator)
            for stage in self.recipe.stages
        ]
        for cost in self.costs:
            cost.load_networks()

    def configure_optimizers(self):
        return torch.optim.Adam(
            [p for p in self.network.parameters() if p.requires_grad], lr=self.recipe.stages[0].learning_rate
        )

    def train_dataloader(self) -> Batches:
        recipe, per_step = self.recipe, self.recipe.batch * self.trainer.world_size
        parts = [stage_parts(stage, self.training_parts) for stage in recipe.stages]
        orders = [
            draw_order(
                [p.source.weight for p in mine],
                [len(p.index) for p in mine],
                steps * per_step,
                [recipe.seed, number],
            )
            for number, (mine, steps) in enumerate(zip(parts, self.lengths))
        ]
        draws = Draws(
            parts, orders, self.model.to("cpu"), InputOptions.of(self.network, recipe.most_views), recipe
        )
        return Batches(
            draws,
            recipe.batch,
            self.trainer.global_step,
            self.trainer.global_rank,
            self.trainer.world_size,
            recipe.workers,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step = self.trainer.global_step
        number, inside = stage_of_step(self.lengths, step)
        optimizer = self.trainer.optimizers[0]
        if inside == 0 and step > 0:
            optimizer.state.clear()  # a stage starts with an optimizer that knows nothing
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.lengths, step)
        self.network.train()
        frozen = self._frozen(number)
        for module in frozen:
            module.eval()  # batch statistics stay as they are
        if self.trainer.world_size == 1:  # several processes wait for the gradients of all parameters
            for module in {m for modules in self.network.parts().values() for m in modules}:
                module.requires_grad_(module not in frozen)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        number, inside = stage_of_step(self.lengths, self.trainer.global_step)
        self.batch = batch
        prediction = self.network(batch.images, batch.valid)
        with torch.autocast(self.device.type, enabled=False):
            cost, self.values = self.costs[number](prediction, batch.people, inside / self.lengths[number])
        self.state, self.total = prediction.state, float(cost.detach())
        if not math.isfinite(self.total):
            bad = [n for n, v in self.values.items() if not math.isfinite(v.value)]
            self._stop("loss", f"the loss is {self.total} (from {', '.join(bad)})")
        return cost

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        number, _ = stage_of_step(self.lengths, self.trainer.global_step)
        for module in self._frozen(number):
            for parameter in module.parameters():
                parameter.grad = None
        norms = [p.grad.norm() for p in self.network.parameters() if p.grad is not None]
        self.gradient = float(torch.stack(norms).norm()) if norms else 0.0
        if not math.isfinite(self.gradient) and not self.recipe.precision.startswith(
            "16"
        ):  # there a scaler passes over such steps
            self._stop("gradient", "the gradient of the loss is not finite")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        device_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["fitkit"] = {"random": torch.get_rng_state(), "device_random": device_random}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["fitkit"]["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(checkpoint["fitkit"]["device_random"])

    # ---- own ----

    def _frozen(self, number: int) -> list[torch.nn.Module]:
        free = self.recipe.stages[number].free
        return [
            m for name, modules in self.network.parts().items() if free and name not in free for m in modules
        ]

    def _stop(self, what: str, sentence: str) -> None:
        step = self.trainer.global_step + 1
        number, _ = stage_of_step(self.lengths, step - 1)
        path = self.folder / BAD_BATCH
        write_json(
            path,
            {
                "step": step,
                "stage": self.recipe.stages[number].name,
                "what": what,
                "ids": list(self.batch.ids),
                "terms": {
                    n: v.value if math.isfinite(v.value) else str(v.value) for n, v in self.values.items()
                },
            },
        )
        raise FitError(
            f"step {step}: {sentence}; the ids of its samples are in {path}; lower the stage's learning_rate or look at the "
            f"samples, and continue from {self.folder / CHECKPOINT} with --resume"
        )


class Keeper(Callback):
    """After each step: checkpoint, log, pictures, validation, each in its time."""

    def __init__(
        self,
        recipe: RegressorTraining,
        folder: Path,
        held: HeldOut,
        step_done: Callable[[int, dict[str, float]], None],
        progress: Callable[[str], None],
        begun: Callable[[int, int], None],
    ):
        self.recipe, self.folder, self.held = recipe, folder, held
        self.step_done, self.progress, self.begun = step_done, progress, begun
        self.log: CsvLog | None = None
        self.metrics: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, module: RegressorModule) -> None:
        if trainer.is_global_zero:
            self.log = CsvLog(self.folder / LOG, self.recipe, trainer.global_step)
            self.begun(trainer.global_step, sum(module.lengths))

    def on_train_batch_end(
        self, trainer: Trainer, module: RegressorModule, outputs, batch: Batch, batch_idx: int
    ) -> None:
        recipe, step = self.recipe, trainer.global_step
        last = step == sum(module.lengths)
        keep = step % recipe.save == 0 or last
        measure = len(self.held) > 0 and (last or step % (recipe.validation.every or recipe.save) == 0)
        if trainer.is_global_zero:
            values = {n: v.value for n, v in module.values.items()} | {"total": module.total}
            row = {
                "step": step,
                "stage": recipe.stages[stage_of_step(module.lengths, step - 1)[0]].name,
                **values,
                **{f"{n}_rms": v.rms for n, v in module.values.items()},
                **{f"{n}_people": v.people for n, v in module.values.items()},
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                "gradient": module.gradient,
            }
            if measure:
                with torch.autocast(module.device.type, enabled=False):
                    self.metrics = validate(module.network, module.model, self.held)
                row |= self.metrics
            if keep or measure or step % recipe.log == 0:
                self.log.add(row)
                with writing(self.folder, MAKE_ROOM):
                    for logger in trainer.loggers:
                        logger.log_metrics({k: v for k, v in row.items() if not isinstance(v, str)}, step)
            if keep or measure:
                self.progress(
                    ", ".join(
                        f"{k} {row[k]:.4g}" if isinstance(row[k], float) else f"{k} {row[k]}"
                        for k in ("step", "stage", "total", *self.metrics)
                        if k in row
                    )
                )
            if recipe.pictures and (step % recipe.pictures == 0 or last):
                self._picture(trainer, module, step)
            self.step_done(step, values)
        if keep:
            part = part_of(self.folder / CHECKPOINT)
            with writing(self.folder / CHECKPOINT, MAKE_ROOM):
                try:
                    trainer.save_checkpoint(part)  # all processes take part in it
                    if trainer.is_global_zero:
                        os.replace(part, self.folder / CHECKPOINT)
                except OSError:
                    part.unlink(missing_ok=True)
                    raise

    def _picture(self, trainer: Trainer, module: RegressorModule, step: int) -> None:
        picture = draw_batch(module.batch.images, module.batch.valid, module.state, module.model)
        path = self.folder / "pictures" / f"step_{step:07d}.png"
        with written_whole(path, MAKE_ROOM) as part:
            Image.fromarray(picture).save(part, format="PNG")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "predicted", np.ascontiguousarray(picture), step, dataformats="HWC"
                )


def run(
    recipe: RegressorTraining,
    folder: Path,
    network: Predictor,
    model: FaceModel,
    training: Sequence[Part],
    held: Sequence[Part],
    checkpoint: Path | None,
    make_estimator: Callable[[str, str | None, str], FlowEstimator],
    step_done: Callable[[int, dict[str, float]], None],
    progress: Callable[[str], None],
    begun: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """All stages; `network` is trained in place. Returns the metrics of the last validation; None in all but the first of several
    processes.

    Raises:
        FitError, InputError: as train_regressor.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    network = network.to(memory_format=torch.channels_last)  # a quarter faster, also on the CPU
    module = RegressorModule(recipe, folder, network, model, training, make_estimator)
    keeper = Keeper(recipe, folder, HeldOut(recipe, held, model, network), step_done, progress, begun)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
        trainer = make_trainer(recipe, folder, [keeper])
        try:
            trainer.fit(module, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        if (
            trainer.is_global_zero and not keeper.metrics and len(keeper.held)
        ):  # a finished training was gone on with: no step was left
            device = trainer.strategy.root_device
            keeper.metrics = validate(network.to(device), model.to(device), keeper.held)
    network.to("cpu").eval()
    return {"steps": sum(module.lengths), **keeper.metrics} if trainer.is_global_zero else None


def make_trainer(recipe: RegressorTraining, folder: Path, callbacks: Sequence[Callback]) -> Trainer:
    """Lightning's Trainer as the recipe says. The whole training is one of its epochs, which ends with the batches.

    Raises:
        InputError: it does not take the precision, the accelerator, the devices or the strategy.
    """
    try:
        return Trainer(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            strategy=recipe.strategy,
            precision=recipe.precision,
            gradient_clip_val=recipe.clip or None,
            max_epochs=1,
            callbacks=list(callbacks),
            logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=str(folder),
        )
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError, RuntimeError) as error:
        raise InputError(
            f"recipe '{recipe.name}': Lightning refuses accelerator '{recipe.accelerator}', devices {recipe.devices}, "
            f"strategy '{recipe.strategy}', precision '{recipe.precision}': {' '.join(str(error).split())}"
        ) from error
