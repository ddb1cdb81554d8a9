"""Accuracy and speed of the fit on subjects with known shape; what `fitkit bench` prints."""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree

from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.studio import head_shot_state, photograph, studio
from fitkit.errors import FitkitError, InputError
from fitkit.evaluate.coverage import coverage
from fitkit.evaluate.distances import mean
from fitkit.evaluate.machine import machine
from fitkit.evaluate.scan_to_mesh import NOW_POINTS, now_crop, scan_to_mesh
from fitkit.evaluate.vertex_error import vertex_distances
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file, refused_as
from fitkit.io.mesh_files import read_mesh
from fitkit.io.options import to_plain
from fitkit.io.subject import Subject, load_subject, subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.types import Landmarks
from fitkit.render.rasterizer import clip_vertices, rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

log = logging.getLogger("fitkit")

MEAN_FACE = "mean face"
SPEED_PARTS = ("fit", "adam", "views", "rasterizer")
VIEW_COUNTS = (3, 6, 12, 24)
POINTS = list(NOW_POINTS)
ERRORS = (
    "now_mean",
    "now_median",
    "points_mean",
    "points_median",
    "vertex_similarity",
    "vertex_rigid",
    "size_percent",
)
MILLIMETRES = ERRORS[:-1]
PHOTOS = ("photos_mean", "photos_median")
COVERAGE = ("coverage_1sigma", "coverage_2sigma")
# Files of ground_truth/SUBJECT: mesh, landmarks, face region; as `fitkit synth` writes them, and of a scan.
TRUTH_FILES = (
    ("neutral.ply", "landmarks3d_neutral.npy", "face_region.npy"),
    ("mesh.ply", "landmarks3d.npy", "face_region_front.npy"),
)
SKIN_POINTS = 8000  # over the whole face region; five times as many change a mean by 0.003 mm at most
SEEN_YAWS, SEEN_PIXELS, SEEN_TOLERANCE_MM = (-45.0, 0.0, 45.0), 512, 1.0  # pixels: of the longer side
Tell = Callable[[str], None]


# ---- data ----


