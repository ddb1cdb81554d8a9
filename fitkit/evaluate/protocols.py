"""Every evaluation protocol: which samples it has, what it measures on one, and how it sums up. Recipes: `recipes/evaluate/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from fitkit.data import (
    aflw2000,
    bosphorus,
    bu3dfe,
    facescape,
    facewarehouse,
    florence_renders,
    micc,
    now,
    pixel_face,
    realy,
)
from fitkit.data.photo_halves import PhotoHalves, half_samples
from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, images_in, people_in
from fitkit.errors import FitkitError, InputError
from fitkit.evaluate import bench, split_halves
from fitkit.evaluate.depth_range import ScaleShift, average, depth_range_errors, percentiles, scale_shift
from fitkit.evaluate.facescape import align_lab, align_wild, facescape_errors, wild_frame
from fitkit.evaluate.held_out import held_out_errors, identity_spread, share_beyond
from fitkit.evaluate.landmark_accuracy import box_size, normalized_mean_error
from fitkit.evaluate.micc import micc_errors
from fitkit.evaluate.nme3d import nme3d_icp
from fitkit.evaluate.pixel_face import scan_errors
from fitkit.evaluate.predictions import Prediction
from fitkit.evaluate.regions import region_errors
from fitkit.evaluate.scan_to_mesh import NOW_POINTS, now_crop, scan_to_mesh
from fitkit.evaluate.vertex_error import corresponding_distances, read_correspondence
from fitkit.fitting.detail import personal_model
from fitkit.geometry.alignment import similarity_align
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.options import Length, Natural, Positive, Range
from fitkit.io.subject import Subject, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.render.rasterizer import clip_vertices, interpolate, rasterize

SEVEN = list(NOW_POINTS)
NINE = [36, 39, 42, 45, 30, 31, 35, 48, 54]  # of the 68: as data.bu3dfe.nine_points
Rows = Sequence[dict[str, Any]]
Pool = dict[str, list[tuple[str, np.ndarray]]]  # name -> (sample id, values) of every scored sample


@dataclass(frozen=True)
class ErrorMap:
    """A true surface with the error of its vertices: vertices [V, 3] mm, triangles [F, 3], errors [V] mm, NaN = not scored;
    points [7, 3] mm: NOW_POINTS, which say where the front is."""

    vertices: np.ndarray
    triangles: np.ndarray
    errors: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Scored:
    """values: one number for each metric, None where it does not apply; pooled: arrays that are summed up over all samples."""

    values: dict[str, float | None]
    pooled: dict[str, np.ndarray] = field(default_factory=dict)
    picture: ErrorMap | None = None


@dataclass(frozen=True)
class Protocol:
    """dataset: where its data comes from (None: ours); options: dataclass of what a recipe may set; samples(folder, options);
    score(sample, prediction, options, context); prepare(pairs of sample and prediction, options, name of the face model) -> context: what
    is needed before the first sample is scored; summarize(rows, pool, options): what the means do not say; units: metric -> unit;
    drawn_by: options that say which photos a sample of the same id is made of: predictions made under others are not gone on with."""

    options: type
    samples: Callable[[str | os.PathLike, Any], list[EvaluationSample]]
    score: Callable[[EvaluationSample, Prediction, Any, Any], Scored]
    units: dict[str, str]
    dataset: DataSet | None = None
    prepare: Callable[[Iterable[tuple[EvaluationSample, Prediction]], Any, str], Any] = (
        lambda pairs, options, model: None
    )
    summarize: Callable[[Rows, Pool, Any], dict[str, Any]] = lambda rows, pool, options: {}
    drawn_by: tuple[str, ...] = ()


def _front(prediction: Prediction) -> int:
    """The view named 'front', or the first."""
    names = [str(n) for n in prediction.views]
    return names.index("front") if "front" in names else 0


def _map_on(scan: ScanTruth, index: np.ndarray, errors: np.ndarray, points: np.ndarray) -> ErrorMap:
    full = np.full(len(scan.vertices), np.nan)
    full[index] = errors
    return ErrorMap(scan.vertices, scan.triangles, full, points)


# ---- MICC Florence ----


@dataclass(frozen=True)
class MiccOptions:
    """sequences: folders of frames; frames: how many of a sequence are fitted; with_scale: of the alignment."""

    sequences: Annotated[tuple[str, ...], Length(1)] = micc.SEQUENCES
    frames: Annotated[int, Range(1, 1000)] = 3
    with_scale: bool = True


def _score_micc(
    sample: EvaluationSample, prediction: Prediction, options: MiccOptions, context: Any
) -> Scored:
    prediction.need("vertices", "points")
    truth = sample.truth()
    tip = truth.more["nose_tip"]

    def errors(vertices, points):
        return micc_errors(
            vertices,
            prediction.triangles,
            points,
            truth.vertices,
            truth.triangles,
            truth.points,
            tip,
            prediction.outer,
            options.with_scale,
        )

    got = errors(prediction.vertices, prediction.points)
    values = {
        "p2plane_symmetric": got.symmetric,
        "p2plane_prediction_to_scan": got.prediction_to_scan,
        "p2plane_scan_to_prediction": got.scan_to_prediction,
        "p2plane_symmetric_with_expression": None,
    }
    if prediction.posed is not None:
        i = _front(prediction)
        values["p2plane_symmetric_with_expression"] = errors(
            prediction.posed[i], prediction.posed_landmarks[i][SEVEN]
        ).symmetric
    return Scored(values, {}, _map_on(truth, got.crop, got.distances, truth.points))


# ---- NoW ----


@dataclass(frozen=True)
class NowOptions:
    """metrical: no scale in the alignment; unit_mm: millimetres of the predictions' unit (1000 for metres); challenges: some of NoW's."""

    metrical: bool = False
    unit_mm: Positive = 1.0
    challenges: Annotated[tuple[str, ...], Length(1)] = now.CHALLENGES


def _score_now(sample: EvaluationSample, prediction: Prediction, options: NowOptions, context: Any) -> Scored:
    prediction.need("vertices", "points")
    truth = sample.truth()
    crop = now_crop(truth.vertices, truth.points)
    fit = scan_to_mesh(
        options.unit_mm * prediction.vertices,
        prediction.triangles,
        options.unit_mm * prediction.points,
        truth.vertices[crop],
        truth.points,
        with_scale=not options.metrical,
    )
    return Scored(
        {"s2m_mean": fit.mean, "s2m_median": fit.median},
        {"s2m": fit.distances.astype(np.float32)},
        _map_on(truth, crop, fit.distances, truth.points),
    )


def _summarize_now(rows: Rows, pool: Pool, options: NowOptions) -> dict[str, Any]:
    """NoW's own numbers: over all vertices of all photos, and the cumulative curve to 8 mm."""
    groups = {r["id"]: r["group"] for r in rows}
    out: dict[str, Any] = {}
    for name in ("", *options.challenges):
        parts = [d for i, d in pool.get("s2m", []) if name in ("", groups[i])]
        if parts:
            d = np.concatenate(parts)
            line = {
                "median": float(np.median(d)),
                "mean": float(d.mean(dtype=np.float64)),
                "std": float(d.std(dtype=np.float64)),
                "vertices": len(d),
            }
            if not name:
                line["cumulative_percent"] = {
                    f"{x:g} mm": float(100 * (d <= x).mean()) for x in np.arange(0, 8.5, 0.5)
                }
            out[f"pooled {name}".strip()] = line
    return out


