"""`subject.glb`: the textured, animatable face as binary glTF 2.0.

Written here and not by trimesh, which cannot write morph targets.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from torch import Tensor

from fitkit.export.arkit import arkit_shapes as arkit_shapes
from fitkit.export.morphs import FRAMES_PER_SECOND, Morph, Track, morphs_of
from fitkit.export.rig import Rig, own_rig
from fitkit.export.topology import Topology, topology_of
from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel

# glTF counts in metres; its axes (+y up, +z forward, +x to the figure's left) are those of the head frame
MM = 1e-3
STILL_MM = 0.02  # vertices that a shape moves less than this are left out of its morph target
INFLUENCES = 4  # joints of a vertex that every reader of glTF knows
FLOAT, USHORT, UINT = 5126, 5123, 5125
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


def write_glb(
    path: str | os.PathLike,
    vertices: Tensor,
    model: FaceModel,
    texture_png: bytes | None = None,
    name: str = "subject",
    morphs: Sequence[Morph] | None = None,
    track: Track | None = None,
    topology: Topology | None = None,
    rig: Rig | None = None,
) -> Path:
    """Write the neutral face with UV, normals, texture and one morph target per expression: a blend shape at
    weight 1, or one standard deviation of a Gaussian coefficient, whose weights may be negative.

    Joints are a skin: a node for each joint at its place in this face, in its parent's, and the INFLUENCES
    largest weights of each vertex, made to sum to 1. Corrective shapes have no place in glTF, and the joints
    do not follow the morph targets.

    Each part of the face is a primitive of the one mesh with a material of its own; they share all vertices
    and morph targets. So programs show one object with one slider for each expression.

    Args:
        vertices: [V, 3] mm, head frame, of this model without expression and with its joints at rest; written
            in metres. Vertices on UV seams are repeated, as glTF asks.
        texture_png: the encoded picture, or None; without UV or texture the mesh carries the model's albedo
            per vertex.
        morphs: the morph targets; None: all of the model.
        track: an animation of these morph targets, of the head and its joints; None: the head stands still.
        topology: which faces; None: all of the model.
        rig: the joints; None: those that the model has. A root alone needs no skin.
    """
    morphs = morphs_of(model) if morphs is None else morphs
    topology = topology_of(model) if topology is None else topology
    buffer = _Buffer()
    vertex, uv, faces = _split_seams(topology)
    points = (vertices.double().numpy() * MM).astype(np.float32)[vertex]
    normals = vertex_normals(vertices[None].double(), model.triangles)[0].numpy().astype(np.float32)
    normals[np.abs(normals).sum(1) == 0] = (0, 0, 1)  # loose vertices: glTF wants unit length
    attributes = {
        "POSITION": buffer.accessor(points, 34962, bounds=True),
        "NORMAL": buffer.accessor(normals[vertex], 34962),
    }
    document: dict[str, Any] = {"scenes": [{"nodes": [0]}], "nodes": [{"name": name, "mesh": 0}]}
    rig = own_rig(model, vertices) if rig is None else rig
    if rig is not None and len(rig.names) > 1:
        attributes |= _weights(buffer, rig, vertex)
        bones, skin = _skeleton(buffer, rig, first=1)
        document["nodes"] = [{"name": name, "mesh": 0, "skin": 0}, *bones]
        document |= {"scenes": [{"nodes": [0, 1]}], "skins": [skin]}
    colors, look = _look(buffer, model, topology, vertex, uv, texture_png)
    attributes |= colors
    document |= look
    kind = np.uint16 if len(points) <= 65535 else np.uint32
    targets, target_names = [], []
    for morph in morphs:
        targets.append({"POSITION": buffer.sparse(morph.delta * MM, vertex, kind)})
        target_names.append(morph.name)
    primitives: list[dict[str, Any]] = []
    for number in range(len(topology.parts)):
        indices = faces[topology.of_part(number)].astype(kind).reshape(-1)
        primitives.append(
            {
                "attributes": attributes,
                "indices": buffer.accessor(indices, 34963),
                "material": number,
                "mode": 4,
            }
            | ({"targets": targets} if targets else {})
        )
    mesh: dict[str, Any] = {"name": name, "primitives": primitives}
    if targets:
        mesh["weights"] = [0.0] * len(targets)
        mesh["extras"] = {"targetNames": target_names}
    if track is not None:
        document["animations"] = [_animation(buffer, track, document)]
    document |= {"scene": 0, "meshes": [mesh]}
    Path(path).write_bytes(_container(document, buffer))
    return Path(path)


def _look(
    buffer: _Buffer,
    model: FaceModel,
    topology: Topology,
    vertex: np.ndarray,
    uv: np.ndarray | None,
    texture_png: bytes | None,
) -> tuple[dict[str, int], dict[str, Any]]:
    """What gives the vertices `vertex` [N] of the model their colours: attributes of the mesh, and the
    materials of the document with their texture."""
    attributes: dict[str, int] = {}
    parts: dict[str, Any] = {}
    shared: dict[str, Any] = {"metallicFactor": 0.0}
    if uv is not None and texture_png is not None:
        # glTF measures v downwards from the top edge of the picture.
        down = np.stack([uv[:, 0], 1 - uv[:, 1]], -1).astype(np.float32)
        attributes["TEXCOORD_0"] = buffer.accessor(down, 34962)
        image = {"name": "texture", "mimeType": "image/png", "bufferView": buffer.view(texture_png)}
        parts["images"] = [image]
        parts["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        parts["textures"] = [{"source": 0, "sampler": 0}]
        shared["baseColorTexture"] = {"index": 0}
    elif model.albedo_mean is not None:
        albedo = model.albedo_mean.clamp(0, 1).numpy().astype(np.float32)
        attributes["COLOR_0"] = buffer.accessor(albedo[vertex], 34962)
    plain = not attributes  # neither texture nor colours
    materials = [
        {
            "name": part.name,
            "doubleSided": True,
            "pbrMetallicRoughness": shared
            | {
                "roughnessFactor": part.roughness,
                "baseColorFactor": [*(part.color if plain else (1, 1, 1)), 1],
            },
        }
        for part in topology.parts
    ]
    return attributes, parts | {"materials": materials}


def _container(document: dict[str, Any], buffer: _Buffer) -> bytes:
    """The content of a .glb file."""
    document = document | {
        "asset": {"version": "2.0", "generator": "fitkit"},
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    data = bytes(buffer.data) + b"\0" * (-len(buffer.data) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text, struct.pack("<I4s", len(data), b"BIN\0") + data
    return head + b"".join(chunks)


def _weights(buffer: _Buffer, rig: Rig, vertex: np.ndarray) -> dict[str, int]:
    """JOINTS_0 and WEIGHTS_0 of vertices `vertex` [N] of the model; joint 0 is the root."""
    largest = np.argsort(-rig.weights, axis=1, kind="stable")[:, :INFLUENCES]
    kept = np.take_along_axis(rig.weights, largest, 1)
    kept /= kept.sum(1, keepdims=True)
    missing = ((0, 0), (0, INFLUENCES - kept.shape[1]))  # of a model with fewer joints
    kept = np.pad(kept, missing).astype(np.float32)[vertex]
    joints = np.pad(largest, missing).astype(np.uint16)[vertex]
    joints[kept == 0] = 0
    return {"JOINTS_0": buffer.accessor(joints, 34962), "WEIGHTS_0": buffer.accessor(kept, 34962)}


def _skeleton(buffer: _Buffer, rig: Rig, first: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A node for each joint, the root first, and their skin; first: number of the first node."""
    offset = rig.offsets * MM
    nodes: list[dict[str, Any]] = [
        {"name": name, "translation": offset[j].tolist()} for j, name in enumerate(rig.names)
    ]
    for j, parent in enumerate(rig.parents[1:], 1):
        nodes[parent].setdefault("children", []).append(first + j)
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(nodes), 1, 1))
    inverse[:, 3, :3] = -rig.places * MM  # glTF writes matrices column by column
    joints = list(range(first, first + len(nodes)))
    matrices = buffer.accessor(inverse.reshape(-1, 16))
    return nodes, {"joints": joints, "skeleton": first, "inverseBindMatrices": matrices}


