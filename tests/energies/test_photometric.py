from dataclasses import replace

import numpy as np
import pytest
import torch
from derivatives import check_everything
from helpers import observe, tiny_model, tiny_state
from scipy.ndimage import gaussian_filter

from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term
from fitkit.energies.photometric import CrossViewPhotometric, PhotometricOptions, sample_skin
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.observe.observations import halve
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.camera import KINDS, Camera
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose

MODEL = tiny_model(dtype=torch.float64)
OPTIONS = PhotometricOptions(points=60, blur=0.0)
LIGHT = torch.tensor([2.8, 0.3, 0.6, -0.4, 0.05, 0.1, 0.1, -0.05, 0.04], dtype=torch.float64)


def lights(views, channels=1):
    gen = torch.Generator().manual_seed(8)
    return LIGHT[None, :, None] * (
        1 + 0.2 * torch.randn(views, 1, channels, generator=gen, dtype=torch.float64)
    ) + 0.08 * torch.randn(views, 9, channels, generator=gen, dtype=torch.float64)


def truth(kind="perspective", views=3, size=160, channels=1):
    state = tiny_state(MODEL, views, size)
    return state.replace(camera=replace(state.camera, kind=kind), illumination=lights(views, channels))


def noise_images(views=3, size=160, seed=0):
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.normal(size=(views, 3, size, size)), (0, 0, 3, 3))
    return torch.from_numpy(0.5 + 0.2 * image / image.std()).clamp(0.05, 0.95)


def albedo(head):
    """A smooth pattern on the skin, linear, as a function of the place on the mean head [..., 3] mm."""
    x, y, z = (head / 14).unbind(-1)
    return 0.35 + 0.08 * (
        torch.sin(x + 0.3 * z) + torch.cos(0.8 * y - 0.4 * x) + torch.sin(0.7 * z + 0.5 * y)
    )


def photograph(state, size=160):
    """Grey pictures of the model lit by the state's own light, linear luminance = albedo x shading."""
    vertices = state.vertices(MODEL)
    fragments = rasterize(state.camera.clip(state.pose.apply(vertices)), MODEL.triangles, (size, size))
    place = interpolate(fragments, MODEL.triangles, MODEL.mean[None])
    normal = torch.nn.functional.normalize(
        interpolate(fragments, MODEL.triangles, vertex_normals(vertices, MODEL.triangles)), dim=-1
    )
    shade = torch.einsum("bhwk,bk->bhw", sh_basis(normal), state.illumination.mean(-1))
    luminance = torch.where(fragments.covered, albedo(place) * shade, 0.2)
    return srgb_from_linear(luminance.clamp(1e-4, 1))[:, None].expand(-1, 3, -1, -1)


def prepared(state, images, options=OPTIONS):
    obs = observe(MODEL, state, images.shape[-1], images)
    return CrossViewPhotometric.prepare(MODEL, obs, options).freeze(state, obs), obs


# ---- derivatives ----


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, level):
    state = truth(kind)
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, level=level, blur=0.7))
    assert int((energy.trust > 0).sum()) > 60
    check_everything(energy, state, obs, kinks=True)


def test_derivatives_for_coloured_light():
    state = truth(channels=3)
    energy, obs = prepared(state, noise_images())
    check_everything(energy, state, obs, kinks=True, kernels=(Kernel("cauchy", 1.5),))


def test_derivatives_where_the_light_leaves_the_surface_dark():
    # Light from one side so strong that the linear shading falls below its floor on the other.
    state = truth()
    side = torch.zeros(3, 9, 1, dtype=torch.float64)
    side[:, 0], side[:, 3] = 1.0, torch.tensor([1.2, -1.2, 1.4], dtype=torch.float64)[:, None]
    state = state.replace(illumination=side)
    energy, obs = prepared(state, noise_images())
    dark = (energy.shading @ side).mean(-1) < 0.05
    assert int((dark & (energy.trust > 0)).sum()) > 5
    check_everything(energy, state, obs, kinks=True, kernels=(Kernel("sq"), Kernel("cauchy", 1.5)))


def test_derivatives_after_points_have_left_the_image():
    # Frozen while visible, then the step moves the head over the border: the samples stand still there.
    state = truth()
    energy, obs = prepared(state, noise_images())
    away = state.replace(
        pose=state.pose.retract(torch.tensor([[0.0, 0, 0, 70, 40, 0]], dtype=torch.float64).expand(3, -1))
    )
    check_everything(energy, away, obs, kinks=True, kernels=(Kernel("cauchy", 1.5),))


# ---- values ----


