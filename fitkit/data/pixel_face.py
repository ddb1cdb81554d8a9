"""Pixel-Face: three simultaneous photos and a mesh for each expression of 855 people. For evaluations with
their meshes, for trainings with their 106 points."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, file_of, folders_in, images_in
from fitkit.data.subject_frames import observe_subject
from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file
from fitkit.io.images import read_image
from fitkit.io.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from fitkit.io.mesh_files import read_mesh
from fitkit.io.options import Pixels, Positive
from fitkit.io.resources import asset_path
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.observe.labels import Labels

ANCHORS = (2215, 5828, 10455, 14065, 8192, 5522, 10795)  # vertices of the release's mesh: the 7 points of NoW
VIEWS = ("left", "front", "right")  # camera folders 0, 1, 2
PIXEL_FACE = DataSet(
    "Pixel-Face",
    "https://arxiv.org/abs/2008.12444",
    "given by its authors on request for research",
    "SPLIT/SUBJECT/EXPRESSION/Images/0|1|2/t.jpg and one mesh (.obj or .ply) in Images/fusion/",
)


POINTS, TABLE = "nicp_106_pts.txt", "landmarks106.csv"


def pixel_face_samples(
    folder: str | os.PathLike,
    split: str = "val",
    unit_mm: float = 1.0,
    upright: bool = False,
    views: Sequence[str] = VIEWS,
) -> list[EvaluationSample]:
    """One sample of up to three photos for each person and expression, id 'SUBJECT/EXPRESSION', group =
    expression.

    Assumed: the mesh in Images/fusion/ has the topology whose vertices ANCHORS are; unit_mm: millimetres of
    its unit. The raw photos lie on their side: they are turned 90 degrees clockwise and mirrored, unless
    `upright`. views: of VIEWS, which photos are taken.

    Raises:
        InputError: not this layout, or no such view.
    """
    root = PIXEL_FACE.root(folder)
    _check_views(views)
    samples = [
        EvaluationSample(
            f"{expression.parent.name}/{expression.name}",
            partial(_photos, expression / "Images", upright, views),
            partial(_truth, expression / "Images", unit_mm),
            expression.name,
        )
        for expression in _expressions(root, split)
    ]
    if not samples:
        raise _empty(root, split)
    return samples


def _check_views(views: Sequence[str]) -> None:
    if not views or any(v not in VIEWS for v in views):
        raise InputError(
            f"Pixel-Face: views: expected some of {', '.join(VIEWS)}, got {', '.join(views) or 'none'}"
        )


def _expressions(root: Path, split: str) -> list[Path]:
    """Folders of people's expressions, those with a frontal photo."""
    people = folders_in(root / split)
    return [e for p in people for e in folders_in(p) if images_in(e / "Images" / "1")]


def _empty(root: Path, split: str) -> InputError:
    return PIXEL_FACE.missing(root, f"no {split}/SUBJECT/EXPRESSION/Images/1/t.jpg")


def _photos(
    folder: Path, upright: bool, views: Sequence[str] = VIEWS, landmarks: Path | None = None
) -> Subject:
    """landmarks: folder of landmark files NAME.pts, px of the photos as they are turned."""
    images, names, marks = [], [], []
    for number, name in enumerate(VIEWS):
        path = next(iter(images_in(folder / str(number))), None)
        if path is not None and name in views:
            image = read_image(path)[0]
            images.append(image if upright else np.ascontiguousarray(np.rot90(image, -1)[:, ::-1]))
            names.append(name)
            if landmarks is not None:
                marks.append(_landmark_file(landmarks, name))
    return subject_from_images(images, marks or None, names=names, name=folder.parent.name)


def _landmark_file(folder: Path, name: str) -> Path:
    found = next((p for s in LANDMARK_SUFFIXES if (p := folder / f"{name}{s}").is_file()), None)
    if found is None:
        raise InputError(
            f"{folder / name}: no landmark file ({', '.join('*' + s for s in LANDMARK_SUFFIXES)}) for this "
            "view of Pixel-Face"
        )
    return found


def _truth(folder: Path, unit_mm: float) -> ScanTruth:
    path = file_of(folder / "fusion", "*.obj", "*.ply")
    if path is None:
        raise PIXEL_FACE.missing(folder, "no mesh in fusion/")
    vertices, triangles = read_mesh(path)
    if len(vertices) <= max(ANCHORS):
        raise InputError(
            f"{path}: expected the topology of the release, at least {max(ANCHORS) + 1} vertices, got "
            f"{len(vertices)}"
        )
    return ScanTruth(unit_mm * vertices, triangles, unit_mm * vertices[list(ANCHORS)])


