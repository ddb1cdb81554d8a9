"""Photos against the model's own albedo under the state's light (E7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot, all_views
from fitkit.energies.parse_labels import GROW_PX, ParseScheme, label_weights
from fitkit.energies.photometric import (
    PointMask,
    at_level,
    at_pyramid_level,
    pixel_columns,
    pixel_points,
    point_normals,
    pyramid_level,
    sample_skin,
    viewing_cosine,
    visible_points,
)
from fitkit.energies.spec import DFM, OURS, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.errors import InputError
from fitkit.geometry.color import LUMINANCE, linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import triangle_normals
from fitkit.geometry.spherical_harmonics import Y1, Y2, Y20, Y22, sh_basis
from fitkit.io.options import Cosine, Natural, NonNegative, Pixels, Positive, Range, Seed, Share
from fitkit.models.appearance import default_albedo
from fitkit.models.face_model import FaceModel, Points
from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample, sample_with_gradient
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ModelPhotometricOptions:
    level: Annotated[int, Range(0, 8)] = 0  # this, blur, depth_size, mask and seed: see PhotometricOptions
    # surface samples, each counting in every view that sees it; 0 = the surface at every covered pixel, each
    # in its own view, taken anew by each freeze
    points: Annotated[int, Range(0, 10**6)] = 1500
    sigma: Positive = 0.03  # linear intensity (with color 'srgb': code in 0..1)
    blur: Annotated[float, Range(0.0, 100.0)] = 0.7
    # Channels of the first estimate of the light; the state's own may have 1 or 3.
    light: Literal["grey", "rgb"] = "rgb"
    # 'moving': shape changes the shading, 'frozen': only where the points are seen
    normals: Literal["moving", "frozen"] = "moving"
    # the model's mean albedo times one colour of the person; that and a deviation at every point that two
    # views see; the model's albedo basis; 'auto': the basis if the model has one, else 'points'; 'state':
    # what the state says, the mean albedo with its coefficients if it has some, so that it tells the light
    albedo: Literal["auto", "mean", "points", "basis", "state"] = "auto"
    albedo_sigma: Positive = 0.03  # standard deviation of that deviation, linear intensity
    color: Literal["linear", "srgb"] = "linear"  # 'srgb': photos and albedo as codes, as most papers do
    angle: bool = True  # weight by the cosine of the viewing angle
    clipped: Share = 0.0  # trust in pixels with a channel at its largest code, which says only 'at least'
    # weights of a face parse, where one is among the labels, or else predicted by the network
    parse: ParseScheme = "dfmvr"
    # px of a 224-pixel crop by which its features are dilated; DF-MVR: 20, its code: about 5
    grow_px: Annotated[float, Range(0.0, 224.0)] = GROW_PX
    mask: PointMask = "zbuffer"
    # that counts; front: the face with eyes and the inside of the mouth; all: the whole head with them
    region: Literal["skin", "face", "front", "all"] = "skin"
    equal_views: bool = False  # the mean over the views of their means
    min_pixels: Natural = 64  # for that, a view with fewer pixels of a 224-pixel crop is left out
    min_cosine: Cosine = 0.2
    depth_tolerance_mm: NonNegative = 3.5
    depth_size: Pixels = 224
    seed: Seed = 0


# What the paper states, without our weights: codes, every pixel that rendering and photo share, the mean over
# the views of sum d |r| / sum d with the weights d of a face parse (give it to `prepare`; without it d = 1).
# The kernel, given with the Term: 'l2n'. The release turns all shading normals by the right view's rotation;
# here each view has its own.
STRICT: dict[str, ModelPhotometricOptions] = {
    "dfmvr": ModelPhotometricOptions(
        points=0,
        blur=0.0,
        sigma=1.0,
        albedo="basis",
        color="srgb",
        region="all",
        angle=False,
        clipped=1.0,
        equal_views=True,
        min_cosine=-1.0,
    )
}


@dataclass(frozen=True)
class ModelPhotometric:
    """photo_model: (I_v(u_v) - A(p) * (H(n_p) . light_v)) / sigma in RGB at N surface points, [B, N, 3].

    I is the photo, A the albedo, H the spherical harmonics of the normal in the head frame, light_v the
    state's illumination, with 9 x 3 numbers or 9 x 1 (grey). The prediction is linear in albedo and light; it
    may fall below 0 where the harmonics do. Means over the valid points. Visibility, weights and, unless they
    are taken from the state, the albedo are fixed by `freeze`:

    - With an albedo basis A = mean + coefficients . basis. Coefficients in the state carry gradient
      (training); without them `freeze` solves for them by least squares under their Gaussian prior.
    - Without one A is the mean albedo times one RGB factor of the person (least squares), which takes up the
      gauge between light and albedo as well, plus, at points that two views see, a deviation with the
      Gaussian prior `albedo_sigma`, the same in all views. One view cannot tell albedo from shading, so there
      the mean albedo with that factor is all there is.
      Models without a mean albedo take `default_albedo`: one skin colour of luminance 0.31.

    All solves are weighted least squares with the robust weights of a Cauchy kernel. What neither albedo nor
    nine harmonics show (cast shadows, highlights, beards) is left to the Term's kernel.
    Gauss-Newton takes the columns of motion, light and, with `normals` 'moving', of the smooth normals.
    Source: DF-MVR eq. 2 with the light of its release; the closed-form albedo is ours. See STRICT.
    """

    model: FaceModel
    options: ModelPhotometricOptions
    triangle: Tensor  # [N] int64
    barycentric: Tensor  # [N, 3]
    basis: Points
    images: Tensor  # [B, 3, h, w] of the pyramid level, linear or codes
    trust_images: Tensor  # [B, 1, h, w] in [0, 1], 0 outside the usable mask
    albedo: Tensor | None = None  # [S, N, 3], set by freeze; None with coefficients of the state
    normal: Tensor | None = None  # [B, N, 3], set by freeze with normals 'frozen'
    trust: Tensor | None = None  # [B, N], set by freeze
    ring: NormalRing | None = None  # with normals 'moving'

    name = "photo_model"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel,
        observations: Observations,
        options: ModelPhotometricOptions,
        labels: Tensor | None = None,
    ) -> ModelPhotometric:
        """Sample points on the skin of the model and build the pyramid level.

        labels: [B, H, W] int64, a face parse of the crops, index into `masks.PARSE`, instead of that of the
        observations' labels; without any, all pixels weigh the same.

        Raises:
            InputError: albedo 'basis' and a model without one; labels of another size.
        """
        if options.albedo == "basis" and model.albedo_basis is None:
            raise InputError(
                f"energy 'photo_model': face model '{model.name}' has no albedo basis; use albedo: auto"
            )
        mask = observations.mask[:, None]
        colors = observations.images if options.color == "srgb" else linear_from_srgb(observations.images)
        images, inside = pyramid_level(torch.where(mask, colors, 0.2), mask, options.level, options.blur)
        trust = torch.where((images < 0.98).all(1, keepdim=True), inside.to(images), options.clipped * inside)
        if labels is not None:
            if labels.shape != observations.mask.shape:
                raise InputError(
                    f"energy 'photo_model': expected a face parse {list(observations.mask.shape)}, got "
                    f"{list(labels.shape)}"
                )
            observations = replace(observations, labels=Labels(parse=labels))
        if (
            options.parse != "none"
            and observations.labels is not None
            and observations.labels.parse is not None
        ):
            weight = label_weights(
                observations, mask.to(images), options.parse, "photo_model", options.grow_px
            )
            trust = trust * at_pyramid_level(weight, options.level)
        triangle, barycentric = sample_skin(
            model, max(options.points, 1), options.seed, counted_vertices(model, options.region)
        )
        ring = NormalRing.of(model, triangle, barycentric) if options.normals == "moving" else None
        return ModelPhotometric(
            model, options, triangle, barycentric, model.at(triangle, barycentric), images, trust, ring=ring
        )

    # ---- what freeze fixes ----

    def freeze(self, state: SceneState, observations: Observations) -> ModelPhotometric:
        with torch.no_grad():
            vertices = state.vertices(self.model)
            if self.options.points > 0:
                return self._freeze(state, observations, vertices)
            triangle, barycentric, view = pixel_points(
                self.model,
                state,
                vertices,
                self.trust_images[:, 0] > 0,
                self.options.level,
                counted_vertices(self.model, self.options.region),
            )
            if len(view) == 0:  # nothing usable: the sampled points, none of which counts
                none = torch.zeros(
                    state.num_views, len(self.triangle), dtype=torch.bool, device=vertices.device
                )
                return self._freeze(state, observations, vertices, none)
            own = all_views(state)[:, None] == view
            at = replace(
                self,
                triangle=triangle,
                barycentric=barycentric,
                basis=self.model.on_mesh(triangle, barycentric),
                ring=NormalRing.of(self.model, triangle, barycentric) if self.ring is not None else None,
            )
            return at._freeze(state, observations, vertices, own)

    def _freeze(
        self, state: SceneState, observations: Observations, vertices: Tensor, own: Tensor | None = None
    ) -> ModelPhotometric:
        o = self.options
        seen = project_points(self.basis, state)
        normal, cosine = viewing_cosine(
            self.model, self.triangle, self.barycentric, vertices, seen.head, state
        )
        trust, inside = sample(self.trust_images, at_level(seen.pixels, o.level))
        keep = inside & (cosine > o.min_cosine)
        if own is None:
            keep = keep & visible_points(o, self.model, vertices, seen, state, observations.size)
        else:
            keep = keep & own & seen.in_front
        trust = trust[..., 0] * keep * (cosine.clamp_min(0) if o.angle else 1.0)
        trust = trust * (trust > 0.02)
        if o.equal_views:
            unit = (max(self.images.shape[-2:]) / 224) ** 2
            enough = (trust > 0).sum(1, keepdim=True) >= (o.min_pixels * unit if own is not None else 1)
            trust = torch.where(enough, trust / trust.sum(1, keepdim=True).clamp_min(1e-12), 0)
            trust = trust / trust.amax().clamp_min(1e-12)
        frozen = replace(self, trust=trust, normal=normal if o.normals == "frozen" else None, albedo=None)
        if frozen._from_basis and state.albedo is not None:
            return frozen
        if o.albedo == "state":
            mean = frozen._mean_albedo().expand(len(state.identity), -1, -1)
            return replace(frozen, albedo=mean)
        shade = sh_basis(normal) @ state.illumination
        return replace(frozen, albedo=frozen._solver(state, normal).albedo(shade))

    @property
    def _from_basis(self) -> bool:
        return self.options.albedo in ("auto", "basis", "state") and self.model.albedo_basis is not None

    def _at_points(self, values: Tensor) -> Tensor:
        """Vertex values [..., V, 3] -> [..., N, 3]."""
        return (self.barycentric[:, :, None] * values[..., self.model.triangles[self.triangle], :]).sum(-2)

    def _mean_albedo(self) -> Tensor:
        """[N, 3] in the energy's colours."""
        mean = (
            torch.from_numpy(default_albedo(self.model)).to(self.images)
            if self.model.albedo_mean is None
            else self.model.albedo_mean
        )
        return self._at_points(mean if self.options.color == "linear" else srgb_from_linear(mean))

    def _basis_albedo(self, coefficients: Tensor) -> Tensor:
        """Coefficients [S, K_al] -> [S, N, 3] in the energy's colours."""
        values = self.model.albedo_mean + torch.einsum("sk,kvd->svd", coefficients, self.model.albedo_basis)
        return self._at_points(values if self.options.color == "linear" else srgb_from_linear(values))

    def _solver(self, state: SceneState, normal: Tensor) -> AppearanceSolver:
        color, _ = sample(self.images, at_level(project_points(self.basis, state).pixels, self.options.level))
        o = self.options
        basis = None
        if self._from_basis:
            basis = self._at_points(self.model.albedo_basis)
            if o.color == "srgb":  # to first order around the mean
                mean = self._at_points(self.model.albedo_mean)
                basis = basis * (srgb_from_linear(mean + 1e-3) - srgb_from_linear(mean - 1e-3)) / 2e-3
        sigma = 0.0 if o.albedo == "mean" else o.albedo_sigma
        return AppearanceSolver(
            color,
            sh_basis(normal),
            self.trust,
            self._mean_albedo(),
            state.subject,
            len(state.identity),
            o.sigma,
            sigma,
            basis,
        )

    # ---- residuals ----

    def _albedo(self, state: SceneState) -> Tensor:
        """[B, N, 3]."""
        albedo = self.albedo if self.albedo is not None else self._basis_albedo(state.albedo)
        return albedo[state.subject]

    def _normals(self, state: SceneState) -> Tensor:
        return self.normal if self.normal is not None else self.ring.normals(self._patch(state))

    def _patch(self, state: SceneState) -> Tensor:
        """Vertices around the points, [B, M, 3] mm."""
        return self.ring.patch.points(*state.coefficients())

    def _check_frozen(self) -> None:
        if self.trust is None:
            raise InputError("energy 'photo_model': freeze it at a state first, as Objective.freeze does")

    def _compare(self, color: Tensor, shade: Tensor, albedo: Tensor) -> Residuals:
        return Residuals((color - albedo * shade) / self.options.sigma, self.trust > 0, self.trust)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        self._check_frozen()
        color, _ = sample(self.images, at_level(project_points(self.basis, state).pixels, self.options.level))
        return self._compare(color, sh_basis(self._normals(state)) @ state.illumination, self._albedo(state))

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        self._check_frozen()
        o = self.options
        seen = project_points(self.basis, state, derivatives=True)
        color, by_pixel, _ = sample_with_gradient(self.images, at_level(seen.pixels, o.level))
        normal, albedo, light = self._normals(state), self._albedo(state), state.illumination
        harmonics = sh_basis(normal)
        columns = pixel_columns(by_pixel / (2**o.level * o.sigma), seen, self.basis, state)
        by_shade = -albedo / o.sigma  # [B, N, 3]
        C = light.shape[-1]
        channel = torch.eye(3).to(light) if C == 3 else light.new_ones(3, 1)
        columns["illumination"] = (
            by_shade[..., None, None] * harmonics[:, :, None, :, None] * channel[:, None]
        ).flatten(-2)
        if self.normal is None:
            by_normal = torch.einsum("bnkd,bkc->bncd", sh_gradient(normal), light)
            for name, by_shape in self.ring.by_coefficients(by_normal, state).items():
                columns[name] = columns[name] + by_shade[..., None] * by_shape
        return Linearization(
            self._compare(color, harmonics @ light, albedo), (Slot(all_views(state), columns),)
        )

    def estimate_light(self, state: SceneState, rounds: int = 4) -> Tensor:
        """Illumination [B, 9, C] that explains the frozen points with one albedo for all views of a person.

        Alternates least squares for each view's light, given the albedo, with the albedo, given the lights.
        The scale that light and albedo share is fixed by the albedo: its mean luminance is the model's; with
        three channels the views' mean light is white, so that the colour is the skin's.
        """
        self._check_frozen()
        normal = point_normals(self.model, self.triangle, self.barycentric, state.vertices(self.model))
        return self._solver(state, normal).light(3 if self.options.light == "rgb" else 1, rounds)[0]


