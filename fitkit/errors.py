"""The exception classes of fitkit. Every message says what was expected, what came, where, and what to do."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("fitkit")


class FitkitError(Exception):
    """Base of all errors that a user can cause or mend; the command line prints it without a traceback."""


class InputError(FitkitError):
    """A file, folder, argument or recipe given by the user cannot be used."""


class MissingWeightsError(FitkitError):
    """A model or weight file is not on this machine; the message says how to get it."""


class DegenerateInputError(FitkitError):
    """The numbers given do not determine what was asked for (too few points, all on one line, ...)."""


class FitError(FitkitError):
    """A fit could not produce a usable result."""


def unexpected(error: Exception) -> str:
    """One line for an error that is no FitkitError: our mistake, or that of a package below us."""
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}"


def attempt(what: str, compute: Callable[[], T], otherwise: T, failures: list[str]) -> T:
    """What `compute` gives, where an error must not cost what is there already: then it is `otherwise`, and a
    line in `failures`."""
    try:
        return compute()
    except Exception as error:  # numerics at the edge of what they can
        log.info(what, exc_info=True)
        reason = str(error) if isinstance(error, FitkitError) else unexpected(error)
        failures.append(f"{what} could not be computed ({reason})")
        return otherwise


def check_argument(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Refuse an argument of a Python function that has another type than it takes."""
    if not isinstance(value, kinds):
        raise InputError(f"{name}: expected {expected}, got {type(value).__name__}")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ "did you mean 'NAME'?" with the known name nearest to an unknown one, '' where none is near. cutoff: 1
    = equal."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else ""
