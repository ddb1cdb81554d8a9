"""What an ablation compares: one recipe with changes, under several names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fitkit.errors import InputError
from fitkit.io.options import Range

PLACE = "{}"  # of the value, in the overrides of a sweep


@dataclass(frozen=True)
class Arm:
    """A recipe with changes, under a name of its own.

    recipe: by name or path, empty: that of the ablation; overrides: 'key=value' lines laid over it; values: a
    sweep: each of them makes an arm, whose name ends with it and in whose overrides it stands in the place
    of '{}'.
    """

    name: str
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    values: tuple[Annotated[float, Range(-1e9, 1e9)], ...] = ()


def expanded(arms: Sequence[Arm], where: str) -> tuple[Arm, ...]:
    """The arms, each sweep as one for each of its values.

    Raises:
        InputError: two of one name, or a sweep without a place for its values; `where` begins the message.
    """
    out: list[Arm] = []
    for arm in arms:
        if not arm.values:
            out.append(arm)
            continue
        if not any(PLACE in line for line in arm.overrides):
            raise InputError(
                f"{where}: arm '{arm.name}': expected '{PLACE}' in one of its overrides, where its values go"
            )
        for value in arm.values:
            lines = tuple(line.replace(PLACE, f"{value:g}") for line in arm.overrides)
            out.append(replace(arm, name=f"{arm.name} {value:g}", overrides=lines, values=()))
    names = [arm.name for arm in out]
    if len(set(names)) < len(names):
        raise InputError(f"{where}: two arms have one name; there are: {', '.join(names)}")
    return tuple(out)