@dataclass(frozen=True)
class Truth:
    """One person of a benchmark: the scan and what belongs to it.

    vertices [V, 3] mm, triangles [F, 3]; landmarks [68, 3] mm on the scan; face [N] vertex indices of the narrow face.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray
    face: np.ndarray

    @cached_property
    def skin(self) -> np.ndarray:
        """Points [N, 3] mm, spread evenly by area over the narrow face within the NoW crop, as far as it can be seen from outside: from
        straight ahead or from 45 degrees to either side (insides of mouth, nostrils and eye sockets are not). Always the same ones."""
        inside = np.zeros(len(self.vertices), bool)
        inside[self.face] = True
        triangles = self.triangles[inside[self.triangles].all(1)]
        points = even_points(self.vertices, triangles, SKIN_POINTS)
        points = points[now_crop(points, self.landmarks[POINTS])]
        return points[seen_from_outside(points, self.vertices, self.triangles, self.landmarks[POINTS])]


def even_points(vertices: np.ndarray, triangles: np.ndarray, count: int) -> np.ndarray:
    """Points [count, 3] spread evenly by area over a surface, however its triangles [F, 3] differ in size; always the same ones.

    The triangles are put into the order of a k-d tree, in which neighbours follow each other; each of `count` equal parts of their
    summed area gets one point, at a random place within its triangle. No triangle, no points.
    """
    if not len(triangles):
        return np.zeros((0, 3))
    triangles = triangles[cKDTree(vertices[triangles].mean(1), leafsize=1).indices]
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    total = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    k = np.searchsorted(total, (np.arange(count) + 0.5) / count * total[-1])
    u, w = np.random.default_rng(0).random((2, count, 1))
    u = np.sqrt(u)  # evenly within a triangle: Osada et al., "Shape distributions", 2002, section 3.2
    return (1 - u) * a[k] + u * (1 - w) * b[k] + u * w * c[k]


def seen_from_outside(
    points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray, landmarks: np.ndarray
) -> np.ndarray:
    """[N] bool: nothing of the mesh lies in front of the point in one of the parallel projections from SEEN_YAWS at least.

    Args:
        points: [N, 3] mm on the mesh of vertices [V, 3] mm, triangles [F, 3]; landmarks: [7, 3] NOW_POINTS, which say where the front is.
    """
    right, up = landmarks[3] - landmarks[0], landmarks[:4].mean(0) - landmarks[5:].mean(0)
    front = np.cross(right, up)
    right, front = right / np.linalg.norm(right), front / np.linalg.norm(front)
    down, seen = np.cross(right, front), np.zeros(len(points), bool)
    for yaw in np.radians(SEEN_YAWS) if len(points) else ():
        side, ahead = np.cos(yaw) * right - np.sin(yaw) * front, -np.sin(yaw) * right - np.cos(yaw) * front
        axes = np.stack([side, down, ahead], 1)
        mesh, place = vertices @ axes, points @ axes
        low, extent = place.min(0), np.ptp(place[:, :2], axis=0)
        low[2] = mesh[:, 2].min() - 10.0  # the rasterizer draws nothing nearer than 1 mm
        per_mm = SEEN_PIXELS / extent.max()
        camera = Camera(
            torch.tensor([per_mm * Camera.REFERENCE_DEPTH]), torch.zeros(1, 2), torch.ones(1), "orthographic"
        )
        mesh, place = (torch.from_numpy(p - low)[None] for p in (mesh, place))
        width, height = (int(n) + 2 for n in extent * per_mm)
        depth = rasterize(clip_vertices(camera, mesh), torch.from_numpy(triangles), (height, width)).depth
        seen |= seen_by_depth(camera.project(place)[0], place[..., 2], depth, 1.0, SEEN_TOLERANCE_MM)[
            0
        ].numpy()
    return seen


@dataclass(frozen=True)
class Prediction:
    """A neutral mesh that stands against the truth.

    subject, model, recipe: names; vertices [V, 3] mm, triangles [F, 3], landmarks [68, 3] mm;
    seconds: wall time of the solver, cpu_seconds: CPU time of crop, solver and report; error: why there is no mesh;
    sigma: [V] mm, the error bars along the normals.
    views: names of the B photos; posed [B, V, 3] mm, posed_landmarks [B, 68, 3] mm: the face in each photo, with its expression.
    expected_mm, upper_mm, error_bar_mm: what the fit says of its own error: the expected one, its bound, the median of the error bars over
    the face; None where it does not say.
    """

    subject: str
    model: str
    recipe: str
    vertices: np.ndarray | None = None
    triangles: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    status: str = ""
    error: str = ""
    sigma: np.ndarray | None = None
    views: tuple[str, ...] = ()
    posed: np.ndarray | None = None
    posed_landmarks: np.ndarray | None = None
    expected_mm: float | None = None
    upper_mm: float | None = None
    error_bar_mm: float | None = None


def subject_names(data: str | os.PathLike) -> list[str]:
    """Subject folders of a benchmark folder that have a ground truth, sorted.

    Raises:
        InputError: no such folder, or nothing in it that can be scored.
    """
    folder = Path(data)
    truth = folder / "ground_truth"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected SUBJECT/ folders and ground_truth/SUBJECT/")
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir()
        and p.name != "ground_truth"
        and any((truth / p.name / files[0]).is_file() for files in TRUTH_FILES)
    )
    if not names:
        raise InputError(
            f"{folder}: no SUBJECT/ folder with a ground_truth/SUBJECT/neutral.ply or, of a scan, mesh.ply; "
            "is this the right folder?"
        )
    return names


def load_truth(folder: str | os.PathLike) -> Truth:
    """Read ground_truth/SUBJECT: neutral.ply, landmarks3d_neutral.npy and face_region.npy; where there is no neutral.ply, those of a scan:
    mesh.ply, landmarks3d.npy and face_region_front.npy.

    Raises:
        InputError: a file is missing or has another shape, or they do not belong together.
    """
    folder = Path(folder)
    mesh, points, region = next(
        (files for files in TRUTH_FILES if (folder / files[0]).is_file()), TRUTH_FILES[0]
    )
    vertices, triangles = read_mesh(folder / mesh)
    landmarks, face = _landmarks(folder / points), _array(folder / region)
    if (
        face.ndim != 1
        or face.dtype.kind not in "iu"
        or not len(face)
        or not 0 <= face.min() <= face.max() < len(vertices)
    ):
        raise InputError(
            f"{folder / region}: expected indices of the {len(vertices)} vertices of {mesh}, got {face.dtype} {list(face.shape)}"
        )
    truth = Truth(vertices, triangles, landmarks, face.astype(np.int64))
    with (
        refused_as(f"{folder}: {mesh} and {points} are no face", "expected both of one person, in one frame"),
        np.errstate(all="ignore"),
    ):
        skin = truth.skin
    if not len(skin):
        raise InputError(
            f"{folder}: no skin of {region} can be seen around the landmarks; expected {mesh}, {points} and {region} of one "
            "person, in one frame"
        )
    return truth


def load_photo_truths(folder: str | os.PathLike, truth: Truth, views: Sequence[str]) -> dict[str, Truth]:
    """The true face in each photo, with its expression: view name -> VIEW.ply and landmarks3d_VIEW.npy of ground_truth/SUBJECT, or else
    mesh.ply and landmarks3d.npy, which are those of all photos. Views without these files are left out.

    Args:
        truth: of the same folder; its face region counts here too.
    Raises:
        InputError: a file cannot be read, or the mesh has other vertices than that of `truth`.
    """
    folder, read, out = Path(folder), {}, {}
    for view in views:
        for mesh, points in ((f"{view}.ply", f"landmarks3d_{view}.npy"), ("mesh.ply", "landmarks3d.npy")):
            if not ((folder / mesh).is_file() and (folder / points).is_file()):
                continue
            if mesh not in read:
                vertices, triangles = read_mesh(folder / mesh)
                if len(vertices) != len(truth.vertices):
                    raise InputError(
                        f"{folder / mesh}: expected the {len(truth.vertices)} vertices of the neutral mesh, got {len(vertices)}"
                    )
                read[mesh] = Truth(vertices, triangles, _landmarks(folder / points), truth.face)
            out[view] = read[mesh]
            break
    return out


def _landmarks(path: Path) -> np.ndarray:
    landmarks = _array(path)
    if landmarks.shape != (68, 3):
        raise InputError(f"{path}: expected [68, 3], got {list(landmarks.shape)}")
    if landmarks.dtype.kind not in "iuf" or not np.isfinite(landmarks).all():
        raise InputError(f"{path}: expected finite numbers, got {landmarks.dtype}")
    return landmarks.astype(np.float64)


def _array(path: Path) -> np.ndarray:
    with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
        return file.npy()


def rendered_people(
    folder: str | os.PathLike,
    count: int = 8,
    seed: int = 0,
    model: str = "generic",
    tell: Tell = lambda line: None,
) -> Path:
    """A benchmark of people of a face model, rendered into `folder`: five 512 px photos each, yaw -55 to 55 degrees, one light and one
    expression, landmarks with 1.2 px noise.

    Raises:
        InputError: count below 1, or the folder cannot be written.
    """
    tell(f"rendering {count} people of {model}")
    changes = {
        "model": model,
        "views": 5,
        "size": 512,
        "seed": seed,
        "landmark_noise": 1.2,
        "variation": {"yaw": 55},
    }
    write_subjects(load_synth_recipe("clean", (), changes), count, folder)
    return Path(folder)


def spread_positions(count: int, number: int) -> list[int]:
    """Positions of `number` of `count` photos, spread evenly: the photos in order are cut into `number` equal parts, and the middle
    one of each is taken. Of 5: 1 -> 2; 2 -> 1, 3; 3 -> 0, 2, 4; 5 -> all."""
    return [(2 * i + 1) * count // (2 * number) for i in range(number)]


def load_views(
    folder: str | os.PathLike,
    views: Sequence[int] | None = None,
    source: str = "auto",
    photos: int | None = None,
) -> tuple[Subject, Landmarks]:
    """A subject with decoded images and its landmarks.

    Args:
        views: keep those by position, from 0, in the order of their names; photos: keep so many, chosen by `spread_positions`.
        source: as in a recipe.
    Raises:
        InputError: unusable subject, no such view, or not so many photos.
    """
    subject = load_subject(folder)
    count = len(subject.views)
    if photos is not None:
        if not 1 <= photos <= count:
            raise InputError(f"{folder}: photos: expected a number from 1 to {count}, got {photos}")
        views = spread_positions(count, photos)
    if views is not None:
        bad = [v for v in views if not 0 <= v < count]
        if bad or not views:
            raise InputError(f"{folder}: views: expected numbers from 0 to {count - 1}, got {list(views)}")
        subject = replace(subject, views=tuple(subject.views[v] for v in views))
    # Reading files is no part of what is timed.
    subject = replace(subject, views=tuple(v.replace(image=v.image) for v in subject.views))
    found, _ = detect_landmarks(subject, source)
    subject, found, _ = usable_views(subject, found)
    return subject, found


# ---- accuracy ----


def predict(
    name: str, subject: Subject, found: Landmarks, model: FaceModel, recipe: FitRecipe | None
) -> Prediction:
    """Fit one subject, or take the model's mean face (recipe None). A failed fit is a Prediction with `error`."""
    label = MEAN_FACE if recipe is None else recipe.name
    triangles, views = model.triangles.numpy(), tuple(v.name for v in subject.views)
    if recipe is None:
        mean_face = model.mean.double().numpy()
        marks = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()
        return Prediction(
            name,
            model.name,
            label,
            mean_face,
            triangles,
            marks,
            status="ok",
            views=views,
            posed=np.stack([mean_face] * len(views)),
            posed_landmarks=np.stack([marks] * len(views)),
        )
    try:
        result = fit_observed(subject, found, model, recipe)
    except FitkitError as error:
        return Prediction(name, model.name, label, status="failed", error=str(error))
    spent, said, posed = result.metrics["time_s"], result.metrics["verdict"], result.vertices
    return Prediction(
        name,
        model.name,
        label,
        result.neutral.double().numpy(),
        triangles,
        result.landmarks3d.double().numpy(),
        spent["solve"],
        spent["cpu"],
        result.status,
        sigma=None if result.vertex_sigma is None else result.vertex_sigma.double().numpy(),
        views=views,
        posed=posed.double().numpy(),
        posed_landmarks=model.landmarks.points(posed, model.triangles).double().numpy(),
        expected_mm=said.get("expected_mm"),
        upper_mm=said.get("upper_mm"),
        error_bar_mm=(result.metrics["error_bars"] or {}).get("face_median_mm"),
    )


