"""What is known of the subjects of a batch, on disk: a record of each, a log that only grows, and the table
of all."""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fitkit.errors import InputError
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.atomic import writing, written_whole
from fitkit.io.foreign import DATA_BYTES, MEGABYTE, foreign_file, inside, parse_json, shown
from fitkit.io.options import build, plain, to_plain

log = logging.getLogger("fitkit")
REPORT = "batch.json"  # the table
RECIPE = "batch_recipe.yaml"  # what all results were fitted with
RECORDS = "batch_records"  # folder of a file for each subject
ENGINE_FILES = "batch_engine"  # folder of what an engine leaves: logs of Slurm
RECORD = ".json"  # how the name of each of these ends
LOG = "batch{}.jsonl"  # of a run, or of a shard of it
STATUSES = ("ok", "doubtful", "failed", "error")
FITTING = "fitting"  # status of a record whose fit has begun and not ended
LONGEST = 250  # bytes of a part of a name, which file systems take with RECORD behind it
TABLE_EVERY = 30.0  # seconds between two tables while a batch runs
FULL = "make room, and go on with --resume"


@dataclass(frozen=True)
class BatchRow:
    """One subject of a batch.

    subject: name of its result, a path below the output; status: 'ok', 'doubtful' or 'failed' of its fit,
    'error' when there is none, in a record also 'fitting' while it has not ended; message: the first reason
    why it is not ok, or the error; reason: the same for programs: code of the finding, see
    `fitkit.fitting.report.Finding`, or of an error 'input' (its files), 'killed' (its process), 'timeout',
    'memory', 'unexpected' (a mistake of a program) or 'missing' (nothing has fitted it yet);
    reprojection_share: mean reprojection error over the face size; seconds: of the fit; iterations: steps of
    the solver, those that were rejected too; views: photos that were fitted; start: which start the fit took;
    expected_mm, upper_mm: expected error and its bound, see `fitkit.fitting.findings.expected_error`; photos:
    their folder, relative to the root ('.' for the root itself), or how the data set calls them; '' in
    earlier reports.
    """

    subject: str
    status: str
    message: str = ""
    reason: str = ""
    reprojection_share: float | None = None
    seconds: float = 0.0
    iterations: int = 0
    views: int = 0
    start: str = ""
    expected_mm: float | None = None
    upper_mm: float | None = None
    photos: str = ""

    @property
    def usable(self) -> bool:
        """It has a face."""
        return self.status in ("ok", "doubtful")


