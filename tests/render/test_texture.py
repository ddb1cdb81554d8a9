from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_colors, tiny_model, tiny_state
from helpers import tiny_result as any_result

from fitkit.errors import InputError
from fitkit.export.lighting import decompose_result
from fitkit.export.texture import blend_texture, codes, fuse_result
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.io.subject import Subject
from fitkit.models.correspondence import Correspondence
from fitkit.models.registry import load_model
from fitkit.render.texture import Layout, TextureOptions, _hair_or_clothes, blend_views
from fitkit.render.view_colors import CroppedView, crop_and_scale
from fitkit.scene.camera import Camera

SIZE = 256


def tiny_result(**given):
    """A result whose texture takes all of the photos: the tiny model has the colours of no skin."""
    return replace(any_result(**given), recipe={"masks": {"texture": "given"}})


def at_vertices(texture, model):
    """Texture at the vertices' own UV, nearest texel, [V, 3] grey levels."""
    uv = model.uv.numpy()
    x, y = (uv[:, 0] * SIZE).astype(int), ((1 - uv[:, 1]) * SIZE).astype(int)
    return texture[y.clip(0, SIZE - 1), x.clip(0, SIZE - 1)].astype(float)


def cosines(result):
    """Cosine between normal and line of sight per view and vertex, [B, V]."""
    vertices = result.state.pose.apply(result.vertices)
    normals = vertex_normals(vertices, result.model.triangles)
    return -(normals * torch.nn.functional.normalize(vertices, dim=-1)).sum(-1).numpy()


def interior(model):
    """Vertices off the border of the tiny shell (its texture ends there)."""
    return ((model.uv > 0.06) & (model.uv < 0.94)).all(1).numpy()


def test_known_colours_come_back():
    result = tiny_result(size=256)
    texture = blend_texture(result, SIZE)
    assert texture.shape == (SIZE, SIZE, 3) and texture.dtype == np.uint8
    truth = tiny_colors(result.model).numpy() * 255
    # Seen well: at least 45 degrees open; the sides of the nose are hidden in some of these views.
    seen = (cosines(result) > 0.5).any(0) & interior(result.model)
    error = np.abs(at_vertices(texture, result.model) - truth)[seen]
    assert seen.sum() > 150
    # Bilinear sampling of 1.2 mm pixels and 8-bit steps: one to two grey levels.
    assert error.mean() < 2.0 and np.quantile(error, 0.98) < 6


def test_exposure_of_single_views_is_evened_out():
    plain = tiny_result(size=192)
    gains = (0.6, 1.0, 1.25)
    views = []
    for view, gain in zip(plain.subject.views, gains):
        linear = linear_from_srgb(torch.from_numpy(view.image).float() / 255) * gain
        views.append(replace(view, image=(srgb_from_linear(linear) * 255).round().byte().numpy()))
    uneven = replace(plain, subject=Subject("tiny", tuple(views)))
    seen = (cosines(plain) > 0.5).any(0) & interior(plain.model)
    before, after = (
        linear_from_srgb(torch.from_numpy(at_vertices(blend_texture(r, SIZE), r.model) / 255)).numpy()[seen]
        for r in (plain, uneven)
    )
    ratio = np.log(after / before)
    assert ratio.std() < 0.03  # the pictures differ by up to log(2.08) = 0.73
    assert abs(ratio.mean() - np.log(gains).mean()) < 0.03  # the mean exposure stays


def test_half_a_face_is_completed_by_the_other_half():
    model = tiny_model()
    state = tiny_state(model, 1, 256)
    state = state.replace(
        identity=torch.zeros_like(state.identity), expression=torch.zeros_like(state.expression)
    )
    from fitkit.geometry.rotation import so3_exp
    from fitkit.scene.pose import Pose

    turned = torch.diag(torch.tensor([1.0, -1, -1])) @ so3_exp(
        torch.deg2rad(torch.tensor([[0.0, 60.0, 0.0]]))
    )
    state = state.replace(pose=Pose(turned, torch.tensor([[0.0, 0.0, 900.0]])))
    mirrored = model.mean * torch.tensor([-1.0, 1, 1])
    partner = torch.cdist(mirrored, model.mean).argmin(1)
    colors = (tiny_colors(model) + tiny_colors(model)[partner]) / 2
    result = tiny_result(model=model, state=state, size=256, colors=colors)
    cosine = cosines(result)[0]
    error = np.abs(at_vertices(blend_texture(result, SIZE), model) - colors.numpy() * 255).max(1)
    unseen = (cosine < 0) & (cosine[partner.numpy()] > 0.5) & interior(model)
    assert unseen.sum() > 20
    assert np.median(error[unseen]) < 4


