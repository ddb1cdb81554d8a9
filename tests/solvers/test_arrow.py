from itertools import product

import pytest
import torch

from fitkit.solvers.arrow import MANY, ArrowSystem

B, Q, SHARED = 4, 3, 8  # views, own parameters of each, shared parameters
LOCAL = 5  # shared parameters a view depends on
MOMENT = torch.tensor([0, 0, 0, 1])  # of each view


def layout(grouped: bool, moments: bool = False):
    """Step positions [B, LOCAL + Q]; two shared parameters belong to all views, three to a group: grouped:
    views 0 and 2 against 1 and 3, else all; moments: a moment owns what its views have in common (2) and what
    each of them has alone (1), of which the second moment leaves the room for two empty."""
    start = torch.tensor([0, 3, 0, 3]) if grouped else torch.zeros(B, dtype=torch.int64)
    shared = torch.cat([torch.arange(2).expand(B, -1), 2 + start[:, None] + torch.arange(3)], 1)
    own = SHARED + torch.arange(B)[:, None] * Q + torch.arange(Q)
    if moments:
        rank = torch.tensor([[0], [1], [2], [0]])
        own = SHARED + 5 * MOMENT[:, None] + torch.cat([torch.arange(2).expand(B, -1), 2 + rank], 1)
    return torch.cat([shared, own], 1)


def owners(moments: bool):
    """Number of owners, and of the parameters of each."""
    return (2, 5) if moments else (B, Q)


def dense_jacobian(index, view, local, total):
    """local [G, R, n] of the views `view` -> [G, R, total]."""
    J = local.new_zeros(*local.shape[:2], total)
    for g, v in enumerate(view.tolist()):
        J[g][:, index[v]] = local[g]
    return J


