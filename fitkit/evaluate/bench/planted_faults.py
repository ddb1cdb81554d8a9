"""Fits of people with known shape, as they are and with planted faults: does the verdict of a fit tell the
truth?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fitkit.errors import FitkitError, InputError
from fitkit.evaluate.bench.photos import Tell, spread_positions
from fitkit.evaluate.bench.scores import score_neutral
from fitkit.evaluate.bench.truth import Truth, load_truth, subject_names
from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import face_of_fit
from fitkit.evaluate.tables import Row, grouped, mean_or_none, number, percent, text_table
from fitkit.evaluate.verdicts import STATUS, verdict_table, verdict_text
from fitkit.fitting.findings import MEAN_OF_SIGMA, OK_MM, judge
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.report import FitReport
from fitkit.fitting.run import fit_observed
from fitkit.io.foreign import foreign_file
from fitkit.io.options import to_plain
from fitkit.io.subject import Subject, View, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.types import Landmarks

CLEAN = ""
# One photo shows another person, half of the photos do, one is mirrored, is covered by a third, is blurred.
FAULTS = ("person", "half", "mirror", "occluder", "blur")
# Of the landmark box; a hand's colour; length over width.
OCCLUDER_SHARE, OCCLUDER_RGB, OCCLUDER_LONG = (1 / 3, (198, 146, 120), 1.6)
BLUR_SHARE = 0.04  # standard deviation over the face size
HARM_MM = 0.2  # a fault that makes the face worse by less has done no harm
KEPT = (
    "num_views",
    "parallax_deg",
    "two_people",
    "identity",
    "expression",
    "error_bars",
    "views",
    "notes",
    "recipe",
    "model",
)


# ---- faults ----


def plant(
    kind: str, view: View, points: np.ndarray, rng: np.random.Generator, other: View | None = None
) -> View:
    """The view with a fault and without landmarks: they are to be found anew.

    Args:
        kind: one of FAULTS; points: [N, 2] px, landmarks of the photo as it is, which say where the face is;
            other: a photo of another person, for 'person' and 'half'.
    """
    image: Any = view.image
    donor: Any = other
    low, high = points.min(0), points.max(0)
    width, height = high - low
    if kind in ("person", "half"):
        image = donor.image
    elif kind == "mirror":
        image = np.ascontiguousarray(image[:, ::-1])
    elif kind == "occluder":
        across = np.sqrt(OCCLUDER_SHARE * width * height / (np.pi * OCCLUDER_LONG))
        center = low + rng.uniform(0.25, 0.75, 2) * (width, height)
        image = cv2.ellipse(
            image.copy(),
            (tuple(center), (2 * across * OCCLUDER_LONG, 2 * across), rng.uniform(0, 180)),
            OCCLUDER_RGB,
            -1,
        )
    elif kind == "blur":
        image = cv2.GaussianBlur(image, (0, 0), BLUR_SHARE * float(np.sqrt(width * height)))
    else:
        raise InputError(f"fault: expected one of {', '.join(FAULTS)}; got '{kind}'")
    return view.replace(image=image, landmarks=None, landmark_source="")


# ---- fits ----


def measure(
    data: Sequence[str | os.PathLike],
    models: Sequence[str] = ("generic",),
    recipe: str = "multiview",
    counts: Sequence[int] = (1, 3, 5),
    faults: Sequence[str] = FAULTS,
    subjects: int = 0,
    seed: int = 0,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Fit every subject with so many of its photos, as they are and with each fault in one of them.

    Args:
        data: folders as for `fitkit bench accuracy`. counts: numbers of photos, evenly spread over those
            there are.
        faults: some of FAULTS; a single photo cannot be told to show another person or a mirrored one, so it
            gets none of these.
        subjects: only the first so many of each folder, 0 = all. seed: decides which photo gets a fault and
            where.
        overrides: 'key=value' changes of the recipe; landmarks are found by the built-in detector unless they
            say otherwise.
    Returns:
        what the JSON file holds: machine, recipe, and one row for each fit with its true error (`now_mean` of
            `score`), what it says
        about itself, and the metrics that it judges by.
    Raises:
        InputError: unusable data, unknown fault or model, no count.
    """
    unknown = [f for f in faults if f not in FAULTS]
    if unknown or not counts or min(counts) < 1:
        raise InputError(
            f"faults: expected some of {', '.join(FAULTS)}, got '{unknown[0]}'"
            if unknown
            else f"views: expected numbers of photos from 1 on, got {list(counts)}"
        )
    plan = load_recipe(recipe, ("landmarks.source=builtin", *overrides))
    loaded, facts, rows = [load_model(m) for m in models], machine(), []
    for folder in map(Path, data):
        names = subject_names(folder)
        for i, name in enumerate(names[: subjects or None]):
            truth, person = load_truth(folder / "ground_truth" / name), load_subject(folder / name)
            other = load_subject(folder / names[(i + 1) % len(names)]) if len(names) > 1 else None
            for count in counts:
                chosen = spread_positions(len(person.views), min(count, len(person.views)))
                few = replace(person, views=tuple(person.views[v] for v in chosen))
                for row in _fits(
                    few, other, truth, loaded, plan, faults, np.random.default_rng([seed, i, count])
                ):
                    rows.append({"data": folder.resolve().name, "subject": name, "views": count} | row)
                    tell(
                        " ".join(str(rows[-1][k]) for k in ("data", "subject", "views", "model", "fault"))
                        + ": "
                        + (row["error"] or f"{row['now_mean']:.2f} mm, {row['status']}")
                    )
    return judged_again(
        {
            "benchmark": "verdicts",
            "unit": "mm",
            "machine": facts,
            "overrides": list(overrides),
            "seed": seed,
            "recipes": {plan.name: to_plain(plan)},
            "rows": rows,
        }
    )