def test_what_nobody_sees_continues_the_seen_colour():
    model = tiny_model()
    colors = torch.tensor([0.6, 0.45, 0.4]).expand(model.num_vertices, 3)
    result = tiny_result(views=1, size=192, colors=colors)
    # The whole face has one colour, the model's albedo another one and red lips: seen colour must win, also
    # outside.
    model = replace(model, albedo_mean=torch.tensor([0.5, 0.5, 0.5]).expand(model.num_vertices, 3).clone())
    texture = blend_texture(replace(result, model=model), SIZE)
    assert np.abs(texture.astype(float) - colors[0].numpy() * 255).max() < 4


def test_masked_pixels_are_not_used():
    result = tiny_result(size=192)
    views = list(result.subject.views)
    spoiled = views[0].image.copy()
    spoiled[:, :96] = (0, 255, 0)
    mask = np.ones(spoiled.shape[:2], bool)
    mask[:, :96] = False
    clean = blend_texture(
        replace(result, subject=Subject("t", (replace(views[0], mask=mask), *views[1:]))), SIZE
    )
    views[0] = replace(views[0], image=spoiled, mask=mask)
    assert np.array_equal(blend_texture(replace(result, subject=Subject("t", tuple(views))), SIZE), clean)


def test_a_face_outside_the_photo_gives_the_models_albedo():
    result = tiny_result(views=1)
    pose = result.state.pose
    away = result.state.replace(
        pose=replace(pose, translation=pose.translation + torch.tensor([[4000.0, 0, 0]]))
    )
    texture = blend_texture(replace(result, state=away), 64)
    expected = srgb_from_linear(result.model.albedo_mean).numpy() * 255
    assert np.abs(np.median(texture.reshape(-1, 3), 0) - np.median(expected, 0)).max() < 3


def test_many_views_use_the_most_informative():
    result = tiny_result(views=7, size=96)
    few = blend_texture(result, 64, TextureOptions(max_views=2)).astype(float)
    assert np.abs(few - blend_texture(result, 64).astype(float)).mean() < 12


def test_refuses_a_model_without_uv():
    result = tiny_result(views=1)
    with pytest.raises(InputError, match="'tiny' has no UV coordinates"):
        blend_texture(replace(result, model=replace(result.model, uv=None, uv_triangles=None)))


def test_crop_and_scale_keeps_points_on_their_pixels():
    """A smooth ramp picture stores its own coordinates; the cropped camera must find them again."""
    y, x = np.mgrid[:120, :150]
    image = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    camera = Camera(torch.tensor([300.0]), torch.tensor([[74.5, 59.5]]), torch.tensor([1.0]))
    points = torch.tensor([[[0.0, 0, 1000], [40, 30, 1000], [-30, 20, 900]]])
    before = camera.project(points)[0][0].numpy()
    for scale in (1.0, 0.5, 2.0):
        part, moved = crop_and_scale(image, camera, (40, 30, 120, 90), scale)
        assert part.shape[:2] == (60 * scale, 80 * scale)
        after = moved.project(points)[0][0].numpy()
        for p, q in zip(before, after):
            i, j = np.floor(q[::-1]).astype(int)
            fy, fx = q[::-1] - (i, j)
            block = part[i : i + 2, j : j + 2].astype(float)
            value = (block[0, 0] * (1 - fx) + block[0, 1] * fx) * (1 - fy) + (
                block[1, 0] * (1 - fx) + block[1, 1] * fx
            ) * fy
            np.testing.assert_allclose(value[:2], p, atol=0.51)  # 8-bit steps


