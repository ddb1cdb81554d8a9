"""`report.html` of a batch: a row for each subject, to sort and to filter."""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fitkit import __version__
from fitkit.errors import FitkitError, InputError
from fitkit.export.pages.document import MARKS, element, embedded, write_page
from fitkit.export.pages.pictures import THUMBNAIL, draw_thumbnail
from fitkit.fitting.batch_records import REPORT
from fitkit.fitting.report import FitReport
from fitkit.io.foreign import MEGABYTE, foreign_file, inside, shown
from fitkit.io.result_folder import PAGE
from fitkit.io.subject import is_result

STATUSES = ("ok", "doubtful", "failed", "error")
MOST_PICTURES = 3000  # of 10 kB each; the worst subjects get theirs first
THUMBNAIL_BYTES = MEGABYTE // 4
REPORT_BYTES = 256 * MEGABYTE
NUMBERS = ("expected_mm", "upper_mm", "reprojection_share", "seconds", "views")


def write_batch_page(folder: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Write the page of a folder that `fitkit batch` writes, made of its batch.json and of the results in it;
    it may be still at work.

    Args:
        path: of the page; None: `report.html` in the folder. Links to the results are relative to it.
    Returns: its path.
    Raises:
        InputError: no such folder, a batch.json that cannot be read, or the page cannot be written.
    """
    folder = Path(folder)
    target = folder / PAGE if path is None else Path(path)
    if target.is_dir():
        raise InputError(f"{target}: expected a file to write, but a folder has that name; give another one")
    rows = [_row(row, folder, target) for row in _rows(folder)]
    _add_pictures(rows, folder)
    name = Path(os.path.abspath(folder)).name
    body = [
        element(
            "main",
            None,
            _head(name, rows),
            _tools(rows),
            element(
                "div",
                {"class": "scroll card"},
                element(
                    "table",
                    {"id": "subjects"},
                    element("thead", None, element("tr", None, [_column(*c) for c in COLUMNS])),
                    element("tbody", None, ""),
                ),
                element("p", {"id": "none", "class": "quiet", "hidden": True}, "No subject is like this."),
                element("div", {"id": "more"}, ""),
            ),
            element(
                "footer",
                {"class": "quiet"},
                f"Made by fitkit {__version__} from {REPORT}. Expected error: mean distance of the face "
                "without expression from the true one. Landmarks: distance of the fitted points from those "
                "found in the photos, over the face size.",
            ),
        ),
        embedded("rows", rows),
        embedded("words", {status: list(mark) for status, mark in MARKS.items()}),
    ]
    return write_page(target, f"{name} - fitkit batch", body, ["batch.js"])


def _rows(folder: Path) -> list[dict[str, Any]]:
    """What batch.json says of each subject; keys that are missing say nothing, unknown ones are passed over.

    Raises: InputError.
    """
    path = folder / REPORT
    if not path.is_file():
        raise InputError(f"{folder}: expected the folder of a batch, with {REPORT}")
    with foreign_file(path, "not readable as the report of a batch", limit=REPORT_BYTES) as file:
        rows = file.json()["subjects"]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not isinstance(row.get("subject"), str):
                raise InputError(
                    f"{path}: subject {number}: expected its name and its numbers, got {shown(row)}"
                )
        return rows


def _row(row: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """A row as the script of the page takes it. link: to the page, else the folder, of its result, relative
    to the page of the batch; '' where there is none."""
    numbers = {key: row[key] for key in NUMBERS if _is_number(row.get(key))}
    return {
        "subject": row["subject"],
        "status": str(row.get("status", "")),
        "message": str(row.get("message") or ""),
        "link": _link(row["subject"], folder, target),
        **numbers,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _link(subject: str, folder: Path, target: Path) -> str:
    place = _place(subject, folder)
    if place is None:
        return ""
    if (place / PAGE).is_file():
        place /= PAGE
    here = Path(os.path.abspath(target)).parent
    return quote(Path(os.path.relpath(os.path.abspath(place), here)).as_posix())


def _place(subject: str, folder: Path) -> Path | None:
    """The result of a subject, below the folder of the batch; None where there is none."""
    try:
        place = inside(folder, subject)
    except InputError:  # such a name was never written by a batch
        return None
    return place if is_result(place) else None


def _add_pictures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Put the thumbnails of the results into the rows, as base64."""
    worst = sorted(rows, key=lambda row: row["status"] == "ok")
    for row in worst[:MOST_PICTURES]:
        place = _place(row["subject"], folder)
        picture = None if place is None else _thumbnail(place)
        if picture is not None:
            row["picture"] = base64.b64encode(picture).decode()


def _thumbnail(place: Path) -> bytes | None:
    """The one that was written with the result, or one made of its pictures; None: it has none."""
    try:
        if (place / THUMBNAIL).is_file():
            with foreign_file(place / THUMBNAIL, "not readable", limit=THUMBNAIL_BYTES) as file:
                return file.bytes()
        with foreign_file(place / "metrics.json", "not readable as the metrics of a fit") as file:
            report = FitReport.from_metrics(file.json())
        return draw_thumbnail(place, report)
    except FitkitError:
        return None


def _head(name: str, rows: Sequence[dict[str, Any]]):
    expected = sorted(row["expected_mm"] for row in rows if "expected_mm" in row)
    lead = None
    if expected:
        lead = element(
            "p",
            {"class": "lead"},
            "Expected error ",
            element("b", None, f"{expected[len(expected) // 2]:.1f} mm"),
            f" in the median, {expected[-1]:.1f} mm at most",
        )
    return element(
        "header",
        None,
        element(
            "p", {"class": "kind"}, f"fitkit · batch of {len(rows)} subject{'' if len(rows) == 1 else 's'}"
        ),
        element("h1", None, name),
        lead,
    )


def _tools(rows: Sequence[dict[str, Any]]):
    """Buttons that show one status only, and a search."""
    counts = Counter(row["status"] for row in rows)
    known = [s for s in STATUSES if counts[s]] + sorted(counts.keys() - set(STATUSES))
    buttons = [
        element(
            "button",
            {"type": "button", "data-status": status, "aria-pressed": "true" if status is None else "false"},
            element("span", {"class": f"dot {status if status in MARKS else ''}", "aria-hidden": "true"})
            if status is not None
            else None,
            "all" if status is None else MARKS.get(status, ("", status))[1],
            " ",
            element("small", None, str(len(rows) if status is None else counts[status])),
        )
        for status in (None, *known)
    ]
    return element(
        "div",
        {"class": "tools"},
        element("div", {"class": "row", "role": "group", "aria-label": "Show"}, buttons),
        element(
            "input",
            {
                "type": "search",
                "id": "text",
                "placeholder": "Search names and reasons",
                "aria-label": "Search",
            },
        ),
        element("p", {"id": "count", "role": "status", "class": "quiet"}, ""),
    )


COLUMNS = (  # title, key that it sorts by, sorted by it first downwards
    ("Subject", "subject", False),
    ("Mesh on the photo, face", None, False),
    ("Verdict", "status", True),
    ("Expected error", "expected_mm", True),
    ("Landmarks", "reprojection_share", True),
    ("Photos", "views", False),
    ("Time", "seconds", True),
    ("Reason", "message", False),
)


def _column(title: str, key: str | None, down: bool):
    if key is None:
        return element("th", {"scope": "col"}, title)
    button = element("button", {"type": "button", "data-key": key, "data-down": "1" if down else "0"}, title)
    return element("th", {"scope": "col", "aria-sort": "none"}, button)