# Words in the names of regions that lie in the openings of the face.
OPENINGS = ("eye", "sclera", "iris", "mouth", "teeth", "tongue", "gum")


def counted_vertices(model: FaceModel, region: str) -> Tensor:
    """Vertices [V] bool of a region of ModelPhotometricOptions."""
    if region == "all":
        return torch.ones_like(model.skin)
    if region == "front":
        named = [any(word in name.lower() for word in OPENINGS) for name in model.region_names]
        return model.face | torch.tensor(named, device=model.device)[model.region]
    return getattr(model, region)


@dataclass(frozen=True)
class AppearanceSolver:
    """Closed forms for light and albedo at N points of S people in B views; everything constant.

    color: [B, N, 3]; harmonics: [B, N, 9]; trust: [B, N]; mean: [N, 3] albedo; subject: [B]; people: S;
    sigma: of the colours; albedo_sigma: of a point's deviation from the mean albedo, 0 = none; basis: [K_al,
    N, 3] of the albedo, or None.
    """

    color: Tensor
    harmonics: Tensor
    trust: Tensor
    mean: Tensor
    subject: Tensor
    people: int
    sigma: float
    albedo_sigma: float
    basis: Tensor | None = None

    def _sum(self, values: Tensor) -> Tensor:
        """[B, ...] -> [S, ...], the sum over each person's views."""
        return values.new_zeros(self.people, *values.shape[1:]).index_add(0, self.subject, values)

    def _robust(self, shade: Tensor, albedo: Tensor) -> Tensor:
        """Trust [B, N] times the weights of a Cauchy kernel of 3 sigma."""
        r = (self.color - albedo[self.subject] * shade) / self.sigma
        return self.trust / (1 + r.square().sum(-1) / 27)

    def albedo(self, shade: Tensor, rounds: int = 3) -> Tensor:
        """Albedo [S, N, 3] under the shading [B, N, C]."""
        shade = shade.expand(-1, -1, 3)
        if self.basis is not None:
            return self._in_basis(shade, rounds)
        albedo, weight = self.mean.expand(self.people, -1, -1), self.trust
        for _ in range(rounds):
            tone = self._tone(shade, weight)
            albedo = tone[:, None] * self.mean
            weight = self._robust(shade, albedo)
        if self.albedo_sigma == 0:
            return albedo
        shared = self._sum((self.trust > 0).to(shade)) >= 2
        pull = (self.sigma / self.albedo_sigma) ** 2
        for _ in range(2):
            step = self._sum(weight[..., None] * shade * (self.color - albedo[self.subject] * shade))
            curve = self._sum(weight[..., None] * shade.square()) + pull
            # Newton's step of a quadratic with the prior's centre at the mean, so it lands on the minimum at
            # once.
            albedo = albedo + torch.where(
                shared[..., None], (step - pull * (albedo - tone[:, None] * self.mean)) / curve, 0
            )
            weight = self._robust(shade, albedo)
        return albedo.clamp_min(0.25 * (tone[:, None] * self.mean).clamp_min(0))

    def _tone(self, shade: Tensor, weight: Tensor) -> Tensor:
        """Factor [S, 3] of the mean albedo."""
        predicted = self.mean * shade
        top = self._sum((weight[..., None] * self.color * predicted).sum(1))
        bottom = self._sum((weight[..., None] * predicted.square()).sum(1))
        tiny = 1e-9 * self._sum(self.trust.sum(1))[:, None] + 1e-12
        return torch.where(
            bottom > tiny, (top / bottom.clamp_min(1e-12)).clamp(0.02, 50), torch.ones_like(top)
        )

    def _in_basis(self, shade: Tensor, rounds: int) -> Tensor:
        albedo, K = self.mean.expand(self.people, -1, -1), len(self.basis)
        weight = self.trust
        flat = self.basis.reshape(K, -1)
        for _ in range(rounds):
            total = self._sum(weight.sum(1))
            # As many independent measurements as one view has in a 'mean' energy: neighbours see the same
            # blotch.
            scale = EVIDENCE / self.sigma**2 / total.clamp_min(1e-12)
            curve = self._sum(weight[..., None] * shade.square()).flatten(1) * scale[:, None]
            pull = (
                self._sum(weight[..., None] * shade * (self.color - self.mean * shade)).flatten(1)
                * scale[:, None]
            )
            system = torch.einsum("kn,sn,jn->skj", flat, curve, flat) + torch.eye(K).to(flat)
            coefficients = torch.linalg.solve(system, pull @ flat.T)
            albedo = self.mean + (coefficients @ flat).reshape(self.people, -1, 3)
            weight = self._robust(shade, albedo)
        return albedo

    def light(self, channels: int, rounds: int) -> tuple[Tensor, Tensor]:
        """Light [B, 9, channels] and albedo [S, N, 3]; gauge: see `ModelPhotometric.estimate_light`."""
        albedo, weight = self.mean.expand(self.people, -1, -1), self.trust
        luminance = self.color.new_tensor(LUMINANCE)
        for _ in range(rounds):
            light = self._light(albedo, weight, channels)
            if channels == 3:
                light = light / self._tint(light)[self.subject][:, None]
            shade = self.harmonics @ light
            albedo = self.albedo(shade)
            if self.basis is None:
                seen = self._sum(self.trust)
                scale = (seen * (albedo @ luminance)).sum(1) / (seen * (self.mean @ luminance)).sum(
                    1
                ).clamp_min(1e-12)
                scale = torch.where(scale > 0, scale, torch.ones_like(scale))
                albedo, light = albedo / scale[:, None, None], light * scale[self.subject][:, None, None]
                shade = self.harmonics @ light
            weight = self._robust(shade.expand(-1, -1, 3), albedo)
        return light, albedo

    def _tint(self, light: Tensor) -> Tensor:
        """Colour [S, 3] of each person's mean light, of luminance 1."""
        mean = self._sum(light[:, 0]).clamp_min(1e-6)
        return mean / (mean @ mean.new_tensor(LUMINANCE))[:, None]

    def _light(self, albedo: Tensor, weight: Tensor, channels: int) -> Tensor:
        """Least squares of each view's light under the albedo [S, N, 3], [B, 9, channels]."""
        return least_squares_light(self.harmonics, albedo[self.subject], self.color, weight, channels)


