"""Every evaluation protocol by its name: one file each, found by itself. Recipes: `recipes/evaluate/`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from fitkit.evaluate.protocols.base import Protocol


def find_protocols() -> dict[str, Protocol]:
    """The `PROTOCOL` of each file of this folder, by the file's name."""
    files = sorted(file.name for file in iter_modules(__path__) if file.name != "base")
    return {name: import_module(f"{__name__}.{name}").PROTOCOL for name in files}


PROTOCOLS = find_protocols()
