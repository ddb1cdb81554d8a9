"""A rig of the user's own -> FaceModel: a folder of OBJ files, a glTF file with morph targets, or plain
arrays. What the files do not say is taken from `generic`, which is laid onto the neutral head."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.geometry.alignment import Similarity
from fitkit.io.foreign import (
    ARRAY_BYTES,
    DATA_BYTES,
    check_indices,
    check_shapes,
    foreign_file,
    refused_as,
    shown,
)
from fitkit.io.gltf_shapes import ShapedMesh, read_gltf_shapes
from fitkit.io.mesh_files import obj_arrays
from fitkit.models.coefficients import shape_and_side
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.formats import landmarks as placing
from fitkit.models.formats.parts import NAMES, Carrier, at_vertices, faces_away, parts_of, real
from fitkit.models.io import EYE_CORNERS, check_model
from fitkit.models.registry import load_model

NEUTRAL, IDENTITY = "neutral", "identity"
MOST_VERTICES = 200_000
MOST_STRETCH = 3.0  # of the mean edge by a shape
UNITS = {"m": 1000.0, "dm": 100.0, "cm": 10.0, "mm": 1.0, "inch": 25.4}
UNIT_SLACK = 0.3  # heads are this much smaller or larger than the mean one, as logarithm
UV_SLACK = 0.01  # how far texture coordinates may lie outside of the picture
STRAIGHT = np.cos(np.radians(20.0))  # heads that lean less keep the axes of their file
PREFIX = r".*[.:|](?=..)"  # of the names of shapes: 'Head.', 'rig:'; not the dot of 'mouthSmile.L'
ARRAYS = ("vertices", "triangles", "shapes", "shape_names", IDENTITY, "uv", "uv_triangles")


@dataclass(frozen=True)
class Rig:
    """What the files say. mesh: with the expressions as its shapes; identity: name -> offsets [V, 3] at one
    standard deviation."""

    mesh: ShapedMesh
    identity: dict[str, np.ndarray]


def import_own(
    path: str | os.PathLike, name: str = "", landmarks: str | os.PathLike | None = None
) -> FaceModel:
    """A rig as a face model.

    Unit and axes are found by the face: it becomes millimetres in the head frame, which `notes` describe.

    Args:
        path: a folder with neutral.obj and one OBJ file for each expression, all with the vertices of
            neutral.obj, and maybe a folder `identity` with more of them; a .glb or .gltf file with morph
            targets; or a .npz file with `vertices` [V, 3], `triangles` [F, 3] and maybe `shapes` [K, V, 3]
            (offsets at weight 1) with `shape_names` [K], `identity` [K, V, 3], `uv` [T, 2] and
            `uv_triangles` [F, 3].
        name: of the model; '': that of the file.
        landmarks: a file as `read_landmarks` takes it; None: they are placed automatically.
    Raises:
        InputError: nothing of all that, shapes of other meshes, no face.
    """
    path = Path(path)
    rig = _read(path)
    _check(rig, str(path))
    mesh = rig.mesh
    count = len(mesh.vertices)
    if count > MOST_VERTICES:
        raise InputError(
            f"{path}: expected at most {MOST_VERTICES} vertices, got {count}; leave out hair, clothes and "
            "body, or decimate the mesh"
        )
    with refused_as(f"{path}: not usable as a face model", "give the head alone, in neutral expression"):
        head = _upright(rig, landmarks, str(path))
        mesh, generic = head.rig.mesh, load_model("generic")
        laid = placing.register(generic, mesh.vertices, mesh.triangles, head.points)
        marks = head.landmarks or placing.carry(generic, laid, mesh.vertices, mesh.triangles)
        parts = parts_of(mesh.vertices, mesh.triangles, marks, laid)
        carry = Carrier(laid, mesh.vertices, mesh.triangles)

        def shapes(own: dict[str, np.ndarray], others: torch.Tensor) -> torch.Tensor:
            return real(np.stack(list(own.values()))) if own else carry(others)

        model = FaceModel(
            name=name or re.sub(r"[^A-Za-z0-9.-]+", "_", path.stem).strip("_.-") or "own",
            mean=real(mesh.vertices),
            identity_basis=shapes(head.rig.identity, generic.identity_basis),
            expression_basis=shapes(mesh.shapes, generic.expression_basis),
            expression_names=known_names(tuple(mesh.shapes)) or generic.expression_names,
            triangles=torch.from_numpy(mesh.triangles),
            landmarks=marks,
            region=parts.region,
            region_names=parts.region_names,
            skin=parts.skin,
            face=parts.face,
            uv=None if mesh.uv is None else real(mesh.uv),
            uv_triangles=None if mesh.uv_triangles is None else torch.from_numpy(mesh.uv_triangles),
            source=path.name,
            notes=head.notes,
        )
    check_model(model, str(path))
    return model


# ---- files ----


def _read(path: Path) -> Rig:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() in (".glb", ".gltf"):
        return Rig(read_gltf_shapes(path), {})
    if path.suffix.lower() == ".npz":
        return _read_arrays(path)
    if path.suffix.lower() == ".obj" and path.is_file():
        return Rig(_read_obj(path), {})
    raise InputError(
        f"{path}: expected a folder with {NEUTRAL}.obj, or a file .obj, .glb, .gltf or .npz"
        + ("" if os.path.lexists(path) else ", got nothing there")
    )


def _obj_files(folder: Path) -> list[Path]:
    """Also .OBJ; not the hidden files that macOS leaves beside others."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() == ".obj" and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _read_folder(folder: Path) -> Rig:
    neutral = next((p for p in _obj_files(folder) if p.stem.lower() == NEUTRAL), None)
    if neutral is None:
        raise InputError(
            f"{folder}: no {NEUTRAL}.obj; expected the neutral head under this name and one OBJ file for "
            f"each expression, named after it; those of other people in a folder {IDENTITY!r}"
        )
    mesh = _read_obj(neutral)

    def offsets(files: Path) -> dict[str, np.ndarray]:
        out = {}
        for path in _obj_files(files):
            if path == neutral:
                continue
            vertices = obj_arrays(path, faces=False)[0]
            if len(vertices) != len(mesh.vertices):
                raise InputError(
                    f"{path}: expected {len(mesh.vertices)} vertices as in {NEUTRAL}.obj, got {len(vertices)}"
                )
            out[path.stem] = vertices - mesh.vertices
            if 8 * 3 * len(vertices) * len(out) > 4 * ARRAY_BYTES:
                raise InputError(f"{files}: more shapes than are read; leave some of them out")
        return out

    return Rig(replace(mesh, shapes=offsets(folder)), offsets(folder / IDENTITY))