# ---- FaceScape ----


@dataclass(frozen=True)
class WildOptions:
    """No options."""


@dataclass(frozen=True)
class LabOptions:
    """views: lists of view numbers that are fitted together; empty: the benchmark's single pictures."""

    views: tuple[Annotated[tuple[Natural, ...], Length(1)], ...] = ()


def _score_wild(
    sample: EvaluationSample, prediction: Prediction, options: WildOptions, context: Any
) -> Scored:
    prediction.need("posed", "focal", "principal", "sizes")
    truth = sample.truth()
    placed = wild_frame(
        prediction.posed[0],
        float(prediction.focal[0]) / prediction.middle_depth(),
        prediction.principal[0],
        tuple(prediction.sizes[0]),
    )
    gt, ours = align_wild(
        truth.vertices, truth.triangles, placed, prediction.triangles, truth.more["pupil_scale"]
    )
    return _facescape(gt, truth, ours, prediction.triangles)


def _score_lab(sample: EvaluationSample, prediction: Prediction, options: LabOptions, context: Any) -> Scored:
    prediction.need("posed")
    truth = sample.truth()
    ours = align_lab(
        truth.vertices, truth.triangles, prediction.posed[0], prediction.triangles, truth.more["K"]
    )
    return _facescape(truth.vertices, truth, ours, prediction.triangles)


