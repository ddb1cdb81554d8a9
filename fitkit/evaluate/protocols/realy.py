"""REALY."""

from __future__ import annotations

from typing import Any, ClassVar

from fitkit.data import realy
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import NoOptions, Protocol, Scored


class Realy(Protocol):
    """Neutral meshes for REALY's own evaluator.

    Data: pictures of REALY (Chai et al., ECCV 2022).
    Metric: none here; it is only checked that there is a mesh with its points, its own evaluator scores them
    by region.
    Source: https://realy3dface.com.
    """

    units: ClassVar[dict[str, str]] = {}
    dataset = realy.REALY

    def samples(self, folder, options: NoOptions) -> list[EvaluationSample]:
        return realy.realy_samples(folder)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: NoOptions, context: Any
    ) -> Scored:
        prediction.need("vertices", "points")
        return Scored({})


PROTOCOL = Realy()
