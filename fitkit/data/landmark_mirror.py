"""A tree of landmark files like that of the photos, for data sets that nothing is written into: `fitkit
detect --tree` fills it once."""

from __future__ import annotations

from pathlib import Path

from fitkit.errors import InputError
from fitkit.io.foreign import readable
from fitkit.io.landmark_files import SUFFIXES
from fitkit.io.subject import Subject, as_subject

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