def _facescape(gt: np.ndarray, truth: ScanTruth, ours: np.ndarray, triangles: np.ndarray) -> Scored:
    got = facescape_errors(gt, truth.triangles, ours, triangles, truth.more["rotation"], truth.more["center"])
    return Scored({"cd": got.cd, "mne_facescape": got.mne_facescape, "mne_true": got.mne_true, "cr": got.cr})


def _done_rate(rows: Rows, pool: Pool, options: Any) -> dict[str, Any]:
    return {"done_percent": 100 * sum(r["status"] not in ("failed", "missing") for r in rows) / len(rows)}


# ---- Pixel-Face, Bosphorus ----


@dataclass(frozen=True)
class PixelFaceOptions:
    """split: folder; unit_mm: millimetres of the meshes' unit; upright: the photos need no turning."""

    split: str = "val"
    unit_mm: Positive = 1.0
    upright: bool = False


@dataclass(frozen=True)
class BosphorusOptions:
    """angle: degrees of the turned pictures beside a neutral frontal one."""

    angle: Annotated[int, Range(0, 180)] = 45


def _score_scan(sample: EvaluationSample, prediction: Prediction, options: Any, context: Any) -> Scored:
    prediction.need("posed", "posed_landmarks", "views")
    truth, i = sample.truth(), _front(prediction)
    got = scan_errors(
        prediction.posed[i],
        prediction.triangles,
        prediction.posed_landmarks[i][SEVEN],
        truth.vertices,
        truth.points,
    )
    return Scored(
        {"s2m_mean": got.s2m_mean, "s2m_rmse": got.s2m_rmse, "p2plane_rmse": got.p2plane_rmse},
        {},
        _map_on(truth, got.crop, got.fit.distances, truth.points),
    )


# ---- BU-3DFE ----


@dataclass(frozen=True)
class BuOptions:
    """step: px between the sampled pixels; reach_mm: radius around the nose tip of the scan's face region."""

    step: Annotated[int, Range(1, 1000)] = 2
    reach_mm: Positive = 95.0


def _bu_frame(prediction: Prediction, points: np.ndarray) -> np.ndarray:
    """Camera-frame points mm -> the picture: x right, y up, z towards the viewer, all in px, mean depth of the mesh at 0.

    One scale and shift are to hold for the whole data set; a fit does not know its distance, so its depth starts at the mean.
    """
    depth = float(prediction.posed[0][:, 2].mean())
    scale = float(prediction.focal[0]) / prediction.middle_depth()
    center = np.asarray(prediction.principal[0], np.float64)
    return np.column_stack(
        [points[:, 0] * scale + center[0], -points[:, 1] * scale - center[1], (depth - points[:, 2]) * scale]
    )


def _prepare_bu(
    pairs: Iterable[tuple[EvaluationSample, Prediction]], options: BuOptions, model: str
) -> ScaleShift | None:
    """The mean over the samples of scale and shift from 9 landmarks."""
    maps = []
    for sample, prediction in pairs:
        with suppress(FitkitError):  # told when the sample is scored
            prediction.need("posed", "posed_landmarks", "focal", "principal", "sizes")
            maps.append(
                scale_shift(
                    _bu_frame(prediction, prediction.posed_landmarks[0])[NINE], sample.truth().more["nine"]
                )
            )
    return average(maps) if maps else None


def _score_bu(
    sample: EvaluationSample, prediction: Prediction, options: BuOptions, context: ScaleShift
) -> Scored:
    prediction.need("posed", "posed_landmarks", "focal", "principal", "sizes")
    truth = sample.truth()
    vertices, triangles = prediction.posed[0], torch.from_numpy(prediction.triangles)
    W, H = (int(v) for v in prediction.sizes[0])
    points = torch.from_numpy(vertices).double()[None]
    fragments = rasterize(clip_vertices(prediction.camera(), points), triangles, (H, W))
    at = interpolate(fragments, triangles, points)[0, :: options.step, :: options.step]
    cloud = at[fragments.covered[0, :: options.step, :: options.step]].double().numpy()
    near = np.linalg.norm(truth.vertices - truth.more["nine"][4], axis=1) <= options.reach_mm
    depth = float(np.ptp(truth.vertices[near, 2]))
    placed = context.apply(_bu_frame(prediction, cloud))
    placed = placed[np.linalg.norm(placed - truth.more["nine"][4], axis=1) <= options.reach_mm]
    if len(placed) < 6:
        raise InputError(
            f"{sample.id}: the prediction has {len(placed)} points within {options.reach_mm:.0f} mm of the scan's nose tip; "
            "is the photo its frontal picture?"
        )
    errors = depth_range_errors(placed, truth.vertices, truth.triangles, depth)
    return Scored(
        {f"depth_percent_{k}": v for k, v in percentiles(errors).items()},
        {"depth_percent": errors.astype(np.float32)},
    )


