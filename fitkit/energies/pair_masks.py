"""What two views of a person share, told as one of the papers tells it: the option `mask` of energies between
views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fitkit.energies.flow_correspondence import FlowImages
from fitkit.energies.masks import (
    Side,
    covis_bbox,
    covis_lmk,
    covis_tri,
    covis_vertex,
    outside_mouth,
    vis_normal,
)
from fitkit.errors import InputError
from fitkit.models.face_model import FaceModel
from fitkit.render.cross_view import CrossViews, SharedPixels
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

PairMask = Literal["zbuffer", "vertex", "triangle", "landmarks", "box"]


class PairOptions(Protocol):
    """What energies between views have in common: which pixels count."""

    @property
    def mask(self) -> PairMask: ...

    @property
    def depth_tolerance_mm(self) -> float: ...

    @property
    def min_cosine(self) -> float: ...


def shared_pixels(
    model: FaceModel,
    state: SceneState,
    photos: FlowImages,
    pairs: Sequence[tuple[int, int]],
    options: PairOptions,
) -> SharedPixels:
    """The pixels of P ordered pairs (a, b) of views that show the same skin, as the options tell them."""
    chosen = pair_mask(options.mask, model, state, pairs)
    tolerance, cosine = options.depth_tolerance_mm, options.min_cosine
    return SharedPixels.of(model, state, photos.mask, photos.reduction, pairs, tolerance, cosine, chosen)


def pair_mask(
    name: PairMask, model: FaceModel, state: SceneState, pairs: Sequence[tuple[int, int]]
) -> Callable[[CrossViews], Tensor] | None:
    """What tells which pixels of view b show surface that view a sees too, for P ordered pairs (a, b): views
    -> [P, h, w] bool.

    None for 'zbuffer', the test that `SharedPixels` makes by itself; 'vertex': surface whose vertices face
    both cameras (PGN eq. 5); 'triangle': triangles that both views see, and those around (MGCNet);
    'landmarks', 'box': the half of the face that both see, cut along the midline (MVF-Net) or by a box of
    landmarks and without the mouth (MFNet eq. 5).
    """
    if name == "zbuffer":
        return None
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))

    def shared(views: CrossViews) -> Tensor:
        fragments = replace(
            views.fragments, **{f.name: getattr(views.fragments, f.name)[b] for f in fields(views.fragments)}
        )
        if name == "triangle":
            return covis_tri(views.fragments.triangle[a], fragments.triangle, model.triangles)[:, 0] > 0.5
        if name == "vertex":
            facing = vis_normal(state.pose.apply(state.vertices(model)), model.triangles, state.camera.kind)
            return covis_vertex(facing[a], facing[b], fragments, model.triangles)[:, 0] > 0.5
        points = halving_points(model, state)
        return half_faces(name, points, state, pairs, b, fragments.covered, views.reduction)

    return shared


def halving_points(model: FaceModel, state: SceneState) -> Tensor:
    """The model's points that a face is halved by, [B, 68, 2] px of the crops, constant.

    Raises:
        InputError: the model lacks some of them.
    """
    if model.landmarks.missing:
        raise InputError(
            f"halves of faces: expected a model with all 68 landmarks, but '{model.name}' lacks "
            f"{len(model.landmarks.missing)} of them; take mask=zbuffer, and region=rendered in photo_pairs"
        )
    return project_points(model.landmark_basis, state).pixels.detach()


def half_faces(
    name: Literal["landmarks", "box"],
    points: Tensor,
    state: SceneState,
    pairs: Sequence[tuple[int, int]],
    of: Sequence[int],
    face: Tensor,
    reduction: float = 1.0,
) -> Tensor:
    """Of the face in view of[g] the half that both views of pair g see, [P, h, w] bool.

    points: [B, 68, 2] px of the crops; face: [P, h, w] bool in these views; reduction: crop pixel p lies at
    (p + 1/2) / reduction - 1/2 in them.
    """
    points = (points + 0.5) / reduction - 0.5
    halves = []
    for g, side in enumerate(shared_sides(state, pairs)):
        one, covered = points[of[g]][None], face[g][None]
        half = (
            covis_lmk(one, covered, side)
            if name == "landmarks"
            else covis_bbox(one, covered & outside_mouth(one, face.shape[-2:]), side, 3 / reduction)
        )
        halves.append(half[0, 0] > 0.5)
    return torch.stack(halves) if halves else face


def shared_sides(state: SceneState, pairs: Sequence[tuple[int, int]]) -> list[Side]:
    """The subject's side that the two views of each pair see together: that on which their mean line of sight
    comes from."""
    towards = -state.pose.rotation[:, 2].detach()  # to the camera, in the head frame, x to the subject's left
    return ["left" if float((towards[a] + towards[b])[0]) > 0 else "right" for a, b in pairs]
