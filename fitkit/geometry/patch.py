"""Part of a triangle mesh, and its closest points that face the same way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fitkit.geometry.closest_point import Border, SurfaceIndex, barycentric
from fitkit.geometry.normals import triangle_normals, vertex_normals

FACING = 0.5  # least cosine between the normals of two surfaces that face the same way


@dataclass(frozen=True)
class Patch:
    """Part of a mesh: vertices [n, 3] mm, triangles [f, 3] of these, and their numbers in the whole mesh,
    vertex [n] and triangle [f]."""

    vertices: np.ndarray
    triangles: np.ndarray
    vertex: np.ndarray
    triangle: np.ndarray

    @staticmethod
    def of(vertices: Tensor, triangles: Tensor, chosen: Tensor) -> Patch:
        """The triangles of a mesh [V, 3], [F, 3] whose corners are all chosen [V]."""
        triangle = chosen[triangles].all(1).nonzero()[:, 0].numpy()
        vertex, local = np.unique(triangles.numpy()[triangle], return_inverse=True)
        return Patch(vertices.double().numpy()[vertex], local.reshape(-1, 3), vertex, triangle)

    @staticmethod
    def whole(vertices: np.ndarray, triangles: np.ndarray) -> Patch:
        """All of a mesh [V, 3], [F, 3]."""
        triangles = np.ascontiguousarray(triangles, np.int64)
        vertices = np.asarray(vertices, np.float64)
        return Patch(vertices, triangles, np.arange(len(vertices)), np.arange(len(triangles)))

    def at(self, vertices: np.ndarray) -> Patch:
        """The same part with its vertices [n, 3] elsewhere."""
        return Patch(vertices, self.triangles, self.vertex, self.triangle)

    @cached_property
    def index(self) -> SurfaceIndex:
        return SurfaceIndex(self.vertices, self.triangles)

    @cached_property
    def border(self) -> Border:
        return Border(self.triangles, len(self.vertices))

    @cached_property
    def facing(self) -> np.ndarray:
        """Normals of the triangles, [f, 3]."""
        return triangle_normals(*self._tensors)[0].numpy()

    @cached_property
    def normals(self) -> np.ndarray:
        """Normals at the vertices, [n, 3]."""
        return vertex_normals(*self._tensors)[0].numpy()

    @property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.vertices)[None], torch.from_numpy(self.triangles)

    def closest(self, points: np.ndarray, normals: np.ndarray) -> Closest:
        """The closest points of the surface to `points` [N, 3] with these normals [N, 3]."""
        near, distance, triangle = self.index.query(points)
        weights = barycentric(near, self.vertices[self.triangles[triangle]])
        normal = self.facing[triangle]
        return Closest(
            near,
            distance,
            triangle,
            weights,
            normal,
            (normal * normals).sum(1) > FACING,
            self.border.holds(triangle, weights),
        )


@dataclass(frozen=True)
class Closest:
    """N closest points of a surface.

    point: [N, 3]; distance: [N] mm; triangle: [N]; weights: [N, 3] of its corners; normal: [N, 3], its
    normal; facing: [N] bool, the surface faces the same way there; ends: [N] bool, it ends there.
    """

    point: np.ndarray
    distance: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray
    normal: np.ndarray
    facing: np.ndarray
    ends: np.ndarray

    @property
    def same(self) -> np.ndarray:
        """[N] bool: it may be the same place."""
        return self.facing & ~self.ends
