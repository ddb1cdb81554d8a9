from dataclasses import fields, replace

import pytest
import torch
from derivatives import check_everything, check_jacobian, layouts, whole_jacobian
from helpers import observe, tiny_model, tiny_state
from test_photometric import noise_images

from fitkit.energies.base import Linearization
from fitkit.energies.census import (
    VARIANTS,
    CensusOptions,
    CensusVariant,
    CrossViewCensus,
    census_distance,
    census_loss,
    census_variant,
    hard_census_distance,
    neighbor_differences,
    offsets,
    reduce_distance,
    ternary,
)
from fitkit.energies.kernels import Kernel
from fitkit.energies.masks import weight_features
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.view_pairs import neighbor_views
from fitkit.errors import InputError
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.camera import KINDS, Camera
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
OPTIONS = CensusOptions(points=60, blur=0.0, spacing_mm=1.5, sigmas=(8.0,))


def truth(kind="perspective", views=3, size=160, **options):
    state = tiny_state(MODEL, views, size, **options)
    return state.replace(camera=replace(state.camera, kind=kind))


def pattern(place):
    """Smooth grey noise on the skin as a function of the place on the mean head [..., 3] mm: waves of 10 to
    30 mm."""
    gen = torch.Generator().manual_seed(4)
    total = 0.0
    for _ in range(14):
        direction = torch.nn.functional.normalize(torch.randn(3, generator=gen), dim=0).to(place)
        length, phase = (
            10 + 20 * float(torch.rand((), generator=gen)),
            6.28 * float(torch.rand((), generator=gen)),
        )
        total = total + torch.sin((place @ direction) * (6.2832 / length) + phase)
    return 0.5 + 0.06 * total


def photograph(state, size=160, model=MODEL):
    fragments = rasterize(
        state.camera.clip(state.pose.apply(state.vertices(model))), model.triangles, (size, size)
    )
    grey = torch.where(
        fragments.covered, pattern(interpolate(fragments, model.triangles, model.mean[None])), 0.4
    )
    return grey.clamp(0.1, 0.85)[:, None].expand(-1, 3, -1, -1).contiguous()


def prepared(state, images, options=OPTIONS):
    obs = observe(MODEL, state, images.shape[-1], images)
    return CrossViewCensus.prepare(MODEL, obs, options).freeze(state, obs), obs


# ---- derivatives ----


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, level):
    state = truth(kind)
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, level=level, blur=0.7))
    assert int((energy.trust > 0).sum()) > 25
    check_everything(
        energy, state, obs, kinks=True, kernels=(Kernel("sq"), Kernel("cauchy", 1.5), Kernel("gm", 2.0))
    )


def test_derivatives_away_from_the_frozen_state():
    state = truth()
    energy, obs = prepared(state, noise_images())
    away = state.replace(
        pose=state.pose.retract(
            torch.tensor([[0.02, -0.03, 0.01, 70, 40, 5]], dtype=torch.float64).expand(3, -1)
        )
    )
    check_everything(energy, away, obs, kinks=True, kernels=(Kernel("cauchy", 1.5),))


def test_many_neighbours_give_the_same_system_in_fewer_rows():
    state = truth()
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, points=25, stride=1, spacing_mm=1.0))
    kernel = Kernel("gm", 2.0)
    lin = energy.linearize(state, obs)
    value = energy.residuals(state, obs)
    assert value.value.shape[-1] == 48 and lin.residuals.value.shape[-1] == 21
    valid = value.valid
    length = value.value.square().sum(-1)
    torch.testing.assert_close(lin.residuals.value.square().sum(-1)[valid], length[valid])
    for layout in layouts(state, ("identity", "expression", "pose", "principal", "focal", "aspect")):
        zero = torch.zeros(layout.total, dtype=torch.float64)
        J = torch.func.jacfwd(lambda x: energy.residuals(retract(state, x, layout), obs).value)(zero)
        w = (
            torch.where(valid, energy.trust * kernel.weight(length), 0)
            / torch.where(valid, energy.trust, 0).sum()
        )
        H = torch.einsum("gm,gmdp,gmdq->pq", w, J, J)
        gradient = torch.einsum("gm,gmdp,gmd->p", w, J, value.value)
        system = Objective([Term(energy, 1.0, kernel)]).linearize(state, obs, layout)
        torch.testing.assert_close(system.dense(), H, rtol=1e-8, atol=1e-8 * float(H.abs().max()))
        torch.testing.assert_close(
            system.gradient, gradient, rtol=1e-8, atol=1e-8 * float(gradient.abs().max())
        )


