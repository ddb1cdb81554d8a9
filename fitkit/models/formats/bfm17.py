"""The Basel Face Models of 2017 and 2019 (HDF5 files), whole or cropped to the face -> FaceModel.

Source: Gerig et al., "Morphable Face Models - An Open Framework", FG 2018, faces.dmi.unibas.ch. The files are
    in millimetres and in the axes of the head frame; a vertex is mean + sum of basis * sqrt(variance) *
    coefficient, of shape and of expression.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, check_shapes, foreign_file, parse_json, refused_as
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.pca import BASEL_LICENSE, columns, face_model, linear_albedo, numbered

PARTS = ("shape", "expression", "color")
CELLS, POINTS, NAMES = "shape/representer/cells", "shape/representer/points", "metadata/landmarks/json"
SOURCE = "Basel Face Model, faces.dmi.unibas.ch; Gerig et al., FG 2018"
NOTES = (
    "Identity, expression and albedo coefficients are those of the file (shape, expression, color), all "
    "standard-normal. With all at 0 the face is the mean of shapes plus that of expressions, as published; "
    "that is no neutral face. Albedo is linear light, the colours of the file taken as sRGB; its basis holds "
    "near the mean."
)
# iBUG points by the names that the files give to landmarks, where both mean the same point.
NAMED = {
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "right.nose.wing.tip": 31,
    "center.nose.attachement_to_philtrum": 33,
    "left.nose.wing.tip": 35,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "right.lips.philtrum_ridge": 50,
    "center.lips.upper.outer": 51,
    "left.lips.philtrum_ridge": 52,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
}
# The 68 points as vertices of a mesh, by its number of vertices; -1: not known.
# model2017-1_face12_nomouth.h5: the list Landmarks68_model2017-1_face12_nomouth.anl of public projects.
# model2017-1_bfm_nomouth.h5: the list ibug_to_bfm2017-1_bfm_nomouth.txt of github.com/patrikhuber/eos.
# fmt: off
TABLES = {
    28588: (
        16214, 16229, 16248, 16270, 16295, 25899, 26351, 26776, 27064, 27352, 27790, 28275, 22486, 22462,
        22440, 22422, 22406,  # jaw
        17471, 22988, 23398, 23613, 23834, 8800, 24358, 24575, 24934, 19912,  # brows
        8108, 8135, 8148, 8156, 6389, 7341, 8168, 8993, 9938,  # nose
        2218, 4275, 5049, 5962, 4803, 4025, 10014, 11030, 11674, 13100, 11943, 11299,  # eyes
        5263, 6024, 7354, 8180, 8770, 9954, 10727, 9139, 8551, 8198, 7726, 7137,  # outer lip
        6295, 7480, 8188, 8778, 10337, 8546, 8192, 7838,  # inner lip
    ),
    53149: (
        *[-1] * 8, 47846, *[-1] * 8,  # chin
        *[-1] * 13, 8156, *[-1] * 5,  # nose tip
        2602, -1, -1, 5830, -1, -1, 10390, -1, -1, 13481, -1, -1,  # corners of the eyes
        5522, 6026, 7355, 8181, 9007, 10329, 10857, 9730, 8670, 8199, 7726, 6898,  # outer lip
        6291, 7364, 8190, 9016, 10088, 8663, 8191, 7719,  # inner lip
    ),
}
# fmt: on
SNAP_MM = 2.0  # a named landmark is a vertex; farther from all it belongs to another mesh
AGREE_MM = 15.0  # two markings of the same point


def import_bfm17(path: str | os.PathLike, name: str = "bfm17") -> FaceModel:
    """Read a Basel Face Model of 2017 or 2019, e.g. `model2017-1_bfm_nomouth.h5`, `model2019_face12.h5`.

    The landmarks are those of a list `Landmarks68_STEM.anl` beside STEM.h5 (68 vertices from 0, one a line;
    -1: none), else of a table for the mesh, else the 17 of the file's own named points that are points of
    iBUG. A list that puts points elsewhere than the file does is refused, such a table is not used.

    Raises:
        InputError: no such file, or arrays that do not fit together; the package h5py is missing.
    """
    path, where = Path(path), str(path)
    keys = [f"{part}/model/{key}" for part in PARTS for key in ("mean", "pcaBasis", "pcaVariance")]
    with foreign_file(path, "not a Basel Face Model of 2017 or 2019 (.h5)", limit=DATA_BYTES) as file:
        arrays = file.hdf5([*keys, CELLS, POINTS, NAMES])
    missing = [k for k in (*keys[:6], CELLS) if k not in arrays]
    if missing:
        raise InputError(
            f"{where}: not a Basel Face Model of 2017 or 2019, it lacks {', '.join(missing)}; give a file "
            "such as model2017-1_face12_nomouth.h5"
        )
    check_shapes(arrays, {CELLS: (3, "F")}, {CELLS: "iu"}, where)
    shape, identity_basis = _part(arrays, "shape", where)
    expression, expression_basis = _part(arrays, "expression", where, len(shape))
    albedo = {}
    if "color/model/mean" in arrays:
        albedo = linear_albedo(*_part(arrays, "color", where, len(shape)), where)
    return face_model(
        where,
        shape + expression,
        identity_basis,
        expression_basis,
        arrays[CELLS].T,
        _landmarks(path, arrays, shape),
        name=name,
        expression_names=numbered("expression", len(expression_basis)),
        expression_kind="gaussian",
        **albedo,
        source=SOURCE,
        license=BASEL_LICENSE,
        notes=NOTES,
    )


def _part(
    arrays: dict[str, np.ndarray], part: str, where: str, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [V, 3] of one part of the model, and its shapes per standard deviation [K, V, 3]."""
    mean, basis, variance = (f"{part}/model/{key}" for key in ("mean", "pcaBasis", "pcaVariance"))
    lacking = [key for key in (basis, variance) if key not in arrays]
    if lacking:
        raise InputError(f"{where}: expected {lacking[0]} with {mean}, got none")
    rows = 3 * (arrays[mean].size // 3 if count is None else count)
    check_shapes(arrays, {mean: (rows,), basis: (rows, "K"), variance: ("K",)}, {}, where)
    if not np.isfinite(arrays[mean]).all():
        raise InputError(f"{where}: {mean} holds values that are not finite")
    if not (arrays[variance] >= 0).all():
        raise InputError(
            f"{where}: {variance}: expected numbers of 0 or more, got {arrays[variance].min():.4g}"
        )
    return arrays[mean].reshape(-1, 3), columns(arrays[basis], np.sqrt(arrays[variance]))


def _landmarks(path: Path, arrays: dict[str, np.ndarray], mean: np.ndarray) -> list[int]:
    """Vertices [68], -1 where there is none."""
    named = _named(arrays, mean, str(path)) if NAMES in arrays else {}
    given = path.with_name(f"Landmarks68_{path.stem}.anl")
    if given.exists():
        vertices = _given(given, len(mean))
        k, away = _disagreement(vertices, named, mean)
        if away > AGREE_MM:
            raise InputError(
                f"{given}: landmark {k} is {away:.3g} mm from where {path.name} marks it; the list belongs "
                "to another mesh"
            )
        return vertices
    table = TABLES.get(len(mean))
    if table and _disagreement(table, named, mean)[1] <= AGREE_MM:
        return [vertex if vertex >= 0 else named.get(k, -1) for k, vertex in enumerate(table)]
    if not named:
        raise InputError(
            f"{path}: nothing says where its landmarks are; write the vertices of the 68 iBUG points, from "
            f"0, one a line (-1: none), into {given.name} beside it"
        )
    return [named.get(k, -1) for k in range(68)]


def _given(path: Path, count: int) -> list[int]:
    """A list of landmarks for a mesh of `count` vertices, [68]."""
    with foreign_file(path, "not a list of 68 vertices, one a line") as file:
        table = file.table(columns=(0,))[:, 0]
        if len(table) != 68 or not ((table >= -1) & (table < count)).all():
            raise ValueError(f"expected 68 numbers in -1..{count - 1}, got {len(table)}")
    return table.astype(np.int64).tolist()


def _disagreement(table: Sequence[int], named: dict[int, int], mean: np.ndarray) -> tuple[int, float]:
    """The point that a list [68] puts farthest from where the model itself has it, and how far, mm."""
    away = {k: float(np.linalg.norm(mean[table[k]] - mean[v])) for k, v in named.items() if table[k] >= 0}
    return max(away.items(), key=lambda item: item[1], default=(-1, 0.0))


def _named(arrays: dict[str, np.ndarray], mean: np.ndarray, where: str) -> dict[int, int]:
    """iBUG point -> vertex, of the landmarks in the file."""
    with refused_as(f"{where}: {NAMES}: expected a list of landmarks with id and coordinates"):
        listed = {
            mark["id"]: mark["coordinates"] for mark in parse_json(arrays[NAMES].tobytes().rstrip(b"\0"))
        }
        names = [n for n in NAMED if n in listed]
        points = np.array([listed[n] for n in names], np.float64).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise ValueError("not all numbers are finite")
    # They are vertices of the reference mesh, which may be another one than the mean.
    meshes = [mean]
    if arrays.get(POINTS, mean).shape == mean.T.shape:
        meshes.append(arrays[POINTS].T)
    distance, vertex = min(
        (cKDTree(m).query(points) for m in meshes), key=lambda found: float(found[0].max(initial=0))
    )
    if distance.max(initial=0) > SNAP_MM:
        raise InputError(
            f"{where}: landmark {names[distance.argmax()]} is {distance.max():.3g} mm from all vertices; "
            "expected one of them"
        )
    return {NAMED[n]: int(v) for n, v in zip(names, vertex)}
