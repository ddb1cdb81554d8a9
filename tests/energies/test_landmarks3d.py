from dataclasses import replace

import numpy as np
import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.landmarks3d import (
    DFMVR_ANCHORS,
    DenseMapTerm,
    GuidedTerm,
    PositionMapLandmarks,
    PositionMapTerm,
    affine_align,
    landmark_places,
    lmk3d_align,
    lmk_guided,
    vertex_places,
)
from fitkit.energies.objective import Objective, Term
from fitkit.energies.registry import find
from fitkit.energies.spec import Context
from fitkit.errors import DegenerateInputError, InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.nets.predictor import Prediction
from fitkit.observe.labels import Labels
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.position_map import PositionMap

MODEL = tiny_model(dtype=torch.float64)
STATE = tiny_state(MODEL, 3)
TRUTH = tiny_state(MODEL, 3, seed=4)


def placed(points, seed=0, shear=0.0):
    """Points [B, 68, 3] under some similarity of each frame, sheared."""
    generator = torch.Generator().manual_seed(seed)
    turn = so3_exp(torch.randn(len(points), 3, generator=generator, dtype=torch.float64))
    linear = 0.1 * turn + shear * torch.randn(len(points), 3, 3, generator=generator, dtype=torch.float64)
    return points @ linear.transpose(1, 2) + torch.randn(
        len(points), 1, 3, generator=generator, dtype=torch.float64
    )


def labelled(shear=0.0, holes=False):
    points = placed(MODEL.landmark_basis.points(TRUTH.identity[TRUTH.subject], TRUTH.expression), shear=shear)
    if holes:
        points[0, 5:9], points[2, 60] = torch.nan, torch.nan
    return replace(observe(MODEL, STATE), labels=Labels(points3d=points))


ENERGIES = [
    lmk3d_align(MODEL),
    lmk3d_align(MODEL, 0.5, attached=True),
    lmk_guided(MODEL),
    lmk_guided(MODEL, transform="affine", attached=False),
]
IDS = ["align", "align attached", "guided", "guided affine"]


def cost(energy, state, observations):
    return Objective([Term(energy)]).cost(state, observations)[0]


@pytest.mark.parametrize("energy", ENERGIES, ids=IDS)
def test_zero_for_the_right_shape_wherever_it_lies(energy):
    shear = 0.02 if energy.transform == "affine" else 0.0
    assert float(cost(energy, TRUTH, labelled(shear))) < 1e-18
    assert float(cost(energy, STATE, labelled(shear))) > 1e-3
    if energy.transform == "similarity":
        assert float(cost(energy, TRUTH, labelled(0.02))) > 1e-4


@pytest.mark.parametrize("energy", ENERGIES, ids=IDS)
def test_derivatives_of_the_frozen_energy(energy):
    observations = labelled(holes=True)
    check_everything(energy.freeze(STATE, observations), STATE, observations)


@pytest.mark.parametrize("attached", [False, True])
def test_vertices_of_the_model_instead_of_the_68_points(attached):
    vertices = range(3, 104)
    energy = lmk3d_align(MODEL, 0.5, DFMVR_ANCHORS, attached, vertices)
    points = placed(TRUTH.vertices(MODEL)[:, list(vertices)])
    observations = replace(observe(MODEL, STATE), labels=Labels(points3d=points))
    assert float(cost(energy, TRUTH, observations)) < 1e-18 < 1e-3 < float(cost(energy, STATE, observations))
    check_everything(energy.freeze(STATE, observations), STATE, observations)
    with pytest.raises(InputError, match="'lmk3d_align': expected 68 labelled points, got 101"):
        cost(lmk3d_align(MODEL), TRUTH, observations)
    with pytest.raises(InputError, match="anchors: expected numbers below 68, that of the points, got 85"):
        lmk3d_align(MODEL, anchors=DFMVR_ANCHORS)
    with pytest.raises(
        InputError, match="vertices: expected numbers below 315, those of face model 'tiny', got 400"
    ):
        lmk3d_align(MODEL, anchors=(0, 1, 2), vertices=range(0, 500, 100))


