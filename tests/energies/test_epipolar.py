from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.epipolar import EpipolarLandmarks, fundamental_matrices
from fitkit.energies.objective import Objective, Term
from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose

MODEL = tiny_model(dtype=torch.float64)
STATE = tiny_state(MODEL, 3)
STATE = STATE.replace(expression=STATE.expression[:1].expand(3, -1).clone())
OBS = observe(MODEL, STATE)


def cost(state, observations=OBS):
    return Objective([Term(EpipolarLandmarks())]).cost(state, observations)[0].sum()


def turned(degrees):
    step = torch.zeros(3, 3, dtype=torch.float64)
    step[1, 1] = np.radians(degrees)
    return STATE.replace(pose=Pose(STATE.pose.rotation @ so3_exp(step), STATE.pose.translation))


def test_zero_for_the_true_poses_whatever_the_shape():
    assert float(cost(STATE)) < 1e-16 < 1e-3 < float(cost(turned(5)))
    assert float(cost(STATE.replace(identity=STATE.identity + 1))) < 1e-16


def test_distances_are_those_of_opencv():
    state = turned(5)
    i, j = torch.tensor([0, 2]), torch.tensor([1, 0])
    value = EpipolarLandmarks().residuals(state, OBS).value[[0, 4], :, 0]  # pairs in order: 01 02 10 12 20 21
    for p, F in enumerate(fundamental_matrices(state, i, j).numpy()):
        a, b = OBS.landmarks.points[i[p]].numpy(), OBS.landmarks.points[j[p]].numpy()
        lines = cv2.computeCorrespondEpilines(a[:, None], 1, F)[:, 0]
        assert np.allclose(value[p].abs().numpy(), np.abs((lines[:, :2] * b).sum(1) + lines[:, 2]), atol=1e-6)


def test_gradient_and_descent():
    layout = ParameterLayout.of(STATE, ("pose",))
    state = turned(5)
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(retract(state, step, layout)), step)
    d = 1e-6 * torch.randn(layout.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numeric = float(cost(retract(state, d, layout)) - cost(retract(state, -d, layout))) / 2
    assert float(gradient @ d) == pytest.approx(numeric, rel=1e-5)
    before = float(cost(state))
    assert float(cost(retract(state, -gradient * 1e-3 / float(gradient.norm()), layout))) < before


def test_points_that_are_not_seen_or_not_fixed_do_not_count():
    outline = replace(OBS, landmarks=replace(OBS.landmarks, jaw="outline"))
    assert not EpipolarLandmarks().residuals(STATE, outline).valid[:, :17].any()
    points, valid = OBS.landmarks.points.clone(), OBS.landmarks.valid.clone()
    points[1, 40], valid[1, 40] = torch.nan, False
    hidden = replace(OBS, landmarks=replace(OBS.landmarks, points=points, valid=valid))
    residuals = EpipolarLandmarks().residuals(turned(5), hidden)
    assert residuals.valid[:, 40].tolist() == [False, True, False, False, True, False] and bool(
        torch.isfinite(residuals.value).all()
    )


def test_frames_of_two_people_are_not_paired():
    assert float(cost(turned(5).replace(identity=STATE.identity.expand(3, -1), subject=torch.arange(3)))) == 0


def test_orthographic_cameras_are_refused():
    with pytest.raises(InputError, match="energy 'epi_lmk' needs perspective cameras, got 'orthographic'"):
        cost(STATE.replace(camera=replace(STATE.camera, kind="orthographic")))
