"""Pictures of faces with their 68 points: folders of image + .pts, and the training crops made of them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from fitkit.errors import InputError
from fitkit.io.images import SUFFIXES, read_image
from fitkit.io.landmark_files import read_landmarks, without_strays
from fitkit.io.options import Degrees, Range, Share
from fitkit.observe.landmarks.face_crop import MARGIN, FaceSquare, cut, square_of_points
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.network import MIRRORED_OUTPUTS, NUM_OUTPUTS, NUM_POINTS

log = logging.getLogger("fitkit")

# Side of the stored picture over that of the square: room for shifts, turns and smaller faces.
KEEP_SIDE = 1.45
# nose-to-jaw-end distances, smaller over larger: above it the outline passes through the fixed jaw points
FRONTAL = 0.72


@dataclass(frozen=True)
class Frame:
    """One picture with its .pts; person: name of the folder below the root that it lies in."""

    image: Path
    landmarks: Path
    person: str


@dataclass(frozen=True)
class LabelledFace:
    """image: [S, S, 3] uint8 sRGB; points: [85, 2] px of it (68 with the jaw as outline, then 17 fixed jaw
    points); known: [85] bool, points with a label; visible, visible_known: [85] bool, whether they are seen,
    and whether that is known."""

    image: np.ndarray
    points: np.ndarray
    known: np.ndarray
    visible: np.ndarray
    visible_known: np.ndarray


def list_frames(folder: str | os.PathLike) -> tuple[Frame, ...]:
    """All images below a folder that have a .pts of the same stem beside them, sorted by path.

    Raises:
        InputError: no such folder, or no such pair in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a tree of images with a .pts beside each")
    found = []
    for path in sorted(root.rglob("*")):
        points = path.with_suffix(".pts")
        if path.suffix.lower() in SUFFIXES and points.is_file():
            found.append(Frame(path, points, path.relative_to(root).parts[0]))
    if not found:
        raise InputError(f"{root}: no image with a .pts of the same name beside it")
    return tuple(found)


def held_out(person: str, share: float = 0.18) -> bool:
    """Whether this person is for validation: fixed by the name alone, the same on every machine; 45 of the
    297 of faces68."""
    return int.from_bytes(hashlib.sha256(person.encode()).digest()[:4], "big") < share * 2**32


def load_frame(frame: Frame, size: int = 192) -> LabelledFace:
    """A picture reduced to a square of size x size px around its face.

    What is hidden is not labelled. Taken as seen: all points of a face from the front, else the middle and
    the near side; the few that something covers do little harm. Without them a network would learn that real
    pictures hide faces.

    Raises:
        InputError: a file that cannot be used, by name.
    """
    picture, points, known, square = _read(frame)
    matrix = FaceSquare(square.center, square.side * KEEP_SIDE).matrix(size)
    points = points @ matrix[:, :2].T + matrix[:, 2]
    turn = _turn(points) if known[[0, 16, 30]].all() else 0.0
    frontal = turn > FRONTAL
    seen = np.full(NUM_POINTS, frontal)
    if not frontal and turn > 0:
        # The side with the shorter way from nose to jaw end is turned away.
        left = np.linalg.norm(points[0] - points[30]) > np.linalg.norm(points[16] - points[30])
        middle = 2.0  # mm
        # The head's +x is right in the picture.
        seen = mean_face()[:, 0] < middle if left else mean_face()[:, 0] > -middle
    return LabelledFace(
        cut(picture, matrix, size),
        np.concatenate([points, points[:17]]).astype(np.float32),
        np.concatenate([known, known[:17] & frontal]),
        np.ones(NUM_OUTPUTS, bool),
        np.concatenate([known & seen, known[:17] & frontal]),
    )


