"""`fitkit.batch`: fits of a data set from Python, and what came of them as a table."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, overload

from fitkit.data.subject_sets import SubjectSource, source_of
from fitkit.errors import FitkitError, InputError, check_argument
from fitkit.export.load import load_result
from fitkit.fitting.batch import BatchOptions, collect, fit_batch
from fitkit.fitting.batch_records import STATUSES, BatchRow, read_report, summary, summary_text
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.result import FitResult
from fitkit.io.array_job import parse_shard
from fitkit.io.options import read_yaml
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, is_result
from fitkit.models.registry import load_model

SHOWN = 20  # rows of a table in a notebook


class BatchTable(Sequence[BatchRow]):
    """What became of each subject of a batch. Holds numbers only; faces are read when they are asked for.

        table = fitkit.batch("people/", "fits")
        print(table)
        for row, result in table.results(status=("ok",)):
            print(row.subject, result.neutral.shape)

    output: folder of the batch.
    """

    def __init__(self, rows: Sequence[BatchRow], output: Path, source: SubjectSource | None = None):
        self.rows, self.output, self._source = tuple(rows), output, source

    @overload
    def __getitem__(self, index: int) -> BatchRow: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[BatchRow]: ...

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return summary_text(self.rows)

    def __repr__(self) -> str:
        numbers = summary(self.rows)
        counts = ", ".join(f"{numbers[s]} {s}" for s in ("ok", "doubtful", "failed", "error"))
        return f"BatchTable({len(self)} subjects: {counts}; {self.output})"

    def columns(self) -> dict[str, list]:
        """Column -> a value for each subject; see `fitkit.fitting.batch_records.BatchRow`."""
        return {f.name: [getattr(row, f.name) for row in self.rows] for f in fields(BatchRow)}

    def frame(self) -> Any:
        """The table as a pandas.DataFrame.

        Raises:
            FitkitError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError as error:
            raise FitkitError(
                f"a DataFrame needs pandas ({error}); pip install pandas, or use columns()"
            ) from error
        return pandas.DataFrame(self.columns())

    def result(self, row: BatchRow, photos: bool = True) -> FitResult:
        """The face of one subject, read from the output. photos: with its photos, from the data set.

        Raises:
            InputError: there is no result, or it cannot be read.
        """
        subject: Subject | None = None
        if photos and self._source is not None:
            if row.subject not in self._entries:
                raise InputError(f"{self._source.data}: no subject '{row.subject}' in it")
            subject = self._entries[row.subject]()
        return load_result(self.output / row.subject, self._model, subject)

    def results(
        self, status: Sequence[str] = ("ok", "doubtful"), photos: bool = True
    ) -> Iterator[tuple[BatchRow, FitResult]]:
        """Rows of these states with their faces, read one after the other: what is not kept costs no
        memory.

        Raises:
            InputError: no such status, or as `result`.
        """
        wrong = next((s for s in status if s not in STATUSES), None)
        if isinstance(status, str) or wrong is not None:
            raise InputError(f"status: expected a list of {', '.join(STATUSES)}; got {wrong or status!r}")
        for row in self.rows:
            if row.status in status and is_result(self.output / row.subject):
                yield row, self.result(row, photos)

    def _repr_html_(self) -> str:
        head = ("subject", "status", "expected_mm", "views", "seconds", "message")

        def cell(value: Any) -> str:
            return html.escape(
                "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
            )

        lines = [
            "<tr>" + "".join(f"<td>{cell(asdict(row)[name])}</td>" for name in head) + "</tr>"
            for row in self.rows[:SHOWN]
        ]
        more = f"<p>and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        titles = "".join(f"<th>{name}</th>" for name in head)
        return (
            f"<pre>{html.escape(str(self))}</pre><table><thead><tr>{titles}</tr></thead>"
            f"<tbody>{''.join(lines)}</tbody></table>{more}"
        )

    @property
    def _entries(self) -> dict[str, Callable[[], Subject]]:
        if not hasattr(self, "_loaders"):
            source = self._source
            self._loaders = {e.name: e.load for e in source.entries()} if source is not None else {}
        return self._loaders

    @property
    def _model(self) -> Any:
        """The face model of the batch, loaded once."""
        if not hasattr(self, "_face_model"):
            first = next((r for r in self.rows if is_result(self.output / r.subject)), None)
            self._face_model = (
                None
                if first is None
                else load_model(read_yaml(self.output / first.subject / "recipe.yaml")["model"])
            )
        return self._face_model


