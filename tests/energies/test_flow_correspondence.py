from dataclasses import replace
from pathlib import Path

import pytest
import torch
from derivatives import check_everything
from helpers import observe, photograph, tiny_model, tiny_state

from fitkit.energies.flow_correspondence import (
    FlowCorrespondence,
    FlowImages,
    FlowOptions,
    Matches,
    MatchesTerm,
    normalize_contrast,
    pair_noise,
    view_pairs,
)
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.models.io import load_model_file
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.sampling import sample
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.camera import KINDS
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose
from fitkit.scene.projection import project_points
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
NEXT, FARTHER = FlowOptions(), FlowOptions(neighbors=2, both_ways=4)


def truth(kind="perspective", views=3, size=160):
    state = tiny_state(MODEL, views, size)
    return state.replace(camera=replace(state.camera, kind=kind, aspect=state.camera.aspect * 1.05))


def perfect_matches(state, points=25):
    """Matches of the model's own surface points between neighbouring views."""
    pairs = view_pairs(state, NEXT)
    view_a, view_b = (torch.tensor([p[i] for p in pairs]) for i in (0, 1))
    gen = torch.Generator().manual_seed(0)
    front = (MODEL.mean[MODEL.triangles][:, :, 2].amin(1) > 30).nonzero()[:, 0]
    triangle = front[torch.randint(len(front), (points,), generator=gen)]
    weight = 0.1 + torch.rand(points, 3, generator=gen, dtype=torch.float64)
    pixels = project_points(MODEL.at(triangle, weight / weight.sum(1, keepdim=True)), state).pixels
    G = len(pairs)
    return Matches(
        view_a,
        view_b,
        pixels[view_a],
        pixels[view_b],
        triangle.expand(G, -1),
        torch.rand(G, points, generator=gen, dtype=torch.float64),
        torch.ones(G, points, dtype=torch.bool),
    )


def energy_with(matches, sigma=1.3):
    return FlowCorrespondence(MODEL, FlowOptions(), None, sigma, None, matches)


def moved(state, size=1.0):
    step = torch.tensor([0.03, -0.05, 0.02, 4, -3, 10], dtype=torch.float64) * size
    turns = torch.stack(
        [
            step,
            -0.5 * step,
            0.7 * step.flip(0) * torch.tensor([0.01, 0.01, 0.01, 50, 50, 50], dtype=torch.float64),
        ]
    )[: state.num_views]
    return state.replace(pose=state.pose.retract(turns), identity=state.identity * 0.5)


# ---- the residual at given matches ----


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_the_truth(kind):
    state = truth(kind)
    r = energy_with(perfect_matches(state)).residuals(state, None)
    assert r.value.shape == (4, 25, 2) and bool(r.valid.all()) and float(r.value.abs().max()) < 1e-8


