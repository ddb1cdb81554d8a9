import torch
from helpers import tiny_model, tiny_state


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
