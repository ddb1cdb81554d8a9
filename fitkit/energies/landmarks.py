"""Landmark energies: reprojection (E9), eyelid gap (E10), lip gap (E11)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from fitkit.energies.base import Linearization, PlainEnergy, Residuals, Slot, all_views
from fitkit.energies.spec import DFM, MFN, MVD, MVF, OURS, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.energies.supervision import label
from fitkit.io.options import Positive
from fitkit.models.face_model import Columns, FaceModel, MotionOfPeople, Points
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.render.visibility import depth_maps, seen_by_depth
from fitkit.scene.projection import motion_columns, project_head_points, project_points
from fitkit.scene.state import SceneState

JAW = slice(0, 17)
EYE_PAIRS = ((37, 41), (38, 40), (43, 47), (44, 46))
# First point, end, mm. Measured for the built-in detector on rendered people: distance of its points from the
# model's, mean over the views of a person, in the image plane and one axis; hand-set points of a real scan
# lie 1 to 4 mm from the model's.
# First, end, mm.
OFFSET_SIGMA_MM = ((0, 17, 2.8), (17, 27, 1.6), (27, 31, 1.6), (31, 36, 1.0), (36, 48, 0.9), (48, 68, 1.4))
LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
# Weights of single points, as numbers of the 68 (slices from, to) and their weight; all others weigh 1.
POINT_WEIGHTS: dict[str, tuple[tuple[slice, float], ...]] = {
    "even": (),
    "dfmvr": ((slice(28, 31), 20.0), (slice(60, 68), 20.0)),  # DF-MVR eq. 4: nose ridge, inner lips
    "dfmvr_code": (
        (slice(28, 31), 20.0),
        (slice(36, 48), 20.0),
        (slice(60, 68), 20.0),
    ),  # with the eyes, as released
    # MFNet eq. 7 with the weights of DECA
    "mfnet": (
        (slice(5, 7), 2.0),
        (slice(10, 12), 2.0),
        (slice(27, 36), 1.5),
        (slice(30, 32), 3.0),
        (slice(35, 36), 3.0),
        (slice(48, 68), 1.5),
        (slice(48, 49), 3.0),
        (slice(54, 55), 3.0),
    ),
}
PointScheme = Literal["even", "dfmvr", "dfmvr_code", "mfnet"]
SIGHT_PX, SIGHT_MM = 96, 10.0  # of the depth map that tells hidden points, and how far behind it they lie


E = TypeVar("E", bound="LandmarkReprojection | LandmarkOffsets")


@dataclass(frozen=True)
class OfPeople(Generic[E]):
    """The energies of several people whose landmarks are one: the products of coefficients and shapes are
    computed person by person, because rounding depends on how many rows a matrix has. views: of each."""

    energies: tuple[E, ...]
    views: tuple[int, ...]

    def points(self, coefficients: Sequence[Tensor | None]) -> Tensor:
        """[B, 68, 3]"""
        each = self._split(coefficients)
        return torch.cat([energy._points(own) for energy, own in zip(self.energies, each)])

    def motion(self, coefficients: Sequence[Tensor | None]) -> Columns:
        each = self._split(coefficients)
        return MotionOfPeople(
            tuple(energy._motion(own) for energy, own in zip(self.energies, each)), self.views
        )

    def _split(self, coefficients: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
        # Copies: where an array lies in memory may decide how a library adds its numbers up.
        split = [
            [None] * len(self.views) if c is None else [p.clone() for p in c.split(self.views)]
            for c in coefficients
        ]
        return list(zip(*split))


@dataclass(frozen=True)
class LandmarkReprojection:
    """lmk2d: (projected landmark - observed point) / sigma, [B, 68, 2]. Sums: the points are independent.

    sigma_px: [B, 68] px of the crop. The 17 jaw points follow one of two rules, per view, fixed by `freeze`:
    'surface': the model's own jaw points; 'outline': of a profile line of skin vertices from the face centre
    to the jaw point, the vertex that projects farthest outwards, i.e. the visible outline; 'auto': whichever
    of the two rules explains all jaw points of all views better (they agree in a frontal view).
    points: weights of the single points, see POINT_WEIGHTS; hidden: points that the labels say are hidden
    count as well; facing: only points that no part of the model hides at the frozen state count.
    Source: E9 of the energy list: MVF-Net and MFNet landmark terms; profile lines: Zhu et al., "High-fidelity
    pose and expression normalization", CVPR 2015 (landmark marching), found here on the mesh instead of drawn
    by hand.
    """

    model: FaceModel
    sigma_px: Tensor
    jaw: str = "auto"
    jaw_vertices: Tensor | None = None  # [B, 17] int64, -1 = the model's own point; set by freeze
    points: PointScheme = "even"
    hidden: bool = True
    facing: bool = False
    seen: Tensor | None = None  # [B, 68] bool, set by freeze where `facing`
    people: OfPeople[LandmarkReprojection] | None = None

    name = "lmk2d"
    reduction = "sum"

    def freeze(self, state: SceneState, observations: Observations) -> LandmarkReprojection:
        seen = points_in_sight(self.model, state, observations) if self.facing else None
        return replace(self, seen=seen)._with_jaw(state, observations)

    def _with_jaw(self, state: SceneState, observations: Observations) -> LandmarkReprojection:
        """The rule for the jaw and its vertices fixed."""
        own = torch.full((state.num_views, 17), -1, dtype=torch.int64, device=state.expression.device)
        if self.jaw == "surface":
            return replace(self, jaw_vertices=own)
        outline = outline_vertices(self.model, state)
        if self.jaw == "outline":
            return replace(self, jaw_vertices=outline)
        by_surface = replace(self, jaw_vertices=own)
        by_outline = replace(self, jaw_vertices=outline)
        costs = []
        for energy in (by_surface, by_outline):
            r = energy.residuals(state, observations)
            s = (r.value * r.value).sum(-1)[:, JAW]
            costs.append(float(torch.where(r.valid[:, JAW], s / (1 + s / 9), torch.zeros_like(s)).sum()))
        return by_surface if costs[0] <= costs[1] else by_outline

    def join(
        self, parts: Sequence[LandmarkReprojection], views: Sequence[int]
    ) -> LandmarkReprojection | None:
        if any(_kind(p) != _kind(self) for p in parts):
            return None
        names = ("sigma_px", "jaw_vertices", *(("seen",) if self.facing else ()))
        joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return replace(self, **joined, people=OfPeople(tuple(parts), tuple(views)))

    @cached_property
    def _outline(self) -> tuple[Points, Tensor] | None:
        """The vertices that stand for jaw points, and for which, [B, 17] bool; None: for none of them."""
        slide = None if self.jaw_vertices is None else self.jaw_vertices >= 0
        if slide is None or not bool(slide.any()):
            return None
        return self.model.at_vertices(self.jaw_vertices.clamp_min(0)), slide

    def _points(self, coefficients: Sequence[Tensor | None]) -> Tensor:
        """Head-frame points [B, 68, 3] without their offsets."""
        if self.people is not None:
            return self.people.points(coefficients)
        head = self.model.landmark_basis.points(*coefficients)
        if self._outline is not None:
            outline, slide = self._outline
            jaw = torch.where(slide[..., None], outline.points(*coefficients), head[:, JAW])
            head = torch.cat([jaw, head[:, 17:]], 1)
        return head

    def _head(self, state: SceneState) -> Tensor:
        """Head-frame points [B, 68, 3]."""
        return self._points(state.coefficients()) + landmark_offset(state)

    def _motion(self, coefficients: Sequence[Tensor | None]) -> Columns:
        """Of the same points."""
        if self.people is not None:
            return self.people.motion(coefficients)
        motion = self.model.landmark_basis.motion(*coefficients)
        if self._outline is None:
            return motion
        outline, slide = self._outline
        return motion.with_first(outline.motion(*coefficients), slide)

    def _residuals(
        self, pixels: Tensor, in_front: Tensor, state: SceneState, observations: Observations
    ) -> Residuals:
        marks = observations.landmarks
        target = torch.where(marks.valid[..., None], marks.points, torch.zeros_like(marks.points)).to(pixels)
        value = (pixels - target) / self.sigma_px[..., None].to(pixels)
        valid = _counted(self, observations) & in_front
        weight = marks.confidence.to(pixels) * point_weights(self.points, pixels)
        return Residuals(value, valid, weight, state.subject)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        seen = project_head_points(self._head(state), state, all_views(state))
        return self._residuals(seen.pixels, seen.in_front, state, observations)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        views = all_views(state)
        head = self._head(state)
        seen = project_head_points(head, state, views, derivatives=True)
        inverse = 1 / self.sigma_px.to(head)
        by_head = seen.by_head * inverse[..., None, None]
        columns = motion_columns(by_head, head, self._motion(state.coefficients()))
        columns |= {name: by * inverse[..., None, None] for name, by in seen.by_camera.items()}
        columns["landmarks"] = offset_columns(by_head, range(68))
        return Linearization(
            self._residuals(seen.pixels, seen.in_front, state, observations), (Slot(views, columns),)
        )


def _counted(energy: LandmarkReprojection | LandmarkOffsets, observations: Observations) -> Tensor:
    """Points that may count, [B, 68] bool: seen, and on the model."""
    valid = observations.landmarks.valid
    valid = valid & energy.model.landmarks.present.to(valid.device)
    if energy.seen is not None:
        valid = valid & energy.seen
    if energy.hidden:
        return valid
    return valid & label(observations, "visible", energy.name).to(valid.device)


def _kind(energy: LandmarkReprojection | LandmarkOffsets) -> tuple:
    """What energies have in common that can be one."""
    return energy.model, energy.points, energy.hidden, energy.facing


def points_in_sight(model: FaceModel, state: SceneState, observations: Observations) -> Tensor:
    """Points that no part of the model hides, [B, 68] bool: nothing of it lies more than 10 mm in front of
    them. Those beside the model, and beside the picture, are not hidden: a face that is predicted elsewhere
    is no way around an energy.
    """
    with torch.no_grad():
        reduction = max(observations.size) / SIGHT_PX
        maps = depth_maps(state.vertices(model), model.triangles, state, observations.size, reduction)
        points = model.landmark_basis.points(*state.coefficients())
        pixels = project_head_points(points, state, all_views(state)).pixels
        most = pixels.new_tensor([observations.size[1] - 1, observations.size[0] - 1])
        pixels = torch.minimum(torch.nan_to_num(pixels).clamp_min(0), most)
        maps = torch.where(maps > 0, maps, torch.inf)
        return seen_by_depth(pixels, state.pose.apply(points)[..., 2], maps, reduction, SIGHT_MM)


def point_weights(scheme: PointScheme, like: Tensor) -> Tensor:
    """Weights [68] of the points in one of POINT_WEIGHTS."""
    weights = like.new_ones(68)
    for part, weight in POINT_WEIGHTS[scheme]:
        weights[part] = weight
    return weights


def offset_sigma() -> Tensor:
    """[68] mm: standard deviation, along each axis, of the part of a landmark's error that is the same in all
    photos of a person."""
    sigma = torch.empty(68)
    for first, last, value in OFFSET_SIGMA_MM:
        sigma[first:last] = value
    return sigma


def landmark_offset(state: SceneState) -> Tensor:
    """Offsets of the 68 points in each frame, [B, 68, 3] mm, head frame; zeros where the state has none."""
    if state.landmark_offset is None:
        return state.expression.new_zeros(state.num_views, 68, 3)
    return state.landmark_offset[state.subject]


def offset_columns(by_head: Tensor, points: Sequence[int]) -> Tensor:
    """Derivatives of N values by the offsets of all 68 points, [G, N, D, 204]: by_head [G, N, D, 3], where
    value n moves with point points[n]."""
    G, N, D, _ = by_head.shape
    columns = by_head.new_zeros(G, N, D, 68, 3)
    columns[:, torch.arange(N), :, torch.as_tensor(list(points))] = by_head.transpose(0, 1)
    return columns.flatten(3)


@dataclass(frozen=True)
class LandmarkOffsets:
    """lmk2d_eye, lmk2d_lip: ((k_i - k_j) - (l_i - l_j)) / sigma for opposite lid or lip points, [B, n, 2].

    Blind to a common shift, so it survives small pose errors. sigma_px: [B, 68] px of one point, of the crop;
    points, hidden, facing, people: see LandmarkReprojection; of the two weights a pair has the smaller.
    Source: MFNet eq. 8 and 9, which do not print the pairs; these are ours.
    """

    model: FaceModel
    sigma_px: Tensor
    pairs: tuple[tuple[int, int], ...]
    name: str
    points: PointScheme = "even"
    hidden: bool = True
    facing: bool = False
    seen: Tensor | None = None  # [B, 68] bool, set by freeze where `facing`
    people: OfPeople[LandmarkOffsets] | None = None
    reduction = "sum"

    def freeze(self, state: SceneState, observations: Observations) -> LandmarkOffsets:
        if not self.facing:
            return self
        return replace(self, seen=points_in_sight(self.model, state, observations))

    def join(self, parts: Sequence[LandmarkOffsets], views: Sequence[int]) -> LandmarkOffsets | None:
        if any(_kind(p) != _kind(self) for p in parts):
            return None
        names = ("sigma_px", *(("seen",) if self.facing else ()))
        joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return replace(self, **joined, people=OfPeople(tuple(parts), tuple(views)))

    def _parts(self, observations: Observations):
        a = torch.tensor([p[0] for p in self.pairs], device=self.sigma_px.device)
        b = torch.tensor([p[1] for p in self.pairs], device=self.sigma_px.device)
        sigma = (self.sigma_px[:, a] ** 2 + self.sigma_px[:, b] ** 2).sqrt()
        return a, b, sigma

    def _residuals(self, pixels, in_front, state, observations: Observations, a, b, sigma) -> Residuals:
        marks = observations.landmarks
        counted = _counted(self, observations) & in_front
        valid = counted[:, a] & counted[:, b]
        target = (marks.points[:, a] - marks.points[:, b]).to(pixels)
        target = torch.where(valid[..., None], target, torch.zeros_like(target))
        value = (pixels[:, a] - pixels[:, b] - target) / sigma[..., None].to(pixels)
        single = point_weights(self.points, pixels)
        confidence = torch.minimum(marks.confidence[:, a], marks.confidence[:, b]).to(pixels)
        return Residuals(value, valid, confidence * torch.minimum(single[a], single[b]), state.subject)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        head = self._head(state)
        seen = project_head_points(head, state, all_views(state))
        return self._residuals(seen.pixels, seen.in_front, state, observations, *self._parts(observations))

    def _points(self, coefficients: Sequence[Tensor | None]) -> Tensor:
        """Head-frame points [B, 68, 3] without their offsets."""
        if self.people is not None:
            return self.people.points(coefficients)
        return self.model.landmark_basis.points(*coefficients)

    def _motion(self, coefficients: Sequence[Tensor | None]) -> Columns:
        """Of the same points."""
        if self.people is not None:
            return self.people.motion(coefficients)
        return self.model.landmark_basis.motion(*coefficients)

    def _head(self, state: SceneState) -> Tensor:
        return self._points(state.coefficients()) + landmark_offset(state)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        a, b, sigma = self._parts(observations)
        motion = self._motion(state.coefficients())
        seen = project_head_points(self._head(state), state, all_views(state), derivatives=True)
        inverse = (1 / sigma).to(seen.pixels)[..., None, None]
        parts = []
        for index in (a, b):
            by_head = seen.by_head[:, index] * inverse
            columns = motion_columns(by_head, seen.head[:, index], motion.select(index))
            columns["landmarks"] = offset_columns(by_head, index.tolist())
            columns |= {name: by[:, index] * inverse for name, by in seen.by_camera.items()}
            parts.append(columns)
        columns = {name: parts[0][name] - parts[1][name] for name in parts[0]}
        residuals = self._residuals(seen.pixels, seen.in_front, state, observations, a, b, sigma)
        return Linearization(residuals, (Slot(all_views(state), columns),))


def eye_offsets(
    model: FaceModel,
    sigma_px: Tensor,
    points: PointScheme = "even",
    hidden: bool = True,
    facing: bool = False,
) -> LandmarkOffsets:
    return LandmarkOffsets(model, sigma_px, EYE_PAIRS, "lmk2d_eye", points, hidden, facing)


def lip_offsets(
    model: FaceModel,
    sigma_px: Tensor,
    points: PointScheme = "even",
    hidden: bool = True,
    facing: bool = False,
) -> LandmarkOffsets:
    return LandmarkOffsets(model, sigma_px, LIP_PAIRS, "lmk2d_lip", points, hidden, facing)


PROFILE_HALF_WIDTH_MM = 4.0


@functools.lru_cache(maxsize=8)
def jaw_profiles(model: FaceModel) -> Tensor:
    """Skin vertices on the line from the face centre to each jaw point, [17, n] int64, filled up with -1.

    The line of jaw point j is where the half plane through the head's depth axis and that point cuts the mean
    face; it ends at the jaw point, so the neck and the ears are no candidates.
    """
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    center = (points[27, :2] + points[8, :2]) / 2
    offset = model.mean[:, :2] - center
    rows = []
    for j in range(17):
        direction = points[j, :2] - center
        reach = direction.norm()
        direction = direction / reach
        along = offset @ direction
        across = (offset[:, 0] * direction[1] - offset[:, 1] * direction[0]).abs()
        near = model.skin & (across < PROFILE_HALF_WIDTH_MM) & (along > 0.35 * reach) & (along < reach)
        near &= model.mean[:, 2] > points[j, 2] - 2
        rows.append(near.nonzero().squeeze(1))
    width = max(1, max(len(r) for r in rows))
    table = torch.full((17, width), -1, dtype=torch.int64, device=model.device)
    for j, r in enumerate(rows):
        table[j, : len(r)] = r
    return table


def outline_vertices(model: FaceModel, state: SceneState) -> Tensor:
    """The skin vertex that stands for each jaw point in an outline annotation, [B, 17] int64, -1 = the
    model's point.

    On its profile line the jaw point slides to the vertex that projects farthest from the face centre,
    measured along the line's direction in the image.
    """
    table = jaw_profiles(model)
    candidates = table.clamp_min(0)
    B = state.num_views
    subset = model.at_vertices(candidates.reshape(-1))
    pixels = project_points(subset, state).pixels.reshape(B, 17, -1, 2)
    marks = project_points(model.landmark_basis, state).pixels
    center = (marks[:, 27] + marks[:, 8]) / 2
    frame = project_directions(model, state)  # [B, 17, 2]
    reach = ((pixels - center[:, None, None]) * frame[:, :, None]).sum(-1)
    reach = torch.where(table[None] >= 0, reach, torch.full_like(reach, -torch.inf))
    best, index = reach.max(-1)
    own = ((marks[:, JAW] - center[:, None]) * frame).sum(-1)
    vertex = candidates[None].expand(B, -1, -1).gather(2, index[..., None]).squeeze(-1)
    return torch.where(best > own, vertex, torch.full_like(vertex, -1))


def project_directions(model: FaceModel, state: SceneState) -> Tensor:
    """Image directions [B, 17, 2] of the jaw profile lines: the head's (x, y) direction of each line, rolled
    with the head but not foreshortened by its yaw, so that 'outwards' keeps its meaning in a profile view."""
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    direction = points[JAW, :2] - (points[27, :2] + points[8, :2]) / 2
    direction = direction / direction.norm(dim=-1, keepdim=True)
    up = state.pose.rotation[:, :2, 1]
    up = up / up.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    right = torch.stack([-up[:, 1], up[:, 0]], -1)  # the head's +x in an image with y down
    return direction[None, :, :1] * right[:, None] + direction[None, :, 1:] * up[:, None]


# ---- recipes ----


@dataclass(frozen=True)
class LandmarkOptions(EnergyOptions):
    points: PointScheme = "even"  # weights of the single points, see POINT_WEIGHTS
    hidden: bool = True  # points that the labels say are hidden count as well
    facing: bool = False  # points that another part of the model hides do not count


@dataclass(frozen=True)
class LandmarkTraining(LandmarkOptions):
    """What a fit measures, or knows by itself."""

    sigma_px: Positive = 3.0  # standard deviation of a point, for a 224-pixel crop
    jaw: Literal["outline", "surface"] = "surface"  # what to take points 0-16 for where the data do not say


def point_sigma(context: Context, o: LandmarkTraining) -> Tensor:
    """[B, 68] px of the crop: standard deviation of each point."""
    if context.landmark_sigma is not None:
        return context.landmark_sigma
    observations = context.observations
    return torch.full_like(observations.landmarks.points[..., 0], o.sigma_px * observations.pixel_unit)


def jaw_rule(observations: Observations, o: LandmarkTraining) -> str:
    """What points 0-16 are, where no fit has found out."""
    known = observations.landmarks.jaw
    return known if known != "auto" else o.jaw


def _make(context: Context, o: LandmarkTraining) -> LandmarkReprojection:
    jaw = jaw_rule(context.observations, o) if context.jaw is None else context.jaw
    sigma = point_sigma(context, o)
    return LandmarkReprojection(context.model, sigma, jaw, points=o.points, hidden=o.hidden, facing=o.facing)


def _labels(o: LandmarkOptions) -> frozenset[str]:
    return frozenset() if o.hidden else frozenset({"visible"})


@dataclass(frozen=True)
class LandmarkLikelihood(PlainEnergy):
    """landmark_nll: ((p - l) / s, sqrt(4 log(s / s_0))), [B, 68, 3]. Sums. For training.

    p: [B, 68, 2] px and s: [B, 68] px, the landmarks that a network finds and their standard deviations; l:
    those given; s_0 = FLOOR. With kernel 'sq' the cost is the negative logarithm of the normal likelihood of
    both coordinates up to a constant, so the network learns how far off each point is. Jaw points count where
    both are points of the skin, or both the outline. present: [68] bool, points that count at all; jaw: what
    the given points 0-16 are; points: see LandmarkReprojection.
    Source: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?",
    NeurIPS 2017, eq. 5.
    """

    present: Tensor
    jaw: str = "surface"
    points: PointScheme = "even"
    name = "landmark_nll"
    FLOOR = 0.01  # px, below every sigma, so that the root has a derivative

    def residuals(self, state: Landmarks, observations: Observations) -> Residuals:
        marks, device = observations.landmarks, state.points.device
        valid = marks.valid.to(device) & self.present.to(device)
        if self.jaw != state.jaw:
            valid = valid & (torch.arange(68, device=device) >= JAW.stop)
        target = torch.where(valid[..., None], marks.points.to(state.points), 0.0)
        sigma = state.sigma.clamp_min(2 * self.FLOOR)[..., None]
        value = torch.cat([(state.points - target) / sigma, (4 * (sigma / self.FLOOR).log()).sqrt()], -1)
        weight = marks.confidence.to(value) * point_weights(self.points, value)
        return Residuals(value, valid, weight)


@dataclass(frozen=True)
class LikelihoodTraining(EnergyOptions):
    points: PointScheme = "even"  # weights of the single points, see POINT_WEIGHTS
    jaw: Literal["outline", "surface"] = "surface"  # what to take points 0-16 for where the data do not say


SPECS = (
    EnergySpec(
        name="landmark_nll",
        cls=LandmarkLikelihood,
        make=lambda context, o: LandmarkLikelihood(
            context.model.landmarks.present, jaw_rule(context.observations, o), o.points
        ),
        role="landmark",
        doc=EnergyDoc(
            formula="(p - l) / s, sqrt(4 log(s / s_0)), p and s predicted",
            unit="px of the crop",
            source="Kendall and Gal 2017, eq. 5",
            uses=(use(OURS, "sq"),),
            gradient="to the landmarks and their standard deviations",
        ),
        options=LikelihoodTraining,
        takes="landmarks",
        apart=jaw_rule,
        not_in_fits="a fit has no landmarks of its own; a network predicts them",
    ),
    EnergySpec(
        name="lmk2d",
        cls=LandmarkReprojection,
        make=_make,
        role="landmark",
        doc=EnergyDoc(
            formula="Pr(v_n) - l_n",
            unit="px of the crop",
            source="MVF-Net, DF-MVR eq. 4, Shu et al. eq. 5, MFNet eq. 7",
            uses=(
                use(MVF, "sq", "0.1, then 1"),
                use(DFM, "l2n", "0.02; 20 on nose and inner lips"),
                use(MVD, "l1"),
                use(MFN, "l1", "1"),
                use(OURS, "huber"),
            ),
            gradient="exact; the jaw's rule and vertices are frozen",
            id="E9",
        ),
        options=LandmarkOptions,
        training=LandmarkTraining,
        needs=_labels,
        apart=jaw_rule,
    ),
    EnergySpec(
        name="lmk2d_eye",
        cls=LandmarkOffsets,
        make=lambda context, o: eye_offsets(
            context.model, point_sigma(context, o), o.points, o.hidden, o.facing
        ),
        role="landmark",
        doc=EnergyDoc(
            formula="(k_i - k_j) - (l_i - l_j), opposite lid points",
            unit="px of the crop",
            source="MFNet eq. 8",
            uses=(use(MFN, "l1", "1"), use(OURS, "huber", "0.5")),
            gradient="exact; blind to a common shift",
            id="E10",
        ),
        options=LandmarkOptions,
        training=LandmarkTraining,
        needs=_labels,
        builder=eye_offsets,
    ),
    EnergySpec(
        name="lmk2d_lip",
        cls=LandmarkOffsets,
        make=lambda context, o: lip_offsets(
            context.model, point_sigma(context, o), o.points, o.hidden, o.facing
        ),
        role="landmark",
        doc=EnergyDoc(
            formula="(k_i - k_j) - (l_i - l_j), opposite inner lip points",
            unit="px of the crop",
            source="MFNet eq. 9",
            uses=(use(MFN, "l1", "0.5"), use(OURS, "huber", "0.5")),
            gradient="exact; blind to a common shift",
            id="E11",
        ),
        options=LandmarkOptions,
        training=LandmarkTraining,
        needs=_labels,
        builder=lip_offsets,
    ),
)
