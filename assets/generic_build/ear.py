"""The left ear, drawn from a table of its lines: a front face over the ear's plane, a rim, and a back that
runs down to the head."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import spsolve
from scipy.spatial import Delaunay, cKDTree

from .appearance import smooth_step
from .parts import Part
from .skin_mesh import inside, relax, throw_darts

# The ear's plane, in mm of the head frame: (u, v, w) = (backwards, up along the ear, out of the plane), with
# the entry of the canal at the origin.
ORIGIN = np.array([75.3, 11.0, 13.9])
PROTRUSION = 25.0  # degrees between the plane and the median plane, about the upright axis
LEAN = 5.0  # degrees by which the upper end stands out
RAKE = 12.0  # degrees by which the upper end lies back

# Outer edge of the ear, once round from the front end of the helix over the top, the back and the lobe, then
# up the cheek in front of the tragus. u, v, w: mm; free: 1 where the edge stands off the head, 0 where it is
# the cheek; back: mm from the edge to the fold where the back of the ear meets the head.
EDGE = np.array(
    [
        # u, v, w, free, back
        (-10.5, 7.0, 0.0, 0.0, 3.0),
        (-10.8, 13.0, 0.0, 0.0, 3.0),
        (-10.0, 19.5, 0.0, 0.05, 3.0),
        (-7.2, 26.0, 1.0, 0.4, 3.5),
        (-2.2, 31.2, 1.0, 0.8, 4.5),
        (4.2, 34.0, 0.6, 0.95, 5.5),
        (11.0, 34.2, 0.2, 1.0, 7.0),
        (17.5, 31.6, -0.3, 1.0, 8.0),
        (22.4, 27.0, -0.8, 1.0, 9.0),
        (25.3, 21.0, -1.2, 1.0, 9.5),
        (26.4, 14.0, -1.5, 1.0, 9.5),
        (26.2, 7.0, -1.6, 1.0, 9.5),
        (24.8, 0.0, -1.6, 1.0, 9.0),
        (22.2, -6.5, -1.6, 1.0, 8.5),
        (18.6, -12.5, -1.8, 1.0, 7.5),
        (14.4, -18.0, -2.0, 1.0, 6.5),
        (9.8, -23.0, -2.2, 1.0, 5.5),
        (4.6, -26.6, -1.4, 1.0, 5.0),
        (-0.4, -27.2, -0.2, 0.95, 4.5),
        (-4.8, -25.2, 1.0, 0.7, 3.5),
        (-8.2, -20.8, 2.0, 0.3, 3.0),
        (-10.2, -15.0, 2.5, 0.05, 3.0),
        (-11.4, -8.5, 0.0, 0.0, 3.0),
        (-12.0, -2.0, 0.0, 0.0, 3.0),
        (-11.2, 3.0, 0.0, 0.0, 3.0),
    ]
)


@dataclass(frozen=True)
class Ridge:
    """A ridge along a line: rows of u, v, height and width (standard deviation of its profile), all mm.

    lean: mm by which the crest is moved to the left of the line's direction.
    """

    line: tuple[tuple[float, float, float, float], ...]
    lean: float = 0.0


RIDGES = {
    # From the bowl, where it rises as the crus over the canal, up the front, over the top and down the back.
    "helix": Ridge(
        (
            (10.0, 4.2, 0.4, 1.8),
            (6.5, 3.2, 2.6, 1.8),
            (2.5, 3.0, 5.0, 1.8),
            (-1.8, 4.8, 5.8, 1.8),
            (-4.8, 8.4, 5.0, 1.8),
            (-6.4, 13.4, 4.4, 1.8),
            (-6.2, 19.2, 4.4, 1.8),
            (-3.8, 24.8, 4.6, 1.7),
            (0.4, 29.2, 4.8, 1.6),
            (5.4, 31.6, 5.0, 1.6),
            (10.9, 31.8, 5.0, 1.6),
            (16.2, 29.6, 4.8, 1.6),
            (20.5, 25.6, 4.6, 1.6),
            (23.1, 20.4, 4.4, 1.6),
            (24.1, 14.0, 4.3, 1.5),
            (23.9, 7.4, 4.2, 1.5),
            (22.6, 1.0, 3.8, 1.5),
            (20.2, -5.2, 3.2, 1.6),
            (16.8, -11.0, 2.4, 1.8),
            (13.0, -16.0, 1.4, 2.2),
            (9.0, -20.0, 0.4, 2.6),
        ),
        lean=-0.8,
    ),
    # From the antitragus up around the bowl, then on as the upper leg; the lower leg leaves it forwards.
    "antihelix": Ridge(
        (
            (5.0, -13.2, 2.6, 3.0),
            (8.4, -12.2, 3.6, 2.5),
            (12.0, -9.4, 4.4, 2.1),
            (15.2, -4.6, 4.8, 2.1),
            (16.8, 1.2, 5.0, 2.1),
            (16.8, 7.2, 5.0, 2.2),
            (15.3, 12.8, 4.6, 2.4),
            (12.8, 18.2, 3.9, 2.5),
            (9.9, 23.0, 2.8, 2.6),
            (7.2, 27.0, 1.4, 2.6),
        ),
        lean=0.3,
    ),
    "lower leg": Ridge(
        (
            (15.0, 12.2, 4.6, 2.2),
            (11.2, 15.2, 4.4, 1.9),
            (6.8, 16.8, 4.0, 1.7),
            (2.0, 17.6, 3.4, 1.6),
            (-2.6, 18.4, 2.4, 1.6),
        ),
        lean=0.2,
    ),
    "tragus": Ridge(
        (
            (-5.0, 2.4, 1.6, 2.0),
            (-4.0, -1.4, 4.2, 2.3),
            (-3.6, -4.8, 4.6, 2.3),
            (-3.9, -8.4, 2.6, 2.0),
        ),
        lean=1.8,
    ),
    "antitragus": Ridge(
        (
            (2.6, -14.0, 1.8, 2.4),
            (5.2, -13.6, 3.8, 2.4),
            (8.2, -12.8, 3.6, 2.4),
        ),
        lean=0.3,
    ),
    "lobe": Ridge(((-3.0, -20.5, 3.3, 4.8), (3.0, -21.0, 3.4, 4.6), (8.0, -18.4, 2.0, 4.0))),
}
FLOOR = -3.0  # mm: level of the face of the ear between the ridges
# The bowl (concha): its border, u and v in mm; depth and width of its wall, mm.
BOWL = np.array(
    [
        (-3.4, 9.4),
        (-1.2, 12.8),
        (4.0, 13.2),
        (9.0, 11.8),
        (13.0, 9.0),
        (14.4, 3.6),
        (13.4, -2.4),
        (10.2, -7.4),
        (6.0, -9.8),
        (1.6, -11.4),
        (-1.6, -11.6),
        (-2.6, -8.4),
        (-2.2, -4.4),
        (-2.4, 0.0),
        (-3.4, 4.6),
    ]
)
# Rows of vertices along its wall: mm outside of its border; those farther out than OUTSIDE follow the
# antihelix and start BEHIND (u, mm).
WALL, OUTSIDE, BEHIND = (-2.6, -0.4, 1.6, 3.7), 2.0, 10.0
BOWL_DEPTH, BOWL_WALL = 9.5, 5.0
# Round dents: u, v, depth and width (standard deviation), mm.
DENTS = (
    (-0.2, -3.0, 6.0, 2.2),  # canal
    (-1.4, -11.6, 2.6, 1.8),  # notch between tragus and antitragus
    (4.4, 22.8, 1.8, 3.6),  # triangular fossa
    (19.4, 19.0, 1.4, 3.0),  # groove inside of the helix (scapha)
    (20.4, 8.0, 1.3, 2.6),
)
ROUND, SPACING = 56, 2.25  # points of the edge; mm between those of the face
# Where the edge is the cheek: shares of the way from the seam to the edge at which the rings lie.
ACROSS_CHEEK = (0.35, 0.65, 0.8, 0.88, 0.93, 0.97)
# Where it stands off the head, the last three of them make the rim: mm inwards, and below the edge.
ROLL = ((1.5, 3.0), (0.35, 2.3), (0.0, 1.0))
# Rings within the edge: mm from it, and how much of the face's form they have where the edge is the cheek.
RIM = ((0.8, 0.1), (2.0, 0.4), (3.3, 0.75), (4.8, 1.0))
CENTRE = (8.0, 2.0)  # u, v in mm of the point that edge and seam run round
ACROSS = 3.0  # weight of edges between rings against those within the face, in the texture map


def frame() -> np.ndarray:
    """Rows: unit vectors of u, v, w in the head frame."""
    turn, lean, rake = np.radians([PROTRUSION, LEAN, RAKE])
    u = np.array([np.sin(turn), 0.0, -np.cos(turn)])
    out = np.array([np.cos(turn), 0.0, np.sin(turn)])
    up = np.array([0.0, 1.0, 0.0])
    v, w = np.cos(lean) * up + np.sin(lean) * out, np.cos(lean) * out - np.sin(lean) * up
    return np.stack([np.cos(rake) * u - np.sin(rake) * v, np.cos(rake) * v + np.sin(rake) * u, w])


def smooth_line(points: np.ndarray, count: int, closed: bool = False) -> np.ndarray:
    """`count` points at even steps on a curve through `points` [N, D] that overshoots nowhere."""
    if closed:
        points = np.concatenate([points, points, points, points[:1]])
    at = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points[:, :2], axis=0), axis=1))]
    curve = PchipInterpolator(at, points)
    if not closed:
        return curve(np.linspace(0, at[-1], count))
    turn = at[-1] / 3
    return curve(turn + np.linspace(0, turn, count, endpoint=False))


class Face:
    """The front of the ear: where a point of its plane comes to lie."""

    def __init__(self, ground):
        """ground: [N, 2] -> [N] mm, the surface of the head over the ear's plane."""
        self.ground = ground
        self.ridges = []
        for ridge in RIDGES.values():
            line = smooth_line(np.array(ridge.line), 300)
            along = np.gradient(line[:, :2], axis=0)
            along /= np.linalg.norm(along, axis=1, keepdims=True)
            left = np.c_[-along[:, 1], along[:, 0]]
            self.ridges.append((cKDTree(line[:, :2]), line, left, ridge.lean))
        self.bowl = smooth_line(BOWL, 400, closed=True)
        self.bowl_tree = cKDTree(self.bowl)

    def __call__(self, at: np.ndarray) -> np.ndarray:
        """[N, 2] of the plane -> [N, 3] u, v, w."""
        front = smooth_step((-1.0 - at[:, 0]) / 7.0)
        level = FLOOR * (1 - front) + self.ground(at) * front
        total, shift = np.zeros(len(at)), np.zeros((len(at), 2))
        for tree, line, left, lean in self.ridges:
            distance, nearest = tree.query(at)
            profile = np.exp(-0.5 * (distance / line[nearest, 3]) ** 2)
            total += (line[nearest, 2] * profile) ** 3
            shift += lean * (profile * np.minimum(line[nearest, 2] / 3.0, 1.0))[:, None] * left[nearest]
        total = np.cbrt(total)
        signed = self.bowl_tree.query(at)[0] * np.where(inside(self.bowl, at), 1, -1)
        deep = smooth_step((signed + 0.35 * BOWL_WALL) / (1.35 * BOWL_WALL))
        height = level + total - BOWL_DEPTH * deep
        for u, v, depth, width in DENTS:
            height -= depth * np.exp(-0.5 * ((at - [u, v]) ** 2).sum(1) / width**2)
        return np.c_[at + shift, height]


