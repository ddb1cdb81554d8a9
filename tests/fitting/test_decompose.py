from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_result, tiny_state

from fitkit.errors import InputError
from fitkit.export.lighting import decompose_result, draw_lighting
from fitkit.fitting.appearance import decompose
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.io.subject import Subject, View
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.state import SceneState

MODEL = tiny_model()
SIZE = 240
# Each view under another light: from the left and warm, from above, from the right and cold.
LIGHT = torch.zeros(3, 9, 3)
LIGHT[:, 0] = torch.tensor([[2.2, 2.0, 1.8], [2.1, 2.1, 2.1], [1.7, 1.9, 2.1]])
LIGHT[:, 2] = 0.3
LIGHT[0, 3], LIGHT[1, 1], LIGHT[2, 3] = -0.7, 0.7, 0.7
SPOTS = (
    MODEL.albedo_mean * (1 + 0.25 * torch.sin(MODEL.mean[:, :1] / 16) * torch.cos(MODEL.mean[:, 1:2] / 18))
).clamp(0.05, 0.9)


def scene(views=3, albedo=SPOTS):
    state = tiny_state(MODEL, views, SIZE).replace(illumination=LIGHT[:views] if views > 1 else LIGHT[:1])
    vertices = state.vertices(MODEL)
    fragments = rasterize(state.camera.clip(state.pose.apply(vertices)), MODEL.triangles, (SIZE, SIZE))
    normal = torch.nn.functional.normalize(
        interpolate(fragments, MODEL.triangles, vertex_normals(vertices, MODEL.triangles)), dim=-1
    )
    color = interpolate(fragments, MODEL.triangles, albedo[None].expand(views, -1, -1))
    linear = color * torch.einsum("bhwk,bkc->bhwc", sh_basis(normal), state.illumination)
    linear = torch.where(fragments.covered[..., None], linear, 0.2)
    return state, observe(
        MODEL, state, SIZE, srgb_from_linear(linear.clamp(0, 1)).permute(0, 3, 1, 2).contiguous()
    )


def spread(values):
    """Mean distance of log values from their mean: a common factor is free."""
    log = values.clamp_min(1e-3).log()
    return float((log - log.mean(0)).abs().mean())


def test_albedo_and_light_are_told_apart():
    state, obs = scene()
    # The state's own light is not used.
    parts = decompose(MODEL, state.replace(illumination=torch.zeros(3, 9, 1)), obs)
    assert parts.albedo.shape == (MODEL.num_vertices, 3) and parts.light.shape == (3, 9, 3)
    assert parts.shading.shape == (3, MODEL.num_vertices, 3) and parts.seen.shape == (MODEL.num_vertices,)
    inner = MODEL.face & (parts.seen > 0.99)
    assert int(inner.sum()) > 80
    # The albedo is true to 3 %, where the paint differs from the mean by 9 %.
    assert spread((parts.albedo / SPOTS)[inner]) < 0.03 < 0.4 * spread((MODEL.albedo_mean / SPOTS)[inner])
    true = sh_basis(vertex_normals(state.vertices(MODEL), MODEL.triangles)) @ LIGHT
    assert (
        spread((parts.shading / true)[:, inner].reshape(-1, 3))
        < 0.06
        < 0.5 * spread(true[:, inner].reshape(-1, 3))
    )
    # Together they are the colours of the photos, whatever scale they share.
    product = (parts.albedo * parts.shading / (SPOTS * true))[:, inner]
    assert float((product.log().abs()).mean()) < 0.05


def test_one_view_splits_by_the_mean_albedo():
    state, obs = scene(1, MODEL.albedo_mean)
    parts = decompose(MODEL, state, obs)
    inner = MODEL.face & (parts.seen > 0.99)
    assert spread((parts.albedo / MODEL.albedo_mean)[inner]) < 0.02
    true = (sh_basis(vertex_normals(state.vertices(MODEL), MODEL.triangles)) @ LIGHT[:1])[0]
    assert spread((parts.shading[0] / true)[inner]) < 0.03 < 0.4 * spread(true[inner])


