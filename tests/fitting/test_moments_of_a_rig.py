"""Photos of several moments, each by all cameras of a rig: one pose and one expression for each moment."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import observe, tiny_model, tiny_state
from test_uncertainty import problem

from fitkit.cli.main import main
from fitkit.energies.objective import LeastSquaresProblem, Objective
from fitkit.errors import InputError
from fitkit.export.load import load_result
from fitkit.fitting import run
from fitkit.fitting.choose_start import with_owners
from fitkit.fitting.initialize import initial_state, landmark_start
from fitkit.fitting.recipe import CameraOptions, load_recipe
from fitkit.fitting.rig_check import check_rig
from fitkit.fitting.run import fit_observed
from fitkit.fitting.view_consistency import leave_one_out, two_people
from fitkit.io.landmark_files import write_pts
from fitkit.io.subject import KnownCamera, Subject, View, load_subject
from fitkit.models.registry import load_model
from fitkit.scene.layout import ParameterLayout

CAMERAS, SIZE = 3, 160


def scene(model, moments=3, seed=0, expression=0.5):
    """A person whose head and expression are others in each moment, seen by three cameras -> state, cameras
    of the views, which stand still, moment of each view."""
    gen = torch.Generator().manual_seed(seed)
    rig = tiny_state(model, CAMERAS, SIZE, seed)
    moment = torch.arange(moments * CAMERAS) // CAMERAS
    again = torch.arange(moments * CAMERAS) % CAMERAS
    head = torch.randn(moments, 6, generator=gen) * torch.tensor([0.15, 0.15, 0.1, 8, 8, 15])
    shown = expression * torch.rand(moments, model.num_expression, generator=gen)
    state = rig.replace(
        subject=torch.zeros(len(moment), dtype=torch.int64),
        expression=shown.to(rig.expression)[moment],
        pose=rig.pose.select(again).retract(head.to(rig.expression)[moment]),
        camera=rig.camera.select(again),
        illumination=rig.illumination[again],
    )
    cameras = [
        KnownCamera(*(x.double().numpy() for x in camera))
        for camera in zip(rig.camera.matrix(), rig.pose.rotation, rig.pose.translation)
    ]
    return state, [cameras[i] for i in again], moment


def subject_of(cameras, names):
    blank = np.full((SIZE, SIZE, 3), 128, np.uint8)
    views = (View(f"view{i}", blank, camera=c, moment=n) for i, (c, n) in enumerate(zip(cameras, names)))
    return Subject("moments", tuple(views))


def head_in_world(state, cameras):
    """[B, 3, 3], [B, 3]: the pose of the head in the world of the rig, as each view has it."""
    R, t = (torch.stack([torch.as_tensor(getattr(c, k)) for c in cameras]).float() for k in ("R", "t"))
    back = R.transpose(1, 2)
    return back @ state.pose.rotation, (back @ (state.pose.translation - t)[..., None])[..., 0]


@pytest.fixture(scope="module")
def fitted():
    model = tiny_model()
    truth, cameras, moment = scene(model)
    marks = observe(model, truth, SIZE).landmarks
    marks = replace(marks, sigma=torch.full_like(marks.sigma, torch.nan))
    subject = subject_of(cameras, [f"m{m}" for m in moment])
    return model, truth, cameras, fit_observed(subject, marks, model, load_recipe("landmarks"))


def test_heads_expressions_and_the_person_are_found_again(fitted):
    model, truth, cameras, result = fitted
    assert result.status == "ok" and result.metrics["scale"]["metric"]
    assert max(v["reprojection_share"] for v in result.metrics["views"]) < 0.005
    rotation, place = head_in_world(result.state, cameras)
    expected = head_in_world(truth, cameras)
    torch.testing.assert_close(rotation, expected[0], atol=0.02, rtol=0)
    torch.testing.assert_close(place, expected[1], atol=3, rtol=0)
    assert float((result.state.expression - truth.expression).abs().mean()) < 0.1
    # Without any alignment, mm.
    apart = (result.neutral - truth.neutral(model)[0])[model.face].norm(dim=-1).mean()
    assert float(apart) < 1.0


def test_views_of_a_moment_share_head_and_expression(fitted):
    _, _, cameras, result = fitted
    expression = result.state.expression.reshape(3, CAMERAS, -1)
    assert torch.equal(expression, expression[:, :1].expand_as(expression))
    assert float((expression[0, 0] - expression[1, 0]).abs().max()) > 0.05
    rotation, place = (x.reshape(3, CAMERAS, -1) for x in head_in_world(result.state, cameras))
    torch.testing.assert_close(rotation, rotation[:, :1].expand_as(rotation), atol=1e-5, rtol=0)
    torch.testing.assert_close(place, place[:, :1].expand_as(place), atol=0.01, rtol=0)
    assert float((place[0, 0] - place[1, 0]).norm()) > 3


def test_what_compares_photos_is_told_their_moments(monkeypatch):
    model, told = tiny_model(), []
    truth, cameras, moment = scene(model, 2)
    start = run.choose_start

    def choose_start(subject, found, model, recipe, observations, device):
        told.append(observations.moment.tolist())
        return start(subject, found, model, recipe, observations, device)

    monkeypatch.setattr(run, "choose_start", choose_start)
    marks = observe(model, truth, SIZE).landmarks
    run.fit_observed(subject_of(cameras, [*"aaab", "", "b"]), marks, model, load_recipe("landmarks"))
    assert told == [[0, 0, 0, 1, 2, 1]]


def test_start_of_moments():
    model = tiny_model()
    truth, cameras, moment = scene(model)
    obs = observe(model, truth, SIZE)
    names = [f"m{m}" for m in moment[:-1]] + [""]
    views = subject_of(cameras, names).views
    state, found = initial_state(model, views, obs, CameraOptions())
    assert found.pose_groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert found.moments.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3] and found.metric
    assert found.notes == ("the positions of 8 of 9 cameras are known; those of the others were estimated",)
    rotation, _ = head_in_world(state, cameras)
    torch.testing.assert_close(rotation[3:6], rotation[3:4].expand(3, -1, -1), atol=1e-5, rtol=0)

    # One photo of each moment: where the cameras stand tells nothing about a head that moves.
    alone = subject_of(cameras, [f"m{i}" for i in range(9)]).views
    _, found = initial_state(model, alone, obs, CameraOptions())
    assert found.pose_groups is None and not found.metric and found.moments.tolist() == list(range(9))
    assert found.notes == (
        "view view0, view1, view2, view3, view4 and 4 more: R and t of a single camera tell nothing and were "
        "not used",
    )


def test_views_of_a_named_camera_share_its_focal_length():
    model = tiny_model()
    truth, cameras, moment = scene(model)
    named = [replace(c, name=f"cam{i % CAMERAS}") for i, c in enumerate(cameras)]
    obs, moments = observe(model, truth, SIZE), [f"m{m}" for m in moment]

    def groups(cameras, **options):
        views = subject_of(cameras, moments).views
        found = initial_state(model, views, obs, CameraOptions(**options))[1]
        return found.focal_groups.tolist(), found.first.tolist()

    assert groups(named) == ([0, 1, 2] * 3, [True] * 3 + [False] * 6)
    assert groups([*named[:8], cameras[8]])[0] == [0, 1, 2, 0, 1, 2, 0, 1, 3]
    assert groups(named, share_focal="no") == (list(range(9)), [True] * 9)
    assert groups(cameras)[0] == [0] * 9  # of one K

    twice = [*named[:2], named[0], *named[3:]]
    expected = (
        "views 'view0' and 'view2': expected one photo of each camera .*, got two of camera 'cam0' in 'm0'"
    )
    with pytest.raises(InputError, match=expected):
        groups(twice)


def test_start_has_the_mean_expression_of_those_that_a_network_has_seen():
    model = tiny_model()
    truth, _, _ = scene(model)
    start = landmark_start(model, observe(model, truth, SIZE))
    seen = torch.tensor([True, True, False] + 6 * [False])
    start = replace(start, expression=torch.randn(9, 6), predicted=seen)
    got = with_owners(start, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])).expression
    torch.testing.assert_close(got[:3], start.expression[:2].mean(0).expand(3, -1))
    assert torch.equal(got[3:], start.expression[3:])


def test_rig_is_checked_moment_by_moment():
    """A head that moves between the moments contradicts cameras that stand still only where no moment is
    stated."""
    model = tiny_model()
    truth, cameras, moment = scene(model)
    away = torch.zeros(9, 6)
    away[3:6, 1], away[6:, 1] = 0.8, -0.8
    away[3:6, 3], away[6:, 3] = 90.0, -90.0
    marks = observe(model, truth.replace(pose=truth.pose.retract(away)), SIZE).landmarks
    subject = subject_of(cameras, [f"m{m}" for m in moment])
    assert check_rig(subject, marks, model) == (subject, [])
    with pytest.raises(InputError, match='give only K, or, .* the "moment" of each'):
        check_rig(subject_of(cameras, [""] * 9), marks, model)
    wrong = [replace(cameras[0], R=np.diag([1.0, -1, -1]) @ cameras[0].R), *cameras[1:]]
    kept, found = check_rig(subject_of(wrong, [f"m{m}" for m in moment]), marks, model)
    assert [c.view for c in found] == ["view0"]
    assert [v.camera.R is None for v in kept.views] == [True] + 8 * [False]


def moments_problem(model, noise=1.0):
    """A fit to noisy landmarks of two moments by three cameras and one by one camera."""
    state, _, _ = scene(model, 3)
    moment = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    state = state.select(list(range(7)))
    obs = observe(model, state, SIZE)
    shake = torch.randn(7, 68, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    marks = replace(obs.landmarks, points=obs.landmarks.points + noise * shake)
    p = problem(model, state, replace(obs, landmarks=marks))
    owners = {"expression": moment, "pose": moment}
    layout = ParameterLayout.of(state, ("identity", "expression", "pose", "focal"), owners, moment)
    return LeastSquaresProblem(p.objective, p.observations, layout), state


def reduced(p, state, views):
    """Matrix and gradient of the identity with the landmarks of `views` alone, all else eliminated, solved
    whole."""
    valid = torch.zeros_like(p.observations.landmarks.valid)
    valid[list(views)] = True
    o = replace(p.observations, landmarks=replace(p.observations.landmarks, valid=valid))
    system = LeastSquaresProblem(Objective(p.objective.terms), o, p.layout).linearize(state)
    H, g = system.dense(), system.gradient
    H = H + 1e-9 * torch.diag(p.linearize(state).diagonal().clamp_min(1e-9))
    K = p.layout.sizes["identity"]
    side = torch.linalg.solve(H[K:, K:], H[K:, :K])
    return H[:K, :K] - H[:K, K:] @ side, g[:K] - side.T @ g[K:]


def test_leaving_out_a_view_of_a_moment_by_brute_force():
    model = tiny_model(dtype=torch.float64)
    p, state = moments_problem(model)
    got = leave_one_out(p, state)
    A, b = reduced(p, state, range(7))
    for v in range(7):
        Av, bv = reduced(p, state, [w for w in range(7) if w != v])
        d = torch.linalg.solve(A, b) - torch.linalg.solve(Av, bv)
        inverse, spread = torch.linalg.inv(Av), (A - Av) - (A - Av) @ torch.linalg.solve(A, A - Av)
        expected = torch.trace(inverse @ A @ inverse @ spread)
        assert got[v] == pytest.approx(float((d @ A @ d / expected).sqrt()), rel=1e-3)


def test_two_people_are_looked_for_among_moments():
    model = tiny_model(dtype=torch.float64)
    p, state = moments_problem(model)
    moments = ((0, 1, 2), (3, 4, 5), (6,))

    def evidence(group):
        A, b = reduced(p, state, group)
        return float(b @ torch.linalg.solve(A, b) / 2 - torch.linalg.slogdet(A).logabsdet / 2)

    everyone, prior = evidence(range(7)), evidence(())
    odds = {}
    for group in ((0,), (1,), (0, 1)):
        views = sum((moments[m] for m in group), ())
        rest = [v for v in range(7) if v not in views]
        odds[views] = evidence(views) + evidence(rest) - everyone - prior
    best = max(odds, key=odds.get)
    found = two_people(p, state)
    assert found.group == best and found.log_odds == pytest.approx(odds[best], rel=1e-3)


def test_views_of_one_moment_are_one_person():
    model = tiny_model(dtype=torch.float64)
    p, state = moments_problem(model)
    one = torch.zeros(7, dtype=torch.int64)
    layout = ParameterLayout.of(state, ("identity", "expression", "pose"), {"expression": one}, one)
    p = LeastSquaresProblem(p.objective, p.observations, layout)
    assert two_people(p, state) is None and None not in leave_one_out(p, state)


def test_folder_with_moments(tmp_path):
    """`fitkit fit` of a folder whose cameras.json states moments; the result says them again."""
    model = load_model("generic")
    truth, cameras, moment = scene(model, 2)
    truth = truth.replace(identity=0.5 * truth.identity)
    points = observe(model, truth, SIZE).landmarks.points
    folder, entries = tmp_path / "anna", []
    folder.mkdir()
    for i, (camera, m) in enumerate(zip(cameras, moment.tolist())):
        picture = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        cv2.imwrite(str(folder / f"view{i}.png"), picture)
        write_pts(folder / f"view{i}.pts", points[i].numpy())
        entries.append(
            {"image": f"view{i}.png", "moment": f"m{m}", "camera_id": f"cam{i % CAMERAS}"}
            | {k: getattr(camera, k).tolist() for k in "KRt"}
        )
    (folder / "cameras.json").write_text(json.dumps({"views": entries}))
    assert [v.moment for v in load_subject(folder).views] == ["m0"] * 3 + ["m1"] * 3
    ran = CliRunner().invoke(main, ["fit", str(folder), "--recipe", "landmarks"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    written = json.loads((folder / "fitkit" / "cameras.json").read_text())["views"]
    assert [v["moment"] for v in written] == ["m0"] * 3 + ["m1"] * 3
    assert [v["camera_id"] for v in written] == ["cam0", "cam1", "cam2"] * 2
    result = load_result(folder / "fitkit")
    assert [v.moment for v in result.subject.views] == ["m0"] * 3 + ["m1"] * 3
    focal = result.state.camera.focal.reshape(2, CAMERAS)
    torch.testing.assert_close(focal[0], focal[1], rtol=1e-6, atol=0)
    expression = result.state.expression.reshape(2, CAMERAS, -1)
    assert torch.equal(expression, expression[:, :1].expand_as(expression))
    assert not torch.equal(expression[0, 0], expression[1, 0])
