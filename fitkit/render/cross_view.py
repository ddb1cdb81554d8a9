"""The surface behind the pixels of one view, looked up in another: what I_{a->b}, view a's colours at view b,
is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.rows import blend, rows_at
from fitkit.models.face_model import FaceModel
from fitkit.observe.sampling import sample
from fitkit.render.rasterizer import Fragments, barycentrics, rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.state import SceneState

LEAST_ANGLE = 0.01  # cosine that stands for surface which turns away, where a mask of pixels lets it count


@dataclass(frozen=True)
class CrossViews:
    """fragments: of all views at size (h, w); triangles: [F, 3]; attributes: [B, V, 5], clip coordinates and
    the cosine of the viewing angle (detached); reduction: crop pixel p lies at (p + 1/2) / reduction - 1/2 in
    the maps."""

    fragments: Fragments
    triangles: Tensor
    attributes: Tensor
    reduction: float

    @staticmethod
    def of(
        model: FaceModel,
        state: SceneState,
        size: tuple[int, int],
        reduction: float,
        triangle: Tensor | None = None,
    ) -> CrossViews:
        """Rasterize all views; differentiable in the state.

        triangle: [B, h, w] int64, a fixed triangle map (-1 where nothing): then nothing is rasterized, the
        pixels' rays meet the planes of these triangles, which is smooth in the state, and `fragments.depth`
        is not computed (0).
        """
        camera = state.camera.resized(reduction)
        vertices = state.vertices(model)
        clip = camera.clip(state.pose.apply(vertices))
        if triangle is None:
            fragments = rasterize(clip, model.triangles, size)
        else:
            depth = torch.zeros_like(triangle, dtype=clip.dtype)
            fragments = Fragments(
                triangle, barycentrics(clip, model.triangles, triangle), depth, triangle >= 0
            )
        with torch.no_grad():
            cosine = (vertex_normals(vertices, model.triangles) * state.sight(vertices)).sum(-1)
        # What is linear on a triangle: homogeneous pixels, depth, cosine. Interpolating it with the
        # barycentrics of view b gives where the same material point lies in view a.
        return CrossViews(fragments, model.triangles, torch.cat([clip, cosine[..., None]], -1), reduction)

    def pixels(self, a: int, b: int, place: Tensor) -> Tensor:
        """Where in view a the surface behind pixels `place` [N] (flat index) of view b lies, [N, 2] px of the
        maps."""
        at = blend(self.attributes[a], *self._surface(b, place))
        return at[:, :2] / at[:, 3:4]

    def seen(self, a: int, b: int, place: Tensor, tolerance_mm: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `pixels`, whether view a sees the surface there: z-buffer test [N] bool, and the smaller of the
        two cosines of the viewing angles [N]; detached."""
        with torch.no_grad():
            surface = self._surface(b, place)
            at = blend(self.attributes[a], *surface)
            pixel = at[:, :2] / at[:, 3:4]
            crop = (pixel + 0.5) * self.reduction - 0.5
            visible = seen_by_depth(
                crop[None], at[None, :, 2], self.fragments.depth[a][None], self.reduction, tolerance_mm
            )[0]
            return pixel, visible, torch.minimum(blend(self.attributes[b, :, 4], *surface), at[:, 4])

    def _surface(self, b: int, place: Tensor) -> tuple[Tensor, Tensor]:
        """Corners [N, 3] and barycentrics [N, 3] behind pixels `place` of view b."""
        corner = rows_at(self.triangles, self.fragments.triangle[b].reshape(-1)[place])
        return corner, rows_at(self.fragments.barycentric[b].reshape(-1, 3), place)


@dataclass(frozen=True)
class SharedPixels:
    """The pixels of view b that show surface which view a sees, for P ordered pairs (a, b) of views.
    Constant.

    triangle: [B, h, w] int64 of all views; place: of each pair, [N] int64 flat index into view b; angle: [P,
    h * w] the smaller of both cosines of the viewing angles there, 0 elsewhere; reduction: as in CrossViews.
    """

    pairs: tuple[tuple[int, int], ...]
    triangle: Tensor
    place: tuple[Tensor, ...]
    angle: Tensor
    reduction: float

    @staticmethod
    def of(
        model: FaceModel,
        state: SceneState,
        mask: Tensor,
        reduction: float,
        pairs: Sequence[tuple[int, int]],
        tolerance_mm: float = 3.5,
        min_cosine: float = 0.25,
        covisible: Callable[[CrossViews], Tensor] | None = None,
    ) -> SharedPixels:
        """Skin that lies inside the masks [B, 1, h, w] of both views, is not hidden in view a and does not
        turn away.

        covisible: instead of the last two, views -> [P, h, w] bool, pixels of view b that show what view a
        sees.
        """
        with torch.no_grad():
            h, w = mask.shape[-2:]
            views = CrossViews.of(model, state, (h, w), reduction)
            triangle = views.fragments.triangle
            skin = model.skin[model.triangles].all(1)
            usable = views.fragments.covered & (mask[:, 0] > 0.999) & skin[triangle.clamp_min(0)]
            places, angles = [], mask.new_zeros(len(pairs), h * w)
            chosen = None if covisible is None else covisible(views).flatten(1)
            for g, (a, b) in enumerate(pairs):
                place = usable[b].reshape(-1).nonzero().squeeze(1)
                pixel, seen, angle = views.seen(a, b, place, tolerance_mm)
                inner, inside = sample(mask[a][None], pixel[None])
                if chosen is None:
                    seen = seen & (angle > min_cosine)
                else:
                    seen, angle = chosen[g, place], angle.clamp_min(LEAST_ANGLE)
                keep = seen & inside[0] & (inner[0, :, 0] > 0.999)
                places.append(place[keep])
                angles[g, place[keep]] = angle[keep].to(angles)
            return SharedPixels(tuple(pairs), triangle, tuple(places), angles, reduction)

    @property
    def seen(self) -> Tensor:
        """[P, h, w] bool."""
        return (self.angle > 0).reshape(-1, *self.triangle.shape[1:])

    def render(self, model: FaceModel, state: SceneState, images: Tensor, base: Tensor) -> Tensor:
        """I_{a->b} of each pair: view a's colours where it sees the surface behind the pixel of view b,
        `base` elsewhere.

        Args:
            images: [B, C, h, w]; base: [P, C, h, w].
        Returns:
            [P, C, h, w], differentiable in the state: through the sampling of photo a and the plane of the
            triangle behind each pixel. Which pixels are seen stays fixed.
        """
        C, h, w = images.shape[1:]
        views = CrossViews.of(model, state, (h, w), self.reduction, self.triangle)
        channel = torch.arange(C, device=images.device)[:, None]
        out = []
        for (a, b), place, under in zip(self.pairs, self.place, base):
            value, _ = sample(images[a][None], views.pixels(a, b, place)[None])
            out.append(under.reshape(C, -1).index_put((channel, place[None]), value[0].T.to(under)))
        return torch.stack(out).reshape(-1, C, h, w)
