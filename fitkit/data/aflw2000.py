"""AFLW2000-3D: 2,000 photos with 68 points and the parameters of a fitted face model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample
from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, MEGABYTE, check_indices, foreign_file
from fitkit.io.images import SUFFIXES, read_image
from fitkit.io.subject import Subject, subject_from_images

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


@dataclass(frozen=True)
class DenseModel:
    """BFM with FaceWarehouse expressions as 3DDFA packs it. mean [V * 3], shape [V * 3, 199], expression [V *
    3, 29]; triangles [F, 3]; keypoints [68] vertex indices."""

    mean: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    keypoints: np.ndarray

    def in_picture(
        self, shape: np.ndarray, expression: np.ndarray, pose: np.ndarray, height: int
    ) -> np.ndarray:
        """Vertices [V, 3] in the picture: x, y px counted from 0, y down; z px, larger = nearer.

        pose: pitch, yaw, roll in radians, tx, ty, tz, scale; R = Rx(pitch) Ry(yaw) Rz(roll), y up before the
        flip.
        """
        vertices = (self.mean + self.shape @ shape + self.expression @ expression).reshape(-1, 3)
        (sx, sy, sz), (cx, cy, cz) = np.sin(pose[:3]), np.cos(pose[:3])
        Rx = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
        Ry = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        Rz = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
        out = pose[6] * vertices @ (Rx @ Ry @ Rz).T + pose[3:6]
        # Matlab counts pixels from 1: y_image = height + 1 - y, then 1 is subtracted from both.
        return np.column_stack([out[:, 0] - 1, height - out[:, 1], out[:, 2]])


def read_3ddfa_model(folder: Path) -> DenseModel:
    """Model_Shape.mat (mu_shape, w, tri, keypoints) and Model_Exp.mat (mu_exp, w_exp).

    Raises:
        InputError: a file is missing, or its arrays do not fit together.
    """
    what = "cannot be read as 3DDFA's face model"
    remedy = (
        "expected Model_Shape.mat and Model_Exp.mat, made from the Basel Face Model, whose licence form is "
        "at https://faces.dmi.unibas.ch"
    )
    with (
        foreign_file(
            folder / "Model_Shape.mat", what, remedy, limit=DATA_BYTES, where=f"{folder}:"
        ) as shapes,
        foreign_file(
            folder / "Model_Exp.mat", what, remedy, limit=DATA_BYTES, where=f"{folder}:"
        ) as expressions,
    ):
        shape, expression = (
            shapes.mat(("mu_shape", "w", "tri", "keypoints")),
            expressions.mat(("mu_exp", "w_exp")),
        )
        mean = (
            np.asarray(shape["mu_shape"], np.float64).ravel()
            + np.asarray(expression["mu_exp"], np.float64).ravel()
        )
        triangles, keypoints = (
            shape["tri"].astype(np.int64),
            shape["keypoints"].ravel().astype(np.int64)[:68] - 1,
        )
        triangles = (triangles if triangles.shape[1] == 3 else triangles.T) - 1
        model = DenseModel(
            mean,
            np.asarray(shape["w"], np.float64),
            np.asarray(expression["w_exp"], np.float64),
            triangles,
            keypoints,
        )
        if (
            len(keypoints) != 68
            or len(mean) % 3
            or len(model.shape) != len(mean)
            or len(model.expression) != len(mean)
        ):
            raise ValueError("arrays of different lengths")
        if not all(np.isfinite(a).all() for a in (mean, model.shape, model.expression)):
            raise ValueError("not all numbers are finite")
        check_indices(triangles, len(mean) // 3, f"{folder}: tri, counted from 0")
        check_indices(keypoints, len(mean) // 3, f"{folder}: keypoints, counted from 0")
    return model