@pytest.mark.parametrize("expressions", ["one", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, expressions):
    state = truth(kind)
    if expressions == "one":
        state = state.replace(expression=state.expression[:1].expand(3, -1).clone())
    m = perfect_matches(state)
    valid = m.valid.clone()
    valid[1, 4] = valid[3, :3] = False
    at = moved(state)
    check_everything(energy_with(replace(m, valid=valid)), at, observe(MODEL, state))


def test_residual_is_the_missed_distance_in_view_b():
    # View b's principal point moves by (2, -1) px: every match misses by that much, over sigma.
    state = truth()
    energy = energy_with(perfect_matches(state))
    camera = replace(
        state.camera,
        principal=state.camera.principal + torch.tensor([[0.0, 0], [2, -1], [0, 0]], dtype=torch.float64),
    )
    value = energy.residuals(state.replace(camera=camera), None).value
    into = energy.matches.view_b == 1
    torch.testing.assert_close(
        value[into],
        torch.tensor([2.0, -1], dtype=torch.float64).div(1.3).expand_as(value[into]),
        atol=1e-8,
        rtol=0,
    )


def test_a_common_motion_of_head_and_cameras_leaves_it():
    # With the same step for all views of a rig and the surface moved back in the head frame nothing changes;
    # here the equivalent: all cameras of the rig are turned around the head frame's origin.
    state = truth()
    turn = so3_exp(torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64))
    m = perfect_matches(state)
    before = energy_with(m).residuals(moved(state), None).value
    rotated = FlowCorrespondence(
        replace(
            MODEL,
            mean=MODEL.mean @ turn.T,
            identity_basis=MODEL.identity_basis @ turn.T,
            expression_basis=MODEL.expression_basis @ turn.T,
        ),
        FlowOptions(),
        None,
        1.3,
        None,
        m,
    )
    at = moved(state)
    after = rotated.residuals(
        at.replace(pose=Pose(at.pose.rotation @ turn.T, at.pose.translation)), None
    ).value
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_crop_size_and_sigma_scale_together(scale):
    state = truth()
    m, at = perfect_matches(state), moved(truth())
    large = replace(m, pixel_a=m.pixel_a * scale, pixel_b=m.pixel_b * scale)
    camera = at.camera.scaled(
        torch.full((3,), scale, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    )
    one = Objective([Term(energy_with(m))]).cost(at, None)[0]
    two = Objective([Term(energy_with(large, 1.3 * scale))]).cost(at.replace(camera=camera), None)[0]
    torch.testing.assert_close(one, two)


def test_matches_that_are_not_valid_change_nothing():
    state = truth()
    m, at = perfect_matches(state), moved(truth())
    valid = m.valid.clone()
    valid[:, ::2] = False
    layout = ParameterLayout.of(at, ("identity", "pose", "focal"))
    results = []
    for fill in (0.0, 1e7, torch.nan):
        pixel_b = torch.where(valid[..., None], m.pixel_b, fill)
        weight = torch.where(valid, m.weight, fill)
        objective = Objective(
            [
                Term(
                    energy_with(replace(m, pixel_b=pixel_b, weight=weight, valid=valid)),
                    1.0,
                    Kernel("gm", 3.0),
                )
            ]
        )
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost, _ = objective.cost(retract(at, step, layout), None)
        results.append(
            (cost.detach(), torch.autograd.grad(cost, step)[0], objective.linearize(at, None, layout).dense())
        )
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b) and bool(torch.isfinite(a).all())


def test_no_valid_match():
    state = truth()
    m = perfect_matches(state)
    layout = ParameterLayout.of(state, ("identity", "pose"))
    energy = energy_with(replace(m, valid=torch.zeros_like(m.valid)))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = Objective([Term(energy)]).cost(retract(state, step, layout), None)
    (gradient,) = torch.autograd.grad(cost, step)
    assert float(cost.detach()) == 0 and report["flow_corr"].valid == 0 and float(gradient.abs().max()) == 0


# ---- which views, which pixels ----


def test_pairs_are_neighbours_in_yaw_both_ways():
    state = tiny_state(MODEL, 4).to(dtype=torch.float64)
    order = [2, 0, 3, 1]
    shuffled = state.replace(pose=state.pose.select(order))
    # View i of the shuffled state has the yaw rank order[i].
    expected = {(a, b) for a in range(4) for b in range(4) if abs(order[a] - order[b]) == 1}
    assert set(view_pairs(shuffled, NEXT)) == expected and len(view_pairs(shuffled, NEXT)) == 6
    assert len(set(view_pairs(shuffled, FlowOptions(neighbors=3, max_angle_deg=360, both_ways=6)))) == 12
    assert view_pairs(tiny_state(MODEL, 1)) == []


def test_contrast_is_normalized_locally():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = torch.sin(x / 2) * torch.cos(y / 3)
    dim, bright = 0.3 + 0.06 * waves, 0.5 + 0.004 * x + 0.12 * waves
    one, two = normalize_contrast(dim[None, None], 3.0), normalize_contrast(bright[None, None], 3.0)
    inner = (..., slice(10, -10), slice(10, -10))
    assert float((one - two)[inner].abs().mean()) < 0.05 and 0.1 < float(one[inner].std()) < 0.3
    assert torch.equal(normalize_contrast(dim[None, None], 0.0)[0, 0], dim)
    flat = normalize_contrast(torch.full((1, 1, 32, 32), 0.7), 3.0)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))


