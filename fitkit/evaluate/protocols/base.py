"""What every evaluation protocol is: which samples it has, what it measures on one, and how it sums up."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.scan_to_mesh import NOW_POINTS

SEVEN = list(NOW_POINTS)
Rows = Sequence[dict[str, Any]]
Pool = dict[str, list[tuple[str, np.ndarray]]]  # name -> (sample id, values) of every scored sample
Pairs = Iterable[tuple[EvaluationSample, PredictedFace]]


@dataclass(frozen=True)
class NoOptions:
    """No options."""


@dataclass(frozen=True)
class ErrorMap:
    """A true surface with the error of its vertices: vertices [V, 3] mm, triangles [F, 3], errors [V] mm, NaN
    = not scored; points [7, 3] mm: NOW_POINTS, which say where the front is."""

    vertices: np.ndarray
    triangles: np.ndarray
    errors: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Scored:
    """values: one number for each metric, None where it does not apply; pooled: arrays that are summed up
    over all samples."""

    values: dict[str, float | None]
    pooled: dict[str, np.ndarray] = field(default_factory=dict)
    picture: ErrorMap | None = None


class Scorer(ABC):
    """What turns a prediction into numbers. scores_failed: a face is measured too where its fit says that it
    failed."""

    scores_failed: ClassVar[bool] = False

    @abstractmethod
    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: Any, context: Any
    ) -> Scored:
        """The numbers of one sample.

        Args:
            context: what `prepare` returned.
        Raises:
            FitkitError: the prediction lacks what is needed, or the truth cannot be read.
        """

    def prepare(self, pairs: Pairs, options: Any, model: str) -> Any:
        """What is needed before the first sample is scored; can be pickled.

        Args:
            pairs: all samples with a usable prediction; model: name or path of the face model.
        """
        return None


class Protocol(Scorer):
    """One way to measure faces. Each has a file of its own in this folder, whose name is the protocol's; it
    ends with `PROTOCOL = ...`, and its class says in the docstring what Data it needs, what the Metric is,
    and the Source of it.

    options: dataclass of what a recipe may set; units: metric -> unit, in the order of the table; dataset:
    where its data comes from (None: ours); drawn_by: options that say which photos a sample of the same id is
    made of: predictions made under others are not gone on with.
    """

    options: ClassVar[type] = NoOptions
    units: ClassVar[dict[str, str]]
    dataset: ClassVar[DataSet | None] = None
    drawn_by: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def samples(self, folder: str | os.PathLike, options: Any) -> list[EvaluationSample]:
        """What is predicted and scored. Samples can be pickled: their functions are not made on the spot.

        Raises:
            InputError: no such folder, or another layout than the protocol's.
        """

    def summarize(self, rows: Rows, pool: Pool, options: Any) -> dict[str, Any]:
        """What the means do not say; pool: the `pooled` values of all samples."""
        return {}


def front_view(prediction: PredictedFace) -> int:
    """The view named 'front', or the first."""
    names = [str(n) for n in prediction.views]
    return names.index("front") if "front" in names else 0


def error_map(scan: ScanTruth, index: np.ndarray, errors: np.ndarray, points: np.ndarray) -> ErrorMap:
    """The errors [N] mm of the scan's vertices `index` [N]; points [7, 3] mm."""
    full = np.full(len(scan.vertices), np.nan)
    full[index] = errors
    return ErrorMap(scan.vertices, scan.triangles, full, points)


def pooled(pool: Pool, name: str) -> np.ndarray | None:
    """The values of all samples one after the other; None without any."""
    parts = [values for _, values in pool.get(name, [])]
    return np.concatenate(parts) if parts else None
