"""What a fit returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.fitting.detail import personal_model
from fitkit.fitting.head_masks import ENOUGH, HeadMask, find_heads, usable_pixels
from fitkit.fitting.predicted_maps import PredictedMaps
from fitkit.fitting.recipe import MaskOptions
from fitkit.fitting.report import FitReport
from fitkit.io.options import build
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class FitResult:
    """One fitted subject.

    model: the face model (on the CPU, float32); subject: the photos that were fitted;
    state: solution on the CPU, its camera in pixels of the original upright photos, S = 1;
    landmarks: the observed points in the same pixels; report: how good the fit is, in numbers and findings;
    recipe: the resolved recipe; camera_source: per view 'cameras.json', 'exif' or 'estimated'.
    identity_covariance: [K_id, K_id] of the identity coefficients; vertex_sigma: [V] mm, standard deviation
    of the neutral mesh along its normals once it is laid onto the true face (`fitkit.fitting.uncertainty`);
    both None where they cannot be computed (no stage with a least-squares form solved for the identity).
    displacement: [V] mm along the normals of the neutral mesh, positive outwards, what the detail layer adds
    to the model (`fitkit.fitting.detail`); None without it. `vertices`, `neutral` and `landmarks3d` contain
    it. maps: what a network has said beside the scene; None: nothing, or it was a fit.
    heads: what of each photo a parser took for the head while it was fitted, None where it was not asked.
    """

    model: FaceModel
    subject: Subject
    state: SceneState
    landmarks: Landmarks
    report: FitReport
    recipe: dict[str, Any]
    camera_source: tuple[str, ...]
    identity_covariance: Tensor | None = None
    vertex_sigma: Tensor | None = None
    displacement: Tensor | None = None
    maps: PredictedMaps | None = None
    heads: tuple[HeadMask | None, ...] | None = None

    def __repr__(self) -> str:
        expected = self.report.verdict.expected_mm
        return (
            f"FitResult({self.subject.name!r}: {self.status}, "
            + ("" if expected is None else f"expected error {expected:.1f} mm, ")
            + f"{len(self.subject.views)} views, model {self.model.name!r})"
        )

    def _repr_html_(self) -> str:
        """What notebooks show: the verdict, the mesh over the photos, the face."""
        from fitkit.export.pages.notebook import notebook_html

        return notebook_html(self)

    @property
    def status(self) -> str:
        """'ok', 'doubtful' or 'failed'."""
        return self.report.status

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong: one sentence for each reason why the status is not 'ok'."""
        return self.report.warnings

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about the fit, but nothing wrong: what was assumed or left out. What is wrong
        are the `warnings`."""
        return self.report.remarks

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The report as the content of metrics.json: numbers, texts, lists and dictionaries."""
        return self.report.to_metrics()

    @cached_property
    def personal_model(self) -> FaceModel:
        """The face model with the displacement added to its mean; the model itself without one."""
        return (
            self.model
            if self.displacement is None
            else personal_model(self.model, self.state, self.displacement)
        )

    def texture_mask(self, view: int) -> np.ndarray | None:
        """The pixels of a photo that texture, albedo and light are taken from, [H, W] bool, None = all of it;
        what `masks.texture` of the recipe says.

        Raises:
            InputError: it names weights of a parser that cannot be used.
        """
        wanted = self._masks.texture
        if wanted == "none":
            return None
        head = self._heads[view] if wanted == "auto" else None
        return usable_pixels(self.subject.views[view], head, inwards=True)

    @property
    def _masks(self) -> MaskOptions:
        return build(MaskOptions, self.recipe.get("masks") or {}, "masks", ".")

    @cached_property
    def _heads(self) -> list[HeadMask]:
        """Those that the fit has found, and of other views found now."""
        known = self.heads or (None,) * len(self.subject.views)
        rows = [i for i, head in enumerate(known) if head is None]
        views = [self.subject.views[i] for i in rows]
        found = dict(zip(rows, find_heads(views, self._points.select(rows), self.model, self._masks.weights)))
        return [found[i] if head is None else head for i, head in enumerate(known)]

    @property
    def _points(self) -> Landmarks:
        """What says where the heads are, px of the photos: the landmarks that were fitted; where there are
        hardly any, those of the mesh."""
        seen, model, state = self.landmarks, self.personal_model, self.state
        with torch.no_grad():
            mesh = model.landmarks.points(state.vertices(model), model.triangles)
            points, in_front = state.camera.project(state.pose.apply(mesh))
        own = seen.valid.sum(1, keepdim=True) >= ENOUGH
        valid = torch.where(own, seen.valid, model.landmarks.present & in_front)
        ones = torch.ones(points.shape[:2])
        return Landmarks(torch.where(own[..., None], seen.points.to(points), points), ones, valid, ones)

    @property
    def neutral(self) -> Tensor:
        """[V, 3] mm: the person without expression, head frame."""
        return self.state.neutral(self.personal_model)[0]

    @property
    def vertices(self) -> Tensor:
        """[B, V, 3] mm: each view's mesh with its expression, head frame."""
        return self.state.vertices(self.personal_model)

    @property
    def landmarks3d(self) -> Tensor:
        """[68, 3] mm: the iBUG points on the neutral mesh, head frame; NaN for those that the model lacks."""
        marks = self.model.landmarks
        points = marks.points(self.neutral[None], self.model.triangles)[0]
        return points.masked_fill(~marks.present[:, None], float("nan"))

    def save(self, output, overwrite: bool = False, light: bool = False, pictures: bool = True):
        """Write the result folder (meshes, parameters, cameras, pictures, report); see `fitkit.export`.
        light, pictures: see `write_result`."""
        from fitkit.export.folder import write_result

        return write_result(self, output, overwrite=overwrite, light=light, pictures=pictures)
