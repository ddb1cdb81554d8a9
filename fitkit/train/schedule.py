"""When a training does what: the stage and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fitkit.train.regressor_data import Part, stage_steps
from fitkit.train.regressor_recipe import RegressorTraining


def stage_lengths(recipe: RegressorTraining, training: Sequence[Part], devices: int) -> list[int]:
    """Steps of each stage."""
    return [stage_steps(stage, training, stage.batch * devices) for stage in recipe.stages]


def stage_of_step(lengths: Sequence[int], step: int) -> tuple[int, int]:
    """Stage of step number `step` (from 0) and the step's number within it."""
    for number, length in enumerate(lengths):
        if step < length or number == len(lengths) - 1:
            return number, step
        step -= length
    raise AssertionError("no stages")


def learning_rate(recipe: RegressorTraining, lengths: Sequence[int], step: int) -> float:
    """Of step number `step` (from 0): a linear rise over the warm-up, then as `decay` says."""
    number, inside = stage_of_step(lengths, step)
    stage = recipe.stages[number]
    if inside < stage.warmup:
        return stage.learning_rate * (inside + 1) / stage.warmup
    if stage.decay == "cosine":
        share = (inside - stage.warmup) / max(1, lengths[number] - stage.warmup)
        return stage.least_rate + (stage.learning_rate - stage.least_rate) * half_cosine(share)
    if stage.decay == "halve_every":
        return stage.learning_rate * 0.5 ** (inside // stage.halve_every)
    return stage.learning_rate


def half_cosine(share: float) -> float:
    """From 1 at share 0 down to 0 at share 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
