"""What an evaluation writes and prints: metrics.json, metrics.csv, error maps, the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import NOT_SCORED
from fitkit.evaluate.protocols.base import ErrorMap, Pool, Protocol
from fitkit.evaluate.recipe import EvaluateRecipe
from fitkit.evaluate.tables import Row, grouped, known, text_table
from fitkit.export.preview import draw_error_map
from fitkit.io.atomic import written_whole
from fitkit.io.options import plain, to_plain

REPORT, TABLE, RECIPE = "metrics.json", "metrics.csv", "recipe.yaml"


def report_of(
    recipe: EvaluateRecipe,
    data: str,
    options: Any,
    protocol: Protocol,
    rows: list[Row],
    pool: Pool,
) -> dict[str, Any]:
    """What metrics.json holds: machine, recipe, rows, means by group, and the protocol's own numbers under
    `overall`.

    Failed and missing samples are rows with an error; `failed` counts them beside every mean, which they do
    not enter.
    """
    return plain(
        {
            "evaluation": recipe.name,
            "protocol": recipe.protocol,
            "data": data,
            "options": to_plain(options),
            "units": protocol.units,
            "machine": machine(),
            "recipe": to_plain(replace(recipe, options=to_plain(options))),
            "rows": rows,
            "summary": summarize(rows, list(protocol.units)),
            "overall": protocol.summarize(rows, pool, options),
        }
    )


def summarize(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """One line for all samples and one for each group: samples, failed, and mean, std (over samples), median
    of each metric."""
    groups = grouped(rows, "group")
    some = {"": list(rows)} | (
        {} if groups.keys() == {("",)} else {name: g for (name,), g in sorted(groups.items())}
    )
    out = []
    for name, chosen in some.items():
        line: Row = {
            "group": name or "all",
            "samples": len(chosen),
            "failed": sum(r["status"] in NOT_SCORED for r in chosen),
        }
        for metric in metrics:
            values = known(chosen, metric)
            if len(values):
                line[metric] = {
                    "mean": float(values.mean()),
                    "std": float(values.std()),
                    "median": float(np.median(values)),
                    "scored": len(values),
                }
        out.append(line)
    return out


def write_report(report: dict[str, Any], folder: Path) -> None:
    """metrics.json, metrics.csv (one line a sample) and recipe.yaml; each written whole or not at all."""
    _write_text(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write_text(folder / RECIPE, yaml.safe_dump(report["recipe"], sort_keys=False, allow_unicode=True))
    keys = list(dict.fromkeys(k for row in report["rows"] for k in row if k != "error"))
    with written_whole(folder / TABLE) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*keys, "error"], restval="")
        writer.writeheader()
        writer.writerows(report["rows"])


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def draw_picture(surface: ErrorMap, path: Path, largest: float) -> None:
    """The error map of a scan as a PNG, turned so that the face looks to the viewer."""
    turn = upright(surface.points)
    center = np.nanmean(surface.points, 0)
    vertices = torch.from_numpy((surface.vertices - center) @ turn.T).float()
    picture = draw_error_map(
        vertices,
        torch.from_numpy(np.asarray(surface.triangles, np.int64)),
        torch.from_numpy(surface.errors).float(),
        largest,
    )
    with written_whole(path) as part:
        Image.fromarray(picture).save(part, format="PNG")


def upright(points: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] that turns a face with these NOW_POINTS [7, 3] upright: x from its right to its left
    eye, y from mouth (the nose bottom, where both of its corners are missing) to eyes, z out of the face."""
    x = points[3] - points[0]
    x = x / np.linalg.norm(x)
    mouth = points[5:7][~np.isnan(points[5:7]).any(1)]
    y = (points[1] + points[2]) / 2 - (mouth.mean(0) if len(mouth) else points[4])
    y = y - (y @ x) * x
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)])


def report_text(report: dict[str, Any]) -> str:
    """The summary as an aligned table, then the protocol's own numbers and the failures."""
    metrics = [m for m in report["units"] if any(m in line for line in report["summary"])]
    head = ("", "samples", "failed", *(f"{m} [{report['units'][m]}]" for m in metrics))
    cells = [
        (
            line["group"],
            str(line["samples"]),
            str(line["failed"]),
            *(f"{line[m]['mean']:.4g} ± {line[m]['std']:.2g}" if m in line else "-" for m in metrics),
        )
        for line in report["summary"]
    ]
    if len(metrics) > len(cells):  # many numbers of few groups: one line for each number
        head, *cells = zip(head, *cells)
    lines = [
        f"{report['evaluation']} on {report['data']}: mean ± std over the samples",
        text_table(head, cells),
        *_own_lines(report["overall"]),
    ]
    bad = [r for r in report["rows"] if r["status"] in NOT_SCORED]
    lines += [f"{r['status']}: {r['id']}: {r['error']}" for r in bad[:10]]
    if len(bad) > 10:
        lines.append(f"... and {len(bad) - 10} more, see {TABLE}")
    return "\n".join(lines)


def _own_lines(overall: dict[str, Any]) -> list[str]:
    out = []
    for key, value in overall.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.4g}" for k, v in value.items() if not isinstance(v, dict))
            if not value:  # tables of tables are for metrics.json
                continue
        else:
            value = f"{value:.4g}"
        out.append(f"{key}: {value}")
    return out
