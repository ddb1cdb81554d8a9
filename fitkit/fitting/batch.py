"""Fits of all subjects below a folder, on the cores of one machine."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fitkit.errors import FitkitError, InputError, unexpected
from fitkit.fitting.recipe import FitRecipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import check_device, fit, fit_many
from fitkit.io.atomic import writing, written_whole
from fitkit.io.foreign import foreign_file, readable
from fitkit.io.options import build, plain
from fitkit.io.outputs import locked
from fitkit.io.progress import Progress
from fitkit.io.result_folder import ENTRIES, tidy
from fitkit.io.subject import OUTPUT_FOLDER, Subject, is_result, load_subject, subject_folders
from fitkit.io.workers import run_jobs
from fitkit.models.registry import load_model

log = logging.getLogger("fitkit")
REPORT = "batch.json"


@dataclass(frozen=True)
class BatchRow:
    """One subject of a batch. subject: name of its result, its path below the root; status: 'ok', 'doubtful'
    or 'failed' of its fit, 'error' when there is none; message: the first reason why it is not ok, or the
    error; reprojection_share: mean reprojection error over the face size; seconds: of the fit; iterations:
    steps of the solver, those that were rejected too; views: photos that were fitted; start: which start the
    fit took; expected_mm, upper_mm: expected error and its bound, see
    `fitkit.fitting.findings.expected_error`; photos: their folder, relative to the root ('.' for the root
    itself; '' in earlier reports)."""

    subject: str
    status: str
    message: str = ""
    reprojection_share: float | None = None
    seconds: float = 0.0
    iterations: int = 0
    views: int = 0
    start: str = ""
    expected_mm: float | None = None
    upper_mm: float | None = None
    photos: str = ""


def fit_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    recipe: FitRecipe,
    workers: int = 1,
    resume: bool = False,
    light: bool = False,
    device: str = "cpu",
    progress: Progress = Progress(),
    pictures: bool = True,
    batch_size: int = 1,
) -> list[BatchRow]:
    """Fit every subject folder below `folder`; the result of FOLDER/A/B goes to OUTPUT/A/B, that of FOLDER
    itself to OUTPUT/FOLDER.

    A subject that cannot be fitted does not end the batch: whatever goes wrong with it, also that its process
    is killed, becomes its row (with one worker, which is this process, all but a kill). OUTPUT/batch.json
    lists what became of each, written anew after every fit.

    Args:
        workers: processes, each with one thread; the results do not depend on it.
        resume: keep the results that are there; a subject without one, or with an error, is fitted (again).
        light: of each result only parameters.npz, metrics.json and recipe.yaml, the labels that a training
            reads.
        pictures: False leaves out the pictures of each result, see `fitkit.export.folder.write_result`.
        batch_size: how many subjects a process fits side by side, see `fitkit.fitting.run.fit_many`.
        progress: told of each subject, with its row, and first how many are there before the first fit.
    Returns:
        a row for each subject, in the order of their paths.
    Raises:
        InputError: no subject folder, the output holds results without `resume` or of no batch, another batch
            writes there, or OUTPUT/batch.json cannot be written in the end.
    """
    folder, output = Path(folder), Path(output)
    if workers < 1:
        raise InputError(f"batch: workers: expected at least 1, got {workers}")
    if batch_size < 1:
        raise InputError(f"batch: batch size: expected at least 1, got {batch_size}")
    check_device(device)
    load_model(recipe.model)  # what is missing shows before the first fit
    subjects = _subjects(folder, output)
    with locked(output, "batch", "batch"):
        begun = (output / REPORT).exists()
        if begun and not resume:
            raise InputError(
                f"{output}: holds a batch already; go on with --resume, or choose another folder"
            )
        for place in {(output / name).parent for name in subjects}:
            tidy(place)
        there = [name for name in subjects if is_result(output / name)]
        if there and not begun:
            raise InputError(
                f"{output}: holds a result of '{there[0]}' that is of no batch; choose another folder"
            )
        rows = {row.subject: row for row in read_report(output)}
        rows = {
            n: r
            for n, r in rows.items()
            if n in there and r.status != "error" and r.photos in ("", _photos(subjects[n], folder))
        }
        left = [n for n in subjects if n not in rows]
        report = _Report(output, list(subjects), rows)
        progress.counted(len(rows), len(subjects))
        for names in _one_inside_another(left):
            jobs = [
                _Job(
                    str(subjects[n]),
                    str(output / n),
                    n,
                    _photos(subjects[n], folder),
                    recipe,
                    light,
                    device,
                    pictures,
                )
                for n in names
            ]
            groups = [tuple(jobs[i : i + batch_size]) for i in range(0, len(jobs), batch_size)]
            with closing(run_jobs(_fit, groups, workers, _lost)) as done:
                for row in (row for group in done for row in group):
                    report.add(row)
                    progress.counted(len(rows), len(subjects), row)
        report.finish()
        for place in {(output / name).parent for name in left}:
            tidy(place)  # of workers that were killed
    return [rows[n] for n in subjects]


def _subjects(folder: Path, output: Path) -> dict[str, Path]:
    """Name of the result, relative to the output -> folder of the photos."""
    with writing(f"output {output}", "choose another --output"):
        if os.path.lexists(output):
            os.stat(output)  # a link to itself
        target = Path(os.path.realpath(output))
    if Path(os.path.realpath(folder)).is_relative_to(target):
        raise InputError(
            f"output {output}: the folder of the photos, {folder}, is it or lies in it; choose another "
            "--output"
        )
    found = [p for p in subject_folders(folder) if not Path(os.path.realpath(p)).is_relative_to(target)]
    if not found:
        raise InputError(f"{folder}: no folder with photos below it; expected one folder for each person")
    subjects: dict[str, Path] = {}
    for p in [p for p in found if p != folder] + [p for p in found if p == folder]:
        name = (
            p.relative_to(folder).as_posix()
            if p != folder
            else _free_name(folder.resolve().name or "subject", subjects)
        )
        if readable(name) in subjects:
            raise InputError(
                f"{p}: its result would have the same name as that of {subjects[readable(name)]}; rename "
                "one of the two"
            )
        subjects[readable(name)] = p
    subjects = dict(sorted(subjects.items(), key=lambda item: item[1]))
    for name in subjects:
        above = next((a.as_posix() for a in PurePosixPath(name).parents if a.as_posix() in subjects), None)
        if name == REPORT or (
            above is not None and PurePosixPath(name).relative_to(above).parts[0] in ENTRIES
        ):
            raise InputError(
                f"{subjects[name]}: its result {output / name} would lie where {output / (above or '')} has "
                "files of its own; rename the folder"
            )
    return subjects


def _free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where a folder below has it too (some file systems do not tell upper from lower
    case)."""
    first, free, n = {t.partition("/")[0].casefold() for t in taken}, name, 2
    while free.casefold() in first:
        free, n = f"{name}_{n}", n + 1
    return free


