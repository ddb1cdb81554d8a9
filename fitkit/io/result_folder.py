"""Result folders on the disk: what is one, when it may be replaced, and writing it whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unicodedata import normalize

from fitkit.errors import InputError, check_argument
from fitkit.io.atomic import litter, remove_litter, temporary_name, writing
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.outputs import LITTER
from fitkit.io.subject import PREDICTION_MARK, RESULT_MARKS, is_output

PAGE = "report.html"  # of a result, and of a batch
# All that a fit writes; `--overwrite` removes nothing else.
FILES = frozenset(
    (*RESULT_MARKS, PREDICTION_MARK)
    + (
        "subject.obj",
        "subject.mtl",
        "subject.ply",
        "subject.glb",
        "texture.png",
        "albedo.png",
        "cameras.json",
        "landmarks.npy",
        "recipe.yaml",
        "preview.png",
        "uncertainty.png",
        "detail.png",
        "albedo.ply",
        PAGE,
        "thumbnail.jpg",
    )
)
PREDICTED = {  # what a network says beside a scene: folder -> suffix of its one file for each view
    "depth": ".png",
    "confidence": ".png",
    "normals": ".png",
    "surface": ".glb",
    "posmap": ".npy",
    "parse": ".png",
    "landmarks": ".pts",
    "points3d": ".npy",
    "lit": ".png",
}
# folder -> suffix of its one file for each view
PER_VIEW = {"views": ".ply", "overlay": ".png", "lighting": ".png"} | PREDICTED
ENTRIES = FILES | PER_VIEW.keys()
NEW, OLD = "new", "old"  # in the hidden folder that a result is written in
EXPORT = "export"  # there: files for another tool, which nobody has named yet
REMOVALS = 50  # tries to remove a folder that is written to, 0.1 s apart


def check_output(output: str | os.PathLike, overwrite: bool = False) -> Path:
    """Refuse an output folder that could not be written in the end; call it before the work starts. Writes
    nothing, but cleans up after processes that were killed, see `tidy`.

    Returns: the absolute path.
    Raises:
        InputError: the folder exists and overwrite is False; it exists and is not one of our result folders
            (then even overwrite does not touch it); or its place cannot be written.
    """
    check_argument("output", output, (str, os.PathLike), "the path of a folder")
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(output))))
    with writing(f"output {path}", "choose another --output"):
        if path.is_symlink():
            with suppress(FileNotFoundError):  # then the folder is made where the link points
                os.stat(path)
            path = Path(os.path.realpath(path))
        place = path.parent
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise InputError(
                f"output {path}: {place} is {'a file' if place.is_file() else 'no folder'}, so no folder "
                "can be made in it; choose another --output"
            )
        tidy(path.parent)
        if path.exists():
            _check_replaceable(path, overwrite)
        probe = temporary_name(place / path.name)
        try:
            probe.mkdir()
        finally:
            with suppress(FileNotFoundError):
                probe.rmdir()
    return path


def _check_replaceable(path: Path, overwrite: bool) -> list[Path]:
    """Refuse a folder that is not a result, or holds what a fit does not write -> other results that lie in
    it, which are kept."""
    if not path.is_dir():
        raise InputError(
            f"output {path}: expected a folder, but a file has that name; choose another --output"
        )
    if not overwrite:
        raise InputError(
            f"output {path}: already exists; use --overwrite to replace it or choose another --output"
        )
    foreign, results = _inspect(path, _stored_stems(path))
    names = {p.name for p in path.iterdir()}
    lacking = [] if PREDICTION_MARK in names else [m for m in RESULT_MARKS if m not in names]
    if foreign is not None or (lacking and names & ENTRIES):
        what = f"it holds '{foreign}'" if foreign is not None else f"it has no {' and '.join(lacking)}"
        raise InputError(
            f"output {path}: not a fitkit result folder ({what}), so it is not replaced; choose another "
            "--output"
        )
    return results


def _inspect(folder: Path, stems: set[str] | None) -> tuple[str | None, list[Path]]:
    """The first thing in the tree that a fit does not write, or None; and folders in it that hold other
    results only.

    stems: names of the files for each view; None = any.
    """
    results = []
    for entry in sorted(folder.iterdir()):
        if _is_file(entry) and entry.name in FILES | LITTER:
            continue
        if entry.is_symlink() or not entry.is_dir():
            return entry.name, []
        if entry.name not in PER_VIEW:
            if not _holds_results_only(entry):
                return entry.name, []
            results.append(entry)
            continue
        for inner in sorted(entry.iterdir()):
            known = inner.suffix == PER_VIEW[entry.name] and (
                stems is None or normalize("NFC", inner.stem) in stems
            )
            if not (_is_file(inner) and (known or inner.name in LITTER)):
                return f"{entry.name}/{inner.name}", []
    return None, results


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _holds_results_only(folder: Path) -> bool:
    if is_output(folder):
        return _inspect(folder, _stored_stems(folder))[0] is None
    inside = [p for p in folder.iterdir() if p.name not in LITTER]
    return bool(inside) and all(p.is_dir() and not p.is_symlink() and _holds_results_only(p) for p in inside)


def _stored_stems(folder: Path) -> set[str]:
    """Names of the files for each view of a result; none where its parameters cannot be read."""
    path = folder / "parameters.npz"
    try:
        if not path.exists():  # of a network that gives no scene
            with foreign_file(folder / PREDICTION_MARK, "not readable as a prediction") as file:
                return {normalize("NFC", str(view["stem"])) for view in file.json()["views"]}
        with foreign_file(path, "not readable as parameters of a fit", limit=DATA_BYTES) as file:
            names = [str(n) for n in file.npz(("view_names",))["view_names"]]
    except InputError:  # damaged, or not ours; then such files are not known to be ours
        return set()
    return {normalize("NFC", s) for s in stems_of(names)}


def tidy(folder: Path) -> None:
    """Clean up after processes that were killed while they wrote into `folder`: a result that one had moved
    aside gets its place back, and what they left half written is removed, if all of it is ours."""
    remove_litter(folder)
    for holder in litter(folder):
        if holder.is_dir() and not holder.is_symlink():
            with suppress(OSError):
                _put_back(holder)
                if _is_ours(holder):
                    shutil.rmtree(holder, ignore_errors=True)


def _is_ours(holder: Path) -> bool:
    """Nothing lies in it but (parts of) results."""

    def result(folder: Path) -> bool:
        return _inspect(folder, None)[0] is None

    parts = {p.name: p for p in holder.iterdir()}
    if parts.keys() == {EXPORT}:
        return not parts[EXPORT].is_symlink()
    if parts.keys() - {NEW, OLD}:
        return result(holder)  # earlier versions wrote without folders in between
    return (
        all(p.is_dir() and not p.is_symlink() for p in parts.values())
        and (NEW not in parts or result(parts[NEW]))
        and (
            OLD not in parts
            or all(p.is_dir() and not p.is_symlink() and result(p) for p in parts[OLD].iterdir())
        )
    )


def _remove(holder: Path) -> None:
    """The folder and all in it, also while a thread that was interrupted writes its last file."""
    for _ in range(REMOVALS):
        shutil.rmtree(holder, ignore_errors=True)
        if not holder.exists():
            return
        time.sleep(0.1)


def _put_back(holder: Path) -> None:
    """Give the result that was moved into `holder` its place again, unless a new one is there already; other
    results that lay in it are never left behind. OSError: one cannot be moved."""
    for moved in (holder / OLD).glob("*"):
        target = holder.parent / moved.name
        home = target if os.path.lexists(target) else moved
        for place in {holder / NEW, moved} - {home}:
            for other in [p for p in place.glob("*") if p.name not in ENTRIES | LITTER]:
                other.rename(home / other.name)
        if home is moved:
            moved.rename(target)


@contextmanager
def replaced(path: Path, overwrite: bool, kind: str = NEW) -> Iterator[Path]:
    """The block writes into a hidden folder beside `path`, which takes its name when the block ends well.

    After any error or Ctrl-C nothing is left behind and an older result stays as it was. After a kill, the
    next call (`tidy`) does that. Other results that lie in the older one stay.

    path: from `check_output`; kind: NEW, of a result, or EXPORT, of other files.
    Raises:
        InputError: instead of any OSError; or the folder has changed meanwhile, see `check_output`.
    """
    made = _missing_parents(path)
    holder = temporary_name(path)
    new, old = holder / kind, holder / OLD / path.name
    try:
        new.mkdir(parents=True)
        yield new
        if path.exists():
            # The fit took a while: it may have changed meanwhile.
            results = _check_replaceable(path, overwrite)
            old.parent.mkdir()
            path.rename(old)
            for other in results:
                (old / other.name).rename(new / other.name)
        new.rename(path)
        shutil.rmtree(holder, ignore_errors=True)
    except BaseException as error:
        with suppress(OSError):
            _put_back(holder)
            _remove(holder)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # somebody else uses it by now
                break
        if isinstance(error, OSError):
            raise InputError(
                f"output {path}: cannot be written ({error.strerror or error}); nothing was left behind"
            ) from error
        raise


def _missing_parents(path: Path) -> list[Path]:
    """The folders that writing will have to make, innermost first."""
    return [p for p in path.parents if not p.exists()]


def stems_of(names: Sequence[str]) -> list[str]:
    """One file name per view, without extension: the view's name, made safe and distinct."""
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip(" .") or "view"
        stem, n = base, 2
        while stem.casefold() in taken:  # some file systems do not tell upper from lower case
            stem, n = f"{base}_{n}", n + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
