from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state
from test_photometric import LIGHT, lights, noise_images

from fitkit.energies.kernels import Kernel
from fitkit.energies.masks import PARSE, weight_parse
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.photo_model import (
    EVIDENCE,
    STRICT,
    AppearanceSolver,
    ModelPhotometric,
    ModelPhotometricOptions,
    ModelPhotometricTraining,
    counted_vertices,
    sh_gradient,
)
from fitkit.energies.photometric import point_normals, viewing_cosine
from fitkit.energies.registry import find
from fitkit.energies.spec import Context
from fitkit.errors import InputError
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.nets.predictor import Prediction
from fitkit.observe.labels import Labels
from fitkit.observe.observations import halve
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.camera import KINDS
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
SKIN = torch.tensor([0.45, 0.30, 0.22], dtype=torch.float64)
EVEN = replace(MODEL, albedo_mean=SKIN.expand(MODEL.num_vertices, 3).clone())  # nothing but shading to see
GEN = torch.Generator().manual_seed(3)
WAVES = torch.sin(MODEL.mean @ torch.randn(4, 3, 3, generator=GEN, dtype=torch.float64) / 30)
WITH_BASIS = replace(MODEL, albedo_basis=0.03 * WAVES)
OPTIONS = ModelPhotometricOptions(points=60, blur=0.0)
FREE = ("identity", "expression", "pose", "principal", "focal", "illumination")


def truth(model=EVEN, kind="perspective", views=3, size=160, channels=3):
    state = tiny_state(model, views, size)
    return state.replace(camera=replace(state.camera, kind=kind), illumination=lights(views, channels))


def photograph(state, model=EVEN, size=160, albedo=None):
    """Pictures [B, 3, size, size] of the model under the state's light; albedo [V, 3] linear."""
    vertices = state.vertices(model)
    fragments = rasterize(state.camera.clip(state.pose.apply(vertices)), model.triangles, (size, size))
    normal = torch.nn.functional.normalize(
        interpolate(fragments, model.triangles, vertex_normals(vertices, model.triangles)), dim=-1
    )
    color = interpolate(
        fragments,
        model.triangles,
        (model.albedo_mean if albedo is None else albedo)[None].expand(len(vertices), -1, -1),
    )
    shade = torch.einsum("bhwk,bkc->bhwc", sh_basis(normal), state.illumination)
    linear = torch.where(fragments.covered[..., None], color * shade, 0.2)
    return srgb_from_linear(linear.clamp(1e-4, 1)).permute(0, 3, 1, 2)


def prepared(state, images, options=OPTIONS, model=EVEN, labels=None, mask=None):
    obs = observe(model, state, images.shape[-1], images)
    obs = obs if mask is None else replace(obs, mask=mask)
    return ModelPhotometric.prepare(model, obs, options, labels).freeze(state, obs), obs


def rms(energy, state, obs):
    return Objective([Term(energy)]).cost(state, obs)[1]["photo_model"].rms


# ---- derivatives ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, channels):
    state = truth(MODEL, kind, channels=channels)
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, level=1, blur=0.7), MODEL)
    assert int((energy.trust > 0).sum()) > 60
    check_everything(
        energy,
        state,
        obs,
        FREE,
        kinks=True,
        kernels=(Kernel("sq"), Kernel("l2n", 0.1), Kernel("cauchy", 1.5)),
    )


@pytest.mark.parametrize(
    "options",
    [
        replace(OPTIONS, normals="frozen"),
        replace(OPTIONS, albedo="mean"),
        replace(OPTIONS, points=0, level=3),
        replace(OPTIONS, color="srgb"),
        replace(OPTIONS, albedo="state", region="front"),
        replace(STRICT["dfmvr"], albedo="mean", level=3, min_pixels=8),
    ],
    ids=lambda o: f"{o.normals}-{o.albedo}-{o.points}-{o.color}",
)
def test_derivatives_of_the_variants(options):
    state = truth(MODEL)
    energy, obs = prepared(state, noise_images(), options, MODEL)
    # Off the centres of the pixels, where the bilinear surface has its kinks and where points = 0 puts all
    # samples.
    away = state.replace(
        pose=state.pose.retract(
            torch.tensor([[0.004, 0.003, 0.002, 0.7, -0.5, 1.0]], dtype=torch.float64).expand(3, -1)
        )
    )
    check_everything(energy, away, obs, FREE, kinks=True, kernels=(Kernel("cauchy", 1.5),))


