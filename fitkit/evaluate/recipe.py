"""What an evaluation consists of. See `recipes/evaluate/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fitkit.errors import InputError
from fitkit.evaluate.methods import Kind, Method, Poses, Surface
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.fitting.network_start import shipped_weights
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
from fitkit.io.resources import find_recipe, recipe_names
from fitkit.nets import read_about


@dataclass(frozen=True)
class EvaluateRecipe:
    """One evaluation; every option with its value."""

    name: str
    protocol: str  # what is measured, see evaluate/protocols/
    # 'fit'; 'mean': the model's mean face, which every fit must beat; 'landmarks': only the 68 points of the
    # detector; 'regressor': a trained network alone
    predictor: Kind = "fit"
    model: str = "generic"  # face model; of a regressor that which it was trained with
    weights: str = ""  # of the regressor: regressor.safetensors; empty: the network that comes with fitkit
    repeat: bool = False  # a regressor with named views gets the one photo in all of them
    # What of a regressor is measured: 'state', its face model; 'depth'; 'position_map'; empty: the first of
    # them that it gives
    part: Surface = ""
    # Of a regressor: where its poses come from, the network, or closed form from its face and the landmarks.
    pose: Poses = "network"
    fit: str = "multiview"  # recipe of the fits by name or path
    fit_overrides: tuple[str, ...] = ()  # 'key=value' changes of it
    pictures: Natural = 4  # error maps of so many samples
    picture_mm: Positive = 5.0  # largest error of their scale
    options: dict = field(default_factory=dict)  # of the protocol, see its file

    def protocol_options(self) -> Any:
        """The options as the protocol's dataclass."""
        return build(PROTOCOLS[self.protocol].options, self.options, f"{self.name:.80}: options", ".")

    def fit_recipe(self) -> FitRecipe:
        """The recipe of the fits."""
        return load_recipe(self.fit, self.fit_overrides, {"model": self.model})

    def make_method(self, device: str = "cpu") -> Method:
        """What predicts, on a torch device."""
        return Method(
            self.predictor,
            self.model,
            self.fit_recipe(),
            self.weights,
            self.repeat,
            device,
            self.part,
            self.pose,
        )


def load_evaluate_recipe(
    name: str | os.PathLike, overrides: Sequence[str] = (), changes: dict[str, Any] | None = None
) -> EvaluateRecipe:
    """A shipped recipe or a protocol by name, or any recipe file by path, every option with its value.

    Args:
        overrides: 'a.b=value' lines; those that begin with 'fit.' change the recipe of the fits:
            fit.landmarks.source=builtin.
        changes: a nested mapping laid over the recipe before the overrides.
    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, options of another
            predictor, or weights that cannot be read.
    """
    content, where = _read(os.fspath(name))
    own = [line for line in overrides if not line.startswith("fit.")]
    content = apply_overrides(merge(content, changes or {}), own)
    recipe = build(EvaluateRecipe, content, where)
    if recipe.protocol not in PROTOCOLS:
        raise unknown_key(recipe.protocol, PROTOCOLS, f"{where}: protocol")
    if recipe.predictor == "regressor":
        if "model" not in content:
            model = read_about(recipe.weights or shipped_weights())["model"]  # none: it gives no state
            recipe = replace(recipe, model=model or recipe.model)
    elif recipe.weights or recipe.repeat or recipe.part or recipe.pose != "network":
        raise InputError(
            f"{where}: weights, repeat, part and pose are for predictor=regressor, got "
            f"predictor={recipe.predictor}; leave them out, or give predictor=regressor"
        )
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


def _read(name: str) -> tuple[dict[str, Any], str]:
    """The mapping of a recipe and what messages call it; a protocol needs no recipe of its own."""
    if name in PROTOCOLS and name not in recipe_names("evaluate"):
        return {"name": name, "protocol": name}, name
    path = find_recipe("evaluate", name)
    return read_yaml(path), path.name
