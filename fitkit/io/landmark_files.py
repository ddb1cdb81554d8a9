"""Landmark files beside an image: 68 iBUG points as .pts, .npy, .json or .txt -> [68, 3] (x, y,
confidence)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, ForeignFile, foreign_file

SUFFIXES = (".pts", ".npy", ".json", ".txt")  # in the order in which they are preferred
COUNT = 68
UNREADABLE, EXPECTED = "not a readable landmark file", f"expected {COUNT} points 'x y [confidence]'"
EXPECTED_JSON = 'expected a list of points [x, y] or {"landmarks": [[x, y], ...]}'
FEW = COUNT  # numbers; what holds fewer, and no list of points, has another purpose

# A point this many times farther from the middle than half of the points are is mistyped; faces stay below 5
# in all poses.
STRAY, JUDGES = 8.0, 16  # JUDGES: points that must be seen to tell
IMPOSSIBLE = 100  # sides of the photo that a point may lie away from it


class NoLandmarksError(InputError):
    """A .txt or .json without any points: a caption, the metadata of a photo, a detector that found no
    face."""


@dataclass(frozen=True)
class LandmarkFile:
    """points: [68, 3] as `read_landmarks`; notes: what was assumed, as parts of a sentence about the file."""

    points: np.ndarray
    notes: tuple[str, ...] = ()


def read_landmarks(path: str | os.PathLike) -> np.ndarray:
    """Read the 68 points of one face.

    Returns:
        [68, 3] float64: x, y in px, pixel (0, 0) is the centre of the top-left pixel of the upright image;
        confidence in [0, 1], 1 where the file has none. A point that was not seen (NaN, or -1 -1 or 0 0 as
        many programs write it): x = y = NaN, confidence 0.
    Raises:
        InputError: not readable, wrong count or shape; names the file, what was expected and what came.
        NoLandmarksError: a text or JSON that holds no points.
    """
    return open_landmarks(path).points


def open_landmarks(path: str | os.PathLike) -> LandmarkFile:
    """`read_landmarks`, with what there is to say about the file."""
    path = Path(path)
    read = {".pts": _read_pts, ".npy": _read_npy, ".json": _read_json, ".txt": _read_txt}.get(
        path.suffix.lower()
    )
    if read is None:
        raise InputError(f"{path}: expected a landmark file {', '.join(SUFFIXES)}")
    with foreign_file(path, UNREADABLE, EXPECTED, limit=MEGABYTE) as file:
        points, notes = read(file)
    first = int(read is _read_pts)  # these files count pixels from 1, we count from 0
    checked = check_landmarks(points, str(path), first)
    return LandmarkFile(checked.points - [first, first, 0], (*notes, *checked.notes))


def read_pts(path: str | os.PathLike) -> np.ndarray:
    """All points of an iBUG .pts file of any scheme, [N, 2] float64 px, pixel (0, 0) as in `read_landmarks`.

    Raises:
        InputError: not readable, or no points 'x y'.
    """
    with foreign_file(path, UNREADABLE, "expected points 'x y'", limit=MEGABYTE) as file:
        points, _ = _read_pts(file)
        if points.ndim != 2 or points.shape[1] < 2 or not len(points):
            raise ValueError(f"got {list(points.shape)} numbers")
    return points[:, :2] - 1  # these files count pixels from 1


def write_pts(path: str | os.PathLike, points: np.ndarray) -> None:
    """Write points [68, 2] px (pixel (0, 0) is the centre of the top-left pixel; NaN = not seen) as an iBUG
    .pts file."""
    # The files count pixels from 1, we count from 0.
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in np.asarray(points, dtype=np.float64)]
    Path(path).write_text(
        "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}"]) + "\n", encoding="utf-8"
    )


def check_landmarks(points: Any, where: str, first: int = 0) -> LandmarkFile:
    """[68, 2] or [68, 3] from a file or the caller, perhaps in a list of one face -> [68, 3] as
    `read_landmarks`.

    Args:
        where: names the source.
        first: the number of the first pixel; both coordinates alike and not above it mean that the point was
            not seen.
    """
    try:
        points = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: landmarks: expected [{COUNT}, 2] or [{COUNT}, 3] numbers: {error}"
        ) from error
    shape = points.shape
    if len(shape) > 2 and set(shape[:-2]) == {1}:
        points = points.reshape(shape[-2:])
    if points.shape not in ((COUNT, 2), (COUNT, 3)):
        hint = ", several faces; keep the points of one" if len(shape) == 3 and shape[1] == COUNT else ""
        hint = ", decimal commas? write decimal points" if shape in ((COUNT, 4), (COUNT, 6)) else hint
        raise InputError(
            f"{where}: landmarks: expected {COUNT} points (iBUG), [{COUNT}, 2] or [{COUNT}, 3], "
            f"got {list(shape)}{hint}; correct the file, or remove it to have the points detected"
        )
    if np.isinf(points).any():
        raise InputError(f"{where}: landmarks: infinite values; use NaN for a point that was not seen")
    confidence = points[:, 2] if points.shape[1] == 3 else np.ones(COUNT)
    confidence = np.where(np.isnan(confidence), 0.0, confidence)
    unseen = (points[:, 0] == points[:, 1]) & (points[:, 0] <= first)
    confidence[unseen] = 0
    if confidence.min() < 0 or confidence.max() > 1:
        raise InputError(
            f"{where}: landmarks: the third column is the confidence, 0 to 1, got {confidence.min():.4g} to "
            f"{confidence.max():.4g}; leave out a depth column"
        )
    seen = np.isfinite(points[:, :2]).all(1) & (confidence > 0)
    checked = np.where(seen[:, None], np.column_stack([points[:, :2], confidence]), [np.nan, np.nan, 0.0])
    some = points[unseen][:1, :2]
    return LandmarkFile(checked, tuple(f"points written as {x:g} {y:g} count as not seen" for x, y in some))


def without_strays(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Leave out single points far away from all others, as a lost decimal point makes them.

    Args:
        points: [68, 3] as of `read_landmarks`, of an image of `size` (W, H).
    Returns:
        the points, strays as not seen; for each stray what there is to say about it, as a part of a sentence.
        More than a quarter of the seen points are no strays: then nothing is left out.
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
    notes = [
        f"landmark {i} (counted from 0) at x {points[i, 0]:.6g}, y {points[i, 1]:.6g} lies far away from "
        "all others and was left out; correct it if a decimal point is lost"
        for i in np.flatnonzero(stray)
    ]
    return np.where(stray[:, None], [np.nan, np.nan, 0.0], points), notes


def check_inside(points: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Refuse points [68, 3] that cannot belong to an image of this size (W, H).

    A face cut by the border is fine. Raises InputError if more than half of the seen points lie outside the
    image, or more than a quarter of them farther outside than half the face's size, or if they all lie within
    8 px.
    """
    xy = points[np.isfinite(points[:, :2]).all(1), :2]
    if not len(xy):
        return
    beyond = np.maximum(-0.5 - xy, xy - (np.array(size) - 0.5)).max(1)  # px outside, negative inside
    with np.errstate(over="ignore"):
        span = min(float((xy.max(0) - xy.min(0)).max()), 2.0 * IMPOSSIBLE * max(size))
    if (beyond > 0).mean() > 0.5 or (beyond > span / 2).mean() > 0.25:
        raise InputError(
            f"{where}: {int((beyond > 0).sum())} of {len(xy)} landmarks lie outside the image of "
            f"{size[0]} x {size[1]} px (x {xy[:, 0].min():.6g}..{xy[:, 0].max():.6g}, y "
            f"{xy[:, 1].min():.6g}..{xy[:, 1].max():.6g}); are they of another image, size or orientation? "
            "They count in pixels of the upright image"
        )
    if len(xy) > 2 and span < 8:
        raise InputError(
            f"{where}: the landmarks span only {span:.3g} px; they must be in pixels, not in 0..1"
        )


