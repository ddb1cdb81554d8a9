"""People whose shape is known: the true meshes of a benchmark, and the points of them that count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from fitkit.errors import InputError
from fitkit.evaluate.scan_to_mesh import NOW_POINTS, now_crop
from fitkit.io.foreign import DATA_BYTES, foreign_file, refused_as
from fitkit.io.mesh_files import read_mesh
from fitkit.render.rasterizer import rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.camera import Camera

POINTS = list(NOW_POINTS)
# Files of ground_truth/SUBJECT: mesh, landmarks, face region; as `fitkit synth` writes them, and of a scan.
TRUTH_FILES = (
    ("neutral.ply", "landmarks3d_neutral.npy", "face_region.npy"),
    ("mesh.ply", "landmarks3d.npy", "face_region_front.npy"),
)
SKIN_POINTS = 8000  # over the whole face region; five times as many change a mean by 0.003 mm at most
SEEN_YAWS, SEEN_PIXELS, SEEN_TOLERANCE_MM = (-45.0, 0.0, 45.0), 512, 1.0  # pixels: of the longer side


@dataclass(frozen=True)
class Truth:
    """One person of a benchmark: the scan and what belongs to it.

    vertices [V, 3] mm, triangles [F, 3]; landmarks [68, 3] mm on the scan, NaN where one is missing, but not
    of POINTS; face [N] vertex indices of the narrow face.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray
    face: np.ndarray

    @cached_property
    def skin(self) -> np.ndarray:
        """Points [N, 3] mm, spread evenly by area over the narrow face within the NoW crop, as far as it can
        be seen from outside: from straight ahead or from 45 degrees to either side (insides of mouth,
        nostrils and eye sockets are not). Always the same ones."""
        inside = np.zeros(len(self.vertices), bool)
        inside[self.face] = True
        triangles = self.triangles[inside[self.triangles].all(1)]
        points = even_points(self.vertices, triangles, SKIN_POINTS)
        points = points[now_crop(points, self.landmarks[POINTS])]
        return points[seen_from_outside(points, self.vertices, self.triangles, self.landmarks[POINTS])]


def even_points(vertices: np.ndarray, triangles: np.ndarray, count: int) -> np.ndarray:
    """Points [count, 3] spread evenly by area over a surface, however its triangles [F, 3] differ in size;
    always the same ones.

    The triangles are put into the order of a k-d tree, in which neighbours follow each other; each of `count`
    equal parts of their summed area gets one point, at a random place within its triangle. No triangle, no
    points.
    """
    if not len(triangles):
        return np.zeros((0, 3))
    triangles = triangles[cKDTree(vertices[triangles].mean(1), leafsize=1).indices]
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    total = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    k = np.searchsorted(total, (np.arange(count) + 0.5) / count * total[-1])
    u, w = np.random.default_rng(0).random((2, count, 1))
    u = np.sqrt(u)  # evenly within a triangle: Osada et al., "Shape distributions", 2002, section 3.2
    return (1 - u) * a[k] + u * (1 - w) * b[k] + u * w * c[k]


def seen_from_outside(
    points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray, landmarks: np.ndarray
) -> np.ndarray:
    """[N] bool: nothing of the mesh lies in front of the point in one of the parallel projections from
    SEEN_YAWS at least.

    Args:
        points: [N, 3] mm on the mesh of vertices [V, 3] mm, triangles [F, 3]; landmarks: [7, 3] NOW_POINTS,
            which say where the front is.
    """
    right, up = landmarks[3] - landmarks[0], landmarks[:4].mean(0) - landmarks[5:].mean(0)
    front = np.cross(right, up)
    right, front = right / np.linalg.norm(right), front / np.linalg.norm(front)
    down, seen = np.cross(right, front), np.zeros(len(points), bool)
    for yaw in np.radians(SEEN_YAWS) if len(points) else ():
        side, ahead = np.cos(yaw) * right - np.sin(yaw) * front, -np.sin(yaw) * right - np.cos(yaw) * front
        axes = np.stack([side, down, ahead], 1)
        mesh, place = vertices @ axes, points @ axes
        low, extent = place.min(0), np.ptp(place[:, :2], axis=0)
        low[2] = mesh[:, 2].min() - 10.0  # the rasterizer draws nothing nearer than 1 mm
        per_mm = SEEN_PIXELS / extent.max()
        camera = Camera(
            torch.tensor([per_mm * Camera.REFERENCE_DEPTH]), torch.zeros(1, 2), torch.ones(1), "orthographic"
        )
        mesh, place = (torch.from_numpy(p - low)[None] for p in (mesh, place))
        width, height = (int(n) + 2 for n in extent * per_mm)
        depth = rasterize(camera.clip(mesh), torch.from_numpy(triangles), (height, width)).depth
        seen |= seen_by_depth(camera.project(place)[0], place[..., 2], depth, 1.0, SEEN_TOLERANCE_MM)[
            0
        ].numpy()
    return seen


