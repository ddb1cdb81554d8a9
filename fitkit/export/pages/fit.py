"""`report.html` of a fit: its photos with the mesh over them, the face in 3D, its numbers in words."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from fitkit import __version__
from fitkit.errors import FitkitError, InputError
from fitkit.export.arkit import arkit_shapes
from fitkit.export.gltf import MM
from fitkit.export.pages.document import (
    Content,
    Element,
    element,
    embedded,
    embedded_bytes,
    mark,
    picture_uri,
    pill,
    write_page,
)
from fitkit.export.pages.pictures import encode_jpeg, overlay_pair
from fitkit.export.pages.words import doubted_views, facts
from fitkit.export.preview import SIGMA_LARGEST, scale_colour
from fitkit.fitting.report import FitReport, ViewReport
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.gltf_shapes import read_glb_points
from fitkit.io.mesh_files import read_mesh, read_vertex_numbers
from fitkit.io.result_folder import PAGE, stems_of
from fitkit.io.subject import is_result
from fitkit.models.registry import load_model
from fitkit.scene.parameters import Parameters, load_parameters

GROUPS = {  # beginning of a shape's name -> title of its group
    "jaw": "Jaw",
    "mouth": "Mouth",
    "eye": "Eyes",
    "brow": "Brows",
    "cheek": "Cheeks",
    "nose": "Nose",
    "tongue": "Tongue",
}
OTHERS = "Other shapes"
GAUSSIAN_RANGE = 3.0  # standard deviations
MANY_PHOTOS = 6  # more are shown smaller
LONGEST, LONGEST_OF_MANY = 1024, 640  # px of a photo
SAME_PLACE_MM = 0.01  # a vertex in metres and the same in mm, both in single precision
SCALE_STEPS = 33
LACKING = "the result was written without pictures; fit again without --no-pictures"


@dataclass(frozen=True)
class _Face:
    """What the 3D view shows. glb: the file; shapes: its morph targets; gaussian: their weights are standard
    deviations; weights: for each photo, weight by shape, or None: not known; joints: [B, J, 3] rad or None;
    sigma: [N] mm of the vertices of the file, NaN where there is none, or None."""

    glb: bytes
    shapes: Sequence[str]
    gaussian: bool
    weights: list[dict[str, float]] | None
    joints: np.ndarray | None
    sigma: np.ndarray | None


def write_fit_page(folder: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Write the page of a result folder, made of the files in it.

    Args:
        path: of the page; None: `report.html` in the folder.
    Returns: its path.
    Raises:
        InputError: no result folder, files in it that cannot be read, or the page cannot be written.
    """
    folder = Path(folder)
    if not is_result(folder):
        raise InputError(f"{folder}: expected a result folder, with metrics.json and parameters.npz")
    report, unwritten = _report(folder / "metrics.json")
    parameters = load_parameters(folder / "parameters.npz")
    face = _face(folder, report, parameters)
    name = parameters.subject_name or folder.name
    body: list[Content] = [
        element(
            "main",
            None,
            _head(name, report),
            _findings(report, unwritten),
            _stage(face, parameters),
            _photos(folder, report),
            _numbers(report),
            _table(report),
            _foot(),
        )
    ]
    if face is not None:
        body += [
            embedded_bytes("glb", gzip.compress(face.glb, 6, mtime=0)),
            embedded("face-data", _face_data(face)),
        ]
    scripts = ["three.min.js", "fit.js"] if face is not None else ["fit.js"]
    return write_page(folder / PAGE if path is None else path, f"{name} - fitkit", body, scripts)


def _report(path: Path) -> tuple[FitReport, list[str]]:
    """metrics.json, and what it says could not be drawn."""
    with foreign_file(path, "not readable as the metrics of a fit") as file:
        table = file.json()
        return FitReport.from_metrics(table, str(path)), [str(line) for line in table.get("not_written", [])]


def _face(folder: Path, report: FitReport, parameters: Parameters) -> _Face | None:
    """The face of subject.glb; None where the result has numbers only."""
    path = folder / "subject.glb"
    if not path.is_file():
        return None
    with foreign_file(path, "not readable", limit=DATA_BYTES) as file:
        glb = file.bytes()
    points, shapes = read_glb_points(path)
    gaussian = report.expression.beyond_3_sigma is not None
    joints = parameters.state.joints
    return _Face(
        glb,
        shapes,
        gaussian,
        _weights(parameters, shapes, gaussian),
        None if joints is None else joints.numpy(),
        _sigma(folder / "subject.ply", points),
    )


