"""CelebA: photos of celebrities; their 68 points come from a detector, once for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.samples import DataSet, images_in
from fitkit.data.subject_frames import observe_subject
from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.landmark_files import SUFFIXES
from fitkit.io.options import Natural, Pixels
from fitkit.io.subject import subject_from_images
from fitkit.models.face_model import FaceModel

PICTURES, PEOPLE = ("img_celeba", "img_align_celeba"), "identity_CelebA.txt"
DATA = DataSet(
    "CelebA",
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "non-commercial research only",
    f"{' or '.join(f'{name}/000001.jpg' for name in PICTURES)}, or the pictures themselves",
)


@dataclass(frozen=True)
class CelebAOptions:
    """landmark_folder: of the landmark files, as `fitkit detect PICTURES -o FOLDER` writes it; empty: beside
    the pictures; most: pictures at most, in their order, 0 = all; size: side of the pictures that are read,
    px."""

    landmark_folder: str = ""
    most: Natural = 0
    size: Pixels = 272


class CelebA(FaceDataset):
    """One sample for each picture that has landmarks; those in which the detector found no face have none.

    The person is that of identity_CelebA.txt, where it lies beside the pictures or their folder, else the
    picture. No labels but landmarks.
    """

    name, terms = "CelebA", DATA.terms

    def __init__(self, folder: Path, options: CelebAOptions, model: FaceModel):
        """Raises InputError: not this layout, no landmark files, or a list of people that cannot be read."""
        self.options, root = options, DATA.root(folder)
        place = next((root / name for name in PICTURES if (root / name).is_dir()), root)
        pictures = images_in(place)
        if not pictures:
            raise DATA.missing(place, "no picture in it")
        beside = Path(options.landmark_folder) if options.landmark_folder else place
        if not beside.is_dir():
            raise InputError(f"{beside}: no such folder; expected the landmark files of {place}")
        there = {p.name for p in beside.iterdir() if p.suffix.lower() in SUFFIXES}
        marks = {p: next((n for s in SUFFIXES if (n := p.stem + s) in there), None) for p in pictures}
        found = [(p, beside / name) for p, name in marks.items() if name is not None]
        if not found:
            raise InputError(
                f"{beside}: no landmark file of a picture in {place}, e.g. {pictures[0].stem}{SUFFIXES[0]}; "
                f"make them with 'fitkit detect {place} -o FOLDER' and give landmark_folder: FOLDER"
            )
        self._found = found[: options.most or None]
        listed = next((p for p in (root / PEOPLE, place.parent / PEOPLE) if p.is_file()), None)
        people = _people(listed) if listed is not None else {}
        self.ids = tuple(f"{people.get(p.name, p.stem)}/{p.stem}" for p, _ in self._found)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError: a file that cannot be used, by name."""
        picture, points = self._found[index]
        subject = subject_from_images([picture], [points], name=self.ids[index])
        return Sample(self.ids[index], observe_subject(subject, "files", self.options.size, str(picture)))


def _people(path: Path) -> dict[str, str]:
    """Name of a picture -> number of its person."""
    with foreign_file(path, "cannot be read as a list 'PICTURE PERSON'", limit=DATA_BYTES) as file:
        rows = [line.split() for line in file.text().splitlines() if line.strip()]
        wrong = next((row for row in rows if len(row) != 2), None)
        if wrong is not None:
            raise ValueError(f"expected two words in a line, got '{' '.join(wrong):.80}'")
        return dict(rows)
