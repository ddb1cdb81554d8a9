"""An evaluation in two steps: predictions to disk, then metrics from the disk. What `fitkit evaluate` does."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from fitkit.data.samples import EvaluationSample
from fitkit.errors import FitkitError, InputError, unexpected
from fitkit.evaluate.compare import aligned
from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import Prediction, make_predictions, read_prediction, read_status
from fitkit.evaluate.protocols import PROTOCOLS, ErrorMap, Protocol
from fitkit.evaluate.recipe import EvaluateRecipe
from fitkit.io.options import plain
from fitkit.export.preview import draw_error_map
from fitkit.io.atomic import written_whole
from fitkit.io.options import read_yaml, to_plain
from fitkit.io.outputs import check_folder
from fitkit.models.registry import load_model

log = logging.getLogger("fitkit")
REPORT, TABLE, RECIPE, PREDICTIONS, PICTURES = (
    "metrics.json",
    "metrics.csv",
    "recipe.yaml",
    "predictions",
    "error_maps",
)
NOT_SCORED = ("failed", "missing")
Tell = Callable[[str], None]


def evaluate(
    recipe: EvaluateRecipe,
    data: str | os.PathLike,
    output: str | os.PathLike,
    predictions: str | os.PathLike | None = None,
    limit: int | None = None,
    resume: bool = False,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Predict every sample of a data set and score the predictions.

    Writes into `output`: predictions/ with recipe.yaml beside them, metrics.json, metrics.csv, recipe.yaml, error_maps/.

    Args:
        predictions: a folder with predictions that are there already: nothing is fitted, samples without one count as missing.
        limit: only the first so many samples. resume: go on with the predictions in `output`; only those that are missing are made.
        tell: gets one line for each finished sample.
    Returns:
        what metrics.json holds, see `report_of`.
    Raises:
        InputError: unusable data, recipe or folders. A sample that fails is a row of the report.
    """
    protocol, options, out = PROTOCOLS[recipe.protocol], recipe.protocol_options(), Path(output)
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected at least 1, got {limit}")
    samples = protocol.samples(data, options)
    doubles = (
        {s.id for s in samples if sum(o.id == s.id for o in samples) > 1}
        if len({s.id for s in samples}) < len(samples)
        else set()
    )
    if doubles:
        raise InputError(f"{data}: several samples are called '{sorted(doubles)[0]}'; rename one")
    samples = samples[:limit]
    folder = out / PREDICTIONS if predictions is None else Path(predictions)
    if predictions is not None:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; expected predictions, or leave --predictions out to have the photos fitted"
            )
        if all(read_status(folder, s.id)["status"] == "missing" for s in samples):
            first = samples[0].id
            raise InputError(
                f"{folder}: no prediction for any of the {len(samples)} samples; "
                f"expected files such as {first}.obj with {first}.npy"
            )
    files = (REPORT, TABLE, RECIPE, f"{PREDICTIONS}/*", f"{PICTURES}/*.png")
    check_folder(out, files, (REPORT, f"{PREDICTIONS}/{RECIPE}"), "evaluate", resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"output {out}: cannot be made ({error.strerror or error}); choose another --output"
        ) from error
    if predictions is None:
        _make(samples, folder, recipe, resume, tell)
    rows, pool = score_all(protocol, options, samples, folder, out / PICTURES, recipe, tell)
    report = report_of(recipe, Path(data).resolve().name, options, protocol, rows, pool)
    write_report(report, out)
    return report


def _make(
    samples: Sequence[EvaluationSample], folder: Path, recipe: EvaluateRecipe, resume: bool, tell: Tell
) -> None:
    """Step one: the predictions, with the recipe that makes them beside them."""
    made = plain({"predictor": recipe.predictor, "model": recipe.model, "fit": to_plain(recipe.fit_recipe())})
    options = recipe.protocol_options()
    drawn = {name: getattr(options, name) for name in PROTOCOLS[recipe.protocol].drawn_by}
    made |= {"samples": plain(drawn)} if drawn else {}
    beside = folder / RECIPE
    if folder.is_dir() and any(folder.iterdir()):
        if not resume:
            raise InputError(
                f"{folder}: there are predictions already; --resume goes on with them, --predictions {folder} only scores "
                "them, or choose another --output"
            )
        earlier = read_yaml(beside) if beside.is_file() else None
        if earlier != made:
            raise InputError(
                f"{folder}: its predictions were made with another recipe or model, or from other photos ({beside.name}); "
                "choose another --output"
            )
    model = load_model(recipe.model)
    _write_text(beside, yaml.safe_dump(made, sort_keys=False, allow_unicode=True))
    make_predictions(samples, folder, model, recipe.fit_recipe(), recipe.predictor, tell)


