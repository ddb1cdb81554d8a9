from dataclasses import replace

import pytest
import torch
from helpers import tiny_joints, tiny_model, tiny_skinned_model, tiny_state

from fitkit.errors import InputError
from fitkit.scene.state import SceneState


def test_vertices_are_the_linear_model():
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, views=2)
    for b in range(2):
        expected = (
            model.mean
            + torch.einsum("k,kvd->vd", state.identity[0], model.identity_basis)
            + torch.einsum("k,kvd->vd", state.expression[b], model.expression_basis)
        )
        torch.testing.assert_close(state.vertices(model)[b], expected)
    torch.testing.assert_close(
        state.neutral(model)[0],
        model.mean + torch.einsum("k,kvd->vd", state.identity[0], model.identity_basis),
    )


def test_vertices_of_a_model_with_joints():
    model = tiny_skinned_model(dtype=torch.float64)
    state = tiny_state(model)
    joints = tiny_joints(model, 3)
    turned = state.replace(joints=joints)
    expected = model.vertices(state.identity.expand(3, -1), state.expression, joints)
    torch.testing.assert_close(turned.vertices(model), expected)
    torch.testing.assert_close(turned.select([2]).vertices(model), expected[[2]])
    torch.testing.assert_close(turned.neutral(model), state.neutral(model))
    chosen = turned.coefficients(torch.tensor([1, 1]))
    assert torch.equal(chosen[2], joints[[1, 1]]) and chosen[0].shape == (2, 8)


def test_two_people_in_three_frames():
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, views=3)
    people = state.replace(
        identity=torch.cat([state.identity, -state.identity]), subject=torch.tensor([0, 1, 0])
    )
    torch.testing.assert_close(people.vertices(model)[[0, 2]], state.vertices(model)[[0, 2]])
    assert people.neutral(model).shape == (2, model.num_vertices, 3)
    assert not torch.allclose(people.vertices(model)[1], state.vertices(model)[1])


def test_other_precision():
    state = tiny_state(tiny_model(), views=2).to(dtype=torch.float64)
    assert {
        t.dtype
        for t in (
            state.identity,
            state.expression,
            state.pose.rotation,
            state.camera.focal,
            state.illumination,
        )
    } == {torch.float64}
    assert state.subject.dtype == torch.int64 and state.albedo is None
    assert state.replace(albedo=torch.zeros(1, 4)).to(dtype=torch.float64).albedo.dtype == torch.float64


def crowd(model):
    """Two people: three frames of the first, two of the second."""
    one, other = (tiny_state(model, views=n, seed=n) for n in (3, 2))
    return one, other, SceneState.join([one, other])


def test_joined_states_keep_their_people_and_frames():
    model = tiny_model(dtype=torch.float64)
    one, other, both = crowd(model)
    assert both.subject.tolist() == [0, 0, 0, 1, 1] and both.num_views == 5
    torch.testing.assert_close(both.posed(model)[:3], one.posed(model))
    torch.testing.assert_close(both.posed(model, [3, 4]), other.posed(model))
    expected = torch.cat([s.camera.project(s.posed(model))[0] for s in (one, other)])
    torch.testing.assert_close(both.camera.project(both.posed(model))[0], expected)


def test_people_are_selected_with_their_frames():
    model = tiny_model(dtype=torch.float64)
    one, other, both = crowd(model)
    last_first = both.select_people([1, 0])
    assert last_first.subject.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(last_first.posed(model), torch.cat([other.posed(model), one.posed(model)]))
    assert both.select_people([0, 1]) is both


def test_frames_are_selected_with_all_people():
    model = tiny_model(dtype=torch.float64)
    both = crowd(model)[2]
    chosen = both.select([4, 0])
    assert chosen.subject.tolist() == [1, 0] and len(chosen.identity) == 2
    torch.testing.assert_close(chosen.posed(model), both.posed(model)[[4, 0]])


def test_join_and_what_only_one_part_knows():
    model = tiny_model(dtype=torch.float64)
    one, other, _ = crowd(model)
    colored = one.replace(
        illumination=one.illumination.expand(-1, -1, 3), landmark_offset=torch.ones(1, 68, 3).double()
    )
    both = SceneState.join([colored, other])
    assert both.illumination.shape == (5, 9, 3) and both.landmark_offset is None
    turned = one.replace(joints=torch.arange(3.0).reshape(3, 1, 1).expand(-1, 4, 3))
    assert both.joints is None and other.select([0]).joints is None
    assert SceneState.join([turned, other]).joints[:, 0, 0].tolist() == [0, 1, 2, 0, 0]  # the other at rest
    joined = SceneState.join([turned, turned])
    assert joined.select_people([1]).select([2, 0]).joints[:, 0, 0].tolist() == [2, 0]
    again = SceneState.join([colored, colored])
    assert again.landmark_offset.shape == (2, 68, 3)
    assert again.select_people([1]).landmark_offset.shape == (1, 68, 3)
    flat = other.replace(camera=replace(other.camera, kind="orthographic"))
    with pytest.raises(
        InputError, match="cameras: expected views of one kind, got orthographic and perspective"
    ):
        SceneState.join([one, flat])


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_a_point_moves_along_its_sight_without_moving_in_the_picture(kind):
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, views=3)
    state = state.replace(camera=replace(state.camera, kind=kind))
    points = state.vertices(model)
    sight = state.sight(points)
    torch.testing.assert_close(sight.norm(dim=-1), torch.ones(sight.shape[:2]).double())
    here, nearer = state.pose.apply(points), state.pose.apply(points + 5 * sight)
    torch.testing.assert_close(state.camera.project(nearer)[0], state.camera.project(here)[0])
    assert bool((nearer[..., 2] < here[..., 2]).all())
