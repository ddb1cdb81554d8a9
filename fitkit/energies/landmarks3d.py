"""Energies on 3D landmarks: the model's points laid onto labelled ones by a closed-form map (E12, E14),
position maps (E13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fitkit.energies.base import Linearization, PlainEnergy, Residuals, Slot, all_views
from fitkit.energies.spec import DFM, OURS, PGN, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.energies.supervision import label
from fitkit.errors import DegenerateInputError, InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.io.options import Natural, Positive
from fitkit.models.face_model import FaceModel, Points
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample
from fitkit.scene.position_map import PositionMap
from fitkit.scene.state import SceneState

IBUG_ANCHORS = (36, 39, 42, 45, 33, 48, 54)  # eye corners, nose bottom, mouth corners
DFMVR_ANCHORS = (47, 50, 53, 56, 41, 79, 85)  # eye corners, nose tip, mouth corners among 101 points


@dataclass(frozen=True)
class AlignedLandmarks(PlainEnergy):
    """T(model point) - labelled point, over sigma_mm, [B, N, 3], with the map T that fits best. Sums or mean,
    see `reduction`.

    Args:
        basis: the model's N points. Labels: `points3d` [B, N, 3] mm, NaN = not known, any frame.
        transform: 'similarity' or 'affine' (12 degrees of freedom; it absorbs part of the identity's error).
        anchors: rows of the N points that T is fitted to; all of them when empty.
        attached: T follows the points, and gradients flow through it as well; else `freeze` fixes it.
    Raises:
        DegenerateInputError: a frame with fewer than 3 (similarity) or 4 (affine) known anchors, or
            degenerate ones.
    """

    basis: Points
    transform: Literal["similarity", "affine"] = "similarity"
    anchors: tuple[int, ...] = ()
    sigma_mm: float = 1.0
    attached: bool = False
    name: str = "lmk3d_align"
    reduction: str = "mean"
    fixed: tuple[Tensor, Tensor] | None = None  # linear part [B, 3, 3] and shift [B, 3] of T, set by freeze
    target: Tensor | None = None  # [B, N, 3] points instead of labelled ones
    present: Tensor | None = None  # [N] bool, points that the model has; None: all

    def freeze(self, state: SceneState, observations: Observations) -> AlignedLandmarks:
        return self if self.attached else self._fixed_at(state, observations)

    def _fixed_at(self, state: SceneState, observations: Observations) -> AlignedLandmarks:
        points, truth, known = self._points(state, observations)
        linear, shift = self._fit(points, truth, known)
        return replace(self, fixed=(linear.detach(), shift.detach()))

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        points, truth, known = self._points(state, observations)
        if self.fixed is not None:
            linear, shift = self.fixed
        elif self.attached:
            linear, shift = self._fit(points, truth, known)
        else:
            linear, shift = self._fit(points.detach(), truth, known)
        return Residuals((points @ linear.transpose(-1, -2) + shift[:, None] - truth) / self.sigma_mm, known)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        if self.attached and self.fixed is None:
            return self._linearize_attached(state, observations)
        frozen = self if self.fixed is not None else self._fixed_at(state, observations)
        residuals = frozen.residuals(state, observations)
        by_head = (frozen.fixed[0] / self.sigma_mm)[:, None].expand(*residuals.value.shape, 3)
        columns = self.basis.motion(*state.coefficients()).columns(by_head)
        return Linearization(residuals, (Slot(all_views(state), columns),))

    def _linearize_attached(self, state: SceneState, observations: Observations) -> Linearization:
        """Derivatives through T too, one pass back for each component of a frame's points."""
        with torch.enable_grad():
            values = dict(zip(("identity", "expression", "joints"), state.coefficients()))
            values = {n: v.detach().clone().requires_grad_() for n, v in values.items() if v is not None}
            each = state.replace(subject=torch.arange(state.num_views).to(state.subject), **values)
            residuals = self.residuals(each, observations)
            rows = [
                torch.autograd.grad(v.sum(), tuple(values.values()), retain_graph=True)
                for v in residuals.value.flatten(1).unbind(1)
            ]
        shape = residuals.value.shape
        residuals = replace(residuals, value=residuals.value.detach())
        columns = {
            name: torch.stack([row[k] for row in rows], 1).reshape(*shape, -1)
            for k, name in enumerate(values)
        }
        return Linearization(residuals, (Slot(all_views(state), columns),))

    def _points(self, state: SceneState, observations: Observations) -> tuple[Tensor, Tensor, Tensor]:
        truth = label(observations, "points3d", self.name) if self.target is None else self.target
        truth = truth.to(state.identity)
        points = self.basis.points(*state.coefficients())
        if truth.shape[1] != points.shape[1]:
            raise InputError(
                f"energy '{self.name}': expected {points.shape[1]} labelled points, got {truth.shape[1]}; "
                "the option 'vertices' says which vertices of the model they are"
            )
        known = torch.isfinite(truth).all(-1)
        if self.present is not None:
            known = known & self.present.to(known.device)
        return points, torch.nan_to_num(truth), known

    def _fit(self, points: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        used = known
        if self.anchors:
            rows = torch.zeros_like(known)
            rows[:, list(self.anchors)] = True
            used = known & rows
        if self.transform == "similarity":
            best = similarity_align(points, truth, used)
            return best.scale[:, None, None] * best.rotation, best.translation
        return affine_align(points, truth, used)


def affine_align(source: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares affine map that takes source points onto target points.

    Args:
        source, target: [B, N, 3]; valid: [B, N] bool.
    Returns:
        linear part [B, 3, 3] and shift [B, 3]: y = linear @ x + shift.
    Raises:
        DegenerateInputError: fewer than 4 valid pairs, or all in one plane.
    Source:
        PGN eq. 3-4. Differs: the points are centred first, so that a 3 x 3 system is solved.
    """
    w = valid.to(source)[..., None]
    count = w.sum((1, 2))
    if bool((count < 4).any()):
        raise DegenerateInputError(
            f"affine alignment: expected at least 4 pairs of points, got {int(count.min())}"
        )
    center_s, center_t = (w * source).sum(1) / count[:, None], (w * target).sum(1) / count[:, None]
    s, t = w * (source - center_s[:, None]), w * (target - center_t[:, None])
    moments = s.transpose(1, 2) @ s
    values = torch.linalg.eigvalsh(moments.detach())
    if not bool((values[:, 0] > 100 * torch.finfo(values.dtype).eps * values[:, 2]).all()):
        raise DegenerateInputError(
            "affine alignment: all points lie in one plane; expected at least 4 that do not"
        )
    linear = torch.linalg.solve(moments, s.transpose(1, 2) @ t).transpose(1, 2)
    return linear, center_t - (linear @ center_s[..., None])[..., 0]


def lmk3d_align(
    model: FaceModel,
    sigma_mm: float = 1.0,
    anchors: Sequence[int] = IBUG_ANCHORS,
    attached: bool = False,
    vertices: Sequence[int] = (),
) -> AlignedLandmarks:
    """E12: the 68 points after the similarity that fits the anchors, or the vertices of the model with these
    numbers. Source: DF-MVR eq. 5-6, with `attached` as in its code; its 101 points are vertices of its model
    (which ones is not published), DFMVR_ANCHORS its anchors among them.

    Raises:
        InputError: a vertex that the model lacks, or anchors beyond the points.
    """
    count = len(vertices) or 68
    if max(anchors, default=0) >= count:
        raise InputError(
            f"energy 'lmk3d_align': anchors: expected numbers below {count}, that of the points, got "
            f"{max(anchors)}"
        )
    if not vertices:
        basis, present = model.landmark_basis, model.landmarks.present
    else:
        if max(vertices) >= model.num_vertices:
            raise InputError(
                f"energy 'lmk3d_align': vertices: expected numbers below {model.num_vertices}, those of face "
                f"model '{model.name}', got {max(vertices)}"
            )
        basis, present = model.at_vertices(torch.tensor(list(vertices), device=model.device)), None
    return AlignedLandmarks(basis, "similarity", tuple(anchors), sigma_mm, attached, present=present)


def lmk_guided(
    model: FaceModel, sigma_mm: float = 2.0, transform: str = "similarity", attached: bool = True
) -> AlignedLandmarks:
    """E14: the 68 points laid onto those that a network or any 3D detector found. Source: PGN eq. 8, whose T
    is 'affine'."""
    return AlignedLandmarks(
        model.landmark_basis,
        transform,
        (),
        sigma_mm,
        attached,
        "lmk_guided",
        "sum",
        present=model.landmarks.present,
    )


@dataclass(frozen=True)
class PositionMapLandmarks(PlainEnergy):
    """lmk_posmap: the position map at the landmarks' places in the texture map against the labels, over
    sigma_px, [B, 68, 3], or [B, 68, 2] where labels have no depth (E13). Mean over the points. For training.

    Args:
        places: [68, 2] of the map's px (x, y), read bilinearly; NaN does not count; see `landmark_places`.
        source: 'labels' (`crop_points`) or 'landmarks' (detected, x and y only).
        jaw: whether detected points 0-16 count; those of an outline are no fixed points of the skin.
    Source: PGN section 4, training of its pose network (kernel l1).
    """

    places: Tensor
    sigma_px: float = 1.0
    source: Literal["labels", "landmarks"] = "labels"
    jaw: bool = True
    name = "lmk_posmap"
    reduction = "mean"

    def residuals(self, state: PositionMap, observations: Observations) -> Residuals:
        B = len(state.points)
        read, _ = sample(state.points, self.places.to(state.points)[None].expand(B, -1, -1))
        if self.source == "landmarks":
            truth, known = observations.landmarks.points.to(read), observations.landmarks.valid
            if not self.jaw:
                known = known & (torch.arange(known.shape[1], device=known.device) >= 17)
        else:
            truth = label(observations, "crop_points", self.name).to(read)
            known = torch.isfinite(truth).all(-1)
        value = (read[..., : truth.shape[-1]] - torch.nan_to_num(truth)) / self.sigma_px
        placed = torch.isfinite(self.places).all(-1).to(value.device)
        return Residuals(value, known.to(value.device) & placed)


@dataclass(frozen=True)
class PositionMapSupervision(PlainEnergy):
    """posmap_sup: the position map at the vertices' places in the texture map against the labels, over
    sigma_px, [B, U, 3]. Mean over the places. For training.

    Args:
        places: [U, 2] of the map's px (x, y), read bilinearly; owner: [U] int64, the vertex of each. Vertices
            at a seam have two places.
    Labels: `crop_vertices`. Source: PRNet (Feng et al., ECCV 2018) eq. 3, which takes every texel.
    """

    places: Tensor
    owner: Tensor
    sigma_px: float = 1.0
    name = "posmap_sup"
    reduction = "mean"

    def residuals(self, state: PositionMap, observations: Observations) -> Residuals:
        read, _ = sample(state.points, self.places.to(state.points)[None].expand(len(state.points), -1, -1))
        truth = label(observations, "crop_vertices", self.name).to(read)[:, self.owner.to(read.device)]
        return Residuals((read - torch.nan_to_num(truth)) / self.sigma_px, torch.isfinite(truth).all(-1))


def vertex_places(model: FaceModel, size: tuple[int, int], region: str) -> tuple[Tensor, Tensor]:
    """Where the vertices of a region ('face', 'skin' or 'all') lie in a position map of (H, W) px: [U, 2] px
    (x, y), and the vertex of each place [U]."""
    _needs_uv(model)
    owner = torch.zeros(len(model.uv), dtype=torch.int64, device=model.uv.device)
    owner[model.uv_triangles.flatten()] = model.triangles.flatten()
    used = torch.zeros_like(owner, dtype=torch.bool)
    used[model.uv_triangles.flatten()] = True
    counted = used if region == "all" else used & getattr(model, region).to(owner.device)[owner]
    return _texels(model.uv[counted], size), owner[counted]


def _texels(uv: Tensor, size: tuple[int, int]) -> Tensor:
    """Texture coordinates [N, 2] -> px (x, y) of a map of (H, W); v points up, texel (0, 0) is the top-left
    one and its centre lies half a texel inside."""
    return torch.stack([uv[:, 0] * size[1] - 0.5, (1 - uv[:, 1]) * size[0] - 0.5], -1)


def _needs_uv(model: FaceModel) -> None:
    if model.uv is None:
        raise DegenerateInputError(
            f"model '{model.name}' has no texture coordinates, so it has no position map"
        )


def landmark_places(model: FaceModel, size: tuple[int, int]) -> Tensor:
    """Where the 68 points lie in a position map of (H, W) px over the model's texture coordinates, [68, 2] px
    (x, y); NaN for points that the model lacks."""
    _needs_uv(model)
    corners = model.uv[model.uv_triangles[model.landmarks.triangle]]  # [68, 3, 2]
    uv = (model.landmarks.barycentric[..., None].to(corners) * corners).sum(1)
    return torch.where(model.landmarks.present[:, None], _texels(uv, size), torch.nan)


def map_places(model: FaceModel, maps: PositionMap) -> Tensor:
    """Where the 68 points lie in these maps, see `landmark_places`."""
    if maps.places is None:
        return landmark_places(model, maps.points.shape[-2:]).to(maps.points)
    present = model.landmarks.present.to(maps.points.device)
    return torch.where(present[:, None], maps.places.to(maps.points), torch.nan)


# ---- recipes ----


@dataclass(frozen=True)
class AlignTerm(EnergyOptions):
    sigma_mm: Positive = 1.0  # standard deviation of a point
    anchors: tuple[Natural, ...] = IBUG_ANCHORS  # points that the similarity is fitted to
    attached: bool = False  # the similarity follows the points, and gradients flow through it as well
    # of the model, one for each labelled point; none: the 68 points
    vertices: tuple[Natural, ...] = ()


@dataclass(frozen=True)
class PositionMapTerm(EnergyOptions):
    sigma_px: Positive = 1.0  # standard deviation of a point, px of the crop
    # What is compared with, see PositionMapLandmarks; 'either': labels, or landmarks where a person has none,
    # without the jaw where it is an outline.
    source: Literal["labels", "landmarks", "either"] = "labels"


@dataclass(frozen=True)
class DenseMapTerm(EnergyOptions):
    sigma_px: Positive = 1.0  # standard deviation of a vertex, px of the crop
    region: Literal["all", "skin", "face"] = "face"  # the vertices that count


@dataclass(frozen=True)
class GuidedTerm(EnergyOptions):
    sigma_mm: Positive = 2.0  # standard deviation of a point, in the unit of the points it is laid onto
    transform: Literal["similarity", "affine"] = "similarity"  # PGN: 'affine'
    attached: bool = True  # gradients flow through the map as well
    source: Literal["labels", "position_map", "points3d"] = "labels"  # labelled, or predicted (constants)


def _make_position_map(context: Context, o: PositionMapTerm) -> PositionMapLandmarks:
    places = map_places(context.model, context.state)
    if o.source != "either":
        return PositionMapLandmarks(places, o.sigma_px, o.source)
    source, jaw = _either(context.observations, o)
    return PositionMapLandmarks(places, o.sigma_px, source, jaw)


def _either(observations: Observations, o: PositionMapTerm) -> tuple[str, bool] | None:
    """What people have to be compared with, and whether their detected jaw counts."""
    if o.source != "either":
        return None
    labels, marks = observations.labels, observations.landmarks
    there = labels is not None and labels.crop_points is not None
    return "labels" if there else "landmarks", there or marks.jaw == "surface"


def _make_dense_map(context: Context, o: DenseMapTerm) -> PositionMapSupervision:
    maps = context.state
    if maps.places is not None:
        raise InputError(
            "energy 'posmap_sup': expected a network that predicts position maps, got one that predicts the "
            "68 landmarks alone; leave the energy out"
        )
    return PositionMapSupervision(
        *vertex_places(context.model, tuple(maps.points.shape[-2:]), o.region), o.sigma_px
    )


def _make_guided(context: Context, o: GuidedTerm) -> AlignedLandmarks:
    target = None
    if o.source == "points3d":
        target = context.prediction.points3d.detach()
        if target.shape[1] != 68:
            raise InputError(
                "energy 'lmk_guided': expected predicted points [B, 68, 3] for source 'points3d', got "
                f"{list(target.shape)}"
            )
    if o.source == "position_map":
        maps = context.prediction.position_map
        points, places = maps.points.detach(), map_places(context.model, maps)
        target = sample(points, places[None].expand(len(points), -1, -1))[0]
    return replace(lmk_guided(context.model, o.sigma_mm, o.transform, o.attached), target=target)


SPECS = (
    EnergySpec(
        name="lmk3d_align",
        cls=AlignedLandmarks,
        make=lambda context, o: lmk3d_align(context.model, o.sigma_mm, o.anchors, o.attached, o.vertices),
        role="label",
        doc=EnergyDoc(
            formula="s R q_n + t - q'_n, similarity fitted to the anchors",
            unit="mm",
            source="DF-MVR eq. 5-6",
            uses=(use(DFM, "l2n", "1"),),
            gradient="the similarity is constant, or attached on request",
            id="E12",
        ),
        options=AlignTerm,
        needs=("points3d",),
        builder=lmk3d_align,
    ),
    EnergySpec(
        name="lmk_posmap",
        cls=PositionMapLandmarks,
        make=_make_position_map,
        role="label",
        doc=EnergyDoc(
            formula="X_UV(n) - L_n",
            unit="px of the crop",
            source="PGN section 4",
            uses=(use(PGN, "l1"),),
            gradient="to the texels around the 68 points",
            id="E13",
        ),
        options=PositionMapTerm,
        takes="position_map",
        needs=lambda o: frozenset({"crop_points"} if o.source == "labels" else ()),
        apart=_either,
        not_in_fits="a fit has no position maps; a network predicts them",
    ),
    EnergySpec(
        name="posmap_sup",
        cls=PositionMapSupervision,
        make=_make_dense_map,
        role="label",
        doc=EnergyDoc(
            formula="X_UV(v) - V_v, all vertices",
            unit="px of the crop",
            source="PRNet eq. 3",
            uses=(use(OURS, "l1"),),
            gradient="to the texels around the vertices",
        ),
        options=DenseMapTerm,
        takes="position_map",
        needs=("crop_vertices",),
        not_in_fits="a fit has no position maps; a network predicts them",
    ),
    EnergySpec(
        name="lmk_guided",
        cls=AlignedLandmarks,
        make=_make_guided,
        role="label",
        doc=EnergyDoc(
            formula="T X(a) - X_UV, T fitted to all points",
            unit="mm",
            source="PGN eq. 8",
            uses=(use(PGN, "l1", "1; T affine"),),
            gradient="through T as well, or T constant",
            id="E14",
        ),
        options=GuidedTerm,
        needs=lambda o: frozenset({"points3d"} if o.source == "labels" else ()),
        parts=lambda o: () if o.source == "labels" else (o.source,),
        builder=lmk_guided,
        reduction_of="sum",
    ),
)
