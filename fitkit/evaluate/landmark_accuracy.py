"""How far detected landmarks lie from labels: metrics, and the layouts of labelled pictures they are measured
on."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.data.aflw2000 import YAW_BINS, read_labels
from fitkit.data.landmark_frames import held_out, list_frames
from fitkit.data.samples import read_points
from fitkit.errors import InputError
from fitkit.evaluate.machine import machine
from fitkit.evaluate.tables import known, means, number, text_table
from fitkit.io.calibration import parse_camera
from fitkit.io.foreign import foreign_file, shown
from fitkit.io.images import SUFFIXES, read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.mesh_files import read_mesh
from fitkit.observe.landmarks.detectors import detect_view, make_detector
from fitkit.observe.landmarks.types import LandmarkDetector, Landmarks, box_size
from fitkit.render.rasterizer import rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.camera import Camera

OVERLAP = 0.3  # of two faces' boxes, intersection over union, from which they are the same face
FAILURE = 10.0  # per cent NME
HIDDEN_MM = 2.0  # a point is hidden when the surface lies this much in front of it


def normalized_mean_error(predicted: Tensor, truth: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Mean distance of corresponding points over a face size, a fraction.

    Args:
        predicted, truth: [B, L, 2] px; valid: [B, L] bool, points that count; scale: [B] px.
    Returns:
        [B]; NaN where no point counts.
    Source:
        NME_2d of Zhu et al., "Face Alignment in Full Pose Range", TPAMI 2019, with `box_size` as scale; any
        other scale.
    """
    distance = torch.where(valid, (predicted - truth).norm(dim=-1), 0.0)
    return distance.sum(-1) / valid.sum(-1) / scale


def interocular_distance(points: Tensor) -> Tensor:
    """Distance of the outer eye corners (37 and 46, counted from 1) of [B, 68, 2] px -> [B] px."""
    return (points[:, 36] - points[:, 45]).norm(dim=-1)


@dataclass(frozen=True)
class LabelledPicture:
    """path: of the image; points: [68, 2] px (NaN: no label); counted: [68] bool, points that are compared;
    jaw: what points 0-16 are, 'outline' or 'surface'; yaw: degrees, or None."""

    path: Path
    points: np.ndarray
    counted: np.ndarray
    jaw: str
    yaw: float | None = None


