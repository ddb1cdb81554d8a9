"""A scene in the coefficients of another face model: the same surface, as near as the other model comes to
it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.optimize import lsq_linear
from torch import Tensor

from fitkit.errors import InputError
from fitkit.fitting.detail import personal_model
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.laplacian import bending, cotangent_laplacian, symmetric_factors
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.patch import Patch
from fitkit.geometry.rotation import skew, so3_exp
from fitkit.geometry.rows import rows_at
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.coefficients import shapes_by_name
from fitkit.models.correspondence import SKIN_WEIGHT, Correspondence, correspondence, outer
from fitkit.models.face_model import FaceModel, Points
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

Expressions = Literal["auto", "names", "surface"]

# What the whole surface is worth against the priors of the coefficients: independent points with a standard
# deviation along the normal; along the surface, where models differ in what they take for the same point, it
# counts TANGENT times as much.
POINTS, SIGMA_MM, TANGENT = 1000.0, 0.7, 0.2
MOST_VERTICES = 8000  # that coefficients are solved with
# Standard deviations of where the head of one person is in the other model's frame, from where its mean is.
SHIFT_MM, TURN_RAD = 5.0, 0.05
FRAME_STEPS, JOINT_STEPS, STEP_END = 3, 10, 1e-3
SHAPE_SIGMA = 0.3  # of the weight of a blend shape, around that of its name
HELD_SIGMA = 1e-6  # of what does not change
ON = 0.05  # weight, or rad of a joint, from which on it counts as used
SMOOTH_MM = 1.5  # over which the displacement is smoothed
PULL = 1e-3  # of the displacement to 0 where nothing is known: it ends within 8 mm
STEEPEST = 0.5  # least cosine between the normals of both surfaces where the displacement is measured


@dataclass(frozen=True)
class Distance:
    """How far two surfaces are apart, mm: from the vertices of each one's face to the surface of the other,
    where this has something that faces the same way (it may lack the inside of nostrils). mean: of the means
    of both directions; largest: of all."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Retargeted:
    """A scene with another face model, the target.

    state: in its head frame; displacement: [V] mm, see `FitResult`, or None; method: 'names' or 'surface';
    left_out: shapes and joints that are on and were not carried over; neutral, coefficients: distance of the
    neutral faces, with and without the displacement; views: of the faces of all photos; away: [V] mm, from
    each vertex of the neutral target to the surface of the source, NaN where nothing corresponds.
    """

    state: SceneState
    displacement: Tensor | None
    method: Literal["names", "surface"]
    left_out: tuple[str, ...]
    neutral: Distance
    coefficients: Distance
    views: Distance
    away: Tensor


@torch.no_grad()
def retarget(
    state: SceneState,
    source: FaceModel,
    target: FaceModel,
    displacement: Tensor | None = None,
    expression: Expressions = "auto",
    detail: bool = True,
) -> Retargeted:
    """The state of one person (S = 1) with face model `source` as one with `target`, all on the CPU.

    Args:
        displacement: [V] mm of the source, see `FitResult`, or None; expression, detail: see
            `fitkit.fitting.convert.convert`.
    Raises:
        InputError: the models cannot be laid onto each other; expressions by names where there are none.
    """
    named, method, left_out = _by_names(state, source, target, expression)
    match = _Match.of(source, target)
    mine = source if displacement is None else personal_model(source, state, displacement)
    neutral = state.neutral(mine)[0].double()
    identity, turn, shift = _identity(match, neutral)
    neutral = neutral @ turn.T + shift
    joints = state.expression.new_zeros(state.num_views, target.num_joints, 3) if target.num_joints else None
    moved = state.replace(
        identity=identity.float()[None],
        expression=named,
        pose=_reframed(state.pose, turn, shift),
        illumination=_turned(state.illumination, turn),
        albedo=None,
        landmark_offset=None,
        joints=joints,
    )
    plain = moved.neutral(target)[0].double()
    along = _displacement(match, neutral, plain).float() if detail else None
    theirs = target if along is None else personal_model(target, moved, along)
    first, again = _different(state)
    views = state.select(first).vertices(mine).double() @ turn.T + shift
    if method == "surface" or target.num_joints:
        found = _expressions(match, moved.select(first), neutral, views, held=method == "names").select(again)
        moved = moved.replace(expression=found.expression, joints=found.joints)
    ours = moved.select(first).vertices(theirs).double()
    distance, away = match.distance(neutral, moved.neutral(theirs)[0].double())
    each = [match.distance(a, b)[0] for a, b in zip(views, ours)]
    return Retargeted(
        moved,
        along,
        method,
        left_out,
        distance,
        match.distance(neutral, plain)[0],
        Distance(float(np.mean([each[i].mean for i in again])), max(d.largest for d in each)),
        away,
    )


