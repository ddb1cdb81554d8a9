"""Energies on depth maps in a fit: the maps are those of the face model's surface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fitkit.energies.base import Energy, Residuals
from fitkit.models.face_model import FaceModel
from fitkit.render.rasterizer import Fragments, barycentrics, interpolate, rasterize
from fitkit.scene.depth_state import DepthState
from fitkit.scene.state import SceneState


def on_rendered_depth(energy: Energy, model: FaceModel) -> Energy:
    """An energy of depth maps as one of a scene, whose surface gives the maps.

    Which triangle covers a pixel is fixed by `freeze`; derivatives run through the planes of the triangles.
    """
    return _OnRenderedDepth(energy, model)


def rendered_depth(model: FaceModel, state: SceneState, triangle: Tensor) -> DepthState:
    """Depth maps of a scene, differentiable in shape, poses and cameras.

    triangle: [B, H, W] int64, the triangle that covers each pixel, -1 where there is none.
    """
    posed = state.pose.apply(state.vertices(model))
    weights = barycentrics(state.camera.clip(posed), model.triangles, triangle)
    fragments = Fragments(triangle, weights, torch.zeros_like(triangle, dtype=posed.dtype), triangle >= 0)
    depth = interpolate(fragments, model.triangles, posed[..., 2:])[..., 0]
    return DepthState(torch.where(triangle >= 0, depth, 0), state.pose, state.camera, state.subject)


@torch.no_grad()
def model_depth(model: FaceModel, state: SceneState, size: tuple[int, int]) -> Tensor:
    """How far away the face model is at each pixel of pictures of `size` (H, W), [B, H, W] mm along the
    camera's axis, 0 where it is not; a constant."""
    fragments = rasterize(state.camera.clip(state.posed(model)), model.triangles, size)
    return torch.where(fragments.covered, fragments.depth, 0)


@dataclass(frozen=True)
class _OnRenderedDepth:
    """See `on_rendered_depth`."""

    energy: Energy
    model: FaceModel
    triangle: Tensor | None = None  # [B, H, W], set by freeze

    @property
    def name(self) -> str:
        return self.energy.name

    @property
    def reduction(self) -> str:
        return self.energy.reduction

    def freeze(self, state: SceneState, observations: Any) -> _OnRenderedDepth:
        with torch.no_grad():
            clip = state.camera.clip(state.pose.apply(state.vertices(self.model)))
            triangle = rasterize(clip, self.model.triangles, observations.size).triangle
            seen = rendered_depth(self.model, state, triangle)
            return replace(self, energy=self.energy.freeze(seen, observations), triangle=triangle)

    def residuals(self, state: SceneState, observations: Any) -> Residuals:
        return self.energy.residuals(rendered_depth(self.model, state, self.triangle), observations)