def load_surroundings(
    frame: Frame, rng: np.random.Generator, count: int = 1, size: int = 160
) -> list[LabelledFace]:
    """Squares of the picture that hold no face or only a corner of it, as examples of what is none: nothing
    known, nothing visible. May be fewer than `count` when the face fills the picture."""
    picture, _, _, face = _read(frame)
    H, W = picture.shape[:2]
    out = []
    for _ in range(8 * count):
        side = face.side * float(np.exp(rng.uniform(np.log(0.25), np.log(1.2))))
        if len(out) == count or side > min(H, W):
            break
        center = rng.uniform(side / 2, [W - side / 2, H - side / 2])
        apart = np.abs(center - face.center).max()
        if apart > 0.35 * face.side + 0.35 * side:
            square = FaceSquare((float(center[0]), float(center[1])), side)
            # Points that span the square, so that a crop is placed as it is for faces.
            half = (size - 1) / 2 * np.array([[-1, -1], [1, 1]]) / MARGIN / KEEP_SIDE
            points = np.resize(half + (size - 1) / 2, (NUM_OUTPUTS, 2)).astype(np.float32)
            wide = FaceSquare(square.center, side * KEEP_SIDE).matrix(size)
            out.append(
                LabelledFace(
                    cut(picture, wide, size),
                    points,
                    np.zeros(NUM_OUTPUTS, bool),
                    np.zeros(NUM_OUTPUTS, bool),
                    np.ones(NUM_OUTPUTS, bool),
                )
            )
    return out


def _read(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray, FaceSquare]:
    picture = read_image(frame.image)[0]
    points, strays = without_strays(read_landmarks(frame.landmarks), (picture.shape[1], picture.shape[0]))
    for note in strays:
        log.warning("%s: %s", frame.landmarks, note)
    points = points[:, :2]
    known = np.isfinite(points).all(1)
    if known.sum() < 8:
        raise InputError(f"{frame.landmarks}: expected at least 8 of the 68 points, got {known.sum()}")
    return picture, points, known, square_of_points(points, known)


def _turn(points: np.ndarray) -> float:
    """1 from the front, near 0 in profile: the shorter over the longer way from the nose tip to an end of the
    jaw."""
    ends = np.linalg.norm(points[[0, 16]] - points[30], axis=1)
    return float(ends.min() / max(ends.max(), 1e-6))


# Largest shift as a share of the square, logarithm of the largest scale, largest turn.
Placement = tuple[Share, Annotated[float, Range(0.0, 3.0)], Degrees]


@dataclass(frozen=True)
class Augmentation:
    """How a crop is varied. Shares are probabilities.

    rough: share of crops placed as a box detector would, the rest as a second look would; the sizes of both
    are (largest shift as a share of the square, logarithm of the largest scale, largest turn in degrees);
    mirror, grey, low_resolution, blur, noise, jpeg, cover: shares; smallest: px of the face's square at low
    resolution; covers: most patches laid over a crop.
    """

    rough: Share = 0.5
    rough_size: Placement = (0.18, 0.32, 40.0)
    fine_size: Placement = (0.05, 0.10, 12.0)
    mirror: Share = 0.5
    grey: Share = 0.12
    low_resolution: Share = 0.25
    smallest: Annotated[float, Range(1.0, 4096.0)] = 30.0
    blur: Share = 0.15
    noise: Share = 0.3
    jpeg: Share = 0.2
    cover: Share = 0.4
    covers: Annotated[int, Range(0, 1000)] = 3


@dataclass(frozen=True)
class Crop:
    """What the network learns from: image [size, size, 3] uint8; points [85, 2] px; known, visible,
    visible_known: [85] bool."""

    image: np.ndarray
    points: np.ndarray
    known: np.ndarray
    visible: np.ndarray
    visible_known: np.ndarray


