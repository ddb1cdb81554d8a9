"""Menpo: pictures of faces with 68 points, or with 39 where the head is seen from the side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.landmark_frames import list_frames
from fitkit.data.samples import DataSet
from fitkit.data.subject_frames import observe_subject
from fitkit.errors import InputError
from fitkit.io.landmark_files import COUNT, read_landmarks, read_pts
from fitkit.io.options import Pixels
from fitkit.io.subject import subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import MIRRORED

DATA = DataSet(
    "Menpo",
    "https://ibug.doc.ic.ac.uk/resources/2nd-facial-landmark-tracking-competition-menpo-ben/",
    "research use only",
    "pictures, each with a .pts of 68 or 39 points of the same name beside it",
)
PROFILE = 39  # points of a head from the side: 10 of its outline, 6 of the brow, then those below
# Points 16 to 38, counted from 0 -> those of the 68 that they are, on a head whose right side is seen: bridge
# and tip of the nose; its base and wing; the eye without its inner corner; outer and inner lips.
PROFILE_POINTS = np.arange(16, PROFILE)
RIGHT_SIDE = np.array(
    [27, 28, 29, 30, 33, 31, 38, 37, 36, 41, 40, 51, 50, 49, 48, 59, 58, 57, 62, 61, 60, 67, 66]
)
NOSE_TIP, EYE, MOUTH = 19, slice(22, 27), slice(27, 39)


@dataclass(frozen=True)
class MenpoOptions:
    """profiles: pictures with 39 points, too; size: side of the pictures that are read, px."""

    profiles: bool = True
    size: Pixels = 272


class Menpo(FaceDataset):
    """One sample for each picture, id = its path; who it shows is not known. No labels but landmarks."""

    name, terms = "Menpo", DATA.terms

    def __init__(self, folder: Path, options: MenpoOptions, model: FaceModel):
        """Raises InputError: no such folder, no picture with points, or points that cannot be read."""
        root = DATA.root(folder)
        frames = list_frames(root)
        if not options.profiles:
            frames = tuple(f for f in frames if len(read_pts(f.landmarks)) != PROFILE)
            if not frames:
                raise InputError(
                    f"{root}: only pictures with {PROFILE} points in it, and profiles is false; leave it out"
                )
        self._frames, self.options = frames, options
        self.ids = tuple(
            f.image.relative_to(root).with_suffix("").as_posix().replace("/", "_") for f in frames
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that cannot be used, by name."""
        frame = self._frames[index]
        subject = subject_from_images(
            [frame.image], [read_menpo_points(frame.landmarks)], name=self.ids[index]
        )
        return Sample(self.ids[index], observe_subject(subject, "files", self.options.size, str(frame.image)))


def read_menpo_points(path: Path) -> np.ndarray:
    """The points of a .pts with 68 or 39 of them as 68, [68, 3] px as `read_landmarks`; of 39, those of the
    hidden side, of the outline and of the brow, which the two schemes set in different numbers, are NaN.

    Raises:
        InputError: not such a file, or another number of points.
    """
    points = read_pts(path)
    if len(points) == COUNT:
        return read_landmarks(path)
    if len(points) != PROFILE:
        raise InputError(
            f"{path}: expected {COUNT} points, or {PROFILE} of a head from the side, got {len(points)}"
        )
    if not np.isfinite(points).all():
        raise InputError(f"{path}: expected {PROFILE} points 'x y', some are no numbers")
    return profile_to_68(points)


def profile_to_68(points: np.ndarray) -> np.ndarray:
    """39 points [39, 2] px of a head from the side -> [68, 3], the third column 1; NaN and 0 where none of
    them is that point.

    Which side is seen follows from where the eye lies before the nose tip, whichever way the head is rolled.
    Source: the mark-up of the Menpo benchmark (Zafeiriou et al., CVPR workshops 2017).
    """
    eye = points[EYE].mean(0)
    (dx, dy), (fx, fy) = points[MOUTH].mean(0) - eye, points[NOSE_TIP] - eye
    right = dx * fy - dy * fx < 0  # down the face, forwards: in the picture y points down
    out = np.tile([np.nan, np.nan, 0.0], (COUNT, 1))
    named = RIGHT_SIDE if right else np.array(MIRRORED)[RIGHT_SIDE]
    out[named] = np.column_stack([points[PROFILE_POINTS], np.ones(len(named))])
    return out