def _animation(buffer: _Buffer, track: Track, document: dict[str, Any]) -> dict[str, Any]:
    """The photos as frames. Node 0 carries the mesh; of a skin, whose own node does not count, the root is
    moved in its place, and the joints after it turn."""
    times = np.arange(len(track.weights), dtype=np.float32) / FRAMES_PER_SECOND
    clock = buffer.accessor(times, bounds=True)
    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []

    def move(node: int, path: str, values: np.ndarray) -> None:
        content = buffer.accessor(np.ascontiguousarray(values, dtype=np.float32))
        samplers.append({"input": clock, "output": content, "interpolation": "LINEAR"})
        channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": path}})

    if track.weights.shape[1]:
        move(0, "weights", track.weights.reshape(-1))
    root = document["skins"][0]["joints"][0] if "skins" in document else 0
    place = np.array(document["nodes"][root].get("translation", [0.0, 0.0, 0.0]))
    move(root, "rotation", Rotation.from_matrix(track.rotation).as_quat())
    move(root, "translation", track.translation * MM + track.rotation @ place)
    if track.joints is not None:
        for j, node in enumerate(document["skins"][0]["joints"][1:]):
            move(node, "rotation", Rotation.from_matrix(track.joints[:, j]).as_quat())
    return {"name": "photos", "samplers": samplers, "channels": channels}


