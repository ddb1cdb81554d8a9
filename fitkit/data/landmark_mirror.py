"""A tree of landmark files like that of the photos, for data sets that nothing is written into: `fitkit
detect --tree` fills it once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from fitkit.errors import FitkitError, InputError, unexpected
from fitkit.io.atomic import remove_litter, writing, written_whole
from fitkit.io.foreign import TEXT_BYTES, foreign_file, readable
from fitkit.io.images import SUFFIXES as PHOTOS
from fitkit.io.images import read_image
from fitkit.io.landmark_files import SUFFIXES, write_pts
from fitkit.io.outputs import locked
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, as_subject, photo_folders
from fitkit.io.workers import Loss, run_jobs
from fitkit.observe.landmarks.detectors import faces_of, make_detector
from fitkit.observe.landmarks.types import LandmarkDetector

NO_FACE = "no_face.txt"  # photos without a face: paths below the root, one a line


def mirrored(mirror: Path, root: Path, photo: Path) -> Path | None:
    """The landmark file of ROOT/A/B/photo.jpg in the mirror, MIRROR/A/B/photo.pts or another suffix; None
    without one."""
    stem = mirror / photo.relative_to(root).with_suffix("")
    return next((p for s in SUFFIXES if (p := Path(f"{stem}{s}")).is_file()), None)


def check_mirror(mirror: str | Path) -> Path:
    """The folder as a path.

    Raises:
        InputError: there is no such folder.
    """
    place = Path(mirror)
    if not place.is_dir():
        raise InputError(
            f"{place}: no such folder; expected landmark files as 'fitkit detect --tree' writes them"
        )
    return place


def with_mirrored_landmarks(subject: Subject, root: Path, mirror: Path) -> Subject:
    """The subject whose photos below `root` have the landmarks of their files in the mirror; the others keep
    what they have.

    Raises:
        InputError: a file that cannot be used.
    """
    files = [
        mirrored(mirror, root, v.path) if v.path is not None and v.path.is_relative_to(root) else None
        for v in subject.views
    ]
    lacking = [readable(v.name) for v, file in zip(subject.views, files) if file is None]
    subject = as_subject(subject, files)
    if not lacking:
        return subject
    note = f"no landmark file in {mirror} for: {', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}"
    return Subject(subject.name, subject.views, subject.path, (*subject.notes, note))


@dataclass(frozen=True)
class Filled:
    """What became of a photo. status: 'written', 'no face' or 'error'; message: of an error."""

    photo: str
    status: str
    message: str = ""


def fill_mirror(
    root: str | os.PathLike,
    mirror: str | os.PathLike,
    landmarks: str = "auto",
    device: str = "cpu",
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = Progress(),
) -> list[Filled]:
    """Find the face in every photo below `root` and write its 68 points to the same place below `mirror`, as
    .pts. What is there stays, and photos in which none was found, which MIRROR/no_face.txt lists, are not
    looked at again: a run that was stopped goes on.

    Args:
        landmarks, device: detector, see `make_detector`; workers: processes, each with one thread; overwrite:
            do everything again; progress: told of each photo.
    Returns:
        what became of the photos of this run, in any order.
    Raises:
        InputError: no such folder, no photos below it, a mirror that is the tree itself or cannot be written.
    """
    root, mirror = Path(root), Path(mirror)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a tree of photos")
    if workers < 1:
        raise InputError(f"detect: workers: expected at least 1, got {workers}")
    if Path(os.path.realpath(root)).is_relative_to(os.path.realpath(mirror)):
        raise InputError(f"output {mirror}: the photos lie in it; choose another folder with -o")
    photos = _photos(root, Path(os.path.realpath(mirror)))
    if not photos:
        raise InputError(f"{root}: no photos below it")
    make_detector(landmarks, device)  # what is missing shows before the first photo
    with locked(mirror, "detect", "detect"):
        _tidy(mirror)
        without = set() if overwrite else _without_face(mirror)
        left = [
            p
            for p in photos
            if overwrite
            or (readable(p.as_posix()) not in without and mirrored(mirror, root, root / p) is None)
        ]
        if overwrite:
            (mirror / NO_FACE).unlink(missing_ok=True)
        _refuse_same_names(photos, root)
        done: list[Filled] = []
        progress.counted(len(photos) - len(left), len(photos))
        look = partial(_fill_one, root, mirror, landmarks, device)
        with closing(run_jobs(look, left, workers, _lost)) as found:
            for one in found:
                done.append(one)
                if one.status == "no face":
                    with writing(mirror / NO_FACE), open(mirror / NO_FACE, "ab") as file:
                        file.write(f"{one.photo}\n".encode())
                progress.counted(len(photos) - len(left) + len(done), len(photos), one)
    return done


def _photos(root: Path, mirror: Path) -> list[Path]:
    """Paths below the root, sorted; those that no subject has (`photo_folders`), and what lies in the mirror,
    are none."""
    return sorted(
        p.relative_to(root)
        for folder, entries in photo_folders(root)
        if not Path(os.path.realpath(folder)).is_relative_to(mirror)
        for p in entries
        if p.suffix.lower() in PHOTOS and p.is_file()
    )


def _refuse_same_names(photos: Sequence[Path], root: Path) -> None:
    seen: dict[str, Path] = {}
    for photo in photos:
        stem = photo.with_suffix("").as_posix()
        if stem in seen:
            raise InputError(
                f"{root / photo}: would have the landmark file of {root / seen[stem]}; rename one of the two"
            )
        seen[stem] = photo


def _without_face(mirror: Path) -> set[str]:
    path = mirror / NO_FACE
    if not path.exists():
        return set()
    with foreign_file(path, "not readable as a list of photos", limit=TEXT_BYTES) as file:
        return set(file.text(errors="replace").splitlines())


def _tidy(mirror: Path) -> None:
    for place, _, _ in os.walk(mirror):
        remove_litter(Path(place))


@lru_cache(maxsize=1)
def _detector(landmarks: str, device: str) -> LandmarkDetector:
    return make_detector(landmarks, device)


def _fill_one(root: Path, mirror: Path, landmarks: str, device: str, photo: Path) -> Filled:
    name = readable(photo.as_posix())
    try:
        faces = faces_of(_detector(landmarks, device), read_image(root / photo)[0])
        if not faces:
            return Filled(name, "no face")
        points = faces[0].points[0].double().numpy()
        points[~faces[0].valid[0].numpy()] = float("nan")
        with written_whole((mirror / photo).with_suffix(".pts"), "choose another folder with -o") as part:
            write_pts(part, points)
    except FitkitError as error:
        return Filled(name, "error", str(error))
    except Exception as error:  # noqa: BLE001 - one photo must not end the run
        return Filled(name, "error", f"{root / photo}: {unexpected(error)}")
    return Filled(name, "written")


def _lost(photo: Path, loss: Loss) -> Filled:
    return Filled(
        readable(photo.as_posix()), "error", f"{photo}: {loss.text}; try again with fewer --workers"
    )
