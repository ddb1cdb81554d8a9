"""The one loop of all trainings: steps, checkpoints, log, validation, pictures, each in its time."""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from fitkit.errors import FitError, InputError
from fitkit.io.atomic import writing, written_whole
from fitkit.train.records import (
    LOG,
    MAKE_ROOM,
    CsvLog,
    random_state,
    read_checkpoint,
    restore_random,
    write_checkpoint,
)


@dataclass(frozen=True)
class LoopOptions:
    """How a training runs. accelerator, devices, strategy, precision: as Lightning's Fabric takes them."""

    accelerator: str = "auto"
    devices: int | list[int] = 1  # how many, or which
    strategy: str = "auto"
    precision: str = "32-true"
    clip: float = 1.0  # largest norm of the gradient, 0 = no limit
    save: int = 1000  # steps between two checkpoints
    log: int = 10  # steps between two lines of log.csv
    validate: int = 0  # steps between two measurements, 0 = at checkpoints
    pictures: int = 0  # steps between two sample pictures, 0 = none


@dataclass(frozen=True)
class Watch:
    """Who is told what. step_done: after each step, with its number (from 1) and the values of its cost;
    line: what was done; begun: once before the first step, with the steps that are done and those of the
    whole training."""

    step_done: Callable[[int, dict[str, float]], None] = lambda step, values: None
    line: Callable[[str], None] = lambda line: None
    begun: Callable[[int, int], None] = lambda done, count: None


class Task(ABC):
    """What is trained: a network with its data and its cost. Steps count from 0.

    columns: of log.csv; shown: those of the line that tells of a checkpoint.
    """

    network: nn.Module
    columns: Sequence[str]
    shown: Sequence[str]

    @abstractmethod
    def begin(self, device: torch.device, devices: int) -> int:
        """Get ready on this device, one of `devices` -> how many steps the training has."""

    @abstractmethod
    def batches(self, first: int, rank: int) -> Iterable[Any]:
        """The batches of the steps from `first` on, of device number `rank`, on it."""

    def starts(self, step: int) -> bool:
        """Whether the step begins a stage, which has an optimizer of its own that knows nothing."""
        return step == 0

    @abstractmethod
    def optimizer(self, step: int) -> torch.optim.Optimizer:
        """Of the stage of this step, with nothing but the parameters that learn in it; the others are frozen
        here."""

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate."""

    def mode(self, step: int) -> None:
        """Training mode for what learns in this step."""
        self.network.train()

    @abstractmethod
    def cost(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The cost, a differentiable scalar, and what is told of it. Runs under the precision of the
        training."""

    @abstractmethod
    def refusal(self, step: int, what: str, sentence: str) -> FitError:
        """Why the training stops: `what` ('loss' or 'gradient') of step number `step` (from 0) is no number;
        keeps what tells why."""

    def after(self, step: int) -> None:  # most have nothing to do here
        """After the optimizer's step."""

    @abstractmethod
    def row(self, step: int) -> dict[str, Any]:
        """What log.csv says of this step, beside its number, the rate and the gradient."""

    def measure(self) -> dict[str, float]:
        """Errors on what is held out; {} where nothing is."""
        return {}

    def picture(self) -> np.ndarray | None:
        """What the network said in the last step, uint8 [H, W, 3]."""
        return None

    def keep(self) -> dict[str, Any]:
        """What a checkpoint holds beside network and optimizer. Called at each of them."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # most keep nothing
        """The reverse of `keep`."""


class _Cost(nn.Module):
    """The cost as a module, so that precision and several devices apply to all of it."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.network = task, task.network
        self.batch: Any = None  # not an argument: Fabric would look into it
        self.step, self.values = 0, {}

    def forward(self) -> Tensor:
        cost, self.values = self.task.cost(self.batch, self.step)
        return cost


