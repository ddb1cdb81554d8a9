"""Does a fit know when it is wrong? Its status and its expected error against the true error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitkit.errors import InputError
from fitkit.evaluate.tables import percent, text_table

STATUS = ("ok", "doubtful", "failed")
LIMIT_MM = 1.5


@dataclass(frozen=True)
class Confusion:
    """Numbers of fits. A fit is bad when its true error is above the limit, and flagged when it was said to
    be bad.

    caught: bad and flagged; missed: bad, not flagged; false_alarm: good, but flagged; passed: good, not
    flagged.
    """

    caught: int
    missed: int
    false_alarm: int
    passed: int

    @property
    def caught_share(self) -> float:
        """Of the bad fits, those that are flagged (sensitivity); NaN without a bad fit."""
        return _share(self.caught, self.caught + self.missed)

    @property
    def alarm_share(self) -> float:
        """Of the good fits, those that are flagged (false positive rate); NaN without a good fit."""
        return _share(self.false_alarm, self.false_alarm + self.passed)

    @property
    def right_share(self) -> float:
        """Of the flagged fits, those that are bad (precision); NaN when none is flagged."""
        return _share(self.caught, self.caught + self.false_alarm)

    @property
    def missed_share(self) -> float:
        """Of the fits that are not flagged, those that are bad: what a user who trusts the verdict gets; NaN
        when all are flagged."""
        return _share(self.missed, self.missed + self.passed)


@dataclass(frozen=True)
class VerdictTable:
    """limit: mm; counts: status -> (good fits, bad fits), of those whose error is known; unknown: status ->
    fits whose error is not known; by_status: flagged = any status but 'ok'; by_failed: flagged = 'failed';
    by_expected: flagged = expected error above the limit, over the fits whose errors are both known;
    by_either: flagged = status other than 'ok' or expected error above the limit (an unknown one is not);
    ratio: median of true over expected error, rank: Spearman's correlation of both, NaN with fewer than 3
    fits or where one of both never changes. The last four are None when no expected error is given."""

    limit: float
    counts: dict[str, tuple[int, int]]
    unknown: dict[str, int]
    by_status: Confusion
    by_failed: Confusion
    by_expected: Confusion | None = None
    by_either: Confusion | None = None
    ratio: float | None = None
    rank: float | None = None


def verdict_table(
    status: Sequence[str],
    error: Sequence[float],
    expected: Sequence[float] | None = None,
    limit: float = LIMIT_MM,
) -> VerdictTable:
    """Confusion table of what N fits say about themselves and what is true.

    Args:
        status: [N] 'ok', 'doubtful' or 'failed'; error: [N] mm, true error, NaN = not known (a fit without a
            result): such fits are counted in `unknown` only; expected: [N] mm, what the fit expects it to be,
            NaN = it does not say; limit: mm, a fit with a larger error is bad.
    Raises:
        InputError: another status, lists of different lengths, or a limit that is not positive.
    """
    status, error = np.asarray(status, object), np.asarray(error, np.float64)
    other = [s for s in status if s not in STATUS]
    if other:
        raise InputError(f"status: expected {', '.join(STATUS)}; got {other[0]!r}")
    if expected is not None:
        expected = np.asarray(expected, np.float64)
    if error.shape != status.shape or (expected is not None and expected.shape != status.shape):
        got = [list(v.shape) for v in (status, error, expected) if v is not None]
        raise InputError(f"status, error, expected: expected [N] each, got {', '.join(map(str, got))}")
    if not limit > 0:
        raise InputError(f"limit: expected more than 0 mm, got {limit}")
    known = np.isfinite(error)
    bad = error > limit
    counts = {
        s: (int((known & ~bad & (status == s)).sum()), int((known & bad & (status == s)).sum()))
        for s in STATUS
    }
    unknown = {s: int((~known & (status == s)).sum()) for s in STATUS}

    def confusion(flagged: np.ndarray, used: np.ndarray) -> Confusion:
        return Confusion(
            *(
                int((used & (bad == b) & (flagged == f)).sum())
                for b, f in ((True, True), (True, False), (False, True), (False, False))
            )
        )

    table = VerdictTable(
        limit, counts, unknown, confusion(status != "ok", known), confusion(status == "failed", known)
    )
    if expected is None:
        return table
    from scipy.stats import spearmanr  # loads in half a second, in each worker process

    both, over = known & np.isfinite(expected), np.isfinite(expected) & (expected > limit)
    a, b = error[both], expected[both]
    ratio = float(np.median(a[b > 0] / b[b > 0])) if (b > 0).any() else float("nan")
    rank = (
        float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
    )
    return VerdictTable(
        limit,
        counts,
        unknown,
        table.by_status,
        table.by_failed,
        confusion(over, both),
        confusion((status != "ok") | over, known),
        ratio,
        rank,
    )


def verdict_text(table: VerdictTable) -> str:
    """The counts by status, then one line for each way to flag a fit."""
    head = ("status", f"error <= {table.limit:g} mm", f"> {table.limit:g} mm", "not known")
    lines = [text_table(head, [(s, *map(str, table.counts[s]), str(table.unknown[s])) for s in STATUS]), ""]
    ways = (
        ("status not ok", table.by_status),
        ("status failed", table.by_failed),
        (f"expected > {table.limit:g} mm", table.by_expected),
        ("either", table.by_either),
    )
    head = (
        "flagged by",
        "bad: flagged",
        "not",
        "good: flagged",
        "not",
        "bad flagged",
        "good flagged",
        "bad of not flagged",
    )
    lines.append(
        text_table(
            head,
            [
                (
                    name,
                    *(str(v) for v in (c.caught, c.missed, c.false_alarm, c.passed)),
                    *(percent(v) for v in (c.caught_share, c.alarm_share, c.missed_share)),
                )
                for name, c in ways
                if c is not None
            ],
        )
    )
    if table.ratio is not None:
        lines += [
            "",
            f"true over expected error: median {table.ratio:.2f}; rank correlation {table.rank:.2f}",
        ]
    return "\n".join(lines)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
