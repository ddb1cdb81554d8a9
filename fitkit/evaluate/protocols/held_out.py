"""Photos that the fit has not seen, without ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from fitkit.data.samples import EvaluationSample, images_in, people_in
from fitkit.errors import InputError
from fitkit.evaluate.photo_consistency import held_out_errors, identity_spread, share_beyond
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pairs, Pool, Protocol, Rows, Scored
from fitkit.evaluate.tables import mean_or_none
from fitkit.fitting.detail import personal_model
from fitkit.io.options import Natural, Range
from fitkit.io.subject import Subject, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views


@dataclass(frozen=True)
class HeldOutOptions:
    # The photos of a subject are dealt out in turn to so many parts; each part is predicted from the others.
    # 2: two predictions from disjoint photos, whose spread is measured too; 0: every photo by itself.
    folds: Annotated[int, Range(0, 1000)] = 2
    flow: str = "dis"  # estimator
    landmarks: str = "auto"  # source of the points, as in a fit recipe
    people: Natural = 0  # the first so many by name of those with at least 2 photos; 0: all
    skip: Natural = 0  # so many are passed over first


class HeldOut(Protocol):
    """What a face says about photos that it was not made from.

    Data: a subject folder with at least 2 photos, or a folder of such folders; no ground truth.
    Metric: the face is placed in each other photo by its landmarks alone, and the fitted photos are rendered
    into it: colour difference
        (grey levels), share of differing census signs, median flow (px of a 224 px crop), landmark NME (%);
        spread of the identity between both halves, share of coefficients beyond 3 sigma.
    Source: ours (`evaluate.photo_consistency`).
    """

    options = HeldOutOptions
    units: ClassVar[dict[str, str]] = {
        "photo": "grey levels",
        "census": "share",
        "flow": "px",
        "landmarks": "%",
        "covered": "share",
        "beyond_3_sigma": "share",
    }
    drawn_by = ("folds",)

    def samples(self, folder, options: HeldOutOptions) -> list[EvaluationSample]:
        if options.folds == 1:
            raise InputError(f"folds: expected 0 (every photo by itself) or at least 2, got {options.folds}")
        samples = []
        for person in people_in(folder, 2)[options.skip :][: options.people or None]:
            count = min(options.folds or len(images_in(person)), len(images_in(person)))
            samples += [
                EvaluationSample(
                    f"{person.name}/fold{k}",
                    partial(_fold, person, k, count, True),
                    partial(_fold, person, k, count, False),
                    person.name,
                )
                for k in range(count)
            ]
        if not samples:
            raise InputError(
                f"{folder}: expected a subject folder with at least 2 photos, or a folder of such folders"
                + (f" with more than the {options.skip} people that are skipped" if options.skip else "")
            )
        return samples

    def prepare(self, pairs: Pairs, options: HeldOutOptions, model: str) -> FaceModel:
        return load_model(model)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: HeldOutOptions, context: FaceModel
    ) -> Scored:
        prediction.need("parameters")
        parameters, model = prediction.parameters(), context
        parameters.check_model(model)
        if parameters.displacement is not None:
            model = personal_model(model, parameters.state, parameters.displacement)
        fitted = sample.subject()
        fitted = replace(fitted, views=tuple(v for v in fitted.views if v.name in parameters.view_names))
        found, _ = detect_landmarks(fitted, options.landmarks)
        held = sample.truth()
        held_found, _ = detect_landmarks(held, options.landmarks)
        held, held_found, _ = usable_views(held, held_found)
        errors = [
            held_out_errors(
                model, parameters.state, fitted.views, found, view, held_found.select([i]), options.flow
            )
            for i, view in enumerate(held.views)
        ]
        values = {
            name: mean_or_none([v for e in errors if (v := getattr(e, name)) is not None])
            for name in ("photo", "census", "flow", "landmarks", "covered")
        }
        code = parameters.state.identity[0].double().numpy()
        return Scored(values | {"beyond_3_sigma": share_beyond(code)}, {"identity": code})

    def summarize(self, rows: Rows, pool: Pool, options: HeldOutOptions) -> dict[str, Any]:
        """Spread of the identity between two fits to disjoint photos, by person and on average."""
        if options.folds != 2:
            return {}
        people: dict[str, list[np.ndarray]] = {}
        for name, code in pool.get("identity", []):
            people.setdefault(name.rpartition("/")[0], []).append(code)
        spread = {name: identity_spread(np.stack(codes)) for name, codes in people.items() if len(codes) == 2}
        return {"identity_spread": spread | {"mean": float(np.mean(list(spread.values())))}} if spread else {}


def _fold(folder: Path, number: int, count: int, fitted: bool) -> Subject:
    subject = load_subject(folder)
    views = tuple(v for i, v in enumerate(subject.views) if (i % count != number) == fitted)
    if not views:
        raise InputError(f"{folder}: expected at least {count} usable photos, got {len(subject.views)}")
    return replace(subject, views=views)


PROTOCOL = HeldOut()
