"""Small files of the Surrey Face Model in eos' layout (cereal archives), of the head of `model_files_bfm`."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from model_files_bfm import Face, small_face

MISSING = (*range(8), *range(9, 17), 60, 64)  # landmarks that the model lacks
EXPRESSIONS = ("anger", "disgust", "fear", "happiness")


def matrix(values: np.ndarray) -> bytes:
    """An Eigen matrix: rows, columns, and the numbers column by column."""
    return struct.pack("<ii", *values.shape) + np.float32(values).T.tobytes()


def listed(values: np.ndarray, dtype: str) -> bytes:
    return struct.pack("<Q", len(values)) + values.astype(dtype).tobytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pca(mean: np.ndarray, basis: np.ndarray, sigma: np.ndarray, triangles: np.ndarray) -> bytes:
    column, variance = mean.reshape(-1, 1), np.square(sigma)[:, None]
    return matrix(column) + matrix(basis) + matrix(variance) + listed(triangles, "<i4")


def blend_shapes(face: Face) -> bytes:
    """Each expression at weight 1 as three standard deviations of a component."""
    shapes = 3 * face.expressions * face.expression_sigma
    return struct.pack("<Q", len(EXPRESSIONS)) + b"".join(
        text(name) + matrix(shape[:, None]) for name, shape in zip(EXPRESSIONS, shapes.T)
    )


def write_surrey(folder: Path, version: int = 1, expressions: str = "file", colors: bool = False) -> Path:
    """A folder as eos' `share`; returns the model file.

    version: of the file, 1 to 4; expressions: 'file', or in the model file (from version 2 on) as
    'blend_shapes' or 'pca'; colors: whether there is a model of colours.
    """
    face, folder = small_face(), Path(folder)
    uv = (face.mean[:, :2] - face.mean[:, :2].min(0)) / np.ptp(face.mean[:, :2], axis=0)
    uv[:, 1] = 1 - uv[:, 1]  # from the top
    nothing = np.zeros((0, 3))
    color = (face.colors, face.color_shapes, face.color_sigma, face.triangles)
    data = struct.pack("<I", version) + pca(face.mean, face.shapes, face.sigma, face.triangles)
    data += pca(*color) if colors else matrix(np.zeros((0, 1))) + matrix(np.zeros((0, 0))) + matrix(
        np.zeros((0, 1))
    ) + listed(nothing, "<i4")  # fmt: skip
    if version > 1:
        held = {
            "blend_shapes": struct.pack("<?i", False, 1) + blend_shapes(face),
            "file": struct.pack("<?", True),
        }
        held["pca"] = struct.pack("<?i", False, 0) + pca(
            face.expression_mean, face.expressions, face.expression_sigma, face.triangles
        )
        data += held[expressions]
    if version > 2:
        data += struct.pack("<?Q", False, 1) + text("eye.right.outer_corner") + struct.pack("<i", 5)
    if version > 3:
        # Corners of texture triangles in an order of their own.
        data += listed(uv[::-1], "<f8") + listed(len(uv) - 1 - face.triangles, "<i4")
    else:
        data += listed(uv, "<f8")
    path = folder / "sfm_shape_29.bin"
    path.write_bytes(data)
    if expressions == "file":
        (folder / "expression_blendshapes_29.bin").write_bytes(blend_shapes(face))
    lines = [
        f"{k + 1:2} = {v:5}  # point {k + 1}" if k not in MISSING else f"            # {k + 1} not defined"
        for k, v in enumerate(face.landmarks)
    ]
    (folder / "ibug_to_sfm.txt").write_text(
        "\n".join(
            ["# A mapping", "[landmark_mappings]", *lines, "", "[contour_landmarks]", "right = [  1,", " 2 ]"]
        )
    )
    return path