# ---- for trainings ----


@dataclass(frozen=True)
class PixelFaceTrainingOptions:
    """split: its folder; points: labels from the 106 points of the meshes: those of iBUG's 68 that they hold,
    DF-MVR's 101, or none; unit_mm: millimetres of their unit; mirrored: their x is that of mirrored people;
    upright: the photos need no turning; landmarks: where the 68 points in the photos come from, see `fitkit
    fit --landmarks`; landmark_folder: tree SPLIT/SUBJECT/EXPRESSION/left|front|right.pts of landmark files in
    px of the turned photos, instead; size: side of the pictures that are read, px."""

    split: str = "train"
    points: Literal["ibug68", "dfmvr101", "none"] = "ibug68"
    unit_mm: Positive = 100.0
    mirrored: bool = False
    upright: bool = False
    landmarks: str = "auto"
    landmark_folder: str = ""
    size: Pixels = 272


class PixelFace(FaceDataset):
    """One sample for each person and expression, id 'SUBJECT/EXPRESSION', so that people are held out as a
    whole: photos from the left, the front and the right of one instant, and points of its mesh."""

    name, terms = PIXEL_FACE.title, PIXEL_FACE.terms

    def __init__(self, folder: Path, options: PixelFaceTrainingOptions, model: FaceModel):
        """Raises InputError: not this layout."""
        self.root, self.options = PIXEL_FACE.root(folder), options
        self._places = _expressions(self.root, options.split)
        if not self._places:
            raise _empty(self.root, options.split)
        self.ids = tuple(f"{p.parent.name}/{p.name}" for p in self._places)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that is missing or cannot be used."""
        o, place = self.options, self._places[index]
        marks = Path(o.landmark_folder) / place.relative_to(self.root) if o.landmark_folder else None
        subject = _photos(place / "Images", o.upright, VIEWS, marks)
        seen = observe_subject(subject, o.landmarks, o.size, str(place))
        labels = Labels(moment=torch.zeros(seen.num_views, dtype=torch.int64))  # one instant
        if o.points != "none":
            points = read_points(place / "Images" / "fusion" / POINTS, o.unit_mm, o.mirrored)
            points = of_101(points) if o.points == "dfmvr101" else of_68(points)
            labels = replace(
                labels, points3d=torch.from_numpy(points).float()[None].repeat(seen.num_views, 1, 1)
            )
        return Sample(self.ids[index], replace(seen, labels=labels))


def read_points(path: Path, unit_mm: float = 1.0, mirrored: bool = False) -> np.ndarray:
    """The 106 points of a mesh [106, 3] mm.

    Raises:
        InputError: no such file, other numbers, or the points of a mirrored face where `mirrored` does not
            say so.
    """
    if not path.is_file():
        raise PIXEL_FACE.missing(path, "no such file; without 3D points: points: none")
    with foreign_file(path, f"not readable as 106 lines 'x y z' ({POINTS} of Pixel-Face)") as file:
        points = np.array([[float(v) for v in line.split()] for line in file.text().splitlines() if line])
        if points.shape != (106, 3) or not np.isfinite(points).all():
            raise ValueError(f"it has the shape {list(points.shape)}")
    points = unit_mm * points * ([-1.0, 1.0, 1.0] if mirrored else 1.0)
    marks = of_68(points)
    eyes, mouth = marks[[36, 39, 42, 45]], marks[[48, 54]]
    axes = eyes[3] - eyes[0], eyes.mean(0) - mouth.mean(0), marks[30] - (eyes.mean(0) + mouth.mean(0)) / 2
    if np.linalg.det(np.stack(axes)) <= 0:  # to the left of the subject, up, out of the face
        raise InputError(
            f"{path}: its points are those of a mirrored face, whose nose points inwards; turn the option "
            "'mirrored' of the data set"
        )
    return points


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The points among the 106 that are DF-MVR's 101, and for each of the 68 those it is the mean of."""
    with open(asset_path(TABLE), encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    ours = [[int(r["point"]) for r in rows if r["ibug68"] == str(k)] for k in range(68)]
    return tuple(int(r["point"]) for r in rows if r["of101"]), tuple(map(tuple, ours))


def of_101(points: np.ndarray) -> np.ndarray:
    """DF-MVR's 101 of the 106 points [106, 3]."""
    return points[list(_table()[0])]


def of_68(points: np.ndarray) -> np.ndarray:
    """iBUG's 68 of the 106 points [106, 3], see assets/landmarks106.csv."""
    return np.stack([points[list(rows)].mean(0) for rows in _table()[1]])
