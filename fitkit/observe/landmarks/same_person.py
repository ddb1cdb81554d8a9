"""Which of several faces in a photo is the person of the other photos: a cheap comparison of looks, no face
recognition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fitkit.observe.landmarks.face_crop import MARGIN, FaceSquare, cut, square_of_points
from fitkit.observe.landmarks.face_shape import INNER, head_roll

FACE_MARGIN, WIDE_MARGIN, SIDE = 1.3, 2.2, 64  # squares over the box of the inner points; px of both crops
GREY = 32  # px
# Weights of log(1 + distance), a logistic regression on pairs of pictures of 150 people of faces68 that are
# not held out; the same person or not. Of two faces the right one is the more alike of the two in 99 %
# (pictures of one video) and 74 % (of two videos).
WEIGHTS = {"grey": 3.94, "skin": 0.28, "above": 0.62, "below": 0.46}
# difference of two scores from which it decides: then it is right in all cases of one video, in 88 % of two
CLEARLY = 1.0


@dataclass(frozen=True)
class Appearance:
    """grey: [32, 32] upright face, mean 0 and variance 1; skin: [3] CIELAB colour of cheeks and nose; above,
    below: [3] colours over the brows (hair) and under the chin (clothes) minus the skin's."""

    grey: np.ndarray
    skin: np.ndarray
    above: np.ndarray
    below: np.ndarray


def appearance(image: np.ndarray, points: np.ndarray) -> Appearance | None:
    """Looks of the face with points [68, 2] px (NaN = not seen) in image [H, W, 3] uint8; None with fewer
    than 8 inner points."""
    inner = points[INNER]
    seen = np.isfinite(inner).all(1)
    if seen.sum() < 8:
        return None
    square = square_of_points(inner, seen, head_roll(points))

    def crop(margin: float) -> np.ndarray:
        return cut(
            image, FaceSquare(square.center, square.side * margin / MARGIN, square.angle).matrix(SIDE), SIDE
        )

    grey = cv2.resize(
        cv2.cvtColor(crop(FACE_MARGIN), cv2.COLOR_RGB2GRAY), (GREY, GREY), interpolation=cv2.INTER_AREA
    ).astype(np.float64)
    grey = (grey - grey.mean()) / (grey.std() + 1e-3)
    lab = cv2.cvtColor(crop(WIDE_MARGIN).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    skin, above, below = (
        np.median(part.reshape(-1, 3), 0) for part in (lab[22:42, 20:44], lab[:12, 16:48], lab[54:, 12:52])
    )
    return Appearance(grey, skin, above - skin, below - skin)


def unlikeness(a: Appearance, b: Appearance) -> float:
    """Weighted sum of log(1 + distance); without lightness for the skin, and the grey faces also mirrored
    (the other side)."""
    alike = max(float((a.grey * b.grey).mean()), float((a.grey * b.grey[:, ::-1]).mean()))
    parts: dict[str, float] = {
        "grey": 1 - alike,
        "skin": np.linalg.norm((a.skin - b.skin)[1:]),
        "above": np.linalg.norm(a.above - b.above),
        "below": np.linalg.norm(a.below - b.below),
    }
    return float(sum(WEIGHTS[k] * np.log1p(max(0.0, v)) for k, v in parts.items()))


def choose_face(faces: Sequence[Appearance | None], others: Sequence[Appearance]) -> tuple[int, bool]:
    """Which of the faces of a photo (the largest first) is the person in `others`, faces known to be that
    person.

    Returns: its index, and whether the looks decided; otherwise it is the largest, index 0.
    """
    if len(faces) < 2 or not others:
        return 0, False
    scores = np.array([np.inf if f is None else min(unlikeness(f, o) for o in others) for f in faces])
    best = int(scores.argmin())
    rest = np.delete(scores, best).min()
    decided = bool(rest - scores[best] > CLEARLY) if np.isfinite(scores[best]) else False
    return (best, True) if decided else (0, False)
