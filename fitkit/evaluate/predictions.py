"""Predictions of an evaluation on disk: readable by other evaluators, and others' meshes can be read as well.

For each sample id: ID.obj (neutral mesh, mm, head frame), ID.npy (the 7 points of NoW on it, [7, 3]): NoW's
own layout; ID.npz (what else a protocol needs, see PredictedFace), ID.parameters.npz (of a fit or a network),
and, written last, ID.json: see Outcome.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.data.samples import read_points
from fitkit.errors import InputError
from fitkit.evaluate.scan_to_mesh import NOW_POINTS
from fitkit.export.meshes import write_obj
from fitkit.export.parameters import save_parameters
from fitkit.fitting.result import FitResult
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, check_indices, check_shapes, foreign_file
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import KINDS, Camera
from fitkit.scene.parameters import load_parameters

# Key of ID.npz -> shape; B views, V vertices.
SHAPES = {
    "landmarks": (68, 3),
    "posed": ("B", "V", 3),
    "triangles": ("F", 3),  # only where there is no neutral mesh
    "posed_landmarks": ("B", 68, 3),
    "pixels": ("B", 68, 2),
    "outer": ("V",),
    "sigma": ("V",),
    "focal": ("B",),
    "aspect": ("B",),
    "principal": ("B", 2),
    "sizes": ("B", 2),
    "views": ("B",),
    "model": (),
    "camera_kind": (),
}
TEXTS = ("views", "model", "camera_kind")
NOT_SCORED = ("failed", "missing")
Part = Any  # an array or None; `PredictedFace.need` refuses what is not there


@dataclass(frozen=True)
class PredictedFace:
    """What was predicted for one sample; a part is None where the predictor says nothing of it.

    vertices [V, 3] mm, triangles [F, 3]: neutral mesh, head frame (with somebody else's predictions any
    frame); points [7, 3] mm: NOW_POINTS on it. Of our own predictions also, B views:
    landmarks [68, 3] mm on the neutral mesh; posed [B, V, 3], posed_landmarks [B, 68, 3] mm: with expression,
    camera frame (OpenCV); pixels [B, 68, 2] px of the photos; of all points NaN where one is missing; outer
    [V] bool: skin that a scan can see; sigma [V] mm: error bars; focal [B] px, principal [B, 2] px, sizes
    [B, 2] px (W, H); aspect [B], see Camera, None: 1; views [B] names;
    camera_kind: see Camera; model: its name; parameters: function without arguments -> Parameters, all of the
    fit.
    """

    id: str
    vertices: Part = None
    triangles: Part = None
    points: Part = None
    landmarks: Part = None
    posed: Part = None
    posed_landmarks: Part = None
    pixels: Part = None
    outer: Part = None
    sigma: Part = None
    focal: Part = None
    principal: Part = None
    sizes: Part = None
    views: Part = None
    camera_kind: str = "perspective"
    model: str = ""
    parameters: Any = None
    aspect: Part = None

    def camera(self) -> Camera:
        """The camera of the first view, float64."""
        focal, principal = (
            torch.from_numpy(np.asarray(v[:1], np.float64)) for v in (self.focal, self.principal)
        )
        aspect = torch.ones_like(focal) if self.aspect is None else torch.as_tensor(self.aspect[:1]).double()
        return Camera(focal, principal, aspect, self.camera_kind)

    def middle_depth(self) -> float:
        """What the first view's mesh is divided by when perspective is left out, mm: its mean depth."""
        points = torch.from_numpy(np.asarray(self.posed[0], np.float64))[None]
        return float(self.camera().depth_divisor(points).mean())

    def need(self, *names: str) -> None:
        """Refuse a prediction that lacks what a protocol uses."""
        lacking = [n for n in names if getattr(self, n) is None]
        if lacking:
            raise InputError(
                f"{self.id}: the prediction has no {' and no '.join(lacking)}; this protocol needs a "
                "predictor that gives them, as a fit does (`fitkit evaluate` with predictor=fit and "
                "without --predictions)"
            )


@dataclass(frozen=True)
class Outcome:
    """How a prediction ended. status: 'ok', 'doubtful', 'failed', or 'missing': there is none; error: why it
    failed; seconds: wall time of all of it.

    Of a fit or a network also: solve_seconds: wall time of the solver or the network; cpu_seconds: CPU time
    of crop, solver and report; what it says of its own error: expected_mm, its bound upper_mm, and
    error_bar_mm, the median of the error bars over the face. None: it does not say.
    """

    status: str
    error: str = ""
    seconds: float | None = None
    solve_seconds: float | None = None
    cpu_seconds: float | None = None
    expected_mm: float | None = None
    upper_mm: float | None = None
    error_bar_mm: float | None = None

    @property
    def usable(self) -> bool:
        return self.status not in NOT_SCORED


# ---- from a model or a fit ----


def face_of_model(model: FaceModel, name: str = "") -> PredictedFace:
    """The mean face."""
    points = marks_of(model, model.mean[None])[0].double().numpy()
    return PredictedFace(
        name,
        model.mean.double().numpy(),
        model.triangles.numpy(),
        points[list(NOW_POINTS)],
        points,
        outer=outer_of(model),
        model=model.name,
    )


def marks_of(model: FaceModel, vertices: Tensor) -> Tensor:
    """The 68 points [B, 68, 3] on meshes of a model [B, V, 3]; NaN for those that the model lacks."""
    points = model.landmarks.points(vertices, model.triangles)
    return points.masked_fill(~model.landmarks.present[:, None], torch.nan)


