"""A fit of a model with joints against one of a linear model of its size: python benchmarks/skinned.py

Both have FLAME's size: 5,023 vertices (of `generic`, its skin first), 300 identity and 100 expression
shapes, random but smooth; one of them has the 5 joints as well, four of which turn. Each is fitted to its own
renders in three views with exact landmarks, and the CPU time of the fits compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import helpers

from fitkit.evaluate.machine import describe, machine
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.closest_point import SurfaceIndex, barycentric
from fitkit.geometry.rotation import so3_exp, so3_log
from fitkit.io.subject import Subject, View
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.scene.state import SceneState

VERTICES, IDENTITY, EXPRESSION = 5023, 300, 100
VIEWS, SIZE = 3, 512
JAW = 1  # its place among the joints that turn


def waves(mean: torch.Tensor, count: int, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Random displacements [count, V, 3] mm, smaller and shorter from one to the next."""
    scale = 1 / (1 + 0.05 * torch.arange(count))
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    phase = mean @ (direction / (60 * scale.sqrt())[:, None]).T + 6.3 * torch.rand(count, generator=generator)
    along = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return amount * scale[:, None, None] * torch.sin(phase).T[..., None] * along[:, None]


def linear_model(
    name: str = "linear", vertices: int = VERTICES, identity: int = IDENTITY, expression: int = EXPRESSION
) -> FaceModel:
    """The skin of `generic` around the nose, or the whole head with triangles around it cut in four until
    there are enough vertices, with random shapes."""
    model, generator = load_model("generic"), torch.Generator().manual_seed(0)
    points, triangles = model.mean.double().numpy(), model.triangles.numpy()
    marks = model.landmark_basis.mean.double().numpy()
    while len(points) < vertices:
        nearest = np.linalg.norm(points[triangles].mean(1) - marks[30], axis=1).argsort()
        some = nearest[: -(-2 * (vertices - len(points)) // 3)]  # each adds three halves of a vertex
        points, triangles = trimesh.remesh.subdivide(points, triangles, face_index=some)
    near = torch.from_numpy(cKDTree(model.mean.numpy()).query(points)[1])
    away = np.linalg.norm(points - marks[30], axis=1) + 1e3 * ~model.skin[near].numpy()
    kept = np.sort(away.argsort()[:vertices])
    number = np.full(len(points), -1)
    number[kept] = np.arange(vertices)
    triangles = number[triangles]
    triangles, points, near = triangles[(triangles >= 0).all(1)], points[kept], near[kept]
    closest, _, triangle = SurfaceIndex(points, triangles).query(marks)
    weights = torch.from_numpy(barycentric(closest, points[triangles[triangle]])).float()
    mean = torch.from_numpy(points).float()
    return FaceModel(
        name=name,
        mean=mean,
        identity_basis=waves(mean, identity, 2.0, generator),
        expression_basis=waves(mean, expression, 1.0, generator),
        expression_names=tuple(f"e{k}" for k in range(expression)),
        triangles=torch.from_numpy(triangles),
        landmarks=replace(model.landmarks, triangle=torch.from_numpy(triangle), barycentric=weights),
        region=model.region[near],
        region_names=model.region_names,
        skin=model.skin[near],
        face=model.face[near],
        expression_kind="gaussian",
    )


def joints_of(model: FaceModel) -> dict:
    """Neck, jaw and eyes of a model as `helpers.with_joints` takes them, from its landmarks."""
    points = model.landmark_basis.mean.double().numpy()
    chin, eyes = points[8], (points[42:48].mean(0), points[36:42].mean(0))
    ear = (points[0] + points[16]) / 2
    back = np.array([0.0, 0.0, -20.0])
    return {
        "neck": ("root", (0, 0, 0), 0, chin + 4 * back),
        "jaw": ("neck", chin, 45, ear),
        "eye_L": ("neck", eyes[0], 14, eyes[0] + back),
        "eye_R": ("neck", eyes[1], 14, eyes[1] + back),
    }


def person(model: FaceModel, seed: int) -> SceneState:
    """A random person; joints turned by about 7 degrees where there are some."""
    state = helpers.tiny_state(model, VIEWS, SIZE, seed)
    generator = torch.Generator().manual_seed(seed)
    expression = 0.7 * torch.randn(VIEWS, model.num_expression, generator=generator)
    if model.expression_kind == "blend_shape":
        expression = 0.3 * state.expression
    joints = helpers.tiny_joints(model, VIEWS, 0.12, seed) if model.num_joints else None
    return state.replace(identity=0.7 * state.identity, expression=expression, joints=joints)


def fit(model: FaceModel, truth: SceneState, recipe: str) -> tuple[FitResult, float]:
    """A fit to renders, and its CPU seconds."""
    images = helpers.photograph(model, truth, SIZE)
    pictures = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    marks = helpers.observe(model, truth, SIZE).landmarks
    marks = replace(marks, sigma=torch.full((VIEWS, 68), torch.nan))
    subject = Subject("person", tuple(View(f"view{i}", p) for i, p in enumerate(pictures)))
    options = load_recipe(recipe, ["init.source=landmarks"])
    began = time.process_time()
    result = fit_observed(subject, marks, model, options)
    return result, time.process_time() - began


def errors(result: FitResult, truth: SceneState) -> dict[str, float]:
    """vertex_mm: mean distance of the face's vertices in each view after a similarity; jaw_deg: mean angle
    between the jaw's rotation and the true one, jaw_truth_deg: between that and rest."""
    model = result.model
    found, true = (s.vertices(model)[:, model.face] for s in (result.state, truth))
    best = similarity_align(found, true, torch.ones(found.shape[:2], dtype=torch.bool))
    moved = best.scale[:, None, None] * found @ best.rotation.transpose(1, 2) + best.translation[:, None]
    out = {"vertex_mm": float((moved - true).norm(dim=-1).mean())}
    if truth.joints is not None:
        out["jaw_deg"] = angle(result.state.joints[:, JAW], truth.joints[:, JAW])
        out["jaw_truth_deg"] = angle(torch.zeros(VIEWS, 3), truth.joints[:, JAW])
    return out


def angle(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean angle between rotations [B, 3], degrees."""
    relative = so3_exp(one).transpose(1, 2) @ so3_exp(other)
    return float(torch.rad2deg(so3_log(relative).norm(dim=1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--recipe", default="multiview")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    linear = linear_model()
    models = {
        "linear": linear,
        "joints": helpers.with_joints(linear, joints_of(linear), front=linear_front(linear)),
    }
    fit(models["joints"], person(models["joints"], 0), "landmarks")  # warm-up
    rows: dict[str, list] = {name: [] for name in models}
    for seed in range(arguments.people):
        for name, model in models.items():
            truth = person(model, seed)
            result, seconds = fit(model, truth, arguments.recipe)
            iterations = result.report.start.iterations
            row = {"cpu_s": seconds, "iterations": iterations, **errors(result, truth)}
            rows[name].append(row)
            print(name, seed, ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    middle = {
        name: {key: statistics.median(row[key] for row in some) for key in some[0]}
        for name, some in rows.items()
    }
    ratio = middle["joints"]["cpu_s"] / middle["linear"]["cpu_s"]
    facts = machine()
    print(f"median CPU time {ratio:.2f} times that of the linear model; {describe(facts)}")
    if arguments.output:
        report = {
            "machine": facts,
            "recipe": arguments.recipe,
            "median": middle,
            "ratio": ratio,
            "fits": rows,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def linear_front(model: FaceModel) -> float:
    """z in mm behind which the neck is."""
    return float(model.landmark_basis.mean[[0, 16], 2].mean()) - 15


if __name__ == "__main__":
    main()