def same_topology(triangles: np.ndarray, truth: Truth) -> bool:
    """True when the model's triangles between the first vertices are those of the scan, so that vertices correspond."""
    ours = triangles[(triangles < len(truth.vertices)).all(1)]

    def key(t):
        t = np.sort(t, 1)
        return t[np.lexsort(t.T[::-1])]

    return ours.shape == truth.triangles.shape and bool((key(ours) == key(truth.triangles)).all())


def vertex_error(vertices: np.ndarray, truth: Truth, with_scale: bool = True) -> float:
    """Mean distance of corresponding vertices of the narrow face, mm, after the least-squares similarity (or, without
    scale, rigid motion) of these vertices onto the scan; only for a model of the scan's topology."""
    return mean(vertex_distances(np.asarray(vertices)[truth.face], truth.vertices[truth.face], with_scale))


def score(prediction: Prediction, truth: Truth) -> dict[str, float | None]:
    """Errors in mm, keys ERRORS, and keys COVERAGE: see `coverage`, None without error bars.

    now_*: scan-to-mesh distance of the NoW protocol (similarity from 7 landmarks, refined on the surface), from the points
    `Truth.skin`; points_*: the same without the refinement; vertex_*: see `vertex_error`, None when the topologies differ;
    size_percent: how much larger than the scan the prediction is, from the similarity of the 68 landmarks.
    """
    if prediction.vertices is None:
        return dict.fromkeys((*ERRORS, *COVERAGE))
    scan = truth.skin
    args = (
        prediction.vertices,
        prediction.triangles,
        prediction.landmarks[POINTS],
        scan,
        truth.landmarks[POINTS],
    )
    refined, plain = scan_to_mesh(*args), scan_to_mesh(*args, max_iterations=1)
    same = same_topology(prediction.triangles, truth)
    covered = (None, None)
    if prediction.sigma is not None:
        scale = np.linalg.norm(refined.aligned.std(0)) / np.linalg.norm(prediction.vertices.std(0))
        covered = coverage(refined.aligned, prediction.triangles, scale * prediction.sigma, scan)
    to_scan = similarity_align(
        torch.from_numpy(prediction.landmarks)[None], torch.from_numpy(truth.landmarks)[None]
    )
    return {
        "now_mean": refined.mean,
        "now_median": refined.median,
        "points_mean": plain.mean,
        "points_median": plain.median,
        "vertex_similarity": vertex_error(prediction.vertices, truth) if same else None,
        "vertex_rigid": vertex_error(prediction.vertices, truth, with_scale=False) if same else None,
        "size_percent": 100 * (1 / float(to_scan.scale) - 1),
        **dict(zip(COVERAGE, covered)),
    }


