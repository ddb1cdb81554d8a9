"""The NoW benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from fitkit.data import now
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pool, Protocol, Rows, Scored, error_map
from fitkit.evaluate.scan_to_mesh import now_crop, scan_to_mesh
from fitkit.io.options import Length, Positive


@dataclass(frozen=True)
class NowOptions:
    metrical: bool = False  # no scale in the alignment
    unit_mm: Positive = 1.0  # millimetres of the predictions' unit (1000 for metres)
    challenges: Annotated[tuple[str, ...], Length(1)] = now.CHALLENGES  # some of NoW's


class Now(Protocol):
    """Neutral faces from single photos against scans.

    Data: NoW (Sanyal et al., CVPR 2019), its validation set: 20 people, photos of four challenges.
    Metric: distance, mm, of every scan vertex in the face sphere from the prediction after the similarity
    (metrical: rigid motion) that
        minimises it: mean and median of each photo; pooled median, mean, std and cumulative curve over all
        vertices.
    Source: the benchmark's evaluator, https://now.is.tue.mpg.de (`evaluate.scan_to_mesh`).
    """

    options = NowOptions
    units: ClassVar[dict[str, str]] = {"s2m_mean": "mm", "s2m_median": "mm"}
    dataset = now.NOW

    def samples(self, folder, options: NowOptions) -> list[EvaluationSample]:
        return now.now_samples(folder, options.challenges)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: NowOptions, context: Any
    ) -> Scored:
        prediction.need("vertices", "points")
        truth = sample.truth()
        crop = now_crop(truth.vertices, truth.points)
        found = scan_to_mesh(
            options.unit_mm * prediction.vertices,
            prediction.triangles,
            options.unit_mm * prediction.points,
            truth.vertices[crop],
            truth.points,
            with_scale=not options.metrical,
        )
        return Scored(
            {"s2m_mean": found.mean, "s2m_median": found.median},
            {"s2m": found.distances.astype(np.float32)},
            error_map(truth, crop, found.distances, truth.points),
        )

    def summarize(self, rows: Rows, pool: Pool, options: NowOptions) -> dict[str, Any]:
        """NoW's own numbers: over all vertices of all photos, and the cumulative curve to 8 mm."""
        groups = {r["id"]: r["group"] for r in rows}
        out: dict[str, Any] = {}
        for name in ("", *options.challenges):
            parts = [d for i, d in pool.get("s2m", []) if name in ("", groups[i])]
            if parts:
                d = np.concatenate(parts)
                line: dict[str, Any] = {
                    "median": float(np.median(d)),
                    "mean": float(d.mean(dtype=np.float64)),
                    "std": float(d.std(dtype=np.float64)),
                    "vertices": len(d),
                }
                if not name:
                    line["cumulative_percent"] = {
                        f"{x:g} mm": float(100 * (d <= x).mean()) for x in np.arange(0, 8.5, 0.5)
                    }
                out[f"pooled {name}".strip()] = line
        return out


PROTOCOL = Now()
