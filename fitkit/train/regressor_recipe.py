"""What a training of a regressor consists of. See `recipes/train/` and docs/regressor.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from fitkit.data.augment import FaceAugmentation
from fitkit.energies.registry import training_options
from fitkit.energies.spec import EnergyOptions
from fitkit.errors import InputError
from fitkit.io.options import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Workers,
    apply_overrides,
    build,
    build_stages,
    read_yaml,
)
from fitkit.io.resources import find_recipe
from fitkit.nets import net_kind
from fitkit.nets.predictor import ViewSlot
from fitkit.train.readers import reader_options


@dataclass(frozen=True)
class DataSource:
    """A data set."""

    name: str
    # What reads it, see docs/regressor.md.
    kind: Literal[
        "300wlp",
        "multipie",
        "frames",
        "300vw",
        "celeba",
        "menpo",
        "fits",
        "synthetic",
        "parsed",
        "celebamask",
        "guessed",
        "pixel_face",
    ]
    folder: str = ""
    weight: Positive = 1.0  # share of the draws, relative to the other data sets
    options: Any = None  # of its reader
    # Share of its people; below 0: that of `validation`.
    held_out: Annotated[float, Range(-1.0, 1.0, below=True)] = -1.0
    cache: bool = False  # keep what was read in memory, pictures with 8 bits (each worker for itself)

    def __post_init__(self):
        _settle(self, reader_options(self.kind), f"data '{self.name}': options")


@dataclass(frozen=True)
class NetChoice:
    """A network and what it starts from.

    start: regressor.safetensors of another training with the same network; torchvision's vgg11_bn (.pth) for
    the trunk of mvfnet, a ResNet of torchvision (.pth) or DECA's deca_model.tar for that of mfnet; 'builtin'
    or a landmarks68.safetensors, the landmark network, for the encoder of fitkit_init and pgn and the trunk
    of mfnet; the regressor.safetensors of a parser for the one inside of dfmvr; empty = random weights.
    """

    name: str = "mvfnet"  # of a network of fitkit.nets
    start: str = ""  # weights
    options: Any = None  # the network's own
    frozen: tuple[str, ...] = ()  # parts that learn in no stage; their batch statistics stay, too

    def __post_init__(self):
        _settle(self, net_kind(self.name).options, "net.options")


def _settle(choice: DataSource | NetChoice, kind: type, where: str) -> None:
    """Make the options of a choice an object of the dataclass that its kind has for them."""
    if not isinstance(choice.options, kind):
        object.__setattr__(choice, "options", build(kind, choice.options or {}, where, "."))


@dataclass(frozen=True)
class TrainingStage:
    """One stage: steps, or epochs (once through as many samples as its data sets have): one of the two."""

    name: str
    energies: dict[str, EnergyOptions]
    steps: Natural = 0
    epochs: NonNegative = 0.0
    learning_rate: Positive = 1e-4
    # cosine: down to `least_rate` at the end of the stage; halve_every: see there.
    decay: Literal["constant", "cosine", "halve_every"] = "constant"
    least_rate: NonNegative = 0.0  # with decay: cosine
    halve_every: Natural = 0  # steps after which the rate is halved, again and again, with decay: halve_every
    warmup: Natural = 0  # steps in which the rate rises from zero
    data: tuple[str, ...] = ()  # names of data sets, empty = all
    # Parts that learn, empty = all; the others are frozen, their batch statistics too.
    free: tuple[str, ...] = ()
    batch: Natural = 0  # people per step and device, 0 = as the training
    most_views: Annotated[int, Range(0, 1000)] = 0  # of a person in a sample, 0 = as the training
    augmentation: FaceAugmentation | None = None  # none = as the training

    def __post_init__(self):
        if (self.decay == "halve_every") != (self.halve_every > 0):
            raise InputError(
                f"stage '{self.name}': expected decay: halve_every together with halve_every, a number of "
                f"steps above 0, got decay: {self.decay} and halve_every: {self.halve_every}"
            )
        if self.least_rate and (self.decay != "cosine" or self.least_rate > self.learning_rate):
            raise InputError(
                f"stage '{self.name}': least_rate: expected at most the learning_rate "
                f"{self.learning_rate:g} and decay: cosine, got {self.least_rate:g} and decay: {self.decay}"
            )


@dataclass(frozen=True)
class Validation:
    """What is held out, and when it is measured."""

    share: Annotated[float, Range(0.0, 1.0, below=True)] = 0.05  # of the people that are held out
    most: Natural = 64  # samples at most
    every: Natural = 0  # steps between two measurements, 0 = at checkpoints
    flow: Natural = 0  # samples at most whose views are compared by their flow, which takes time, 0 = none


@dataclass(frozen=True)
class RegressorTraining:
    """A whole training; every option with its value. precision, accelerator, devices, strategy: as
    Lightning's Fabric takes them."""

    name: str
    stages: tuple[TrainingStage, ...]
    model: str = "generic"  # face model, by name or file
    net: NetChoice = field(default_factory=NetChoice)
    # the named inputs of the network, [] for one that takes any photos
    views: tuple[ViewSlot, ...] = (
        ViewSlot("front"),
        ViewSlot("left", (-70.0, -20.0)),
        ViewSlot("right", (20.0, 70.0)),
    )
    data: tuple[DataSource, ...] = ()
    validation: Validation = Validation()
    augmentation: FaceAugmentation = FaceAugmentation()
    # photos of a person in a sample, drawn at random, where the views have no names
    most_views: Annotated[int, Range(1, 1000)] = 4
    batch: Annotated[int, Range(1, 10**6)] = 12  # people per step and device
    seed: Seed = 0
    workers: Workers = 0  # processes that read data
    precision: str = "32-true"  # or 'bf16-mixed', '16-mixed', ...
    accelerator: str = "auto"  # or 'cpu', 'gpu', ...
    devices: Annotated[int, Range(1, 1024)] = 1
    strategy: str = "auto"  # or 'ddp', 'ddp_find_unused_parameters_true', ...
    clip: NonNegative = 1.0  # largest norm of the gradient, 0 = no limit
    save: Count = 1000  # steps between two checkpoints
    pictures: Natural = 1000  # steps between two sample pictures, 0 = none
    log: Count = 10  # steps between two lines of log.csv


