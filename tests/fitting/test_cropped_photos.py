"""Photos whose optical axis is not in their middle, with the principal point as an unknown."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.fitting.initialize import initial_state
from fitkit.fitting.recipe import CameraOptions, load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.fitting.stages import _free
from fitkit.geometry.alignment import similarity_align
from fitkit.io.subject import KnownCamera, Subject, View

SIZE, OFF = 160, 32
MODEL = tiny_model()


def views(cameras=(None, None, None), size=SIZE):
    blank = np.full((size, size, 3), 128, np.uint8)
    return tuple(View(f"view{i}", blank, camera=c) for i, c in enumerate(cameras))


@pytest.fixture(scope="module")
def cropped():
    """A near person whose photos have the optical axis a fifth of their width from the middle."""
    truth = tiny_state(MODEL, 3, SIZE)
    pose = replace(truth.pose, translation=0.45 * truth.pose.translation)
    away = OFF * torch.tensor([[1.0, 0.0], [-1.0, 0.3], [0.2, -1.0]])
    camera = replace(truth.camera, focal=0.45 * truth.camera.focal, principal=truth.camera.principal + away)
    truth = truth.replace(identity=0.8 * truth.identity, pose=pose, camera=camera)
    # Turned so that the head shows in the middle of the photo.
    pose = replace(
        pose,
        translation=pose.translation
        - pose.translation[:, 2:] * torch.cat([away / camera.focal[:, None], torch.zeros(3, 1)], 1),
    )
    return truth.replace(pose=pose)


def fitted(truth, name):
    marks = observe(MODEL, truth, SIZE).landmarks
    marks = replace(marks, sigma=torch.full_like(marks.sigma, torch.nan))
    recipe = load_recipe(name)
    stages = tuple(s for s in recipe.stages if s.min_views == 1)
    return fit_observed(Subject("cropped", views()), marks, MODEL, replace(recipe, stages=stages))


def shape_error(result, truth):
    ours, theirs = result.neutral[None, MODEL.face], truth.neutral(MODEL)[:, MODEL.face]
    everywhere = torch.ones(ours.shape[:2], dtype=torch.bool)
    aligned = similarity_align(ours, theirs, everywhere).apply(ours)
    return float((aligned - theirs).norm(dim=-1).mean())


def test_axis_and_shape_are_found_better(cropped):
    centered, free = fitted(cropped, "multiview"), fitted(cropped, "cropped")
    off = [
        (r.state.camera.principal - cropped.camera.principal).norm(dim=-1).mean() for r in (centered, free)
    ]
    assert float(off[0]) > OFF and float(off[1]) < 0.1 * OFF
    assert shape_error(free, cropped) < 0.3 * shape_error(centered, cropped)


def test_what_is_known_of_the_principal_point():
    truth = tiny_state(MODEL, 3, SIZE)
    K = np.array([[400.0, 0, 70], [0, 400, 90], [0, 0, 1]])
    cameras = (KnownCamera(K, name="left"), None, KnownCamera(K, name="left"))
    obs = observe(MODEL, truth, SIZE)
    options = CameraOptions(principal_sigma=0.2, known_sigma=0.01)
    known = initial_state(MODEL, views(cameras), obs, options)[1]
    middle = (SIZE - 1) / 2
    assert known.principal_mean.tolist() == [[70, 90], [middle, middle], [70, 90]]
    torch.testing.assert_close(known.principal_sigma, SIZE * torch.tensor([0.01, 0.2, 0.01]))
    assert known.cameras.tolist() == [0, 1, 0]


def test_blocks_that_a_stage_moves():
    free = ("pose", "principal", "aspect", "illumination", "rig_scale")
    stage = replace(load_recipe("cropped").stages[1], free=free)
    obs = observe(MODEL, tiny_state(MODEL, 3, SIZE), SIZE)
    one, several = (
        initial_state(MODEL, views(), obs, CameraOptions(share_focal=share))[1] for share in ("yes", "no")
    )
    rig = replace(one, unit_mm=10.0)
    assert _free(stage, False, one) == ["pose", "principal"]
    assert _free(stage, False, several) == ["pose", "principal", "aspect"]
    assert _free(stage, True, rig) == ["pose", "principal", "illumination", "rig_scale"]
    assert _free(replace(stage, free=("identity",)), False, rig) == ["identity"]
