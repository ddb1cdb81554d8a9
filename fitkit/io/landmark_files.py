"""Landmark files beside an image: 68 iBUG points as .pts, .npy, .json or .txt -> [68, 3] (x, y, confidence)."""
from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, ForeignFile, foreign_file

SUFFIXES = (".pts", ".npy", ".json", ".txt")  # in the order in which they are preferred
COUNT = 68
# A point this many times farther from the middle than half of the points are is mistyped; faces stay below 5 in all poses.
STRAY, JUDGES = 8.0, 16  # JUDGES: points that must be seen to tell
IMPOSSIBLE = 100  # sides of the photo that a point may lie away from it


def read_landmarks(path: str | os.PathLike) -> np.ndarray:
    """Read the 68 points of one face.

    Returns:
        [68, 3] float64: x, y in px, pixel (0, 0) is the centre of the top-left pixel of the upright image;
        confidence in [0, 1], 1 where the file has none. A point that was not seen: x = y = NaN, confidence 0.
    Raises:
        InputError: not readable, wrong count or shape; names the file, what was expected and what came.
    """
    path = Path(path)
    read = {".pts": _read_pts, ".npy": _read_npy, ".json": _read_json, ".txt": _read_txt}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: expected a landmark file {', '.join(SUFFIXES)}")
    with foreign_file(path, "not a readable landmark file", f"expected {COUNT} points 'x y [confidence]'", limit=MEGABYTE) as file:
        points = read(file)
    return check_landmarks(points, str(path))


def write_pts(path: str | os.PathLike, points: np.ndarray) -> None:
    """Write points [68, 2] px (pixel (0, 0) is the centre of the top-left pixel; NaN = not seen) as an iBUG .pts file."""
    # The files count pixels from 1, we count from 0.
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in np.asarray(points, dtype=np.float64)]
    Path(path).write_text("\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}"]) + "\n", encoding="utf-8")


def check_landmarks(points, where: str) -> np.ndarray:
    """[68, 2] or [68, 3] from a file or the caller -> [68, 3] float64 as `read_landmarks`; `where` names the source."""
    try:
        points = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: landmarks: expected [{COUNT}, 2] or [{COUNT}, 3] numbers: {error}") from error
    if points.shape not in ((COUNT, 2), (COUNT, 3)):
        raise InputError(f"{where}: landmarks: expected {COUNT} points (iBUG), [{COUNT}, 2] or [{COUNT}, 3], "
                         f"got {list(points.shape)}; correct the file, or remove it to have the points detected")
    if np.isinf(points).any():
        raise InputError(f"{where}: landmarks: infinite values; use NaN for a point that was not seen")
    confidence = points[:, 2] if points.shape[1] == 3 else np.ones(COUNT)
    confidence = np.where(np.isnan(confidence), 0.0, confidence)
    if confidence.min() < 0 or confidence.max() > 1:
        raise InputError(f"{where}: landmarks: the third column is the confidence, 0 to 1, got {confidence.min():.4g} to "
                         f"{confidence.max():.4g}; leave out a depth column")
    seen = np.isfinite(points[:, :2]).all(1) & (confidence > 0)
    return np.where(seen[:, None], np.column_stack([points[:, :2], confidence]), [np.nan, np.nan, 0.0])


def without_strays(points: np.ndarray, size: tuple[int, int], where: str) -> tuple[np.ndarray, list[str]]:
    """Leave out single points far away from all others, as a lost decimal point makes them.

    Args:
        points: [68, 3] as of `read_landmarks`, of an image of `size` (W, H); where: file or view, which begins the notes.
    Returns:
        the points, strays as not seen; one note for each stray, which names it. More than a quarter of the seen points are no
        strays: then nothing is left out.
    """
    seen = np.isfinite(points[:, :2]).all(1)
    if not seen.any():
        return points, []
    with np.errstate(over="ignore"):
        away = np.hypot(*(points[:, :2] - np.median(points[seen, :2], 0)).T)
        stray = np.abs(points[:, :2]).max(1) > IMPOSSIBLE * max(size)
    usual = np.median(away[seen])
    if seen.sum() >= JUDGES and usual > 0:
        stray |= away > STRAY * usual
    stray &= seen
    if stray.sum() > 0.25 * seen.sum():
        return points, []
    notes = [f"{where}: landmark {i} (counted from 0) at x {points[i, 0]:.6g}, y {points[i, 1]:.6g} lies far away from all others and was "
             "left out; correct it if a decimal point is lost" for i in np.flatnonzero(stray)]
    return np.where(stray[:, None], [np.nan, np.nan, 0.0], points), notes


