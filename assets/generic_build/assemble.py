"""Put skin and parts together into the arrays of `generic.npz`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from . import lips, parts
from .appearance import paint
from .ear import ear
from .figures import Figures, LayoutSpline
from .fine_skin import FineSkin, refine
from .kernel import identity_basis, matrix_roots, mirror_correlation
from .lids import Lids
from .mouth import LOWER, OUT_JAW, UPPER, teeth, tongue, tongue_out
from .skin_mesh import SkinMesh, build_skin

DRAWN, DRAWN_STEP = ("ears", "mouth_interior", "teeth", "gums", "tongue"), 1 / 128  # mm
FLIP = np.array([-1.0, 1.0, 1.0])
REGIONS = (
    "face", "head", "ears", "neck", "mouth_interior", "teeth", "eye_left", "eye_right", "gums", "tongue",
)  # fmt: skip
# iBUG numbers on the subject's right and their mirror images, beyond jaw and brows.
OTHER_SIDE = (
    (31, 32, 36, 37, 38, 39, 40, 41, 48, 49, 50, 58, 59, 60, 61, 67),
    (35, 34, 45, 44, 43, 42, 47, 46, 54, 53, 52, 56, 55, 64, 63, 65),
)
FEATURE_WEIGHT = 12.0
# How what is left of a loop's motion is spread on a part: standard deviation along the loop, reach into it.
LOOP_MM, FADE_MM = 4.0, 9.0
AROUND_MOUTH_MM = 45.0  # skin so near to the middle of the lips says how wide the rows of teeth are
SMALLER_BALL = 0.35  # mm, by which the drawn eyeball is smaller than the measured one
GAZE_DEGREES = {"Up": 25.0, "Down": 28.0, "In": 32.0, "Out": 32.0}


@dataclass
class Head:
    """Growing mesh. Every vertex moves with a weighted set of skin vertices (`source`, `amount`)."""

    vertices: list[np.ndarray]
    layout: list[np.ndarray]
    triangles: list[np.ndarray]
    region: list[np.ndarray]
    source: list[np.ndarray]  # skin row that is followed, -1: a rigid part
    amount: list[np.ndarray]
    mirror: list[np.ndarray]
    count: int
    rigid: dict[str, np.ndarray] = field(default_factory=dict)  # part -> vertex rows
    lining: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # vertex rows of the mouth's bag

    def add(self, vertices, layout, triangles, region, source, amount, mirror) -> np.ndarray:
        rows = self.count + np.arange(len(vertices))
        self.vertices.append(vertices)
        self.layout.append(layout)
        self.triangles.append(triangles)
        names = np.broadcast_to(region, len(vertices))
        self.region.append(np.array([REGIONS.index(name) for name in names], np.int8))
        self.source.append(source)
        self.amount.append(amount)
        self.mirror.append(mirror)
        self.count += len(vertices)
        return rows


def runs_along(triangles: np.ndarray, loop: np.ndarray) -> bool:
    """Whether the triangles' own direction along their border is that of `loop` (True) or the opposite."""
    edges = {
        (a, b) for k in range(3) for a, b in zip(triangles[:, k].tolist(), triangles[:, (k + 1) % 3].tolist())
    }
    steps = list(zip(loop.tolist(), np.roll(loop, -1).tolist()))
    forward = sum(s in edges and s[::-1] not in edges for s in steps)
    backward = sum(s[::-1] in edges and s not in edges for s in steps)
    assert max(forward, backward) == len(loop) and min(forward, backward) == 0, (
        "a loop is not a border of the skin"
    )
    return forward > 0


def add_part(
    head: Head, skin: SkinMesh, part: parts.Part, region: str, both_sides: bool, self_mirror=None
) -> list[np.ndarray]:
    """Sew a part to the skin; `both_sides` adds the mirror image for the right half. Returns the new vertex
    rows of each side."""
    triangles = part.triangles
    if not runs_along(skin.triangles, part.seam):
        triangles = triangles[:, [0, 2, 1]]
    n = len(part.vertices)
    first = head.count
    mirror = first + n + np.arange(n) if both_sides else first + self_mirror
    lookup = np.r_[part.seam, first + np.arange(n)]
    rows = [
        head.add(
            part.vertices, part.layout, lookup[triangles], region, part.seam[part.follow], part.amount, mirror
        )
    ]
    if both_sides:
        seam = skin.mirror[part.seam]
        lookup = np.r_[seam, first + n + np.arange(n)]
        rows.append(
            head.add(
                part.vertices * FLIP,
                part.layout * FLIP[:2],
                lookup[triangles][:, [0, 2, 1]],
                region,
                seam[part.follow],
                part.amount,
                first + np.arange(n),
            )
        )
    return rows


