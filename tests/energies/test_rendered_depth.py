"""Depth maps of the face model's surface, and energies of depth maps in a fit."""

from dataclasses import replace

import pytest
import torch
from derivatives import check_jacobian
from helpers import observe
from scenes import MODEL, PATCHES, person
from test_autodiff import FREE, Differentiated

from fitkit.energies.depth import DepthSupervision, DepthWarpPhotometric, NormalSupervision
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.rendered_depth import on_rendered_depth, rendered_depth
from fitkit.observe.labels import Labels
from fitkit.render.rasterizer import rasterize
from fitkit.scene.layout import ParameterLayout
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

STATE = person(48)


def drawn(state, size=48):
    clip = state.camera.clip(state.pose.apply(state.vertices(MODEL)))
    return rasterize(clip, MODEL.triangles, (size, size))


OBS = replace(observe(MODEL, STATE, 48, PATCHES(STATE, 48)), labels=Labels(depth=drawn(STATE).depth))


def test_the_maps_are_those_of_the_rasterizer():
    fragments = drawn(STATE)
    maps = rendered_depth(MODEL, STATE, fragments.triangle)
    assert maps.size == (48, 48) and int((maps.depth > 0).sum()) > 500
    torch.testing.assert_close(maps.depth, fragments.depth)


@pytest.mark.parametrize(
    "energy", [DepthSupervision(), NormalSupervision(), DepthWarpPhotometric()], ids=lambda e: e.name
)
def test_derivatives(energy):
    moved = STATE.replace(pose=STATE.pose.retract(torch.full((2, 6), 0.01, dtype=torch.float64)))
    frozen = on_rendered_depth(energy, MODEL).freeze(moved, OBS)
    layout = ParameterLayout.of(moved, FREE)
    check_jacobian(Differentiated(frozen, FREE), moved, OBS, layout, kinks=energy.name == "photo_warp_depth")


def test_a_depth_camera_tells_how_far_away_a_head_is():
    shift = torch.zeros(2, 6, dtype=torch.float64)
    shift[:, 5] = torch.tensor([6.0, -4.0])  # mm along the axis of the camera, about
    start = STATE.replace(pose=STATE.pose.retract(shift))
    energy = on_rendered_depth(DepthSupervision(), MODEL)
    state = start
    for _ in range(3):
        objective = Objective([Term(energy, 100.0)]).freeze(state, OBS)
        problem = LeastSquaresProblem(objective, OBS, ParameterLayout.of(state, ("pose",)))
        state = levenberg_marquardt(problem, state, LMOptions(4)).x
    before, after = ((s.pose.translation - STATE.pose.translation).norm(dim=-1) for s in (start, state))
    assert bool((before > 3).all()) and bool((after < 0.5).all())
