"""GNM Head 3.0 of Google (Apache-2.0): `gnm_head.npz` and its 68 landmarks.

Source: "GNM Head: a Generative aNthropometric Model of the human head", arXiv 2607.23687, 2026;
    github.com/google/GNM. Differs: millimetres instead of metres; the neck, which carries all of the head,
    does not turn, the pose of the head does; textures of the parts lie side by side in one square.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.geometry.closest_point import SurfaceIndex, barycentric
from fitkit.io.foreign import DATA_BYTES, MEGABYTE, check_indices, check_shapes, foreign_file, refused_as
from fitkit.models.face_model import LandmarkEmbedding
from fitkit.models.formats.joints import joint_sigma
from fitkit.models.formats.parts import NAMES, Parts, parts_of, real
from fitkit.models.formats.tiles import BOXES, pack_tiles
from fitkit.models.io import check_model
from fitkit.models.skinned import SkinnedModel

MODEL_FILE, LANDMARK_FILE = "gnm_head.npz", "head_sparse_68.txt"
# Where the repository keeps them.
MODEL_FOLDER, LANDMARK_FOLDER = "gnm/shape/data/versions/v3_0", "gnm/shape/data/landmarks"
MM = 1000.0  # in a metre
JOINTS = {"neck": "root", "head": "head", "left_eye": "eye_L", "right_eye": "eye_R"}  # theirs -> ours
SHAPES: dict[str, tuple] = {
    "template_vertex_positions": ("V", 3),
    "vertex_identity_basis": ("K_id", "V", 3),
    "expression_basis": ("K_ex", "V", 3),
    "expression_names": ("K_ex",),
    "triangles": ("F", 3),
    "triangle_uvs": ("F", 3, 2),
    "joint_names": (len(JOINTS),),
    "joint_parent_indices": (len(JOINTS),),
    "template_joint_positions": (len(JOINTS), 3),
    "joint_identity_basis": ("K_id", len(JOINTS), 3),
    "joint_regressor": (len(JOINTS), "V"),
    "skinning_weights": (len(JOINTS), "V"),
    "pose_correctives_regressor": (9 * len(JOINTS), "3 V"),
    "mesh_component_names": ("P",),
    "vertex_group_names": ("G",),
    "vertex_groups": ("G", "V"),
}
KINDS = dict.fromkeys((k for k in SHAPES if k.endswith("_names")), "U") | dict.fromkeys(
    ("triangles", "joint_parent_indices"), "iu"
)
# Parts of the mesh -> regions of `generic`; those of the skin are found by its landmarks.
REGIONS = {
    "left_eye": "eye_left",
    "right_eye": "eye_right",
    "upper_teeth_and_gums": "teeth",
    "lower_teeth_and_gums": "teeth",
    "tongue": "tongue",
}
SKIN, OUTSIDE = "skin", "skin_exterior"  # part of the mesh, and the vertices of it that are seen
REVERSED = slice(2, 7)  # rows of the jaw that releases before August 2026 have the other way round
WEIGHT_SLACK = 5e-3  # how far sums of the rounded weights may be from 1
JOINT_MM = 0.01  # by which joints may be elsewhere than the vertices say, for one standard deviation
SOURCE = "GNM Head, github.com/google/GNM; arXiv 2607.23687"
LICENSE = "Apache-2.0, Copyright 2026 Google LLC"
NOTES = (
    "Identity and expression coefficients are GNM's as published, in standard deviations. The head frame is "
    "GNM's own in millimetres (x 1000): its axes and its origin. Rotation vectors of head, eye_L and eye_R "
    "are those of GNM's head, left_eye and right_eye. GNM turns all about its neck joint, fitkit about the "
    "origin: rotation of the neck = R of the pose, translation = t - J + R J in metres, with J the neck "
    "joint at rest (row 0 of joint_regressor)."
)


def import_gnm(source: str | os.PathLike, name: str = "gnm") -> SkinnedModel:
    """Read GNM Head from `gnm_head.npz` and `head_sparse_68.txt`.

    Args:
        source: the model file with the landmarks beside it, the folder that holds both, or the repository.
        name: of the model.
    Returns:
        the model, float32; identity and expression shapes in file order.
    Raises:
        InputError: a file is missing, not readable, or of another layout.
    """
    path, marks = _files(Path(source))
    arrays = _read_model(path)
    with refused_as(f"{path}: not usable as GNM Head", "give the file as it was downloaded"):
        model = _model(path, arrays, _read_landmarks(marks, arrays), name)
    check_model(model, str(path))
    return model


def _files(source: Path) -> tuple[Path, Path]:
    """Model file and landmark file."""
    paths = (source / MODEL_FILE, source / MODEL_FOLDER / MODEL_FILE) if source.is_dir() else (source,)
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise InputError(
            f"{source}: no {MODEL_FILE}; give its folder, or get it with 'fitkit model fetch gnm'"
        )
    beside = (path.parent / LANDMARK_FILE, path.parent / "../../landmarks" / LANDMARK_FILE)
    marks = next((p for p in beside if p.is_file()), None)
    if marks is None:
        raise InputError(
            f"{path.parent}: no {LANDMARK_FILE} beside {path.name}; put the file of that name from "
            f"{LANDMARK_FOLDER} of GNM's repository there"
        )
    return path, marks


def _read_model(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the model file, as published."""
    with foreign_file(
        path, f"not readable as {MODEL_FILE}", "give the file as it was downloaded", limit=DATA_BYTES
    ) as file:
        arrays = file.npz(tuple(SHAPES))
    missing = [key for key in SHAPES if key not in arrays]
    if missing:
        raise InputError(f"{path}: not a model of GNM, it lacks {', '.join(missing)}")
    sizes = check_shapes(arrays, SHAPES, KINDS, path)
    if sizes["3 V"] != 3 * sizes["V"]:
        raise InputError(
            f"{path}: pose_correctives_regressor: expected {3 * sizes['V']} columns, got {sizes['3 V']}"
        )
    check_indices(arrays["triangles"], sizes["V"], f"{path}: triangles", "[F, 3] ")
    check_indices(arrays["joint_parent_indices"][1:], len(JOINTS) - 1, f"{path}: joint_parent_indices")
    joints = arrays["joint_names"].tolist()
    if joints != list(JOINTS):
        raise InputError(f"{path}: joint_names: expected {', '.join(JOINTS)}, got {', '.join(joints)}")
    return arrays


