"""Exact closest points on a triangle mesh."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


class SurfaceIndex:
    """A triangle mesh prepared for closest-point queries.

    vertices: [V, 3]; triangles: [F, 3] int. Candidates come from a k-d tree over triangle centroids; a query
    is exact because it goes on until no further triangle can be nearer (centroid distance minus the largest
    triangle radius). Large triangles are split for the search, which keeps that radius small.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray):
        corners = np.asarray(vertices, np.float64)[np.asarray(triangles)]
        parent = np.arange(len(corners))
        limit = 1.5 * float(np.median(_radius(corners)))
        while bool((large := _radius(corners) > limit).any()) and len(corners) < 8 * len(triangles):
            a, b, c = corners[large].transpose(1, 0, 2)
            ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
            parts = [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
            corners = np.concatenate([corners[~large], *parts])
            parent = np.concatenate([parent[~large], *[parent[large]] * 4])
        self.corners, self.parent = corners, parent
        self.radii = _radius(corners)
        self.radius = float(self.radii.max())
        self.tree = cKDTree(corners.mean(1))

    def query(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """points [N, 3] -> closest surface points [N, 3], distances [N], triangle indices [N]."""
        points, count = np.asarray(points, np.float64), len(self.corners)
        closest, distance, triangle = (
            np.empty_like(points),
            np.full(len(points), np.inf),
            np.zeros(len(points), np.int64),
        )
        pending, known, k = np.arange(len(points)), 0, min(4, count)
        while len(pending):
            far, candidate = self.tree.query(points[pending], k=k)
            far, candidate = far.reshape(len(pending), -1), candidate.reshape(len(pending), -1)
            # Of the new candidates those that can be nearer than what is known.
            new = far[:, known:] - self.radii[candidate[:, known:]] < distance[pending, None]
            row, owner = pending[np.nonzero(new)[0]], candidate[:, known:][new]
            q = closest_on_triangles(points[row], self.corners[owner])
            d = np.sqrt(((q - points[row]) ** 2).sum(-1))
            order = np.lexsort((d, row))
            first = order[np.r_[True, row[order][1:] != row[order][:-1]]] if len(order) else order
            first = first[d[first] < distance[row[first]]]
            closest[row[first]], distance[row[first]], triangle[row[first]] = q[first], d[first], owner[first]
            open_ = (far[:, -1] - self.radius < distance[pending]) & (k < count)
            pending, known, k = pending[open_], k, min(3 * k, count)
        return closest, distance, self.parent[triangle]


def _radius(corners: np.ndarray) -> np.ndarray:
    """Largest corner distance from the centroid, [F]; corners [F, 3, 3]."""
    return np.sqrt(((corners - corners.mean(1, keepdims=True)) ** 2).sum(-1).max(1))


def closest_on_triangles(p: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """p [N, 3], corners [N, 3, 3] -> closest point of each triangle to its p, [N, 3].

    Source: the regions of Ericson, "Real-Time Collision Detection", 2005, section 5.1.5, evaluated for all
    rows at once.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac, ap, bp, cp = b - a, c - a, p - a, p - b, p - c

    def dot(x, y):
        return np.einsum("ij,ij->i", x, y)

    d1, d2, d3, d4, d5, d6 = dot(ab, ap), dot(ac, ap), dot(ab, bp), dot(ac, bp), dot(ab, cp), dot(ac, cp)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2

    def ratio(n, d):
        return n / np.where(np.abs(d) < 1e-300, 1.0, d)

    total = va + vb + vc
    v, w = ratio(vb, total), ratio(vc, total)
    out = a + v[:, None] * ab + w[:, None] * ac
    edge_bc = (va <= 0) & (d4 - d3 >= 0) & (d5 - d6 >= 0)
    out = np.where(edge_bc[:, None], b + ratio(d4 - d3, (d4 - d3) + (d5 - d6))[:, None] * (c - b), out)
    edge_ac = (vb <= 0) & (d2 >= 0) & (d6 <= 0)
    out = np.where(edge_ac[:, None], a + ratio(d2, d2 - d6)[:, None] * ac, out)
    edge_ab = (vc <= 0) & (d1 >= 0) & (d3 <= 0)
    out = np.where(edge_ab[:, None], a + ratio(d1, d1 - d3)[:, None] * ab, out)
    out = np.where(((d6 >= 0) & (d5 <= d6))[:, None], c, out)
    out = np.where(((d3 >= 0) & (d4 <= d3))[:, None], b, out)
    return np.where(((d1 <= 0) & (d2 <= 0))[:, None], a, out)


def barycentric(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Weights [N, 3] of points [N, 3] on triangles [N, 3, 3], clipped to the triangle and summing to 1."""
    a, b, c = corners.transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.maximum((normal * normal).sum(1), 1e-20)
    parts = [(np.cross(q - p, points - p) * normal).sum(1) / area for p, q in ((b, c), (c, a), (a, b))]
    weight = np.clip(np.stack(parts, 1), 0, 1)
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-20)


class Border:
    """Which places of a mesh lie on edges that only one triangle has."""

    def __init__(self, triangles: np.ndarray, count: int):
        """triangles: [F, 3] int; count: of vertices."""
        edges = np.sort(
            np.stack([triangles[:, [1, 2]], triangles[:, [2, 0]], triangles[:, [0, 1]]], 1).astype(np.int64),
            -1,
        )  # opposite corner k
        _, inverse, times = np.unique(
            edges.reshape(-1, 2) @ [count, 1], return_inverse=True, return_counts=True
        )
        self.open = (times[inverse.reshape(-1)] == 1).reshape(-1, 3)
        vertex = np.zeros(count, bool)
        vertex[edges[self.open].ravel()] = True
        self.corner = vertex[triangles]

    def holds(self, triangle: np.ndarray, weight: np.ndarray, eps: float = 1e-7) -> np.ndarray:
        """Triangles [N] and barycentric weights [N, 3] of places -> [N] bool."""
        return ((weight < eps) & self.open[triangle]).any(1) | (
            (weight > 1 - eps) & self.corner[triangle]
        ).any(1)