def face_of_fit(result: FitResult, name: str = "") -> PredictedFace:
    """All that a fit, or a network, says of a face."""
    model, state = result.model, result.state
    posed, points = state.pose.apply(result.vertices), result.landmarks3d.double().numpy()
    marks = marks_of(model, posed)
    return PredictedFace(
        name,
        result.neutral.double().numpy(),
        model.triangles.numpy(),
        points[list(NOW_POINTS)],
        points,
        posed.float().numpy(),
        marks.double().numpy(),
        state.camera.project(marks)[0].double().numpy(),
        outer_of(model),
        None if result.vertex_sigma is None else result.vertex_sigma.float().numpy(),
        state.camera.focal.double().numpy(),
        state.camera.principal.double().numpy(),
        sizes_of(result.subject),
        names_of(result.subject),
        state.camera.kind,
        model.name,
        aspect=state.camera.aspect.double().numpy(),
    )


def outcome_of(result: FitResult) -> Outcome:
    """What a fit says of itself. One that failed has its warnings as the error."""
    metrics, failed = result.metrics, result.status == "failed"
    spent, said = metrics.get("time_s") or {}, metrics.get("verdict") or {}
    return Outcome(
        result.status,
        f"the fit failed: {'; '.join(result.warnings)}" if failed else "",
        None,
        spent.get("solve"),
        spent.get("cpu"),
        said.get("expected_mm"),
        said.get("upper_mm"),
        (metrics.get("error_bars") or {}).get("face_median_mm"),
    )


def outer_of(model: FaceModel) -> np.ndarray:
    """Vertices that a scan can see: skin and face, without eyeballs, teeth and the inside of the mouth."""
    return (model.skin | model.face).numpy()


def sizes_of(subject: Subject) -> np.ndarray:
    """(W, H) px of its photos, [B, 2]."""
    return np.array([v.size for v in subject.views], np.int64)


def names_of(subject: Subject) -> np.ndarray:
    """Names of its photos [B]."""
    return np.array([v.name for v in subject.views], str)


# ---- writing ----


def write_fit(result: FitResult, root: Path, name: str) -> None:
    """All files of a fit but its .json."""
    write_face(face_of_fit(result, name), root, result.model)
    with written_whole(_path(root, name, ".parameters.npz")) as part:
        save_parameters(result, part)


def write_face(face: PredictedFace, root: Path, model: FaceModel | None = None) -> None:
    """The files of a prediction but its .json and its parameters. model: that of its neutral mesh; None: it
    has none."""
    if model is not None:
        with written_whole(_path(root, face.id, ".obj")) as part:
            # Without texture coordinates: readers split vertices along their seams.
            write_obj(part, torch.from_numpy(face.vertices), replace(model, uv=None, uv_triangles=None))
        # A file, since a name would get another suffix.
        with written_whole(_path(root, face.id, ".npy")) as part, open(part, "wb") as file:
            np.save(file, face.points)
    arrays = {key: np.asarray(value) for key in SHAPES if (value := getattr(face, key)) is not None}
    if model is not None:
        del arrays["triangles"]  # they are those of the mesh
    with written_whole(_path(root, face.id, ".npz")) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_outcome(outcome: Outcome, root: Path, name: str, predictor: str, model: str) -> None:
    """The .json of a prediction. predictor, model: what made it, for people."""
    content = {"id": name, **asdict(outcome), "model": model, "predictor": predictor}
    with written_whole(_path(root, name, ".json")) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _path(root: Path, name: str, suffix: str) -> Path:
    return root / f"{name}{suffix}"  # with_suffix would cut names with dots


# ---- reading ----


def read_outcome(root: Path, name: str) -> Outcome:
    """What is known of a prediction. Meshes without our .json are usable.

    Raises:
        InputError: its .json is not one of ours.
    """
    path = _path(root, name, ".json")
    if path.exists():
        with foreign_file(path, "cannot be read; delete it to have the sample predicted again") as file:
            content = file.json()
            numbers = {f.name: content.get(f.name) for f in fields(Outcome)[2:]}
            wrong = [k for k, v in numbers.items() if not isinstance(v, (int, float, NoneType))]
            if wrong:
                raise ValueError(f"{wrong[0]}: expected a number")
            return Outcome(str(content["status"]), str(content["error"]), **numbers)
    if any(_path(root, name, s).is_file() for s in (".obj", ".ply", ".npz")):
        return Outcome("ok")
    return Outcome("missing", f"no prediction {_path(root, name, '.obj')}")


def has_mesh(root: Path, name: str) -> bool:
    """A mesh was written, be it of a fit that failed."""
    return _path(root, name, ".obj").is_file()


def is_predicted(root: Path, name: str) -> bool:
    """A prediction of ours is complete, be it that it failed."""
    return _path(root, name, ".json").is_file()


def read_prediction(root: Path, name: str) -> PredictedFace:
    """A prediction of ours, or in NoW's layout: ID.obj or .ply with ID.npy or .txt, 7 points, same unit.

    Raises:
        InputError: a broken file, or a mesh without its points.
    """
    out, sizes = PredictedFace(name), {}
    path = _path(root, name, ".npz")
    if path.exists():
        with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
            arrays = file.npz(tuple(SHAPES))
        sizes = check_shapes(
            arrays,
            {k: SHAPES[k] for k in arrays},
            dict.fromkeys(TEXTS, "U") | {"outer": "b", "triangles": "iu"},
            path,
        )
        out = replace(out, **{k: str(v) if k in ("model", "camera_kind") else v for k, v in arrays.items()})
        if out.triangles is not None and "V" in sizes:
            check_indices(out.triangles, sizes["V"], f"{path}: triangles")
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
