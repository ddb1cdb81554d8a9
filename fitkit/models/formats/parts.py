"""What a face model needs beside its shapes and files of others do not say: landmarks at vertices, the parts
of the mesh, bare skin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator

from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.geometry.normals import triangle_normals, vertex_normals
from fitkit.models.face_model import LandmarkEmbedding
from fitkit.models.registry import load_model

NAMES = tuple(f"ibug68/{i}" for i in range(68))
AWAY_MM = 25.0  # what lies farther from the surface of `generic` is none of its parts: shoulders
AWAY = "neck"


def real(array) -> torch.Tensor:
    """A float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def at_vertices(triangles: np.ndarray, vertices: Sequence[int]) -> LandmarkEmbedding:
    """The 68 iBUG points at vertices [68], each as a corner of one triangle; -1: the mesh lacks the point."""
    first = {v: at for at, v in reversed(list(enumerate(triangles.reshape(-1).tolist())))}
    at = np.array([first[v] if v >= 0 else -3 for v in vertices])
    weights = torch.eye(3)[torch.from_numpy(at % 3)]
    return LandmarkEmbedding(NAMES, torch.from_numpy(at // 3).clamp_min(-1), weights)


@dataclass(frozen=True)
class Parts:
    """region: [V] int64 index into region_names; skin, face: [V] bool. See `FaceModel`."""

    region: torch.Tensor
    region_names: tuple[str, ...]
    skin: torch.Tensor
    face: torch.Tensor


def parts_of(mean: np.ndarray, triangles: np.ndarray, landmarks: LandmarkEmbedding) -> Parts:
    """The parts of a head in neutral expression: those of `generic`, bent onto its landmarks by a thin-plate
    spline, at the nearest surface that faces the same way.

    mean: [V, 3] mm, head frame; triangles: [F, 3] int64.
    """
    generic, here = load_model("generic"), torch.from_numpy(np.asarray(triangles, np.int64))
    there = landmarks.present & generic.landmarks.present
    source, target = (
        marks.points(vertices[None], faces)[0][there].double().numpy()
        for marks, vertices, faces in (
            (generic.landmarks, generic.mean, generic.triangles),
            (landmarks, real(mean), here),
        )
    )
    bend = RBFInterpolator(source, target, kernel="thin_plate_spline")
    bent = bend(generic.mean.double().numpy())
    vertex, distance = _nearest(bent, generic.triangles.numpy(), np.asarray(mean, np.float64), here)
    region, near = generic.region[vertex], torch.from_numpy(distance) < AWAY_MM
    return Parts(
        torch.where(near, region, generic.region_names.index(AWAY)),
        generic.region_names,
        generic.skin[vertex] & near,
        generic.face[vertex] & near,
    )


def _nearest(
    vertices: np.ndarray, triangles: np.ndarray, points: np.ndarray, faces: torch.Tensor
) -> tuple[torch.Tensor, np.ndarray]:
    """For each of `points` [N, 3] of a mesh the nearest of `vertices`, among triangles that face the same way
    where there are some, [N], and the distance of these triangles [N] mm."""
    surface = torch.from_numpy(vertices)[None]
    facing = triangle_normals(surface, torch.from_numpy(triangles))[0].numpy()
    normal = vertex_normals(torch.from_numpy(points)[None], faces)[0].numpy()
    near, distance, triangle = SurfaceIndex(vertices, triangles).query(points)
    wrong = (facing[triangle] * normal).sum(1) < 0
    for axis in range(3):  # among the triangles that face along the axis that the normal has most of
        for sign in (-1, 1):
            some = sign * facing[:, axis] > 0.1
            rows = np.flatnonzero(wrong & (abs(normal).argmax(1) == axis) & (sign * normal[:, axis] > 0))
            if len(rows) and some.any():
                near[rows], distance[rows], found = SurfaceIndex(vertices, triangles[some]).query(
                    points[rows]
                )
                triangle[rows] = np.flatnonzero(some)[found]
    corners = triangles[triangle]
    nearest = ((vertices[corners] - near[:, None]) ** 2).sum(2).argmin(1)
    return torch.from_numpy(corners[np.arange(len(points)), nearest]), distance