def _split_seams(topology: Topology) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """One vertex per (position, UV) pair: model vertex of each [N], its UV [N, 2] or None, triangles [F,
    3]."""
    corner, uv = topology.triangles, topology.uv
    if uv is None or topology.uv_triangles is None:
        return topology.vertex, None, corner
    key = corner * len(uv) + topology.uv_triangles
    unique, faces = np.unique(key.reshape(-1), return_inverse=True)
    return topology.vertex[unique // len(uv)], uv[unique % len(uv)], faces.reshape(-1, 3)


class _Buffer:
    """The binary chunk and the tables that describe it."""

    def __init__(self):
        self.data, self.views, self.accessors = bytearray(), [], []

    def view(self, content: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)})
        if target is not None:
            self.views[-1]["target"] = target
        self.data += content
        return len(self.views) - 1

    def accessor(self, values: np.ndarray, target: int | None = None, bounds: bool = False) -> int:
        kinds = {np.dtype(np.float32): FLOAT, np.dtype(np.uint16): USHORT, np.dtype(np.uint32): UINT}
        entry = {
            "bufferView": self.view(np.ascontiguousarray(values).tobytes(), target),
            "componentType": kinds[values.dtype],
            "count": len(values),
            "type": TYPES[values[0].size],
        }
        if bounds:
            entry |= {
                "min": np.atleast_1d(values.min(0)).tolist(),
                "max": np.atleast_1d(values.max(0)).tolist(),
            }
        self.accessors.append(entry)
        return len(self.accessors) - 1

    def sparse(self, delta: np.ndarray, vertex: np.ndarray, kind) -> int:
        """Morph target from displacements [V, 3] in metres: only the vertices that move are stored."""
        moved = (np.abs(delta).max(1) > STILL_MM * MM)[vertex].nonzero()[0]
        if len(moved) == 0:
            moved = np.zeros(1, np.int64)  # a sparse accessor holds at least one element
        values = np.ascontiguousarray(delta[vertex[moved]], dtype=np.float32)
        low, high = values.min(0), values.max(0)
        if len(moved) < len(vertex):
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        code = USHORT if kind is np.uint16 else UINT
        self.accessors.append(
            {
                "componentType": FLOAT,
                "count": len(vertex),
                "type": "VEC3",
                "min": low.tolist(),
                "max": high.tolist(),
                "sparse": {
                    "count": len(moved),
                    "indices": {"bufferView": self.view(moved.astype(kind).tobytes()), "componentType": code},
                    "values": {"bufferView": self.view(values.tobytes())},
                },
            }
        )
        return len(self.accessors) - 1
