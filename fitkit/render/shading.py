"""Shaded pictures of a mesh for people to look at: clay or textured, lit by three lamps that stand with the
camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from importlib import import_module

import torch
from torch import Tensor

from fitkit.geometry.color import srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.render.rasterizer import pick_backend
from fitkit.scene.camera import Camera

CLAY = (0.62, 0.60, 0.585)  # linear RGB


@dataclass(frozen=True)
class Lights:
    """Lamps in the camera frame (x right, y down, z forward). directions: towards the lamp; strengths:
    linear."""

    directions: tuple[tuple[float, float, float], ...] = (
        (-0.45, -0.65, -1.0),
        (0.95, -0.10, -0.65),
        (0.25, -1.0, 0.35),
    )
    strengths: tuple[float, ...] = (0.84, 0.20, 0.20)  # key, fill, top
    ambient: float = 0.07
    gloss: float = 0.05  # strength of the key lamp's highlight
    shininess: float = 18.0


@dataclass(frozen=True)
class Shaded:
    """rgb: [B, H, W, 3] sRGB in [0, 1], 0 where nothing; alpha: [B, H, W] share of the pixel that the mesh
    covers; skin: [B, H, W] share covered by the triangles given as `select` (= alpha without)."""

    rgb: Tensor
    alpha: Tensor
    skin: Tensor


def shade(normals: Tensor, lights: Lights = Lights()) -> tuple[Tensor, Tensor]:
    """Camera-frame unit normals [..., 3] -> diffuse factor [...] and additive highlight [...], both
    linear."""
    diffuse = torch.full_like(normals[..., 0], lights.ambient)
    for direction, strength in zip(lights.directions, lights.strengths):
        lamp = torch.nn.functional.normalize(normals.new_tensor(direction), dim=0)
        diffuse = diffuse + strength * (normals @ lamp).clamp_min(0)
    lamp = torch.nn.functional.normalize(normals.new_tensor(lights.directions[0]), dim=0)
    halfway = torch.nn.functional.normalize(lamp + normals.new_tensor((0.0, 0.0, -1.0)), dim=0)
    return diffuse, lights.gloss * (normals @ halfway).clamp_min(0) ** lights.shininess


@dataclass(frozen=True)
class Surface:
    """The nearest surface of one view, as a list of the N covered pixels; made for pictures, not for
    derivatives.

    size: (H, W); pixel: [N] int64, row * W + column; triangle: [N] int64; planes: [F, 3, 3] screen-space
    planes: row k times (x - x0, y - y0, 1) is the k-th barycentric weight over w; origin: [F, 2] the (x0, y0)
    of each triangle.
    """

    size: tuple[int, int]
    pixel: Tensor
    triangle: Tensor
    planes: Tensor
    origin: Tensor

    @classmethod
    def visible(cls, clip: Tensor, triangles: Tensor, size: tuple[int, int]) -> Surface:
        """clip [V, 4] of one view, triangles [F, 3], size (H, W)."""
        backend = import_module(f"fitkit.render.backends.{pick_backend(clip.device)}_backend")
        index = backend.winning_triangles(clip[None], triangles, size).reshape(-1)
        pixel = (index >= 0).nonzero().squeeze(1)
        # Perspective-correct interpolation is a ratio of functions that are linear on the screen; three
        # numbers per triangle and function cost far less than barycentrics per pixel.
        corner = clip[triangles].double()
        w = corner[..., 3]
        xy = corner[..., :2] / w[..., None]
        local = xy - xy[:, :1]
        x, y = local[..., 0], local[..., 1]
        following, last = [1, 2, 0], [2, 0, 1]
        edge = torch.stack(
            [
                y[:, following] - y[:, last],
                x[:, last] - x[:, following],
                x[:, following] * y[:, last] - x[:, last] * y[:, following],
            ],
            -1,
        )
        area = edge[..., 2].sum(-1)
        area = torch.where(area.abs() < 1e-12, torch.full_like(area, 1e-12), area)
        planes = edge / (area[:, None] * w)[..., None]
        return cls(size, pixel, index[pixel], planes.float(), xy[:, 0].float())

    @cached_property
    def _local(self) -> tuple[Tensor, Tensor]:
        """x - x0 and y - y0 of the covered pixels, [N, 1] each."""
        origin = self.origin.index_select(0, self.triangle)
        x, y = self.pixel % self.size[1], torch.div(self.pixel, self.size[1], rounding_mode="floor")
        return (x - origin[:, 0])[:, None], (y - origin[:, 1])[:, None]

    def interpolate(self, corners: Tensor) -> Tensor:
        """Values at the triangles' corners [F, 3, C] -> values at the covered pixels [N, C]."""
        F, C = len(corners), corners.shape[-1]
        padded = torch.cat([corners.float(), corners.new_ones(F, 3, 1).float()], -1)
        table = torch.einsum("fkp,fkc->fpc", self.planes, padded).reshape(F, -1)  # [F, 3 * (C + 1)]
        of_x, of_y, constant = table.index_select(0, self.triangle).split(C + 1, 1)
        x, y = self._local
        value = of_x * x
        value += of_y * y
        value += constant
        return value[:, :C] / value[:, C:]

    def edge_distances(self) -> Tensor:
        """How far each covered pixel is from the edges of its triangle, [N, 3] px, the k-th opposite its k-th
        corner."""
        # A weight is 0 along the edge and linear on the screen.
        planes = self.planes / self.planes[..., :2].norm(dim=-1, keepdim=True).clamp_min(1e-30)
        of_x, of_y, constant = planes.index_select(0, self.triangle).unbind(-1)
        x, y = self._local
        return (of_x * x + of_y * y + constant).abs()

    def image(self, values: Tensor) -> Tensor:
        """[N, C] -> [H, W, C], 0 where nothing is covered."""
        out = values.new_zeros(self.size[0] * self.size[1], values.shape[1])
        out.index_copy_(0, self.pixel, values)
        return out.reshape(*self.size, -1)