def test_fewer_rows_refuse_the_kernel_that_takes_each_component_by_itself():
    state = truth()
    energy, obs = prepared(state, noise_images(), replace(OPTIONS, points=5, stride=1, spacing_mm=1.0))
    with pytest.raises(
        InputError, match="energy 'census_xview': .* mixes the components .* use kernel 'l2n'"
    ):
        Objective([Term(energy, 1.0, Kernel("l1"))]).linearize(
            state, obs, ParameterLayout.of(state, ("pose",))
        )


def test_jacobian_of_the_slots():
    # Without expression and focal length the slots still fit together.
    state = truth()
    energy, obs = prepared(state, noise_images())
    layout = ParameterLayout.of(state, ("pose",))
    check_jacobian(energy, state, obs, layout, kinks=True)
    lin = energy.linearize(state, obs)
    assert isinstance(lin, Linearization) and whole_jacobian(lin, layout).shape[-1] == layout.total


# ---- values ----


def test_exactly_zero_on_a_linear_image_that_moves_with_the_head_and_gets_brighter():
    size, shift = 96, torch.tensor([[0.0, 0.0], [6.25, -3.5]], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack([x, y], -1) - shift[:, None, None]
    grey = (
        place @ torch.tensor([0.004, -0.002], dtype=torch.float64)
        + 0.3
        + torch.tensor([0.0, 0.1])[:, None, None]
    )
    base = tiny_state(MODEL, 1)
    camera = Camera(
        torch.full((2,), 400.0, dtype=torch.float64),
        47.5 + shift,
        torch.ones(2, dtype=torch.float64),
        "orthographic",
    )
    state = base.replace(
        subject=torch.zeros(2, dtype=torch.int64),
        expression=base.expression.expand(2, -1),
        camera=camera,
        illumination=torch.zeros(2, 9, 1, dtype=torch.float64),
        pose=Pose(
            base.pose.rotation.expand(2, -1, -1), torch.tensor([[0.0, 0, 1000]] * 2, dtype=torch.float64)
        ),
    )
    energy, obs = prepared(state, grey[:, None].expand(-1, 3, -1, -1).contiguous())
    r = energy.residuals(state, obs)
    assert int(r.valid.sum()) > 25 and float(r.value[r.valid].abs().max()) < 1e-9
    assert float(energy.scalar(state, "pgn")) < 1e-15


def test_small_at_the_truth_and_least_there():
    state = truth(size=320)
    energy, obs = prepared(state, photograph(state, 320), replace(OPTIONS, points=300))
    at_truth = float(energy.scalar(state))
    assert (
        int((energy.trust > 0).sum()) > 150 and at_truth < 0.05
    )  # sampling of facets; the largest value is 0.976
    for k, size in enumerate((0.03, 0.03, 0.03, 3.0, 3.0, 15.0)):
        step = torch.zeros(3, 6, dtype=torch.float64)
        step[1, k] = size
        assert float(energy.scalar(state.replace(pose=state.pose.retract(step)))) > 1.3 * at_truth


def test_brightness_changes_nothing_and_contrast_little():
    state = truth()
    images = photograph(state)
    off = state.replace(
        pose=state.pose.retract(
            torch.tensor([[0.0] * 6, [0.02, 0.03, 0, 2, 1, 0], [0.0] * 6], dtype=torch.float64)
        )
    )

    def both(pictures):
        energy, obs = prepared(off, pictures, replace(OPTIONS, points=200))
        return float(Objective([Term(energy)]).cost(off, obs)[0]), float(energy.scalar(off, "unflow"))

    plain = both(images)
    brighter = images + torch.tensor([0.0, 0.1, 0.05], dtype=torch.float64)[:, None, None, None]
    assert both(brighter) == pytest.approx(plain, rel=1e-9)
    contrast = images * torch.tensor([1.0, 1.15, 0.9], dtype=torch.float64)[:, None, None, None]
    assert both(contrast) == pytest.approx(plain, rel=0.15)


def test_patches_follow_the_surface():
    # The neighbours of a point are the same skin in every view: they lie in the triangle's own coordinates,
    # whatever the expression.
    state = truth(expression=0.8)
    energy, _ = prepared(state, noise_images(), replace(OPTIONS, points=120, spacing_mm=0.7))
    vertices = state.vertices(MODEL)
    corners = vertices[:, MODEL.triangles[energy.triangle]]
    edges = torch.stack([corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]], -1)
    exact = torch.einsum("bnij,npj->bnpi", edges, energy.by_edges)
    away = (exact - energy.patch).norm(dim=-1)
    assert (
        float(away.mean()) < 0.3 and float(away.max()) < 1.8
    )  # mm: a facet against the smooth tangent plane, steepest at the nose
    lengths = energy.patch.norm(dim=-1)
    nominal = (offsets(7, 3) * 0.7).norm(dim=-1)
    assert 0.8 < float((lengths / nominal).mean()) < 1.2
    a, b, c = MODEL.mean[MODEL.triangles[energy.triangle]].unbind(1)
    on_mean = torch.einsum("nij,npj->npi", torch.stack([b - a, c - a], -1), energy.by_edges)
    torch.testing.assert_close(on_mean.norm(dim=-1), nominal.expand(120, -1))


