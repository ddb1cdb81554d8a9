"""The Basel Face Model of 2009 with the expressions of FaceWarehouse -> FaceModel: the published .mat, or the
files that 3DDFA and 300W-LP make of it.

Source: Paysan et al., "A 3D Face Model for Pose and Illumination Invariant Face Recognition", AVSS 2009;
    Cao et al., "FaceWarehouse", TVCG 2014; Zhu et al., "Face Alignment Across Large Poses: A 3D Solution",
    CVPR 2016. The files are in micrometres and in the axes of the head frame, their triangles run clockwise.
    The means of shapes and of expressions are added, as 3DDFA does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.foreign import (
    ARRAY_BYTES,
    DATA_BYTES,
    MEGABYTE,
    check_indices,
    check_shapes,
    foreign_file,
    refused_as,
)
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.parts import real
from fitkit.models.formats.pca import BASEL_LICENSE, columns, face_model, from_1, linear_albedo, numbered

MICROMETRES = 1e-3  # mm
ORIGINAL, PACKED = "01_MorphableModel.mat", "Model_Shape.mat"
EXPRESSIONS, SPREAD = "Exp_Pca.bin", "std_exp.txt"
TRIMMED = ("BFM_exp_idx.mat", "model_info.mat", "Model_Exp.mat")  # the first that is there has trimIndex
KEYPOINTS, FRONT = "facemodel_info.mat", "BFM_front_idx.mat"  # of the front, and where it lies in the mesh
SMALL_BYTES = 64 * MEGABYTE  # of the files of indices
NOT_3DDFA = "cannot be read as 3DDFA's face model"
GET_3DDFA = (
    "expected Model_Shape.mat and Model_Exp.mat, made from the Basel Face Model, whose licence form is at "
    "https://faces.dmi.unibas.ch"
)
SOURCE = (
    "Basel Face Model 2009, faces.dmi.unibas.ch, Paysan et al., AVSS 2009; expressions of FaceWarehouse, Cao "
    "et al., TVCG 2014, as transferred by Guo et al. (github.com/Juyong/3DFace) and 3DDFA"
)
NOTES = (
    "Identity coefficients are standard-normal: those of 300W-LP and 3DDFA (Shape_Para) are these times the "
    "standard deviations of the file (sigma, shapeEV), which are in micrometres. Expression coefficients are "
    "those published (Exp_Para), with the standard deviations of the file. With all at 0 the face is the "
    "mean of shapes plus that of expressions."
)
# iBUG points as vertices of the published mesh, from 0, after the MPEG-4 points that come with the model
# (the list ibug_to_bfm.txt of github.com/patrikhuber/eos).
LANDMARKS = {
    17: 38792,
    19: 40087,
    21: 40514,
    22: 41091,
    24: 41511,
    26: 42825,
    30: 8319,
    33: 8334,
    36: 2088,
    39: 5959,
    42: 10603,
    45: 14472,
    48: 5006,
    51: 8344,
    54: 11714,
    57: 8374,
    62: 8354,
    66: 8366,
}


def import_bfm09(path: str | os.PathLike, name: str = "bfm09") -> FaceModel:
    """Read the Basel Face Model of 2009 as 3DDFA packs it (`Model_Shape.mat`, `Model_Exp.mat`), or as
    published (`01_MorphableModel.mat`), with `Exp_Pca.bin`, `std_exp.txt` and `BFM_exp_idx.mat` beside it.

    Of the published mesh the vertices are kept that have expressions, 53,215 of 53,490. Its landmarks are 18
    points, or all 68 with `facemodel_info.mat` and `BFM_front_idx.mat` beside it, as in the folder BFM of
    Deep3DFaceRecon.

    Args:
        path: the folder, or one of the two first files.
    Raises:
        InputError: files missing, not readable, or not made for each other.
    """
    path = Path(path)
    if path.is_dir():
        path /= PACKED if (path / PACKED).exists() else ORIGINAL
    return _import_packed(path.parent, name) if path.name == PACKED else _import_original(path, name)


def _import_packed(folder: Path, name: str) -> FaceModel:
    dense, where = read_3ddfa_model(folder), str(folder)
    if dense.sigma is None or dense.expression_sigma is None:
        raise InputError(
            f"{where}: expected the standard deviations sigma in Model_Shape.mat and sigma_exp in "
            "Model_Exp.mat, or in sigma_exp.mat beside it"
        )
    return _assembled(
        where,
        name,
        dense.mean,
        dense.shape,
        dense.sigma,
        dense.expression,
        dense.expression_sigma,
        dense.triangles,
        dense.keypoints.tolist(),
        {} if dense.colors is None else linear_albedo(dense.colors / 255, None, where),
    )


def _import_original(path: Path, name: str) -> FaceModel:
    folder, where = path.parent, str(path)
    keys = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")
    with foreign_file(
        path, "not the Basel Face Model of 2009 (01_MorphableModel.mat)", limit=DATA_BYTES
    ) as file:
        arrays = file.mat(keys)
        missing = [k for k in keys if k not in arrays]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        triangles = from_1(arrays["tl"])
    shapes = {
        "shapeMU": ("3 V", 1),
        "shapePC": ("3 V", "K"),
        "shapeEV": ("K", 1),
        "texMU": ("3 V", 1),
        "texPC": ("3 V", "C"),
        "texEV": ("C", 1),
        "tl": ("F", 3),
    }
    rows = check_shapes(arrays, shapes, {"tl": "iuf"}, where)["3 V"]
    kept = _trimmed(folder, rows // 3)
    expression_mean, expression, sigma = _expressions(folder, len(kept))
    inside = np.full(rows // 3, -1)
    inside[kept] = np.arange(len(kept))
    check_indices(triangles, len(inside), f"{where}: tl, counted from 0")
    triangles = inside[triangles]
    at = (3 * kept[:, None] + np.arange(3)).ravel()
    colors = columns(arrays["texPC"][at], arrays["texEV"] / 255)
    return _assembled(
        where,
        name,
        arrays["shapeMU"][at, 0] + expression_mean,
        arrays["shapePC"][at],
        arrays["shapeEV"],
        expression,
        sigma,
        triangles[(triangles >= 0).all(1)],
        _landmarks(folder, inside),
        linear_albedo(arrays["texMU"][at].reshape(-1, 3) / 255, colors, where),
    )


def _assembled(
    where: str,
    name: str,
    mean: np.ndarray,
    shape: np.ndarray,
    sigma: np.ndarray,
    expression: np.ndarray,
    expression_sigma: np.ndarray,
    triangles: np.ndarray,
    landmarks: list[int],
    albedo: dict[str, torch.Tensor],
) -> FaceModel:
    """mean [3 V], shape [3 V, K] and expression [3 V, E] in micrometres; sigma [K], expression_sigma [E]."""
    return face_model(
        where,
        MICROMETRES * mean.reshape(-1, 3),
        columns(shape, MICROMETRES * sigma.ravel()),
        columns(expression, MICROMETRES),
        triangles,
        landmarks,
        name=name,
        expression_names=numbered("expression", expression.shape[1]),
        expression_kind="gaussian",
        expression_sigma=real(expression_sigma.ravel()),
        **albedo,
        source=SOURCE,
        license=BASEL_LICENSE,
        notes=NOTES,
    )


def _trimmed(folder: Path, count: int) -> np.ndarray:
    """Vertices of the published mesh of `count` that have expressions, in the order of these."""
    path = next((p for p in (folder / n for n in TRIMMED) if p.exists()), folder / TRIMMED[0])
    with _part_of(path, "trimIndex") as file:
        kept = from_1(file.mat(("trimIndex",))["trimIndex"].ravel())
        check_indices(kept, count, f"{path}: trimIndex, counted from 0")
        if len(set(kept.tolist())) < len(kept):
            raise ValueError("trimIndex names a vertex twice")
    return kept


def _expressions(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [3 V], shapes [3 V, E] and their standard deviations [E] for V = `count` vertices."""
    path = folder / EXPRESSIONS
    with _part_of(path, "expressions", ARRAY_BYTES) as file:
        data = file.bytes()
        number = int(np.frombuffer(data, "<i4", 1)[0])
        if number < 1 or len(data) != 4 * (1 + 3 * count * (1 + number)):
            raise ValueError(
                f"{len(data)} bytes do not hold {number} shapes of {count} vertices and their mean"
            )
        values = np.frombuffer(data, "<f4", offset=4).reshape(1 + number, 3 * count)
    with _part_of(folder / SPREAD, "standard deviations of expressions") as file:
        sigma = file.table().ravel()
        if len(sigma) != number:
            raise ValueError(f"expected {number} numbers as {EXPRESSIONS} has shapes, got {len(sigma)}")
    return values[0], values[1:].T, sigma


