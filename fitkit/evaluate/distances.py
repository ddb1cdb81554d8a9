"""Distances between points and surfaces. They differ on the same pair of meshes: never compare one kind with
another.

Every function returns one distance for each point, unreduced, in the unit of its arguments; `mean` and `rmse`
reduce them. Several papers call the mean an RMSE; here the names say what is computed.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.geometry.normals import vertex_normals


def mean(distances: np.ndarray) -> float:
    """Mean |d|."""
    return float(np.abs(distances).mean())


def rmse(distances: np.ndarray) -> float:
    """Root of the mean d^2."""
    return float(np.sqrt((np.asarray(distances, np.float64) ** 2).mean()))


def point_to_point(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """|p - q|, q the nearest of `others` [M, 3] (vertices, not surface) to each p of `points` [N, 3] ->
    [N]."""
    return cKDTree(others).query(points)[0]


def point_to_plane(points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """|n_q . (p - q)|, q the nearest vertex of the mesh and n_q its normal (area-weighted) -> [N].

    Args:
        points: [N, 3]; vertices: [V, 3]; triangles: [F, 3], which make the normals. Vertices without a
            triangle are passed over.
    """
    normals = normals_of(vertices, triangles)
    usable = np.flatnonzero((normals != 0).any(1))
    nearest = usable[cKDTree(np.asarray(vertices)[usable]).query(points)[1]]
    return np.abs(
        (normals[nearest] * (np.asarray(points, np.float64) - np.asarray(vertices, np.float64)[nearest])).sum(
            1
        )
    )


def scan_to_surface(scan: np.ndarray, vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """|p - q|, q the closest point on the triangles to each p of `scan` [N, 3] -> [N]; the scan-to-mesh
    distance."""
    return SurfaceIndex(vertices, triangles).query(scan)[1]


def symmetric(one: np.ndarray, other: np.ndarray) -> float:
    """Mean of the two directions' means: both directions count the same however many points they have."""
    return (mean(one) + mean(other)) / 2


def chamfer(
    vertices: np.ndarray, triangles: np.ndarray, other_vertices: np.ndarray, other_triangles: np.ndarray
) -> float:
    """Mean over all vertices of both meshes of the distance to the other's surface: the denser mesh counts
    more.

    Source: CD of the FaceScape benchmark (Zhu et al., TPAMI 2023). Some papers add the two directions' means,
    which is about twice it.
    """
    both = (
        scan_to_surface(vertices, other_vertices, other_triangles),
        scan_to_surface(other_vertices, vertices, triangles),
    )
    return mean(np.concatenate(both))


def normals_of(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit vertex normals [V, 3] of a mesh in arrays."""
    return vertex_normals(
        torch.from_numpy(np.asarray(vertices, np.float64))[None],
        torch.from_numpy(np.asarray(triangles, np.int64)),
    )[0].numpy()