@pytest.mark.parametrize("own", [True, False])
def test_derivatives_with_an_albedo_basis(own):
    state = truth(WITH_BASIS)
    state = state.replace(albedo=torch.tensor([[0.5, -0.3, 0.8, 0.1]], dtype=torch.float64)) if own else state
    energy, obs = prepared(state, noise_images(), OPTIONS, WITH_BASIS)
    assert (energy.albedo is None) == own
    check_everything(energy, state, obs, FREE, kinks=True, kernels=(Kernel("cauchy", 1.5),))


def test_normals_move_with_the_shape():
    """The columns of the shading alone against central differences: an image without gradient leaves nothing
    else."""
    state = truth()
    energy, obs = prepared(
        state, torch.full((3, 3, 160, 160), 0.5, dtype=torch.float64), replace(OPTIONS, albedo="mean")
    )
    lin = energy.linearize(state, obs)
    h = 1e-5
    for name in ("identity", "expression"):
        for k in range(0, getattr(state, name).shape[1], 3):
            ends = []
            for sign in (h, -h):
                value = getattr(state, name).clone()
                value[:, k] += sign
                ends.append(energy.residuals(state.replace(**{name: value}), obs).value)
            numeric = (ends[0] - ends[1]) / (2 * h)
            assert float(numeric.abs().max()) > 0.005
            torch.testing.assert_close(lin.slots[0].columns[name][..., k], numeric, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        energy._normals(state), point_normals(EVEN, energy.triangle, energy.barycentric, state.vertices(EVEN))
    )
    still = replace(
        energy, normal=point_normals(EVEN, energy.triangle, energy.barycentric, state.vertices(EVEN))
    )
    assert float(still.linearize(state, obs).slots[0].columns["identity"].abs().max()) == 0


def test_harmonics_gradient():
    n = torch.nn.functional.normalize(torch.randn(50, 3, generator=GEN, dtype=torch.float64), dim=-1)
    J = torch.func.vmap(torch.func.jacfwd(sh_basis))(n)
    torch.testing.assert_close(sh_gradient(n), J)


