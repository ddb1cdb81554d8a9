"""A face model's landmarks on its mean head, to check them by eye."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from fitkit.export.preview import SUPERSAMPLE, Sides
from fitkit.io.atomic import written_whole
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import lit_surface

LOOKS = (-45, 0, 45)  # degrees, of the yaws of `Sides`
TILE = (860, 740)  # (H, W) px of one side
ROOM = 1.3  # the height that is shown, over that of the points
GROUND = 0.93  # sRGB
DOT, EDGE, NUMBER = (220, 40, 30), (255, 255, 255), (10, 10, 10)  # RGB


def write_landmark_picture(model: FaceModel, path: str | os.PathLike) -> Path:
    """`draw_model_landmarks` as a PNG file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with written_whole(Path(path), "choose another place with --check") as part:
        Image.fromarray(draw_model_landmarks(model)).save(part, format="PNG")
    return Path(path)


@torch.no_grad()
def draw_model_landmarks(model: FaceModel) -> np.ndarray:
    """The mean head, grey, from both sides and the front, uint8 [H, W, 3], with the points that are seen
    there and their numbers, counted from 0."""
    points = model.landmarks.points(model.mean[None], model.triangles)[0][model.landmarks.present]
    numbers = model.landmarks.present.nonzero().flatten().tolist()
    low, high = points.amin(0), points.amax(0)
    height = float(torch.maximum(high[1] - low[1], (high[0] - low[0]) * TILE[0] / TILE[1])) * ROOM
    sides = Sides(model.mean, model.triangles, ((low + high) / 2, height), TILE)
    return np.concatenate([_look(sides, yaw, points, numbers) for yaw in LOOKS], 1)


def _look(sides: Sides, yaw: int, points: torch.Tensor, numbers: list[int]) -> np.ndarray:
    side = sides.at(yaw)
    drawn = lit_surface(side.surface, side.diffuse, side.gloss, supersample=SUPERSAMPLE)
    alpha = drawn.alpha[..., None]
    picture = ((drawn.rgb * alpha + GROUND * (1 - alpha)) * 255).round().byte().numpy().copy()
    places, seen = sides.project(points, yaw)
    for number, (x, y), shown in zip(numbers, places.tolist(), seen.tolist()):
        if shown:
            center = round(x * 16), round(y * 16)
            cv2.circle(picture, center, 4 * 16, EDGE, -1, cv2.LINE_AA, 4)
            cv2.circle(picture, center, 3 * 16, DOT, -1, cv2.LINE_AA, 4)
            at = round(x) + 5, round(y) - 5
            cv2.putText(picture, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, NUMBER, 1, cv2.LINE_AA)
    return picture