def _model(
    path: Path, arrays: dict[str, np.ndarray], landmarks: LandmarkEmbedding, name: str
) -> SkinnedModel:
    mean, triangles = MM * arrays["template_vertex_positions"], arrays["triangles"].astype(np.int64)
    part = _components(path, arrays)
    uv, uv_triangles = _texture(path, arrays["triangle_uvs"], part[triangles[:, 0]])
    parts = _parts(arrays, mean, triangles, part, landmarks)
    joints = tuple(JOINTS.values())[1:]
    return SkinnedModel(
        name=name,
        mean=real(mean),
        identity_basis=real(MM * arrays["vertex_identity_basis"]),
        expression_basis=real(MM * arrays["expression_basis"]),
        expression_names=tuple(arrays["expression_names"].tolist()),
        triangles=torch.from_numpy(triangles),
        landmarks=landmarks,
        region=parts.region,
        region_names=parts.region_names,
        skin=parts.skin,
        face=parts.face,
        uv=real(uv),
        uv_triangles=torch.from_numpy(uv_triangles),
        source=SOURCE,
        license=LICENSE,
        expression_kind="gaussian",
        notes=NOTES,
        joint_names=joints,
        joint_regressor=real(_regressor(path, arrays)),
        joint_parents=(-1, *arrays["joint_parent_indices"][1:].tolist()),
        skinning_weights=real(arrays["skinning_weights"].T),
        joint_sigma=joint_sigma(joints),
        pose_basis=_correctives(arrays["pose_correctives_regressor"]),
    )


def _correctives(regressor: np.ndarray) -> torch.Tensor | None:
    """Corrective shapes [9 J, V, 3] mm of the joints that turn; those of version 3.0 are all zero: None."""
    turning = regressor[9:]
    return real(MM * turning.reshape(len(turning), -1, 3)) if turning.any() else None


