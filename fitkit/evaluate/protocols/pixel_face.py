"""Pixel-Face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fitkit.data import pixel_face
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.pixel_face import scan_errors
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import SEVEN, Protocol, Scored, error_map, front_view
from fitkit.io.options import Positive


class PosedScan(Protocol):
    """Of the face with its expression against a scan: Pixel-Face and Bosphorus."""

    units: ClassVar[dict[str, str]] = dict.fromkeys(("s2m_mean", "s2m_rmse", "p2plane_rmse"), "mm")

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: Any, context: Any
    ) -> Scored:
        prediction.need("posed", "posed_landmarks", "views")
        truth, i = sample.truth(), front_view(prediction)
        got = scan_errors(
            prediction.posed[i],
            prediction.triangles,
            prediction.posed_landmarks[i][SEVEN],
            truth.vertices,
            truth.points,
        )
        return Scored(
            {"s2m_mean": got.s2m_mean, "s2m_rmse": got.s2m_rmse, "p2plane_rmse": got.p2plane_rmse},
            {},
            error_map(truth, got.crop, got.fit.distances, truth.points),
        )


@dataclass(frozen=True)
class PixelFaceOptions:
    split: str = "val"  # folder
    unit_mm: Positive = 1.0  # millimetres of the meshes' unit
    upright: bool = False  # the photos need no turning
    views: tuple[str, ...] = pixel_face.VIEWS  # the photos that a prediction sees


class PixelFace(PosedScan):
    """Posed faces from three views against the mesh of the same moment.

    Data: Pixel-Face (Lyu et al., 2020), people with 23 expressions from a frontal and two side cameras.
    Metric: NoW's crop and alignment with the expression: `s2m_mean` (what the code behind DF-MVR's "RMSE"
    computes), `s2m_rmse`,
        `p2plane_rmse`, mm.
    Source: DF-MVR (Zhao et al., 2025) (`evaluate.pixel_face.scan_errors`).
    """

    options = PixelFaceOptions
    dataset = pixel_face.PIXEL_FACE

    def samples(self, folder, options: PixelFaceOptions) -> list[EvaluationSample]:
        return pixel_face.pixel_face_samples(
            folder, options.split, options.unit_mm, options.upright, options.views
        )


PROTOCOL = PixelFace()
