"""Which part of a prediction its error comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fitkit.data.aflw2000 import aflw2000_samples
from fitkit.data.samples import EvaluationSample
from fitkit.data.w300lp import W300LP, W300LPOptions
from fitkit.errors import InputError
from fitkit.evaluate.bench.photos import photos_at
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.aflw2000 import nme_2d
from fitkit.evaluate.protocols.base import Pairs, Pool, Protocol, Rows, Scored
from fitkit.evaluate.tables import known
from fitkit.fitting.initialize import to_photos
from fitkit.io.options import Natural
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState
from fitkit.synth.dataset import SynthFolder, is_synth_folder, subjects_in

PARTS = ("pose", "identity", "expression")
NAMES = {part: f"nme_2d_true_{part}" for part in PARTS}


@dataclass(frozen=True)
class TruePartsOptions:
    # Of AFLW2000-3D: folder with 3DDFA's Model_Shape.mat and Model_Exp.mat, which turn its labels into
    # coefficients of a face model of the same mesh
    bfm: str = ""
    # Of `fitkit synth`: positions of the photos that are predicted from; empty: all
    views: tuple[Natural, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """Where the true scene of a sample is: the subject or picture `name` of the data set in `folder`."""

    folder: str
    bfm: str
    name: str

    def state(self, model: FaceModel) -> SceneState:
        """It, in px of the photos, one row for each photo of the sample.

        Raises:
            InputError: labels that cannot be read, or of another face model.
        """
        data = _labelled(self.folder, self.bfm, model)
        index = next(i for i, known in enumerate(data.ids) if known.partition("/")[0] == self.name)
        sample = data[index]
        labels = sample.truth
        if labels is None or labels.state is None or not set(PARTS) <= set(labels.known):
            raise InputError(f"{self.folder}: the labels of {sample.id} do not tell {', '.join(PARTS)}")
        return to_photos(labels.state, sample.observations)


@lru_cache(maxsize=2)
def _labelled(folder: str, bfm: str, model: FaceModel) -> SynthFolder | W300LP:
    if is_synth_folder(folder):
        return SynthFolder(folder, model, labels=())
    return W300LP(Path(folder), W300LPOptions(bfm=bfm), model)


class TrueParts(Protocol):
    """What it brings to have the true pose, the true identity or the true expression in the place of the
    predicted one.

    Data: people of `fitkit synth`, of the predictor's face model; or AFLW2000-3D with options.bfm and a face
    model of its mesh.
    Metric: distance of the predicted 68 points of the face model from the true ones in the picture, over the
    square root of the true points' box, %, mean over the photos: `nme_2d` as predicted, `nme_2d_true_PART`
    with this one part true (the pose together with the camera) and the others as predicted.
    Source: figure 1 of PGN (Liu et al., ACCV 2020).
    """

    options = TruePartsOptions
    units: ClassVar[dict[str, str]] = dict.fromkeys(("nme_2d", *NAMES.values()), "%")
    drawn_by: ClassVar[tuple[str, ...]] = ("views",)

    def samples(self, folder: str | os.PathLike, options: TruePartsOptions) -> list[EvaluationSample]:
        where = os.fspath(folder)
        if is_synth_folder(where):
            return [
                EvaluationSample(
                    name,
                    partial(photos_at, Path(where) / name, options.views or None),
                    partial(Labelled, where, "", name),
                )
                for name in subjects_in(where)
            ]
        if not options.bfm:
            raise InputError(
                f"{where}: expected a folder of fitkit synth; of AFLW2000-3D give options.bfm=DIR with "
                "3DDFA's Model_Shape.mat and Model_Exp.mat, which make coefficients of its labels"
            )
        return [
            EvaluationSample(s.id, s.subject, partial(Labelled, where, options.bfm, s.id), s.group)
            for s in aflw2000_samples(where)
        ]

    def prepare(self, pairs: Pairs, options: TruePartsOptions, model: str) -> str:
        return model

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: TruePartsOptions, context: str
    ) -> Scored:
        prediction.need("parameters", "views")
        model, mine = load_model(context), prediction.parameters()
        mine.check_model(model)
        truth = sample.truth().state(model)
        names = [v.name for v in sample.subject().views]
        if not options.views and len(names) != truth.num_views:
            raise InputError(
                f"{sample.id}: expected {truth.num_views} photos, as many as labels, got {len(names)}"
            )
        rows = [names.index(str(name)) for name in prediction.views]
        truth = truth.select([options.views[r] for r in rows] if options.views else rows)
        values: dict[str, float | None] = {"nme_2d": _error(model, mine.state, truth)}
        for part, name in NAMES.items():
            values[name] = _error(model, with_true(mine.state, truth, part), truth)
        return Scored(values)

    def summarize(self, rows: Rows, pool: Pool, options: TruePartsOptions) -> dict[str, Any]:
        """By how many per cent points the error falls with each true part, and how often more the pose brings
        than the better of the other two; over the samples that were scored."""
        means = {name: known(rows, name) for name in self.units}
        if not len(means["nme_2d"]):
            return {}
        before = means["nme_2d"].mean()
        gain = {part: float(before - means[name].mean()) for part, name in NAMES.items()}
        out: dict[str, Any] = {f"gain of the true {part}": value for part, value in gain.items()}
        other = max(gain["identity"], gain["expression"])
        return out | ({"pose over the others": gain["pose"] / other} if other > 0 else {})


def with_true(state: SceneState, truth: SceneState, part: str) -> SceneState:
    """A scene of one person with one part of another one of the same views: 'pose' with the camera,
    'identity', or 'expression' with the joints."""
    if part == "pose":
        return state.replace(pose=truth.pose, camera=truth.camera)
    if part == "identity":
        return state.replace(identity=truth.identity)
    return state.replace(expression=truth.expression, joints=truth.joints)


def _error(model: FaceModel, state: SceneState, truth: SceneState) -> float:
    """Mean over the views of `nme_2d`."""
    basis, present = model.landmark_basis, model.landmarks.present.numpy()
    ours, true = (project_points(basis, s).pixels.double().numpy() for s in (state, truth))
    errors = [nme_2d(np.where(present[:, None], a, np.nan), b) for a, b in zip(ours, true)]
    return float(np.mean(errors))


PROTOCOL = TrueParts()