def test_patches_on_the_surface_beat_patches_in_the_picture():
    state = truth(size=320)
    energy, obs = prepared(state, photograph(state, 320), replace(OPTIONS, points=300))
    # The patch of view 0, laid down alike in every picture.
    turned = energy.patch[0] @ state.pose.rotation[0].T
    flat = replace(energy, patch=torch.einsum("npi,bij->bnpj", turned, state.pose.rotation))
    assert float(flat.scalar(state)) > 2 * float(energy.scalar(state))


def test_each_freeze_takes_the_next_sigma():
    state = truth()
    obs = observe(MODEL, state, 160, noise_images())
    energy = CrossViewCensus.prepare(MODEL, obs, replace(OPTIONS, sigmas=(8.0, 3.0, 0.9)))
    seen = []
    for _ in range(4):
        energy = energy.freeze(state, obs)
        seen.append(energy.sigma)
    assert seen == [8.0, 3.0, 0.9, 0.9]


def test_features_of_the_model_weigh_more():
    state = truth()
    images = photograph(state)
    plain, weighed = (prepared(state, images, replace(OPTIONS, features=f))[0] for f in (1.0, 5.0))
    on = weight_features(MODEL, 5.0)[plain.triangle]
    torch.testing.assert_close(weighed.trust, plain.trust * on)
    assert 0 < int((on == 1).sum()) < len(on) and bool((plain.trust[:, on == 1] > 0).any())


def test_scalar_and_residuals_pull_the_same_way_where_frozen():
    # IRLS: at the frozen state the weighted squares have the gradient of the published distance, times 0.1 /
    # (2 noise^2).
    state = truth(views=2)
    options = replace(OPTIONS, sigmas=(3.0,))
    energy, obs = prepared(state, noise_images(2), options)
    layout = ParameterLayout.of(state, ("identity", "expression", "pose", "focal"))
    gradients = []
    for face in (lambda s: Objective([Term(energy)]).cost(s, obs)[0], lambda s: energy.scalar(s, "default")):
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(face(retract(state, step, layout)), step)[0])
    torch.testing.assert_close(
        gradients[0], gradients[1] * 0.1 / (2 * options.noise**2), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_of_the_scalar(variant):
    # A ramp has no kinks of the bilinear surface, so central differences are exact everywhere.
    state = truth(views=2)
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="ij")
    ramp = torch.stack([0.3 + 0.0012 * x + 0.0009 * y, 0.7 - 0.001 * x + 0.0013 * y]).to(torch.float64)
    energy, _ = prepared(state, ramp[:, None].expand(-1, 3, -1, -1).contiguous())
    layout = ParameterLayout.of(state, ("identity", "expression", "pose"))
    gen = torch.Generator().manual_seed(0)
    subspace = torch.linalg.qr(torch.randn(layout.total, 16, generator=gen, dtype=torch.float64)).Q

    def value(x):
        return energy.scalar(retract(state, subspace @ x, layout), variant)

    zero = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(zero), zero)
    h = 1e-5
    numeric = torch.stack(
        [(value(h * e) - value(-h * e)) / (2 * h) for e in torch.eye(16, dtype=torch.float64)]
    ).detach()
    torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-6 * float(numeric.abs().max()) + 1e-9)


