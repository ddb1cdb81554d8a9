"""A result as notebooks show it: `FitResult._repr_html_`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from fitkit.errors import attempt
from fitkit.export.overlay import draw_overlay, overlay_halves
from fitkit.export.pages.document import Element, element, mark, markup, picture_uri
from fitkit.export.pages.pictures import encode_jpeg
from fitkit.export.preview import TILE, Sides, draw_preview
from fitkit.fitting.report import status_line

if TYPE_CHECKING:
    from fitkit.fitting.result import FitResult

PHOTOS = 3  # that are shown
LONGEST, PREVIEW_LONGEST, HEIGHT = 480, 960, 200  # px
MOST_FINDINGS = 8
# No sheet of styles: it would reach beyond the cell. Colours are those of the notebook, light or dark.
BORDER = "1px solid rgba(128, 128, 128, 0.35)"
SIGN_COLOURS = {"ok": "#2e9e5b", "doubtful": "#d08b13", "failed": "#d0453b", "note": "#5b84b8"}


def notebook_html(result: FitResult) -> str:
    """The verdict, the first photos beside themselves with the mesh over them, and the face as clay from five
    sides, as HTML without scripts. Photos that are not there are left out."""
    report = result.report
    lacking: list[str] = []
    names = [view.name for view in result.subject.views[:PHOTOS]]
    panels = [attempt(name, lambda: _overlay(result, i), None, lacking) for i, name in enumerate(names)]
    panels = [panel for panel in panels if panel is not None]
    preview = attempt("the preview", lambda: _preview(result), None, lacking)
    found = report.verdict.findings
    lines = [_line(f.severity, f.message) for f in found[:MOST_FINDINGS]]
    if len(found) > MOST_FINDINGS:
        lines.append(
            element("div", None, f"and {len(found) - MOST_FINDINGS} more in .report.verdict.findings")
        )
    head = element(
        "div",
        {"style": "font-size: 15px; margin-bottom: 6px"},
        element("b", None, result.subject.name),
        f" ({result.model.name}, {len(result.subject.views)} views): ",
        element("b", {"style": f"color: {_colour(report.status)}"}, status_line(report)),
    )
    pictures = element("div", {"style": "display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0"}, panels)
    box = {"style": f"border: {BORDER}; border-radius: 8px; padding: 10px 12px; max-width: 1000px"}
    return markup(element("div", box, head, lines, pictures if panels else None, preview))


def _line(severity: str, text: str) -> Element:
    sign = mark(severity)
    sign.set("style", f"color: {_colour(severity)}; font-weight: bold; display: inline-block; width: 1.2em")
    return element("div", None, sign, text)


def _colour(status: str) -> str:
    return SIGN_COLOURS.get(status, SIGN_COLOURS["note"])


def _overlay(result: FitResult, view: int) -> Element:
    name = result.subject.views[view].name
    fitted = overlay_halves(draw_overlay(result, view))[1]
    return _picture(
        fitted, LONGEST, f"{name} with the fitted face", f"height: {HEIGHT}px; border-radius: 6px"
    )


def _preview(result: FitResult) -> Element:
    sides = Sides.of_head(result.neutral.detach(), result.personal_model)
    clay = draw_preview(sides, result.personal_model)[: TILE[0]]
    return _picture(
        clay, PREVIEW_LONGEST, "the neutral face from five sides", "width: 100%; border-radius: 6px"
    )


def _picture(image: np.ndarray, longest: int, text: str, style: str) -> Element:
    source = picture_uri(encode_jpeg(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), longest))
    return element("img", {"src": source, "alt": text, "title": text, "style": style})
