"""What exported files show of a face model: its faces, sorted by parts with materials of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fitkit.export.morphs import morphs_of
from fitkit.geometry.quads import pair_triangles, quad_corners
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


# What squared distances from the full mesh count beside those of the face, the eyes and the teeth.
AWAY = 0.25
MOST_SHAPES = 64  # of the model, which a coarser mesh follows


@dataclass(frozen=True)
class Topology:
    """The faces of an exported mesh.

    vertex: [N] int64, the model's vertex that each vertex of the mesh is; triangles: [F, 3] int64 of the N,
    counter-clockwise seen from outside; uv: [T, 2] in [0, 1], v up, or None; uv_triangles: [F, 3] int64, or
    None; parts: those that have triangles; part: [F] int64 index into parts, ascending; quads: [Q, 2] int64
    rows of triangles that are one face together, where a file can hold such faces.
    """

    vertex: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray | None
    uv_triangles: np.ndarray | None
    parts: tuple[Part, ...]
    part: np.ndarray
    quads: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))

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

    def faces(self, number: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The faces of a part, its quads and then the triangles that are left: vertices [n, 4 or 3] and rows
        of uv [n, 4 or 3] or None."""
        inside = self.of_part(number)
        quads = self.quads[self.part[self.quads[:, 0]] == number]
        left = np.setdiff1d(np.arange(inside.start, inside.stop), quads)
        uv = self.uv_triangles
        return [
            (
                quad_corners(self.triangles, self.triangles, quads),
                None if uv is None else quad_corners(uv, self.triangles, quads),
            ),
            (self.triangles[left], None if uv is None else uv[left]),
        ]


def topology_of(model: FaceModel, count: int | None = None, notes: list[str] | None = None) -> Topology:
    """The faces of a model, by parts.

    count: how many of its vertices the mesh has at most; None: all. The same ones for all people. Where so
    few cannot be, a sentence in `notes` says so.
    """
    whole, label = Topology.plain(model), part_labels(model)
    order = np.argsort(label, kind="stable")
    used, part = np.unique(label[order], return_inverse=True)
    known = (SKIN, *(part for part, _, _ in OTHERS))
    whole = replace(
        whole,
        triangles=whole.triangles[order],
        uv_triangles=None if whole.uv_triangles is None else whole.uv_triangles[order],
        parts=tuple(known[number] for number in used),
        part=part,
    )
    if count is None or count >= model.num_vertices:
        return whole
    shown = _coarser(model, whole, count)
    if len(shown.vertex) > count and notes is not None:
        notes.append(
            f"the mesh has {len(shown.vertex)} vertices, not {count}: without the others it would tear, fold "
            "or lose a landmark"
        )
    return shown


def _coarser(model: FaceModel, whole: Topology, count: int) -> Topology:
    """Found on the mean face and its expression shapes. Parts, borders, texture seams and the triangles of
    landmarks stay."""
    from fitkit.geometry.decimate import decimate  # numba takes a while

    corners, corner = _corners(whole)
    texture = np.zeros((len(corners), 2)) if whole.uv is None else whole.uv[corners[:, 1]]
    locked = np.zeros(model.num_vertices, bool)
    locked[model.triangles[model.landmarks.triangle[model.landmarks.present]].numpy()] = True
    weight = np.where(model.face.numpy() | in_region(model, (*EYES, "teeth")), 1.0, AWAY)
    rows, triangles, corner = decimate(
        _shapes(model), whole.triangles, corner, texture, weight, locked, count
    )
    vertex, triangles = _numbered(triangles)
    uv, uv_triangles = None, None
    if whole.uv is not None:
        used, uv_triangles = _numbered(corners[corner, 1])
        uv = whole.uv[used]
    part = whole.part[rows]
    return Topology(vertex, triangles, uv, uv_triangles, whole.parts, part)


def with_quads(model: FaceModel, shown: Topology) -> Topology:
    """With triangles joined to quads where these are nearly flat and convex in all expression shapes, within
    parts and not across seams of the texture."""
    points = _shapes(model)[:, shown.vertex]
    return replace(shown, quads=pair_triangles(points, shown.triangles, _corners(shown)[1]))


def _shapes(model: FaceModel) -> np.ndarray:
    """[S, V, 3] mm: the mean face, and with each expression shape at 1, the largest MOST_SHAPES."""
    mean = model.mean.double().numpy()
    shapes = sorted((m.delta for m in morphs_of(model)), key=lambda delta: -np.abs(delta).max())
    return np.stack([mean, *(mean + delta for delta in shapes[:MOST_SHAPES])])


def _corners(shown: Topology) -> tuple[np.ndarray, np.ndarray]:
    """Vertex, row of uv and part of what differs in these, [C, 3], and which each corner is, [F, 3]."""
    uv = shown.triangles if shown.uv_triangles is None else shown.uv_triangles
    key = np.stack([shown.triangles, uv, np.broadcast_to(shown.part[:, None], uv.shape)], -1)
    corners, corner = np.unique(key.reshape(-1, 3), axis=0, return_inverse=True)
    return corners, corner.reshape(-1, 3)


def _numbered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur in an array, ascending, and the array as numbers of these."""
    used, number = np.unique(rows, return_inverse=True)
    return used, number.reshape(rows.shape)


def part_labels(model: FaceModel) -> np.ndarray:
    """The part of each triangle [F]: that of its corners, see `part_of_vertices`, or 0 where these differ."""
    corner = part_of_vertices(model)[model.triangles.numpy()]
    return np.where((corner == corner[:, :1]).all(1), corner[:, 0], 0)


def part_of_vertices(model: FaceModel) -> np.ndarray:
    """The part of each vertex [V], by the name of its region: 0 is the skin, with the inside of the mouth
    that hangs on it, others count OTHERS from 1."""
    labels = np.zeros(model.num_vertices, np.int64)
    x = model.mean[:, 0].numpy()
    half = {"left": x > 0, "right": x <= 0, "": np.ones(len(x), bool)}
    for number, (_, words, side) in enumerate(OTHERS, 1):
        labels[in_region(model, words) & half[side] & (labels == 0)] = number
    return labels