def together(one, other):
    """Two people of two views each in one state."""

    def cat(a, b):
        return torch.cat([a, b])

    camera = replace(
        one.camera,
        focal=cat(one.camera.focal, other.camera.focal),
        aspect=cat(one.camera.aspect, other.camera.aspect),
        principal=cat(one.camera.principal, other.camera.principal),
    )
    pose = Pose(
        cat(one.pose.rotation, other.pose.rotation), cat(one.pose.translation, other.pose.translation)
    )
    return one.replace(
        identity=cat(one.identity, other.identity),
        subject=torch.tensor([0, 0, 1, 1]),
        expression=cat(one.expression, other.expression),
        illumination=cat(one.illumination, other.illumination),
        pose=pose,
        camera=camera,
    )


def test_two_people_are_the_mean_of_both_and_never_paired():
    one, other = truth(views=2), truth(views=2, seed=5)
    images = noise_images(4)
    both = together(one, other)
    assert sorted((n.a, n.b) for n in neighbor_views(both, 3)) in (
        [(0, 1), (2, 3)],
        [(0, 1), (3, 2)],
        [(1, 0), (2, 3)],
        [(1, 0), (3, 2)],
    )
    values = [
        float(prepared(s, i)[0].scalar(s, "pgn"))
        for s, i in ((one, images[:2]), (other, images[2:]), (both, images))
    ]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)


# ---- what must not count ----


def test_nothing_to_compare():
    state = truth()
    obs = replace(observe(MODEL, state, 160, noise_images()), mask=torch.zeros(3, 160, 160, dtype=torch.bool))
    energy = CrossViewCensus.prepare(MODEL, obs, OPTIONS).freeze(state, obs)
    layout = ParameterLayout.of(state, ("identity", "pose"))
    for face in (lambda s: Objective([Term(energy)]).cost(s, obs)[0], energy.scalar):
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost = face(retract(state, step, layout))
        (gradient,) = torch.autograd.grad(cost, step)
        assert float(cost.detach()) == 0 and float(gradient.abs().max()) == 0
    system = Objective([Term(energy)]).linearize(state, obs, layout)
    assert float(system.dense().abs().max()) == 0 and float(system.gradient.abs().max()) == 0


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("fill", [0.0, 1.0, float("nan")])
def test_masked_pixels_have_no_influence(fill, stride):
    state, images = truth(), noise_images()
    mask = torch.ones(3, 160, 160, dtype=torch.bool)
    mask[0, :, 90:] = mask[2, 70:100] = False
    results = []
    layout = ParameterLayout.of(state, ("identity", "pose", "focal"))
    for content in (images, torch.where(mask[:, None], images, fill)):
        obs = replace(observe(MODEL, state, 160, content), mask=mask)
        energy = CrossViewCensus.prepare(MODEL, obs, replace(OPTIONS, blur=0.7, stride=stride)).freeze(
            state, obs
        )
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        objective = Objective([Term(energy, 1.0, Kernel("cauchy", 2.0))])
        cost, report = objective.cost(retract(state, step, layout), obs)
        system = objective.linearize(state, obs, layout)
        (gradient,) = torch.autograd.grad(cost, step)
        results.append(
            (
                cost.detach(),
                gradient,
                system.dense(),
                energy.scalar(state),
                torch.tensor(report["census_xview"].valid),
            )
        )
    assert 3 < int(results[0][-1]) < 70
    for a, b in zip(*results):
        assert torch.equal(a, b) and bool(torch.isfinite(a).all())


