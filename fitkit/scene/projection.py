"""Model points seen by the cameras, with analytic derivatives. Projection is written once; all energies use
it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.geometry.rotation import skew
from fitkit.models.face_model import Columns, Points
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ProjectedPoints:
    """N model points in each of G views.

    head: [G, N, 3] mm; camera: [G, N, 3] mm; pixels: [G, N, 2]; in_front: [G, N] bool.
    by_head: [G, N, 2, 3] d pixel / d displacement in the head frame; by_focal: [G, N, 2] d pixel / d
    log(focal); by_principal: [G, N, 2, 2] d pixel / d shift of the principal point in focal lengths; None
    unless derivatives were asked for.
    """

    head: Tensor
    camera: Tensor
    pixels: Tensor
    in_front: Tensor
    by_head: Tensor | None = None
    by_focal: Tensor | None = None
    by_principal: Tensor | None = None

    @property
    def by_camera(self) -> dict[str, Tensor]:
        """Derivatives of the pixels by the blocks of the camera, [G, N, 2, width]: by log(focal), by
        log(aspect), which stretches a picture along y, and by shifts of the principal point."""
        assert self.by_focal is not None and self.by_principal is not None, "projected without derivatives"
        along_y = self.by_focal * self.by_focal.new_tensor([0.0, 1.0])
        return {
            "focal": self.by_focal[..., None],
            "aspect": along_y[..., None],
            "principal": self.by_principal,
        }


def project_points(
    basis: Points, state: SceneState, views: Tensor | None = None, derivatives: bool = False
) -> ProjectedPoints:
    """Project the points of `basis` into the views (all, or the int64 index list `views`)."""
    views = torch.arange(state.num_views, device=state.expression.device) if views is None else views
    return project_head_points(basis.points(*state.coefficients(views)), state, views, derivatives)


def project_head_points(
    head: Tensor, state: SceneState, views: Tensor, derivatives: bool = False
) -> ProjectedPoints:
    """Project given head-frame points [G, N, 3] into the views [G]."""
    pose, camera = state.pose.select(views), state.camera.select(views)
    seen = pose.apply(head)
    pixels, in_front = camera.project(seen)
    if not derivatives:
        return ProjectedPoints(head, seen, pixels, in_front)
    by_point, by_focal = camera.project_jacobian(seen)
    by_principal = torch.diag_embed(camera.focal[:, None, None].expand(-1, head.shape[1], 2))
    by_head = by_point @ pose.rotation[:, None]
    return ProjectedPoints(head, seen, pixels, in_front, by_head, by_focal, by_principal)


def pixel_rays(pixels: Tensor, state: SceneState, views: Tensor) -> tuple[Tensor, Tensor]:
    """Viewing rays of pixels [G, N, 2] of the views [G]: origin [G, N, 3] mm and direction [G, N, 3] (not
    unit), head frame.

    A direction advances by one unit along the camera's axis: origin + z * direction has depth z
    (perspective).
    """
    camera, pose = state.camera.select(views), state.pose.select(views)
    away = (pixels - camera.principal[:, None]) / camera.focal[:, None, None]
    away = away / torch.stack([torch.ones_like(camera.aspect), camera.aspect], -1)[:, None]
    one = torch.ones_like(away[..., :1])
    if camera.kind == "perspective":
        return pose.centers()[:, None].expand(*pixels.shape[:2], 3), torch.cat(
            [away, one], -1
        ) @ pose.rotation
    flat = torch.cat([away * camera.REFERENCE_DEPTH, torch.zeros_like(one)], -1)
    return (flat - pose.translation[:, None]) @ pose.rotation, torch.cat(
        [torch.zeros_like(away), one], -1
    ) @ pose.rotation


def motion_columns(
    by_head: Tensor, head: Tensor, motion: Columns, views: Tensor | None = None
) -> dict[str, Tensor]:
    """Chain d value / d head displacement to the parameters that move a point.

    Args:
        by_head: [G, N, D, 3]; head: [G, N, 3] mm; motion: of the N points; views: [G] int64, the frame of the
            motion that each group shows; None: group g shows frame g.
    Returns:
        those of the model's coefficients, see `Motion.columns`, and 'pose' [G, N, D, 6] (rotation, then
        translation, as in `Pose.retract`).
    """
    pose = torch.cat([by_head @ -skew(head), by_head], -1)
    return {**motion.columns(by_head, views), "pose": pose}
