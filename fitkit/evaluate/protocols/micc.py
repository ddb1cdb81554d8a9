"""MICC Florence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fitkit.data import micc
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.micc import MiccErrors, micc_errors
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import SEVEN, Protocol, Scored, error_map, front_view
from fitkit.io.options import Length, Range


@dataclass(frozen=True)
class MiccOptions:
    sequences: Annotated[tuple[str, ...], Length(1)] = micc.SEQUENCES  # folders of frames
    frames: Annotated[int, Range(1, 1000)] = 3  # how many of a sequence are predicted from
    with_scale: bool = True  # of the alignment


class Micc(Protocol):
    """Neutral faces from the frames of a video against a frontal scan.

    Data: MICC Florence (Bagdanov et al., J-HGBU 2011), 53 people, two video sequences each.
    Metric: mean point-to-plane distance, mm, after similarity ICP within 95 mm of the nose tip: of the
    predicted vertices from the
        scan, of the scan's from the prediction, and the mean of both; expression 0, and with the fitted
        expression beside it.
    Source: Genova et al., CVPR 2018, as MVF-Net and PGN use it (`evaluate.micc.micc_errors`).
    """

    options = MiccOptions
    units: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "p2plane_symmetric",
            "p2plane_prediction_to_scan",
            "p2plane_scan_to_prediction",
            "p2plane_symmetric_with_expression",
        ),
        "mm",
    )
    dataset = micc.MICC

    def samples(self, folder, options: MiccOptions) -> list[EvaluationSample]:
        return micc.micc_samples(folder, options.sequences, options.frames)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: MiccOptions, context: Any
    ) -> Scored:
        prediction.need("vertices", "points")
        truth = sample.truth()

        def errors(vertices, points) -> MiccErrors:
            return micc_errors(
                vertices,
                prediction.triangles,
                points,
                truth.vertices,
                truth.triangles,
                truth.points,
                truth.more["nose_tip"],
                prediction.outer,
                options.with_scale,
            )

        neutral, expressive = errors(prediction.vertices, prediction.points), None
        if prediction.posed is not None:
            i = front_view(prediction)
            expressive = errors(prediction.posed[i], prediction.posed_landmarks[i][SEVEN]).symmetric
        values = {
            "p2plane_symmetric": neutral.symmetric,
            "p2plane_prediction_to_scan": neutral.prediction_to_scan,
            "p2plane_scan_to_prediction": neutral.scan_to_prediction,
            "p2plane_symmetric_with_expression": expressive,
        }
        return Scored(values, {}, error_map(truth, neutral.crop, neutral.distances, truth.points))


PROTOCOL = Micc()