def _photos(place: Path, folder: Path) -> str:
    return readable(place.relative_to(folder).as_posix())


def _one_inside_another(names: Sequence[str]) -> list[list[str]]:
    """The names in groups to be done one after the other, 'A' before 'A/B': no result is written while one
    that it lies in is."""
    groups: list[list[str]] = []
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = max(
            (depth[a.as_posix()] + 1 for a in PurePosixPath(name).parents if a.as_posix() in depth), default=0
        )
        if depth[name] == len(groups):
            groups.append([])
        groups[depth[name]].append(name)
    return groups


def read_report(output: Path) -> list[BatchRow]:
    """Rows of OUTPUT/batch.json; none if there is no such file.

    Raises:
        InputError: the file is not one of ours.
    """
    path = output / REPORT
    if not path.exists():
        return []
    with foreign_file(
        path, "not readable as the report of a batch", f"remove {output} to start again"
    ) as file:
        return [
            build(BatchRow, row, f"{path}: subject {number}")
            for number, row in enumerate(file.json()["subjects"], 1)
        ]


class _Report:
    """OUTPUT/batch.json. rows: name -> row of what is done, in any order."""

    def __init__(self, output: Path, names: Sequence[str], rows: dict[str, BatchRow]):
        self.path, self.names, self.rows = output / REPORT, names, rows
        self.finish()  # from now on the folder is that of a batch

    def add(self, row: BatchRow) -> None:
        """One more; a disk that is full for now does not end the batch."""
        self.rows[row.subject] = row
        try:
            self.finish()
        except InputError as error:
            log.warning("%s", error)

    def finish(self) -> None:
        table = {"subjects": [asdict(self.rows[n]) for n in self.names if n in self.rows]}
        with written_whole(self.path, "make room, and go on with --resume") as part:
            part.write_text(json.dumps(plain(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(rows: Sequence[BatchRow]) -> dict[str, float]:
    """What a batch came to: number of subjects by status, and the means over those that were fitted."""
    fitted = [r for r in rows if r.status != "error"]
    out: dict[str, float] = {"subjects": len(rows)} | {
        s: sum(r.status == s for r in rows) for s in ("ok", "doubtful", "failed", "error")
    }
    for key in ("reprojection_share", "seconds", "iterations", "expected_mm"):
        values = [getattr(r, key) for r in fitted if getattr(r, key) is not None]
        out[key] = float(np.mean(values)) if values else float("nan")
    return out


@dataclass(frozen=True)
class _Job:
    """place: folder of the photos; target: of the result; name, photos: see BatchRow."""

    place: str
    target: str
    name: str
    photos: str
    recipe: FitRecipe
    light: bool
    device: str
    pictures: bool


def _fit(jobs: Sequence[_Job]) -> list[BatchRow]:
    """Rows of subjects that are fitted side by side."""
    if len(jobs) == 1:
        return [_fit_one(jobs[0])]
    began, first = time.perf_counter(), jobs[0]
    try:
        people = [_subject(job) for job in jobs]
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


def _fit_one(job: _Job) -> BatchRow:
    began = time.perf_counter()
    try:
        result = fit(_read(job), recipe=job.recipe, model=load_model(job.recipe.model), device=job.device)
    except Exception as problem:  # noqa: BLE001 - one subject must not end the batch
        return _error(job, problem, began)
    return _saved(job, result, began)


def _saved(job: _Job, result: FitResult | FitkitError, began: float) -> BatchRow:
    """The row of a fit whose result, if there is one, is written here."""
    if isinstance(result, FitkitError):
        return _error(job, result, began)
    try:
        result.save(job.target, overwrite=True, light=job.light, pictures=job.pictures)
    except Exception as problem:  # noqa: BLE001 - one subject must not end the batch
        return _error(job, problem, began)
    report = result.report
    return BatchRow(
        job.name,
        report.status,
        (report.warnings or ("",))[0],
        report.reprojection_share,
        report.time_s.solve,
        report.start.iterations,
        report.num_views,
        report.start.source,
        report.verdict.expected_mm,
        report.verdict.upper_mm,
        job.photos,
    )


def _error(job: _Job, problem: Exception, began: float) -> BatchRow:
    message = str(problem)
    if not isinstance(problem, FitkitError):
        log.info("%s", job.name, exc_info=problem)
        message = f"{unexpected(problem)}; for details: fitkit fit {shlex.quote(job.place)} --verbose"
    seconds = round(time.perf_counter() - began, 3)
    return BatchRow(job.name, "error", message, seconds=seconds, photos=job.photos)


def _read(job: _Job) -> Subject:
    """The photos of a subject; an earlier result below them is none of them."""
    return load_subject(job.place, ignore=[Path(job.place) / OUTPUT_FOLDER])


def _subject(job: _Job) -> Subject | FitkitError:
    try:
        return _read(job)
    except FitkitError as problem:
        return problem


def _lost(jobs: Sequence[_Job], reason: str) -> list[BatchRow]:
    message = f"{reason} while it was fitted; try again with --resume and fewer --workers"
    if len(jobs) > 1:
        message += " or a smaller --batch-size"
    return [BatchRow(job.name, "error", message, photos=job.photos) for job in jobs]
