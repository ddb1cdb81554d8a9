"""Bosphorus: photos and range scans of 105 people in expressions and head turns."""

from __future__ import annotations

import itertools
import os
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial import Delaunay

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, folders_in
from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file, refused_as
from fitkit.io.images import read_image
from fitkit.io.subject import Subject, subject_from_images

BOSPHORUS = DataSet(
    "the Bosphorus 3D face database",
    "http://bosphorus.ee.boun.edu.tr",
    "a signed licence form",
    "bs000/bs000_N_N_0.bnt with .png and .lm3 of the same name",
)
NAME = re.compile(r"(bs\d+)_([A-Z]+)_(\w+)_(\d+)$")
SCAN_BYTES = 64 * MEGABYTE  # of a range image; those of the database have up to 3
JUMP_MM = 8.0  # triangles of the range image with a longer side bridge an edge


RIGHT_ANGLES = (10, 20, 30, 45)  # degrees of right turns among which 'random' chooses


def bosphorus_samples(
    folder: str | os.PathLike, angle: int = 45, right: int | str = 0
) -> list[EvaluationSample]:
    """One sample for each frontal scan, id its file name, group 'neutral' or 'expression'.

    Its photos: the frontal picture and, for a neutral one, the pictures of the head turned by `angle` degrees
    to the right (R scans) and to the left; left pictures exist for 45 and 90 degrees only, others are the
    mirrored right one. right: degrees of the right picture alone, 0 = `angle`, 'random': of each scan another
    one of RIGHT_ANGLES, always the same (DF-MVR, table V). Whose right and left that is, the database does
    not say: networks with named views go by the picture where it says otherwise, see `assign_views`.

    Raises:
        InputError: not this layout.
    """
    root = BOSPHORUS.root(folder)
    samples = []
    for person in folders_in(root):
        scans = {p.stem: p for p in sorted(person.glob("*.bnt"))}
        for stem, path in scans.items():
            match = NAME.match(stem)
            if match is None or match[2] in ("YR", "PR", "CR", "O") or not path.with_suffix(".lm3").is_file():
                continue  # turned or covered faces
            neutral = match[2] == "N"
            side = _drawn(stem) if right == "random" else int(right) or angle
            samples.append(
                EvaluationSample(
                    stem,
                    partial(_photos, person, path, (side, angle) if neutral else None),
                    partial(_truth, path),
                    "neutral" if neutral else "expression",
                )
            )
    if not samples:
        raise BOSPHORUS.missing(root, "no frontal scan with its .lm3")
    return samples


def _drawn(stem: str) -> int:
    """One of RIGHT_ANGLES, by the name of the scan."""
    return RIGHT_ANGLES[zlib.crc32(stem.encode()) % len(RIGHT_ANGLES)]


def _photos(person: Path, scan: Path, angles: tuple[int, int] | None) -> Subject:
    """angles: degrees of the pictures to the right and to the left."""
    images, names = [scan.with_suffix(".png")], ["front"]

    def turned(side: str, angle: int) -> Path | None:
        return next(iter(sorted(person.glob(f"{person.name}_YR_{side}{angle}_*.png"))), None)

    if angles is not None:
        right, left = turned("R", angles[0]), turned("L", angles[1])
        if right is not None:
            images.append(right)
            names.append("right")
        other = turned("R", angles[1])
        if left is not None or other is not None:
            images.append(left if left is not None else np.ascontiguousarray(read_image(other)[0][:, ::-1]))
            names.append("left")
    return subject_from_images(images, names=names, name=scan.stem)


def _truth(path: Path) -> ScanTruth:
    points = read_bnt(path)
    with refused_as(f"{path}: its points are no surface"):  # all on one line, ...
        vertices, triangles = mesh_of_range_image(points)
    return ScanTruth(vertices, triangles, now_points(read_lm3(path.with_suffix(".lm3")), path))


def read_bnt(path: Path) -> np.ndarray:
    """Points [N, 3] mm of a .bnt range image (x, y, z; cells without a measurement are left out).

    Layout: rows, columns uint16; z of an empty cell float64; length uint16 and name of the picture; count
    uint32; then five float64 columns x, y, z, image x, image y, all little-endian.

    Raises:
        InputError: another layout.
    """
    with foreign_file(path, "not a Bosphorus range image (.bnt)", limit=SCAN_BYTES) as file:
        data = file.bytes()
        rows, columns, empty, length = struct.unpack_from("<HHdH", data)
        (count,) = struct.unpack_from("<I", data, 14 + length)
        table = np.frombuffer(data, "<f8", offset=18 + length)
        if count != rows * columns * 5 or len(table) != count:
            raise ValueError(f"{rows} x {columns} cells do not make {count} numbers")
    points = table.reshape(5, -1).T[:, :3]
    return points[np.isfinite(points).all(1) & (points[:, 2] > empty + 1e-6)].astype(np.float64)


def mesh_of_range_image(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Delaunay triangles over x and y of points [N, 3], without those with a side above JUMP_MM;
    counter-clockwise seen from +z."""
    triangles = Delaunay(points[:, :2]).simplices.astype(np.int64)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    longest = np.max([np.linalg.norm(x - y, axis=1) for x, y in ((a, b), (b, c), (c, a))], axis=0)
    area = np.cross(b - a, c - a)[:, 2]
    triangles = np.where((area < 0)[:, None], triangles[:, [0, 2, 1]], triangles)
    return points, triangles[(longest <= JUMP_MM) & (np.abs(area) > 1e-12)]


def read_lm3(path: Path) -> dict[str, np.ndarray]:
    """Named landmarks of a .lm3 file, [3] mm each: a line with the name, then a line 'x y z'.

    Raises:
        InputError: no such file, or no landmark in it.
    """
    with foreign_file(path, "cannot be read", limit=MEGABYTE) as file:
        lines = [line.strip() for line in file.text("latin-1").splitlines()]
    out = {}
    for name, line in itertools.pairwise(lines):
        parts = line.split()
        if re.search("[A-Za-z]", name) and len(parts) == 3:
            try:
                point = np.array([float(v) for v in parts])
            except ValueError:
                continue
            if np.isfinite(point).all():
                out[name.lower()] = point
    if not out:
        raise InputError(f"{path}: no landmarks in it; expected a line with a name, then a line 'x y z'")
    return out


def now_points(marks: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """The 7 points of NoW [7, 3] from Bosphorus' names; sides are told by x. The database has no point below
    the nose: halfway between nose tip and outer upper lip stands for it.

    Raises:
        InputError: a landmark is missing.
    """

    def need(*parts):
        found = [v for k, v in marks.items() if all(p in k for p in parts)]
        if not found:
            raise InputError(
                f"{path.with_suffix('.lm3')}: landmark '{' '.join(parts)}' is missing; the face of this "
                "scan may be covered"
            )
        return found

    outer, inner, mouth = (
        sorted(need(*names), key=lambda p: p[0])
        for names in (("outer", "eye", "corner"), ("inner", "eye", "corner"), ("mouth", "corner"))
    )
    bottom = (need("nose tip")[0] + need("upper", "lip", "outer")[0]) / 2
    if min(len(outer), len(inner), len(mouth)) < 2:
        raise InputError(
            f"{path.with_suffix('.lm3')}: expected both eye and mouth corners; the face of this scan may be "
            "covered"
        )
    return np.stack([outer[0], inner[0], inner[-1], outer[-1], bottom, mouth[0], mouth[-1]])
