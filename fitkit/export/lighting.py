"""Albedo and light of a finished fit; `lighting/STEM.png`: a photo beside its albedo and its shading;
`lit/STEM.png`: beside what a network says of both."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fitkit.fitting.appearance import DecomposeOptions, Decomposition, crops_of, decompose
from fitkit.fitting.report import PREDICT
from fitkit.fitting.result import FitResult
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.render.lit import lit_pictures
from fitkit.render.shading import Surface, average_surface
from fitkit.scene.state import SceneState

CLAY = 0.5  # albedo of the shaded head
SUPERSAMPLE = 2
GROUND = 0.93  # sRGB


def decompose_result(
    result: FitResult, options: DecomposeOptions = DecomposeOptions()
) -> tuple[Decomposition, SceneState, Observations]:
    """`decompose` for a finished fit; also the state with its camera in pixels of the crops, and the
    crops."""
    views, model = result.subject.views, result.personal_model.to(dtype=torch.float32)
    state = result.state.to(dtype=torch.float32)
    masks = [result.texture_mask(i) for i in range(len(views))]
    observations, state = crops_of(model, state, views, masks, options.size)
    return decompose(model, state, observations, options), state, observations


@torch.no_grad()
def draw_lighting(
    parts: Decomposition, model: FaceModel, state: SceneState, observations: Observations, index: int
) -> np.ndarray:
    """Three pictures side by side for view `index`, uint8 [h, 3 w + 2 gaps, 3]: the crop; the mesh with its
    albedo, unlit; a grey head under the view's light, its mean as bright as grey in even light.

    state: camera in pixels of the crops in `observations`.
    """
    H, W = observations.size
    vertices = state.posed(model, [index])
    clip = state.camera.select([index]).resized(1 / SUPERSAMPLE).clip(vertices)[0]
    surface = Surface.visible(clip, model.triangles, (H * SUPERSAMPLE, W * SUPERSAMPLE))
    head = vertex_normals(state.select([index]).vertices(model), model.triangles)[0]
    normal = torch.nn.functional.normalize(surface.interpolate(head[model.triangles]), dim=-1)
    shading = (sh_basis(normal) @ parts.light[index]).clamp_min(0)
    level = shading.mean().clamp_min(1e-6)
    photo = (observations.images[index].permute(1, 2, 0) * 255).round().byte().numpy()
    gap = np.full((H, max(4, W // 80), 3), 255, np.uint8)
    pictures = [
        _picture(surface, color)
        for color in (surface.interpolate(parts.albedo[model.triangles]), CLAY * shading / level)
    ]
    return np.ascontiguousarray(np.concatenate([photo, gap, pictures[0], gap, pictures[1]], 1))


def has_light(result: FitResult) -> bool:
    """Whether it is the prediction of a network that tells light in colours; not of a converted one, whose
    model has another albedo than the network said."""
    predicted = result.report.recipe == PREDICT and result.report.conversion is None
    return predicted and result.state.illumination.shape[-1] == 3


@torch.no_grad()
def draw_lit(result: FitResult, index: int, size: int = 320) -> np.ndarray:
    """Three pictures side by side for view `index`, uint8 [h, 3 w + 2 gaps, 3]: the crop; over it the model
    with the albedo and in the light that a network predicts; how far the colours are apart, blue to red."""
    model, state = result.personal_model, result.state.select([index])
    seen, state = crops_of(model, state, [result.subject.views[index]], [None], size)
    pictures = lit_pictures(seen.images[0], model, state)
    photo = (seen.images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    gap = np.full((len(photo), max(4, photo.shape[1] // 80), 3), 255, np.uint8)
    return np.ascontiguousarray(np.concatenate([photo, gap, pictures[0], gap, pictures[1]], 1))


def _picture(surface: Surface, color: Tensor) -> np.ndarray:
    """Linear colours [N, 3] of the supersamples -> uint8 [H, W, 3] on a light ground."""
    shown = average_surface(
        surface, torch.cat([color.clamp(0, 1), torch.ones_like(color[:, :2])], -1), SUPERSAMPLE
    )
    rgb = shown.rgb * shown.alpha[..., None] + GROUND * (1 - shown.alpha[..., None])
    return (rgb * 255).round().clamp(0, 255).byte().numpy()