def labelled_pictures(folder: str | os.PathLike, everyone: bool = False) -> list[LabelledPicture]:
    """The labelled pictures of a folder, whose layout is told by what lies in it.

    - AFLW2000-3D: images with a .mat beside them (`pt3d_68`, `Pose_Para`), all 68 points count, hidden ones
      too;
    - our benchmark: SUBJECT/ and ground_truth/SUBJECT/ (cameras, meshes): exact points, those that the camera
      sees count;
    - any tree of images with .pts beside them; of a tree with folders for people only those that are held out
      from training (`data.landmark_frames.held_out`), unless `everyone`.

    Raises:
        InputError: no such folder, nothing of this kind in it, a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected pictures with landmark labels")
    if (folder / "ground_truth").is_dir():
        return _bench(folder)
    pairs = [
        (p, p.with_suffix(".mat"))
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in SUFFIXES and p.with_suffix(".mat").is_file()
    ]
    if pairs:
        return [_aflw(*pair) for pair in pairs]
    frames = [f for f in list_frames(folder) if everyone or held_out(f.person)]
    if not frames:
        raise InputError(
            f"{folder}: nobody in it is held out from training; use --everyone for all its pictures"
        )
    out = []
    for frame in frames:
        points = read_landmarks(frame.landmarks)[:, :2]
        labelled = np.isfinite(points).all(1)
        if not labelled.any():
            raise InputError(f"{frame.landmarks}: expected labelled points, got none; take the file away")
        out.append(LabelledPicture(frame.image, points, labelled, "outline"))
    return out


def _aflw(image: Path, labels: Path) -> LabelledPicture:
    points, yaw = read_labels(labels)
    return LabelledPicture(image, points, np.ones(68, bool), "surface", yaw)


def _bench(folder: Path) -> list[LabelledPicture]:
    out = []
    for truth in sorted(p for p in (folder / "ground_truth").iterdir() if (p / "cameras.json").exists()):
        with foreign_file(
            truth / "cameras.json", "not readable as the cameras of fitkit synth", "render the subjects again"
        ) as file:
            for view in file.json()["views"]:
                picture, mesh = Path(view["image"]).name, Path(view["mesh"]).name
                own = truth / f"landmarks3d_{Path(picture).stem}.npy"
                head = read_points(own if own.exists() else truth / "landmarks3d.npy", 68)
                camera = parse_camera(view, f"{file.path}: view {shown(picture)}")
                if camera.R is None:
                    raise ValueError(f"R and t of view {shown(picture)} are missing")
                vertices, triangles = read_mesh(truth / mesh)
                image = folder / truth.name / picture
                points, seen = _project(
                    head, vertices, triangles, camera.K, camera.R, camera.t, read_image(image)[0].shape[:2]
                )
                # Yaw of the head: where its nose direction, the third column of R, points in the picture.
                yaw = float(np.degrees(np.arctan2(camera.R[0, 2], -camera.R[2, 2])))
                out.append(LabelledPicture(image, points, seen, "surface", yaw))
    if not out:
        raise InputError(f"{folder}: no ground_truth/SUBJECT/cameras.json in it")
    return out


def _project(
    points: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    K: np.ndarray,
    R: np.ndarray,
    t: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Points [L, 3] mm -> px [L, 2] and whether the mesh leaves them in sight [L]; NaN where one is
    missing."""
    camera = Camera(
        torch.tensor([K[0, 0]]).float(),
        torch.tensor([[K[0, 2], K[1, 2]]]).float(),
        torch.tensor([K[1, 1] / K[0, 0]]).float(),
    )
    depth = rasterize(
        camera.clip(torch.from_numpy(vertices @ R.T + t).float()[None]),
        torch.from_numpy(triangles),
        size,
    ).depth
    missing = np.isnan(points).any(1)
    seen_from = np.where(missing[:, None], 0.0, points) @ R.T + t
    pixels = seen_from[:, :2] / seen_from[:, 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]
    seen = seen_by_depth(
        torch.from_numpy(pixels)[None], torch.from_numpy(seen_from[:, 2])[None], depth, 1.0, HIDDEN_MM
    )[0]
    return np.where(missing[:, None], np.nan, pixels), seen.numpy() & ~missing


