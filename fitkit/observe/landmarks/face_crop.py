"""The square around a face that a landmark network sees."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MARGIN = 1.5  # side of the square over the larger side of the box of the 68 points


@dataclass(frozen=True)
class FaceSquare:
    """center: (x, y) px of the photo; side: px; angle: radians, positive turns the head upright that leans
    clockwise."""

    center: tuple[float, float]
    side: float
    angle: float = 0.0

    def matrix(self, size: int) -> np.ndarray:
        """[2, 3] photo px -> px of the crop of size x size; pixel (0, 0) is the centre of the top-left pixel
        in both."""
        scale = size / self.side
        c, s = scale * np.cos(self.angle), scale * np.sin(self.angle)
        turn = np.array([[c, s], [-s, c]])
        shift = (size - 1) / 2 - turn @ np.asarray(self.center, dtype=np.float64)
        return np.concatenate([turn, shift[:, None]], 1)


def square_of_points(points: np.ndarray, valid: np.ndarray | None = None, angle: float = 0.0) -> FaceSquare:
    """The square around landmarks [L, 2] px; with an angle, around their box in the turned picture."""
    points = np.asarray(points, dtype=np.float64)
    points = points if valid is None else points[valid]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = points @ turn.T
    low, high = turned.min(0), turned.max(0)
    center = turn.T @ ((low + high) / 2)
    return FaceSquare(
        (float(center[0]), float(center[1])), float(MARGIN * max((high - low).max(), 1.0)), float(angle)
    )


def cut(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The crop [size, size, 3] uint8 of a photo [H, W, 3] uint8; outside the photo its edge goes on."""
    scale = float(np.hypot(matrix[0, 0], matrix[0, 1]))
    if (
        scale < 0.5
    ):  # Interpolation alone would skip pixels: first the part that is needed is reduced by area means.
        corners = (np.array([[0, 0], [size, 0], [0, size], [size, size]]) - matrix[:, 2]) @ np.linalg.inv(
            matrix[:, :2]
        ).T
        low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, np.array(image.shape[1::-1]) - 1)
        high = np.clip(np.ceil(corners.max(0)).astype(int) + 3, low + 1, image.shape[1::-1])
        part = image[low[1] : high[1], low[0] : high[0]]
        shape = np.maximum(1, np.round(np.array(part.shape[1::-1]) * scale * 1.5).astype(int))
        factor = np.array(part.shape[1::-1]) / shape
        image = cv2.resize(part, tuple(int(n) for n in shape), interpolation=cv2.INTER_AREA)
        # Reduced px q stands for photo px low + (q + 1/2) * factor - 1/2.
        linear = matrix[:, :2] * factor
        matrix = np.concatenate(
            [linear, (matrix[:, :2] @ (low + factor / 2 - 0.5) + matrix[:, 2])[:, None]], 1
        )
    return cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
