"""What a face model needs beside its shapes and files of others do not say: landmarks at vertices, the parts
of the mesh, bare skin, texture coordinates, shapes of another model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fitkit.geometry.closest_point import SurfaceIndex, barycentric
from fitkit.geometry.membrane import Membrane
from fitkit.geometry.patch import Patch
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.registry import load_model

NAMES = tuple(f"ibug68/{i}" for i in range(68))
AWAY_MM = 25.0  # what lies farther from the surface of `generic` is none of its parts: shoulders
AWAY = "neck"
WHOLE_MM = 2.0  # pieces of a mesh with smaller radii are shifted, not bent
CARRIED_MM = 5.0  # distance from the other mesh at which its shapes count a third
AT_ONCE = 16  # shapes
UV_PX, UV_PADDING_PX = 2048, 6  # of the texture that generated coordinates are made for

log = logging.getLogger(__name__)


def real(array) -> torch.Tensor:
    """A float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def at_vertices(triangles: np.ndarray, vertices: Sequence[int]) -> LandmarkEmbedding:
    """The 68 iBUG points at vertices [68], each as a corner of one triangle; -1: the mesh lacks the point."""
    first = {v: at for at, v in reversed(list(enumerate(triangles.reshape(-1).tolist())))}
    at = np.array([first[v] if v >= 0 else -3 for v in vertices])
    weights = torch.eye(3)[torch.from_numpy(at % 3)]
    return LandmarkEmbedding(NAMES, torch.from_numpy(at // 3).clamp_min(-1), weights)


def faces_away(vertices: np.ndarray, triangles: np.ndarray, points: np.ndarray) -> bool:
    """Whether the triangles [F, 3] of a head are clockwise seen from outside; vertices [V, 3] and some points
    [N, 3] of its face, NaN where unknown, in the head frame."""
    seen = points[np.isfinite(points).all(1)]
    corners = vertices[triangles[SurfaceIndex(vertices, triangles).query(seen)[2]]]
    ahead = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2]
    return bool(np.sign(ahead).sum() < 0)


@dataclass(frozen=True)
class Parts:
    """region: [V] int64 index into region_names; skin, face: [V] bool. See `FaceModel`."""

    region: torch.Tensor
    region_names: tuple[str, ...]
    skin: torch.Tensor
    face: torch.Tensor


def parts_of(
    mean: np.ndarray, triangles: np.ndarray, landmarks: LandmarkEmbedding, laid: np.ndarray | None = None
) -> Parts:
    """The parts of a head in neutral expression: those of the nearest surface of `generic` that faces the
    same way.

    mean: [V, 3] mm, head frame; triangles: [F, 3] int64; laid: the vertices of `generic` on that head, see
    `landmarks.register`; None: bent onto its landmarks by a thin-plate spline.
    """
    generic = load_model("generic")
    if laid is None:
        laid = _bent(generic, mean, triangles, landmarks)
    faces = generic.triangles.numpy()
    near, distance, triangle = _nearest(laid, faces, mean, triangles)
    corners = faces[triangle]
    nearest = ((laid[corners] - near[:, None]) ** 2).sum(2).argmin(1)
    vertex = torch.from_numpy(corners[np.arange(len(corners)), nearest])
    region, here = generic.region[vertex], torch.from_numpy(distance) < AWAY_MM
    return Parts(
        torch.where(here, region, generic.region_names.index(AWAY)),
        generic.region_names,
        generic.skin[vertex] & here,
        generic.face[vertex] & here,
    )


def _bent(
    generic: FaceModel, mean: np.ndarray, triangles: np.ndarray, landmarks: LandmarkEmbedding
) -> np.ndarray:
    """The vertices of `generic`, its landmarks moved onto those of another head."""
    there = landmarks.present & generic.landmarks.present
    source, target = (
        marks.points(vertices[None], faces)[0][there].double().numpy()
        for marks, vertices, faces in (
            (generic.landmarks, generic.mean, generic.triangles),
            (landmarks, real(mean), torch.from_numpy(np.ascontiguousarray(triangles, np.int64))),
        )
    )
    return RBFInterpolator(source, target, kernel="thin_plate_spline")(generic.mean.double().numpy())


class Carrier:
    """Shapes of `generic` for the mesh of another head: the offsets at the nearest place that faces the same
    way, continued smoothly where that is far away.

    Pieces of the mesh that lie on eyeballs, teeth or tongue for the most part move as a whole, by an
    affine map each; all others take the offsets of skin and mouth alone, so that lids do not turn with
    eyeballs.
    """

    def __init__(self, laid: np.ndarray, mean: np.ndarray, triangles: np.ndarray):
        """laid: vertices of `generic` on the head, see `landmarks.register`; mean: [V, 3] mm, triangles:
        [F, 3], the head."""
        generic, self.mean = load_model("generic"), np.asarray(mean, np.float64)
        faces = generic.triangles.numpy()
        loose = np.array(
            [name.startswith(("eye", "teeth", "gums", "tongue")) for name in generic.region_names]
        )
        loose = loose[generic.region.numpy()[faces[:, 0]]]
        near, distance, triangle = _nearest(laid, faces, mean, triangles)
        piece = _pieces(triangles, len(mean))
        whole = np.bincount(piece, loose[triangle]) > 0.5 * np.bincount(piece)
        soft = ~whole[piece]
        on_skin = _nearest(laid, faces[~loose], mean, triangles)
        near[soft], distance[soft] = on_skin[0][soft], on_skin[1][soft]
        triangle[soft] = np.flatnonzero(~loose)[on_skin[2][soft]]
        self.corners = faces[triangle]
        self.weight = barycentric(near, laid[self.corners])
        self.confidence = np.exp(-((distance / CARRIED_MM) ** 2))
        self.membrane = Membrane(real(mean), torch.from_numpy(np.ascontiguousarray(triangles, np.int64)))
        self.whole = [np.flatnonzero(piece == number) for number in np.flatnonzero(whole)]

    def __call__(self, basis: torch.Tensor) -> torch.Tensor:
        """basis: [K, V of generic, 3] mm -> [K, V, 3] mm."""
        return torch.cat([self._carried(some.double().numpy()) for some in basis.split(AT_ONCE)])

    def _carried(self, basis: np.ndarray) -> torch.Tensor:
        values = np.einsum("vk,cvkd->vcd", self.weight, basis[:, self.corners])
        flat = values.reshape(len(values), -1)
        smooth = self.membrane.solve(self.confidence, flat, np.zeros(flat.shape[1]))
        for rows in self.whole:
            smooth[rows] = self._as_one(rows, flat[rows])
        return real(smooth.reshape(values.shape).transpose(1, 0, 2))

    def _as_one(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Offsets [n, D] of the vertices `rows` [n] by an affine map; of small pieces rather a shift."""
        lever = self.mean[rows] - self.mean[rows].mean(0)
        shift = values.mean(0)
        system = lever.T @ lever + len(rows) * WHOLE_MM**2 * np.eye(3)
        return shift + lever @ np.linalg.solve(system, lever.T @ (values - shift))


def _pieces(triangles: np.ndarray, count: int) -> np.ndarray:
    """Number of the connected piece that each of `count` vertices belongs to."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]]).T
    graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def with_uv(model: FaceModel) -> FaceModel:
    """The model with texture coordinates, those of `unwrap` where it has none; without the package xatlas as
    it is, which is logged."""
    if model.uv is not None:
        return model
    found = unwrap(model.mean.double().numpy(), model.triangles.numpy())
    if found is None:
        log.warning(
            "model %r has no texture coordinates, so fits with it write no texture; 'pip install xatlas' and "
            "import it again, and they are made",
            model.name,
        )
        return model
    uv, corners = found
    return replace(model, uv=real(uv), uv_triangles=torch.from_numpy(corners))


def unwrap(mean: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Texture coordinates of a mesh, in charts without overlap.

    Args:
        mean: [V, 3]; triangles: [F, 3] int.
    Returns:
        uv [T, 2] in [0, 1], v up, and the rows of the triangles' corners [F, 3]; None where the package
        xatlas is not installed.
    """
    try:
        import xatlas
    except ImportError:
        return None
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(triangles, np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = UV_PX, UV_PADDING_PX
    atlas.generate(pack_options=pack)
    _, corners, uv = atlas[0]
    return uv.astype(np.float64).clip(0, 1), corners.astype(np.int64)


def _nearest(
    vertices: np.ndarray, triangles: np.ndarray, mean: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each vertex of a mesh (mean, faces) the nearest place on another one (vertices, triangles), among
    triangles that face the same way where there are some: [V, 3], its distance [V] mm and triangle [V]."""
    surface, own = Patch.whole(vertices, triangles), Patch.whole(mean, faces)
    points, normal, facing = own.vertices, own.normals, surface.facing
    near, distance, triangle = surface.index.query(points)
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
    return near, distance, triangle