def measure(
    folder: str | os.PathLike,
    detector: str = "builtin",
    everyone: bool = False,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a detector on all labelled pictures of a folder.

    Returns:
        the report as JSON can hold it: `rows` (one for each picture: nme, interocular in per cent, yaw,
            found, seconds),
        `summary` (see `summarize`), machine. `detector` 'builtin' takes the jaw that the labels have.
    """
    pictures = labelled_pictures(folder, everyone)
    jaws = {p.jaw for p in pictures}
    name = "builtin3d" if detector == "builtin" and jaws == {"surface"} else detector
    found, rows = make_detector(name, device), []
    detect_view(found, read_image(pictures[0].path)[0])  # the first call compiles and loads
    spread: list[tuple[np.ndarray, np.ndarray]] = []
    for picture in pictures:
        row, pair = _measure_one(found, picture, Path(folder))
        rows.append(row)
        if pair is not None:
            spread.append(pair)
        tell(f"{row['picture']}: " + (f"NME {number(row['nme'], 2)} %" if row["found"] else "face not found"))
    sigma, error = (np.concatenate(v) for v in zip(*spread)) if spread else (np.zeros(0), np.zeros(0))
    return {
        "folder": Path(folder).name,
        "detector": name,
        "rows": rows,
        "summary": summarize(rows, sigma, error),
        "machine": machine(),
    }


def _measure_one(
    detector: LandmarkDetector, picture: LabelledPicture, folder: Path
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
    image = read_image(picture.path)[0]
    start = time.perf_counter()
    found = detect_view(detector, image)
    seconds = time.perf_counter() - start
    row = {
        "picture": picture.path.relative_to(folder).as_posix(),
        "yaw": picture.yaw,
        "found": False,
        "seconds": seconds,
    }
    truth, counted = torch.from_numpy(picture.points)[None], torch.from_numpy(picture.counted)[None]
    if not found.valid.any() or _overlap(found, picture.points) < OVERLAP:
        return row, None
    counted = counted & found.valid
    size = box_size(truth)
    distance = (found.points.double() - truth)[0]
    row["found"] = True
    for key, scale in (("nme", size), ("interocular", interocular_distance(truth))):
        error = 100 * float(normalized_mean_error(found.points.double(), truth, counted, scale))
        row[key] = error if math.isfinite(error) else None  # no such point, or an eye corner is missing
    use = counted[0] & torch.isfinite(found.sigma[0])
    return row, ((found.sigma[0][use].double() / size).numpy(), (distance[use].norm(dim=-1) / size).numpy())


def _overlap(found: Landmarks, truth: np.ndarray) -> float:
    a, b = found.points[0][found.valid[0]].numpy(), truth[np.isfinite(truth).all(1)]
    low, high = np.maximum(a.min(0), b.min(0)), np.minimum(a.max(0), b.max(0))
    common = float(np.prod((high - low).clip(0)))
    return common / (float(np.prod(np.ptp(a, 0))) + float(np.prod(np.ptp(b, 0))) - common)


def summarize(rows: list[dict[str, Any]], sigma: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """Mean, 95th percentile and failures of the NME in per cent over the pictures whose face was found; the
    same mean for each bin of |yaw|; share found; correlation (of ranks and plain) of sigma [N] with the
    distance error [N], all points of all pictures; median seconds for each picture."""
    found = [r for r in rows if r["found"]]
    nme = known(found, "nme")
    out: dict[str, Any] = {
        "pictures": len(rows),
        "found_percent": 100 * len(found) / len(rows),
        "seconds_median": statistics.median(r["seconds"] for r in rows),
    }
    if len(nme):
        out |= {
            "nme_mean": float(nme.mean()),
            "nme_p95": float(np.percentile(nme, 95)),
            "failures_percent": 100 * float((nme > FAILURE).mean()),
            "interocular_mean": means(found, ["interocular"])["interocular"],
        }
    for low, high in YAW_BINS:
        inside = [
            r
            for r in found
            if r["yaw"] is not None and (low < abs(r["yaw"]) <= high or low == abs(r["yaw"]) == 0)
        ]
        if inside:
            out |= {f"nme_yaw_{low}_{high}": means(inside, ["nme"])["nme"]}
    if len(sigma) > 2:
        ranks = [np.argsort(np.argsort(v)) for v in (sigma, error)]
        out |= {
            "sigma_correlation": float(np.corrcoef(sigma, error)[0, 1]),
            "sigma_rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
            # A point's distance has twice the variance of a coordinate.
            "sigma_over_error": float(np.sqrt(2 * np.mean(sigma**2) / np.mean(error**2))),
        }
    return out


def summary_text(report: dict[str, Any]) -> str:
    """The summary as a table for people."""
    labels = {
        "pictures": "pictures",
        "found_percent": "face found, %",
        "nme_mean": "NME mean, %",
        "nme_p95": "NME 95th percentile, %",
        "failures_percent": f"NME above {FAILURE:.0f} %, %",
        "interocular_mean": "interocular error mean, %",
        **{f"nme_yaw_{a}_{b}": f"NME mean, yaw {a} to {b}, %" for a, b in YAW_BINS},
        "sigma_correlation": "correlation of sigma and error",
        "sigma_rank_correlation": "the same, of ranks",
        "sigma_over_error": "rms sigma over rms error",
        "seconds_median": "seconds a picture, median",
    }
    values = report["summary"]
    rows = [
        (label, number(values[key], 0 if key == "pictures" else 2))
        for key, label in labels.items()
        if key in values
    ]
    return f"{report['detector']} on {report['folder']}\n{indent(text_table((), rows), '  ')}"