def test_coefficients_of_the_state_carry_gradient():
    a = torch.tensor([[0.5, -0.3, 0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    state = truth(WITH_BASIS).replace(albedo=a)
    energy, obs = prepared(state, noise_images(), OPTIONS, WITH_BASIS)
    (gradient,) = torch.autograd.grad(Objective([Term(energy)]).cost(state, obs)[0], a)
    h = 1e-5
    for k in range(4):
        step = h * torch.eye(4, dtype=torch.float64)[k]
        ends = [
            float(Objective([Term(energy)]).cost(state.replace(albedo=a.detach() + s * step), obs)[0])
            for s in (1, -1)
        ]
        assert float(gradient[0, k]) == pytest.approx((ends[0] - ends[1]) / 2 / h, rel=1e-6)


# ---- values ----


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_at_the_truth_and_least_there(level, channels):
    state = truth(size=320, channels=channels)
    energy, obs = prepared(
        state, photograph(state, size=320), ModelPhotometricOptions(points=300, level=level, sigma=0.01)
    )
    at_truth = rms(energy, state, obs)
    assert at_truth < (0.25, 0.6)[level]  # resampling only: 0.006 in linear intensity on the coarse level
    for k, size in enumerate((0.09, 0.09, 0.09)):
        step = torch.zeros(3, 6, dtype=torch.float64)
        step[0, k] = size
        assert rms(energy, state.replace(pose=state.pose.retract(step)), obs) > 1.1 * at_truth
    assert rms(energy, state.replace(identity=state.identity + 0.5), obs) > 1.5 * at_truth


def test_exactly_zero_where_nothing_is_resampled():
    """A light without direction on an even albedo: every colour is albedo times light, wherever it is
    read."""
    state = truth()
    light = torch.zeros(3, 9, 3, dtype=torch.float64)
    light[:, 0] = torch.tensor([[2.0, 2.2, 1.8], [1.5, 1.5, 1.5], [2.5, 2.0, 1.9]], dtype=torch.float64)
    state = state.replace(illumination=light)
    shade = light[:, 0] * 0.28209479177387814
    images = srgb_from_linear(1.3 * SKIN * shade)[:, :, None, None].expand(-1, -1, 160, 160)
    for name in ("mean", "points"):
        energy, obs = prepared(state, images, replace(OPTIONS, albedo=name))
        r = energy.residuals(state, obs)
        assert float(r.value.abs().max()) < 1e-9 and int(r.valid.sum()) > 60
        torch.testing.assert_close(energy.albedo[0], (1.3 * SKIN).expand(60, 3))  # the person's colour


def test_the_strict_variant_is_the_printed_mean():
    state = truth(WITH_BASIS, size=96).replace(
        albedo=torch.tensor([[0.5, -0.3, 0.8, 0.1]], dtype=torch.float64)
    )
    images = noise_images(3, 96)
    labels = torch.randint(0, 10, (3, 96, 96), generator=torch.Generator().manual_seed(1))
    energy, obs = prepared(state, images, STRICT["dfmvr"], WITH_BASIS, labels)
    tiny = Kernel("l2n", 1e-6)
    cost = float(Objective([Term(energy, 1.0, tiny)]).cost(state, obs)[0]) / 1e-6  # rho / 2 of 'l2n' is e |r|
    # By the book: render codes, take every shared pixel, eyes and mouth too, weigh by the parse.
    vertices = state.vertices(MODEL)
    fragments = rasterize(state.camera.clip(state.pose.apply(vertices)), MODEL.triangles, (96, 96))
    normal = torch.nn.functional.normalize(
        interpolate(fragments, MODEL.triangles, vertex_normals(vertices, MODEL.triangles)), dim=-1
    )
    T = srgb_from_linear(MODEL.albedo_mean + torch.tensordot(state.albedo[0], WITH_BASIS.albedo_basis, 1))
    shade = torch.einsum("bhwk,bkc->bhwc", sh_basis(normal), state.illumination)
    rendered = interpolate(fragments, MODEL.triangles, T[None].expand(3, -1, -1)) * shade
    skin = MODEL.skin[MODEL.triangles].all(1)[fragments.triangle.clamp_min(0)]
    assert bool((fragments.covered & ~skin).any())
    P = fragments.covered.clone()
    P[:, [0, -1]] = P[:, :, [0, -1]] = False
    d = weight_parse(labels, torch.ones(3, 1, 96, 96, dtype=torch.float64), grow=2)[:, 0] * P
    length = (images.permute(0, 2, 3, 1) - rendered).norm(dim=-1)
    assert cost == pytest.approx(float(((d * length).sum((1, 2)) / d.sum((1, 2))).mean()), rel=1e-4)
    assert len(set((energy.trust > 0).sum(1).tolist())) == 3  # views of different size count the same


def test_parse_weights():
    state = truth()
    labels = torch.full((3, 160, 160), PARSE.index("skin"))
    labels[:, :, 80:] = PARSE.index("nose")
    plain, _ = prepared(state, noise_images())
    energy, _ = prepared(state, noise_images(), replace(OPTIONS, parse="pgn"), labels=labels)
    both = (plain.trust > 0) & (energy.trust > 0)
    ratio = (energy.trust / plain.trust.clamp_min(1e-9))[both]
    assert float(ratio.max()) == pytest.approx(1) and float(ratio.min()) == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"expected a face parse \[3, 160, 160\], got \[3, 80, 80\]"):
        prepared(state, noise_images(), labels=labels[:, :80, :80])


@pytest.mark.parametrize("model", [EVEN, WITH_BASIS], ids=["mean", "basis"])
def test_the_albedo_of_the_state_leaves_light_no_freedom(model):
    """Where the closed form takes up twice as much light, 'state' tells the difference."""
    state = truth(model)
    if model is WITH_BASIS:
        state = state.replace(albedo=torch.tensor([[0.5, -0.3, 0.8, 0.1]], dtype=torch.float64))
        own = model.albedo_mean + torch.tensordot(state.albedo[0], model.albedo_basis, 1)
    else:
        own = None
    images = photograph(state, model, albedo=own)
    brighter = state.replace(illumination=1.3 * state.illumination)
    told = replace(OPTIONS, albedo="state")
    right, wrong = (rms(*_with_state(prepared(s, images, told, model), s)) for s in (state, brighter))
    assert right < 0.5 and wrong > 4 * right
    if model is EVEN:
        free = replace(OPTIONS, albedo="mean")
        assert rms(*_with_state(prepared(brighter, images, free, model), brighter)) < 0.5


def _with_state(made, state):
    return made[0], state, made[1]


def test_the_front_is_the_face_with_its_openings():
    names = ("face", "left_eye", "mouth_interior", "ears")
    region = torch.arange(MODEL.num_vertices) % 4
    model = replace(MODEL, region_names=names, region=region, face=region == 0, skin=region == 0)
    assert torch.equal(counted_vertices(model, "front"), region < 3)
    assert counted_vertices(model, "all").all() and torch.equal(counted_vertices(model, "face"), region == 0)


def test_features_are_dilated_by_as_much_as_asked():
    state, labels = truth(), torch.full((3, 160, 160), PARSE.index("skin"))
    labels[:, 76:84, 76:84] = PARSE.index("nose")
    high = []
    for grow in (0.0, 5.0, 20.0):
        energy, _ = prepared(state, noise_images(), replace(OPTIONS, points=0, grow_px=grow), labels=labels)
        high.append(int((energy.trust_images > 0.9).sum()) / 3)
    assert high == [8**2, (8 + 2 * 4) ** 2, (8 + 2 * 14) ** 2]


def test_a_training_takes_the_parse_of_the_network_where_data_have_none():
    state, parse = truth(), torch.zeros(3, 10, 160, 160)
    parse[:, 1, :, :80], parse[:, 6, :, 80:] = 1.0, 1.0  # skin and nose
    obs = observe(EVEN, state, 160, noise_images())
    spec, options = find("photo_model"), ModelPhotometricTraining(options=OPTIONS)
    said = Prediction(state, parse=parse)
    predicted = spec.make(Context(EVEN, obs, state, prediction=said), options)
    given = spec.make(
        Context(EVEN, replace(obs, labels=Labels(parse=parse.argmax(1))), state, prediction=said), options
    )
    plain = spec.make(Context(EVEN, obs, state), options)
    assert torch.equal(predicted.trust_images, given.trust_images)
    assert not torch.equal(predicted.trust_images, plain.trust_images)
    # With a point for each pixel people are taken one by one.
    pixels = ModelPhotometricTraining(options=replace(OPTIONS, points=0))
    assert spec.apart(obs, options) is None and spec.apart(obs, pixels) != spec.apart(replace(obs), pixels)


# ---- light and albedo in closed form ----


def tied(light, reference):
    """Both without the scale they share with the albedo."""
    return light / light[:, :1].mean((0, 2), keepdim=True), reference / reference[:, :1].mean(
        (0, 2), keepdim=True
    )


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_light_is_recovered(kind, views):
    """A Lambertian rendering of the model's own albedo: shading as it was, to 2 % of its mean."""
    state = truth(MODEL, views=views, size=320, channels=3 if kind == "rgb" else 1)
    light = state.illumination
    if kind == "rgb":  # white on the whole, coloured by direction
        light = light / light[:, :1].mean(0, keepdim=True) * light[:, :1].mean()
    state = state.replace(illumination=light)
    obs_images = photograph(state, MODEL, 320)
    energy, obs = prepared(state, obs_images, ModelPhotometricOptions(points=600, light=kind), MODEL)
    found = energy.estimate_light(state, rounds=8)
    assert found.shape == light.shape
    harmonics = sh_basis(point_normals(MODEL, energy.triangle, energy.barycentric, state.vertices(MODEL)))
    a, b = harmonics @ found, harmonics @ light
    difference = (a - b)[energy.trust > 0] / float(b[energy.trust > 0].mean())
    assert float(difference.abs().mean()) < 0.02
    lit = state.replace(illumination=found)
    assert (
        rms(energy.freeze(lit, obs), lit, obs) < 0.25
    )  # in units of 0.03; the ridge on the light leaves that much in one view


def test_albedo_of_points_that_two_views_see():
    state = truth(MODEL, size=320)
    spots = (MODEL.albedo_mean * (1 + 0.2 * WAVES[0])).clamp(0.05, 0.9)
    options = ModelPhotometricOptions(points=500, sigma=0.01, albedo_sigma=0.1)
    energy, obs = prepared(state, photograph(state, MODEL, 320, spots), options, MODEL)
    true = (energy.barycentric[..., None] * spots[MODEL.triangles[energy.triangle]]).sum(1)
    shared = (energy.trust > 0).sum(0) >= 2
    mean = (energy.barycentric[..., None] * MODEL.albedo_mean[MODEL.triangles[energy.triangle]]).sum(1)
    assert float((energy.albedo[0] - true)[shared].abs().mean()) < 0.1 * float(
        (mean - true)[shared].abs().mean()
    )
    single = (energy.trust > 0).sum(0) == 1
    ratio = (energy.albedo[0] / mean)[single]
    assert (
        int(single.sum()) > 5 and float((ratio - ratio[0]).abs().max()) < 1e-9
    )  # one colour of the person, nothing else
    mean_only, _ = prepared(
        state, photograph(state, MODEL, 320, spots), replace(options, albedo="mean"), MODEL
    )
    sizes = [
        float(e.residuals(state, obs).value[:, shared][e.trust[:, shared] > 0].square().mean())
        for e in (energy, mean_only)
    ]
    assert sizes[1] > 9 * sizes[0]


def test_albedo_coefficients_in_closed_form():
    state = truth(WITH_BASIS, size=320)
    true = torch.tensor([[1.0, -0.7, 0.4, 0.2]], dtype=torch.float64)
    images = photograph(
        state, WITH_BASIS, 320, MODEL.albedo_mean + torch.tensordot(true[0], WITH_BASIS.albedo_basis, 1)
    )
    energy, obs = prepared(state, images, ModelPhotometricOptions(points=400, sigma=0.01), WITH_BASIS)
    own, _ = prepared(
        state.replace(albedo=true), images, ModelPhotometricOptions(points=400, sigma=0.01), WITH_BASIS
    )
    exact = own._albedo(state.replace(albedo=true))[0]
    assert float((energy.albedo[0] - exact).abs().mean()) < 0.1 * float(
        (energy._mean_albedo() - exact).abs().mean()
    )
    with pytest.raises(InputError, match="face model 'tiny' has no albedo basis; use albedo: auto"):
        prepared(truth(), images, replace(OPTIONS, albedo="basis"))


def appearance(colors, shade, sigma=0.03, **more):
    """A solver for one person without outliers, all trust 1: [B, N, 3] colours, [B, N, 1] shading."""
    mean = (
        torch.rand(colors.shape[1], 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.3
        + 0.2
    )
    views = torch.zeros(len(colors), dtype=torch.int64)
    return AppearanceSolver(
        colors, shade, torch.ones(colors.shape[:2], dtype=torch.float64), mean, views, 1, sigma, **more
    )


def nearly_mean(views, points):
    """Shading, and what the mean albedo looks like in it but for deviations far below sigma, which get full
    weight."""
    generator = torch.Generator().manual_seed(6)
    shade = 0.5 + torch.rand(views, points, 1, generator=generator, dtype=torch.float64)
    mean = appearance(torch.zeros(views, points, 3, dtype=torch.float64), shade, albedo_sigma=0.0).mean
    return (
        shade,
        mean * shade + 1e-5 * torch.randn(views, points, 3, generator=generator, dtype=torch.float64),
        mean,
    )


def test_deviation_of_a_point_is_the_minimum_of_both_squares():
    shade, colors, mean = nearly_mean(3, 12)
    solver = appearance(colors, shade, albedo_sigma=0.02)
    tone = (colors * mean * shade).sum((0, 1)) / (mean * shade).square().sum((0, 1))
    pull = (0.03 / 0.02) ** 2
    expected = ((shade * colors).sum(0) + pull * tone * mean) / (shade.square().sum(0) + pull)
    torch.testing.assert_close(solver.albedo(shade)[0], expected, rtol=0, atol=1e-9)
    assert float((expected - tone * mean).abs().max()) > 1e-6


def test_albedo_coefficients_are_least_squares_under_their_prior():
    shade, colors, mean = nearly_mean(2, 30)
    basis = 0.05 * torch.randn(4, 30, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    solver = appearance(colors, shade, albedo_sigma=0.02, basis=basis)
    one = (EVIDENCE / 60) ** 0.5 / 0.03  # sixty colours of weight 1 count as EVIDENCE independent ones
    design = torch.cat([one * (basis[:, None] * shade).reshape(4, -1).T, torch.eye(4, dtype=torch.float64)])
    right = torch.cat([one * (colors - mean * shade).reshape(-1), torch.zeros(4, dtype=torch.float64)])
    expected = mean + torch.einsum(
        "k,knc->nc", torch.linalg.lstsq(design, right[:, None]).solution[:, 0], basis
    )
    torch.testing.assert_close(solver.albedo(shade)[0], expected, rtol=0, atol=1e-9)
    assert float((expected - mean).abs().max()) > 1e-7


@pytest.mark.parametrize("clipped", [0.0, 0.5])
def test_clipped_pixels_are_trusted_as_much_as_stated(clipped):
    state = truth()
    images = photograph(state)
    dim, _ = prepared(state, images.clamp_max(0.9), replace(OPTIONS, clipped=clipped))
    full, _ = prepared(state, torch.ones_like(images), replace(OPTIONS, clipped=clipped))
    assert float(dim.trust.max()) > 0.5
    torch.testing.assert_close(full.trust, clipped * dim.trust * (clipped * dim.trust > 0.02))


def test_no_light_yet():
    state = truth().replace(illumination=torch.zeros(3, 9, 1, dtype=torch.float64))
    energy, obs = prepared(state, noise_images())
    assert bool(torch.isfinite(energy.residuals(state, obs).value).all()) and bool(
        torch.isfinite(energy.estimate_light(state)).all()
    )


# ---- what must not count ----


@pytest.mark.parametrize("fill", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("points", [60, 0])
def test_masked_pixels_have_no_influence(fill, points):
    state, images = truth(), noise_images()
    mask = torch.ones(3, 160, 160, dtype=torch.bool)
    mask[0, :, 90:] = mask[2, 70:100] = False
    layout = ParameterLayout.of(state, FREE)
    term, results = (lambda e: Objective([Term(e, 1.0, Kernel("cauchy", 2.0))])), []
    for content in (images, torch.where(mask[:, None], images, fill)):
        energy, obs = prepared(
            state,
            content,
            replace(OPTIONS, points=points, level=2 if points == 0 else 0, blur=0.7),
            mask=mask,
        )
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost, report = term(energy).cost(retract(state, step, layout), obs)
        system = term(energy).linearize(state, obs, layout)
        results.append(
            (
                cost.detach(),
                torch.autograd.grad(cost, step)[0],
                system.dense(),
                energy.estimate_light(state),
                torch.tensor(report["photo_model"].valid),
            )
        )
    assert int(results[0][-1]) > 20
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, points=0), replace(OPTIONS, equal_views=True)])
def test_an_empty_mask_gives_nothing(options):
    state = truth()
    energy, obs = prepared(state, noise_images(), options, mask=torch.zeros(3, 160, 160, dtype=torch.bool))
    layout = ParameterLayout.of(state, FREE)
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = Objective([Term(energy)]).cost(retract(state, step, layout), obs)
    (gradient,) = torch.autograd.grad(cost, step)
    assert float(cost.detach()) == 0 and report["photo_model"].valid == 0 and float(gradient.abs().max()) == 0
    assert bool(torch.isfinite(energy.estimate_light(state)).all())


def test_hidden_and_grazing_points_are_left_out():
    state = truth()
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, points=400))
    head = project_points(energy.basis, state).head
    _, cosine = viewing_cosine(EVEN, energy.triangle, energy.barycentric, state.vertices(EVEN), head, state)
    assert (
        bool((cosine[energy.trust > 0] > OPTIONS.min_cosine).all())
        and 0 < int((energy.trust > 0).sum()) < 1200
    )
    pixels, _ = prepared(state, noise_images(), replace(OPTIONS, points=0))
    assert set((pixels.trust > 0).sum(0).tolist()) == {0, 1}  # each pixel in its own view


