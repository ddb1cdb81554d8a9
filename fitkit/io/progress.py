"""How far a piece of work is: one object that is handed down from the caller to whatever takes time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fitkit.errors import InputError


@dataclass(frozen=True)
class Step:
    """Where the work is now."""

    text: str  # what is done next; of counted work, what is counted
    share: float  # done, 0 to 1
    done: int = 0  # of counted work
    count: int = 0  # of all that is counted; 0: nothing is
    item: Any = None  # what was finished last


@dataclass(frozen=True)
class Progress:
    """Tells `show` how far the work is; a part of the work gets a `part` and knows nothing of the rest.

    progress.at(0.1, "reading photos")
    fit = progress.part(0.2, 0.9, "fitting")
    for number, stage in enumerate(stages):
        fit.counted(number, len(stages))
    """

    show: Callable[[Step], None] = lambda step: None
    begin: float = 0.0
    end: float = 1.0
    text: str = ""  # while nothing else is said

    @classmethod
    def of(cls, given: Progress | Callable[[str, float], None] | None) -> Progress:
        """What a user gave as `progress`: a function of (text, share), a Progress, or None, which shows
        nothing.

        Raises:
            InputError: something else.
        """
        if given is None or isinstance(given, Progress):
            return given or cls()
        if not callable(given):
            raise InputError(f"progress: expected a function of (text, share), got {type(given).__name__}")
        return cls(lambda step: given(step.text, step.share))

    def part(self, begin: float, end: float, text: str = "") -> Progress:
        """The progress of work that takes from `begin` to `end` of this one, as shares."""
        at = self._share
        return replace(self, begin=at(begin), end=at(end), text=text or self.text)

    def at(self, share: float, text: str = "") -> None:
        """`share` of the work is done, `text` comes next."""
        self.show(Step(text or self.text, self._share(share)))

    def counted(self, done: int, count: int, item: Any = None, text: str = "") -> None:
        """`done` of `count` equal pieces are done, the last one gave `item`."""
        self.show(Step(text or self.text, self._share(done / count if count else 1.0), done, count, item))

    def _share(self, share: float) -> float:
        return self.begin + (self.end - self.begin) * share
