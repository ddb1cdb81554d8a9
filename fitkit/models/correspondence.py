"""Which point of one face model is which point of another: dense correspondence of two models, found once and
kept beside the models."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.laplacian import bending, cotangent_laplacian, symmetric_factors
from fitkit.geometry.patch import Patch
from fitkit.geometry.rows import blend
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import check_indices, check_shapes, foreign_file
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import models_folder

log = logging.getLogger("fitkit")

FOLDER, VERSION = "correspondence", 1
OUTER = ("face", "head", "ear", "neck")  # how the names of outer parts begin; the others lie inside
SKIN_WEIGHT, OTHER_WEIGHT = 1.0, 0.2  # of a vertex: bare skin, and ears, scalp or neck
APART_MM = 2.0  # how far one surface, bent onto the other, may lie away from it where they correspond
LEAST_SHARE = 0.5  # of the target's face
# Area of skin in mm^2 that a landmark counts as: of the jaw (points of the outline, where models differ
# most), of the brows, and of nose, eyes and mouth.
LANDMARK_AREA = np.repeat([5.0, 20.0, 60.0], [17, 10, 41])
IDENTITY_STEPS, IDENTITY_REACH_MM = 8, 15.0
MOST_VERTICES = 8000  # that the identity is found with
IDENTITY_MM4 = 60.0  # what a coefficient of 1 costs against squared distances, mm^2, times area
# From step to step the displacement may bend over shorter lengths, and closest points have to lie nearer, mm.
BEND_MM = np.geomspace(40.0, 3.0, 16)
REACH_MM = np.geomspace(20.0, 4.0, 16)


@dataclass(frozen=True)
class Correspondence:
    """Where the V vertices of a target model lie on a source model.

    triangle: [V] int64, of the source, -1 where nothing corresponds; barycentric: [V, 3]; weight: [V], how
    much a vertex tells: SKIN_WEIGHT, OTHER_WEIGHT, or 0 where triangle is -1.
    """

    triangle: Tensor
    barycentric: Tensor
    weight: Tensor

    def carry(self, values: Tensor, source: FaceModel) -> Tensor:
        """values [V_source, ...] at the vertices of the source -> [V, ...] at those of the target, of no
        meaning where the weight is 0."""
        corners = source.triangles[self.triangle.clamp_min(0)]
        return blend(values, corners, self.barycentric.to(values))


def correspondence(source: FaceModel, target: FaceModel) -> Correspondence:
    """Where the vertices of `target` lie on `source`, both on the CPU; found on first use, which takes
    seconds, and kept in the models folder where that can be written.

    Raises:
        InputError: the two faces cannot be laid onto each other.
    """
    names = "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", model.name) for model in (source, target))
    path = models_folder() / FOLDER / f"{names}-{_fingerprint(source, target)}.npz"
    if path.is_file():
        try:
            return _read(path, source, target)
        except InputError as error:
            log.info("%s; it is made anew", error)
    found = register(source, target)
    try:
        with written_whole(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **{name: value.numpy() for name, value in vars(found).items()})
    except InputError as error:
        log.info("%s", error)
    return found


def _fingerprint(source: FaceModel, target: FaceModel) -> str:
    """Of all that a registration depends on."""
    digest = hashlib.sha256(str(VERSION).encode())
    for model in (source, target):
        marks = model.landmarks
        for array in (
            model.mean,
            model.identity_basis,
            model.triangles,
            marks.triangle,
            marks.barycentric,
            outer(model),
            model.skin,
            model.face,
        ):
            digest.update(array.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, source: FaceModel, target: FaceModel) -> Correspondence:
    V = target.num_vertices
    shapes = {"triangle": (V,), "barycentric": (V, 3), "weight": (V,)}
    with foreign_file(path, "not readable as a correspondence of face models") as file:
        arrays = file.npz(tuple(shapes))
    check_shapes(arrays, shapes, {"triangle": "i"}, path)
    check_indices(arrays["triangle"] + 1, 1 + len(source.triangles), f"{path}: triangle", "")
    return Correspondence(*(torch.from_numpy(arrays[name]) for name in shapes))


def outer(model: FaceModel) -> Tensor:
    """[V] bool: the outside of the head, by the names of the model's parts."""
    named = torch.tensor([name.startswith(OUTER) for name in model.region_names])
    return model.skin | model.face | named[model.region]


def register(source: FaceModel, target: FaceModel) -> Correspondence:
    """`correspondence` without the file.

    The mean of `source` is laid onto that of `target` by the landmarks, then bent by the identity shapes of
    `source` and after that by a displacement, from smooth to less smooth, towards the closest points that
    face the same way.
    Source: Amberg, Romdhani and Vetter, "Optimal step nonrigid ICP algorithms for surface registration",
    2007. Differs: begins with a face model; a displacement with little curvature instead of affine maps.
    Raises:
        InputError: too little of the target's face corresponds to anything.
    """
    still = Patch.of(target.mean, target.triangles, outer(target))
    marks = _Marks.of(source, target)
    moving = _bent(_as_identity(source, still, marks), still, marks)
    return _matched(moving, still, source, target)


