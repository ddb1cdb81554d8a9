"""Cross-view photometric energy with latent albedo (E1, in its reference-free form)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot, all_views
from fitkit.energies.parse_labels import ParseScheme, label_weights, parse_needed
from fitkit.energies.spec import OURS, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.io.options import Cosine, NonNegative, Pixels, Positive, Range, Seed
from fitkit.models.face_model import FaceModel, Points
from fitkit.observe.observations import Observations, halve
from fitkit.observe.sampling import blur_radius, erode, gaussian_blur, sample, sample_with_gradient
from fitkit.render.rasterizer import rasterize
from fitkit.render.visibility import depth_maps, seen_by_depth
from fitkit.scene.projection import ProjectedPoints, motion_columns, project_points
from fitkit.scene.state import SceneState

PointMask = Literal["zbuffer", "normal"]


@dataclass(frozen=True)
class PhotometricOptions:
    level: Annotated[int, Range(0, 8)] = 0  # pyramid level: 0 = full crop, each level halves it
    # surface samples; 0 = the surface at every covered skin pixel of every view, taken anew by each freeze
    points: Annotated[int, Range(0, 10**6)] = 1500
    sigma: Positive = 0.05  # log units
    blur: Annotated[float, Range(0.0, 100.0)] = 0.7  # Gaussian standard deviation in pixels of the level
    floor: Annotated[float, Range(1e-09, 1.0)] = 0.01  # linear intensity below which the log is noise
    min_cosine: Cosine = 0.2  # of the viewing angle
    depth_tolerance_mm: NonNegative = 3.5  # what lies further behind the z-buffer is hidden
    depth_size: Pixels = 224  # side of the z-buffer
    # What is taken out of each view before it is compared: a factor of the linear intensity, or also an
    # offset. Free light takes up a factor by itself (its first band scales the shading), so 'gain' matters
    # where the light is held, as in training; no light takes up an offset (flare, black level).
    exposure: Literal["none", "gain", "gain_bias"] = "none"
    # points a view sees: those that nothing hides, or with 'normal' all that face it (PGN eq. 5)
    mask: PointMask = "zbuffer"
    parse: ParseScheme = "none"  # weights by the labelled face parse, see `weight_parse`
    seed: Seed = 0


@dataclass(frozen=True)
class CrossViewPhotometric:
    """photo_xview: (log I_v(u_v) - log s_v(n) - mean over the views) / sigma at N surface points, [B, N, 1].

    I is linear luminance, s_v = spherical-harmonics shading of view v, and the mean over the views that see a
    point is its log albedo, eliminated in closed form: no reference view, no texture model, and the light may
    change between the views. Points seen by one view only say nothing and are not valid. Means over the valid
    points: they are not independent. Visibility, normals and view weights are fixed by `freeze`.
    With `exposure`, I_v is (I_v - bias_v) / gain_v, both solved in closed form at the frozen points and
    constant from then on.
    Source: MVF-Net eq. 7 compares pairs of views by colour; the log form with latent albedo is ours, after
    the elimination of a shared latent by its weighted mean.
    """

    model: FaceModel
    options: PhotometricOptions
    triangle: Tensor  # [N] int64
    barycentric: Tensor  # [N, 3]
    basis: Points
    log_images: Tensor  # [B, 1, h, w] log luminance of the pyramid level
    trust_images: Tensor  # [B, 1, h, w] in [0, 1], 0 outside the usable mask
    shading: Tensor | None = None  # [B, N, 9], set by freeze
    share: Tensor | None = None  # [B, N], sums to 1 over the views, set by freeze
    trust: Tensor | None = None  # [B, N], set by freeze
    gain: Tensor | None = None  # [B], set by freeze with `exposure`
    bias: Tensor | None = None  # [B] linear intensity, set by freeze with `exposure`

    name = "photo_xview"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel, observations: Observations, options: PhotometricOptions
    ) -> CrossViewPhotometric:
        """Sample points on the skin of the model and build the pyramid level."""
        triangle, barycentric = sample_skin(model, max(options.points, 1), options.seed)
        mask = observations.mask[:, None]
        # Whatever lies beyond the mask has no influence.
        images = torch.where(mask, observations.linear_luminance, 0.2)
        images, inside = pyramid_level(images, mask, options.level, options.blur)
        log_images = torch.log(images + options.floor)
        trust = (images / (images + 3 * options.floor)) ** 2 * (images < 0.98) * inside
        if options.parse != "none":
            weights = label_weights(observations, mask.to(images), options.parse, "photo_xview")
            trust = trust * at_pyramid_level(weights, options.level)
        return CrossViewPhotometric(
            model, options, triangle, barycentric, model.at(triangle, barycentric), log_images, trust
        )

    def _to_level(self, pixels: Tensor) -> Tensor:
        return at_level(pixels, self.options.level)

    def freeze(self, state: SceneState, observations: Observations) -> CrossViewPhotometric:
        vertices = state.vertices(self.model)
        if self.options.points == 0:
            return self._at_pixels(state, vertices)._freeze(state, observations, vertices)
        return self._freeze(state, observations, vertices)

    def _at_pixels(self, state: SceneState, vertices: Tensor) -> CrossViewPhotometric:
        """The same energy at the surface points behind the pixels of this pyramid level."""
        triangle, barycentric, _ = pixel_points(
            self.model, state, vertices, self.trust_images[:, 0] > 0, self.options.level
        )
        return replace(
            self, triangle=triangle, barycentric=barycentric, basis=self.model.at(triangle, barycentric)
        )

    def _freeze(
        self, state: SceneState, observations: Observations, vertices: Tensor
    ) -> CrossViewPhotometric:
        seen = project_points(self.basis, state)
        visible = visible_points(self.options, self.model, vertices, seen, state, observations.size)
        normal, cosine = viewing_cosine(
            self.model, self.triangle, self.barycentric, vertices, seen.head, state
        )
        trust, inside = sample(self.trust_images, self._to_level(seen.pixels))
        trust = trust[..., 0] * cosine.clamp_min(0) * (visible & inside & (cosine > self.options.min_cosine))
        trust = trust * ((trust > 0.02).sum(0) >= 2) * (trust > 0.02)
        frozen = replace(
            self,
            shading=sh_basis(normal),
            share=trust / trust.sum(0).clamp_min(1e-12),
            trust=trust,
            gain=None,
            bias=None,
        )
        if self.options.exposure != "none":
            frozen = frozen._with_exposure(
                state, sample(self.log_images, self._to_level(seen.pixels))[0][..., 0]
            )
        # Robust shares: a highlight or a wrong match in one view must not pull the albedo of all.
        r = frozen.residuals(state, observations).value[..., 0]
        trust_robust = trust / (1 + (r / 3) ** 2)
        return replace(frozen, share=trust_robust / trust_robust.sum(0).clamp_min(1e-12))

    def _with_exposure(self, state: SceneState, raw: Tensor) -> CrossViewPhotometric:
        """The energy with gain [B] and bias [B] of each view; raw: [B, N] log luminance as sampled.

        Gain: the c_v of min sum_vn w_vn (z_vn - c_v - a_n)^2 over c and the albedos a, a linear system of the
        size of the views. Bias: then least squares of each view's luminance on what albedo and light predict.
        Only differences between views can be seen: gains multiply to 1, biases add to 0. Twice, with robust
        weights, since highlights and wrong matches count.
        """
        weight, frozen = self.trust, self
        shade = self._shade(state)[0]
        seen = weight.sum(1) > 0
        mean_of_views = seen.to(raw) / seen.sum().clamp_min(1)
        gain, bias = torch.ones_like(raw[:, 0]), torch.zeros_like(raw[:, 0])
        for _ in range(2):
            z = frozen._log(raw)[0] - shade
            total = weight.sum(0).clamp_min(1e-12)
            away = z - (weight * z).sum(0) / total
            system = torch.diag(weight.sum(1)) - (weight / total) @ weight.T
            # The common factor is free: the ones make the system regular and their solution the one with mean
            # 0.
            system = system + system.diagonal().mean().clamp_min(1e-12) * torch.outer(
                mean_of_views, mean_of_views
            )
            system = system + torch.diag((~seen).to(raw))
            offset = torch.linalg.solve(system, (weight * away).sum(1))
            gain = gain * (offset - (mean_of_views * offset).sum()).exp()
            frozen = replace(self, gain=gain, bias=bias)
            if self.options.exposure == "gain_bias":
                z = frozen._log(raw)[0] - shade
                predicted = ((weight * z).sum(0) / total + shade).exp() - self.options.floor
                luminance = (raw.exp() - self.options.floor) / gain[:, None]
                inside = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
                x, y = (
                    predicted - (inside * predicted).sum(1, keepdim=True),
                    luminance - (inside * luminance).sum(1, keepdim=True),
                )
                slope = (inside * x * y).sum(1) / (inside * x * x).sum(1).clamp_min(1e-12)
                slope = torch.where(seen, slope.clamp(0.5, 2.0), torch.ones_like(slope))
                shift = (
                    torch.where(
                        seen,
                        (inside * (luminance - slope[:, None] * predicted)).sum(1),
                        torch.zeros_like(slope),
                    )
                    * gain
                )
                gain, bias = gain * slope, shift
                gain, bias = (
                    gain / (mean_of_views * gain.log()).sum().exp(),
                    bias - (mean_of_views * bias).sum(),
                )
                frozen = replace(self, gain=gain, bias=bias)
            z = frozen._log(raw)[0] - shade
            r = (z - (self.share * z).sum(0)) / self.options.sigma
            weight = self.trust / (1 + (r / 3) ** 2)
        return frozen

    def _log(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log luminance [B, N] after gain and bias, and its derivative by the sampled one; None stands for
        1."""
        if self.gain is None:
            return raw, None
        floor = self.options.floor
        luminance = (raw.exp() - floor - self.bias[:, None]) / self.gain[:, None]
        low = luminance <= 0
        clean = torch.where(low, torch.zeros_like(luminance), luminance) + floor
        return clean.log(), torch.where(low, torch.zeros_like(raw), raw.exp() / (self.gain[:, None] * clean))

    def _shade(self, state: SceneState) -> tuple[Tensor, Tensor]:
        """log shading [B, N] and d log shading / d illumination [B, N, 9]."""
        shade = (self.shading @ state.illumination).mean(-1)
        ambient = state.illumination[:, :1].mean(-1)
        low = (0.05 * ambient.abs() + 1e-4).expand_as(shade)
        by_low = torch.zeros_like(self.shading)
        by_low[..., 0] = 0.05 * ambient.sign()
        ok = shade > low
        shade = torch.where(ok, shade, low)
        return shade.log(), torch.where(ok[..., None], self.shading, by_low) / shade[..., None]

    def _center(self, z: Tensor) -> Residuals:
        value = (z - (self.share * z).sum(0)) / self.options.sigma
        return Residuals(value[..., None], self.trust > 0, self.trust)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        seen = project_points(self.basis, state)
        value, _ = sample(self.log_images, self._to_level(seen.pixels))
        return self._center(self._log(value[..., 0])[0] - self._shade(state)[0])

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        seen = project_points(self.basis, state, derivatives=True)
        value, by_pixel, _ = sample_with_gradient(self.log_images, self._to_level(seen.pixels))
        by_pixel = by_pixel / (2**self.options.level * self.options.sigma)
        log, by_raw = self._log(value[..., 0])
        if by_raw is not None:
            by_pixel = by_pixel * by_raw[..., None, None]
        shade, by_light = self._shade(state)
        columns = pixel_columns(by_pixel, seen, self.basis, state)
        columns["illumination"] = (-by_light / self.options.sigma).unsqueeze(2)
        if state.illumination.shape[-1] > 1:
            C = state.illumination.shape[-1]
            columns["illumination"] = (
                (columns["illumination"][..., None] / C).expand(*columns["illumination"].shape, C).flatten(-2)
            )
        return Linearization(self._center(log - shade), (Slot(all_views(state), columns),), center=self.share)

    def estimate_light(self, state: SceneState, rounds: int = 3) -> Tensor:
        """Illumination [B, 9, 1] that explains the luminance of the frozen points with one albedo for all
        views.

        Alternates least squares for each view's light (given the albedo of the points) with the mean log
        albedo.
        """
        seen = project_points(self.basis, state)
        value, _ = sample(self.log_images, self._to_level(seen.pixels))
        log = self._log(value[..., 0])[0]
        luminance = (log.exp() - self.options.floor).clamp_min(0)
        albedo = torch.ones_like(luminance[0])
        ridge = 1e-3 * torch.diag(
            torch.tensor([0.1, 1, 1, 1, 4, 4, 4, 4, 4], dtype=value.dtype, device=value.device)
        )
        for _ in range(rounds):
            design = self.shading * albedo[None, :, None]
            weight = self.trust / self.trust.sum(1, keepdim=True).clamp_min(1e-9)
            normal = torch.einsum("bn,bni,bnj->bij", weight, design, design) + ridge
            right = torch.einsum("bn,bni,bn->bi", weight, design, luminance)
            light = torch.linalg.solve(normal, right)[..., None]
            shade, _ = self._shade(state.replace(illumination=light))
            albedo = (self.share * (log - shade)).sum(0).exp().clamp(0.2, 5)
        return light


