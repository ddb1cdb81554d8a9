"""`.obj` with `.mtl` in the model's vertex order, in millimetres."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from fitkit.export.topology import Part, Topology
from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel

HEAD_FRAME = "millimetres; x to the subject's left, y up, z out of the face"


def write_obj(
    path: str | os.PathLike,
    vertices: Tensor,
    model: FaceModel,
    texture: str | None = None,
    frame: str = HEAD_FRAME,
    topology: Topology | None = None,
) -> Path:
    """OBJ with normals and, where the model has them, UV coordinates.

    Written here and not by trimesh, because trimesh repeats the vertices along UV seams and so loses their
    order.

    Args:
        vertices: [V, 3] of the model.
        texture: name of the picture beside it; then there is a .mtl file with a material for each part. There
            are no groups, which many programs split into objects with vertices in another order.
        frame: what the numbers are, for the first line.
        topology: which faces; None: all of the model, in its order and as one part.
    """
    path = Path(path)
    shown = Topology.plain(model) if topology is None else topology
    points = vertices.double().numpy()[shown.vertex]
    normals = vertex_normals(vertices[None].double(), model.triangles)[0].numpy()[shown.vertex]
    has_uv = shown.uv is not None
    lines = [f"# fitkit; {frame}"]
    if has_uv and texture:
        lines.append(f"mtllib {path.stem}.mtl")
    text = "\n".join(lines) + "\no face\n" + _rows("v %.5f %.5f %.5f\n", points)
    if has_uv:
        text += _rows("vt %.6f %.6f\n", shown.uv)
    text += _rows("vn %.4f %.4f %.4f\n", normals)
    for number, part in enumerate(shown.parts):
        if has_uv and texture:
            text += f"usemtl {part.name}\n"
        text += "".join(_faces(corner, uv) for corner, uv in shown.faces(number))
    path.write_text(text, encoding="utf-8")
    if has_uv and texture:
        materials = "\n".join(_material(part, texture) for part in shown.parts)
        path.with_suffix(".mtl").write_text(materials, encoding="utf-8")
    return path


def _faces(corner: np.ndarray, uv: np.ndarray | None) -> str:
    """Faces with corners [n, K] and rows of uv [n, K]; normals are numbered as vertices are."""
    kinds = [corner, corner] if uv is None else [corner, uv, corner]
    one = "%d//%d" if uv is None else "%d/%d/%d"
    numbers = np.stack(kinds, -1) + 1
    return _rows("f " + " ".join([one] * corner.shape[1]) + "\n", numbers)


def _material(part: Part, texture: str) -> str:
    # The exponent of Phong's highlight that is as wide; `Pr` is the roughness for programs that know it.
    exponent = min(2 / part.roughness**4 - 2, 1000)
    return (
        f"newmtl {part.name}\nKa 0 0 0\nKd 1 1 1\nKs 0.04 0.04 0.04\nNs {exponent:.4g}\n"
        f"Pr {part.roughness:g}\nillum 2\nmap_Kd {texture}\n"
    )


def _rows(template: str, values: np.ndarray) -> str:
    # One format call for the whole array is several times faster than one per row.
    return (template * len(values)) % tuple(values.ravel().tolist())