def batch(
    data: str | os.PathLike | SubjectSource,
    output: str | os.PathLike,
    *,
    recipe: str | os.PathLike | FitRecipe = "multiview",
    model: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
    data_options: Sequence[str] = (),
    landmark_folder: str | os.PathLike = "",
    shard: str | None = None,
    progress: Progress | Callable[[str, float], None] | None = None,
    **options: Any,
) -> BatchTable:
    """Fit one face to each subject of a data set, as `fitkit batch` does.

        table = fitkit.batch("micc:Florence", "fits", workers=8, data_options=["frames=5"])
        table.frame().sort_values("expected_mm")        # pandas

    Call it below `if __name__ == "__main__":` where it starts processes (workers above 1, or a timeout).

    Args:
        data: a folder of subject folders, a table of photos (.csv, .jsonl) or 'KIND:PATH', docs/batch.md;
            data_options: 'key=value' of its kind; landmark_folder: see `fitkit batch`.
        output: folder of the results. recipe, model, overrides: as for `fit`.
        shard: 'I/N' or 'auto': a part of the subjects.
        options: of `fitkit.fitting.batch.BatchOptions`: workers, batch_size, resume, light, pictures, device,
            engine, engine_options, timeout, retries.
        progress: called with (what is done, share done in 0..1), or a Progress.
    Returns:
        a row for each subject, whatever became of it; reads faces from the output when asked.
    Raises:
        FitkitError: what concerns all subjects: data set, output, recipe, model, device, engine.
    """
    known = [f.name for f in fields(BatchOptions) if f.name != "shard"]
    for name in options:
        if name not in known:
            raise InputError(f"batch: unknown argument '{name}'; known: {', '.join(known)}")
    for name in ("overrides", "data_options"):
        value = overrides if name == "overrides" else data_options
        check_argument(name, value, (list, tuple), "a list of 'key=value'")
    if isinstance(recipe, FitRecipe):
        if overrides or model is not None:
            raise InputError("overrides and model change a recipe given by name or path, not a FitRecipe")
        settled = recipe
    else:
        changes = {} if model is None else {"model": os.fspath(model)}
        settled = load_recipe(recipe, tuple(overrides), changes)
    if "engine_options" in options:
        options["engine_options"] = tuple(options["engine_options"])
    chosen = BatchOptions(**options, shard=None if shard is None else parse_shard(shard))
    source = _source(data, data_options, landmark_folder)
    rows = fit_batch(source, output, settled, chosen, Progress.of(progress))
    return BatchTable(rows, Path(output), source)


def load_batch(
    output: str | os.PathLike, data: str | os.PathLike | SubjectSource | None = None
) -> BatchTable:
    """The table of a batch that has been run.

    Args:
        output: its folder; data: the data set, whose photos then come with the results, and what shards have
            done is gathered; None: numbers and faces only, from batch.json.
    Raises:
        InputError: no batch in the folder, or files that cannot be read.
    """
    check_argument("output", output, (str, os.PathLike), "the folder of a batch")
    place = Path(output)
    if data is not None:
        source = source_of(data)
        return BatchTable(collect(source, place), place, source)
    rows = read_report(place)
    if not rows:
        raise InputError(
            f"{place}: holds no batch.json; expected the output of a batch (of shards: give data)"
        )
    return BatchTable(rows, place)


def _source(data: Any, options: Sequence[str], landmark_folder: str | os.PathLike) -> SubjectSource:
    check_argument(
        "data", data, (str, os.PathLike, SubjectSource), "a folder, a table of photos, or KIND:PATH"
    )
    if isinstance(data, SubjectSource):
        if options or landmark_folder:
            raise InputError("data_options and landmark_folder are part of a SubjectSource; give them there")
        return data
    return SubjectSource(os.fspath(data), tuple(options), os.fspath(landmark_folder))
