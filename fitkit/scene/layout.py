"""Which numbers of the scene are free, and where each of them stands in the step vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import filterfalse

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.blocks import BLOCKS, UNKNOWNS, Block, numbered
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ParameterLayout:
    """Free parameters of one person in B views, split into those that a single moment owns and shared ones.

    moment: [B] int64, 0 to T - 1: views with the same number show one moment, whose own parameters a solver
    eliminates together. A block belongs to the moments where no two of them use one copy of it. The step
    vector is [shared | own of moment 0 | own of moment 1 | ...]; where moments have different numbers of
    copies, all are given room for the most, and nothing depends on what is left over.
    """

    blocks: tuple[Block, ...]
    moment: Tensor

    @staticmethod
    def of(
        state: SceneState,
        free: Sequence[str],
        owners: Mapping[str, Tensor | None] | None = None,
        moment: Tensor | None = None,
    ) -> ParameterLayout:
        """Layout for `state` with the blocks `free`; those of which it has no numbers are left out.

        owners: block name -> [B] whole numbers, views with the same one share a copy of the block: focal: one
        camera; pose: a rigid calibrated rig; None, or not named: each view has its own copy, except of what
        the person owns; moment: [B] whole numbers, views with the same one were taken at one moment; None:
        each view is of its own.

        Raises:
            InputError: unknown names, no numbers at all, owners or moments that are not one for each view, an
                owner of what the person owns, or more than one person.
        """
        owners = owners or {}
        unknown = [name for name in (*free, *owners) if name not in BLOCKS]
        if unknown:
            raise InputError(f"free parameters: expected some of {', '.join(BLOCKS)}; got '{unknown[0]}'")
        if len(state.identity) != 1:
            raise InputError(f"a fit solves for one person, the state holds {len(state.identity)}")
        chosen = (u for u in UNKNOWNS if u.name in free and u.width(state))
        blocks = tuple(u.block(state, owners.get(u.name)) for u in chosen)
        if not blocks:
            raise InputError(f"free parameters: the state has no numbers for {', '.join(free) or 'anything'}")
        moment = torch.arange(state.num_views) if moment is None else moment
        return ParameterLayout(blocks, numbered(moment, state.num_views, "moments"))

    @property
    def num_views(self) -> int:
        return len(self.moment)

    @cached_property
    def num_moments(self) -> int:
        return int(self.moment.max()) + 1

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Block name -> width."""
        return {block.name: block.width for block in self.blocks}

    def _copies(self, block: Block) -> Tensor:
        """[B] int64, equal for views of one moment that use one copy; in the order of the moments."""
        return self.moment * self.num_views + block.owner

    def is_shared(self, block: Block) -> bool:
        """Whether the person owns it, or two moments use one of its copies."""
        return block.of_person or len(self._copies(block).unique()) > block.copies

    def _rank(self, block: Block) -> Tensor:
        """[B] int64, which of its moment's copies of an own block each view uses, from 0."""
        copies, at = self._copies(block).unique(return_inverse=True)
        return at - torch.searchsorted(copies, self.moment * self.num_views)

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
    def own_offsets(self) -> dict[str, int]:
        """Where each own block begins among the parameters of its moment, and under '' where they end."""
        offsets, total = {}, 0
        for block in filterfalse(self.is_shared, self.blocks):
            offsets[block.name] = total
            total += (int(self._rank(block).max()) + 1) * block.width
        offsets[""] = total
        return offsets

    @property
    def num_own(self) -> int:
        """Parameters owned by each moment."""
        return self.own_offsets[""]

    @property
    def total(self) -> int:
        return self.num_shared + self.num_moments * self.num_own

    @cached_property
    def index(self) -> Tensor:
        """[B, n] int64: where the local parameters of each view (blocks in the order `order`) stand in the
        step."""
        parts = []
        for block in filter(self.is_shared, self.blocks):
            start = self.shared_offsets[block.name] + block.owner[:, None] * block.width
            parts.append(start + torch.arange(block.width))
        for block in filterfalse(self.is_shared, self.blocks):
            start = self.num_shared + self.moment * self.num_own + self.own_offsets[block.name]
            start = start + self._rank(block) * block.width
            parts.append(start[:, None] + torch.arange(block.width))
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
        """Step [total] -> block name -> [B, width], each view's change (copies that views share repeated)."""
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
