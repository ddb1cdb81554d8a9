"""CelebAMask-HQ: portraits whose parts were drawn by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.parsed_pictures import parsed_sample
from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.options import Natural, Pixels
from fitkit.models.face_model import FaceModel
from fitkit.observe.face_parts import PARTS

PICTURES, MASKS = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
PER_FOLDER = 2000  # numbers of pictures in one folder of masks
# Our name of each part of the data set, later ones over earlier ones; l_ and r_ are the subject's sides.
DRAWN = {
    "cloth": "clothes",
    "neck": "neck",
    "neck_l": "occluder",  # a necklace
    "skin": "skin",
    "l_ear": "ears",
    "r_ear": "ears",
    "ear_r": "occluder",  # an ear ring
    "nose": "nose",
    "mouth": "mouth",
    "u_lip": "upper_lip",
    "l_lip": "lower_lip",
    "l_brow": "left_brow",
    "r_brow": "right_brow",
    "l_eye": "left_eye",
    "r_eye": "right_eye",
    "eye_g": "glasses",
    "hair": "hair",
    "hat": "occluder",
}
# Pictures are aligned by eyes and mouth; the box of the 68 points of such a face, shares of the picture.
BOX = (0.27, 0.38, 0.73, 0.86)


@dataclass(frozen=True)
class CelebAMaskOptions:
    """most: pictures at most, in their order, 0 = all; size: side of the pictures that are kept, px."""

    most: Natural = 0
    size: Pixels = 320


class CelebAMask(FaceDataset):
    """One sample for each picture, id = its number; a part without a file is not in the picture. Points are
    read from NUMBER.pts beside a picture; without one the picture is cut by its alignment."""

    name = "CelebAMask-HQ"
    terms = "non-commercial research and education only (CelebAMask-HQ)"

    def __init__(self, folder: Path, options: CelebAMaskOptions, model: FaceModel | None = None):
        """Raises InputError: not the layout of the data set."""
        self.folder, self.options = Path(folder), options
        for name in (PICTURES, MASKS):
            if not (self.folder / name).is_dir():
                raise InputError(
                    f"{folder}: expected the folder of CelebAMask-HQ with {PICTURES}/ and {MASKS}/; {name}/ "
                    "is not there"
                )
        numbers = sorted(int(p.stem) for p in (self.folder / PICTURES).glob("*.jpg") if p.stem.isdecimal())
        self.ids = tuple(str(n) for n in numbers[: options.most or None])
        if not self.ids:
            raise InputError(f"{self.folder / PICTURES}: no picture NUMBER.jpg in it")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that cannot be used, by name."""
        path = self.folder / PICTURES / f"{self.ids[index]}.jpg"
        photo, parts = read_image(path)[0], self.parts(int(self.ids[index]))
        size = np.array(parts.shape[::-1])
        if path.with_suffix(".pts").is_file():
            scale = size / photo.shape[1::-1]
            points = (read_landmarks(path.with_suffix(".pts"))[:, :2] + 0.5) * scale - 0.5
        else:
            turn, box = np.linspace(0, 2 * np.pi, 68, endpoint=False), np.array(BOX).reshape(2, 2)
            circle = np.stack([np.cos(turn), np.sin(turn)], -1)
            points = (box.mean(0) + circle * (box[1] - box[0]) / 2) * size - 0.5
        image = cv2.resize(photo, parts.shape[::-1], interpolation=cv2.INTER_AREA)
        return parsed_sample(self.ids[index], image, points, parts, self.options.size)

    def parts(self, number: int) -> np.ndarray:
        """Numbers of `face_parts.PARTS`, [H, W] uint8.

        Raises:
            InputError: no mask of this picture, or one that cannot be used.
        """
        folder = self.folder / MASKS / str(number // PER_FOLDER)
        paths = {name: folder / f"{number:05d}_{name}.png" for name in DRAWN}
        masks = {name: _mask(path) for name, path in paths.items() if path.is_file()}
        if not masks:
            raise InputError(f"{folder}: no mask of picture {number} in it")
        out = np.zeros(next(iter(masks.values())).shape, np.uint8)
        for name, mask in masks.items():
            if mask.shape != out.shape:
                raise InputError(
                    f"{paths[name]}: expected {list(out.shape)} as the others, got {list(mask.shape)}"
                )
            out[mask > 127] = PARTS.index(DRAWN[name])
        return out


def _mask(path: Path) -> np.ndarray:
    with foreign_file(path, "not readable as a mask", limit=DATA_BYTES) as file:
        mask = file.picture(cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise ValueError("no picture")
    return mask
