"""Do the views of a fit show one person? What each view's landmarks and matches say against those of the
others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from fitkit.energies.flow_correspondence import SURE, FlowCorrespondence, Matches, find_matches, view_pairs
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.registry import role_of, view_by_view_landmarks
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState
from fitkit.solvers.arrow import ArrowSystem

MOST_VIEWS = 60  # beyond, one view has little say and the matrices of all of them take memory
MOST_SPLIT = 24  # views that are searched for two people, which takes time with the square of their number
PERSON = ("identity", "landmarks")  # what two people have two of
MOST_MATCHED = 8  # views of which all pairs are matched when two people are possible
# Log odds from which photos that match within two groups, but not across, are two people's. Sets of four
# photos: two people, each at one instant, -8 to 16 (renders, built-in landmarks); one person at one instant
# -5 to -50, without such groups; in two real bursts of different days above it in 2 of 14 with such groups.
POSSIBLE = -9.0
# Share of covisible pixels that match: some photos of one instant at least, other people's at most.
MATCHED, TIMES = (0.15, 2.5)


@dataclass(frozen=True)
class ViewAgreement:
    """What one view says against the others; None where there is nothing to compare.

    shift: how far the shape moves when this view's landmarks are left out, over how far their noise would
    move it (about 1); flow: residual of its matches, in stated standard deviations, with the neighbour it
    agrees with better; flow_others: the same of the pairs of views that it is no part of, their median.
    """

    shift: float | None
    flow: float | None
    flow_others: float | None


@dataclass(frozen=True)
class TwoPeople:
    """Two groups of views, as two people. group: views of one of them; log_odds: natural logarithm of the
    evidence of the landmarks for two people over that for one; apart: the photos match within the groups, and
    not across them."""

    group: tuple[int, ...]
    log_odds: float
    apart: bool


def view_agreement(problem: LeastSquaresProblem, state: SceneState) -> list[ViewAgreement]:
    """One entry for each view, at the solution `state` of `problem`."""
    with torch.no_grad():
        shift = leave_one_out(problem, state)
        pairs = pair_residuals(problem, state)
    out = []
    for v in range(state.num_views):
        mine = [r for pair, r in pairs.items() if v in pair]
        rest = [r for pair, r in pairs.items() if v not in pair]
        out.append(
            ViewAgreement(
                shift[v], min(mine, default=None), float(torch.tensor(rest).median()) if rest else None
            )
        )
    return out


def pair_residuals(problem: LeastSquaresProblem, state: SceneState) -> dict[tuple[int, int], float]:
    """Median length of the flow residuals in stated standard deviations, by pair of views (both directions,
    the larger); pairs of photos too unlike to be matched have none."""
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
    """Per view: length of the change of the identity when the view's landmarks are left out, over the root of
    its expectation, [B];
    None with one view or without landmarks.

    Nothing is fitted again: on the normal equations of landmarks and priors, with the own parameters of each
    moment (pose, expression) eliminated, A_v and b_v are what view v adds to matrix and gradient, beside the
    other views of its moment. Leaving it out
    moves the solution by d = (A - A_v)^-1 b_v, measured by d' M d with M the precision of the identity; b_v
    has the covariance A_v - A_v A^-1 A_v if all views show one person.
    Source: case deletion in least squares: Cook and Weisberg, "Residuals and Influence in Regression", 1982,
    ch. 2 and 3.6.
    """
    views = _by_landmarks(problem, state)
    if views is None:
        return [None] * state.num_views
    A, b, total = views.matrix, views.gradient, views.moment_matrix.sum(0) + views.prior
    total = total + torch.diag(1e-9 * total.diagonal().clamp_min(1e-9 * float(total.diagonal().max())))
    # The landmarks alone would end elsewhere than the whole fit: judge the views at their own solution.
    step = torch.linalg.solve(total, -(views.moment_gradient.sum(0) + views.prior_gradient))
    b = b + torch.einsum("vij,j->vi", A, step)
    # Judged is the shape alone: its precision with the other shared parameters (offsets of landmarks, one
    # focal length) integrated out.
    start, width = problem.layout.shared_offsets["identity"], problem.layout.sizes["identity"]
    shape = slice(start, start + width)
    metric = torch.zeros_like(total)
    covariance = torch.linalg.inv(total)
    metric[shape, shape] = torch.linalg.inv(covariance[shape, shape])
    # One by one: with several threads, MKL's inverse of several such matrices at once can end in wrong
    # pivots.
    rest = torch.stack([torch.linalg.inv(each) for each in total - A])
    d = (rest @ b[..., None])[..., 0]
    spread = A - A @ covariance @ A
    expected = ((rest @ metric @ rest) * spread.transpose(1, 2)).sum((1, 2))
    length = torch.einsum("vi,ij,vj->v", d, metric, d).clamp_min(0)
    return [(n / e) ** 0.5 if e > 1e-12 else None for n, e in zip(length.tolist(), expected.tolist())]


@dataclass(frozen=True)
class _Landmarks:
    """What landmarks add to the normal equations of the shared parameters at a solution, the own parameters
    of their moment eliminated.

    matrix [B, P, P], gradient [B, P]: of each view, beside the others of its moment; moment_matrix
    [T, P, P], moment_gradient [T, P]: of all views of each moment, which are those of the view itself where
    it is the only one; prior [P, P], prior_gradient [P]: what the priors add.
    """

    matrix: Tensor
    gradient: Tensor
    moment_matrix: Tensor
    moment_gradient: Tensor
    prior: Tensor
    prior_gradient: Tensor


def _by_landmarks(problem: LeastSquaresProblem, state: SceneState) -> _Landmarks | None:
    """None with one view, too many, or without landmarks or identity."""
    layout, B = problem.layout, state.num_views
    marks = [t for t in problem.objective.terms if view_by_view_landmarks(t.energy.name)]
    if B < 2 or B > MOST_VIEWS or not marks or "identity" not in layout.sizes:
        return None
    priors = [t for t in problem.objective.terms if role_of(t.energy.name) == "prior"]
    prior = Objective(priors).linearize(state, problem.observations, layout)
    hessian, gradient = _by_view(marks, problem, state, layout)
    moment, T = layout.moment.to(hessian.device), layout.num_moments
    together = moment[:, None] == moment
    moments = torch.arange(T, device=moment.device)
    local = _by_moment(hessian, gradient, layout)
    whole, whole_b = _eliminated(moments[:, None] == moment, moments, *local, prior, layout)
    A, b = whole[moment], whole_b[moment]
    some = (together.sum(1) > 1).nonzero()[:, 0]
    if len(some):
        others = together & ~torch.eye(B, dtype=torch.bool, device=moment.device)
        rest, rest_b = _eliminated(others[some], moment[some], *local, prior, layout)
        A[some] -= rest
        b[some] -= rest_b
    return _Landmarks(A, b, whole, whole_b, prior.shared[0].to(A), prior.gradient[: layout.num_shared].to(A))


def _by_moment(hessian: Tensor, gradient: Tensor, layout: ParameterLayout) -> tuple[Tensor, Tensor]:
    """Local systems [B, n, n] and gradients [B, n] of the views -> [B, P + Q, P + Q] and [B, P + Q], the
    shared parameters and then those of the view's moment."""
    B, P, Q = len(hessian), layout.num_shared, layout.num_own
    place = torch.where(layout.index < P, layout.index, layout.index - Q * layout.moment[:, None])
    place, view = place.to(hessian.device), torch.arange(B, device=hessian.device)[:, None]
    matrix, side = hessian.new_zeros(B, P + Q, P + Q), hessian.new_zeros(B, P + Q)
    matrix[view[..., None], place[:, :, None], place[:, None]] = hessian
    side[view, place] = gradient
    return matrix, side


