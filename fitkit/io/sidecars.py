"""Which files beside photos belong to which photo: landmarks and masks, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from fitkit.io import landmark_files
from fitkit.io.foreign import readable
from fitkit.io.images import COMMON, SUFFIXES

Owner = Callable[[str], "tuple[int, Path] | None"]  # as `_owners` gives it
MASKS, LANDMARKS = ("masks", "mask"), ("landmarks",)  # folders, in upper or lower case


@dataclass
class Beside:
    """landmarks, masks: photo -> its files, the one to use first; elsewhere: folder that is not read -> names
    of files in it that have the names of photos; lost: what else lies among the masks."""

    landmarks: dict[Path, list[Path]] = field(default_factory=dict)
    masks: dict[Path, list[Path]] = field(default_factory=dict)
    elsewhere: dict[Path, list[str]] = field(default_factory=dict)
    lost: list[Path] = field(default_factory=list)


def natural_key(name: str) -> list:
    """Sort key that puts 'view2' before 'view10'."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts] + [(0, 0, name)]


def plain_name(name: str) -> str:
    """What is alike in names that differ in case, encoding, or Unicode form (macOS writes letters and accents
    apart)."""
    return normalize("NFC", readable(name)).casefold()


def without_copies(photos: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The photos of a folder, and apart from them those in an unusual format beside one of the same name in a
    usual one."""
    photos = list(photos)
    common = {plain_name(p.stem) for p in photos if p.suffix.lower() in COMMON}
    copies = [p for p in photos if p.suffix.lower() not in COMMON and plain_name(p.stem) in common]
    return [p for p in photos if p not in copies], copies


def files_beside(entries: Iterable[Path], photos: Sequence[Path], ignore: Callable[[Path], bool]) -> Beside:
    """The files of photos in a folder.

    A file belongs to the photo after whose stem it is named (a.pts), or else after its whole name
    (a.jpg.png); names that differ only in case or Unicode form will do where no photo has just that name.
    Landmark files in landmarks/ come after those beside the photo.

    Args:
        entries: what lies in the folder; photos: those of it that are photos; ignore: folders that are not
            looked into, apart from masks/ and landmarks/.
    """
    owner = _owners(photos)
    out = Beside()
    entries = sorted(entries, key=lambda p: natural_key(p.name))
    found = _landmarks([p for p in entries if p.name.lower() != "cameras.json"], owner)
    out.landmarks = {photo: [p for p in files if p.is_file()] for photo, files in found.items()}
    for entry in entries:
        name = entry.name.casefold()
        known = name in MASKS or name in LANDMARKS
        if entry.suffix.lower() in SUFFIXES or not entry.is_dir() or (ignore(entry) and not known):
            continue
        inside = sorted(_inside(entry), key=lambda p: natural_key(p.name))
        if name in MASKS:
            masks = [p for p in inside if p.suffix.lower() in SUFFIXES]
            for photo, files in _by_photo(masks, owner, (".png",)).items():
                out.masks.setdefault(photo, []).extend(files)
            out.lost += [p for p in inside if p not in masks or owner(p.stem) is None]
            continue
        named = _landmarks(inside, owner)
        if name in LANDMARKS:
            for photo, found_there in named.items():
                out.landmarks.setdefault(photo, []).extend(found_there)
        elif named and not any(
            p.suffix.lower() in SUFFIXES for p in inside
        ):  # with photos it is a subject of its own
            out.elsewhere[entry] = [p.name for found_there in named.values() for p in found_there]
    return out


def _inside(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError:
        return []


def _owners(photos: Sequence[Path]) -> Owner:
    """For the stem of a file: the photo that it belongs to, and how well the names agree (0: best)."""
    tables: list[dict[str, Path]] = [{}, {}, {}, {}]
    for photo in photos:
        for table, key in zip(
            tables, (photo.stem, photo.name, plain_name(photo.stem), plain_name(photo.name))
        ):
            table.setdefault(key, photo)

    def owner(stem: str) -> tuple[int, Path] | None:
        keys = (stem, stem, plain_name(stem), plain_name(stem))
        return next(
            ((rank, table[key]) for rank, (table, key) in enumerate(zip(tables, keys)) if key in table), None
        )

    return owner


def _landmarks(files: Iterable[Path], owner: Owner) -> dict[Path, list[Path]]:
    known = landmark_files.SUFFIXES
    return _by_photo([p for p in files if p.suffix.lower() in known], owner, known)


def _by_photo(files: Sequence[Path], owner: Owner, suffixes: Sequence[str]) -> dict[Path, list[Path]]:
    """Photo -> its files: the nearest names first, then in the order of `suffixes`."""
    found: dict[Path, list[tuple[int, int, Path]]] = {}
    for file in files:
        match, suffix = owner(file.stem), file.suffix.lower()
        if match is not None:
            place = suffixes.index(suffix) if suffix in suffixes else len(suffixes)
            found.setdefault(match[1], []).append((match[0], place, file))
    return {photo: [file for *_, file in sorted(ranked)] for photo, ranked in found.items()}