def least_squares_light(
    harmonics: Tensor,
    albedo: Tensor,
    color: Tensor,
    weight: Tensor,
    channels: int,
    solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve,
) -> Tensor:
    """Light [B, 9, channels] that explains colours best, by weighted least squares with a small ridge.

    harmonics: [B, N, 9] at N points; albedo, color: [B, N, 3], linear; weight: [B, N] >= 0; channels: 1 for a
    grey light, or 3; solve: of symmetric positive matrices [..., 9, 9] and vectors [..., 9] or columns
    [..., 9, 1], in the place of torch's.
    """
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-9)
    outer = (harmonics[..., :, None] * harmonics[..., None, :]).flatten(2)
    normal = ((weight[..., None] * albedo.square()).transpose(1, 2) @ outer).unflatten(-1, (9, 9))
    right = torch.einsum("bn,bnc,bni->bci", weight, albedo * color, harmonics)
    size = torch.einsum("bn,bnc->bc", weight, albedo.square())
    # The points of one view hardly tell the second band from the others; the ridge is relative to the albedo.
    ridge = 1e-3 * torch.diag(albedo.new_tensor([0.1, 1, 1, 1, 4, 4, 4, 4, 4]))
    one = normal.sum(1) + ridge * size.sum(1).clamp_min(1e-9)[:, None, None]
    grey = solve(one, right.sum(1))[:, None]  # [B, 1, 9]
    if channels == 1:
        return grey.transpose(1, 2)
    # Each channel starts from the common light in its own strength: most lights have one colour from all
    # sides.
    along = (grey[:, :, None] @ normal)[:, :, 0]
    strength = (grey * right).sum(-1) / (along * grey).sum(-1).clamp_min(1e-12)
    ridge = TINT * ridge * size.clamp_min(1e-9)[..., None, None]
    center = strength[..., None] * grey
    return solve(normal + ridge, right + (ridge @ center[..., None])[..., 0]).transpose(1, 2)