def _summarize_bu(rows: Rows, pool: Pool, options: BuOptions) -> dict[str, Any]:
    """Over all pixels of all images; the means over the images are in the groups."""
    parts = [d for _, d in pool.get("depth_percent", [])]
    return {"pooled over pixels": percentiles(np.concatenate(parts))} if parts else {}


# ---- renders of Florence scans ----


@dataclass(frozen=True)
class FlorenceOptions:
    """No options."""


def _score_florence(
    sample: EvaluationSample, prediction: Prediction, options: FlorenceOptions, context: Any
) -> Scored:
    """The scan's face sphere (NoW) in the prediction's camera frame: similarity from 7 landmarks, since a fit does not know its size."""
    prediction.need("posed", "posed_landmarks")
    truth = sample.truth()
    crop = truth.vertices[now_crop(truth.vertices, truth.points)]
    to_scan = similarity_align(
        torch.from_numpy(np.asarray(prediction.posed_landmarks[0][SEVEN], np.float64))[None],
        torch.from_numpy(truth.points)[None],
    )
    placed, triangles = (
        to_scan.apply(torch.from_numpy(prediction.posed[0].astype(np.float64))[None])[0].numpy(),
        prediction.triangles,
    )
    eyes = float(np.linalg.norm(truth.points[0] - truth.points[3]))
    return Scored(
        {
            "nme_aligned": nme3d_icp(placed, triangles, crop, eyes),
            "nme_correspondence": nme3d_icp(placed, triangles, crop, eyes, aligned=False),
        }
    )


# ---- AFLW2000-3D ----


@dataclass(frozen=True)
class AflwOptions:
    """model: folder with 3DDFA's Model_Shape.mat and Model_Exp.mat for NME_3d, empty: NME_2d only; vertices: .npy of the dense
    vertices that count, empty: all."""

    model: str = ""
    vertices: str = ""


def nme_2d(predicted: np.ndarray, truth: np.ndarray) -> float:
    """NME_2d in per cent: mean distance of the 68 points [68, 2] px over the square root of the area of the true points' box."""
    a, b = (torch.from_numpy(np.asarray(x, np.float64))[None] for x in (predicted, truth))
    return 100 * float(normalized_mean_error(a, b, torch.ones(1, 68, dtype=torch.bool), box_size(b)))


def _score_aflw(
    sample: EvaluationSample, prediction: Prediction, options: AflwOptions, context: Any
) -> Scored:
    prediction.need("pixels")
    truth = sample.truth()
    values: dict[str, float | None] = {"nme_2d": nme_2d(prediction.pixels[0], truth.points)}
    if truth.vertices is not None:
        prediction.need("posed", "focal", "principal")
        vertices = prediction.posed[0].astype(np.float64)
        pixels = prediction.camera().project(torch.from_numpy(vertices)[None])[0][0].numpy()
        depth = -vertices[:, 2] * float(prediction.focal[0]) / prediction.middle_depth()
        dense = (
            truth.vertices[_indices(options.vertices, len(truth.vertices))]
            if options.vertices
            else truth.vertices
        )
        # The nose tips start at one depth; ICP does the rest.
        surface = np.column_stack([pixels, depth + (dense[:, 2].max() - depth.max())])
        values["nme_3d"] = 100 * nme3d_icp(surface, prediction.triangles, dense, truth.interocular)
    return Scored(values)