def _eliminated(
    members: Tensor,
    moment: Tensor,
    matrix: Tensor,
    gradient: Tensor,
    prior: ArrowSystem,
    layout: ParameterLayout,
) -> tuple[Tensor, Tensor]:
    """Matrices [C, P, P] and gradients [C, P] that C sets of views add to the shared parameters, the own
    parameters of their moment, with their prior, eliminated.

    members: [C, B] bool, the views of each set; moment: [C] int64, that of all of them; matrix, gradient: of
    the views, from `_by_moment`.
    """
    P, chosen = layout.num_shared, members.to(matrix)
    H, g = torch.einsum("cv,vij->cij", chosen, matrix), chosen @ gradient
    A, b = H[:, :P, :P], g[:, :P]
    if not layout.num_own:
        return A, b
    own, cross = H[:, P:, P:] + prior.own[0, moment], H[:, P:, :P]
    diagonal = own.diagonal(dim1=1, dim2=2)
    least = 1e-9 * diagonal.amax(1, keepdim=True).clamp_min(1e-30)
    own = own + torch.diag_embed(1e-9 * torch.maximum(diagonal, least))
    pull = prior.gradient[P:].reshape(layout.num_moments, -1)[moment]
    side = torch.linalg.solve(own, cross).transpose(1, 2)  # [C, P, Q]
    return A - side @ cross, b - (side @ (g[:, P:] + pull)[..., None])[..., 0]


