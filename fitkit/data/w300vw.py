"""300-VW: videos of people, each with 68 points in every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.samples import DataSet, folders_in
from fitkit.data.subject_frames import observe_subject
from fitkit.data.video_frames import decode_frames
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import Pixels, Range
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.face_model import FaceModel

VIDEO, POINTS = "vid.avi", "annot"
DATA = DataSet(
    "300-VW",
    "https://ibug.doc.ic.ac.uk/resources/300-VW/",
    "research use only",
    f"001/{VIDEO} with 001/{POINTS}/000001.pts and so on, one for each frame, for each video",
)


@dataclass(frozen=True)
class Video:
    """folder: of a video, by its name; points: number of a frame, from 0 -> the file of its points."""

    folder: Path
    points: dict[int, Path]

    def subject(self, numbers: Sequence[int], name: str) -> Subject:
        """These frames, by rising number, with their points; only they are decoded.

        Raises:
            InputError: a video or points that cannot be used, by name.
        """
        files = [self.points[n] for n in numbers]
        marks = [read_landmarks(path) for path in files]  # before the frames, which take longer
        frames = decode_frames(self.folder / VIDEO, numbers)
        return subject_from_images(frames, marks, [path.stem for path in files], name=name)


def videos_in(folder: Path) -> list[Video]:
    """The videos of the data set.

    Raises:
        InputError: not this layout.
    """
    root, found = DATA.root(folder), []
    for place in folders_in(root):
        if (place / VIDEO).is_file():
            # The files count frames from 1.
            points = {int(p.stem) - 1: p for p in (place / POINTS).glob("*.pts") if p.stem.isdecimal()}
            if not points:
                raise DATA.missing(place, f"no {POINTS}/000001.pts")
            found.append(Video(place, dict(sorted(points.items()))))
    if not found:
        raise DATA.missing(root, f"no folder with {VIDEO} in it")
    return found


# ---- trainings ----


@dataclass(frozen=True)
class VideosOptions:
    """samples: drawn from each video; frames: of each sample, at random, at most as many as there are; size:
    side of the pictures that are read, px."""

    samples: Annotated[int, Range(1, 10**6)] = 40
    frames: Annotated[int, Range(1, 1000)] = 4
    size: Pixels = 272


class Videos(FaceDataset):
    """Frames of one video in each sample; the person is the video. Only frames that are asked for are
    decoded. No labels but landmarks."""

    name, terms = "300-VW", DATA.terms

    def __init__(self, folder: Path, options: VideosOptions, model: FaceModel):
        """Raises InputError: not this layout."""
        self.options, self.videos = options, videos_in(folder)
        self.ids = tuple(f"{video.folder.name}/{k}" for video in self.videos for k in range(options.samples))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a video or points that cannot be used, by name."""
        number, draw = divmod(index, self.options.samples)
        video = self.videos[number]
        rng = np.random.default_rng([number, draw])
        count = min(self.options.frames, len(video.points))
        chosen = sorted(rng.choice(list(video.points), count, replace=False).tolist())
        subject = video.subject(chosen, self.ids[index])
        seen = observe_subject(subject, "files", self.options.size, str(video.folder / VIDEO))
        return Sample(self.ids[index], seen)


# ---- fits ----


@dataclass(frozen=True)
class W300VWOptions:
    """frames: how many of a video are fitted together, taken evenly from those with points."""

    frames: Annotated[int, Range(1, 1000)] = 3


def vw_subjects(folder: Path, options: W300VWOptions) -> list[tuple[str, Callable[[], Subject]]]:
    """The name of each video, that of its folder, and what reads its frames with their points.

    Raises:
        InputError: not this layout.
    """
    found: list[tuple[str, Callable[[], Subject]]] = []
    for video in videos_in(folder):
        numbers = list(video.points)
        chosen = np.unique(np.linspace(0, len(numbers) - 1, options.frames).round().astype(int))
        name = video.folder.name
        found.append((name, partial(video.subject, [numbers[i] for i in chosen], name)))
    return found