def _landmarks(folder: Path, inside: np.ndarray) -> list[int]:
    """Vertices [68]; inside: [V'] from published vertices to those that are kept, -1 where one is not."""
    if not ((folder / KEYPOINTS).exists() and (folder / FRONT).exists()):
        there = [LANDMARKS.get(k, -1) for k in range(68)]
        if max(there) >= len(inside):
            raise InputError(
                f"{folder}: expected {max(there) + 1} or more vertices, as the published mesh has, got "
                f"{len(inside)}"
            )
        return [int(inside[v]) if v >= 0 else -1 for v in there]
    with _part_of(folder / FRONT, "vertices of the front") as file:
        front = from_1(file.mat(("idx",))["idx"].ravel())
    with _part_of(folder / KEYPOINTS, "landmarks of the front") as file:
        keypoints = from_1(file.mat(("keypoints",))["keypoints"].ravel())
    check_indices(keypoints, len(front), f"{folder / KEYPOINTS}: keypoints, counted from 0")
    return front[keypoints].tolist()


def _part_of(path: Path, what: str, limit: int = SMALL_BYTES):
    """A file beside the published one."""
    return foreign_file(
        path,
        f"not the {what} of FaceWarehouse for the Basel Face Model",
        f"the model of 2009 has no expressions of its own: put {EXPRESSIONS}, {SPREAD} and {TRIMMED[0]} "
        "beside it, from github.com/sicxu/Deep3DFaceRecon_pytorch (folder BFM) and github.com/Juyong/3DFace",
        limit=limit,
    )


