"""Files that are written whole or not at all, and what processes that were killed leave of them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from fitkit.errors import InputError

# Process, then a random number, before it 4 digits that tell machines apart (earlier versions had none).
_TEMPORARY = re.compile(r"\.fitkit-(\d{1,10})-([0-9a-f]{4})?[0-9a-f]{8}(?:\.\w{1,12})?", re.ASCII)
_FORGOTTEN = 24 * 3600.0  # seconds after which no process of another machine can still be writing
_made: set[str] = set()  # names that this process has given


def temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, to write under before it takes the place of `path`; `remove_litter`
    knows it."""
    # Some libraries look at it.
    suffix = path.suffix if re.fullmatch(r"\.\w{1,12}", path.suffix, re.ASCII) else ""
    name = f".fitkit-{os.getpid()}-{_machine()}{os.urandom(4).hex()}{suffix}"
    _made.add(name)
    return path.with_name(name)


@contextmanager
def writing(place: str | os.PathLike, advice: str = "choose another place") -> Iterator[None]:
    """The block writes `place`; what the disk or the system refuses becomes one sentence.

    Raises:
        InputError: instead of any OSError (disk full, read-only, no permission, ...).
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{os.fspath(place)}: cannot be written ({error.strerror or error}); {advice}"
        ) from error


@contextmanager
def written_whole(path: Path, advice: str = "choose another place") -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well and is removed otherwise.

    Missing folders are made. The permissions are those of any new file, also where a library writes files
    that only their owner may read.

    Raises:
        InputError: it cannot be written.
    """
    part = temporary_name(path)
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield part
            if os.stat(part).st_mode != mode:
                os.chmod(part, mode & 0o777)
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def remove_litter(folder: Path) -> None:
    """Remove the temporary files in `folder` whose process was killed. Folders stay: see
    `fitkit.io.result_folder.tidy`."""
    for path in litter(folder):
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):
                path.unlink()


def litter(folder: Path) -> list[Path]:
    """Temporary files and folders in `folder` of processes that have ended; [] where there is no such
    folder."""
    try:
        names = [p for p in folder.iterdir() if p.name.startswith(".fitkit-")]
    except OSError:
        return []
    return [p for p in names if is_temporary(p.name) and _abandoned(p)]


def is_temporary(name: str) -> bool:
    """A name that `temporary_name` gives."""
    return _TEMPORARY.fullmatch(name) is not None


def _abandoned(path: Path) -> bool:
    parts = _TEMPORARY.fullmatch(path.name)
    assert parts is not None, path
    process, machine = parts.groups()
    if machine not in (None, _machine()):
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > _FORGOTTEN
        return False
    if int(process) == os.getpid():
        # Of an earlier process with our number, as in a container that was started again.
        return path.name not in _made
    return _ended(int(process))


def _ended(process: int) -> bool:
    """No process has this number. False on Windows, where there is no harmless way to ask."""
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@lru_cache(maxsize=1)
def _machine() -> str:
    """4 hexadecimal digits for the machine, or container, whose process numbers ours are among."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:4]