def _indices(path: str, count: int) -> np.ndarray:
    with foreign_file(path, "cannot be read as vertex indices (.npy)", limit=DATA_BYTES) as file:
        index = file.npy()
    if (
        index.ndim != 1
        or index.dtype.kind not in "iu"
        or not len(index)
        or index.min() < 0
        or index.max() >= count
    ):
        raise InputError(
            f"{path}: expected indices [N] from 0 to {count - 1}, got {index.dtype} {list(index.shape)}"
        )
    return index


def _mean_of_bins(rows: Rows, pool: Pool, options: Any) -> dict[str, Any]:
    """The papers' mean: over the means of the three yaw bins, not over the images."""
    out = {}
    for metric in ("nme_2d", "nme_3d"):
        bins = [
            np.mean(v)
            for a, b in aflw2000.YAW_BINS
            if (v := [r[metric] for r in rows if r["group"] == f"yaw {a}-{b}" and r.get(metric) is not None])
        ]
        if bins:
            out[f"{metric} mean of bins"] = float(np.mean(bins))
            if len(bins) < len(aflw2000.YAW_BINS):
                out[f"{metric} bins without a sample"] = len(aflw2000.YAW_BINS) - len(bins)
    return out


# ---- FaceWarehouse ----


@dataclass(frozen=True)
class FaceWarehouseOptions:
    """correspondence: .npz with vertex [N] of FaceWarehouse, triangle [N] and barycentric [N, 3] of the face model (needed to score);
    identities: folders, empty = all; views: photos in a fit."""

    correspondence: str = ""
    identities: tuple[str, ...] = facewarehouse.IDENTITIES
    views: Annotated[int, Range(1, 1000)] = 1


def _score_facewarehouse(
    sample: EvaluationSample, prediction: Prediction, options: FaceWarehouseOptions, context: Any
) -> Scored:
    if not options.correspondence:
        raise InputError(
            "facewarehouse: options.correspondence is not set; give the .npz that says which point of the face model each "
            "FaceWarehouse vertex is: options.correspondence=FILE (vertex [N], triangle [N], barycentric [N, 3])"
        )
    prediction.need("posed")
    truth, table = sample.truth(), read_correspondence(options.correspondence)
    table.check(len(prediction.triangles), len(truth.vertices), options.correspondence)
    distances = corresponding_distances(prediction.posed[0], prediction.triangles, truth.vertices, table)
    return Scored({"vertex_mean": float(distances.mean())})


# ---- REALY ----


@dataclass(frozen=True)
class RealyOptions:
    """No options."""


def _score_realy(
    sample: EvaluationSample, prediction: Prediction, options: RealyOptions, context: Any
) -> Scored:
    """REALY's scans and regions are scored by its own evaluator; here it is only checked that there is something to score."""
    prediction.need("vertices", "points")
    return Scored({})


# ---- our benchmark ----


@dataclass(frozen=True)
class BenchOptions:
    """subjects: folders, empty = all; views: positions of the photos that are fitted, empty = all."""

    subjects: tuple[str, ...] = ()
    views: tuple[Natural, ...] = ()


def _bench_samples(folder: str | os.PathLike, options: BenchOptions) -> list[EvaluationSample]:
    names = bench.subject_names(folder)
    unknown = [n for n in options.subjects if n not in names]
    if unknown:
        raise InputError(f"{folder}: no subject '{unknown[0]}'; there are: {', '.join(names)}")
    root = Path(folder)
    return [
        EvaluationSample(
            n,
            partial(_bench_photos, root / n, options.views),
            partial(bench.load_truth, root / "ground_truth" / n),
            n.rpartition("_")[0],
        )
        for n in names
        if not options.subjects or n in options.subjects
    ]


def _bench_photos(folder: Path, views: tuple[int, ...]) -> Subject:
    subject = load_subject(folder)
    bad = [v for v in views if not 0 <= v < len(subject.views)]
    if bad:
        raise InputError(
            f"{folder}: views: expected numbers from 0 to {len(subject.views) - 1}, got {list(views)}"
        )
    return replace(subject, views=tuple(subject.views[v] for v in views)) if views else subject


