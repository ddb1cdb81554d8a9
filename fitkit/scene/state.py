"""The whole scene in one immutable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.tensors import move


@dataclass(frozen=True)
class SceneState:
    """Everything that is estimated, for B frames of S people. Millimetres, radians, linear RGB.

    identity: [S, K_id] standard-normal coefficients; subject: [B] int64, row of `identity` that each frame
    shows; expression: [B, K_ex], see `FaceModel.coefficients`; pose: camera_from_head; camera: intrinsics in
    pixels; illumination: [B, 9, C] spherical-harmonics bands 0-2 in the head frame, C = 1 (grey) or 3;
    albedo: [S, K_al] standard-normal coefficients of the model's albedo basis, or None: not estimated;
    landmark_offset: [S, 68, 3] mm in the head frame, how far from the model's 68 points those lie that the
    source of landmarks marks on this person, the same in all frames; None: not estimated;
    joints: [B, J, 3] rad, rotation vectors of the model's joints, see `SkinnedModel`; None: at rest.
    """

    identity: Tensor
    subject: Tensor
    expression: Tensor
    pose: Pose
    camera: Camera
    illumination: Tensor
    albedo: Tensor | None = None
    landmark_offset: Tensor | None = None
    joints: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"SceneState({self.num_views} frames of {len(self.identity)} people, {self.identity.shape[1]} "
            f"identity and {self.expression.shape[1]} expression coefficients, {self.camera.kind} cameras)"
        )

    @property
    def num_views(self) -> int:
        return self.expression.shape[0]

    def coefficients(self, views: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Identity [n, K_id], expression [n, K_ex] and joints [n, J, 3] or None of the frames `views` [n],
        None: of all; what points of a face model are functions of."""
        if views is None:
            return self.identity[self.subject], self.expression, self.joints
        joints = None if self.joints is None else self.joints[views]
        return self.identity[self.subject[views]], self.expression[views], joints

    def vertices(self, model: FaceModel) -> Tensor:
        """Head-frame vertices of each frame, [B, V, 3] mm."""
        return model.vertices(*self.coefficients())

    def neutral(self, model: FaceModel) -> Tensor:
        """Head-frame vertices of each person without expression, the joints at rest, [S, V, 3] mm."""
        return model.vertices(
            self.identity, self.identity.new_zeros(len(self.identity), model.num_expression)
        )

    def posed(self, model: FaceModel, views: Sequence[int] | Tensor | None = None) -> Tensor:
        """Camera-frame vertices of the frames `views`, None: of all; [n, V, 3] mm."""
        chosen = self if views is None else self.select(views)
        return chosen.pose.apply(chosen.vertices(model))

    def sight(self, points: Tensor) -> Tensor:
        """Unit vectors from head-frame points [B, N, 3] mm towards the cameras, [B, N, 3] in the head
        frame."""
        if self.camera.kind == "orthographic":
            return -self.pose.rotation[:, 2][:, None].expand_as(points)
        return F.normalize(self.pose.centers()[:, None] - points, dim=-1)

    def select(self, views: Sequence[int] | Tensor) -> SceneState:
        """The frames `views` [n] in this order; all people stay, so that `subject` means what it meant."""
        return self.replace(
            subject=self.subject[views],
            expression=self.expression[views],
            pose=self.pose.select(views),
            camera=self.camera.select(views),
            illumination=self.illumination[views],
            joints=None if self.joints is None else self.joints[views],
        )

    def select_people(self, people: Sequence[int]) -> SceneState:
        """Some of the people, in this order, with all their frames, person by person."""
        people = list(people)
        if people == list(range(len(self.identity))):
            return self
        views, subject = views_of(self.subject, people)
        return self.select(views).replace(
            subject=subject,
            identity=self.identity[people],
            albedo=None if self.albedo is None else self.albedo[people],
            landmark_offset=None if self.landmark_offset is None else self.landmark_offset[people],
        )

    @staticmethod
    def join(parts: Sequence[SceneState]) -> SceneState:
        """The people and frames of several states as one state, in their order. The cameras must be of one
        kind; a light of one channel is repeated beside one of three; what one part does not know (albedo,
        landmark_offset), none does; joints that one part lacks are at rest in it."""
        before = [sum(len(p.identity) for p in parts[:k]) for k in range(len(parts))]
        channels = max(p.illumination.shape[-1] for p in parts)

        def known(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            return None if any(v is None for v in values) else torch.cat(values)

        rest = next((torch.zeros_like(p.joints[:1]) for p in parts if p.joints is not None), None)
        joints = rest is not None and [
            rest.expand(p.num_views, -1, -1) if p.joints is None else p.joints for p in parts
        ]
        return SceneState(
            torch.cat([p.identity for p in parts]),
            torch.cat([p.subject + b for p, b in zip(parts, before)]),
            torch.cat([p.expression for p in parts]),
            Pose.join([p.pose for p in parts]),
            Camera.join([p.camera for p in parts]),
            torch.cat([p.illumination.expand(-1, -1, channels) for p in parts]),
            known("albedo"),
            known("landmark_offset"),
            torch.cat(joints) if joints else None,
        )

    def replace(self, **changes) -> SceneState:
        return replace(self, **changes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SceneState:
        return move(self, device, dtype)


def views_of(subject: Tensor, people: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The frames of some people, person by person: their numbers [B'] int64 and the new number of each one's
    person [B'] int64.

    subject: [B] int64, the person of each frame.
    """
    found = [(subject == person).nonzero()[:, 0] for person in people]
    return torch.cat(found), torch.cat([torch.full_like(views, new) for new, views in enumerate(found)])


def first_views(owner: Tensor) -> Tensor:
    """The first view of each owner, [O] int64, by the numbers of the owners; owner: [B] int64."""
    if not bool(owner.any()):
        return owner.new_zeros(min(1, len(owner)))  # one owner, as of most states
    owners, at = owner.unique(return_inverse=True)
    views = torch.arange(len(owner), device=owner.device)
    return views.new_full((len(owners),), len(owner)).scatter_reduce(0, at, views, "amin")
