"""BU-3DFE."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from fitkit.data import bu3dfe
from fitkit.data.samples import EvaluationSample
from fitkit.errors import FitkitError, InputError
from fitkit.evaluate.depth_range import ScaleShift, average, depth_range_errors, percentiles, scale_shift
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pairs, Pool, Protocol, Rows, Scored, pooled
from fitkit.io.options import Positive, Range
from fitkit.render.rasterizer import interpolate, rasterize

NINE = [36, 39, 42, 45, 30, 31, 35, 48, 54]  # of the 68: as data.bu3dfe.nine_points


@dataclass(frozen=True)
class BuOptions:
    step: Annotated[int, Range(1, 1000)] = 2  # px between the sampled pixels
    reach_mm: Positive = 95.0  # radius around the nose tip of the scan's face region


class Bu3dfe(Protocol):
    """Depth of frontal pictures against scans.

    Data: BU-3DFE (Yin et al., FG 2006), 100 people with 25 expressions.
    Metric: distance of predicted pixels from their partners on the scan, per cent of its depth range, under
    one scale and shift for
        the whole data set: mean, std, median and 90th percentile of each picture, and pooled over all pixels.
    Source: Shu et al., FG 2020, after Sela et al., ICCV 2017 (`evaluate.depth_range`).
    """

    options = BuOptions
    units: ClassVar[dict[str, str]] = dict.fromkeys(
        (f"depth_percent_{k}" for k in ("mean", "std", "median", "p90")), "%"
    )
    dataset = bu3dfe.BU3DFE

    def samples(self, folder, options: BuOptions) -> list[EvaluationSample]:
        return bu3dfe.bu3dfe_samples(folder)

    def prepare(self, pairs: Pairs, options: BuOptions, model: str) -> ScaleShift | None:
        """The mean over the samples of scale and shift from 9 landmarks."""
        maps = []
        for sample, prediction in pairs:
            with suppress(FitkitError):  # told when the sample is scored
                _check(prediction)
                nine = _frame(prediction, prediction.posed_landmarks[0])[NINE]
                maps.append(scale_shift(nine, sample.truth().more["nine"]))
        return average(maps) if maps else None

    def score(
        self,
        sample: EvaluationSample,
        prediction: PredictedFace,
        options: BuOptions,
        context: ScaleShift | None,
    ) -> Scored:
        _check(prediction)
        if context is None:
            raise InputError(
                f"{sample.id}: no prediction has two of the 9 points that tell scale and shift (iBUG "
                f"{', '.join(map(str, NINE))})"
            )
        truth = sample.truth()
        tip = truth.more["nine"][4]
        near = np.linalg.norm(truth.vertices - tip, axis=1) <= options.reach_mm
        depth = float(np.ptp(truth.vertices[near, 2]))
        placed = context.apply(_frame(prediction, _pixels(prediction, options.step)))
        placed = placed[np.linalg.norm(placed - tip, axis=1) <= options.reach_mm]
        if len(placed) < 6:
            raise InputError(
                f"{sample.id}: the prediction has {len(placed)} points within {options.reach_mm:.0f} mm of "
                "the scan's nose tip; is the photo its frontal picture?"
            )
        errors = depth_range_errors(placed, truth.vertices, truth.triangles, depth)
        return Scored(
            {f"depth_percent_{k}": v for k, v in percentiles(errors).items()},
            {"depth_percent": errors.astype(np.float32)},
        )

    def summarize(self, rows: Rows, pool: Pool, options: BuOptions) -> dict[str, Any]:
        """Over all pixels of all images; the means over the images are in the groups."""
        errors = pooled(pool, "depth_percent")
        return {} if errors is None else {"pooled over pixels": percentiles(errors)}


def _check(prediction: PredictedFace) -> None:
    prediction.need("posed", "posed_landmarks", "focal", "principal", "sizes")


def _pixels(prediction: PredictedFace, step: int) -> np.ndarray:
    """The predicted surface at every `step`-th pixel that shows it, [N, 3] mm in the camera frame."""
    triangles, (W, H) = torch.from_numpy(prediction.triangles), (int(v) for v in prediction.sizes[0])
    points = torch.from_numpy(prediction.posed[0]).double()[None]
    fragments = rasterize(prediction.camera().clip(points), triangles, (H, W))
    at = interpolate(fragments, triangles, points)[0, ::step, ::step]
    return at[fragments.covered[0, ::step, ::step]].double().numpy()


def _frame(prediction: PredictedFace, points: np.ndarray) -> np.ndarray:
    """Camera-frame points mm -> the picture: x right, y up, z towards the viewer, all in px, mean depth of
    the mesh at 0.

    One scale and shift are to hold for the whole data set; a fit does not know its distance, so its depth
    starts at the mean.
    """
    depth = float(prediction.posed[0][:, 2].mean())
    scale = float(prediction.focal[0]) / prediction.middle_depth()
    center = np.asarray(prediction.principal[0], np.float64)
    return np.column_stack(
        [points[:, 0] * scale + center[0], -points[:, 1] * scale - center[1], (depth - points[:, 2]) * scale]
    )


PROTOCOL = Bu3dfe()
