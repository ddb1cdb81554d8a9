"""Renders of the Florence scans."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from fitkit.data import florence_renders
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.nme3d import nme3d_icp
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import SEVEN, NoOptions, Protocol, Scored
from fitkit.evaluate.scan_to_mesh import now_crop
from fitkit.geometry.alignment import similarity_align


class FlorenceRenders(Protocol):
    """Posed faces from renders of scans in many poses against the scans.

    Data: own renders of the scans of MICC Florence in the 20 poses of `data.florence_renders.POSES`.
    Metric: mean distance of the scan's face sphere (NoW) from the prediction over the outer interocular
    distance, after ICP
        (`nme_aligned`) and with ICP for the pairs only (`nme_correspondence`). The similarity of 7 landmarks
        comes first, since a fit does not know its size.
    Source: PRNet (Feng et al., ECCV 2018); VRN (Jackson et al., ICCV 2017) (`evaluate.nme3d`).
    """

    units: ClassVar[dict[str, str]] = {"nme_aligned": "share", "nme_correspondence": "share"}
    dataset = florence_renders.RENDERS

    def samples(self, folder, options: NoOptions) -> list[EvaluationSample]:
        return florence_renders.florence_render_samples(folder)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: NoOptions, context: Any
    ) -> Scored:
        prediction.need("posed", "posed_landmarks")
        truth = sample.truth()
        crop = truth.vertices[now_crop(truth.vertices, truth.points)]
        marks, mesh = (
            torch.from_numpy(np.asarray(points, np.float64))[None]
            for points in (prediction.posed_landmarks[0][SEVEN], prediction.posed[0])
        )
        placed = similarity_align(marks, torch.from_numpy(truth.points)[None]).apply(mesh)[0].numpy()
        eyes = float(np.linalg.norm(truth.points[0] - truth.points[3]))
        return Scored(
            {
                "nme_aligned": nme3d_icp(placed, prediction.triangles, crop, eyes),
                "nme_correspondence": nme3d_icp(placed, prediction.triangles, crop, eyes, aligned=False),
            }
        )


PROTOCOL = FlorenceRenders()
