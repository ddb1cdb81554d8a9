"""Binary glTF files read back with numpy alone, as the standard describes them."""

import json
import struct

import numpy as np
from scipy.spatial.transform import Rotation

WIDTH = {5123: np.uint16, 5125: np.uint32, 5126: np.float32}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def read(path):
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    size2, kind2 = struct.unpack_from("<I4s", data, 20 + size)
    assert kind2 == b"BIN\0" and size2 % 4 == 0 and 28 + size + size2 == len(data)
    return document, data[28 + size :]


def _view(document, binary, index):
    entry = document["bufferViews"][index]
    assert entry["byteOffset"] % 4 == 0
    return binary[entry["byteOffset"] : entry["byteOffset"] + entry["byteLength"]]


def accessor(document, binary, index):
    entry = document["accessors"][index]
    width = COMPONENTS[entry["type"]]
    values = np.zeros((entry["count"], width), WIDTH[entry["componentType"]])
    if "bufferView" in entry:
        values[:] = np.frombuffer(_view(document, binary, entry["bufferView"]), values.dtype).reshape(
            -1, width
        )
    if "sparse" in entry:
        sparse = entry["sparse"]
        rows = np.frombuffer(
            _view(document, binary, sparse["indices"]["bufferView"]),
            WIDTH[sparse["indices"]["componentType"]],
        )
        assert (
            len(rows) == sparse["count"] and (np.diff(rows.astype(int)) > 0).all()
        )  # the standard wants them ascending
        values[rows] = np.frombuffer(
            _view(document, binary, sparse["values"]["bufferView"]), np.float32
        ).reshape(-1, 3)
    if "min" in entry:
        np.testing.assert_array_equal(values.min(0), np.float32(entry["min"]))
        np.testing.assert_array_equal(values.max(0), np.float32(entry["max"]))
    return values


def skinned(document, binary, rotations):
    """Vertices [N, 3] mm of a glTF file as its standard moves them, skin by skin: joints whose node has a
    name of `rotations` turned by that rotation vector (rad), without morph targets."""
    nodes = document["nodes"]
    parent = {child: at for at, node in enumerate(nodes) for child in node.get("children", [])}

    def world(at):
        local = np.eye(4)
        local[:3, 3] = nodes[at].get("translation", (0, 0, 0))
        local[:3, :3] = Rotation.from_rotvec(rotations.get(nodes[at]["name"], (0, 0, 0))).as_matrix()
        return world(parent[at]) @ local if at in parent else local

    (node,) = (node for node in nodes if "mesh" in node)
    skin = document["skins"][node["skin"]]
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    bind = accessor(document, binary, skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    matrices = np.stack([world(at) for at in skin["joints"]]) @ bind
    points, joints, weights = (
        accessor(document, binary, attributes[key]) for key in ("POSITION", "JOINTS_0", "WEIGHTS_0")
    )
    blended = (weights[..., None, None].astype(float) * matrices[joints]).sum(1)
    return 1e3 * (blended @ np.concatenate([points, np.ones((len(points), 1))], 1)[..., None])[:, :3, 0]