def test_it_must_be_frozen_first():
    state = truth()
    obs = observe(EVEN, state, 160, noise_images())
    with pytest.raises(InputError, match="energy 'photo_model': freeze it at a state first"):
        ModelPhotometric.prepare(EVEN, obs, OPTIONS).residuals(state, obs)


# ---- batches and sizes ----


def test_two_people_are_the_mean_of_both():
    one = truth()
    other = one.replace(identity=-one.identity)
    twice = [0, 1, 2, 0, 1, 2]
    both = SceneState(
        torch.cat([one.identity, other.identity]),
        torch.tensor([0] * 3 + [1] * 3),
        one.expression[twice],
        one.pose.select(twice),
        one.camera.select(twice),
        one.illumination[twice],
    )
    options = replace(OPTIONS, equal_views=True, angle=False)
    images = [noise_images(seed=0), noise_images(seed=1)]
    costs = []
    for state, pictures in ((one, images[0]), (other, images[1]), (both, torch.cat(images))):
        energy, obs = prepared(state, pictures, options)
        costs.append(float(Objective([Term(energy)]).cost(state, obs)[0].sum()))
    assert costs[2] == pytest.approx((costs[0] + costs[1]) / 2, rel=1e-9) and costs[0] != pytest.approx(
        costs[1], rel=1e-3
    )


