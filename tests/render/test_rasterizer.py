import itertools
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.errors import InputError, MissingWeightsError
from fitkit.render.rasterizer import (
    BACKENDS,
    INSTALL,
    NEAR_MM,
    barycentrics,
    check_backend,
    drawing_with,
    interpolate,
    pick_backend,
    rasterize,
)
from fitkit.scene.camera import KINDS, Camera


def camera(kind="perspective", views=1, size=(24, 32), focal=40.0, dtype=torch.float32):
    H, W = size
    return Camera(
        torch.full((views,), focal, dtype=dtype),
        torch.tensor([[(W - 1) / 2, (H - 1) / 2]], dtype=dtype).expand(views, -1),
        torch.full((views,), 1.1, dtype=dtype),
        kind,
    )


def soup(seed, kind, corners=90, spread=400.0, depth=(300.0, 1500.0), dtype=torch.float32):
    """Random triangles: small and large, across the image borders, and slivers, duplicates and dots among
    them."""
    gen = torch.Generator().manual_seed(seed)
    points = spread * torch.randn(corners, 3, generator=gen, dtype=torch.float64)
    points[:, 2] = depth[0] + (depth[1] - depth[0]) * torch.rand(corners, generator=gen, dtype=torch.float64)
    triangles = torch.stack([torch.randperm(corners, generator=gen)[:3] for _ in range(corners)])
    triangles[3] = triangles[2]  # equally near: the higher index wins
    triangles[5, 2] = triangles[5, 1]  # no area
    points[triangles[7, 2]] = (points[triangles[7, 0]] + points[triangles[7, 1]]) / 2  # corners on a line
    return points.to(dtype)[None], triangles


def reference(clip, triangles, size):
    """Triangle by triangle, pixel by pixel, in float64 numpy; returns index and, where a tie is possible, a
    mask."""
    clip, (H, W) = clip.double().numpy(), size
    index, best, second = np.full(size, -1), np.zeros(size), np.zeros(size)
    for f, t in enumerate(triangles.tolist()):
        u, v, z, w = clip[t].T
        if min(z.min(), w.min()) <= NEAR_MM:
            continue
        corners = np.stack([u / w, v / w], 1)
        matrix = np.vstack([corners.T, np.ones(3)])
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        for y, x in itertools.product(range(H), range(W)):
            screen = np.linalg.solve(matrix, [x, y, 1])
            if (screen < 0).any():
                continue
            true = screen / w
            near = (true.sum()) / (true @ z)
            if near >= best[y, x]:
                second[y, x], best[y, x], index[y, x] = best[y, x], near, f
            else:
                second[y, x] = max(second[y, x], near)
    return index, best - second < 1e-6 * best


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_obvious_loop_on_a_tiny_grid(kind):
    for seed in range(4):
        points, triangles = soup(seed, kind, corners=24)
        clip = camera(kind, size=(11, 13), focal=12.0 if kind == "perspective" else 16.0).clip(points)
        expected, tie = reference(clip[0], triangles, (11, 13))
        assert (expected >= 0).mean() > 0.3
        for backend in ("torch", "numba"):
            got = rasterize(clip, triangles, (11, 13), backend).triangle[0].numpy()
            assert ((got == expected) | tie).all(), backend
        assert tie.mean() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_numba_agree_at_every_pixel(kind):
    for seed, size in itertools.product(range(3), ((40, 56), (33, 17))):
        for spread, depth in (
            (300.0, (300.0, 1500.0)),
            (60.0, (500.0, 900.0)),
            (3000.0, (2.0, 4000.0)),
            (200.0, (-400.0, 600.0)),
        ):
            points, triangles = soup(seed, kind, 150, spread, depth)
            both = torch.cat([points, points.flip(1)])
            clip = camera(kind, 2, size).clip(both)
            one, two = (rasterize(clip, triangles, size, backend) for backend in ("torch", "numba"))
            assert torch.equal(one.triangle, two.triangle)
            assert torch.equal(one.depth, two.depth)
            if depth[0] < 0:  # behind the camera or too near: not drawn
                drawn = triangles[one.triangle[one.covered]]
                view = one.covered.nonzero()[:, 0]
                assert float(both[view[:, None], drawn][..., 2].min()) > NEAR_MM


