"""Where the jobs of a batch run: on this machine, on a cluster with Slurm, or on one with Ray. Each engine is
one file; what it needs loads when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from fitkit.errors import FitkitError, InputError, did_you_mean
from fitkit.io.workers import Loss

T = TypeVar("T")
FILES = {"processes": "processes", "slurm": "slurm", "ray": "ray_tasks"}
ENGINES = tuple(FILES)


@dataclass(frozen=True)
class Work(Generic[T]):
    """What an engine does. Functions and jobs can be pickled.

    function: does one job; jobs: in the order in which they are begun; lost: (job, what ended it) -> what is
    given for a job that gave nothing; found: what a job has left on disk when it was done in whatever
    process, or None; timeout: job -> seconds that it may take, or None.
    """

    function: Callable[[Any], T]
    jobs: Sequence[Any]
    lost: Callable[[Any, Loss], T]
    found: Callable[[Any], T | None]
    timeout: Callable[[Any], float | None]


@dataclass(frozen=True)
class EngineOptions:
    """workers: how many jobs are done at the same time; gpu: whether each needs one; apart: whether a job
    must not share this process; folder: for files of the engine; parameters: of the engine, by name."""

    workers: int = 1
    gpu: bool = False
    apart: bool = False
    folder: Path = Path("batch_engine")
    parameters: dict[str, Any] = field(default_factory=dict)


def check_engine(name: str, parameters: dict[str, Any]) -> None:
    """Refuse an engine that there is not, or that cannot be used here, before any work.

    Raises:
        InputError: unknown, or parameters that it does not take. FitkitError: what it needs is not installed.
    """
    if name not in FILES:
        hint = did_you_mean(name, ENGINES) or f"there are: {', '.join(ENGINES)}"
        raise InputError(f"no engine '{name}'; {hint}")
    _engine(name).check(parameters)


def run_engine(name: str, work: Work[T], options: EngineOptions) -> Generator[T, None, None]:
    """What the jobs give, each as it is done; one for each job, whatever becomes of it.

    Raises:
        FitkitError: no job can be done at all.
    """
    yield from _engine(name).run(work, options)


def need(package: str, engine: str) -> Any:
    """A package of an extra.

    Raises:
        FitkitError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise FitkitError(
            f"engine '{engine}' needs {package} ({error}); pip install 'fitkit[{engine}]'"
        ) from error


def _engine(name: str) -> Any:
    return import_module(f"fitkit.io.engines.{FILES[name]}")
