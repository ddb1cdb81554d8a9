"""CMU Multi-PIE: people in a ring of cameras, one picture of each camera at one instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.landmark_mirror import mirrored
from fitkit.data.samples import DataSet
from fitkit.data.subject_frames import observe_subject
from fitkit.errors import InputError
from fitkit.io.images import SUFFIXES
from fitkit.io.landmark_files import SUFFIXES as LANDMARK_SUFFIXES
from fitkit.io.options import Degrees, Pixels, Range
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.observe.labels import Labels

DATA = DataSet(
    "CMU Multi-PIE",
    "https://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie/Multi-Pie/Home.html",
    "licence of CMU, research use",
    "sessionSS/multiview/SUBJECT/RECORDING/CAMERA/SUBJECT_SS_RECORDING_CAM_SHOT.png",
)
# Camera folder -> yaw of the camera on the ring in degrees, one step of the ladder is 15. The sign is the
# order of the ring only: which side it is decides the picture.
CAMERAS = {
    "11_0": -90,
    "12_0": -75,
    "09_0": -60,
    "08_0": -45,
    "13_0": -30,
    "14_0": -15,
    "05_1": 0,
    "05_0": 15,
    "04_1": 30,
    "19_0": 45,
    "20_0": 60,
    "01_0": 75,
    "24_0": 90,
}
OVERHEAD = ("08_1", "19_1")
FRONT = "05_1"


@dataclass(frozen=True)
class MultiPieOptions:
    """side: least and most |yaw| of the cameras beside the frontal one, degrees; triplets: drawn from each
    instant; sessions, recordings, shots: which are taken, empty = all; shots 00 and 19 are without flash;
    landmarks: where the 68 points come from, see `fitkit fit --landmarks`; folder of landmark files: a tree
    like that of the pictures, empty = beside them; size: side of the pictures that are read, px."""

    side: tuple[Degrees, Degrees] = (20.0, 60.0)
    triplets: Annotated[int, Range(1, 10**6)] = 2
    sessions: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    shots: tuple[str, ...] = ("07",)
    landmarks: str = "auto"
    landmark_folder: str = ""
    size: Pixels = 272


class MultiPie(FaceDataset):
    """Triplets around camera 05_1: that one, one from each side, of one subject, session, recording and shot.
    No labels but landmarks."""

    name, terms = "Multi-PIE", DATA.terms

    def __init__(self, folder: Path, options: MultiPieOptions, model: FaceModel | None = None):
        """Raises InputError: not this layout, or nothing of what the options ask for."""
        self.options = options
        triplets = multipie_triplets(folder, options)
        self.ids, self._photos = tuple(name for name, _ in triplets), [load for _, load in triplets]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        subject = self._photos[index]()
        where = str(subject.views[0].path)
        seen = observe_subject(subject, self.options.landmarks, self.options.size, where)
        labels = Labels(moment=torch.zeros(seen.num_views, dtype=torch.int64))  # one instant
        return Sample(self.ids[index], replace(seen, labels=labels))


def multipie_triplets(folder: Path, options: MultiPieOptions) -> list[tuple[str, Callable[[], Subject]]]:
    """The id of each triplet, 'SUBJECT/SESSION_RECORDING_SHOT_K', and what reads its photos.

    Raises:
        InputError: not this layout, or nothing of what the options ask for.
    """
    root = DATA.root(folder)
    sessions = [s for s in sorted(root.glob("session*")) if (s / "multiview").is_dir()]
    if not sessions:
        raise DATA.missing(root, "no folder sessionSS/multiview")
    low, high = options.side
    left = [c for c, yaw in CAMERAS.items() if -high <= yaw <= -low]
    right = [c for c, yaw in CAMERAS.items() if low <= yaw <= high]
    triplets: list[tuple[str, Callable[[], Subject]]] = []
    for session in sessions:
        if options.sessions and session.name.removeprefix("session") not in options.sessions:
            continue
        for recording in sorted(p for p in session.glob("multiview/*/*") if p.is_dir()):
            if options.recordings and recording.name not in options.recordings:
                continue
            for shot in _shots(recording, options.shots):
                there = [[c for c in side if _picture(recording, c, shot)] for side in (left, right)]
                if not any(there):
                    continue
                subject = recording.parent.name
                rng = np.random.default_rng(
                    [int(n) for n in (session.name.removeprefix("session"), subject, recording.name, shot)]
                )
                for k in range(options.triplets):
                    name = f"{subject}/{session.name}_{recording.name}_{shot}_{k}"
                    cameras = (FRONT, *(str(rng.choice(side)) for side in there if side))
                    load = partial(_triplet, root, options.landmark_folder, recording, shot, cameras, name)
                    triplets.append((name, load))
    if not triplets:
        raise DATA.missing(
            root,
            f"no picture of camera {FRONT} with one beside it for the sessions, recordings and shots asked "
            "for",
        )
    return triplets


def _shots(recording: Path, wanted: tuple[str, ...]) -> list[str]:
    found = {p.stem.rpartition("_")[2] for p in (recording / FRONT).glob("*") if p.suffix.lower() in SUFFIXES}
    shots = sorted(s for s in found if s.isdecimal())
    if not all(n.isdecimal() for n in (recording.parent.name, recording.name)):
        return []
    return [s for s in shots if not wanted or s in wanted]


def _picture(recording: Path, camera: str, shot: str) -> Path | None:
    session = recording.parents[2].name.removeprefix("session")
    stem = f"{recording.parent.name}_{session}_{recording.name}_{camera.replace('_', '')}_{shot}"
    return next((p for s in SUFFIXES if (p := recording / camera / (stem + s)).is_file()), None)


def _triplet(
    root: Path, landmark_folder: str, recording: Path, shot: str, cameras: tuple[str, ...], name: str
) -> Subject:
    """Photos of one instant; their names are those of the cameras."""
    paths = [_picture(recording, c, shot) for c in cameras]
    landmarks = [_landmarks(Path(landmark_folder), root, p) for p in paths] if landmark_folder else None
    moments = ["instant"] * len(paths)
    return subject_from_images(paths, landmarks, names=list(cameras), name=name, moments=moments)


def _landmarks(mirror: Path, root: Path, picture: Path) -> Path:
    found = mirrored(mirror, root, picture)
    if found is None:
        stem = mirror / picture.relative_to(root).with_suffix("")
        raise InputError(
            f"{stem}: no landmark file ({', '.join('*' + s for s in LANDMARK_SUFFIXES)}) for {picture}"
        )
    return found
