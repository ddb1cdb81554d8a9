"""Places where a face may be: OpenCV's Haar cascades, turned pictures and, when they see nothing, a coarse
grid of squares.

Source: Viola and Jones, "Rapid object detection using a boosted cascade of simple features", CVPR 2001; the
cascades come with
    OpenCV 4 (Lienhart and Maydt, ICIP 2002; profile: Bradley). They are rough: whether a place holds a face
    is decided by the landmark network (see builtin.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fitkit.errors import MissingWeightsError
from fitkit.observe.landmarks.face_crop import FaceSquare

WINDOW = 20  # px, side of the window the cascades were trained with: the smallest face they see
PAD = 0.12  # of the longer side, added around the picture: cascades need some room around a face
# Squares closer than this share of their side, of sides within this factor, are one face.
SAME_CENTER, SAME_SIDE = (0.3, 1.5)


@dataclass(frozen=True)
class Candidate:
    """square: where a face may be, px of the photo; score: number of windows that saw it, 0 for squares of
    the grid."""

    square: FaceSquare
    score: float


@dataclass(frozen=True)
class Cascade:
    """file: of OpenCV's data folder; shift: from the centre of its box to that of the face's square, (right,
    down) over the box's side; scale: side of the square over that of the box; mirrored: run on the mirrored
    picture."""

    file: str
    shift: tuple[float, float]
    scale: float
    mirrored: bool = False


# Medians over the boxes that hit a face, of 760 pictures of the people of faces68 that are not held out
# (square: `square_of_points` of the labels). Median absolute deviations: 0.02 down, 0.07 right (mostly yaw),
# 0.08 to 0.10 of the scale.
FRONTAL = Cascade("haarcascade_frontalface_default.xml", (0.0, 0.167), 1.32)
FRONTAL_2 = Cascade("haarcascade_frontalface_alt2.xml", (0.0, 0.173), 1.354)
PROFILE = Cascade("haarcascade_profileface.xml", (-0.094, 0.165), 1.151)
PROFILES = (PROFILE, replace(PROFILE, mirrored=True))


@dataclass(frozen=True)
class Stage:
    """One search. side: px, longer side of the reduced picture; cascades; angles: degrees, by which the
    picture is turned counter-clockwise, so that heads that lean clockwise come upright; step: factor between
    sizes; neighbors: windows that must agree; largest: largest face (side of the square over the picture's
    longer side) that is sought, None = any."""

    side: int
    cascades: tuple[Cascade, ...]
    angles: tuple[float, ...] = (0.0,)
    step: float = 1.1
    neighbors: int = 1
    largest: float | None = None


# Searches in turn. GRID: squares over the picture, which cost the network less than the cascades of a finer
# search, and which find large faces in any position. Small faces in large photos come last: they take
# seconds.
GRID = None
SEARCHES: tuple[Stage | None, ...] = (
    Stage(320, (FRONTAL,), step=1.15, neighbors=2),
    Stage(240, PROFILES, step=1.15, neighbors=2),
    GRID,
    Stage(800, (FRONTAL, *PROFILES), neighbors=3, largest=0.5),
    Stage(400, (FRONTAL, FRONTAL_2), (40.0, -40.0), neighbors=2),
    Stage(320, (FRONTAL, FRONTAL_2), (90.0, -90.0), neighbors=3),
    Stage(2000, (FRONTAL, *PROFILES), neighbors=4, largest=0.12),
    Stage(4500, (FRONTAL, *PROFILES), neighbors=4, largest=0.04),
)


def propose(image: np.ndarray, most: int = 8) -> Iterator[list[Candidate]]:
    """Candidates, search after search; the caller stops when it is content.

    Args:
        image: [H, W, 3] uint8 sRGB.
        most: candidates of one search with cascades, the best ones.
    Yields:
        candidates sorted by score, without doubles; empty when a search finds nothing.
    Raises:
        MissingWeightsError: OpenCV is installed without its cascades.
    """
    longer = max(image.shape[:2])
    pictures: dict[int, tuple[np.ndarray, float]] = {}
    finest = 0
    for stage in SEARCHES:
        if stage is GRID:
            yield [Candidate(s, 0.0) for s in grid_squares(image.shape[1], image.shape[0])]
            continue
        side = min(stage.side, longer)
        if stage.largest is not None and side < 1.3 * finest:
            continue  # the photo is so small that this would see nothing new
        finest = max(finest, side)
        if side not in pictures:
            pictures[side] = reduced_grey(image, side)
        yield merge(search(*pictures[side], stage))[:most]


def reduced_grey(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """[H, W, 3] uint8 -> grey picture [h, w] with this longer side, and px of the photo per px of it (1 or
    more)."""
    factor = max(1.0, max(image.shape[:2]) / side)
    if factor > 1:
        size = tuple(max(1, round(n / factor)) for n in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), factor


def search(grey: np.ndarray, factor: float, stage: Stage) -> list[Candidate]:
    """Candidates of one stage in px of the photo; `grey`, `factor` as from `reduced_grey`."""
    h, w = grey.shape
    pad = round(PAD * max(h, w))
    padded = cv2.copyMakeBorder(grey, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    found = []
    for angle in stage.angles:
        turned, to_turned = _turned(padded, angle)
        for cascade in stage.cascades:
            picture = np.ascontiguousarray(turned[:, ::-1]) if cascade.mirrored else turned
            largest = 0 if stage.largest is None else int(stage.largest / cascade.scale * max(h, w))
            limit = {"maxSize": (largest, largest)} if largest else {}
            boxes, counts = _classifier(cascade.file).detectMultiScale2(
                picture,
                scaleFactor=stage.step,
                minNeighbors=stage.neighbors,
                minSize=(WINDOW, WINDOW),
                **limit,
            )[:2]
            for (x, y, side, _), count in zip(boxes, np.ravel(counts)):
                right = -cascade.shift[0] if cascade.mirrored else cascade.shift[0]
                x = picture.shape[1] - x - side if cascade.mirrored else x
                center = np.array(
                    [x + (side - 1) / 2 + right * side, y + (side - 1) / 2 + cascade.shift[1] * side]
                )
                center = np.linalg.solve(to_turned[:, :2], center - to_turned[:, 2]) - pad
                # Pixel centres are whole numbers, so the corner of the picture is at -0.5.
                center = (center + 0.5) * factor - 0.5
                square = FaceSquare(
                    (float(center[0]), float(center[1])),
                    float(side * cascade.scale * factor),
                    float(np.radians(angle)),
                )
                found.append(Candidate(square, float(count)))
    return found


def _turned(grey: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture turned counter-clockwise with all of it in sight, and the matrix [2, 3] from its pixels to
    the new ones."""
    h, w = grey.shape
    if degrees == 0:
        return grey, np.eye(2, 3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, s], [-s, c]])
    W, H = (int(np.ceil(n)) for n in np.abs(turn) @ [w, h])
    matrix = np.column_stack([turn, np.array([W - 1, H - 1]) / 2 - turn @ (np.array([w - 1, h - 1]) / 2)])
    return cv2.warpAffine(
        grey, matrix, (W, H), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ), matrix