def ear(seam: np.ndarray, base: np.ndarray, base_layout: np.ndarray) -> Part:
    """A left ear on the closed loop `base` [N, 3] of skin vertices around it, which runs as EDGE does.

    seam, base_layout: their rows and places in the layout. The part follows no single vertex: amounts are 0.
    """
    axes = frame()
    local = (base - ORIGIN) @ axes.T
    rings, face, border = rings_of(local)
    inner = face_points(border, face)
    points = np.concatenate([*rings, face(inner)])

    first = np.cumsum([0, len(local)] + [len(ring) for ring in rings])
    rows = [np.arange(a, b) for a, b in itertools.pairwise(first)]
    faces = [
        zipper(a, b, outer, ring)
        for (a, b), (outer, ring) in zip(itertools.pairwise(rows), itertools.pairwise([local, *rings]))
    ]
    patch = np.r_[rows[-1], first[-1] + np.arange(len(inner))]
    faces.append(patch[mesh_inside(border, inner)])
    triangles = np.concatenate(faces)
    points[-len(inner) :] = softened(np.concatenate([local, points]), triangles)[-len(inner) :]
    ring_of = np.concatenate(
        [np.full(len(r), k) for k, r in enumerate(rows)] + [np.full(len(inner), len(rows))]
    )
    return Part(
        seam,
        ORIGIN + points @ axes,
        spread(base_layout, triangles, ring_of),
        triangles,
        np.zeros(len(points), int),
        np.zeros(len(points)),
    )


