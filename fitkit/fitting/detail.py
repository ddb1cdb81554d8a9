"""The detail layer: a smooth displacement of the skin beyond the span of the face model, from dense matches
between the photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.displacement import DisplacementPrior, Solve, displacement_equations, factorized
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages, FlowOptions
from fitkit.energies.kernels import Kernel
from fitkit.fitting.report import DetailReport
from fitkit.geometry.normals import vertex_normals
from fitkit.io.options import Natural, Pixels, Positive, Range
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class DetailFlow(FlowOptions):
    """More matches than in the stages, each pair worth as many measurements as its patches are independent:
    on renderings the error of the flow is correlated over some ten pixels, in faces of 300; of photos that
    are enlarged for it, fewer are. In the stages it
    counts for less, since a face model is never exact."""

    size: Pixels = 512
    points: Annotated[int, Range(1, 10**6)] = 3000
    sigma_px: Positive = 0.2
    both_ways: Natural = 0
    patches: Positive = 500.0


@dataclass(frozen=True)
class DetailOptions:
    """Displacement of the skin beyond the face model."""

    enabled: bool = False  # solve it after the last stage
    # Largest standard deviation that it may have before any evidence; the photos choose among it, its half,
    # quarter and eighth, and none at all.
    sigma_mm: Positive = 1.0
    length_mm: Positive = 30.0  # distance at which its correlation has fallen to 0.14
    kernel: Kernel = Kernel("gm", 4.0)  # radius in sigmas of `flow`
    refresh: Annotated[int, Range(1, 1000)] = 2  # how often the matches are computed anew
    iterations: Annotated[int, Range(1, 1000)] = 2  # Gauss-Newton steps for each
    # The matches, as of energy flow_corr, with measured noise: patches above 0.
    flow: DetailFlow = DetailFlow()


@dataclass(frozen=True)
class Detail:
    """displacement: [V] mm along the normals of the neutral mesh, positive outwards; known: [V] in 0..1, the
    share of a displacement of the whole surface around a vertex that the matches would show; both on the CPU;
    report: its numbers."""

    displacement: Tensor
    known: Tensor
    report: DetailReport


def personal_model(model: FaceModel, state: SceneState, displacement: Tensor) -> FaceModel:
    """The face model with a person's displacement [V] mm added to its mean, so that all its shapes carry it.

    The offset lies along the normals of the person's neutral mesh and is the same vector in the head frame
    for every expression: that of the neutral skin, moved along.
    """
    normal = vertex_normals(state.neutral(model)[:1], model.triangles)[0]
    return model.with_mean(model.mean + displacement.to(normal)[:, None] * normal)


@torch.no_grad()
def solve_detail(
    model: FaceModel,
    state: SceneState,
    observations: Observations,
    estimator: FlowEstimator,
    options: DetailOptions,
    seed: int = 0,
) -> Detail:
    """The displacement that explains the matches between the photos, for the state as it is: maximum a
    posteriori.

    Gauss-Newton on sum of robust flow residuals + displacement prior; poses, cameras and coefficients stay.
    Where no match says anything it falls back to 0 within about length_mm. The standard deviation s of the
    prior is the one of the greatest evidence, and where none has more than s = 0, the displacement is exactly
    0: unlike photos, or a person whom the face model shows as well as the matches can tell.
    Source: the sum of a low-rank statistical model and a local smooth kernel: Luethi et al., "Gaussian
    process morphable models", TPAMI 2018; prior: `DisplacementPrior`; evidence: MacKay, "Bayesian
    interpolation", Neural Computation 1992.
    """
    V = model.num_vertices
    nothing = Detail(torch.zeros(V), torch.zeros(V), _report(model, np.zeros(V)))
    if state.num_views < 2:
        return nothing
    neutral = state.neutral(model)[0]
    normal = vertex_normals(neutral[None], model.triangles)[0]
    prior = DisplacementPrior.of(
        neutral.double().cpu().numpy(),
        model.triangles.cpu().numpy(),
        model.skin.cpu().numpy(),
        1.0,
        options.length_mm,
    )
    flow = replace(options.flow, seed=seed, hold=False, size=min(options.flow.size, max(observations.size)))
    energy = FlowCorrespondence(
        model, flow, estimator, flow.sigma_px * observations.pixel_unit, FlowImages.of(observations, flow)
    )
    energy = _on_face(energy.freeze(state, observations))
    before = energy.residuals(state, observations)
    unit, d = energy.sigma_px / observations.scale[energy.matches.view_b], np.zeros(V)
    counts = len(unit), int(before.valid.sum()), _median_px(before, unit)
    for number in range(options.refresh):
        if number:
            energy = _on_face(replace(energy, model=_displaced(model, d, normal)).freeze(state, observations))
        matrix, gradient = displacement_equations(*energy.linearize_surface(state), normal, options.kernel)
        # As they would be at d = 0, with the kernel's weights of now: what looked like outliers there may be
        # the displacement.
        sigma, gain, solution = most_evident(
            matrix, gradient - matrix @ d, prior, [options.sigma_mm / k for k in (8, 4, 2, 1)]
        )
        if solution is None:
            return replace(nothing, report=_report(model, np.zeros(V), *counts, counts[-1]))
        solve, precision = solution, prior.precision / sigma**2
        for step in range(options.iterations):
            if step:
                energy = replace(energy, model=_displaced(model, d, normal))
                matrix, gradient = displacement_equations(
                    *energy.linearize_surface(state), normal, options.kernel
                )
                solve, _ = factorized(matrix + precision, prior.order)
            d = d - solve(gradient + precision @ d)
    known = solve(matrix @ np.ones(V)).clip(0, 1)
    after = replace(energy, model=_displaced(model, d, normal)).residuals(state, observations)
    report = _report(model, d, *counts, _median_px(after, unit), sigma, gain)
    return Detail(torch.from_numpy(d).float(), torch.from_numpy(known).float(), report)


def most_evident(
    matrix: sparse.spmatrix, gradient: np.ndarray, prior: DisplacementPrior, sigmas: Sequence[float]
) -> tuple[float, float, Solve | None]:
    """The standard deviation, of those given or 0, under which measurements with these normal equations at d
    = 0 are most probable, the logarithm of how much more probable they are than without a displacement (0
    for 0), and what solves the equations with this prior (None for 0).

    sigmas: ascending; once they are less probable again, larger ones are not tried. prior: of unit standard
    deviation. For a Gaussian, log p(s) / p(0) = g' (A + P / s^2)^-1 g / 2 - (log det (A + P / s^2) - log det
    P / s^2) / 2.
    """
    best: tuple[float, float, Solve | None] = (0.0, 0.0, None)
    if not gradient.any():
        return best
    for sigma in sigmas:
        solve, determinant = factorized(matrix + prior.precision / sigma**2, prior.order)
        gain = 0.5 * (
            float(gradient @ solve(gradient))
            - determinant
            + prior.log_determinant
            - 2 * len(prior.free) * float(np.log(sigma))
        )
        if gain <= best[1]:
            break
        best = sigma, gain, solve
    return best


def _on_face(energy: FlowCorrespondence) -> FlowCorrespondence:
    """Only the matches on the narrow face: the neck does not turn with the head, and a displacement would
    make up for it."""
    model, matches = energy.model, energy.matches
    inside = model.face[model.triangles[matches.triangle]].all(-1)
    return replace(energy, matches=replace(matches, valid=matches.valid & inside))


def _displaced(model: FaceModel, d: np.ndarray, normal: Tensor) -> FaceModel:
    return model.with_mean(model.mean + torch.from_numpy(d).to(normal)[:, None] * normal)


def _median_px(residuals: Residuals, unit: Tensor) -> float | None:
    """Median length of the residuals in pixels of the photos; unit: [G] pixels of one sigma."""
    length = (residuals.value.norm(dim=-1) * unit[:, None])[residuals.valid]
    return float(length.median()) if len(length) else None


def _report(
    model: FaceModel,
    d: np.ndarray,
    pairs: int = 0,
    matches: int = 0,
    before: float | None = None,
    after: float | None = None,
    sigma: float = 0.0,
    gain: float = 0.0,
) -> DetailReport:
    """The numbers of a displacement d [V] mm."""
    face = np.abs(d[model.face.cpu().numpy()])
    return DetailReport(
        sigma,
        gain,
        float(face.mean()),
        float(np.median(face)),
        float(np.percentile(face, 95)),
        pairs,
        matches,
        before,
        after,
    )