def average_blocks(image: Tensor, factor: int) -> Tensor:
    """[H * factor, W * factor, C] -> [H, W, C], mean of each block."""
    if factor == 1:
        return image
    H, W, C = image.shape
    blocks = image.reshape(H // factor, factor, W, C)
    rows = reduce(torch.add, blocks.unbind(1)).reshape(H // factor, W // factor, factor, C)
    return reduce(torch.add, rows.unbind(2)) / factor**2


def render_shaded(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    size: tuple[int, int],
    *,
    color: Tensor | None = None,
    select: Tensor | None = None,
    lights: Lights = Lights(),
    supersample: int = 2,
) -> Shaded:
    """Picture of a mesh with three-lamp Lambert shading, a little ambient light and a faint highlight.

    Args:
        vertices: [B, V, 3] camera frame, mm; triangles: [F, 3]; size: (H, W).
        color: linear RGB per vertex, [V, 3] or [B, V, 3], or None for clay.
        select: [F] bool, the triangles counted in `Shaded.skin`; all of them hide what is behind them.
        supersample: samples per pixel side.
    """
    fine = camera.resized(1 / supersample)
    clip = fine.clip(vertices)
    views = []
    for b in range(len(vertices)):
        surface = Surface.visible(clip[b], triangles, (size[0] * supersample, size[1] * supersample))
        own = (
            None
            if color is None
            else surface.interpolate((color if color.ndim == 2 else color[b])[triangles])
        )
        views.append(light_surface(surface, vertices[b], triangles, own, select, lights, supersample))
    return Shaded(
        torch.stack([v.rgb for v in views]),
        torch.stack([v.alpha for v in views]),
        torch.stack([v.skin for v in views]),
    )


def surface_normals(surface: Surface, vertices: Tensor, triangles: Tensor) -> Tensor:
    """Smooth camera-frame normals at the covered pixels [N, 3], turned towards the camera; vertices [V,
    3]."""
    normals = torch.nn.functional.normalize(
        surface.interpolate(vertex_normals(vertices[None], triangles)[0][triangles]), dim=-1
    )
    # 0.15: smooth normals lean over at the silhouette.
    return torch.where(normals[:, 2:] > 0.15, -normals, normals)


def light_surface(
    surface: Surface,
    vertices: Tensor,
    triangles: Tensor,
    color: Tensor | None = None,
    select: Tensor | None = None,
    lights: Lights = Lights(),
    supersample: int = 1,
) -> Shaded:
    """One view: light the surface and average the supersamples; color [N, 3] linear or None for clay. Fields
    lack B."""
    lit = shade(surface_normals(surface, vertices, triangles), lights)
    return lit_surface(surface, *lit, color, select, supersample)


def lit_surface(
    surface: Surface,
    diffuse: Tensor,
    gloss: Tensor,
    color: Tensor | None = None,
    select: Tensor | None = None,
    supersample: int = 1,
) -> Shaded:
    """`light_surface` with the light that `shade` gives, [N] each."""
    rgba = diffuse.new_empty(len(diffuse), 5)
    clay = diffuse.new_tensor(CLAY)
    rgba[:, :3] = ((clay if color is None else color) * diffuse[:, None] + gloss[:, None]).clamp(0, 1)
    rgba[:, 3] = 1
    rgba[:, 4] = 1 if select is None else select[surface.triangle].to(rgba)
    return average_surface(surface, rgba, supersample)


def average_surface(surface: Surface, rgba: Tensor, supersample: int) -> Shaded:
    """[N, 5] linear RGB, cover, selected cover at the samples -> a view's picture (fields lack B)."""
    mean = average_blocks(surface.image(rgba), supersample)
    alpha = mean[..., 3]
    # The mean holds nothing where the mesh does not reach; dividing by the cover gives the colour of the mesh
    # alone.
    rgb = srgb_from_linear(mean[..., :3] / alpha.clamp_min(1e-6)[..., None]) * (alpha > 0)[..., None]
    return Shaded(rgb, alpha, mean[..., 4])