def check_inside(points: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Refuse points [68, 3] that cannot belong to an image of this size (W, H).

    A face cut by the border is fine. Raises InputError if more than half of the seen points lie outside the image, or
    more than a quarter of them farther outside than half the face's size, or if they all lie within 8 px.
    """
    xy = points[np.isfinite(points[:, :2]).all(1), :2]
    if not len(xy):
        return
    beyond = np.maximum(-0.5 - xy, xy - (np.array(size) - 0.5)).max(1)  # px outside, negative inside
    with np.errstate(over="ignore"):
        span = min(float((xy.max(0) - xy.min(0)).max()), 2.0 * IMPOSSIBLE * max(size))
    if (beyond > 0).mean() > 0.5 or (beyond > span / 2).mean() > 0.25:
        raise InputError(f"{where}: {int((beyond > 0).sum())} of {len(xy)} landmarks lie outside the image of "
                         f"{size[0]} x {size[1]} px (x {xy[:, 0].min():.6g}..{xy[:, 0].max():.6g}, y {xy[:, 1].min():.6g}..{xy[:, 1].max():.6g}); "
                         "are they of another image, size or orientation? They count in pixels of the upright image")
    if len(xy) > 2 and span < 8:
        raise InputError(f"{where}: the landmarks span only {span:.3g} px; they must be in pixels, not in 0..1")


def _read_pts(file: ForeignFile) -> np.ndarray:
    """iBUG: 'version: 1', 'n_points: 68', '{', one 'x y' per line, '}'; headers, comments and blank lines vary."""
    rows, stated = [], None
    for line in file.text("utf-8-sig").splitlines():
        line = re.split(r"#|//", line)[0].strip().strip("{}").strip()
        header = re.match(r"(version|n_points)\W*(\d*)", line, re.IGNORECASE)
        if header:
            stated = int(header[2]) if header[1].lower() == "n_points" and header[2] else stated
        elif line:
            rows.append([float(v) for v in re.split(r"[\s,;]+", line.strip(",;"))])
    if stated is not None and stated != len(rows):
        raise ValueError(f"n_points says {stated}, but there are {len(rows)} points")
    points = _table(rows)
    # The files count pixels from 1, we count from 0.
    return points - np.array([1.0, 1.0, 0.0])[: points.shape[1]]


def _read_npy(file: ForeignFile) -> np.ndarray:
    array = file.npy()
    if array.dtype.kind not in "fiu":
        raise ValueError("expected an array of numbers")
    return array


def _read_json(file: ForeignFile) -> np.ndarray:
    content = file.json()
    if isinstance(content, dict):
        if "landmarks" not in content:
            raise ValueError("expected a list of points or {\"landmarks\": [...]}")
        content = content["landmarks"]
    if not isinstance(content, list):
        raise ValueError("expected a list of points or {\"landmarks\": [...]}")
    width = max((len(p) for p in content if isinstance(p, list)), default=2)
    return _table([[np.nan if v is None else float(v) for v in p] if p is not None else [np.nan] * width for p in content])


def _read_txt(file: ForeignFile) -> np.ndarray:
    lines = [line.split("#")[0].strip() for line in file.text("utf-8-sig").splitlines()]
    return _table([[float(v) for v in re.split(r"[\s,;]+", line.strip(",;"))] for line in lines if line])


def _table(rows: list[list[float]]) -> np.ndarray:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("the lines have different numbers of values")
    return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 2))
