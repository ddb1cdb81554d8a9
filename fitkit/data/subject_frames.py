"""Any folder of subject folders: photos of one person in each, landmarks beside them or detected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.errors import InputError
from fitkit.io.options import Natural, Pixels
from fitkit.io.subject import Subject, load_subject, subject_folders
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.observations import Observations


@dataclass(frozen=True)
class SubjectFramesOptions:
    """landmarks: where the 68 points come from, see `fitkit fit --landmarks`; min_views: folders with fewer
    pictures are passed over; size: side of the pictures that are read, px."""

    landmarks: str = "files"
    min_views: Natural = 1
    size: Pixels = 272


class SubjectFrames(FaceDataset):
    """One sample for each subject folder (docs/subject_folder.md) below the root, id = its path. No labels
    but landmarks."""

    name, terms = "subject folders", "those of the photos"

    def __init__(self, folder: Path, options: SubjectFramesOptions, model: FaceModel):
        """Raises InputError: no such folder, or no folder with enough pictures in it."""
        self.options = options
        self.folders = subject_folders(folder, options.min_views)
        if not self.folders:
            raise InputError(
                f"{folder}: no folder with at least {options.min_views} pictures below it; "
                "expected one folder for each person"
            )
        self.ids = tuple(
            p.relative_to(folder).as_posix() if p != folder else folder.name for p in self.folders
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        subject = load_subject(self.folders[index])
        return Sample(
            self.ids[index],
            observe_subject(subject, self.options.landmarks, self.options.size, str(self.folders[index])),
        )


def observe_subject(subject: Subject, landmarks: str, size: int, where: str) -> Observations:
    """Landmarks and generous crops of a subject's photos; those without a face are left out.

    Raises:
        InputError: no photo with a face, or landmarks that cannot be used; `where` names the place if they do
            not.
    """
    found, _ = detect_landmarks(subject, landmarks)
    try:
        subject, found, _ = usable_views(subject, found)
    except InputError as error:
        raise error if where in str(error) else InputError(f"{where}: {error}") from error
    # Wider than any network's crop, so that a shifted one still shows picture.
    return crop_views(
        (v.image for v in subject.views),
        (v.mask for v in subject.views),
        found,
        CropOptions(1.9, 0.1, size, size),
    )
