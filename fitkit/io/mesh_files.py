"""Mesh files -> arrays: vertices in file order and triangles. Materials and textures are left alone. PLY is
written here too."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
from torch import Tensor

from fitkit.errors import InputError
from fitkit.geometry.normals import vertex_normals
from fitkit.io.foreign import MEGABYTE, foreign_file, parse_json

MESH_BYTES = 1024 * MEGABYTE
SUFFIXES = (".ply", ".obj", ".glb", ".stl", ".off")


def read_mesh(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """A `.ply` or `.obj` file (or .glb, .stl, .off) -> vertices [V, 3] float64 (nothing is merged or
    reordered), triangles [F, 3] int64.

    Polygons are split into fans.

    Raises:
        InputError: no such file, not a triangle mesh, triangles of vertices that are not there, or vertices
            that are not finite.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such mesh file")
    kind = path.suffix.lower()
    if kind == ".obj":
        vertices, _, triangles, _ = obj_arrays(path)
    elif kind not in SUFFIXES:
        raise InputError(f"{path}: expected a mesh file {', '.join(SUFFIXES)}")
    else:
        with foreign_file(path, "not a readable mesh", limit=MESH_BYTES) as file:
            data = file.bytes()
            _check_counts(data, kind)
            mesh = _loaded(data, kind[1:])
            vertices, triangles = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
            if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.shape != (len(triangles), 3):
                raise ValueError(
                    f"expected vertices [V, 3] and triangles [F, 3], got {list(vertices.shape)} and "
                    f"{list(triangles.shape)}"
                )
    if not len(vertices) or not len(triangles):
        raise InputError(
            f"{path}: expected a mesh with triangles, got {len(vertices)} vertices and {len(triangles)} "
            "triangles"
        )
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise InputError(
            f"{path}: expected triangles of vertices 0 to {len(vertices) - 1}, got {triangles.min()} to "
            f"{triangles.max()}"
        )
    if not np.isfinite(vertices).all():
        raise InputError(
            f"{path}: vertex {int((~np.isfinite(vertices)).any(1).argmax())} is not finite; repair the mesh"
        )
    return vertices, triangles


def read_vertex_numbers(path: str | os.PathLike, name: str) -> np.ndarray | None:
    """The numbers [V] of the vertices of a `.ply` file under this name, or None where it has none of it.

    Raises:
        InputError: no such file, not a mesh, or numbers that are not finite.
    """
    with foreign_file(path, "not a readable mesh", limit=MESH_BYTES) as file:
        data = file.bytes()
        _check_counts(data, ".ply")
        mesh = _loaded(data, "ply")
        vertices = mesh.metadata["_ply_raw"]["vertex"]
        if name not in vertices["properties"]:
            return None
        numbers = np.asarray(vertices["data"][name], np.float64).reshape(-1)
    if not np.isfinite(numbers).all():
        raise InputError(f"{path}: {name} holds values that are not finite")
    return numbers


def _loaded(data: bytes, kind: str):
    """The mesh of these bytes alone: nothing that the file names is opened."""
    import trimesh

    return trimesh.load(
        io.BytesIO(data),
        file_type=kind,
        process=False,
        force="mesh",
        maintain_order=True,
        skip_materials=True,
    )


