"""Every evaluation protocol by its name: one file each, found by itself. Recipes: `recipes/evaluate/`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from fitkit.evaluate.protocols.base import Protocol

PROTOCOLS: dict[str, Protocol] = {
    file.name: import_module(f"{__name__}.{file.name}").PROTOCOL
    for file in iter_modules(__path__)
    if file.name != "base"
}
