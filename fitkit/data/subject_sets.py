"""Every layout of photos that people are fitted from, by its kind: one list of subjects of any of them."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fitkit.data.landmark_mirror import check_mirror, with_mirrored_landmarks
from fitkit.errors import InputError, did_you_mean
from fitkit.io.foreign import readable
from fitkit.io.manifest import is_manifest, manifest_subject, read_manifest
from fitkit.io.options import apply_overrides, build
from fitkit.io.subject import OUTPUT_FOLDER, Subject, load_subject, subject_folders


@dataclass(frozen=True)
class SubjectEntry:
    """One person, or one moment of a person, who is fitted by itself.

    name: of the result, unique in the data set, may have folders; load: reads the photos, can be pickled;
    photos: how the data set calls them: of a folder its path below the root; place: that folder, or None.
    """

    name: str
    load: Callable[[], Subject]
    photos: str
    place: Path | None = None


@dataclass(frozen=True)
class SubjectSet:
    """One layout. doc: what it is, in a few words; options: dataclass of what may be chosen; entries: (path,
    options) -> what is in it, which raises InputError for another layout."""

    doc: str
    options: type
    entries: Callable[[Path, Any], list[SubjectEntry]]


# Readers of the evaluation: module and function of fitkit.data, and a few words.
READERS = {
    "aflw2000": ("aflw2000", "aflw2000_samples", "AFLW2000-3D, single photos"),
    "bosphorus": ("bosphorus", "bosphorus_samples", "Bosphorus, a frontal picture and turned ones"),
    "bu3dfe": ("bu3dfe", "bu3dfe_samples", "BU-3DFE, single pictures"),
    "facescape-lab": ("facescape", "lab_samples", "FaceScape benchmark, laboratory, with cameras"),
    "facescape-wild": ("facescape", "wild_samples", "FaceScape benchmark, single photos"),
    "facewarehouse": ("facewarehouse", "facewarehouse_samples", "FaceWarehouse, poses of a person"),
    "florence-renders": ("florence_renders", "florence_render_samples", "renders of MICC scans"),
    "micc": ("micc", "micc_samples", "MICC Florence, frames of videos"),
    "now": ("now", "now_samples", "NoW, single photos"),
    "pixel-face": ("pixel_face", "pixel_face_samples", "Pixel-Face, three photos of an instant"),
    "realy": ("realy", "realy_samples", "REALY, single pictures"),
}
TRUTH_OPTIONS = ("model", "unit_mm")  # of readers, about what a fit never sees
FOLDERS, MANIFEST = "folders", "manifest"
KINDS = tuple(sorted((*READERS, "multipie", "300wlp", "300vw", "nersemble", FOLDERS, MANIFEST)))


@dataclass(frozen=True)
class FolderOptions:
    """min_views: folders with fewer photos are passed over."""

    min_views: int = 1


@dataclass(frozen=True)
class NoOptions:
    """None."""


def subject_set(kind: str) -> SubjectSet:
    """What reads a kind of data set.

    Raises:
        InputError: no such kind.
    """
    if kind == FOLDERS:
        return SubjectSet("any folder of subject folders", FolderOptions, _folders)
    if kind == MANIFEST:
        return SubjectSet("a table of photos, .csv or .jsonl", NoOptions, _manifest)
    if kind == "multipie":
        from fitkit.data.multipie import MultiPieOptions, multipie_triplets

        entries = partial(_listed, multipie_triplets)
        return SubjectSet("CMU Multi-PIE, three photos of an instant", MultiPieOptions, entries)
    if kind == "300wlp":
        from fitkit.data.w300lp import W300LPOptions, lp_subjects

        return SubjectSet(
            "300W-LP, a face turned to both sides", W300LPOptions, partial(_listed, lp_subjects)
        )
    if kind == "300vw":
        from fitkit.data.w300vw import W300VWOptions, vw_subjects

        return SubjectSet("300-VW, frames of a video", W300VWOptions, partial(_listed, vw_subjects))
    if kind == "nersemble":
        from fitkit.data.nersemble import NersembleOptions, nersemble_subjects

        return SubjectSet(
            "NeRSemble, calibrated cameras", NersembleOptions, partial(_listed, nersemble_subjects)
        )
    if kind not in READERS:
        hint = did_you_mean(kind, KINDS) or f"there are: {', '.join(KINDS)}"
        raise InputError(f"no kind of data set '{kind}'; {hint}")
    module, name, doc = READERS[kind]
    reader = getattr(import_module(f"fitkit.data.{module}"), name)
    return SubjectSet(doc, _options_of(reader), partial(_samples, reader))


def _options_of(reader: Callable) -> type:
    """The arguments of a reader, but the folder, as a dataclass."""
    hints = typing.get_type_hints(reader, include_extras=True)
    chosen = [
        p for p in list(inspect.signature(reader).parameters.values())[1:] if p.name not in TRUTH_OPTIONS
    ]
    return make_dataclass(
        "ReaderOptions", [(p.name, hints[p.name], field(default=p.default)) for p in chosen], frozen=True
    )


def _samples(reader: Callable, path: Path, options: Any) -> list[SubjectEntry]:
    return [
        SubjectEntry(readable(sample.id), sample.subject, readable(sample.id))
        for sample in reader(path, **vars(options))
    ]


def _listed(reader: Callable, path: Path, options: Any) -> list[SubjectEntry]:
    """Of a reader that gives pairs of a name and what loads its photos."""
    return [SubjectEntry(readable(name), load, readable(name)) for name, load in reader(path, options)]


def _folders(path: Path, options: FolderOptions) -> list[SubjectEntry]:
    """Folder PATH/A/B is subject 'A/B'; PATH itself has its own name, with a number where that is taken."""
    found, subjects = subject_folders(path, options.min_views), {}
    for p in [p for p in found if p != path] + [p for p in found if p == path]:
        photos = readable(p.relative_to(path).as_posix())
        name = photos if p != path else _free_name(readable(path.resolve().name) or "subject", list(subjects))
        if name in subjects:
            raise InputError(
                f"{p}: its result would have the same name as that of {subjects[name].place}; rename one of "
                "the two"
            )
        subjects[name] = SubjectEntry(name, partial(_folder_subject, p), photos, p)
    return sorted(subjects.values(), key=lambda entry: str(entry.place))


def _folder_subject(place: Path) -> Subject:
    """An earlier result below the photos is none of them."""
    return load_subject(place, ignore=[place / OUTPUT_FOLDER])


def _free_name(name: str, taken: Sequence[str]) -> str:
    """The name, with a number where a folder below has it too (some file systems do not tell upper from lower
    case)."""
    first, free, n = {t.partition("/")[0].casefold() for t in taken}, name, 2
    while free.casefold() in first:
        free, n = f"{name}_{n}", n + 1
    return free


def _manifest(path: Path, options: NoOptions) -> list[SubjectEntry]:
    return [
        SubjectEntry(name, partial(manifest_subject, path, rows), name)
        for name, rows in read_manifest(path).items()
    ]


@dataclass(frozen=True)
class SubjectSource:
    """Where subjects come from. data: 'KIND:PATH', a folder of subject folders, or a table of photos (.csv,
    .jsonl); options: 'key=value' of its kind; landmark_folder: a tree of landmark files like that of the
    photos, '' = none."""

    data: str
    options: tuple[str, ...] = ()
    landmark_folder: str = ""

    @property
    def kind(self) -> str:
        return self._split()[0]

    @property
    def path(self) -> Path:
        return self._split()[1]

    def absolute(self) -> SubjectSource:
        """The same for a process with another working folder."""
        kind, path = self._split()
        mirror = os.path.abspath(self.landmark_folder) if self.landmark_folder else ""
        return SubjectSource(f"{kind}:{path.absolute()}", self.options, mirror)

    def _split(self) -> tuple[str, Path]:
        kind, colon, path = self.data.partition(":")
        chosen = bool(colon) and kind in KINDS
        if not (path if chosen else self.data):  # it would be the working folder
            raise InputError(f"data '{self.data}': expected a folder, a table of photos, or KIND:PATH")
        if chosen:
            return kind, Path(path)
        plain = Path(self.data)
        if plain.exists() or not colon or len(kind) == 1:  # a letter is a drive of Windows
            return (MANIFEST if is_manifest(plain) and not plain.is_dir() else FOLDERS), plain
        hint = did_you_mean(kind, KINDS) or f"kinds: {', '.join(KINDS)}"
        raise InputError(f"{self.data}: no such folder, and no kind of data set '{kind}'; {hint}")

    def entries(self) -> list[SubjectEntry]:
        """All subjects, in the order of the data set.

        Raises:
            InputError: another layout, an unknown option, or two subjects of one name.
        """
        kind, path = self._split()
        layout = subject_set(kind)
        options = build(layout.options, apply_overrides({}, self.options), f"{kind}: options", ".")
        entries, seen = layout.entries(path, options), set()
        for entry in entries:
            if entry.name.casefold() in seen and kind != FOLDERS:
                raise InputError(f"{self.data}: several subjects are called '{entry.name}'; rename one")
            seen.add(entry.name.casefold())
        if self.landmark_folder:
            mirror, root = check_mirror(self.landmark_folder), path.parent if kind == MANIFEST else path
            entries = [
                SubjectEntry(e.name, partial(_with_mirror, e.load, root, mirror), e.photos, e.place)
                for e in entries
            ]
        return entries


def source_of(data: str | os.PathLike | SubjectSource) -> SubjectSource:
    """What Python functions take for a data set."""
    return data if isinstance(data, SubjectSource) else SubjectSource(os.fspath(data))


def subjects_of(data: str | os.PathLike | SubjectSource) -> Iterator[tuple[str, Subject]]:
    """Name and photos of every subject, one after the other; a subject is read when it is its turn.

    Raises:
        InputError: another layout; or the photos of a subject cannot be used, when it is its turn.
    """
    for entry in source_of(data).entries():
        yield entry.name, entry.load()


def _with_mirror(load: Callable[[], Subject], root: Path, mirror: Path) -> Subject:
    return with_mirrored_landmarks(load(), root, mirror)
