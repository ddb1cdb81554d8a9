"""Matches between views triangulated to points of the surface, and the surface's distance from them along its
normal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Linearization, Residuals, Slot
from fitkit.energies.flow_correspondence import (
    FlowCorrespondence,
    FlowOptions,
    FlowTerm,
    ask_flow,
    find_matches,
    make_matcher,
)
from fitkit.energies.spec import OURS, Context, EnergyDoc, EnergySpec, use
from fitkit.io.options import Degrees, NonNegative
from fitkit.models.face_model import Points
from fitkit.observe.observations import Observations
from fitkit.scene.projection import pixel_rays
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class TriangulationOptions(FlowOptions):
    """As FlowOptions; min_parallax_deg: angle between the rays of a match; max_gap: distance of its rays, in
    sigmas of a pixel."""

    min_parallax_deg: Degrees = 5.0
    max_gap: NonNegative = 4.0


@dataclass(frozen=True)
class TriangulatedPoints:
    """What the matches say about the surface, N for each of G pairs, all fixed.

    corner, weights: [G, N, 3] vertices and barycentrics of the surface point in view a; target: [G, N, 3] mm,
    the triangulated point in the head frame with the expression of view a; normal: [G, N, 3] unit; sigma: [G,
    N] mm; valid: [G, N] bool.
    """

    corner: Tensor
    weights: Tensor
    target: Tensor
    normal: Tensor
    sigma: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TriangulatedFlow:
    """flow_triangulated: n . (p - X) / sigma, [G, N, 1]: distance of the surface point p of a match from the
    point X where the rays of its two pixels pass each other, along the surface normal n.

    Multi-view stereo evidence without a reconstruction of its own. `freeze` takes the matches of `flow_corr`
    and triangulates them with the cameras and poses as they are, so the residual moves the shape alone; the
    skin of view b is carried into the expression of view a first. sigma is that of a pixel at the distance of
    the surface, carried along the rays: it grows as the parallax shrinks. Means over the valid points.
    Source: midpoint triangulation, Hartley and Zisserman, "Multiple View Geometry", section 12.2;
    point-to-plane distance,
    Chen and Medioni, "Object modelling by registration of multiple range images", 1992; after the flow losses
    of MVF-Net (eq. 8).
    """

    matcher: FlowCorrespondence
    options: TriangulationOptions
    points: TriangulatedPoints | None = None

    name = "flow_triangulated"
    reduction = "mean"

    def freeze(self, state: SceneState, observations: Observations) -> TriangulatedFlow:
        if self.options.hold and self.points is not None:
            return self
        m = self.matcher
        matcher = replace(
            m, matches=find_matches(m.model, state, m.photos, m.estimator, m.options, self.name)
        )
        return replace(self, matcher=matcher, points=self._triangulate(matcher, state))

    def _triangulate(self, matcher: FlowCorrespondence, state: SceneState) -> TriangulatedPoints:
        m, h = matcher.matches, matcher.hits(state)
        origin_a, along_a = pixel_rays(m.pixel_a, state, m.view_a)
        origin_b, along_b = pixel_rays(m.pixel_b, state, m.view_b)
        along_a, along_b = F.normalize(along_a, dim=-1), F.normalize(along_b, dim=-1)
        origin_b = origin_b + h.hit - h.head_b  # the skin in view b as it is in view a
        cosine = (along_a * along_b).sum(-1, keepdim=True)
        sine_squared = (1 - cosine * cosine).clamp_min(1e-12)
        between = origin_b - origin_a
        by_a, by_b = (between * along_a).sum(-1, keepdim=True), (between * along_b).sum(-1, keepdim=True)
        near_a = origin_a + along_a * (by_a - cosine * by_b) / sine_squared
        near_b = origin_b + along_b * (cosine * by_a - by_b) / sine_squared
        normal = F.normalize(h.normal, dim=-1)
        head_a, camera = h.hit, state.camera.select(m.view_a)
        depth = camera.depth_divisor(state.pose.select(m.view_a).apply(head_a))
        pixel_mm = matcher.sigma_px * depth / camera.focal[:, None]
        steep = (normal * along_a).sum(-1).square() / sine_squared[..., 0]
        sharp = (
            sine_squared[..., 0]
            > torch.sin(torch.deg2rad(torch.tensor(self.options.min_parallax_deg))).item() ** 2
        )
        close = (near_a - near_b).norm(dim=-1) < self.options.max_gap * pixel_mm
        return TriangulatedPoints(
            h.corner,
            h.weights,
            (near_a + near_b) / 2,
            normal,
            pixel_mm * (1 + steep).sqrt(),
            m.valid & sharp & close,
        )

    @cached_property
    def _corners(self) -> tuple[Points, Tensor]:
        """The vertices that the matches touch, and which of them [G, N, 3] are the corners of a match."""
        unique, place = torch.unique(self.points.corner, return_inverse=True)
        return self.matcher.model.at_vertices(unique), place

    def _residuals(self, state: SceneState) -> Residuals:
        m, p = self.matcher.matches, self.points
        basis, place = self._corners
        vertices = basis.points(*state.coefficients())
        surface = (p.weights[..., None] * vertices[m.view_a[:, None, None], place]).sum(2)
        value = ((surface - p.target) * p.normal).sum(-1) / p.sigma
        return Residuals(value[..., None], p.valid, m.weight)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        return self._residuals(state)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        p, view = self.points, self.matcher.matches.view_a
        basis, place = self._corners
        motion = basis.motion(*state.coefficients()).blended(place, p.weights)
        columns = motion.columns((p.normal / p.sigma[..., None])[..., None, :], view)
        return Linearization(self._residuals(state), (Slot(view, columns),))


# ---- recipes ----


@dataclass(frozen=True)
class TriangulationTerm(FlowTerm):
    options: TriangulationOptions = TriangulationOptions()


@dataclass(frozen=True)
class TriangulationTraining(TriangulationTerm):
    """A training has no `flow` of its own."""

    estimator: str = "dis"


def _make(context: Context, o: TriangulationTerm) -> TriangulatedFlow:
    return TriangulatedFlow(make_matcher(context, o), replace(o.options, seed=context.seed))


SPECS = (
    EnergySpec(
        name="flow_triangulated",
        cls=TriangulatedFlow,
        make=_make,
        role="flow",
        doc=EnergyDoc(
            formula="n . (p - X), X where the rays of a match pass each other",
            unit="mm",
            source="ours, after MVF-Net eq. 8",
            uses=(use(OURS, "gm"),),
            gradient="to the shape alone: poses and cameras count as they were frozen",
        ),
        options=TriangulationTerm,
        training=TriangulationTraining,
        cross_view=True,
        one_person=True,
        load=ask_flow,
    ),
)
