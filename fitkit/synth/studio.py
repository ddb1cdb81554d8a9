"""Photos of people who do not exist: a face model with painted skin, light and a camera, and the exact
truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fitkit.geometry.color import srgb_from_linear
from fitkit.geometry.rotation import so3_exp
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import Surface, average_blocks, surface_normals
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

PAINTED = ("face", "head", "neck", "ears")  # the beginnings of names of regions with skin and hair
SKIN = (0.50, 0.31, 0.22)  # linear RGB where the model has no albedo


@dataclass(frozen=True)
class Appearance:
    """What is painted on top of the model's albedo; all relative changes of linear RGB.

    blotches: low-frequency variation; redness: the same in red against green and blue; freckles: depth of the
    spots; freckles_per_cm2: their density on the face; pores: fine noise; hair: strands where the albedo is
    dark; tint: factor on skin and hair.
    """

    blotches: float = 0.07
    redness: float = 0.04
    freckles: float = 0.28
    freckles_per_cm2: float = 1.2
    pores: float = 0.045
    hair: float = 0.35
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """Light and surroundings. illumination: [9, 3] spherical harmonics in the camera frame with y up and z
    towards the viewer (the light stands with the camera, the head turns); lamp: direction in the same frame
    and strength; lamp_color: factor on it, linear RGB; gloss, shininess: strength and exponent of the lamp's
    highlight; noise: standard deviation of the sensor noise in sRGB; top, bottom: background, sRGB."""

    illumination: Tensor
    lamp: tuple[float, float, float] = (0.55, 0.45, 0.85)
    lamp_strength: float = 0.55
    lamp_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gloss: float = 0.06
    shininess: float = 24.0
    noise: float = 0.006
    top: tuple[float, float, float] = (0.60, 0.65, 0.70)
    bottom: tuple[float, float, float] = (0.40, 0.44, 0.50)


def studio(warmth: float = 0.06, side: float = 0.18, top: float = 0.22) -> Scene:
    """A soft studio light from above and the right side of the picture; side, top: share of the mean
    light."""
    light = torch.zeros(9, 3)
    light[0] = 0.62 / 0.28209479177387814
    light[1] = top * 0.62 / 0.48860251190291992  # from above
    light[2] = 0.25 * 0.62 / 0.48860251190291992  # from the front
    light[3] = side * 0.62 / 0.48860251190291992
    light[7] = 0.05
    return Scene(light * torch.tensor([1 + warmth, 1.0, 1 - warmth]))


def head_shot_state(
    model: FaceModel,
    identity: Tensor,
    expression: Tensor,
    yaw_pitch_roll: Tensor,
    size: tuple[int, int],
    distance: float = 900.0,
    face_share: float = 0.5,
    row: float = 0.5,
    points: Tensor | None = None,
) -> SceneState:
    """One person in B views of a perspective camera that looks at the middle of the face.

    Args:
        identity: [K_id]; expression: [B, K_ex]; yaw_pitch_roll: [B, 3] degrees, signs as
            `scene.pose.yaw_pitch_roll`.
        size: (H, W) px; distance: mm; face_share: height from brows to chin over the height of the picture;
            row: where the middle of the face stands, 0 = top, 1 = bottom; points: [68, 3] mm, the neutral
                landmarks if they are known.
    """
    B = len(yaw_pitch_roll)
    # Positive pitch looks up and positive roll leans clockwise: both are negative turns about the head's x
    # and z axes.
    yaw, pitch, roll = torch.deg2rad(yaw_pitch_roll.to(model.mean)).unbind(-1)
    zero = torch.zeros_like(yaw)
    turn = (
        so3_exp(torch.stack([zero, yaw, zero], -1))
        @ so3_exp(torch.stack([-pitch, zero, zero], -1))
        @ so3_exp(torch.stack([zero, zero, -roll], -1))
    )
    flip = torch.diag(model.mean.new_tensor([1.0, -1.0, -1.0]))
    rotation = flip @ turn
    points = (
        model.landmark_points(identity[None], torch.zeros(1, model.num_expression))[0]
        if points is None
        else points
    )
    height = float(points[17:27, 1].mean() - points[8, 1])
    middle = points[[27, 33, 8, 0, 16]].mean(0)
    translation = model.mean.new_tensor([[0.0, 0.0, distance]]) - (rotation @ middle[:, None])[..., 0]
    focal = model.mean.new_full((B,), face_share * size[0] / height * distance)
    translation[:, 1] += (row - 0.5) * size[0] * distance / focal
    center = model.mean.new_tensor([(size[1] - 1) / 2, (size[0] - 1) / 2]).expand(B, 2)
    return SceneState(
        identity[None],
        torch.zeros(B, dtype=torch.int64),
        expression,
        Pose(rotation, translation),
        Camera(focal, center.clone(), torch.ones(B)),
        model.mean.new_zeros(B, 9, 1),
    )


@torch.no_grad()
def photograph(
    model: FaceModel,
    state: SceneState,
    size: tuple[int, int],
    scene: Scene,
    appearance: Appearance = Appearance(),
    seed: int = 0,
    supersample: int = 3,
) -> np.ndarray:
    """Pictures of the state, uint8 [B, H, W, 3]; deterministic by the seeds. supersample: samples per pixel
    side."""
    rng = np.random.default_rng(seed)
    paint = _Paint(model, appearance)
    views = []
    for b in range(state.num_views):
        points = state.posed(model, [b])[0]
        fine = state.camera.select([b]).resized(1 / supersample)
        surface = Surface.visible(
            fine.clip(points[None])[0],
            model.triangles,
            (size[0] * supersample, size[1] * supersample),
        )
        rgb = _lit(surface, points, model, paint, scene)
        cover = average_blocks(surface.image(torch.cat([rgb, torch.ones_like(rgb[:, :1])], -1)), supersample)
        ramp = torch.linspace(0, 1, size[0])[:, None, None]
        ground = torch.tensor(scene.top) * (1 - ramp) + torch.tensor(scene.bottom) * ramp
        # Cover is mixed in linear light, as a lens does.
        ground = torch.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
        picture = srgb_from_linear(cover[..., :3] + ground * (1 - cover[..., 3:])).double().numpy()
        picture = picture + rng.normal(scale=scene.noise, size=picture.shape)
        views.append((picture * 255).round().clip(0, 255).astype(np.uint8))
    return np.stack(views)


def _lit(surface: Surface, points: Tensor, model: FaceModel, paint: _Paint, scene: Scene) -> Tensor:
    """Linear RGB [N, 3] of the covered samples."""
    rest = surface.interpolate(model.mean[model.triangles])  # where on the mean head the sample lies
    # Y up, z to the viewer.
    normal = surface_normals(surface, points, model.triangles) * torch.tensor([1.0, -1.0, -1.0])
    albedo = surface.interpolate(paint.albedo[model.triangles])
    return light(paint(rest, albedo, paint.skin[surface.triangle]), normal, scene)


def light(
    albedo: Tensor,
    normal: Tensor,
    scene: Scene,
    open_sky: Tensor | None = None,
    lamp_reaches: Tensor | None = None,
    shine: Tensor | float = 1.0,
    viewer: Tensor | None = None,
) -> Tensor:
    """Reflected light, linear RGB [N, 3], of surface samples.

    Args:
        albedo: [N, 3] linear RGB; normal: [N, 3] unit, y up, z towards the viewer.
        open_sky: [N, 1] share of the surroundings that the sample sees; lamp_reaches: [N, 1], 0 in the lamp's
            shadow; shine: [N] or one number, factor on the scene's gloss. The defaults are an unshadowed
            surface;
        viewer: [3] unit, towards the camera, for a scene that does not stand with it; then `normal` is in the
            scene's frame.
    """
    shade = (sh_basis(normal) @ scene.illumination).clamp_min(0.03)
    lamp = torch.nn.functional.normalize(torch.tensor(scene.lamp), dim=0)
    facing = normal @ lamp
    # A little light gets past the shadow line of skin.
    lamplight = scene.lamp_strength * ((facing + 0.15) / 1.15).clamp_min(0)[:, None]
    half = torch.nn.functional.normalize(
        lamp + (torch.tensor([0.0, 0.0, 1.0]) if viewer is None else viewer), dim=0
    )
    gloss = scene.gloss * (normal @ half).clamp_min(0) ** scene.shininess
    if open_sky is not None:
        shade = shade * open_sky
    lamplight, gloss = lamplight * torch.tensor(scene.lamp_color), (gloss * shine)[:, None]
    if lamp_reaches is not None:
        lamplight, gloss = lamplight * lamp_reaches, gloss * (0.3 + 0.7 * lamp_reaches)
    return albedo * (shade + lamplight) + gloss


class _Paint:
    """Procedural skin on the mean head: the same place keeps its colour in all views."""

    def __init__(self, model: FaceModel, appearance: Appearance):
        self.look = appearance
        plain = model.mean.new_tensor(SKIN).expand(model.num_vertices, 3)
        self.albedo = plain if model.albedo_mean is None else model.albedo_mean
        painted = torch.tensor([name.startswith(PAINTED) for name in model.region_names])[model.region]
        self.skin = painted[model.triangles].all(1)
        rng = np.random.default_rng(appearance.seed)
        self.waves = [_waves(rng, 16, length) for length in (28.0, 14.0, 7.0)]
        self.red, self.pores, self.strands = (
            _waves(rng, 16, 22.0),
            _waves(rng, 32, 0.9),
            _waves(rng, 32, (0.5, 4.0, 0.5)),
        )
        self.spots = self._spots(model, rng)

    def _spots(self, model: FaceModel, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres [M, 3] mm on the mean face, radii [M] mm, depths [M] of the freckles."""
        triangles = model.triangles[model.face[model.triangles].all(1)]
        corners = model.mean[triangles].double().numpy()
        area = (
            np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
        )
        count = int(self.look.freckles_per_cm2 * area.sum() / 100)
        pick = rng.choice(len(area), size=count, p=area / area.sum())
        weights = rng.dirichlet([1, 1, 1], count)
        centers = (weights[..., None] * corners[pick]).sum(1)
        radius = rng.uniform(0.6, 1.5, count)
        depth = rng.uniform(0.25, 1.0, count)
        return centers, radius, depth

    def __call__(self, rest: Tensor, albedo: Tensor, skin: Tensor) -> Tensor:
        """Linear RGB [N, 3] at places [N, 3] of the mean head with this albedo [N, 3]; skin [N] bool:
        painted."""
        look = self.look
        out = albedo.clone()
        rest, albedo = rest[skin], albedo[skin]
        hair = ((0.22 - albedo.mean(-1)) / 0.12).clamp(0, 1)
        change = look.blotches * sum(_noise(rest, w) for w in self.waves) / len(self.waves) ** 0.5
        change = change + look.pores * _noise(rest, self.pores).clamp(-2, 2)
        change = change * (1 - hair) + look.hair * hair * _noise(rest, self.strands).clamp(-2, 2)
        red = look.redness * (1 - hair) * _noise(rest, self.red)
        shade = (1 + change)[:, None].clamp(0.4, 1.7)
        color = (
            albedo * torch.tensor(look.tint) * shade * (1 + red[:, None] * torch.tensor([1.0, -0.5, -0.5]))
        )
        centers, radius, depth = self.spots
        if len(centers):
            distance, nearest = cKDTree(centers).query(rest.numpy(), distance_upper_bound=4.0)
            nearest = nearest.clip(max=len(centers) - 1)
            dark = torch.from_numpy(depth[nearest] * np.exp(-((distance / radius[nearest]) ** 2))).to(rest)
            color = color * (1 - look.freckles * dark)[:, None] ** torch.tensor([0.7, 1.0, 1.2])
        out[skin] = color.clamp(0, 1)
        return out


def _waves(
    rng: np.random.Generator, count: int, length: float | tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """Random plane waves of about this length in mm (per axis): directions [count, 3], phases [count]."""
    directions, phases = rng.normal(size=(count, 3)) / np.asarray(length), rng.uniform(0, 2 * np.pi, count)
    return torch.from_numpy(directions).float(), torch.from_numpy(phases).float()


def _noise(points: Tensor, waves: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of waves at points [N, 3], [N], about unit variance."""
    directions, phases = waves
    return torch.sin(points @ directions.T + phases).sum(-1) * (2 / len(phases)) ** 0.5