def _read_obj(path: Path) -> ShapedMesh:
    """An OBJ file, with its texture coordinates where all faces have some."""
    vertices, _, triangles, _ = obj_arrays(path)
    if not len(triangles):
        raise InputError(f"{path}: expected a mesh, got {len(vertices)} vertices and no faces")
    check_indices(triangles, len(vertices), f"{path}: faces")
    try:
        _, uv, _, corners = obj_arrays(path, corners=True)
    except InputError:
        return ShapedMesh(vertices, triangles, {})
    if not len(corners) or corners.min() < 0 or corners.max() >= len(uv):
        return ShapedMesh(vertices, triangles, {})
    return ShapedMesh(vertices, triangles, {}, uv, corners)


def _check(rig: Rig, where: str) -> None:
    """Refuse numbers that are not finite, and shapes whose vertices are in another order than those of the
    neutral head: their edges are long."""
    neutral, triangles = rig.mesh.vertices, rig.mesh.triangles
    if not np.isfinite(neutral).all():
        vertex = int((~np.isfinite(neutral)).any(1).argmax())
        raise InputError(f"{where}: vertex {vertex} of the neutral head is not finite; repair the mesh")

    def edges(vertices: np.ndarray) -> float:
        return float(np.linalg.norm(vertices[triangles] - vertices[triangles[:, [1, 2, 0]]], axis=2).mean())

    longest = MOST_STRETCH * edges(neutral)
    for name, offsets in (*rig.mesh.shapes.items(), *rig.identity.items()):
        if not np.isfinite(offsets).all():
            raise InputError(f"{where}: shape {shown(name)} holds numbers that are not finite; repair it")
        if edges(neutral + offsets) > longest:
            raise InputError(
                f"{where}: shape {shown(name)}: expected the vertices of the neutral head, in their order, "
                "got edges several times as long; export all shapes with one vertex order, and offsets at "
                "weight 1"
            )


