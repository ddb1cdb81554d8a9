"""What a training of a regressor consists of. See `recipes/train/` and docs/regressor.md."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Sequence

from fitkit.data.augment import FaceAugmentation
from fitkit.energies.census import CensusOptions
from fitkit.energies.flow_correspondence import FlowOptions
from fitkit.energies.flow_magnitude import FlowMagnitudeOptions
from fitkit.energies.photometric import PhotometricOptions
from fitkit.errors import InputError
from fitkit.fitting.recipe import EnergyOptions
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
from fitkit.observe.flow import check_estimator


@dataclass(frozen=True)
class LandmarkTerm(EnergyOptions):
    """sigma_px: standard deviation of a point, for a 224-pixel crop; jaw: what to take points 0-16 for where the data do not say."""

    sigma_px: Positive = 3.0
    jaw: Literal["outline", "surface"] = "surface"


@dataclass(frozen=True)
class CodeTerm(EnergyOptions):
    """sigma: see IdentitySupervision, ExpressionSupervision."""

    sigma: Positive = 0.3


@dataclass(frozen=True)
class PoseTerm(EnergyOptions):
    """See PoseSupervision."""

    sigma_deg: Positive = 2.0
    sigma_mm: Positive = 10.0
    sigma_focal: Positive = 0.1


@dataclass(frozen=True)
class VertexTerm(EnergyOptions):
    """See VertexSupervision."""

    sigma_mm: Positive = 1.0
    frame: Literal["camera", "head", "aligned"] = "head"
    region: Literal["all", "skin", "face"] = "face"


@dataclass(frozen=True)
class ExpressionPriorTerm(EnergyOptions):
    """See ExpressionPrior."""

    sigma: Positive = 0.3
    sigma_negative: Positive = 0.1


@dataclass(frozen=True)
class MeanPriorTerm(EnergyOptions):
    """See MeanCoefficientPrior."""

    sigma: Positive = 0.3
    expression: NonNegative = 0.5


@dataclass(frozen=True)
class PhotoTerm(EnergyOptions):
    """light: 'estimate' each view's light from its picture before the comparison, or 'plain' white light from everywhere."""

    light: Literal["estimate", "plain"] = "estimate"
    options: PhotometricOptions = PhotometricOptions()


@dataclass(frozen=True)
class CensusTerm(EnergyOptions):
    options: CensusOptions = CensusOptions()


@dataclass(frozen=True)
class FlowTerm(EnergyOptions):
    """estimator, weights: see fitkit.fitting.recipe.FlowSource."""

    estimator: str = "dis"
    weights: str = ""
    options: FlowOptions = FlowOptions()

    def __post_init__(self):
        check_estimator(self.estimator, self.weights)


@dataclass(frozen=True)
class FlowMagnitudeTerm(FlowTerm):
    """Only a network, 'ptlflow:NAME', can be used: the gradient runs through it."""

    estimator: str = "ptlflow:pwcnet"
    options: FlowMagnitudeOptions = FlowMagnitudeOptions()


ENERGIES: dict[str, type[EnergyOptions]] = {
    "lmk2d": LandmarkTerm,
    "lmk2d_eye": LandmarkTerm,
    "lmk2d_lip": LandmarkTerm,
    "identity_sup": CodeTerm,
    "expression_sup": CodeTerm,
    "identity_nll": EnergyOptions,
    "pose_sup": PoseTerm,
    "vertex_sup": VertexTerm,
    "identity_prior": EnergyOptions,
    "expression_prior": ExpressionPriorTerm,
    "prior_l1": MeanPriorTerm,
    "photo_xview": PhotoTerm,
    "census_xview": CensusTerm,
    "flow_corr": FlowTerm,
    "flow_mag": FlowMagnitudeTerm,
}


@dataclass(frozen=True)
class DataSource:
    """A data set. kind: what reads it, see docs/regressor.md; weight: its share of the draws, relative to the others;
    options: of its reader; held_out: share of its people for validation, below 0 = that of `validation`; cache: keep what
    was read in memory, pictures with 8 bits (each worker for itself)."""

    name: str
    kind: Literal["300wlp", "multipie", "frames", "fits", "synthetic"]
    folder: str = ""
    weight: Positive = 1.0
    options: dict = field(default_factory=dict)
    held_out: Annotated[float, Range(-1.0, 1.0, below=True)] = -1.0
    cache: bool = False