@dataclass(frozen=True)
class DenseModel:
    """BFM with FaceWarehouse expressions as 3DDFA packs it, micrometres. mean [V * 3], shape [V * 3, 199],
    expression [V * 3, 29]; triangles [F, 3]; keypoints [68] vertex indices. Where the files have them:
    standard deviations of the coefficients, sigma [199] and expression_sigma [29], and colors [V, 3] sRGB, 0
    to 255."""

    mean: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    keypoints: np.ndarray
    sigma: np.ndarray | None = None
    expression_sigma: np.ndarray | None = None
    colors: np.ndarray | None = None

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
    """Model_Shape.mat (mu_shape, w, tri, keypoints; maybe sigma and tex) and Model_Exp.mat or
    Model_Expression.mat (mu_exp, w_exp; sigma_exp here or in sigma_exp.mat).

    Raises:
        InputError: a file is missing, or its arrays do not fit together.
    """
    with _packed(folder, PACKED) as file:
        shape = file.mat(("mu_shape", "w", "sigma", "tex", "tri", "keypoints"))
    name = next(
        (n for n in ("Model_Exp.mat", "Model_Expression.mat") if (folder / n).exists()), "Model_Exp.mat"
    )
    with _packed(folder, name) as file:
        expression = file.mat(("mu_exp", "w_exp", "sigma_exp"))
    if "sigma_exp" not in expression and (folder / "sigma_exp.mat").exists():
        with _packed(folder, "sigma_exp.mat") as file:
            expression |= file.mat(("sigma_exp",))
    with refused_as(f"{folder}: {NOT_3DDFA}", GET_3DDFA):
        return _dense_model(folder, shape, expression)


def _packed(folder: Path, name: str):
    return foreign_file(folder / name, NOT_3DDFA, GET_3DDFA, limit=DATA_BYTES, where=f"{folder}:")


def _dense_model(folder: Path, shape: dict[str, np.ndarray], expression: dict[str, np.ndarray]) -> DenseModel:
    mean, w, w_exp = (
        np.asarray(a, np.float64)
        for a in (shape["mu_shape"].ravel() + expression["mu_exp"].ravel(), shape["w"], expression["w_exp"])
    )
    triangles, keypoints = from_1(shape["tri"]), from_1(shape["keypoints"].ravel()[:68])
    triangles = triangles if triangles.shape[1] == 3 else triangles.T
    sigma, expression_sigma = (
        part[key].ravel().astype(np.float64) if key in part else None
        for part, key in ((shape, "sigma"), (expression, "sigma_exp"))
    )
    colors = shape["tex"].astype(np.float64) if "tex" in shape else None
    if colors is not None:
        colors = (colors if colors.shape[1] == 3 else colors.T).reshape(-1, 3)
    counts = [len(mean), len(w), len(w_exp), len(mean) if colors is None else colors.size]
    widths = [(w, sigma), (w_exp, expression_sigma)]
    if (
        len(keypoints) != 68
        or len(mean) % 3
        or len(set(counts)) > 1
        or any(values is not None and len(values) != basis.shape[1] for basis, values in widths)
    ):
        raise ValueError("arrays of different lengths")
    given = (mean, w, w_exp, sigma, expression_sigma, colors)
    if not all(np.isfinite(a).all() for a in given if a is not None):
        raise ValueError("not all numbers are finite")
    check_indices(triangles, len(mean) // 3, f"{folder}: tri, counted from 0")
    check_indices(keypoints, len(mean) // 3, f"{folder}: keypoints, counted from 0")
    return DenseModel(mean, w, w_exp, triangles, keypoints, sigma, expression_sigma, colors)