def subject_names(data: str | os.PathLike, chosen: Sequence[str] = ()) -> list[str]:
    """Subject folders of a benchmark folder that have a ground truth, sorted. chosen: only these; empty: all.

    Raises:
        InputError: no such folder, nothing in it that can be scored, or not the chosen ones.
    """
    folder = Path(data)
    truth = folder / "ground_truth"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected SUBJECT/ folders and ground_truth/SUBJECT/")
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir()
        and p.name != "ground_truth"
        and any((truth / p.name / files[0]).is_file() for files in TRUTH_FILES)
    )
    if not names:
        raise InputError(
            f"{folder}: no SUBJECT/ folder with a ground_truth/SUBJECT/neutral.ply or, of a scan, mesh.ply; "
            "is this the right folder?"
        )
    unknown = [n for n in chosen if n not in names]
    if unknown:
        raise InputError(f"{data}: no subject '{unknown[0]}'; there are: {', '.join(names)}")
    return [n for n in names if not chosen or n in chosen]


def load_truth(folder: str | os.PathLike) -> Truth:
    """Read ground_truth/SUBJECT: neutral.ply, landmarks3d_neutral.npy and face_region.npy; where there is no
    neutral.ply, those of a scan: mesh.ply, landmarks3d.npy and face_region_front.npy.

    Raises:
        InputError: a file is missing or has another shape, or they do not belong together.
    """
    folder = Path(folder)
    mesh, points, region = next(
        (files for files in TRUTH_FILES if (folder / files[0]).is_file()), TRUTH_FILES[0]
    )
    vertices, triangles = read_mesh(folder / mesh)
    landmarks, face = _landmarks(folder / points), _array(folder / region)
    if (
        face.ndim != 1
        or face.dtype.kind not in "iu"
        or not len(face)
        or not 0 <= face.min() <= face.max() < len(vertices)
    ):
        raise InputError(
            f"{folder / region}: expected indices of the {len(vertices)} vertices of {mesh}, got "
            f"{face.dtype} {list(face.shape)}"
        )
    truth = Truth(vertices, triangles, landmarks, face.astype(np.int64))
    with (
        refused_as(f"{folder}: {mesh} and {points} are no face", "expected both of one person, in one frame"),
        np.errstate(all="ignore"),
    ):
        skin = truth.skin
    if not len(skin):
        raise InputError(
            f"{folder}: no skin of {region} can be seen around the landmarks; expected {mesh}, {points} and "
            f"{region} of one person, in one frame"
        )
    return truth


def load_photo_truths(folder: str | os.PathLike, truth: Truth, views: Sequence[str]) -> dict[str, Truth]:
    """The true face in each photo, with its expression: view name -> VIEW.ply and landmarks3d_VIEW.npy of
    ground_truth/SUBJECT, or else mesh.ply and landmarks3d.npy, which are those of all photos. Views without
    these files are left out.

    Args:
        truth: of the same folder; its face region counts here too.
    Raises:
        InputError: a file cannot be read, or the mesh has other vertices than that of `truth`.
    """
    folder, read, out = Path(folder), {}, {}
    for view in views:
        for mesh, points in ((f"{view}.ply", f"landmarks3d_{view}.npy"), ("mesh.ply", "landmarks3d.npy")):
            if not ((folder / mesh).is_file() and (folder / points).is_file()):
                continue
            if mesh not in read:
                vertices, triangles = read_mesh(folder / mesh)
                if len(vertices) != len(truth.vertices):
                    raise InputError(
                        f"{folder / mesh}: expected the {len(truth.vertices)} vertices of the neutral mesh, "
                        f"got {len(vertices)}"
                    )
                read[mesh] = Truth(vertices, triangles, _landmarks(folder / points), truth.face)
            out[view] = read[mesh]
            break
    return out


def _landmarks(path: Path) -> np.ndarray:
    landmarks = _array(path)
    if landmarks.shape != (68, 3):
        raise InputError(f"{path}: expected [68, 3], got {list(landmarks.shape)}")
    if landmarks.dtype.kind not in "iuf" or np.isinf(landmarks).any():
        raise InputError(f"{path}: expected finite numbers, got {landmarks.dtype}")
    missing = [number for number in POINTS if np.isnan(landmarks[number]).any()]
    if missing:
        raise InputError(
            f"{path}: point {missing[0]} is missing; expected the eye corners, the nose bottom and the mouth "
            f"corners ({', '.join(map(str, POINTS))}), others may be nan"
        )
    return landmarks.astype(np.float64)


def _array(path: Path) -> np.ndarray:
    with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
        return file.npy()
