"""Which numbers of the scene are free, and where each of them stands in the step vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.blocks import BLOCKS, UNKNOWNS, Block
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ParameterLayout:
    """Free parameters of one person in B views, split into those that a single view owns and shared ones.

    The step vector is [shared | own of view 0 | own of view 1 | ...].
    """

    blocks: tuple[Block, ...]
    num_views: int

    @staticmethod
    def of(
        state: SceneState, free: Sequence[str], owners: Mapping[str, Tensor | None] | None = None
    ) -> ParameterLayout:
        """Layout for `state` with the blocks `free`.

        owners: block name -> [B] whole numbers, views with the same one share a copy of the block: focal: one
        camera; pose: a rigid calibrated rig; None, or not named: each view has its own copy, except of what
        the person owns.

        Raises:
            InputError: unknown names, owners that are not one for each view or of a block of the person, or
                more than one person.
        """
        owners = owners or {}
        unknown = [name for name in (*free, *owners) if name not in BLOCKS]
        if unknown:
            raise InputError(f"free parameters: expected some of {', '.join(BLOCKS)}; got '{unknown[0]}'")
        if len(state.identity) != 1:
            raise InputError(f"a fit solves for one person, the state holds {len(state.identity)}")
        blocks = (u.block(state, owners.get(u.name)) for u in UNKNOWNS if u.name in free)
        return ParameterLayout(tuple(blocks), state.num_views)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Block name -> width."""
        return {block.name: block.width for block in self.blocks}

    def is_shared(self, block: Block) -> bool:
        return block.of_person or block.copies < self.num_views

    @cached_property
    def shared(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks if self.is_shared(b))

    @cached_property
    def own(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks if not self.is_shared(b))

    @cached_property
    def shared_offsets(self) -> dict[str, int]:
        """Where the copies of each shared block begin in the step, and under '' where they end."""
        offsets, total = {}, 0
        for block in filter(self.is_shared, self.blocks):
            offsets[block.name] = total
            total += block.copies * block.width
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
        for block in filter(self.is_shared, self.blocks):
            start = self.shared_offsets[block.name] + block.owner[:, None] * block.width
            parts.append(start + torch.arange(block.width))
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

    @cached_property
    def steps(self) -> Tensor:
        """[total] typical change of each parameter."""
        named = {block.name: block.step for block in self.blocks}
        steps = torch.zeros(self.total)
        steps[self.index] = torch.cat([named[name] for name in self.order])
        return steps


def retract(state: SceneState, step: Tensor, layout: ParameterLayout) -> SceneState:
    """The state moved by `step` [total], block by block, as each of them says."""
    change = layout.split(step)
    for block in layout.blocks:
        state = block.retract(state, change[block.name])
    return state
