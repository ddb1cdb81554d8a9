"""Folders that commands write into: nothing of others is overwritten in them, and no two runs write into
one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from fitkit.errors import InputError
from fitkit.io.atomic import is_temporary, remove_litter, writing

LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))  # file browsers leave these behind


def check_folder(
    folder: Path, known: Sequence[str], marks: Sequence[str], writer: str, resume: bool = False
) -> None:
    """Refuse an output folder that holds anything else than what a command writes. Temporary files of killed
    processes are removed.

    Args:
        known: patterns of the files that it writes, relative to the folder; '*' is any text, slashes too.
        marks: of these at least one is there as soon as the command has written anything; () = it leaves
            none.
        writer: the command, for the message.
        resume: go on with what is there: with a mark in it, other files in the folder do not matter.
    Raises:
        InputError: it names the first file that is not the command's.
    """
    remove_litter(folder)
    begun = any((folder / mark).is_file() for mark in marks)
    if resume and begun:
        return
    begun = begun or not marks
    for name in _files(folder):
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise InputError(
                f"output {folder}: holds '{name}', which {writer} does not write, so nothing is written "
                "there; choose another --output"
            )
        if not begun:
            raise InputError(
                f"output {folder}: holds '{name}', which {writer} would overwrite, but no "
                f"{' or '.join(marks)} of an earlier run; choose another --output"
            )


def _files(folder: Path) -> Iterator[str]:
    """Everything below a folder that is no folder, as paths relative to it, sorted within each."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        links = [f for f in folders if os.path.islink(os.path.join(place, f))]
        for name in sorted([*files, *links]):
            if name not in LITTER and not is_temporary(name):
                yield (Path(place) / name).relative_to(folder).as_posix()


@contextmanager
def locked(folder: Path, name: str, writer: str) -> Iterator[None]:
    """The block has `folder`, which is made, for itself: a second one, also in another process, is refused as
    long as it runs. The system gives the lock back when a process ends, however it ends; where the file
    system has no locks (some network drives), files that say who has it stand in for them.

    Raises:
        InputError: another run has it; or the folder cannot be written.
    """
    path = folder / f".{name}.lock"
    with writing(f"output {folder}", "choose another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        with open(
            path, "ab"
        ):  # says what is wrong with a folder that cannot be written; a lock would only time out
            pass
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"output {folder}: another {writer} writes there; wait for its end, or choose another --output"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps files that are open
            path.unlink(missing_ok=True)
        lock.release()