def pyramid_level(images: Tensor, mask: Tensor, level: int, blur: float) -> tuple[Tensor, Tensor]:
    """A blurred pyramid level and where it can be read.

    Args:
        images: [B, C, H, W]; mask: [B, 1, H, W] bool; level: how often both are halved; blur: sigma in pixels
            of the level.
    Returns:
        images [B, C, h, w]; [B, 1, h, w] bool: bilinear samples there hold nothing from beyond the mask.
    """
    mask = mask.to(images)
    for _ in range(level):
        images, mask = halve(images), halve(mask)
    # Blurring and bilinear sampling mix in pixels beyond the mask: keep only what lies well inside.
    return gaussian_blur(images, blur), erode(mask, blur_radius(blur) + 1) > 0.999


def at_level(pixels: Tensor, level: int) -> Tensor:
    """Pixels of the crop -> pixels of the pyramid level."""
    return (pixels + 0.5) / 2**level - 0.5


def at_pyramid_level(images: Tensor, level: int) -> Tensor:
    """Images [B, C, H, W] halved `level` times."""
    for _ in range(level):
        images = halve(images)
    return images


def visible_points(
    options: Any,
    model: FaceModel,
    vertices: Tensor,
    seen: ProjectedPoints,
    state: SceneState,
    size: tuple[int, int],
) -> Tensor:
    """Points that the option `mask` counts as visible, [B, N] bool; that they face the camera is tested
    elsewhere. See `unhidden`."""
    if options.mask == "normal":
        return seen.in_front
    return unhidden(model, vertices, seen, state, size, options.depth_size, options.depth_tolerance_mm)


