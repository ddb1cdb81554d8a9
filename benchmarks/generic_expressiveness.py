"""How well the model `generic` can take the shape of random people of another face model.

    python benchmarks/generic_expressiveness.py ICT_FOLDER [--people 40] [--modes 118] [-o result.json]

For random identities of the ICT-FaceKit model (coefficients N(0, 1), fixed seed) three surface errors are
measured, each the distance from the ICT face-region vertices to the generic surface in millimetres. The
figures of `generic` (mean and spread at single sites) were measured on the same population, so real people
will fit somewhat worse:

- mean:       the mean face of `generic` after similarity alignment on the 68 landmarks, refined on the
  surface;
- landmarks:  the posterior mean given only the 68 landmarks (coefficients ~ N(0, I), noise 0.5 mm);
- registered: non-rigid ICP, regularised least squares in coefficient space, similarity free.

Source:
    Gerig et al., "Morphable Face Models - An Open Framework", FG 2018 (registration as regularised
    regression);
    Amberg, Romdhani and Vetter, "Optimal Step Nonrigid ICP Algorithms for Surface Registration", CVPR 2007
    (the falling stiffness).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from fitkit.io.foreign import DATA_BYTES, foreign_file

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FACE_REGION = np.arange(6706)  # ICT region `face_narrow`
SURFACE_REGIONS = ("face", "head", "ears", "neck", "mouth_interior")


@dataclass
class Surface:
    """Triangles that distances are measured to."""

    triangles: np.ndarray  # [F, 3]

    def closest(self, vertices: np.ndarray, points: np.ndarray, candidates: int = 24):
        """Closest surface points.

        Returns:
            triangle [N], barycentric weights [N, 3], distance [N].
        """
        corners = vertices[self.triangles]
        # Large triangles have far centres; edge midpoints stand in for them as well.
        keys = np.concatenate(
            [corners.mean(1)] + [0.5 * (corners[:, k] + corners[:, (k + 1) % 3]) for k in range(3)]
        )
        _, hit = cKDTree(keys).query(points, k=candidates)
        hit %= len(self.triangles)
        weights = closest_on_triangles(corners[hit], points[:, None])
        foot = np.einsum("nkc,nkcd->nkd", weights, corners[hit])
        distance = np.linalg.norm(foot - points[:, None], axis=-1)
        best = distance.argmin(1)
        row = np.arange(len(points))
        return hit[row, best], weights[row, best], distance[row, best]


def closest_on_triangles(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Barycentric weights [..., 3] of the closest point of triangles [..., 3, 3] to points [..., 3].

    Source:
        Ericson, "Real-Time Collision Detection", 2005, section 5.1.5. Differs: all cases are computed, then
        chosen.
    """
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    det = np.maximum(d00 * d11 - d01 * d01, 1e-12)
    v, w = (d11 * d20 - d01 * d21) / det, (d00 * d21 - d01 * d20) / det
    inner = np.stack([1 - v - w, v, w], axis=-1)
    options, best = [], []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        p, q = corners[..., i, :], corners[..., j, :]
        t = np.clip(((points - p) * (q - p)).sum(-1) / np.maximum(((q - p) ** 2).sum(-1), 1e-12), 0, 1)
        weights = np.zeros(inner.shape)
        weights[..., i], weights[..., j] = 1 - t, t
        options.append(weights)
        best.append(((np.einsum("...c,...cd->...d", weights, corners) - points) ** 2).sum(-1))
    edge = np.take_along_axis(np.stack(options), np.stack(best).argmin(0)[None, ..., None], axis=0)[0]
    return np.where((inner >= 0).all(-1, keepdims=True), inner, edge)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation [3, 3], translation [3] with scale * R source + t closest to target (Umeyama, TPAMI
    1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / (a**2).sum())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


class Model:
    """The arrays of a model file that the measurement needs, in double precision."""

    def __init__(self, path: Path, modes: int):
        with foreign_file(path, "not readable as a face model", limit=DATA_BYTES) as file:
            data = file.npz(
                (
                    "mean",
                    "identity_basis",
                    "region_names",
                    "region",
                    "triangles",
                    "landmark_triangles",
                    "landmark_barycentric",
                )
            )
        self.mean = data["mean"].astype(np.float64)
        self.basis = data["identity_basis"][:modes].astype(np.float64)
        names = [str(n) for n in data["region_names"]]
        keep = np.isin(data["region"], [names.index(n) for n in SURFACE_REGIONS])
        self.surface = Surface(data["triangles"][keep[data["triangles"]].all(1)])
        self.landmark_corners = data["triangles"][data["landmark_triangles"]]
        self.landmark_weights = data["landmark_barycentric"].astype(np.float64)

    def landmarks(self, field: np.ndarray) -> np.ndarray:
        """[..., V, 3] -> [..., 68, 3]."""
        return np.einsum("lk,...lkc->...lc", self.landmark_weights, field[..., self.landmark_corners, :])

    def shape(self, coefficients: np.ndarray) -> np.ndarray:
        return self.mean + np.tensordot(coefficients, self.basis, 1)