def _fits(
    person: Subject,
    other: Subject | None,
    truth: Truth,
    models: Sequence[FaceModel],
    plan: FitRecipe,
    faults: Sequence[str],
    rng: np.random.Generator,
):
    """Rows of one subject with these photos: clean, then each fault, by model."""
    source = plan.landmarks.source
    found, _ = detect_landmarks(person, source)
    victim = int(rng.integers(len(person.views)))
    seeds = {kind: int(rng.integers(2**31)) for kind in FAULTS}
    points = found.points[victim][found.valid[victim]].numpy()
    for kind in (CLEAN, *faults):
        subject, marks = person, found
        alone, lonely = len(person.views) == 1, kind in ("person", "half") and other is None
        if (kind in ("person", "half", "mirror") and alone) or lonely or (kind and not len(points)):
            continue
        if kind:
            bad = range((len(person.views) + 1) // 2, len(person.views)) if kind == "half" else [victim]
            views = list(person.views)
            for i in bad:
                donor = None if other is None else other.views[min(i, len(other.views) - 1)]
                views[i] = plant(kind, views[i], points, np.random.default_rng(seeds[kind]), donor)
            subject = replace(person, views=tuple(views))
            marks, _ = detect_landmarks(subject, source)
        for model in models:
            row = {"model": model.name, "fault": kind, "view": person.views[victim].name if kind else None}
            try:
                yield row | _fit(*usable_views(subject, marks), truth, model, plan)
            except FitkitError as error:
                yield row | {"now_mean": None, "status": "failed", "error": str(error), "metrics": None}


def _fit(
    subject: Subject, found: Landmarks, notes: Sequence[str], truth: Truth, model: FaceModel, plan: FitRecipe
) -> dict[str, Any]:
    result = fit_observed(subject, found, model, plan, notes=(*subject.notes, *notes))
    values = score_neutral(face_of_fit(result), truth).values
    kept = {k: result.metrics[k] for k in KEPT if k in result.metrics}
    kept["stages"] = [{k: s[k] for k in ("name", "identity_change")} for s in result.metrics["stages"]]
    return {"now_mean": values["now_mean"], "status": result.status, "error": "", "metrics": kept}


def judged_again(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the verdicts of today's thresholds and constants on the metrics of its fits; nothing is
    fitted."""
    return report | {"rows": [row | _verdict_of(row) for row in report["rows"]]}


def _verdict_of(row: dict[str, Any]) -> dict[str, Any]:
    if row["metrics"] is None:
        return {"status": "failed", "expected_mm": None, "upper_mm": None, "found": []}
    report = judge(FitReport.from_metrics(row["metrics"], "metrics of a fit"))
    return {
        "status": report.status,
        "expected_mm": report.verdict.expected_mm,
        "upper_mm": report.verdict.upper_mm,
        "found": [[f.code, f.view] for f in report.verdict.findings if f.severity != "note"],
    }


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON file of `fitkit bench verdicts`, judged again.

    Raises:
        InputError: no such file, or another kind of file.
    """
    with foreign_file(path, "not a JSON file of 'fitkit bench verdicts'") as file:
        report = file.json()
        if report["benchmark"] != "verdicts":
            raise ValueError(f"it holds a benchmark '{report['benchmark']}'")
        return judged_again(report)


# ---- text ----


def text(report: dict[str, Any], limit: float = OK_MM) -> str:
    """The report as tables: what fits expect and what is true, verdicts on fits as they are, faults, numbers
    for the constants."""
    rows = report["rows"]
    clean = [r for r in rows if r["fault"] == CLEAN]
    parts = [
        "Fits of the photos as they are (mm: true error, expected error; the bound should hold for 90 %)",
        _groups(clean),
    ]
    for title, some in (
        ("one photo", [r for r in clean if r["views"] == 1]),
        ("several photos", [r for r in clean if r["views"] > 1]),
    ):
        if some:
            table = verdict_table(
                [r["status"] for r in some], _numbers(some, "now_mean"), _numbers(some, "expected_mm"), limit
            )
            parts += ["", f"Verdicts, {title}", verdict_text(table)]
    if len(clean) < len(rows):
        parts += [
            "",
            f"One photo with a fault (harmful: the error grows by more than {HARM_MM:g} mm)",
            _faults_text(rows),
        ]
    return "\n".join([*parts, "", "For the constants of fitkit/fitting/report.py", _constants_text(rows)])


def _numbers(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if r[key] is None else r[key] for r in rows])


def _groups(clean: Sequence[Row]) -> str:
    rows = []
    for group, some in sorted(grouped(clean, "data", "model", "views").items()):
        some = [r for r in some if r["now_mean"] is not None]
        true, expected, upper = (_numbers(some, k) for k in ("now_mean", "expected_mm", "upper_mm"))
        counts = ", ".join(f"{n} {s}" for s in STATUS if (n := sum(r["status"] == s for r in some)))
        means = (number(mean_or_none(v), 2) for v in (true, expected, true / expected))
        rows.append((*map(str, group), str(len(some)), *means, percent(mean_or_none(true <= upper)), counts))
    head = ("data", "model", "photos", "fits", "true", "expected", "ratio", "below bound", "status")
    return text_table(head, rows)


def key(row: dict[str, Any]) -> tuple:
    """What tells a fit from the others."""
    return tuple(row[k] for k in ("data", "subject", "views", "model", "fault"))


def fault_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fits with a fault, each with `harm`: mm by which its error exceeds that of the same photos without
    it (None without a result), and `named`: a finding names the faulty photo, or says that two photos
    disagree or that there are two people, or the photo was left out."""
    base = {key(r): r["now_mean"] for r in rows if r["fault"] == CLEAN}
    out = []
    for r in rows:
        if r["fault"] != CLEAN:
            clean = base.get(key(r | {"fault": CLEAN}))
            harm = None if r["now_mean"] is None or clean is None else r["now_mean"] - clean
            gone = r["metrics"] is not None and r["view"] not in [v["name"] for v in r["metrics"]["views"]]
            out.append(
                r
                | {
                    "harm": harm,
                    "named": gone
                    or any(
                        view == r["view"] or code in ("views_disagree", "two_people")
                        for code, view in r["found"]
                    ),
                }
            )
    return out


def _faults_text(rows: Sequence[Row]) -> str:
    lines = []
    for (kind,), some in grouped(fault_rows(rows), "fault").items():
        harm = _numbers(some, "harm")
        bad = [r for r in some if r["harm"] is None or r["harm"] > HARM_MM]
        good = [r for r in some if r not in bad]
        largest = float(np.nanmax(harm)) if np.isfinite(harm).any() else None
        lines.append(
            (
                kind,
                str(len(some)),
                number(mean_or_none(harm), 2, sign=True),
                number(largest, 2, sign=True),
                _share(some),
                str(sum(r["named"] for r in some)),
                _share(bad),
                _share(good),
                number(mean_or_none(_numbers(some, "now_mean") / _numbers(some, "expected_mm")), 2),
            )
        )
    head = (
        "fault",
        "fits",
        "mean harm",
        "largest",
        "flagged",
        "photo named",
        "harmful flagged",
        "harmless flagged",
        "true / expected",
    )
    return text_table(head, lines)


def _share(some: Sequence[dict[str, Any]]) -> str:
    return f"{sum(r['status'] != 'ok' for r in some)} of {len(some)}"


def _constants_text(rows: Sequence[dict[str, Any]]) -> str:
    """What the constants would be on these fits: true error over error bars by model over the clean fits, and
    UPPER with them. And whether a finding costs more than the error bars say: true over expected error of all
    fits with it."""
    known = [
        r
        for r in rows
        if r["now_mean"] is not None and r["metrics"] is not None and r["metrics"].get("error_bars")
    ]
    clean, lines, over = [r for r in known if r["fault"] == CLEAN], [], []
    for model in dict.fromkeys(r["model"] for r in clean):
        for single in (True, False):
            some = [r for r in clean if r["model"] == model and (len(r["metrics"]["views"]) == 1) == single]
            if some:
                bars = np.array([MEAN_OF_SIGMA * r["metrics"]["error_bars"]["face_mean_mm"] for r in some])
                true = _numbers(some, "now_mean")
                ratio = true.mean() / bars.mean()
                over.append(true / (ratio * bars))
                lines.append(
                    f"calibration of '{model}', {'single' if single else 'several'}: {ratio:.2f} "
                    f"({len(some)} fits)"
                )
    if clean:
        lines.append(
            f"UPPER: {np.quantile(np.concatenate(over), 0.9):.2f} (90 % of true over expected error with "
            f"these, {len(clean)} fits)"
        )
    for code in sorted({code for r in known for code, _ in r["found"] if code != "expected_error"}):
        some = [r for r in known if code in [c for c, _ in r["found"]]]
        lines.append(
            f"{code}: true / expected "
            f"{number(mean_or_none(_numbers(some, 'now_mean') / _numbers(some, 'expected_mm')), 2)} "
            f"({len(some)} fits)"
        )
    return "\n".join(lines)
