"""Which numbers of the scene are free, and where each of them stands in the step vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.blocks import BLOCKS, UNKNOWNS, Block, numbered
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ParameterLayout:
    """Free parameters of S people in B views, split into those that a single moment owns and shared ones.

    moment: [B] int64, 0 to T - 1: views of a person with the same number show one moment, whose own
    parameters a solver eliminates together. A block belongs to the moments where no two of them use one copy
    of it, in all people. person: [B] int64, whom each view shows; people have nothing in common. The step of
    a person is [shared | own of moment 0 | own of moment 1 | ...], the step vector that of all people in
    turn; where they have different numbers of moments or copies, all are given room for the most, and
    nothing depends on what is left over.
    """

    blocks: tuple[Block, ...]
    moment: Tensor
    person: Tensor

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
                owner of what the person owns, or a person without a view.
        """
        owners = owners or {}
        unknown = [name for name in (*free, *owners) if name not in BLOCKS]
        if unknown:
            raise InputError(f"free parameters: expected some of {', '.join(BLOCKS)}; got '{unknown[0]}'")
        person, S = state.subject.cpu(), len(state.identity)
        if len(person.unique()) != S:
            raise InputError(
                f"people: expected a view of each of the {S}, got views of {len(person.unique())}"
            )
        chosen = (u for u in UNKNOWNS if u.name in free and u.width(state))
        blocks = tuple(u.block(state, owners.get(u.name)) for u in chosen)
        if not blocks:
            raise InputError(f"free parameters: the state has no numbers for {', '.join(free) or 'anything'}")
        moment = torch.arange(state.num_views) if moment is None else moment
        moment = _within(person, numbered(moment, state.num_views, "moments"))
        return ParameterLayout(blocks, moment, person)

    @property
    def num_views(self) -> int:
        return len(self.moment)

    @cached_property
    def num_people(self) -> int:
        return int(self.person.max()) + 1

    @cached_property
    def num_moments(self) -> int:
        """The most that a person has."""
        return int(self.moment.max()) + 1

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Block name -> width."""
        return {block.name: block.width for block in self.blocks}

    @cached_property
    def _moment_of_all(self) -> Tensor:
        """[B] int64, another number for each moment of each person."""
        return self.person * self.num_moments + self.moment

    def is_shared(self, block: Block) -> bool:
        """Whether the person owns it, or two moments use one of its copies."""
        return block.of_person or len(_pairs(self._moment_of_all, block.owner).unique()) > block.copies

    def _rank(self, block: Block) -> Tensor:
        """[B] int64, which copy of a block each view uses, from 0: of those of its person or, of an own
        block, of its moment."""
        return _within(self.person if self.is_shared(block) else self._moment_of_all, block.owner)

    def _room(self, block: Block) -> int:
        """Numbers of the most copies that a person or moment has."""
        return (int(self._rank(block).max()) + 1) * block.width

    @cached_property
    def shared(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks if self.is_shared(b))

    @cached_property
    def own(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks if not self.is_shared(b))

    @cached_property
    def shared_offsets(self) -> dict[str, int]:
        """Where the copies of each shared block begin in the step of a person, and under '' where they
        end."""
        return self._offsets(self.shared)

    @property
    def num_shared(self) -> int:
        return self.shared_offsets[""]

    @cached_property
    def own_offsets(self) -> dict[str, int]:
        """Where each own block begins among the parameters of its moment, and under '' where they end."""
        return self._offsets(self.own)

    def _offsets(self, names: Sequence[str]) -> dict[str, int]:
        room = [self._room(block) for block in self.blocks if block.name in names]
        return dict(zip((*names, ""), accumulate(room, initial=0)))

    @property
    def num_own(self) -> int:
        """Parameters owned by each moment."""
        return self.own_offsets[""]

    @property
    def each(self) -> int:
        """Parameters of each person."""
        return self.num_shared + self.num_moments * self.num_own

    @property
    def total(self) -> int:
        return self.num_people * self.each

    @cached_property
    def index(self) -> Tensor:
        """[B, n] int64: where the local parameters of each view (blocks in the order `order`) stand in the
        step."""
        person, own = self.person * self.each, self.num_shared + self.moment * self.num_own
        blocks, parts = {block.name: block for block in self.blocks}, []
        for name in self.order:
            shared, block = name in self.shared, blocks[name]
            start = self.shared_offsets[name] if shared else own + self.own_offsets[name]
            start = person + start + self._rank(block) * block.width
            parts.append(start[:, None] + torch.arange(block.width))
        return torch.cat(parts, 1)

    def columns(self, names: Sequence[str]) -> Tensor:
        """[B, n] int64: the part of `index` that belongs to the blocks `names`, which are in the order
        `order`; the same tensor for the same names."""
        key = tuple(names)
        if key not in self._known_columns:
            self._known_columns[key] = self._columns(key)
        return self._known_columns[key]

    @cached_property
    def _known_columns(self) -> dict[tuple[str, ...], Tensor]:
        return {}

    @cached_property
    def places(self) -> dict:
        """What `ArrowSystem` knows of where numbers go, the same in all systems of this layout."""
        return {}

    def _columns(self, names: Sequence[str]) -> Tensor:
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


def _pairs(outer: Tensor, inner: Tensor) -> Tensor:
    """[B] int64, equal where both are; in the order of the outer numbers."""
    return outer * (int(inner.max()) + 1) + inner


def _within(outer: Tensor, inner: Tensor) -> Tensor:
    """[B] int64: which of the inner numbers that occur with its outer number each has, from 0."""
    pairs, at = _pairs(outer, inner).unique(return_inverse=True)
    return at - torch.searchsorted(pairs, outer * (int(inner.max()) + 1))
