"""Which triangle covers which pixel. Knows no face and no light.

Backends, all behind `rasterize`: 'torch' (any device), 'numba' (fast path on the CPU), and, when they are
installed, 'pytorch3d' and 'nvdiffrast'. They load on first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from fitkit.errors import InputError, MissingWeightsError
from fitkit.geometry.rows import blend, rows_at

BACKENDS = ("auto", "torch", "numba", "pytorch3d", "nvdiffrast")
# How to get those that need a package.
INSTALL = {
    "numba": "pip install numba",
    "pytorch3d": "PyPI has no wheel of it for Linux, so build it, with a C++ compiler and for a GPU the CUDA "
    "toolkit of your torch: pip install --no-build-isolation "
    "git+https://github.com/facebookresearch/pytorch3d.git@stable",
    "nvdiffrast": "build it, with the CUDA toolkit of your torch: pip install --no-build-isolation "
    "git+https://github.com/NVlabs/nvdiffrast.git",
}
NEAR_MM = 1.0  # triangles with a corner nearer than this are not drawn


@dataclass(frozen=True)
class Fragments:
    """The nearest surface at each pixel centre.

    triangle: [B, H, W] int64, -1 where nothing; barycentric: [B, H, W, 3] perspective-correct, differentiable
    with respect to the clip coordinates, 0 where nothing; depth: [B, H, W] mm, 0 where nothing; covered: [B,
    H, W] bool.
    """

    triangle: Tensor
    barycentric: Tensor
    depth: Tensor
    covered: Tensor


_chosen: ContextVar[str] = ContextVar("rasterizer backend", default="auto")


def check_backend(backend: str, device: torch.device) -> None:
    """Refuse a backend that cannot be used here.

    Raises:
        InputError: unknown, or without a GPU. MissingWeightsError: its package is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"rasterizer backend: expected one of {', '.join(BACKENDS)}; got '{backend}'")
    if backend in INSTALL and find_spec(backend) is None:
        raise MissingWeightsError(
            f"rasterizer backend '{backend}' is not installed here; {INSTALL[backend]}; or use 'auto', which "
            "needs no package"
        )
    if backend == "nvdiffrast" and device.type != "cuda":
        raise InputError(f"rasterizer backend 'nvdiffrast': needs a GPU, got device '{device}'; use 'auto'")


@contextmanager
def drawing_with(backend: str, device: torch.device) -> Iterator[None]:
    """In this thread, `pick_backend` gives `backend` meanwhile.

    Raises:
        InputError, MissingWeightsError: one that cannot be used on the device.
    """
    check_backend(backend, device)
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def pick_backend(device: torch.device) -> str:
    """The backend that `drawing_with` asks for, as far as it can draw on the device; else the fastest one
    that needs nothing but what fitkit installs: numba on the CPU, torch elsewhere."""
    chosen = _chosen.get()
    if chosen != "auto" and not (chosen == "nvdiffrast" and device.type != "cuda"):
        return chosen
    return "numba" if device.type == "cpu" and find_spec("numba") is not None else "torch"


def rasterize(clip: Tensor, triangles: Tensor, size: tuple[int, int], backend: str = "auto") -> Fragments:
    """Exact z-buffer of a triangle mesh.

    Args:
        clip: [B, V, 4] from `Camera.clip`; triangles: [F, 3] int64; size: (H, W) pixels.
        backend: one of BACKENDS; 'auto' takes `pick_backend`.
    Returns:
        Fragments. Both sides of a triangle are drawn; of equally near triangles the higher index wins;
        triangles with a corner nearer than NEAR_MM are left out.
    Raises:
        InputError, MissingWeightsError: a backend that cannot be used, see `check_backend`.
    """
    if clip.ndim != 3 or clip.shape[-1] != 4:
        raise InputError(f"rasterize: expected clip coordinates [B, V, 4], got {tuple(clip.shape)}")
    check_backend(backend, clip.device)
    if backend == "auto":
        backend = pick_backend(clip.device)
    module = import_module(f"fitkit.render.backends.{backend}_backend")
    triangle = module.winning_triangles(clip.detach(), triangles, size)
    if backend == "numba" and not clip.requires_grad:
        barycentric, depth = module.surface(clip, triangles, triangle)  # the same in one pass
    else:
        barycentric = barycentrics(clip, triangles, triangle)
        depth = _interpolate(triangle, barycentric, triangles, clip[..., 2:3])[..., 0]
    return Fragments(triangle, barycentric, depth, triangle >= 0)


def barycentrics(clip: Tensor, triangles: Tensor, triangle: Tensor) -> Tensor:
    """Perspective-correct barycentric coordinates of the pixel centres of a triangle map.

    Args:
        clip: [B, V, 4]; triangles: [F, 3]; triangle: [B, H, W] int64, -1 where nothing.
    Returns:
        [B, H, W, 3], differentiable in `clip`, 0 where nothing.
    """
    B, H, W = triangle.shape
    out = clip.new_zeros(B * H * W, 3)
    flat = triangle.reshape(-1)
    hit = (flat >= 0).nonzero().squeeze(1)
    batch = hit // (H * W)
    y = ((hit % (H * W)) // W).to(clip.dtype)
    x = (hit % W).to(clip.dtype)
    corner = rows_at(triangles, flat[hit]) + (batch * clip.shape[1])[:, None]
    corners = rows_at(clip.reshape(-1, 4), corner)  # [N, 3, 4]
    w = corners[..., 3]
    u = corners[..., 0] / w - x[:, None]
    v = corners[..., 1] / w - y[:, None]
    area = (
        torch.stack(
            [
                u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1],
                u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2],
                u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0],
            ],
            -1,
        )
        / w
    )
    # A covered pixel has a total of one sign; the floor only guards triangles seen edge-on.
    total = area.sum(-1, keepdim=True)
    total = torch.where(total.abs() < 1e-20, torch.full_like(total, 1e-20), total)
    return out.index_copy(0, hit, area / total).reshape(B, H, W, 3)


def interpolate(fragments: Fragments, triangles: Tensor, attributes: Tensor) -> Tensor:
    """Vertex attributes [B, V, C] or [1, V, C] -> [B, H, W, C]; 0 where nothing is covered."""
    return _interpolate(fragments.triangle, fragments.barycentric, triangles, attributes)


def _interpolate(triangle: Tensor, barycentric: Tensor, triangles: Tensor, attributes: Tensor) -> Tensor:
    B, H, W = triangle.shape
    out = attributes.new_zeros(B * H * W, attributes.shape[-1])
    flat = triangle.reshape(-1)
    hit = (flat >= 0).nonzero().squeeze(1)
    corner = rows_at(triangles, flat[hit])
    if len(attributes) > 1:
        corner = corner + (hit // (H * W) * attributes.shape[1])[:, None]
    values = blend(attributes.flatten(0, 1), corner, rows_at(barycentric.reshape(-1, 3), hit))
    return out.index_copy(0, hit, values).reshape(B, H, W, -1)