def test_unseen_skin_continues_the_seen():
    state, obs = scene(1, 0.6 * MODEL.albedo_mean)
    parts = decompose(MODEL, state, obs)
    hidden = parts.seen == 0
    assert (
        int(hidden.sum()) > 20 and bool(torch.isfinite(parts.albedo).all()) and float(parts.albedo.min()) >= 0
    )
    ratio = (parts.albedo / MODEL.albedo_mean)[hidden]
    assert float((ratio / ratio.median(0).values - 1).abs().max()) < 0.25


def test_dark_photos_give_the_same_albedo():
    state, obs = scene()
    dark = replace(obs, images=srgb_from_linear(0.2 * linear_from_srgb(obs.images)))
    one, two = decompose(MODEL, state, obs), decompose(MODEL, state, dark)
    seen = one.seen > 0.9
    # Darker by one factor: a dark photo may show a dark skin, but not one as much darker as the photo is.
    ratio = (two.albedo / one.albedo)[seen]
    assert spread(ratio) < 0.02
    factor = ratio.median(0).values
    assert 0.1 < float(factor.min()) <= float(factor.max()) < 0.6
    light = (two.light[:, 0] / one.light[:, 0]).mean(0)
    torch.testing.assert_close(light * factor, torch.full((3,), 0.2), rtol=0.03, atol=0)


@pytest.mark.parametrize("mask", [0, 1])
def test_masked_pixels_have_no_influence(mask):
    state, obs = scene()
    keep = torch.ones(3, SIZE, SIZE, dtype=torch.bool)
    keep[:, :, : SIZE // 2] = bool(mask)
    found = [
        decompose(MODEL, state, replace(obs, mask=keep, images=torch.where(keep[:, None], obs.images, fill)))
        for fill in (0.0, 0.9)
    ]
    assert torch.equal(found[0].albedo, found[1].albedo) and torch.equal(found[0].light, found[1].light)


def test_nothing_seen():
    state, obs = scene()
    parts = decompose(MODEL, state, replace(obs, mask=torch.zeros_like(obs.mask)))
    assert (
        float(parts.seen.max()) == 0
        and bool(torch.isfinite(parts.albedo).all())
        and bool(torch.isfinite(parts.light).all())
    )
    torch.testing.assert_close(parts.albedo, MODEL.albedo_mean, rtol=1e-3, atol=1e-3)


def test_a_finished_fit_and_its_pictures():
    state, obs = scene()
    images = (obs.images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    subject = Subject("lit", tuple(View(f"view{i}", image) for i, image in enumerate(images)))
    result = replace(tiny_result(size=SIZE, model=MODEL, state=state), subject=subject)
    parts, moved, crops = decompose_result(result)
    direct = decompose(MODEL, state, obs)
    seen = (direct.seen > 0.9) & (parts.seen > 0.9) & MODEL.face
    assert spread((parts.albedo / direct.albedo)[seen]) < 0.03  # other pixels, the same skin
    # The moved camera sees the crop where the photo's camera sees the photo.
    points = state.pose.apply(state.vertices(MODEL))
    in_photo, in_crop = state.camera.project(points)[0], moved.camera.project(points)[0]
    torch.testing.assert_close(
        in_crop, (in_photo - crops.offset[:, None]) * crops.scale[:, None, None], rtol=1e-4, atol=1e-3
    )
    picture = draw_lighting(parts, MODEL, moved, crops, 0)
    H, W = crops.size
    assert picture.dtype == np.uint8 and picture.shape[0] == H and picture.shape[1] > 3 * W
    assert np.array_equal(picture[:, :W], (crops.images[0].permute(1, 2, 0) * 255).round().byte().numpy())
    # The light of view 0 comes from the subject's right: the left half of the shaded head is the brighter
    # one.
    head = picture[:, -W:].mean(-1)
    fragments = (
        rasterize(moved.camera.clip(moved.pose.apply(moved.vertices(MODEL))), MODEL.triangles, (H, W))
        .covered[0]
        .numpy()
    )
    columns = np.nonzero(fragments.any(0))[0]
    middle = round(columns.mean())
    assert (
        head[:, :middle][fragments[:, :middle]].mean() > head[:, middle:][fragments[:, middle:]].mean() + 10
    )


def test_two_people_are_refused():
    state, obs = scene()
    two = SceneState(
        torch.cat([state.identity] * 2),
        state.subject,
        state.expression,
        state.pose,
        state.camera,
        state.illumination,
    )
    with pytest.raises(InputError, match="decompose: expected a state of one person, got 2"):
        decompose(MODEL, two, obs)
