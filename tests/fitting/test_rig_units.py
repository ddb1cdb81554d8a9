"""Rigs whose positions are in a unit that nobody knows, and photos without a camera beside a rig."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state
from test_moments_of_a_rig import SIZE, head_in_world, scene, subject_of

from fitkit.errors import InputError
from fitkit.export.cameras import camera_table
from fitkit.fitting.initialize import initial_state
from fitkit.fitting.recipe import CameraOptions, load_recipe
from fitkit.fitting.rig import unit_at, unit_of
from fitkit.fitting.rig_check import check_rig
from fitkit.fitting.run import fit_observed
from fitkit.io.calibration import read_cameras
from fitkit.io.subject import load_subject
from fitkit.scene.layout import ParameterLayout, retract

UNIT = 37.5  # mm
MODEL = tiny_model()


def without_unit(cameras, unit=UNIT):
    return [replace(c, t=c.t / unit, metric=False) for c in cameras]


def marks_of(truth):
    marks = observe(MODEL, truth, SIZE).landmarks
    return replace(marks, sigma=torch.full_like(marks.sigma, torch.nan))


def fitted(cameras, names, truth, recipe="landmarks"):
    return fit_observed(subject_of(cameras, names), marks_of(truth), MODEL, load_recipe(recipe))


def size_of(result):
    points = result.neutral[MODEL.face]
    return float((points - points.mean(0)).square().sum(-1).mean().sqrt())


def without_size(result):
    """The neutral face about its middle, its root mean square radius 60 mm."""
    points = result.neutral[MODEL.face]
    return (points - points.mean(0)) * (60 / size_of(result))


@pytest.fixture(scope="module", params=[1, 3])
def both(request):
    """The same photos of some moments, with positions in mm and in an unknown unit."""
    truth, cameras, moment = scene(MODEL, request.param)
    names = [f"m{m}" for m in moment]
    return (
        truth,
        cameras,
        fitted(cameras, names, truth),
        fitted(without_unit(cameras), names, truth),
    )


def test_the_face_is_the_same_but_for_its_size_and_the_unit_is_found(both):
    truth, cameras, metric, free = both
    scale = free.report.scale
    assert metric.report.scale.metric and metric.report.scale.unit_mm is None
    assert not scale.metric and "not measured" in scale.note and free.status == metric.status == "ok"
    # The head has the size that the model expects, and the world with it.
    larger = size_of(free) / size_of(metric)
    assert abs(larger - 1) < 0.1
    assert scale.unit_mm == pytest.approx(UNIT * larger, rel=0.01)
    assert float((without_size(free) - without_size(metric)).norm(dim=-1).mean()) < 0.5
    rotation, place = head_in_world(
        free.state, [replace(c, t=c.t * scale.unit_mm) for c in without_unit(cameras)]
    )
    expected = head_in_world(truth, cameras)
    torch.testing.assert_close(rotation, expected[0], atol=0.03, rtol=0)
    torch.testing.assert_close(place / larger, expected[1], atol=6, rtol=0)


def test_written_cameras_say_that_nobody_knows_their_unit(both):
    assert camera_table(both[3])["unit"] == "unknown" and "unit" not in camera_table(both[2])


def test_start_in_closed_form():
    truth, cameras, moment = scene(MODEL)
    obs = observe(MODEL, truth, SIZE)
    names = [f"m{m}" for m in moment]
    expected, known = initial_state(MODEL, subject_of(cameras, names).views, obs, CameraOptions())
    for unit in (UNIT, 1e-3, 1e4):
        views = subject_of(without_unit(cameras, unit), names).views
        state, found = initial_state(MODEL, views, obs, CameraOptions())
        assert found.unit_mm == pytest.approx(unit, rel=0.1) and not found.metric and known.metric
        assert unit_at(views, state.pose) == pytest.approx(found.unit_mm, rel=1e-3)
        assert torch.equal(found.pose_groups, known.pose_groups)
        ratio = found.unit_mm / unit
        torch.testing.assert_close(
            state.pose.translation / ratio, expected.pose.translation, rtol=0.02, atol=9
        )
    assert known.unit_mm is None


def test_scale_keeps_the_rig_and_moves_its_cameras_away_from_the_head():
    model = tiny_model(dtype=torch.float64)
    state, cameras, moment = scene(model)
    layout = ParameterLayout.of(state, ("rig_scale",))
    moved = retract(state, torch.full((1,), 0.2, dtype=torch.float64), layout)
    torch.testing.assert_close(moved.pose.centers(), state.pose.centers() * np.exp(0.2))
    assert moved.pose.rotation is state.pose.rotation
    views = subject_of(cameras, [f"m{m}" for m in moment]).views
    assert unit_at(views, moved.pose) == pytest.approx(np.exp(0.2), rel=1e-6)


def test_cameras_in_one_place_have_no_unit():
    truth, cameras, _ = scene(MODEL, 1)
    center = -cameras[0].R.T @ cameras[0].t
    together = [replace(c, t=-c.R @ center / UNIT, metric=False) for c in cameras]
    views = subject_of(together, [""] * 3).views
    pose = truth.pose.select([0, 0, 0])
    pose = replace(pose, rotation=torch.as_tensor(np.stack([c.R for c in cameras])).float())
    pose = replace(pose, translation=pose.rotation @ torch.tensor([0.0, 0.0, 900.0]))
    assert unit_of(views, pose) == 0


def test_rig_check_takes_any_size():
    truth, cameras, moment = scene(MODEL, 1)
    marks = marks_of(truth)
    subject = subject_of(without_unit(cameras), [""] * 3)
    assert check_rig(subject, marks, MODEL) == (subject, [])
    with pytest.raises(InputError, match="t in inches"):
        check_rig(subject_of([replace(c, t=c.t / UNIT) for c in cameras], [""] * 3), marks, MODEL)
    turned = [replace(c, R=c.R.T, t=-c.R.T @ c.t) for c in without_unit(cameras)]
    with pytest.raises(InputError, match="read as camera-to-world; convert"):
        check_rig(subject_of(turned, [""] * 3), marks, MODEL)


def test_positions_of_one_person_are_in_one_unit():
    truth, cameras, _ = scene(MODEL, 1)
    mixed = [*without_unit(cameras[:1]), *cameras[1:]]
    expected = "views 'view1' and 'view0': expected positions .* in mm or all in one unknown unit, got one"
    with pytest.raises(InputError, match=expected):
        initial_state(MODEL, subject_of(mixed, [""] * 3).views, observe(MODEL, truth, SIZE), CameraOptions())


def test_unit_of_cameras_json(tmp_path):
    K, R = [[500, 0, 63.5], [0, 500, 47.5], [0, 0, 1]], np.eye(3).tolist()
    path = tmp_path / "cameras.json"
    for unit, t, metric in (
        ("mm", 2.0, True),
        ("cm", 20.0, True),
        ("m", 2000.0, True),
        ("unknown", 2.0, False),
    ):
        path.write_text(
            json.dumps({"unit": unit, "views": [{"image": "a.png", "K": K, "R": R, "t": [0, 0, 2]}]})
        )
        camera = read_cameras(path)["a.png"]
        assert camera.t.tolist() == [0, 0, t] and camera.metric == metric
        cv2.imwrite(str(tmp_path / "a.png"), np.full((96, 128, 3), 99, np.uint8))
        assert load_subject(tmp_path).views[0].camera.metric == metric
    path.write_text(json.dumps({"a.png": {"K": K, "R": R, "t": [0, 0, 2], "unit": "furlong"}}))
    expected = "view 'a.png': unit: expected one of mm, cm, m, unknown, got 'furlong'"
    with pytest.raises(InputError, match=expected):
        read_cameras(path)


@pytest.mark.parametrize("given", ["mm", "unknown"])
def test_a_photo_without_a_camera_leaves_the_rig_as_it_is(given):
    """Its head and focal length are its own."""
    truth, cameras, _ = scene(MODEL, 1)
    cameras = cameras if given == "mm" else without_unit(cameras)
    rig = fitted(cameras, [""] * 3, truth)
    extra = tiny_state(MODEL, 3, SIZE, seed=5).select([1])
    more = truth.replace(
        **{
            k: torch.cat([getattr(truth, k), getattr(extra, k)])
            for k in ("expression", "illumination", "subject")
        },
        pose=truth.pose.join([truth.pose, extra.pose]),
        camera=truth.camera.join([truth.camera, replace(extra.camera, focal=1.3 * extra.camera.focal)]),
    )
    result = fitted([*cameras, None], [""] * 4, more)
    assert result.status == "ok" and result.report.scale.metric == rig.report.scale.metric == (given == "mm")
    assert result.camera_source == ("cameras.json",) * 3 + ("estimated",)
    assert any("of 3 of 4 cameras are known; those of the others were estimated" in n for n in result.notes)
    assert max(v.reprojection_share for v in result.report.views) < 0.006
    for i in range(3):
        K = cameras[i].K[0, 0]
        assert float(result.state.camera.focal[i]) == pytest.approx(K, rel=0.005)
    unit = 1.0 if given == "mm" else result.report.scale.unit_mm
    place = head_in_world(result.state.select(range(3)), [replace(c, t=c.t * unit) for c in cameras])[1]
    torch.testing.assert_close(place, place[:1].expand_as(place), atol=0.05, rtol=0)
