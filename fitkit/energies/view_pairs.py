"""Which photos of a person are compared with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fitkit.scene.state import SceneState


class Neighbors(NamedTuple):
    """View a and the view b that is `apart` places behind it in the order of the yaw, at place `place` of it,
    counted from 0."""

    a: int
    b: int
    apart: int
    place: int


def view_yaw(state: SceneState) -> Tensor:
    """[B] radians, where the camera of each view stands around the head."""
    forward = state.pose.rotation[:, 2].detach()  # the camera's axis in the head frame
    return torch.atan2(forward[:, 0], -forward[:, 2])


def neighbor_views(state: SceneState, neighbors: int, moment: Tensor | None = None) -> list[Neighbors]:
    """Views of the same person whose yaw angles are at most `neighbors` places apart; each pair once.

    moment: [B] int64, views with the same number show one moment. Only those are paired, among them all that
    are alone in theirs, and beside these as few next ones in the order of all views of the person as it takes
    to lead from each view to all others. None: each view is of a moment of its own.
    """
    yaw, numbers = view_yaw(state), range(state.num_views) if moment is None else moment.tolist()
    pairs: list[Neighbors] = []
    for person in state.subject.unique():
        views = (state.subject == person).nonzero().squeeze(1)
        order = views[torch.argsort(yaw[views])].tolist()
        groups = _groups(order, numbers)
        for group in groups:
            for k in range(1, neighbors + 1):
                pairs += [Neighbors(a, b, k, i + k) for i, (a, b) in enumerate(zip(group, group[k:]))]
        pairs += _links(order, groups)
    return pairs


def _groups(order: list[int], moment: Sequence[int]) -> list[list[int]]:
    """The views `order` by moment, in this order; those that are alone in theirs as one group."""
    views = Counter(moment[view] for view in order)
    groups: dict[int | None, list[int]] = {}
    for view in order:
        groups.setdefault(moment[view] if views[moment[view]] > 1 else None, []).append(view)
    return list(groups.values())


def _links(order: list[int], groups: list[list[int]]) -> Iterator[Neighbors]:
    """Next ones in `order` that lead from each group to all others."""
    reached = {view: number for number, group in enumerate(groups) for view in group}
    for i, (a, b) in enumerate(pairwise(order)):
        one, other = reached[a], reached[b]
        if one != other:
            reached = {view: one if number == other else number for view, number in reached.items()}
            yield Neighbors(a, b, 1, i + 1)
