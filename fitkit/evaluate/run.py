"""An evaluation: predictions to disk, metrics from the disk, a report. What `fitkit evaluate` does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fitkit.data.samples import EvaluationSample
from fitkit.errors import InputError
from fitkit.evaluate.engine import RECIPE as MADE_BY
from fitkit.evaluate.engine import make_predictions, open_predictions, score_predictions
from fitkit.evaluate.predictions import Outcome, read_outcome
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.protocols.base import Pool, Protocol, Scored
from fitkit.evaluate.recipe import EvaluateRecipe
from fitkit.evaluate.report import RECIPE, REPORT, TABLE, draw_picture, report_of, write_report
from fitkit.evaluate.tables import Row
from fitkit.fitting.run import check_device
from fitkit.io.options import plain
from fitkit.io.outputs import check_folder

PREDICTIONS, PICTURES = "predictions", "error_maps"
Tell = Callable[[str], None]


def evaluate(
    recipe: EvaluateRecipe,
    data: str | os.PathLike,
    output: str | os.PathLike,
    predictions: str | os.PathLike | None = None,
    limit: int | None = None,
    resume: bool = False,
    tell: Tell = lambda line: None,
    device: str = "cpu",
    workers: int = 1,
) -> dict[str, Any]:
    """Predict every sample of a data set and score the predictions.

    Writes into `output`: predictions/ with recipe.yaml beside them, metrics.json, metrics.csv, recipe.yaml,
    error_maps/.

    Args:
        predictions: a folder with predictions that are there already: nothing is predicted, samples without
            one count as missing.
        limit: only the first so many samples. resume: go on with the predictions in `output`; only those that
            are missing are made.
        tell: gets one line for each finished sample. device: torch device of fits and networks; workers:
            processes that predict and
        score, with one thread each; on another device than the CPU one process predicts, and they read the
        photos.
    Returns:
        what metrics.json holds, see `report_of`.
    Raises:
        InputError: unusable data, recipe, device or folders. A sample that fails is a row of the report.
    """
    protocol, options, out = PROTOCOLS[recipe.protocol], recipe.protocol_options(), Path(output)
    for name, count in (("limit", limit), ("workers", workers)):
        if count is not None and count < 1:
            raise InputError(f"{name}: expected at least 1, got {count}")
    check_device(device)
    samples = _samples(protocol, data, options, limit)
    folder = out / PREDICTIONS if predictions is None else Path(predictions)
    if predictions is not None:
        _check_predictions(folder, samples)
    files = (REPORT, TABLE, RECIPE, f"{PREDICTIONS}/*", f"{PICTURES}/*.png")
    check_folder(out, files, (REPORT, f"{PREDICTIONS}/{MADE_BY}"), "evaluate", resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"output {out}: cannot be made ({error.strerror or error}); choose another --output"
        ) from error
    if predictions is None:
        _predict(samples, folder, recipe, resume, tell, device, workers)
    rows, pool = _score(samples, folder, out / PICTURES, recipe, tell, workers)
    report = report_of(recipe, Path(data).resolve().name, options, protocol, rows, pool)
    write_report(report, out)
    return report


def _predict(
    samples: Sequence[EvaluationSample],
    folder: Path,
    recipe: EvaluateRecipe,
    resume: bool,
    tell: Tell,
    device: str,
    workers: int,
) -> None:
    """Step one."""

    def predicted(number: int, sample: EvaluationSample, outcome: Outcome) -> None:
        said = outcome.error or outcome.status
        tell(f"{number}/{len(samples)} {sample.id}: {said}, {outcome.seconds:.1f} s")

    method = recipe.make_method(device)
    method.load()  # refused before anything is written
    options = recipe.protocol_options()
    drawn = plain({name: getattr(options, name) for name in PROTOCOLS[recipe.protocol].drawn_by})
    open_predictions(folder, method.made() | ({"samples": drawn} if drawn else {}), resume)
    make_predictions(samples, folder, method, workers, done=predicted)


def _score(
    samples: Sequence[EvaluationSample],
    folder: Path,
    pictures: Path,
    recipe: EvaluateRecipe,
    tell: Tell,
    workers: int,
) -> tuple[list[Row], Pool]:
    """Step two, with error maps of the first samples that have one."""
    protocol, drawn = PROTOCOLS[recipe.protocol], []

    def scored(number: int, row: Row, made_of: Scored | None) -> None:
        tell(f"{number}/{len(samples)} {row['id']}: {_first_value(row, protocol)}")
        if made_of is not None and made_of.picture is not None and len(drawn) < recipe.pictures:
            drawn.append(pictures / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', row['id'])}.png")
            draw_picture(made_of.picture, drawn[-1], recipe.picture_mm)

    options = recipe.protocol_options()
    return score_predictions(protocol, options, samples, folder, recipe.model, workers, scored)


def _samples(
    protocol: Protocol, data: str | os.PathLike, options: Any, limit: int | None
) -> list[EvaluationSample]:
    samples, names = protocol.samples(data, options), set()
    for sample in samples:
        if sample.id in names:
            raise InputError(f"{data}: several samples are called '{sample.id}'; rename one")
        names.add(sample.id)
    return samples[:limit]


def _check_predictions(folder: Path, samples: list[EvaluationSample]) -> None:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; expected predictions, or leave --predictions out to have the photos "
            "fitted"
        )
    if all(read_outcome(folder, s.id).status == "missing" for s in samples):
        first = samples[0].id
        raise InputError(
            f"{folder}: no prediction for any of the {len(samples)} samples; "
            f"expected files such as {first}.obj with {first}.npy"
        )


def _first_value(row: Row, protocol: Protocol) -> str:
    """What went wrong, or the first number of a row."""
    name = next((k for k in protocol.units if row.get(k) is not None), None)
    value = row["status"] if name is None else f"{name} {row[name]:.4g} {protocol.units[name]}"
    return row["error"] or value