def make_crop(
    face: LabelledFace,
    size: int,
    rng: np.random.Generator | None = None,
    augmentation: Augmentation = Augmentation(),
    texture: Callable[[], np.ndarray] | None = None,
) -> Crop:
    """The crop of a face, placed by its points; with a generator, placed and changed at random.

    Args:
        texture: gives a picture [S, S, 3] uint8 to lay over the face as a patch; without it patches are flat
            or noise.
    """
    points, known = face.points.astype(np.float64), face.known.copy()
    visible, visible_known = face.visible.copy(), face.visible_known.copy()
    placed = known[:NUM_POINTS] if known.any() else np.ones(NUM_POINTS, bool)
    square = square_of_points(points[:NUM_POINTS], placed)
    if rng is None:
        matrix = square.matrix(size)
        return Crop(
            cut(face.image, matrix, size),
            (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32),
            known,
            visible,
            visible_known,
        )
    shift, zoom, turn = (
        augmentation.rough_size if rng.random() < augmentation.rough else augmentation.fine_size
    )
    center = np.asarray(square.center) + rng.uniform(-shift, shift, 2) * square.side
    moved = FaceSquare(
        (center[0], center[1]),
        square.side * float(np.exp(rng.uniform(-zoom, zoom))),
        float(np.radians(rng.uniform(-turn, turn))),
    )
    matrix = moved.matrix(size)
    image = cut(face.image, matrix, size)
    points = points @ matrix[:, :2].T + matrix[:, 2]
    if rng.random() < augmentation.mirror:
        image = np.ascontiguousarray(image[:, ::-1])
        points = (points * [-1, 1] + [size - 1, 0])[MIRRORED_OUTPUTS]
        known, visible, visible_known = (
            known[MIRRORED_OUTPUTS],
            visible[MIRRORED_OUTPUTS],
            visible_known[MIRRORED_OUTPUTS],
        )
    if rng.random() < augmentation.cover:
        image, hidden = cover(image, rng, augmentation.covers, texture)
        at = np.round(points).astype(int)
        inside = ((at >= 0) & (at < size)).all(1)
        at = at.clip(0, size - 1)
        covered = inside & hidden[at[:, 1], at[:, 0]]
        visible &= ~covered
        visible_known |= covered
    return Crop(degrade(image, rng, augmentation), points.astype(np.float32), known, visible, visible_known)


def cover(
    image: np.ndarray,
    rng: np.random.Generator,
    most: int,
    texture: Callable[[], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `most` patches (ellipses and boxes, turned) over a square picture [S, S, 3] uint8; where they
    lie, [S, S] bool. texture: as in `make_crop`."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(1, most + 1)):
        center, half = rng.uniform(0, size, 2), size * rng.uniform(0.04, 0.24, 2)
        box = (tuple(center), tuple(2 * half), float(rng.uniform(0, 180)))
        if rng.random() < 0.5:
            cv2.ellipse(mask, box, 255, -1, cv2.LINE_AA)
        else:
            cv2.fillConvexPoly(mask, cv2.boxPoints(box).astype(np.int32), 255, cv2.LINE_AA)
    if texture is not None and rng.random() < 0.6:
        patch = cv2.resize(texture(), (size, size), interpolation=cv2.INTER_LINEAR)[
            :: rng.choice([-1, 1]), :: rng.choice([-1, 1])
        ]
    else:
        patch = rng.uniform(0, 255, 3) + rng.uniform(0, 40) * rng.standard_normal((size, size, 1))
    alpha = mask[..., None] / 255.0
    return (image * (1 - alpha) + np.clip(patch, 0, 255) * alpha).astype(np.uint8), mask > 127


def degrade(image: np.ndarray, rng: np.random.Generator, options: Augmentation) -> np.ndarray:
    """Light, colour and the faults of cameras and files, of a square picture [S, S, 3] uint8."""
    size = len(image)
    # Tone curve and colour cast as one table for each channel.
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.uniform(-0.45, 0.45))
    levels = levels * rng.uniform(0.62, 1.35) * rng.uniform(0.88, 1.12, 3) + rng.uniform(-0.1, 0.15)
    image = cv2.LUT(image, (levels.clip(0, 1) * 255).astype(np.uint8)[:, None])
    if rng.random() < options.grey:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    elif rng.random() < 0.5:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        image = (grey + (image - grey) * rng.uniform(0.5, 1.3)).clip(0, 255).astype(np.uint8)
    if rng.random() < options.low_resolution:
        small = int(round(np.exp(rng.uniform(np.log(options.smallest * MARGIN), np.log(size)))))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=int(
                rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST], p=[0.6, 0.3, 0.1])
            ),
        )
    if rng.random() < options.blur:
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.8)))
        else:
            length = int(rng.integers(3, 9))
            kernel = np.zeros((length, length), np.float32)
            angle = rng.uniform(0, np.pi)
            reach = (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
            ends = [tuple(int(round(v)) for v in (length - 1) / 2 + s * reach) for s in (-1, 1)]
            cv2.line(kernel, ends[0], ends[1], 1.0)
            image = cv2.filter2D(image, -1, kernel / kernel.sum())
    if rng.random() < options.noise:
        noise = rng.standard_normal(
            (size, size, 1 if rng.random() < 0.5 else 3), dtype=np.float32
        ) * rng.uniform(2, 14)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < options.jpeg:
        ok, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        image = cv2.imdecode(code, cv2.IMREAD_COLOR) if ok else image
    return image
