"""Photos beside the face model in its predicted light."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fitkit.data.samples import EvaluationSample, no_truth, people_in
from fitkit.energies.photo_model import counted_vertices
from fitkit.errors import InputError
from fitkit.evaluate.bench.photos import photos_at
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Pairs, Pool, Protocol, Rows, Scored
from fitkit.evaluate.tables import known
from fitkit.fitting.appearance import crops_of
from fitkit.geometry.spherical_harmonics import white_light
from fitkit.io.options import Natural
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.render.lit import Lit, render_lit
from fitkit.scene.state import SceneState

SIZE = 224  # px of the crops
# Even lights among which the one that suits a photo best is looked for, over the model's albedo.
LEVELS = torch.logspace(-1.2, 0.6, 37, base=10.0)
LEAST_PIXELS = 100


@dataclass(frozen=True)
class LitPhotosOptions:
    views: tuple[Natural, ...] = ()  # positions of the photos that are predicted from; empty: all
    people: Natural = 0  # the first so many by name; 0: all


class LitPhotos(Protocol):
    """How far a network's albedo and light look like the photos.

    Data: a subject folder, or a folder of such folders; no ground truth.
    Metric: colour difference of the photo and the model in its place, grey levels (0 to 255), mean over the
        colours and over the pixels of the face, eyes and mouth included, that the photo's mask leaves; mean
        over the photos. `lit`: albedo and light as predicted; `even`: the mean albedo in an even white light,
        for each photo as bright as suits it best; `plain`: the mean albedo itself. The mesh is the predicted
        one in all three.
    Source: ours, after the photo loss of DF-MVR (eq. 2).
    """

    options = LitPhotosOptions
    units: ClassVar[dict[str, str]] = dict.fromkeys(("lit", "even", "plain"), "grey levels")
    drawn_by: ClassVar[tuple[str, ...]] = ("views",)

    def samples(self, folder: str | os.PathLike, options: LitPhotosOptions) -> list[EvaluationSample]:
        people = people_in(folder, 1)[: options.people or None]
        return [
            EvaluationSample(p.name, partial(photos_at, Path(p), options.views or None), no_truth)
            for p in people
        ]

    def prepare(self, pairs: Pairs, options: LitPhotosOptions, model: str) -> FaceModel:
        return load_model(model)

    def score(
        self,
        sample: EvaluationSample,
        prediction: PredictedFace,
        options: LitPhotosOptions,
        context: FaceModel,
    ) -> Scored:
        prediction.need("parameters", "views")
        parameters, model = prediction.parameters(), context
        parameters.check_model(model)
        state = parameters.state
        if state.illumination.shape[-1] != 3:
            raise InputError(
                f"{sample.id}: the prediction has no light in colours; expected that of a network that "
                "predicts it, as dfmvr does"
            )
        views = {view.name: view for view in sample.subject().views}
        seen, state = crops_of(
            model,
            state,
            [views[str(name)] for name in prediction.views],
            [views[str(name)].mask for name in prediction.views],
            SIZE,
        )
        lit = render_lit(model, state, seen.size)
        face = counted_vertices(model, "front")[model.triangles].any(1)[lit.triangle.clamp_min(0)]
        counts = lit.covered & face & seen.mask
        if not bool((counts.sum((1, 2)) >= LEAST_PIXELS).all()):
            raise InputError(
                f"{sample.id}: the predicted face covers fewer than {LEAST_PIXELS} pixels of a photo"
            )
        bare, photos = state.replace(albedo=None), seen.images
        errors = {"lit": _errors(lit, photos, counts)}
        even = [_errors(_in_even_light(model, bare, lit, float(level)), photos, counts) for level in LEVELS]
        errors["even"] = torch.stack(even).amin(0)
        errors["plain"] = _errors(_in_even_light(model, bare, lit, 1.0), photos, counts)
        return Scored({name: float(values.mean()) for name, values in errors.items()})

    def summarize(self, rows: Rows, pool: Pool, options: LitPhotosOptions) -> dict[str, Any]:
        """The error in the predicted light over those of the mean albedo."""
        means = {name: known(rows, name) for name in self.units}
        if not len(means["lit"]):
            return {}
        lit = float(means["lit"].mean())
        return {f"lit over {name}": lit / float(means[name].mean()) for name in ("even", "plain")}


def _in_even_light(model: FaceModel, state: SceneState, drawn: Lit, level: float) -> Lit:
    """The mean albedo in white light of the same strength from everywhere; `drawn`: the same mesh."""
    light = level * white_light(state.illumination)
    return render_lit(
        model, state.replace(illumination=light), drawn.covered.shape[-2:], triangle=drawn.triangle
    )


def _errors(drawn: Lit, photos: Tensor, counts: Tensor) -> Tensor:
    """[B] grey levels over the pixels that count [B, H, W] bool."""
    apart = 255 * (drawn.colors - photos).abs().mean(1)
    return (apart * counts).sum((1, 2)) / counts.sum((1, 2))


PROTOCOL = LitPhotos()
