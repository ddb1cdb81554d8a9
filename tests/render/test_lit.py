from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import Y0, sh_basis
from fitkit.render.lit import render_lit, vertex_albedo
from fitkit.scene.layout import BLOCKS, ParameterLayout, retract

MODEL = tiny_model(dtype=torch.float64)
SIZE = (64, 72)


def scene(views=2):
    state = tiny_state(MODEL, views, 64)
    light = state.illumination.expand(-1, -1, 3).clone()
    light[:, 1, 0], light[:, 3, 2] = 0.4, -0.3
    return state.replace(illumination=light)


def test_flat_light_shows_the_albedo():
    state = scene()
    flat = torch.zeros(2, 9, 3, dtype=torch.float64)
    flat[:, 0] = 1 / Y0
    grey = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64).expand(MODEL.num_vertices, -1)
    lit = render_lit(MODEL, state.replace(illumination=flat), SIZE, grey)
    assert lit.colors.shape == (2, 3, *SIZE) and 0.2 < float(lit.covered.double().mean()) < 0.7
    inside = lit.colors.permute(0, 2, 3, 1)[lit.covered]
    torch.testing.assert_close(linear_from_srgb(inside), grey[0].expand_as(inside), atol=1e-6, rtol=0)
    assert float(lit.colors.permute(0, 2, 3, 1)[~lit.covered].abs().max()) == 0


def test_colours_at_a_vertex_are_albedo_times_its_shading():
    # A pixel centre put exactly onto the projection of a vertex shows the product at that vertex.
    state = scene(1)
    vertex = int((MODEL.mean - MODEL.landmark_basis.mean[27]).norm(dim=-1).argmin())
    head = state.vertices(MODEL)
    pixel = state.camera.project(state.pose.apply(head))[0][:, vertex]
    camera = replace(state.camera, principal=state.camera.principal - pixel + pixel.round())
    state = state.replace(camera=camera)
    lit = render_lit(MODEL, state, SIZE)
    shade = torch.einsum(
        "bk,bkc->bc", sh_basis(vertex_normals(head, MODEL.triangles)[:, vertex]), state.illumination
    )
    for b, (x, y) in enumerate(pixel.round().long().tolist()):
        torch.testing.assert_close(
            linear_from_srgb(lit.colors[b, :, y, x]),
            MODEL.albedo_mean[vertex] * shade[b],
            atol=1e-6,
            rtol=1e-6,
        )


def test_gradient_with_the_surface_behind_each_pixel_fixed():
    state = scene()
    layout = ParameterLayout.of(state, BLOCKS)
    triangle = render_lit(MODEL, state, SIZE).triangle
    weights = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(step):
        return (
            weights * render_lit(MODEL, retract(state, step, layout), SIZE, triangle=triangle).colors
        ).sum()

    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(step), step)
    gen = torch.Generator().manual_seed(1)
    for _ in range(8):
        d = 1e-6 * torch.randn(layout.total, generator=gen, dtype=torch.float64)
        assert float(gradient @ d) == pytest.approx(float(value(d) - value(-d)) / 2, rel=1e-4)


def test_a_fixed_triangle_map_gives_the_same_picture():
    state = scene()
    one = render_lit(MODEL, state, SIZE)
    two = render_lit(MODEL, state, SIZE, triangle=one.triangle)
    torch.testing.assert_close(one.colors, two.colors)


def test_albedo_coefficients_of_each_person():
    basis = (
        torch.randn(2, MODEL.num_vertices, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        * 0.02
    )
    model = replace(MODEL, albedo_basis=basis)
    state = scene().replace(identity=torch.zeros(2, 8, dtype=torch.float64), subject=torch.tensor([1, 0]))
    assert torch.equal(vertex_albedo(model, state), MODEL.albedo_mean.expand(2, -1, -1))
    coefficients = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    albedo = vertex_albedo(model, state.replace(albedo=coefficients))
    torch.testing.assert_close(
        albedo, torch.stack([MODEL.albedo_mean - 2 * basis[1], MODEL.albedo_mean + basis[0]])
    )


def test_over_a_photo():
    lit = render_lit(MODEL, scene(), SIZE)
    photo = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    where = torch.zeros(2, *SIZE, dtype=torch.bool)
    where[:, :30] = True
    both = lit.over(photo, where).permute(0, 2, 3, 1)
    drawn = lit.covered & where
    assert torch.equal(both[drawn], lit.colors.permute(0, 2, 3, 1)[drawn]) and torch.equal(
        both[~drawn], photo.permute(0, 2, 3, 1)[~drawn]
    )


def test_a_model_without_colours_has_plain_ones():
    lit = render_lit(replace(MODEL, albedo_mean=None), scene(), SIZE)
    assert float(lit.colors.permute(0, 2, 3, 1)[lit.covered].mean()) > 0.2


def test_every_device_and_precision_draws_the_same(device, dtype):
    state = scene()
    for model in (MODEL, replace(MODEL, albedo_mean=None, albedo_basis=None)):
        expected = render_lit(model, state, SIZE)
        found = render_lit(model.to(device, dtype), state.to(device, dtype), SIZE)
        assert found.colors.device.type == device.type and found.colors.dtype == dtype
        same = expected.triangle == found.triangle.cpu()
        assert float(same.double().mean()) > 0.999  # pixels on an edge may fall to either side
        difference = (found.colors.cpu() - expected.colors).abs().amax(1)[same]
        assert float(difference.max()) < (1e-6 if dtype == torch.float64 else 1e-3)
