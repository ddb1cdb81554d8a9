"""Predictions of an evaluation on disk: made by fits, resumable, readable by other evaluators; others' meshes can be read as well.

For each sample id: ID.obj (neutral mesh, mm, head frame), ID.npy (the 7 points of NoW on it, [7, 3]): NoW's own layout; ID.npz (what
else a protocol needs, see Prediction), and, written last, ID.json: status, error, seconds.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitkit.data.samples import EvaluationSample, read_points
from fitkit.errors import FitError, FitkitError, InputError, unexpected
from fitkit.evaluate.scan_to_mesh import NOW_POINTS
from fitkit.export.meshes import write_obj
from fitkit.export.parameters import save_parameters
from fitkit.scene.parameters import Parameters, load_parameters
from fitkit.fitting.recipe import FitRecipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, check_shapes, foreign_file
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.scene.camera import KINDS, Camera

log = logging.getLogger("fitkit")
# Key of ID.npz -> shape; B views, V vertices.
SHAPES = {
    "landmarks": (68, 3),
    "posed": ("B", "V", 3),
    "posed_landmarks": ("B", 68, 3),
    "pixels": ("B", 68, 2),
    "outer": ("V",),
    "sigma": ("V",),
    "focal": ("B",),
    "principal": ("B", 2),
    "sizes": ("B", 2),
    "views": ("B",),
    "model": (),
    "camera_kind": (),
}
TEXTS = ("views", "model", "camera_kind")


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one sample.

    vertices [V, 3] mm, triangles [F, 3]: neutral mesh, head frame (with somebody else's predictions any frame); points [7, 3] mm:
    NOW_POINTS on it. Of our own fits also, B views:
    landmarks [68, 3] mm on the neutral mesh; posed [B, V, 3], posed_landmarks [B, 68, 3] mm: with expression, camera frame (OpenCV);
    pixels [B, 68, 2] px of the photos; outer [V] bool: skin that a scan can see; sigma [V] mm: error bars, or None; focal [B] px,
    principal [B, 2] px, sizes [B, 2] px (W, H); views [B] names; camera_kind: see Camera; model: its name; parameters: function that reads
    all of the fit.
    """

    id: str
    vertices: np.ndarray | None = None
    triangles: np.ndarray | None = None
    points: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    posed: np.ndarray | None = None
    posed_landmarks: np.ndarray | None = None
    pixels: np.ndarray | None = None
    outer: np.ndarray | None = None
    sigma: np.ndarray | None = None
    focal: np.ndarray | None = None
    principal: np.ndarray | None = None
    sizes: np.ndarray | None = None
    views: np.ndarray | None = None
    camera_kind: str = "perspective"
    model: str = ""
    parameters: Callable[[], Parameters] | None = None

    def camera(self) -> Camera:
        """The camera of the first view, float64."""
        focal, principal = (
            torch.from_numpy(np.asarray(v[:1], np.float64)) for v in (self.focal, self.principal)
        )
        return Camera(focal, principal, torch.ones_like(focal), self.camera_kind)

    def middle_depth(self) -> float:
        """What the first view's mesh is divided by when perspective is left out, mm: its mean depth."""
        points = torch.from_numpy(np.asarray(self.posed[0], np.float64))[None]
        return float(self.camera().depth_divisor(points).mean())

    def need(self, *names: str) -> None:
        """Refuse a prediction that lacks what a protocol uses."""
        lacking = [n for n in names if getattr(self, n) is None]
        if lacking:
            raise InputError(
                f"{self.id}: the prediction has no {' and no '.join(lacking)}; this protocol needs the predictions of a fit, "
                "as `fitkit evaluate` without --predictions makes them"
            )


# ---- making ----


