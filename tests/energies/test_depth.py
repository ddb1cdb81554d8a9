from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, picture, tiny_colors, tiny_model, tiny_state

from fitkit.energies.depth import (
    DepthAgreement,
    DepthPrior,
    DepthSupervision,
    DepthWarpPhotometric,
    DepthWarpStructure,
    NormalSupervision,
    SuitabilityPrior,
    warp,
)
from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term
from fitkit.errors import InputError
from fitkit.observe.labels import Labels
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import DepthState, back_project, depth_normals
from fitkit.scene.pose import Pose

MODEL = tiny_model()
SIZE = 80
BETWEEN = [DepthWarpPhotometric(), DepthWarpStructure(), DepthAgreement()]
SUPERVISED = [DepthSupervision(), NormalSupervision(), DepthPrior()]


@pytest.fixture(scope="module")
def scene():
    """Exact depth maps of a tiny person in three frames, its unlit pictures, and the depth as label; double
    precision."""
    person = tiny_state(MODEL, 3, SIZE)
    person = person.replace(expression=person.expression[:1].expand(3, -1).clone())  # one instant
    vertices = person.pose.apply(person.vertices(MODEL))
    depth = rasterize(person.camera.clip(vertices), MODEL.triangles, (SIZE, SIZE)).depth.double()
    images = torch.from_numpy(
        picture(vertices, MODEL.triangles, tiny_colors(MODEL), person.camera, (SIZE, SIZE))
    )
    images = images.permute(0, 3, 1, 2).double() / 255
    person = person.to(dtype=torch.float64)
    state = DepthState(depth, person.pose, person.camera, person.subject)
    observations = observe(MODEL.to(dtype=torch.float64), person, SIZE, images)
    return state, replace(observations, labels=Labels(depth=depth, prior_depth=depth))


def cost(energy, state, observations, kernel=Kernel()):
    return Objective([Term(energy, 1.0, kernel)]).cost(state, observations)[0]