TINT = 4.0  # how much stiffer the colour of a light is over the directions than its brightness
EVIDENCE = 200.0  # independent colours in one person's photos, for the closed-form albedo coefficients


def sh_gradient(normals: Tensor) -> Tensor:
    """Derivative of `sh_basis` by its vectors: [..., 3] -> [..., 9, 3]."""
    x, y, z = normals.unbind(-1)
    o, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [
        (o, o, o),
        (o, Y1 * one, o),
        (o, o, Y1 * one),
        (Y1 * one, o, o),
        (Y2 * y, Y2 * x, o),
        (o, Y2 * z, Y2 * y),
        (o, o, 6 * Y20 * z),
        (Y2 * z, o, Y2 * x),
        (2 * Y22 * x, -2 * Y22 * y, o),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


@dataclass(frozen=True, eq=False)
class NormalRing:
    """Derivatives of the smooth normals of N surface points by the coefficients that move the mesh.

    A normal is the unit mean of three vertex normals, each the unit sum of the cross products of the
    triangles around its vertex; so it depends on the one-rings of the three corners. Derivatives are carried
    back to the vertices of these rings and from there to the coefficients by one sparse product.

    patch: the model at the vertices of all rings; triangles: [F, 3] int64 of the patch, all that touch a
    corner; corners: [N, 3] int64, vertices of the patch; barycentric: [N, 3];
    point, corner, face: [E] int64, each triangle around each corner of each point; pair: [3 E] int64, where
    the (point, vertex) pair of each of its corners stands among the M different ones; pair_point,
    pair_vertex: [M] int64, sorted.
    """

    patch: Points
    triangles: Tensor
    corners: Tensor
    barycentric: Tensor
    point: Tensor
    corner: Tensor
    face: Tensor
    pair: Tensor
    pair_point: Tensor
    pair_vertex: Tensor

    @staticmethod
    def of(model: FaceModel, triangle: Tensor, barycentric: Tensor) -> NormalRing:
        around = torch.zeros(model.num_vertices, dtype=torch.bool, device=triangle.device)
        around[model.triangles[triangle]] = True
        touching = model.triangles[around[model.triangles].any(1)]
        vertices, triangles = touching.unique(return_inverse=True)
        patch, V = model.at_vertices(vertices), len(vertices)
        corners = torch.searchsorted(vertices, model.triangles[triangle])
        owner = triangles.reshape(-1)
        faces = owner.argsort(stable=True) // 3  # by vertex
        count = torch.bincount(owner, minlength=V)
        start = count.cumsum(0) - count
        vertex = corners.reshape(-1)  # [3 N]
        number = count[vertex]
        slot = torch.repeat_interleave(torch.arange(len(vertex), device=vertex.device), number)
        within = torch.arange(len(slot), device=vertex.device) - (number.cumsum(0) - number)[slot]
        face = faces[start[vertex[slot]] + within]
        key, pair = ((slot // 3)[:, None] * V + triangles[face]).reshape(-1).unique(return_inverse=True)
        return NormalRing(
            patch, triangles, corners, barycentric, slot // 3, slot % 3, face, pair, key // V, key % V
        )

    def _sums(self, vertices: Tensor) -> Tensor:
        """Sums of the cross products around the corners, [B, N, 3 corners, 3]."""
        cross = triangle_normals(vertices, self.triangles, unit=False)
        total = torch.zeros_like(vertices)
        for k in range(3):
            total = total.index_add(1, self.triangles[:, k], cross)
        return total[:, self.corners]

    def normals(self, vertices: Tensor) -> Tensor:
        """Unit normals [B, N, 3] for the vertices of the patch [B, M, 3]; the same as `point_normals` of the
        whole mesh."""
        return F.normalize(
            (self.barycentric[..., None] * F.normalize(self._sums(vertices), dim=-1, eps=1e-30)).sum(2),
            dim=-1,
        )

    def by_coefficients(self, by_normal: Tensor, state: SceneState) -> dict[str, Tensor]:
        """d value / d normal [B, N, C, 3] -> d value / d coefficients of the face model [B, N, C, K], see
        `Motion.columns`."""
        B, N, C, _ = by_normal.shape
        vertices = self.patch.points(*state.coefficients())
        motion = self.patch.motion(*state.coefficients())
        corners = self._sums(vertices)
        length = corners.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        unit = corners / length
        mean = (self.barycentric[..., None] * unit).sum(2)
        size = mean.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        normal = (mean / size)[:, :, None]
        by_mean = (by_normal - (by_normal * normal).sum(-1, keepdim=True) * normal) / size[..., None]
        unit, length = unit[:, :, None], length[:, :, None]  # [B, N, 1, 3 corners, 3]
        by_sum = by_mean[..., None, :] - (by_mean[..., None, :] * unit).sum(-1, keepdim=True) * unit
        by_sum = by_sum * (self.barycentric[:, None, :, None] / length)  # [B, N, C, 3 corners, 3]
        out = []
        for b in range(B):
            a, p, c = (vertices[b, self.triangles[self.face, k]] for k in range(3))
            # The sum of the cross products moves by (this) x (its corner's move).
            opposite = torch.stack([c - p, a - c, p - a], 1)
            for k in range(C):
                pull = torch.linalg.cross(
                    by_sum[b, self.point, k, self.corner][:, None].expand_as(opposite), opposite
                )
                values = pull.new_zeros(len(self.pair_point), 3).index_add(0, self.pair, pull.reshape(-1, 3))
                out.append(motion.sums(values, self.pair_point, self.pair_vertex, N, b))
        return {
            name: torch.stack([one[name] for one in out]).reshape(B, C, N, -1).transpose(1, 2)
            for name in out[0]
        }


# ---- recipes ----


@dataclass(frozen=True)
class ModelPhotometricTerm(EnergyOptions):
    options: ModelPhotometricOptions = ModelPhotometricOptions()


@dataclass(frozen=True)
class ModelPhotometricTraining(ModelPhotometricTerm):
    """A fit estimates the light before a stage; a training does so in every step, or takes another one."""

    light: Literal["estimate", "plain", "predicted"] = "estimate"  # 'plain': white light from everywhere


def _make(context: Context, o: ModelPhotometricTerm) -> ModelPhotometric:
    seen = context.observations
    known = seen.labels is not None and seen.labels.parse is not None
    return ModelPhotometric.prepare(
        context.model,
        seen,
        replace(o.options, seed=context.seed),
        None if known else _predicted_parse(context),
    )


def _predicted_parse(context: Context) -> Tensor | None:
    """What the network that is trained says of the parts, [B, H, W] int64; None: it says nothing."""
    parse = getattr(context.prediction, "parse", None)
    return None if parse is None else parse.detach().argmax(1)


def _apart(observations: Observations, o: ModelPhotometricTerm) -> int | None:
    """With a point for each pixel, the points of one person are no business of others."""
    return id(observations) if o.options.points == 0 else None


SPECS = (
    EnergySpec(
        name="photo_model",
        cls=ModelPhotometric,
        make=_make,
        role="image",
        doc=EnergyDoc(
            formula="I_v(u_v) - A(p) (H(n_p) . light_v)",
            unit="linear intensity",
            source="DF-MVR eq. 2",
            uses=(use(DFM, "l2n", "4; 254, 128, 32 on features, skin, background"), use(OURS, "l2n cauchy")),
            gradient="to shape, pose, light, albedo coefficients; visibility frozen",
            id="E7",
            variants=tuple(STRICT),
        ),
        options=ModelPhotometricTerm,
        training=ModelPhotometricTraining,
        optional=("parse",),
        apart=_apart,
        light=lambda options: 3 if options.options.light == "rgb" else 1,
    ),
)
