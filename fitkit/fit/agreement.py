"""Do the views of a fit show one person? What each view's landmarks and matches say against those of the others."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fitkit.energies.flow_correspondence import SURE
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState

MOST_VIEWS = 60  # beyond, one view has little say and the matrices of all of them take memory


@dataclass(frozen=True)
class ViewAgreement:
    """What one view says against the others; None where there is nothing to compare.

    shift: how far the shape moves when this view's landmarks are left out, over how far their noise would move it (about 1);
    flow: residual of its matches, in stated standard deviations, with the neighbour it agrees with better;
    flow_others: the same of the pairs of views that it is no part of, their median.
    """

    shift: float | None
    flow: float | None
    flow_others: float | None


def view_agreement(problem: LeastSquaresProblem, state: SceneState) -> list[ViewAgreement]:
    """One entry for each view, at the solution `state` of `problem`."""
    with torch.no_grad():
        shift = leave_one_out(problem, state)
        pairs = pair_residuals(problem, state)
    out = []
    for v in range(state.num_views):
        mine = [r for pair, r in pairs.items() if v in pair]
        rest = [r for pair, r in pairs.items() if v not in pair]
        out.append(ViewAgreement(shift[v], min(mine, default=None), float(torch.tensor(rest).median()) if rest else None))
    return out


def pair_residuals(problem: LeastSquaresProblem, state: SceneState) -> dict[tuple[int, int], float]:
    """Median length of the flow residuals in stated standard deviations, by pair of views (both directions, the larger); pairs of
    photos too unlike to be matched have none."""
    out: dict[tuple[int, int], float] = {}
    for term in problem.objective.terms:
        matches = getattr(term.energy, "matches", None)
        if matches is None:
            continue
        r = term.energy.residuals(state, problem.observations)
        for g, (a, b) in enumerate(zip(matches.view_a.tolist(), matches.view_b.tolist())):
            length = r.value[g].norm(dim=-1)[r.valid[g] & (matches.weight[g] > 0)]
            if len(length) and (matches.matched is None or float(matches.matched[g]) >= SURE):
                pair = (min(a, b), max(a, b))
                out[pair] = max(out.get(pair, 0.0), float(length.median()))
    return out


def leave_one_out(problem: LeastSquaresProblem, state: SceneState) -> list[float | None]:
    """Per view: length of the change of the identity when the view's landmarks are left out, over the root of its expectation, [B];
    None with one view or without landmarks.

    Nothing is fitted again: on the normal equations of landmarks and priors, with each view's own parameters (pose,
    expression) eliminated, A_v and b_v are what view v adds to matrix and gradient. Leaving it out moves the solution by
    d = (A - A_v)^-1 b_v, measured by d' M d with M the precision of the identity; b_v has the covariance A_v - A_v A^-1 A_v if all views show one person.
    Source: case deletion in least squares: Cook and Weisberg, "Residuals and Influence in Regression", 1982, ch. 2 and 3.6.
    """
    layout, B = problem.layout, state.num_views
    marks = [t for t in problem.objective.terms if t.energy.name.startswith("lmk2d")]
    if B < 2 or B > MOST_VIEWS or not marks or "identity" not in layout.sizes:
        return [None] * B
    priors = [t for t in problem.objective.terms if t.energy.name.endswith("_prior")]
    prior = Objective(priors).linearize(state, problem.observations, layout)
    hessian, gradient = _by_view(marks, problem, state, layout)
    P, s = layout.num_shared, layout.index.shape[1] - layout.num_own
    A, b = hessian.new_zeros(B, P, P), hessian.new_zeros(B, P)
    for v in range(B):
        at = layout.index[v, :s].to(hessian.device)
        own = hessian[v, s:, s:] + prior.own[v]
        own = own + torch.diag(1e-9 * own.diagonal().clamp_min(1e-9 * float(own.diagonal().max()))) if len(own) else own
        side = torch.linalg.solve(own, hessian[v, s:, :s])  # [Q, s]
        A[v][at[:, None], at] = hessian[v, :s, :s] - hessian[v, :s, s:] @ side
        b[v, at] = gradient[v, :s] - side.T @ (gradient[v, s:] + prior.gradient_own[v])
    total = A.sum(0) + prior.shared
    total = total + torch.diag(1e-9 * total.diagonal().clamp_min(1e-9 * float(total.diagonal().max())))
    # The landmarks alone would end elsewhere than the whole fit: judge the views at their own solution.
    step = torch.linalg.solve(total, -(b.sum(0) + prior.gradient_shared))
    b = b + torch.einsum("vij,j->vi", A, step)
    # Judged is the shape alone: its precision with the other shared parameters (offsets of landmarks, one focal length) integrated out.
    start, width = layout.shared_offsets["identity"], layout.sizes["identity"]
    shape = slice(start, start + width)
    metric = torch.zeros_like(total)
    metric[shape, shape] = torch.linalg.inv(torch.linalg.inv(total)[shape, shape])
    out: list[float | None] = []
    for v in range(B):
        rest = torch.linalg.inv(total - A[v])
        d = rest @ b[v]
        spread = A[v] - A[v] @ torch.linalg.solve(total, A[v])
        expected = float(torch.einsum("ij,jk,kl,li->", rest, metric, rest, spread))
        out.append((max(0.0, float(d @ metric @ d)) / expected) ** 0.5 if expected > 1e-12 else None)
    return out


def _by_view(terms: list[Term], problem: LeastSquaresProblem, state: SceneState, layout: ParameterLayout) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrices [B, n, n] and gradients [B, n] of the terms for each view's local parameters, float64."""
    B, n = layout.index.shape
    hessian = torch.zeros(B, n, n, dtype=torch.float64, device=state.identity.device)
    gradient = hessian.new_zeros(B, n)
    for term in terms:
        system = _PerView(hessian, gradient)
        Objective([term]).add_to(system, state, problem.observations, layout)
    return hessian, gradient


@dataclass
class _PerView:
    """Takes what an objective adds for single views and keeps it apart by view."""

    hessian: Tensor
    gradient: Tensor

    def add_view(self, view: Tensor, index: Tensor, hessian: Tensor, gradient: Tensor) -> None:
        self.hessian.index_add_(0, view, hessian.to(self.hessian.dtype))
        self.gradient.index_add_(0, view, gradient.to(self.gradient.dtype))


def parallax(state: SceneState) -> list[tuple[float, int, int]]:
    """(degrees between the lines of sight to the head, view, view) for all pairs of views."""
    axis = -state.pose.rotation[:, 2]
    if state.camera.kind == "perspective":
        axis = torch.nn.functional.normalize(state.pose.centers(), dim=-1)
    cosine = (axis @ axis.T).clamp(-1, 1)
    return [(float(torch.rad2deg(torch.arccos(cosine[a, b]))), a, b) for a, b in combinations(range(state.num_views), 2)]