def build(grouped, pairs=False, common=False, moments=False, seed=0, factored=False):
    """The system under test beside H and g assembled from whole Jacobians."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    index, n = layout(grouped, moments), LOCAL + Q
    T, own = owners(moments)
    total = SHARED + T * own
    system = ArrowSystem.zeros(T, SHARED, own)
    if factored:
        system.dense_limit = 0
    view = torch.tensor([2, 0, 1, 3, 2])  # view 2 twice, out of order
    J, r = normal(5, 7, n), normal(5, 7)
    system.add_view(view, index, J.transpose(1, 2) @ J, (J.transpose(1, 2) @ r[..., None])[..., 0])
    whole = dense_jacobian(index, view, J, total).reshape(-1, total)
    H, g = whole.T @ whole, whole.T @ r.reshape(-1)
    if pairs:
        a, b = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 0])
        Ja, Jb, r = normal(3, 6, n), normal(3, 6, n), normal(3, 6)
        for v, local in ((a, Ja), (b, Jb)):
            right = (local.transpose(1, 2) @ r[..., None])[..., 0]
            system.add_view(v, index, local.transpose(1, 2) @ local, right)
        system.add_pair(a, b, index, Ja.transpose(1, 2) @ Jb)
        whole = dense_jacobian(index, a, Ja, total) + dense_jacobian(index, b, Jb, total)
        whole = whole.reshape(-1, total)
        H, g = H + whole.T @ whole, g + whole.T @ r.reshape(-1)
    if common:
        # A latent per row shared by all views: sum_v w_v |J_v x - m|^2 minimised over m.
        J, w = normal(B, 11, n), torch.rand(B, 11, generator=gen, dtype=torch.float64)
        views = torch.arange(B)
        system.add_view(
            views, index, (J * w[..., None]).transpose(1, 2) @ J, torch.zeros(B, n, dtype=torch.float64)
        )
        weight = w.sum(0)
        system.add_common(views, index, J * (w / weight.sqrt())[..., None])
        each = dense_jacobian(index, views, J, total)
        mean = (w[..., None] * each).sum(0) / weight[:, None]
        for v in range(B):
            centred = each[v] - mean
            H = H + centred.T @ (w[v, :, None] * centred)
    return system, H, g


NAMES = ("grouped", "pairs", "common", "moments")
CASES = [dict(zip(NAMES, case)) for case in product((False, True), repeat=4)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_dense_normal_equations(case):
    system, H, g = build(**case)
    assert (system.coupling is None) == (not case["pairs"] and not case["common"])
    torch.testing.assert_close(system.dense(), H)
    torch.testing.assert_close(system.gradient, g)
    torch.testing.assert_close(system.diagonal(), H.diagonal())
    x = torch.randn(len(g), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(system.multiply(x), H @ x)
    damping = 0.1 + torch.rand(len(g), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = system.dense()
    torch.testing.assert_close(system.solve(damping), torch.linalg.solve(H + torch.diag(damping), -g))
    assert torch.equal(system.dense(), before)  # solving leaves the system as it was


@pytest.mark.parametrize("case", CASES, ids=str)
def test_coupling_kept_as_factors_is_the_same_system(case):
    system, H, g = build(**case, factored=True)
    assert system.factored and system.coupling is None
    torch.testing.assert_close(system.dense(), H)
    torch.testing.assert_close(system.diagonal(), H.diagonal())
    x = torch.randn(len(g), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(system.multiply(x), H @ x)
    damping = 0.1 + torch.rand(len(g), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step, expected = system.solve(damping), torch.linalg.solve(H + torch.diag(damping), -g)
    # Conjugate gradients stop at a thousandth of the first residual; what counts is how far down the model
    # they get.
    drop = [float(g @ s + 0.5 * s @ (H @ s + damping * s)) for s in (step, expected)]
    assert drop[0] < 0.9999 * drop[1] < 0
    system.gradient.zero_()
    assert float(system.solve(damping).abs().max()) == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_right_sides_are_solved_exactly(case):
    """Also where the coupling is kept as factors: one factorisation, no conjugate gradients."""
    system, H, g = build(**case, factored=True)
    gen = torch.Generator().manual_seed(3)
    damping = 0.1 + torch.rand(len(g), generator=gen, dtype=torch.float64)
    right = torch.randn(len(g), MANY, generator=gen, dtype=torch.float64)
    solved = system.solve_columns(right, damping)
    torch.testing.assert_close(solved, torch.linalg.solve(H + torch.diag(damping), right))


def test_pairs_inside_a_moment_are_eliminated_with_it():
    n = LOCAL + Q
    index, gen = layout(True, moments=True), torch.Generator().manual_seed(0)
    a, b = torch.tensor([0, 2]), torch.tensor([1, 0])
    Ja, Jb = torch.randn(2, 2, 9, n, generator=gen, dtype=torch.float64)
    for limit in (0, 2048):  # also where what couples moments would be kept as factors
        system = ArrowSystem.zeros(2, SHARED, 5)
        system.dense_limit = limit
        for view, local in ((a, Ja), (b, Jb)):
            system.add_view(view, index, local.transpose(1, 2) @ local, local.sum(1))
        system.add_pair(a, b, index, Ja.transpose(1, 2) @ Jb)
        assert system.coupling is None and not system.pairs
        whole = dense_jacobian(index, a, Ja, SHARED + 10) + dense_jacobian(index, b, Jb, SHARED + 10)
        H = (whole.transpose(1, 2) @ whole).sum(0)
        torch.testing.assert_close(system.dense(), H)
        damping = torch.full((len(H),), 0.3, dtype=torch.float64)
        expected = torch.linalg.solve(H + torch.diag(damping), -system.gradient)
        torch.testing.assert_close(system.solve(damping), expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_schur_path_equals_dense_path(grouped):
    system, _, g = build(grouped)
    damping = torch.full((len(g),), 0.3, dtype=torch.float64)
    by_schur = system.solve(damping)
    system.coupling = torch.zeros(1, B, Q, B, Q, dtype=torch.float64)
    torch.testing.assert_close(by_schur, system.solve(damping))


@pytest.mark.parametrize("shared,own", [(0, 3), (5, 0), (4, 1)])
def test_only_shared_or_only_own_parameters(shared, own):
    gen = torch.Generator().manual_seed(0)
    index = torch.cat(
        [torch.arange(shared).expand(B, -1), shared + torch.arange(B)[:, None] * own + torch.arange(own)], 1
    )
    J, r = (torch.randn(*s, generator=gen, dtype=torch.float64) for s in ((B, 8, shared + own), (B, 8)))
    system = ArrowSystem.zeros(B, shared, own)
    system.add_view(torch.arange(B), index, J.transpose(1, 2) @ J, (J.transpose(1, 2) @ r[..., None])[..., 0])
    total = shared + B * own
    whole = torch.zeros(B, 8, total, dtype=torch.float64)
    for v in range(B):
        whole[v][:, index[v]] = J[v]
    whole = whole.reshape(-1, total)
    H, g, damping = whole.T @ whole, whole.T @ r.reshape(-1), torch.full((total,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(system.solve(damping), torch.linalg.solve(H + torch.diag(damping), -g))
    torch.testing.assert_close(system.multiply(g), H @ g)
    torch.testing.assert_close(system.diagonal(), H.diagonal())


def test_memory_does_not_grow_with_owners_that_own_nothing():
    system = ArrowSystem.zeros(10**7, 300, 0)  # a matrix [300, 300] of each would take 7 TB
    system.shared += torch.eye(300)
    system.gradient += 1
    step = system.solve(torch.ones(300, dtype=torch.float64))
    torch.testing.assert_close(step, torch.full((300,), -0.5, dtype=torch.float64))


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=str)
def test_no_step_when_the_matrix_is_not_positive_definite(case):
    for part in ("shared", "own"):
        system, _, g = build(**case)
        getattr(system, part)[..., 0, 0] -= 1e4
        assert bool(system.solve(torch.zeros(len(g), dtype=torch.float64)).isnan().all())


def test_adding_nothing_changes_nothing():
    system, H, g = build(False)
    none = torch.zeros(0, dtype=torch.int64)
    n = LOCAL + Q
    system.add_view(none, layout(False), torch.zeros(0, n, n), torch.zeros(0, n))
    system.add_pair(none, none, layout(False), torch.zeros(0, n, n))
    torch.testing.assert_close(system.dense(), H)
    torch.testing.assert_close(system.gradient, g)


def test_single_precision_blocks_are_summed_in_double():
    system = ArrowSystem.zeros(1, 1, 1)
    index = torch.tensor([[0, 1]])
    for value in (1e8, 1.0, -1e8):
        system.add_view(torch.tensor([0]), index, torch.full((1, 2, 2), value), torch.full((1, 2), value))
    assert torch.equal(system.gradient, torch.ones(2, dtype=torch.float64))
    assert torch.equal(system.dense(), torch.ones(2, 2, dtype=torch.float64))


# ---- several people ----


def two_people(case, factored=False):
    """Systems of two people, and both as one."""
    pairs, common = case["pairs"], case["common"] and not case["pairs"]
    parts = [build(case["grouped"], pairs, common, case["moments"], seed, factored)[0] for seed in (0, 1)]
    T, own = owners(case["moments"])
    both = ArrowSystem.zeros(T, SHARED, own, num_people=2)
    both.dense_limit = parts[0].dense_limit
    single = layout(case["grouped"], case["moments"])
    index = torch.cat([single, single + both.each])
    for person in (0, 1):
        replay(both, index, person, case["grouped"], pairs, common, case["moments"])
    return parts, both


def replay(system, index, person, grouped, pairs, common, moments):
    """What `build` adds with the seed `person`, to the views of that person."""

    class Shifted:
        def add_view(self, view, _, hessian, gradient):
            system.add_view(view + B * person, index, hessian, gradient)

        def add_pair(self, a, b, _, block):
            system.add_pair(a + B * person, b + B * person, index, block)

        def add_common(self, view, _, columns):
            system.add_common(view + B * person, index, columns)

    zeros = ArrowSystem.zeros
    ArrowSystem.zeros = staticmethod(lambda *args: Shifted())
    try:
        build(grouped, pairs, common, moments, person)
    finally:
        ArrowSystem.zeros = zeros


@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factors"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_people_are_solved_side_by_side(case, factored):
    parts, both = two_people(case, factored)
    torch.testing.assert_close(both.dense(), torch.block_diag(*(p.dense() for p in parts)))
    torch.testing.assert_close(both.gradient, torch.cat([p.gradient for p in parts]))
    torch.testing.assert_close(both.diagonal(), torch.cat([p.diagonal() for p in parts]))
    x = torch.randn(2 * both.each, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart = zip(parts, x.chunk(2))
    torch.testing.assert_close(both.multiply(x), torch.cat([p.multiply(each) for p, each in apart]))
    damping = 0.1 + torch.rand(2 * both.each, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = [p.solve(each) for p, each in zip(parts, damping.chunk(2))]
    torch.testing.assert_close(both.solve(damping), torch.cat(alone))
    # One whose matrix is not positive definite has no step, the other still has.
    both.shared[0, 0, 0] -= 1e4
    step = both.solve(damping)
    assert bool(step[: both.each].isnan().all())
    torch.testing.assert_close(step[both.each :], alone[1])


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_rows_of_several_views_are_their_squares(slots, grouped, moments, factored):
    """With shared parameters in one place, or copies of them that some views share (grouped)."""
    gen = torch.Generator().manual_seed(slots)
    index, n = layout(grouped, moments), LOCAL + Q
    T, own = owners(moments)
    system = ArrowSystem.zeros(T, SHARED, own)
    if factored:
        system.dense_limit = 0
    views = [torch.tensor(v) for v in ([0, 1, 3, 0], [1, 2, 0, 1], [2, 3, 1, 3])[:slots]]
    rows = [torch.randn(4, 5, n, generator=gen, dtype=torch.float64) for _ in views]
    system.add_rows(views, index, rows)
    total = SHARED + T * own
    whole = sum(dense_jacobian(index, v, r, total) for v, r in zip(views, rows)).reshape(-1, total)
    torch.testing.assert_close(system.dense(), whole.T @ whole)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_squares_go_where_diagonal_rows_go(grouped, moments):
    gen = torch.Generator().manual_seed(3)
    index, n = layout(grouped, moments), LOCAL + Q
    T, own = owners(moments)
    squares, rows = ArrowSystem.zeros(T, SHARED, own), ArrowSystem.zeros(T, SHARED, own)
    view, values = torch.tensor([2, 0, 1, 3, 2]), torch.randn(5, n, generator=gen, dtype=torch.float64)
    squares.add_squares(view, index, values**2)
    rows.add_rows([view], index, [torch.diag_embed(values)])
    assert float(squares.diagonal().max()) > 0
    torch.testing.assert_close(squares.dense(), rows.dense())
    # What is known of places serves another system of the same layout, and not other views.
    again = ArrowSystem.zeros(T, SHARED, own, places=squares._places)
    again.add_squares(view, index, values**2)
    assert torch.equal(again.dense(), squares.dense())
    again.add_squares(view[:2], index, values[:2] ** 2)
    rows.add_rows([view[:2]], index, [torch.diag_embed(values[:2])])
    torch.testing.assert_close(again.dense(), rows.dense())


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_and_gradients_find_their_places_again(grouped):
    gen = torch.Generator().manual_seed(4)
    index, n, places = layout(grouped), LOCAL + Q, {}
    for views in ([0, 1, 3], [1, 2, 0], [0, 1, 3]):
        view = [torch.tensor(views), torch.tensor(views[::-1])]
        rows = [torch.randn(3, 5, n, generator=gen, dtype=torch.float64) for _ in view]
        kept, anew = (ArrowSystem.zeros(B, SHARED, Q, places=p) for p in (places, None))
        for system in (kept, anew):
            system.add_rows(view, index, rows)
            system.add_gradient(view[0], index, rows[0][:, 0])
        assert torch.equal(kept.dense(), anew.dense()) and torch.equal(kept.gradient, anew.gradient)
    assert len(places) == 4  # rows and gradients of two lists of views