@torch.no_grad()
def two_people(problem: LeastSquaresProblem, state: SceneState) -> TwoPeople | None:
    """The two groups of views that are most likely two people, at the solution `state` of `problem`; None
    with one view or moment, more than MOST_SPLIT views, or without landmarks. Views of one moment show one
    person.

    By the normal equations of landmarks and priors the evidence of a group of views, all else integrated out
    (but an expression that all photos share, which stays as it is), is a Gaussian integral: log of the root
    of |L| / |H| plus g' H^-1 g / 2, where L is the precision of the prior, H that of prior and landmarks, g
    their gradient; two people have two identities and two sets of offsets of landmarks, each with the whole
    prior.
    Source: Bayes factors of Gaussian linear models: Bishop, "Pattern Recognition and Machine Learning", 2006,
    sec. 3.4 and 4.4.
    """
    views = _by_landmarks(problem, state) if state.num_views <= MOST_SPLIT else None
    layout = problem.layout
    if views is None or layout.num_moments < 2:
        return None
    person = torch.cat(
        [
            torch.arange(layout.sizes[name]) + layout.shared_offsets[name]
            for name in PERSON
            if name in layout.shared_offsets and name in layout.sizes
        ]
    ).to(views.prior.device)
    L, q = views.prior[person][:, person], views.prior_gradient[person]
    A, b = views.moment_matrix[:, person][:, :, person], views.moment_gradient[:, person]
    known: dict[frozenset[int], float] = {}

    def evidence(group: frozenset[int]) -> float:
        if group not in known:
            rows = sorted(group)
            matrix = L + A[rows].sum(0)
            factor = torch.linalg.cholesky(matrix + torch.diag(1e-9 * matrix.diagonal()))
            pull = torch.linalg.solve_triangular(factor, (q + b[rows].sum(0))[:, None], upper=False)
            known[group] = float(pull.square().sum() / 2 - factor.diagonal().log().sum())
        return known[group]

    prior = evidence(frozenset())  # a second person costs it once more
    everyone = frozenset(range(layout.num_moments))
    one = evidence(everyone)
    odds = {
        group: evidence(group) + evidence(everyone - group) - one - prior
        for group in _bipartitions(layout.num_moments, evidence)
    }
    members = {group: _views_of(group, layout.moment) for group in odds}
    best, apart = max(odds, key=odds.__getitem__), False
    if odds[best] > POSSIBLE and state.num_views <= MOST_MATCHED:
        shares = _match_shares(problem, state)
        groups = [g for g in odds if odds[g] > POSSIBLE and _matched_apart(shares, members[g])]
        best, apart = max(groups, key=odds.__getitem__, default=best), bool(groups)
    return TwoPeople(tuple(sorted(members[best])), odds[best], apart)


def _views_of(group: frozenset[int], moment: Tensor) -> frozenset[int]:
    """The views of the moments in a group; moment: [B], that of each view."""
    return frozenset(v for v, number in enumerate(moment.tolist()) if number in group)


def _bipartitions(count: int, evidence: Callable[[frozenset[int]], float]) -> Iterator[frozenset[int]]:
    """One of the two groups of each way to part the moments; of many only ways that joining the likeliest
    groups leads to."""
    if count <= 7:
        yield from (
            frozenset(i for i in range(count) if number >> i & 1) for number in range(1, 2 ** (count - 1))
        )
        return
    yield from (frozenset([i]) for i in range(count))
    groups = [frozenset([i]) for i in range(count)]
    while len(groups) > 2:
        a, b = max(
            combinations(groups, 2),
            key=lambda pair: evidence(pair[0] | pair[1]) - evidence(pair[0]) - evidence(pair[1]),
        )
        groups = [g for g in groups if g not in (a, b)] + [a | b]
        yield a | b
    yield groups[0]