def _score_bench(
    sample: EvaluationSample, prediction: Prediction, options: BenchOptions, context: Any
) -> Scored:
    prediction.need("vertices", "landmarks")
    truth = sample.truth()
    values = dict(
        bench.score(
            bench.Prediction(
                sample.id,
                prediction.model,
                "",
                prediction.vertices,
                prediction.triangles,
                prediction.landmarks,
                sigma=prediction.sigma,
            ),
            truth,
        )
    )
    values |= {
        f"region_{k}": v
        for k, v in region_errors(
            prediction.vertices, prediction.triangles, prediction.landmarks, truth.vertices, truth.landmarks
        ).items()
    }
    points = truth.landmarks[SEVEN]
    crop = now_crop(truth.vertices, points)
    fit = scan_to_mesh(
        prediction.vertices, prediction.triangles, prediction.points, truth.vertices[crop], points
    )
    return Scored(
        values, {}, _map_on(ScanTruth(truth.vertices, truth.triangles), crop, fit.distances, points)
    )


# ---- held-out views, without ground truth ----


@dataclass(frozen=True)
class HeldOutOptions:
    """folds: the photos of a subject are dealt out in turn to so many parts; each part is predicted from the others. 2: two fits from
    disjoint photos, whose spread is measured too; 0: every photo by itself. flow: estimator; landmarks: source of the points, as in
    a fit recipe; people: the first so many by name of those with at least 2 photos, 0 = all; skip: so many are passed over first."""

    folds: Annotated[int, Range(0, 1000)] = 2
    flow: str = "dis"
    landmarks: str = "auto"
    people: Natural = 0
    skip: Natural = 0


def _held_out_samples(folder: str | os.PathLike, options: HeldOutOptions) -> list[EvaluationSample]:
    if options.folds == 1:
        raise InputError(f"folds: expected 0 (every photo by itself) or at least 2, got {options.folds}")
    samples = []
    for person in people_in(folder, 2)[options.skip :][: options.people or None]:
        count = min(options.folds or len(images_in(person)), len(images_in(person)))
        samples += [
            EvaluationSample(
                f"{person.name}/fold{k}",
                partial(_fold, person, k, count, True),
                partial(_fold, person, k, count, False),
                person.name,
            )
            for k in range(count)
        ]
    if not samples:
        raise InputError(
            f"{folder}: expected a subject folder with at least 2 photos, or a folder of such folders"
            + (f" with more than the {options.skip} people that are skipped" if options.skip else "")
        )
    return samples


def _fold(folder: Path, number: int, count: int, fitted: bool) -> Subject:
    subject = load_subject(folder)
    views = tuple(v for i, v in enumerate(subject.views) if (i % count != number) == fitted)
    if not views:
        raise InputError(f"{folder}: expected at least {count} usable photos, got {len(subject.views)}")
    return replace(subject, views=views)


def _score_held_out(
    sample: EvaluationSample, prediction: Prediction, options: HeldOutOptions, model: FaceModel
) -> Scored:
    prediction.need("parameters")
    parameters = prediction.parameters()
    parameters.check_model(model)
    if parameters.displacement is not None:
        model = personal_model(model, parameters.state, parameters.displacement)
    fitted = sample.subject()
    fitted = replace(fitted, views=tuple(v for v in fitted.views if v.name in parameters.view_names))
    found, _ = detect_landmarks(fitted, options.landmarks)
    held = sample.truth()
    held_found, _ = detect_landmarks(held, options.landmarks)
    held, held_found, _ = usable_views(held, held_found)
    errors = []
    for i, view in enumerate(held.views):
        one = replace(
            held_found,
            **{k: getattr(held_found, k)[i : i + 1] for k in ("points", "sigma", "valid", "confidence")},
        )
        errors.append(held_out_errors(model, parameters.state, fitted.views, found, view, one, options.flow))
    values: dict[str, float | None] = {}
    for name in ("photo", "census", "flow", "landmarks", "covered"):
        known = [v for e in errors if (v := getattr(e, name)) is not None]
        values[name] = float(np.mean(known)) if known else None
    code = parameters.state.identity[0].double().numpy()
    return Scored(values | {"beyond_3_sigma": share_beyond(code)}, {"identity": code})


def _summarize_held_out(rows: Rows, pool: Pool, options: HeldOutOptions) -> dict[str, Any]:
    """Spread of the identity between two fits to disjoint photos, by person and on average."""
    if options.folds != 2:
        return {}
    people: dict[str, list[np.ndarray]] = {}
    for name, code in pool.get("identity", []):
        people.setdefault(name.rpartition("/")[0], []).append(code)
    spread = {name: identity_spread(np.stack(codes)) for name, codes in people.items() if len(codes) == 2}
    return {"identity_spread": spread | {"mean": float(np.mean(list(spread.values())))}} if spread else {}


