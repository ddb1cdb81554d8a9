"""BU-3DFE: 100 people x 25 expressions, scans with their frontal pictures."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, file_of
from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.subject import Subject, subject_from_images

EXPRESSIONS = ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
NAME = re.compile(r"([FM]\d{4})_(AN|DI|FE|HA|NE|SA|SU)(\d\d)\w*_F3D$")
BU3DFE = DataSet(
    "BU-3DFE",
    "https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html",
    "a signed agreement",
    "F0001/F0001_AN01WH_F3D.wrl with _F2D.bmp and .bnd (83 points) of the same name",
)


def bu3dfe_samples(folder: str | os.PathLike) -> list[EvaluationSample]:
    """One sample for each scan, id such as 'F0001_AN01WH', group = expression (NE: neutral); truth with
    landmarks as 9 points in more['nine']: see `nine_points`.

    Raises:
        InputError: not this layout.
    """
    root, samples = BU3DFE.root(folder), []
    for path in sorted(root.rglob("*_F3D.wrl")):
        match = NAME.match(path.stem)
        if match:
            stem = path.stem.removesuffix("_F3D")
            samples.append(
                EvaluationSample(
                    stem, partial(_photo, path.parent, stem), partial(_truth, path, stem), match[2]
                )
            )
    if not samples:
        raise BU3DFE.missing(root, "no *_F3D.wrl scan")
    return samples


def _photo(folder: Path, stem: str) -> Subject:
    path = file_of(folder, f"{stem}_F2D.bmp", f"{stem}_F2D.png", f"{stem}_F2D.jpg")
    if path is None:
        raise BU3DFE.missing(folder, f"no picture {stem}_F2D.bmp")
    return subject_from_images([path], name=stem)


def _truth(path: Path, stem: str) -> ScanTruth:
    marks = file_of(path.parent, f"{stem}_F3D.bnd", f"{stem}.bnd", f"{stem}*.bnd")
    if marks is None:
        raise BU3DFE.missing(path.parent, f"no landmarks {stem}.bnd")
    vertices, triangles = read_vrml(path)
    return ScanTruth(vertices, triangles, more={"nine": nine_points(read_bnd(marks), vertices)})


def read_vrml(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of the first indexed face set of a VRML file; polygons are split
    into fans.

    Raises:
        InputError: no such file, or no face set in it.
    """
    with foreign_file(path, "not a readable VRML mesh (point [...], coordIndex [...])") as file:
        text = file.text("latin-1")
        points, index = (
            re.search(r"\bpoint\s*\[([^\]]*)\]", text),
            re.search(r"\bcoordIndex\s*\[([^\]]*)\]", text),
        )
        if points is None or index is None:
            raise ValueError("no such list")
        vertices = np.array(re.split(r"[\s,]+", points[1].strip(" \n\r\t,")), np.float64).reshape(-1, 3)
        polygons = [
            [int(v) for v in re.split(r"[\s,]+", part.strip(" \n\r\t,"))]
            for part in re.split(r"-1", index[1])
            if part.strip(" \n\r\t,")
        ]
        triangles = np.array(
            [(p[0], p[k], p[k + 1]) for p in polygons for k in range(1, len(p) - 1)], np.int64
        )
        if not len(triangles) or triangles.min() < 0 or triangles.max() >= len(vertices):
            raise ValueError("the indices do not belong to the points")
        if not np.isfinite(vertices).all():
            raise ValueError("a vertex is not finite")
    return vertices, triangles


def read_bnd(path: Path) -> np.ndarray:
    """The 83 points [83, 3] mm of a .bnd file: lines 'number x y z'.

    Raises:
        InputError: not readable, or another number of points.
    """
    with foreign_file(path, "cannot be read as lines 'number x y z'", limit=MEGABYTE) as file:
        points = file.table()[:, -3:]
        if not np.isfinite(points).all():
            raise ValueError("not all numbers are finite")
    if points.shape != (83, 3):
        raise InputError(f"{path}: expected 83 points, got {len(points)}")
    return points


def nine_points(marks: np.ndarray, scan: np.ndarray) -> np.ndarray:
    """Eye corners from left to right in the picture (4), nose tip, nose wings (2), mouth corners (2), [9, 3]
    mm.

    Of the 83 points 0-7 and 8-15 are the eyes, 36-47 the nose, 48-67 the mouth: their ends in x are the
    corners and wings. The nose tip is none of them: it is the scan vertex with the largest z among those
    between the wings and the nose's top and bottom.
    """

    def ends(points):
        return points[points[:, 0].argmin()], points[points[:, 0].argmax()]

    eyes = sorted((ends(marks[0:8]), ends(marks[8:16])), key=lambda pair: pair[0][0])
    nose = marks[36:48]
    low, high = nose[:, :2].min(0), nose[:, :2].max(0)
    inside = scan[((scan[:, :2] >= low) & (scan[:, :2] <= high)).all(1)]
    tip = inside[inside[:, 2].argmax()] if len(inside) else nose[nose[:, 2].argmax()]
    return np.stack([*eyes[0], *eyes[1], tip, *ends(nose), *ends(marks[48:68])])
