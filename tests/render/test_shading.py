import torch
from helpers import tiny_model, tiny_state

from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.render.shading import Surface, average_blocks, render_shaded, shade
from fitkit.scene.camera import Camera


def scene(kind="perspective", views=2):
    model = tiny_model()
    state = tiny_state(model, views, 96)
    camera = Camera(state.camera.focal, state.camera.principal, state.camera.aspect * 1.1, kind)
    return model, state.pose.apply(state.vertices(model)), camera


def test_surface_equals_the_differentiable_interpolation():
    for kind in ("perspective", "orthographic"):
        model, vertices, camera = scene(kind)
        clip = camera.clip(vertices)
        fragments = rasterize(clip, model.triangles, (90, 96))
        expected = interpolate(fragments, model.triangles, vertices)
        for b in range(2):
            surface = Surface.visible(clip[b], model.triangles, (90, 96))
            got = surface.image(surface.interpolate(vertices[b][model.triangles]))
            # float32 planes of up to 20 px long triangles at 900 mm: a few hundredths of a mm
            torch.testing.assert_close(got, expected[b], atol=0.03, rtol=0)


def test_supersampled_camera_puts_block_means_on_the_pixel_centres():
    _, vertices, camera = scene()
    fine = camera.resized(1 / 3)
    pixel, _ = camera.project(vertices)
    expected = 3 * pixel + 1  # the middle of the three fine pixels 3 p, 3 p + 1, 3 p + 2
    torch.testing.assert_close(fine.project(vertices)[0], expected, atol=1e-3, rtol=0)


def test_average_blocks():
    image = torch.arange(4 * 6 * 2.0).reshape(4, 6, 2)
    mean = average_blocks(image, 2)
    assert mean.shape == (2, 3, 2)
    assert torch.equal(mean[1, 2], image[2:4, 4:6].mean((0, 1)))


def test_srgb_round_trip():
    values = torch.linspace(0, 1, 256)
    torch.testing.assert_close(srgb_from_linear(linear_from_srgb(values)), values, atol=1e-5, rtol=0)
    # IEC 61966-2-1: mid grey 0.5 is 0.2140 linear
    assert abs(float(linear_from_srgb(torch.tensor(0.5))) - 0.2140) < 1e-4


def test_light_comes_from_the_camera_side():
    towards, away = shade(torch.tensor([[0.0, 0, -1], [0, 0, 1]]))[0]
    assert towards > 0.5 and away < 0.35


def test_alpha_is_coverage_and_selected_part_is_inside_it():
    model, vertices, camera = scene(views=1)
    select = model.face[model.triangles].all(1)
    one = camera.select([0])
    picture = render_shaded(vertices[:1], model.triangles, one, (96, 96), select=select)
    covered = rasterize(one.clip(vertices[:1]), model.triangles, (96, 96)).covered
    assert picture.rgb.shape == (1, 96, 96, 3)
    assert abs(float(picture.alpha.mean()) - float(covered.float().mean())) < 0.01
    assert bool((picture.skin <= picture.alpha + 1e-6).all()) and 0 < float(picture.skin.mean()) < float(
        picture.alpha.mean()
    )
    assert (
        bool((picture.rgb[picture.alpha == 0] == 0).all())
        and float(picture.rgb[picture.alpha == 1].min()) > 0.1
    )


def test_vertex_colours_reach_the_picture():
    model, vertices, camera = scene(views=1)
    red = torch.tensor([0.8, 0.1, 0.1]).expand(model.num_vertices, 3)
    picture = render_shaded(
        vertices[:1], model.triangles, camera.select([0]), (64, 64), color=red, supersample=1
    )
    inside = picture.rgb[picture.alpha == 1]
    assert float((inside[:, 0] - inside[:, 1]).mean()) > 0.3


def test_a_mesh_off_the_picture_gives_an_empty_one():
    model, vertices, camera = scene(views=1)
    picture = render_shaded(
        vertices[:1] + torch.tensor([5000.0, 0, 0]), model.triangles, camera.select([0]), (32, 32)
    )
    assert float(picture.alpha.max()) == 0