@pytest.mark.parametrize("points", [600, 0])
def test_crop_size_does_not_shift_the_balance(points):
    state = truth(size=224)
    double = torch.full((3,), 2.0, dtype=torch.float64)
    fine = photograph(
        state.replace(camera=state.camera.scaled(double, torch.full((3, 2), -0.25, dtype=torch.float64))),
        size=448,
    )
    costs = []
    for size, level in ((224, 0), (448, 1)):  # the same level of detail in both
        scale = size / 224
        shift = torch.full((3, 2), -0.5 + 0.5 / scale, dtype=torch.float64)
        camera = state.camera.scaled(torch.full((3,), scale, dtype=torch.float64), shift)
        own = state.replace(camera=camera)
        images = fine if size == 448 else srgb_from_linear(halve(linear_from_srgb(fine)))
        off = own.replace(
            pose=own.pose.retract(
                torch.tensor([[0.02, 0.04, 0, 2, 1, 0], [0] * 6, [0] * 6], dtype=torch.float64)
            )
        )
        energy, obs = prepared(off, images, ModelPhotometricOptions(points=points, level=level))
        costs.append(float(Objective([Term(energy)]).cost(off, obs)[0]))
    assert abs(costs[1] / costs[0] - 1) < 1e-6  # the same pyramid image; the z-buffer has one size