def load_regressor_training(name: str | os.PathLike, overrides: Sequence[str] = ()) -> RegressorTraining:
    """A shipped recipe by name or any recipe file by path, with 'a.b=value' lines laid over it; stages and
    data sets by name: 'stages.supervised.steps=100', 'data.lp.folder=300W_LP'.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values out of
            range.
    """
    path = find_recipe("train", name)
    return parse_regressor_training(apply_overrides(read_yaml(path), overrides), path.name)


def parse_regressor_training(data: dict, where: str) -> RegressorTraining:
    """RegressorTraining from nested mappings, as read from YAML. Raises as load_regressor_training."""
    data = dict(data)
    parsed = []
    for stage, label in build_stages(TrainingStage, training_options, data.pop("stages", None), where):
        parsed.append(stage)
        if (stage.steps > 0) == (stage.epochs > 0):
            raise InputError(
                f"{label}: expected steps or epochs above 0, one of the two, got steps {stage.steps} "
                f"and epochs {stage.epochs:g}"
            )
    recipe = build(RegressorTraining, {**data, "stages": parsed}, where)
    return _checked(recipe, where)


def _checked(recipe: RegressorTraining, where: str) -> RegressorTraining:
    for what in ("stages", "views", "data"):
        names = [item.name for item in getattr(recipe, what)]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise InputError(f"{where}: {what}: '{twice}' is there twice; names must differ")
    net = net_kind(recipe.net.name)
    if net.named_views and not recipe.views:
        raise InputError(f"{where}: expected at least one of 'views'")
    if recipe.views and not net.named_views:
        raise InputError(
            f"{where}: views: the network {recipe.net.name} takes any photos, expected views: [], got "
            f"{', '.join(v.name for v in recipe.views)}"
        )
    return replace(recipe, stages=tuple(_filled(stage, recipe) for stage in recipe.stages))


def _filled(stage: TrainingStage, recipe: RegressorTraining) -> TrainingStage:
    """The stage with what it takes over from the training."""
    return replace(
        stage,
        batch=stage.batch or recipe.batch,
        most_views=stage.most_views or recipe.most_views,
        augmentation=stage.augmentation or recipe.augmentation,
    )