def score_photos(prediction: Prediction, truths: dict[str, Truth]) -> dict[str, float | None]:
    """Errors in mm of the face in the photos, with its expression, keys PHOTOS: `now_mean` and `now_median` of `score` for the posed face of
    each photo against its truth, means over the photos; None where no photo has a truth."""
    faces = (
        zip(prediction.views, prediction.posed, prediction.posed_landmarks)
        if prediction.posed is not None
        else ()
    )
    found = []
    for view, vertices, landmarks in faces:
        if view in truths:
            scan, points = truths[view].skin, truths[view].landmarks[POINTS]
            found.append(scan_to_mesh(vertices, prediction.triangles, landmarks[POINTS], scan, points))
    return dict(
        zip(
            PHOTOS,
            (statistics.mean(f.mean for f in found), statistics.mean(f.median for f in found))
            if found
            else (None, None),
        )
    )


def accuracy(
    data: str | os.PathLike,
    models: Sequence[str] = ("ict", "generic"),
    recipes: Sequence[str] = ("landmarks", "multiview"),
    subjects: Sequence[str] = (),
    views: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
    photos: Sequence[int] = (),
) -> dict[str, Any]:
    """Fit every subject with every model and recipe, then score all shapes: neutral and, where the truth has it, in the photos.

    Args:
        data: folder with SUBJECT/ (images, landmarks) and ground_truth/SUBJECT/.
        models, recipes: names or paths; the mean face of each model is always scored.
        subjects: names to use; empty: all. views: positions of the views to use; None: all.
        overrides: 'key=value' changes of every recipe. tell: gets one line for each finished fit.
        photos: numbers of photos; one fit with each, of photos chosen by `spread_positions`; empty: one fit with `views`.
    Returns:
        what the JSON file holds: machine, resolved recipes, one row for each fit, means by model, recipe and number of photos
        (None: not asked for; the mean face knows none).
    Raises:
        InputError: unusable data, unknown subject, model or recipe, not so many photos, or both views and photos given.
    """
    if photos and views is not None:
        raise InputError(
            f"views, photos: expected one of them, got views {list(views)} and photos {list(photos)}"
        )
    names = subject_names(data)
    unknown = [s for s in subjects if s not in names]
    if unknown:
        raise InputError(f"{data}: no subject '{unknown[0]}'; there are: {', '.join(names)}")
    names = [n for n in names if not subjects or n in subjects]
    truths = {n: load_truth(Path(data) / "ground_truth" / n) for n in names}
    plans = [load_recipe(r, overrides) for r in recipes]
    sources = list(dict.fromkeys(r.landmarks.source for r in plans)) or ["auto"]
    counts = list(dict.fromkeys(photos)) or [None]
    loaded = {
        (n, s, c): load_views(Path(data) / n, views, s, c) for n in names for s in sources for c in counts
    }
    shown = {
        n: list(
            dict.fromkeys(
                v.name for key, (subject, _) in loaded.items() if key[0] == n for v in subject.views
            )
        )
        for n in names
    }
    posed = {n: load_photo_truths(Path(data) / "ground_truth" / n, truths[n], shown[n]) for n in names}
    rows, facts = [], machine()
    for model in map(load_model, models):
        for recipe, count in [(None, counts[-1]), *((r, c) for r in plans for c in counts)]:
            for name in names:
                chosen = loaded[name, sources[0] if recipe is None else recipe.landmarks.source, count]
                p = predict(name, *chosen, model, recipe)
                rows.append(
                    {
                        "model": p.model,
                        "recipe": p.recipe,
                        "subject": name,
                        "photos": None if recipe is None else count,
                        "views": len(loaded[name, sources[0], count][0].views),
                        **score(p, truths[name]),
                        **score_photos(p, posed[name]),
                        "seconds": p.seconds,
                        "cpu_seconds": p.cpu_seconds,
                        "status": p.status,
                        "expected_mm": p.expected_mm,
                        "upper_mm": p.upper_mm,
                        "error_bar_mm": p.error_bar_mm,
                        "error": p.error,
                    }
                )
                if recipe is not None:
                    tell(f"{_label(rows[-1])}: " + (p.error or f"{p.seconds:.2f} s, {p.status}"))
    return {
        "benchmark": "accuracy",
        "data": Path(data).resolve().name,
        "unit": "mm",
        "machine": facts,
        "overrides": list(overrides),
        "view_positions": None if views is None else list(views),
        "photos": list(photos) or None,
        "recipes": {r.name: to_plain(r) for r in plans},
        "rows": rows,
        "summary": summarize(rows),
    }