# ---- fits ----


def vertex_error(model, state, true):
    return float((state.vertices(model) - true.vertices(model)).detach().norm(dim=-1).mean())


def test_a_fit_to_shading_alone_finds_the_shape():
    """Even skin, known light and poses: shading brings the shape back; with frozen normals there is nothing
    to go by."""
    true = truth(size=320)
    light = torch.zeros(3, 9, 3, dtype=torch.float64)
    light[:] = (LIGHT * torch.tensor([1, 2, 1, 2, 1, 1, 1, 1, 1.0]))[None, :, None]
    true = true.replace(illumination=light)
    obs = observe(EVEN, true, 320, photograph(true, size=320))
    start = true.replace(
        identity=true.identity + 0.6 * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1], dtype=torch.float64)
    )
    errors = {}
    for normals in ("moving", "frozen"):
        options = ModelPhotometricOptions(points=400, blur=0.0, sigma=0.01, albedo="mean", normals=normals)
        objective = Objective([Term(ModelPhotometric.prepare(EVEN, obs, options), 400.0)])
        state, costs = start, []
        for _ in range(3):
            frozen = objective.freeze(state, obs)
            problem = LeastSquaresProblem(frozen, obs, ParameterLayout.of(state, ("identity",)))
            costs.append(problem.cost(state))
            state = levenberg_marquardt(problem, state, LMOptions(max_iterations=8)).x
        errors[normals] = vertex_error(EVEN, state, true)
        assert costs[-1] < costs[0]
    assert (
        errors["moving"] < 0.35 * vertex_error(EVEN, start, true)
        and errors["moving"] < 0.6 * errors["frozen"]
    )