def pixel_points(
    model: FaceModel,
    state: SceneState,
    vertices: Tensor,
    usable: Tensor,
    level: int,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The surface points behind the pixels of a pyramid level.

    Args:
        vertices: [B, V, 3] mm, head frame; usable: [B, h, w] bool, pixels of the level that may count;
        counted: [V] bool, vertices of the surface that counts, None: the skin.
    Returns:
        triangle [N] int64, barycentric [N, 3], view [N] int64 whose pixel shows the point.
    """
    reduction = 2.0**level
    clip = state.camera.resized(reduction).clip(state.pose.apply(vertices))
    fragments = rasterize(clip, model.triangles, usable.shape[-2:])
    counted = (model.skin if counted is None else counted)[model.triangles].all(1)
    hit = fragments.covered & counted[fragments.triangle.clamp_min(0)] & usable
    return fragments.triangle[hit], fragments.barycentric[hit], hit.nonzero()[:, 0]


def unhidden(
    model: FaceModel,
    vertices: Tensor,
    seen: ProjectedPoints,
    state: SceneState,
    size: tuple[int, int],
    depth_size: int,
    tolerance_mm: float,
) -> Tensor:
    """Points in front of the cameras that no other surface hides, [B, N] bool.

    vertices: [B, V, 3] mm, head frame; size: (H, W) of the crops; depth_size: side of the z-buffer in pixels.
    """
    reduction = max(size) / depth_size
    maps = depth_maps(vertices, model.triangles, state, size, reduction)
    return seen_by_depth(seen.pixels, seen.camera[..., 2], maps, reduction, tolerance_mm) & seen.in_front


def pixel_columns(
    by_pixel: Tensor, seen: ProjectedPoints, basis: Points, state: SceneState
) -> dict[str, Tensor]:
    """Chain d value / d pixel [B, N, D, 2] to the model's coefficients, pose and camera."""
    columns = motion_columns(by_pixel @ seen.by_head, seen.head, basis.motion(*state.coefficients()))
    return columns | {name: by_pixel @ by for name, by in seen.by_camera.items()}


def viewing_cosine(
    model: FaceModel, triangle: Tensor, barycentric: Tensor, vertices: Tensor, head: Tensor, state: SceneState
) -> tuple[Tensor, Tensor]:
    """Smooth unit normals of N surface points and their cosines with the rays to the cameras.

    Args:
        triangle: [N] int64; barycentric: [N, 3]; vertices: [B, V, 3] mm; head: [B, N, 3] mm, the points
            themselves.
    Returns:
        normal [B, N, 3], cosine [B, N]; positive: the surface faces the camera.
    """
    normal = point_normals(model, triangle, barycentric, vertices)
    return normal, (normal * state.sight(head)).sum(-1)


def point_normals(model: FaceModel, triangle: Tensor, barycentric: Tensor, vertices: Tensor) -> Tensor:
    """Smooth unit normals of surface points: the vertex normals of `vertices` [B, V, 3], interpolated, [B, N,
    3]."""
    normals = vertex_normals(vertices, model.triangles)[:, model.triangles[triangle]]
    return F.normalize((barycentric[None, :, :, None] * normals).sum(2), dim=-1)


def sample_skin(
    model: FaceModel, count: int, seed: int, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`count` points spread evenly over the skin of the mean face: triangle [N] int64, barycentric [N, 3].

    counted: [V] bool, vertices of the surface that is sampled instead. Systematic sampling over the
    cumulative area, so the spacing is regular; deterministic by seed.
    """
    skin = (model.skin if counted is None else counted)[model.triangles].all(1).nonzero().squeeze(1)
    corner = model.mean[model.triangles[skin]]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=-1).double()
    generator = torch.Generator().manual_seed(seed)
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    pick = torch.searchsorted(area.cumsum(0) / area.sum(), place.to(area)).clamp_max(len(skin) - 1)
    r = torch.rand(2, count, generator=generator).to(model.mean)
    root = r[0].sqrt()
    barycentric = torch.stack([1 - root, root * (1 - r[1]), root * r[1]], 1)
    return skin[pick], barycentric


# ---- recipes ----


@dataclass(frozen=True)
class PhotometricTerm(EnergyOptions):
    options: PhotometricOptions = PhotometricOptions()


@dataclass(frozen=True)
class PhotometricTraining(PhotometricTerm):
    """A fit estimates the light before a stage; a training does so in every step, or takes another one."""

    light: Literal["estimate", "plain", "predicted"] = "estimate"  # 'plain': white light from everywhere


def _make(context: Context, o: PhotometricTerm) -> CrossViewPhotometric:
    return CrossViewPhotometric.prepare(
        context.model, context.observations, replace(o.options, seed=context.seed)
    )


SPECS = (
    EnergySpec(
        name="photo_xview",
        cls=CrossViewPhotometric,
        make=_make,
        role="image",
        doc=EnergyDoc(
            formula="log I_v(u_v) - log s_v(n) - mean over the views",
            unit="log of linear luminance",
            source="ours, with latent albedo; after `photo_pairs` and Shu et al. eq. 14",
            uses=(use(OURS, "cauchy"),),
            gradient="through both sampling positions; bilinear, so it reaches 1-2 px: use a pyramid; "
            "visibility frozen",
            id="E1",
        ),
        options=PhotometricTerm,
        training=PhotometricTraining,
        needs=parse_needed,
        cross_view=True,
        one_person=True,
        light=lambda options: 0,
    ),
)
