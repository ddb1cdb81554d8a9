"""Flow correspondences between views as a least-squares energy (E5, the Gauss-Newton form of flow alignment
E4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot
from fitkit.energies.spec import OURS, Context, EnergyDoc, EnergyOptions, EnergySpec, Networks, use
from fitkit.energies.view_pairs import neighbor_views, view_yaw
from fitkit.errors import InputError
from fitkit.geometry.color import luma
from fitkit.geometry.rotation import skew
from fitkit.io.options import Cosine, Degrees, Natural, NonNegative, Pixels, Positive, Range, Seed
from fitkit.models.face_model import FaceModel, Motion, Points
from fitkit.observe.flow import check_estimator
from fitkit.observe.flow.consistency import consistent_at
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import erode, gaussian_blur, sample
from fitkit.render.cross_view import CrossViews
from fitkit.scene.projection import (
    ProjectedPoints,
    motion_columns,
    pixel_rays,
    project_head_points,
)
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class FlowOptions:
    """Matches from dense flow."""

    size: Pixels = 384  # side of the images the flow is computed on
    points: Annotated[int, Range(1, 10**6)] = 800  # matches of a pair
    sigma_px: Positive = 0.5  # noise of a match for a 224-pixel crop
    # Each view is paired with this many next ones by yaw, of its moment.
    neighbors: Annotated[int, Range(1, 1000)] = 1
    max_angle_deg: Degrees = 65.0  # most difference of yaw of pairs that are not next to each other
    many: Natural = 8  # views beyond which only next ones are paired: there are plenty
    both_ways: Natural = 7  # pairs up to which each is taken both ways
    # Radius in flow pixels of the local contrast normalization, 0 = none. Highlights and shading glide over
    # the skin and pull the flow along; what is left after it is skin texture, which does not.
    normalize: Annotated[float, Range(0.0, 100.0)] = 3.0
    # Independent measurements that a pair of sharp photos with matches all over the face is worth; the
    # deviation of its matches is measured, see `pair_noise`; 0: `sigma_px` and the term's weight say what
    # matches are worth.
    patches: NonNegative = 0.0
    min_correlation: Cosine = 0.6  # of the patches around both ends of a match
    min_cosine: Cosine = 0.25  # of the viewing angle
    depth_tolerance_mm: NonNegative = 3.5  # how far behind the nearest surface a point still counts as seen
    hold: bool = False  # keep the first matches through all refreshes of a stage
    seed: Seed = 0


# Shares of the pixels seen by both views that pass all tests of a match: two unlike pictures, and two photos
# of one instant.
CHANCE, SURE = 0.05, 0.2
LEAST_NOISE = 0.4  # of the stated standard deviation


@dataclass(frozen=True)
class Matches:
    """Fixed correspondences of G view pairs, N each. pixel_a, pixel_b: [G, N, 2] px of the crops; triangle
    [G, N] int64: the surface element seen at pixel_a; weight [G, N]; valid [G, N] bool; share [G]: of the
    skin of view b that view a sees too; matched [G]: of that, the share with a match;
    sharp [G]: share of the pixels of the flow that the photos resolve; sigma [G]: measured standard deviation
    of a match, px of the crop, None where it is not measured."""

    view_a: Tensor
    view_b: Tensor
    pixel_a: Tensor
    pixel_b: Tensor
    triangle: Tensor
    weight: Tensor
    valid: Tensor
    share: Tensor | None = None
    matched: Tensor | None = None
    sharp: Tensor | None = None
    sigma: Tensor | None = None


@dataclass(frozen=True)
class FlowCorrespondence:
    """flow_corr: (Pr_b(Pr_a^-1(a)) - b) / sigma at matches (a, b), [G, N, 2], G ordered pairs of views.

    Pr_a^-1 meets the ray of pixel a with the plane of its (moving) triangle, so a stays fixed and only the
    surface and the poses move. Means over the valid matches. `freeze` renders the mesh textured from view a
    into view b, takes the flow rendering -> photo and keeps what passes the forward-backward test; outside
    the rendered area both images are the photo. Photos are contrast-normalized before they are warped.
    Source: MVF-Net eq. 8 and PGN eq. 10 measure the flow's length; with fixed matches it becomes a
    reprojection error.
    """

    model: FaceModel
    options: FlowOptions
    estimator: FlowEstimator
    sigma_px: float  # of the crop
    photos: FlowImages
    matches: Matches | None = None
    alike: Tensor | None = None  # [B] int64: views with the same one show one expression; None: none do
    shared_patches: float = 0.0  # in the place of `patches` for pairs that do; 0: as many

    name = "flow_corr"

    @property
    def measured(self) -> bool:
        """The weights of the matches hold their measured noise, so that `sigma_px` is a unit only."""
        return self.options.patches > 0

    @property
    def reduction(self) -> str:
        return "sum" if self.measured else "mean"

    def freeze(self, state: SceneState, observations: Observations) -> FlowCorrespondence:
        found = self
        if not (self.options.hold and self.matches is not None):
            found = replace(
                self, matches=find_matches(self.model, state, self.photos, self.estimator, self.options)
            )
        if not self.measured:
            return found
        m = found.matches
        trust = torch.where(m.valid, m.weight, torch.zeros_like(m.weight))
        count = found._patches() * m.share * ((m.matched - CHANCE) / (SURE - CHANCE)).clamp(0, 1)
        sigma = pair_noise(found, state).clamp_min(LEAST_NOISE * self.sigma_px)
        count = count * (self.sigma_px / sigma) ** 2
        return replace(
            found,
            matches=replace(m, sigma=sigma, weight=trust * (count / trust.sum(1).clamp_min(1e-9))[:, None]),
        )

    def _patches(self) -> Tensor:
        """[G]: independent measurements of pairs with matches all over the face. Flow errs alike over some
        pixels: of a photo that is enlarged for it, fewer are independent."""
        m, patches = self.matches, self.options.patches
        sharp = torch.ones_like(m.share) if m.sharp is None else m.sharp
        if self.alike is None or self.shared_patches == 0:
            return patches * sharp
        alike = self.alike.to(m.view_a)
        shared = alike[m.view_a] == alike[m.view_b]
        return torch.where(shared, self.shared_patches, patches).to(sharp) * sharp

    @cached_property
    def _corners(self) -> tuple[Points, Tensor]:
        """The vertices that the matches touch, and which of them [G, N, 3] are the corners of a match."""
        unique, place = torch.unique(self.model.triangles[self.matches.triangle], return_inverse=True)
        return self.model.at_vertices(unique), place

    def hits(self, state: SceneState) -> Hits:
        """Where the rays of pixel_a meet their triangles, and where the same skin lies in view b."""
        m = self.matches
        basis, place = self._corners
        vertices = basis.points(*state.coefficients())  # [B, U, 3]
        corners = vertices[m.view_a[:, None, None], place]  # [G, N, 3, 3]
        origin, direction = pixel_rays(m.pixel_a, state, m.view_a)
        a, b, c = corners.unbind(2)
        normal = torch.linalg.cross(b - a, c - a)
        slope = (normal * direction).sum(-1, keepdim=True)
        slope = torch.where(slope.abs() < 1e-9, torch.full_like(slope, 1e-9), slope)
        depth = (normal * (a - origin)).sum(-1, keepdim=True) / slope
        hit = origin + depth * direction
        area = (normal * normal).sum(-1).clamp_min(1e-20)
        by_u, by_v = (torch.linalg.cross(normal, edge) / area[..., None] for edge in (c - b, a - c))
        u, v = ((hit - b) * by_u).sum(-1), ((hit - c) * by_v).sum(-1)
        weights = torch.stack([u, v, 1 - u - v], -1)
        in_b = vertices[m.view_b[:, None, None], place]
        head_b = (weights[..., None] * in_b).sum(2)
        a_b, b_b, c_b = in_b.unbind(2)
        stretch = (a_b - c_b)[..., None] * by_u[..., None, :] + (b_b - c_b)[..., None] * by_v[..., None, :]
        return Hits(
            hit,
            head_b,
            weights,
            self.model.triangles[m.triangle],
            stretch,
            normal,
            direction,
            depth,
            slope,
        )

    def motion(self, state: SceneState, hits: Hits) -> Motion:
        """Of the surface points of the matches, in all views."""
        basis, place = self._corners
        return basis.motion(*state.coefficients()).blended(place, hits.weights)

    def _residuals(self, pixels: Tensor, in_front: Tensor, state: SceneState) -> Residuals:
        m = self.matches
        value = (pixels - m.pixel_b) / self.sigma_px
        return Residuals(value, m.valid & in_front, m.weight, state.subject[m.view_a])

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        seen = project_head_points(self.hits(state).head_b, state, self.matches.view_b)
        return self._residuals(seen.pixels, seen.in_front, state)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        """With motion m_a of the surface at the hit in view a and m_b in view b (rigid step included), the
        head point in view b moves by m_b + T (d n' / (n.d) - 1) m_a: the match slides over the surface so
        that it stays on the ray; T carries a tangent of the triangle in view a to the triangle in view b,
        whose expression may differ."""
        m = self.matches
        h = self.hits(state)
        normal, direction, slope = h.normal, h.direction, h.slope
        seen, by_b, by_tangent, by_a = self._by_motion(state, h)
        motion = self.motion(state, h)
        columns_b = motion_columns(by_b, h.head_b, motion, m.view_b)
        columns_b |= {name: by / self.sigma_px for name, by in seen.by_camera.items()}
        columns_a = motion_columns(by_a, h.hit, motion, m.view_a)
        for name, pull in self._by_camera_a(state, h).items():
            on_surface = (
                pull - direction[..., None] * ((normal[..., None] * pull).sum(-2) / slope)[..., None, :]
            )
            columns_a[name] = by_tangent @ on_surface
        return Linearization(
            self._residuals(seen.pixels, seen.in_front, state),
            (Slot(m.view_b, columns_b), Slot(m.view_a, columns_a)),
        )

    def _by_camera_a(self, state: SceneState, h: Hits) -> dict[str, Tensor]:
        """How the rays of pixel_a move at their hits with the camera of view a: block -> [G, N, 3, width] mm.
        A longer focal length pulls them towards the axis, a larger aspect does so along y alone, a shift of
        the principal point turns them back."""
        views = self.matches.view_a
        pose, camera = state.pose.select(views), state.camera.select(views)
        if camera.kind == "perspective":
            focal, depth = -(h.direction - pose.rotation[:, 2][:, None]) * h.depth, h.depth
        else:
            flat = pose.apply(h.hit)
            flat = torch.cat([flat[..., :2], torch.zeros_like(flat[..., :1])], -1)
            focal, depth = -flat @ pose.rotation, torch.full_like(h.depth, camera.REFERENCE_DEPTH)
        per_pixel = torch.stack([torch.ones_like(camera.aspect), 1 / camera.aspect], -1)
        axes = (pose.rotation[:, :2] * per_pixel[..., None]).mT  # [G, 3, 2] head frame
        down = pose.rotation[:, 1]  # [G, 3] the picture's y, head frame
        aspect = (focal @ down[..., None]) * down[:, None]
        return {
            "focal": focal[..., None],
            "aspect": aspect[..., None],
            "principal": -axes[:, None] * depth[..., None],
        }

    def linearize_surface(self, state: SceneState) -> tuple[Residuals, Tensor, Tensor]:
        """Residuals, their derivatives [G, N, 2, 3, 3] by an offset of each corner of the triangle, the
        same in both views as an offset of the mean face, and the corners [G, N, 3] int64. See `linearize`."""
        h = self.hits(state)
        seen, by_b, _, by_a = self._by_motion(state, h)
        m, (basis, place) = self.matches, self._corners
        motion = basis.motion(*state.coefficients())
        by_corner = [
            motion.at_rest(by_b, corner, m.view_b) + motion.at_rest(by_a, corner, m.view_a)
            for corner in place.unbind(-1)
        ]
        by_corner = torch.stack(by_corner, -2) * h.weights[:, :, None, :, None]
        return self._residuals(seen.pixels, seen.in_front, state), by_corner, h.corner

    def _by_motion(self, state: SceneState, h: Hits) -> tuple[ProjectedPoints, Tensor, Tensor, Tensor]:
        """head_b as view b sees it, and derivatives [G, N, 2, 3] of the residual by motion of the surface in
        view b, by motion along the triangle of view a and by motion of the surface in view a."""
        seen = project_head_points(h.head_b, state, self.matches.view_b, derivatives=True)
        by_b = seen.by_head / self.sigma_px
        by_tangent = by_b @ h.stretch
        along = h.direction[..., :, None] * h.normal[..., None, :] / h.slope[..., None]
        slide = along - torch.eye(3, dtype=along.dtype, device=along.device)
        return seen, by_b, by_tangent, by_tangent @ slide


@dataclass(frozen=True)
class Hits:
    """hit: [G, N, 3] mm, ray of pixel_a and surface of view a; head_b: the same material point in view b;
    weights: its barycentrics; corner: [G, N, 3] vertex indices; stretch: [G, N, 3, 3], maps a displacement on
    the triangle in view a to the same one on the triangle as it is in view b; normal (not unit) and direction
    of the ray: [G, N, 3]; depth, slope = normal . direction: [G, N, 1]."""

    hit: Tensor
    head_b: Tensor
    weights: Tensor
    corner: Tensor
    stretch: Tensor
    normal: Tensor
    direction: Tensor
    depth: Tensor
    slope: Tensor


def view_pairs(
    state: SceneState, options: FlowOptions = FlowOptions(), moment: Tensor | None = None
) -> list[tuple[int, int]]:
    """Ordered pairs (a, b) of views that are near each other in yaw, see FlowOptions; moment: [B], as in
    `neighbor_views`."""
    yaw, few = torch.rad2deg(view_yaw(state)), state.num_views <= options.many
    found = [
        n
        for n in neighbor_views(state, options.neighbors, moment)
        if n.apart == 1 or (few and float(yaw[n.b] - yaw[n.a]) <= options.max_angle_deg)
    ]
    if len(found) > options.both_ways:
        return [(n.a, n.b) if n.place % 2 else (n.b, n.a) for n in found]
    return [pair for n in found for pair in ((n.a, n.b), (n.b, n.a))]


@dataclass(frozen=True)
class FlowImages:
    """The photos as the flow sees them: grey, contrast-normalized, at the flow's size.

    images, mask: [B, 1, h, w]; reduction: crop pixel p lies at (p + 1/2) / reduction - 1/2; moment: that of
    the observations; sharp: [B], share of the pixels that the photos resolve, 1 unless they were enlarged,
    None: not known.
    """

    images: Tensor
    mask: Tensor
    reduction: float
    moment: Tensor | None = None
    sharp: Tensor | None = None

    @staticmethod
    def of(observations: Observations, options: FlowOptions) -> FlowImages:
        H, W = observations.size
        reduction = max(H, W) / options.size
        size = (round(H / reduction), round(W / reduction))
        grey = luma(observations.images)
        # Whatever lies beyond the mask has no influence: it becomes the mean of the rest.
        inside = observations.mask[:, None]
        mean = torch.where(inside, grey, 0).sum((1, 2, 3), keepdim=True) / inside.sum(
            (1, 2, 3), keepdim=True
        ).clamp_min(1)
        grey = torch.where(inside, grey, mean)
        grey = (
            F.interpolate(grey, size=size, mode="area")
            if reduction > 1
            else F.interpolate(grey, size=size, mode="bilinear")
        )
        mask = F.interpolate(observations.mask[:, None].to(grey), size=size, mode="area")
        sharp = (reduction / observations.scale).clamp_max(1) ** 2
        images = normalize_contrast(grey, options.normalize)
        return FlowImages(images, mask, reduction, observations.moment, sharp)


def find_matches(
    model: FaceModel,
    state: SceneState,
    photos: FlowImages,
    estimator: FlowEstimator,
    options: FlowOptions,
    energy: str = "flow_corr",
) -> Matches:
    """Dense flow between the rendering of view a in view b and photo b, sampled at `options.points` surface
    points.

    Raises:
        InputError: there are no pairs of views; it names the energy.
    """
    pairs = view_pairs(state, options, photos.moment)
    if not pairs:
        raise InputError(
            f"energy '{energy}' compares views: expected at least 2 and neighbors >= 1, got "
            f"{state.num_views} view(s) and neighbors {options.neighbors}; give its stage min_views: 2"
        )
    device = photos.images.device
    h, w = photos.images.shape[-2:]
    reduction = photos.reduction
    views = CrossViews.of(model, state, (h, w), reduction)
    fragments = views.fragments
    skin = model.skin[model.triangles].all(1)
    usable = fragments.covered & (photos.mask[:, 0] > 0.999) & skin[fragments.triangle.clamp_min(0)]
    renderings, targets, lists = [], [], []
    for a, b in pairs:
        place = usable[b].reshape(-1).nonzero().squeeze(1)
        pixel, seen, angle = views.seen(a, b, place, options.depth_tolerance_mm)
        value, inside = sample(torch.stack([photos.images[a, 0], photos.mask[a, 0]])[None], pixel[None])
        keep = seen & inside[0] & (value[0, :, 1] > 0.999) & (angle > options.min_cosine)
        keep = keep.nonzero().squeeze(1)
        place = place[keep]
        rendering = photos.images[b].reshape(-1).clone()
        rendering[place] = value[0, keep, 0]
        renderings.append(rendering.reshape(1, h, w))
        targets.append(photos.images[b])
        lists.append((place, pixel[keep], angle[keep]))
    source, target = torch.stack(renderings), torch.stack(targets)
    forward, backward = estimator.estimate(source, target), estimator.estimate(target, source)
    similar = local_correlation(source, target, forward.displacement, max(options.normalize, 2.0))
    N = options.points
    pixel_a, pixel_b = (
        torch.zeros(len(pairs), N, 2, device=device),
        torch.zeros(len(pairs), N, 2, device=device),
    )
    triangle = torch.zeros(len(pairs), N, dtype=torch.int64, device=device)
    weight = torch.zeros(len(pairs), N, device=device)
    valid = torch.zeros(len(pairs), N, dtype=torch.bool, device=device)
    share, matched = torch.zeros(len(pairs), device=device), torch.zeros(len(pairs), device=device)
    # One number for each pixel of the image: a pixel more or less among the candidates changes one match, not
    # all of them.
    lot = torch.rand(h * w, generator=torch.Generator().manual_seed(options.seed)).to(device)
    for g, (_, b) in enumerate(pairs):
        place, pixel, angle = lists[g]
        ready = torch.zeros(h * w, device=device)
        ready[place] = 1
        # Keep clear of the rim, where part of each flow patch sees the fill.
        clear = erode(ready.reshape(1, 1, h, w), 3).reshape(-1)
        alike = similar[g].reshape(-1)[place]
        trust = angle * alike.clamp_min(0) ** 2
        good = consistent_at(forward.of(g), backward.of(g), place[None])[0]
        ok = good & (clear[place] > 0.5) & (alike > options.min_correlation)
        pick = ok.nonzero().squeeze(1)
        share[g] = len(place) / max(1, int(usable[b].sum()))
        matched[g] = len(pick) / max(1, len(place))
        pick = pick[lot[place[pick]].argsort()[:N]]
        n, at = len(pick), place[pick]
        moved = torch.stack([at % w, at // w], -1) + forward.displacement[g].reshape(2, -1)[:, at].T
        pixel_a[g, :n] = (pixel[pick] + 0.5) * reduction - 0.5
        pixel_b[g, :n] = (moved + 0.5) * reduction - 0.5
        triangle[g, :n] = fragments.triangle[b].reshape(-1)[at]
        weight[g, :n] = trust[pick]
        valid[g, :n] = True
    view_a, view_b = (torch.tensor([p[i] for p in pairs], dtype=torch.int64, device=device) for i in (0, 1))
    sharp = photos.sharp
    if sharp is not None:
        sharp = torch.minimum(sharp[view_a], sharp[view_b])
    return Matches(view_a, view_b, pixel_a, pixel_b, triangle, weight, valid, share, matched, sharp)


@torch.no_grad()
def pair_noise(energy: FlowCorrespondence, state: SceneState) -> Tensor:
    """Standard deviation of one component of the matches of each pair, [G] px of the crop, from what no shape
    can explain.

    A wrong shape moves a match along its epipolar line only. So the deviation is read off across the line,
    where what is left after the best relative pose and focal length is the noise of the flow, and whatever
    else sets the two photos apart: another expression, light that glides over the skin, another person. A
    robust fit (Cauchy) on median absolute deviations.
    """
    m = energy.matches
    energy = replace(energy, sigma_px=1.0)
    r, by_corner, _ = energy.linearize_surface(state)
    h = energy.hits(state)
    # [G, N, 2]
    along = (by_corner.sum(3) * torch.nn.functional.normalize(h.normal, dim=-1)[..., None, :]).sum(-1)
    across = torch.nn.functional.normalize(torch.stack([-along[..., 1], along[..., 0]], -1), dim=-1)
    seen, by_b, _, _ = energy._by_motion(state, h)
    motion = torch.cat([by_b @ -skew(h.head_b), by_b, seen.by_focal[..., None]], -1)  # [G, N, 2, 7]
    out = []
    for g in range(len(m.view_a)):
        ok = r.valid[g]
        if int(ok.sum()) < 20:
            out.append(torch.full((), torch.inf).to(along))
            continue
        e = (across[g] * r.value[g]).sum(-1)[ok].double()
        J = (across[g][..., None] * motion[g]).sum(1)[ok].double()
        J = J / J.norm(dim=0).clamp_min(1e-12)
        step, scale = e.new_zeros(7), e.abs().median()
        for _ in range(5):
            left = e + J @ step
            scale = 1.4826 * left.abs().median().clamp_min(1e-6)
            w = 1 / (1 + (left / (2 * scale)) ** 2)
            step = torch.linalg.solve(J.T @ (w[:, None] * J) + 1e-6 * torch.eye(7).to(e), -J.T @ (w * e))
        out.append((1.4826 * (e + J @ step).abs().median()).to(along))
    return torch.stack(out)


def normalize_contrast(images: Tensor, radius: float) -> Tensor:
    """Images with local mean 0.5 and local deviation 0.25, clipped to [0, 1].

    images: [B, 1, h, w] in [0, 1]; radius: Gaussian standard deviation in pixels, 0 returns the images.
    Deviations below 0.01 (sensor noise) are not raised to full contrast.
    """
    if radius <= 0:
        return images
    detail = images - gaussian_blur(images, radius)
    deviation = gaussian_blur(detail * detail, radius).sqrt()
    return (0.5 + 0.25 * detail / (deviation + 0.01)).clamp(0, 1)


def local_correlation(source: Tensor, target: Tensor, displacement: Tensor, radius: float) -> Tensor:
    """Correlation of the surroundings of u in source and of u + w(u) in target, [G, h, w] in [-1, 1].

    source, target: [G, 1, h, w]; radius: Gaussian window in pixels.
    """
    a, b = source, target
    G, _, h, w = a.shape
    y, x = torch.meshgrid(torch.arange(h, device=a.device), torch.arange(w, device=a.device), indexing="ij")
    place = torch.stack([x, y], -1).to(a).reshape(1, -1, 2) + displacement.permute(0, 2, 3, 1).reshape(
        G, -1, 2
    )
    b = sample(b, place)[0].transpose(1, 2).reshape(G, 1, h, w)
    moments = gaussian_blur(torch.cat([a, b, a * a, b * b, a * b], 1), radius)
    ma, mb, aa, bb, ab = moments.unbind(1)
    return (ab - ma * mb) / ((aa - ma * ma).clamp_min(0) * (bb - mb * mb).clamp_min(0) + 1e-6).sqrt()


# ---- recipes ----


@dataclass(frozen=True)
class EstimatorOptions(EnergyOptions):
    """What finds the flow between photos."""

    estimator: str = ""  # 'dis', 'dis:PRESET', 'farneback' or 'ptlflow:NAME'; empty = the recipe's `flow`
    weights: str = ""  # of a network: a checkpoint file or the name of a published one

    def __post_init__(self):
        if self.estimator:
            check_estimator(self.estimator, self.weights)
        elif self.weights:
            raise InputError(
                f"flow weights '{self.weights}': expected the estimator they belong to beside them, "
                "e.g. estimator: ptlflow:raft"
            )


@dataclass(frozen=True)
class FlowTerm(EstimatorOptions):
    options: FlowOptions = FlowOptions()


@dataclass(frozen=True)
class MatchesTerm(FlowTerm):
    # `patches` of a pair that shows one expression, or may: its matches agree so well that what is wrong with
    # them is wrong all over; 0: as many as of others.
    shared_patches: NonNegative = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.shared_patches > 0 and self.options.patches == 0:
            raise InputError(
                f"flow_corr: shared_patches {self.shared_patches:g}: expected options.patches above 0 beside "
                "it, for pairs that show two expressions"
            )


@dataclass(frozen=True)
class FlowTraining(FlowTerm):
    """A training has no `flow` of its own."""

    estimator: str = "dis"


def ask_flow(networks: Networks, o: EstimatorOptions) -> FlowEstimator:
    return networks.flow(o.estimator, o.weights)


def make_matcher(context: Context, o: FlowTerm) -> FlowCorrespondence:
    options, observations = replace(o.options, seed=context.seed), context.observations
    return FlowCorrespondence(
        context.model,
        options,
        ask_flow(context.networks, o),
        options.sigma_px * observations.pixel_unit,
        FlowImages.of(observations, options),
    )


def _make_correspondence(context: Context, o: FlowTerm) -> FlowCorrespondence:
    alike = context.expression_owner if context.expression_alike is None else context.expression_alike
    shared = o.shared_patches if isinstance(o, MatchesTerm) else 0.0
    return replace(make_matcher(context, o), alike=alike, shared_patches=shared)


SPECS = (
    EnergySpec(
        name="flow_corr",
        cls=FlowCorrespondence,
        make=_make_correspondence,
        role="flow",
        doc=EnergyDoc(
            formula="Pr_b(Pr_a^-1(a)) - b",
            unit="px of the crop",
            source="ours: E4 with its flow as fixed matches",
            uses=(use(OURS, "gm"),),
            gradient="exact for fixed matches, which each freeze finds anew",
            id="E5",
        ),
        options=MatchesTerm,
        training=FlowTraining,
        cross_view=True,
        one_person=True,
        load=ask_flow,
        reduction_of="mean",
    ),
)
