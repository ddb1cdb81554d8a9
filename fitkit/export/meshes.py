"""`.obj` with `.mtl` in the model's vertex order, in millimetres."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel

HEAD_FRAME = "millimetres; x to the subject's left, y up, z out of the face"


def write_obj(
    path: str | os.PathLike,
    vertices: Tensor,
    model: FaceModel,
    texture: str | None = None,
    frame: str = HEAD_FRAME,
) -> Path:
    """OBJ with normals and, where the model has them, UV coordinates; `texture` names the picture beside it,
    `frame` says in the first line what the numbers are.

    Written here and not by trimesh, because trimesh repeats the vertices along UV seams and so loses their
    order.
    """
    path = Path(path)
    points = vertices.double().numpy()
    normals = vertex_normals(vertices[None].double(), model.triangles)[0].numpy()
    corner = model.triangles.numpy() + 1
    has_uv = model.uv is not None
    lines = [f"# fitkit; {frame}"]
    if has_uv and texture:
        lines.append(f"mtllib {path.stem}.mtl")
    text = "\n".join(lines) + "\no face\n" + _rows("v %.5f %.5f %.5f\n", points)
    if has_uv:
        text += _rows("vt %.6f %.6f\n", model.uv.double().numpy())
    text += _rows("vn %.4f %.4f %.4f\n", normals)
    if has_uv and texture:
        text += "usemtl face\n"
    if has_uv:
        uv = model.uv_triangles.numpy() + 1
        text += _rows(
            "f " + " ".join(["%d/%d/%d"] * 3) + "\n", np.stack([corner, uv, corner], -1).reshape(-1, 9)
        )
    else:
        text += _rows("f " + " ".join(["%d//%d"] * 3) + "\n", np.stack([corner, corner], -1).reshape(-1, 6))
    path.write_text(text, encoding="utf-8")
    if has_uv and texture:
        path.with_suffix(".mtl").write_text(
            f"newmtl face\nKa 0 0 0\nKd 1 1 1\nKs 0.03 0.03 0.03\nNs 20\nillum 2\nmap_Kd {texture}\n",
            encoding="utf-8",
        )
    return path


def _rows(template: str, values: np.ndarray) -> str:
    # One format call for the whole array is several times faster than one per row.
    return (template * len(values)) % tuple(values.ravel().tolist())
