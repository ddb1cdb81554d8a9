"""Flow correspondences between views as a least-squares energy (E5, the Gauss-Newton form of flow alignment E4)."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.rotation import skew
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow.consistency import consistent
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample
from fitkit.render.rasterizer import Fragments, barycentrics, clip_vertices, interpolate, rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.projection import project_head_points
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class FlowOptions:
    """size: side of the images the flow is computed on; points: matches per pair; sigma_px: noise of a match for a
    224-pixel crop; neighbors: each view is paired with this many next views in the order of their yaw, both ways."""

    size: int = 256
    points: int = 500
    sigma_px: float = 1.0
    neighbors: int = 1
    min_cosine: float = 0.25
    depth_tolerance_mm: float = 3.5
    seed: int = 0


@dataclass(frozen=True)
class Matches:
    """Fixed correspondences of G view pairs, N each. pixel_a, pixel_b: [G, N, 2] px of the crops; triangle [G, N]
    int64: the surface element seen at pixel_a; weight [G, N]; valid [G, N] bool."""

    view_a: Tensor
    view_b: Tensor
    pixel_a: Tensor
    pixel_b: Tensor
    triangle: Tensor
    weight: Tensor
    valid: Tensor


@dataclass(frozen=True)
class FlowCorrespondence:
    """flow_corr: (Pr_b(Pr_a^-1(a)) - b) / sigma at matches (a, b), [G, N, 2], G ordered pairs of views.

    Pr_a^-1 meets the ray of pixel a with the plane of its (moving) triangle, so a stays fixed and only the surface and
    the poses move. Means over the valid matches. `freeze` renders the mesh textured from view a into view b, takes the
    flow rendering -> photo and keeps what passes the forward-backward test; outside the rendered area both images are
    the photo.
    Source: MVF-Net eq. 8 and PGN eq. 10 measure the flow's length; with fixed matches it becomes a reprojection error.
    """

    model: FaceModel
    options: FlowOptions
    estimator: FlowEstimator
    sigma_px: float  # of the crop
    matches: Matches | None = None

    name = "flow_corr"
    reduction = "mean"

    def freeze(self, state: SceneState, observations: Observations) -> "FlowCorrespondence":
        return replace(self, matches=find_matches(self.model, state, observations, self.estimator, self.options))

    def _hits(self, state: SceneState):
        """Where the rays of pixel_a meet their triangles: head points, barycentrics, normals and ray directions."""
        m = self.matches
        corner_index = self.model.triangles[m.triangle]  # [G, N, 3]
        G, N, _ = corner_index.shape
        unique, place = torch.unique(corner_index, return_inverse=True)
        basis = self.model.at_vertices(unique)
        vertices = basis.points(state.identity[state.subject], state.expression)  # [B, U, 3]
        corners = vertices[m.view_a[:, None, None], place]  # [G, N, 3, 3]
        camera, pose = state.camera.select(m.view_a), state.pose.select(m.view_a)
        away = (m.pixel_a - camera.principal[:, None]) / camera.focal[:, None, None]
        away = away / torch.stack([torch.ones_like(camera.aspect), camera.aspect], -1)[:, None]
        one = torch.ones_like(away[..., :1])
        turn = pose.rotation  # rays: origin + depth * direction, in the head frame
        if camera.kind == "perspective":
            origin = pose.centers()[:, None].expand(G, N, 3)
            direction = torch.cat([away, one], -1) @ turn
        else:
            flat = torch.cat([away * camera.REFERENCE_DEPTH, torch.zeros_like(one)], -1)
            origin = (flat - pose.translation[:, None]) @ turn
            direction = torch.cat([torch.zeros_like(away), one], -1) @ turn
        a, b, c = corners.unbind(2)
        normal = torch.linalg.cross(b - a, c - a)
        slope = (normal * direction).sum(-1, keepdim=True)
        slope = torch.where(slope.abs() < 1e-9, torch.full_like(slope, 1e-9), slope)
        depth = (normal * (a - origin)).sum(-1, keepdim=True) / slope
        hit = origin + depth * direction
        area = (normal * normal).sum(-1).clamp_min(1e-20)
        u = (torch.linalg.cross(c - b, hit - b) * normal).sum(-1) / area
        v = (torch.linalg.cross(a - c, hit - c) * normal).sum(-1) / area
        weights = torch.stack([u, v, 1 - u - v], -1)
        in_b = vertices[m.view_b[:, None, None], place]
        head_b = (weights[..., None] * in_b).sum(2)
        return hit, head_b, weights, normal, direction, depth, corner_index, slope

    def _residuals(self, pixels: Tensor, in_front: Tensor) -> Residuals:
        m = self.matches
        return Residuals((pixels - m.pixel_b) / self.sigma_px, m.valid & in_front, m.weight)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        _, head_b, *_ = self._hits(state)
        seen = project_head_points(head_b, state, self.matches.view_b)
        return self._residuals(seen.pixels, seen.in_front)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        """With motion m_a of the surface at the hit in view a and m_b in view b (rigid step included), the head point
        in view b moves by m_b + (d n' / (n.d) - 1) m_a: the match slides over the surface so that it stays on the ray."""
        m = self.matches
        hit, head_b, weights, normal, direction, depth, corner, slope = self._hits(state)
        seen = project_head_points(head_b, state, m.view_b, derivatives=True)
        rows = (weights[..., None, None] * self.model.rows[corner]).sum(2)  # [G, N, 3, K]
        by_b = seen.by_head / self.sigma_px  # [G, N, 2, 3]
        slide = direction[..., :, None] * normal[..., None, :] / slope[..., None] - torch.eye(3, dtype=hit.dtype, device=hit.device)
        by_a = by_b @ slide
        K = self.model.num_identity
        coefficient_b, coefficient_a = by_b @ rows, by_a @ rows
        columns_b = {"identity": coefficient_b[..., :K], "expression": coefficient_b[..., K:],
                     "pose": torch.cat([by_b @ -skew(head_b), by_b], -1), "focal": (seen.by_focal / self.sigma_px)[..., None]}
        columns_a = {"identity": coefficient_a[..., :K], "expression": coefficient_a[..., K:],
                     "pose": torch.cat([by_a @ -skew(hit), by_a], -1)}
        if state.camera.kind == "perspective":
            # A longer focal length pulls the ray of pixel a towards the axis: d direction = -(x, y, 0) / f.
            turn = state.pose.select(m.view_a).rotation
            axis = turn[:, 2][:, None].expand_as(direction)
            pull = -(direction - axis) * depth
        else:
            turn = state.pose.select(m.view_a).rotation
            hit_camera = state.pose.select(m.view_a).apply(hit)
            pull = -torch.cat([hit_camera[..., :2], torch.zeros_like(hit_camera[..., :1])], -1) @ turn
        on_surface = pull - direction * ((normal * pull).sum(-1, keepdim=True) / slope)
        columns_a["focal"] = (by_b @ on_surface[..., None])
        return Linearization(self._residuals(seen.pixels, seen.in_front), (Slot(m.view_b, columns_b), Slot(m.view_a, columns_a)))


def view_pairs(state: SceneState, neighbors: int) -> list[tuple[int, int]]:
    """Ordered pairs (a, b) of views whose yaw angles are next to each other, both directions."""
    forward = state.pose.rotation[:, 2].detach()  # the camera's axis in the head frame
    order = torch.argsort(torch.atan2(forward[:, 0], -forward[:, 2])).tolist()
    pairs = []
    for k in range(1, neighbors + 1):
        for a, b in zip(order[:-k], order[k:]):
            pairs += [(a, b), (b, a)]
    return pairs


def find_matches(model: FaceModel, state: SceneState, observations: Observations, estimator: FlowEstimator,
                 options: FlowOptions) -> Matches:
    """Dense flow between the rendering of view a in view b and photo b, sampled at `options.points` surface points."""
    pairs = view_pairs(state, options.neighbors)
    device = observations.images.device
    view_a = torch.tensor([p[0] for p in pairs], device=device, dtype=torch.int64)
    view_b = torch.tensor([p[1] for p in pairs], device=device, dtype=torch.int64)
    H, W = observations.size
    reduction = max(H, W) / options.size
    h, w = round(H / reduction), round(W / reduction)
    images = F.interpolate(observations.images, size=(h, w), mode="area") if reduction > 1 else F.interpolate(
        observations.images, size=(h, w), mode="bilinear")
    mask = F.interpolate(observations.mask[:, None].to(images), size=(h, w), mode="area")
    shift = (reduction - 1) / 2
    camera = state.camera.scaled(torch.full_like(state.camera.focal, 1 / reduction),
                                 torch.full_like(state.camera.principal, shift))
    vertices = state.vertices(model)
    fragments = rasterize(clip_vertices(camera, state.pose.apply(vertices)), model.triangles, (h, w))
    skin = model.skin[model.triangles].all(1)
    normals = vertex_normals(vertices, model.triangles)
    points, normal = interpolate(fragments, model.triangles, vertices), interpolate(fragments, model.triangles, normals)
    ray_b = F.normalize(state.pose.centers()[:, None, None] - points, dim=-1)
    cosine = (F.normalize(normal, dim=-1) * ray_b).sum(-1)
    ready = fragments.covered & skin[fragments.triangle.clamp_min(0)] & (cosine > options.min_cosine) & (mask[:, 0] > 0.999)
    G = len(pairs)
    # Where the surface seen in b lies in a. With an expression per view it is the material point that counts.
    pick = Fragments(fragments.triangle[view_b], fragments.barycentric[view_b], fragments.depth[view_b], fragments.covered[view_b])
    in_a = interpolate(pick, model.triangles, vertices[view_a]).reshape(G, h * w, 3)
    seen = project_head_points(in_a, state, view_a)
    small = (seen.pixels + 0.5) / reduction - 0.5
    texture, inside = sample(images[view_a], small)
    usable, _ = sample(mask[view_a], small)
    visible = seen_by_depth(seen.pixels, seen.camera[..., 2], fragments.depth[view_a], reduction, options.depth_tolerance_mm)
    ray_a = F.normalize(state.pose.centers()[view_a][:, None] - in_a, dim=-1)
    normal_a = interpolate(pick, model.triangles, normals[view_a]).reshape(G, h * w, 3)
    cosine_a = (F.normalize(normal_a, dim=-1) * ray_a).sum(-1)
    ready = (ready[view_b].reshape(G, -1) & visible & inside & (usable[..., 0] > 0.999) & (cosine_a > options.min_cosine)).reshape(G, h, w)
    rendering = texture.transpose(1, 2).reshape(G, 3, h, w)
    photo = images[view_b]
    rendering = match_gain(rendering, photo, ready)
    rendering = torch.where(ready[:, None], rendering, photo)
    forward, backward = estimator.estimate(rendering, photo), estimator.estimate(photo, rendering)
    good = ready & consistent(forward, backward)
    # Keep clear of the rim, where part of each flow patch sees the fill.
    good &= -F.max_pool2d(-ready[:, None].to(images), 7, stride=1, padding=3)[:, 0] > 0.5
    gradient = gradient_strength(photo)
    weight = torch.minimum(cosine[view_b], cosine_a.reshape(G, h, w)).clamp_min(0) * gradient
    generator = torch.Generator().manual_seed(options.seed)
    chance = torch.rand(h * w, generator=generator).to(device)
    score = torch.where(good.reshape(G, -1), chance[None] + 1, chance[None] * 0)
    index = score.topk(min(options.points, h * w), dim=1).indices  # [G, N] random valid pixels first
    valid = good.reshape(G, -1).gather(1, index)
    y, x = index // w, index % w
    flow = forward.displacement.reshape(G, 2, -1).gather(2, index[:, None].expand(-1, 2, -1)).transpose(1, 2)
    pixel_b = (torch.stack([x, y], -1).to(flow) + flow + 0.5) * reduction - 0.5
    pixel_a = seen.pixels.gather(1, index[..., None].expand(-1, -1, 2))
    triangle = pick.triangle.reshape(G, -1).gather(1, index).clamp_min(0)
    return Matches(view_a, view_b, pixel_a.detach(), pixel_b.detach(), triangle, weight.reshape(G, -1).gather(1, index).detach(), valid)


def match_gain(rendering: Tensor, photo: Tensor, mask: Tensor) -> Tensor:
    """Scale and shift the rendering [G, 3, h, w] per channel to the photo's mean and deviation inside mask [G, h, w]."""
    m = mask[:, None].to(photo)
    n = m.sum((2, 3), keepdim=True).clamp_min(1)

    def moments(x):
        mean = (x * m).sum((2, 3), keepdim=True) / n
        return mean, ((((x - mean) ** 2) * m).sum((2, 3), keepdim=True) / n).sqrt()

    mean_r, dev_r = moments(rendering)
    mean_p, dev_p = moments(photo)
    gain = (dev_p / dev_r.clamp_min(1e-3)).clamp(0.5, 2)
    return ((rendering - mean_r) * gain + mean_p).clamp(0, 1)


def gradient_strength(images: Tensor) -> Tensor:
    """How much a pixel's surroundings tell about motion, [B, H, W] in (0, 1): g / (g + 0.02) of the blurred grey gradient."""
    grey = images.mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    g = F.avg_pool2d((dx * dx + dy * dy), 5, stride=1, padding=2).sqrt()[:, 0]
    return g / (g + 0.02)
