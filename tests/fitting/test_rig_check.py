"""Rigs of three cameras round the mean face, given rightly and in every wrong way that is met."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.errors import InputError
from fitkit.fitting.findings import findings
from fitkit.fitting.report import FitReport
from fitkit.fitting.rig_check import check_rig
from fitkit.geometry.rotation import so3_exp
from fitkit.io.subject import KnownCamera, Subject, View
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

MODEL = tiny_model()
YAWS = (-40.0, -10.0, 15.0, 45.0)
FLIP = {
    "opengl": np.array([1.0, -1, -1]),
    "pytorch3d": np.array([-1.0, -1, 1]),
    "unity": np.array([1.0, -1, 1]),
}


def rig(views=3, size=1.0, noise=0.0, yaws=YAWS, seed=0, world=True, tilt=0.1):
    """Subject and landmarks of a person in expressions that differ; noise: px, of faces about 100 px high;
    world: apart from the head; tilt: rad of pitch and roll; 0: nothing but yaw changes."""
    gen = torch.Generator().manual_seed(seed)
    state = tiny_state(MODEL, views)
    pitch, roll = tilt * torch.randn(2, views, generator=gen)
    turn = torch.stack([pitch, torch.deg2rad(torch.tensor(yaws[:views])), roll], 1)
    place = torch.tensor([0.0, 0, 900]) + torch.randn(views, 3, generator=gen) * torch.tensor(
        [20.0, 20, 60]
    ) * (tilt > 0)
    camera = Camera(torch.full((views,), 600.0), torch.full((views, 2), 79.5), torch.ones(views))
    state = state.replace(
        pose=Pose(torch.diag(torch.tensor([1.0, -1, -1])) @ so3_exp(turn), place), camera=camera
    )
    marks = observe(MODEL, state).landmarks
    marks = replace(marks, points=marks.points + noise * torch.randn(marks.points.shape, generator=gen))
    R0, t0 = np.eye(3), np.zeros(3)
    if world:
        R0, t0 = (
            np.linalg.qr(torch.randn(3, 3, generator=gen).double().numpy())[0],
            np.array([300.0, -200, 1500]),
        )
        R0 = R0 * np.linalg.det(R0)
    cameras = []
    for R, t in zip(
        state.pose.rotation.double().numpy(), size * place.double().numpy()
    ):  # a head of `size`, as far as it is large
        cameras.append(KnownCamera(camera.matrix()[0].double().numpy(), R @ R0.T, t - R @ R0.T @ t0))
    return with_cameras(cameras), marks


def with_cameras(cameras):
    return Subject(
        "anna",
        tuple(View(f"view{i}", np.zeros((160, 160, 3), np.uint8), camera=c) for i, c in enumerate(cameras)),
    )


def given_as(subject, change):
    """The subject with its R and t written as change(R, t)."""
    return with_cameras([KnownCamera(v.camera.K, *change(v.camera.R, v.camera.t)) for v in subject.views])


def inverse(R, t):
    return R.T, -R.T @ t


def in_axes(name):
    flip = FLIP[name]
    world = flip if flip.prod() < 0 else np.ones(3)
    return lambda R, t: (flip[:, None] * R * world, flip * t)


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": 4.0},
        {"size": 0.65},
        {"size": 0.7, "noise": 3.0},
        {"size": 1.3, "world": False},
        {"yaws": (-2.0, 1.0, 2.0, 3.0)},
        {"yaws": (-80.0, 0.0, 80.0, 40.0), "noise": 2.0},
    ],
)
def test_right_rigs_are_left_alone(views, options):
    for seed in range(2):
        subject, marks = rig(views, seed=seed, **options)
        checked, wrong = check_rig(subject, marks, MODEL)
        assert checked is subject and wrong == []


def test_a_rig_that_was_calibrated_with_small_errors_is_left_alone():
    gen = np.random.default_rng(0)
    for seed in range(5):
        subject, marks = rig(seed=seed, noise=2.0)
        off = given_as(
            subject,
            lambda R, t: (
                so3_exp(torch.from_numpy(gen.normal(0, 0.003, (1, 3))))[0].numpy() @ R,
                t + gen.normal(0, 3, 3),
            ),
        )
        assert check_rig(off, marks, MODEL)[1] == []


@pytest.mark.parametrize(
    "change, read_as",
    [
        (lambda R, t: (R, t / 1000), "world-to-camera, t in metres (by the size of the face)"),
        (lambda R, t: (R, t / 10), "world-to-camera, t in centimetres"),
        (lambda R, t: (R, t / 25.4), "world-to-camera, t in inches"),
        (lambda R, t: (R, t * 9), "world-to-camera, t in a unit 0.1"),
        (inverse, "camera-to-world;"),
        (lambda R, t: (R, inverse(R, t)[1]), "world-to-camera with the place of the camera as t;"),
        (lambda R, t: (R.T, t), "world-to-camera with R transposed;"),
        (in_axes("opengl"), "world-to-camera in the axes of OpenGL and Blender (y up, z backward);"),
        (
            lambda R, t: inverse(*in_axes("opengl")(R, t)),
            "camera-to-world in the axes of OpenGL and Blender (y up, z backward);",
        ),
        (
            lambda R, t: inverse(*in_axes("opengl")(R, t / 1000)),
            "camera-to-world in the axes of OpenGL and Blender (y up, z backward), t in metres",
        ),
        (
            lambda R, t: (in_axes("pytorch3d")(R, t)[0].T, in_axes("pytorch3d")(R, t)[1]),
            "world-to-camera with R transposed in the axes of PyTorch3D (x left, y up);",
        ),
    ],
)
def test_the_mistake_is_named(change, read_as):
    for views in (3, 4):
        subject, marks = rig(views, noise=2.0, seed=views)
        with pytest.raises(InputError) as caught:
            check_rig(given_as(subject, change), marks, MODEL)
        message = str(caught.value)
        assert (
            message.startswith("the cameras of anna: R and t of view0, view1, view2")
            and "contradict the landmarks" in message
        )
        assert f"when they are read as {read_as}" in message and message.endswith("or give only K")


def test_a_wrong_unit_is_told_against_the_one_that_was_stated():
    subject, marks = rig(3, noise=2.0)  # t in mm, said to be in m
    with pytest.raises(InputError, match=r"t in a unit 0\.00\d+ times as large as it says \(by the size"):
        check_rig(given_as(subject, lambda R, t: (R, t * 1000)), marks, MODEL)


def test_left_handed_axes_are_named_where_cameras_look_from_above_and_below():
    subject, marks = rig(4, noise=2.0, tilt=0.4)
    with pytest.raises(
        InputError, match=r"world-to-camera in left-handed axes .y up, as in Unity.; convert them"
    ):
        check_rig(given_as(subject, in_axes("unity")), marks, MODEL)


def test_the_file_is_named(tmp_path):
    subject, marks = rig()
    subject = replace(given_as(subject, lambda R, t: (R, t / 1000)), path=tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path / 'cameras.json'}: R and t of view0"):
        check_rig(subject, marks, MODEL)


@pytest.mark.parametrize("t", [(0, 0, 900), (0, 0, 0)])
def test_one_camera_and_a_head_that_turns(t):
    subject, marks = rig(noise=1.0, tilt=0.0)
    fixed = given_as(subject, lambda R, _: (np.diag([1.0, -1, -1]), np.array(t, float)))
    with pytest.raises(
        InputError, match="put cameras in one place, but the head turned by [56][0-9] degrees .* give only K"
    ):
        check_rig(fixed, marks, MODEL)


def test_one_camera_and_a_head_that_keeps_still():
    subject, marks = rig(yaws=(0.0, 1.0, -1.0, 0.0), world=False, tilt=0.0)
    fixed = given_as(subject, lambda R, t: (np.diag([1.0, -1, -1]), np.array([0.0, 0, 900])))
    assert check_rig(fixed, marks, MODEL) == (fixed, [])


def test_a_single_wrong_camera_is_left_out():
    subject, marks = rig(4)
    views = list(subject.views)
    camera = views[2].camera
    views[2] = views[2].replace(
        camera=replace(camera, R=so3_exp(torch.tensor([[0.0, 1.2, 0]]))[0].double().numpy() @ camera.R)
    )
    checked, wrong = check_rig(replace(subject, views=tuple(views)), marks, MODEL)
    assert [v.camera.R is None for v in checked.views] == [False, False, True, False] and checked.views[
        2
    ].camera.K is camera.K
    assert [w.view for w in wrong] == ["view2"] and "view view2: R and t of its camera put the head" in wrong[
        0
    ].message
    (finding,) = findings(FitReport(camera_contradictions=tuple(wrong)))
    assert (finding.code, finding.severity, finding.view) == ("camera_contradicts", "doubtful", "view2")


def test_positions_that_make_no_sense_are_not_used():
    subject, marks = rig(4)
    gen = np.random.default_rng(1)
    random = given_as(
        subject,
        lambda R, t: (so3_exp(torch.from_numpy(gen.normal(0, 2, (1, 3))))[0].numpy(), gen.normal(0, 700, 3)),
    )
    checked, wrong = check_rig(random, marks, MODEL)
    assert all(v.camera.R is None and v.camera.t is None for v in checked.views)
    assert (
        len(wrong) == 1
        and wrong[0].view is None
        and "R and t of view0, view1, view2, view3 contradict the landmarks; only K" in wrong[0].message
    )


def test_nothing_to_check():
    subject, marks = rig()
    only_one = given_as(subject, lambda R, t: (None, None))
    only_one = replace(only_one, views=(subject.views[0], *only_one.views[1:]))
    for subject in (only_one, replace(only_one, views=tuple(v.replace(camera=None) for v in only_one.views))):
        assert check_rig(subject, marks, MODEL) == (subject, [])
