"""Distance of corresponding vertices: meshes of one topology, or of two that a table of correspondences
joins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.models.correspondence import correspondence
from fitkit.models.face_model import FaceModel


def vertex_distances(vertices: np.ndarray, truth: np.ndarray, with_scale: bool = True) -> np.ndarray:
    """Distances [N] of corresponding points after the least-squares similarity (or rigid motion) of all of
    them.

    Args:
        vertices, truth: [N, 3] mm, row by row the same place; with_scale: False keeps the prediction's size.
    Source:
        Per-vertex error of MoFA (Tewari et al., ICCV 2017) and FML (CVPR 2019) on FaceWarehouse, as PGN uses
        it.
    """
    ours, scan = (torch.from_numpy(np.asarray(x, np.float64))[None] for x in (vertices, truth))
    return (similarity_align(ours, scan, with_scale=with_scale).apply(ours) - scan).norm(dim=-1)[0].numpy()


@dataclass(frozen=True)
class Correspondence:
    """Vertices of a true topology as points on the predicted one: vertex [N] of the truth lies on `triangle`
    [N] of the prediction, with weights `barycentric` [N, 3]."""

    vertex: np.ndarray
    triangle: np.ndarray
    barycentric: np.ndarray

    def check(self, triangles: int, vertices: int, where: str) -> None:
        """Refuse a table that does not belong to a prediction of that many triangles and a truth of that many
        vertices."""
        for name, index, count in (("triangle", self.triangle, triangles), ("vertex", self.vertex, vertices)):
            if not len(index) or index.min() < 0 or index.max() >= count:
                raise InputError(
                    f"{where}: {name}: expected indices from 0 to {count - 1}; the table belongs to another "
                    "mesh"
                )


def corresponding_distances(
    vertices: np.ndarray, triangles: np.ndarray, truth: np.ndarray, table: Correspondence
) -> np.ndarray:
    """`vertex_distances` with scale between topologies: prediction [V, 3] with triangles [F, 3], truth [W, 3]
    -> [N] mm."""
    points = (
        table.barycentric[..., None] * np.asarray(vertices, np.float64)[np.asarray(triangles)[table.triangle]]
    ).sum(1)
    return vertex_distances(points, np.asarray(truth)[table.vertex])


def correspondence_of(source: FaceModel, target: FaceModel, everything: bool = False) -> Correspondence:
    """A table for meshes with the vertices of `target`, as a data set has them, and predictions of `source`.

    Args:
        target: the topology as a face model (`fitkit model import own MESH`); everything: all vertices that
            have a partner; False: those of its face.
    Raises:
        InputError: the two faces cannot be laid onto each other.
    """
    found = correspondence(source, target)
    used = found.weight > 0
    vertex = (used if everything else used & target.face).nonzero()[:, 0]
    weights = found.barycentric[vertex].double().numpy()
    return Correspondence(vertex.numpy(), found.triangle[vertex].numpy(), weights)


def write_correspondence(table: Correspondence, path: str | os.PathLike) -> None:
    """The .npz that `read_correspondence` reads, whole or not at all."""
    with written_whole(Path(path)) as part, open(part, "wb") as file:
        np.savez_compressed(file, **vars(table))


def read_correspondence(path) -> Correspondence:
    """A .npz with vertex [N] int, triangle [N] int, barycentric [N, 3].

    Raises:
        InputError: no such file, or arrays of another shape.
    """
    what = (
        "cannot be read as a table of corresponding points (.npz with vertex [N], triangle [N], "
        "barycentric [N, 3])"
    )
    with foreign_file(path, what, limit=DATA_BYTES) as file:
        arrays = file.npz(("vertex", "triangle", "barycentric"))
        vertex, triangle, weight = (arrays[k] for k in ("vertex", "triangle", "barycentric"))
    if (
        vertex.ndim != 1
        or vertex.shape != triangle.shape
        or weight.shape != (len(vertex), 3)
        or {vertex.dtype.kind, triangle.dtype.kind} - set("iu")
        or weight.dtype.kind not in "iuf"
        or not np.isfinite(weight).all()
    ):
        raise InputError(
            f"{path}: expected integers vertex [N] and triangle [N] and barycentric [N, 3], "
            f"got {list(vertex.shape)}, {list(triangle.shape)}, {list(weight.shape)}"
        )
    return Correspondence(vertex.astype(np.int64), triangle.astype(np.int64), weight.astype(np.float64))