def _read_pts(file: ForeignFile) -> tuple[np.ndarray, tuple[str, ...]]:
    """iBUG: 'version: 1', 'n_points: 68', '{', one 'x y' per line, '}'; headers, comments and blank lines
    vary."""
    lines, stated = [], None
    for line in _text(file).splitlines():
        line = re.split(r"#|//", line)[0].strip().strip("{}").strip()
        header = re.match(r"(version|n_points)\W*(\d*)", line, re.IGNORECASE)
        if header:
            stated = int(header[2]) if header[1].lower() == "n_points" and header[2] else stated
        elif line:
            lines.append(line)
    if stated is not None and stated != len(lines):
        raise ValueError(f"n_points says {stated}, but there are {len(lines)} points")
    return _numbers(lines)


def _read_npy(file: ForeignFile) -> tuple[np.ndarray, tuple[str, ...]]:
    array = file.npy()
    if array.dtype.kind not in "fiu":
        raise ValueError("expected an array of numbers")
    return array, ()


def _read_txt(file: ForeignFile) -> tuple[np.ndarray, tuple[str, ...]]:
    lines = [line.split("#")[0].strip() for line in _text(file).splitlines()]
    lines = [line for line in lines if line]
    if not any(_is_numbers(line) for line in lines):
        if len(_NUMBER.findall(" ".join(lines))) >= 2 * COUNT:
            raise ValueError(f"its lines hold more than numbers: '{lines[0]:.40}'")
        raise NoLandmarksError(f"{file.path}: {UNREADABLE} (no line of numbers); {EXPECTED}")
    return _numbers(lines)


