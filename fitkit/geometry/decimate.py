"""Coarser meshes whose vertices are some of those of the full mesh."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numba
import numpy as np

TURNED = 0.35  # cosine of the angle that a triangle may turn from its normal in the full mesh, in each shape
# 1: equal sides, 0: no area; triangles may only be worse than this where the full mesh has such.
SLIVER = 0.15
MOST_NEIGHBOURS = 11
# Of a removed edge's squared length counts as error, so that triangles stay even where all is flat.
EVEN = 2e-4
BORDER = 10.0  # weight of borders and seams against the surface beside them
TINY = 1e-12


class _Mesh(NamedTuple):
    """What is left of a mesh: triangles and corner [F, 3] where alive [F]; head [V] and after [3 F] chain the
    corners of each vertex. points [V, S, 3]; normal [F, S, 3] and area [F] of the full mesh's triangles in
    space and in the texture [C, 2]; quadric [V, S, 10] and planes [V]: squared distance from the removed
    surface, times its area, and that area; weight: [V]."""

    points: np.ndarray
    triangles: np.ndarray
    corner: np.ndarray
    texture: np.ndarray
    weight: np.ndarray
    alive: np.ndarray
    head: np.ndarray
    after: np.ndarray
    normal: np.ndarray
    area: np.ndarray
    quadric: np.ndarray
    planes: np.ndarray


def decimate(
    points: np.ndarray,
    triangles: np.ndarray,
    corner: np.ndarray,
    texture: np.ndarray,
    weight: np.ndarray,
    locked: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Remove vertices of a mesh one by one, each onto a neighbour, the least visible first.

    A removal is refused if it would change how the surface hangs together (holes stay, nothing is pinched),
    move or blur a line along which corners differ (seams of the texture, borders of parts), or turn a
    triangle over in a shape or in the texture.

    Args:
        points: [S, V, 3] mm, the same mesh in S shapes, the neutral one first.
        triangles: [F, 3] int64.
        corner: [F, 3] int64 < C, what each corner of a triangle is: corners of a vertex that differ in it lie
            on two sides of a seam.
        texture: [C, 2] texture coordinates of each; all equal where there are none.
        weight: [V], factor of the squared distance that the removal of a vertex may cost.
        locked: [V] bool, vertices that stay.
        count: how many vertices shall be left; more are where no other may be removed.
    Returns:
        the rows of `triangles` that are left [F'], their vertices [F', 3] and corners [F', 3].
    Source: Garland and Heckbert, "Surface simplification using quadric error metrics", 1997, with half-edge
        collapses. Differs: the error is the mean squared distance from the planes, in the shape where it is
        largest (after Mohr and Gleicher, "Deformation sensitive decimation", 2003, who add them up).
    """
    left, corner = triangles.astype(np.int64).copy(), corner.astype(np.int64).copy()
    S, V, F = len(points), points.shape[1], len(triangles)
    mesh = _Mesh(
        np.ascontiguousarray(points.transpose(1, 0, 2), dtype=np.float64),
        left,
        corner,
        np.ascontiguousarray(texture, dtype=np.float64),
        np.ascontiguousarray(weight, dtype=np.float64),
        np.ones(F, np.bool_),
        np.full(V, -1),
        np.full(3 * F, -1),
        np.zeros((F, S, 3)),
        np.zeros(F),
        np.zeros((V, S, 10)),
        np.zeros(V),
    )
    _collapse(mesh, np.ascontiguousarray(locked, dtype=np.bool_), count)
    rows = np.flatnonzero(mesh.alive)
    return rows, left[rows], corner[rows]


