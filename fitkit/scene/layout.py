"""Which numbers of the scene are free, and where each of them stands in the step vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.state import SceneState

BLOCKS = ("identity", "landmarks", "expression", "pose", "focal", "illumination")


@dataclass(frozen=True)
class ParameterLayout:
    """Free parameters of one person in B views, split into shared ones and ones that a single view owns.

    free: block names; sizes: block name -> width; groups: block name -> [B] int64, views with the same number
    share the block (identity and landmarks, the offsets of the 68 points: all; focal: one camera; pose: a
    rigid calibrated rig). A block whose groups are all different is owned by its view. The step vector is
    [shared | own of view 0 | own of view 1 | ...].
    """

    num_views: int
    sizes: dict[str, int]
    groups: dict[str, Tensor]

    @staticmethod
    def of(
        state: SceneState,
        free: Sequence[str],
        share_expression: bool = False,
        focal_groups: Tensor | None = None,
        pose_groups: Tensor | None = None,
    ) -> ParameterLayout:
        """Layout for `state` with the blocks `free`; groups default to: focal and pose own, expression
        own."""
        unknown = [name for name in free if name not in BLOCKS]
        if unknown:
            raise InputError(f"free parameters: expected some of {', '.join(BLOCKS)}; got '{unknown[0]}'")
        if len(state.identity) != 1:
            raise InputError(f"a fit solves for one person, the state holds {len(state.identity)}")
        B = state.num_views
        own, same = torch.arange(B), torch.zeros(B, dtype=torch.int64)
        width = {
            "identity": state.identity.shape[1],
            "landmarks": 3 * 68,
            "expression": state.expression.shape[1],
            "pose": 6,
            "focal": 1,
            "illumination": state.illumination[0].numel(),
        }
        group = {
            "identity": same,
            "landmarks": same,
            "expression": same if share_expression else own,
            "pose": own if pose_groups is None else pose_groups.cpu(),
            "focal": own if focal_groups is None else focal_groups.cpu(),
            "illumination": own,
        }
        names = [name for name in BLOCKS if name in free]
        return ParameterLayout(B, {n: width[n] for n in names}, {n: group[n] for n in names})

    def is_shared(self, name: str) -> bool:
        return name in ("identity", "landmarks") or len(self.groups[name].unique()) < self.num_views

    @cached_property
    def shared(self) -> tuple[str, ...]:
        return tuple(n for n in self.sizes if self.is_shared(n))

    @cached_property
    def own(self) -> tuple[str, ...]:
        return tuple(n for n in self.sizes if not self.is_shared(n))

    @cached_property
    def shared_offsets(self) -> dict[str, int]:
        offsets, total = {}, 0
        for name in self.shared:
            offsets[name] = total
            total += self.sizes[name] * (int(self.groups[name].max()) + 1)
        offsets[""] = total
        return offsets

    @property
    def num_shared(self) -> int:
        return self.shared_offsets[""]

    @cached_property
    def num_own(self) -> int:
        """Parameters owned by each view."""
        return sum(self.sizes[n] for n in self.own)

    @property
    def total(self) -> int:
        return self.num_shared + self.num_views * self.num_own

    @cached_property
    def index(self) -> Tensor:
        """[B, n] int64: where the local parameters of each view (blocks in the order `order`) stand in the
        step."""
        parts = []
        for name in self.shared:
            start = self.shared_offsets[name] + self.groups[name][:, None] * self.sizes[name]
            parts.append(start + torch.arange(self.sizes[name]))
        start = self.num_shared + torch.arange(self.num_views)[:, None] * self.num_own
        parts.append(start + torch.arange(self.num_own))
        return torch.cat(parts, 1)

    def columns(self, names: Sequence[str]) -> Tensor:
        """[B, n] int64: the part of `index` that belongs to the blocks `names`, which are in the order
        `order`."""
        starts, total = {}, 0
        for name in self.order:
            starts[name] = total
            total += self.sizes[name]
        local = torch.cat([starts[name] + torch.arange(self.sizes[name]) for name in names])
        return self.index[:, local]

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Blocks in the order of a view's local parameters."""
        return self.shared + self.own

    def split(self, step: Tensor) -> dict[str, Tensor]:
        """Step [total] -> block name -> [B, width], each view's change (shared blocks repeated)."""
        local = step[self.index.to(step.device)]
        return dict(zip(self.order, local.split([self.sizes[n] for n in self.order], 1)))


def retract(state: SceneState, step: Tensor, layout: ParameterLayout) -> SceneState:
    """The state moved by `step` [total]: coefficients and light are added, the pose moves on the head side
    (`Pose.retract`), the focal length is multiplied by exp(step)."""
    change = layout.split(step)
    update: dict[str, Any] = {}
    if "identity" in change:
        update["identity"] = state.identity + change["identity"][:1]
    if "landmarks" in change:
        moved = change["landmarks"][:1].reshape(1, 68, 3)
        update["landmark_offset"] = moved if state.landmark_offset is None else state.landmark_offset + moved
    if "expression" in change:
        update["expression"] = state.expression + change["expression"]
    if "pose" in change:
        update["pose"] = state.pose.retract(change["pose"])
    if "focal" in change:
        update["camera"] = replace(state.camera, focal=state.camera.focal * change["focal"][:, 0].exp())
    if "illumination" in change:
        update["illumination"] = state.illumination + change["illumination"].reshape(state.illumination.shape)
    return state.replace(**update)
