"""300-VW: videos of people, each with 68 points in every frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.samples import DataSet, folders_in
from fitkit.data.subject_frames import observe_subject
from fitkit.errors import InputError
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import Pixels, Range
from fitkit.io.subject import subject_from_images
from fitkit.models.face_model import FaceModel

VIDEO, POINTS = "vid.avi", "annot"
DATA = DataSet(
    "300-VW",
    "https://ibug.doc.ic.ac.uk/resources/300-VW/",
    "research use only",
    f"001/{VIDEO} with 001/{POINTS}/000001.pts and so on, one for each frame, for each video",
)


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
        self.options = options
        root = DATA.root(folder)
        self.videos = [p for p in folders_in(root) if (p / VIDEO).is_file()]
        if not self.videos:
            raise DATA.missing(root, f"no folder with {VIDEO} in it")
        self._points = [self._annotated(p) for p in self.videos]
        self.ids = tuple(f"{video.name}/{k}" for video in self.videos for k in range(options.samples))

    @staticmethod
    def _annotated(video: Path) -> dict[int, Path]:
        """Number of a frame, from 0 -> its points."""
        # The files count frames from 1.
        found = {int(p.stem) - 1: p for p in (video / POINTS).glob("*.pts") if p.stem.isdecimal()}
        if not found:
            raise DATA.missing(video, f"no {POINTS}/000001.pts")
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a video or points that cannot be used, by name."""
        number, draw = divmod(index, self.options.samples)
        points, path = self._points[number], self.videos[number] / VIDEO
        rng = np.random.default_rng([number, draw])
        count = min(self.options.frames, len(points))
        chosen = sorted(rng.choice(sorted(points), count, replace=False).tolist())
        marks = [read_landmarks(points[k]) for k in chosen]  # before the frames, which take longer
        frames = decode_frames(path, chosen)
        subject = subject_from_images(frames, marks, [points[k].stem for k in chosen], name=self.ids[index])
        return Sample(self.ids[index], observe_subject(subject, "files", self.options.size, str(path)))


def decode_frames(path: Path, numbers: list[int]) -> list[np.ndarray]:
    """Some frames of a video by number, from 0 and rising, as [H, W, 3] uint8 RGB.

    Raises:
        InputError: a video that cannot be opened, or without such a frame.
    """
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise InputError(f"{path}: cannot be opened as a video; download it again, or remove its folder")
        frames, following = [], 0
        for number in numbers:
            if number != following:
                video.set(cv2.CAP_PROP_POS_FRAMES, number)
            read, frame = video.read()
            if not read:
                raise InputError(
                    f"{path}: frame {number} cannot be decoded; the video has "
                    f"{int(video.get(cv2.CAP_PROP_FRAME_COUNT))} frames, and there are points for this one"
                )
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            following = number + 1
        return frames
    finally:
        video.release()
