"""Fits of all subjects of a data set: on the cores of one machine, in shards, or on a cluster."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from fitkit.data.subject_sets import FOLDERS, SubjectEntry, SubjectSource, source_of
from fitkit.errors import InputError, check_argument
from fitkit.fitting.batch_job import Job, fit_jobs, found_rows, lost_rows, time_limit
from fitkit.fitting.batch_records import (
    ENGINE_FILES,
    FITTING,
    LOG,
    RECORDS,
    REPORT,
    BatchRow,
    Ledger,
    check_names,
    keep_recipe,
    known_rows,
    record_path,
    write_report,
)
from fitkit.fitting.depth_evidence import check_depth
from fitkit.fitting.recipe import FitRecipe
from fitkit.fitting.run import check_device
from fitkit.io.array_job import Shard
from fitkit.io.atomic import remove_litter, writing
from fitkit.io.engines import EngineOptions, Work, check_engine, run_engine
from fitkit.io.options import apply_overrides, check_options
from fitkit.io.outputs import locked
from fitkit.io.progress import Progress
from fitkit.io.result_folder import tidy
from fitkit.io.subject import is_result
from fitkit.models.registry import load_model

AGAIN = ("killed", "timeout", "memory", "unexpected")  # reasons of errors that `retries` are for


@dataclass(frozen=True)
class BatchOptions:
    """How a batch runs. Results do not depend on workers, engine, shard, timeout and retries.

    workers: subjects, or groups of them, that are fitted at the same time, each in a process with one thread;
    batch_size: subjects that a process fits side by side, see `fitkit.fitting.run.fit_many`; resume: keep the
    results that are there: a subject without one, or with an error, is fitted (again); light: of each result
    only parameters.npz, metrics.json and recipe.yaml, the labels that a training reads; pictures: False
    leaves out the pictures of each result, see `fitkit.export.folder.write_result`; device: of torch; engine:
    see `fitkit.io.engines`, and 'key=value' options of it; timeout: seconds that a subject may take, None =
    any; retries: how often a subject is tried again whose process was killed, that ran out of time or memory,
    or into a mistake of a program; shard: the part of the subjects that is fitted, None = all.
    """

    workers: int = 1
    batch_size: int = 1
    resume: bool = False
    light: bool = False
    pictures: bool = True
    device: str = "cpu"
    engine: str = "processes"
    engine_options: tuple[str, ...] = ()
    timeout: float | None = None
    retries: int = 0
    shard: Shard | None = None

    def check(self) -> None:
        """Raises InputError: a value that cannot be, a device or an engine that cannot be used here."""
        check_options(self, "batch")
        for name, value, least in (
            ("workers", self.workers, 1),
            ("batch size", self.batch_size, 1),
            ("retries", self.retries, 0),
        ):
            if value < least:
                raise InputError(f"batch: {name}: expected at least {least}, got {value}")
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"batch: timeout: expected seconds above 0, got {self.timeout:g}")
        check_device(self.device)
        check_engine(self.engine, self.engine_parameters)

    @property
    def engine_parameters(self) -> dict:
        return apply_overrides({}, self.engine_options)


def fit_batch(
    data: str | os.PathLike | SubjectSource,
    output: str | os.PathLike,
    recipe: FitRecipe,
    options: BatchOptions = BatchOptions(),
    progress: Progress = Progress(),
) -> list[BatchRow]:
    """Fit every subject of a data set; the result of subject A/B goes to OUTPUT/A/B. Of a folder of subject
    folders FOLDER/A/B is subject A/B, and FOLDER itself is subject FOLDER.

    A subject that cannot be fitted does not end the batch: whatever goes wrong with it, also that its process
    is killed, becomes its row (with one worker and no timeout, which is this process, all but a kill). Each
    subject has a record in OUTPUT/batch_records, OUTPUT/batch.jsonl gets a line for each that is done, and
    OUTPUT/batch.json lists all in the end, and now and then before; a shard leaves that to `collect`.

    Args:
        data: a folder, 'KIND:PATH', a table of photos, see `fitkit.data.subject_sets.SubjectSource`.
        progress: told of each subject, with its row, and first how many are there before the first fit.
    Returns:
        a row for each subject (of the shard), in the order of the data set.
    Raises:
        InputError: no subject, the output holds results without `resume`, of no batch or of another recipe,
            another batch writes there, or OUTPUT/batch.json cannot be written in the end.
    """
    check_argument("output", output, (str, os.PathLike), "a folder to write")
    source, output = source_of(data), Path(output)
    options.check()
    if options.engine != "processes":
        source = source.absolute()
    load_model(recipe.model)  # what is missing shows before the first fit
    check_depth(recipe)
    entries = _entries(source, output)
    plan = _plan(list(entries), options.batch_size, options.shard)
    mine = {n for level in plan for group in level for n in group}
    names = [n for n in entries if n in mine]
    shard = options.shard.name if options.shard else ""
    with locked(output, f"batch{shard}", "batch"):
        _check_begun(output, list(entries), shard, options.resume)
        keep_recipe(output, recipe, _begun(output))
        _tidy(output, names)
        rows, halves = _kept(output, names, entries)
        progress.counted(len(rows), len(names))
        ledger = Ledger(output, names, rows, shard, table=options.shard is None)

        def jobs_of(group: Sequence[str]) -> tuple[Job, ...]:
            return tuple(
                Job(
                    n,
                    entries[n].photos,
                    entries[n].load,
                    output.absolute(),
                    recipe,
                    options.light,
                    options.device,
                    options.pictures,
                )
                for n in group
            )

        try:
            for level in plan:
                left = [part for group in level if (part := _left(group, rows, halves))]
                # Last comes what was being fitted when an earlier run ended: perhaps that is what ended it.
                left.sort(key=lambda group: any(n in halves for n in group))
                for row, attempt in _tried([jobs_of(group) for group in left], output, options):
                    fresh = row.subject not in rows
                    ledger.add(row, attempt)
                    progress.counted(len(rows), len(names), row if fresh else None)
        except BaseException:  # Ctrl-C
            with suppress(InputError):
                ledger.write_table()
            raise
        ledger.write_table()
        _tidy(output, names)  # of workers that were killed
    return [rows[n] for n in names]


def collect(data: str | os.PathLike | SubjectSource, output: str | os.PathLike) -> list[BatchRow]:
    """What shards, or a batch that was killed, have done so far: writes OUTPUT/batch.json and returns a row
    for each subject of the data set; reason 'missing' where nothing has been done.

    Raises:
        InputError: no subject, no batch in the output, or a batch is being written there.
    """
    output = Path(output)
    entries = _entries(source_of(data), output)
    if not _begun(output):
        raise InputError(f"{output}: holds no batch; expected the --output of shards or of a batch")
    with locked(output, "batch", "batch"):
        known, rows = known_rows(output, entries), []
        for name, entry in entries.items():
            row = known.get(name)
            if row is None or row.status == FITTING:
                what = "has been begun and not ended" if row is not None else "has not been fitted"
                message = f"it {what}; run its shard (again) with --resume"
                row = BatchRow(name, "error", message, "missing", photos=entry.photos)
            rows.append(row)
        write_report(output, rows)
    return rows


def _tried(
    groups: Sequence[tuple[Job, ...]], output: Path, options: BatchOptions
) -> Iterator[tuple[BatchRow, int]]:
    """The last row of each job, after `retries`, and the number of tries."""
    attempts: Counter[str] = Counter()
    jobs = {job.name: job for group in groups for job in group}
    while groups:
        again: list[tuple[Job, ...]] = []
        for rows in _fitted(groups, output, options):
            # Nobody can tell which of several it was that ended their process: each is tried by itself.
            shared = len(rows) > 1 and rows[0].reason in ("killed", "timeout")
            for row in rows:
                attempts[row.subject] += not shared
                if shared or (row.reason in AGAIN and attempts[row.subject] <= options.retries):
                    again.append((jobs[row.subject],))
                else:
                    yield row, attempts[row.subject]
        groups = again


def _fitted(
    groups: Sequence[tuple[Job, ...]], output: Path, options: BatchOptions
) -> Iterator[list[BatchRow]]:
    """The rows of groups of jobs, each as it is done."""
    for group in groups:
        for job in group:
            with writing(output / RECORDS, "choose another --output"):
                record_path(output, job.name).unlink(missing_ok=True)
    limit = partial(time_limit, seconds=options.timeout)
    work = Work(fit_jobs, groups, lost_rows, found_rows, limit)
    engine = EngineOptions(
        options.workers,
        options.device != "cpu",
        options.timeout is not None,
        output.absolute() / ENGINE_FILES,
        options.engine_parameters,
    )
    with closing(run_engine(options.engine, work, engine)) as done:
        yield from done


def _entries(source: SubjectSource, output: Path) -> dict[str, SubjectEntry]:
    """Name -> subject; folders that lie in the output are none."""
    with writing(f"output {output}", "choose another --output"):
        if os.path.lexists(output):
            os.stat(output)  # a link to itself
        target = Path(os.path.realpath(output))
    if source.kind == FOLDERS and Path(os.path.realpath(source.path)).is_relative_to(target):
        raise InputError(
            f"output {output}: the folder of the photos, {source.path}, is it or lies in it; choose another "
            "--output"
        )
    found = []
    for entry in source.entries():
        place = None if entry.place is None else Path(os.path.realpath(entry.place))
        if place == target:
            raise InputError(f"output {output}: holds photos of a subject; choose another --output")
        if place is None or not place.is_relative_to(target):
            found.append(entry)
    if not found:
        raise InputError(
            f"{source.path}: no folder with photos below it; expected one folder for each person, or "
            "KIND:PATH of a data set"
        )
    check_names(output, {e.name: str(e.place or f"{source.data}: subject {e.name}") for e in found})
    return {e.name: e for e in found}


def _plan(names: Sequence[str], size: int, shard: Shard | None) -> list[list[tuple[str, ...]]]:
    """The groups that are fitted side by side, in levels that are done one after the other, 'A' before 'A/B':
    no result is written while one that it lies in is. They depend on the data set alone, so that a run that
    goes on, or shards, fit the same ones together; of a shard it is a part of them."""
    first, *deeper = _one_inside_another(names)
    groups = [tuple(first[i : i + size]) for i in range(0, len(first), size)]
    if shard is not None:
        groups = groups[shard.number - 1 :: shard.count]
    roots = {n for group in groups for n in group}

    def mine(name: str) -> bool:
        return any(a.as_posix() in roots for a in PurePosixPath(name).parents)

    plan: list[list[tuple[str, ...]]] = [groups]
    for level in deeper:
        plan.append([(n,) for n in level if mine(n)])
    return plan


def _one_inside_another(names: Sequence[str]) -> list[list[str]]:
    """The names in levels, each one deeper than that which it lies in."""
    levels: list[list[str]] = [[]]
    depth: dict[str, int] = {}
    for name in sorted(names, key=lambda n: n.count("/")):
        depth[name] = max(
            (depth[a.as_posix()] + 1 for a in PurePosixPath(name).parents if a.as_posix() in depth), default=0
        )
    for name in names:
        while depth[name] >= len(levels):
            levels.append([])
        levels[depth[name]].append(name)
    return levels


def _begun(output: Path) -> bool:
    return (output / REPORT).exists() or (output / RECORDS).is_dir() or any(output.glob(LOG.format("*")))


def _check_begun(output: Path, names: Sequence[str], shard: str, resume: bool) -> None:
    """Refuse an output whose results would be mixed with others."""
    begun = _begun(output)
    mine = (output / LOG.format(shard)).exists() if shard else begun
    if mine and not resume:
        what = "this shard of a batch" if shard else "a batch"
        raise InputError(f"{output}: holds {what} already; go on with --resume, or choose another folder")
    there = [] if begun else [name for name in names if is_result(output / name)]
    if there:
        raise InputError(
            f"{output}: holds a result of '{there[0]}' that is of no batch; choose another folder"
        )


def _kept(
    output: Path, names: Sequence[str], entries: dict[str, SubjectEntry]
) -> tuple[dict[str, BatchRow], set[str]]:
    """Rows of subjects whose results are there, and names of those whose fit began and did not end."""
    known = known_rows(output, names)
    halves = {n for n, row in known.items() if row.status == FITTING}
    kept = {
        n: replace(row, photos=entries[n].photos)
        for n, row in known.items()
        if row.status not in ("error", FITTING)
        and row.photos in ("", entries[n].photos)
        and is_result(output / n)
    }
    return kept, halves


def _left(group: Sequence[str], rows: dict[str, BatchRow], halves: set[str]) -> tuple[str, ...]:
    """What of a group is to be fitted: all of it where its fit did not end, for what comes of people who are
    fitted side by side depends, in the last digits, on who is."""
    left = tuple(n for n in group if n not in rows)
    return tuple(group) if any(n in halves for n in left) else left


def _tidy(output: Path, names: Sequence[str]) -> None:
    """Clean up after processes that were killed."""
    for place in {(output / name).parent for name in names}:
        tidy(place)
    for place in {record_path(output, name).parent for name in names}:
        remove_litter(place)
