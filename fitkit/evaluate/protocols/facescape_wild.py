"""FaceScape, pictures in the wild."""

from __future__ import annotations

from typing import Any

from fitkit.data import facescape
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.facescape import align_wild, wild_frame
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import NoOptions, Scored
from fitkit.evaluate.protocols.facescape_lab import FaceScape


class FaceScapeWild(FaceScape):
    """Posed faces from single pictures against registered scans.

    Data: FaceScape benchmark, FS-Wild: rendered pictures with scans in their frame.
    Metric: as `facescape_lab`; only the depth is fixed.
    Source: Zhu et al., TPAMI 2023, and its public evaluator (`evaluate.facescape`).
    """

    def samples(self, folder, options: NoOptions) -> list[EvaluationSample]:
        return facescape.wild_samples(folder)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: NoOptions, context: Any
    ) -> Scored:
        prediction.need("posed", "focal", "principal", "sizes")
        truth = sample.truth()
        placed = wild_frame(
            prediction.posed[0],
            float(prediction.focal[0]) / prediction.middle_depth(),
            prediction.principal[0],
            tuple(prediction.sizes[0]),
        )
        scan, ours = align_wild(
            truth.vertices, truth.triangles, placed, prediction.triangles, truth.more["pupil_scale"]
        )
        return self.errors(scan, truth, ours, prediction.triangles)


PROTOCOL = FaceScapeWild()
