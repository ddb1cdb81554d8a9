"""What a data set of an evaluation protocol gives: samples to predict and their truth, loaded when they are
needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.images import SUFFIXES
from fitkit.io.subject import Subject, natural_key


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from. title: full name; page: where to apply for it; terms: its licence in a few
    words; layout: the folder that is expected."""

    title: str
    page: str
    terms: str
    layout: str

    @property
    def expected(self) -> str:
        """The end of a message about a file or folder of it."""
        return f"expected {self.title} as {self.layout} (not shipped, {self.terms}: {self.page})"

    def missing(self, folder: str | os.PathLike, what: str) -> InputError:
        """One sentence for a folder that lacks `what`."""
        return InputError(f"{folder}: {what}; {self.expected}")

    def root(self, folder: str | os.PathLike) -> Path:
        """The folder as a path.

        Raises:
            InputError: there is no such folder.
        """
        path = Path(folder)
        if not path.is_dir():
            raise self.missing(path, "no such folder")
        return path


@dataclass(frozen=True)
class ScanTruth:
    """A scan. vertices [V, 3], triangles [F, 3], points [7, 3] (evaluate.scan_to_mesh.NOW_POINTS), all mm;
    landmarks: [68, 3] mm or None; more: what else a protocol needs, by name."""

    vertices: np.ndarray
    triangles: np.ndarray
    points: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationSample:
    """One thing to predict and to score.

    id: unique, may have folders ('subject/challenge/image'); predictions are files of that name; group: what
    it is averaged with ('' = nothing special); subject: loads its photos; truth: loads what its prediction is
    compared with.
    """

    id: str
    subject: Callable[[], Subject]
    truth: Callable[[], Any]
    group: str = ""


def no_truth() -> None:
    """Of a sample whose prediction is compared with none."""


def images_in(folder: Path) -> list[Path]:
    """Images of a folder in natural order; none if there is no such folder."""
    if not folder.is_dir():
        return []
    found = [
        p
        for p in folder.iterdir()
        if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    ]
    return sorted(found, key=lambda p: natural_key(p.name))


def folders_in(folder: Path) -> list[Path]:
    """Folders of a folder in natural order; none if there is no such folder."""
    found = (
        [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")] if folder.is_dir() else []
    )
    return sorted(found, key=lambda p: natural_key(p.name))


def people_in(folder: str | os.PathLike, least: int) -> list[Path]:
    """Subject folders in a folder that hold at least `least` images, in natural order; the folder itself if
    it holds images.

    Raises:
        InputError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a folder of subject folders")
    return [p for p in ([root] if images_in(root) else folders_in(root)) if len(images_in(p)) >= least]


def file_of(folder: Path, *patterns: str) -> Path | None:
    """The first file of a folder that matches one of the patterns, in their order; None if there is none."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern)) if folder.is_dir() else []
        if found:
            return found[0]
    return None


def read_points(path: Path, count: int) -> np.ndarray:
    """`count` points [count, 3] from a .npy, a text file with a line 'x y z' each, or MeshLab's picked points
    (.pp); NaN where a point is missing.

    Raises:
        InputError: not readable, or another number of points.
    """
    with foreign_file(path, f"cannot be read as {count} points 'x y z'", limit=MEGABYTE) as file:
        if path.suffix.lower() == ".npy":
            points = file.npy()
        elif path.suffix.lower() == ".pp":
            points = _picked(file.text(errors="replace"))
        else:
            points = file.table((0, 1, 2))
        points = np.asarray(points, np.float64)
    if points.shape != (count, 3) or np.isinf(points).any():
        raise InputError(
            f"{path}: expected {count} points [{count}, 3] with finite numbers, or nan for a point that is "
            f"missing, got {list(points.shape)}"
        )
    return points


def _picked(text: str) -> list[list[float]]:
    out = []
    for tag in re.findall(r"<point\b[^>]*>", text):
        values = dict(re.findall(r'\b([xyz])="([^"]*)"', tag))
        if len(values) == 3:
            out.append([float(values[k]) for k in "xyz"])
    return out