def rings_of(local: np.ndarray) -> tuple[list[np.ndarray], Face, np.ndarray]:
    """Rings from the seam `local` [N, 3] over the back of the ear and its rim into its face, each [M, 3] in
    u, v, w (the first two have as many points as the seam); the face; and the last ring in its plane [M,
    2]."""
    quadric = lambda p: np.c_[np.ones(len(p)), p[:, :2], p[:, :2] ** 2, p[:, 0] * p[:, 1]]
    weights = np.linalg.lstsq(quadric(local), local[:, 2], rcond=None)[0]
    ground = lambda p: quadric(p) @ weights
    face = Face(ground)

    fine = smooth_line(EDGE, 2000, closed=True)
    along = np.roll(fine[:, :2], -1, 0) - np.roll(fine[:, :2], 1, 0)
    inwards = np.c_[along[:, 1], -along[:, 0]] / np.linalg.norm(along, axis=1, keepdims=True)
    # Edge and seam meet at the same angle around CENTRE.
    turn = lambda p: np.arctan2(p[:, 1] - CENTRE[1], p[:, 0] - CENTRE[0])
    apart = np.abs((turn(local)[:, None] - turn(fine)[None] + np.pi) % (2 * np.pi) - np.pi)
    at_seam = apart.argmin(1)
    at_edge = np.linspace(0, len(fine), ROUND, endpoint=False).round().astype(int)
    edge, inwards_here = fine[at_edge], inwards[at_edge]
    opposite = [np.interp(turn(edge), turn(local), local[:, k], period=2 * np.pi) for k in range(3)]
    rings = back_of_ear(fine[at_seam], inwards[at_seam], local, ground)[:2]
    rings += back_of_ear(edge, inwards_here, np.stack(opposite, axis=1), ground)[2:]
    for inset, share in RIM:
        border = edge[:, :2] + inset * inwards_here
        own = np.maximum(edge[:, 3:4], share)
        rings.append(own * face(border) + (1 - own) * np.c_[border, ground(border)])
    return rings, face, border


