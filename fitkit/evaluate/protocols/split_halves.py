"""Two halves of each person's photos, without ground truth."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fitkit.data.photo_halves import PhotoHalves, half_samples
from fitkit.data.samples import EvaluationSample
from fitkit.errors import FitkitError, InputError
from fitkit.evaluate import split_halves as metrics
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pairs, Pool, Protocol, Rows, Scored
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model


@dataclass(frozen=True)
class Halves:
    """What the halves have to do with each other. index: row by sample id; own: the numbers that a half has
    by itself; distances along the normals and from point to point [H, H] mm, to the mean face [H] mm; found:
    by the first; point_within [H] mm."""

    model: FaceModel
    index: dict[str, int]
    own: list[dict[str, float]]
    along: np.ndarray
    point: np.ndarray
    from_mean: np.ndarray
    found: metrics.Identification
    point_within: np.ndarray


class SplitHalves(Protocol):
    """Do two faces from disjoint photos of a person agree, and are they told from other people's?

    Data: a folder of subject folders; no ground truth.
    Metric: distance of the two neutral faces (mm), of those of different people, and how often the nearest
    other half is the same
        person's (`evaluate.split_halves.overall_scores`).
    Source: ours; rank-1 identification as in face recognition.
    """

    options = PhotoHalves
    units: ClassVar[dict[str, str]] = metrics.UNITS
    drawn_by = ("photos", "draw", "seed", "min_face_px", "max_face_px", "landmarks")

    def samples(self, folder, options: PhotoHalves) -> list[EvaluationSample]:
        return half_samples(folder, options)

    def prepare(self, pairs: Pairs, options: PhotoHalves, model: str) -> Halves:
        face_model, index, meshes, own = load_model(model), {}, [], []
        for sample, prediction in pairs:
            with suppress(FitkitError):  # told when the sample is scored
                vertices, numbers = _half(prediction, face_model)
                index[sample.id] = len(index)
                meshes.append(torch.from_numpy(vertices.astype(np.float32)))
                own.append(numbers)
        distances = metrics.face_distances(
            torch.stack([*meshes, face_model.mean.float()]), face_model.triangles, face_model.face
        )
        (along, from_mean), (point, _) = ((d[:-1, :-1].numpy(), d[-1, :-1].numpy()) for d in distances)
        people = [_person(i) for i in index]
        found, by_point = (metrics.identify(d, people) for d in (along, point))
        return Halves(face_model, index, own, along, point, from_mean, found, by_point.within)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: PhotoHalves, context: Halves
    ) -> Scored:
        if sample.id not in context.index:
            _half(prediction, context.model)  # says why
        h = context.index[sample.id]
        numbers = {
            "within": context.found.within[h],
            "point_within": context.point_within[h],
            "between": context.found.between[h],
            "nearest_other": context.found.nearest[h],
            "identified": context.found.identified[h],
            "from_mean": context.from_mean[h],
        } | context.own[h]
        return Scored(
            {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()},
            {"along": context.along[h], "point": context.point[h], "from_mean": context.from_mean[h : h + 1]},
        )

    def summarize(self, rows: Rows, pool: Pool, options: PhotoHalves) -> dict[str, Any]:
        """All numbers in one line, how many fits ended how, and the values of each person."""
        ids = [i for i, _ in pool.get("along", [])]
        along, point, from_mean = (
            np.stack([v for _, v in pool[k]]) if ids else np.zeros((0, 0))
            for k in ("along", "point", "from_mean")
        )
        scores = metrics.overall_scores(
            along, point, [_person(i) for i in ids], [_person(r["id"]) for r in rows], from_mean.ravel()
        )
        states = [r["status"] for r in rows]
        return {
            "split halves": scores,
            "fits": {s: states.count(s) for s in ("ok", "doubtful", "failed", "missing")},
            "people": metrics.by_person(rows),
        }


def _half(prediction: PredictedFace, model: FaceModel) -> tuple[np.ndarray, dict[str, float]]:
    """Neutral vertices [V, 3] mm, and what is told of a half by itself; NaN: not in the prediction."""
    prediction.need("vertices")
    if prediction.vertices.shape != tuple(model.mean.shape):
        raise InputError(
            f"{prediction.id}: the prediction has {len(prediction.vertices)} vertices, model '{model.name}' "
            f"has {model.num_vertices}; give the model of the predictions with --model"
        )
    code = (
        None if prediction.parameters is None else prediction.parameters().state.identity[0].double().numpy()
    )
    sigma = None if prediction.sigma is None else prediction.sigma[model.face.numpy()]
    return prediction.vertices, {
        "identity_rms": np.nan if code is None else float(np.sqrt(np.square(code).mean())),
        "error_bar": np.nan if sigma is None else float(np.median(sigma)),
    }


def _person(sample_id: str) -> str:
    return sample_id.rpartition("/")[0]


PROTOCOL = SplitHalves()