# ---- step two ----


def score_all(
    protocol: Protocol,
    options: Any,
    samples: Sequence[EvaluationSample],
    folder: Path,
    pictures: Path,
    recipe: EvaluateRecipe,
    tell: Tell = lambda line: None,
) -> tuple[list[dict[str, Any]], dict[str, list]]:
    """Metrics of all predictions in a folder -> one row for each sample, failed ones included, and the pooled values."""
    states = {s.id: read_status(folder, s.id) for s in samples}

    def usable() -> Iterator[tuple[EvaluationSample, Prediction]]:
        for sample in samples:
            if states[sample.id]["status"] not in NOT_SCORED:
                try:
                    yield sample, read_prediction(folder, sample.id)
                except FitkitError:  # told when it is scored
                    continue

    context = protocol.prepare(usable(), options, recipe.model)
    rows, pool, drawn = [], {}, 0
    for number, sample in enumerate(samples, 1):
        state = states[sample.id]
        row: dict[str, Any] = {
            "id": sample.id,
            "group": sample.group,
            "status": state["status"],
            "error": state["error"],
            "seconds": state["seconds"],
        }
        if state["status"] not in NOT_SCORED:
            try:
                scored = protocol.score(sample, read_prediction(folder, sample.id), options, context)
            except FitkitError as error:
                row.update(status="failed", error=str(error))
            except Exception as error:  # noqa: BLE001 - one sample must not cost the numbers of all others
                log.exception("%s", sample.id)
                row.update(status="failed", error=unexpected(error))
            else:
                row.update(scored.values)
                for name, values in scored.pooled.items():
                    pool.setdefault(name, []).append((sample.id, values))
                if scored.picture is not None and drawn < recipe.pictures:
                    draw_picture(
                        scored.picture,
                        pictures / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', sample.id)}.png",
                        recipe.picture_mm,
                    )
                    drawn += 1
        rows.append(row)
        first = next(((k, row[k]) for k in protocol.units if row.get(k) is not None), None)
        value = f"{first[0]} {first[1]:.4g} {protocol.units[first[0]]}" if first else row["status"]
        tell(f"{number}/{len(samples)} {sample.id}: {row['error'] or value}")
    return rows, pool


def report_of(
    recipe: EvaluateRecipe,
    data: str,
    options: Any,
    protocol: Protocol,
    rows: list[dict[str, Any]],
    pool: dict[str, list],
) -> dict[str, Any]:
    """What metrics.json holds: machine, recipe, rows, means by group, and the protocol's own numbers under `overall`.

    Failed and missing samples are rows with an error; `failed` counts them beside every mean, which they do not enter.
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


def summarize(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One line for all samples and one for each group: samples, failed, and mean, std (over samples), median of each metric."""
    groups = list(dict.fromkeys(r["group"] for r in rows))
    out = []
    for name in ["", *sorted(groups)] if len(groups) > 1 or groups != [""] else [""]:
        chosen = [r for r in rows if name in ("", r["group"])]
        line: dict[str, Any] = {
            "group": name or "all",
            "samples": len(chosen),
            "failed": sum(r["status"] in NOT_SCORED for r in chosen),
        }
        for metric in metrics:
            values = np.array([r[metric] for r in chosen if r.get(metric) is not None], np.float64)
            values = values[np.isfinite(values)]
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
    center = surface.points.mean(0)
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
    """Rotation [3, 3] that turns a face with these NOW_POINTS [7, 3] upright: x from its right to its left eye, y from mouth to eyes,
    z out of the face."""
    x = points[3] - points[0]
    x = x / np.linalg.norm(x)
    y = (points[1] + points[2]) / 2 - (points[5] + points[6]) / 2
    y = y - (y @ x) * x
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)])


def report_text(report: dict[str, Any]) -> str:
    """The summary as an aligned table, then the protocol's own numbers and the failures."""
    metrics = [m for m in report["units"] if any(m in line for line in report["summary"])]
    head = ("", "samples", "failed", *(f"{m} [{report['units'][m]}]" for m in metrics))
    table = [
        (
            line["group"],
            str(line["samples"]),
            str(line["failed"]),
            *(f"{line[m]['mean']:.4g} ± {line[m]['std']:.2g}" if m in line else "-" for m in metrics),
        )
        for line in report["summary"]
    ]
    if len(metrics) > len(table):  # many numbers of few groups: one line for each number
        head, *table = zip(head, *table)
    lines = [
        f"{report['evaluation']} on {report['data']}: mean ± std over the samples",
        aligned(head, table),
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