def back_of_ear(edge: np.ndarray, inwards: np.ndarray, start: np.ndarray, ground) -> list[np.ndarray]:
    """Six rings [M, 3] from `start` [M, 3] to the edge, rows of EDGE [M, 5]; inwards: [M, 2], its normal.

    Where the ear stands off the head, they run along the head, into the fold behind the ear, up its back and
    round the rim; where it is the cheek, straight across.
    """
    free, back = edge[:, 3:4], edge[:, 4:5]
    fold = edge[:, :2] + back * inwards
    middle = 0.5 * (start[:, :2] + fold)
    behind = edge[:, :2] + np.maximum(0.45 * back, 1.8) * inwards
    own = start[:, 2] - ground(start)  # what the head's form has beyond the quadric
    stands = [
        np.c_[middle, ground(middle) + 0.5 * own],
        np.c_[fold, ground(fold)],
        np.c_[behind, 0.4 * ground(fold) + 0.6 * (edge[:, 2] - ROLL[0][1])],
        *(np.c_[edge[:, :2] + inset * inwards, edge[:, 2] - below] for inset, below in ROLL),
    ]
    rings = []
    for share, place in zip(ACROSS_CHEEK, stands):
        across = start[:, :2] * (1 - share) + edge[:, :2] * share
        flat = np.c_[across, ground(across) + own * (1 - share)]
        apart = free * place + (1 - free) * flat - edge[:, :3]
        for _ in range(4):  # so that no step is left where the edge comes off the cheek
            apart = 0.5 * apart + 0.25 * (np.roll(apart, 1, 0) + np.roll(apart, -1, 0))
        rings.append(edge[:, :3] + apart)
    return rings


