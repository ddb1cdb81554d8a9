"""The face model that all of fitkit shares, in millimetres, and its points: where they lie, how they move.

The models of this file are linear, mean + identity + expression; `skinned.py` adds joints to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from fitkit.geometry.rows import blend, rows_at
from fitkit.models.calibration import Calibration
from fitkit.models.coefficients import Coefficients
from fitkit.tensors import move


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Named points on a triangle mesh.

    names: L names, e.g. 'ibug68/30'; triangle: [L] int64, -1 = the mesh lacks the point; barycentric: [L, 3],
    rows sum to 1.
    Points that the mesh lacks stand in the middle of the others, so that means and boxes are those of the
    others; who compares single points leaves them out, see `present`.
    """

    names: tuple[str, ...]
    triangle: Tensor
    barycentric: Tensor

    def __repr__(self) -> str:
        return f"LandmarkEmbedding({len(self.names) - len(self.missing)} points)"

    @cached_property
    def present(self) -> Tensor:
        """Which points the mesh has, [L] bool."""
        return self.triangle != -1

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the points that the mesh lacks, from 0."""
        return tuple((~self.present).nonzero().flatten().tolist())

    def filled(self, values: Tensor) -> Tensor:
        """values [L, ...] of the points, those of missing points as the mean of the others."""
        if not self.missing:
            return values
        present = self.present.reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(present, values, values[self.present].mean(0))

    def points(self, vertices: Tensor, triangles: Tensor) -> Tensor:
        """vertices [B, V, 3], triangles [F, 3] -> landmark positions [B, L, 3] in the unit of `vertices`."""
        corners = vertices[:, triangles[self.triangle]]  # [B, L, 3, 3]
        points = torch.einsum("lk,blkd->bld", self.barycentric.to(vertices), corners)
        return self.filled(points.transpose(0, 1)).transpose(0, 1) if self.missing else points


C = TypeVar("C", bound="Columns")
M = TypeVar("M", bound="Motion")


class Columns(Protocol):
    """How N points of a face model move with its coefficients, at certain values of these in B frames; see
    `Motion`."""

    def columns(self, by_head: Tensor, views: Tensor | None = None) -> dict[str, Tensor]:
        """Chain d value / d motion of a point in the head frame, [G, N, D, 3], to the coefficients.

        views: [G] int64, the frame that each group shows; None: group g shows frame g.
        Returns: [G, N, D, K] for 'identity', 'expression' and, of a model that has some, 'joints'.
        """
        ...

    def select(self: C, index: Tensor) -> C:
        """Of some of the points, [n] int64."""
        ...


class Motion(Columns, Protocol):
    """`Columns` of the points of one person, or of several whose points are computed as those of one."""

    def sums(
        self, values: Tensor, group: Tensor, point: Tensor, groups: int, frame: int
    ) -> dict[str, Tensor]:
        """As `columns` in one frame for values that depend on several points: M derivatives [M, 3] of value
        `group` [M] by the motion of point `point` [M], sorted by group and point -> [groups, K] for each."""
        ...

    def at_rest(self, by_head: Tensor, point: Tensor, views: Tensor) -> Tensor:
        """Derivatives [G, N, D, 3] by the motion of points `point` [G, N] in the frames `views` [G], as those
        by an offset of their mean."""
        ...

    def blended(self, point: Tensor, weights: Tensor) -> Motion:
        """Of N' weighted sums of these points, other ones in each of G groups: [G, N', 3], as a triangle's
        corners."""
        ...

    def with_first(self: M, other: M, keep: Tensor) -> M:
        """With other points in the place of the first n: in each frame those of `other` where keep [B, n]."""
        ...


@dataclass(frozen=True)
class LinearMotion:
    """The `Motion` of points that are linear in the coefficients: the same wherever these are.

    rows: [N, 3, K_id + K_ex] mm per unit coefficient, identity first, or [G, N, 3, K] where each group has
    points of its own; num_identity: K_id.
    """

    rows: Tensor
    num_identity: int

    def columns(self, by_head: Tensor, views: Tensor | None = None) -> dict[str, Tensor]:
        return self._named(chain(by_head, self.rows))

    def sums(
        self, values: Tensor, group: Tensor, point: Tensor, groups: int, frame: int
    ) -> dict[str, Tensor]:
        return self._named(sparse_sums(values, group, point, groups, self.rows))

    def at_rest(self, by_head: Tensor, point: Tensor, views: Tensor) -> Tensor:
        return by_head

    def blended(self, point: Tensor, weights: Tensor) -> LinearMotion:
        return LinearMotion(blend(self.rows, point, weights), self.num_identity)

    def select(self, index: Tensor) -> LinearMotion:
        return LinearMotion(self.rows[index], self.num_identity)

    def with_first(self, other: LinearMotion, keep: Tensor) -> LinearMotion:
        n = keep.shape[1]
        first = torch.where(keep[..., None, None], other.rows, self.rows[:n])
        rest = self.rows[n:].expand(len(first), -1, -1, -1)
        return LinearMotion(torch.cat([first, rest], 1), self.num_identity)

    def _named(self, columns: Tensor) -> dict[str, Tensor]:
        return {
            "identity": columns[..., : self.num_identity],
            "expression": columns[..., self.num_identity :],
        }


@dataclass(frozen=True)
class MotionOfPeople:
    """The `Columns` of the same N points of several people, each in frames of its own: what each of `motions`
    says, one after the other. views: frames of each."""

    motions: tuple[Columns, ...]
    views: tuple[int, ...]

    def columns(self, by_head: Tensor, views: Tensor | None = None) -> dict[str, Tensor]:
        """views: None, group g shows frame g."""
        assert views is None, "people's points are asked for in their own frames"
        each = [m.columns(by.clone()) for m, by in zip(self.motions, by_head.split(self.views))]
        return {name: torch.cat([columns[name] for columns in each]) for name in each[0]}

    def select(self, index: Tensor) -> MotionOfPeople:
        return MotionOfPeople(tuple(motion.select(index) for motion in self.motions), self.views)


def chain(by_head: Tensor, rows: Tensor) -> Tensor:
    """by_head [G, N, D, n] @ rows [N, n, K] or [G, N, n, K] -> [G, N, D, K]."""
    if rows.ndim > 3:
        return by_head @ rows
    G, N, D, n = by_head.shape
    left = by_head.permute(1, 0, 2, 3).reshape(N, G * D, n)
    return torch.bmm(left, rows).reshape(N, G, D, -1).permute(1, 0, 2, 3)


def sparse_sums(values: Tensor, group: Tensor, point: Tensor, groups: int, rows: Tensor) -> Tensor:
    """Sums over m of values[m] @ rows[point[m]] by group: values [M, 3], rows [N, 3, K] -> [groups, K]. group
    and point [M] int64, sorted."""
    flat = rows.flatten(0, 1)
    column = (3 * point[:, None] + torch.arange(3, device=rows.device)).reshape(-1)
    sparse = torch.sparse_coo_tensor(
        torch.stack([group.repeat_interleave(3), column]),
        values.reshape(-1),
        (groups, len(flat)),
        check_invariants=False,
        is_coalesced=True,
    )
    return torch.sparse.mm(sparse, flat)


class Points(Protocol):
    """N points of a face model, a function of its coefficients: identity [B, K_id], expression [B, K_ex] and
    joints [B, J, 3] rad of a model that has some (None: at rest).

    mean: [N, 3] mm, without identity, expression and joints; rows: [N, 3, K_id + K_ex] mm per unit
    coefficient around it, identity first, while the joints are at rest; num_identity: K_id.
    """

    @property
    def mean(self) -> Tensor: ...

    @property
    def rows(self) -> Tensor: ...

    @property
    def num_identity(self) -> int: ...

    def points(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """Head-frame points [B, N, 3] mm."""
        ...

    def motion(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Motion:
        """How they move around these values."""
        ...

    def select(self, index: Tensor) -> Points:
        """Some of the points."""
        ...


@dataclass(frozen=True)
class PointBasis:
    """The `Points` of a linear model.

    mean: [N, 3] mm; rows: [N, 3, K_id + K_ex] mm per unit coefficient, identity first, or [B, N, 3] and
    [B, N, 3, K] where each of the frames has points of its own; num_identity: K_id.
    """

    mean: Tensor
    rows: Tensor
    num_identity: int

    def points(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> head-frame points [B, N, 3] mm."""
        coefficients = torch.cat([identity, expression], 1)
        if self.rows.ndim > 3:
            return self.mean + torch.einsum("bnck,bk->bnc", self.rows, coefficients)
        n = len(self.mean)
        offset = coefficients @ self.rows.reshape(3 * n, -1).T
        return self.mean + offset.reshape(-1, n, 3)

    def motion(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> LinearMotion:
        return LinearMotion(self.rows, self.num_identity)

    def select(self, index: Tensor) -> PointBasis:
        return PointBasis(self.mean[index], self.rows[index], self.num_identity)


@dataclass(frozen=True, eq=False)
class MeshPoints:
    """As PointBasis for more points than vertices: evaluates the mesh and interpolates. triangle [N],
    barycentric [N, 3]."""

    model: FaceModel
    triangle: Tensor
    barycentric: Tensor

    @property
    def num_identity(self) -> int:
        return self.model.num_identity

    @cached_property
    def mean(self) -> Tensor:
        return blend(self.model.mean, self.model.triangles[self.triangle], self.barycentric)

    @cached_property
    def rows(self) -> Tensor:
        return blend(self.model.rows, self.model.triangles[self.triangle], self.barycentric)

    def points(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> head-frame points [B, N, 3] mm."""
        corners = self.model.vertices(identity, expression)[:, self.model.triangles[self.triangle]]
        return (self.barycentric[..., None] * corners).sum(2)

    def motion(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> LinearMotion:
        return LinearMotion(self.rows, self.num_identity)

    def select(self, index: Tensor) -> MeshPoints:
        return MeshPoints(self.model, self.triangle[index], self.barycentric[index])


@dataclass(frozen=True, eq=False)  # compared and hashed as an object: functions of a model can be cached
class FaceModel:
    """Linear morphable face model: vertices = mean + identity @ identity_basis + expression @
    expression_basis.

    Head frame in millimetres: +x to the subject's left, +y up, +z out of the face.
    Identity coefficients are standard-normal; what expression coefficients are, `expression_kind` says:
    blend shapes, 0 (off) to 1 (fully on), or signed Gaussian coefficients, as those of a PCA, with the
    standard deviations `expression_sigma` [K_ex] (None: 1). See `coefficients`.

    mean [V, 3]; identity_basis [K_id, V, 3]; expression_basis [K_ex, V, 3]; expression_names K_ex names;
    triangles [F, 3] int64, counter-clockwise seen from outside; landmarks: iBUG 68, may lack some;
    region [V] int64 index into region_names; skin [V] bool: outer skin that image energies may use;
    face [V] bool: narrow face area for error reports; uv [T, 2] in [0, 1], v up, or None;
    uv_triangles [F, 3] int64 rows parallel to `triangles`, or None; albedo_mean [V, 3] linear RGB, or None;
    albedo_basis [K_al, V, 3] linear RGB per unit coefficient (standard-normal, as the identity), or None;
    calibration: of error bars, None where nobody has measured it; notes: what a user of other software should
    know, as how coefficients relate to those published; extra_names and extra_basis [K_x, V, 3] mm at weight
    1: blend shapes that no fit estimates and files for other tools have, as a tongue put out, or None.
    """

    name: str
    mean: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    expression_names: tuple[str, ...]
    triangles: Tensor
    landmarks: LandmarkEmbedding
    region: Tensor
    region_names: tuple[str, ...]
    skin: Tensor
    face: Tensor
    uv: Tensor | None = None
    uv_triangles: Tensor | None = None
    albedo_mean: Tensor | None = None
    source: str = ""
    license: str = ""
    albedo_basis: Tensor | None = None
    expression_kind: Literal["blend_shape", "gaussian"] = "blend_shape"
    expression_sigma: Tensor | None = None
    calibration: Calibration | None = None
    notes: str = ""
    extra_names: tuple[str, ...] = ()
    extra_basis: Tensor | None = None

    def __repr__(self) -> str:
        joints = f"{self.num_joints} joints, " if self.num_joints else ""
        return (
            f"{type(self).__name__}({self.name!r}: {self.num_vertices} vertices, {self.num_identity} "
            f"identity and {self.num_expression} expression shapes, {joints}{self.device})"
        )

    @property
    def num_vertices(self) -> int:
        return self.mean.shape[0]

    @property
    def num_identity(self) -> int:
        return self.identity_basis.shape[0]

    @property
    def num_expression(self) -> int:
        return self.expression_basis.shape[0]

    @property
    def num_joints(self) -> int:
        """Joints that turn, see `SkinnedModel`; a linear model has none."""
        return 0

    @cached_property
    def coefficients(self) -> dict[str, Coefficients]:
        """What 'identity' and 'expression' mean."""
        return self._shape_coefficients()

    def _shape_coefficients(self) -> dict[str, Coefficients]:
        return {
            "identity": Coefficients(
                "identity", self.num_identity, "person", "gaussian", self.mean.new_ones(self.num_identity)
            ),
            "expression": Coefficients(
                "expression",
                self.num_expression,
                "frame",
                self.expression_kind,
                self._expression_sigma(),
                self.expression_names,
            ),
        }

    def _expression_sigma(self) -> Tensor | None:
        if self.expression_kind != "gaussian":
            return None
        given = self.expression_sigma
        return self.mean.new_ones(self.num_expression) if given is None else given

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def vertices(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> vertices [B, V, 3] in mm, head frame. joints: see
        `Points`."""
        flat = self.mean.reshape(1, -1)
        flat = flat + identity @ self.identity_basis.reshape(self.num_identity, -1)
        flat = flat + expression @ self.expression_basis.reshape(self.num_expression, -1)
        return flat.reshape(-1, self.num_vertices, 3)

    def landmark_points(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> the 68 iBUG points [B, 68, 3] in mm, head frame."""
        return self.landmarks.points(self.vertices(identity, expression, joints), self.triangles)

    @cached_property
    def rows(self) -> Tensor:
        """Both bases by vertex, [V, 3, K_id + K_ex]: what a point needs lies together in memory."""
        both = torch.cat([self.identity_basis, self.expression_basis])
        return both.permute(1, 2, 0).contiguous()

    def at(self, triangle: Tensor, barycentric: Tensor) -> Points:
        """The model restricted to N surface points: triangle [N] int64, barycentric [N, 3]."""
        if len(triangle) > self.num_vertices:  # rows of so many points cost more than the whole mesh
            return self.on_mesh(triangle, barycentric)
        corner = self.triangles[triangle]  # [N, 3]
        mean = (barycentric[..., None] * self.mean[corner]).sum(1)
        rows = barycentric[:, 0, None, None] * rows_at(self.rows, corner[:, 0])
        for k in (1, 2):
            rows.addcmul_(barycentric[:, k, None, None], rows_at(self.rows, corner[:, k]))
        return PointBasis(mean, rows, self.num_identity)

    def on_mesh(self, triangle: Tensor, barycentric: Tensor) -> Points:
        """As `at` for points that are asked for a few times only: nothing is computed ahead."""
        return MeshPoints(self, triangle, barycentric)

    def at_vertices(self, index: Tensor) -> Points:
        """The model restricted to the vertices `index` [N] int64, or [B, N]: other ones in each frame."""
        return PointBasis(self.mean[index], rows_at(self.rows, index), self.num_identity)

    @cached_property
    def landmark_basis(self) -> Points:
        """The model restricted to the 68 iBUG points; for those that it lacks see `LandmarkEmbedding`."""
        basis, marks = self.at(self.landmarks.triangle, self.landmarks.barycentric), self.landmarks
        if not marks.missing:
            return basis
        return PointBasis(marks.filled(basis.mean), marks.filled(basis.rows), basis.num_identity)

    def with_mean(self, mean: Tensor) -> FaceModel:
        """The same shapes around another mean [V, 3] mm; `rows` are not made anew."""
        moved = replace(self, mean=mean)
        moved.__dict__["rows"] = self.rows
        return moved

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FaceModel:
        """The same model on another device and/or floating-point type."""
        return move(self, device, dtype)
