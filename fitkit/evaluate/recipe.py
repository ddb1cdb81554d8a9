"""What an evaluation consists of. See `recipes/evaluate/`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Sequence

from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.options import (
    Natural,
    Positive,
    apply_overrides,
    build,
    merge,
    read_yaml,
    to_plain,
    unknown_key,
)
from fitkit.io.resources import find_recipe


@dataclass(frozen=True)
class EvaluateRecipe:
    """protocol: what is measured; options: of the protocol, see its class in `evaluate.protocols`;
    predictor: 'fit'; 'mean': the model's mean face, which every fit must beat; 'landmarks': only the 68 points of the detector;
    model: face model; fit: recipe of the fits by name or path; fit_overrides: 'key=value' changes of it;
    pictures: error maps of so many samples; picture_mm: largest error of their scale."""

    name: str
    protocol: str
    predictor: Literal["fit", "mean", "landmarks"] = "fit"
    model: str = "generic"
    fit: str = "multiview"
    fit_overrides: tuple[str, ...] = ()
    pictures: Natural = 4
    picture_mm: Positive = 5.0
    options: dict = field(default_factory=dict)

    def protocol_options(self) -> Any:
        """The options as the protocol's dataclass."""
        return build(PROTOCOLS[self.protocol].options, self.options, f"{self.name:.80}: options", ".")

    def fit_recipe(self) -> FitRecipe:
        """The recipe of the fits."""
        return load_recipe(self.fit, self.fit_overrides, {"model": self.model})


def load_evaluate_recipe(
    name: str | os.PathLike, overrides: Sequence[str] = (), changes: dict[str, Any] | None = None
) -> EvaluateRecipe:
    """A shipped recipe by name or any recipe file by path, every option with its value.

    Args:
        overrides: 'a.b=value' lines; those that begin with 'fit.' change the recipe of the fits: fit.landmarks.source=builtin.
        changes: a nested mapping laid over the recipe before the overrides.
    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types.
    """
    path = find_recipe("evaluate", name)
    own = [line for line in overrides if not line.startswith("fit.")]
    recipe = build(EvaluateRecipe, apply_overrides(merge(read_yaml(path), changes or {}), own), path.name)
    if recipe.protocol not in PROTOCOLS:
        raise unknown_key(recipe.protocol, PROTOCOLS, f"{path.name}: protocol")
    recipe = replace(
        recipe,
        fit_overrides=(
            *recipe.fit_overrides,
            *(line.removeprefix("fit.") for line in overrides if line.startswith("fit.")),
        ),
    )
    recipe = replace(recipe, options=to_plain(recipe.protocol_options()))
    recipe.fit_recipe()  # refused now and not after the data was read
    return recipe
