"""What a training of the landmark network consists of. See `recipes/train/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fitkit.data.landmark_frames import Augmentation
from fitkit.errors import InputError
from fitkit.io.options import (
    Count,
    Length,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    Workers,
    apply_overrides,
    build,
    read_yaml,
)
from fitkit.io.resources import find_recipe
from fitkit.observe.landmarks.network import NetworkOptions


@dataclass(frozen=True)
class FrameSource:
    """Real pictures with a .pts beside each. folder: the root of the tree, one folder per person below it;
    share: of the training crops; surroundings: share of these crops that show the picture without the
    face."""

    folder: str = ""
    share: Share = 0.5
    surroundings: Share = 0.08


@dataclass(frozen=True)
class RenderSource:
    """Rendered faces, made on first use. folder: where they are kept (empty: `renders` in the output folder);
    models: face models, in turn; count: how many faces; seed: of the first one; size: px; workers: processes
    that render."""

    folder: str = ""
    models: Annotated[tuple[str, ...], Length(1)] = ("generic",)
    count: Count = 12000
    seed: Seed = 1000000
    size: Annotated[int, Range(32, 2048)] = 160
    workers: Annotated[int, Range(1, 1024)] = 2


@dataclass(frozen=True)
class Schedule:
    """steps of `batch` crops with AdamW: the learning rate rises for `warmup` steps and then falls along a
    cosine; average: decay of the running average of the weights, which is what is kept; save: steps between
    two checkpoints and validations; workers: processes that make crops; bfloat16: mixed precision."""

    steps: Count = 20000
    batch: Annotated[int, Range(1, 10**6)] = 64
    learning_rate: Positive = 0.002
    weight_decay: NonNegative = 0.01
    warmup: Natural = 300
    average: Annotated[float, Range(0.0, 1.0, below=True)] = 0.999
    save: Count = 500
    workers: Workers = 1
    bfloat16: bool = True


@dataclass(frozen=True)
class LossOptions:
    """position: weight of the plain distance, in units of `unit` as a share of the crop, beside the
    likelihood; visibility: weight of the cross entropy of being seen."""

    position: NonNegative = 0.5
    unit: Positive = 0.02
    visibility: NonNegative = 0.5


@dataclass(frozen=True)
class LandmarkTraining:
    """A whole training; every option with its value."""

    name: str
    seed: Seed = 0
    network: NetworkOptions = NetworkOptions()
    frames: FrameSource = FrameSource()
    renders: RenderSource = RenderSource()
    augmentation: Augmentation = Augmentation()
    schedule: Schedule = Schedule()
    loss: LossOptions = LossOptions()


def load_landmark_training(
    name: str | os.PathLike = "landmarks", overrides: Sequence[str] = ()
) -> LandmarkTraining:
    """A shipped recipe by name or any recipe file by path, with 'a.b=value' lines laid over it.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values out of
            range.
    """
    path = find_recipe("train", name)
    recipe = build(LandmarkTraining, apply_overrides(read_yaml(path), overrides), path.name)
    if recipe.frames.share > 0 and not recipe.frames.folder:
        raise InputError(
            f"{path.name}: frames.folder is not set; give the folder of pictures with .pts files: "
            "frames.folder=FOLDER"
        )
    return recipe
