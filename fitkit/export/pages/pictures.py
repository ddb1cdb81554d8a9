"""Pictures of a result folder, small enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fitkit.export.overlay import overlay_halves
from fitkit.export.preview import preview_front
from fitkit.fitting.report import FitReport
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.result_folder import stems_of

PICTURE_BYTES = 64 * MEGABYTE
THUMBNAIL = "thumbnail.jpg"
THUMBNAIL_HEIGHT = 112  # px
WIDEST = 1.6  # of a thumbnail's photo: width over height; wider ones are cut
NOT_READABLE = "not readable as a picture of a result"


def overlay_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The photo and the photo with the mesh over it of `overlay/STEM.png`, BGR [h, w, 3].

    Raises:
        InputError: not such a picture.
    """
    with foreign_file(path, NOT_READABLE, limit=PICTURE_BYTES) as file:
        return overlay_halves(_decoded(file.picture()))


def encode_jpeg(picture: np.ndarray, longest: int, quality: int = 85) -> bytes:
    """BGR [h, w, 3] as the content of a JPEG file; longest: px of its longer side at most."""
    ratio = longest / max(picture.shape[:2])
    if ratio < 1:
        size = [max(1, round(s * ratio)) for s in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def draw_thumbnail(folder: Path, report: FitReport) -> bytes | None:
    """A result folder in one small JPEG: the mesh over the photo that tells most, beside the neutral face
    from the front; None: it has neither picture.

    The photo is the first that a finding names, otherwise the one whose face is turned least.

    Raises:
        InputError: one of the pictures cannot be read.
    """
    tiles = []
    names = [view.name for view in report.views]
    if names:
        path = folder / "overlay" / f"{stems_of(names)[_telling(report)]}.png"
        if path.is_file():
            tiles.append(_scaled(overlay_pair(path)[1]))
    path = folder / "preview.png"
    if path.is_file():
        with foreign_file(path, NOT_READABLE, limit=PICTURE_BYTES) as file:
            tiles.append(_scaled(preview_front(_decoded(file.picture()))))
    if not tiles:
        return None
    return encode_jpeg(np.concatenate(tiles, 1), 4 * THUMBNAIL_HEIGHT, quality=75)


def _decoded(picture: np.ndarray | None) -> np.ndarray:
    if picture is None:
        raise ValueError("it is no picture")
    return picture


def _telling(report: FitReport) -> int:
    """Number of the view that a thumbnail shows."""
    names = [view.name for view in report.views]
    wrong = [f.view for f in report.verdict.findings if f.severity != "note" and f.view in names]
    if wrong:
        return names.index(wrong[0])
    return int(np.argmin([_turned(view.yaw_pitch_roll_deg) for view in report.views]))


def _turned(angles: Sequence[float]) -> float:
    return abs(angles[0]) if angles else 360.0


def _scaled(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if width > WIDEST * height:
        cut = round((width - WIDEST * height) / 2)
        picture = picture[:, cut : width - cut]
        width = picture.shape[1]
    size = (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