def skin_regions(p: np.ndarray) -> np.ndarray:
    """Region index of skin vertices from their mean position."""
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    neck = y < -86 + np.clip(95 - z, 0, None) * 0.26
    hairline = 93 - 26 * (x / 72) ** 2
    side = np.interp(y, [-60, -20, 10, 38, 60, 90], [24, 30, 35, 36, 44, 40])
    face = (y < hairline) & (z > side) & ~neck
    out = np.full(len(p), REGIONS.index("head"), np.int8)
    out[face] = REGIONS.index("face")
    out[neck] = REGIONS.index("neck")
    return out


def build_arrays(figures: Figures, symmetric: int, antisymmetric: int) -> dict[str, np.ndarray]:
    """All numeric arrays of the model file, in full precision."""
    surface = [i for i, n in enumerate(figures.names) if not n.startswith(("nostril_inner", "nostril_deep"))]
    spline = LayoutSpline(figures.layout[surface])
    coarse = build_skin(figures, spline, surface)
    skin = refine(coarse, lambda u: spline.matrix(u) @ figures.position[surface])
    to_skin = spline.matrix(skin.layout)
    smooth_skin = smooth_mean(figures, skin, to_skin @ figures.position[surface])
    smooth_coarse = smooth_mean(figures, coarse, spline.matrix(coarse.layout) @ figures.position[surface])
    corners = figures.position[[figures.ibug(42), figures.ibug(45)]]
    lids = Lids(skin, smooth_skin, figures.eye_centre, figures.eye_radius - SMALLER_BALL, corners)
    mean_skin = smooth_skin.copy()
    for rows, flip in ((lids.rows, 1.0), (skin.mirror[lids.rows], FLIP)):
        mean_skin[rows] += lids.detail * flip
    mean_skin[skin.mouth] += lips.detail(skin, smooth_skin)
    mean_skin = symmetrize(mean_skin, skin.mirror)

    head = Head(
        [mean_skin], [skin.layout], [skin.triangles], [skin_regions(smooth_skin)],
        [np.arange(len(mean_skin))], [np.ones(len(mean_skin))], [skin.mirror], len(mean_skin),
    )  # fmt: skip
    lid_layout, lip_layout = skin.layout[skin.lid], skin.layout[skin.lip]
    drawn = ear(skin.ear, mean_skin[skin.ear], skin.layout[skin.ear])
    ear_rows = add_part(head, skin, drawn, "ears", True)
    # Loops of skin that parts follow as a whole: the ear's seam -> its vertices.
    ears = list(zip((skin.ear, skin.mirror[skin.ear]), ear_rows))
    rim = parts.lid_rim(
        skin.lid, mean_skin[skin.lid], lid_layout, figures.eye_centre, figures.eye_radius, corners[0]
    )
    add_part(head, skin, rim, "face", True)
    rows, inner = figures.rows("nostril_inner_"), figures.rows("nostril_deep")[0]
    tunnel = parts.nostril(
        skin.nostril, mean_skin[skin.nostril], skin.layout[skin.nostril],
        figures.position[rows], figures.layout[rows], (figures.position[inner], figures.layout[inner]),
    )  # fmt: skip
    add_part(head, skin, tunnel, "face", True)
    lining = parts.mouth_lining(skin.lip, mean_skin[skin.lip], lip_layout)
    n = len(skin.lip)
    flipped = np.r_[0, np.arange(n - 1, 0, -1)]
    rounds = (len(lining.vertices) - 1) // n
    self_mirror = np.r_[(flipped[None] + n * np.arange(rounds)[:, None]).ravel(), rounds * n]
    (head.lining,) = add_part(head, skin, lining, "mouth_interior", False, self_mirror)
    sheet = head.count

    # Eyeballs, teeth and tongue have maps of their own.
    uv_extra, iris = [], np.full(sheet, np.inf)
    ball, faces, disc, relative = parts.eyeball(
        figures.eye_centre,
        figures.eye_radius - SMALLER_BALL,
        figures.iris_radius,
        np.array([0.03, 0.01, 1.0]),
    )
    n = len(ball)
    for side, flip in (("left", 1.0), ("right", -1.0)):
        first = head.count
        mirror = first + (n if flip > 0 else -n) + np.arange(n)
        turned = faces if flip > 0 else faces[:, [0, 2, 1]]
        sign = np.array([flip, 1.0, 1.0])
        head.rigid[f"eye_{side}"] = head.add(
            ball * sign,
            np.full((n, 2), np.nan),
            first + turned,
            f"eye_{side}",
            np.full(n, -1),
            np.zeros(n),
            mirror,
        )
        corner = np.array([0.07 if flip < 0 else 0.93, 0.07])
        uv_extra.append(corner + disc * [flip, 1] * 0.065 / np.abs(disc).max())
        iris = np.r_[iris, relative]
    lip = smooth_skin[skin.lip]
    mouth = 0.5 * (lip[0, 1] + lip[len(lip) // 2, 1]), float(lip[0, 2])
    groove = np.zeros(head.count)
    for name, drawn, corner, size in (
        ("teeth_upper", teeth(UPPER, mouth), (0.01, 0.93), (0.12, 0.06)),
        ("teeth_lower", teeth(LOWER, mouth), (0.87, 0.93), (0.12, 0.06)),
        ("tongue", tongue(mouth), (0.01, 0.83), (0.09, 0.09)),
    ):
        m = len(drawn.vertices)
        first = head.count
        head.rigid[name] = head.add(
            drawn.vertices, np.full((m, 2), np.nan), first + drawn.triangles, drawn.region,
            np.full(m, -1), np.zeros(m), first + drawn.mirror,
        )  # fmt: skip
        uv_extra.append(np.array(corner) + drawn.map * size)
        iris, groove = np.r_[iris, np.full(m, np.inf)], np.r_[groove, drawn.groove]

    mean = symmetrize(np.concatenate(head.vertices), np.concatenate(head.mirror))
    triangles = np.concatenate(head.triangles)
    source, amount = np.concatenate(head.source), np.concatenate(head.amount)
    region = np.concatenate(head.region)
    mirror = np.concatenate(head.mirror)

    identity = build_identity(figures, coarse, smooth_coarse, skin, smooth_skin, symmetric, antisymmetric)
    identity = extend(identity, source, amount_identity(amount, region))
    for side, loop in (("left", skin.lid), ("right", skin.mirror[skin.lid])):
        rows = head.rigid[f"eye_{side}"]
        centre = figures.eye_centre * ([1, 1, 1] if side == "left" else [-1, 1, 1])
        identity[:, rows] = follow_lids(mean[loop], identity[:, loop], mean[rows], centre)
    around = np.linalg.norm(mean_skin - lip.mean(0), axis=1) < AROUND_MOUTH_MM
    inside = lambda rows: follow_mouth(
        lip, identity[:, skin.lip], mean_skin[around], identity[:, : len(around)][:, around], mean[rows]
    )
    for name in ("teeth_upper", "teeth_lower", "tongue"):
        identity[:, head.rigid[name]] = inside(head.rigid[name])
    own = amount[head.lining][:, None]
    identity[:, head.lining] = own * identity[:, head.lining] + (1 - own) * inside(head.lining)
    for loop, rows in ears:
        identity[:, rows] = follow_loop(mean[loop], identity[:, loop], mean[rows])

    names, shapes = [], []
    for name, displacement in figures.expressions.items():
        names.append(name)
        shapes.append(
            build_expression(
                name, displacement, surface, figures, skin, lids, to_skin, mean, source, amount, head
            )
        )
    expression = np.stack(shapes)
    # The tongue put out, which no photo tells: with it the jaw opens as far as it needs.
    extra = OUT_JAW * expression[[names.index("jawOpen")]]
    out, rows = tongue_out(mouth), head.rigid["tongue"]
    extra[0, rows] = out + OUT_JAW * jaw_motion(figures, figures.expressions["jawOpen"], out) - mean[rows]
    for loop, rows in ears:
        expression[:, rows] = follow_loop(mean[loop], expression[:, loop], mean[rows])
        extra[:, rows] = OUT_JAW * expression[names.index("jawOpen")][rows]

    # What is drawn needs no finer steps than it is drawn with; files get smaller.
    drawn_rows = np.isin(region, [REGIONS.index(name) for name in DRAWN])
    for basis in (identity, expression, extra):
        basis[:, drawn_rows] = np.round(basis[:, drawn_rows] / DRAWN_STEP) * DRAWN_STEP

    uv = sheet_uv(np.concatenate(head.layout)[:sheet])
    uv = np.concatenate([uv, *uv_extra])
    face_index, weights = embed_landmarks(figures, skin, spline)
    albedo = paint(figures, mean, np.concatenate(head.layout), region, REGIONS, iris, groove, skin)
    skin_mask = np.isin(region, [REGIONS.index("face"), REGIONS.index("neck")])
    skin_mask[len(mean_skin) :] = False
    narrow = (mean[:, 2] > 25) & (mean[:, 1] < 94) & (mean[:, 1] > -101) & (np.abs(mean[:, 0]) < 76)
    face_mask = skin_mask & narrow & (mean[:, 2] + 0.6 * mean[:, 1] > -8)
    return {
        "mean": mean,
        "identity_basis": identity,
        "expression_basis": expression,
        "expression_names": np.array(names),
        "extra_basis": extra,
        "extra_names": np.array(["tongueOut"]),
        "triangles": triangles.astype(np.int32),
        "uv": uv,
        "uv_triangles": triangles.astype(np.int32),
        "landmark_triangles": face_index.astype(np.int32),
        "landmark_barycentric": weights,
        "region": region,
        "region_names": np.array(REGIONS),
        "skin": skin_mask,
        "face": face_mask,
        "albedo_mean": albedo,
        "mirror": mirror.astype(np.int32),
        "layout": np.concatenate(head.layout),
        "lid_loop": skin.lid.astype(np.int32),
        "lip_loop": skin.lip.astype(np.int32),
    }


def follow_lids(margin: np.ndarray, motion: np.ndarray, ball: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Identity displacement [K, M, 3] of an eyeball: the shift and growth that keep it in touch with the
    lids.

    Least squares of  n_i . (u_i - t - s (p_i - c)) = 0  over the lid margin points p_i with motion u_i and
    radial directions n_i; sideways, where the margin says little, the eyeball goes with the mean of the
    margin.
    """
    arm = margin - centre
    radius = np.linalg.norm(arm, axis=1)
    normal = arm / radius[:, None]
    average = motion.mean(1)
    rest = ((motion - average[:, None]) * normal).sum(-1)
    system = np.c_[normal, radius]
    prior = np.diag([2.0, 2.0, 0.02, 400.0]) * 0.5  # relative to unit variance of the residuals
    solution = np.linalg.solve(system.T @ system + prior, system.T @ rest.T).T
    return (average + solution[:, :3])[:, None] + solution[:, 3][:, None, None] * (ball - centre)


def follow_mouth(lips, lip_motion, skin, motion, points) -> np.ndarray:
    """Identity displacement [K, M, 3] of what lies inside the mouth at `points` [M, 3].

    The mean shift of the lips [N, 3] with motion [K, N, 3], and the growth along each axis of the skin [P, 3]
    around them with motion [K, P, 3] (least squares): a narrow jaw has narrow rows of teeth.
    """
    centre, shift = lips.mean(0), lip_motion.mean(1, keepdims=True)
    arm = skin - centre
    growth = ((motion - shift) * arm).sum(1) / (arm**2).sum(0)
    return shift + growth[:, None] * (points - centre)


def follow_loop(loop: np.ndarray, motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Displacement [K, M, 3] of a part at `points` [M, 3] that hangs on a loop of skin [N, 3] with motion
    [K, N, 3].

    It shifts, turns and grows as the loop does on the whole (least squares, small turns); near the loop it
    takes what is left of the loop's motion, too.
    """
    centre = loop.mean(0)

    def columns(at):
        """[N, 3, 7]: shift, turn, growth."""
        arm, zero = at - centre, np.zeros(len(at))
        x, y, z = arm.T
        turns = np.stack([np.stack(v, 1) for v in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], axis=2)
        return np.concatenate([np.tile(np.eye(3), (len(at), 1, 1)), turns, arm[:, :, None]], axis=2)

    system = columns(loop).reshape(-1, 7)
    moves = np.linalg.lstsq(system, motion.reshape(len(motion), -1).T, rcond=None)[0]
    rest = motion - (system @ moves).T.reshape(motion.shape)
    distance = np.linalg.norm(points[:, None] - loop[None], axis=-1)
    weight = np.exp(-0.5 * (distance / LOOP_MM) ** 2) + 1e-12
    weight *= (np.exp(-((distance.min(1) / FADE_MM) ** 2)) / weight.sum(1))[:, None]
    whole = np.einsum("mcj,jk->kmc", columns(points), moves)
    return whole + np.einsum("mn,knc->kmc", weight, rest)


def symmetrize(points: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Average of points and their mirror image, [V, 3]."""
    return 0.5 * (points + points[mirror] * FLIP)


def smooth_mean(figures: Figures, skin: SkinMesh, points: np.ndarray) -> np.ndarray:
    """Mean positions [V, 3] of a sheet from the interpolated ones: symmetric, with a flat end of the neck."""
    return flatten_neck(symmetrize(points, skin.mirror), skin, figures.neck_end)


def flatten_neck(points: np.ndarray, skin: SkinMesh, plane: np.ndarray) -> np.ndarray:
    """Move the end of the neck exactly onto its plane."""
    loop = np.r_[skin.neck, skin.mirror[skin.neck]]
    out = points.copy()
    normal = plane[:3] / np.linalg.norm(plane[:3])
    out[loop] -= ((points[loop] @ plane[:3] + plane[3]) / np.linalg.norm(plane[:3]))[:, None] * normal
    return out


def amount_identity(amount: np.ndarray, region: np.ndarray) -> np.ndarray:
    """People differ in the whole mouth and socket, so parts follow the skin fully in identity."""
    return np.where(amount > 0, 1.0, 0.0)


def extend(skin_field: np.ndarray, source: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Displacements [K, V, 3] of all vertices from those of the skin vertices."""
    return skin_field[:, np.maximum(source, 0)] * amount[None, :, None]


def build_identity(
    figures: Figures,
    coarse: SkinMesh,
    coarse_mean,
    skin: FineSkin,
    mean_skin,
    symmetric: int,
    antisymmetric: int,
) -> np.ndarray:
    """Identity modes on all skin vertices, [K, V, 3].

    They are the eigenfunctions on the coarse sheet, evaluated at all vertices: rows of vertices may be added
    without turning the modes.
    """
    half = np.flatnonzero(coarse.layout[:, 0] >= -1e-9)
    extra = np.flatnonzero((skin.layout[:, 0] >= -1e-9) & (skin.coarse < 0))
    layout = np.concatenate([coarse.layout[half], skin.layout[extra]])
    rest = np.concatenate([coarse_mean[half], mean_skin[extra]])
    near = AmplitudeField(figures)
    root, faded = near(layout, rest)
    calm = np.clip((15 - rest[:, 2]) / 50, 0, 1) + np.clip((-78 - rest[:, 1] - 0.2 * rest[:, 2]) / 40, 0, 1)
    calm += np.clip((rest[:, 1] - 100) / 40, 0, 1)
    calm = (1 - 0.75 * np.clip(calm, 0, 1))[:, None, None]
    middle = np.abs(rest[:, 0]) < 1e-6
    a, b, c = (coarse_mean[coarse.triangles[:, k]] for k in range(3))
    # Skull and neck vary smoothly: the local part fades out there.
    area = np.bincount(
        coarse.triangles.ravel(),
        np.repeat(np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6, 3),
        len(coarse_mean),
    )[half]
    front = skin_regions(coarse_mean[half]) == REGIONS.index("face")
    # Eyes, nose and mouth identify a person more than their area says.
    feature = [
        i for i, n in enumerate(figures.names) if n.startswith("ibug_") and 27 <= int(n.split("_")[1]) <= 67
    ]
    gap, _ = cKDTree(figures.position[feature]).query(coarse_mean[half])
    importance = area * np.where(front, 1.0 + FEATURE_WEIGHT * np.exp(-0.5 * (gap / 12.0) ** 2), 0.08)
    basis = identity_basis(
        figures.kernel,
        rest,
        layout,
        root * calm,
        faded * calm,
        np.r_[importance, np.zeros(len(extra))],
        symmetric,
        antisymmetric,
        lip_pairs(coarse, half),
    )
    out = np.empty((len(basis), len(mean_skin), 3))
    known = np.flatnonzero((skin.layout[:, 0] >= -1e-9) & (skin.coarse >= 0))
    basis[:symmetric, middle, 0] = 0.0
    basis[symmetric:, middle, 1:] = 0.0
    sign = np.where(np.arange(len(basis)) < symmetric, 1.0, -1.0)[:, None, None]
    rows = np.r_[np.searchsorted(half, skin.coarse[known]), len(half) + np.arange(len(extra))]
    own = np.r_[known, extra]
    out[:, skin.mirror[own]] = basis[:, rows] * FLIP * sign
    out[:, own] = basis[:, rows]
    return out


def lip_pairs(skin: SkinMesh, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in `half` of the upper lip's inner contour, and of the points of the lower one below them."""
    quarter = len(skin.lip) // 4
    upper, lower = skin.lip[:quarter], skin.lip[2 * quarter : quarter : -1]
    return np.searchsorted(half, upper), np.searchsorted(half, lower)


class AmplitudeField:
    """Local covariance roots between the sites: normalised Gaussian weights in space and layout."""

    def __init__(self, figures: Figures):
        self.roots = matrix_roots(figures.local)
        self.position, self.layout = figures.position, figures.layout
        distance, _ = cKDTree(figures.position).query(figures.position, k=5)
        self.width = np.maximum(distance[:, 1:].mean(1), 4.5)
        self.apart = 1 - mirror_correlation(figures.kernel, 0, figures.position, figures.layout)

    def __call__(self, layout: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Roots [N, 3, 3], and those for the symmetric process whose x component fades at the midline."""
        square = ((points[:, None] - self.position[None]) ** 2).sum(-1)
        square += 12.0 * ((layout[:, None] - self.layout[None]) ** 2).sum(-1)
        weight = np.exp(-0.5 * square / self.width[None] ** 2) + 1e-12 / (1 + square) ** 2
        mean = lambda w, value: np.einsum("np,p...->n...", w / w.sum(1, keepdims=True), value)
        plain = mean(weight, self.roots)
        # Sites near the midline say nothing on the amplitude of a process that vanishes there.
        faded = plain.copy()
        faded[:, :, 0] = mean(
            weight * self.apart + 1e-12, self.roots[:, :, 0] / np.sqrt(self.apart + 0.02)[:, None]
        )
        return plain, faded


def build_expression(
    name, displacement, surface, figures: Figures, skin, lids: Lids, to_skin, mean, source, amount, head
):
    """Displacement [V, 3] of one named shape."""
    field = to_skin @ displacement[surface]
    rest = mean[: len(field)]
    if not name.startswith("eye"):
        for sign in (1.0, -1.0):
            centre = figures.eye_centre * [sign, 1, 1]
            field = keep_off_eyeball(rest, field, centre, figures.eye_radius + 0.35)
    else:
        other = name.endswith("_R")
        turn = lambda f: f[skin.mirror] * FLIP if other else f
        field = turn(lids.field(name, turn(field), rest))
    out = extend(field[None], source, amount)[0]
    if name.startswith("jaw"):
        moved = lambda rows: jaw_motion(figures, displacement, mean[rows])
        for part in ("teeth_lower", "tongue"):
            out[head.rigid[part]] = moved(head.rigid[part])
        # What the lips leave of the bag: its lower half goes with the jaw.
        rows = head.lining
        below = np.clip(0.5 + (figures.position[figures.ibug(62), 1] - mean[rows, 1]) / 12, 0, 1)
        out[rows] += ((1 - amount[rows]) * below)[:, None] * moved(rows)
    if name.startswith("eyeLook"):
        way, side = name[len("eyeLook") :].split("_")
        rows = head.rigid["eye_left" if side == "L" else "eye_right"]
        sign = 1.0 if side == "L" else -1.0
        angle = np.radians(GAZE_DEGREES[way])
        # Positive rotation about +x looks down, about +y to the subject's left.
        turn = {"Up": (-angle, 0), "Down": (angle, 0), "In": (0, -angle * sign), "Out": (0, angle * sign)}[
            way
        ]
        centre = figures.eye_centre * [sign, 1, 1]
        out[rows] = (mean[rows] - centre) @ rotation(*turn).T + centre - mean[rows]
    return out


def jaw_motion(figures: Figures, displacement: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Displacement of what hangs on the jaw at `at` [N, 3], where sites are displaced."""
    chin = ("ibug_8", "ibug_9", "ibug_10", "ibug_9_right", "ibug_10_right")
    jaw = [figures.names.index(n) for n in chin]
    return rigid_motion(figures.position[jaw], displacement[jaw], at)


def rotation(about_x: float, about_y: float) -> np.ndarray:
    cx, sx, cy, sy = np.cos(about_x), np.sin(about_x), np.cos(about_y), np.sin(about_y)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def rigid_motion(points, displacement, at) -> np.ndarray:
    """Displacement at `at` of the rigid motion that fits `displacement` of `points` best (Kabsch).

    A short arc of the chin determines the rotation badly, so only the turn about the ear-to-ear axis through
    the jaw joint and a translation are used.
    """
    joint = np.array([0.0, 5.0, 20.0])
    arm, moved = points - joint, points + displacement - joint
    angle = np.arctan2(
        (arm[:, 1] * moved[:, 2] - arm[:, 2] * moved[:, 1]).sum(),
        (arm[:, 1] * moved[:, 1] + arm[:, 2] * moved[:, 2]).sum(),
    )
    turn = rotation(angle, 0.0)
    shift = (moved - arm @ turn.T).mean(0)
    return (at - joint) @ turn.T + joint + shift - at


def keep_off_eyeball(mean, field, centre, radius) -> np.ndarray:
    """Push skin that an expression moves into the eyeball back to its surface."""
    moved = mean + field - centre
    distance = np.linalg.norm(moved, axis=1)
    before = np.linalg.norm(mean - centre, axis=1)
    limit = np.minimum(radius, before)
    deep = (distance < limit) & (moved[:, 2] > 0)
    out = field.copy()
    out[deep] = (moved[deep] / distance[deep, None] * limit[deep, None]) + centre - mean[deep]
    return out


def sheet_uv(layout: np.ndarray) -> np.ndarray:
    """Texture coordinates of the skin sheet: the layout with the face enlarged, inside a disc."""
    radius = np.linalg.norm(layout, axis=1, keepdims=True)
    knee, rim = 13.0, np.linalg.norm(layout, axis=1).max()
    share = np.log1p(radius / knee) / np.log1p(rim / knee)
    return 0.5 + 0.495 * layout / np.maximum(radius, 1e-9) * share * (1.5 - 0.5 * share)


def embed_landmarks(figures: Figures, skin: SkinMesh, spline: LayoutSpline) -> tuple[np.ndarray, np.ndarray]:
    """Triangle and barycentric weights of the 68 iBUG landmarks, found in the layout."""
    corners = skin.layout[skin.triangles]
    index, weights = np.zeros(68, int), np.zeros((68, 3))
    table = {
        int(n.split("_")[1]): i
        for i, n in enumerate(figures.names)
        if n.startswith("ibug_") and "right" not in n
    }
    right = {16 - k: figures.mirror[table[k]] for k in range(9, 17)}
    right |= {43 - k: figures.mirror[table[k]] for k in range(22, 27)}
    for other, k in zip(OTHER_SIDE[0], OTHER_SIDE[1]):
        right[other] = figures.mirror[table[k]]
    rows = right | table
    a = corners[:, 0]
    e1, e2 = corners[:, 1] - a, corners[:, 2] - a
    det = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    for k in range(68):
        d = figures.layout[rows[k]] - a
        w1 = (d[:, 0] * e2[:, 1] - d[:, 1] * e2[:, 0]) / det
        w2 = (e1[:, 0] * d[:, 1] - e1[:, 1] * d[:, 0]) / det
        lowest = np.minimum(np.minimum(w1, w2), 1 - w1 - w2)
        t = int(np.argmax(lowest))
        w = np.clip([1 - w1[t] - w2[t], w1[t], w2[t]], 0, None)
        index[k], weights[k] = t, w / w.sum()
    return index, weights