@pytest.fixture(scope="module")
def triplet():
    """Three pictures of a person made with the shipped model, 224 px, and the state that made them."""
    model = load_model_file(Path(__file__).parents[2] / "assets" / "generic.npz")
    state = tiny_state(model, 3, 224, expression=0.0)
    state = state.replace(
        pose=Pose(
            torch.diag(torch.tensor([1.0, -1, -1]))
            @ so3_exp(torch.tensor([[0.0, -0.4, 0], [0, 0, 0], [0, 0.4, 0]])),
            state.pose.translation,
        )
    )
    return model, state, observe(model, state, 224, photograph(model, state, 224))


def flow_energy(model, observations, options=FlowOptions(size=224, points=400)):
    return FlowCorrespondence(
        model, options, make_flow_estimator("dis"), options.sigma_px, FlowImages.of(observations, options)
    )


def test_matches_of_perfect_pictures(triplet):
    model, state, obs = triplet
    frozen = flow_energy(model, obs).freeze(state, obs)
    r = frozen.residuals(state, obs)
    assert int(r.valid.sum()) > 0.7 * r.valid.numel()
    assert bool(model.skin[model.triangles[frozen.matches.triangle[r.valid]]].all())
    miss = (r.value * frozen.sigma_px).norm(dim=-1)
    for g in range(len(miss)):  # each pair has matches of its own, and the flow finds nothing left to correct
        assert float(miss[g][r.valid[g]].median()) < 0.15
    assert float(frozen.matches.weight[r.valid].min()) > 0


def test_a_match_leads_to_the_same_skin(triplet):
    # From a state that is off, pixel a in photo a and pixel b in photo b still show the same point of the
    # true surface.
    model, state, obs = triplet
    off = state.replace(
        pose=state.pose.retract(torch.tensor([[0.0] * 6, [0.02, 0.03, 0.01, 2, 1, 0], [0.0] * 6]))
    )
    m = flow_energy(model, obs).freeze(off, obs).matches
    fragments = rasterize(
        state.camera.clip(state.pose.apply(state.vertices(model))), model.triangles, (224, 224)
    )
    place = interpolate(fragments, model.triangles, model.mean[None]).permute(0, 3, 1, 2)
    at_a, at_b = sample(place[m.view_a], m.pixel_a)[0], sample(place[m.view_b], m.pixel_b)[0]
    gap = (at_a - at_b).norm(dim=-1)[m.valid]
    assert float(gap.median()) < 1.0  # mm; a pixel is 1.4 mm


def test_masked_pixels_give_no_matches(triplet):
    model, state, obs = triplet
    mask = obs.mask.clone()
    mask[1, :, :112] = False
    m = flow_energy(model, replace(obs, mask=mask)).freeze(state, obs).matches
    for view, pixel in ((m.view_a, m.pixel_a), (m.view_b, m.pixel_b)):
        own = pixel[view == 1][m.valid[view == 1]]
        assert len(own) > 50 and float(own[:, 0].min()) > 110


def test_nothing_usable_and_one_view(triplet):
    model, state, obs = triplet
    blind = replace(obs, mask=torch.zeros_like(obs.mask))
    cost, report = Objective([Term(flow_energy(model, blind))]).freeze(state, blind).cost(state, blind)
    assert float(cost) == 0 and report["flow_corr"].valid == 0
    one = state.replace(
        expression=state.expression[:1],
        subject=state.subject[:1],
        pose=state.pose.select([0]),
        camera=state.camera.select([0]),
    )
    message = (
        r"energy 'flow_corr' compares views: expected at least 2 .*, got 1 view\(s\) .*; give its "
        r"stage min_views: 2"
    )
    with pytest.raises(InputError, match=message):
        flow_energy(model, obs).freeze(one, obs)