def obj_arrays(
    path: str | os.PathLike, corners: bool = False, faces: bool = True, limit: int = MESH_BYTES
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An OBJ file, also as .obj.gz, in file order: general loaders repeat the vertices along UV seams, or
    make room for the largest index.

    Args:
        corners: also read texture coordinates and the texture corners of the triangles, which every face must
            have; faces: False leaves all but the vertices; limit: bytes of the file, unpacked.
    Returns:
        vertices [V, 3] float64, texture coordinates [T, 2] float64, triangles [F, 3] int64 and their texture
        corners [F, 3] int64; polygons are split into fans, a quad into (0, 1, 2) and (0, 2, 3). What was not
        asked for is empty. Indices are not checked.
    Raises:
        InputError: no such file, or lines that are not those of an OBJ file.
    """
    lines = "'v x y z', 'vt u v' and 'f v/vt' lines" if corners else "'v x y z' and 'f v' lines"
    with foreign_file(path, f"not a readable OBJ file with {lines}", limit=limit) as file:
        data = file.bytes().replace(b"\r", b"")
        if b"#" in data:
            data = re.sub(rb"#[^\n]*", b"", data)
        if b"\\" in data:
            data = data.replace(b"\\\n", b" ")  # a line that goes on
        vertices, uv = _numbers(data, b"v", 3), np.zeros((0, 2))
        triangles = texture = np.zeros((0, 3), np.int64)
        if faces:
            polygons = re.findall(rb"^f[ \t]+(.*)$", data, re.MULTILINE)
            before = None
            if any(b"-" in p for p in polygons):  # counted back from the face's own line
                v, vt, f = (
                    [m.start() for m in re.finditer(rb"^%s[ \t]" % key, data, re.MULTILINE)]
                    for key in (b"v", b"vt", b"f")
                )
                before = np.searchsorted(v, f), np.searchsorted(vt, f)
            triangles = _fans(polygons, 0, before and before[0])
            if corners:
                uv, texture = _numbers(data, b"vt", 2), _fans(polygons, 1, before and before[1])
    return vertices, uv, triangles, texture


def _numbers(data: bytes, key: bytes, count: int) -> np.ndarray:
    """The first `count` numbers of each line that begins with `key`."""
    lines = re.findall(rb"^%s[ \t]+(.*)$" % key, data, re.MULTILINE)
    return np.loadtxt(lines, ndmin=2, usecols=range(count)) if lines else np.zeros((0, count))


def _fans(polygons: list[bytes], part: int, before: np.ndarray | None) -> np.ndarray:
    """Triangles [F, 3] of polygons 'v/vt/vn ...', counted from 0. part: which number of a corner; before:
    number of vertices above each polygon, which negative numbers count back from."""
    if not polygons:
        return np.zeros((0, 3), np.int64)
    text = b"\n".join(polygons)
    if part == 0:
        text = re.sub(rb"/[^\s]*", b"", text)
    else:
        text, found = re.subn(rb"-?\d+/(-?\d+)(?:/[^\s]*)?", rb"\1", text)
        if b"/" in text or found != len(text.split()):
            raise ValueError("a face has corners without texture coordinates")
    lines = text.split(b"\n")
    sizes = np.array([len(line.split()) for line in lines])
    if sizes.min() < 3:
        raise ValueError(f"a face has {sizes.min()} corners")
    fans, order = [], []
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        index = np.loadtxt([lines[i] for i in rows], np.int64, ndmin=2)
        if before is not None:
            index = np.where(index < 0, before[rows, None] + index + 1, index)
        corner = np.arange(1, size - 1)
        first = np.broadcast_to(index[:, :1], (len(rows), len(corner)))
        fans.append(np.stack([first, index[:, corner], index[:, corner + 1]], -1).reshape(-1, 3))
        order.append(np.repeat(rows, len(corner)))
    # The files count from 1, we count from 0.
    return np.concatenate(fans)[np.argsort(np.concatenate(order), kind="stable")] - 1


def _check_counts(data: bytes, kind: str) -> None:
    """Refuse a file that declares more than it can hold, which the loader would make room for."""
    if kind == ".ply":
        head = data[: data.find(b"end_header")]
        counts = [int(n) for n in re.findall(rb"^\s*element\s+\S+\s+(-?\d{1,20})", head, re.MULTILINE)]
        counts.append(len(re.findall(rb"^\s*(?:element|property)\s", head, re.MULTILINE)) ** 2)
    elif kind == ".glb":
        counts = _glb_counts(data)
    elif kind == ".off":
        counts = [int(n) for n in re.findall(rb"\d+", re.sub(rb"#[^\n]*", b"", data[:1000]))[:3]]
    else:
        return
    if counts and (min(counts) < 0 or max(counts) > len(data)):
        raise ValueError(f"the header states {max(counts, key=abs)} elements, the file has {len(data)} bytes")


def _glb_counts(data: bytes) -> list[int]:
    """Numbers of a GLB file that must not exceed its bytes: of each accessor, of all vertices of the
    scene."""
    magic, _, _, length, chunk = struct.unpack_from("<4sIII4s", data)
    if magic != b"glTF" or chunk != b"JSON":
        raise ValueError("not a binary glTF file")
    scene = parse_json(data[20 : 20 + length])
    accessors = scene.get("accessors", [])
    if any("bufferView" not in a for a in accessors):
        raise ValueError("an accessor has no data")
    sizes = [
        sum(accessors[p["attributes"]["POSITION"]]["count"] for p in mesh["primitives"])
        for mesh in scene.get("meshes", [])
    ]
    placed = sum(sizes[node["mesh"]] for node in scene.get("nodes", []) if "mesh" in node)
    return [*(a["count"] for a in accessors), placed, len(scene.get("nodes", [])) ** 2]


def write_ply(
    path: str | os.PathLike,
    vertices: Tensor,
    triangles: Tensor,
    attributes: dict[str, Tensor] | None = None,
    colors: Tensor | None = None,
) -> Path:
    """Binary little-endian PLY with normals; vertices [V, 3] mm, triangles [F, 3]; nothing is merged or
    reordered.

    attributes: further float properties of the vertices by name, [V] each; colors: [V, 3] sRGB in [0, 1],
    written in 8 bit.
    """
    import trimesh  # takes a third of a second, which a command without meshes is spared

    mesh = trimesh.Trimesh(
        vertices.double().numpy(),
        triangles.numpy(),
        process=False,
        validate=False,
        vertex_normals=vertex_normals(vertices[None].double(), triangles)[0].numpy(),
        vertex_colors=None if colors is None else (colors * 255).round().clamp(0, 255).byte().numpy(),
    )
    for name, values in (attributes or {}).items():
        mesh.vertex_attributes[name] = values.float().numpy()
    path = Path(path)
    path.write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding="binary", vertex_normal=True))
    return path