# ---- two halves of a person's photos, without ground truth ----


@dataclass(frozen=True)
class _Halves:
    """What the halves have to do with each other. index: row by sample id; own: the numbers that a half has by itself; distances along
    the normals and from point to point [H, H] mm, to the mean face [H] mm; found: by the first; point_within [H] mm."""

    model: FaceModel
    index: dict[str, int]
    own: list[dict[str, float]]
    along: np.ndarray
    point: np.ndarray
    from_mean: np.ndarray
    found: split_halves.Identification
    point_within: np.ndarray


def _half(prediction: Prediction, model: FaceModel) -> tuple[np.ndarray, dict[str, float]]:
    """Neutral vertices [V, 3] mm, and what is told of a half by itself; NaN: not in the prediction."""
    prediction.need("vertices")
    if prediction.vertices.shape != tuple(model.mean.shape):
        raise InputError(
            f"{prediction.id}: the prediction has {len(prediction.vertices)} vertices, model '{model.name}' has "
            f"{model.num_vertices}; give the model of the predictions with --model"
        )
    code = (
        None if prediction.parameters is None else prediction.parameters().state.identity[0].double().numpy()
    )
    sigma = None if prediction.sigma is None else prediction.sigma[model.face.numpy()]
    return prediction.vertices, {
        "identity_rms": np.nan if code is None else float(np.sqrt(np.square(code).mean())),
        "error_bar": np.nan if sigma is None else float(np.median(sigma)),
    }


def _prepare_halves(
    pairs: Iterable[tuple[EvaluationSample, Prediction]], options: PhotoHalves, name: str
) -> _Halves:
    model, index, meshes, own = load_model(name), {}, [], []
    for sample, prediction in pairs:
        with suppress(FitkitError):  # told when the sample is scored
            vertices, numbers = _half(prediction, model)
            index[sample.id] = len(index)
            meshes.append(torch.from_numpy(vertices.astype(np.float32)))
            own.append(numbers)
    found = split_halves.face_distances(
        torch.stack([*meshes, model.mean.float()]), model.triangles, model.face
    )
    (along, from_mean), (point, _) = ((d[:-1, :-1].numpy(), d[-1, :-1].numpy()) for d in found)
    people = [_person(i) for i in index]
    return _Halves(
        model,
        index,
        own,
        along,
        point,
        from_mean,
        split_halves.identify(along, people),
        split_halves.identify(point, people).within,
    )


def _person(sample_id: str) -> str:
    return sample_id.rpartition("/")[0]


def _score_half(
    sample: EvaluationSample, prediction: Prediction, options: PhotoHalves, context: _Halves
) -> Scored:
    if sample.id not in context.index:
        _half(prediction, context.model)  # says why
    h = context.index[sample.id]
    numbers = {
        "within": context.found.within[h],
        "point_within": context.point_within[h],
        "between": context.found.between[h],
        "nearest_other": context.found.nearest[h],
        "identified": context.found.identified[h],
        "from_mean": context.from_mean[h],
    } | context.own[h]
    return Scored(
        {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()},
        {"along": context.along[h], "point": context.point[h], "from_mean": context.from_mean[h : h + 1]},
    )


def _summarize_halves(rows: Rows, pool: Pool, options: PhotoHalves) -> dict[str, Any]:
    """All numbers in one line, how many fits ended how, and the values of each person."""
    ids = [i for i, _ in pool.get("along", [])]
    along, point, from_mean = (
        np.stack([v for _, v in pool[k]]) if ids else np.zeros((0, 0))
        for k in ("along", "point", "from_mean")
    )
    scores = split_halves.overall_scores(
        along, point, [_person(i) for i in ids], [_person(r["id"]) for r in rows], from_mean.ravel()
    )
    states = [r["status"] for r in rows]
    return {
        "split halves": scores,
        "fits": {s: states.count(s) for s in ("ok", "doubtful", "failed", "missing")},
        "people": split_halves.by_person(rows),
    }


# ---- all of them ----

