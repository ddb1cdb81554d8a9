"""300-VW: videos of faces with 68 points in every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from fitkit.data.samples import DataSet, folders_in
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import Range
from fitkit.io.subject import Subject, subject_from_images

DATA = DataSet(
    "300-VW",
    "https://ibug.doc.ic.ac.uk/resources/300-VW/",
    "given on request for research",
    "NNN/vid.avi with NNN/annot/000001.pts for its first frame, 000002.pts for the second, ...",
)


@dataclass(frozen=True)
class W300VWOptions:
    """frames: how many of a video are fitted together, taken evenly from those with points."""

    frames: Annotated[int, Range(1, 1000)] = 3


def vw_subjects(folder: Path, options: W300VWOptions) -> list[tuple[str, Callable[[], Subject]]]:
    """The name of each video, that of its folder, and what reads its frames with their points.

    Raises:
        InputError: not this layout.
    """
    root = DATA.root(folder)
    found: list[tuple[str, Callable[[], Subject]]] = []
    for place in folders_in(root):
        numbers = sorted(int(p.stem) for p in (place / "annot").glob("*.pts") if p.stem.isdecimal())
        if numbers and (place / "vid.avi").is_file():
            chosen = np.unique(np.linspace(0, len(numbers) - 1, options.frames).round().astype(int))
            found.append((place.name, partial(_frames, place, tuple(numbers[i] for i in chosen))))
    if not found:
        raise DATA.missing(root, "no NNN/vid.avi with points in NNN/annot")
    return found


def _frames(place: Path, numbers: Sequence[int]) -> Subject:
    """Frames by their numbers, counted from 1."""
    images, video = [], cv2.VideoCapture(str(place / "vid.avi"))
    try:
        # One after the other: where a codec jumps to, points of another frame would lie.
        for number in range(1, numbers[-1] + 1):
            if not video.grab():
                raise DATA.missing(place / "vid.avi", f"cannot be read up to frame {number}")
            if number in numbers:
                there, picture = video.retrieve()
                if not there:
                    raise DATA.missing(place / "vid.avi", f"frame {number} cannot be read")
                images.append(np.ascontiguousarray(picture[..., ::-1]))
    finally:
        video.release()
    names = [f"{number:06d}" for number in numbers]
    points = [read_landmarks(place / "annot" / f"{name}.pts") for name in names]
    return subject_from_images(images, points, names=names, name=place.name)
