"""Error bars of a fit: covariance of the identity and standard deviation of the surface (Laplace
approximation)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.registry import role_of
from fitkit.fitting.report import BarsReport
from fitkit.geometry.normals import vertex_normals
from fitkit.models.calibration import Calibration, default_calibration
from fitkit.models.face_model import FaceModel
from fitkit.scene.state import SceneState
from fitkit.solvers.arrow import ArrowSystem

# A least-squares solution has absorbed part of the noise of independent measurements (68 points per view).
ABSORBED = 1.25
# Independent measurements in one view, or one ordered pair of views, of a pixel-like term: the
# autocorrelation of the flow residuals, summed up to its first zero, leaves 20 to 45 of 800 matches; both
# directions of a pair share their noise.
PATCHES = 25


@dataclass(frozen=True)
class ErrorBars:
    """identity_covariance: [K_id, K_id] of the coefficients, inflated, without the floor; vertex_sigma: [V]
    mm along the normals of the neutral mesh, inflated, with the floor; noise: by energy, variance over what
    the recipe states."""

    identity_covariance: Tensor
    vertex_sigma: Tensor
    noise: dict[str, float]
    calibration: Calibration


def error_bars(
    problem: LeastSquaresProblem,
    state: SceneState,
    model: FaceModel,
    calibration: Calibration | None = None,
    known: Tensor | None = None,
) -> ErrorBars | None:
    """Error bars of the neutral shape at the solution `state` of `problem`; tensors on the CPU, float32.

    None where the identity was not free, or the problem is not `linearizable`. calibration: None takes that
    of the model; known: [V] in 0..1, see `Detail`: what the matches have corrected beyond the model; None:
    nothing.
    """
    terms = problem.objective.terms
    if "identity" not in problem.layout.sizes or not problem.linearizable:
        return None
    calibration = calibration or model.calibration or default_calibration()
    with torch.no_grad():
        noise = {
            t.energy.name: noise_variance(t, t.energy.residuals(state, problem.observations)) for t in terms
        }
        covariance = identity_covariance(problem, state, noise)
        if covariance is None:
            return None
        covariance = calibration.inflation**2 * covariance
        sigma = vertex_sigma(model, state.neutral(model)[0], covariance, calibration.floor_mm)
        if known is not None:
            sigma = sigma * (1 - (1 - calibration.left**2) * known.to(sigma)).sqrt()
    return ErrorBars(covariance.float().cpu(), sigma.float().cpu(), noise, calibration)


def identity_covariance(
    problem: LeastSquaresProblem, state: SceneState, noise: dict[str, float]
) -> Tensor | None:
    """Marginal covariance of the identity, [K_id, K_id] float64: the identity block of H^-1 (sum_k c_k H_k)
    H^-1.

    H = sum_k H_k is the Gauss-Newton matrix of all terms over all free parameters, so poses, cameras,
    expressions and light are integrated out; noise: c_k by energy, its variance over the stated one. With all
    c_k = 1 this is the identity block of H^-1. None when H is not positive definite.
    Source: Laplace approximation: MacKay, "A practical Bayesian framework for backpropagation networks",
    1992; the product for misstated noise: White, "Maximum likelihood estimation of misspecified models",
    Econometrica 1982.
    """
    terms, layout = problem.objective.terms, problem.layout
    parts = [Objective([t]).linearize(state, problem.observations, layout) for t in terms]
    total = ArrowSystem.sum(parts)
    K, start = layout.sizes["identity"], layout.shared_offsets["identity"]
    diagonal = total.diagonal()
    unit = diagonal.new_zeros(layout.total, K)
    unit[start : start + K] = torch.eye(K, dtype=unit.dtype, device=unit.device)
    # The derivatives are float32: rounding may hide the little that is known about focal length and distance.
    for damping in (1e-12, 1e-9, 1e-6):
        columns = total.solve_columns(unit, damping * diagonal.clamp_min(1e-9 * float(diagonal.max())))
        if bool(torch.isfinite(columns).all()):
            break
    else:
        return None
    # H^-1 once for all terms, then only what exceeds the stated noise.
    covariance = columns[start : start + K].clone()
    for term, part in zip(terms, parts):
        excess = noise.get(term.energy.name, 1.0) - 1
        if excess:
            covariance += excess * (columns.T @ part.multiply(columns))
    return (covariance + covariance.T) / 2


def noise_variance(term: Term, residuals: Residuals) -> float:
    """Variance of a term's noise over what its recipe states, at least 1; 1 for priors and for energies that
    measure their noise.

    From the weighted median of the residual lengths, which outliers hardly move. A recipe's weight says how
    many independent measurements a 'mean' term is worth, but no more than PATCHES fit into a view or pair of
    views.
    Residuals below the stated noise do not shrink the error bars: what a flow field, or a model point in the
    wrong place, does to all neighbours or all views alike goes into the solution and leaves no residual.
    """
    if role_of(term.energy.name) == "prior" or getattr(term.energy, "measured", False):
        return 1.0
    scale = robust_scale(residuals)
    if term.energy.reduction == "sum":
        return max(1.0, (ABSORBED * scale) ** 2)
    groups = int(residuals.valid.any(1).sum())
    return max(1.0, scale**2 * term.weight / max(1.0, min(term.weight, PATCHES * groups)))


def robust_scale(residuals: Residuals) -> float:
    """Standard deviation of one component, in stated ones: weighted median of the lengths over that of a
    D-dimensional Gaussian (Wilson and Hilferty, PNAS 1931); 1 without valid residuals."""
    valid, D = residuals.valid, residuals.value.shape[-1]
    length, order = residuals.value.norm(dim=-1)[valid].sort()
    if len(length) == 0:
        return 1.0
    trust = (
        torch.ones_like(length)
        if residuals.weight is None
        else residuals.weight.expand(valid.shape)[valid][order]
    )
    total = trust.cumsum(0)
    middle = int(torch.searchsorted(total, total[-1:] / 2).clamp_max(len(length) - 1))
    return float(length[middle]) / (D * (1 - 2 / (9 * D)) ** 3) ** 0.5


def vertex_sigma(model: FaceModel, vertices: Tensor, covariance: Tensor, floor_mm: float = 0.0) -> Tensor:
    """[V] mm: standard deviation of each vertex along its normal, for identity coefficients of this
    covariance [K_id, K_id].

    vertices: [V, 3] mm, the neutral mesh. What a similarity removes when the mesh is laid onto the true face
    does not count: see `aligned_normal_rows`.
    """
    rows = aligned_normal_rows(model, vertices)
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp_min(0).sqrt()
    return ((rows @ root.to(rows)).square().sum(1) + floor_mm**2).sqrt()


def aligned_normal_rows(model: FaceModel, vertices: Tensor) -> Tensor:
    """[V, K_id] mm per unit coefficient: motion of each vertex of the mesh [V, 3] along its normal, less the
    similarity that best undoes the motion along the normals of the narrow face (the linear form of a
    point-to-plane alignment)."""
    normal = vertex_normals(vertices[None], model.triangles)[0]
    K = model.num_identity
    rows = sum(model.rows[:, c, :K] * normal[:, c, None] for c in range(3))
    normal = normal.double()
    # In 100 mm, so that the seven columns are alike.
    arm = (vertices - vertices[model.face].mean(0)).double() / 100
    gauge = torch.cat([normal, torch.linalg.cross(arm, normal), (arm * normal).sum(-1, keepdim=True)], 1)
    inside = gauge[model.face]
    # A shape that lets the surface slide along itself (a sphere turns, a plane shifts) leaves directions
    # without a say.
    weights = torch.linalg.pinv(inside.T @ inside, rtol=1e-9, hermitian=True) @ (
        inside.T @ rows[model.face].double()
    )
    return rows - (gauge @ weights).to(rows)


def focal_uncertainty(problem: LeastSquaresProblem, state: SceneState) -> list[float | None]:
    """Relative standard deviation of each view's focal length at the solution `state` of `problem` (Laplace
    approximation), None when it was not solved for, the problem is not `linearizable` or the system is too
    large for a dense inverse."""
    layout = problem.layout
    if "focal" not in layout.sizes or layout.total > 3000 or not problem.linearizable:
        return [None] * layout.num_views
    H = problem.linearize(state).dense()
    H.diagonal().add_(1e-9 * H.diagonal().max())
    factor, info = torch.linalg.cholesky_ex(H)
    if int(info):
        return [None] * layout.num_views
    before = sum(layout.sizes[n] for n in layout.order[: layout.order.index("focal")])
    columns = layout.index[:, before].to(H.device)
    views = torch.arange(layout.num_views, device=H.device)
    unit = torch.zeros(layout.total, layout.num_views, dtype=H.dtype, device=H.device)
    unit[columns, views] = 1
    variance = torch.cholesky_solve(unit, factor)[columns, views]
    return [float(v) for v in variance.clamp_min(0).sqrt()]


def summary(bars: ErrorBars | None, model: FaceModel, photos: int) -> BarsReport | None:
    """What the report of a fit of so many photos says about the error bars."""
    if bars is None:
        return None
    face = bars.vertex_sigma[model.face.cpu()]
    return BarsReport(
        float(face.median()),
        float(face.mean()),
        float(face.max()),
        bars.calibration.inflation,
        bars.calibration.floor_mm,
        bars.calibration.true_over_bars(photos),
        bars.noise,
    )