@numba.njit(cache=True, nogil=True)
def _cross(a, b, c, out):
    """(b - a) x (c - a) into out; its length is returned."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    out[0], out[1], out[2] = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    return np.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)


@numba.njit(cache=True, nogil=True)
def _evenness(a, b, c, normal):
    sides = 0.0
    for i in range(3):
        sides += (a[i] - b[i]) ** 2 + (b[i] - c[i]) ** 2 + (c[i] - a[i]) ** 2
    return 2 * np.sqrt(3.0) * _cross(a, b, c, normal) / max(sides, TINY)


@numba.njit(cache=True, nogil=True)
def _area(texture, a, b, c):
    return (texture[b, 0] - texture[a, 0]) * (texture[c, 1] - texture[a, 1]) - (
        texture[c, 0] - texture[a, 0]
    ) * (texture[b, 1] - texture[a, 1])


@numba.njit(cache=True, nogil=True)
def _add_plane(quadric, normal, at, share):
    """share * (squared distance from the plane through `at` with unit normal) to a quadric [10]."""
    d = -(normal[0] * at[0] + normal[1] * at[1] + normal[2] * at[2])
    row = (normal[0], normal[1], normal[2], d)
    k = 0
    for i in range(4):
        for j in range(i, 4):
            quadric[k] += share * row[i] * row[j]
            k += 1


@numba.njit(cache=True, nogil=True)
def _value(p, q, x):
    """Of two quadrics together, at a point."""
    a, b, c = x[0], x[1], x[2]
    return (
        (p[0] + q[0]) * a * a
        + (p[4] + q[4]) * b * b
        + (p[7] + q[7]) * c * c
        + 2 * ((p[1] + q[1]) * a * b + (p[2] + q[2]) * a * c + (p[5] + q[5]) * b * c)
        + 2 * ((p[3] + q[3]) * a + (p[6] + q[6]) * b + (p[8] + q[8]) * c)
        + p[9]
        + q[9]
    )


@numba.njit(cache=True, nogil=True)
def _around(mesh, v, near):
    """The neighbours of a vertex and with how many triangles, written into `near` [MOST, 2]; their number, -1
    where more than one sheet meets, and whether the vertex lies on a border."""
    found = 0
    c = mesh.head[v]
    while c >= 0:
        f, k = c // 3, c % 3
        if mesh.alive[f]:
            for step in (1, 2):
                w = mesh.triangles[f, (k + step) % 3]
                for i in range(found):
                    if near[i, 0] == w:
                        near[i, 1] += 1
                        break
                else:
                    if found == len(near):
                        return -1, True
                    near[found, 0], near[found, 1] = w, 1
                    found += 1
        c = mesh.after[c]
    ends = 0
    for i in range(found):
        if near[i, 1] > 2:
            return -1, True
        if near[i, 1] == 1:
            ends += 1
    return found if ends <= 2 else -1, ends > 0


@numba.njit(cache=True, nogil=True)
def _sides(mesh, v, u, pairs):
    """Which corners of v become which ones of u, as the triangles that have both say, into `pairs` [2, 2];
    their number, -1 where one would become two."""
    known = 0
    c = mesh.head[v]
    while c >= 0:
        f = c // 3
        if mesh.alive[f]:
            for k in range(3):
                if mesh.triangles[f, k] == u:
                    own, to = mesh.corner[f, c % 3], mesh.corner[f, k]
                    if known == 1 and pairs[0, 0] == own:
                        if pairs[0, 1] != to:
                            return -1
                    else:
                        pairs[known, 0], pairs[known, 1] = own, to
                        known += 1
        c = mesh.after[c]
    return known


@numba.njit(cache=True, nogil=True)
def _allowed(mesh, v, u, near, border, other, pairs):
    """Whether vertex v may go onto its neighbour u. near: the neighbours of v; other, pairs: room."""
    shared = 0
    for i in range(len(near)):
        if near[i, 0] == u:
            shared = near[i, 1]
    if shared != (1 if border else 2):
        return False
    count, _ = _around(mesh, u, other)
    if count < 0 or count + len(near) - 2 - shared > MOST_NEIGHBOURS:
        return False
    common = 0
    for i in range(len(near)):
        for j in range(count):
            if near[i, 0] == other[j, 0]:
                common += 1
    if common != shared:
        return False
    known = _sides(mesh, v, u, pairs)
    if known < 0:
        return False
    points, triangles, corner = mesh.points, mesh.triangles, mesh.corner
    normal, worst = np.empty(3), 1.0
    c = mesh.head[v]
    while c >= 0:
        f, k = c // 3, c % 3
        if mesh.alive[f]:
            a, b = triangles[f, (k + 1) % 3], triangles[f, (k + 2) % 3]
            worst = min(worst, _evenness(points[v, 0], points[a, 0], points[b, 0], normal))
        c = mesh.after[c]
    c = mesh.head[v]
    while c >= 0:
        f, k = c // 3, c % 3
        c = mesh.after[c]
        a, b = triangles[f, (k + 1) % 3], triangles[f, (k + 2) % 3]
        if not mesh.alive[f] or a == u or b == u:
            continue
        to = -1
        for i in range(known):
            if pairs[i, 0] == corner[f, k]:
                to = pairs[i, 1]
        if to < 0:
            return False
        if mesh.area[f] != 0:
            now = _area(mesh.texture, to, corner[f, (k + 1) % 3], corner[f, (k + 2) % 3])
            if now * mesh.area[f] <= 0:
                return False
        if _evenness(points[u, 0], points[a, 0], points[b, 0], normal) < min(SLIVER, worst):
            return False
        for s in range(points.shape[1]):
            size = _cross(points[u, s], points[a, s], points[b, s], normal)
            true = mesh.normal[f, s]
            along = normal[0] * true[0] + normal[1] * true[1] + normal[2] * true[2]
            if along < TURNED * size and (true[0] != 0 or true[1] != 0 or true[2] != 0):
                return False
    return True


@numba.njit(cache=True, nogil=True)
def _best(mesh, v, near, other, pairs):
    """The cheapest neighbour that vertex v may go onto, -1 where there is none, and the cost."""
    count, border = _around(mesh, v, near)
    if count <= 0:
        return -1, 0.0
    cost = np.empty(count)
    for i in range(count):
        u = near[i, 0]
        largest, length = 0.0, 0.0
        for s in range(mesh.points.shape[1]):
            largest = max(largest, _value(mesh.quadric[v, s], mesh.quadric[u, s], mesh.points[u, s]))
        for k in range(3):
            length += (mesh.points[u, 0, k] - mesh.points[v, 0, k]) ** 2
        largest /= max(mesh.planes[v] + mesh.planes[u], TINY)
        cost[i] = mesh.weight[v] * (largest + EVEN * length)
    for _ in range(count):
        i = np.argmin(cost)
        if _allowed(mesh, v, near[i, 0], near[:count], border, other, pairs):
            return near[i, 0], cost[i]
        cost[i] = np.inf
    return -1, 0.0


@numba.njit(cache=True, nogil=True)
def _begin(mesh):
    """Chain the corners and measure the full mesh; the last corner of each vertex [V]."""
    points, triangles, corner = mesh.points, mesh.triangles, mesh.corner
    tail = np.full(len(points), -1)
    normal, across = np.empty(3), np.empty(3)
    for f in range(len(triangles)):
        for k in range(3):
            v, c = triangles[f, k], 3 * f + k
            if mesh.head[v] < 0:
                mesh.head[v] = c
            else:
                mesh.after[tail[v]] = c
            tail[v] = c
        a, b, c = triangles[f]
        mesh.area[f] = _area(mesh.texture, corner[f, 0], corner[f, 1], corner[f, 2])
        for s in range(points.shape[1]):
            size = _cross(points[a, s], points[b, s], points[c, s], normal)
            if size > TINY:
                for i in range(3):
                    normal[i] /= size
                    mesh.normal[f, s, i] = normal[i]
                for k in range(3):
                    _add_plane(mesh.quadric[triangles[f, k], s], normal, points[a, s], size)
            if s == 0:
                for k in range(3):
                    mesh.planes[triangles[f, k]] += size
    # Borders and seams: a plane through each of their edges, across the surface.
    for f in range(len(triangles)):
        for k in range(3):
            v, u = triangles[f, k], triangles[f, (k + 1) % 3]
            edge = True
            c = mesh.head[u]
            while c >= 0:
                g, i = c // 3, c % 3
                if triangles[g, (i + 1) % 3] == v:
                    edge = corner[g, i] != corner[f, (k + 1) % 3] or corner[g, (i + 1) % 3] != corner[f, k]
                c = mesh.after[c]
            for s in range(points.shape[1] if edge else 0):
                p, q, true = points[v, s], points[u, s], mesh.normal[f, s]
                x, y, z = q[0] - p[0], q[1] - p[1], q[2] - p[2]
                across[0], across[1], across[2] = (
                    y * true[2] - z * true[1],
                    z * true[0] - x * true[2],
                    x * true[1] - y * true[0],
                )
                length = np.sqrt(across[0] ** 2 + across[1] ** 2 + across[2] ** 2)
                if length > TINY:
                    for i in range(3):
                        across[i] /= length
                    _add_plane(mesh.quadric[v, s], across, p, BORDER * length * length)
                    _add_plane(mesh.quadric[u, s], across, p, BORDER * length * length)
    return tail


@numba.njit(cache=True, nogil=True)
def _remove(mesh, tail, v, u, pairs):
    """Vertex v onto its neighbour u."""
    _sides(mesh, v, u, pairs)
    c = mesh.head[v]
    while c >= 0:
        f, k = c // 3, c % 3
        if mesh.triangles[f, 0] == u or mesh.triangles[f, 1] == u or mesh.triangles[f, 2] == u:
            mesh.alive[f] = False
        elif mesh.alive[f]:
            mesh.triangles[f, k] = u
            mesh.corner[f, k] = pairs[0, 1] if pairs[0, 0] == mesh.corner[f, k] else pairs[1, 1]
        c = mesh.after[c]
    mesh.after[tail[u]] = mesh.head[v]
    tail[u] = tail[v]
    mesh.head[v] = -1
    for s in range(mesh.points.shape[1]):  # compiled ten times faster than sums of arrays
        for k in range(10):
            mesh.quadric[u, s, k] += mesh.quadric[v, s, k]
    mesh.planes[u] += mesh.planes[v]


@numba.njit(cache=True, nogil=True)
def _collapse(mesh, locked, count):
    """As `decimate`; the mesh is changed in place."""
    tail = _begin(mesh)
    left, version = 0, np.zeros(len(mesh.points), np.int64)
    near, other, ring = (
        np.empty((64, 2), np.int64),
        np.empty((64, 2), np.int64),
        np.empty((64, 2), np.int64),
    )
    pairs = np.empty((2, 2), np.int64)
    queue = [(0.0, -1, -1, -1)]
    queue.pop()
    for v in range(len(mesh.points)):
        if mesh.head[v] >= 0:
            left += 1
            if not locked[v]:
                u, cost = _best(mesh, v, near, other, pairs)
                if u >= 0:
                    queue.append((cost, v, u, 0))
    heapq.heapify(queue)
    while left > count and len(queue) > 0:
        cost, v, u, when = heapq.heappop(queue)
        if when != version[v]:
            continue
        u, now = _best(mesh, v, near, other, pairs)  # what lies farther away may have changed since
        if u < 0:
            continue
        if now > cost:
            heapq.heappush(queue, (now, v, u, when))
            continue
        _remove(mesh, tail, v, u, pairs)
        version[v] += 1
        left -= 1
        found, _ = _around(mesh, u, ring)
        for i in range(-1, found):
            w = u if i < 0 else ring[i, 0]
            version[w] += 1
            if not locked[w]:
                to, price = _best(mesh, w, near, other, pairs)
                if to >= 0:
                    heapq.heappush(queue, (price, w, to, version[w]))