def bent(state, amount=3.0, seed=0):
    """The state with smoothly wrong depth, amount in mm."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(len(state.depth), 1, 5, 5, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, state.size, mode="bicubic", align_corners=True)[:, 0]
    return replace(state, depth=torch.where(state.depth > 0, state.depth + amount * smooth, state.depth))


def test_back_projection_inverts_projection(scene):
    state, _ = scene
    for camera in (
        state.camera,
        replace(state.camera, kind="orthographic"),
        replace(state.camera, aspect=state.camera.aspect * 1.1),
    ):
        points = back_project(state.depth.clamp_min(500), camera)
        pixels, _ = camera.project(points)
        y, x = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
        assert np.allclose(pixels[1].numpy(), np.stack([x, y], -1).reshape(-1, 2), atol=1e-9)


def test_normals_of_a_plane_and_a_sphere():
    camera = Camera(torch.full((1,), 400.0), torch.full((1, 2), 31.5), torch.ones(1))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ray = torch.stack([(x - 31.5) / 400, (y - 31.5) / 400, torch.ones(64, 64)], -1)
    n = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, -1.0]), dim=0)
    plane = -500 / (ray @ n)
    normal, valid = depth_normals(plane[None], camera)
    assert (
        torch.allclose(normal[0, :-1, :-1], n.expand(63, 63, 3), atol=2e-3)
        and valid[0, :-1, :-1].all()
        and not valid[0, -1].any()
    )
    center = torch.tensor([0.0, 0.0, 500.0])
    b, a = ray @ center, (ray * ray).sum(-1)
    disc = b * b - a * (500.0**2 - 30.0**2)
    depth = torch.where(disc > 0, (b - disc.clamp_min(0).sqrt()) / a, 0.0)
    normal, valid = depth_normals(depth[None], camera, 5.0)
    true = torch.nn.functional.normalize(ray * depth[..., None] - center, dim=-1)
    inner = valid[0] & (true[..., 2] < -0.7)
    assert (
        int(inner.sum()) > 500 and float((normal[0] - true)[inner].norm(dim=-1).max()) < 0.06
    )  # half a pixel of curvature
    assert not valid[0][depth == 0].any()


@pytest.mark.parametrize("energy", SUPERVISED, ids=lambda e: e.name)
def test_supervision_is_zero_at_the_label_and_learns_it(scene, energy):
    state, observations = scene
    assert float(cost(energy, state, observations)) < 1e-12
    wrong = bent(state)
    first = float(cost(energy, wrong, observations))
    assert first > 1e-3
    depth = wrong.depth.clone().requires_grad_()
    optimizer = torch.optim.Adam([depth], 0.2)
    for _ in range(60):
        optimizer.zero_grad()
        cost(energy, replace(state, depth=depth), observations).backward()
        optimizer.step()
    assert float(cost(energy, replace(state, depth=depth.detach()), observations)) < 0.3 * first


def test_values_in_their_units(scene):
    state, observations = scene
    deeper = replace(state, depth=torch.where(state.depth > 0, state.depth + 4.0, state.depth))
    assert float(cost(DepthSupervision(2.0), deeper, observations)) == pytest.approx(2.0)
    assert float(cost(DepthPrior(10.0), deeper, observations)) == pytest.approx(0.08)
    outside = replace(
        state, depth=torch.where(state.depth > 0, state.depth, torch.full_like(state.depth, 100.0))
    )
    assert (
        float(cost(DepthPrior(), outside, observations))
        < 1e-12
        < 0.01
        < float(cost(DepthPrior(background=True), outside, observations))
    )
    half = replace(state, suitability=torch.full_like(state.depth, 0.5))
    assert float(cost(SuitabilityPrior(), half, observations)) == pytest.approx(0.125)
    assert float(cost(SuitabilityPrior(), state, observations)) == 0


def test_relief_is_learned_where_the_whole_head_is_wrong(scene):
    """An offset that is larger than the relief's errors gives all pixels one sign: L1 then says nothing of
    the relief."""
    state, observations = scene
    l1, there = Kernel("l1", 0.1), state.depth > 0
    wrong = bent(state)
    for offset in (0.0, 60.0):
        moved = torch.where(there, wrong.depth + offset, 0).requires_grad_()
        slopes = {}
        for relief in (False, True):
            value = cost(DepthSupervision(2.0, relief=relief), replace(state, depth=moved), observations, l1)
            slopes[relief] = torch.autograd.grad(value, moved)[0][there]
        if offset:
            assert bool((slopes[False] > 0).all())
        assert float(slopes[True].sum().abs()) < 0.01 * float(slopes[True].abs().sum())
        apart = wrong.depth - state.depth
        for b in range(len(apart)):
            middle = apart[b][there[b]].median()
            clear = there[b] & ((apart[b] - middle).abs() > 0.5)
            kept = torch.zeros_like(apart)
            kept[there] = slopes[True]
            assert torch.equal(kept[b][clear].sign(), (apart[b] - middle)[clear].sign())
    deeper = replace(state, depth=torch.where(there, state.depth + 4.0, state.depth))
    assert float(cost(DepthSupervision(2.0, relief=True), deeper, observations)) < 1e-12


def test_the_background_is_pushed_away_from_the_camera(scene):
    """Shu et al.'s depth is large near the camera and 0 where nothing is: towards 0 means farther off."""
    state, observations = scene
    empty = observations.labels.prior_depth == 0
    middle = state.pose.translation[:, 2, None, None]
    observations = replace(observations, mask=torch.ones_like(empty))
    for before, pushed in ((100.0, True), (-149.0, True), (-151.0, False)):
        depth = torch.where(empty, middle - before, state.depth).requires_grad_()
        value = cost(DepthPrior(background=True), replace(state, depth=depth), observations)
        (gradient,) = torch.autograd.grad(value, depth)
        assert bool((gradient[empty] < 0).all()) == pushed and (pushed or float(gradient.abs().max()) == 0)
        expected = (max(before + 150, 0) / 200) ** 2 / 2 * float(empty.double().mean())
        assert float(value.detach()) == pytest.approx(expected)
    masked = replace(observations, mask=~empty)  # beyond the photo nothing is known
    depth = torch.where(empty, middle - 100, state.depth)
    assert float(cost(DepthPrior(background=True), replace(state, depth=depth), masked)) < 1e-12


