"""Real faces with 68 landmarks whose parts are guessed by colours, to train a parser with: what is not sure
is not labelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.landmark_frames import list_frames
from fitkit.data.parsed_pictures import parsed_sample
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks, without_strays
from fitkit.io.options import Natural, Pixels
from fitkit.models.face_model import FaceModel
from fitkit.nets.parser.by_colors import ROOM, guess_parts
from fitkit.nets.parser.photos import cut_out


@dataclass(frozen=True)
class GuessedPartsOptions:
    """most: pictures at most, evenly over the folder, 0 = all; size: side of the pictures, px."""

    most: Natural = 0
    size: Pixels = 224


class GuessedParts(FaceDataset):
    """One sample for each picture with a .pts below the root, id = its path."""

    name, terms = "guessed parts", "those of the pictures"

    def __init__(self, folder: Path, options: GuessedPartsOptions, model: FaceModel | None = None):
        """Raises InputError: no such folder, or no such picture in it."""
        self.options = options
        frames = list_frames(folder)
        if options.most and options.most < len(frames):
            frames = tuple(frames[int(i)] for i in np.linspace(0, len(frames) - 1, options.most))
        self.frames = frames
        self.ids = tuple(f.image.relative_to(folder).with_suffix("").as_posix() for f in frames)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that cannot be used, by name."""
        frame, size = self.frames[index], self.options.size
        picture = read_image(frame.image)[0]
        points = read_landmarks(frame.landmarks)
        points = without_strays(points, (picture.shape[1], picture.shape[0]))[0][:, :2]
        image, points = cut_out(picture, points, replace(ROOM, max_size=size, min_size=size))
        return parsed_sample(self.ids[index], image, points, guess_parts(image, points), size)
