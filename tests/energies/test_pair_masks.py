"""The options `mask` and `parse` of energies between views."""

from dataclasses import replace

import helpers
import pytest
import torch
from helpers import observe, tiny_model, tiny_state
from test_photometric import noise_images

from fitkit.energies.census import CensusOptions, CrossViewCensus
from fitkit.energies.features import FeatureOptions, SemanticFeatures
from fitkit.energies.masks import PARSE, vis_normal
from fitkit.energies.pair_masks import half_faces, pair_mask, shared_sides
from fitkit.energies.parse_labels import label_weights
from fitkit.energies.photo_model import ModelPhotometric, ModelPhotometricOptions
from fitkit.energies.photometric import CrossViewPhotometric, PhotometricOptions
from fitkit.errors import InputError
from fitkit.fitting.recipe import load_recipe
from fitkit.observe.labels import Labels
from fitkit.render.cross_view import CrossViews
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.train.regressor_recipe import load_regressor_training

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96
PAIRS = ((0, 1), (1, 0), (1, 2), (2, 1))


@pytest.fixture(scope="module")
def state():
    return tiny_state(MODEL, 3, SIZE)  # turned from -40 to 40 degrees


@pytest.fixture(scope="module")
def views(state):
    return CrossViews.of(MODEL, state, (SIZE, SIZE), 1.0)


def head_points(state, views, b):
    """Head-frame points behind the pixels of view b, [H W, 3], and which pixels have one."""
    triangle = views.fragments.triangle[b].reshape(-1)
    corners = state.vertices(MODEL)[b][MODEL.triangles[triangle.clamp_min(0)]]
    return (views.fragments.barycentric[b].reshape(-1, 3)[..., None] * corners).sum(1), triangle >= 0


def test_the_z_buffer_is_the_test_of_the_shared_pixels_themselves(state):
    assert pair_mask("zbuffer", MODEL, state, PAIRS) is None


def test_the_side_that_two_views_share(state):
    yaw = yaw_pitch_roll(state.pose.rotation)[:, 0].tolist()
    assert yaw[0] < -20 and abs(yaw[1]) < 10 and yaw[2] > 20
    # A nose that points to the right of the picture shows the subject's right cheek.
    assert shared_sides(state, PAIRS) == ["left", "left", "right", "right"]


@pytest.mark.parametrize("mask", ["landmarks", "box"])
def test_half_faces_lie_on_the_side_that_both_views_see(state, views, mask):
    kept = pair_mask(mask, MODEL, state, PAIRS)(views)
    for g, (_, b) in enumerate(PAIRS):
        x = head_points(state, views, b)[0][kept[g].reshape(-1), 0]
        sign = 1 if g < 2 else -1
        assert (
            len(x) > 500 and float((sign * x).mean()) > 20 and float((sign * x > -15).double().mean()) > 0.9
        )


def test_vertices_that_face_both_cameras(state, views):
    kept = pair_mask("vertex", MODEL, state, PAIRS)(views)
    facing = vis_normal(state.pose.apply(state.vertices(MODEL)), MODEL.triangles)
    for g, (a, b) in enumerate(PAIRS):
        triangle = views.fragments.triangle[b]
        share = (facing[a] & facing[b])[MODEL.triangles[triangle.clamp_min(0)]]
        assert bool(kept[g][share.all(-1) & (triangle >= 0)].all())
        assert not bool(kept[g][~share.any(-1) | (triangle < 0)].any())


def test_triangles_seen_by_both(state, views):
    kept = pair_mask("triangle", MODEL, state, PAIRS)(views)
    for g, (a, b) in enumerate(PAIRS):
        place = (views.fragments.triangle[b] >= 0).reshape(-1).nonzero()[:, 0]
        _, seen, _ = views.seen(a, b, place, 3.5)
        inside = kept[g].reshape(-1)[place]
        # A ring of triangles more, and these are large here.
        assert float(inside[seen].double().mean()) > 0.97 and float((inside == seen).double().mean()) > 0.8


def parsed(observations):
    parse = torch.full((len(observations.images), SIZE, SIZE), PARSE.index("skin"))
    parse[:, :, 48:] = PARSE.index("nose")
    return replace(observations, labels=Labels(parse=parse))


def test_weights_of_the_labelled_parse(state):
    obs = parsed(observe(MODEL, state, SIZE))
    mask = torch.ones(3, 1, 48, 48, dtype=torch.float64)
    weight = label_weights(obs, mask, "pgn", "x")
    assert torch.equal(weight[:, :, :, 25:], mask[:, :, :, 25:])
    assert float(weight[..., :22].max()) == pytest.approx(0.2)
    half = torch.ones(3, SIZE, SIZE, dtype=torch.bool)
    half[:, :48] = False
    known = replace(obs, labels=replace(obs.labels, parse_valid=half))
    assert float(label_weights(known, mask, "pgn", "x")[:, :, :24].max()) == 0
    with pytest.raises(InputError, match="energy 'x' needs labels with 'parse'"):
        label_weights(replace(obs, labels=None), mask, "pgn", "x")