def test_exactly_zero_on_a_log_linear_image_that_moves_with_the_head():
    # Scaled orthographic, the same pose in both views but for a shift of (6.25, -3.5) px. The log luminance
    # is linear in the pixel, so bilinear sampling is exact, and a gain between the views is the light's first
    # band.
    size, shift = 96, torch.tensor([[0.0, 0.0], [6.25, -3.5]], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack([x, y], -1) - shift[:, None, None]
    slope = torch.tensor([0.011, -0.007], dtype=torch.float64)
    gain = torch.tensor([1.0, 1.4], dtype=torch.float64)
    log = (place @ slope) - 1.8 + gain.log()[:, None, None]
    images = srgb_from_linear(log.exp() - OPTIONS.floor)[:, None].expand(-1, 3, -1, -1)
    base = tiny_state(MODEL, 1)
    camera = Camera(
        torch.full((2,), 400.0, dtype=torch.float64),
        47.5 + shift,
        torch.ones(2, dtype=torch.float64),
        "orthographic",
    )
    light = torch.zeros(2, 9, 1, dtype=torch.float64)
    light[:, 0, 0] = 2 * gain
    state = base.replace(
        subject=torch.zeros(2, dtype=torch.int64),
        expression=base.expression.expand(2, -1),
        camera=camera,
        illumination=light,
        pose=Pose(
            base.pose.rotation.expand(2, -1, -1), torch.tensor([[0.0, 0, 1000]] * 2, dtype=torch.float64)
        ),
    )
    energy, obs = prepared(state, images)
    r = energy.residuals(state, obs)
    assert int(r.valid.sum()) > 50 and float(r.value[r.valid].abs().max()) < 1e-9
    # View 1 moved by 2 mm in x is 0.8 px and 0.0088 log units; half of the difference stays in each view
    # (equal shares).
    moved = state.replace(
        pose=Pose(
            state.pose.rotation,
            state.pose.translation + torch.tensor([[0.0, 0, 0], [2, 0, 0]], dtype=torch.float64),
        )
    )
    r = energy.residuals(moved, obs)
    seen = r.valid.all(0)
    torch.testing.assert_close(
        (r.value[1] - r.value[0])[seen, 0],
        torch.full((int(seen.sum()),), 0.8 * 0.011 / OPTIONS.sigma, dtype=torch.float64),
    )
    torch.testing.assert_close(
        (energy.share[:, seen, None] * r.value[:, seen]).sum(0),
        torch.zeros(int(seen.sum()), 1, dtype=torch.float64),
    )


@pytest.mark.parametrize("level", [0, 1])
def test_small_at_the_truth_and_least_there(level):
    state = truth(size=320)
    options = PhotometricOptions(points=300, level=level)
    energy, obs = prepared(state, photograph(state, 320), options)
    objective = Objective([Term(energy)])
    at_truth = objective.cost(state, obs)[1]["photo_xview"]
    assert (
        at_truth.valid > 300 and at_truth.rms < 0.4
    )  # sampling, and blur across the facets' shading edges; sigma is 5 %
    for k, size in enumerate((0.03, 0.03, 0.03, 3.0, 3.0, 15.0)):
        step = torch.zeros(3, 6, dtype=torch.float64)
        step[0, k] = size
        assert (
            objective.cost(state.replace(pose=state.pose.retract(step)), obs)[1]["photo_xview"].rms
            > 1.05 * at_truth.rms
        )


def test_gain_of_a_view_is_explained_by_its_light():
    state = truth()
    images = noise_images()
    energy, obs = prepared(state, images)
    darker = state.replace(
        illumination=state.illumination * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)[:, None, None]
    )
    gain = energy.residuals(darker, obs).value - energy.residuals(state, obs).value
    expected = torch.tensor([0, np.log(2), -np.log(2)]) / OPTIONS.sigma
    expected = expected[:, None] - (energy.share * expected[:, None]).sum(0)
    torch.testing.assert_close(gain[..., 0][energy.trust > 0], expected[energy.trust > 0])


def test_light_is_estimated():
    state = truth(size=320)
    energy, obs = prepared(state, photograph(state, 320), PhotometricOptions(points=600))
    found = energy.estimate_light(state)
    shade = [(energy.shading @ light)[..., 0].clamp_min(1e-3).log() for light in (found, state.illumination)]
    ratio = shade[0] - shade[1]
    seen = energy.trust > 0
    # Albedo and light share one scale, which is free; what is left is how the views and directions differ.
    spread = (ratio - ratio[seen].mean())[seen].abs().mean()
    flat = shade[1][seen]
    assert float(spread) < 0.5 * float((flat - flat.mean()).abs().mean())


# ---- exposure ----

GAINS, BIASES = (
    torch.tensor([1.0, 0.6, 1.3], dtype=torch.float64),
    torch.tensor([0.0, 0.03, -0.01], dtype=torch.float64),
)


def exposed(images, gains=GAINS, biases=BIASES):
    linear = linear_from_srgb(images) * gains[:, None, None, None] + biases[:, None, None, None]
    return srgb_from_linear(linear.clamp(1e-4, 1))


