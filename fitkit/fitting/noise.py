"""What landmarks are worth in one fit: their noise, how far they lie from the model's points, and EXIF data
that they contradict."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fitkit.energies.landmarks import LandmarkReprojection, offset_sigma
from fitkit.energies.objective import LeastSquaresProblem
from fitkit.energies.priors import LandmarkOffsetPrior
from fitkit.fitting.cameras import CameraPrior
from fitkit.fitting.recipe import LandmarkOptions
from fitkit.fitting.solution import Solution
from fitkit.fitting.uncertainty import ABSORBED, focal_uncertainty
from fitkit.observe.landmarks.types import Landmarks, box_size
from fitkit.scene.state import SceneState

# Right focal lengths moved by 0.2 to 0.7; of half the right length, as after a crop to half the picture, by
# 3.6 to 5.9.
EXIF_SIGMAS = 3.0
SPREAD_PRIOR = 10.0  # in observations


def face_size(landmarks: Landmarks) -> Tensor:
    """Square root of the area of the landmark box, [B] px."""
    return box_size(landmarks.points, landmarks.valid, least=1.0)


def given_sigma(landmarks: Landmarks, options: LandmarkOptions) -> Tensor:
    """[B, 68] px: the detector's own standard deviations, or the recipe's share of the face size."""
    assumed = (options.sigma * face_size(landmarks))[:, None].expand(-1, 68)
    return torch.where(_stated(landmarks.sigma), landmarks.sigma, assumed)


def _stated(sigma: Tensor) -> Tensor:
    """Where the source of landmarks gives a standard deviation."""
    return torch.isfinite(sigma) & (sigma > 0)


def measured_sigma(at: Solution, options: LandmarkOptions) -> Tensor:
    """[B, 68] px of the crop: the landmark sigmas, rescaled so that they agree with the residuals of the
    inner points at a solution.

    The median length of a 2D Gaussian residual is 1.1774 sigma; the fit has absorbed part of the noise, which
    the factor ABSORBED makes good. Sigmas that a detector states are raised only: part of its errors are
    alike in all photos of a person, so the fit follows them and the residuals do not show them.
    """
    energy = LandmarkReprojection(at.model, at.sigma, "surface")
    r = energy.residuals(at.state, at.observations)
    length = r.value.norm(dim=-1)[:, 17:][r.valid[:, 17:]]
    if len(length) < 20:
        return at.sigma
    factor = ABSORBED * float(length.median()) / 1.1774
    if at.state.landmark_offset is not None:
        factor *= _absorbed_by_offsets(at, factor, options)
    given = at.observations.landmarks.sigma
    size = face_size(at.observations.landmarks)[:, None]
    limited = (at.sigma * factor).clamp(options.min_sigma * size, options.max_sigma * size)
    return torch.where(_stated(given), torch.maximum(at.sigma * factor, given), limited)


def _absorbed_by_offsets(at: Solution, factor: float, options: LandmarkOptions) -> float:
    """How much larger the noise is than the residuals show, because the offsets of the points have taken a
    part of it.

    A point seen by all views with noise s_v [mm] has an offset of posterior variance p = 1 / (1 / prior^2 +
    sum 1 / s_v^2); of its residual's variance p / s_v^2 is missing. Both depend on each other and are
    iterated; at most three quarters are made good.
    """
    state, prior = at.state, offset_prior(at, options)
    depth = (
        state.pose.translation[:, 2] if state.camera.kind == "perspective" else state.camera.REFERENCE_DEPTH
    )
    mm = at.sigma * (depth / state.camera.focal)[:, None]  # [B, 68]
    more = 1.0
    for _ in range(10):
        precision = 1 / (factor * more * mm) ** 2
        posterior = 1 / (1 / prior**2 + precision.sum(0))
        more = max(1 - float((posterior * precision)[:, 17:].median()), 0.25) ** -0.5
    return more


def offset_prior(at: Solution, options: LandmarkOptions) -> Tensor:
    """[68] mm: standard deviation of the landmarks' offsets."""
    return at.offset_spread * options.offset * offset_sigma().to(at.sigma)


def measured_spread(problem: LeastSquaresProblem, state: SceneState, spread: float) -> float | None:
    """How far the landmarks of this person lie from the model's points, over what their prior states; None
    where it cannot be told.

    The scale s of offsets o ~ N(0, s^2 sigma^2): the sum of (o / sigma)^2 over the number of offsets that the
    photos determine, with SPREAD_PRIOR observations of s = 1 added, so that it stays 1 as long as the photos
    say nothing. Exact points get a small s and count in full beside the matches.

    Args:
        spread: what it was when `problem` was made, whose prior is that much wider.
    Source:
        MacKay, "Bayesian interpolation", Neural Computation 1992, evidence approximation with well-determined
        parameters.
    """
    energies = [t.energy for t in problem.objective.terms]
    prior = next((e for e in energies if isinstance(e, LandmarkOffsetPrior)), None)
    layout = problem.layout
    # None: no step was taken yet.
    if prior is None or "landmarks" not in layout.sizes or state.landmark_offset is None:
        return None
    start, width = layout.shared_offsets["landmarks"], layout.sizes["landmarks"]
    with torch.no_grad():
        system = problem.linearize(state)
        diagonal = system.diagonal()
        unit = diagonal.new_zeros(layout.total, width)
        unit[start : start + width] = torch.eye(width, dtype=unit.dtype, device=unit.device)
        columns = system.solve_columns(unit, 1e-9 * diagonal.clamp_min(1e-9 * float(diagonal.max())))
    if not bool(torch.isfinite(columns).all()):
        return None
    sigma = prior.sigma_mm.repeat_interleave(3)
    left = columns[start : start + width].diagonal() / sigma**2  # 1: the photos say nothing
    known = float((1 - left).clamp(0, 1).sum())
    over = float((state.landmark_offset[0].reshape(-1) / (sigma / spread)).square().sum())
    return ((SPREAD_PRIOR + over) / (SPREAD_PRIOR + known)) ** 0.5


def wrong_exif(at: Solution) -> list[int]:
    """Views whose focal length from EXIF the perspective of the landmarks contradicts, after stages that had
    it as a prior.

    A prior that agrees with the rest moves by N(0, prior variance - posterior variance) in log units.
    """
    prior: CameraPrior = at.cameras
    if "exif" not in prior.source or at.last is None:
        return []
    wrong = []
    for i, sigma in enumerate(focal_uncertainty(*at.last)):
        moved = abs(math.log(float(at.state.camera.focal[i] / prior.focal_mean[i])))
        if (
            prior.source[i] == "exif"
            and sigma is not None
            and moved > EXIF_SIGMAS * max(float(prior.focal_sigma[i]) ** 2 - sigma**2, 1e-6) ** 0.5
        ):
            wrong.append(i)
    return wrong
