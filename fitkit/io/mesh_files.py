"""Mesh files -> arrays: vertices in file order and triangles."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import trimesh

from fitkit.errors import InputError


def read_mesh(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """A `.ply` or `.obj` file -> vertices [V, 3] float64 (nothing is merged or reordered), triangles [F, 3] int64.

    Raises:
        InputError: no such file, not a triangle mesh, triangles of vertices that are not there, or vertices that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such mesh file")
    try:
        mesh = trimesh.load(path, process=False, force="mesh", maintain_order=True)
        vertices, triangles = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # the readers raise whatever comes up
        raise InputError(f"{path}: not a readable mesh: {error}") from error
    if not len(vertices) or not len(triangles):
        raise InputError(f"{path}: expected a mesh with triangles, got {len(vertices)} vertices and {len(triangles)} triangles")
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise InputError(f"{path}: expected triangles of vertices 0 to {len(vertices) - 1}, got {triangles.min()} to {triangles.max()}")
    if not np.isfinite(vertices).all():
        raise InputError(f"{path}: vertex {int((~np.isfinite(vertices)).any(1).argmax())} is not finite; repair the mesh")
    return vertices, triangles