def _label(row: dict[str, Any]) -> str:
    return " ".join([row["model"], row["recipe"], row["subject"]]) + (
        f", {row['photos']} photo{'s' * (row['photos'] > 1)}" if row["photos"] else ""
    )


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the subjects by model, recipe and number of photos; fits that failed are counted and left out of the means.

    medians: the same numbers, medians over the subjects.
    gain_on_landmarks: 1 - now_mean / now_mean of the recipe 'landmarks' of the same model with as many photos.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["recipe"], row.get("photos")), []).append(row)
    out = {}
    for (model, recipe, photos), group in groups.items():
        line: dict[str, Any] = {
            "model": model,
            "recipe": recipe,
            "photos": photos,
            "subjects": len(group),
            "failed": sum(r["now_mean"] is None for r in group),
            "medians": {},
        }
        for key in (*ERRORS, *PHOTOS, *COVERAGE, "seconds", "cpu_seconds"):
            values = [r[key] for r in group if r.get(key) is not None]
            line[key] = sum(values) / len(values) if values else None
            line["medians"][key] = statistics.median(values) if values else None
        out[model, recipe, photos] = line
    for (model, recipe, photos), line in out.items():
        base = out.get((model, "landmarks", photos), {}).get("now_mean")
        other = recipe not in ("landmarks", MEAN_FACE)
        line["gain_on_landmarks"] = (
            1 - line["now_mean"] / base if other and base and line["now_mean"] else None
        )
    return list(out.values())


