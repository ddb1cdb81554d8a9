from dataclasses import replace

import helpers
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.kernels import Kernel
from fitkit.energies.masks import PARSE
from fitkit.energies.objective import Objective, Term
from fitkit.energies.photo_pairs import STRICT, PhotoPairs, PhotoPairsOptions, outlined_faces
from fitkit.errors import InputError
from fitkit.observe.labels import Labels
from fitkit.observe.sampling import sample
from fitkit.scene.pose import Pose

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96
OPTIONS = PhotoPairsOptions(size=SIZE, sigma=1.0)


def scene(views=3, options=OPTIONS, labels=None):
    state = tiny_state(MODEL, views, SIZE)
    images = helpers.photograph(MODEL, state, SIZE, (1.0, 0.9, 0.8))
    obs = replace(observe(MODEL, state, SIZE, images), labels=labels)
    return state, obs, PhotoPairs.prepare(MODEL, obs, options)


def moved(state):
    step = torch.tensor([[0.01, -0.012, 0.008, 1.0, -0.8, 3]], dtype=torch.float64)
    return state.replace(
        pose=state.pose.retract(step * torch.tensor([[1.0], [-1.0], [0.5]])), identity=state.identity + 0.2
    )


def test_the_mean_of_squared_differences_by_the_book():
    """MVF-Net eq. 7 on the pixels that both see, one pixel after the other."""
    state, obs, energy = scene()
    state = moved(state)
    frozen = energy.freeze(state, obs)
    cost = float(Objective([Term(frozen, 2.0)]).cost(state, obs)[0])
    vertices = state.vertices(MODEL)
    means = []
    for g, (a, b) in enumerate(frozen.shared.pairs):
        squares = []
        place = frozen.shared.place[g]
        triangle = frozen.shared.triangle[b].reshape(-1)[place]
        for at, corners in zip(place.tolist(), MODEL.triangles[triangle]):
            # Where the ray of the pixel meets the plane of its triangle.
            x, y = at % SIZE, at // SIZE
            p = state.pose.select([b]).apply(vertices[[b]][:, corners])[0]
            principal, focal, aspect = (getattr(state.camera, k)[b] for k in ("principal", "focal", "aspect"))
            ray = torch.stack(
                [(x - principal[0]) / focal, (y - principal[1]) / (focal * aspect), torch.ones(()).double()]
            )
            normal = torch.linalg.cross(p[1] - p[0], p[2] - p[0])
            hit = ray * (normal @ p[0]) / (normal @ ray)
            head = state.pose.rotation[b].T @ (hit - state.pose.translation[b])
            # The same point of the head in view a, whose expression differs.
            weights = torch.linalg.lstsq(vertices[b, corners].T, head[:, None]).solution[:, 0]
            there = state.pose.select([a]).apply((weights[:, None] * vertices[a, corners]).sum(0)[None, None])
            pixel = state.camera.select([a]).project(there)[0]
            color = sample(obs.images[[a]], pixel)[0][0, 0]
            squares.append(float((obs.images[b, :, y, x] - color).square().sum()))
        means.append(sum(squares) / len(squares))
    assert len(means) == 4 and cost == pytest.approx(sum(means) / 4, rel=1e-6)


def test_the_union_counts_the_outlined_half_face_too():
    state, obs, energy = scene(options=replace(STRICT["mvf"], size=SIZE))
    away = state.pose.translation * torch.tensor([1.0, 1.0, 1.5])
    # So small that part of each face lies beside its rendering.
    at = state.replace(pose=Pose(state.pose.rotation, away))
    frozen = energy.freeze(at, obs)
    plain = replace(energy, options=replace(energy.options, region="rendered")).freeze(at, obs)
    outline = outlined_faces(obs, energy.photos)
    for g, (_, b) in enumerate(frozen.shared.pairs):
        both, seen = frozen.weight[g] > 0, plain.weight[g] > 0
        more = both & ~seen
        assert bool(both[seen].all()) and 20 < int(more.sum()) < int(seen.sum())
        assert bool(outline[b].reshape(-1)[more].all())
        rendering, photo = frozen.images(at)
        mean = rendering[g].reshape(3, -1)[:, seen].mean(1)
        torch.testing.assert_close(
            rendering[g].reshape(3, -1)[:, more], mean[:, None].expand(3, int(more.sum()))
        )
        assert torch.equal(photo[g], obs.images[b])


def test_light_that_changes_costs_and_the_right_state_costs_least():
    state, obs, energy = scene()
    objective = Objective([Term(energy, 1.0, Kernel("sq"))])
    right = float(objective.freeze(state, obs).cost(state, obs)[0])
    wrong = float(objective.freeze(moved(state), obs).cost(moved(state), obs)[0])
    assert right < 0.3 * wrong
    dark = replace(obs, images=obs.images * torch.tensor([1.0, 0.8, 1.0]).double()[:, None, None, None])
    other = PhotoPairs.prepare(MODEL, dark, OPTIONS)
    assert float(Objective([Term(other)]).freeze(state, dark).cost(state, dark)[0]) > 3 * right


def test_weights_of_a_parse_and_too_few_pixels():
    parse = torch.full((3, SIZE, SIZE), PARSE.index("skin"))
    parse[:, 48:] = PARSE.index("nose")
    state, obs, energy = scene(options=replace(OPTIONS, parse="pgn"), labels=Labels(parse=parse))
    weight = energy.freeze(state, obs).weight[0]
    assert float(weight[weight > 0].max() / weight[weight > 0].min()) == pytest.approx(5)
    few = replace(energy, options=replace(OPTIONS, min_pixels=10**6)).freeze(state, obs)
    assert not bool(few.residuals(state, obs).valid.any())


def test_refusals():
    state, obs, energy = scene()
    with pytest.raises(InputError, match="energy 'photo_pairs': freeze it at a state first"):
        energy.residuals(state, obs)
    one = tiny_state(MODEL, 1, SIZE)
    with pytest.raises(InputError, match="energy 'photo_pairs' compares views of one person"):
        energy.freeze(one, obs)
