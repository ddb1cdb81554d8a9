"""Optical flow estimators, one file each behind one interface."""
from __future__ import annotations

import difflib

from fitkit.errors import InputError
from fitkit.observe.flow.types import FlowEstimator

NAMES = ("dis", "dis:ultrafast", "dis:fast", "dis:medium")


def make_flow_estimator(name: str) -> FlowEstimator:
    """Estimator by name: 'dis' or 'dis:PRESET'.

    Raises:
        InputError: unknown name; says the nearest known one.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(NAMES)}"
        raise InputError(f"flow estimator: unknown name '{name}'; {hint}")
    from fitkit.observe.flow.dis import DisFlow

    return DisFlow(name.partition(":")[2] or "medium")