def test_converges_from_five_degrees_and_five_pixels(triplet):
    """View 1 has no landmarks and starts 5 degrees and 5 px off; the matches with its neighbours must bring
    it home."""
    model, state, obs = triplet
    valid = obs.landmarks.valid.clone()
    valid[1] = False
    known = replace(obs, landmarks=replace(obs.landmarks, valid=valid))
    pixel = 900 / float(state.camera.focal[1])  # mm at the face
    axis = torch.nn.functional.normalize(torch.tensor([0.5, 0.8, 0.3]), dim=0) * torch.deg2rad(
        torch.tensor(5.0)
    )
    away = torch.cat([axis, torch.tensor([4.0, 3.0, 0]) * pixel])
    start = state.replace(pose=state.pose.retract(torch.stack([torch.zeros(6), away, torch.zeros(6)])))

    def error(s):
        seen = project_points(model.landmark_basis, s).pixels[1, 17:]
        return float((seen - obs.landmarks.points[1, 17:]).norm(dim=-1).mean())

    assert error(start) > 5
    objective = Objective(
        [
            Term(flow_energy(model, known), 300.0, Kernel("gm", 3.0)),
            Term(LandmarkReprojection(model, torch.ones(3, 68), "surface")),
        ]
    )
    layout = ParameterLayout.of(start, ("pose",))
    at = start
    for _ in range(4):
        problem = LeastSquaresProblem(objective.freeze(at, known), known, layout)
        result = levenberg_marquardt(problem, at, LMOptions(6))
        assert result.cost_history[-1] <= result.cost_history[0]
        at = result.x
    assert error(at) < 0.5
    turn = torch.rad2deg(
        (state.pose.rotation[1].T @ at.pose.rotation[1]).diagonal().sum().sub(1).div(2).clamp(-1, 1).acos()
    )
    assert float(turn) < 0.6


def test_many_views_are_paired_in_alternating_directions():
    yaw = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64)
    frontal = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    turn = so3_exp(torch.stack([0 * yaw, yaw, 0 * yaw], 1))
    state = truth(views=10)
    state = state.replace(pose=Pose(frontal @ turn, torch.zeros(10, 3, dtype=torch.float64)))
    for options in (NEXT, FARTHER):  # so many views lie close together: the next ones are enough
        pairs = view_pairs(state, options)
        assert len(pairs) == 9 and {tuple(sorted(p)) for p in pairs} == {(i, i + 1) for i in range(9)}
        assert len({a < b for a, b in pairs}) == 2
    few = state.select(torch.arange(5))
    assert sorted(view_pairs(few, NEXT)) == sorted(
        [(i, i + 1) for i in range(4)] + [(i + 1, i) for i in range(4)]
    )


def test_farther_neighbours_join_where_they_see_the_same():
    # Five views 27 degrees apart: pairs of next and next but one views; three views 55 degrees apart: 110
    # degrees are too far.
    state = truth(views=5)
    yaw = torch.deg2rad(torch.tensor([0.0, -55, 27, 55, -28], dtype=torch.float64))
    turn = so3_exp(torch.stack([0 * yaw, yaw, 0 * yaw], 1))
    state = state.replace(
        pose=Pose(
            torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)) @ turn,
            torch.zeros(5, 3, dtype=torch.float64),
        )
    )
    rank = [2, 0, 3, 4, 1]
    pairs = view_pairs(state, FARTHER)
    assert sorted(tuple(sorted((rank[a], rank[b]))) for a, b in pairs) == sorted(
        [(i, i + 1) for i in range(4)] + [(i, i + 2) for i in range(3)]
    )
    wide = state.select([0, 1, 3])
    assert sorted(view_pairs(wide, FARTHER)) == [(0, 1), (0, 2), (1, 0), (2, 0)]


# ---- what matches are worth ----


