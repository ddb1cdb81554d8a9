"""What is animated in files for other tools: the expression shapes as morph targets, and the photos as their
frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.export.arkit import Spelling, arkit_shapes
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_exp
from fitkit.models.face_model import FaceModel

FRAMES_PER_SECOND = 24  # of animations: each photo is a frame


@dataclass(frozen=True)
class Morph:
    """A morph target: its name, the expression shapes that it adds up (none: no fit estimates it), what it
    moves at weight 1, [V, 3] mm."""

    name: str
    shapes: Sequence[int]
    delta: np.ndarray


def morphs_of(model: FaceModel, spelling: Spelling = "apple") -> list[Morph]:
    """The expression shapes of a model: blend shapes at weight 1 with names after ARKit (`arkit_shapes`),
    Gaussian ones at one standard deviation with their own names; then its extra shapes."""
    meaning = model.coefficients["expression"]
    basis = model.expression_basis.double().numpy()
    if meaning.sigma is None:
        morphs = [Morph(name, at, basis[at].sum(0)) for name, at in arkit_shapes(meaning.names, spelling)]
    else:
        scaled = basis * meaning.sigma.double().numpy()[:, None, None]
        morphs = [Morph(name, [i], scaled[i]) for i, name in enumerate(meaning.names)]
    if model.extra_basis is None:
        return morphs
    extra = model.extra_basis.double().numpy()
    return morphs + [
        Morph(name, [], extra[at].sum(0)) for name, at in arkit_shapes(model.extra_names, spelling)
    ]


@dataclass(frozen=True)
class Track:
    """The B photos as frames of an animation, seen by a camera that stands still at the origin.

    weights: [B, M] of the morph targets, of two shapes in one target their mean, of extra ones 0; rotation
    [B, 3, 3] and translation [B, 3] mm: of the head, in axes with x to the right, y up and z towards the
    viewer; joints: [B, J, 3, 3] how each joint but the root is turned within its parent, or None: none turns.
    """

    weights: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    joints: np.ndarray | None


def track_of(result: FitResult, morphs: Sequence[Morph]) -> Track:
    """The photos of a result in their order.

    Raises:
        InputError: cameras that see all distances alike have no place from which a viewer could look.
    """
    need_perspective(result)
    state = result.state.to(dtype=torch.float64)
    unit = state.expression / result.model.coefficients["expression"].unit(state.expression)
    weights = np.zeros((len(unit), len(morphs)))
    for k, morph in enumerate(morphs):
        if morph.shapes:
            weights[:, k] = unit[:, list(morph.shapes)].mean(1).numpy()
    upright = np.array([1.0, -1.0, -1.0])  # from y down, z forward
    joints = None if state.joints is None else so3_exp(state.joints).numpy()
    return Track(
        weights,
        upright[:, None] * state.pose.rotation.numpy(),
        upright * state.pose.translation.numpy(),
        joints,
    )


def need_perspective(result: FitResult) -> None:
    """Refuse a result whose cameras are no pinhole cameras.

    Raises: InputError.
    """
    if result.state.camera.kind != "perspective":
        raise InputError(
            f"result of {result.subject.name}: expected perspective cameras, got {result.state.camera.kind} "
            "ones, which other tools do not know; fit again with camera.kind=perspective"
        )
