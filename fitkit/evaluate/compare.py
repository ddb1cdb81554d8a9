"""Two evaluations of the same samples side by side, with bootstrap confidence intervals of the difference."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fitkit.errors import InputError
from fitkit.evaluate.tables import text_table
from fitkit.io.foreign import foreign_file

RESAMPLES = 5000
CONFIDENCE = 0.95


def mean_interval(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Bootstrap confidence interval (95 %, percentile) of the mean of differences [N]; NaN for fewer than 2.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13; scipy.stats.bootstrap.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # loads in half a second, in each worker process

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """metrics.json of an evaluation.

    Raises:
        InputError: no such file, or another kind of file.
    """
    with foreign_file(path, "not the metrics.json of an evaluation") as file:
        report = file.json()
        named = isinstance(report["rows"], list) and all(
            isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("status"), str)
            for row in report["rows"]
        )
        named = (
            named
            and isinstance(report["units"], dict)
            and all(isinstance(unit, str) for unit in report["units"].values())
        )
        if not named or not {"protocol", "data", "options"} <= report.keys():
            raise ValueError("it lacks rows with id and status, units, protocol, data or options")
        other = {
            name
            for row in report["rows"]
            for name in report["units"]
            if not isinstance(row.get(name), (int, float, type(None))) or abs(row.get(name) or 0) > 1e30
        }
        if other:
            raise ValueError(f"'{min(other)}' of a row is not a number, or far too large")
    return report


def compare(first: dict[str, Any], second: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Paired by sample id: only samples that both have scored enter a row; those that one lacks are counted.

    Returns:
        `rows`: for each metric its unit, pairs, both means, the mean difference (second - first), its
            interval `low`, `high`, and
        `lower_in_second`: share of pairs; `unpaired`: samples scored by only one; `failed`: of each.
    Raises:
        InputError: other protocols, or no common sample.
    """
    if first["protocol"] != second["protocol"]:
        raise InputError(
            f"compare: expected two evaluations of one protocol, got '{first['protocol']}' and "
            f"'{second['protocol']}'"
        )
    if (first["data"], first["options"]) != (second["data"], second["options"]):
        told = "; ".join(f"{report['data']} {report['options']}" for report in (first, second))
        raise InputError(
            f"compare: the evaluations differ in data or options ({told}), so their numbers are not "
            "comparable"
        )
    a, b = ({r["id"]: r for r in report["rows"]} for report in (first, second))
    if not a.keys() & b.keys():
        raise InputError("compare: the evaluations have no sample in common")
    rows = []
    for metric, unit in first["units"].items():
        pairs = np.array(
            [
                (a[i][metric], b[i][metric])
                for i in a
                if i in b and a[i].get(metric) is not None and b[i].get(metric) is not None
            ]
        )
        if len(pairs):
            difference = pairs[:, 1] - pairs[:, 0]
            low, high = mean_interval(difference, seed)
            rows.append(
                {
                    "metric": metric,
                    "unit": unit,
                    "pairs": len(pairs),
                    "first": float(pairs[:, 0].mean()),
                    "second": float(pairs[:, 1].mean()),
                    "difference": float(difference.mean()),
                    "low": low,
                    "high": high,
                    "lower_in_second": float((difference < 0).mean()),
                }
            )

    def scored(row):
        return any(row.get(m) is not None for m in first["units"])

    one, two = ({i for i, r in rows_.items() if scored(r)} for rows_ in (a, b))
    return {
        "protocol": first["protocol"],
        "rows": rows,
        "unpaired": sorted(one ^ two),
        "failed": [
            sum(r["status"] in ("failed", "missing") for r in report["rows"]) for report in (first, second)
        ],
    }


def compare_text(result: dict[str, Any], names: tuple[str, str] = ("A", "B")) -> str:
    """The comparison as an aligned table."""
    head = (
        "metric",
        "unit",
        "pairs",
        *names,
        f"{names[1]} - {names[0]}",
        "95 % interval",
        "lower in " + names[1],
    )
    rows = [
        (
            r["metric"],
            r["unit"],
            str(r["pairs"]),
            f"{r['first']:.4g}",
            f"{r['second']:.4g}",
            f"{r['difference']:+.4g}",
            "-" if r["low"] != r["low"] else f"{r['low']:+.4g} to {r['high']:+.4g}",
            f"{100 * r['lower_in_second']:.0f} %",
        )
        for r in result["rows"]
    ]
    lines = [
        text_table(head, rows),
        "",
        "Means over the samples that both have scored; interval: bootstrap of the mean difference over the "
        "samples.",
    ]
    lines.append(
        f"failed or missing: {result['failed'][0]} in {names[0]}, {result['failed'][1]} in {names[1]}"
    )
    if result["unpaired"]:
        some = ", ".join(result["unpaired"][:5]) + (" ..." if len(result["unpaired"]) > 5 else "")
        lines.append(f"not in the table, scored by only one: {len(result['unpaired'])} ({some})")
    return "\n".join(lines)