def _weights(parameters: Parameters, shapes: Sequence[str], gaussian: bool) -> list[dict[str, float]] | None:
    """For each photo, the weight of each morph target, of two shapes in one target their mean. Gaussian
    coefficients in their standard deviations, which only the face model knows: None where it is not here."""
    values = parameters.state.expression.double().numpy()
    named = arkit_shapes(parameters.expression_names)
    if gaussian:
        try:
            model = load_model(parameters.model_name)
            parameters.check_model(model)
        except FitkitError:
            return None
        values = values / model.coefficients["expression"].unit(parameters.state.expression).double().numpy()
        named = [(name, [i]) for i, name in enumerate(parameters.expression_names)]
    return [
        {name: round(float(row[places].mean()), 4) for name, places in named if name in shapes}
        for row in values
    ]


def _sigma(path: Path, points: np.ndarray) -> np.ndarray | None:
    """The error bars of subject.ply at the vertices of the .glb file [N, 3] m, which repeats some of them."""
    if not path.is_file():
        return None
    sigma = read_vertex_numbers(path, "sigma_mm")
    if sigma is None:
        return None
    vertices, _ = read_mesh(path)
    away, nearest = cKDTree(vertices).query(points / MM, distance_upper_bound=SAME_PLACE_MM)
    found = np.append(sigma, np.nan)[np.where(np.isfinite(away), nearest, len(sigma))]
    return found.astype(np.float32)


def _face_data(face: _Face) -> dict[str, Any]:
    """What the script needs beside the .glb file; unknown error bars are -1."""
    sigma = None if face.sigma is None else np.nan_to_num(face.sigma.round(3).astype(float), nan=-1.0)
    return {
        "weights": face.weights,
        "joints": face.joints,
        "sigma": None if sigma is None else sigma.round(3),
        "largest": SIGMA_LARGEST,
        "scale": scale_colour(np.linspace(0, 1, SCALE_STEPS)),
    }


def _head(name: str, report: FitReport) -> Element:
    said = report.verdict
    expected: Content = None
    if said.expected_mm is not None:
        expected = element(
            "p",
            {"class": "lead"},
            "Expected error ",
            element("b", None, f"{said.expected_mm:.1f} mm"),
            f", in 90 of 100 fits at most {said.upper_mm:.1f} mm",
        )
    count = f"{report.num_views} photo{'' if report.num_views == 1 else 's'}"
    return element(
        "header",
        None,
        element("p", {"class": "kind"}, f"fitkit · fit of {count}"),
        element("h1", None, name, " ", pill(report.status)),
        expected,
        element("p", {"class": "quiet"}, f"Face model {report.model or '-'}, recipe {report.recipe or '-'}"),
    )


