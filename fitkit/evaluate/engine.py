"""The two steps of every evaluation and benchmark: predictions to files, then numbers from the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fitkit.data.samples import EvaluationSample
from fitkit.errors import FitkitError, InputError, unexpected
from fitkit.evaluate.methods import Method, Photos, decoded, load_photos
from fitkit.evaluate.predictions import (
    Outcome,
    PredictedFace,
    has_mesh,
    is_predicted,
    read_outcome,
    read_prediction,
    write_outcome,
)
from fitkit.evaluate.protocols.base import Pool, Scored, Scorer
from fitkit.io.atomic import written_whole
from fitkit.io.options import read_yaml
from fitkit.io.subject import Subject
from fitkit.io.workers import run_jobs
from fitkit.observe.landmarks.types import Landmarks

log = logging.getLogger("fitkit")
Predicted = Callable[[int, EvaluationSample, Outcome], None]
Row = dict[str, Any]


RECIPE = "recipe.yaml"  # beside the predictions: what made them


# ---- step one ----


def open_predictions(folder: Path, made: dict[str, Any], resume: bool) -> None:
    """A folder for predictions that are made in this way, which is written down beside them.

    Args:
        made: what the predictions depend on, as YAML can hold it; resume: there may be some already, if they
            were made in this way.
    Raises:
        InputError: there are predictions already, or others than these.
    """
    beside = folder / RECIPE
    if folder.is_dir() and any(folder.iterdir()):
        if not resume:
            raise InputError(
                f"{folder}: there are predictions already; --resume goes on with them, --predictions "
                f"{folder} only scores them, or choose another --output"
            )
        earlier = read_yaml(beside) if beside.is_file() else None
        if earlier != made:
            raise InputError(
                f"{folder}: its predictions were made with another recipe or model, or from other photos "
                f"({beside.name}); choose another folder"
            )
    with written_whole(beside) as part:
        part.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), encoding="utf-8")


def make_predictions(
    samples: Sequence[EvaluationSample],
    folder: Path,
    method: Method,
    workers: int = 1,
    photos: Photos = load_photos,
    done: Predicted = lambda number, sample, outcome: None,
) -> None:
    """Predict every sample that has no prediction in the folder yet; a failure is written down and is not
    tried again.

    Args:
        workers: processes, with one thread each. On another device than the CPU they read the photos, and one
            process predicts.
        photos: (sample, source of landmarks) -> its photos and landmarks.
        done: called with (predictions there are, sample, how it ended) after each.
    """
    left = [s for s in samples if not is_predicted(folder, s.id)]
    number = len(samples) - len(left)
    read = partial(_read, photos=photos, method=method)
    predict = partial(_predict, method=method, root=folder)
    if method.device == "cpu" or workers == 1:
        ended = run_jobs(partial(_read_and_predict, read=read, predict=predict), left, workers)
    else:
        ended = _predicted_here(run_jobs(partial(_read_whole, read=read), left, workers), predict)
    with closing(ended):
        for sample, outcome in ended:
            number += 1
            done(number, sample, outcome)


def _predicted_here(
    jobs: Generator[_Job, None, None], predict: Callable[[_Job], tuple[EvaluationSample, Outcome]]
) -> Generator[tuple[EvaluationSample, Outcome], None, None]:
    with closing(jobs):
        yield from map(predict, jobs)


@dataclass(frozen=True)
class _Job:
    """photos: None where none are needed, or where they cannot be used, which `error` says."""

    sample: EvaluationSample
    photos: tuple[Subject, Landmarks] | None
    error: str
    seconds: float


def _read(sample: EvaluationSample, photos: Photos, method: Method) -> _Job:
    began, found, error = time.perf_counter(), None, ""
    if method.needs_photos:
        try:
            found = photos(sample, method.recipe.landmarks.source)
        except Exception as problem:  # noqa: BLE001 - one sample must not end a run of thousands
            error = _reason(problem, sample)
    return _Job(sample, found, error, time.perf_counter() - began)


def _read_whole(sample: EvaluationSample, read: Callable[[EvaluationSample], _Job]) -> _Job:
    job = read(sample)
    return job if job.photos is None else replace(job, photos=decoded(job.photos))


def _read_and_predict(
    sample: EvaluationSample,
    read: Callable[[EvaluationSample], _Job],
    predict: Callable[[_Job], tuple[EvaluationSample, Outcome]],
) -> tuple[EvaluationSample, Outcome]:
    return predict(read(sample))


def _predict(job: _Job, method: Method, root: Path) -> tuple[EvaluationSample, Outcome]:
    began, name = time.perf_counter(), job.sample.id
    outcome = Outcome("failed", job.error)
    if not job.error:
        try:
            outcome = method.predict(name, job.photos, root)
        except Exception as problem:  # noqa: BLE001 - as above
            outcome = Outcome("failed", _reason(problem, job.sample))
    outcome = replace(outcome, seconds=round(job.seconds + time.perf_counter() - began, 3))
    write_outcome(outcome, root, name, method.kind, method.model_name)
    return job.sample, outcome


def _reason(problem: Exception, sample: EvaluationSample) -> str:
    if isinstance(problem, FitkitError):
        return str(problem)
    log.error("%s", sample.id, exc_info=problem)
    return unexpected(problem)


# ---- step two ----


def score_predictions(
    scorer: Scorer,
    options: Any,
    samples: Sequence[EvaluationSample],
    folder: Path,
    model: str,
    workers: int = 1,
    done: Callable[[int, Row, Scored | None], None] = lambda number, row, scored: None,
) -> tuple[list[Row], Pool]:
    """Metrics of all predictions in a folder -> one row for each sample, failed ones included, and the pooled
    values.

    Args:
        model: name or path of the face model; workers: processes; done: called with (rows there are, the last
            one, what it was made
        of) in the order of the samples.
    """
    context = scorer.prepare(_usable(samples, folder), options, model)
    score = partial(_score, scorer=scorer, options=options, folder=folder, context=context)
    rows: list[Row] = []
    pool: Pool = {}
    with closing(run_jobs(score, list(enumerate(samples)), workers)) as ended:
        for row, scored in _in_order(ended):
            if scored is not None:
                for name, values in scored.pooled.items():
                    pool.setdefault(name, []).append((row["id"], values))
            rows.append(row)
            done(len(rows), row, scored)
    return rows, pool


def _usable(
    samples: Sequence[EvaluationSample], folder: Path
) -> Iterator[tuple[EvaluationSample, PredictedFace]]:
    for sample in samples:
        if read_outcome(folder, sample.id).usable:
            try:
                yield sample, read_prediction(folder, sample.id)
            except FitkitError:  # told when it is scored
                continue


def _score(
    job: tuple[int, EvaluationSample], scorer: Scorer, options: Any, folder: Path, context: Any
) -> tuple[int, Row, Scored | None]:
    number, sample = job
    outcome, scored = read_outcome(folder, sample.id), None
    row = {
        "id": sample.id,
        "group": sample.group,
        "status": outcome.status,
        "error": outcome.error,
        "seconds": outcome.seconds,
    }
    if outcome.usable or (scorer.scores_failed and has_mesh(folder, sample.id)):
        try:
            scored = scorer.score(sample, read_prediction(folder, sample.id), options, context)
            row |= {"error": "", **scored.values}
        except Exception as problem:  # noqa: BLE001 - one sample must not cost the numbers of all others
            row |= {"status": "failed", "error": _reason(problem, sample)}
    return number, row, scored


def _in_order(ended: Iterable[tuple[int, Row, Scored | None]]) -> Iterator[tuple[Row, Scored | None]]:
    """What comes as it is done, in the order of its numbers."""
    waiting: dict[int, tuple[Row, Scored | None]] = {}
    following = 0
    for number, row, scored in ended:
        waiting[number] = row, scored
        while following in waiting:
            yield waiting.pop(following)
            following += 1