def _read_arrays(path: Path) -> Rig:
    with foreign_file(path, "not a readable .npz file", limit=DATA_BYTES) as file:
        arrays = file.npz(ARRAYS)
    for key, other in (
        ("vertices", ""),
        ("triangles", ""),
        ("shape_names", "shapes"),
        ("shapes", "shape_names"),
    ):
        if key not in arrays and (not other or other in arrays):
            raise InputError(
                f"{path}: no array {key!r}; expected {', '.join(ARRAYS)}, the first two at least"
            )
    wanted = {
        "vertices": ("V", 3),
        "triangles": ("F", 3),
        "shapes": ("K", "V", 3),
        "shape_names": ("K",),
        IDENTITY: ("K_id", "V", 3),
        "uv": ("T", 2),
        "uv_triangles": ("F", 3),
    }
    kinds = {"triangles": "iu", "uv_triangles": "iu", "shape_names": "U"}
    check_shapes(arrays, {k: v for k, v in wanted.items() if k in arrays}, kinds, path)
    check_indices(arrays["triangles"], len(arrays["vertices"]), f"{path}: triangles")
    has_uv = {"uv", "uv_triangles"} <= set(arrays)
    if has_uv:
        check_indices(arrays["uv_triangles"], len(arrays["uv"]), f"{path}: uv_triangles")
    names = [str(n) for n in arrays.get("shape_names", [])]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: shape_names: expected a name of its own for each shape, got one twice")
    mesh = ShapedMesh(
        arrays["vertices"].astype(np.float64),
        arrays["triangles"].astype(np.int64),
        dict(zip(names, arrays.get("shapes", []))),
        arrays["uv"].astype(np.float64) if has_uv else None,
        arrays["uv_triangles"].astype(np.int64) if has_uv else None,
    )
    return Rig(mesh, {f"{IDENTITY}{i:03d}": row for i, row in enumerate(arrays.get(IDENTITY, []))})


def read_landmarks(path: str | os.PathLike, triangles: np.ndarray, count: int) -> LandmarkEmbedding:
    """The 68 iBUG points from a text file with 68 lines.

    A line is the number of a vertex, or the number of a triangle and the weights of its three corners, all
    counted from 0; -1 stands for a point that the mesh lacks, '#' begins a comment.

    Args:
        triangles: [F, 3] of the mesh; count: of its vertices.
    Raises:
        InputError: another number of lines; vertices or triangles that are not there.
    """
    with foreign_file(path, "not a readable file of landmarks", "expected numbers") as file:
        lines = [line.partition("#")[0].split() for line in file.text().splitlines()]
        rows = [[float(n) for n in line] for line in lines if line]
    if len(rows) != len(NAMES):
        raise InputError(f"{path}: expected {len(NAMES)} lines, one for each iBUG point, got {len(rows)}")
    used = set(triangles.reshape(-1).tolist())
    vertices, faces, weights = [-1] * len(rows), np.full(len(rows), -1), np.zeros((len(rows), 3), np.float32)
    for number, row in enumerate(rows):
        first = int(row[0]) if np.isfinite(row[0]) else -2
        limit = {1: count, 4: len(triangles)}.get(len(row), 0)
        if first != row[0] or not -1 <= first < limit or (len(row) == 1 and first >= 0 and first not in used):
            raise InputError(
                f"{path}: point {number}: expected a vertex of a triangle, 0 to {count - 1}, or a triangle, "
                f"0 to {len(triangles) - 1}, with three weights, or -1, got {' '.join(f'{n:g}' for n in row)}"
            )
        if len(row) == 1:
            vertices[number] = first
        else:
            faces[number], weights[number] = first, row[1:]
    at = at_vertices(triangles, vertices)
    given = torch.from_numpy(faces >= 0)
    return LandmarkEmbedding(
        NAMES,
        torch.where(given, torch.from_numpy(faces), at.triangle),
        torch.where(given[:, None], torch.from_numpy(weights), at.barycentric),
    )