def _by_names(
    state: SceneState, source: FaceModel, target: FaceModel, expression: Expressions
) -> tuple[Tensor, Literal["names", "surface"], tuple[str, ...]]:
    """The weights [B, K'] of the target's shapes that have the names of the source's, 0 of others; how the
    expressions are to be found; and what of the source's is on and has no such name."""
    if expression not in get_args(Expressions):
        raise InputError(f"expression: expected {', '.join(get_args(Expressions))}, got {expression!r}")
    blend = all(m.coefficients["expression"].kind == "blend_shape" for m in (source, target))
    table = shapes_by_name(source.expression_names, target.expression_names) * blend
    if expression == "names" and not bool(table.any()):
        raise InputError(
            f"expression: face models '{source.name}' and '{target.name}' have no blend shapes of the same "
            "name; use 'surface'"
        )
    lost = (state.expression.abs() > ON).any(0) & ~(table != 0).any(0)
    left_out = [name for name, gone in zip(source.expression_names, lost.tolist()) if gone]
    if state.joints is not None:
        names = source.coefficients["joints"].names[::3]
        turned = (state.joints.norm(dim=2) > ON).any(0).tolist()
        left_out += [name.removesuffix("_x") for name, on in zip(names, turned) if on]
    method: Literal["names", "surface"] = "names"
    if expression == "surface" or (expression == "auto" and (left_out or not bool(table.any()))):
        method, left_out = "surface", []
    return state.expression @ table.to(state.expression).T, method, tuple(left_out)


def _different(state: SceneState) -> tuple[list[int], list[int]]:
    """The first of all frames with the same expression and joints, and which of these each frame is like."""
    _, expression, joints = state.coefficients()
    rows = expression if joints is None else torch.cat([expression, joints.flatten(1)], 1)
    found = rows.unique(dim=0, return_inverse=True)[1].tolist()
    first = {kind: frame for frame, kind in reversed(list(enumerate(found)))}
    kinds = sorted(first, key=first.__getitem__)
    return [first[k] for k in kinds], [kinds.index(k) for k in found]