def test_face_mesh_at_every_pixel_and_in_double_precision():
    model = tiny_model()
    state = tiny_state(model, 3)
    clip = state.camera.clip(state.pose.apply(state.vertices(model)))
    for precision in (clip, clip.double()):
        one, two = (
            rasterize(precision, model.triangles, (160, 160), backend) for backend in ("torch", "numba")
        )
        assert torch.equal(one.triangle, two.triangle)
        assert 0.2 < float(one.covered.float().mean()) < 0.8


def test_huge_triangle_fills_the_image():
    points = torch.tensor([[[-1e5, -1e5, 500.0], [1e5, -1e5, 500], [0, 2e5, 500]]])
    for backend in ("torch", "numba"):
        fragments = rasterize(camera().clip(points), torch.tensor([[0, 1, 2]]), (24, 32), backend)
        assert bool(fragments.covered.all())
        torch.testing.assert_close(fragments.depth, torch.full((1, 24, 32), 500.0))


def test_nothing_to_draw():
    behind = torch.tensor([[[-10.0, 0, -500], [10, 0, -500], [0, 10, -500]]])
    for backend in ("torch", "numba"):
        one, none = torch.tensor([[0, 1, 2]]), torch.zeros(0, 3, dtype=torch.int64)
        unknown = behind.abs() * torch.tensor([1, torch.nan, 1])
        for points, triangles in ((behind, one), (behind, none), (behind * torch.nan, one), (unknown, one)):
            fragments = rasterize(camera().clip(points), triangles, (24, 32), backend)
            assert not bool(fragments.covered.any())
            assert float(fragments.barycentric.abs().max()) == 0 and float(fragments.depth.abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_crossing_triangles_change_places_exactly_at_the_crossing_line(kind, backend):
    # Two planes that cross in x = 0: z = 800 + x and z = 800 - x. The nearer one must win at every pixel.
    points = torch.tensor(
        [
            [
                [-300.0, -300, 500],
                [300, -300, 1100],
                [300, 300, 1100],
                [-300, 300, 500],
                [-300, -300, 1100],
                [300, -300, 500],
                [300, 300, 500],
                [-300, 300, 1100],
            ]
        ]
    )
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    cam = camera(kind, focal=60.0)
    fragments = rasterize(cam.clip(points), triangles, (24, 32), backend)
    left = torch.arange(32) < 15.5
    first = fragments.triangle[0] < 2
    assert bool(fragments.covered.all())
    assert torch.equal(first, left.expand(24, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_barycentrics_reproduce_pixel_positions_and_depth(kind):
    points, triangles = soup(1, kind, 60, dtype=torch.float64)
    cam = camera(kind, dtype=torch.float64)
    fragments = rasterize(cam.clip(points), triangles, (24, 32))
    assert float(fragments.covered.float().mean()) > 0.3
    at = fragments.covered
    torch.testing.assert_close(
        fragments.barycentric.sum(-1)[at], torch.ones(int(at.sum()), dtype=torch.float64)
    )
    assert float(fragments.barycentric.min()) >= -1e-9
    surface = interpolate(fragments, triangles, points)
    pixels = cam.project(surface.reshape(1, -1, 3))[0].reshape(1, 24, 32, 2)
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    # Slivers lose digits.
    torch.testing.assert_close(pixels[at], torch.stack([x, y], -1)[None][at].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(surface[..., 2][at], fragments.depth[at])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_interpolated_values(kind):
    points, triangles = soup(2, kind, 12, dtype=torch.float64)
    triangles = triangles[[0, 1, 2, 8]]  # without the degenerate ones
    cam = camera(kind, size=(6, 7), focal=9.0, dtype=torch.float64)
    fragments = rasterize(cam.clip(points), triangles, (6, 7))
    assert int(fragments.covered.sum()) > 5
    colors = torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def values(points, colors):
        clip = cam.clip(points)
        return interpolate(
            replace(fragments, barycentric=barycentrics(clip, triangles, fragments.triangle)),
            triangles,
            colors,
        )

    assert torch.autograd.gradcheck(
        values, (points.requires_grad_(), colors.requires_grad_()), eps=1e-4, atol=1e-6, rtol=1e-3
    )


def test_one_set_of_attributes_serves_all_views():
    points, triangles = soup(3, "perspective", 60)
    clip = camera(views=2).clip(torch.cat([points, points * 1.1]))
    fragments = rasterize(clip, triangles, (24, 32))
    colors = torch.rand(1, 60, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        interpolate(fragments, triangles, colors), interpolate(fragments, triangles, colors.expand(2, -1, -1))
    )


def test_refusals():
    clip, triangles = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    with pytest.raises(
        InputError, match="expected one of auto, torch, numba, pytorch3d, nvdiffrast; got 'opengl'"
    ):
        rasterize(clip, triangles, (4, 4), "opengl")
    with pytest.raises(InputError, match=r"expected clip coordinates \[B, V, 4\], got \(3, 4\)"):
        rasterize(clip[0], triangles, (4, 4))
    assert pick_backend(torch.device("cpu")) == "numba" and pick_backend(torch.device("cuda")) == "torch"


@pytest.mark.parametrize(
    "backend, how",
    [
        ("numba", "pip install numba"),
        ("pytorch3d", "PyPI has no wheel of it for Linux, so build it, .*/pytorch3d.git@stable"),
        ("nvdiffrast", "build it, .*NVlabs/nvdiffrast.git"),
    ],
)
def test_backend_that_is_missing_says_how_to_get_it(backend, how, monkeypatch):
    monkeypatch.setattr("fitkit.render.rasterizer.find_spec", lambda name: None)
    expected = f"rasterizer backend '{backend}' is not installed here; {how}; or use 'auto', which needs no"
    with pytest.raises(MissingWeightsError, match=expected):
        rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), (4, 4), backend)


def test_nvdiffrast_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("fitkit.render.rasterizer.find_spec", lambda name: True)
    cpu = torch.device("cpu")
    with pytest.raises(InputError, match="'nvdiffrast': needs a GPU, got device 'cpu'; use 'auto'"):
        check_backend("nvdiffrast", cpu)
    with drawing_with("nvdiffrast", torch.device("cuda")):  # what the report draws on the CPU
        assert pick_backend(cpu) == "numba" and pick_backend(torch.device("cuda")) == "nvdiffrast"


def test_the_chosen_backend_draws_meanwhile():
    cpu = torch.device("cpu")
    with drawing_with("torch", cpu):
        assert pick_backend(cpu) == "torch"
        with drawing_with("auto", cpu):
            assert pick_backend(cpu) == "numba"
        assert pick_backend(cpu) == "torch"
    with pytest.raises(ValueError, match="inside"), drawing_with("torch", cpu):
        raise ValueError("inside")
    assert pick_backend(cpu) == "numba"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_installed_backend_draws_what_the_reference_draws(backend, kind, device):
    """A face in three views; those of others round the borders of triangles in their own way."""
    if backend in INSTALL and find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed here")
    if backend == "nvdiffrast" and device.type != "cuda":
        pytest.skip("nvdiffrast needs a GPU")
    model = tiny_model()
    state = tiny_state(model, 3)
    lens = replace(state.camera, kind=kind)
    clip = lens.clip(state.pose.apply(state.vertices(model)))
    expected = rasterize(clip, model.triangles, (160, 120), "torch")
    found = rasterize(clip.to(device), model.triangles.to(device), (160, 120), backend)
    assert found.triangle.device.type == device.type
    same = found.triangle.cpu() == expected.triangle
    covered = expected.covered
    assert float(covered.float().mean()) > 0.2
    assert float((found.covered.cpu() == covered).float().mean()) > 0.999
    assert float(same[covered].float().mean()) > (0.98 if backend in ("pytorch3d", "nvdiffrast") else 0.9999)
    torch.testing.assert_close(
        found.depth.cpu()[same & covered], expected.depth[same & covered], rtol=1e-4, atol=0
    )


def test_every_device_and_precision_draws_the_same(device, dtype):
    points, triangles = soup(0, "perspective", 150)
    clip = camera().clip(points)
    expected = rasterize(clip, triangles, (24, 32), "torch")
    found = rasterize(clip.to(device, dtype), triangles.to(device), (24, 32))
    assert torch.equal(found.triangle.cpu(), expected.triangle)
    assert found.depth.device.type == device.type and found.depth.dtype == dtype
    torch.testing.assert_close(found.depth.cpu().float(), expected.depth, rtol=1e-4, atol=0)  # of float32
