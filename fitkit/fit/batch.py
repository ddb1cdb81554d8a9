"""Fits of all subjects below a folder, on the cores of one machine."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fitkit.errors import FitkitError, InputError
from fitkit.fit.recipe import FitRecipe
from fitkit.fit.run import check_device, fit
from fitkit.io.foreign import foreign_file
from fitkit.io.options import build
from fitkit.io.subject import load_subject, subject_folders
from fitkit.io.workers import run_jobs
from fitkit.models.registry import load_model

REPORT = "batch.json"


@dataclass(frozen=True)
class BatchRow:
    """One subject of a batch. subject: its path below the root; status: 'ok', 'doubtful' or 'failed' of its fit, 'error' when there is
    none; message: the first reason why it is not ok, or the error; reprojection_share: mean reprojection error over the face size; seconds: of
    the fit; iterations: steps of the solver, those that were rejected too; views: photos that were fitted; start: which start the fit took;
    expected_mm, upper_mm: expected error and its bound, see `fitkit.fit.report.expected_error`."""

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


def fit_folder(folder: str | os.PathLike, output: str | os.PathLike, recipe: FitRecipe, workers: int = 1, resume: bool = False,
               light: bool = False, device: str = "cpu",
               progress: Callable[[int, int, BatchRow | None], None] = lambda done, count, row: None) -> list[BatchRow]:
    """Fit every subject folder below `folder`; the result of FOLDER/A/B goes to OUTPUT/A/B.

    A subject that cannot be fitted does not end the batch. OUTPUT/batch.json lists what became of each, written anew after every fit.

    Args:
        workers: processes, each with one thread; the results do not depend on it.
        resume: keep the results that are there; a subject without one, or with an error, is fitted (again).
        light: of each result only parameters.npz, metrics.json and recipe.yaml, the labels that a training reads.
        progress: called with (subjects done, all, the last one), first before the first fit.
    Returns:
        a row for each subject, in the order of their paths.
    Raises:
        InputError: no subject folder, or the output holds results without `resume`.
    """
    folder, output = Path(folder), Path(output)
    if workers < 1:
        raise InputError(f"batch: workers: expected at least 1, got {workers}")
    check_device(device)
    load_model(recipe.model)  # what is missing shows before the first fit
    found = [p for p in subject_folders(folder) if not p.resolve().is_relative_to(output.resolve())]
    if not found:
        raise InputError(f"{folder}: no folder with photos below it; expected one folder for each person")
    names = [p.relative_to(folder).as_posix() if p != folder else folder.resolve().name for p in found]
    if (output / REPORT).exists() and not resume:
        raise InputError(f"{output}: holds a batch already; go on with --resume, or choose another folder")
    rows = {row.subject: row for row in read_report(output)} if resume else {}
    rows = {n: r for n, r in rows.items() if r.status != "error" and (output / n / "parameters.npz").is_file()}
    jobs = [(str(p), str(output / n), n, recipe, light, device) for p, n in zip(found, names) if n not in rows]
    output.mkdir(parents=True, exist_ok=True)
    progress(len(names) - len(jobs), len(names), None)
    for done, row in enumerate(run_jobs(_fit, jobs, workers), len(names) - len(jobs) + 1):
        rows[row.subject] = row
        _write(output, [rows[n] for n in names if n in rows])
        progress(done, len(names), row)
    return [rows[n] for n in names]


def read_report(output: Path) -> list[BatchRow]:
    """Rows of OUTPUT/batch.json; none if there is no such file.

    Raises:
        InputError: the file is not one of ours.
    """
    path = output / REPORT
    if not path.exists():
        return []
    with foreign_file(path, "not readable as the report of a batch", "remove it to start again") as file:
        return [build(BatchRow, row, f"{path}: subject {number}") for number, row in enumerate(file.json()["subjects"], 1)]


def summary(rows: Sequence[BatchRow]) -> dict[str, float]:
    """What a batch came to: number of subjects by status, and the means over those that were fitted."""
    fitted = [r for r in rows if r.status != "error"]
    out: dict[str, float] = {"subjects": len(rows)} | {s: sum(r.status == s for r in rows) for s in ("ok", "doubtful", "failed", "error")}
    for key in ("reprojection_share", "seconds", "iterations", "expected_mm"):
        values = [getattr(r, key) for r in fitted if getattr(r, key) is not None]
        out[key] = float(np.mean(values)) if values else float("nan")
    return out


def _write(output: Path, rows: Sequence[BatchRow]) -> None:
    part = output / f".{REPORT}.part"
    part.write_text(json.dumps({"subjects": [asdict(r) for r in rows]}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, output / REPORT)


def _fit(job: tuple[str, str, str, FitRecipe, bool, str]) -> BatchRow:
    place, target, name, recipe, light, device = job
    began = time.perf_counter()
    try:
        # An earlier result below the photos is none of them.
        result = fit(load_subject(place, ignore=[Path(place) / "fitkit"]), recipe=recipe, model=load_model(recipe.model), device=device)
        result.save(target, overwrite=True, light=light)
    except FitkitError as error:
        return BatchRow(name, "error", str(error), seconds=round(time.perf_counter() - began, 3))
    metrics = result.metrics
    return BatchRow(name, result.status, (result.warnings or ("",))[0], metrics["reprojection_share"], metrics["time_s"]["solve"],
                    metrics["start"]["iterations"], metrics["num_views"], metrics["start"]["source"],
                    metrics["verdict"]["expected_mm"], metrics["verdict"]["upper_mm"])