@dataclass(frozen=True)
class _Match:
    """Two models and where they are alike. vertex: [N] int64, vertices of the target that coefficients are
    solved with; weight: [N], what each counts, of POINTS in all."""

    source: FaceModel
    target: FaceModel
    on: Correspondence
    vertex: Tensor
    weight: Tensor

    @staticmethod
    def of(source: FaceModel, target: FaceModel) -> _Match:
        on = correspondence(source, target)
        vertex = (on.weight > 0).nonzero()[:, 0]
        vertex = vertex[:: 1 + len(vertex) // MOST_VERTICES]
        _, area = cotangent_laplacian(target.mean.numpy(), target.triangles.numpy())
        weight = on.weight[vertex] * torch.from_numpy(area)[vertex]
        return _Match(source, target, on, vertex, POINTS / SIGMA_MM**2 * weight / weight.sum())

    def carried(self, surface: Tensor) -> tuple[Tensor, Tensor]:
        """A surface of the source, vertices [V, 3], as points of the target's vertices [V', 3] and the
        normals there."""
        normal = vertex_normals(surface[None], self.source.triangles)[0]
        return self.on.carry(surface, self.source), F.normalize(self.on.carry(normal, self.source), dim=1)

    def roots(self, normal: Tensor) -> Tensor:
        """Square roots of the weights [N, 3, 3] of the distances from points with these normals [N, 3]."""
        along = normal[:, :, None] * normal[:, None]
        root = TANGENT * torch.eye(3).to(normal) + (1 - TANGENT) * along
        return self.weight.sqrt().to(normal)[:, None, None] * root

    def distance(self, one: Tensor, other: Tensor) -> tuple[Distance, Tensor]:
        """Between vertices [V, 3] of the source and [V', 3] of the target; and [V'] mm of each vertex of the
        target, NaN where nothing corresponds."""
        ours = Patch.of(one, self.source.triangles, outer(self.source))
        theirs = Patch.of(other, self.target.triangles, outer(self.target))
        there = ours.closest(theirs.vertices, theirs.normals)
        back = theirs.closest(ours.vertices, ours.normals)
        alike = (self.target.face & (self.on.weight > 0)).numpy()[theirs.vertex]
        apart = (
            _counting(there.distance, alike, there.same),
            _counting(back.distance, self.source.face.numpy()[ours.vertex], back.same),
        )
        away = torch.full((self.target.num_vertices,), torch.nan)
        known = (self.on.weight > 0).numpy()[theirs.vertex]
        away[theirs.vertex[known]] = torch.from_numpy(there.distance[known]).float()
        return Distance(float(np.mean([d.mean() for d in apart])), float(max(d.max() for d in apart))), away


def _counting(distance: np.ndarray, face: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The distances of the face that count: where both surfaces are the same, if they are anywhere."""
    return distance[face & same if (face & same).any() else face]


def _identity(match: _Match, neutral: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The identity [K] of the target that comes nearest to a neutral surface of the source, vertices [V, 3]
    in its frame, and how these move into the target's frame, y = turn @ x + shift."""
    target, K = match.target, match.target.num_identity
    place, normal = (values[match.vertex] for values in match.carried(neutral))
    mean, rows = target.mean[match.vertex].double(), rows_at(target.rows, match.vertex)[..., :K].double()
    before = match.on.carry(match.source.mean.double(), match.source)[match.vertex]
    known = (match.on.weight[match.vertex] == SKIN_WEIGHT)[None]
    begin = similarity_align(before[None], mean[None], known, with_scale=False)
    turn, shift = begin.rotation[0], begin.translation[0]
    precision = torch.tensor([1.0] * K + [TURN_RAD**-2] * 3 + [SHIFT_MM**-2] * 3).double()
    off, found = torch.zeros(6).double(), torch.zeros(K).double()
    middle = mean.mean(0)
    for _ in range(FRAME_STEPS):
        moved, root = place @ turn.T + shift, match.roots(normal @ turn.T)
        motion = torch.cat([skew(moved - middle), -torch.eye(3).double().expand(len(moved), 3, 3)], 2)
        matrix = (root @ torch.cat([rows, motion], 2)).flatten(0, 1)
        right = (root @ (moved - mean)[..., None]).flatten()
        normal_matrix = matrix.T @ matrix + precision.diag()
        center = torch.cat([torch.zeros(K).double(), -off])
        step = torch.linalg.solve(normal_matrix, matrix.T @ right + precision * center)
        found, off = step[:K], off + step[K:]
        small = so3_exp(step[K : K + 3])
        turn, shift = small @ turn, small @ (shift - middle) + middle + step[K + 3 :]
    return found, turn, shift


def _reframed(pose: Pose, turn: Tensor, shift: Tensor) -> Pose:
    """The pose of a head whose points x are turn @ x + shift in its new frame."""
    rotation = pose.rotation.double() @ turn.T
    translation = pose.translation.double() - rotation @ shift
    return Pose(rotation.to(pose.rotation), translation.to(pose.translation))


def _turned(illumination: Tensor, turn: Tensor) -> Tensor:
    """Light [B, 9, C] of the head frame after the same turn [3, 3] of the frame."""
    axis = torch.tensor([-1.0, 0.0, 1.0]).double()
    grid = torch.cartesian_prod(axis, axis, axis)
    directions = F.normalize(grid[grid.norm(dim=1) > 0], dim=1)
    change = torch.linalg.lstsq(sh_basis(directions), sh_basis(directions @ turn)).solution
    return change.to(illumination) @ illumination


def _displacement(match: _Match, neutral: Tensor, plain: Tensor) -> Tensor:
    """[V'] mm along the normals of the target's neutral mesh `plain` [V', 3], from it to the surface of the
    source `neutral` [V, 3]; smoothed a little, and ending beyond the skin."""
    place, facing = match.carried(neutral)
    triangles = match.target.triangles
    normal = vertex_normals(plain[None], triangles)[0]
    cosine = (facing * normal).sum(1)
    known = (match.on.weight == SKIN_WEIGHT) & (cosine > STEEPEST)
    along = (facing * (place - plain)).sum(1) / cosine.clamp_min(STEEPEST)
    energy, area = bending(plain.numpy(), triangles.numpy())
    weight = area * known.numpy()
    factors = symmetric_factors(sparse.diags_array(weight + PULL * area) + SMOOTH_MM**4 * energy)
    return torch.from_numpy(factors.solve(weight * torch.nan_to_num(along).numpy()))


def _expressions(match: _Match, state: SceneState, neutral: Tensor, views: Tensor, held: bool) -> SceneState:
    """The target's state with the expressions (unless held) and joints that move its neutral face as that of
    the source moves from `neutral` [V, 3] to `views` [B, V, 3], which are in the target's frame."""
    points = match.target.at_vertices(match.vertex)
    rest = match.on.carry(neutral, match.source)[match.vertex]
    found = []
    for frame, view in enumerate(views):
        place, normal = (values[match.vertex] for values in match.carried(view))
        one = state.select([frame])
        priors = _priors(match.target, one, held)
        found.append(_expression(points, one, place - rest, match.roots(normal), priors, held))
    return state.replace(
        expression=torch.cat([s.expression for s in found]),
        joints=None if state.joints is None else torch.cat([s.joints for s in found]),
    )


def _expression(
    points: Points, state: SceneState, motion: Tensor, root: Tensor, priors: _Priors, held: bool
) -> SceneState:
    """`_expressions` of one frame: motion [N, 3] mm of its points, the square roots of their weights
    [N, 3, 3]."""
    still = points.points(state.identity, torch.zeros_like(state.expression))[0]
    K, value = state.expression.shape[1], priors.center
    for _ in range(1 if state.joints is None else JOINT_STEPS):
        now = _with(state, value)
        columns = points.motion(*now.coefficients()).columns(root.float()[None])
        names = [name for name in ("expression", "joints") if name in columns]
        matrix = torch.cat([columns[name][0].flatten(0, 1) for name in names], 1)
        off = motion - (points.points(*now.coefficients())[0] - still)
        right = (root @ off[..., None]).flatten() + matrix.double() @ value
        normal_matrix = (matrix.T @ matrix).double() + priors.precision.diag()
        factor = torch.linalg.cholesky(normal_matrix)
        seen = matrix.T.double() @ right + priors.precision * priors.center
        seen = torch.linalg.solve_triangular(factor, seen[:, None], upper=False)[:, 0]
        best = lsq_linear(factor.T.numpy(), seen.numpy(), (priors.low.numpy(), priors.high.numpy()))
        last, value = value, torch.from_numpy(best.x)
        if float((value - last).abs().max()) < STEP_END:
            break
    return _with(state, torch.cat([priors.center[:K], value[K:]]) if held else value)


@dataclass(frozen=True)
class _Priors:
    """Of expression and joints of one frame, [K_ex + 3 J] each: where they are expected, how surely, and the
    least and the largest value."""

    center: Tensor
    precision: Tensor
    low: Tensor
    high: Tensor


def _priors(model: FaceModel, state: SceneState, held: bool) -> _Priors:
    """The expression that `state` has is expected; held: it does not change."""
    parts = []
    for name in ("expression", "joints"):
        if name not in model.coefficients:
            continue
        meaning, value = model.coefficients[name], getattr(state, name).double().flatten()
        sigma = torch.full_like(value, SHAPE_SIGMA) if meaning.sigma is None else meaning.sigma.to(value)
        if held and name == "expression":
            sigma = torch.full_like(value, HELD_SIGMA)
        low, high = meaning.range
        parts.append((value, sigma**-2, value.clamp_max(low), value.clamp_min(high)))
    return _Priors(*(torch.cat(columns) for columns in zip(*parts)))


def _with(state: SceneState, value: Tensor) -> SceneState:
    """A state of one frame with other expression coefficients and, after these in `value`, joints."""
    value, K = value.to(state.expression), state.expression.shape[1]
    joints = None if state.joints is None else value[K:].reshape(1, -1, 3)
    return state.replace(expression=value[None, :K], joints=joints)