def make_predictions(
    samples: Sequence[EvaluationSample],
    folder: str | os.PathLike,
    model: FaceModel,
    recipe: FitRecipe,
    predictor: str = "fit",
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Predict every sample that has no prediction in the folder yet; a failure is written down and is not tried again.

    Args:
        predictor: 'fit' (photos -> fit), 'mean' (the model's mean face) or 'landmarks' (only the 68 points of the detector).
        tell: gets one line for each finished sample.
    """
    root = Path(folder)
    for number, sample in enumerate(samples, 1):
        if _path(root, sample.id, ".json").is_file():
            continue
        began, status, error = time.perf_counter(), "", ""
        try:
            status = predict(sample, root, model, recipe, predictor)
        except FitkitError as problem:
            status, error = "failed", str(problem)
        except Exception as problem:  # noqa: BLE001 - one sample must not end a run of thousands
            log.exception("%s", sample.id)
            status, error = "failed", unexpected(problem)
        seconds = round(time.perf_counter() - began, 3)
        with written_whole(_path(root, sample.id, ".json")) as part:
            part.write_text(
                json.dumps(
                    {
                        "id": sample.id,
                        "status": status,
                        "error": error,
                        "seconds": seconds,
                        "model": model.name,
                        "predictor": predictor,
                    },
                    indent=1,
                )
                + "\n",
                encoding="utf-8",
            )
        tell(f"{number}/{len(samples)} {sample.id}: {error or status}, {seconds:.1f} s")


def predict(sample: EvaluationSample, root: Path, model: FaceModel, recipe: FitRecipe, predictor: str) -> str:
    """Write the prediction of one sample but its .json -> status.

    Raises:
        FitkitError: no photo, no face, a fit that failed.
    """
    if predictor == "mean":
        points = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()
        _write_mesh(root, sample.id, model, model.mean, points)
        _write_arrays(
            root, sample.id, {"landmarks": points, "outer": _outer(model), "model": np.array(model.name)}
        )
        return "ok"
    subject = sample.subject()
    found, _ = detect_landmarks(subject, recipe.landmarks.source)
    subject, found, _ = usable_views(subject, found)
    if predictor == "landmarks":
        _write_arrays(
            root,
            sample.id,
            {"pixels": found.points.double().numpy(), "sizes": _sizes(subject), "views": _names(subject)},
        )
        return "ok"
    result = fit_observed(subject, found, model, recipe)
    write_fit(result, root, sample.id)
    if result.status == "failed":
        raise FitError(f"the fit failed: {'; '.join(result.warnings)}")
    return result.status


def write_fit(result: FitResult, root: Path, name: str) -> None:
    """All files of a fit but its .json."""
    model, state = result.model, result.state
    posed = state.pose.apply(result.vertices)
    marks = model.landmarks.points(posed, model.triangles)
    points = result.landmarks3d.double().numpy()
    _write_mesh(root, name, model, result.neutral, points)
    arrays = {
        "landmarks": points,
        "posed": posed.float().numpy(),
        "posed_landmarks": marks.double().numpy(),
        "pixels": state.camera.project(marks)[0].double().numpy(),
        "outer": _outer(model),
        "focal": state.camera.focal.double().numpy(),
        "principal": state.camera.principal.double().numpy(),
        "sizes": _sizes(result.subject),
        "views": _names(result.subject),
        "model": np.array(model.name),
        "camera_kind": np.array(state.camera.kind),
    }
    if result.vertex_sigma is not None:
        arrays["sigma"] = result.vertex_sigma.float().numpy()
    _write_arrays(root, name, arrays)
    with written_whole(_path(root, name, ".parameters.npz")) as part:
        save_parameters(result, part)


def _outer(model: FaceModel) -> np.ndarray:
    """Vertices that a scan can see: skin and face, without eyeballs, teeth and the inside of the mouth."""
    return (model.skin | model.face).numpy()


def _sizes(subject: Subject) -> np.ndarray:
    return np.array([v.size for v in subject.views], np.int64)


def _names(subject: Subject) -> np.ndarray:
    return np.array([v.name for v in subject.views], str)


def _write_mesh(root: Path, name: str, model: FaceModel, vertices, landmarks: np.ndarray) -> None:
    with written_whole(_path(root, name, ".obj")) as part:
        # Without texture coordinates: readers split vertices along their seams.
        write_obj(part, vertices, replace(model, uv=None, uv_triangles=None))
    with written_whole(_path(root, name, ".npy")) as part:
        with open(part, "wb") as file:  # a name would get another suffix
            np.save(file, landmarks[list(NOW_POINTS)])


def _write_arrays(root: Path, name: str, arrays: dict[str, Any]) -> None:
    with written_whole(_path(root, name, ".npz")) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def _path(root: Path, name: str, suffix: str) -> Path:
    return root / f"{name}{suffix}"  # with_suffix would cut names with dots


# ---- reading ----


def read_status(root: Path, name: str) -> dict[str, Any]:
    """What is known of a prediction: status ('failed', 'missing', else usable) and error. Meshes without our .json are usable."""
    path = _path(root, name, ".json")
    if path.exists():
        with foreign_file(path, "cannot be read; delete it to have the sample predicted again") as file:
            content = file.json()
            seconds = content.get("seconds")
            if not isinstance(seconds, (int, float, type(None))):
                raise ValueError("seconds: expected a number")
            return {"status": str(content["status"]), "error": str(content["error"]), "seconds": seconds}
    if any(_path(root, name, s).is_file() for s in (".obj", ".ply", ".npz")):
        return {"status": "ok", "error": "", "seconds": None}
    return {"status": "missing", "error": f"no prediction {_path(root, name, '.obj')}", "seconds": None}


def read_prediction(root: Path, name: str) -> Prediction:
    """A prediction of ours, or in NoW's layout: ID.obj or .ply with ID.npy or .txt, 7 points, same unit.

    Raises:
        InputError: a broken file, or a mesh without its points.
    """
    out, sizes = Prediction(name), {}
    path = _path(root, name, ".npz")
    if path.exists():
        with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
            arrays = file.npz(tuple(SHAPES))
        sizes = check_shapes(
            arrays, {k: SHAPES[k] for k in arrays}, dict.fromkeys(TEXTS, "U") | {"outer": "b"}, path
        )
        out = replace(out, **{k: str(v) if k in ("model", "camera_kind") else v for k, v in arrays.items()})
        if out.camera_kind not in KINDS:
            raise InputError(
                f"{path}: camera_kind: expected one of {', '.join(KINDS)}; got '{out.camera_kind}'"
            )
    mesh = next((p for s in (".obj", ".ply") if (p := _path(root, name, s)).is_file()), None)
    if mesh is not None:
        picks = next((p for s in (".npy", ".txt") if (p := _path(root, name, s)).is_file()), None)
        if picks is None:
            raise InputError(f"{mesh}: expected its 7 points in {name}.npy or {name}.txt beside it, [7, 3]")
        vertices, triangles = read_mesh(mesh)
        out = replace(out, vertices=vertices, triangles=triangles, points=read_points(picks, 7))
        if sizes.get("V", len(vertices)) != len(vertices):
            raise InputError(
                f"{path}: belongs to a mesh of {sizes['V']} vertices, {mesh.name} has {len(vertices)}; "
                "make the predictions again"
            )
    parameters = _path(root, name, ".parameters.npz")
    return replace(out, parameters=lambda: load_parameters(parameters)) if parameters.is_file() else out
