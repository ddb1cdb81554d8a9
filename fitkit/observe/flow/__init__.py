"""Optical flow estimators, one file each behind one interface."""

from __future__ import annotations

from collections.abc import Callable

from fitkit.errors import InputError, did_you_mean
from fitkit.observe.flow.types import FlowEstimator

PTLFLOW = "ptlflow:"


def _dis(preset: str) -> Callable[[], FlowEstimator]:
    def make() -> FlowEstimator:
        from fitkit.observe.flow.dis import DisFlow

        return DisFlow(preset)

    return make


def _farneback() -> FlowEstimator:
    from fitkit.observe.flow.farneback import FarnebackFlow

    return FarnebackFlow()


# name -> how to make it; beside these, 'ptlflow:NAME'
ESTIMATORS: dict[str, Callable[[], FlowEstimator]] = {
    "dis": _dis("medium"),
    "dis:ultrafast": _dis("ultrafast"),
    "dis:fast": _dis("fast"),
    "dis:medium": _dis("medium"),
    "dis:fine": _dis("fine"),
    "farneback": _farneback,
}
NAMES = tuple(ESTIMATORS)


def check_estimator(name: str, weights: str | None = None) -> None:
    """Refuse what `make_flow_estimator` cannot make, as far as that shows without loading a package.

    Raises:
        InputError: unknown name (says the nearest known one), or weights for an estimator that has none.
    """
    if name.startswith(PTLFLOW):
        return
    if name not in ESTIMATORS:
        known = (*NAMES, f"{PTLFLOW}NAME")
        hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
        raise InputError(f"flow estimator: unknown name '{name}'; {hint}")
    if weights:
        raise InputError(
            f"flow estimator '{name}' has no weights, got '{weights}'; choose {PTLFLOW}NAME or leave the "
            "weights out"
        )


def make_flow_estimator(name: str, weights: str | None = None, device: str = "cpu") -> FlowEstimator:
    """Estimator by name: 'dis', 'dis:PRESET', 'farneback', or 'ptlflow:NAME' for a network of the package
    ptlflow.

    Args:
        weights: for 'ptlflow:NAME': a checkpoint file, or the name of one of the network's published
            checkpoints;
            None takes the published one trained for general use, downloaded on first use.
        device: torch device of a network; the others work on the CPU.
    Raises:
        InputError: unknown name (says the nearest known one), or weights for an estimator that has none.
        MissingWeightsError: the package is not installed or has no such network, or its weights cannot be had
            or used.
    """
    check_estimator(name, weights)
    if name.startswith(PTLFLOW):
        from fitkit.observe.flow.ptlflow import PtlFlow  # loads the package, which takes seconds

        return PtlFlow(name.removeprefix(PTLFLOW), weights, device)
    return ESTIMATORS[name]()
