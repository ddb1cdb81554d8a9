"""The linear face model that all of fitkit shares: mean + identity + expression, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

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


@dataclass(frozen=True)
class PointBasis:
    """A face model restricted to N surface points; a linear function of the coefficients like the whole
    model.

    mean: [N, 3] mm; rows: [N, 3, K_id + K_ex] mm per unit coefficient, identity first; num_identity: K_id.
    """

    mean: Tensor
    rows: Tensor
    num_identity: int

    def points(self, identity: Tensor, expression: Tensor) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> head-frame points [B, N, 3] mm."""
        n = len(self.mean)
        coefficients = torch.cat([identity, expression], 1)
        offset = coefficients @ self.rows.reshape(3 * n, -1).T
        return self.mean + offset.reshape(-1, n, 3)

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
    def rows(self) -> Tensor:
        return blend(self.model.rows, self.model.triangles[self.triangle], self.barycentric)

    def points(self, identity: Tensor, expression: Tensor) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> head-frame points [B, N, 3] mm."""
        corners = self.model.vertices(identity, expression)[:, self.model.triangles[self.triangle]]
        return (self.barycentric[..., None] * corners).sum(2)


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
    calibration: of error bars, None where nobody has measured it.
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

    def __repr__(self) -> str:
        return (
            f"FaceModel({self.name!r}: {self.num_vertices} vertices, {self.num_identity} identity and "
            f"{self.num_expression} expression shapes, {self.device})"
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

    @cached_property
    def coefficients(self) -> dict[str, Coefficients]:
        """What 'identity' and 'expression' mean."""
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

    def vertices(self, identity: Tensor, expression: Tensor) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> vertices [B, V, 3] in mm, head frame."""
        flat = self.mean.reshape(1, -1)
        flat = flat + identity @ self.identity_basis.reshape(self.num_identity, -1)
        flat = flat + expression @ self.expression_basis.reshape(self.num_expression, -1)
        return flat.reshape(-1, self.num_vertices, 3)

    def landmark_points(self, identity: Tensor, expression: Tensor) -> Tensor:
        """identity [B, K_id], expression [B, K_ex] -> the 68 iBUG points [B, 68, 3] in mm, head frame."""
        return self.landmarks.points(self.vertices(identity, expression), self.triangles)

    @cached_property
    def rows(self) -> Tensor:
        """Both bases by vertex, [V, 3, K_id + K_ex]: what a point needs lies together in memory."""
        both = torch.cat([self.identity_basis, self.expression_basis])
        return both.permute(1, 2, 0).contiguous()

    def at(self, triangle: Tensor, barycentric: Tensor) -> PointBasis | MeshPoints:
        """The model restricted to N surface points: triangle [N] int64, barycentric [N, 3]."""
        if len(triangle) > self.num_vertices:  # rows of so many points cost more than the whole mesh
            return MeshPoints(self, triangle, barycentric)
        corner = self.triangles[triangle]  # [N, 3]
        mean = (barycentric[..., None] * self.mean[corner]).sum(1)
        rows = barycentric[:, 0, None, None] * rows_at(self.rows, corner[:, 0])
        for k in (1, 2):
            rows.addcmul_(barycentric[:, k, None, None], rows_at(self.rows, corner[:, k]))
        return PointBasis(mean, rows, self.num_identity)

    def at_vertices(self, index: Tensor) -> PointBasis:
        """The model restricted to the vertices `index` [N] int64."""
        return PointBasis(self.mean[index], rows_at(self.rows, index), self.num_identity)

    @cached_property
    def landmark_basis(self) -> PointBasis:
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