def test_crop_size_does_not_shift_the_balance():
    state = truth(size=224)
    double = torch.full((3,), 2.0, dtype=torch.float64)
    fine = photograph(
        state.replace(camera=state.camera.scaled(double, torch.full((3, 2), -0.25, dtype=torch.float64))), 448
    )
    costs = []
    for size, level in ((224, 0), (448, 1), (448, 0)):
        scale = size / 224
        shift = torch.full((3, 2), -0.5 + 0.5 / scale, dtype=torch.float64)
        own = state.replace(camera=state.camera.scaled(torch.full((3,), scale, dtype=torch.float64), shift))
        images = fine if size == 448 else torch.nn.functional.avg_pool2d(fine, 2)
        off = own.replace(
            pose=own.pose.retract(
                torch.tensor([[0.02, 0.04, 0, 2, 1, 0], [0] * 6, [0] * 6], dtype=torch.float64)
            )
        )
        obs = observe(MODEL, own, size, images)
        energy = CrossViewCensus.prepare(MODEL, obs, replace(OPTIONS, points=600, level=level)).freeze(
            off, obs
        )
        costs.append(float(Objective([Term(energy)]).cost(off, obs)[0]))
    assert abs(costs[1] / costs[0] - 1) < 1e-6  # the same pyramid image
    assert (
        abs(costs[2] / costs[0] - 1) < 0.1
    )  # patches are in mm: the finer picture says about the same, it is just sharper


# ---- what it is for ----


def test_finds_the_pose_again_in_brighter_pictures():
    state = truth(size=224)
    images = (
        photograph(state, 224) + torch.tensor([0.0, 0.08, -0.06], dtype=torch.float64)[:, None, None, None]
    )
    obs = observe(MODEL, state, 224, images)
    step = torch.zeros(3, 6, dtype=torch.float64)
    step[0], step[2] = (
        torch.tensor([0.008, -0.012, 0.01, 0.8, -0.6, 0]),
        torch.tensor([-0.01, 0.008, -0.006, -0.5, 0.9, 0]),
    )
    at = state.replace(pose=state.pose.retract(step))
    objective = Objective(
        [
            Term(
                CrossViewCensus.prepare(MODEL, obs, replace(OPTIONS, points=400, sigmas=(8.0, 3.0, 0.9))),
                300.0,
            )
        ]
    )
    layout = ParameterLayout.of(at, ("pose",))

    def miss(s):
        # The views only say how they lie to each other: take the motion of view 1 for the head's own and see
        # what is left, in px.
        head = state.vertices(MODEL)[:1, MODEL.face]
        moved = (s.pose.select([1]).apply(head) - state.pose.translation[1]) @ state.pose.rotation[1]
        pixels = [
            state.camera.select([0, 2]).project(p)[0]
            for p in (
                state.pose.select([0, 2]).apply(moved.expand(2, -1, -1)),
                s.pose.select([0, 2]).apply(head.expand(2, -1, -1)),
            )
        ]
        return float((pixels[0] - pixels[1]).norm(dim=-1).mean())

    before = miss(at)
    for _ in range(3):
        objective = objective.freeze(at, obs)
        at = levenberg_marquardt(LeastSquaresProblem(objective, obs, layout), at, LMOptions(8)).x
    assert miss(at) < 0.35 * before