def test_normals_do_not_change_when_the_surface_moves_away_in_proportion(scene):
    # Also at the border of the labelled part, where a pixel's own neighbours carry no normal.
    state, observations = scene
    farther = replace(state, depth=1.02 * state.depth)
    assert (
        float(cost(NormalSupervision(), farther, observations))
        < 1e-12
        < 1.0
        < float(cost(DepthSupervision(), farther, observations))
    )


def test_warped_frames_look_like_the_frame_itself(scene):
    state, observations = scene
    w = warp(state, observations)
    assert w.i.tolist() == [0, 0, 1, 1, 2, 2] and w.j.tolist() == [1, 2, 0, 2, 0, 1]
    covered = (state.depth[w.i] > 0).flatten(1).double().mean(1)
    share = w.valid.double().mean(1) / covered
    assert float(share.min()) > 0.25  # frames at -40 and 40 degrees have little in common
    difference = (observations.images[w.i] - w.colors).abs().amax(1).flatten(1)
    assert float(difference[w.valid].quantile(0.99)) < 0.04
    wrong = warp(bent(state, 15.0), replace(observations, labels=Labels(prior_depth=state.depth)))
    assert (
        float((observations.images[w.i] - wrong.colors).abs().amax(1).flatten(1)[w.valid].quantile(0.99))
        > 0.05
    )


def test_hidden_pixels_do_not_count(scene):
    """Brute force: a surface point counts only where no other surface point of the same frame covers it in
    the other one."""
    state, observations = scene
    w = warp(state, observations, 4.0)
    pair = 1  # frame 0 against frame 2, 80 degrees apart
    points = back_project(state.depth[[0]], state.camera.select([0]))[0]
    head = (points - state.pose.translation[0]) @ state.pose.rotation[0]
    there = head @ state.pose.rotation[2].T + state.pose.translation[2]
    normal, known = depth_normals(state.depth[[0]], state.camera.select([0]))
    turned = (normal[0].reshape(-1, 3) @ state.pose.rotation[0]) @ state.pose.rotation[2].T
    facing = (turned * torch.nn.functional.normalize(there, dim=-1)).sum(-1)
    away = known[0].flatten() & (facing > 0.3)  # the convex head hides what turns away
    assert int(away.sum()) > 100 and float(w.valid[pair][away].double().mean()) < 0.02


@pytest.mark.parametrize("energy", BETWEEN, ids=lambda e: e.name)
def test_agreement_between_frames_is_best_at_the_truth(scene, energy):
    state, observations = scene
    assert float(cost(energy, state, observations)) < 0.25 * float(
        cost(energy, bent(state, 8.0), observations)
    )


@pytest.mark.parametrize("energy", BETWEEN, ids=lambda e: e.name)
def test_gradients_against_central_differences(scene, energy):
    state, observations = scene
    y, x = torch.meshgrid(
        torch.arange(SIZE, dtype=torch.float64), torch.arange(SIZE, dtype=torch.float64), indexing="ij"
    )
    smooth = torch.stack([torch.sin(x / 9 + y / 13), torch.cos(x / 11), torch.sin(y / 8)]) * 0.3 + 0.5
    observations = replace(observations, images=smooth.expand(3, 3, SIZE, SIZE))
    state = bent(state, 1.0)
    depth = state.depth.clone().requires_grad_()
    pose = state.pose.translation.clone().requires_grad_()

    def value(d, t):
        return cost(energy, replace(state, depth=d, pose=Pose(state.pose.rotation, t)), observations)

    # Which pixels count is decided by labels.prior_depth, so small steps do not change it, but for the border
    # of the picture.
    gradient = torch.autograd.grad(value(depth, pose), (depth, pose))
    generator = torch.Generator().manual_seed(0)
    move = (
        torch.randn(depth.shape, generator=generator, dtype=torch.float64) * (state.depth > 0),
        torch.randn(pose.shape, generator=generator, dtype=torch.float64),
    )
    h = 1e-5
    with torch.no_grad():
        numeric = float(
            value(depth + h * move[0], pose + h * move[1]) - value(depth - h * move[0], pose - h * move[1])
        ) / (2 * h)
    assert sum(float((g * m).sum()) for g, m in zip(gradient, move)) == pytest.approx(numeric, rel=2e-3)


