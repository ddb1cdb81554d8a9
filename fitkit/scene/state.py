"""The whole scene in one immutable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose


@dataclass(frozen=True)
class SceneState:
    """Everything that is estimated, for B frames of S people. Millimetres, radians, linear RGB.

    identity: [S, K_id] standard-normal coefficients; subject: [B] int64, row of `identity` that each frame shows;
    expression: [B, K_ex], 0 (off) to 1 (on); pose: camera_from_head; camera: intrinsics in pixels;
    illumination: [B, 9, C] spherical-harmonics bands 0-2 in the head frame, C = 1 (grey) or 3;
    albedo: [S, K_al] standard-normal coefficients of the model's albedo basis, or None: not estimated;
    landmark_offset: [S, 68, 3] mm in the head frame, how far from the model's 68 points those lie that the source of landmarks marks
    on this person, the same in all frames; None: not estimated.
    """

    identity: Tensor
    subject: Tensor
    expression: Tensor
    pose: Pose
    camera: Camera
    illumination: Tensor
    albedo: Tensor | None = None
    landmark_offset: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"SceneState({self.num_views} frames of {len(self.identity)} people, {self.identity.shape[1]} identity and "
            f"{self.expression.shape[1]} expression coefficients, {self.camera.kind} cameras)"
        )

    @property
    def num_views(self) -> int:
        return self.expression.shape[0]

    def vertices(self, model: FaceModel) -> Tensor:
        """Head-frame vertices of each frame, [B, V, 3] mm."""
        return model.vertices(self.identity[self.subject], self.expression)

    def neutral(self, model: FaceModel) -> Tensor:
        """Head-frame vertices of each person without expression, [S, V, 3] mm."""
        return model.vertices(
            self.identity, self.identity.new_zeros(len(self.identity), model.num_expression)
        )

    def replace(self, **changes) -> "SceneState":
        return replace(self, **changes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SceneState":
        def move(x):
            return None if x is None else x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return SceneState(
            move(self.identity),
            move(self.subject),
            move(self.expression),
            Pose(move(self.pose.rotation), move(self.pose.translation)),
            replace(
                self.camera,
                focal=move(self.camera.focal),
                principal=move(self.camera.principal),
                aspect=move(self.camera.aspect),
            ),
            move(self.illumination),
            move(self.albedo),
            move(self.landmark_offset),
        )


def select_people(state: SceneState, people: Sequence[int]) -> SceneState:
    """The state of some of its people, in this order, with all their views."""
    if list(people) == list(range(len(state.identity))):
        return state
    views, subject = views_of(state.subject, people)
    return SceneState(
        state.identity[list(people)],
        subject,
        state.expression[views],
        state.pose.select(views),
        state.camera.select(views),
        state.illumination[views],
        None if state.albedo is None else state.albedo[list(people)],
        None if state.landmark_offset is None else state.landmark_offset[list(people)],
    )


def views_of(subject: Tensor, people: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The frames of some people, person by person: their numbers [B'] int64 and the new number of each one's person [B'] int64.

    subject: [B] int64, the person of each frame.
    """
    found = [(subject == person).nonzero()[:, 0] for person in people]
    return torch.cat(found), torch.cat([torch.full_like(views, new) for new, views in enumerate(found)])