def accuracy_text(report: dict[str, Any]) -> str:
    """The report as an aligned table."""
    head = (
        "model",
        "recipe",
        "subject",
        "views",
        "mean",
        "median",
        "mean*",
        "median*",
        "vertex",
        "rigid",
        "size %",
        *PHOTOS,
        "1 sigma",
        "2 sigma",
        "solve s",
        "CPU s",
        "status",
    )

    def cells(values: dict[str, Any]) -> list[str]:
        return [
            *(_number(values[k]) for k in MILLIMETRES),
            _number(values["size_percent"], 1),
            *(_number(values[k]) for k in PHOTOS),
            *(_percent(values[k]) for k in COVERAGE),
            _number(values["seconds"], 2),
            _number(values["cpu_seconds"], 2),
        ]

    table = [
        [r["model"], r["recipe"], r["subject"], str(r["views"]), *cells(r), r["status"]]
        for r in report["rows"]
    ]
    totals = {"Means": [], "Medians": []}
    for s in report["summary"]:
        name = [
            s["model"],
            s["recipe"],
            f"all {s['subjects']}" + (f", {s['failed']} failed" if s["failed"] else ""),
            str(s["photos"] or ""),
        ]
        gain = (
            "" if s["gain_on_landmarks"] is None else f"{-100 * s['gain_on_landmarks']:+.0f} % on landmarks"
        )
        totals["Means"].append([*name, *cells(s), gain])
        totals["Medians"].append([*name, *cells(s["medians"]), ""])
    failures = [f"{_label(r)}: {r['error']}" for r in report["rows"] if r["error"]]
    notes = [
        "mm. mean, median: scan-to-mesh distance on the NoW crop, similarity from 7 landmarks, then refined on the surface; from points",
        "spread evenly over the visible skin of the face.",
        "*: without the refinement. vertex, rigid: same-topology vertex error of the narrow face after a similarity and after",
        "a rigid motion. size %: how much too large (mean of 68 landmarks; the mean over subjects keeps the sign).",
        "photos_mean, photos_median: as mean, median, of the face with its expression in each photo, mean over the photos.",
        "1 sigma, 2 sigma: share of the scan points within so many of the error bars (exact ones: 68 %, 95 %).",
        "solve s: wall time of the solver; CPU s: crop, solver and report.",
    ]
    sums = [
        line
        for title, lines in totals.items()
        for line in (f"{title} over the subjects", _table(head, lines), "")
    ]
    return "\n".join([_table(head, table), "", *sums, *notes, *failures])


# ---- speed ----