def test_training_smoke():
    # Gradient descent on the scalar face lowers it and the vertex error.
    state = truth(size=224, expression=0.0)
    obs = observe(MODEL, state, 224, photograph(state, 224))
    offset = torch.randn(1, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    identity = (state.identity + 0.7 * offset).requires_grad_()
    optimizer = torch.optim.Adam([identity], lr=0.05)
    energy = CrossViewCensus.prepare(MODEL, obs, replace(OPTIONS, points=400))
    values, errors = [], []
    for _ in range(40):
        at = state.replace(identity=identity)
        with torch.no_grad():
            frozen = energy.freeze(at, obs)
            errors.append(
                float((at.vertices(MODEL) - state.vertices(MODEL)).norm(dim=-1)[:, MODEL.face].mean())
            )
        loss = frozen.scalar(at, CensusVariant(sigma=8.0, mean=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0] and errors[-1] < 0.8 * errors[0]


# ---- whole images ----


def brute_census(one, two, window, sigma):
    """H [H, W] by loops; neighbours beyond the border repeat the edge."""
    half = window // 2
    H, W = one.shape
    out = torch.zeros(H, W, dtype=one.dtype)
    for y in range(H):
        for x in range(W):
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    q = min(max(y + dy, 0), H - 1), min(max(x + dx, 0), W - 1)
                    t = [(g[q] - g[y, x]) / ((g[q] - g[y, x]) ** 2 + sigma**2) ** 0.5 for g in (one, two)]
                    out[y, x] += (t[0] - t[1]) ** 2 / (0.1 + (t[0] - t[1]) ** 2)
    return out


def pictures(B=2, H=12, W=14):
    return (
        torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 0.2 + 0.3
        for k in (1, 2)
    )


def test_distance_against_loops():
    one, two = pictures(1)
    grey = [255 * (0.2989 * x[0, 0] + 0.5870 * x[0, 1] + 0.1140 * x[0, 2]) for x in (one, two)]
    t = [ternary(neighbor_differences(g[None, None]), 0.9) for g in grey]
    H = census_distance(t[0], t[1], 1)[0]
    torch.testing.assert_close(H, brute_census(*grey, 7, 0.9))
    assert float(H.max()) < 48 / 1.1 * (1.1 * 4 / 4.1)  # 48 neighbours of at most 4 / 4.1
    mask = torch.ones(1, 1, 12, 14, dtype=torch.float64)
    inner = brute_census(*grey, 7, 0.9)[3:-3, 3:-3]
    assert float(census_loss(one, two, mask, "pgn")) == pytest.approx(float(inner.mean()))
    assert float(census_loss(one, two, mask, "unflow")) == pytest.approx(
        float(((inner**2 + 1e-6) ** 0.45).sum() / (12 * 14))
    )
    assert float(census_loss(one, two, mask, "ddflow")) == pytest.approx(
        float(((inner + 0.01) ** 0.4).mean() / 2), rel=1e-4
    )
    five = brute_census(*grey, 5, 3.0)[2:-2, 2:-2]
    assert float(census_loss(one, two, mask, "default", window=5)) == pytest.approx(float(five.mean() / 24))


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_loss_zero_brightness_batch_mask(variant):
    one, two = pictures()
    mask = torch.ones(2, 1, 12, 14, dtype=torch.float64)
    # Identical pictures: zero but for the offsets of the charbonnier and DDFlow curves.
    floor = {"unflow": 1e-6**0.45, "ddflow": 0.01**0.4 / 2}.get(variant, 0.0)
    assert float(census_loss(one, one, mask, variant).max()) <= floor + 1e-12
    value = census_loss(one, two, mask, variant)
    torch.testing.assert_close(census_loss(one, two + 0.1, mask, variant), value)
    torch.testing.assert_close(
        torch.cat([census_loss(one[k : k + 1], two[k : k + 1], mask[k : k + 1], variant) for k in (0, 1)]),
        value,
    )
    hole = mask.clone()
    hole[:, :, :, 11:] = 0
    results = []
    for fill in (0.0, 0.9, float("nan")):
        picture = torch.where(hole > 0, two, fill).requires_grad_()
        loss = census_loss(one, picture, hole, variant).sum()
        (gradient,) = torch.autograd.grad(loss, picture)
        assert float(gradient[:, :, :, 11:].abs().max()) == 0 and bool(torch.isfinite(gradient).all())
        results.append(float(loss.detach()))
    assert results[0] == results[1] == results[2] > 0
    moving = two.clone().requires_grad_()
    empty = census_loss(one, moving, torch.zeros_like(mask), variant)
    (gradient,) = torch.autograd.grad(empty.sum(), moving)
    assert float(empty.detach().abs().max()) == 0 and float(gradient.abs().max()) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_loss_gradient(variant):
    one, two = pictures(1, 8, 8)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    wide = replace(census_variant(variant), sigma=8.0)
    weight = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: census_loss(a, b, mask, wide, weight), (one.requires_grad_(), two.requires_grad_())
    )


def test_image_loss_does_not_depend_on_the_picture_size():
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    one = (0.5 + 0.1 * torch.sin(x / 9) * torch.cos(y / 7))[None, None].expand(1, 3, -1, -1)
    two = (0.5 + 0.1 * torch.sin((x + 2) / 9) * torch.cos(y / 7))[None, None].expand(1, 3, -1, -1)
    small = census_loss(one, two, torch.ones(1, 1, 224, 224), "default")
    tiled = [torch.cat([torch.cat([p, p], -1)] * 2, -2) for p in (one, two)]
    mask = torch.zeros(1, 1, 448, 448)
    for i in (0, 224):
        for j in (0, 224):
            mask[:, :, i : i + 224, j : j + 224] = 1
    # The same content four times: a mean, not a sum (the seams of the tiles are all that differs).
    assert float(census_loss(*tiled, mask, "default")) == pytest.approx(float(small), rel=0.02)


def test_hard_census_against_loops():
    one, two = pictures(1, 9, 9)
    grey = [255 * (0.2989 * x[0, 0] + 0.5870 * x[0, 1] + 0.1140 * x[0, 2]) for x in (one, two)]
    got = hard_census_distance(one, two, window=3, dead_zone=2.0)
    assert got.shape == (1, 1, 9, 9)
    y, x = 4, 5
    count = 0
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            d = [float(g[y + dy, x + dx] - g[y, x]) for g in grey]
            codes = [0 if abs(v) <= 2 else (1 if v > 0 else -1) for v in d]
            count += codes[0] != codes[1]
    assert float(got[0, 0, y, x]) == pytest.approx(count / 8)
    assert float(hard_census_distance(one, one + 0.1).max()) == 0


def test_reduction():
    H = torch.tensor([[2.0, 4.0, float("nan")]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    assert float(reduce_distance(H, weight, 8, VARIANTS["pgn"])) == pytest.approx(4 / 1.5, rel=1e-5)
    assert float(reduce_distance(H, weight, 8, VARIANTS["default"])) == pytest.approx(4 / 1.5 / 8, rel=1e-5)
    assert float(reduce_distance(H, weight, 8, VARIANTS["unflow"])) == pytest.approx(
        (4**0.45 + 0.5 * 16**0.45) / 3, rel=1e-4
    )
    assert float(reduce_distance(H, weight, 8, VARIANTS["ddflow"])) == pytest.approx(
        (2.01**0.4 + 0.5 * 4.01**0.4) / 3, rel=1e-3
    )


def test_refusals():
    for bad in ({"window": 6}, {"window": 5, "stride": 3}):
        with pytest.raises(InputError, match="census_xview: expected an odd window and a stride up to"):
            CensusOptions(**bad)
    for bad in ({"window": 1}, {"stride": 0}):
        with pytest.raises(InputError, match="census_xview: (window|stride): expected a whole number from"):
            CensusOptions(**bad)
    for bad in ((), (8.0, 0.0)):
        with pytest.raises(
            InputError, match="census_xview: sigmas: expected a (list of 1|number from 1e-09)"
        ):
            CensusOptions(sigmas=bad)
    with pytest.raises(
        InputError, match="energy 'census_xview' compares views of one person: expected at least 2"
    ):
        prepared(truth(views=1), noise_images(1))
    with pytest.raises(
        InputError, match="census variant: expected one of default, pgn, unflow, ddflow; got 'hamming'"
    ):
        census_variant("hamming")


def test_adam_climbs_down_the_ladder():
    """papers.md 3.2, 3: each iteration froze the energy of the first sigma anew."""
    seen = []

    class Watched(CrossViewCensus):
        def freeze(self, state, observations):
            frozen = super().freeze(state, observations)
            seen.append(frozen.sigma)
            return frozen

    state = truth()
    energy, observations = prepared(state, photograph(state), replace(OPTIONS, sigmas=(8.0, 3.0, 0.9)))
    watched = Watched(**{f.name: getattr(energy, f.name) for f in fields(energy)}).at_share(0.0)
    problem = LeastSquaresProblem(
        Objective([Term(watched)]), observations, ParameterLayout.of(state, ("pose",))
    )
    adam(problem, state, AdamOptions(6, 1e-3))
    assert seen == [8.0, 8.0, 3.0, 3.0, 0.9, 0.9]
