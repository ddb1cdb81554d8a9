"""The one function that fits subjects of a batch, whatever runs it: a process, a job of a cluster, a task."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitkit.errors import FitkitError, InputError, unexpected
from fitkit.fitting.batch_records import FITTING, BatchRow, read_record, write_record
from fitkit.fitting.recipe import FitRecipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit, fit_many
from fitkit.io.subject import Subject
from fitkit.io.workers import Loss
from fitkit.models.registry import load_model

log = logging.getLogger("fitkit")


@dataclass(frozen=True)
class Job:
    """One subject. name, photos: see BatchRow; load: reads the photos; output: folder of the batch."""

    name: str
    photos: str
    load: Callable[[], Subject]
    output: Path
    recipe: FitRecipe
    light: bool = False
    device: str = "cpu"
    pictures: bool = True


def fit_jobs(jobs: Sequence[Job]) -> list[BatchRow]:
    """Fit subjects side by side; their results and records are on the disk when it returns. No exception but
    those that end processes."""
    for job in jobs:
        _record(job.output, BatchRow(job.name, FITTING, photos=job.photos))
    if len(jobs) == 1:
        return [_fit_one(jobs[0])]
    began, first = time.perf_counter(), jobs[0]
    try:
        people = [_read(job) for job in jobs]
        found = fit_many(
            [person for person in people if not isinstance(person, FitkitError)],
            recipe=first.recipe,
            model=load_model(first.recipe.model),
            device=first.device,
            batch_size=len(jobs),
        )
    except Exception as problem:
        names = ", ".join(job.name for job in jobs)
        log.info("%s: fitted one by one: %s", names, problem, exc_info=True)
        return [_fit_one(job) for job in jobs]
    fitted = iter(found)
    results = [person if isinstance(person, FitkitError) else next(fitted) for person in people]
    return [_saved(job, result, began) for job, result in zip(jobs, results)]


def found_rows(jobs: Sequence[Job]) -> list[BatchRow] | None:
    """What `fit_jobs` has left of these jobs in some process, or None while it has not ended."""
    rows = []
    for job in jobs:
        try:
            row = read_record(job.output, job.name)
        except InputError:
            row = None
        if row is None or row.status == FITTING:
            return None
        rows.append(row)
    return rows


def lost_rows(jobs: Sequence[Job], loss: Loss) -> list[BatchRow]:
    """Rows of jobs whose process ended before they did."""
    message = f"{loss.text} while it was fitted; "
    if loss.kind == "timeout":
        message = f"{loss.text}; give it more --timeout"
    else:
        message += "try again with --resume and fewer --workers"
        if len(jobs) > 1:
            message += " or a smaller --batch-size"
    rows = [BatchRow(job.name, "error", message, loss.kind, photos=job.photos) for job in jobs]
    for job, row in zip(jobs, rows):
        _record(job.output, row)
    return rows


def time_limit(jobs: Sequence[Job], seconds: float | None = None) -> float | None:
    """Seconds that jobs which are done together may take."""
    return None if seconds is None else seconds * len(jobs)


def _fit_one(job: Job) -> BatchRow:
    began = time.perf_counter()
    try:
        result = fit(job.load(), recipe=job.recipe, model=load_model(job.recipe.model), device=job.device)
    except Exception as problem:  # noqa: BLE001 - one subject must not end the batch
        return _error(job, problem, began)
    return _saved(job, result, began)


def _saved(job: Job, result: FitResult | FitkitError, began: float) -> BatchRow:
    """The row of a fit whose result, if there is one, is written here, and then its record."""
    if isinstance(result, FitkitError):
        return _error(job, result, began)
    try:
        result.save(job.output / job.name, overwrite=True, light=job.light, pictures=job.pictures)
    except Exception as problem:  # noqa: BLE001 - one subject must not end the batch
        return _error(job, problem, began)
    report = result.report
    wrong = next((f.code for f in report.verdict.findings if f.severity != "note"), "")
    row = BatchRow(
        job.name,
        report.status,
        (report.warnings or ("",))[0],
        wrong if report.status != "ok" else "",
        report.reprojection_share,
        report.time_s.solve,
        report.start.iterations,
        report.num_views,
        report.start.source,
        report.verdict.expected_mm,
        report.verdict.upper_mm,
        job.photos,
    )
    _record(job.output, row)
    return row


def _error(job: Job, problem: Exception, began: float) -> BatchRow:
    message, reason = str(problem), "input"
    if not isinstance(problem, FitkitError):
        log.info("%s", job.name, exc_info=problem)
        message, reason = f"{unexpected(problem)}; --verbose shows details", "unexpected"
        # torch.cuda.OutOfMemoryError is a RuntimeError
        if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
            reason = "memory"
    seconds = round(time.perf_counter() - began, 3)
    row = BatchRow(job.name, "error", message, reason, seconds=seconds, photos=job.photos)
    _record(job.output, row)
    return row


def _record(output: Path, row: BatchRow) -> None:
    try:
        write_record(output, row)
    except InputError as error:  # a disk that is full for now; the row is returned all the same
        log.warning("%s", error)


def _read(job: Job) -> Subject | FitkitError:
    try:
        return job.load()
    except FitkitError as problem:
        return problem