class Loop:
    """A training in `folder`; `checkpoint` is the file that it goes on from, if it is there."""

    def __init__(
        self, task: Task, folder: Path, checkpoint: Path, options: LoopOptions, watch: Watch, name: str
    ):
        self.task, self.folder, self.checkpoint, self.options, self.watch = (
            task,
            folder,
            checkpoint,
            options,
            watch,
        )
        self.fabric = make_fabric(options, folder, name)
        self.metrics: dict[str, float] = {}
        self.optimizer: Any = None
        self.module: Any = None
        self.inner = _Cost(task)
        self.gradient = 0.0

    def run(self) -> dict[str, float] | None:
        """All steps that are left; the network is trained in place. Returns the metrics of the last
        validation; None in all but the first of several processes.

        Raises:
            FitError: loss or gradient is no number. InputError: the checkpoint cannot be used, files cannot
                be written.
        """
        task, fabric = self.task, self.fabric
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            fabric.launch()
            # A quarter faster, also on the CPU.
            task.network.to(fabric.device, memory_format=torch.channels_last)
            count = task.begin(fabric.device, fabric.world_size)
            done = self._restore() if self.checkpoint.exists() else 0
            first = fabric.is_global_zero
            log = CsvLog(self.folder / LOG, task.columns, done) if first else None
            if first:
                if done:
                    self.watch.line(f"going on after step {done}")
                self.watch.begun(done, count)
            for step, batch in enumerate(task.batches(done, fabric.global_rank), done):
                self._step(step, batch)
                self._told(step + 1, step + 1 == count, log)
        if first and not self.metrics:  # a finished training was gone on with: no step was left
            self.metrics = task.measure()
        task.network.to("cpu").eval()
        return {"steps": count, **self.metrics} if first else None

    def _restore(self) -> int:
        """Go on behind the checkpoint -> steps that are done."""
        state, task = read_checkpoint(self.checkpoint), self.task
        done = int(state["step"])
        try:
            task.network.load_state_dict(state["network"])
            task.restore(state)
            if not task.starts(done):
                everything = [p for p in task.network.parameters() if p.requires_grad]
                optimizer = task.optimizer(done)
                stored = state["optimizer"]
                if state.get("whole_optimizer"):
                    stored = _part_of(stored, everything, optimizer)
                optimizer.load_state_dict(stored)
                self._use(optimizer)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.checkpoint}: does not fit this training ({' '.join(str(error).split())[:200]}); "
                "remove it to start again"
            ) from error
        if state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        restore_random(state)
        return done

    def _use(self, optimizer: torch.optim.Optimizer) -> None:
        # Anew for each stage: several processes wait for the gradients of what learned when this was called.
        self.module = self.fabric.setup_module(self.inner)
        self.optimizer = self.fabric.setup_optimizers(optimizer)

    def _step(self, step: int, batch: Any) -> None:
        task, fabric = self.task, self.fabric
        if task.starts(step):
            self._use(task.optimizer(step))
        for group in self.optimizer.param_groups:
            group["lr"] = task.rate(step)
        task.mode(step)
        self.inner.batch, self.inner.step = batch, step
        cost = self.module()
        total = float(cost.detach())
        if not math.isfinite(total):
            raise task.refusal(step, "loss", f"the loss is {total}")
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(cost)
        self.gradient = float(self._clipped())
        if not math.isfinite(self.gradient) and not self.options.precision.startswith("16"):
            # With 16 bits a scaler passes over such steps.
            raise task.refusal(step, "gradient", "the gradient of the loss is not finite")
        self.optimizer.step()
        task.after(step)

    def _clipped(self) -> Tensor:
        """Norm of the gradient before it is cut to the largest one."""
        limit = self.options.clip or math.inf
        return self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=limit, error_if_nonfinite=False
        )

    def _told(self, step: int, last: bool, log: CsvLog | None) -> None:
        """Checkpoint, log, pictures and validation after step number `step` (from 1)."""
        o, task = self.options, self.task
        keep = step % o.save == 0 or last
        measure = last or step % (o.validate or o.save) == 0
        if log is None:
            return
        row = {"step": step, **task.row(step - 1), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row["gradient"] = self.gradient
        if measure:
            self.metrics = task.measure()
            row |= self.metrics
        measure = measure and bool(self.metrics)
        if keep or measure or step % o.log == 0:
            log.add(row)
            with writing(self.folder, MAKE_ROOM):
                for logger in self.fabric.loggers:
                    logger.log_metrics({k: v for k, v in row.items() if not isinstance(v, str)}, step)
        if keep or measure:
            self.watch.line(_line(row, ("step", *task.shown, *self.metrics)))
        if o.pictures and (step % o.pictures == 0 or last):
            self._picture(step)
        self.watch.step_done(step, self.inner.values)
        if keep:
            self._save(step)

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "network": self.task.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            **random_state(),
            **self.task.keep(),
        }
        write_checkpoint(self.checkpoint, state)

    def _picture(self, step: int) -> None:
        picture = self.task.picture()
        if picture is None:
            return
        with written_whole(self.folder / "pictures" / f"step_{step:07d}.png", MAKE_ROOM) as part:
            Image.fromarray(picture).save(part, format="PNG")
        for logger in self.fabric.loggers:
            logger.experiment.add_image("predicted", np.ascontiguousarray(picture), step, dataformats="HWC")


def _line(row: dict[str, Any], names: Iterable[str]) -> str:
    shown = (name for name in dict.fromkeys(names) if name in row)
    return ", ".join(f"{n} {row[n]:.4g}" if isinstance(row[n], float) else f"{n} {row[n]}" for n in shown)


def _part_of(
    stored: dict[str, Any], everything: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state of an optimizer of all parameters as that of one that has some of them, in the same
    groups."""
    place = {id(p): number for number, p in enumerate(everything)}
    mine = [place[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = {new: stored["state"][old] for new, old in enumerate(mine) if old in stored["state"]}
    groups = optimizer.state_dict()["param_groups"]
    return {
        "state": state,
        "param_groups": [{**s, "params": g["params"]} for s, g in zip(stored["param_groups"], groups)],
    }


def make_fabric(options: LoopOptions, folder: Path, name: str) -> Fabric:
    """Lightning's Fabric as the options say; `name` is that of the recipe, for messages.

    Raises:
        InputError: it does not take the precision, the accelerator, the devices or the strategy.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    o = options
    try:
        return Fabric(
            accelerator=o.accelerator,
            devices=o.devices,
            strategy=o.strategy,
            precision=o.precision,
            loggers=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        )
    except (ValueError, TypeError, ModuleNotFoundError, RuntimeError) as error:
        raise InputError(
            f"recipe '{name}': Lightning refuses accelerator '{o.accelerator}', devices {o.devices}, "
            f"strategy '{o.strategy}', precision '{o.precision}': {' '.join(str(error).split())}"
        ) from error
