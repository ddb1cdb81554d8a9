"""Measure the anthropometric figures of `generic_figures.json` on the ICT-FaceKit model.

    python measure_figures.py ict_facekit.npz ../generic_figures.json

Takes a few hundred named sites of the left half of the face and of the midline (lid margins, lip contours,
brows, nose, jaw, ...) and records for each the mean position, the covariance over people, and the mean
displacement in each named facial expression; and the covariance of the coarse shape of heads. The right half
follows by mirroring. No mesh, no basis and no mode is copied.

Source:
    Li et al., "Learning Formation of Physically-Based Face Attributes", CVPR 2020 (ICT-FaceKit, MIT licence).
    Site layout: Floater, "Mean value coordinates", CAGD 2003 (the weights of the planar embedding).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from generic_build.figures import LayoutSpline
from generic_build.kernel import coarse_fields
from generic_build.kernel_fit import fit_coarse, fit_kernel
from generic_build.skin_mesh import inside

NECK_END = np.array([0.0, 1.0, 0.4, 112.0])  # plane (normal, offset; mm) that ends the neck
PROFILE = {  # height in mm of sites on the midline below the lip
    "below_lip": -47.6,
    "labiomental": -52.0,
    "chin_front_upper": -57.2,
    "chin_front": -63.5,
    "chin_front_lower": -70.0,
    "chin_below": -80.0,
}
NOSTRIL = np.array([6.97, 7.05, 102.22])  # mm, the deepest place of the left nostril
SKIN_COUNTS = (1.0, 0.5, 0.3)  # how much the face, what is round it, head and neck count in the coarse shape
REACH = 40.0  # mm, of the bumps around the controls of the coarse shape
CONTROLS = (  # mm, left half and midline
    *((0, 85, 95), (0, 38, 107), (0, 4, 128), (0, -34, 117), (0, -78, 102)),  # forehead, nose, mouth, chin
    *((40, 75, 80), (62, 45, 55), (35, 34, 88)),  # forehead, temple, eye
    *((52, 5, 75), (28, -12, 105), (58, -25, 55)),  # cheeks
    *((28, -40, 103), (32, -70, 85), (57, -53, 35)),  # corner of the mouth, jaw
)
SPACING = 1.8
MOST_SITES = 400  # both halves
LOOPS = {
    "lid": [42, 43, 44, 45, 46, 47, 42],
    "lip_outer": [51, 52, 53, 54, 55, 56, 57],
    "lip_inner": [62, 63, 64, 65, 66],
}


def edge_graph(vertices: np.ndarray, triangles: np.ndarray) -> coo_matrix:
    """Symmetric sparse matrix [V, V] of edge lengths."""
    i = triangles[:, [0, 1, 2]].ravel()
    j = triangles[:, [1, 2, 0]].ravel()
    length = np.linalg.norm(vertices[i] - vertices[j], axis=1)
    graph = coo_matrix((length, (i, j)), shape=(len(vertices),) * 2).tocsr()
    return graph.maximum(graph.T)


def path(graph, start: int, end: int) -> list[int]:
    """Vertices of the shortest path along edges, both ends included."""
    _, before = dijkstra(graph, indices=start, return_predecessors=True)
    walk = [end]
    while walk[-1] != start:
        walk.append(int(before[walk[-1]]))
    return walk[::-1]


def boundary_loops(triangles: np.ndarray) -> list[list[int]]:
    """Vertex cycles along edges that belong to one triangle only."""
    directed = {(a, b) for t in triangles.tolist() for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    follow = {b: a for a, b in directed if (b, a) not in directed}
    loops = []
    while follow:
        start = min(follow)
        loop = [start]
        while follow[loop[-1]] != start:
            loop.append(follow[loop[-1]])
        for v in loop:
            del follow[v]
        loops.append(loop)
    return loops


def planar_layout(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """One-to-one planar embedding of a head surface whose longest boundary is the neck.

    Mean-value weights, the neck on the unit circle, smaller holes closed by one extra vertex each; then the
    disc is moved by a Moebius map so that the middle of the face lies at the origin.

    Returns:
        [V, 2]; +s to the subject's left, +t up; rows of unused vertices are NaN.
    """
    loops = sorted(boundary_loops(triangles), key=lambda loop: np.ptp(vertices[loop], axis=0).sum())
    neck, holes = loops[-1], loops[:-1]
    points, faces = [vertices], [triangles]
    for k, loop in enumerate(holes):
        points.append(vertices[loop].mean(0, keepdims=True))
        hub = len(vertices) + k
        faces.append(np.array([[a, hub, b] for a, b in zip(loop, loop[1:] + loop[:1])])[:, [0, 2, 1]])
    points, faces = np.concatenate(points), np.concatenate(faces)
    i_all, j_all, w_all = [], [], []
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        i, j, k = faces[:, a], faces[:, b], faces[:, c]
        u, w = points[j] - points[i], points[k] - points[i]
        lu, lw = np.linalg.norm(u, axis=1), np.linalg.norm(w, axis=1)
        cosine = (u * w).sum(1) / (lu * lw + 1e-12)
        half_tan = np.sqrt(np.clip((1 - cosine) / (1 + cosine + 1e-9), 1e-8, 1e4))
        i_all += [i, i]
        j_all += [j, k]
        w_all += [half_tan / (lu + 1e-6), half_tan / (lw + 1e-6)]
    n = len(points)
    weight = coo_matrix(
        (np.concatenate(w_all), (np.concatenate(i_all), np.concatenate(j_all))), shape=(n, n)
    ).tocsr()
    used = np.zeros(n, bool)
    used[faces] = True
    fixed = np.zeros(n, bool)
    fixed[neck] = True
    free = used & ~fixed
    step = np.linalg.norm(np.diff(points[neck + neck[:1]], axis=0), axis=1)
    arc = np.concatenate([[0], np.cumsum(step)[:-1]]) / step.sum() * 2 * np.pi
    front = neck[int(np.argmax(points[neck, 2] - 5 * np.abs(points[neck, 0])))]
    angle = arc - arc[neck.index(front)]
    if points[neck[(neck.index(front) + 3) % len(neck)], 0] < 0:
        angle = -angle
    plane = np.full((n, 2), np.nan)
    plane[neck] = np.c_[np.sin(angle), -np.cos(angle)]
    laplacian = (diags(np.asarray(weight.sum(1)).ravel()) - weight).tocsr()
    plane[free] = spsolve(laplacian[free][:, free].tocsc(), -laplacian[free][:, fixed] @ plane[fixed])
    return plane[: len(vertices)]


def moebius(plane: np.ndarray, centre: float) -> np.ndarray:
    """Disc automorphism that moves (0, centre) to the origin, [N, 2] -> [N, 2]."""
    z = plane[:, 0] + 1j * plane[:, 1]
    a = 1j * centre
    with np.errstate(invalid="ignore"):  # rows of unused vertices are NaN
        w = (z - a) / (1 - np.conj(a) * z)
    return np.c_[w.real, w.imag]


def resample(walk: list[int], vertices: np.ndarray, count: int) -> list[dict[int, float]]:
    """`count` points at equal arc length strictly between the ends of a vertex path, as vertex weights."""
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(vertices[walk], axis=0), axis=1))]
    sites = []
    for s in np.linspace(0, length[-1], count + 2)[1:-1]:
        k = min(int(np.searchsorted(length, s, side="right")) - 1, len(walk) - 2)
        w = (s - length[k]) / (length[k + 1] - length[k])
        sites.append({walk[k]: 1 - w, walk[k + 1]: w})
    return sites


def area_name(p: np.ndarray) -> str:
    """Plain name of the part of the face in which a mean position lies."""
    x, y, z = abs(p[0]), p[1], p[2]
    if (y < -95 and z < 85) or (z < 20 and y < -50):
        return "neck"
    if z < 25:
        return "skull"
    if y > 64:
        return "forehead"
    if x < 21 and -14 < y < 6 and z > 85:
        return "nose_base"
    if x < 16 and y < 32 and y > -14:
        return "nose"
    if 20 < y < 50 and 12 < x < 54 and z > 60:
        return "lid"
    if y > 46 and z > 70:
        return "brow"
    if y > 20 and x > 45:
        return "temple"
    if -50 < y < -14 and x < 32:
        return "lip"
    if y < -50 and x < 28:
        return "chin"
    if y < -40 or z < 55:
        return "jaw"
    return "cheek"


def layout_centre(plane: np.ndarray, mean: np.ndarray, region: np.ndarray) -> float:
    """Layout ordinate of the nose bridge (midline, 5 mm below the pupils' height)."""
    mid = np.flatnonzero((np.abs(mean[:, 0]) < 0.01) & (region == 0) & (mean[:, 1] > -10))
    order = mid[np.argsort(mean[mid, 1])]
    return float(np.interp(31.0, mean[order, 1], plane[order, 1]))


def even_scale(plane: np.ndarray, knee: float = 0.02) -> np.ndarray:
    """Radial map of the unit disc onto itself that evens out the scale between face and neck, [N, 2] -> [N,
    2]."""
    radius = np.linalg.norm(plane, axis=1, keepdims=True)
    return plane / np.maximum(radius, 1e-12) * np.log1p(radius / knee) / np.log1p(1 / knee)


def mirror_image(mean: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Index [V] of the mirrored vertex; itself where the triangles do not use it."""
    used = np.unique(triangles)
    far, image = cKDTree(mean[used]).query(mean[used] * [-1, 1, 1])
    assert far.max() < 0.5, f"mesh is not mirror-symmetric: {far.max()} mm"
    move = np.arange(len(mean))
    move[used] = used[image]
    return move


def rigid_modes(points: np.ndarray) -> np.ndarray:
    """[6, N, 3]: three translations and three infinitesimal rotations about the centroid."""
    modes = [np.tile(e, (len(points), 1)) for e in np.eye(3)]
    modes += [np.cross(e, points - points.mean(0)) for e in np.eye(3)]
    return np.stack(modes)


def mirrored_site(site, move: np.ndarray):
    """Site weights with every vertex replaced by its mirror image."""
    entries = site.tocoo()
    return coo_matrix((entries.data, (entries.row, move[entries.col])), shape=site.shape).tocsr()


Site = tuple[str, int, dict[int, float]]  # name, iBUG number or -1, weights of vertices


@dataclass
class Surface:
    """The model's mean skin and what is derived from it once."""

    mean: np.ndarray  # [V, 3] mm
    region: np.ndarray  # [V]
    landmarks: np.ndarray  # [68] vertices
    skin: np.ndarray  # [F, 3] triangles of face, head and neck
    plane: np.ndarray  # [V, 2] planar layout
    image: np.ndarray  # [V] mirrored vertex

    def weights(self, sites: list[Site]):
        """Sparse [P, V]: site values from vertex values."""
        rows = [i for i, s in enumerate(sites) for _ in s[2]]
        columns, values = [v for s in sites for v in s[2]], [x for s in sites for x in s[2].values()]
        return coo_matrix((values, (rows, columns)), shape=(len(sites), len(self.mean))).tocsr()


def load_surface(ict) -> Surface:
    mean, region, triangles = ict["mean"].astype(np.float64), ict["region"], ict["faces"]
    skin = triangles[np.isin(region[triangles], [0, 1, 2]).all(1)]
    image = mirror_image(mean, skin)
    plane = planar_layout(mean, skin)
    plane = 0.5 * (plane + plane[image] * [-1, 1])  # the diagonals of the quads are not symmetric
    plane = even_scale(moebius(plane, layout_centre(plane, mean, region))) * 100.0
    return Surface(mean, region, ict["landmarks68"], skin, plane, image)


def add_vertex(sites: list[Site], name: str, vertex: int) -> None:
    assert not any(vertex in s[2] for s in sites), f"{name}: this vertex is a site already"
    sites.append((name, -1, {vertex: 1.0}))


def named_sites(face: Surface) -> tuple[list[Site], np.ndarray]:
    """Sites on named curves and places, and a mask [V] of vertices that further sites may use."""
    mean, region, plane, landmarks = face.mean, face.region, face.plane, face.landmarks
    graph = edge_graph(mean, face.skin)
    sites: list[Site] = [
        (f"ibug_{k}", k, {int(v): 1.0}) for k, v in enumerate(landmarks) if mean[v, 0] > -0.01
    ]
    extra = {"lid": [2, 1, 3, 3, 1, 2], "lip_outer": [1, 1, 2, 2, 1, 1], "lip_inner": [1, 2, 2, 1]}
    curves = {}
    for name, corners in LOOPS.items():
        ring = []
        for a, b, count in zip(corners[:-1], corners[1:], extra[name]):
            walk = path(graph, int(landmarks[a]), int(landmarks[b]))
            ring += walk[:-1]
            for j, weights in enumerate(resample(walk, mean, count)):
                sites.append((f"{name}_{a}_{b}_{j}", -1, weights))
        curves[name] = ring + [int(landmarks[corners[-1]])]
    # Where the neck ends: 13 directions in the plane.
    above = mean @ NECK_END[:3] + NECK_END[3]
    edges = np.unique(np.sort(face.skin[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    cut = edges[above[edges[:, 0]] * above[edges[:, 1]] < 0]
    w = -above[cut[:, 0]] / (above[cut[:, 1]] - above[cut[:, 0]])
    ring = mean[cut[:, 0]] * (1 - w)[:, None] + mean[cut[:, 1]] * w[:, None]
    bearing = np.arctan2(ring[:, 0], ring[:, 2] - 0.5 * (ring[:, 2].max() + ring[:, 2].min()))
    for j, b in enumerate(np.linspace(0, np.pi, 13)):
        k = int(np.argmin(np.abs(bearing - b)))
        sites.append((f"neck_end_{j}", -1, {int(cut[k, 0]): 1 - w[k], int(cut[k, 1]): w[k]}))
    # Profile of the chin, and the nostrils: the rim and a narrower ring inside, around the deepest place.
    for name, height in PROFILE.items():
        middle = np.flatnonzero((np.abs(mean[:, 0]) < 0.01) & np.isin(region, [0, 1]) & (mean[:, 2] > 45))
        v = middle[np.argmin(np.abs(mean[middle, 1] - height) + 0.05 * (130 - mean[middle, 2]))]
        add_vertex(sites, name, int(v))
    deep = int(np.argmin(np.linalg.norm(mean - NOSTRIL, axis=1) + 1e3 * (region > 0)))
    around = np.flatnonzero((region == 0) & (np.linalg.norm(mean - mean[deep], axis=1) < 25))
    offset = plane[around] - plane[deep]
    for name, radius in (("nostril_rim", 0.45), ("nostril_inner", 0.10)):
        for j, angle in enumerate(np.linspace(0, 2 * np.pi, 8, endpoint=False)):
            goal = radius * np.array([np.cos(angle), np.sin(angle)])
            v = int(around[np.argmin(np.linalg.norm(offset - goal, axis=1))])
            add_vertex(sites, f"{name}_{j}", v)
    add_vertex(sites, "nostril_deep", deep)
    # Where the ear is attached: 16 directions around it on the head.
    ear_box = (mean[:, 0] > 60) & (np.abs(mean[:, 1] - 6) < 70) & np.isin(region, [0, 1, 2])
    for j, angle in enumerate(np.linspace(0, 2 * np.pi, 16, endpoint=False)):
        goal = np.array([8 + 29 * np.cos(angle), 8 + 35 * np.sin(angle)])  # z, y
        cand = np.flatnonzero(ear_box)
        off = np.linalg.norm(mean[cand][:, [2, 1]] - goal, axis=1)
        close = cand[off < 5.0]
        v = close[np.argmin(off[off < 5.0] + 0.5 * mean[close, 0])]
        add_vertex(sites, f"ear_base_{j}", int(v))

    half = plane[curves["lip_inner"]]
    mouth = inside(np.concatenate([half, half[::-1] * [-1, 1]]), plane)
    ear = inside(plane[[next(iter(s[2])) for s in sites if s[0].startswith("ear_base")]], plane)
    nostril = np.linalg.norm(plane - plane[deep], axis=1) < 0.55
    usable = np.isin(region, [0, 1, 2]) & (mean[:, 0] > -0.01) & (above > 4)
    return sites, usable & ~inside(plane[curves["lid"]], plane) & ~mouth & ~ear & ~nostril


def wanted_spacing(face: Surface) -> np.ndarray:
    """Distance [V] in mm between sites of the first, even cover: small at eyes, lips and nose."""
    mean, landmarks = face.mean, face.landmarks
    d_lid = cKDTree(mean[landmarks[42:48]]).query(mean)[0]
    d_lip = cKDTree(mean[landmarks[48:]]).query(mean)[0]
    d_nose = cKDTree(mean[[landmarks[33], landmarks[35]]] + [[6, 1, 0], [3, 6, -2]]).query(mean)[0]
    spacing = np.clip(
        np.minimum.reduce([3.0 + 0.45 * d_lid, 4.2 + 0.5 * d_lip, 4.2 + 0.5 * np.maximum(d_nose - 9, 0)]),
        3.0,
        15.0,
    )
    spacing = np.where(face.region == 2, np.clip(0.35 * np.abs(90 - mean[:, 2]), 18, 38), spacing)
    return spacing * SPACING


def choose_sites(face: Surface) -> list[Site]:
    """The named sites, an even cover of everything else, and the places a smooth surface would miss."""
    mean, plane = face.mean, face.plane
    sites, usable = named_sites(face)
    candidates = np.flatnonzero(usable)
    counts: dict[str, int] = {}

    def add(vertex: int) -> None:
        area = area_name(mean[vertex])
        counts[area] = counts.get(area, 0) + 1
        sites.append((f"{area}_{counts[area]}", -1, {vertex: 1.0}))

    def apart(point, place):
        # The second distance keeps sites out of folds that the planar layout compresses.
        return np.minimum(np.linalg.norm(mean - point, axis=1), 9.0 * np.linalg.norm(plane - place, axis=1))

    spacing, cover = wanted_spacing(face), np.full(len(mean), np.inf)
    for point, place in zip(face.weights(sites) @ mean, face.weights(sites) @ np.nan_to_num(plane)):
        cover = np.fmin(cover, apart(point, place))
    while True:
        score = cover[candidates] / spacing[candidates]
        # A site beside the midline would nearly coincide with its own mirror image.
        score[(mean[candidates, 0] > 0.01) & (mean[candidates, 0] < 0.5 * spacing[candidates])] = 0
        if score.max() < 1.0:
            break
        best = int(candidates[np.argmax(score)])
        add(best)
        cover = np.fmin(cover, apart(mean[best], plane[best]))

    weight = np.where(face.region[candidates] == 2, 0.3, 1.0)
    while True:
        on_surface = [s for s in sites if not s[0].startswith(("nostril_inner", "nostril_deep"))]
        point, place = face.weights(on_surface) @ mean, face.weights(on_surface) @ np.nan_to_num(plane)
        side = point[:, 0] > 0.01
        if len(sites) + ((face.weights(sites) @ mean)[:, 0] > 0.01).sum() >= MOST_SITES:
            return sites
        spline = LayoutSpline(np.concatenate([place, place[side] * [-1, 1]]))
        surface = spline.matrix(plane[candidates]) @ np.concatenate([point, point[side] * [-1, 1, 1]])
        error = weight * np.linalg.norm(surface - mean[candidates], axis=1)
        error[(mean[candidates, 0] > 0.01) & (mean[candidates, 0] < 2.0)] = 0
        add(int(candidates[np.argmax(error)]))


def measure_people(ict, face: Surface, sites: list[Site]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Variation over people at the sites, after removing the best rigid motion of the face area (linearised).

    Returns:
        covariance [P, 3, 3], covariance without the coarse shape [P, 3, 3], and the kernel's parameters.
    """
    site, opposite = face.weights(sites), mirrored_site(face.weights(sites), face.image)
    position, layout = site @ face.mean, site @ np.nan_to_num(face.plane)
    basis = ict["identity_basis"].astype(np.float64)
    rows = np.flatnonzero(face.region == 0)
    motion = rigid_modes(face.mean)
    solve = np.linalg.pinv(motion[:, rows].reshape(6, -1).T)
    basis -= np.einsum("km,mvc->kvc", basis[:, rows].reshape(len(basis), -1) @ solve.T, motion)
    at = np.stack([site @ b for b in basis])
    mirrored = np.stack([opposite @ b for b in basis]) * [-1, 1, 1]
    symmetric, asymmetric = 0.5 * (at + mirrored), 0.5 * (at - mirrored)
    covariance = 0.5 * sum(np.einsum("kpi,kpj->pij", a, a) for a in (at, mirrored))

    centre = np.array([0.0, *face.mean[rows, 1:].mean(0)])
    controls = np.array(CONTROLS, float)
    skin = np.flatnonzero(face.region < len(SKIN_COUNTS))
    whole = 0.5 * (basis[:, skin] + basis[:, face.image[skin]] * [-1, 1, 1])
    counts = np.array(SKIN_COUNTS)[face.region[skin]]
    coefficient = fit_coarse(whole, *coarse_fields(face.mean[skin], centre, controls, REACH), counts)
    fields, _ = coarse_fields(position, centre, controls, REACH)
    rest = symmetric - np.einsum("nk,npc->kpc", coefficient, fields)
    local = np.einsum("kpi,kpj->pij", rest, rest)
    front = np.array(
        [not s[0].startswith(("neck", "skull", "ear", "nostril_inner", "nostril_deep")) for s in sites]
    )
    kernel = {"centre": centre.round(2).tolist(), "controls": controls.tolist(), "reach": REACH}
    kernel["coefficients"] = [[round(float(x), 4) for x in row] for row in coefficient @ coefficient.T]
    kernel |= fit_kernel(position[front], layout[front], rest[:, front])
    kernel["asymmetry"] = round(
        float(np.sqrt((asymmetric[:, front] ** 2).sum() / (rest[:, front] ** 2).sum())), 3
    )
    return covariance, local, kernel


def measure_expressions(ict, face: Surface, sites: list[Site]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> displacement [P, 3] on the shape's own side and on the other side (mirrored); left shapes
    only."""
    site, opposite = face.weights(sites), mirrored_site(face.weights(sites), face.image)
    expression = {}
    for k, name in enumerate(str(n) for n in ict["expression_names"]):
        if name.endswith(("_R", "Right")):
            continue
        shape = ict["expression_basis"][k].astype(np.float64)
        here, there = site @ shape, opposite @ shape * [-1, 1, 1]
        if not name.endswith(("_L", "Left")):
            here = there = 0.5 * (here + there)
        expression[name] = (here, there)
    return expression


def measure_eye(face: Surface) -> dict:
    """Centre and radius of the sphere that fits the left eyeball; the iris radius is the usual one."""
    ball = face.mean[face.region == 8]
    solution = np.linalg.lstsq(np.c_[2 * ball, np.ones(len(ball))], (ball**2).sum(1), rcond=None)[0]
    centre = solution[:3]
    return {"centre": centre, "radius": float(np.sqrt(solution[3] + (centre**2).sum())), "iris_radius": 6.2}


def main(source: str, target: str) -> None:
    ict = np.load(source)
    face = load_surface(ict)
    sites = choose_sites(face)
    position, layout = face.weights(sites) @ face.mean, face.weights(sites) @ np.nan_to_num(face.plane)
    covariance, local, kernel = measure_people(ict, face, sites)
    expression = measure_expressions(ict, face, sites)
    write(target, sites, position, layout, covariance, local, expression, measure_eye(face), kernel)


def write(target, sites, position, layout, covariance, local, expression, eye, kernel) -> None:
    upper = np.triu_indices(3)
    number = lambda a, d: [round(float(x), d) for x in np.ravel(a)]
    head = {
        "source": "measured on the ICT-FaceKit face model (github.com/ICT-VGL/ICT-FaceKit, MIT licence, "
        "Copyright (c) 2020 USC Institute for Creative Technologies); Li et al., Learning Formation of "
        "Physically-Based Face Attributes, CVPR 2020. Figures at named sites only: no mesh, basis or mode "
        "of that model is contained.",
        "units": "millimetres; +x to the subject's left, +y up, +z out of the face; left half and midline "
        "only",
        "columns": "position: mean; layout: place of the site in a planar map of the head; covariance: xx "
        "xy xz yy yz zz over people after rigid alignment; local: the same of what the coarse shape "
        "leaves; expression: mean displacement on this side, then on the other side "
        "(mirrored) for one-sided shapes",
        "neck_end": NECK_END.tolist(),
        "eye": eye | {"centre": number(eye["centre"], 2), "radius": round(eye["radius"], 2)},
    }
    head["kernel"] = kernel
    with open(target, "w") as f:
        f.write(json.dumps(head)[:-1] + ',\n"points": [\n')
        lines = []
        for i, (name, ibug, _) in enumerate(sites):
            lines.append(
                json.dumps(
                    {
                        "name": name,
                        "ibug": ibug,
                        "position": number(position[i], 2),
                        "layout": number(layout[i], 3),
                        "covariance": number(covariance[i][upper], 3),
                        "local": number(local[i][upper], 3),
                    }
                )
            )
        f.write(",\n".join(lines) + '\n],\n"expressions": {\n')
        lines = []
        for name, (here, there) in expression.items():
            row = {"here": number(here, 2)}
            if name.endswith("_L") or name.endswith("Left"):
                row["there"] = number(there, 2)
            lines.append(f'"{name}": {json.dumps(row, separators=(",", ":"))}')
        f.write(",\n".join(lines) + "\n}}\n")
    print(len(sites), "sites")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