def test_noise_is_read_off_across_the_epipolar_lines():
    # Noise of 0.5 px is found; a wrong shape, which moves matches by much more but along the lines only, is
    # not taken for noise.
    state = truth()
    m = perfect_matches(state, 400)
    noise = 0.5 * torch.randn(
        m.pixel_b.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    noisy = energy_with(replace(m, pixel_b=m.pixel_b + noise))
    torch.testing.assert_close(
        pair_noise(noisy, state), torch.full((4,), 0.5, dtype=torch.float64), rtol=0.2, atol=0
    )
    wrong = state.replace(identity=state.identity + 1.0)
    exact = energy_with(m)
    off = (exact.residuals(wrong, None).value * exact.sigma_px).norm(dim=-1).median()
    assert float(off) > 0.5 and float(pair_noise(exact, wrong).max()) < 0.2 * float(off)
    torch.testing.assert_close(
        pair_noise(noisy, wrong), torch.full((4,), 0.5, dtype=torch.float64), rtol=0.3, atol=0
    )


def test_a_pair_counts_by_its_noise_and_by_how_much_of_it_matches():
    state = truth()
    m = perfect_matches(state, 400)
    noise = torch.randn(m.pixel_b.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise *= torch.tensor([0.5, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None, None]
    m = replace(
        m,
        pixel_b=m.pixel_b + noise,
        share=torch.tensor([1.0, 1.0, 0.5, 1.0]),
        matched=torch.tensor([0.9, 0.9, 0.9, 0.05]),
    )
    options = FlowOptions(patches=20.0, hold=True)
    energy = FlowCorrespondence(MODEL, options, None, 1.0, None, m)
    frozen = energy.freeze(state, None)
    assert (
        energy.reduction == "sum"
        and FlowCorrespondence(MODEL, FlowOptions(), None, 1.0, None, m).reduction == "mean"
    )
    worth = frozen.matches.weight.sum(1)
    sigma = frozen.matches.sigma
    torch.testing.assert_close(
        worth[:3], 20 * torch.tensor([1, 1, 0.5], dtype=torch.float64) / sigma[:3] ** 2
    )
    assert float(worth[3]) == 0  # as much matches as between two unlike pictures
    assert 3 < float(worth[0] / worth[1]) < 5
    # Held matches are not weighed twice.
    torch.testing.assert_close(frozen.freeze(state, None).matches.weight, frozen.matches.weight)
    check_everything(frozen, moved(state), observe(MODEL, state))


def test_pairs_of_one_expression_and_of_enlarged_photos_count_less():
    """The three views of four pairs, (0, 1), (1, 0), (1, 2), (2, 1): 0 and 1 show one expression."""
    state = truth()
    m = perfect_matches(state, 400)
    assert m.view_a.tolist() == [0, 1, 1, 2]
    noise = torch.randn(m.pixel_b.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    m = replace(m, pixel_b=m.pixel_b + noise, share=torch.ones(4), matched=torch.full((4,), 0.9))
    m = replace(m, sharp=torch.tensor([1.0, 1.0, 1.0, 0.25]))

    def worth(alike, shared_patches=0.0):
        options = FlowOptions(patches=60.0, hold=True)
        energy = FlowCorrespondence(MODEL, options, None, 1.0, None, m, alike, shared_patches)
        frozen = energy.freeze(state, None).matches
        return (frozen.weight.sum(1) * frozen.sigma**2).tolist()

    alike = torch.tensor([7, 7, 2])
    assert worth(alike, 20.0) == pytest.approx([20, 20, 60, 15])
    assert worth(alike) == worth(None, 20.0) == pytest.approx([60, 60, 60, 15])


def test_pairs_of_one_expression_need_others_to_differ_from():
    with pytest.raises(InputError, match="shared_patches 15: expected options.patches above 0"):
        MatchesTerm(shared_patches=15.0)


def test_enlarged_photos_are_not_sharp(triplet):
    _, _, obs = triplet  # 224 px

    def flow(size, scale):
        scales = torch.tensor([scale, 0.5, 4.0])
        return FlowImages.of(replace(obs, scale=scales), FlowOptions(size=size))

    # A photo pixel is `scale` crop pixels, and a crop pixel size / 224 of the flow's.
    torch.testing.assert_close(flow(224, 1.0).sharp, torch.tensor([1.0, 1.0, 1 / 16]))
    torch.testing.assert_close(flow(448, 2.0).sharp, torch.tensor([1 / 16, 1.0, 1 / 64]))


def test_too_few_matches_are_worth_nothing():
    state = truth()
    m = perfect_matches(state, 10)
    m = replace(m, share=torch.ones(4), matched=torch.ones(4))
    frozen = FlowCorrespondence(MODEL, FlowOptions(patches=20.0, hold=True), None, 1.0, None, m).freeze(
        state, None
    )
    assert float(frozen.matches.weight.abs().max()) == 0 and bool(frozen.matches.sigma.isinf().all())


def test_a_few_pixels_less_change_a_few_matches(triplet):
    model, state, obs = triplet
    mask = obs.mask.clone()
    mask[:, 100:102, 110:112] = False
    one, two = (
        flow_energy(model, obs).freeze(state, obs).matches,
        flow_energy(model, replace(obs, mask=mask)).freeze(state, obs).matches,
    )
    for g in range(len(one.view_a)):
        before, after = (
            {tuple(p) for p in m.pixel_a[g][m.valid[g]].round(decimals=2).tolist()} for m in (one, two)
        )
        assert len(before & after) > 0.7 * len(before)
