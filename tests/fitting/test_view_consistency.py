"""Views of one person agree; a view of another person, or from no other direction, is found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import observe, tiny_model, tiny_state
from test_run import photos
from test_uncertainty import problem

from fitkit.energies.flow_correspondence import (
    FlowCorrespondence,
    FlowImages,
    FlowOptions,
    Matches,
    view_pairs,
)
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.fitting import view_consistency
from fitkit.fitting.findings import judge
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.report import ScaleReport
from fitkit.fitting.run import fit_observed
from fitkit.fitting.view_consistency import _match_shares, leave_one_out, parallax, two_people
from fitkit.geometry.rotation import so3_exp
from fitkit.models.io import load_model_file
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

YAWS = (-50.0, -25.0, 0.0, 25.0, 50.0)


@pytest.fixture(scope="module")
def model():
    full = load_model_file(Path(__file__).parents[2] / "assets" / "generic.npz")
    return replace(full, identity_basis=full.identity_basis[:40])


def marks_of(model, seed, yaws=YAWS, size=400, noise=1.5):
    """Landmarks with noise (px) of a person of their own for each seed."""
    gen = torch.Generator().manual_seed(seed)
    B = len(yaws)
    turn = torch.deg2rad(torch.tensor([[0.0, y, 0.0] for y in yaws]))
    pose = Pose(
        torch.diag(torch.tensor([1.0, -1, -1])) @ so3_exp(turn), torch.tensor([[0.0, 0, 1000]]).repeat(B, 1)
    )
    camera = Camera(torch.full((B,), 3.0 * size), torch.full((B, 2), (size - 1) / 2), torch.ones(B))
    state = SceneState(
        torch.randn(1, model.num_identity, generator=gen),
        torch.zeros(B, dtype=torch.int64),
        torch.zeros(B, model.num_expression),
        pose,
        camera,
        torch.zeros(B, 9, 1),
    )
    marks = observe(model, state, size).landmarks
    return replace(
        marks,
        points=marks.points + noise * torch.randn(B, 68, 2, generator=gen),
        sigma=torch.full_like(marks.sigma, torch.nan),
    )


def fitted(model, marks):
    return fit_observed(photos(len(marks.points)), marks, model, load_recipe("landmarks"))


def test_one_person(model):
    result = fitted(model, marks_of(model, 0))
    assert result.status == "ok" and result.metrics["verdict"]["findings"] == []
    assert all(0.3 < v["shape_shift"] < 1.3 for v in result.metrics["views"])
    assert result.metrics["parallax_deg"] == pytest.approx(100, abs=8)


@pytest.mark.parametrize("wrong", [0, 2])
def test_another_person_among_good_views_is_named(model, wrong):
    good, other = marks_of(model, 0), marks_of(model, 5)
    points = good.points.clone()
    points[wrong] = other.points[wrong]
    result = fitted(model, replace(good, points=points))
    found = result.metrics["verdict"]["findings"]
    assert result.status == "doubtful" and [f["view"] for f in found if f["code"] == "view_disagrees"] == [
        f"view{wrong}"
    ]


def test_scrambled_landmarks_are_named(model):
    marks = marks_of(model, 0)
    points = marks.points.clone()
    points[1] = points[1, torch.randperm(68, generator=torch.Generator().manual_seed(0))]
    result = fitted(model, replace(marks, points=points))
    assert result.status != "ok" and any(f["view"] == "view1" for f in result.metrics["verdict"]["findings"])


def test_the_same_view_again_has_no_parallax(model):
    result = fitted(model, marks_of(model, 0, yaws=(10.0, 10.0, 10.0)))
    assert result.metrics["parallax_deg"] < 5
    assert (
        "little_parallax" in [f["code"] for f in result.metrics["verdict"]["findings"]]
        and result.status == "doubtful"
    )


def test_single_view_is_a_note_only(model):
    result = fitted(model, marks_of(model, 0, yaws=(10.0,)))
    assert (
        result.warnings == ()
        and result.metrics["parallax_deg"] is None
        and result.metrics["views"][0]["shape_shift"] is None
    )
    assert [f["code"] for f in result.metrics["verdict"]["findings"]] == ["single_view"]


def test_leaving_out_by_brute_force():
    """The shift from the normal equations of all views against that of the system without the view, solved
    whole."""
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, 3)
    exact = observe(model, state)
    shaken = exact.landmarks.points + torch.randn(
        3, 68, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    p = problem(model, state, replace(exact, landmarks=replace(exact.landmarks, points=shaken)))
    got = leave_one_out(p, state)
    A, b = reduced_system(p, state, p.observations.landmarks.valid)
    for v in range(3):
        valid = p.observations.landmarks.valid.clone()
        valid[v] = False
        Av, bv = reduced_system(p, state, valid)
        d = torch.linalg.solve(A, b) - torch.linalg.solve(Av, bv)
        inverse, spread = torch.linalg.inv(Av), (A - Av) - (A - Av) @ torch.linalg.solve(A, A - Av)
        expected = torch.trace(inverse @ A @ inverse @ spread)
        assert got[v] == pytest.approx(float((d @ A @ d / expected).sqrt()), rel=1e-3)


def reduced_system(p, state, valid):
    """Matrix and gradient of the shared parameters with the landmarks that are valid, all views' own ones
    eliminated, solved whole."""
    o = replace(p.observations, landmarks=replace(p.observations.landmarks, valid=valid))
    shared = p.layout.num_shared
    system = LeastSquaresProblem(Objective(p.objective.terms), o, p.layout).linearize(state)
    H, g = system.dense(), system.gradient
    H = H + 1e-9 * torch.diag(p.linearize(state).diagonal())  # a view that is left out has no own pose
    side = torch.linalg.solve(H[shared:, shared:], H[shared:, :shared])
    return H[:shared, :shared] - H[:shared, shared:] @ side, g[:shared] - side.T @ g[shared:]


def test_odds_of_two_people_by_brute_force(monkeypatch):
    """Against Gaussian integrals over the whole systems of each group."""
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, 3)
    exact = observe(model, state)
    shaken = exact.landmarks.points + torch.randn(
        3, 68, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    p = problem(model, state, replace(exact, landmarks=replace(exact.landmarks, points=shaken)))

    width = p.layout.sizes["identity"]
    assert p.layout.shared_offsets["identity"] == 0 and "landmarks" not in p.layout.sizes

    def evidence(group):
        valid = p.observations.landmarks.valid.clone()
        valid[[v for v in range(3) if v not in group]] = False
        A, b = reduced_system(p, state, valid)
        A, b = A[:width, :width], b[:width]
        return float(b @ torch.linalg.solve(A, b) / 2 - torch.linalg.slogdet(A).logabsdet / 2)

    one, prior = evidence((0, 1, 2)), evidence(())
    odds = {
        (0,): evidence((0,)) + evidence((1, 2)),
        (1,): evidence((1,)) + evidence((0, 2)),
        (0, 1): evidence((0, 1)) + evidence((2,)),
    }
    best = max(odds, key=odds.get)
    found = two_people(p, state)
    assert (
        found.group == best
        and found.log_odds == pytest.approx(odds[best] - one - prior, rel=1e-4)
        and not found.apart
    )


@pytest.mark.parametrize("wrong", [(2, 3), (1, 3), (2, 3, 4, 5)])
def test_half_of_the_views_of_another_person(model, wrong):
    yaws = YAWS[:4] if len(wrong) == 2 else (-50.0, -35.0, -20.0, -10.0, 0.0, 10.0, 20.0, 35.0, 50.0)
    good, other = marks_of(model, 0, yaws), marks_of(model, 5, yaws)
    points = good.points.clone()
    points[list(wrong)] = other.points[list(wrong)]
    result = fitted(model, replace(good, points=points))
    people = result.metrics["two_people"]
    groups = {
        frozenset(people["views"]),
        frozenset(v["name"] for v in result.metrics["views"]) - frozenset(people["views"]),
    }
    assert (
        frozenset(f"view{i}" for i in wrong) in groups
        and people["log_odds"] > 4.5
        and not people["matched_apart"]
    )
    (found,) = (f for f in result.metrics["verdict"]["findings"] if f["code"] == "two_people")
    assert (
        result.status == "doubtful"
        and "their landmarks fit two faces far better than one; check the photos" in found["message"]
    )
    known = judge(replace(result.report, scale=ScaleReport(metric=True))).warnings
    assert any(
        "better than one; check the photos and the R and t of their cameras, and fit each person alone"
        in line
        for line in known
    )
    assert fitted(model, good).metrics["two_people"]["log_odds"] < -4


def test_matches_within_groups_only():
    shares = {(0, 1): 0.6, (2, 3): 0.13, (1, 2): 0.05, (0, 3): 0.04}
    pairs = frozenset([0, 1]), frozenset([2, 3])
    assert all(view_consistency._matched_apart(shares, g) for g in pairs)
    assert not any(
        view_consistency._matched_apart(shares | {(2, 3): 0.1}, g) for g in pairs
    )  # 2 and 3 match each other hardly better
    assert not view_consistency._matched_apart(shares | {(0, 2): 0.25}, pairs[0])
    assert not view_consistency._matched_apart(shares, frozenset([0]))  # matches one of the others
    assert not view_consistency._matched_apart({}, frozenset([0])) and not view_consistency._matched_apart(
        {(0, 1): 0.02}, frozenset([0])
    )


def test_parallax_of_turned_heads():
    model = tiny_model()
    state = tiny_state(model, 2)
    front = torch.diag(torch.tensor([1.0, -1, -1]))[None]
    turned = front @ so3_exp(torch.tensor([[0.0, 0.5, 0.0]]))
    pose = Pose(
        torch.cat([front, turned]), state.pose.translation[:1].repeat(2, 1) * torch.tensor([0.0, 0, 1])
    )
    assert parallax(state.replace(pose=pose))[0][0] == pytest.approx(28.65, abs=0.1)


def test_shares_that_the_last_stage_has_are_not_computed_again(monkeypatch):
    model = tiny_model()
    state = tiny_state(model, 3, 160)
    options = FlowOptions(neighbors=2, both_ways=0, max_angle_deg=180)
    pairs = view_pairs(state, options)
    calls = []

    def matches(pairs, share):
        view_a, view_b = torch.tensor(pairs).T
        return Matches(view_a, view_b, *[None] * 5, matched=torch.full((len(pairs),), share))

    def find(model, state, photos, estimator, options):
        assert photos.moment is None  # of all moments
        calls.append(options)
        return matches(pairs, 0.5)

    monkeypatch.setattr(view_consistency, "find_matches", find)

    def shares(known):
        photos = FlowImages(torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2), 1.0, torch.zeros(3))
        energy = FlowCorrespondence(model, options, None, 1.0, photos, matches(known, 0.25))
        return _match_shares(LeastSquaresProblem(Objective([Term(energy)]), None, None), state)

    assert shares([*pairs, pairs[0][::-1]]) == dict.fromkeys(pairs, 0.25) and not calls
    assert shares(pairs[1:]) == dict.fromkeys(pairs, 0.5) and len(calls) == 1