def solve(model: Model, weights, corners, goal, normal, sigma: float, tangent: float) -> np.ndarray:
    """Coefficients [K] for fixed correspondences: noise `sigma` mm along the normal, `tangent` times that
    otherwise."""
    rows = np.einsum("nk,mnkc->mnc", weights, model.basis[:, corners])
    now = np.einsum("nk,nkc->nc", weights, model.mean[corners])
    error = goal - now
    jac_n = np.einsum("mnc,nc->nm", rows, normal) / sigma
    res_n = (error * normal).sum(1) / sigma
    jac_t = rows.transpose(1, 2, 0).reshape(-1, len(model.basis)) / (sigma * tangent)
    res_t = error.ravel() / (sigma * tangent)
    hessian = jac_n.T @ jac_n + jac_t.T @ jac_t + np.eye(len(model.basis))
    return np.linalg.solve(hessian, jac_n.T @ res_n + jac_t.T @ res_t)


def from_landmarks(model: Model, target: np.ndarray, sigma: float = 0.5, rounds: int = 4):
    """Posterior mean coefficients and the similarity that takes the model to the target."""
    basis = model.landmarks(model.basis).reshape(len(model.basis), -1).T
    coefficients = np.zeros(len(model.basis))
    for _ in range(rounds):
        scale, rotation, shift = similarity(model.landmarks(model.shape(coefficients)), target)
        goal = (target - shift) @ rotation / scale
        error = (goal - model.landmarks(model.mean)).ravel()
        coefficients = np.linalg.solve(
            basis.T @ basis / sigma**2 + np.eye(basis.shape[1]), basis.T @ error / sigma**2
        )
    return coefficients, (scale, rotation, shift)


def surface_error(model: Model, coefficients, pose, points: np.ndarray) -> np.ndarray:
    """Distance [N] from points to the posed surface, in the unit of the points."""
    scale, rotation, shift = pose
    return model.surface.closest(model.shape(coefficients), (points - shift) @ rotation / scale)[2] * scale


def register(model: Model, points: np.ndarray, coefficients, pose, identity: bool = True):
    """Non-rigid ICP from target points to the model surface; `identity=False` moves the similarity only."""
    scale, rotation, shift = pose
    for sigma in (3.0, 2.0, 1.5, 1.2, 1.0, 1.0, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6):
        shape = model.shape(coefficients)
        local = (points - shift) @ rotation / scale
        triangle, weights, _ = model.surface.closest(shape, local)
        corners = model.surface.triangles[triangle]
        if identity:
            face = shape[corners]
            normal = np.cross(face[:, 1] - face[:, 0], face[:, 2] - face[:, 0])
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
            coefficients = solve(model, weights, corners, local, normal, sigma, 4.0)
            shape = model.shape(coefficients)
        foot = np.einsum("nk,nkc->nc", weights, shape[corners])
        scale, rotation, shift = similarity(foot, points)
    return coefficients, (scale, rotation, shift)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ict", type=Path, help="folder with ict_facekit.npz")
    parser.add_argument("--model", type=Path, default=ASSETS / "generic.npz")
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--modes", type=int, default=118)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with foreign_file(
        options.ict / "ict_facekit.npz", "not readable as ICT-FaceKit", limit=DATA_BYTES
    ) as file:
        ict = file.npz(("mean", "identity_basis", "landmarks68"))
    model = Model(options.model, options.modes)
    draws = np.random.default_rng(options.seed).standard_normal((options.people, len(ict["identity_basis"])))
    mean, basis = ict["mean"].astype(np.float64), ict["identity_basis"].astype(np.float64)
    mean_face, basis_face = mean[FACE_REGION], basis[:, FACE_REGION]
    marks, basis_marks = mean[ict["landmarks68"]], basis[:, ict["landmarks68"]]
    zero = np.zeros(len(model.basis))
    pose = similarity(model.landmarks(model.mean), marks)
    _, pose = register(model, mean_face, zero, pose, identity=False)
    average = surface_error(model, zero, pose, mean_face).mean()
    per_person = []
    for draw in draws:
        face = mean_face + np.tensordot(draw, basis_face, 1)
        target = marks + np.tensordot(draw, basis_marks, 1)
        _, pose = register(model, face, zero, similarity(model.landmarks(model.mean), target), identity=False)
        row = {"mean": surface_error(model, zero, pose, face).mean()}
        coefficients, pose = from_landmarks(model, target)
        row["landmarks"] = surface_error(model, coefficients, pose, face).mean()
        row["landmarks_coefficient_rms"] = float(np.sqrt((coefficients**2).mean()))
        coefficients, pose = register(model, face, coefficients, pose)
        error = surface_error(model, coefficients, pose, face)
        row["registered"], row["registered_p95"] = error.mean(), np.percentile(error, 95)
        row["registered_coefficient_rms"] = float(np.sqrt((coefficients**2).mean()))
        per_person.append({k: round(float(v), 4) for k, v in row.items()})
    summary = {k: [float(f([p[k] for p in per_person])) for f in (np.mean, np.std)] for k in per_person[0]}
    print(f"{options.people} people, {len(model.basis)} modes; mean face to mean face {average:.3f} mm")
    for name, (m, s) in summary.items():
        print(f"  {name:28s} {m:7.3f} +- {s:.3f}")
    if options.output:
        result = {
            "mean_to_mean": average,
            "modes": len(model.basis),
            "summary": summary,
            "people": per_person,
        }
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