def _regressor(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Weights of the vertices [J, V] whose sums are the joints of the file, with every shape.

    GNM's joints follow the identity by a basis of their own, and not the expression. Weights that say the
    same are those of the file, changed as little as that takes.
    """
    weights = arrays["joint_regressor"].astype(np.float64)
    wanted = np.concatenate(
        [
            arrays["template_joint_positions"][None],
            arrays["joint_identity_basis"],
            np.zeros((len(arrays["expression_basis"]), len(JOINTS), 3)),
        ]
    )
    shapes = np.concatenate(
        [
            arrays["template_vertex_positions"][None],
            arrays["vertex_identity_basis"],
            arrays["expression_basis"],
        ]
    )
    # Columns: each axis of each shape, and the sum of the weights.
    by_shape = np.concatenate(
        [MM * np.moveaxis(shapes, 1, 0).reshape(shapes.shape[1], -1), np.ones((shapes.shape[1], 1))], 1
    )
    by_joint = np.concatenate(
        [MM * np.moveaxis(wanted, 1, 0).reshape(len(JOINTS), -1), np.ones((len(JOINTS), 1))], 1
    )
    missing = by_joint - weights @ by_shape
    if np.abs(missing).max() > JOINT_MM:
        size = np.linalg.norm(by_shape, axis=0)
        unit = by_shape / np.where(size > 0, size, 1)
        inverse = np.linalg.pinv(unit.T @ unit, rcond=1e-10, hermitian=True)
        weights = weights + (missing / np.where(size > 0, size, 1)) @ inverse @ unit.T
        left = float(np.abs(by_joint - weights @ by_shape).max())
        if left > 10 * JOINT_MM:
            raise InputError(
                f"{path}: joint_regressor: expected vertices that tell the joints of each shape, got joints "
                f"{left:.3g} mm away from them"
            )
    return weights


def _components(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The row of `mesh_component_names` of each vertex, [V]."""
    groups, names = arrays["vertex_group_names"].tolist(), arrays["mesh_component_names"].tolist()
    unknown = [name for name in names if name not in groups]
    if SKIN not in names or unknown:
        raise InputError(
            f"{path}: mesh_component_names: expected {SKIN} and other names of vertex_group_names, got "
            f"{', '.join(names)}"
        )
    return np.stack([arrays["vertex_groups"][groups.index(name)] for name in names]).argmax(0)


def _texture(path: Path, uv: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates [T, 2] in one square, and the corners of the triangles [F, 3].

    uv: [F, 3, 2], each part of the mesh in a unit square of its own, or in several; part: [F].
    """
    if not np.isfinite(uv).all() or np.abs(uv).max(initial=0) > 1e3:
        raise InputError(f"{path}: triangle_uvs: expected finite numbers, got up to {np.abs(uv).max():.3g}")
    middle = np.floor(uv.mean(1)).astype(int)
    squares, place, count = np.unique(
        np.column_stack([part, middle]), axis=0, return_inverse=True, return_counts=True
    )
    if len(squares) > len(BOXES):
        raise InputError(f"{path}: triangle_uvs: expected up to {len(BOXES)} squares, got {len(squares)}")
    rank = np.empty(len(squares), int)
    rank[np.argsort(-count, kind="stable")] = np.arange(len(squares))  # the largest gets most of it
    points, corners = np.unique(uv.reshape(-1, 2), axis=0, return_inverse=True)
    return pack_tiles(points.astype(np.float64), corners.reshape(-1, 3), rank[place.reshape(-1)])


def _parts(
    arrays: dict[str, np.ndarray],
    mean: np.ndarray,
    triangles: np.ndarray,
    part: np.ndarray,
    landmarks: LandmarkEmbedding,
) -> Parts:
    """The parts of the head by those of `generic`, and by the names of the file."""
    found = parts_of(mean, triangles, landmarks)
    region, names = found.region.clone(), found.region_names
    for row, name in enumerate(arrays["mesh_component_names"].tolist()):
        if name in REGIONS:
            region[torch.from_numpy(part == row)] = names.index(REGIONS[name])
    seen = part == arrays["mesh_component_names"].tolist().index(SKIN)
    groups = arrays["vertex_group_names"].tolist()
    if OUTSIDE in groups:
        seen &= arrays["vertex_groups"][groups.index(OUTSIDE)] > 0
    bare = torch.from_numpy(seen)
    return Parts(region, names, found.skin & bare, found.face & bare)


def _read_landmarks(path: Path, arrays: dict[str, np.ndarray]) -> LandmarkEmbedding:
    """The 68 points on the surface; each line of the file is three vertices with their weights by turns."""
    with foreign_file(
        path, "not a readable landmark file of GNM", "expected 68 lines of 6 numbers", limit=MEGABYTE
    ) as file:
        table = file.table()
    vertices = MM * arrays["template_vertex_positions"].astype(np.float64)
    check_shapes({"points": table}, {"points": (68, 6)}, {}, path)
    number, weights = table[:, ::2], table[:, 1::2]
    if (number != np.rint(number)).any() or not 0 <= number.min() <= number.max() < len(vertices):
        raise InputError(
            f"{path}: expected vertices 0 to {len(vertices) - 1}, got {number.min():g} to {number.max():g}"
        )
    if not np.abs(weights.sum(1) - 1).max() <= WEIGHT_SLACK or weights.min() < -WEIGHT_SLACK:
        raise InputError(f"{path}: expected weights of 0 to 1 with the sum 1 in each line")
    corner = number.astype(np.int64)
    points = (weights[..., None] * vertices[corner]).sum(1) / weights.sum(1)[:, None]
    order = _order(points)
    main = corner[np.arange(68), weights.argmax(1)]
    found = [_on_surface(points[i], main[i], vertices, arrays["triangles"]) for i in order]
    return LandmarkEmbedding(
        NAMES, torch.tensor([t for t, _ in found]), real(np.stack([w for _, w in found]))
    )


def _order(points: np.ndarray) -> np.ndarray:
    """iBUG order of the rows, [68]: the jaw as a line that does not go back."""
    given, other = np.arange(68), np.arange(68)
    other[REVERSED] = other[REVERSED][::-1]

    def length(order):
        return np.linalg.norm(np.diff(points[order[:17]], axis=0), axis=1).sum()

    return given if length(given) <= length(other) else other


def _on_surface(
    point: np.ndarray, vertex: int, vertices: np.ndarray, triangles: np.ndarray
) -> tuple[int, np.ndarray]:
    """Triangle, and weights of its corners, next to a point [3] among those of a vertex near it."""
    around = np.flatnonzero((triangles == vertex).any(1))
    if not len(around):
        raise InputError(f"vertex {vertex} of a landmark is part of no triangle")
    near, _, which = SurfaceIndex(vertices, triangles[around]).query(point[None])
    triangle = int(around[which[0]])
    return triangle, barycentric(near, vertices[triangles[triangle]][None])[0]
