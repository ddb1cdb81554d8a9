"""Soft census between views at surface points (E3), its image form for training, and the hard census as a
metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot, all_views
from fitkit.energies.kernels import Kernel
from fitkit.energies.masks import weight_features
from fitkit.energies.pair_masks import half_faces, halving_points
from fitkit.energies.parse_labels import ParseScheme, label_weights, parse_needed
from fitkit.energies.photometric import sample_skin, viewing_cosine
from fitkit.energies.spec import OURS, PGN, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.energies.view_pairs import neighbor_views
from fitkit.errors import InputError
from fitkit.geometry.color import luma
from fitkit.geometry.rotation import skew
from fitkit.io.options import Cosine, Length, NonNegative, Pixels, Positive, Range, Seed, check_options
from fitkit.models.face_model import FaceModel, Motion, Points
from fitkit.observe.observations import Observations, halve
from fitkit.observe.sampling import blur_radius, erode, gaussian_blur, sample, sample_with_gradient
from fitkit.render.visibility import depth_maps, seen_by_depth
from fitkit.scene.projection import project_head_points
from fitkit.scene.state import SceneState

CAMERA = ("focal", "aspect", "principal")  # what moves all points of a view, beside the pose
SOFTNESS = 0.1  # of the step h = s / (0.1 + s) per neighbour


@dataclass(frozen=True)
class CensusOptions:
    level: Annotated[int, Range(0, 8)] = 0  # pyramid level: 0 = full crop, each level halves it
    points: Annotated[int, Range(1, 10**6)] = 400  # surface samples
    window: Annotated[int, Range(3, 101)] = 7  # side of the patch in places, odd
    # every how many places one is compared with the centre: of window 7, stride 1 compares 48, stride 3
    # compares 8
    stride: Annotated[int, Range(1, 50)] = 3
    spacing_mm: Positive = 0.7  # between neighbouring places on the mean face
    # softness of the ternary step in grey levels (0 to 255), one for each refresh of a stage, the last one
    # for all beyond
    sigmas: Annotated[tuple[Positive, ...], Length(1)] = (8.0, 3.0, 0.9)
    noise: Positive = 0.2  # standard deviation of a descriptor difference, in [0, 2]
    blur: Annotated[float, Range(0.0, 100.0)] = 1.0  # Gaussian standard deviation in pixels of the level
    # each view is paired with this many next views of the same person in the order of their yaw
    neighbors: Annotated[int, Range(1, 1000)] = 1
    min_cosine: Cosine = 0.25  # of the viewing angles
    depth_tolerance_mm: NonNegative = 3.5  # what lies further behind the z-buffer is hidden
    depth_size: Pixels = 224  # side of the z-buffer
    # Which points two views share: those that nothing hides, all that face both ('normal'), or of these the
    # half of the face that both see, see `pair_mask`.
    mask: Literal["zbuffer", "normal", "landmarks", "box"] = "zbuffer"
    parse: ParseScheme = "none"  # weights by the labelled face parse, see `weight_parse`
    # weight of the model's eyes, nose and mouth over that of the rest, see `weight_features`; PGN: 5
    features: Positive = 1.0
    seed: Seed = 0

    def __post_init__(self):
        check_options(self, "census_xview")
        if self.window % 2 == 0 or self.window // 2 < self.stride:
            raise InputError(
                "census_xview: expected an odd window and a stride up to window // 2, got window "
                f"{self.window} and stride {self.stride}"
            )


@dataclass(frozen=True)
class CensusVariant:
    """How census distances become one number: rho(H) summed with the weights, over the normalizer.

    sigma: grey levels; kernel: 'none' is rho(H) = H; normalizer: 'weights' (their sum), 'twice' (twice their
    sum), 'all' (the number of pixels, counted or not); mean: H is divided by the number of neighbours.
    """

    sigma: float = 0.9
    kernel: Literal["none", "charb", "ddf"] = "none"
    normalizer: Literal["weights", "twice", "all"] = "weights"
    mean: bool = False


VARIANTS = {
    "default": CensusVariant(sigma=3.0, mean=True),
    "pgn": CensusVariant(),  # PGN eq. 9 as printed
    "unflow": CensusVariant(
        kernel="charb", normalizer="all"
    ),  # public code of UnFlow (Meister et al., AAAI 2018)
    "ddflow": CensusVariant(
        kernel="ddf", normalizer="twice"
    ),  # public code of DDFlow (Liu et al., AAAI 2019)
}
_OUTER = {"charb": Kernel("charb", 1e-3), "ddf": Kernel("ddf", 1e-2)}


def census_variant(name: str | CensusVariant) -> CensusVariant:
    """A variant by its name.

    Raises:
        InputError: no such variant.
    """
    if isinstance(name, CensusVariant):
        return name
    if name not in VARIANTS:
        raise InputError(f"census variant: expected one of {', '.join(VARIANTS)}; got '{name}'")
    return VARIANTS[name]


# ---- descriptors ----


def ternary(difference: Tensor, sigma: float) -> Tensor:
    """Soft ternary step t = d / sqrt(sigma^2 + d^2) of grey differences d, in (-1, 1)."""
    return difference / (difference * difference + sigma * sigma).sqrt()


def census_distance(one: Tensor, two: Tensor, dim: int = -1) -> Tensor:
    """H = sum over the neighbours (dimension `dim`) of s / (0.1 + s), s = (t1 - t2)^2; below 0.976 for each
    neighbour."""
    s = (one - two).square()
    return (s / (SOFTNESS + s)).sum(dim)


def reduce_distance(distance: Tensor, weight: Tensor, neighbors: int, variant: CensusVariant) -> Tensor:
    """One number for each group: distance H [G, M], weight [G, M] (constant) -> [G]. See CensusVariant."""
    H = distance / neighbors if variant.mean else distance
    rho = H if variant.kernel == "none" else _OUTER[variant.kernel].published(H * H)
    weight = weight.detach()
    rho = torch.where(weight > 0, rho, torch.zeros_like(rho))
    total = weight.sum(-1)
    if variant.normalizer == "all":
        total = torch.full_like(total, weight.shape[-1])
    return (weight * rho).sum(-1) / ((2 * total if variant.normalizer == "twice" else total) + 1e-6)


def offsets(window: int, stride: int) -> Tensor:
    """Places [P, 2] (x, y) of the neighbours around the centre, which is left out."""
    half = window // 2
    steps = torch.cat([-torch.arange(stride, half + 1, stride).flip(0), torch.arange(0, half + 1, stride)])
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    both = torch.stack([x.flatten(), y.flatten()], -1)
    return both[(both != 0).any(-1)].double()


# ---- whole images: training, and the metric ----


def grey_levels(images: Tensor) -> Tensor:
    """sRGB images [B, 3, H, W] in [0, 1] -> grey [B, 1, H, W] in [0, 255]."""
    return 255 * luma(images)


def neighbor_differences(grey: Tensor, window: int = 7) -> Tensor:
    """d_o(u) = g(u + o) - g(u): grey [B, 1, H, W] -> [B, window^2 - 1, H, W]; beyond the border the edge
    continues."""
    half = window // 2
    padded = F.pad(grey, (half,) * 4, mode="replicate")
    H, W = grey.shape[-2:]
    places = (offsets(window, 1) + half).long().tolist()
    return torch.cat([padded[:, :, y : y + H, x : x + W] for x, y in places], 1) - grey


def census_loss(
    one: Tensor,
    two: Tensor,
    mask: Tensor,
    variant: str | CensusVariant = "default",
    weight: Tensor | None = None,
    window: int = 7,
) -> Tensor:
    """Soft census distance of two aligned pictures, one number for each of B pairs; differentiable in both
    pictures.

    Args:
        one, two: [B, 3, H, W] sRGB in [0, 1], such as a photo and a rendering from another view. Where they
            differ in sharpness, blur both alike beforehand.
        mask: [B, 1, H, W] in [0, 1], constant; it is eroded by the window, which also leaves out the border
            of the picture.
        variant: see VARIANTS; weight: [B, 1, H, W] multiplied to the mask, such as `weight_parse`.
    Returns:
        [B]; 0 with zero gradient where the mask is empty.
    Source:
        PGN eq. 9 with the soft census of UnFlow and DDFlow: `energies.md` E3.
    """
    variant = census_variant(variant)
    with torch.no_grad():
        half = window // 2
        # Beyond the picture nothing counts.
        inside = erode(F.pad(mask.to(one), (half,) * 4), half)[..., half:-half, half:-half]
        inside = inside if weight is None else inside * weight
    # What the mask hides may hold anything, NaN too: it is replaced before it meets the window.
    keep = mask > 0
    grey = [
        torch.where(keep, grey_levels(torch.where(keep, x, torch.full_like(x, 0.5))), 127.5)
        for x in (one, two)
    ]
    t = [ternary(neighbor_differences(g, window), variant.sigma) for g in grey]
    return reduce_distance(
        census_distance(t[0], t[1], 1).flatten(1), inside.flatten(1), window * window - 1, variant
    )


def hard_census_distance(one: Tensor, two: Tensor, window: int = 7, dead_zone: float = 2.0) -> Tensor:
    """Share of neighbours whose hard ternary census (-1, 0, 1; 0 within `dead_zone` grey levels) differs, [B,
    1, H, W].

    A metric: its gradient is zero almost everywhere. one, two: [B, 3, H, W] sRGB in [0, 1].
    """
    codes = []
    for images in (one, two):
        d = neighbor_differences(grey_levels(images), window)
        codes.append(torch.where(d.abs() <= dead_zone, torch.zeros_like(d), d.sign()))
    return (codes[0] != codes[1]).to(one).mean(1, keepdim=True)


# ---- surface points ----


@dataclass(frozen=True)
class _Patches:
    """Descriptors and what they depend on. t: [B, N, P]; in_front: [B, N] bool; by_motion: [B, N, P, 3] per
    mm that the whole patch moves in the head frame; by_turn: [B, N, P, 3] per radian of the head's rotation;
    by_camera: [B, N, P, 4] per log focal length, per log aspect and per focal length that the principal point
    is shifted.
    Derivatives are None unless asked for."""

    t: Tensor
    in_front: Tensor
    by_motion: Tensor | None = None
    by_turn: Tensor | None = None
    by_camera: Tensor | None = None


@dataclass(frozen=True)
class CrossViewCensus:
    """census_xview: q_o (t_o^a - t_o^b) / (noise sqrt(P)) at N surface points for P neighbours, [G, N, P], G
    pairs of views.

    t_o = d_o / sqrt(sigma^2 + d_o^2), d_o = grey at the o-th place of a patch around the point minus grey at
    the point.
    The patch lies on the surface: its places are carried along by the triangle of the point and laid into the
    tangent plane of the view, so that both views compare the same skin and foreshortening is undone. An
    additive change of brightness between the views changes nothing, a gain little. q_o^2 = (0.1 / (0.1 +
    s_o))^2 with s_o = (t_o^a - t_o^b)^2 is the weight that iterative re-weighting gives the published
    distance sum s / (0.1 + s). Means over the valid points. Visibility, patches and q are fixed by `freeze`;
    each freeze takes the next of `sigmas`.
    Source: PGN eq. 9 with the soft ternary census of UnFlow and DDFlow, between photos at surface points
    instead of between a photo and a rendering at pixels. `scalar` is the published distance.
    """

    model: FaceModel
    options: CensusOptions
    triangle: Tensor  # [N] int64
    barycentric: Tensor  # [N, 3]
    basis: Points
    by_edges: Tensor  # [N, P, 2] place of each neighbour in the two edges of its triangle
    images: Tensor  # [B, 1, h, w] grey levels of the pyramid level, blurred
    usable: Tensor  # [B, 1, h, w] 1 where a sample is not touched by what the mask hides
    weights: Tensor | None = None  # [B, 1, h, w] of a face parse
    round: int = -1  # which of the sigmas, set by freeze
    patch: Tensor | None = None  # [B, N, P, 3] mm, head frame, from the point; set by freeze
    view_a: Tensor | None = None  # [G] int64, set by freeze
    view_b: Tensor | None = None
    trust: Tensor | None = None  # [G, N], set by freeze
    root: Tensor | None = None  # [G, N, P] q, set by freeze

    name = "census_xview"
    reduction = "mean"

    @staticmethod
    def prepare(model: FaceModel, observations: Observations, options: CensusOptions) -> CrossViewCensus:
        """Sample points on the skin of the model, lay patches around them, build the pyramid level."""
        triangle, barycentric = sample_skin(model, options.points, options.seed)
        a, b, c = model.mean[model.triangles[triangle]].unbind(1)
        edge, other = b - a, c - a
        normal = F.normalize(torch.linalg.cross(edge, other), dim=-1)
        up = normal.new_tensor([0.0, 1.0, 0.0]).expand_as(normal)
        along = torch.linalg.cross(up, normal)
        along = torch.where(
            along.norm(dim=-1, keepdim=True) > 1e-3,
            along,
            normal.new_tensor([1.0, 0.0, 0.0]).expand_as(normal),
        )
        along = F.normalize(along, dim=-1)
        across = torch.linalg.cross(normal, along)
        places = offsets(options.window, options.stride).to(model.mean) * options.spacing_mm
        patch = places[None, :, :1] * along[:, None] + places[None, :, 1:] * across[:, None]  # [N, P, 3]
        # In the (not orthogonal) edges: solve patch = u edge + v other in the plane of the triangle.
        edges = torch.stack([edge, other], -1)  # [N, 3, 2]
        gram = edges.transpose(1, 2) @ edges
        by_edges = torch.linalg.solve(gram, edges.transpose(1, 2) @ patch.transpose(1, 2)).transpose(1, 2)

        grey = grey_levels(observations.images)
        mask = observations.mask[:, None]
        grey = torch.where(mask, grey, 127.5)  # whatever lies beyond the mask has no influence
        mask = mask.to(grey)
        for _ in range(options.level):
            grey, mask = halve(grey), halve(mask)
        usable = (erode(mask, blur_radius(options.blur) + 1) > 0.999).to(grey)
        return CrossViewCensus(
            model,
            options,
            triangle,
            barycentric,
            model.at(triangle, barycentric),
            by_edges,
            gaussian_blur(grey, options.blur),
            usable,
            None
            if options.parse == "none"
            else label_weights(observations, mask, options.parse, "census_xview"),
        )

    def at_share(self, done: float) -> CrossViewCensus:
        """With the sigma of that share of a stage, 0..1, for solvers and trainings that freeze anew in every
        step."""
        last = len(self.options.sigmas) - 1
        return replace(self, round=min(int(done * (last + 1)), last) - 1)

    @property
    def sigma(self) -> float:
        """Grey levels; of the last freeze."""
        return self.options.sigmas[min(max(self.round, 0), len(self.options.sigmas) - 1)]

    @property
    def neighbors(self) -> int:
        """P, the places that are compared with the centre."""
        return self.by_edges.shape[1]

    def _to_level(self, pixels: Tensor) -> Tensor:
        return (pixels + 0.5) / 2**self.options.level - 0.5

    def freeze(self, state: SceneState, observations: Observations) -> CrossViewCensus:
        options = self.options
        pairs = neighbor_views(state, options.neighbors, observations.moment)
        if not pairs:
            raise InputError(
                "energy 'census_xview' compares views of one person: expected at least 2 and neighbors >= "
                f"1, got {state.num_views} view(s) and neighbors {options.neighbors}; give its stage "
                "min_views: 2"
            )
        view_a, view_b = (state.subject.new_tensor([n[i] for n in pairs]) for i in (0, 1))
        vertices = state.vertices(self.model)
        corners = vertices[:, self.model.triangles[self.triangle]]  # [B, N, 3, 3]
        head = (self.barycentric[None, :, :, None] * corners).sum(2)
        normal, cosine = viewing_cosine(self.model, self.triangle, self.barycentric, vertices, head, state)
        # [B, N, 2, 3]
        edges = torch.stack([corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]], -2)
        patch = self.by_edges @ edges
        patch = patch - (patch @ normal[..., None]) * normal[:, :, None]

        B, N = head.shape[:2]
        places = torch.cat([head[:, :, None], head[:, :, None] + patch], 2)
        seen = project_head_points(places.flatten(1, 2), state, all_views(state))
        usable, inside = sample(self.usable, self._to_level(seen.pixels))
        good = inside & seen.in_front & (usable[..., 0] > 0.999)
        if options.mask == "zbuffer":
            reduction = max(observations.size) / options.depth_size
            maps = depth_maps(vertices, self.model.triangles, state, observations.size, reduction)
            depth = seen.camera[..., 2]
            good = good & seen_by_depth(seen.pixels, depth, maps, reduction, options.depth_tolerance_mm)
        good = good.reshape(B, N, -1).all(-1) & (cosine > options.min_cosine)
        trust = torch.where(good, cosine, torch.zeros_like(cosine))
        if options.features != 1:
            trust = trust * weight_features(self.model, options.features)[self.triangle].to(trust)
        pixels = seen.pixels.reshape(B, N, -1, 2)[:, :, 0]
        if self.weights is not None:
            trust = trust * sample(self.weights, self._to_level(pixels))[0][..., 0]
        trust = torch.minimum(trust[view_a], trust[view_b])
        if options.mask in ("landmarks", "box"):
            trust = trust * self._half(state, observations, view_a, view_b, pixels)

        frozen = replace(
            self,
            round=self.round + 1,
            patch=patch.detach(),
            view_a=view_a,
            view_b=view_b,
            trust=trust.detach(),
        )
        t = frozen._patches(state).t
        s = (t[view_a] - t[view_b]).square()
        return replace(frozen, root=(SOFTNESS / (SOFTNESS + s)).detach())

    def _half(
        self, state: SceneState, observations: Observations, view_a: Tensor, view_b: Tensor, pixels: Tensor
    ) -> Tensor:
        """Whether points at pixels [B, N, 2] lie in the half of the face that both views of a pair see, in
        both of them, [G, N] bool."""
        pairs = list(zip(view_a.tolist(), view_b.tolist()))
        everywhere = torch.ones(len(pairs), *observations.size, dtype=torch.bool, device=pixels.device)
        marks = halving_points(self.model, state)
        keep = []
        for views in (view_a, view_b):
            half = half_faces(self.options.mask, marks, state, pairs, views.tolist(), everywhere)
            keep.append(sample(half[:, None].to(pixels), pixels[views])[0][..., 0] > 0.5)
        return keep[0] & keep[1]

    def _patches(self, state: SceneState, derivatives: bool = False, sigma: float | None = None) -> _Patches:
        sigma = self.sigma if sigma is None else sigma
        center = self.basis.points(*state.coefficients())
        B, N = center.shape[:2]
        head = torch.cat([center[:, :, None], center[:, :, None] + self.patch], 2)
        seen = project_head_points(head.flatten(1, 2), state, all_views(state), derivatives)
        pixels = self._to_level(seen.pixels)
        in_front = seen.in_front.reshape(B, N, -1).all(-1)
        if not derivatives:
            grey = sample(self.images, pixels)[0].reshape(B, N, -1)
            return _Patches(ternary(grey[..., 1:] - grey[..., :1], sigma), in_front)
        grey, by_pixel, _ = sample_with_gradient(self.images, pixels)
        grey = grey.reshape(B, N, -1)
        d = grey[..., 1:] - grey[..., :1]
        slope = sigma * sigma / (d * d + sigma * sigma) ** 1.5
        by_pixel = by_pixel[..., 0, :] / 2**self.options.level  # [B, N (P + 1), 2]
        by_head = (by_pixel[..., None, :] @ seen.by_head).squeeze(-2)
        by_turn = (by_head[..., None, :] @ -skew(seen.head)).squeeze(-2)
        camera = torch.cat([seen.by_camera[name] for name in CAMERA], -1)
        by_camera = (by_pixel[..., None, :] @ camera).squeeze(-2)
        both = torch.cat([by_head, by_turn, by_camera], -1).reshape(B, N, -1, 10)
        both = slope[..., None] * (both[:, :, 1:] - both[:, :, :1])
        return _Patches(ternary(d, sigma), in_front, *both.split((3, 3, 4), -1))

    def _scale(self) -> float:
        return 1.0 / (self.options.noise * self.neighbors**0.5)

    def _residuals(self, p: _Patches) -> Residuals:
        value = self._scale() * self.root * (p.t[self.view_a] - p.t[self.view_b])
        valid = (self.trust > 0) & p.in_front[self.view_a] & p.in_front[self.view_b]
        return Residuals(value, valid, self.trust)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        return self._residuals(self._patches(state))

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        """All neighbours of a point depend on 10 numbers of each view (motion, turn, focal length, aspect,
        principal point), so more than 21 rows are replaced by the 21 of a QR decomposition of [derivatives,
        residual]: same normal equations, same squared length."""
        p = self._patches(state, derivatives=True)
        residuals = self._residuals(p)
        scale = self._scale() * self.root[..., None]
        local = torch.cat([p.by_motion, p.by_turn, p.by_camera], -1)
        a, b = scale * local[self.view_a], -scale * local[self.view_b]
        if self.neighbors > 21:
            whole = torch.cat([a, b, residuals.value[..., None]], -1)
            whole = torch.where(residuals.valid[..., None, None], whole, torch.zeros_like(whole))
            R = torch.linalg.qr(whole, mode="r").R
            a, b = R[..., :10], R[..., 10:20]
            residuals = replace(residuals, value=R[..., 20])
        motion = self.basis.motion(*state.coefficients())
        slots = tuple(
            Slot(view, _columns(local, motion, view)) for view, local in ((self.view_a, a), (self.view_b, b))
        )
        return Linearization(residuals, slots, mixed=self.neighbors > 21)

    def scalar(self, state: SceneState, variant: str | CensusVariant = "default") -> Tensor:
        """The published census distance at the frozen points, mean over the pairs: differentiable, for
        training."""
        variant = census_variant(variant)
        p = self._patches(state, sigma=variant.sigma)
        weight = self.trust * (p.in_front[self.view_a] & p.in_front[self.view_b])
        return reduce_distance(
            census_distance(p.t[self.view_a], p.t[self.view_b]), weight, self.neighbors, variant
        ).mean()


def _columns(local: Tensor, motion: Motion, views: Tensor) -> dict[str, Tensor]:
    """Chain [G, N, D, 10] to the parameters of the views [G]."""
    by_head, turn, *camera = local.split((3, 3, 1, 1, 2), -1)
    pose = torch.cat([turn, by_head], -1)
    return {**motion.columns(by_head, views), "pose": pose, **dict(zip(CAMERA, camera))}


# ---- recipes ----


@dataclass(frozen=True)
class CensusTerm(EnergyOptions):
    options: CensusOptions = CensusOptions()


def _make(context: Context, o: CensusTerm) -> CrossViewCensus:
    options = replace(o.options, seed=context.seed)
    return CrossViewCensus.prepare(context.model, context.observations, options).at_share(context.done)


SPECS = (
    EnergySpec(
        name="census_xview",
        cls=CrossViewCensus,
        make=_make,
        role="image",
        doc=EnergyDoc(
            formula="q_o (t_o^a - t_o^b), t_o = d_o / sqrt(sigma^2 + d_o^2)",
            unit="soft census code",
            source="PGN eq. 9; soft form of UnFlow and DDFlow",
            uses=(use(PGN, "", "0.2; 5 on eyes, nose, mouth"), use(OURS, "sq", "sigma 8, 3, 0.9")),
            gradient="a small sigma pulls at nearly equal pixels only: lower it step by step; `scalar` and "
            "`census_loss` are the printed sums",
            id="E3",
            variants=tuple(VARIANTS),
        ),
        options=CensusTerm,
        needs=parse_needed,
        cross_view=True,
    ),
)
