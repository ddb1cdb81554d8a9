"""Photos whose pixels are not square, as frames of some films; the aspect of each camera is an unknown."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.fitting.findings import findings
from fitkit.fitting.initialize import initial_state
from fitkit.fitting.recipe import CameraOptions, load_recipe
from fitkit.fitting.report import FitReport, ViewReport
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.subject import KnownCamera, Subject, View

SIZE = 160
MODEL = tiny_model()
STRETCHED = torch.tensor([1.0, 1.0, 0.75, 1.0, 1.0])


def views(count, camera=None, focal_px=None):
    blank = np.full((SIZE, SIZE, 3), 128, np.uint8)
    return tuple(View(f"view{i}", blank, camera=camera, focal_px=focal_px) for i in range(count))


def fitted(truth, *changes):
    marks = observe(MODEL, truth, SIZE).landmarks
    marks = replace(marks, sigma=torch.full_like(marks.sigma, math.nan))
    recipe = load_recipe("landmarks", ["camera.share_focal=no", *changes])
    return fit_observed(Subject("film", views(truth.num_views)), marks, MODEL, recipe)


def shape_error(result, truth):
    ours, theirs = result.neutral[None, MODEL.face], truth.neutral(MODEL)[:, MODEL.face]
    everywhere = torch.ones(ours.shape[:2], dtype=torch.bool)
    aligned = similarity_align(ours, theirs, everywhere).apply(ours)
    return float((aligned - theirs).norm(dim=-1).mean())


@pytest.fixture(scope="module")
def truth():
    state = tiny_state(MODEL, 5, SIZE)
    return state.replace(identity=0.8 * state.identity, camera=replace(state.camera, aspect=STRETCHED))


def test_the_stretched_photo_is_found_and_the_shape_is_better(truth):
    square = [
        f"stages.{s}.free=[identity, landmarks, expression, pose, focal]" for s in ("shape", "landmarks")
    ]
    square += [f"stages.{s}.energies.aspect_prior=false" for s in ("shape", "landmarks")]
    fixed, free = fitted(truth, *square), fitted(truth)
    assert torch.equal(fixed.state.camera.aspect, torch.ones(5))
    torch.testing.assert_close(free.state.camera.aspect, STRETCHED, atol=0.03, rtol=0)
    assert shape_error(free, truth) < 0.5 * shape_error(fixed, truth)
    notes = [f for f in free.report.verdict.findings if f.code == "stretched"]
    assert [f.view for f in notes] == ["view2"] and notes[0].severity == "note"


def test_photos_of_one_camera_and_a_single_photo_are_not_stretched(truth):
    for state, change in ((truth, "camera.share_focal=yes"), (truth.select([2]), "camera.share_focal=no")):
        result = fitted(state, change)
        assert torch.equal(result.state.camera.aspect, torch.ones(state.num_views))


def test_what_is_known_of_the_pixels():
    obs = observe(MODEL, tiny_state(MODEL, 2, SIZE), SIZE)
    options = CameraOptions(aspect_sigma=0.05, known_sigma=0.01, share_focal="no")
    known = KnownCamera(np.array([[400.0, 0, 70], [0, 440, 90], [0, 0, 1]]))
    mixed = (views(1, camera=known)[0], replace(views(2)[1], focal_px=400.0))
    for photos, mean, sigma, differs in (
        (views(2), [1, 1], [0.05, 0.05], True),
        (mixed, [1.1, 1], [0.01, 0.005], False),
        (views(2, focal_px=400.0), [1, 1], [0.005, 0.005], False),
    ):
        cameras = initial_state(MODEL, photos, obs, options)[1]
        torch.testing.assert_close(cameras.aspect_mean, torch.tensor(mean).float())
        torch.testing.assert_close(cameras.aspect_sigma, torch.tensor(sigma))
        assert cameras.aspect_differs == differs
    state, cameras = initial_state(MODEL, views(2, focal_px=400.0), obs, options)
    doubted = cameras.without_exif([1], state, options, MODEL)
    torch.testing.assert_close(doubted.aspect_sigma, torch.tensor([0.005, 0.05]))
    assert doubted.aspect_differs


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_photos_taken_for_those_of_one_camera(kind):
    obs = observe(MODEL, tiny_state(MODEL, 2, SIZE), SIZE)
    for share, differs in (("yes", False), ("auto", False), ("no", True)):
        options = CameraOptions(kind=kind, share_focal=share)
        assert initial_state(MODEL, views(2), obs, options)[1].aspect_differs == differs


def test_what_is_said():
    report = FitReport(
        model="generic",
        num_views=3,
        views=tuple(
            ViewReport(n, reprojection_share=0.02, stretch=s)
            for n, s in (("low", 0.75), ("usual", 0.96), ("tall", 1.2))
        ),
    )
    said = [f.message for f in findings(report) if f.code == "stretched"]
    why = " beside the other photos, as the frames of some films are; the fit takes that much out"
    assert said == [
        f"view low looks stretched in width by about 33 %{why}",
        f"view tall looks stretched in height by about 20 %{why}",
    ]
