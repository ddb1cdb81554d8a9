"""A table of photos: which person each shows, and what is known about it. CSV, or JSON objects, one a
line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fitkit.errors import InputError
from fitkit.io.calibration import check_name
from fitkit.io.foreign import MEGABYTE, foreign_file, parse_json, readable, refused_as, shown
from fitkit.io.options import unknown_key
from fitkit.io.subject import (
    Subject,
    as_subject,
    check_photo,
    subject_from_images,
    with_cameras,
    with_masks,
)

SUFFIXES = (".csv", ".jsonl", ".ndjson")
BYTES = 1024 * MEGABYTE
LONGEST = 1000  # characters of an entry


@dataclass(frozen=True)
class ManifestRow:
    """One photo. subject: name of its person, which may have folders ('town/anna'); photo: the file; camera:
    a cameras.json with an entry for it; moment: photos with the same one were taken at once; landmarks, mask:
    files; '' = not stated, then files that lie beside the photo are used as in a subject folder. line: its
    place in the manifest, counted from 1."""

    subject: str
    photo: str
    camera: str = ""
    moment: str = ""
    landmarks: str = ""
    mask: str = ""
    line: int = 0


COLUMNS = tuple(f.name for f in fields(ManifestRow) if f.name != "line")
REQUIRED = ("subject", "photo")
EXPECTED = f"expected the columns {', '.join(REQUIRED)} and, if known, {', '.join(COLUMNS[2:])}"


def is_manifest(path: str | os.PathLike) -> bool:
    """By its name; whether it is there is not asked."""
    return Path(path).suffix.lower() in SUFFIXES


def read_manifest(path: str | os.PathLike) -> dict[str, tuple[ManifestRow, ...]]:
    """Subject -> its photos, both in the order of the file; paths in it count from its folder.

    Raises:
        InputError: not readable, an unknown column, or a line that lacks something; names the line.
    """
    path = Path(path)
    with foreign_file(path, "cannot be read as a table of photos", EXPECTED, limit=BYTES) as file:
        text = file.text()
    rows = _csv(path, text) if path.suffix.lower() == ".csv" else _json_lines(path, text)
    people: dict[str, list[ManifestRow]] = {}
    for row in rows:
        people.setdefault(row.subject, []).append(row)
    if not people:
        raise InputError(f"{path}: no photos in it; {EXPECTED}")
    return {name: tuple(photos) for name, photos in people.items()}


def _csv(path: Path, text: str) -> list[ManifestRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        for number, name in enumerate(head, 1):
            if not name:
                raise InputError(f"{path}: line 1: column {number} has no name; {EXPECTED}")
            if name not in COLUMNS:
                raise unknown_key(name, COLUMNS, f"{path}: line 1: columns")
        lacking = [name for name in REQUIRED if name not in head]
        if lacking or len(set(head)) != len(head):
            what = f"no column '{lacking[0]}'" if lacking else "a column occurs twice"
            raise InputError(f"{path}: line 1: {what}; {EXPECTED}")
        rows = []
        for values in reader:
            if not values or not any(v.strip() for v in values):
                continue
            if len(values) != len(head):
                raise InputError(
                    f"{path}: line {reader.line_num}: expected {len(head)} entries as in the first line, got "
                    f"{len(values)}"
                )
            rows.append(_row(dict(zip(head, values)), f"{path}: line {reader.line_num}", reader.line_num))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: not a line of a table ({error}); {EXPECTED}"
        ) from error
    return rows


def _json_lines(path: Path, text: str) -> list[ManifestRow]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        with refused_as(f"{where}: not a JSON object"):
            entry = parse_json(line.encode())
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected a JSON object with subject and photo, got {shown(entry)}")
        for name in entry:
            if name not in COLUMNS:
                raise unknown_key(name, COLUMNS, where)
        rows.append(_row({k: v for k, v in entry.items() if v is not None}, where, number))
    return rows


def _row(entry: dict[str, Any], where: str, line: int) -> ManifestRow:
    for name, value in entry.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name in ("subject", "moment"):
            entry[name] = value = str(value)  # numbers of people and of moments
        if not isinstance(value, str) or len(value) > LONGEST or "\0" in value:
            raise InputError(f"{where}: {name}: expected text, got {shown(value)}")
    entry = {name: readable(value.strip()) for name, value in entry.items()}
    for name in REQUIRED:
        if not entry.get(name):
            raise InputError(f"{where}: no {name}; {EXPECTED}")
    if entry.get("moment"):
        check_name(entry["moment"], f"{where}: moment", "all photos taken at once")
    return ManifestRow(**entry, line=line)


def manifest_subject(path: str | os.PathLike, rows: Sequence[ManifestRow]) -> Subject:
    """The subject of the rows of one person, its views in their order.

    Poses of cameras from several files are not used, only their K: each may count from another origin.

    Raises:
        InputError: a file that is not there or cannot be used; names the line.
    """
    manifest = Path(path)
    folder = manifest.parent

    def place(row: ManifestRow, column: str) -> Path | None:
        value = getattr(row, column)
        if not value:
            return None
        found = folder / value
        if not os.path.isfile(found):  # a name may be too long to ask for
            raise InputError(f"{manifest}: line {row.line}: {column}: no such file: {shown(value)}")
        return found

    photos = []
    for row in rows:
        photo = folder / row.photo
        try:
            check_photo(photo)
        except InputError as error:
            raise InputError(f"{manifest}: line {row.line}: photo: {error}") from error
        photos.append(photo)
    stems = [readable(p.stem) for p in photos]
    names = [
        s
        if [t.casefold() for t in stems].count(s.casefold()) == 1
        else f"{readable(p.absolute().parent.name)}_{s}"
        for s, p in zip(stems, photos)
    ]
    first, last = rows[0].line, rows[-1].line
    where = f"{manifest}: lines {first} to {last}" if last > first else f"{manifest}: line {first}"
    try:
        subject = subject_from_images(
            photos,
            names=names,
            name=rows[0].subject.rpartition("/")[2],
            moments=[r.moment or None for r in rows],
        )
        subject = as_subject(subject, [place(r, "landmarks") for r in rows])
        subject = with_masks(subject, [place(r, "mask") for r in rows])
        return with_cameras(subject, [place(r, "camera") for r in rows])
    except InputError as error:
        raise error if str(manifest) in str(error) else InputError(f"{where}: {error}") from error