def _match_shares(problem: LeastSquaresProblem, state: SceneState) -> dict[tuple[int, int], float]:
    """Share of the covisible pixels that match, of all pairs of views that are not turned too far; none in a
    fit without matches."""
    energy = next(
        (t.energy for t in problem.objective.terms if isinstance(t.energy, FlowCorrespondence)), None
    )
    if energy is None:
        return {}
    options = replace(energy.options, neighbors=state.num_views - 1, many=state.num_views, both_ways=0)
    pairs, shares = view_pairs(state, options), _shares(energy.matches)
    if not set(pairs) <= set(shares):  # the last stage has matched its own pairs
        photos = replace(energy.photos, moment=None)  # those across moments tell of two people, too
        shares = _shares(find_matches(energy.model, state, photos, energy.estimator, options))
    return {pair: shares[pair] for pair in pairs}


def _shares(matches: Matches) -> dict[tuple[int, int], float]:
    return dict(zip(zip(matches.view_a.tolist(), matches.view_b.tolist()), matches.matched.tolist()))


def _matched_apart(shares: dict[tuple[int, int], float], group: frozenset[int]) -> bool:
    """Each photo matches one of its own group, as photos of one instant do, TIMES as well as any photo
    matches one of the other group."""
    inside: dict[int, float] = {}
    for pair, share in shares.items():
        if (pair[0] in group) == (pair[1] in group):
            inside |= {view: max(share, inside.get(view, 0.0)) for view in pair}
    across = [share for (a, b), share in shares.items() if (a in group) != (b in group)]
    if not inside or not across or max(across) >= MATCHED:
        return False
    return max(inside.values()) > MATCHED and min(inside.values()) > TIMES * max(across)


def _by_view(
    terms: list[Term], problem: LeastSquaresProblem, state: SceneState, layout: ParameterLayout
) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrices [B, n, n] and gradients [B, n] of the terms for each view's local parameters,
    float64."""
    B, n = layout.index.shape
    hessian = torch.zeros(B, n, n, dtype=torch.float64, device=state.identity.device)
    gradient = hessian.new_zeros(B, n)
    for term in terms:
        system = _PerView(hessian, gradient, layout.index)
        Objective([term]).add_to(system, state, problem.observations, layout)
    return hessian, gradient


@dataclass
class _PerView:
    """Takes what an objective adds for single views and keeps it apart by view."""

    hessian: Tensor  # [B, n, n]
    gradient: Tensor  # [B, n]
    index: Tensor  # [B, n] int64, step positions of the local parameters

    def add_rows(self, views: Sequence[Tensor], index: Tensor, rows: Sequence[Tensor]) -> None:
        (view,), (local,), at = views, rows, self._places(index)
        where = view[:, None, None], at[:, None], at
        self.hessian.index_put_(where, (local.mT @ local).to(self.hessian.dtype), accumulate=True)

    def add_gradient(self, view: Tensor, index: Tensor, gradient: Tensor) -> None:
        where = view[:, None], self._places(index)
        self.gradient.index_put_(where, gradient.to(self.gradient.dtype), accumulate=True)

    def _places(self, index: Tensor) -> Tensor:
        """Which of the local parameters stand at the step positions [B, m], [m] int64."""
        return (self.index[:1] == index[0][:, None]).nonzero()[:, 1].to(self.hessian.device)


def parallax(state: SceneState) -> list[tuple[float, int, int]]:
    """(degrees between the lines of sight to the head, view, view) for all pairs of views."""
    axis = -state.pose.rotation[:, 2]
    if state.camera.kind == "perspective":
        axis = torch.nn.functional.normalize(state.pose.centers(), dim=-1)
    degrees = torch.rad2deg(torch.arccos((axis @ axis.T).clamp(-1, 1))).tolist()
    return [(degrees[a][b], a, b) for a, b in combinations(range(state.num_views), 2)]
