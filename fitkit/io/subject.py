"""A subject: all photos of one person and what is known about them."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class KnownCamera:
    """What is known of one view's camera (OpenCV convention, undistorted image).

    K: [3, 3] pixels; R: [3, 3] and t: [3] mm with x_camera = R x_world + t, or None when only K is known.
    """

    K: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None


@dataclass(frozen=True)
class View:
    """One photo. Pixel (0, 0) is the centre of the top-left pixel of the upright (EXIF-rotated) image.

    name: file stem; path: the image file or None for arrays; image: [H, W, 3] uint8 sRGB;
    landmarks: [68, 3] float64 (x, y, confidence), NaN = not seen, or None;
    focal_px: focal length in pixels from EXIF, or None; camera: from cameras.json, or None;
    mask: [H, W] bool, True = usable, or None.
    """

    name: str
    image: np.ndarray
    path: Path | None = None
    landmarks: np.ndarray | None = None
    landmark_source: str = ""
    focal_px: float | None = None
    camera: KnownCamera | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Subject:
    """All views of one person, sorted by name. notes: one line for each thing left out or assumed."""

    name: str
    views: tuple[View, ...]
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())
