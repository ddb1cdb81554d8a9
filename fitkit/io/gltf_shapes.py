"""glTF files with morph targets -> arrays, which general mesh readers drop."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import ARRAY_BYTES, MEGABYTE, foreign_file, inside, parse_json, shown

GLTF_BYTES = 1024 * MEGABYTE
MOST_NODES = 100_000
TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
TRIANGLES = 4  # mode of a primitive
OTHERWISE = "export it as .glb (glTF 2.0) with shape keys (morph targets) and without compression"


@dataclass(frozen=True)
class ShapedMesh:
    """A mesh and its shapes. vertices: [V, 3] in the file's unit and axes; triangles: [F, 3] int64; shapes:
    name -> offsets [V, 3] at weight 1, in the file's order; uv: [T, 2], v up, and uv_triangles [F, 3], or
    None."""

    vertices: np.ndarray
    triangles: np.ndarray
    shapes: dict[str, np.ndarray]
    uv: np.ndarray | None = None
    uv_triangles: np.ndarray | None = None


def read_gltf_shapes(path: str | os.PathLike) -> ShapedMesh:
    """All meshes of a .glb or .gltf file as one, with their morph targets by the names of
    `mesh.extras.targetNames`.

    Transforms of nodes are applied; of skinned meshes that of their first joint at rest. Targets of the same
    name in several meshes are one shape. Vertices are in the order of the file; those along seams, which are
    equal in all but texture coordinates, are joined.

    Raises:
        InputError: not such a file; no triangles; compressed; buffers outside of its folder.
    Source: The Khronos Group, "glTF 2.0 Specification".
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file")
    with foreign_file(path, "not readable as glTF 2.0", OTHERWISE, limit=GLTF_BYTES) as file:
        document, packed = _parts(file.bytes(), path.suffix.lower())
        used = [name for name in document.get("extensionsRequired", []) if name in COMPRESSED]
        if used:
            raise ValueError(f"it is compressed with {used[0]}")
        reader = _Reader(document, packed, path)
        pieces = [piece for matrix, mesh in _placed(reader) for piece in _pieces(reader, mesh, matrix)]
        if not pieces:
            raise ValueError("it has no triangles")
        return _joined(pieces)


