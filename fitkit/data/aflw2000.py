"""AFLW2000-3D: 2,000 photos with 68 points and the parameters of a fitted face model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample
from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.images import SUFFIXES, read_image
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.formats.bfm09 import DenseModel, read_3ddfa_model

YAW_BINS = ((0, 30), (30, 60), (60, 90))  # degrees of |yaw|: [0, 30], (30, 60], (60, 90]
LABEL_BYTES = 16 * MEGABYTE  # of a .mat of one picture; the published ones have less than 1
AFLW2000 = DataSet(
    "AFLW2000-3D",
    "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm",
    "research use only",
    "image00002.jpg with image00002.mat (pt3d_68, Pose_Para) for each of 2,000 pictures",
)


@dataclass(frozen=True)
class PointsTruth:
    """points: [68, 2] px, hidden ones included; yaw: degrees (positive: the nose points to the left side of
    the picture); vertices, triangles: the dense surface [V, 3] in the picture (x, y px, y down; z px, larger
    = nearer) and [F, 3], or None; interocular: distance of its outer eye corners, px, or None."""

    points: np.ndarray
    yaw: float
    vertices: np.ndarray | None = None
    triangles: np.ndarray | None = None
    interocular: float | None = None


def aflw2000_samples(folder: str | os.PathLike, model: str = "") -> list[EvaluationSample]:
    """One sample for each picture with its .mat, id = file stem, group = bin of |yaw| of the labelled pose.

    model: folder with 3DDFA's Model_Shape.mat and Model_Exp.mat, which make the dense truth; empty: 68 points
    only.

    Raises:
        InputError: not this layout, or a model that cannot be used.
    """
    root = AFLW2000.root(folder)
    pairs = [
        (p, p.with_suffix(".mat"))
        for p in sorted(root.iterdir())
        if p.suffix.lower() in SUFFIXES and p.with_suffix(".mat").is_file()
    ]
    if not pairs:
        raise AFLW2000.missing(root, "no picture with a .mat beside it")
    basis = read_3ddfa_model(Path(model)) if model else None
    return [
        EvaluationSample(
            image.stem,
            partial(_photo, image),
            partial(_truth, image, labels, basis),
            yaw_bin(read_labels(labels)[1]),
        )
        for image, labels in pairs
    ]


def yaw_bin(yaw: float) -> str:
    """Name of the bin of |yaw| degrees; beyond 90 the last."""
    low, high = next(((a, b) for a, b in YAW_BINS if abs(yaw) <= b), YAW_BINS[-1])
    return f"yaw {low}-{high}"


def read_labels(path: Path) -> tuple[np.ndarray, float]:
    """Points [68, 2] px, counted from 0, and yaw in degrees of a .mat file of AFLW2000-3D or 300W-LP.

    Raises:
        InputError: not such a file.
    """
    with foreign_file(
        path, "cannot be read as labels of AFLW2000-3D (pt3d_68, Pose_Para)", limit=LABEL_BYTES
    ) as file:
        content = file.mat(("pt3d_68", "Pose_Para"))
        points = content["pt3d_68"].astype(np.float64)[:2].T - 1.0  # written by Matlab, which counts from 1
        yaw = float(np.degrees(content["Pose_Para"].ravel()[1]))
        if not (np.isfinite(points).all() and np.isfinite(yaw)):
            raise ValueError("not all numbers are finite")
    if points.shape != (68, 2):
        raise InputError(f"{path}: pt3d_68: expected [3, 68], got {list(content['pt3d_68'].shape)}")
    return points, yaw


def _photo(path: Path) -> Subject:
    return subject_from_images([path], name=path.stem)


def _truth(image: Path, labels: Path, basis: DenseModel | None) -> PointsTruth:
    points, yaw = read_labels(labels)
    if basis is None:
        return PointsTruth(points, yaw)
    with foreign_file(
        labels, "Shape_Para, Exp_Para or Pose_Para do not belong to the given model", limit=LABEL_BYTES
    ) as file:
        content = file.mat(("Pose_Para", "Shape_Para", "Exp_Para"))
        vertices = basis.in_picture(
            content["Shape_Para"].ravel(),
            content["Exp_Para"].ravel(),
            content["Pose_Para"].ravel(),
            read_image(image)[0].shape[0],
        )
        if not np.isfinite(vertices).all():
            raise ValueError("not all numbers are finite")
    interocular = float(np.linalg.norm(vertices[basis.keypoints[36]] - vertices[basis.keypoints[45]]))
    return PointsTruth(points, yaw, vertices, basis.triangles, interocular)
