"""NoW: single photos in four challenges, scans of the neutral face."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from fitkit.data.samples import (
    DataSet,
    EvaluationSample,
    ScanTruth,
    file_of,
    folders_in,
    images_in,
    read_points,
)
from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file, shown
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, subject_from_images

CHALLENGES = ("multiview_neutral", "multiview_expressions", "multiview_occlusions", "selfie")
NOW = DataSet(
    "the NoW benchmark (final_release_version)",
    "https://now.is.tue.mpg.de",
    "registration and a non-commercial licence",
    "iphone_pictures/SUBJECT/CHALLENGE/IMAGE.jpg, scans/SUBJECT/*.obj, scans_lmks_onlypp/SUBJECT/*.pp, "
    "imagepathsvalidation.txt",
)


def now_samples(
    folder: str | os.PathLike, challenges: tuple[str, ...] = CHALLENGES
) -> list[EvaluationSample]:
    """One sample for each photo of the validation list, id 'SUBJECT/CHALLENGE/IMAGE' without suffix, group =
    challenge.

    Without imagepathsvalidation.txt every photo of a subject whose scan is there. Scans and points are in
    millimetres.

    Raises:
        InputError: not this layout, or an unknown challenge.
    """
    unknown = [c for c in challenges if c not in CHALLENGES]
    if unknown:
        raise InputError(f"NoW challenges: expected some of {', '.join(CHALLENGES)}; got '{unknown[0]}'")
    root = NOW.root(folder)
    pictures, listed = root / "iphone_pictures", root / "imagepathsvalidation.txt"
    if listed.exists():
        with foreign_file(listed, "cannot be read", NOW.expected) as file:
            lines = [line.strip().replace("\\", "/") for line in file.text().splitlines() if line.strip()]
        places = [tuple(line.split("/")[-3:]) for line in lines]
        wrong = [
            line for line, place in zip(lines, places) if len(place) != 3 or ".." in place or len(line) > 1000
        ]
        if wrong:
            raise InputError(f"{listed}: expected lines SUBJECT/CHALLENGE/IMAGE.jpg, got {shown(wrong[0])}")
    else:
        places = [
            (s.name, c.name, i.name)
            for s in folders_in(pictures)
            if file_of(root / "scans" / s.name, "*.obj", "*.ply")
            for c in folders_in(s)
            for i in images_in(c)
        ]
    samples = [
        EvaluationSample(
            f"{s}/{c}/{Path(i).stem}", partial(_photo, pictures / s / c / i), partial(_truth, root, s), c
        )
        for s, c, i in places
        if c in challenges
    ]
    if not samples:
        raise NOW.missing(root, "no photo with a scan")
    return samples


def _photo(path: Path) -> Subject:
    return subject_from_images([path], name=path.stem)


def _truth(root: Path, subject: str) -> ScanTruth:
    mesh = file_of(root / "scans" / subject, "*.obj", "*.ply")
    picks = file_of(root / "scans_lmks_onlypp" / subject, "*.pp", "*.txt", "*.npy")
    if mesh is None or picks is None:
        raise NOW.missing(
            root,
            f"no {'scan' if mesh is None else 'landmarks'} of {subject} (public for the validation subjects "
            "only)",
        )
    return ScanTruth(*read_mesh(mesh), read_points(picks, 7))