def test_structure_is_that_of_scikit_image(scene):
    from skimage.metrics import structural_similarity

    state, observations = scene
    state = bent(state, 5.0)
    w, value = warp(state, observations), DepthWarpStructure().residuals(state, observations)
    for pair in range(2):
        a, b = observations.images[w.i[pair]].numpy(), w.colors[pair].numpy()
        full = np.stack(
            [
                structural_similarity(
                    p, q, win_size=3, data_range=1.0, use_sample_covariance=False, full=True
                )[1]
                for p, q in zip(a, b)
            ]
        )
        ours = 1 - 2 * ((value.value[pair].numpy() + 1e-4) ** 2 - 1e-8).T.reshape(3, SIZE, SIZE)
        valid = value.valid[pair].reshape(SIZE, SIZE).numpy()
        assert valid.any() and np.allclose(ours[:, valid], full.clip(-1, 1)[:, valid], atol=1e-6)


def test_suitability_scales_the_residual(scene):
    state, observations = scene
    state = bent(state, 5.0)
    half = replace(state, suitability=torch.full_like(state.depth, 0.5))
    assert float(cost(DepthWarpPhotometric(), half, observations)) == pytest.approx(
        0.25 * float(cost(DepthWarpPhotometric(), state, observations))
    )


@pytest.mark.parametrize("energy", [*BETWEEN, *SUPERVISED], ids=lambda e: e.name)
def test_pixels_that_do_not_count_have_no_influence(scene, energy):
    state, observations = scene
    state = bent(state)
    value = energy.residuals(state, observations)
    mask = observations.mask.clone()
    mask[:, :, : SIZE // 2] = False
    if energy in BETWEEN:
        part = replace(observations, mask=mask)
        images = torch.where(mask[:, None], observations.images, torch.rand_like(observations.images))
        read = energy.residuals(state, replace(part, images=images))
        before = energy.residuals(state, part)
        # Bilinear samples reach half a pixel over the border of the mask.
        same = ((read.value - before.value).abs().amax(-1) < 1e-9) | ~before.valid
        assert int(before.valid.sum()) < int(value.valid.sum()) and float(same.double().mean()) > 0.97
    empty = replace(
        observations,
        mask=torch.zeros_like(mask),
        labels=Labels(depth=torch.zeros_like(state.depth), prior_depth=torch.zeros_like(state.depth)),
    )
    depth = state.depth.clone().requires_grad_()
    nothing = cost(energy, replace(state, depth=depth), empty)
    (gradient,) = torch.autograd.grad(nothing, depth)
    assert float(nothing) == 0 and bool(torch.isfinite(gradient).all())


def test_one_person_in_one_frame_has_no_pairs(scene):
    state, observations = scene
    strangers = replace(state, subject=torch.arange(3))
    for energy in BETWEEN:
        assert float(cost(energy, strangers, observations)) == 0


def test_missing_labels_are_named(scene):
    state, observations = scene
    bare = replace(observations, labels=None)
    for energy, part in (
        (DepthSupervision(), "depth"),
        (NormalSupervision(), "depth"),
        (DepthPrior(), "prior_depth"),
    ):
        with pytest.raises(InputError, match=f"energy '{energy.name}' needs labels with '{part}'"):
            energy.residuals(state, bare)