@pytest.mark.parametrize("exposure", ["gain", "gain_bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_with_exposure(kind, exposure):
    state = truth(kind)
    energy, obs = prepared(state, exposed(noise_images()), replace(OPTIONS, exposure=exposure))
    assert float((energy.gain.log() - energy.gain.log().mean()).abs().max()) > 0.1
    check_everything(energy, state, obs, kinks=True, kernels=(Kernel("sq"), Kernel("cauchy", 1.5)))


def residual_size(energy, state, obs):
    return Objective([Term(energy)]).cost(state, obs)[1]["photo_xview"].rms


@pytest.mark.parametrize("biases", [None, BIASES])
def test_exposure_is_taken_out(biases):
    state = truth(size=320)
    images = photograph(state, 320) * 0.8
    options = PhotometricOptions(points=300, floor=1e-3)
    plain = residual_size(*(lambda e, o: (e, state, o))(*prepared(state, images, options)))
    changed = exposed(images, biases=torch.zeros(3, dtype=torch.float64) if biases is None else biases)
    sizes = {}
    for exposure in ("none", "gain", "gain_bias"):
        energy, obs = prepared(state, changed, replace(options, exposure=exposure))
        sizes[exposure] = residual_size(energy, state, obs)
        if exposure == "gain_bias" or (biases is None and exposure == "gain"):
            # Only ratios of gains and differences of biases can be seen.
            found, true = energy.gain / energy.gain[0], GAINS / GAINS[0]
            torch.testing.assert_close(found, true, rtol=0.05, atol=0)
            assert float(energy.gain.log().mean().abs()) < 1e-6 and float(energy.bias.mean().abs()) < 1e-9
    assert (
        sizes["none"] > 4 * plain and sizes["gain"] < 0.6 * sizes["none"] and sizes["gain_bias"] < 1.6 * plain
    )
    assert (sizes["gain"] < 1.6 * plain) == (biases is None)


def test_a_gain_with_free_light_is_taken_up_by_the_light():
    # Without `exposure`: the first estimate of the light explains a factor of a view, an offset it cannot.
    state = truth(size=320)
    images = photograph(state, 320) * 0.8
    options = PhotometricOptions(points=300, floor=1e-3)
    sizes = []
    for gains, biases in ((torch.ones(3), torch.zeros(3)), (GAINS, torch.zeros(3)), (GAINS, BIASES)):
        energy, obs = prepared(state, exposed(images, gains, biases), options)
        light = energy.estimate_light(state, rounds=10)
        sizes.append(residual_size(energy, state.replace(illumination=light), obs))
    assert (
        sizes[1] < 1.35 * sizes[0] and sizes[2] > 2 * sizes[1]
    )  # the light's ridge is not scaled with the picture


def test_exposure_of_a_view_that_sees_nothing():
    state = truth()
    obs = replace(
        observe(MODEL, state, 160, noise_images()),
        mask=torch.tensor([True, True, False])[:, None, None].expand(3, 160, 160),
    )
    energy = CrossViewPhotometric.prepare(MODEL, obs, replace(OPTIONS, exposure="gain_bias")).freeze(
        state, obs
    )
    assert bool(torch.isfinite(energy.gain).all()) and float(energy.bias[2]) == pytest.approx(
        -float(energy.bias[:2].sum()) / 2, abs=0.1
    )
    nothing = replace(obs, mask=torch.zeros(3, 160, 160, dtype=torch.bool))
    energy = CrossViewPhotometric.prepare(MODEL, nothing, replace(OPTIONS, exposure="gain_bias")).freeze(
        state, nothing
    )
    assert float(Objective([Term(energy)]).cost(state, nothing)[0]) == 0 and bool(
        torch.isfinite(energy.gain).all()
    )


# ---- what must not count ----


def test_points_seen_by_one_view_say_nothing():
    state = truth(views=1)
    energy, obs = prepared(state, noise_images(1))
    layout = ParameterLayout.of(state, ("identity", "pose", "illumination"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = Objective([Term(energy)]).cost(retract(state, step, layout), obs)
    (gradient,) = torch.autograd.grad(cost, step)
    assert float(cost.detach()) == 0 and report["photo_xview"].valid == 0 and float(gradient.abs().max()) == 0
    system = Objective([Term(energy)]).linearize(state, obs, layout)
    assert float(system.dense().abs().max()) == 0 and float(system.gradient.abs().max()) == 0


@pytest.mark.parametrize("fill", [0.0, 1.0, float("nan")])
def test_masked_pixels_have_no_influence(fill):
    state, images = truth(), noise_images()
    mask = torch.ones(3, 160, 160, dtype=torch.bool)
    mask[0, :, 90:] = mask[2, 70:100] = False
    results = []
    layout = ParameterLayout.of(state, ("identity", "pose", "focal", "illumination"))
    for content in (images, torch.where(mask[:, None], images, fill)):
        obs = replace(observe(MODEL, state, 160, content), mask=mask)
        energy = CrossViewPhotometric.prepare(MODEL, obs, replace(OPTIONS, blur=0.7)).freeze(state, obs)
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost, report = Objective([Term(energy, 1.0, Kernel("cauchy", 2.0))]).cost(
            retract(state, step, layout), obs
        )
        system = Objective([Term(energy, 1.0, Kernel("cauchy", 2.0))]).linearize(state, obs, layout)
        results.append(
            (
                cost.detach(),
                torch.autograd.grad(cost, step)[0],
                system.dense(),
                torch.tensor(report["photo_xview"].valid),
            )
        )
    assert 20 < int(results[0][-1]) < 160
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_nothing_usable():
    state = truth()
    obs = replace(observe(MODEL, state, 160, noise_images()), mask=torch.zeros(3, 160, 160, dtype=torch.bool))
    energy = CrossViewPhotometric.prepare(MODEL, obs, OPTIONS).freeze(state, obs)
    cost, report = Objective([Term(energy)]).cost(state, obs)
    assert float(cost) == 0 and report["photo_xview"].valid == 0


def test_hidden_points_and_grazing_views_are_left_out():
    state = truth()
    energy, _ = prepared(state, noise_images(), replace(OPTIONS, points=400))
    vertices = state.vertices(MODEL)
    normals = vertex_normals(vertices, MODEL.triangles)[:, MODEL.triangles[energy.triangle]]
    normal = torch.nn.functional.normalize((energy.barycentric[None, :, :, None] * normals).sum(2), dim=-1)
    points = (energy.barycentric[None, :, :, None] * vertices[:, MODEL.triangles[energy.triangle]]).sum(2)
    cosine = (normal * torch.nn.functional.normalize(state.pose.centers()[:, None] - points, dim=-1)).sum(-1)
    assert bool((cosine[energy.trust > 0] > OPTIONS.min_cosine).all())
    assert int((energy.trust > 0).sum(0).max()) == 3 and set((energy.trust > 0).sum(0).tolist()) <= {0, 2, 3}
    torch.testing.assert_close(
        energy.share.sum(0)[(energy.trust > 0).any(0)],
        torch.ones(int((energy.trust > 0).any(0).sum()), dtype=torch.float64),
    )


# ---- sampling and sizes ----


def test_skin_points_are_even_and_only_on_the_skin():
    triangle, barycentric = sample_skin(MODEL, 2000, 0)
    assert bool(MODEL.skin[MODEL.triangles[triangle]].all()) and float(barycentric.min()) >= 0
    torch.testing.assert_close(barycentric.sum(1), torch.ones(2000, dtype=torch.float64), atol=1e-6, rtol=0)
    corner = MODEL.mean[MODEL.triangles]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(
        dim=1
    ) * MODEL.skin[MODEL.triangles].all(1)
    count = torch.bincount(triangle, minlength=len(area)).double()
    assert (
        float((count - 2000 * area / area.sum()).abs().max()) <= 2
    )  # systematic sampling: within one of its share, twice
    again = sample_skin(MODEL, 2000, 0)
    assert torch.equal(again[0], triangle) and torch.equal(again[1], barycentric)
    assert not torch.equal(sample_skin(MODEL, 2000, 1)[1], barycentric)


def test_crop_size_does_not_shift_the_balance():
    state = truth(size=224)
    double = torch.full((3,), 2.0, dtype=torch.float64)
    fine = photograph(
        state.replace(camera=state.camera.scaled(double, torch.full((3, 2), -0.25, dtype=torch.float64))), 448
    )
    costs = []
    for size, level in ((224, 0), (448, 1)):  # the same level of detail in both
        scale = size / 224
        camera = state.camera.scaled(
            torch.full((3,), scale, dtype=torch.float64),
            torch.full((3, 2), -0.5 + 0.5 / scale, dtype=torch.float64),
        )
        own = state.replace(camera=camera)
        images = fine if size == 448 else srgb_from_linear(halve(linear_from_srgb(fine)))
        off = own.replace(
            pose=own.pose.retract(
                torch.tensor([[0.02, 0.04, 0, 2, 1, 0], [0] * 6, [0] * 6], dtype=torch.float64)
            )
        )
        obs = observe(MODEL, own, size, images)
        energy = CrossViewPhotometric.prepare(MODEL, obs, PhotometricOptions(points=600, level=level)).freeze(
            off, obs
        )
        costs.append(float(Objective([Term(energy)]).cost(off, obs)[0]))
    assert abs(costs[1] / costs[0] - 1) < 1e-6  # the same pyramid image; the z-buffer has one size
