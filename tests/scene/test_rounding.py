from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.scene.camera import KINDS
from fitkit.scene.projection import project_points
from fitkit.scene.rounding import rounded

MODEL = tiny_model(dtype=torch.float64)
STEP = 0.2


def scene(kind):
    state = tiny_state(MODEL, 3, 160)
    return state.replace(camera=replace(state.camera, kind=kind))


def nudged(state, size):
    draw = torch.Generator().manual_seed(1)

    def noise(values):
        return size * torch.randn(values.shape, generator=draw, dtype=values.dtype)

    return state.replace(
        identity=state.identity + noise(state.identity),
        expression=state.expression + noise(state.expression),
        pose=state.pose.retract(noise(torch.zeros(3, 6, dtype=torch.float64))),
        camera=replace(state.camera, focal=state.camera.focal * noise(state.camera.focal).exp()),
    )


def numbers(state):
    return torch.cat(
        [
            values.reshape(-1)
            for values in (
                state.identity,
                state.expression,
                state.pose.rotation,
                state.pose.translation,
                state.camera.focal,
            )
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_differ_by_last_decimals_have_one(kind):
    state = rounded(scene(kind), MODEL, STEP)  # far from the middle between two steps
    once, again = rounded(state, MODEL, STEP), rounded(nudged(state, 1e-6), MODEL, STEP)
    torch.testing.assert_close(numbers(once), numbers(state), rtol=1e-9, atol=1e-9)
    assert torch.equal(numbers(once), numbers(again))
    other = rounded(nudged(state, 0.1), MODEL, STEP)
    assert not torch.equal(numbers(once), numbers(other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_surface_stays_where_the_cameras_see_it(kind):
    state = scene(kind)
    near = rounded(state, MODEL, STEP)
    vertices = torch.arange(0, MODEL.num_vertices, 7)
    basis = MODEL.at_vertices(vertices)
    before, after = (project_points(basis, s).pixels for s in (state, near))
    depth = state.pose.translation[:, 2] if kind == "perspective" else state.camera.REFERENCE_DEPTH
    mm = (before - after).norm(dim=-1) * (depth / state.camera.focal)[:, None]
    assert 0 < float(mm.mean()) < 3 * STEP
    assert torch.equal(near.subject, state.subject)
