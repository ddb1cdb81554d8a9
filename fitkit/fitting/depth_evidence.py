"""The depth that a network sees in each photo, as evidence of a fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.fitting.network_start import predict_views
from fitkit.fitting.recipe import FitRecipe
from fitkit.io.subject import Subject
from fitkit.nets import load_predictor, model_of, read_about
from fitkit.observe.label_crops import cut_labels
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState


def needs_depth(recipe: FitRecipe) -> bool:
    """Whether a fit by this recipe asks a network for depth."""
    return bool(recipe.depth.weights) or any("depth_3dmm" in stage.energies for stage in recipe.stages)


def check_depth(recipe: FitRecipe) -> None:
    """Refuse a recipe that asks for depth without a network that gives it, before photos are read.

    Raises:
        InputError: as `depth_network`.
    """
    if needs_depth(recipe):
        depth_network(recipe.depth.weights)


def depth_network(weights: str) -> dict[str, Any]:
    """What the file `weights` says of its network (`read_about`).

    Raises:
        InputError: no weights, or those of a network that does not give a scene and depth.
    """
    if not weights:
        raise InputError(
            "energy 'depth_3dmm' compares with the depth that a network sees, and depth.weights is not set; "
            "give depth.weights=FILE, the regressor.safetensors of fitkit train-regressor mvdepth"
        )
    about = read_about(weights)
    gives = about["gives"]
    if not {"state", "depth"} <= set(gives):
        raise InputError(
            f"{weights}: depth.weights: expected a network that gives a scene and depth, it gives "
            f"{', '.join(gives)}; train one with the recipe mvdepth"
        )
    return about


def with_depth(
    subject: Subject,
    found: Landmarks,
    observations: Observations,
    start: SceneState,
    weights: str,
    device: str = "cpu",
) -> Observations:
    """The crops of a fit with what a network says of their depth as labels: prior_depth, mm of a head as
    large as that of `start`, and prior_trust, its suitability; 0 where it sees no surface and in photos that
    it does not take.

    found: landmarks in px of the photos; start: where the fit begins, cameras in px of the crops; weights:
    regressor.safetensors.

    Raises:
        InputError: no weights, or those of a network that does not give a scene and depth.
    """
    about = depth_network(weights)
    model = model_of(about, weights)
    network = load_predictor(weights, model).to(device)
    predicted = predict_views(network, model.to(device), subject, found, device, weights)
    said, crops, order = predicted.prediction.depth, predicted.observations, torch.tensor(predicted.order)
    assert said is not None  # the network gives it
    scale, offset = observations.scale[order], observations.offset[order]
    # px of the fit's crops per px of the network's, and where these begin in those.
    ratio, shift = scale / crops.scale, (offset - crops.offset) * crops.scale[:, None]
    # As large as in the fit: a mm of the network is so many of it.
    size = _px_per_mm(predicted.prediction.state) * ratio / _px_per_mm(start.select(order))
    away = said.distance()[:, None, None]
    relief = (said.depth - away) * size[:, None, None] + away
    trust = torch.ones_like(said.depth) if said.suitability is None else said.suitability
    labels = Labels(prior_depth=torch.where(said.depth > 0, relief, 0), prior_trust=trust)
    cut = cut_labels(labels, ratio, shift, observations.size)
    B = observations.num_views

    def of_all(values: Tensor | None) -> Tensor:
        assert values is not None
        whole = values.new_zeros(B, *observations.size)
        whole[order] = values
        return whole

    return replace(
        observations, labels=Labels(prior_depth=of_all(cut.prior_depth), prior_trust=of_all(cut.prior_trust))
    )


def _px_per_mm(state: SceneState | None) -> Tensor:
    """[B], at the head's origin."""
    assert state is not None  # the caller has looked
    return state.camera.focal / state.camera.depth_divisor(state.pose.translation[:, None])[:, 0]
