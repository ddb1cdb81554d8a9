"""The detail layer: a smooth displacement of the skin beyond the span of the face model, from dense matches between the photos."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.displacement import DisplacementPrior, displacement_equations, solve_displacement
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages, FlowOptions
from fitkit.energies.kernels import Kernel
from fitkit.errors import InputError
from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class DetailFlow(FlowOptions):
    """More matches than in the stages, and from pairs of views farther apart, whose parallax shows more of the depth."""

    points: int = 2000
    neighbors: int = 2
    max_angle_deg: float = 180.0
    both_ways: int = 14


@dataclass(frozen=True)
class DetailOptions:
    """enabled: solve the displacement after the last stage; sigma_mm: its standard deviation before any evidence;
    length_mm: the distance at which its correlation has fallen to 0.14; weight: independent measurements that `flow.points`
    matches, all of an ordered pair of views, are worth; kernel: radius in sigmas of `flow`; refresh: how often the matches are computed anew; iterations: Gauss-Newton steps for
    each; refits: how often the last stage and the displacement are solved again; flow: the matches, as of energy flow_corr."""

    enabled: bool = False
    sigma_mm: float = 1.0
    length_mm: float = 40.0
    weight: float = 300.0
    kernel: Kernel = Kernel("gm", 3.0)
    refresh: int = 2
    iterations: int = 2
    refits: int = 1
    flow: DetailFlow = DetailFlow()

    def __post_init__(self):
        for name in ("sigma_mm", "length_mm", "weight"):
            if not getattr(self, name) > 0:
                raise InputError(f"detail: {name}: expected a number > 0, got {getattr(self, name)}; detail.enabled=false switches it off")
        for name in ("refresh", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"detail: {name}: expected at least 1, got {getattr(self, name)}")
        if self.refits < 0:
            raise InputError(f"detail: refits: expected at least 0, got {self.refits}")


@dataclass(frozen=True)
class Detail:
    """displacement: [V] mm along the normals of the neutral mesh, positive outwards, on the CPU; metrics: numbers for
    metrics.json; warning: why there is none, or empty."""

    displacement: Tensor
    metrics: dict[str, Any]
    warning: str = ""


def personal_model(model: FaceModel, state: SceneState, displacement: Tensor) -> FaceModel:
    """The face model with a person's displacement [V] mm added to its mean, so that all its shapes carry it.

    The offset lies along the normals of the person's neutral mesh and is the same vector in the head frame for every
    expression: that of the neutral skin, moved along.
    """
    normal = vertex_normals(state.neutral(model)[:1], model.triangles)[0]
    return replace(model, mean=model.mean + displacement.to(normal)[:, None] * normal)


def solve_detail(model: FaceModel, state: SceneState, observations: Observations, estimator: FlowEstimator, options: DetailOptions,
                 seed: int = 0, start: Tensor | None = None) -> Detail:
    """The displacement that explains the matches between all photos, for the state as it is: maximum a posteriori.

    Gauss-Newton on sum of robust flow residuals + displacement prior; poses, cameras and coefficients stay. Where no match says
    anything it falls back to 0 within about length_mm, and without any it is exactly 0. start: [V] mm, an earlier
    solution, which needs no second set of matches.
    Source: the sum of a low-rank statistical model and a local smooth kernel: Luethi et al., "Gaussian process morphable models",
    TPAMI 2018; prior: `DisplacementPrior`.
    """
    V = model.num_vertices
    if state.num_views < 2:
        return Detail(torch.zeros(V), _metrics(model, np.zeros(V)),
                      "detail: one photo has no matches with another, so the displacement stays 0; add photos from the sides")
    with torch.no_grad():
        neutral = state.neutral(model)[0]
        normal = vertex_normals(neutral[None], model.triangles)[0]
        prior = DisplacementPrior.of(neutral.double().cpu().numpy(), model.triangles.cpu().numpy(), model.skin.cpu().numpy(),
                                     options.sigma_mm, options.length_mm)
        flow = replace(options.flow, seed=seed, hold=False)
        energy = FlowCorrespondence(model, flow, estimator, flow.sigma_px * observations.pixel_unit, FlowImages.of(observations, flow))
        d, before = np.zeros(V) if start is None else start.double().numpy(), None
        for _ in range(options.refresh if start is None else 1):
            energy = _on_face(replace(energy, model=_displaced(model, d, normal)).freeze(state, observations))
            before = energy.residuals(state, observations) if before is None else before
            for _ in range(options.iterations):
                energy = replace(energy, model=_displaced(model, d, normal))
                matrix, gradient = displacement_equations(*energy.linearize_surface(state), normal, options.kernel, options.weight / flow.points)
                d = d - solve_displacement(matrix + prior.precision, gradient + prior.precision @ d, prior.free)
        residuals = replace(energy, model=_displaced(model, d, normal)).residuals(state, observations)
        unit = energy.sigma_px / observations.scale[energy.matches.view_b]
    warning = "" if bool(residuals.valid.any()) else "detail: no matches between the photos, so the displacement stays 0"
    metrics = _metrics(model, d, len(unit), int(residuals.valid.sum()), _median_px(before, unit), _median_px(residuals, unit))
    return Detail(torch.from_numpy(d).float(), metrics, warning)


def _on_face(energy: FlowCorrespondence) -> FlowCorrespondence:
    """Only the matches on the narrow face: the neck does not turn with the head, and a displacement would make up for it."""
    model, matches = energy.model, energy.matches
    inside = model.face[model.triangles[matches.triangle]].all(-1)
    return replace(energy, matches=replace(matches, valid=matches.valid & inside))


def _displaced(model: FaceModel, d: np.ndarray, normal: Tensor) -> FaceModel:
    return replace(model, mean=model.mean + torch.from_numpy(d).to(normal)[:, None] * normal)


def _median_px(residuals: Residuals, unit: Tensor) -> float | None:
    """Median length of the residuals in pixels of the photos; unit: [G] pixels of one sigma."""
    length = (residuals.value.norm(dim=-1) * unit[:, None])[residuals.valid]
    return float(length.median()) if len(length) else None


def _metrics(model: FaceModel, d: np.ndarray, pairs: int = 0, matches: int = 0, before: float | None = None,
             after: float | None = None) -> dict[str, Any]:
    """What metrics.json says about the displacement d [V] mm."""
    face = np.abs(d[model.face.cpu().numpy()])
    return {"mean_mm": float(face.mean()), "median_mm": float(np.median(face)), "percentile_95_mm": float(np.percentile(face, 95)),
            "pairs": pairs, "matches": matches, "residual_before_px": before, "residual_after_px": after}