def speed(
    folder: str | os.PathLike,
    model_name: str = "ict",
    recipe_name: str = "multiview",
    views: Sequence[int] = (0, 2, 4),
    repeats: int = 5,
    parts: Sequence[str] = SPEED_PARTS,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Times of the fit, of the full-pixel first-order fit, per view, and of the rasterizer.

    Args:
        folder: one subject with landmarks; errors are added when ../ground_truth/SUBJECT is there.
        views: positions of the views that are fitted; repeats: timed runs after one that is not.
        parts: some of SPEED_PARTS; overrides: 'key=value' changes of the recipe (not of 'adam').
    Returns:
        what the JSON file holds; a part that was not asked for is missing.
    """
    unknown = [p for p in parts if p not in SPEED_PARTS]
    if unknown:
        raise InputError(f"parts: expected some of {', '.join(SPEED_PARTS)}; got '{unknown[0]}'")
    if repeats < 1:
        raise InputError(f"repeats: expected at least 1, got {repeats}")
    folder = Path(folder).resolve()
    model, recipe = load_model(model_name), load_recipe(recipe_name, overrides)
    report: dict[str, Any] = {
        "benchmark": "speed",
        "subject": folder.name,
        "model": model.name,
        "recipe": recipe.name,
        "overrides": list(overrides),
        "machine": machine(),
    }
    truth_folder = folder.parent / "ground_truth" / folder.name
    truth = load_truth(truth_folder) if truth_folder.is_dir() else None
    if {"fit", "adam"} & set(parts):
        subject, found = load_views(folder, views, recipe.landmarks.source)
        report["views"] = [f"{v.name}, {v.size[0]} x {v.size[1]} px" for v in subject.views]
    if "fit" in parts:
        tell(f"{recipe.name}, {len(subject.views)} views, {repeats} runs")
        times, result = time_fit(subject, found, model, recipe, repeats)
        report["fit"] = {**times, "errors": _errors(result, truth)}
    if "adam" in parts:
        slow = load_recipe("adam")
        tell(f"adam, {len(subject.views)} views, one run; this takes minutes")
        times, result = time_fit(subject, found, model, slow, 1, warm_up=False)
        report["adam"] = {**times, "errors": _errors(result, truth)}
        if "fit" in report:
            report["adam"]["times_slower"] = report["adam"]["seconds"] / report["fit"]["seconds"]
            report["adam"]["times_more_cpu"] = report["adam"]["cpu_seconds"] / report["fit"]["cpu_seconds"]
    if "views" in parts:
        report["per_view"] = time_per_view(model, recipe, VIEW_COUNTS, max(1, min(repeats, 3)), tell)
    if "rasterizer" in parts:
        tell("rasterizer")
        report["rasterizer"] = time_rasterizer(model)
    return report


def time_fit(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    repeats: int,
    warm_up: bool = True,
) -> tuple[dict[str, Any], FitResult]:
    """seconds: median solver wall time; all runs, fastest and slowest, and the median CPU time, beside it."""
    if warm_up:
        fit_observed(subject, found, model, recipe)
    runs = []
    for _ in range(repeats):
        result = fit_observed(subject, found, model, recipe)
        runs.append(result.metrics["time_s"])
    wall = [r["solve"] for r in runs]
    return {
        "seconds": statistics.median(wall),
        "fastest": min(wall),
        "slowest": max(wall),
        "runs": wall,
        "cpu_seconds": statistics.median(r["cpu"] for r in runs),
        "crop_px": result.metrics["crop_px"],
        "status": result.status,
        "stages": {s["name"]: s["seconds"] for s in result.metrics["stages"]},
    }, result


def _errors(result: FitResult, truth: Truth | None) -> dict[str, float | None] | None:
    if truth is None:
        return None
    triangles = result.model.triangles.numpy()
    prediction = Prediction(
        "", "", "", result.neutral.double().numpy(), triangles, result.landmarks3d.double().numpy()
    )
    return score(prediction, truth)


def many_views(model: FaceModel, count: int, size: int = 512, seed: int = 0) -> tuple[Subject, Landmarks]:
    """A random person of the model photographed from `count` sides (yaw -55 to 55 degrees), with noisy landmarks.

    The same person and light for every count; rendered with `synth.studio`.
    """
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(model.num_identity, generator=generator).clamp(-2, 2)
    yaw = torch.linspace(-55, 55, count)
    angles = torch.stack([yaw, 4 * torch.sin(yaw), 3 * torch.cos(2 * yaw)], 1)
    expression = torch.zeros(count, model.num_expression)
    state = head_shot_state(model, identity, expression, angles, (size, size))
    images = photograph(model, state, (size, size), studio(), seed=seed, supersample=2)
    vertices = state.pose.apply(state.vertices(model))
    points, _ = state.camera.project(model.landmarks.points(vertices, model.triangles))
    points = points + 1.2 * torch.randn(points.shape, generator=generator)
    subject = subject_from_images(list(images), [p.double().numpy() for p in points], name=f"{count}_views")
    found, _ = detect_landmarks(subject, "files")
    return subject, found


def time_per_view(
    model: FaceModel,
    recipe: FitRecipe,
    counts: Sequence[int] = VIEW_COUNTS,
    repeats: int = 3,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Solver seconds by number of views, and per view; ratio: the last per-view time over the first."""
    rows = []
    for count in counts:
        tell(f"{recipe.name}, {count} rendered views, {repeats} runs")
        subject, found = many_views(model, count)
        times, _ = time_fit(subject, found, model, recipe, repeats)
        rows.append(
            {
                "views": count,
                "seconds": times["seconds"],
                "seconds_per_view": times["seconds"] / count,
                "cpu_seconds": times["cpu_seconds"],
                "stages": times["stages"],
            }
        )
    return {
        "rows": rows,
        "ratio": rows[-1]["seconds_per_view"] / rows[0]["seconds_per_view"],
        "worst_ratio": max(r["seconds_per_view"] for r in rows) / rows[0]["seconds_per_view"],
    }


def time_rasterizer(model: FaceModel, size: int = 512, repeats: int = 15) -> dict[str, Any]:
    """Milliseconds for one picture of the model's face, 1 m away, that fills most of the picture.

    z_buffer: which triangle covers which pixel; with_barycentrics: all of `rasterize`.
    """
    face = torch.tensor([name.startswith("face") for name in model.region_names])[model.region]
    index = face.long().cumsum(0) - 1
    triangles = index[model.triangles[face[model.triangles].all(1)]]
    points = model.mean[face]
    low, high = points.amin(0), points.amax(0)
    pose = Pose(
        torch.diag(points.new_tensor([1.0, -1.0, -1.0]))[None], points.new_tensor([[0.0, 0.0, 1000.0]])
    )
    camera = Camera(
        points.new_tensor([0.9 * size / float((high - low)[:2].max()) * 1000]),
        points.new_tensor([[(size - 1) / 2] * 2]),
        points.new_ones(1),
    )
    clip = clip_vertices(camera, pose.apply((points - (low + high) / 2)[None]))
    out: dict[str, Any] = {"size": size, "vertices": len(points), "triangles": len(triangles)}
    for backend in ("torch", "numba"):
        module = import_module(f"fitkit.render.backends.{backend}_backend")
        fragments = rasterize(clip, triangles, (size, size), backend)
        out["covered"] = round(float(fragments.covered.float().mean()), 3)
        out[backend] = {
            "z_buffer_ms": _milliseconds(
                lambda: module.winning_triangles(clip, triangles, (size, size)), repeats
            ),
            "with_barycentrics_ms": _milliseconds(
                lambda: rasterize(clip, triangles, (size, size), backend), repeats
            ),
        }
    return out


def _milliseconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def speed_text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = []
    if "fit" in report:
        f = report["fit"]
        lines.append(
            f"{report['recipe']}, {report['model']}, {len(report['views'])} views: {f['seconds']:.3f} s solver wall time "
            f"(median of {len(f['runs'])}; {f['fastest']:.3f} to {f['slowest']:.3f}), {f['cpu_seconds']:.3f} s CPU in all"
        )
        lines.append(
            "  stages: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in f["stages"].items())
        )
        lines += _error_lines(f["errors"])
    if "adam" in report:
        a = report["adam"]
        slower = (
            f"; {a['times_slower']:.1f} times slower ({a['times_more_cpu']:.1f} by CPU time)"
            if "times_slower" in a
            else ""
        )
        lines.append(
            f"adam (every pixel, {a['crop_px']} px crop): {a['seconds']:.1f} s wall, {a['cpu_seconds']:.1f} s CPU{slower}"
        )
        lines += _error_lines(a["errors"])
    if "per_view" in report:
        rows = report["per_view"]["rows"]
        lines.append("seconds per view by number of views (rendered person)")
        lines.append(
            _table(
                ("views", "seconds", "per view", "CPU s"),
                [
                    [
                        str(r["views"]),
                        *(_number(r[k]) for k in ("seconds", "seconds_per_view", "cpu_seconds")),
                    ]
                    for r in rows
                ],
            )
        )
        lines.append(
            f"  per view, {rows[-1]['views']} against {rows[0]['views']} views: {report['per_view']['ratio']:.2f}"
        )
    if "rasterizer" in report:
        r = report["rasterizer"]
        lines.append(
            f"rasterizer, {r['size']} x {r['size']} px, {r['vertices']} vertices, {r['triangles']} triangles, {100 * r['covered']:.0f} % covered: "
            + "; ".join(
                f"{b} {r[b]['z_buffer_ms']:.1f} ms, with barycentrics {r[b]['with_barycentrics_ms']:.1f} ms"
                for b in ("torch", "numba")
            )
        )
    return "\n".join(lines)


def _error_lines(errors: dict[str, float | None] | None) -> list[str]:
    if errors is None:
        return []
    parts = [f"scan-to-mesh mean {_number(errors['now_mean'])}, median {_number(errors['now_median'])} mm"]
    if errors["vertex_similarity"] is not None:
        parts.append(
            f"vertices after a similarity {_number(errors['vertex_similarity'])} mm, after a rigid motion {_number(errors['vertex_rigid'])} mm"
        )
    return ["  " + "; ".join(parts)]


# ---- writing ----


def write_report(report: dict[str, Any], path: str | os.PathLike) -> Path:
    """The report as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    with written_whole(path) as part:
        part.write_text(json.dumps(_rounded(report), indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to one width; numbers to the right."""
    lines = [list(head), *[list(r) for r in rows]]
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [all(r[i] == "" or r[i][0] in "-0123456789" for r in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, width, right)).rstrip()
        for line in lines
    )