@dataclass(frozen=True)
class NetChoice:
    """name: of a network of fitkit.nets; start: weights that the training starts from: regressor.safetensors of another training with
    the same network, torchvision's vgg11_bn (.pth) for the trunk of mvfnet, or 'builtin' or a landmarks68.safetensors, the landmark
    network, for the encoder of fitkit_init; empty = random ones; options: the network's own."""

    name: str = "mvfnet"
    start: str = ""
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingStage:
    """steps, or epochs (once through as many samples as its data sets have): one of the two; data: names of data sets, empty =
    all; free: parts of the network that learn ('trunk', 'pose', 'shape' of mvfnet), empty = all, the others are frozen, their
    batch statistics too; decay: 'constant', or 'cosine' down to zero at the end of the stage; warmup: steps."""

    name: str
    energies: dict[str, EnergyOptions]
    steps: Natural = 0
    epochs: NonNegative = 0.0
    learning_rate: Positive = 1e-4
    decay: Literal["constant", "cosine"] = "constant"
    warmup: Natural = 0
    data: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """share: of the people that are held out; most: samples at most; every: steps between two measurements, 0 = at checkpoints;
    flow: samples at most whose views are compared by their flow, which takes time, 0 = none."""

    share: Annotated[float, Range(0.0, 1.0, below=True)] = 0.05
    most: Natural = 64
    every: Natural = 0
    flow: Natural = 0


@dataclass(frozen=True)
class RegressorTraining:
    """A whole training; every option with its value.

    views: the named inputs of the network, [] for one that takes any photos; most_views: of a person in a sample, drawn at random,
    where the views have no names;
    batch: people per step and device; workers: processes that read data; precision, accelerator, devices, strategy: as Lightning's
    Trainer takes them ('32-true', 'bf16-mixed', '16-mixed'; 'auto', 'cpu', 'gpu'; a number; 'auto', 'ddp',
    'ddp_find_unused_parameters_true', ...); clip: largest norm of the gradient, 0 = no limit; save: steps between two checkpoints;
    pictures: steps between two sample pictures, 0 = none; log: steps between two lines of log.csv.
    """

    name: str
    stages: tuple[TrainingStage, ...]
    model: str = "generic"
    net: NetChoice = NetChoice()
    views: tuple[ViewSlot, ...] = (
        ViewSlot("front"),
        ViewSlot("left", (-70.0, -20.0)),
        ViewSlot("right", (20.0, 70.0)),
    )
    data: tuple[DataSource, ...] = ()
    validation: Validation = Validation()
    augmentation: FaceAugmentation = FaceAugmentation()
    most_views: Annotated[int, Range(1, 1000)] = 4
    batch: Annotated[int, Range(1, 10**6)] = 12
    seed: Seed = 0
    workers: Workers = 0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: Annotated[int, Range(1, 1024)] = 1
    strategy: str = "auto"
    clip: NonNegative = 1.0
    save: Count = 1000
    pictures: Natural = 1000
    log: Count = 10


def load_regressor_training(name: str | os.PathLike, overrides: Sequence[str] = ()) -> RegressorTraining:
    """A shipped recipe by name or any recipe file by path, with 'a.b=value' lines laid over it; stages and data sets by name:
    'stages.supervised.steps=100', 'data.lp.folder=300W_LP'.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values out of range.
    """
    path = find_recipe("train", name)
    return parse_regressor_training(apply_overrides(read_yaml(path), overrides), path.name)


def parse_regressor_training(data: dict, where: str) -> RegressorTraining:
    """RegressorTraining from nested mappings, as read from YAML. Raises as load_regressor_training."""
    data = dict(data)
    parsed = []
    for stage, label in build_stages(TrainingStage, ENERGIES, data.pop("stages", None), where):
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
    build(net.options, recipe.net.options, f"{where}: net.options", ".")
    return recipe


def net_options(recipe: RegressorTraining) -> Any:
    """Options of the recipe's network as its dataclass."""
    return build(net_kind(recipe.net.name).options, recipe.net.options, "net.options", ".")