def read_glb_points(path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """The vertices [N, 3] of the first mesh of a .glb file, in the unit, the axes and the order of the file,
    and the names of its morph targets.

    Raises:
        InputError: not such a file, or no mesh in it.
    """
    path = Path(path)
    with foreign_file(path, "not readable as binary glTF 2.0", OTHERWISE, limit=GLTF_BYTES) as file:
        reader = _Reader(*_parts(file.bytes(), ".glb"), path)
        mesh = reader.item("meshes", 0)
        points = _vectors(reader, mesh["primitives"][0]["attributes"]["POSITION"])
        return points, [str(name) for name in (mesh.get("extras") or {}).get("targetNames", [])]


def _parts(data: bytes, suffix: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of a file and the buffer that is packed with it."""
    if suffix != ".glb":
        return parse_json(data), b""
    magic, version, _, length, kind = struct.unpack_from("<4sIII4s", data)
    if magic != b"glTF" or version != 2 or kind != b"JSON":
        raise ValueError("not a binary glTF file of version 2")
    at, packed = 20 + length, b""
    if len(data) >= at + 8:
        size, kind = struct.unpack_from("<I4s", data, at)
        packed = data[at + 8 : at + 8 + size] if kind == b"BIN\0" else b""
    return parse_json(data[20 : 20 + length]), packed


class _Reader:
    """Arrays of a glTF document; what it states is compared with what is there."""

    def __init__(self, document: dict[str, Any], packed: bytes, path: Path):
        self.document, self.path, self.left = document, path, ARRAY_BYTES
        self.buffers = [self._buffer(b, packed) for b in document.get("buffers", [])]

    def _buffer(self, buffer: dict[str, Any], packed: bytes) -> bytes:
        uri = buffer.get("uri")
        if uri is None:
            return packed
        if ":" in uri:  # an address, or the data itself in letters
            raise InputError(
                f"{self.path}: buffer {shown(uri)}: expected the name of a file beside it; export it as .glb"
            )
        with foreign_file(inside(self.path.parent, unquote(uri)), "not readable", limit=GLTF_BYTES) as file:
            return file.stream.read(file.size)

    def list(self, key: str) -> list[dict[str, Any]]:
        return self.document.get(key, [])

    def item(self, key: str, number: int) -> dict[str, Any]:
        found = self.list(key)
        if not isinstance(number, int) or not 0 <= number < len(found):
            raise ValueError(f"{key}[{shown(number)}]: expected 0 to {len(found) - 1}")
        return found[number]

    def array(self, number: int) -> np.ndarray:
        """The values of an accessor, [count, width]; normalized integers as float64."""
        accessor = self.item("accessors", number)
        count, width = _whole(accessor["count"]), WIDTHS[accessor["type"]]
        kind = np.dtype(TYPES[accessor["componentType"]])
        self._take(count * width * 8)
        if "bufferView" in accessor:
            start = _whole(accessor.get("byteOffset", 0))
            out = self._view(accessor["bufferView"], start, count, width, kind)
        else:
            out = np.zeros((count, width), kind)
        if "sparse" in accessor:
            out = self._replaced(out, accessor["sparse"])
        if accessor.get("normalized") and kind.kind in "iu":
            return np.maximum(out / np.iinfo(kind).max, -1.0)
        return out

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"its arrays have more than the {ARRAY_BYTES // MEGABYTE} MB that are read")

    def _view(self, number: int, start: int, count: int, width: int, kind: np.dtype) -> np.ndarray:
        view = self.item("bufferViews", number)
        buffer = _whole(view["buffer"])
        if buffer >= len(self.buffers):
            raise ValueError(f"buffers[{buffer}]: expected 0 to {len(self.buffers) - 1}")
        offset, length = _whole(view.get("byteOffset", 0)), _whole(view["byteLength"])
        row = width * kind.itemsize
        stride = _whole(view.get("byteStride", row)) or row
        end = start + (count - 1) * stride + row if count else 0
        if end > length or offset + length > len(self.buffers[buffer]):
            raise ValueError("an accessor reaches beyond its buffer")
        if stride < row:
            raise ValueError("the rows of a buffer overlap")
        data = np.frombuffer(self.buffers[buffer], np.uint8, length, offset)[start:]
        rows = np.lib.stride_tricks.as_strided(data, (count, row), (stride, 1))
        return np.ascontiguousarray(rows).view(kind).reshape(count, width)

    def _replaced(self, values: np.ndarray, sparse: dict[str, Any]) -> np.ndarray:
        """values with those rows replaced that a sparse accessor lists."""
        count, indices, own = _whole(sparse["count"]), sparse["indices"], sparse["values"]
        kind = np.dtype(TYPES[indices["componentType"]])
        rows = self._view(indices["bufferView"], _whole(indices.get("byteOffset", 0)), count, 1, kind)[:, 0]
        if count and (kind.kind != "u" or rows.max() >= len(values)):
            raise ValueError("a sparse accessor replaces rows that are not there")
        out = values.copy()
        out[rows] = self._view(
            own["bufferView"], _whole(own.get("byteOffset", 0)), count, values.shape[1], values.dtype
        )
        return out


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number of 0 or more, got {shown(value)}")
    return value


def _placed(reader: _Reader) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The meshes of the scene with their transforms [4, 4], in the order of the tree."""
    nodes = reader.list("nodes")
    if len(nodes) > MOST_NODES:
        raise ValueError(f"it has more than the {MOST_NODES} nodes that are read")
    children = {c for node in nodes for c in node.get("children", [])}
    roots = [n for n in range(len(nodes)) if n not in children]
    if reader.list("scenes"):
        roots = reader.item("scenes", reader.document.get("scene", 0)).get("nodes", [])
    world: dict[int, np.ndarray] = {}
    pending = [(n, np.eye(4)) for n in reversed(roots)]
    order = []
    while pending:
        number, parent = pending.pop()
        node = reader.item("nodes", number)
        if number in world:
            raise ValueError(f"nodes[{number}] is below two others")
        world[number] = parent @ _transform(node)
        order.append(number)
        pending += [(c, world[number]) for c in reversed(node.get("children", []))]
    for number in order:
        node = nodes[number]
        if "mesh" in node:
            matrix = world[number]
            if "skin" in node:
                matrix = _at_rest(reader, reader.item("skins", node["skin"]), world)
            yield matrix, reader.item("meshes", node["mesh"])


def _transform(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    out[:3, 3] = node.get("translation", (0, 0, 0))
    return out


def _at_rest(reader: _Reader, skin: dict[str, Any], world: dict[int, np.ndarray]) -> np.ndarray:
    """What a skin's first joint does to the mesh at rest, as all others do."""
    joint = world.get(skin["joints"][0], np.eye(4))
    if "inverseBindMatrices" not in skin:
        return joint
    return joint @ reader.array(skin["inverseBindMatrices"])[0].astype(np.float64).reshape(4, 4).T


def _pieces(reader: _Reader, mesh: dict[str, Any], matrix: np.ndarray) -> Iterator[ShapedMesh]:
    """The primitives of a mesh, one row of texture coordinates for each vertex; those that share their
    vertices, as one with several materials, together."""
    names = (mesh.get("extras") or {}).get("targetNames", [])
    sharing: list[list[dict[str, Any]]] = []
    for primitive in mesh["primitives"]:
        if primitive.get("mode", TRIANGLES) != TRIANGLES:
            raise ValueError("it has lines, points or strips beside triangles")
        if sharing and all(primitive.get(k) == sharing[-1][0].get(k) for k in ("attributes", "targets")):
            sharing[-1].append(primitive)
        else:
            sharing.append([primitive])
    for primitive, *others in sharing:
        attributes = primitive["attributes"]
        points = _vectors(reader, attributes["POSITION"])
        corners = np.concatenate([_corners(reader, p, len(points)) for p in (primitive, *others)])
        shapes = {}
        for i, target in enumerate(primitive.get("targets", [])):
            if "POSITION" in target:
                offsets = _vectors(reader, target["POSITION"])
                if len(offsets) != len(points):
                    raise ValueError(f"a target has {len(offsets)} vertices, its mesh {len(points)}")
                name = str(names[i]) if i < len(names) else f"target{i:03d}"
                shapes[name] = offsets @ matrix[:3, :3].T
        uv = None
        if "TEXCOORD_0" in attributes:
            uv = reader.array(attributes["TEXCOORD_0"]).astype(np.float64)
            if uv.shape != (len(points), 2):
                raise ValueError(f"expected texture coordinates [{len(points)}, 2], got {list(uv.shape)}")
            uv = np.stack([uv[:, 0], 1 - uv[:, 1]], 1)  # the files count v down
        triangles = corners.reshape(-1, 3)
        if np.linalg.det(matrix[:3, :3]) < 0:
            triangles = triangles[:, ::-1]
        yield ShapedMesh(points @ matrix[:3, :3].T + matrix[:3, 3], triangles, shapes, uv, triangles)


def _corners(reader: _Reader, primitive: dict[str, Any], count: int) -> np.ndarray:
    """Vertices [3 F] of the triangles of a primitive that has `count` vertices."""
    if "indices" not in primitive:
        corners = np.arange(count)
    else:
        corners = reader.array(primitive["indices"]).reshape(-1).astype(np.int64)
    if len(corners) % 3 or (len(corners) and not 0 <= corners.min() <= corners.max() < count):
        raise ValueError(f"its triangles refer to vertices beyond the {count} of their mesh")
    return corners


def _vectors(reader: _Reader, number: int) -> np.ndarray:
    out = reader.array(number).astype(np.float64)
    if out.shape[1] != 3:
        raise ValueError(f"expected vectors of 3 numbers, got {out.shape[1]}")
    return out


def _joined(pieces: list[ShapedMesh]) -> ShapedMesh:
    """The pieces as one mesh; vertices of a piece that are equal, in all shapes too, as one."""
    names = list(dict.fromkeys(name for piece in pieces for name in piece.shapes))
    size = sum(len(p.vertices) for p in pieces)
    if size * 3 * 8 * (1 + len(names)) > 2 * ARRAY_BYTES:
        raise ValueError(f"{size} vertices with {len(names)} shapes are more than are read")
    points, shapes, triangles, texture = [], {name: [] for name in names}, [], []
    first = start = 0
    for piece in pieces:
        rows = np.concatenate([piece.vertices, *piece.shapes.values()], 1)
        _, kept, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(kept))
        kept, same = np.sort(kept), order[same.reshape(-1)]
        points.append(piece.vertices[kept])
        for name in names:
            shapes[name].append(
                piece.shapes[name][kept] if name in piece.shapes else np.zeros((len(kept), 3))
            )
        triangles.append(same[piece.triangles] + first)
        texture.append(piece.triangles + start)
        first, start = first + len(kept), start + len(piece.vertices)
    has_uv = all(p.uv is not None for p in pieces)
    return ShapedMesh(
        np.concatenate(points),
        np.concatenate(triangles),
        {name: np.concatenate(parts) for name, parts in shapes.items()},
        np.concatenate([p.uv for p in pieces]) if has_uv else None,
        np.concatenate(texture) if has_uv else None,
    )