def _text(file: ForeignFile) -> str:
    try:
        return file.text()
    except UnicodeDecodeError:
        return file.text("latin-1")  # a comment


_NUMBER = re.compile(r"\d+(\.\d+)?")
_CELLS = re.compile(r",?[\s;]+")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)


def _split(line: str) -> list[str]:
    return re.split(r"[\s,;]+", line.strip(",;"))


def _is_numbers(line: str) -> bool:
    try:
        return bool([float(v) for v in _split(line)])
    except ValueError:
        return False


def _numbers(lines: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lines of numbers -> [N, columns], and a note. Commas are decimal points where every number of a line
    has one, no line has a point, and something else separates the numbers ('12,5 30,1', '12,5;30,1'); else
    they separate the numbers."""
    cells = [_CELLS.split(line.strip(",;")) for line in lines]
    commas = any(len(c) > 1 and all(map(_DECIMAL_COMMA.fullmatch, c)) for c in cells)
    if commas and not any("." in line for line in lines):
        rows = [[float(v.replace(",", ".")) for v in c] for c in cells]
        return _table(rows), ("decimal commas were read as decimal points",)
    return _table([[float(v) for v in _split(line)] for line in lines]), ()


def _read_json(file: ForeignFile) -> tuple[np.ndarray, tuple[str, ...]]:
    """The only list of 68 points in it, wherever it is; else its only list, for the message."""
    content = file.json()
    if isinstance(content, dict):
        content = content.get("landmarks", content)
    lists = list(_point_lists(content))
    fitting = [rows for rows in lists if len(rows) == COUNT]
    if len(fitting) > 1:
        raise ValueError(
            f"it holds {len(fitting)} lists of {COUNT} points, of several faces or kinds; keep one"
        )
    if len(lists) > 1 and not fitting:
        raise ValueError(
            "it holds lists of "
            f"{', '.join(str(len(rows)) for rows in lists[:9])}{', ...' * (len(lists) > 9)} points; write "
            f"one list of {COUNT}"
        )
    if lists:
        return _table((fitting or lists)[0]), ()
    numbers = isinstance(content, list) and any(isinstance(v, (int, float)) for v in content)
    if _count_numbers(content) < FEW and not numbers:
        raise NoLandmarksError(f"{file.path}: {UNREADABLE} (no points in it); {EXPECTED_JSON}")
    raise ValueError(f"{EXPECTED_JSON}, got {_shape(content)}")


def _point_lists(content: Any) -> Iterator[list[list[float]]]:
    """The outermost lists of points in a JSON document, as rows of numbers."""
    if isinstance(content, dict):
        if all(isinstance(content.get(k), list) for k in "xy") and len(content["x"]) == len(content["y"]):
            content = list(map(list, zip(content["x"], content["y"])))  # columns
        elif content and all(k.isdecimal() for k in content):
            content = [content[k] for k in sorted(content, key=int)]  # points by number
    rows = _rows(content)
    if rows:
        yield rows
    elif isinstance(content, (list, dict)):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _point_lists(part)


def _rows(content: Any) -> list[list[float]] | None:
    """A list of points, [x, y(, confidence)], {"x": x, "y": y} or null, as rows of numbers; None for anything
    else."""
    if not isinstance(content, list):
        return None
    keys = ("x", "y", "confidence")
    points = [
        [p[k] for k in keys if k in p] if isinstance(p, dict) and "x" in p and "y" in p else p
        for p in content
    ]
    width = max((len(p) for p in points if isinstance(p, list)), default=0)
    if width < 2 or not all(p is None or isinstance(p, list) for p in points):
        return None
    try:
        return [
            [np.nan if v is None else float(v) for v in p] if p is not None else [np.nan] * width
            for p in points
        ]
    except (TypeError, ValueError, OverflowError):
        return None


def _count_numbers(content: Any) -> int:
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return sum(map(_count_numbers, parts)) + (
        isinstance(content, (int, float)) and not isinstance(content, bool)
    )


def _shape(content: Any) -> str:
    """'a list of 136 numbers', 'an object with the keys chin, nose'."""
    if isinstance(content, dict):
        return f"an object with the keys {', '.join(list(content)[:5])}{', ...' * (len(content) > 5)}"
    if isinstance(content, list):
        flat = all(isinstance(v, (int, float)) for v in content)
        return f"a list of {len(content)} {'numbers' if flat else 'other things'}"
    return f"a {type(content).__name__}"


def _table(rows: list[list[float]]) -> np.ndarray:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("the lines have different numbers of values")
    return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 2))
