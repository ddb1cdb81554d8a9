"""Times of the fit: of a recipe, of the full-pixel first-order fit, per view, and of the rasterizer. `fitkit
bench speed`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fitkit.errors import InputError
from fitkit.evaluate.bench.photos import Tell, load_views
from fitkit.evaluate.bench.scores import score_neutral
from fitkit.evaluate.bench.truth import Truth, load_truth
from fitkit.evaluate.machine import machine
from fitkit.evaluate.predictions import face_of_fit
from fitkit.evaluate.tables import number, text_table
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks
from fitkit.observe.landmarks.types import Landmarks
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.synth.studio import head_shot_state, photograph, studio

SPEED_PARTS = ("fit", "adam", "views", "rasterizer")
VIEW_COUNTS = (3, 6, 12, 24)


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
    return None if truth is None else score_neutral(replace(face_of_fit(result), sigma=None), truth).values


def many_views(model: FaceModel, count: int, size: int = 512, seed: int = 0) -> tuple[Subject, Landmarks]:
    """A random person of the model photographed from `count` sides (yaw -55 to 55 degrees), with noisy
    landmarks.

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
    clip = camera.clip(pose.apply((points - (low + high) / 2)[None]))
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
            f"{report['recipe']}, {report['model']}, {len(report['views'])} views: {f['seconds']:.3f} s "
            f"solver wall time (median of {len(f['runs'])}; {f['fastest']:.3f} to {f['slowest']:.3f}), "
            f"{f['cpu_seconds']:.3f} s CPU in all"
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
            f"adam (every pixel, {a['crop_px']} px crop): {a['seconds']:.1f} s wall, {a['cpu_seconds']:.1f} "
            f"s CPU{slower}"
        )
        lines += _error_lines(a["errors"])
    if "per_view" in report:
        rows = report["per_view"]["rows"]
        lines.append("seconds per view by number of views (rendered person)")
        lines.append(
            text_table(
                ("views", "seconds", "per view", "CPU s"),
                [
                    [
                        str(r["views"]),
                        *(number(r[k]) for k in ("seconds", "seconds_per_view", "cpu_seconds")),
                    ]
                    for r in rows
                ],
            )
        )
        lines.append(
            f"  per view, {rows[-1]['views']} against {rows[0]['views']} views: "
            f"{report['per_view']['ratio']:.2f}"
        )
    if "rasterizer" in report:
        r = report["rasterizer"]
        lines.append(
            f"rasterizer, {r['size']} x {r['size']} px, {r['vertices']} vertices, {r['triangles']} "
            f"triangles, {100 * r['covered']:.0f} % covered: "
            + "; ".join(
                f"{b} {r[b]['z_buffer_ms']:.1f} ms, with barycentrics {r[b]['with_barycentrics_ms']:.1f} ms"
                for b in ("torch", "numba")
            )
        )
    return "\n".join(lines)


def _error_lines(errors: dict[str, float | None] | None) -> list[str]:
    if errors is None:
        return []
    parts = [f"scan-to-mesh mean {number(errors['now_mean'])}, median {number(errors['now_median'])} mm"]
    if errors["vertex_similarity"] is not None:
        parts.append(
            f"vertices after a similarity {number(errors['vertex_similarity'])} mm, after a rigid motion "
            f"{number(errors['vertex_rigid'])} mm"
        )
    return ["  " + "; ".join(parts)]