PROTOCOLS: dict[str, Protocol] = {
    "micc": Protocol(
        MiccOptions,
        lambda d, o: micc.micc_samples(d, o.sequences, o.frames),
        _score_micc,
        dict.fromkeys(
            (
                "p2plane_symmetric",
                "p2plane_prediction_to_scan",
                "p2plane_scan_to_prediction",
                "p2plane_symmetric_with_expression",
            ),
            "mm",
        ),
        micc.MICC,
    ),
    "now": Protocol(
        NowOptions,
        lambda d, o: now.now_samples(d, o.challenges),
        _score_now,
        {"s2m_mean": "mm", "s2m_median": "mm"},
        now.NOW,
        summarize=_summarize_now,
    ),
    "facescape_wild": Protocol(
        WildOptions,
        lambda d, o: facescape.wild_samples(d),
        _score_wild,
        {"cd": "mm", "mne_facescape": "rad", "mne_true": "rad", "cr": "share"},
        facescape.FACESCAPE,
        summarize=_done_rate,
    ),
    "facescape_lab": Protocol(
        LabOptions,
        lambda d, o: facescape.lab_samples(d, o.views),
        _score_lab,
        {"cd": "mm", "mne_facescape": "rad", "mne_true": "rad", "cr": "share"},
        facescape.FACESCAPE,
        summarize=_done_rate,
    ),
    "pixel_face": Protocol(
        PixelFaceOptions,
        lambda d, o: pixel_face.pixel_face_samples(d, o.split, o.unit_mm, o.upright),
        _score_scan,
        dict.fromkeys(("s2m_mean", "s2m_rmse", "p2plane_rmse"), "mm"),
        pixel_face.PIXEL_FACE,
    ),
    "bosphorus": Protocol(
        BosphorusOptions,
        lambda d, o: bosphorus.bosphorus_samples(d, o.angle),
        _score_scan,
        dict.fromkeys(("s2m_mean", "s2m_rmse", "p2plane_rmse"), "mm"),
        bosphorus.BOSPHORUS,
    ),
    "bu3dfe": Protocol(
        BuOptions,
        lambda d, o: bu3dfe.bu3dfe_samples(d),
        _score_bu,
        dict.fromkeys((f"depth_percent_{k}" for k in ("mean", "std", "median", "p90")), "%"),
        bu3dfe.BU3DFE,
        _prepare_bu,
        _summarize_bu,
    ),
    "florence_renders": Protocol(
        FlorenceOptions,
        lambda d, o: florence_renders.florence_render_samples(d),
        _score_florence,
        {"nme_aligned": "share", "nme_correspondence": "share"},
        florence_renders.RENDERS,
    ),
    "aflw2000": Protocol(
        AflwOptions,
        lambda d, o: aflw2000.aflw2000_samples(d, o.model),
        _score_aflw,
        {"nme_2d": "%", "nme_3d": "%"},
        aflw2000.AFLW2000,
        summarize=_mean_of_bins,
    ),
    "facewarehouse": Protocol(
        FaceWarehouseOptions,
        lambda d, o: facewarehouse.facewarehouse_samples(d, o.identities, o.views),
        _score_facewarehouse,
        {"vertex_mean": "mm"},
        facewarehouse.FACEWAREHOUSE,
    ),
    "realy": Protocol(RealyOptions, lambda d, o: realy.realy_samples(d), _score_realy, {}, realy.REALY),
    "bench": Protocol(
        BenchOptions,
        _bench_samples,
        _score_bench,
        {
            **dict.fromkeys(bench.MILLIMETRES, "mm"),
            "size_percent": "%",
            **dict.fromkeys(bench.COVERAGE, "share"),
            **dict.fromkeys(
                ("region_nose", "region_mouth", "region_eyes", "region_cheeks", "region_mean"), "mm"
            ),
        },
    ),
    "held_out": Protocol(
        HeldOutOptions,
        _held_out_samples,
        _score_held_out,
        {
            "photo": "grey levels",
            "census": "share",
            "flow": "px",
            "landmarks": "%",
            "covered": "share",
            "beyond_3_sigma": "share",
        },
        prepare=lambda pairs, options, model: load_model(model),
        summarize=_summarize_held_out,
        drawn_by=("folds",),
    ),
    "split_halves": Protocol(
        PhotoHalves,
        half_samples,
        _score_half,
        split_halves.UNITS,
        prepare=_prepare_halves,
        summarize=_summarize_halves,
        drawn_by=("photos", "draw", "seed", "min_face_px", "max_face_px", "landmarks"),
    ),
}