@pytest.mark.parametrize("energy", [ENERGIES[1], ENERGIES[2]], ids=[IDS[1], IDS[2]])
def test_gradient_through_the_map(energy):
    observations = labelled()
    layout = ParameterLayout.of(STATE, ("identity", "expression"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(energy, retract(STATE, step, layout), observations), step)
    d = 1e-6 * torch.randn(layout.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numeric = (
        float(
            cost(energy, retract(STATE, d, layout), observations)
            - cost(energy, retract(STATE, -d, layout), observations)
        )
        / 2
    )
    assert float(gradient @ d) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("energy", ENERGIES, ids=IDS)
def test_the_gradient_of_an_objective_goes_through_an_attached_map(energy):
    """Objective.freeze, which trainings and fits call, fixes the map only where it is not attached."""
    observations = labelled()
    layout = ParameterLayout.of(STATE, ("identity", "expression"))

    def gradient(freeze):
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        state = retract(STATE, step, layout)
        objective = Objective([Term(energy)])
        objective = objective.freeze(STATE, observations) if freeze else objective
        return torch.autograd.grad(objective.cost(state, observations)[0], step)[0]

    held = replace(energy, attached=False)
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    fixed = torch.autograd.grad(cost(held, retract(STATE, step, layout), observations), step)[0]
    torch.testing.assert_close(gradient(True), gradient(False))
    apart = float((gradient(True) - fixed).norm() / fixed.norm())
    # Fitted to all points the map is the best one, so the cost does not feel its change; fitted to anchors it
    # does.
    assert apart > 0.01 if energy.attached and energy.anchors else apart < 1e-9


def test_unknown_points_change_nothing():
    holes = labelled(holes=True)
    known = torch.isfinite(holes.labels.points3d).all(-1)
    value = lmk_guided(MODEL).residuals(STATE, holes)
    assert torch.equal(value.valid, known) and bool(torch.isfinite(value.value).all())
    moved = holes.labels.points3d.clone()
    moved[0, 5:9] = 1e6
    moved[0, 5:9, 0] = torch.nan  # one coordinate missing is a point missing
    again = lmk_guided(MODEL).residuals(STATE, replace(holes, labels=Labels(points3d=moved)))
    assert torch.equal(again.value[known], value.value[known])


def test_only_anchors_place_the_points():
    observations = labelled()
    points = observations.labels.points3d.clone()
    points[:, 8] += 100  # the chin is no anchor
    value = lmk3d_align(MODEL).residuals(TRUTH, replace(observations, labels=Labels(points3d=points))).value
    assert float(value[:, 9:].norm(dim=-1).max()) < 1e-9 < 50 < float(value[:, 8].norm(dim=-1).min())


def test_affine_map_is_that_of_numpy():
    rng = np.random.default_rng(0)
    source, target, valid = (
        rng.normal(size=(2, 20, 3)),
        rng.normal(size=(2, 20, 3)),
        rng.random((2, 20)) > 0.3,
    )
    linear, shift = affine_align(*(torch.from_numpy(x) for x in (source, target, valid)))
    for b in range(2):
        A = np.column_stack([source[b], np.ones(20)])[valid[b]]
        best = np.linalg.lstsq(A, target[b][valid[b]], rcond=None)[0]
        assert np.allclose(linear[b].numpy(), best[:3].T) and np.allclose(shift[b].numpy(), best[3])


def test_too_few_or_flat_points_are_refused():
    points = torch.rand(1, 6, 3, dtype=torch.float64)
    with pytest.raises(DegenerateInputError, match="expected at least 4 pairs of points, got 3"):
        affine_align(points, points, torch.tensor([[1, 1, 1, 0, 0, 0]], dtype=torch.bool))
    with pytest.raises(DegenerateInputError, match="all points lie in one plane"):
        affine_align(points * torch.tensor([1.0, 1.0, 0.0]), points, torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(InputError, match="energy 'lmk_guided' needs labels with 'points3d'"):
        lmk_guided(MODEL).residuals(STATE, observe(MODEL, STATE))


def drawn_map(size):
    """The texture map of the mean face, each texel holding its 3D position, by interpolation over the texture
    triangles."""
    from scipy.interpolate import LinearNDInterpolator

    uv = MODEL.uv.numpy()
    owner = np.zeros(len(uv), int)
    owner[MODEL.uv_triangles.numpy().ravel()] = MODEL.triangles.numpy().ravel()
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, 1 - (np.arange(size) + 0.5) / size)
    drawn = LinearNDInterpolator(uv, MODEL.mean.numpy()[owner])(x, y)
    return torch.from_numpy(np.nan_to_num(drawn)).permute(2, 0, 1)[None]


def test_a_position_map_is_read_where_the_landmarks_are():
    truth = MODEL.landmark_basis.mean[None]
    state = PositionMap(drawn_map(256))
    energy = PositionMapLandmarks(landmark_places(MODEL, (256, 256)))
    observations = replace(observe(MODEL, STATE), labels=Labels(crop_points=truth))
    error = energy.residuals(state, observations).value.norm(dim=-1)
    # The interpolator cuts some of the mesh's quads along their other diagonal; their corners are up to 2.5
    # mm off one plane.
    assert float(error.median()) < 0.1 and float(error.max()) < 2.5
    points = state.points.clone().requires_grad_()
    value = (
        Objective([Term(energy)])
        .terms[0]
        .energy.residuals(PositionMap(points), observations)
        .value.square()
        .sum()
    )
    (gradient,) = torch.autograd.grad(value, points)
    assert 0 < int((gradient != 0).any(1).sum()) <= 68 * 4


@pytest.mark.parametrize("region", ["all", "face", "skin"])
def test_a_position_map_is_read_where_the_vertices_are(region):
    state = PositionMap(drawn_map(256))
    observations = replace(observe(MODEL, STATE), labels=Labels(crop_vertices=MODEL.mean[None]))
    energy = find("posmap_sup").make(Context(MODEL, observations, state), DenseMapTerm(region=region))
    found = energy.residuals(state, observations)
    # The rim of the map lies between texels that are drawn and those that are not.
    assert bool(found.valid.all()) and float(found.value.norm(dim=-1).median()) < 0.3
    places, owner = vertex_places(MODEL, (256, 256), region)
    counted = torch.ones(len(MODEL.mean)) if region == "all" else getattr(MODEL, region)
    assert sorted(set(owner.tolist())) == counted.nonzero()[:, 0].tolist() and len(places) == len(owner)
    half = replace(energy, sigma_px=2.0).residuals(state, observations).value
    torch.testing.assert_close(half, found.value / 2)


def test_vertices_at_a_seam_have_two_places():
    seam = torch.cat([MODEL.uv, MODEL.uv[:1] + 0.01])
    corners = MODEL.uv_triangles.clone()
    first = (corners == 0).nonzero()[0]
    corners[first[0], first[1]] = len(MODEL.uv)
    places, owner = vertex_places(replace(MODEL, uv=seam, uv_triangles=corners), (64, 64), "all")
    vertex = int(MODEL.triangles[first[0], first[1]])
    assert len(owner) == len(MODEL.uv) + 1 and int((owner == vertex).sum()) == 2


def test_landmarks_alone_have_no_dense_map():
    maps = PositionMap(torch.zeros(3, 3, 1, 68), torch.zeros(68, 2))
    with pytest.raises(InputError, match="'posmap_sup': expected a network that predicts position maps"):
        find("posmap_sup").make(Context(MODEL, observe(MODEL, STATE), maps), DenseMapTerm())


def test_detected_points_supervise_two_coordinates():
    seen = observe(MODEL, STATE)
    energy = PositionMapLandmarks(landmark_places(MODEL, (64, 64)), source="landmarks")
    value = energy.residuals(PositionMap(torch.zeros(3, 3, 64, 64, dtype=torch.float64)), seen)
    assert value.value.shape == (3, 68, 2)
    torch.testing.assert_close(value.value, -seen.landmarks.points)


@pytest.mark.parametrize("jaw", ["outline", "surface"])
def test_either_takes_labels_or_else_detected_points(jaw):
    spec, options = find("lmk_posmap"), PositionMapTerm(source="either", sigma_px=2.0)
    maps = PositionMap(torch.zeros(3, 3, 64, 64, dtype=torch.float64))
    seen = observe(MODEL, STATE)
    seen = replace(seen, landmarks=replace(seen.landmarks, jaw=jaw))
    truth = torch.ones(3, 68, 3, dtype=torch.float64)
    labelled = replace(seen, labels=Labels(crop_points=truth))
    assert spec.labels_for(options) == frozenset()
    assert spec.apart(seen, options) != spec.apart(labelled, options)

    def residuals(observations):
        context = Context(MODEL, observations, maps)
        return spec.make(context, options).residuals(maps, observations)

    torch.testing.assert_close(residuals(labelled).value, -truth / 2)
    found = residuals(seen)
    torch.testing.assert_close(found.value, -seen.landmarks.points / 2)
    assert bool(found.valid[:, :17].any()) == (jaw == "surface") and bool(found.valid[:, 17:].all())


def test_a_map_of_the_landmarks_alone_says_where_they_are():
    truth = torch.rand(3, 68, 3, dtype=torch.float64)
    places = torch.stack([torch.arange(68.0), torch.zeros(68)], -1)
    maps = PositionMap(truth.transpose(1, 2)[:, :, None], places)
    seen = replace(observe(MODEL, STATE), labels=Labels(crop_points=truth))
    energy = find("lmk_posmap").make(Context(MODEL, seen, maps), PositionMapTerm())
    assert float(energy.residuals(maps, seen).value.abs().max()) < 1e-6
    guided = find("lmk_guided").make(
        Context(MODEL, seen, prediction=Prediction(position_map=maps, subject=torch.arange(3))),
        GuidedTerm(source="position_map"),
    )
    torch.testing.assert_close(guided.target, truth)
    assert torch.equal(maps.select([2]).points, maps.points[2:]) and maps.select([2]).places is places


def test_a_model_without_texture_has_no_position_map():
    with pytest.raises(DegenerateInputError, match="model 'tiny' has no texture coordinates"):
        landmark_places(replace(MODEL, uv=None, uv_triangles=None), (8, 8))