@functools.cache
def _classifier(file: str):
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    path = Path(folder) / file
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise MissingWeightsError(
            f"face boxes need OpenCV 4 with its cascades, but version {cv2.__version__} here has no {file}; "
            "pip install 'opencv-python>=4.8,<5'"
        )
    return cv2.CascadeClassifier(str(path))


def merge(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates that mean the same face become one, the mean weighted by score; sorted by score, best
    first."""
    groups: list[list[Candidate]] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        group = next(
            (
                g
                for g in groups
                if same_place(g[0].square, candidate.square) and g[0].square.angle == candidate.square.angle
            ),
            None,
        )
        groups.append([candidate]) if group is None else group.append(candidate)
    out = []
    for group in groups:
        weight = np.array([max(c.score, 1e-6) for c in group])
        weight /= weight.sum()
        center = sum(w * np.array(c.square.center) for w, c in zip(weight, group))
        side = np.exp(sum(w * np.log(c.square.side) for w, c in zip(weight, group)))
        square = FaceSquare((float(center[0]), float(center[1])), float(side), group[0].square.angle)
        out.append(Candidate(square, sum(c.score for c in group)))
    return sorted(out, key=lambda c: -c.score)


def same_place(a: FaceSquare, b: FaceSquare) -> bool:
    """Whether two squares can only mean one face."""
    small, large = sorted((a.side, b.side))
    apart = np.hypot(a.center[0] - b.center[0], a.center[1] - b.center[1])
    return bool(apart < SAME_CENTER * small and large < SAME_SIDE * small)


def grid_squares(width: int, height: int) -> list[FaceSquare]:
    """A few squares over a picture of this size: as wide as its shorter side, somewhat larger, and smaller
    ones."""
    short = min(width, height)
    out = []
    for share in (1.25, 0.9, 0.6):
        side = share * short
        counts = [
            1 if side >= 1.2 * n else int(np.ceil((n - side) / (0.35 * side))) + 1 for n in (width, height)
        ]
        xs, ys = (
            np.linspace(side / 2, n - side / 2, k) if k > 1 else [n / 2]
            for n, k in zip((width, height), counts)
        )
        out += [FaceSquare((float(x) - 0.5, float(y) - 0.5), float(side)) for y in ys for x in xs]
    return out
