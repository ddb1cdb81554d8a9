"""What is done with tensors everywhere: moving all of a value, and one thread for sums that must not vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def move(value: T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T:
    """The tensors within dataclasses and tuples on another device and, those of floating point, of another
    type.

    Everything that is no tensor stays as it is; a value with nothing to move is returned itself.
    """
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, tuple):
        moved = tuple(move(part, device, dtype) for part in value)
        return value if all(new is old for new, old in zip(moved, value)) else moved
    if not dataclasses.is_dataclass(value):
        return value
    parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    changed = {name: new for name, old in parts.items() if (new := move(old, device, dtype)) is not old}
    return dataclasses.replace(value, **changed) if changed else value


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread: sums then do not depend on how many there are, and many short operations take
    less time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
