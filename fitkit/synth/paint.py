"""Random faces' colours: skin, brows, lips, beard and make-up in a map around the mean head, eyes, and a
shell of hair.

The map unrolls the front of the mean head about a vertical axis: column = azimuth (0 in front, growing to the
subject's left), row = height. Everything that is drawn there moves with the skin, so a landmark on a brow or
a lip lies on its colour.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera

PIXEL_MM = 0.7  # of the map
AXIS_Z, RADIUS = 20.0, 85.0  # mm: the map's axis, and the radius at which its pixels are square
TOP, BOTTOM, ASIDE = 125.0, -130.0, np.radians(112)  # mm, mm, azimuth: beyond, the map's edge goes on
MAP_SIZE = (round((TOP - BOTTOM) / PIXEL_MM), round(2 * ASIDE * RADIUS / PIXEL_MM))  # rows, columns
CROWN = np.array([0.0, 45.0, 0.0])  # mm: centre of the rays that find the scalp
# rad: elevation of what is scalp all around, and the largest angle between neighbouring vertices of it.
SCALP_FROM, SCALP_GAP = np.radians(40), 0.2

# The hairline of a mean head: height over depth, mm.
# fmt: off
HAIRLINE = np.array([
    [-80, -42], [-35, -36], [-10, -22], [2, 8], [20, 30], [30, 12], [36, 16], [42, 34], [48, 52], [58, 68],
    [68, 80], [78, 90], [95, 96],
], float)
# fmt: on
EYEBALLS = ("eye_left", "eye_right", "sclera", "iris")
LINING = {
    "mouth": (0.17, 0.045, 0.04),
    "nostril": (0.10, 0.035, 0.03),
    "gums": (0.36, 0.12, 0.11),
    "teeth": (0.60, 0.55, 0.46),
    "tongue": (0.36, 0.13, 0.12),
    "eye_socket": (0.42, 0.20, 0.16),
}


def map_place(points: np.ndarray) -> np.ndarray:
    """Places [..., 3] mm on the mean head -> (column, row) of the map [..., 2], px."""
    column = (np.arctan2(points[..., 0], points[..., 2] - AXIS_Z) + ASIDE) * (RADIUS / PIXEL_MM) - 0.5
    return np.stack([column, (TOP - points[..., 1]) / PIXEL_MM - 0.5], -1).astype(np.float32)


def look_up(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Values [N, C] of a map [H, W, C] at places [N, 2] px (column, row), bilinear, edge values outside."""
    n = len(place)
    padded = np.zeros((-(-n // 256) * 256, 2), np.float32)  # OpenCV takes pictures of at most 32767 rows
    padded[:n] = place
    out = cv2.remap(
        image,
        padded[:, 0].reshape(-1, 256),
        padded[:, 1].reshape(-1, 256),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return out.reshape(len(padded), -1)[:n]


def clouds(rng: np.random.Generator, size: tuple[int, int], cell: float, channels: int = 1) -> np.ndarray:
    """Smooth noise [H, W, channels] of about unit variance; cell: size of its grains, px."""
    small = rng.normal(
        size=(max(2, int(size[0] / cell) + 2), max(2, int(size[1] / cell) + 2), channels)
    ).astype(np.float32)
    return cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).reshape(*size, channels)


def step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at x = 0 to 1 at x = 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True, eq=False)
class HeadMap:
    """What is the same for all random faces of one model.

    landmarks: [68, 2] px of the map; kind: [F] of each triangle, 0 skin, 1 eyeball, 2 other; outer: [M, 3]
    triangles of kind 0; lining: [F, 3] linear RGB
    of kind 2; eyes: [2, 3] mm, centres of the right and the left eyeball; eyes_turn: the model's own
    expressions turn the eyeballs; open_sky: [V, 1] share of the directions above the vertex that no other
    part of the mean head hides; masks: name -> [H, W] float32 in [0, 1] of the map, boxes: where each is not
    0; scalp: [R, C, 3] mm, grid of the mean head's scalp by elevation and azimuth seen from CROWN;
    scalp_vertex: [R, C] the vertex whose motion a grid point follows; has_scalp: hair has something to grow
    on; models of a face without the rest of the head have not.
    """

    landmarks: np.ndarray
    kind: np.ndarray
    outer: Tensor
    lining: np.ndarray
    eyes: np.ndarray
    eyes_turn: bool
    open_sky: Tensor
    masks: dict[str, np.ndarray]
    boxes: dict[str, tuple[slice, slice]]
    scalp: np.ndarray
    scalp_vertex: np.ndarray
    has_scalp: bool


@functools.lru_cache(maxsize=4)
def head_map(model: FaceModel) -> HeadMap:
    """The static part of the paint for this model; takes a second."""
    mean = model.mean.double().numpy()
    names = np.array(model.region_names)[model.region[model.triangles[:, 0]].numpy()]
    kind, lining = np.zeros(len(names), np.int64), np.zeros((len(names), 3), np.float32)
    for name in set(names):
        here = names == name
        if name.startswith(EYEBALLS):
            kind[here] = 1
        for start, color in LINING.items():
            if name.startswith(start):
                kind[here], lining[here] = 2, color
    marks = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()
    eyes, turn = [], False
    for side, corners in (("right", slice(36, 42)), ("left", slice(42, 48))):
        rows = np.flatnonzero([n.startswith(EYEBALLS) and n.endswith(side) for n in model.region_names])
        rows = np.isin(model.region.numpy(), rows)
        if rows.any():
            ball = mean[rows]
            eyes.append((ball.min(0) + ball.max(0)) / 2 - [0, 0, 1.0])
            look = [i for i, n in enumerate(model.expression_names) if n.startswith("eyeLook")]
            turn |= (
                bool(look) and float(model.expression_basis[look][:, torch.from_numpy(rows)].abs().max()) > 2
            )
        else:
            eyes.append(marks[corners].mean(0) - [0, 0, 14.0])
    place = map_place(marks)
    scalp, vertex, has_scalp = _scalp(
        mean[np.unique(model.triangles[torch.from_numpy(kind == 0)].numpy())], mean
    )
    holes = mean[np.flatnonzero([model.region_names[r].startswith("nostril") for r in model.region.tolist()])]
    masks = _masks(
        place, [map_place(holes[holes[:, 0] * side > 0].mean(0)) for side in (-1, 1)] if len(holes) else None
    )
    return HeadMap(
        place,
        kind,
        model.triangles[torch.from_numpy(kind == 0)],
        lining,
        np.array(eyes),
        turn,
        _open_sky(model),
        masks,
        {k: _box(m) for k, m in masks.items()},
        scalp,
        vertex,
        has_scalp,
    )


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero((mask > 0.004).any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _open_sky(model: FaceModel, directions: int = 48, size: int = 160) -> Tensor:
    """Ambient visibility of the mean head's vertices by z-buffers from all around, [V, 1]."""
    points = model.mean.float()
    normals = torch.nn.functional.normalize(vertex_normals(points[None], model.triangles)[0], dim=-1)
    k = torch.arange(directions) + 0.5
    z, turn = 1 - 2 * k / directions, k * 2.399963  # a spiral of even density
    seen, total = torch.zeros(len(points)), torch.zeros(len(points))
    for towards in torch.stack([(1 - z * z).sqrt() * turn.cos(), z, (1 - z * z).sqrt() * turn.sin()], -1):
        view = _FromAfar.of(points, towards, size)
        xy, depth = view.project(points)
        at = xy.round().long()
        lit = (depth <= view.nearest(points, model.triangles)[at[:, 1], at[:, 0]] + 2.5).float()
        weight = (normals @ towards).clamp_min(0)
        seen, total = seen + weight * lit, total + weight
    return ((seen + 0.02) / (total + 0.02))[:, None]


@dataclass(frozen=True)
class _FromAfar:
    """Parallel view against the direction `towards` [3] of a mesh [V, 3] in a square of `size` px."""

    right: Tensor
    up: Tensor
    towards: Tensor
    middle: Tensor
    reach: float
    size: int

    @classmethod
    def of(cls, points: Tensor, towards: Tensor, size: int) -> _FromAfar:
        helper = (
            torch.tensor([0.0, 1.0, 0.0]) if abs(float(towards[1])) < 0.9 else torch.tensor([1.0, 0.0, 0.0])
        )
        right = torch.nn.functional.normalize(torch.linalg.cross(helper, towards), dim=0)
        middle = (points.min(0).values + points.max(0).values) / 2
        return cls(
            right,
            torch.linalg.cross(towards, right),
            towards,
            middle,
            float((points - middle).norm(dim=-1).max()),
            size,
        )

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points [N, 3] -> pixels [N, 2], depth [N] mm."""
        local = points - self.middle
        xy = (
            torch.stack([local @ self.right, local @ self.up], -1) * ((self.size / 2 - 2) / self.reach)
            + (self.size - 1) / 2
        )
        return xy, 2 * self.reach + 10 - local @ self.towards

    def nearest(self, points: Tensor, triangles: Tensor) -> Tensor:
        """Depth of the nearest surface, [size, size] mm, very far where nothing is."""
        xy, depth = self.project(points)
        # What a parallel view divides by is constant, and must not be taken for a depth of nearly nothing.
        w = torch.full_like(depth, Camera.REFERENCE_DEPTH)
        clip = torch.stack([xy[:, 0] * w, xy[:, 1] * w, depth, w], -1)
        fragments = rasterize(clip[None], triangles, (self.size, self.size))
        return torch.where(fragments.covered[0], fragments.depth[0], torch.full((self.size, self.size), 1e9))


@dataclass(frozen=True)
class LampShadow:
    """What a mesh hides from a far lamp; made by `lamp_shadow`."""

    view: _FromAfar
    nearest: Tensor

    def reaches(self, samples: Tensor) -> Tensor:
        """Soft share of the lamp's light that arrives at samples [N, 3], in the mesh's frame; [N, 1]."""
        xy, depth = self.view.project(samples)
        out = torch.zeros(len(samples))
        for dx, dy in ((-0.8, -0.8), (0.8, -0.8), (-0.8, 0.8), (0.8, 0.8)):
            at = (xy + torch.tensor([dx, dy])).round().long().clamp(0, self.view.size - 1)
            out += ((self.nearest[at[:, 1], at[:, 0]] + 7 - depth) / 4).clamp(0, 1)
        return (out / 4)[:, None]


def lamp_shadow(points: Tensor, triangles: Tensor, towards: Tensor, size: int = 128) -> LampShadow:
    """Shadows of the mesh points [V, 3], triangles [F, 3] under a far lamp in the direction towards [3]
    unit."""
    view = _FromAfar.of(points, towards, size)
    # The farthest of the pixels around: skin that the lamp grazes must not lie in its own shadow.
    nearest = torch.nn.functional.max_pool2d(view.nearest(points, triangles)[None, None], 3, 1, 1)
    return LampShadow(view, nearest[0, 0])


def lamp_reaches(
    points: Tensor, triangles: Tensor, towards: Tensor, samples: Tensor, size: int = 128
) -> Tensor:
    """Soft share of a far lamp's light that arrives at samples [N, 3] of the mesh points [V, 3], towards [3]
    unit; [N, 1]."""
    return lamp_shadow(points, triangles, towards, size).reaches(samples)


def _polygon(points: np.ndarray, blur_mm: float) -> np.ndarray:
    mask = np.zeros(MAP_SIZE, np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return _soft(mask, blur_mm)


def _soft(mask: np.ndarray, blur_mm: float) -> np.ndarray:
    out = mask.astype(np.float32) / 255
    return cv2.GaussianBlur(out, (0, 0), blur_mm / PIXEL_MM) if blur_mm > 0 else out


def _masks(p: np.ndarray, nostrils: list[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Where lips, beard, lids and red cheeks are, from the landmarks' places p [68, 2] px; nostrils: the
    right and the left one's place."""

    def mix(a, b, t):
        return p[a] * (1 - t) + p[b] * t

    lips = np.concatenate([p[48:55], p[55:60]])
    # fmt: off
    cheek = [
        mix(1, 31, 0.06), mix(3, 48, 0.35), mix(48, 31, 0.35), p[31] + [0, 3], p[33] + [0, 4], p[35] + [0, 3],
        mix(54, 35, 0.35), mix(13, 54, 0.35), mix(15, 35, 0.06),
    ]
    down = np.array([0, 24 / PIXEL_MM])
    beard = np.array([
        *cheek, p[15], p[13] + down * 0.5, p[11] + down, p[9] + down, p[8] + down, p[7] + down, p[5] + down,
        p[3] + down * 0.5, p[1],
    ])
    moustache = np.array([
        mix(48, 31, 0.4), p[31] + [0, 4], p[33] + [0, 4], p[35] + [0, 4], mix(54, 35, 0.4), p[54] + [4, 5],
        p[52], p[51], p[50], p[48] + [-4, 5],
    ])
    # fmt: on
    goatee = np.array(
        [p[48] + [-3, 0], p[54] + [3, 0], mix(54, 10, 0.5), p[9], p[8] + [0, 5], p[7], mix(48, 6, 0.5)]
    )
    lip = _polygon(lips, 0.5)
    out = {
        "lips": lip,
        "beard": _polygon(beard, 4.5) * (1 - lip),
        "moustache": _polygon(moustache, 1.5) * (1 - lip),
        "goatee": _polygon(goatee, 3.0) * (1 - lip),
    }
    y, x = np.mgrid[: MAP_SIZE[0], : MAP_SIZE[1]].astype(np.float32)

    def blob(at, rx, ry):
        return np.exp(
            -0.5 * (((x - at[0]) * PIXEL_MM / rx) ** 2 + ((y - at[1]) * PIXEL_MM / ry) ** 2)
        ).astype(np.float32)

    out["red"] = np.clip(
        blob(mix(2, 31, 0.6), 14, 12)
        + blob(mix(14, 35, 0.6), 14, 12)
        + blob(p[30], 12, 9)
        + 0.6 * blob(p[0] + [-18, 0], 14, 26)
        + 0.6 * blob(p[16] + [18, 0], 14, 26)
        + 0.4 * blob(p[8], 13, 8),
        0,
        1,
    )
    right, left = p[36:42].mean(0), p[42:48].mean(0)
    out["orbit"] = np.clip(blob(right + [0, 5], 17, 9) + blob(left + [0, 5], 17, 9), 0, 1)
    out["shadow"] = np.clip(blob(right + [0, -8], 15, 5) + blob(left + [0, -8], 15, 5), 0, 1)
    right, left = (
        ((p[32] + p[31]) / 2 + [1, 1.5], (p[34] + p[35]) / 2 + [-1, 1.5]) if nostrils is None else nostrils
    )
    out["nostrils"] = np.clip(blob(right, 2.6, 1.5) + blob(left, 2.6, 1.5), 0, 1)
    lids = np.zeros(MAP_SIZE, np.uint8)
    for corners, top in (
        ((36, 37, 38, 39, 40, 41), (36, 37, 38, 39)),
        ((42, 43, 44, 45, 46, 47), (42, 43, 44, 45)),
    ):
        cv2.polylines(lids, [np.round(p[list(corners)] * 16).astype(np.int32)], True, 120, 1, cv2.LINE_AA, 4)
        cv2.polylines(lids, [np.round(p[list(top)] * 16).astype(np.int32)], False, 255, 2, cv2.LINE_AA, 4)
    out["lids"] = _soft(lids, 0.5)
    out["folds"], out["lid_crease"] = _folds(p), np.zeros(MAP_SIZE, np.uint8)
    for lid in ((36, 37, 38, 39), (42, 43, 44, 45)):
        line = p[list(lid)] + np.array([[0, -1.0], [0, -4.2], [0, -4.2], [0, -1.5]]) / PIXEL_MM
        cv2.polylines(
            out["lid_crease"], [np.round(_smooth(line) * 16).astype(np.int32)], False, 255, 2, cv2.LINE_AA, 4
        )
    out["lid_crease"] = _soft(out["lid_crease"], 0.6)
    return out


def _smooth(points: np.ndarray, count: int = 24) -> np.ndarray:
    """A parabola or cubic through 3 or 4 points [n, 2], [count, 2]."""
    t = np.linspace(0, 1, len(points))
    return np.stack(
        [
            np.polyval(np.polyfit(t, points[:, k], len(points) - 1), np.linspace(0, 1, count))
            for k in range(2)
        ],
        -1,
    )


def _folds(p: np.ndarray) -> np.ndarray:
    """Lines that come with age: from the nose around the mouth, across the forehead, outside the eyes, below
    them."""
    out = np.zeros(MAP_SIZE, np.uint8)

    def draw(points, depth, wide):
        cv2.polylines(
            out,
            [np.round(_smooth(np.array(points)) * 16).astype(np.int32)],
            False,
            depth,
            wide,
            cv2.LINE_AA,
            4,
        )

    for nose, mouth, eye, brow, sign in (
        (p[31], p[48], p[36], p[17:22], -1),
        (p[35], p[54], p[45], p[22:27], 1),
    ):
        mm = np.array([sign, 1.0]) / PIXEL_MM
        draw([nose + [5, -4] * mm, (nose + mouth) / 2 + [9, 0] * mm, mouth + [7, 4] * mm], 255, 3)
        draw([mouth + [3, 2] * mm, mouth + [5, 9] * mm, mouth + [4, 16] * mm], 150, 2)
        for lean in (-5, 1, 7):
            draw(
                [eye + [4, lean * 0.3] * mm, eye + [9, lean * 0.8] * mm, eye + [14, lean * 1.6] * mm], 130, 1
            )
        inner, outer = (p[39], p[36]) if sign < 0 else (p[42], p[45])
        draw([inner + [1, 4] * mm, (inner + outer) / 2 + [0, 11] * mm, outer + [0, 7] * mm], 150, 3)
        for lift in (14, 21, 28):
            draw(
                [
                    p[27] + [0, -lift - 20] * mm,
                    brow.mean(0) + [0, -lift] * mm,
                    brow[0 if sign < 0 else 4] + [2, -lift + 5] * mm,
                ],
                120,
                2,
            )
        draw([p[27] + [4, -8] * mm, p[27] + [5, -14] * mm, p[27] + [4, -20] * mm], 150, 2)
    return _soft(out, 0.9)


def _scalp(
    outer: np.ndarray, mean: np.ndarray, rows: int = 28, columns: int = 73
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Grid [rows, columns, 3] of the head's surface by elevation (90 to -18 degrees) and azimuth (-180 to
    180), its vertices, and whether there is a surface above SCALP_FROM."""
    elevation, azimuth = np.radians(np.linspace(90, -18, rows)), np.radians(np.linspace(-180, 180, columns))
    direction = np.stack(
        [
            np.cos(elevation)[:, None] * np.sin(azimuth),
            np.sin(elevation)[:, None] + 0 * azimuth,
            np.cos(elevation)[:, None] * np.cos(azimuth),
        ],
        -1,
    )
    ray = outer - CROWN
    length = np.linalg.norm(ray, axis=1)
    away, near = cKDTree(ray / length[:, None]).query(direction.reshape(-1, 3), k=8)
    above = np.repeat(elevation > SCALP_FROM, columns)
    # Ears and nose stand out, the median passes over them.
    radius = np.median(length[near], axis=1).reshape(rows, columns)
    radius[:, 0] = radius[:, -1] = (radius[:, 0] + radius[:, -1]) / 2
    wrapped = np.concatenate([radius[:, -5:-1], radius, radius[:, 1:5]], 1).astype(np.float32)
    radius = cv2.GaussianBlur(wrapped, (0, 0), 1.2)[:, 4:-4]
    points = CROWN + direction * radius[..., None]
    _, vertex = cKDTree(mean).query(points.reshape(-1, 3))
    there = bool((away[above, 0] < SCALP_GAP).mean() > 0.9)
    return points, vertex.reshape(rows, columns), there


@dataclass(frozen=True)
class SkinLook:
    """One person's colours, drawn by `random_faces`; colours linear RGB.

    skin, lips, hair, iris: [3]; blotch, red: strengths of large variation and of red cheeks; freckles, moles:
    counts; freckle_depth: 0 to 1; brow: strength 0 to 1, brow_width, brow_drop: factor and mm; stubble: 0 to
    1 shadow of a shaved beard; beard: 0 to 1 cover of grown hair, beard_area: mask name; eye_shadow: colour
    [3], eye_shadow_strength; liner: darkness of the lid line; pore: fine noise; tired: darkness around the
    eyes; age: depth of the folds beside the mouth, on the forehead and at the eyes; lid_crease: of the fold
    above the eye.
    """

    skin: np.ndarray
    lips: np.ndarray
    lip_strength: float
    hair: np.ndarray
    brow_color: np.ndarray
    iris: np.ndarray
    blotch: float
    red: float
    freckles: int
    freckle_depth: float
    moles: int
    brow: float
    brow_width: float
    brow_drop: float
    stubble: float
    beard: float
    beard_area: str
    eye_shadow: np.ndarray
    eye_shadow_strength: float
    liner: float
    pore: float
    tired: float
    age: float
    lid_crease: float


def paint_skin(head: HeadMap, look: SkinLook, rng: np.random.Generator) -> np.ndarray:
    """The person's skin as a map, float32 [H, W, 3] linear RGB."""
    size = MAP_SIZE
    tone = np.ones((*size, 1), np.float32)
    for cell, share in ((40, 0.6), (16, 0.45), (6, 0.3)):
        tone += look.blotch * share * clouds(rng, size, cell)
    fine = np.tile(
        rng.normal(size=(128, 128, 1)).astype(np.float32), (size[0] // 128 + 1, size[1] // 128 + 1, 1)
    )[: size[0], : size[1]]
    tone += look.pore * fine
    picture = look.skin.astype(np.float32) * tone

    def dim(name, change):
        picture[head.boxes[name]] *= 1 + head.masks[name][head.boxes[name]][..., None] * np.asarray(
            change, np.float32
        )

    def put(color, strength, box):
        part = picture[box]
        part += strength[..., None] * (np.asarray(color, np.float32) - part)

    def put_on(name, color, strength):
        put(color, np.float32(strength) * head.masks[name][head.boxes[name]], head.boxes[name])

    dim("red", look.red * np.array([0.12, -0.22, -0.16]))
    dim("folds", -look.age * np.array([0.75, 1.0, 1.0]))
    dim("lid_crease", -look.lid_crease * np.array([0.8, 1.0, 1.0]))
    dim("orbit", -look.tired * np.array([0.8, 1.0, 0.9]))
    if look.freckles or look.moles:
        picture *= 1 - _spots(head, look, rng)[..., None] * np.array([0.65, 0.9, 1.0], np.float32)
    strands = 1 + 0.35 * clouds(rng, size, 2.5) + 0.2 * fine
    if look.stubble > 0:
        shaved = look.hair * 0.6 + look.skin * 0.25 * np.array([0.8, 0.95, 1.1])
        put_on("beard", shaved, look.stubble)
        put_on("moustache", shaved, look.stubble)
    put_on("lips", look.lips, look.lip_strength)
    put_on("shadow", look.eye_shadow, look.eye_shadow_strength)
    put_on("lids", look.skin * [0.35, 0.25, 0.22] * (1 - look.liner), 0.45 + 0.5 * look.liner)
    put_on("nostrils", look.skin * 0.12, 0.8)
    if look.beard > 0:
        for name in dict.fromkeys((look.beard_area, "moustache")):
            box = head.boxes[name]
            grain = np.clip(look.beard * 1.6 + 0.25 * (strands[box][..., 0] - 1) - 0.3, 0, 1)
            put(
                look.hair.astype(np.float32) * np.clip(strands[box], 0.3, 1.8),
                np.clip(head.masks[name][box] * grain * 1.25, 0, 0.97),
                box,
            )
    brows = _brows(head, look, rng)
    box = _box(brows)
    put(look.brow_color.astype(np.float32) * np.clip(strands[box], 0.5, 1.5), brows[box], box)
    return np.clip(picture, 0.002, 1)


def _spots(head: HeadMap, look: SkinLook, rng: np.random.Generator) -> np.ndarray:
    out = np.zeros(MAP_SIZE, np.uint8)
    middle = head.landmarks[30]
    for _ in range(look.freckles):
        x, y = middle + rng.normal(size=2) * [38 / PIXEL_MM, 20 / PIXEL_MM]
        cv2.circle(
            out,
            (int(x * 16), int(y * 16)),
            int(16 * rng.uniform(0.5, 1.5)),
            int(255 * look.freckle_depth * rng.uniform(0.3, 1)),
            -1,
            cv2.LINE_AA,
            4,
        )
    for _ in range(look.moles):
        x, y = middle + rng.normal(size=2) * [60 / PIXEL_MM, 45 / PIXEL_MM]
        cv2.circle(
            out,
            (int(x * 16), int(y * 16)),
            int(16 * rng.uniform(0.8, 2.2)),
            int(rng.uniform(120, 220)),
            -1,
            cv2.LINE_AA,
            4,
        )
    return _soft(out, 0.4)


def _brows(head: HeadMap, look: SkinLook, rng: np.random.Generator) -> np.ndarray:
    """Single hairs over a soft band along the five points of each brow, [H, W] in [0, 1]."""
    hairs, band = np.zeros(MAP_SIZE, np.uint8), np.zeros(MAP_SIZE, np.uint8)
    for points, out in (
        (head.landmarks[21:16:-1], -1.0),
        (head.landmarks[22:27], 1.0),
    ):  # from the nose outwards
        t, line, half = _brow_line(points, look)
        cv2.fillPoly(band, [np.round(_brow_outline(line, half) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        for _ in range(90):
            k = int(rng.integers(len(t)))
            start = line[k] + [rng.normal() * 0.5, rng.uniform(-1, 1) * half[k]]
            lean = np.interp(t[k], [0, 1.5, 4], [75, 35, -20]) + rng.normal() * 12
            end = (
                start
                + np.array([out * np.cos(np.radians(lean)), -np.sin(np.radians(lean))])
                * rng.uniform(3, 7)
                / PIXEL_MM
                * 0.8
            )
            ends = [tuple(int(v) for v in point * 16) for point in (start, end)]
            cv2.line(hairs, ends[0], ends[1], int(rng.uniform(90, 220)), 1, cv2.LINE_AA, 4)
    return np.clip(look.brow * (0.62 * _soft(band, 1.0) + 0.5 * _soft(hairs, 0.3)), 0, 0.95)


def _brow_line(points: np.ndarray, look: SkinLook) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along a brow's five points [5, 2] px of the map, nose first: parameter [33] in 0 to 4, middle line [33,
    2], half width [33]."""
    t = np.linspace(0, 4, 33)
    line = np.stack([np.interp(t, np.arange(5), points[:, k]) for k in range(2)], -1)
    line[:, 1] += look.brow_drop / PIXEL_MM
    half = look.brow_width * np.interp(t, [0, 0.6, 2, 3.2, 4], [2.2, 3.1, 3.2, 2.3, 0.9]) / PIXEL_MM
    return t, line, half


def _brow_outline(line: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.concatenate([line - [0, 1] * half[:, None], (line + [0, 1] * half[:, None])[::-1]])


def brow_outlines(head: HeadMap, look: SkinLook) -> tuple[np.ndarray, np.ndarray]:
    """Outlines [66, 2] px of the map of the bands below the painted hairs: right brow, left brow."""
    right, left = (
        _brow_outline(*_brow_line(points, look)[1:])
        for points in (head.landmarks[21:16:-1], head.landmarks[22:27])
    )
    return right, left


def paint_eyes(rest: np.ndarray, head: HeadMap, look: SkinLook, gaze: np.ndarray, pupil: float) -> np.ndarray:
    """Linear RGB [N, 3] of eyeball samples at places rest [N, 3] mm of the mean head; gaze: [3] unit vector
    in the head frame."""
    left = (rest[:, 0] > 0).astype(int)
    ray = rest - head.eyes[left]
    # 1 = rim of the iris.
    angle = np.arccos(np.clip((ray @ gaze) / np.linalg.norm(ray, axis=1), -1, 1)) / np.radians(25)
    white = np.array([0.50, 0.45, 0.42]) * np.clip(1.12 - 0.22 * angle, 0.4, 1)[:, None]
    spoke = 1 + 0.25 * np.sin(17 * np.arctan2(ray[:, 1], ray[:, 0]))[:, None]
    color = np.where(
        angle[:, None] < 1, look.iris * spoke * np.where(angle > 0.82, 0.45, 1.0)[:, None], white
    )
    return np.where(angle[:, None] < pupil, 0.006, color).astype(np.float32)


@dataclass(frozen=True)
class HairLook:
    """One person's hair. color: [3] linear RGB; thickness: mm above the scalp; recede: mm that the hairline
    lies higher than usual; length: mm below the widest part of the head, 0 = ends at the hairline;
    open_angle: degrees from the front where falling hair begins; fringe: lower end over the forehead, mm of
    height, or None; fringe_width, fringe_middle: degrees; curl: 0 straight to 1; gray: share of light
    strands; ragged: mm; bald: no hair on top."""

    color: np.ndarray
    thickness: float
    recede: float
    length: float
    open_angle: float
    fringe: float | None
    fringe_width: float
    fringe_middle: float
    curl: float
    gray: float
    ragged: float
    bald: bool = False


def hairline_margin(rest: np.ndarray, recede: float) -> np.ndarray:
    """Height in mm above the hairline at places [..., 3] of the mean head; negative below."""
    return (
        rest[..., 1]
        - np.interp(rest[..., 2], HAIRLINE[:, 0], HAIRLINE[:, 1])
        - recede * np.clip((rest[..., 2] - 20) / 40, 0, 1)
    )


@dataclass(frozen=True)
class HairShell:
    """points: [N, 3] mm head frame of this person; triangles: [M, 3]; inside: [N] mm, signed distance to the
    hair's edge; place: [N, 2] px of the hair's own texture; texture: [H, W, 2] brightness factor and
    raggedness in mm."""

    points: np.ndarray
    triangles: np.ndarray
    inside: np.ndarray
    place: np.ndarray
    texture: np.ndarray


def hair_shell(head: HeadMap, motion: np.ndarray, look: HairLook, rng: np.random.Generator) -> HairShell:
    """A surface over the scalp that may hang down; motion: [V, 3] mm, how the person's vertices differ from
    the mean."""
    grid = head.scalp + motion[head.scalp_vertex]
    smooth = np.stack(
        [cv2.GaussianBlur(np.ascontiguousarray(grid[..., k]), (0, 0), 1.0) for k in range(3)], -1
    )
    smooth[:, 0] = smooth[:, -1] = (smooth[:, 0] + smooth[:, -1]) / 2
    rows, columns = grid.shape[:2]
    azimuth = np.radians(np.linspace(-180, 180, columns))
    ray = smooth - CROWN
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    wave = clouds(rng, (rows, columns), 7)[..., 0]
    wave[:, 0] = wave[:, -1] = (wave[:, 0] + wave[:, -1]) / 2
    lift = look.thickness * (1 + 0.25 * wave) * np.interp(smooth[..., 1], [-20, 30, 90], [0.75, 0.8, 1.0])
    margin = hairline_margin(head.scalp, look.recede)
    lift = lift * np.clip(margin / 14 + 0.55, 0.12, 1)  # the hair rises from the hairline
    fringe_zone = np.zeros_like(margin)
    if look.fringe is not None:
        aside = look.fringe_width - np.abs(np.degrees(azimuth) - look.fringe_middle)
        fringe_zone = np.minimum(
            aside[None] * 1.4, head.scalp[..., 1] - look.fringe + 6 * np.sin(azimuth * 9 + 3)[None]
        )
        lift = np.maximum(lift, np.clip(fringe_zone / 10, 0, 1) * max(6.0, 0.5 * look.thickness))
    shell = smooth + ray * np.maximum(lift, 0.6)[..., None]
    inside = np.maximum(margin, fringe_zone if look.fringe is not None else margin)
    along = np.concatenate(
        [np.zeros((1, columns)), np.cumsum(np.linalg.norm(np.diff(shell, axis=0), axis=-1), 0)]
    )
    if look.length > 0:
        last, count = shell[-1], 10
        fall = np.linspace(0, look.length, count + 1)[1:]
        spread = np.array([1.0, 0.0, 1.0]) * (ray[-1] * [1, 0, 1])
        hang = (
            last[None]
            + fall[:, None, None] * np.array([0, -1.0, 0])
            + spread[None] * (10 * np.sin(fall / 60)[:, None, None])
        )
        hang[..., 0] += look.curl * 6 * np.sin(fall / 14)[:, None]
        falling = (np.abs(np.degrees(azimuth)) - look.open_angle) * 1.4
        down = np.clip((60 - head.scalp[..., 1]) / 30, -1, 1)  # only below the temples
        inside = np.maximum(inside, np.minimum(falling[None], 30 * down + 30))
        # The falling part stands off the head so that it covers the ears.
        off = np.clip(falling / 15, 0, 1)[None] * step((70 - head.scalp[..., 1]) / 60)
        shell = shell + (ray * [1, 0.2, 1]) * (off * max(7.0, 0.4 * look.thickness))[..., None]
        hang = hang + (ray[-1] * [1, 0, 1] * (off[-1] * max(7.0, 0.4 * look.thickness))[:, None])[None]
        end = np.minimum(falling[None], (look.length - fall)[:, None] + 0 * falling[None])
        shell, inside = np.concatenate([shell, hang]), np.concatenate([inside, end])
        along = np.concatenate([along, along[-1] + fall[:, None]])
        rows += count
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate(
        [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
    )
    triangles = triangles[(inside.reshape(-1)[triangles] > -look.ragged - 3).any(1)]
    size = (256, 512)
    place = np.stack(
        [
            np.broadcast_to((azimuth + np.pi) / (2 * np.pi) * (size[1] - 1), along.shape),
            np.clip(along / 420, 0, 1) * (size[0] - 1),
        ],
        -1,
    )
    return HairShell(
        shell.reshape(-1, 3),
        triangles,
        inside.reshape(-1),
        place.reshape(-1, 2).astype(np.float32),
        _hair_texture(look, rng, size),
    )


def _hair_texture(look: HairLook, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Strands run along the rows' direction: brightness factor and edge raggedness in mm, [H, W, 2]."""
    H, W = size
    strands = sum(
        share
        * cv2.resize(
            rng.normal(size=(max(2, int(H / long)), int(W / wide))).astype(np.float32),
            (W, H),
            interpolation=cv2.INTER_CUBIC,
        )
        for wide, long, share in ((1.0, 70, 0.5), (2.5, 110, 0.5), (8, 128, 0.5), (24, 100, 0.4))
    )
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    bend = clouds(rng, size, 40)[..., 0] * 5 + look.curl * 6 * np.sin(
        y / 6 + 4 * clouds(rng, size, 60)[..., 0]
    )
    strands = cv2.remap(
        strands, x + bend.astype(np.float32), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    bright = np.clip(1 + 0.33 * strands + look.gray * 2.5 * np.clip(strands - 0.7, 0, None), 0.25, 4)
    return np.stack([bright, look.ragged * 0.6 * strands], -1).astype(np.float32)