@dataclass(frozen=True)
class _Marks:
    """The landmarks that both models have. rows: [L, V_source], whose product with vertices of the source are
    the points; points: [L, 3] mm on the target; weight: [L] mm^2."""

    rows: sparse.csr_matrix
    points: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(source: FaceModel, target: FaceModel) -> _Marks:
        marks = source.landmarks
        both = (marks.present & target.landmarks.present).numpy()
        corners = source.triangles[marks.triangle].numpy()[both]
        values = marks.barycentric.double().numpy()[both]
        row = np.repeat(np.arange(len(corners)), 3)
        rows = sparse.csr_matrix(
            (values.ravel(), (row, corners.ravel())), shape=(len(corners), source.num_vertices)
        )
        points = target.landmarks.points(target.mean[None], target.triangles)[0].double().numpy()
        return _Marks(rows, points[both], LANDMARK_AREA[both])


def _as_identity(source: FaceModel, still: Patch, marks: _Marks) -> Patch:
    """The outer surface of the person of `source` who comes nearest to the target's mean, in its frame:
    similarity and identity, by landmarks and closest points along their normals."""
    mean, basis = source.mean.double().numpy(), source.identity_basis.double().numpy()
    start = similarity_align(torch.from_numpy(marks.rows @ mean)[None], torch.from_numpy(marks.points)[None])
    linear = float(start.scale) * start.rotation[0].numpy()
    mean, basis = mean @ linear.T + start.translation[0].numpy(), basis @ linear.T
    moving = Patch.of(torch.from_numpy(mean), source.triangles, outer(source))
    rest, shapes = moving.vertices, basis[:, moving.vertex].transpose(1, 2, 0)  # [n, 3, K]
    at_marks = np.stack([marks.rows @ shape for shape in basis], 2)
    for _ in range(IDENTITY_STEPS):
        found = still.closest(moving.vertices, moving.normals)
        used = np.flatnonzero(found.same & (found.distance < IDENTITY_REACH_MM))
        every = 1 + len(used) // MOST_VERTICES
        used = used[::every]
        normal, place = found.normal[used], rest[used]
        area = every * _area(moving)[used]
        rows = np.einsum("nc,nck->nk", normal, _with_motion(place, shapes[used]))
        wanted = (normal * (found.point[used] - place)).sum(1)
        points = marks.rows @ mean
        mark_rows = _with_motion(points, at_marks).reshape(-1, rows.shape[1])
        mark_weight = np.repeat(marks.weight, 3)
        normal_matrix = rows.T @ (area[:, None] * rows) + mark_rows.T @ (mark_weight[:, None] * mark_rows)
        normal_matrix += IDENTITY_MM4 * np.diag(np.r_[np.ones(shapes.shape[2]), np.full(7, 1e-6)])
        right = rows.T @ (area * wanted) + mark_rows.T @ (mark_weight * (marks.points - points).ravel())
        move = np.linalg.solve(normal_matrix, right)
        moving = moving.at(rest + _with_motion(rest, shapes) @ move)
    return moving


def _with_motion(points: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Shapes [n, 3, K] and a small turn (per 100 mm), shift and growth of the points, [n, 3, K + 7]."""
    n, axes = len(points), np.eye(3)
    turn = np.stack([np.cross(axis, points / 100) for axis in axes], 2)
    shift = np.broadcast_to(axes, (n, 3, 3))
    return np.concatenate([shapes, turn, shift, points[:, :, None] / 100], 2)


def _area(surface: Patch) -> np.ndarray:
    """mm^2 of each vertex, [n]."""
    return cotangent_laplacian(surface.vertices, surface.triangles)[1]


def _bent(moving: Patch, still: Patch, marks: _Marks) -> Patch:
    """A surface bent onto another one."""
    rest, rows = moving.vertices, marks.rows[:, moving.vertex]
    inside = np.asarray(rows.sum(1)).ravel() > 0.99  # landmarks whose triangles are part of the surface
    pull = rows.T @ sparse.diags_array(marks.weight * inside)
    energy, area = bending(rest, moving.triangles)
    for length, reach in zip(BEND_MM, REACH_MM):
        found = still.closest(moving.vertices, moving.normals)
        weight = area * (found.same & (found.distance < reach))
        system = sparse.diags_array(weight + 1e-6) + pull @ rows + length**4 * energy
        right = weight[:, None] * (found.point - rest) + pull @ (marks.points - rows @ rest)
        factors = symmetric_factors(system)
        moving = moving.at(rest + factors.solve(right))
    return moving


def _matched(moving: Patch, still: Patch, source: FaceModel, target: FaceModel) -> Correspondence:
    """Where the vertices of `still` are on `moving`, which lies on it."""
    found = moving.closest(still.vertices, still.normals)
    used = found.same & (found.distance < APART_MM)
    vertex, V = still.vertex, target.num_vertices
    corners = source.triangles[moving.triangle[found.triangle]]
    skin = (source.skin | source.face)[corners].all(1) & (target.skin | target.face)[vertex]
    triangle, weights, weight = torch.full((V,), -1), torch.zeros(V, 3), torch.zeros(V)
    triangle[vertex[used]] = torch.from_numpy(moving.triangle[found.triangle[used]])
    weights[vertex[used]] = torch.from_numpy(found.weights[used]).float()
    weight[vertex[used]] = torch.where(skin, SKIN_WEIGHT, OTHER_WEIGHT)[used]
    share = float((weight[target.face] > 0).float().mean())
    if share < LEAST_SHARE:
        raise InputError(
            f"face models '{source.name}' and '{target.name}': only {100 * share:.0f} % of the face of the "
            "second can be found on the first; check the landmarks and parts of both with 'fitkit model info'"
        )
    return Correspondence(triangle, weights, weight)
