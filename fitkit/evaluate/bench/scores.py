"""Errors of one predicted face against the true one: the numbers of all benchmarks of known shapes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch

from fitkit.evaluate.bench.truth import POINTS, Truth
from fitkit.evaluate.coverage import coverage
from fitkit.evaluate.distances import mean
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.scan_to_mesh import scan_to_mesh
from fitkit.evaluate.vertex_error import vertex_distances
from fitkit.geometry.alignment import similarity_align

MILLIMETRES = (
    "now_mean",
    "now_median",
    "points_mean",
    "points_median",
    "vertex_similarity",
    "vertex_rigid",
)
ERRORS = (*MILLIMETRES, "size_percent")
PHOTOS = ("photos_mean", "photos_median")
COVERAGE = ("coverage_1sigma", "coverage_2sigma")


@dataclass(frozen=True)
class NeutralScore:
    """values: errors in mm, keys ERRORS, and keys COVERAGE, None where they do not apply; aligned: [V, 3] mm,
    the prediction laid onto the scan."""

    values: dict[str, float | None]
    aligned: np.ndarray


def score_neutral(face: PredictedFace, truth: Truth) -> NeutralScore:
    """Errors of the neutral face.

    now_*: scan-to-mesh distance of the NoW protocol (similarity from 7 landmarks, refined on the surface),
    from the points `Truth.skin`; points_*: the same without the refinement; vertex_*: see `vertex_error`,
    None when the topologies differ; size_percent: how much larger than the scan the prediction is, from the
    similarity of the 68 landmarks; coverage_*: see `coverage`, None without error bars.
    """
    scan = truth.skin
    meshes = (face.vertices, face.triangles, face.landmarks[POINTS], scan, truth.landmarks[POINTS])
    refined, plain = scan_to_mesh(*meshes), scan_to_mesh(*meshes, max_iterations=1)
    same = same_topology(face.triangles, truth)
    covered: tuple[float | None, float | None] = (None, None)
    if face.sigma is not None:
        scale = np.linalg.norm(refined.aligned.std(0)) / np.linalg.norm(face.vertices.std(0))
        covered = coverage(refined.aligned, face.triangles, scale * face.sigma, scan)
    ours, theirs = (torch.from_numpy(points)[None] for points in (face.landmarks, truth.landmarks))
    values = {
        "now_mean": refined.mean,
        "now_median": refined.median,
        "points_mean": plain.mean,
        "points_median": plain.median,
        "vertex_similarity": vertex_error(face.vertices, truth) if same else None,
        "vertex_rigid": vertex_error(face.vertices, truth, with_scale=False) if same else None,
        "size_percent": 100 * (1 / float(similarity_align(ours, theirs).scale) - 1),
        **dict(zip(COVERAGE, covered)),
    }
    return NeutralScore(values, refined.aligned)


def score_photos(face: PredictedFace, truths: dict[str, Truth]) -> dict[str, float | None]:
    """Errors in mm of the face in the photos, with its expression, keys PHOTOS: `now_mean` and `now_median`
    of `score_neutral` for the posed face of each photo against its truth, means over the photos; None where
    no photo has a truth. A face without expressions, as the mean face, is compared with all of them as it
    is."""
    if face.posed is None:
        faces = [(name, face.vertices, face.landmarks) for name in truths]
    else:
        faces = list(zip(map(str, face.views), face.posed, face.posed_landmarks))
    found = []
    for view, vertices, landmarks in faces:
        if view in truths:
            scan, points = truths[view].skin, truths[view].landmarks[POINTS]
            found.append(scan_to_mesh(vertices, face.triangles, landmarks[POINTS], scan, points))
    if not found:
        return dict.fromkeys(PHOTOS)
    return dict(
        zip(PHOTOS, (statistics.mean(f.mean for f in found), statistics.mean(f.median for f in found)))
    )


def vertex_error(vertices: np.ndarray, truth: Truth, with_scale: bool = True) -> float:
    """Mean distance of corresponding vertices of the narrow face, mm, after the least-squares similarity (or,
    without scale, rigid motion) of these vertices onto the scan; only for a model of the scan's topology."""
    return mean(vertex_distances(np.asarray(vertices)[truth.face], truth.vertices[truth.face], with_scale))


def same_topology(triangles: np.ndarray, truth: Truth) -> bool:
    """True when the model's triangles between the first vertices are those of the scan, so that vertices
    correspond."""
    ours = triangles[(triangles < len(truth.vertices)).all(1)]

    def key(t):
        t = np.sort(t, 1)
        return t[np.lexsort(t.T[::-1])]

    return ours.shape == truth.triangles.shape and bool((key(ours) == key(truth.triangles)).all())
