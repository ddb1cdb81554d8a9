"""Small rigs as users have them: folders of OBJ files, glTF files with morph targets, arrays. All are a head
of `generic`, in units and axes of their own."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import fitkit

# Head frame -> file: z up, the face to -y.
BLENDER = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
SHAPES = {"jawOpen": "jawOpen", "mouthSmileLeft": "mouthSmile_L", "browInnerUp_R": "browInnerUp_R"}


@dataclass(frozen=True)
class Head:
    """vertices: [V, 3] mm, head frame; triangles: [F, 3]; points: [68, 3] mm; shapes: file's name -> offsets
    [V, 3] mm; identity: [2, V, 3] mm; uv, uv_triangles: as of a model."""

    vertices: np.ndarray
    triangles: np.ndarray
    points: np.ndarray
    shapes: dict[str, np.ndarray]
    identity: np.ndarray
    uv: np.ndarray
    uv_triangles: np.ndarray


def head(seed: int = 5) -> Head:
    generic = fitkit.load_model("generic")
    identity = torch.randn(1, generic.num_identity, generator=torch.Generator().manual_seed(seed))
    vertices = generic.vertices(0.7 * identity, torch.zeros(1, generic.num_expression))
    offsets = dict(zip(generic.expression_names, generic.expression_basis.double().numpy()))
    return Head(
        vertices[0].double().numpy(),
        generic.triangles.numpy(),
        generic.landmarks.points(vertices, generic.triangles)[0].double().numpy(),
        {name: offsets[own] for name, own in SHAPES.items()},
        generic.identity_basis[:2].double().numpy(),
        generic.uv.double().numpy(),
        generic.uv_triangles.numpy(),
    )


def write_obj(path: Path, vertices: np.ndarray, faces: list | np.ndarray) -> Path:
    """Vertices [V, 3] and faces of any number of corners, from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices.tolist()]
    lines += ["f " + " ".join(str(i + 1) for i in face) for face in faces]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_folder(folder: Path, of: Head, scale: float = 0.1, axes: np.ndarray = BLENDER) -> Path:
    """neutral.obj, one file for each shape, and two identities."""

    def write(name: str, offsets: np.ndarray | float) -> None:
        write_obj(folder / name, scale * (of.vertices + offsets) @ axes.T + [3, 4, 5], of.triangles)

    write("neutral.obj", 0.0)
    for name, offsets in of.shapes.items():
        write(f"{name}.obj", offsets)
    for i, offsets in enumerate(of.identity):
        write(f"identity/wide{i}.obj", offsets)
    return folder


def write_landmarks(path: Path, embedding) -> Path:
    """A landmark file: a triangle and its three weights a line."""
    rows = zip(embedding.triangle.tolist(), embedding.barycentric.tolist())
    text = "# iBUG 68\n" + "".join(f"{t} {a:.6f} {b:.6f} {c:.6f}\n" for t, (a, b, c) in rows)
    path.write_text(text, encoding="utf-8")
    return path


class Gltf:
    """A glTF document in the making; `edit` changes it before it is written."""

    def __init__(self):
        self.data = b""
        self.document = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "meshes": []}

    def view(self, array: np.ndarray) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        )
        self.data += array.tobytes()
        return len(self.document["bufferViews"]) - 1

    def array(self, array: np.ndarray) -> int:
        kind = {"float32": 5126, "uint32": 5125, "uint16": 5123}[array.dtype.name]
        shape = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 16: "MAT4"}[1 if array.ndim == 1 else array.shape[1]]
        self.document["accessors"].append(
            {"bufferView": self.view(array), "componentType": kind, "count": len(array), "type": shape}
        )
        return len(self.document["accessors"]) - 1

    def sparse(self, count: int, rows: np.ndarray, values: np.ndarray) -> int:
        self.document["accessors"].append(
            {
                "componentType": 5126,
                "count": count,
                "type": "VEC3",
                "sparse": {
                    "count": len(rows),
                    "indices": {"bufferView": self.view(rows.astype(np.uint16)), "componentType": 5123},
                    "values": {"bufferView": self.view(values.astype(np.float32))},
                },
            }
        )
        return len(self.document["accessors"]) - 1

    def mesh(self, primitive: dict, names: list[str] = ()) -> int:
        self.document["meshes"].append({"primitives": [primitive], "extras": {"targetNames": list(names)}})
        return len(self.document["meshes"]) - 1

    def write(self, path: Path, uri: str | None = None) -> Path:
        """As .glb, or as .gltf whose buffer is named `uri`."""
        buffer = {"byteLength": len(self.data)} | ({"uri": uri} if uri else {})
        text = json.dumps(self.document | {"buffers": [buffer]}).encode()
        text += b" " * (-len(text) % 4)
        if path.suffix == ".gltf":
            path.write_bytes(text)
            return path
        data = self.data + b"\0" * (-len(self.data) % 4)
        chunks = (
            struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
        )
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


def gltf_head(of: Head) -> Gltf:
    """The head in metres, +y up: vertices repeated along texture seams, eyeballs and teeth as a mesh of their
    own that a node scales, a target that is sparse."""
    out = Gltf()
    generic = fitkit.load_model("generic")
    first = int((generic.region < generic.region_names.index("teeth")).sum())
    assert (generic.region[:first] < generic.region_names.index("teeth")).all()
    skin = (of.triangles < first).all(1)
    nodes = []
    for own, size in ((skin, 1.0), (~skin, 0.01)):
        pairs = np.stack([of.triangles[own], of.uv_triangles[own]], -1).reshape(-1, 2)
        pairs, corners = np.unique(pairs, axis=0, return_inverse=True)
        vertex = pairs[:, 0]
        unit = 0.001 / size

        def floats(values: np.ndarray, scale: float = 1.0) -> np.ndarray:
            return (scale * values).astype(np.float32)

        targets = []
        for offsets in of.shapes.values():
            moved = offsets[vertex] * unit
            rows = np.flatnonzero(np.abs(moved).max(1) > 0)
            targets.append({"POSITION": out.sparse(len(vertex), rows, moved[rows])})
        primitive = {
            "attributes": {
                "POSITION": out.array(floats(of.vertices[vertex], unit)),
                "TEXCOORD_0": out.array(floats(of.uv[pairs[:, 1]] * [1, -1] + [0, 1])),
            },
            "indices": out.array(corners.reshape(-1).astype(np.uint32)),
            "targets": targets,
        }
        nodes.append({"mesh": out.mesh(primitive, [f"Head.{n}" for n in of.shapes]), "scale": [size] * 3})
    out.document |= {
        "nodes": [*nodes, {"children": [0, 1], "translation": [0.0, 1.6, 0.0]}],
        "scenes": [{"nodes": [2]}],
        "scene": 0,
    }
    return out


def write_arrays(path: Path, of: Head) -> Path:
    np.savez_compressed(
        path,
        vertices=0.001 * of.vertices,
        triangles=of.triangles,
        shapes=0.001 * np.stack(list(of.shapes.values())),
        shape_names=np.array(list(of.shapes)),
    )
    return path
