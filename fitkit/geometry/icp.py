"""Rigid and similarity registration of points to a surface (ICP)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.geometry.closest_point import Border, SurfaceIndex, barycentric
from fitkit.geometry.normals import triangle_normals
from fitkit.geometry.rotation import so3_exp


@dataclass(frozen=True)
class Icp:
    """y = scale * rotation @ x + translation lays the points onto the surface.

    scale: no unit; rotation: [3, 3] (det +1); translation: [3] in the surface's unit; distance: [N] of every
    point from the surface at the solution; used: [N] bool, not trimmed there; rms: of the used distances;
    iterations; converged: False when they ran out.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    distance: np.ndarray
    used: np.ndarray
    rms: float
    iterations: int
    converged: bool

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 3] of the source frame -> [N, 3] in the surface's frame."""
        return self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.translation


def icp(
    points: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    with_scale: bool = False,
    trim: float = 3.0,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> Icp:
    """Register points to a triangle mesh by trimmed point-to-plane ICP, from where they are: align them
    roughly beforehand.

    Each iteration pairs every point with the exact closest surface point, drops pairs farther apart than
    `trim` times the median distance and those whose surface point lies on the open border (there the surface
    ends, not the point's partner), and moves the points by one Gauss-Newton step on the distances along the
    triangles' normals. It ends when the rms of the used distances changes by less than `tolerance` of itself;
    the best iterate is returned. With a free scale the distances count in the unit of the points, as if the
    surface were laid onto them: otherwise points that shrink to one place of the surface fit best.

    Args:
        points: [N, 3]; vertices: [V, 3], triangles: [F, 3], the surface, same unit; with_scale: a free
            isotropic scale.
    Raises:
        DegenerateInputError: fewer than 6 points.
    Source:
        Chen and Medioni, "Object modelling by registration of multiple range images", 1992 (planes); Turk and
        Levoy, "Zippered polygon meshes from range images", 1994 (borders).
    """
    points = np.asarray(points, np.float64)
    if len(points) < 6:
        raise DegenerateInputError(f"icp: expected at least 6 points, got {len(points)}")
    triangles = np.asarray(triangles)
    surface, border = SurfaceIndex(vertices, triangles), Border(triangles, len(vertices))
    corners = np.asarray(vertices, np.float64)[triangles]
    normals = triangle_normals(
        torch.from_numpy(np.asarray(vertices, np.float64))[None], torch.from_numpy(triangles.astype(np.int64))
    )[0].numpy()
    size = float(np.linalg.norm(np.ptp(corners.reshape(-1, 3), axis=0)))
    s, R, t = 1.0, np.eye(3), np.zeros(3)
    best, last, converged, iteration = None, np.inf, False, 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007 - told below
        moved = s * points @ R.T + t
        closest, distance, triangle = surface.query(moved)
        used = distance <= max(trim * float(np.median(distance)), 1e-12 * size)
        inner = used & ~border.holds(triangle, barycentric(closest, corners[triangle]))
        if inner.sum() >= max(6, 0.3 * used.sum()):  # a scan of loose triangles is all border
            used = inner
        rms = float(np.sqrt((distance[used] ** 2).mean())) / s
        if best is None or rms < best[0]:
            best = (rms, s, R, t, distance, used)
        if abs(last - rms) <= tolerance * rms or rms * s < 1e-12 * size:
            converged = True
            break
        last = rms
        normal = normals[triangle[used]]
        turn, shift, grow = motion_step(
            closest[used] - t, normal, (normal * (closest - moved)[used]).sum(1), with_scale
        )
        R, t, s = turn @ R, t + shift, s * grow
    rms, s, R, t, distance, used = best
    return Icp(s, R, t, distance, used, rms * s, iteration, converged)


def motion_step(
    lever: np.ndarray, normal: np.ndarray, length: np.ndarray, with_scale: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """One Gauss-Newton step of a similarity that moves points by `length` along `normal`; undetermined
    motions stay 0.

    Args:
        lever: [N, 3], places minus the centre of turn and scale; normal: [N, 3] unit; length: [N].
    Returns:
        rotation [3, 3] and scale about that centre, shift [3].
    """
    columns = [np.cross(lever, normal), normal]
    if with_scale:
        columns.append((lever * normal).sum(1, keepdims=True))
    step = np.linalg.lstsq(np.concatenate(columns, 1), length, rcond=1e-9)[0]
    grow = float(np.exp(np.clip(step[6], *LARGEST_GROWTH))) if with_scale else 1.0
    return so3_exp(torch.from_numpy(step[:3])).numpy(), step[3:6], grow


# Of one step, log units: a few points with planes that hardly tell the size must not shrink to nothing.
LARGEST_GROWTH = (-0.2, 0.2)
