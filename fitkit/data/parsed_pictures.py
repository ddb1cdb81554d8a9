"""Pictures in which the part that each pixel shows is known: a tree of pictures with their landmarks and
their parts, such as folders of `fitkit synth`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.landmark_frames import list_frames
from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import Natural, Pixels, Range
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.face_parts import PARTS, UNKNOWN
from fitkit.observe.label_crops import cut_labels
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import Landmarks

MARGIN, UP = 3.2, 0.15  # of a crop that is wider than any network's


@dataclass(frozen=True)
class ParsedPicturesOptions:
    """most: pictures at most, 0 = all; margin: of the crops that are kept, see CropOptions; size: their
    largest side, px."""

    most: Natural = 0
    margin: Annotated[float, Range(1.0, 20.0)] = MARGIN
    size: Pixels = 320


class ParsedPictures(FaceDataset):
    """One sample for each picture below the root that has a .pts file and NAME_parts.png, a grey picture of
    the same size with numbers of `face_parts.PARTS` (255: not known), beside it, or in the ground_truth/ of
    `fitkit synth`; id = its path."""

    name, terms = "parsed pictures", "those of the pictures"

    def __init__(self, folder: Path, options: ParsedPicturesOptions, model: FaceModel | None = None):
        """Raises InputError: no such folder, or no such picture in it."""
        self.options = options
        found = [(f, parts_beside(f.image)) for f in list_frames(folder)]
        self.items = [(f, p) for f, p in found if p is not None][: options.most or None]
        if not self.items:
            raise InputError(
                f"{folder}: no picture with NAME.pts and NAME_parts.png in it; expected a folder of fitkit "
                "synth, or pictures with numbers of their parts beside them"
            )
        self.ids = tuple(f.image.relative_to(folder).with_suffix("").as_posix() for f, _ in self.items)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that cannot be used, by name."""
        frame, path = self.items[index]
        image = read_image(frame.image)[0]
        points = read_landmarks(frame.landmarks)[:, :2]
        parts = read_parts(path, image.shape[:2])
        o = self.options
        return parsed_sample(self.ids[index], image, points, parts, o.size, o.margin)


def parts_beside(image: Path) -> Path | None:
    """The picture of the parts of a photo, where there is one."""
    name = f"{image.stem}_parts.png"
    places = (image.with_name(name), image.parents[1] / "ground_truth" / image.parent.name / name)
    return next((p for p in places if p.is_file()), None)


def read_parts(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Numbers of `face_parts.PARTS` [H, W] uint8; size: (H, W) of the photo.

    Raises:
        InputError: not a grey picture of this size, or other numbers.
    """
    with foreign_file(path, "not readable as a picture of parts", limit=DATA_BYTES) as file:
        parts = file.picture(cv2.IMREAD_UNCHANGED)
    if parts is None or parts.dtype != np.uint8 or parts.shape != size:
        got = "no picture" if parts is None else f"{parts.dtype} {list(parts.shape)}"
        raise InputError(f"{path}: expected a grey picture of 8 bits, {list(size)} as its photo, got {got}")
    wrong = (parts >= len(PARTS)) & (parts != UNKNOWN)
    if wrong.any():
        raise InputError(
            f"{path}: expected numbers of parts, 0 to {len(PARTS) - 1} or {UNKNOWN} where nobody knows, got "
            f"{int(parts[wrong][0])}"
        )
    return parts


def parsed_sample(
    id: str,
    image: np.ndarray,
    points: np.ndarray,
    parts: np.ndarray,
    size: int,
    margin: float = MARGIN,
) -> Sample:
    """A sample of one view whose only label is the parse.

    image: [H, W, 3] uint8 sRGB; points: [68, 2] px, NaN = not known; parts: [H, W] uint8, UNKNOWN where
    nobody knows; size: px, of the crop that is kept at most; margin: of that crop.
    """
    marks = torch.from_numpy(np.ascontiguousarray(points)).float()[None]
    valid = torch.isfinite(marks).all(-1)
    if int(valid.sum()) < 8:
        raise InputError(f"{id}: expected at least 8 landmarks to cut it around, got {int(valid.sum())}")
    marks = Landmarks(
        torch.nan_to_num(marks), torch.full(valid.shape, torch.nan), valid, torch.ones(valid.shape), "outline"
    )
    known = torch.from_numpy(parts != UNKNOWN)[None]
    labels = Labels(
        parse=torch.from_numpy(np.where(parts == UNKNOWN, 0, parts)).long()[None], parse_valid=known
    )
    crop = CropOptions(margin, UP, size, min(64, size))
    seen = crop_views([image], [None], marks, crop)
    labels = cut_labels(labels, seen.scale, seen.offset, seen.size)
    return Sample(id, replace(seen, labels=labels), labels)
