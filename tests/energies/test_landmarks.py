import math
from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import (
    EYE_PAIRS,
    LIP_PAIRS,
    LandmarkLikelihood,
    LandmarkReprojection,
    eye_offsets,
    jaw_profiles,
    lip_offsets,
    outline_vertices,
    points_in_sight,
)
from fitkit.energies.objective import Objective, Term
from fitkit.energies.registry import find
from fitkit.energies.spec import Context
from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.observe.labels import Labels
from fitkit.scene.camera import KINDS
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose

MODEL = tiny_model(dtype=torch.float64)
SIGMA = 1 + torch.rand(3, 68, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def truth(kind="perspective", views=3):
    state = tiny_state(MODEL, views)
    return state.replace(camera=replace(state.camera, kind=kind, aspect=state.camera.aspect * 1.05))


def perturbed(state):
    gen = torch.Generator().manual_seed(3)
    layout = ParameterLayout.of(state, ("identity", "expression", "pose", "focal"))
    scale = {"identity": 0.3, "expression": 0.1, "pose": 0.03, "focal": 0.05}
    step = torch.zeros(layout.total, dtype=torch.float64)
    for v in range(state.num_views):
        at = 0
        for name in layout.order:
            step[layout.index[v, at : at + layout.sizes[name]]] = scale[name]
            at += layout.sizes[name]
    state = state.replace(landmark_offset=torch.randn(1, 68, 3, generator=gen, dtype=torch.float64))
    return retract(state, step * torch.randn(layout.total, generator=gen, dtype=torch.float64), layout)


def damaged(obs):
    """Some landmarks not valid, with all that can be wrong in them; uneven confidence."""
    marks = obs.landmarks
    valid, points, confidence = marks.valid.clone(), marks.points.clone(), marks.confidence.clone()
    confidence[:, ::3] = 0.4
    for view, n, value in (
        (0, 3, torch.nan),
        (0, 37, torch.inf),
        (1, 62, 1e8),
        (2, 16, torch.nan),
        (2, 44, torch.nan),
    ):
        valid[view, n], points[view, n], confidence[view, n] = False, value, torch.nan
    return replace(obs, landmarks=replace(marks, points=points, valid=valid, confidence=confidence))


def energies(views=3):
    sigma = SIGMA[:views]
    return [
        LandmarkReprojection(MODEL, sigma, "surface"),
        LandmarkReprojection(MODEL, sigma, "outline"),
        LandmarkReprojection(MODEL, sigma, "auto"),
        eye_offsets(MODEL, sigma),
        lip_offsets(MODEL, sigma),
    ]


IDS = ["surface", "outline", "auto", "eye", "lip"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("energy", energies(), ids=IDS)
def test_derivatives(energy, kind):
    state = truth(kind)
    obs, at = damaged(observe(MODEL, state)), perturbed(state)
    frozen = energy.freeze(at, obs)
    if getattr(energy, "jaw", "") == "outline":
        assert int((frozen.jaw_vertices >= 0).sum()) > 5
    check_everything(frozen, at, obs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "energy", [e for k, e in zip(IDS, energies()) if k != "outline"], ids=[k for k in IDS if k != "outline"]
)
def test_zero_at_the_truth(energy, kind):
    state = truth(kind)
    obs = observe(MODEL, state)
    cost, report = Objective([Term(energy.freeze(state, obs))]).cost(state, obs)
    assert float(cost) < 1e-18 and report[energy.name].valid == report[energy.name].valid > 0


def test_residual_is_the_distance_in_sigmas():
    state = truth()
    obs = observe(MODEL, state)
    marks = obs.landmarks
    points = marks.points.clone()
    points[1, 30] += torch.tensor([3.0, -4.0], dtype=torch.float64)
    obs = replace(obs, landmarks=replace(marks, points=points))
    value = LandmarkReprojection(MODEL, SIGMA, "surface").residuals(state, obs).value
    torch.testing.assert_close(value[1, 30] * SIGMA[1, 30], torch.tensor([-3.0, 4.0], dtype=torch.float64))
    assert float(value.abs().sum()) == pytest.approx(7 / float(SIGMA[1, 30]))


@pytest.mark.parametrize("energy", energies(), ids=IDS)
def test_a_masked_landmark_changes_nothing(energy):
    state = truth()
    obs, at = damaged(observe(MODEL, state)), perturbed(state)
    layout = ParameterLayout.of(at, ("identity", "expression", "pose", "focal"))
    results = []
    for fill in (torch.nan, 0.0, -1e6):
        marks = obs.landmarks
        other = replace(
            obs, landmarks=replace(marks, points=torch.where(marks.valid[..., None], marks.points, fill))
        )
        objective = Objective([Term(energy.freeze(at, other), 1.0, Kernel("huber", 2.0))])
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost, _ = objective.cost(retract(at, step, layout), other)
        (gradient,) = torch.autograd.grad(cost, step)
        results.append((cost.detach(), gradient, objective.linearize(at, other, layout).dense()))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b) and bool(torch.isfinite(a).all())


@pytest.mark.parametrize("energy", energies(), ids=IDS)
def test_no_landmark_at_all(energy):
    state = truth()
    obs = observe(MODEL, state)
    marks = obs.landmarks
    obs = replace(
        obs, landmarks=replace(marks, valid=torch.zeros_like(marks.valid), points=marks.points * torch.nan)
    )
    layout = ParameterLayout.of(state, ("identity", "pose", "focal"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = Objective([Term(energy.freeze(state, obs), 1.0, Kernel("l1", 0.1))]).cost(
        retract(state, step, layout), obs
    )
    (gradient,) = torch.autograd.grad(cost, step)
    assert float(cost.detach()) == 0 and report[energy.name].valid == 0 and float(gradient.abs().max()) == 0


@pytest.mark.parametrize(
    "points, expected",
    [
        ("even", {}),
        ("dfmvr", {28: 20, 30: 20, 60: 20, 67: 20}),
        ("dfmvr_code", {28: 20, 36: 20, 47: 20, 60: 20}),
        (
            "mfnet",
            {5: 2, 6: 2, 10: 2, 11: 2, 27: 1.5, 30: 3, 31: 3, 34: 1.5, 35: 3, 48: 3, 50: 1.5, 54: 3, 67: 1.5},
        ),
    ],
)
def test_points_have_the_weights_of_the_papers(points, expected):
    state = truth()
    obs, away = observe(MODEL, state), perturbed(state)
    plain = LandmarkReprojection(MODEL, SIGMA, "surface").freeze(away, obs).residuals(away, obs)
    energy = LandmarkReprojection(MODEL, SIGMA, "surface", points=points).freeze(away, obs)
    weighed = energy.residuals(away, obs)
    assert torch.equal(weighed.value, plain.value)
    ratio = (weighed.weight / plain.weight)[0]
    assert {n: float(ratio[n]) for n in expected} == expected
    assert float(ratio[7]) == float(ratio[20]) == 1 and (points != "even" or bool((ratio == 1).all()))
    squares = plain.weight * ratio * plain.value.square().sum(-1)
    assert float(Objective([Term(energy)]).cost(away, obs)[0]) == pytest.approx(float(squares.sum()) / 2)
    check_everything(energy, away, obs, kernels=(Kernel("huber", 1.0),))


def test_a_pair_has_the_smaller_weight_of_its_points():
    state = truth()
    obs = observe(MODEL, state)
    r = lip_offsets(MODEL, SIGMA, "dfmvr").residuals(state, obs)
    assert torch.equal(r.weight, 20 * lip_offsets(MODEL, SIGMA).residuals(state, obs).weight)
    uneven = replace(lip_offsets(MODEL, SIGMA, "dfmvr"), pairs=((30, 31),)).residuals(state, obs)
    assert float(uneven.weight.max()) == 1


def test_points_that_are_labelled_as_hidden_may_be_left_out():
    state = truth()
    visible = torch.ones(3, 68, dtype=torch.bool)
    visible[0, [10, 37, 61]] = False
    obs = replace(observe(MODEL, state), labels=Labels(visible=visible))
    energy = LandmarkReprojection(MODEL, SIGMA, "surface")
    assert bool(energy.residuals(state, obs).valid.all())
    assert torch.equal(replace(energy, hidden=False).residuals(state, obs).valid, visible)
    for make in (eye_offsets, lip_offsets):
        assert int((~make(MODEL, SIGMA, hidden=False).residuals(state, obs).valid).sum()) == 1
    with pytest.raises(InputError, match="energy 'lmk2d' needs labels with 'visible'"):
        replace(energy, hidden=False).residuals(state, replace(obs, labels=None))


def test_landmarks_behind_the_camera_count_for_nothing():
    state = truth()
    obs = observe(MODEL, state)
    behind = state.replace(pose=Pose(state.pose.rotation, -state.pose.translation))
    for energy in energies():
        r = energy.freeze(behind, obs).residuals(behind, obs)
        assert not bool(r.valid.any()) and bool(torch.isfinite(r.value).all())


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("energy", energies(), ids=IDS)
def test_crop_size_and_sigma_scale_together(energy, scale):
    state = truth()
    obs, at = observe(MODEL, state), perturbed(state)
    factor, zero = torch.full((3,), scale, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    large = replace(obs, landmarks=replace(obs.landmarks, points=obs.landmarks.points * scale))
    at_large = at.replace(camera=at.camera.scaled(factor, zero))
    wide = replace(energy, sigma_px=energy.sigma_px * scale)
    one = Objective([Term(energy.freeze(at, obs))]).cost(at, obs)[0]
    two = Objective([Term(wide.freeze(at_large, large))]).cost(at_large, large)[0]
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("pairs,make", [(EYE_PAIRS, eye_offsets), (LIP_PAIRS, lip_offsets)])
def test_offsets_do_not_feel_a_common_shift(pairs, make):
    state = truth()
    obs = observe(MODEL, state)
    shifted = replace(obs, landmarks=replace(obs.landmarks, points=obs.landmarks.points + 25))
    value = make(MODEL, SIGMA).residuals(state, shifted).value
    assert float(value.abs().max()) < 1e-10
    open_ = obs.landmarks.points.clone()
    open_[0, pairs[0][0]] += torch.tensor([0.0, 2.0], dtype=torch.float64)
    value = (
        make(MODEL, SIGMA)
        .residuals(state, replace(obs, landmarks=replace(obs.landmarks, points=open_)))
        .value
    )
    sigma = (SIGMA[0, pairs[0][0]] ** 2 + SIGMA[0, pairs[0][1]] ** 2).sqrt()
    torch.testing.assert_close(value[0, 0], torch.tensor([0.0, -2.0], dtype=torch.float64) / sigma)
    assert float(value.abs().sum()) == pytest.approx(2 / float(sigma))


# ---- the jaw ----


def silhouette_points(state):
    """What an annotator of visible outlines would click: on each jaw profile line the point farthest out in
    the image."""
    vertex = outline_vertices(MODEL, state)
    seen, _ = state.camera.project(state.pose.apply(state.vertices(MODEL)))
    own = observe(MODEL, state).landmarks.points
    slide = vertex >= 0
    points = own.clone()
    points[:, :17] = torch.where(
        slide[..., None], seen.gather(1, vertex.clamp_min(0)[..., None].expand(-1, -1, 2)), own[:, :17]
    )
    return points


def turned(yaw):
    state = tiny_state(MODEL, 1)
    turn = so3_exp(torch.tensor([[0.0, yaw, 0.0]], dtype=torch.float64).deg2rad())
    frontal = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    return state.replace(pose=Pose(frontal @ turn, torch.tensor([[0.0, 0, 900]], dtype=torch.float64)))


def test_profiles_hold_skin_vertices_on_the_line_to_their_jaw_point():
    table = jaw_profiles(MODEL)
    marks = MODEL.landmarks.points(MODEL.mean[None], MODEL.triangles)[0]
    center = (marks[27, :2] + marks[8, :2]) / 2
    assert int((table >= 0).sum(1).max()) == table.shape[1] and int((table >= 0).sum()) > 20
    for j in range(17):
        row = table[j][table[j] >= 0]
        assert bool(MODEL.skin[row].all())
        to_vertex, to_mark = MODEL.mean[row, :2] - center, marks[j, :2] - center
        assert bool((to_vertex.norm(dim=1) <= to_mark.norm() + 4).all())
        assert bool(((to_vertex @ to_mark) / (to_vertex.norm(dim=1) * to_mark.norm()) > 0.9).all())


@pytest.mark.parametrize("yaw", [-40.0, 40.0])
def test_outline_slides_on_the_hidden_side_only(yaw):
    state = turned(yaw)
    vertex = outline_vertices(MODEL, state)[0]
    # At positive yaw the nose points to the right of the image and the face's half on the right, the
    # subject's left (points 9 to 16), is the far one.
    far, near = (slice(9, 17), slice(0, 8)) if yaw > 0 else (slice(0, 8), slice(9, 17))
    assert int((vertex[far] >= 0).sum()) >= 4 and int((vertex[near] >= 0).sum()) == 0
    seen, _ = state.camera.project(state.pose.apply(state.vertices(MODEL)))
    own = observe(MODEL, state).landmarks.points[0, :17]
    slid = (vertex >= 0).nonzero()[:, 0]
    outwards = seen[0, vertex[slid], 0] - own[slid, 0]
    assert float((outwards * (1 if yaw > 0 else -1)).mean()) > 1


@pytest.mark.parametrize("yaw", [-40.0, 40.0])
def test_auto_picks_the_rule_of_the_data(yaw):
    state = turned(yaw)
    auto = LandmarkReprojection(MODEL, SIGMA[:1])
    surface = observe(MODEL, state)
    assert not bool((auto.freeze(state, surface).jaw_vertices >= 0).any())
    outline = replace(surface, landmarks=replace(surface.landmarks, points=silhouette_points(state)))
    frozen = auto.freeze(state, outline)
    assert bool((frozen.jaw_vertices >= 0).any())
    assert float(frozen.residuals(state, outline).value.abs().max()) < 1e-9
    # also from a state that is a little off
    near = perturbed(state)
    assert bool((auto.freeze(near, outline).jaw_vertices >= 0).any()) and not bool(
        (auto.freeze(near, surface).jaw_vertices >= 0).any()
    )


def test_offsets_move_the_points_in_the_head_frame():
    # Points that lie 2 mm to the subject's left of the model's: one offset of 2 mm explains them in all
    # views, whatever their pose.
    state = truth()
    offset = torch.zeros(1, 68, 3, dtype=torch.float64)
    offset[..., 0] = 2.0
    points = MODEL.landmark_basis.points(state.identity[state.subject], state.expression) + offset
    obs = observe(MODEL, state)
    obs = replace(
        obs, landmarks=replace(obs.landmarks, points=state.camera.project(state.pose.apply(points))[0])
    )
    energy = LandmarkReprojection(MODEL, SIGMA, "surface").freeze(state, obs)
    assert float(energy.residuals(state, obs).value.norm(dim=-1).median()) > 0.3
    assert float(energy.residuals(state.replace(landmark_offset=offset), obs).value.abs().max()) < 1e-9


def test_points_that_the_model_hides_do_not_count_on_request():
    """In a half profile the far side of the jaw is hidden; rays to the camera tell which points are."""
    state = truth()
    turn = so3_exp(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    state = state.replace(pose=Pose(state.pose.rotation @ turn, state.pose.translation))
    obs = observe(MODEL, state)
    points = MODEL.landmark_basis.points(*state.coefficients())
    hidden = torch.stack([blocked(MODEL, state, points, b) for b in range(state.num_views)])
    seen = points_in_sight(MODEL, state, obs)
    assert 0.1 < float(hidden.double().mean()) < 0.6
    # At the edges pixels of the depth map decide otherwise now and then.
    assert float((seen == ~hidden).double().mean()) > 0.97
    for energy in (
        LandmarkReprojection(MODEL, SIGMA, "surface", facing=True),
        eye_offsets(MODEL, SIGMA, facing=True),
    ):
        frozen = energy.freeze(state, obs)
        valid, everything = (
            e.residuals(state, obs).valid for e in (frozen, replace(energy, facing=False).freeze(state, obs))
        )
        assert int(valid.sum()) < int(everything.sum())
        if valid.shape[1] == 68:
            assert torch.equal(valid, everything & seen)
        else:
            up, down = ([p[k] for p in EYE_PAIRS] for k in (0, 1))
            assert torch.equal(valid, seen[:, up] & seen[:, down])
        away = perturbed(state)
        check_everything(energy.freeze(away, obs), away, obs, kernels=(Kernel("l1", 0.1),))


def test_a_face_beside_the_picture_is_not_hidden():
    state = truth()
    obs = observe(MODEL, state)
    away = Pose(state.pose.rotation, state.pose.translation + 5000.0)
    assert points_in_sight(MODEL, state.replace(pose=away), obs).float().mean() > 0.9


def blocked(model, state, points, b):
    """Points [68] bool of view b with a triangle more than 10 mm in front of them."""
    corners = state.pose.apply(state.vertices(model))[b][model.triangles]
    ends = state.pose.apply(points)[b]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    out = []
    for end in ends:  # Moeller and Trumbore, from the camera at the origin
        p = torch.linalg.cross(end.expand_as(two), two)
        det = (one * p).sum(-1)
        s = -corners[:, 0]
        u = (s * p).sum(-1) / det
        q = torch.linalg.cross(s, one)
        v, t = (end * q).sum(-1) / det, (two * q).sum(-1) / det
        out.append(bool(((u > 0) & (v > 0) & (u + v < 1) & (t > 0) & ((1 - t) * end[2] > 10)).any()))
    return torch.tensor(out)


def test_the_likelihood_of_found_landmarks_is_that_of_a_normal_distribution():
    """Independent truth: torch.distributions."""
    obs = observe(MODEL, truth())
    given = replace(obs.landmarks, jaw="surface")
    given = replace(given, valid=given.valid.index_fill(1, torch.tensor([5, 40]), False))
    gen = torch.Generator().manual_seed(0)
    sigma = (0.5 + torch.rand(3, 68, generator=gen, dtype=torch.float64)).requires_grad_()
    points = (given.points + torch.randn(3, 68, 2, generator=gen, dtype=torch.float64)).requires_grad_()
    found = replace(given, points=points, sigma=sigma)
    options = find("landmark_nll").training_options()()

    def cost_of(marks, first):
        seen = replace(obs, landmarks=marks)
        energy = find("landmark_nll").make(Context(MODEL, seen, found), options)
        counted = given.valid & MODEL.landmarks.present & (torch.arange(68) >= first)
        expected = -torch.distributions.Normal(points, sigma[..., None]).log_prob(given.points).sum(-1)
        constant = math.log(2 * math.pi) + 2 * math.log(LandmarkLikelihood.FLOOR)
        value = Objective([Term(energy)]).cost(found, seen)[0].sum()
        return value, (expected - constant)[counted].sum()

    # Jaw points of the outline are others than those of the skin.
    for marks, first in ((given, 0), (replace(given, jaw="outline"), 17)):
        value, expected = cost_of(marks, first)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)
        ours, theirs = (torch.autograd.grad(c, (points, sigma)) for c in (value, expected))
        for one, two in zip(ours, theirs):
            torch.testing.assert_close(one, two)
    unknown = replace(given, jaw="auto")  # then a recipe says
    assert cost_of(unknown, 0)[0].item() == cost_of(given, 0)[0].item()