def renamed(model, name, where):
    """The model with the vertices `where` [V] bool as a part of this name, which is not of the face."""
    region = torch.where(where, len(model.region_names), model.region)
    return replace(model, region=region, region_names=(*model.region_names, name), face=model.face & ~where)


def test_eyes_come_from_one_photo():
    model = tiny_model()
    eye = (model.mean - model.landmarks.points(model.mean[None], model.triangles)[0, 36:42].mean(0)).norm(
        dim=-1
    ) < 14
    model = renamed(model, "eyeball", eye)
    colors = [
        torch.where(eye[:, None], torch.tensor(c), tiny_colors(model))
        for c in ((0.8, 0.3, 0.3), (0.3, 0.3, 0.8))
    ]
    red, blue = (tiny_result(model=model, size=192, colors=c) for c in colors)
    views = red.subject.views[0], blue.subject.views[1], red.subject.views[2]
    texture = blend_texture(replace(red, subject=Subject("t", views)), SIZE)
    inner = eye & (model.mean - model.mean[eye].mean(0)).norm(dim=-1).lt(9)
    found = at_vertices(texture, model)[inner.numpy()]
    reddish = found[:, 0] > found[:, 2]
    assert int(inner.sum()) >= 2 and (reddish.all() or not reddish.any())
    assert np.abs(np.sort(found[:, [0, 2]], 1) - [0.3 * 255, 0.8 * 255]).mean() < 40


def test_what_is_not_like_skin_beside_the_face_stays_out():
    model = tiny_model()
    low = model.mean[:, 1] < model.mean[:, 1].quantile(0.2)
    model = renamed(model, "neck", low)
    skin = torch.tensor([0.8, 0.6, 0.5]).expand(model.num_vertices, 3)
    collar = torch.where(low[:, None], torch.tensor([0.1, 0.15, 0.6]), skin)
    below = low.numpy() & (model.mean[:, 1] < model.mean[:, 1].quantile(0.15)).numpy() & interior(model)
    anything = replace(model, region_names=("face", "shell", "base"))
    off = []
    for kind in (model, anything):
        found = at_vertices(blend_texture(tiny_result(model=kind, size=192, colors=collar), SIZE), kind)
        off.append(np.abs(found[below] - skin[0].numpy() * 255).mean())
    # Not all: at the border a triangle has both colours.
    assert off[0] < 0.5 * off[1]


def test_hair_on_the_forehead_stays_out():
    model = tiny_model()
    height = model.mean[:, 1]
    skin = torch.tensor([0.8, 0.6, 0.5]).expand(model.num_vertices, 3)
    hair = torch.where((height > height.quantile(0.75))[:, None], torch.tensor([0.2, 0.15, 0.1]), skin)
    top = (height > height.quantile(0.85)).numpy() & interior(model)
    found = at_vertices(blend_texture(tiny_result(model=model, size=192, colors=hair), SIZE), model)
    assert top.sum() >= 10 and np.abs(found[top] - skin[0].numpy() * 255).mean() < 8


def test_hair_is_looked_for_around_the_face_alone():
    """A mole, a beard or a shadow on a cheek is not hair, whatever its colour."""
    model = load_model("generic")
    doubt = _hair_or_clothes(model)
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    below = model.mean[:, 1] < points[36:48, 1].min() - 15
    face = (model.face & below & (model.mean[:, 2] > points[8, 2] - 12)).numpy()
    assert face.sum() > 500 and doubt[face].max() == 0
    top = (model.mean[:, 1] > points[17:27, 1].max() + 30).numpy()
    assert top.sum() > 100 and doubt[top].min() > 0.99


def test_one_photo_is_not_preferred_to_itself():
    result = tiny_result(views=1, size=192)
    seen = [fuse_result(result, SIZE, TextureOptions(prefer=p)) for p in (1.0, 4.0)]
    np.testing.assert_array_equal(seen[0].seen, seen[1].seen)
    np.testing.assert_allclose(seen[0].color, seen[1].color, atol=1e-5)


