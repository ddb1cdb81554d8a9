"""Derivatives of energies that write none by hand, by automatic differentiation through `retract`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fitkit.energies.base import Energy, Linearization, Residuals, Slot
from fitkit.errors import InputError
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.state import SceneState, first_views


def linearize(energy: Energy, state: SceneState, observations: Any, free: Sequence[str]) -> Linearization:
    """Residuals of a frozen energy and their derivatives by the blocks `free`, in the form of
    `Linearizable.linearize`.

    One reverse pass finds the parameters that have a say; then each of them takes one forward pass, or each
    number of the residuals one reverse pass, whichever are fewer: cheap for a few hundred, minutes with a
    network inside.

    Raises:
        InputError: an operation inside the energy has no forward derivative; solver 'adam' does without.
    """
    layout = ParameterLayout.of(state, free)
    S, N = layout.num_people, layout.each
    residuals = energy.residuals(state, observations)
    valid = residuals.valid[..., None]
    person = torch.zeros_like(residuals.valid[:, 0], dtype=torch.int64)
    person = person if residuals.person is None else residuals.person

    def moved(step: Tensor) -> Tensor:
        return torch.where(valid, energy.residuals(retract(state, step, layout), observations).value, 0)

    jacobian = residuals.value.new_zeros(residuals.value.numel(), N)  # by the parameters of its person
    with torch.enable_grad():
        step = state.identity.new_zeros(layout.total).requires_grad_()
        value = moved(step)
        columns = _that_matter(value, step, S)
        if len(columns) > value.numel():
            whose = person.repeat_interleave(value[0].numel()).tolist()
            for row, number in enumerate(value.flatten()):
                (gradient,) = torch.autograd.grad(number, step, retain_graph=True)
                jacobian[row] = gradient.reshape(S, N)[whose[row]]
            columns = []
    for k in columns:  # of all people at once, who have nothing in common
        jacobian[:, k] = _by_parameter(energy, moved, step.detach(), torch.arange(S) * N + k)
    value = residuals.value.detach()
    weight = None if residuals.weight is None else residuals.weight.detach()
    slots = _slots(jacobian.reshape(*value.shape, N), layout, person)
    return Linearization(Residuals(value, residuals.valid, weight, residuals.person), slots)


def _that_matter(value: Tensor, step: Tensor, people: int) -> list[int]:
    """Parameters of a person that the residuals depend on: the derivative of a random sum of them is not
    0."""
    if not value.requires_grad:
        return []
    weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value) + 0.5
    (gradient,) = torch.autograd.grad((weights * value).sum(), step, retain_graph=True)
    return gradient.reshape(people, -1).any(0).nonzero()[:, 0].tolist()


def _by_parameter(energy: Energy, moved: Callable[[Tensor], Tensor], at: Tensor, k: Tensor) -> Tensor:
    """Derivatives of all residuals by the parameters k, [G * M * D], that move together."""
    direction = torch.zeros_like(at)
    direction[k] = 1
    try:
        with warnings.catch_warnings():  # torch's own, when it loads forward derivatives for the first time
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            return torch.func.jvp(moved, (at,), (direction,))[1].flatten()
    except NotImplementedError as error:
        raise InputError(
            f"energy '{energy.name}': an operation inside it has no forward derivative "
            f"({str(error).split('.')[0]}), which its least-squares form needs; use solver 'adam' for it"
        ) from error


def _slots(jacobian: Tensor, layout: ParameterLayout, person: Tensor) -> tuple[Slot, ...]:
    """Derivatives [G, M, D, N] by view: each group, of the person [G], has one slot for each view that it
    depends on."""
    B, device = layout.num_views, jacobian.device
    start, by_view = 0, {}  # block -> [G, M, D, B or 1, width]: of the person, or of each view
    for name in layout.shared:
        by_view[name] = jacobian[..., start : start + layout.sizes[name]].unsqueeze(-2)
        start += layout.sizes[name]
    for name in layout.own:
        each = jacobian[..., layout.num_shared :].unflatten(-1, (layout.num_moments, -1))
        at = start - layout.num_shared
        by_view[name] = each[..., layout.moment.to(device), at : at + layout.sizes[name]]
        start += layout.sizes[name]
    depends = torch.zeros(len(jacobian), B, dtype=torch.bool, device=device)
    for name in layout.own:
        depends |= (by_view[name] != 0).any(-1).flatten(1, 2).any(1)
    depends &= person[:, None] == layout.person.to(device)
    # What depends on the person alone counts once, as of the first view.
    first = first_views(layout.person.to(device))[person]
    depends[torch.arange(len(depends), device=device), first] |= ~depends.any(1)
    most = int(depends.sum(1).max())
    order = torch.argsort(depends.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    slots = []
    for k in range(most):
        view = order[:, k]
        rows = torch.arange(len(view), device=device)
        there = depends[rows, view].to(jacobian)[:, None, None, None]
        columns = {name: there * by_view[name][rows, :, :, view] for name in layout.own}
        if k == 0:
            columns |= {name: by_view[name][..., 0, :] for name in layout.shared}
        slots.append(Slot(view, columns))
    return tuple(slots)