def keep_recipe(output: Path, recipe: FitRecipe, begun: bool) -> None:
    """Write down what a batch is fitted with; of one that has begun it must be the same.

    Raises:
        InputError: results in the folder were fitted with another recipe, or it cannot be written.
    """
    path, mine = output / RECIPE, plain(to_plain(recipe))
    if begun:
        if not path.is_file():  # of a version that did not write it down: nobody knows
            return
        theirs = plain(to_plain(load_recipe(path)))  # options that are new since then have their defaults
        changed = [
            k if isinstance(a, dict | list) or isinstance(b, dict | list) else f"{k} {shown(a)} -> {shown(b)}"
            for k, a, b in _differences(theirs, mine)
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(
                f"{output}: its results were fitted with another recipe ({', '.join(changed[:3])}{more}; "
                f"{RECIPE}); go on with that one, or choose another folder"
            )
        return
    with written_whole(path, FULL) as part:
        part.write_text(yaml.safe_dump(mine, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value there, value here) of what differs; None = not there. Stages go by their names
    where both have the same ones."""
    names = [_names(values) for values in (first, second)]
    if names[0] and names[0] == names[1]:
        first, second = (dict(zip(names[0], values)) for values in (first, second))
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return [] if first == second else [(name or "recipe", first, second)]
    keys = dict.fromkeys((*first, *second))
    return [
        found
        for key in keys
        for found in _differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
    ]


def _names(values: Any) -> list[str]:
    """Those of a list of mappings that all have one of their own, else none."""
    named = isinstance(values, list) and all(isinstance(v, dict) and "name" in v for v in values)
    names = [str(v["name"]) for v in values] if named else []
    return names if len(set(names)) == len(names) else []


def record_path(output: Path, subject: str) -> Path:
    return output / RECORDS / f"{subject}{RECORD}"


def write_record(output: Path, row: BatchRow) -> None:
    """Write the record of one subject, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with written_whole(record_path(output, row.subject), FULL) as part:
        part.write_text(_text(row), encoding="utf-8")


def read_record(output: Path, subject: str) -> BatchRow | None:
    """The record of a subject, or None without one.

    Raises:
        InputError: not one of ours.
    """
    path = record_path(output, subject)
    if not path.is_file():
        return None
    remedy = f"remove {path}, and the subject is fitted again"
    with foreign_file(path, "not readable as the record of a subject", remedy, limit=MEGABYTE) as file:
        return build(BatchRow, file.json(), f"{path}")


def read_report(output: Path) -> list[BatchRow]:
    """Rows of OUTPUT/batch.json; none if there is no such file.

    Raises:
        InputError: the file is not one of ours.
    """
    path = output / REPORT
    if not path.exists():
        return []
    with foreign_file(
        path, "not readable as the report of a batch", f"remove {output} to start again", limit=DATA_BYTES
    ) as file:
        return [
            build(BatchRow, row, f"{path}: subject {number}")
            for number, row in enumerate(file.json()["subjects"], 1)
        ]


def read_logs(output: Path) -> dict[str, BatchRow]:
    """Subject -> what the logs of a batch and of its shards said of it last. A line that a killed process
    left half written, the last one of a run, does not count.

    Raises:
        InputError: a line that is not ours.
    """
    rows: dict[str, tuple[str, BatchRow]] = {}
    for path in sorted(output.glob(LOG.format("*"))):
        with foreign_file(path, "not readable as the log of a batch", limit=DATA_BYTES) as file:
            lines = file.bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                entry = parse_json(line) if line.strip() else None
            except ValueError:
                continue  # half of a line
            if entry is None:
                continue
            where = f"{path}: line {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("time"), str):
                raise InputError(
                    f"{where}: expected a subject of a batch with its 'time', got {shown(entry)}"
                )
            moment = entry.pop("time")
            row = build(BatchRow, {k: v for k, v in entry.items() if k != "attempt"}, where)
            if row.subject not in rows or rows[row.subject][0] <= moment:
                rows[row.subject] = moment, row
    return {name: row for name, (_, row) in rows.items()}


def known_rows(output: Path, names: Iterable[str]) -> dict[str, BatchRow]:
    """What is known of subjects, by name, in the order of the names: from the logs, the records, or a table
    of earlier versions.

    A log is one file, where records are thousands; a record knows more where the process that keeps the log
    was killed, or the log of another machine is not here.
    """
    logged, tabled = read_logs(output), {row.subject: row for row in read_report(output)}
    rows = {}
    for name in names:
        row = logged.get(name)
        if row is None or row.status == "error":
            row = read_record(output, name) or row or tabled.get(name)
        if row is not None:
            rows[name] = row
    return rows


class Ledger:
    """Where a batch, or a shard of one, writes down what became of its subjects.

    names: of all subjects, in the order of the table; rows: of those that are done; shard: '' or what tells
    the log of a shard from others; table: whether batch.json is written, which a shard leaves to `--collect`.
    """

    def __init__(
        self,
        output: Path,
        names: Sequence[str],
        rows: dict[str, BatchRow],
        shard: str = "",
        table: bool = True,
    ):
        self.output, self.names, self.rows, self.table = output, names, rows, table
        self.path = output / LOG.format(shard)
        self.written = -TABLE_EVERY
        with writing(self.path, FULL), open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed process left half a line
                    file.write(b"\n")
        self.write_table()  # from now on the folder is that of a batch

    def add(self, row: BatchRow, attempt: int = 1) -> None:
        """One more is done; a disk that is full for now does not end the batch."""
        self.rows[row.subject] = row
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
        try:
            with writing(self.path, FULL), open(self.path, "ab") as file:
                file.write(_text(row, {"attempt": attempt, "time": now}).encode())
            if time.monotonic() - self.written > TABLE_EVERY:
                self.write_table()
        except InputError as error:
            log.warning("%s", error)

    def write_table(self) -> None:
        """Write batch.json; a shard does not.

        Raises:
            InputError: it cannot be written.
        """
        if not self.table:
            return
        self.written = time.monotonic()
        write_report(self.output, [self.rows[n] for n in self.names if n in self.rows])


def write_report(output: Path, rows: Sequence[BatchRow]) -> None:
    """Write OUTPUT/batch.json."""
    table = {"subjects": [asdict(row) for row in rows]}
    with written_whole(output / REPORT, FULL) as part:
        part.write_text(json.dumps(plain(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _text(row: BatchRow, more: Mapping[str, object] = {}) -> str:
    """One line."""
    return json.dumps(plain(asdict(row) | dict(more)), ensure_ascii=False) + "\n"


def check_names(output: Path, subjects: Mapping[str, str]) -> None:
    """Refuse names of results that would lie in the way of each other or of the files of the batch.

    subjects: name -> what has it, for the message.
    Raises:
        InputError: names the first one.
    """
    from fitkit.io.result_folder import ENTRIES, PAGE  # heavy

    for name, owner in subjects.items():
        parts = name.split("/")
        try:
            inside(output, name)
        except InputError as error:
            raise InputError(f"{owner}: cannot name a result: {error}") from error
        if any(not part or part.startswith(".") for part in parts):
            raise InputError(
                f"{owner}: cannot name a result: a part of '{name}' is empty or begins with a dot; rename it"
            )
        if any(unicodedata.category(c) == "Cc" for c in name):
            raise InputError(
                f"{shown(owner)}: cannot name a result: {shown(name)} has a control character; rename it"
            )
        if max(len(part.encode()) for part in parts) > LONGEST:
            raise InputError(
                f"{owner}: cannot name a result: a part of it is longer than {LONGEST} bytes; rename it"
            )
        aboves = ["/".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]
        above = next((a for a in aboves if a in subjects), None)
        own = (
            parts[0] in (RECORDS, ENGINE_FILES, REPORT, PAGE)
            or parts[0].endswith(".jsonl")
            or any(a.endswith(RECORD) and a.removesuffix(RECORD) in subjects for a in aboves)
        )
        if own or (above is not None and parts[above.count("/") + 1] in ENTRIES):
            raise InputError(
                f"{owner}: its result {output / name} would lie where {output / (above or '')} has files of "
                "its own; rename the folder"
            )


def summary(rows: Sequence[BatchRow]) -> dict[str, float]:
    """What a batch came to: number of subjects by status, and the means over those that were fitted."""
    fitted = [r for r in rows if r.status != "error"]
    out: dict[str, float] = {"subjects": len(rows)}
    out.update((s, sum(r.status == s for r in rows)) for s in STATUSES)
    for key in ("reprojection_share", "seconds", "iterations", "expected_mm"):
        values = [getattr(r, key) for r in fitted if getattr(r, key) is not None]
        out[key] = float(np.mean(values)) if values else float("nan")
    return out


def summary_text(rows: Sequence[BatchRow], most: int = 5) -> str:
    """The summary as a table for people: numbers by status, why those are that are not ok, the slowest and
    the worst."""
    numbers = summary(rows)
    lines = [
        f"{numbers['subjects']} subjects: " + ", ".join(f"{numbers[status]} {status}" for status in STATUSES)
    ]
    fitted = [r for r in rows if r.status != "error"]
    if fitted:
        expected = numbers["expected_mm"]
        lines.append(
            f"{'mean':10}"
            + ("" if np.isnan(expected) else f"expected error {expected:.1f} mm, ")
            + f"reprojection error {100 * numbers['reprojection_share']:.1f} % of the face size, "
            f"{numbers['seconds']:.2f} s and {numbers['iterations']:.0f} iterations in the solver"
        )
    for status in STATUSES[1:]:
        reasons: dict[str, list[BatchRow]] = {}
        for row in rows:
            if row.status == status:
                reasons.setdefault(row.reason or "not told", []).append(row)
        for reason, some in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
            of = f"{status} ({reason.replace('_', ' ')})"
            lines.append(f"{of:34} {len(some):6}  first: {some[0].subject}")
    if len(fitted) > 1:
        slowest = sorted(fitted, key=lambda r: -r.seconds)[:most]
        lines.append(f"{'slowest':10}" + ", ".join(f"{r.subject} {r.seconds:.1f} s" for r in slowest))
        judged = [(r.expected_mm, r.subject) for r in fitted if r.expected_mm is not None]
        if judged:
            worst = sorted(judged, key=lambda pair: -pair[0])[:most]
            lines.append(f"{'worst':10}" + ", ".join(f"{name} {mm:.1f} mm" for mm, name in worst))
    return "\n".join(lines)
