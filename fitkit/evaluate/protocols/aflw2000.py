"""AFLW2000-3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fitkit.data import aflw2000
from fitkit.data.samples import EvaluationSample
from fitkit.errors import DegenerateInputError, InputError
from fitkit.evaluate.landmark_accuracy import normalized_mean_error
from fitkit.evaluate.nme3d import nme3d_icp
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pool, Protocol, Rows, Scored
from fitkit.evaluate.tables import known
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.observe.landmarks.types import box_size


@dataclass(frozen=True)
class AflwOptions:
    model: str = ""  # folder with 3DDFA's Model_Shape.mat and Model_Exp.mat for NME_3d; empty: NME_2d only
    vertices: str = ""  # .npy of the dense vertices that count; empty: all


class Aflw2000(Protocol):
    """Landmarks and dense faces in photos of all head poses.

    Data: AFLW2000-3D (Zhu et al., CVPR 2016), 2000 photos with 68 points in 3D and, with 3DDFA's model, dense
    faces.
    Metric: `nme_2d`: mean distance of the 68 points in the picture over the square root of their box's area,
    by yaw; `nme_3d`: of
        the dense vertices over the outer interocular distance after ICP; %. The papers' mean is the mean of
        the yaw bins.
    Source: Zhu et al., TPAMI 2019; PRNet (Feng et al., ECCV 2018).
    """

    options = AflwOptions
    units: ClassVar[dict[str, str]] = {"nme_2d": "%", "nme_3d": "%"}
    dataset = aflw2000.AFLW2000

    def samples(self, folder, options: AflwOptions) -> list[EvaluationSample]:
        return aflw2000.aflw2000_samples(folder, options.model)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: AflwOptions, context: Any
    ) -> Scored:
        prediction.need("pixels")
        truth = sample.truth()
        values: dict[str, float | None] = {"nme_2d": nme_2d(prediction.pixels[0], truth.points)}
        if truth.vertices is not None:
            prediction.need("posed", "focal", "principal")
            dense = truth.vertices
            if options.vertices:
                dense = dense[read_indices(options.vertices, len(dense))]
            surface = _in_picture(prediction)
            surface[:, 2] += (
                dense[:, 2].max() - surface[:, 2].max()
            )  # nose tips at one depth; ICP does the rest
            values["nme_3d"] = 100 * nme3d_icp(surface, prediction.triangles, dense, truth.interocular)
        return Scored(values)

    def summarize(self, rows: Rows, pool: Pool, options: AflwOptions) -> dict[str, Any]:
        """The papers' mean: over the means of the three yaw bins, not over the images."""
        out: dict[str, Any] = {}
        for metric in self.units:
            by_bin = [
                known([r for r in rows if r["group"] == f"yaw {a}-{b}"], metric) for a, b in aflw2000.YAW_BINS
            ]
            bins = [values.mean() for values in by_bin if len(values)]
            if bins:
                out[f"{metric} mean of bins"] = float(np.mean(bins))
                if len(bins) < len(by_bin):
                    out[f"{metric} bins without a sample"] = len(by_bin) - len(bins)
        return out


def nme_2d(predicted: np.ndarray, truth: np.ndarray) -> float:
    """NME_2d in per cent: mean distance of the 68 points [68, 2] px over the square root of the area of the
    true points' box; points that are missing in one of them (NaN) do not count.

    Raises:
        DegenerateInputError: no point that both have.
    """
    a, b = (torch.from_numpy(np.asarray(x, np.float64))[None] for x in (predicted, truth))
    both = ~(a + b).isnan().any(-1)
    if not both.any():
        raise DegenerateInputError("NME_2d: expected points that prediction and labels have, got none")
    return 100 * float(normalized_mean_error(a, b, both, box_size(b)))


def _in_picture(prediction: PredictedFace) -> np.ndarray:
    """The mesh in px of the picture, [V, 3]: x right, y down, z towards the viewer."""
    vertices = prediction.posed[0].astype(np.float64)
    pixels = prediction.camera().project(torch.from_numpy(vertices)[None])[0][0].numpy()
    return np.column_stack([pixels, -vertices[:, 2] * float(prediction.focal[0]) / prediction.middle_depth()])


def read_indices(path: str, count: int) -> np.ndarray:
    """Indices [N] of some of `count` vertices, from a .npy.

    Raises:
        InputError: no such file, or something else in it.
    """
    with foreign_file(path, "cannot be read as vertex indices (.npy)", limit=DATA_BYTES) as file:
        index = file.npy()
    if (
        index.ndim != 1
        or index.dtype.kind not in "iu"
        or not len(index)
        or index.min() < 0
        or index.max() >= count
    ):
        raise InputError(
            f"{path}: expected indices [N] from 0 to {count - 1}, got {index.dtype} {list(index.shape)}"
        )
    return index


PROTOCOL = Aflw2000()
