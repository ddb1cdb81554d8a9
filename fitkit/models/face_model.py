"""The linear face model that all of fitkit shares: mean + identity + expression, in millimetres."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Named points on a triangle mesh.

    names: L names, e.g. 'ibug68/30'; triangle: [L] int64; barycentric: [L, 3], rows sum to 1.
    """

    names: tuple[str, ...]
    triangle: Tensor
    barycentric: Tensor

    def points(self, vertices: Tensor, triangles: Tensor) -> Tensor:
        """vertices [B, V, 3], triangles [F, 3] -> landmark positions [B, L, 3] in the unit of `vertices`."""
        corners = vertices[:, triangles[self.triangle]]  # [B, L, 3, 3]
        return torch.einsum("lk,blkd->bld", self.barycentric.to(vertices), corners)


@dataclass(frozen=True)
class FaceModel:
    """Linear morphable face model: vertices = mean + identity @ identity_basis + expression @ expression_basis.

    Head frame in millimetres: +x to the subject's left, +y up, +z out of the face.
    Identity coefficients are standard-normal; expression coefficients are 0 (off) to 1 (fully on).

    mean [V, 3]; identity_basis [K_id, V, 3]; expression_basis [K_ex, V, 3]; expression_names K_ex names;
    triangles [F, 3] int64, counter-clockwise seen from outside; landmarks: iBUG 68 embedding;
    region [V] int64 index into region_names; skin [V] bool: outer skin that image energies may use;
    face [V] bool: narrow face area for error reports; uv [T, 2] in [0, 1], v up, or None;
    uv_triangles [F, 3] int64 rows parallel to `triangles`, or None; albedo_mean [V, 3] linear RGB, or None.
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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "FaceModel":
        """The same model on another device and/or floating-point type."""

        def move(x):
            if x is None:
                return None
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        tensors = {
            k: move(getattr(self, k))
            for k in ("mean", "identity_basis", "expression_basis", "triangles", "region", "skin", "face",
                      "uv", "uv_triangles", "albedo_mean")
        }
        embedding = LandmarkEmbedding(
            self.landmarks.names, move(self.landmarks.triangle), move(self.landmarks.barycentric))
        return replace(self, landmarks=embedding, **tensors)
