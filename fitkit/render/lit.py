"""The face model's own look in each view, differentiable: albedo under spherical-harmonics light, as a whole
picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.geometry.color import srgb_from_linear
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.appearance import default_albedo
from fitkit.models.face_model import FaceModel
from fitkit.render.rasterizer import Fragments, barycentrics, interpolate, rasterize
from fitkit.scene.state import SceneState

FULL = 0.25  # length of a difference of colours, of 1, that has the last colour of an error map


@dataclass(frozen=True)
class Lit:
    """colors: [B, 3, H, W] sRGB in [0, 1], 0 where nothing; covered: [B, H, W] bool; triangle: [B, H, W]
    int64, -1 where nothing."""

    colors: Tensor
    covered: Tensor
    triangle: Tensor

    def over(self, images: Tensor, where: Tensor | None = None) -> Tensor:
        """The rendering over images [B, 3, H, W], where it covers them and `where` [B, H, W] bool allows
        it."""
        drawn = self.covered if where is None else self.covered & where
        return torch.where(drawn[:, None], self.colors.to(images), images)


def vertex_albedo(model: FaceModel, state: SceneState) -> Tensor:
    """The model's albedo under the state's coefficients (their mean without any), linear RGB, [B, V, 3].

    A model without colours has plain ones, see `default_albedo`.
    """
    mean = (
        torch.from_numpy(default_albedo(model)).to(model.mean)
        if model.albedo_mean is None
        else model.albedo_mean
    )
    albedo = mean[None]
    if state.albedo is not None and model.albedo_basis is not None:
        albedo = albedo + torch.einsum("sk,kvc->svc", state.albedo, model.albedo_basis)[state.subject]
    return albedo.expand(state.num_views, -1, -1)


def render_lit(
    model: FaceModel,
    state: SceneState,
    size: tuple[int, int],
    albedo: Tensor | None = None,
    triangle: Tensor | None = None,
) -> Lit:
    """Pictures of the state: albedo times shading of the smooth normals, turned to sRGB; no cast shadows, no
    highlights.

    Differentiable in shape, expression, pose, focal length, illumination and albedo, inside triangles; not
    across silhouettes and changes of visibility. Colours are clipped to [0, 1], where their gradient ends.

    Args:
        size: (H, W) of the cameras' pictures; albedo: [V, 3] or [B, V, 3] linear RGB, None: the model's own
            (`vertex_albedo`);
        triangle: [B, H, W] int64, a fixed triangle map (-1 where nothing): then nothing is rasterized, and
            the rays of the pixels meet the planes of these triangles.
    Source:
        Ramamoorthi and Hanrahan, "An efficient representation for irradiance environment maps", SIGGRAPH
        2001, for the shading; DF-MVR section 4 renders vertex colours shaded this way.
    """
    vertices = state.vertices(model)
    clip = state.camera.clip(state.pose.apply(vertices))
    if triangle is None:
        fragments = rasterize(clip, model.triangles, size)
    else:
        depth = torch.zeros_like(triangle, dtype=clip.dtype)
        fragments = Fragments(triangle, barycentrics(clip, model.triangles, triangle), depth, triangle >= 0)
    albedo = (
        vertex_albedo(model, state) if albedo is None else albedo.to(vertices).expand(state.num_views, -1, -1)
    )
    at_pixels = interpolate(
        fragments, model.triangles, torch.cat([albedo, vertex_normals(vertices, model.triangles)], -1)
    )
    normal = F.normalize(at_pixels[..., 3:], dim=-1)
    shading = torch.einsum("bhwk,bkc->bhwc", sh_basis(normal), state.illumination).clamp_min(0)
    colors = srgb_from_linear(at_pixels[..., :3] * shading)
    return Lit(
        torch.where(fragments.covered[..., None], colors, 0).permute(0, 3, 1, 2),
        fragments.covered,
        fragments.triangle,
    )


@torch.no_grad()
def lit_pictures(photo: Tensor, model: FaceModel, state: SceneState) -> tuple[np.ndarray, np.ndarray]:
    """A photo [3, H, W] sRGB in [0, 1] with the model of a state of one view in its light over it, and how
    far the colours are apart: from blue, equal, to red, FULL or more; uint8 [H, W, 3] each."""
    lit = render_lit(model, state, tuple(photo.shape[1:]))
    drawn = lit.over(photo[None])[0]
    apart = ((drawn - photo).norm(dim=0) / FULL).clamp(0, 1)
    colored = cv2.applyColorMap((255 * apart).round().byte().numpy(), cv2.COLORMAP_TURBO)[..., ::-1]
    plain, over = ((255 * p.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy() for p in (photo, drawn))
    error = np.where(lit.covered[0, ..., None].numpy(), colored, plain // 3)
    return over, error.astype(np.uint8)
