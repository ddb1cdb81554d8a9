"""Processes of this machine."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from fitkit.errors import InputError
from fitkit.io.engines import EngineOptions, Work
from fitkit.io.workers import run_jobs

T = TypeVar("T")


def check(parameters: dict[str, Any]) -> None:
    if parameters:
        raise InputError(f"engine 'processes' has no options, got '{next(iter(parameters))}'")


def run(work: Work[T], options: EngineOptions) -> Generator[T, None, None]:
    yield from run_jobs(work.function, work.jobs, options.workers, work.lost, work.timeout, options.apart)
