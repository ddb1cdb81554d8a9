"""The rows of many fits as means and as text: what all evaluations and benchmarks sum up and print with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


# ---- summaries ----


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """The rows with equal values of these keys together, groups and rows in the order in which they come. A
    row that lacks a key has None there."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def known(rows: Iterable[Row], key: str) -> np.ndarray:
    """The values of a key [N] float64 of the rows that have one; None, NaN and infinite ones are none."""
    values = np.array([row[key] for row in rows if row.get(key) is not None], np.float64)
    return values[np.isfinite(values)]


def means(rows: Sequence[Row], keys: Iterable[str]) -> dict[str, float | None]:
    """The mean of each key over the rows that have a value (`known`); None where no row has."""
    return {key: mean_or_none(known(rows, key)) for key in keys}


def medians(rows: Sequence[Row], keys: Iterable[str]) -> dict[str, float | None]:
    """As `means`, the medians."""
    values = {key: known(rows, key) for key in keys}
    return {key: float(np.median(v)) if len(v) else None for key, v in values.items()}


def mean_or_none(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean of some numbers without those that are NaN or infinite; None where nothing is left."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


# ---- text ----


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number with so many decimals, '-' where there is none; sign: also of positive ones."""
    return "-" if value is None or math.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    """0.683 -> '68 %', '-' where there is none."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, two spaces apart. Columns of numbers (every cell empty, or with a digit or
    sign first) are set to the right, others to the left. head: the titles of the columns; empty: none."""
    lines = [list(head)] * bool(head) + [list(row) for row in rows]
    columns = list(zip(*lines))
    widths = [max(map(len, column)) for column in columns]
    right = [all(c == "" or c[0] in "+-0123456789" for c in column[bool(head) :]) for column in columns]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right)).rstrip()
        for line in lines
    )
