"""FaceScape, pictures of the laboratory, and what both of its protocols share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from fitkit.data import facescape
from fitkit.data.samples import EvaluationSample, ScanTruth
from fitkit.errors import InputError
from fitkit.evaluate.facescape import align_lab, facescape_errors, through_lens
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pool, Protocol, Rows, Scored
from fitkit.io.options import Length, Natural
from fitkit.scene.camera import Camera


class FaceScape(Protocol):
    """What FS-Wild and FS-Lab have in common."""

    units: ClassVar[dict[str, str]] = {"cd": "mm", "mne_facescape": "rad", "mne_true": "rad", "cr": "share"}
    dataset = facescape.FACESCAPE

    def errors(self, scan: np.ndarray, truth: ScanTruth, ours: np.ndarray, triangles: np.ndarray) -> Scored:
        """Of a prediction that is laid onto the scan; both [., 3] mm."""
        got = facescape_errors(
            scan, truth.triangles, ours, triangles, truth.more["rotation"], truth.more["center"]
        )
        return Scored(
            {"cd": got.cd, "mne_facescape": got.mne_facescape, "mne_true": got.mne_true, "cr": got.cr}
        )

    def summarize(self, rows: Rows, pool: Pool, options: Any) -> dict[str, Any]:
        return {"done_percent": 100 * sum(r["status"] not in ("failed", "missing") for r in rows) / len(rows)}


@dataclass(frozen=True)
class LabOptions:
    # lists of view numbers that are predicted from together; empty: the benchmark's single pictures
    views: tuple[Annotated[tuple[Natural, ...], Length(1)], ...] = ()


class FaceScapeLab(FaceScape):
    """Posed faces from pictures of known cameras against scans.

    Data: FaceScape benchmark, FS-Lab: pictures at 11 angles and 3 focal lengths with cameras and scans.
    Metric: CD (mm), CR and normal error (rad) on a cylinder map; pose counts, only the scale about the camera
    is fixed.
        `mne_facescape` has the quirk of the public evaluator, `mne_true` is the angle.
    Source: Zhu et al., TPAMI 2023, and its public evaluator (`evaluate.facescape`).
    """

    options = LabOptions

    def samples(self, folder, options: LabOptions) -> list[EvaluationSample]:
        return facescape.lab_samples(folder, options.views)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: LabOptions, context: Any
    ) -> Scored:
        prediction.need("posed")
        truth, view = sample.truth(), _first_view(sample, prediction)
        K, posed = truth.more["K"], prediction.posed[view]
        if prediction.camera_kind == "orthographic":
            prediction.need("focal", "principal")
            scale = float(prediction.focal[view]) / Camera.REFERENCE_DEPTH
            posed = through_lens(posed, scale, prediction.principal[view], K)
        ours = align_lab(truth.vertices, truth.triangles, posed, prediction.triangles, K)
        return self.errors(truth.vertices, truth, ours, prediction.triangles)


def _first_view(sample: EvaluationSample, prediction: PredictedFace) -> int:
    """Which view of a prediction is the first photo of the sample, in whose camera it is scored. Networks
    with named views have an order of their own; where the names are not those of the photos, the order is
    taken for that of the sample.

    Raises:
        InputError: the photo was left out.
    """
    if prediction.views is None:
        return 0
    photos, names = sample.id.split("+"), list(prediction.views)
    if photos[0] in names:
        return names.index(photos[0])
    if len(names) < len(photos):
        raise InputError(
            f"{sample.id}: it is scored in the camera of its first photo, and the prediction has only "
            f"{', '.join(names)}; put a photo first in options.views that the predictor takes"
        )
    return 0


PROTOCOL = FaceScapeLab()
