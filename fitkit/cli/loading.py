"""Loading of large packages."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For the imports that bring torch: its 200,000 objects stay to the end, so nothing looks for garbage
    among them, neither while they come, again and again, nor later. Without effect once torch is there."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
