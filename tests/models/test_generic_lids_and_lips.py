"""Lids and lips of the shipped model `assets/generic.npz` at close range: thickness and folds of the lids,
how they slide over the eyeball, the caruncles, the line of the lips."""

import itertools
from pathlib import Path

import numpy as np
import pytest

ASSETS = Path(__file__).resolve().parents[2] / "assets"
CENTRE = np.array([31.16, 36.02, 79.82])  # mm, left eyeball


@pytest.fixture(scope="module")
def model():
    return dict(np.load(ASSETS / "generic.npz", allow_pickle=False))


def posed(model, name=None, weight=1.0):
    """[V, 3] of the mean with one shape."""
    vertices = model["mean"].astype(np.float64)
    if name is not None:
        row = [str(n) for n in model["expression_names"]].index(name)
        vertices = vertices + weight * model["expression_basis"][row].astype(np.float64)
    return vertices


def landmarks(model, vertices):
    corners = model["triangles"][model["landmark_triangles"]]
    return np.einsum("lk,lkc->lc", model["landmark_barycentric"].astype(np.float64), vertices[corners])


def eyeball(model):
    """Centre [3], visual axis [3], and radius as a function of the degrees from it, of the left eyeball."""
    rows = model["region"] == list(model["region_names"]).index("eye_left")
    points = model["mean"][rows].astype(np.float64)
    arm = points - CENTRE
    distance = np.linalg.norm(arm, axis=1)
    axis = arm[0] / distance[0]  # the first vertex is the pole
    angle = np.degrees(np.arccos(np.clip(arm @ axis / distance, -1, 1)))
    order = np.argsort(angle)
    return axis, lambda at: np.interp(at, angle[order], distance[order])


def height_above_ball(model, points):
    axis, radius = eyeball(model)
    arm = points - CENTRE
    distance = np.linalg.norm(arm, axis=-1)
    return distance - radius(np.degrees(np.arccos(np.clip(arm @ axis / distance, -1, 1))))


def profile(model, vertices, x, start, step=0.1, length=9.0):
    """Section of the skin with the plane of this x, as points [N, 3] every `step` mm from its end near
    `start` [2] (y, z) on."""
    triangles = model["triangles"][model["skin"][model["triangles"]].all(1)]
    beside = vertices[triangles][:, :, 0] - x
    pieces = []
    for corners in vertices[triangles[(beside.min(1) < 0) & (beside.max(1) > 0)]]:
        ends = []
        for a, b in ((0, 1), (1, 2), (2, 0)):
            p, q = corners[a], corners[b]
            if (p[0] < x) != (q[0] < x):
                ends.append(tuple((p + (x - p[0]) / (q[0] - p[0]) * (q - p)).round(4)))
        pieces.append(ends)
    beside = {}
    for a, b in pieces:
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    free = [p for p, others in beside.items() if len(others) == 1]
    path = [min(free, key=lambda p: np.hypot(p[1] - start[0], p[2] - start[1]))]
    while True:
        onwards = [p for p in beside[path[-1]] if p not in path[-2:]]
        if not onwards:
            break
        path.append(onwards[0])
    path = np.array(path)
    way = np.r_[0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
    at = np.arange(0, length, step)
    return np.stack([np.interp(at, way, path[:, k]) for k in range(3)], axis=1)


def normals(vertices, triangles):
    face = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]],
        vertices[triangles[:, 2]] - vertices[triangles[:, 0]],
    )
    out = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(out, triangles[:, k], face)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def bends(model, vertices, chosen):
    """Degrees per mm by which the normal of the skin turns along each edge whose middle is `chosen`."""
    triangles = model["triangles"]
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    edges = edges[model["skin"][edges].all(1)]
    edges = edges[chosen(vertices[edges].mean(1))]
    unit = normals(vertices, triangles)
    turn = np.degrees(np.arccos(np.clip((unit[edges[:, 0]] * unit[edges[:, 1]]).sum(1), -1, 1)))
    return turn / np.maximum(np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1), 1.0)