def test_towards_hair_photos_fade_out():
    """Of forehead and neck, where the photo ends at a mask, nothing is seen at the border itself."""
    model = tiny_model()
    result = tiny_result(model=model, size=192)
    views = [v.replace(mask=np.arange(192)[:, None] > np.full(192, 60)) for v in result.subject.views]
    maps = fuse_result(replace(result, subject=Subject("t", tuple(views))), SIZE)
    rows = np.where(maps.seen.max(1) > 0)[0]
    first, steps = rows[0], np.abs(np.diff(maps.seen.max(1)))[rows[0] : rows[0] + 20]
    assert first > 0 and steps.max() < 0.5


def test_photos_of_other_moments_are_not_mixed():
    """Brows that are raised in one photo would be seen twice."""
    model = tiny_model()
    wave = torch.sin(model.mean[:, 1] / 6)[:, None] * torch.tensor([0.1, 0.1, 0.1])
    colors = [torch.tensor([0.7, 0.55, 0.45]) + sign * wave for sign in (1, -1)]
    results = [tiny_result(model=model, size=192, colors=c) for c in colors]
    # View 1 is seen from the front, and alone shows the first colours.
    views = tuple(results[int(i != 1)].subject.views[i] for i in range(3))
    seen, off = (cosines(results[0])[1] > 0.5) & interior(model), {}
    for prefer in (1.0, TextureOptions().prefer):
        texture = blend_texture(
            replace(results[0], subject=Subject("t", views)), SIZE, TextureOptions(prefer=prefer)
        )
        off[prefer] = np.abs(at_vertices(texture, model) - colors[0].numpy() * 255)[seen].mean()
    assert off[4.0] < 0.7 * off[1.0]


def test_maps_in_the_layout_of_another_model():
    result = tiny_result(size=192)
    model = result.model
    turned = replace(model, name="turned", uv=torch.stack([1 - model.uv[:, 0], model.uv[:, 1]], 1))
    V, corner = model.num_vertices, torch.zeros(model.num_vertices, dtype=torch.int64)
    corner[model.triangles.flatten()] = torch.arange(3 * len(model.triangles)) // 3
    weights = (model.triangles[corner] == torch.arange(V)[:, None]).float()
    same = Correspondence(corner, weights, torch.ones(V))
    plain = fuse_result(result, 128)
    views = [
        CroppedView.make(v.image, None, result.state, i, model, 1024)
        for i, v in enumerate(result.subject.views)
    ]
    light = decompose_result(result)[0].shading.numpy()
    other = blend_views(model, views, 128, light, layout=Layout(turned, same))
    inside = np.zeros((128, 128), bool)
    inside[12:-12, 12:-12] = True
    difference = np.abs(other.color[:, ::-1] - plain.color).max(-1)[inside & (plain.seen > 0.99)]
    assert difference.size > 1000 and np.median(difference) < 0.01
    # What corresponds to nothing has the colours of the other model.
    nothing = Correspondence(corner, weights, torch.zeros(V))
    bare = blend_views(model, views, 64, light, layout=Layout(turned, nothing))
    expected = model.albedo_mean.mean(0).numpy()
    assert np.abs(bare.albedo.reshape(-1, 3).mean(0) - expected).max() < 0.05


def test_albedo_times_light_is_the_colour():
    result = tiny_result(size=192)
    maps = fuse_result(result, 64)
    assert maps.color.shape == maps.albedo.shape == (64, 64, 3) and maps.seen.shape == (64, 64)
    assert np.isfinite(maps.albedo).all() and maps.albedo.min() >= 0 and 0.99 < maps.seen.max() <= 1
    ratio = maps.color / maps.albedo.clip(1e-3)
    assert np.abs(np.diff(np.log(ratio[8:-8, 8:-8]), axis=0)).max() < 0.3  # light is smooth, paint is not


def test_colours_of_photos_come_back_as_they_were():
    code = np.arange(256)
    linear = linear_from_srgb(torch.from_numpy(code / 255)).numpy().astype(np.float32)
    assert np.array_equal(codes(linear), code) and codes(linear).dtype == np.uint8
    dark = np.linspace(0, 0.05, 5000, dtype=np.float32)
    off = codes(dark) - srgb_from_linear(torch.from_numpy(dark)).numpy() * 255
    assert abs(off.mean()) < 0.02 and np.abs(off).max() < 1
