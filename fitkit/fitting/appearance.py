"""Albedo, light and shading of a fit: what of a photo's colours is skin and what is light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fitkit.energies.photo_model import ModelPhotometric, ModelPhotometricOptions
from fitkit.energies.photometric import at_level, pyramid_level, unhidden
from fitkit.errors import InputError
from fitkit.fitting.skin_tone import skin_tone
from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.membrane import Membrane
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import Y0, sh_basis
from fitkit.io.subject import View
from fitkit.models.appearance import EYES, default_albedo, in_region
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample
from fitkit.scene.projection import project_head_points, project_points
from fitkit.scene.state import SceneState

EXPOSED = 0.25  # mean linear intensity of a well exposed face
FULL = 0.15  # sum of the squared cosines from which on a vertex counts as seen
LEAST_EYE, LEAST_EYE_TRUST = 10, 0.05  # vertices of the eyeballs that a view has to show, and how well
WHITE_SHARES = (0.92, 0.97)  # of what a view shows of them, by brightness: white
DARK = 2e-3  # linear colours below this are too noisy for ratios


@dataclass(frozen=True)
class DecomposeOptions:
    """points: skin points the lights are estimated from; sigma: linear intensity that light and albedo leave
    unexplained; albedo_sigma: deviation of the skin's albedo from the model's mean while the lights are
    estimated, linear intensity; rounds: of light and albedo in turn; min_cosine, depth_tolerance_mm:
    visibility;
    pull: weight of the mean albedo times the person's colour at a vertex, against one well lit and squarely
    seen colour; darkest: share of a view's mean light below which shading says nothing about albedo; size:
    side of the crops in pixels."""

    points: int = 2500
    sigma: float = 0.03
    albedo_sigma: float = 0.03
    rounds: int = 8
    min_cosine: float = 0.25
    depth_tolerance_mm: float = 3.0
    pull: float = 0.05
    darkest: float = 0.15
    size: int = 320


@dataclass(frozen=True)
class Decomposition:
    """albedo: [V, 3] linear RGB of the person; light: [B, 9, 3] spherical harmonics of each view in the head
    frame, linear RGB; shading: [B, V, 3] light that falls on the vertices of each view, so that albedo times
    shading is the colour; seen: [V] in [0, 1], how well the photos show a vertex: where it is 0 the albedo
    continues the seen one.

    Light and albedo share one scale that photos cannot show: the albedo's mean luminance on the skin is the
    model's, and the views' mean light is white."""

    albedo: Tensor
    light: Tensor
    shading: Tensor
    seen: Tensor


def decompose(
    model: FaceModel,
    state: SceneState,
    observations: Observations,
    options: DecomposeOptions = DecomposeOptions(),
) -> Decomposition:
    """Albedo, light and shading of one fitted person, from any fit.

    Each view's light is the least-squares light under one albedo of the person, which in turn is pulled to
    the model's mean albedo times one colour; then each vertex's albedo is the robust mean of its colours
    divided by the shading. From one photo the split is only as good as the model's mean albedo: a tan line or
    a beard is albedo, a soft gradient across the face is light.
    Shadows that the face casts on itself and highlights belong to neither and are left in the albedo where
    all views have them.

    Args:
        state: S = 1, its camera in pixels of the crops; its illumination is not used.
        observations: the crops.
    """
    if len(state.identity) != 1:
        raise InputError(f"decompose: expected a state of one person, got {len(state.identity)}")
    with torch.no_grad():
        light = _lights(model, state, observations, options)
        vertices = state.vertices(model)
        normals = vertex_normals(vertices, model.triangles)
        shading = sh_basis(normals) @ light
        color, trust = _colors(model, state, observations, options, vertices, normals)
        floor = options.darkest * Y0 * light[:, :1].mean(-1, keepdim=True).clamp_min(1e-3)
        trust = trust * (shading > floor).all(-1)
        albedo, seen = _albedo(model, color, shading, trust, options)
        shading = torch.maximum(shading, 0.2 * floor)
        factor = _tone_factor(model, albedo, seen, color, trust, shading)
        return Decomposition((albedo * factor).clamp(0, 1), light / factor, shading / factor, seen)


def _tone_factor(
    model: FaceModel, albedo: Tensor, seen: Tensor, color: Tensor, trust: Tensor, shading: Tensor
) -> Tensor:
    """[3] by which the albedo is to be multiplied, and the light divided: the scale that they share."""
    skin = (model.skin | model.face) & (seen > 0.5)
    if int(skin.sum()) < 10:
        return albedo.new_ones(3)
    usual = albedo[skin].clamp_min(DARK).log().median(0).values
    weight = trust[:, skin]
    total = weight.sum(1)
    mean = (weight[..., None] * color[:, skin]).sum(1) / total.clamp_min(1e-6)[:, None]
    photo = mean[total > 0].clamp_min(DARK).log().mean(0)
    white = _white_of_eyes(model, color / shading, trust)
    if white is not None:
        white = photo - usual + white.clamp_min(DARK).log()
    tone = skin_tone(*(None if x is None else x.exp().cpu().double().numpy() for x in (photo, white)))
    return torch.from_numpy(tone).to(albedo) / usual.exp()


def _white_of_eyes(model: FaceModel, albedo: Tensor, trust: Tensor) -> Tensor | None:
    """Albedo [3] of the white of the eyes in the view that shows it best, from those of the views [B, V, 3];
    None where no view shows eyes. In most photos it is a few pixels, mixed with lids and lashes: so the
    brightest of them, but not the very brightest, which may be reflections."""
    eye = torch.from_numpy(in_region(model, EYES)).to(albedo.device)
    best = None
    for colors, weight in zip(albedo[:, eye], trust[:, eye]):
        colors = colors[weight > LEAST_EYE_TRUST]
        if len(colors) < LEAST_EYE:
            continue
        order = colors.mean(-1).argsort()
        low, high = (int(share * (len(colors) - 1)) for share in WHITE_SHARES)
        found = colors[order[low : high + 1]].mean(0)
        best = found if best is None or found.mean() > best.mean() else best
    return best


def crops_of(
    model: FaceModel,
    state: SceneState,
    views: Sequence[View],
    masks: Sequence[np.ndarray | None],
    size: int,
) -> tuple[Observations, SceneState]:
    """Crops of `size` px around the mesh of a state whose camera is in px of the photos, and the state with
    its camera in pixels of the crops. masks: usable pixels of the photos, None: all of them."""
    with torch.no_grad():
        # The model's points and not the observed ones: those may be missing. Kept on the photo, so that there
        # is something to cut.
        points, _ = state.camera.project(
            state.pose.apply(model.landmarks.points(state.vertices(model), model.triangles))
        )
        limit = torch.tensor([v.size for v in views], dtype=points.dtype) - 1
        points = torch.minimum(torch.nan_to_num(points).clamp_min(0), limit[:, None])
        ones = torch.ones(points.shape[:2])
        seen = crop_views(
            [v.image for v in views],
            masks,
            Landmarks(points, ones, ones > 0, ones),
            CropOptions(max_size=size),
        )
    return seen, state.replace(camera=state.camera.scaled(seen.scale, seen.offset))


def _lights(
    model: FaceModel, state: SceneState, observations: Observations, options: DecomposeOptions
) -> Tensor:
    plain = torch.zeros(state.num_views, 9, 3).to(state.expression)
    plain[:, 0] = 1 / Y0
    level = 1 if max(observations.size) >= 256 else 0  # nine harmonics need no fine detail
    energy = ModelPhotometric.prepare(
        replace(model, albedo_basis=None),
        observations,
        ModelPhotometricOptions(
            level=level,
            points=options.points,
            sigma=options.sigma,
            albedo_sigma=options.albedo_sigma,
            min_cosine=options.min_cosine,
            depth_tolerance_mm=options.depth_tolerance_mm,
            clipped=0.5,
        ),
    )
    lit = state.replace(illumination=plain, albedo=None)
    frozen = energy.freeze(lit, observations)
    # Sigmas are stated for a well exposed face; dark photos are brought to it and their light back.
    color, _ = sample(frozen.images, at_level(project_points(frozen.basis, lit).pixels, level))
    gain = EXPOSED * frozen.trust.sum(1) / (frozen.trust * color.mean(-1)).sum(1).clamp_min(1e-6)
    gain = torch.where(frozen.trust.sum(1) > 0, gain.clamp(0.1, 50), torch.ones_like(gain))[:, None, None]
    return replace(frozen, images=frozen.images * gain[..., None]).estimate_light(lit, options.rounds) / gain


def _colors(
    model: FaceModel,
    state: SceneState,
    observations: Observations,
    options: DecomposeOptions,
    vertices: Tensor,
    normals: Tensor,
) -> tuple[Tensor, Tensor]:
    """Linear colours [B, V, 3] of all vertices in all views and how far they are trusted [B, V]."""
    mask = observations.mask[:, None]
    images, inside = pyramid_level(
        torch.where(mask, linear_from_srgb(observations.images), 0.2), mask, 0, 0.5
    )
    seen = project_head_points(vertices, state, torch.arange(state.num_views, device=vertices.device))
    clear = unhidden(
        model, vertices, seen, state, observations.size, max(observations.size), options.depth_tolerance_mm
    )
    cosine = (normals * state.sight(vertices)).sum(-1)
    color, within = sample(images, seen.pixels)
    usable, _ = sample(inside.to(images) * (images < 0.98).all(1, keepdim=True), seen.pixels)
    trust = cosine.clamp_min(0) ** 2 * usable[..., 0] * (clear & within & (cosine > options.min_cosine))
    return color, trust


def _albedo(
    model: FaceModel, color: Tensor, shading: Tensor, trust: Tensor, options: DecomposeOptions
) -> tuple[Tensor, Tensor]:
    """Albedo [V, 3], continued where nobody saw, and how well the photos show it [V]."""
    mean = torch.from_numpy(default_albedo(model)).to(color)
    level = (trust * shading.mean(-1)).sum(1) / trust.sum(1).clamp_min(1e-6)
    level = torch.where(level > 0, level, torch.ones_like(level))[:, None]
    # Dark photos count as much as bright ones.
    color, shading = (color / level[..., None], shading / level[..., None])
    seen = ((trust * shading.mean(-1).clamp(0, 1)).sum(0) / FULL).clamp(0, 1)
    skin = model.skin & (seen > 0.5)
    weight, expected, pull = trust, mean, 0.0
    for _ in range(4):
        # Where little light falls a small error of the light is a large one of the quotient: the expected
        # albedo steps in.
        top = (weight[..., None] * shading * color).sum(0) + pull * expected
        albedo = top / ((weight[..., None] * shading.square()).sum(0) + pull).clamp_min(1e-9)
        ratio = (albedo.clamp_min(DARK) / mean.clamp_min(DARK)).log()
        tone = ratio[skin].median(0).values if int(skin.sum()) >= 10 else torch.zeros(3).to(ratio)
        expected, pull = tone.exp() * mean, options.pull
        r = (color - albedo * shading) / options.sigma
        weight = trust / (1 + r.square().sum(-1) / 27)
    # Ratios to nearly black paint (pupils, nostrils) are noise and must not spread.
    trusted = seen * (mean.mean(1) / 0.1).clamp(0.05, 1)
    membrane = Membrane(model.mean.cpu(), model.triangles.cpu())
    filled = membrane.solve(trusted.cpu().numpy(), ratio.cpu().numpy(), tone.cpu().numpy())
    continued = torch.from_numpy(filled).to(mean).exp() * mean
    return (seen[:, None] * albedo + (1 - seen[:, None]) * continued).clamp(0, 1), seen
