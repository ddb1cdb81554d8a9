"""What the readers of published face models of principal components share: which way a mesh faces, whether
its landmarks can be right, colours as linear light, and the parts that the files do not name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.geometry.color import linear_from_srgb
from fitkit.io.foreign import check_indices, refused_as
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.parts import at_vertices, faces_away, parts_of, real
from fitkit.models.io import check_model

BASEL_LICENSE = "of the University of Basel, for those who signed its form: faces.dmi.unibas.ch"
NOSE_TIP, RIGHT_EYE, LEFT_EYE = 30, 36, 45  # landmarks; of the eyes the outer corners
COLOR_LARGEST = 2.0  # of a mean; above it are codes up to 255
LOWER = (8, 33, 48, 54, 57)  # landmarks below the eyes


def face_model(
    where: str,
    mean: np.ndarray,
    identity_basis: np.ndarray,
    expression_basis: np.ndarray,
    triangles: np.ndarray,
    landmarks: Sequence[int],
    **others: Any,
) -> FaceModel:
    """A `FaceModel` of arrays in the head frame: its triangles counter-clockwise, its parts those of
    `generic`.

    Args:
        where: file, for messages; mean: [V, 3] mm; bases: [K, V, 3] mm; triangles: [F, 3], from 0; landmarks:
            [68] vertices, -1: the mesh lacks the point; others: fields of the model.
    Raises:
        InputError: arrays that do not fit together, or landmarks that cannot be those of a face.
    """
    check_indices(triangles, len(mean), f"{where}: triangles", "[F, 3] ")
    if not np.isfinite(mean).all():
        raise InputError(f"{where}: the mean face holds values that are not finite")
    check_landmarks(where, mean, landmarks)
    loose = np.setdiff1d(np.asarray(landmarks), np.append(triangles, -1))
    if len(loose):
        raise InputError(f"{where}: landmarks: vertex {loose[0]} is a corner of no triangle")
    triangles = triangles.astype(np.int64)
    if faces_away(mean, triangles, mean[[v for v in landmarks if v >= 0]]):
        triangles = np.ascontiguousarray(triangles[:, ::-1])
        if "uv_triangles" in others:
            others["uv_triangles"] = others["uv_triangles"].flip(1)
    with refused_as(f"{where}: its landmarks do not lie on a face"):
        embedding = at_vertices(triangles, landmarks)
        parts = parts_of(mean, triangles, embedding)
    model = FaceModel(
        mean=real(mean),
        identity_basis=real(identity_basis),
        expression_basis=real(expression_basis),
        triangles=torch.from_numpy(triangles),
        landmarks=embedding,
        region=parts.region,
        region_names=parts.region_names,
        skin=parts.skin,
        face=parts.face,
        **others,
    )
    check_model(model, where)
    return model


def check_landmarks(where: str, mean: np.ndarray, landmarks: Sequence[int]) -> None:
    """Refuse vertices [68] that cannot be the landmarks of a face [V, 3] mm in the head frame: tables of
    another mesh, other axes."""
    at = np.asarray(landmarks)
    if at.shape != (68,) or at.min() < -1 or at.max() >= len(mean):
        raise InputError(
            f"{where}: landmarks: expected 68 vertices in 0..{len(mean) - 1}, or -1 where the mesh lacks the "
            f"point, got {at.size} from {at.min()} to {at.max()}"
        )
    if -1 in at[[RIGHT_EYE, LEFT_EYE]]:
        raise InputError(f"{where}: landmarks: expected the outer eye corners (36 and 45) among them")
    points = mean[at]
    right, left = points[RIGHT_EYE], points[LEFT_EYE]
    lower = points[[i for i in LOWER if at[i] >= 0]]
    wrong = right[0] >= left[0] or (len(lower) and lower[:, 1].max() >= min(right[1], left[1]))
    if at[NOSE_TIP] >= 0:
        wrong = wrong or points[NOSE_TIP, 2] <= max(right[2], left[2])
    if wrong:
        raise InputError(
            f"{where}: the landmark vertices are not where they belong on a face (eye corner 36 to the right,"
            " the nose in front of the eyes, mouth and chin below); the files belong to another mesh"
        )


def linear_albedo(mean: np.ndarray, basis: np.ndarray | None, where: str) -> dict[str, torch.Tensor]:
    """albedo_mean and albedo_basis, linear RGB, of colours mean + coefficients @ basis in sRGB.

    Linear light is no linear function of sRGB: the basis is its derivative at the mean, which holds for
    colours near it.

    mean: [V, 3], 0 to 1; basis: [K, V, 3] per standard deviation, or None; where: file, for messages.
    """
    if not (np.abs(mean) < COLOR_LARGEST).all():
        raise InputError(
            f"{where}: colours: expected a mean of 0 to 1, got {mean.min():.4g} to {mean.max():.4g}"
        )
    color = real(mean).clamp(0, 1).requires_grad_()
    light = linear_from_srgb(color)
    if basis is None:
        return {"albedo_mean": light.detach()}
    (slope,) = torch.autograd.grad(light.sum(), color)
    return {"albedo_mean": light.detach(), "albedo_basis": real(basis) * slope}


def columns(basis: np.ndarray, sigma: np.ndarray | float = 1.0) -> np.ndarray:
    """[3 V, K], as these files have them, times standard deviations [K] -> [K, V, 3] float32."""
    scaled = basis.astype(np.float32).T * np.float32(sigma).reshape(-1, 1)
    return np.ascontiguousarray(scaled).reshape(basis.shape[1], -1, 3)


def from_1(indices: np.ndarray) -> np.ndarray:
    """Indices as Matlab writes them, often as floating-point numbers and always from 1 -> int64 from 0.

    Raises:
        ValueError: they are no whole numbers.
    """
    whole = indices.astype(np.int64) if np.isfinite(indices).all() else None
    if whole is None or (whole != indices).any():
        raise ValueError("expected indices, got numbers that are not whole")
    return whole - 1


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Names of principal components, from 'NAME_1'."""
    return tuple(f"{name}_{k + 1}" for k in range(count))