@pytest.mark.slow
def test_gradient_descent_as_in_training():
    """A 'network' that holds codes, light and albedo: the frozen energy's gradient lowers cost and vertex
    error."""
    coefficients = torch.tensor([[0.6, -0.5, 0.4, -0.2]], dtype=torch.float64)
    true = truth(WITH_BASIS, size=320).replace(albedo=coefficients)
    paint = MODEL.albedo_mean + torch.tensordot(coefficients[0], WITH_BASIS.albedo_basis, 1)
    obs = observe(WITH_BASIS, true, 320, photograph(true, WITH_BASIS, 320, paint))
    codes = [
        c.clone().requires_grad_()
        for c in (true.identity + 0.4, torch.zeros_like(coefficients), 0.9 * true.illumination)
    ]

    def predicted():
        return true.replace(identity=codes[0], albedo=codes[1], illumination=codes[2])

    energy = ModelPhotometric.prepare(WITH_BASIS, obs, ModelPhotometricOptions(points=400, blur=0.0))
    objective = Objective([Term(energy, 1.0, Kernel("l2n", 0.1))])
    optimizer, costs = torch.optim.Adam(codes, lr=0.02), []
    before = vertex_error(WITH_BASIS, predicted(), true)
    for _ in range(100):
        state = predicted()
        cost = objective.freeze(state, obs).cost(state, obs)[0]
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(float(cost.detach()))
    assert costs[-1] < 0.4 * costs[0] and vertex_error(WITH_BASIS, predicted(), true) < 0.8 * before
    assert float((codes[1].detach() - coefficients).norm()) < 0.7 * float(coefficients.norm())
