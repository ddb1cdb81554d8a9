"""What exported files show of a face model: its faces, sorted by parts with materials of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fitkit.models.appearance import EYES, in_region
from fitkit.models.face_model import FaceModel


@dataclass(frozen=True)
class Part:
    """A part of a head with its own material.

    name: of the material and of the group of faces; roughness: of its surface, 0 (a mirror) to 1; color:
    linear RGB where the model says none and there is no texture.
    """

    name: str
    roughness: float
    color: tuple[float, float, float]


SKIN = Part("skin", 0.85, (0.47, 0.27, 0.19))  # matt: photos bring their own gloss
WHITE, RED = (0.60, 0.56, 0.52), (0.35, 0.10, 0.09)
# With words in the names of the model's regions and, in `left` and `right`, in which half of the head.
OTHERS = (
    (Part("eye_left", 0.1, WHITE), EYES, "left"),
    (Part("eye_right", 0.1, WHITE), EYES, "right"),
    (Part("teeth", 0.25, (0.62, 0.56, 0.45)), ("teeth", "gum"), ""),
    (Part("tongue", 0.4, RED), ("tongue",), ""),
)


@dataclass(frozen=True)
class Topology:
    """The faces of an exported mesh.

    vertex: [N] int64, the model's vertex that each vertex of the mesh is; triangles: [F, 3] int64 of the N,
    counter-clockwise seen from outside; uv: [T, 2] in [0, 1], v up, or None; uv_triangles: [F, 3] int64, or
    None; parts: those that have triangles; part: [F] int64 index into parts, ascending.
    """

    vertex: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray | None
    uv_triangles: np.ndarray | None
    parts: tuple[Part, ...]
    part: np.ndarray

    @classmethod
    def plain(cls, model: FaceModel) -> Topology:
        """All of a model in its own order, as one part."""
        return cls(
            np.arange(model.num_vertices),
            model.triangles.numpy(),
            None if model.uv is None else model.uv.double().numpy(),
            None if model.uv_triangles is None else model.uv_triangles.numpy(),
            (SKIN,),
            np.zeros(len(model.triangles), np.int64),
        )

    def of_part(self, number: int) -> slice:
        """Which triangles are those of a part."""
        first, last = np.searchsorted(self.part, [number, number + 1])
        return slice(int(first), int(last))


def topology_of(model: FaceModel) -> Topology:
    """All vertices and triangles of a model, by parts."""
    whole, label = Topology.plain(model), part_labels(model)
    order = np.argsort(label, kind="stable")
    used, part = np.unique(label[order], return_inverse=True)
    known = (SKIN, *(part for part, _, _ in OTHERS))
    return replace(
        whole,
        triangles=whole.triangles[order],
        uv_triangles=None if whole.uv_triangles is None else whole.uv_triangles[order],
        parts=tuple(known[number] for number in used),
        part=part,
    )


def part_labels(model: FaceModel) -> np.ndarray:
    """The part of each triangle [F], by the names of the regions that all of its corners lie in: 0 is the
    skin, with the inside of the mouth that hangs on it, others count OTHERS from 1."""
    of_vertex = np.zeros(model.num_vertices, np.int64)
    x = model.mean[:, 0].numpy()
    half = {"left": x > 0, "right": x <= 0, "": np.ones(len(x), bool)}
    for number, (_, words, side) in enumerate(OTHERS, 1):
        of_vertex[in_region(model, words) & half[side] & (of_vertex == 0)] = number
    corner = of_vertex[model.triangles.numpy()]
    return np.where((corner == corner[:, :1]).all(1), corner[:, 0], 0)
