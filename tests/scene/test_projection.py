from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.geometry.rotation import so3_exp
from fitkit.scene.camera import KINDS
from fitkit.scene.pose import Pose
from fitkit.scene.projection import project_points


def scene(kind="perspective"):
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, views=3)
    return model, state.replace(camera=replace(state.camera, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_points_equal_the_vertices_projected_by_hand(kind):
    model, state = scene(kind)
    expected, in_front = state.camera.project(
        state.pose.apply(model.landmarks.points(state.vertices(model), model.triangles))
    )
    seen = project_points(model.landmark_basis, state)
    torch.testing.assert_close(seen.pixels, expected)
    assert torch.equal(seen.in_front, in_front) and bool(in_front.all())
    two = project_points(model.landmark_basis, state, torch.tensor([2, 2, 0]))
    torch.testing.assert_close(two.pixels, expected[[2, 2, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_equal_differences(kind):
    model, state = scene(kind)
    seen = project_points(model.landmark_basis, state, derivatives=True)
    h = 1e-4
    for k, unit in enumerate(torch.eye(3, dtype=torch.float64)):

        def moved(sign):
            pose = state.pose.retract(torch.cat([torch.zeros(3), sign * h * unit]).to(unit).expand(3, -1))
            return project_points(model.landmark_basis, state.replace(pose=pose)).pixels

        torch.testing.assert_close(
            seen.by_head[..., k], (moved(1) - moved(-1)) / (2 * h), atol=1e-7, rtol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_moving_camera_and_head_together_leaves_the_image(kind):
    model, state = scene(kind)
    # A world motion that both undergo: head points move by it, the camera's view of the world by its inverse.
    turn, shift = (
        so3_exp(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)),
        torch.tensor([30.0, -50, 10], dtype=torch.float64),
    )
    points = model.landmark_basis.points(state.identity.expand(3, -1), state.expression)
    moved = points @ turn.T + shift
    rotation = state.pose.rotation @ turn.T
    pose = Pose(rotation, state.pose.translation - (rotation @ shift))
    torch.testing.assert_close(
        state.camera.project(pose.apply(moved))[0], project_points(model.landmark_basis, state).pixels
    )
