"""Our own benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fitkit.data.samples import EvaluationSample, ScanTruth
from fitkit.evaluate.bench.photos import photos_at
from fitkit.evaluate.bench.scores import COVERAGE, MILLIMETRES, score_neutral
from fitkit.evaluate.bench.truth import load_truth, subject_names
from fitkit.evaluate.distances import scan_to_surface
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import SEVEN, Protocol, Scored, error_map
from fitkit.evaluate.regions import region_errors
from fitkit.evaluate.scan_to_mesh import now_crop
from fitkit.io.options import Natural

REGIONS = ("nose", "mouth", "eyes", "cheeks", "mean")


@dataclass(frozen=True)
class BenchOptions:
    subjects: tuple[str, ...] = ()  # folders; empty: all
    views: tuple[Natural, ...] = ()  # positions of the photos that are predicted from; empty: all


class Bench(Protocol):
    """Neutral faces of people whose shape is known.

    Data: SUBJECT/ with photos and ground_truth/SUBJECT/ with mesh, landmarks and face region, as `fitkit
    synth` writes them.
    Metric: the errors of `fitkit bench accuracy`: scan-to-mesh distance after the alignment of NoW from
    points spread evenly over the
        visible skin, vertex errors, size, coverage of the error bars; and by region: nose, mouth, eyes,
        cheeks.
    Source: ours, after NoW and REALY (`evaluate.bench.scores`, `evaluate.regions`).
    """

    options = BenchOptions
    units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(MILLIMETRES, "mm"),
        "size_percent": "%",
        **dict.fromkeys(COVERAGE, "share"),
        **dict.fromkeys((f"region_{name}" for name in REGIONS), "mm"),
    }

    def samples(self, folder, options: BenchOptions) -> list[EvaluationSample]:
        root, names = Path(folder), subject_names(folder, options.subjects)
        return [
            EvaluationSample(
                name,
                partial(photos_at, root / name, options.views or None),
                partial(load_truth, root / "ground_truth" / name),
                name.rpartition("_")[0],
            )
            for name in names
        ]

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: BenchOptions, context: Any
    ) -> Scored:
        truth = sample.truth()
        prediction.need("vertices", "landmarks")
        neutral = score_neutral(prediction, truth)
        regions = region_errors(
            prediction.vertices, prediction.triangles, prediction.landmarks, truth.vertices, truth.landmarks
        )
        points = truth.landmarks[SEVEN]
        crop = now_crop(truth.vertices, points)
        distances = scan_to_surface(truth.vertices[crop], neutral.aligned, prediction.triangles)
        scan = ScanTruth(truth.vertices, truth.triangles)
        return Scored(
            neutral.values | {f"region_{name}": error for name, error in regions.items()},
            {},
            error_map(scan, crop, distances, points),
        )


PROTOCOL = Bench()