def known_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of shapes as `generic` spells them, where they are its own in some spelling:
    'Head.mouthSmileLeft' is 'mouthSmile_L'."""
    known = {shape_and_side(name): name for name in load_model("generic").expression_names}
    out = tuple(known.get(shape_and_side(re.sub(PREFIX, "", name)), name) for name in names)
    return out if len(set(out)) == len(out) else names


# ---- where it stands ----


@dataclass(frozen=True)
class Upright:
    """A rig in the head frame, mm, triangles counter-clockwise seen from outside. landmarks: if they are
    given; points: [68, 3], those or the ones that were seen, NaN where there is none; notes: of the model."""

    rig: Rig
    landmarks: LandmarkEmbedding | None
    points: np.ndarray
    notes: str


def _upright(rig: Rig, landmarks: str | os.PathLike | None, where: str) -> Upright:
    mesh = rig.mesh
    if landmarks is None:
        marks = None
        frame, points = placing.find_face(mesh.vertices, mesh.triangles, where)
    else:
        marks, frame, points = _given(mesh, landmarks)
    scale, turn, shift, unit = _straightened(frame, points)
    notes = _notes(rig, turn, shift, scale, unit, landmarks is None)
    vertices, points = (scale * p @ turn.T + shift for p in (mesh.vertices, points))

    def turned(shapes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: scale * row @ turn.T for name, row in shapes.items() if np.abs(row).max() > 0}

    triangles, uv, corners = mesh.triangles, mesh.uv, mesh.uv_triangles
    if uv is None or corners is None or not (uv.min() >= -UV_SLACK and uv.max() <= 1 + UV_SLACK):
        uv = corners = None  # several tiles, which one texture cannot hold
    if faces_away(vertices, triangles, points):
        triangles = triangles[:, ::-1].copy()
        corners = corners if corners is None else corners[:, ::-1].copy()
        marks = marks and replace(marks, barycentric=marks.barycentric.flip(1))
    mesh = ShapedMesh(vertices, triangles, turned(mesh.shapes), uv, corners)
    return Upright(Rig(mesh, turned(rig.identity)), marks, points, notes)


def _given(
    mesh: ShapedMesh, landmarks: str | os.PathLike
) -> tuple[LandmarkEmbedding, Similarity, np.ndarray]:
    """The landmarks of a file, mesh -> head frame, and the points [68, 3] in the mesh's frame."""
    marks = read_landmarks(landmarks, mesh.triangles, len(mesh.vertices))
    missing = [corner for corner in EYE_CORNERS if corner in marks.missing]
    if missing:
        raise InputError(f"{landmarks}: point {missing[0]}: expected it, an outer eye corner, got -1")
    points = marks.points(torch.from_numpy(mesh.vertices)[None], torch.from_numpy(mesh.triangles))[0].numpy()
    points[list(marks.missing)] = np.nan
    frame, residual = placing.onto_mean(points, marks.present)
    if residual > placing.RESIDUAL_MM:
        raise InputError(
            f"{landmarks}: expected the 68 iBUG points of a face, got points {residual:.0f} mm from one; "
            "check their order, and that they count from 0"
        )
    return marks, frame, points


def _straightened(frame: Similarity, points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, str]:
    """The same with a usual unit and straight axes where they are near: scale, rotation [3, 3], shift [3] and
    the name of the unit, '' for none."""
    scale, turn = float(frame.scale), frame.rotation[0].numpy()
    unit, size = min(UNITS.items(), key=lambda u: abs(np.log(scale / u[1])))
    unit, size = (unit, size) if abs(np.log(scale / size)) < UNIT_SLACK else ("", scale)
    straight = np.zeros((3, 3))
    rows = np.arange(3), abs(turn).argmax(1)
    straight[rows] = np.sign(turn[rows])
    # The cosine of the angle between two rotations.
    if np.linalg.det(straight) > 0.5 and (np.trace(straight.T @ turn) - 1) / 2 > STRAIGHT:
        turn = straight
    middle = np.nanmean(points, 0)
    return size, turn, placing.in_frame(frame, middle[None])[0] - size * turn @ middle, unit


def _notes(rig: Rig, turn: np.ndarray, shift: np.ndarray, scale: float, unit: str, automatic: bool) -> str:
    axes = []
    for row in turn:
        terms = [
            f"{'-' if w < 0 else '+'}{'' if abs(w) == 1 else f'{abs(w):.6g} '}{a}"
            for w, a in zip(row, "xyz")
            if w
        ]
        axes.append(" ".join(terms).removeprefix("+"))
    size = f"1 {unit}" if unit else "a unit of the file's own, by the size of the face"
    said = [
        f"Vertices: {scale:.6g} * ({', '.join(axes)}) + ({', '.join(f'{v:.3f}' for v in shift)}) of those in "
        f"the file, whose unit is {size}.",
        "Landmarks were placed automatically; look at their picture." if automatic else "",
        "" if rig.identity else "Identity shapes are those of 'generic', carried over.",
        "" if rig.mesh.shapes else "Expressions are those of 'generic', carried over.",
    ]
    return " ".join(s for s in said if s)