def face_points(border: np.ndarray, face: Face) -> np.ndarray:
    """Points [M, 2] inside the closed line `border` [N, 2]: rows along the wall of the bowl, elsewhere evenly
    spread over the face of the ear."""
    along = np.roll(face.bowl, -1, 0) - np.roll(face.bowl, 1, 0)
    outwards = np.c_[-along[:, 1], along[:, 0]] / np.linalg.norm(along, axis=1, keepdims=True)
    rows = []
    for step in WALL:
        row = face.bowl + step * outwards
        row = even(row, SPACING)
        behind = (step < OUTSIDE) | (row[:, 0] > BEHIND)
        rows.append(row[inside(border, row) & behind])
    fixed = np.concatenate(rows)
    fixed = fixed[cKDTree(border).query(fixed)[0] > 0.9 * SPACING]
    generator = np.random.default_rng(1)
    some = generator.uniform(border.min(0), border.max(0), (40000, 2))
    some = some[inside(border, some)]
    held = np.concatenate([border, fixed])
    chosen = throw_darts(face(some), np.full(len(some), SPACING), face(held), generator)
    free = some[chosen]
    for _ in range(12):
        inner = np.concatenate([fixed, free])
        points = np.concatenate([border, inner])
        free = relax(points, mesh_inside(border, inner), len(held), face)
    return np.concatenate([fixed, free])


def even(loop: np.ndarray, step: float) -> np.ndarray:
    """Points about `step` apart on a closed line [N, D]."""
    ends = np.concatenate([loop, loop[:1]])
    at = np.r_[0, np.cumsum(np.linalg.norm(np.diff(ends, axis=0), axis=1))]
    goal = np.linspace(0, at[-1], round(at[-1] / step), endpoint=False)
    return np.stack([np.interp(goal, at, ends[:, k]) for k in range(ends.shape[1])], axis=1)


def mesh_inside(border: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Delaunay triangles of the points of both within the closed line `border`, counter-clockwise."""
    points = np.concatenate([border, inner])
    faces = Delaunay(points).simplices
    faces = faces[inside(border, points[faces].mean(1))]
    (a, b), (c, d) = (
        (points[faces[:, 1]] - points[faces[:, 0]]).T,
        (points[faces[:, 2]] - points[faces[:, 0]]).T,
    )
    faces[a * d - b * c < 0] = faces[a * d - b * c < 0][:, [0, 2, 1]]
    return faces


def zipper(outer: np.ndarray, inner: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Triangles between two closed loops of vertices, their rows and positions [N, 3], [M, 3]: always the
    shorter of the two next diagonals."""
    n, m = len(outer), len(inner)
    i, j = 0, int(np.linalg.norm(q - p[0], axis=1).argmin())
    used, faces = [0, 0], []
    start = j
    while used != [n, m]:
        a, b, a2, b2 = i % n, j % m, (i + 1) % n, (j + 1) % m
        along_outer = used[1] == m or (
            used[0] < n and np.linalg.norm(p[a2] - q[b]) <= np.linalg.norm(p[a] - q[b2])
        )
        if along_outer:
            faces.append((outer[a], inner[b], outer[a2]))
            i, used[0] = i + 1, used[0] + 1
        else:
            faces.append((outer[a], inner[b], inner[b2]))
            j, used[1] = j + 1, used[1] + 1
    assert i % n == 0 and j % m == start
    return np.array(faces)


def neighbours(triangles: np.ndarray, ring: np.ndarray):
    """Sparse symmetric [N, N]: ACROSS where an edge leads to another ring, 1 where it stays in one."""
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
    weight = np.where(ring[edges[:, 0]] != ring[edges[:, 1]], ACROSS, 1.0)
    graph = coo_array((weight, tuple(edges.T)), shape=(len(ring),) * 2).tocsr()
    return graph + graph.T


def softened(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Points [N, 3] half way to the middle of their neighbours: evens out what is finer than the
    triangles."""
    graph = neighbours(triangles, np.zeros(len(points)))
    return 0.5 * points + 0.5 * (graph @ points) / graph.sum(1)[:, None]


def spread(border: np.ndarray, triangles: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Places [M, 2] of the inner points of a disc whose first points lie at `border` [N, 2]: each one in the
    weighted middle of its neighbours, so that no triangle turns over where the border is convex.

    ring: [N + M], how far inside a point lies; edges between rings are short, for the face needs the room.

    Source:
        Tutte, "How to draw a graph", 1963; Floater, "Mesh parameterization with positive weights", 1997.
    """
    n, graph = len(border), neighbours(triangles, ring)
    system = diags_array(graph.sum(1)) - graph
    return spsolve(system[n:, n:].tocsc(), graph[n:, :n] @ border)