@pytest.mark.parametrize(
    "name, weight",
    [("eyeBlink_L", w) for w in (0.25, 0.5, 0.75, 1.0)] + [("eyeWide_L", 1.0), ("eyeSquint_L", 0.5)],
)
def test_lids_do_not_cut_into_the_eyeball(model, name, weight):
    """Linear shapes take the straight way; between the corners of the eye the lids stay above the ball."""
    vertices = posed(model, name, weight)
    triangles = model["triangles"][model["skin"][model["triangles"]].all(1)]
    share = np.array([(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]) / 4
    near = np.linalg.norm(vertices[triangles].mean(1) - CENTRE, axis=1) < 24
    points = np.einsum("bk,fkc->fbc", share, vertices[triangles[near]]).reshape(-1, 3)
    points = points[(points[:, 2] > CENTRE[2] + 3) & (np.abs(points[:, 0] - CENTRE[0]) < 9.0)]
    limit = 0.3 if name == "eyeSquint_L" else 0.15  # the lower lid is that deep when at rest
    assert height_above_ball(model, points).min() > -limit


def test_a_closed_lid_has_no_ridge(model):
    """Above the line where closed lids meet the skin bends evenly."""
    closed = posed(model, "eyeBlink_L")
    lid = landmarks(model, closed)[[42, 43, 44, 45, 46, 47, 42]]
    line = np.concatenate([np.linspace(a, b, 20) for a, b in itertools.pairwise(lid)])
    bend = bends(
        model,
        closed,
        lambda p: (
            (np.abs(p[:, 0] - 31.5) < 14.5)
            & (np.abs(p[:, 1] - 41.5) < 8.5)
            & (np.linalg.norm(p[:, None] - line, axis=-1).min(1) > 3.0)
        ),
    )
    assert len(bend) > 150
    assert np.percentile(bend, 99) < 12 and bend.max() < 17


@pytest.mark.parametrize("x", [27.0, 31.0, 35.0, 39.0])
def test_upper_lid_is_a_plate_with_a_fold(model, x):
    p = profile(model, posed(model), x, start=(39, 95))
    height = height_above_ball(model, p)
    # Margin: the outer edge stands off the ball, and from there the lid follows it.
    assert height[:5].min() < 1.2
    assert 1.5 < height[22] < 2.4 and abs(height[30] - height[22]) < 0.25
    # Fold: how deep the section lies below its chords, and where.
    deepest, where = 0.0, 0
    for a in range(10, 80, 4):
        for b in range(a + 8, 90, 4):
            along = p[b] - p[a]
            outwards = np.array([0.0, -along[2], along[1]]) / np.linalg.norm(along)
            depth = -((p[a:b] - p[a]) @ outwards) * np.sign(outwards[2])
            if depth.max() > deepest:
                deepest, where = depth.max(), a + int(depth.argmax())
    assert 0.3 < deepest < 1.5
    assert 2.5 < 0.1 * where < 6.5


@pytest.mark.parametrize("x", [27.0, 31.0, 35.0, 39.0])
def test_lower_lid_has_a_rounded_edge(model, x):
    """Its height above the ball rises steeply at the margin and then little."""
    height = height_above_ball(model, profile(model, posed(model), x, start=(30.5, 94)))
    edge, beyond = height[12] - height[0], height[20] - height[12]
    assert 1.0 < height[14] < 2.0
    assert beyond < 0.62 * edge


def test_inner_corners_are_filled(model):
    """The caruncle: behind the inner corner of the eye something stands before the eyeball, and pink."""
    corner = landmarks(model, posed(model))[42]
    lining = (model["region"] == list(model["region_names"]).index("face")) & ~model["skin"]
    near = lining & (np.linalg.norm(model["mean"] - corner, axis=1) < 3.0)
    inside = near & (model["mean"][:, 0] > corner[0] + 1.0)
    points = model["mean"][inside].astype(np.float64)
    in_front = height_above_ball(model, points) > 0.2
    assert in_front.sum() >= 4
    assert (corner[2] - points[in_front, 2]).max() < 1.6
    colour = model["albedo_mean"][inside][in_front]
    assert (colour[:, 0] > 1.8 * colour[:, 1]).all()


def test_line_of_the_lips_is_a_bow(model):
    """From the front, the lower lip begins lower in the middle than beside it, and the corners are lowest."""
    vertices = posed(model)
    skin = model["triangles"][model["skin"][model["triangles"]].all(1)]
    front = np.cross(vertices[skin[:, 1]] - vertices[skin[:, 0]], vertices[skin[:, 2]] - vertices[skin[:, 0]])
    facing = skin[front[:, 2] > 0]

    def line(x):
        """Height at which a view from the front passes from the upper to the lower lip."""
        y = np.arange(-36.0, -30.0, 0.05)
        a, b, c = (vertices[facing[:, k], :2] for k in range(3))
        nearest, upwards = np.full(len(y), -np.inf), np.zeros(len(y))
        det = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        for k, height in enumerate(y):
            dx, dy = x - a[:, 0], height - a[:, 1]
            u = (dx * (c[:, 1] - a[:, 1]) - dy * (c[:, 0] - a[:, 0])) / det
            v = ((b[:, 0] - a[:, 0]) * dy - (b[:, 1] - a[:, 1]) * dx) / det
            hit = (u >= 0) & (v >= 0) & (u + v <= 1)
            z = ((1 - u - v)[:, None] * vertices[facing[:, [0]], 2])[:, 0]
            z = z + u * vertices[facing[:, 1], 2] + v * vertices[facing[:, 2], 2]
            z = np.where(hit, z, -np.inf)
            nearest[k], upwards[k] = z.max(), front[front[:, 2] > 0][z.argmax(), 1]
        lower = np.flatnonzero(upwards > 0)
        return y[lower.max()]

    middle, beside, outside = line(0.3), line(9.5), line(19.0)
    assert beside - middle > 0.25
    assert beside - outside > 0.5
