"""A photo with its landmarks, to check them by eye."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from fitkit.observe.landmarks.types import CURVES, Landmarks

SIDE = 900  # px of the picture's longer side
ROOM = 0.35  # around the box of the points, over its larger side
SURE, UNSURE = (60, 230, 90), (255, 60, 40)  # RGB at a sigma of 1 % and of 6 % of the face or more
UNKNOWN = (80, 200, 255)  # no sigma stated
LINE = (255, 255, 255)
DOT = 3.0  # px
HIDDEN = 0.5  # confidence below which a point is drawn hollow


def draw_landmarks(image: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """The part of image [H, W, 3] uint8 around the face with its points (first view of `landmarks`), uint8
    [h, w, 3].

    Each point is a dot in a faint disk with the standard deviation as radius, green to red with it; the dot
    of a point that is probably hidden (confidence below 0.5) is hollow. Every fifth point has its number,
    counted from 1 as in .pts files.
    """
    points = landmarks.points[0].double().numpy()
    valid = landmarks.valid[0].numpy() & np.isfinite(points).all(1)
    sigma, seen = landmarks.sigma[0].double().numpy(), landmarks.confidence[0].numpy() >= HIDDEN
    H, W = image.shape[:2]
    low, high = points[valid].min(0), points[valid].max(0)
    face = float((high - low).max())
    start = np.clip(np.floor(low - ROOM * face), 0, [W - 1, H - 1]).astype(int)
    end = np.clip(np.ceil(high + ROOM * face), start + 1, [W, H]).astype(int)
    part = image[start[1] : end[1], start[0] : end[0]]
    scale = SIDE / max(part.shape[:2])
    size = tuple(max(1, round(n * scale)) for n in part.shape[1::-1])
    picture = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Pixel centres are whole numbers, so the corner of the image is at -0.5.
    at = (points + 0.5 - start) * (np.array(size) / part.shape[1::-1]) - 0.5

    def fixed(p: np.ndarray) -> tuple[int, int]:
        return int(round(p[0] * 16)), int(round(p[1] * 16))

    lines = picture.copy()
    for curve, closed in (*CURVES, (range(17), False)):
        order = [*curve, curve[0]] if closed else [*curve]
        for a, b in itertools.pairwise(order):
            if valid[a] and valid[b]:
                cv2.line(lines, fixed(at[a]), fixed(at[b]), LINE, 1, cv2.LINE_AA, 4)
    picture = cv2.addWeighted(lines, 0.45, picture, 0.55, 0)
    disks = picture.copy()
    for i in np.flatnonzero(valid & np.isfinite(sigma)):
        cv2.circle(
            disks,
            fixed(at[i]),
            round(max(DOT, float(sigma[i]) * scale) * 16),
            _color(sigma[i] / face),
            -1,
            cv2.LINE_AA,
            4,
        )
    picture = cv2.addWeighted(disks, 0.4, picture, 0.6, 0)
    for i in np.flatnonzero(valid):
        color = _color(sigma[i] / face)
        cv2.circle(picture, fixed(at[i]), round(DOT * 16), color, -1 if seen[i] else 2, cv2.LINE_AA, 4)
        if (i + 1) % 5 == 0:
            where = (round(at[i][0] + DOT + 2), round(at[i][1] - DOT - 1))
            cv2.putText(picture, str(i + 1), where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 2, cv2.LINE_AA)
            cv2.putText(
                picture, str(i + 1), where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA
            )
    return picture


def _color(share: float) -> tuple[int, int, int]:
    """RGB for a standard deviation as a share of the face; NaN: none stated."""
    if not np.isfinite(share):
        return UNKNOWN
    doubt = float(np.clip((share - 0.01) / 0.05, 0, 1))
    red, green, blue = (int(round(a + doubt * (b - a))) for a, b in zip(SURE, UNSURE))
    return red, green, blue