def _findings(report: FitReport, unwritten: Sequence[str]) -> Element:
    found: list[tuple[str, str]] = [(f.severity, f.message) for f in report.verdict.findings]
    found += [("note", line) for line in unwritten]
    if all(severity == "note" for severity, _ in found):
        found = [("good", "Nothing is wrong with this fit.")] + found
    items = [
        element("li", {"class": severity}, mark(severity), element("span", None, _sentence(text)))
        for severity, text in found
    ]
    return element(
        "section",
        {"aria-labelledby": "findings"},
        element("h2", {"id": "findings"}, "Findings"),
        element("ul", {"class": "findings"}, items),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _stage(face: _Face | None, parameters: Parameters) -> Element:
    title = element("h2", {"id": "face"}, "The face in 3D")
    if face is None:
        text = "The result holds numbers only, so there is no face to show."
        return element("section", {"aria-labelledby": "face"}, title, element("p", {"class": "quiet"}, text))
    surfaces = [("texture", "Colours"), ("clay", "Clay")]
    if face.sigma is not None:
        surfaces.append(("bars", "Error bars"))
    view = element(
        "div",
        {"class": "view"},
        element(
            "div",
            {
                "id": "stage",
                "tabindex": "0",
                "role": "application",
                "aria-label": "The face in 3D. Arrow keys turn it, plus and minus zoom, Home resets.",
            },
            element("p", {"id": "stage-note", "role": "status"}, "Loading the face…"),
        ),
        _legend() if face.sigma is not None else None,
        element(
            "p",
            {"class": "quiet hint"},
            "Drag to turn, right-drag to move, scroll after a click to zoom. Keys: arrows, + and -, Home.",
        ),
    )
    looks = [("front", "Front"), ("left", "Left"), ("right", "Right"), ("in", "+"), ("out", "\u2212")]
    names = {"in": "Zoom in", "out": "Zoom out"}
    controls = element(
        "div",
        {"class": "controls"},
        _choice("Surface", "surface", surfaces),
        element(
            "div",
            {"class": "row", "role": "group", "aria-label": "Look from"},
            [
                element("button", {"type": "button", "data-look": k, "aria-label": names.get(k)}, text)
                for k, text in looks
            ],
        ),
        _expressions(face, parameters),
    )
    return element(
        "section",
        {"aria-labelledby": "face", "class": "face"},
        title,
        element("div", {"class": "split"}, view, controls),
    )


def _choice(title: str, name: str, options: Sequence[tuple[str, str]]) -> Element:
    """One of a few: radio buttons that look like a switch."""
    buttons = [
        element(
            "label",
            None,
            element("input", {"type": "radio", "name": name, "value": value, "checked": i == 0}),
            element("span", None, text),
        )
        for i, (value, text) in enumerate(options)
    ]
    return element("fieldset", {"class": "switch"}, element("legend", None, title), buttons)


def _legend() -> Element:
    """The scale of the error bars."""
    colours = ", ".join("#" + bytes(c).hex() for c in scale_colour(np.linspace(0, 1, 9)))
    ticks = [f"{SIGMA_LARGEST * i / 4:.1f}" + ("+" if i == 4 else "") for i in range(5)]
    return element(
        "div",
        {"id": "legend", "hidden": True},
        element("p", None, "Error bar: one standard deviation, mm ", element("output", {"id": "here"})),
        element("div", {"class": "scale", "style": f"background: linear-gradient(90deg, {colours})"}),
        element("div", {"class": "ticks"}, [element("span", None, t) for t in ticks]),
    )


def _expressions(face: _Face, parameters: Parameters) -> Content:
    if not face.shapes:
        return element("p", {"class": "quiet"}, "This face model has no expression shapes.")
    fitted: Content = None
    if face.weights is None:
        fitted = element(
            "p",
            {"class": "quiet"},
            f"The expressions of the photos need the face model '{parameters.model_name}', which was not on "
            "the machine that made this page.",
        )
    options = [element("option", {"value": ""}, "neutral")]
    if face.weights is not None:
        options += [
            element("option", {"value": i}, f"as in {n}") for i, n in enumerate(parameters.view_names)
        ]
    options.append(element("option", {"value": "own", "hidden": True}, "own"))
    groups, ends = grouped(face.shapes), _range(face)
    return element(
        "div",
        {"class": "expressions"},
        element(
            "div",
            {"class": "row"},
            element("label", {"for": "expression"}, "Expression"),
            element("select", {"id": "expression"}, options),
            element("button", {"type": "button", "id": "reset"}, "Reset"),
        ),
        fitted,
        [
            element(
                "details",
                {"open": i == 0},
                element("summary", None, f"{title} ", element("small", None, str(len(names)))),
                [_slider(name, *ends) for name in names],
            )
            for i, (title, names) in enumerate(groups.items())
        ],
    )


def grouped(shapes: Sequence[str]) -> dict[str, list[str]]:
    """The shapes by the part of the face that their names begin with, parts in the order of GROUPS; unknown
    names come last."""
    groups: dict[str, list[str]] = {title: [] for title in (*GROUPS.values(), OTHERS)}
    for name in shapes:
        part = next((title for begin, title in GROUPS.items() if name.lower().startswith(begin)), OTHERS)
        groups[part].append(name)
    return {title: names for title, names in groups.items() if names}


def _range(face: _Face) -> tuple[float, float]:
    """Ends of all sliders: they hold the usual weights and the fitted ones."""
    values = [v for weights in face.weights or () for v in weights.values()] or [0.0]
    low, high = (-GAUSSIAN_RANGE, GAUSSIAN_RANGE) if face.gaussian else (0.0, 1.0)
    return min(low, math.floor(10 * min(values)) / 10), max(high, math.ceil(10 * max(values)) / 10)


def _slider(name: str, low: float, high: float) -> Element:
    ends = {"min": f"{low:g}", "max": f"{high:g}", "step": "0.01", "value": "0"}
    return element(
        "label",
        {"class": "slider"},
        element("span", {"title": name}, name),
        element("input", {"type": "range", "data-shape": name} | ends),
        element("output", None, "0.00"),
    )


def _photos(folder: Path, report: FitReport) -> Element:
    doubted = doubted_views(report)
    longest = LONGEST if len(report.views) <= MANY_PHOTOS else LONGEST_OF_MANY
    figures = []
    for view, stem in zip(report.views, stems_of([view.name for view in report.views])):
        path = folder / "overlay" / f"{stem}.png"
        if path.is_file():
            figures.append(_figure(view, path, longest, doubted.get(view.name)))
    content: Content = element("p", {"class": "quiet"}, f"No pictures: {LACKING}.")
    if figures:
        text = (
            "Move the line: left of it the photo, right of it the fitted face. Green rings are the landmarks "
            "that were found, red dots the same points of the fitted face."
        )
        content = [element("p", {"class": "quiet"}, text), element("div", {"class": "photos"}, figures)]
    return element(
        "section",
        {"aria-labelledby": "photos"},
        element("h2", {"id": "photos"}, "Photos"),
        content,
    )


def _figure(view: ViewReport, path: Path, longest: int, doubt: str | None) -> Element:
    photo, fitted = overlay_pair(path)
    height, width = photo.shape[:2]
    size = {"width": width, "height": height, "loading": "lazy", "decoding": "async"}
    before = {"src": picture_uri(encode_jpeg(photo, longest)), "alt": f"photo {view.name}"}
    after = {
        "src": picture_uri(encode_jpeg(fitted, longest)),
        "alt": f"photo {view.name} with the fitted face",
    }
    error = f"{view.reprojection_px:.1f} px" if math.isfinite(view.reprojection_px) else ""
    return element(
        "figure",
        None,
        element(
            "div",
            {"class": "compare"},
            element("img", before | size),
            element("img", after | size | {"class": "over"}),
            element(
                "input",
                {
                    "type": "range",
                    "min": "0",
                    "max": "100",
                    "step": "1",
                    "value": "50",
                    "aria-label": f"{view.name}: how much of the photo is seen without the face",
                },
            ),
            element("span", {"class": "line", "aria-hidden": "true"}),
        ),
        element("figcaption", None, mark(doubt or "good"), element("b", None, view.name), f" {error}"),
    )


def _numbers(report: FitReport) -> Element:
    cards = [
        element(
            "div",
            {"class": "fact"},
            element("h3", None, mark(fact.judgement), fact.title),
            element("p", {"class": "value"}, fact.value),
            element("p", None, fact.text),
        )
        for fact in facts(report)
    ]
    return element(
        "section",
        {"aria-labelledby": "numbers"},
        element("h2", {"id": "numbers"}, "How good is it?"),
        element("div", {"class": "facts"}, cards),
    )


COLUMNS = (
    "Photo",
    "Landmark error",
    "of face size",
    "Yaw, pitch, roll",
    "Focal length",
    "Distance",
    "Camera",
    "Landmarks",
    "Disagrees",
)


def _table(report: FitReport) -> Content:
    if not report.views:
        return None
    doubted = doubted_views(report)
    rows = []
    for view in report.views:
        cells = (
            _number(view.reprojection_px, "{:.1f} px"),
            _number(view.reprojection_share, "{:.1%}").replace("%", " %"),
            ", ".join(f"{a:.0f}°" for a in view.yaw_pitch_roll_deg) or "-",
            _number(view.focal_px, "{:.0f} px"),
            _number(view.distance_mm, "{:.0f} mm"),
            view.camera_source or "-",
            str(view.landmarks),
            _number(view.shape_shift, "{:.1f}"),
        )
        name = element(
            "th", {"scope": "row"}, mark(doubted.get(view.name, "good")), element("span", None, view.name)
        )
        rows.append(element("tr", None, name, [element("td", None, cell) for cell in cells]))
    return element(
        "section",
        {"aria-labelledby": "table"},
        element("h2", {"id": "table"}, "Each photo in numbers"),
        element(
            "div",
            {"class": "scroll", "tabindex": "0", "role": "region", "aria-labelledby": "table"},
            element(
                "table",
                None,
                element(
                    "thead", None, element("tr", None, [element("th", {"scope": "col"}, c) for c in COLUMNS])
                ),
                element("tbody", None, rows),
            ),
        ),
        element(
            "p",
            {"class": "quiet"},
            "Positive yaw: the nose points to the right side of the picture; positive pitch: the face looks "
            "up; positive roll: the head leans clockwise. Disagrees: how far the shape moves without the "
            "landmarks of this photo, over what their noise would do; 0.4 to 1.9 is usual.",
        ),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else form.format(value)


def _foot() -> Element:
    return element(
        "footer",
        {"class": "quiet"},
        f"Made by fitkit {__version__}. All numbers are in metrics.json beside the meshes of this result. "
        "The 3D view uses three.js (MIT licence, inside this file).",
    )