def test_energies_at_surface_points_take_weights_and_masks(state):
    images = noise_images(3, SIZE)
    obs = parsed(observe(MODEL, state, SIZE, images))
    for prepare, options in (
        (CrossViewPhotometric.prepare, PhotometricOptions(points=400, blur=0.0, min_cosine=0.0)),
        (
            ModelPhotometric.prepare,
            ModelPhotometricOptions(points=400, blur=0.0, min_cosine=0.0, parse="none"),
        ),
        (CrossViewCensus.prepare, CensusOptions(points=400, blur=0.0, min_cosine=0.0)),
    ):
        plain = prepare(MODEL, obs, options).freeze(state, obs)
        again = prepare(MODEL, replace(obs, labels=None), options).freeze(state, obs)
        assert torch.equal(plain.trust, again.trust)  # unless asked for, the parse plays no part
        weighed = prepare(MODEL, obs, replace(options, parse="pgn")).freeze(state, obs)
        ratio = weighed.trust / plain.trust.clamp_min(1e-9)
        levels = ratio[weighed.trust > 0]
        assert float((levels / levels.max()).min()) < 0.3  # skin a fifth of the nose
        facing = prepare(MODEL, obs, replace(options, mask="normal")).freeze(state, obs)
        assert bool((facing.trust > 0)[plain.trust > 0].all())
        assert int((facing.trust > 0).sum()) > int((plain.trust > 0).sum())


def test_census_of_half_faces(state):
    obs = observe(MODEL, state, SIZE, noise_images(3, SIZE))
    options = CensusOptions(points=400, blur=0.0)
    for mask in ("landmarks", "box"):
        energy = CrossViewCensus.prepare(MODEL, obs, replace(options, mask=mask)).freeze(state, obs)
        for g, (a, b) in enumerate(zip(energy.view_a.tolist(), energy.view_b.tolist())):
            (side,) = shared_sides(state, [(a, b)])
            x = energy.basis.points(state.identity, state.expression[:1])[0][energy.trust[g] > 0, 0]
            x = x if side == "left" else -x
            assert len(x) > 30 and float((x > -15).double().mean()) > 0.95


def test_features_of_masked_pixels(state):
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.flatten(2).mean(2)

    obs = observe(MODEL, state, SIZE, helpers.photograph(MODEL, state, SIZE, (1.0, 0.9, 0.8)))
    seen = {}
    for mask in ("zbuffer", "box"):
        energy = SemanticFeatures.prepare(MODEL, obs, Mean(), FeatureOptions(size=SIZE, mask=mask))
        seen[mask] = energy.freeze(state, obs).shared.seen
    everywhere = torch.ones(4, SIZE, SIZE, dtype=torch.bool)
    pairs = energy.freeze(state, obs).shared.pairs
    points = project_points(MODEL.landmark_basis, state).pixels
    half = half_faces("box", points, state, pairs, [b for _, b in pairs], everywhere)
    assert not bool((seen["box"] & ~half).any()) and not torch.equal(seen["box"], seen["zbuffer"])


def test_recipes_of_fits_and_trainings_name_masks_and_weights():
    fit = load_recipe(
        "adam",
        [
            "stages.pixels.energies.photo_xview.options.mask=normal",
            "stages.pixels.energies.lmk2d.points=dfmvr",
        ],
    )
    stage = next(s for s in fit.stages if s.name == "pixels")
    assert (
        stage.energies["photo_xview"].options.mask == "normal" and stage.energies["lmk2d"].points == "dfmvr"
    )
    training = load_regressor_training(
        "mvfnet",
        [
            "stages.self_supervised.energies.flow_mag.options.mask=landmarks",
            "stages.self_supervised.energies.flow_mag.options.parse=pgn",
            "stages.supervised.energies.lmk2d.points=mfnet",
        ],
    )
    flow, marks = training.stages[1].energies["flow_mag"], training.stages[0].energies["lmk2d"]
    assert (flow.options.mask, flow.options.parse, marks.points) == ("landmarks", "pgn", "mfnet")
    with pytest.raises(
        InputError, match="mask: expected one of zbuffer, vertex, triangle, landmarks, box; got 'half'"
    ):
        load_regressor_training("mvfnet", ["stages.self_supervised.energies.flow_mag.options.mask=half"])
