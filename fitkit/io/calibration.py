"""cameras.json -> calibrated cameras per view, in OpenCV's convention."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file, shown

# What no camera of a face is beyond: focal length and principal point in px, translation in mm, distortion coefficients.
FOCAL_RANGE, FARTHEST_PX, FARTHEST_MM, LARGEST_DISTORTION = (1.0, 1e6), 1e6, 1e8, 1e6
NAME_KEYS = ("image", "name", "view", "file")


@dataclass(frozen=True)
class Calibration:
    """One view's entry: x_camera = R x_world + t (mm), x right, y down, z forward.

    K: [3, 3] px of the upright image; R: [3, 3], t: [3] mm, or both None; distortion: OpenCV coefficients or None;
    size: (W, H) of the image that K belongs to, or None.
    """

    K: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None
    distortion: np.ndarray | None = None
    size: tuple[int, int] | None = None


def read_cameras(path: str | os.PathLike) -> dict[str, Calibration]:
    """Read `{"views": [{"image": "a.jpg", "K": ...}, ...]}` or `{"a": {"K": ...}, ...}`.

    Returns:
        image name, as written in the file, -> Calibration.
    Raises:
        InputError: not readable, or an entry that is no camera; names file, view and key.
    """
    path = Path(path)
    with foreign_file(path, "not a readable JSON file") as file:
        content = file.json()
    views = content.get("views", content) if isinstance(content, dict) else content
    if isinstance(views, dict):
        entries = {name: v for name, v in views.items() if isinstance(v, dict)}
    elif isinstance(views, list) and all(isinstance(v, dict) for v in views):
        entries = {}
        for i, view in enumerate(views):
            name = next((view[k] for k in NAME_KEYS if isinstance(view.get(k), str)), None)
            if name is None:
                raise InputError(f"{path}: view {i}: no image name; expected \"image\": \"FILE\"")
            if name in entries:
                raise InputError(f"{path}: view {shown(name)} occurs twice")
            entries[name] = view
    else:
        entries = {}
    if not entries:
        raise InputError(f"{path}: no cameras; expected {{\"views\": [{{\"image\": ..., \"K\": ..., \"R\": ..., \"t\": ...}}]}} "
                         "or {\"IMAGE\": {\"K\": ...}}")
    return {name: parse_camera(entry, f"{path}: view {shown(name)}") for name, entry in entries.items()}


def parse_camera(entry: dict, where: str) -> Calibration:
    """One camera with the keys K, R, t, distortion, width, height; `where` begins each message.

    Raises:
        InputError: K missing or not an intrinsic matrix, R not a rotation, R without t, unknown distortion.
    """
    if entry.get("K") is None:
        raise InputError(f"{where}: K is missing; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    K = _array(entry["K"], (3, 3), f"{where}: K")
    # Our cameras have no skew; a calibration that needs one is not of a usual lens.
    if not (K[0, 0] > 0 and K[1, 1] > 0 and np.allclose(K[2], [0, 0, 1]) and K[1, 0] == 0 and abs(K[0, 1]) < 1e-3 * K[0, 0]):
        raise InputError(f"{where}: K: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, got {K.tolist()}")
    (fx, _, cx), (_, fy, cy), _ = K.tolist()
    low, high = min(fx, fy), max(fx, fy)
    if not (FOCAL_RANGE[0] <= low and high <= min(FOCAL_RANGE[1], 10 * low) and max(abs(cx), abs(cy)) <= FARTHEST_PX):
        raise InputError(f"{where}: K: expected focal lengths of {FOCAL_RANGE[0]:g} to {FOCAL_RANGE[1]:g} px, at most 10 "
                         f"times apart, and a principal point up to {FARTHEST_PX:g} px away, got {K.tolist()}; give K in "
                         "pixels of the image")
    R, t = entry.get("R"), entry.get("t")
    if (R is None) != (t is None):
        raise InputError(f"{where}: {'R' if R is None else 't'} is missing; give R and t, or neither")
    if R is not None:
        R, t = _array(R, (3, 3), f"{where}: R"), _array(t, (3,), f"{where}: t")
        if max(map(abs, t.tolist())) > FARTHEST_MM:
            raise InputError(f"{where}: t: expected millimetres, up to {FARTHEST_MM:g}, got {t.tolist()}")
        if (largest := max(map(abs, R.ravel().tolist()))) > 2:
            raise InputError(f"{where}: R: not a rotation (it has an element {largest:.4g}, should be at most 1)")
        u, _, vt = np.linalg.svd(R)
        if np.linalg.det(R) < 0 or np.abs(u @ vt - R).max() > 1e-2:
            raise InputError(f"{where}: R: not a rotation (det {np.linalg.det(R):.4g}, should be 1 with orthonormal rows)")
        R = u @ vt  # digits lost in the file would add a scale
    distortion = entry.get("distortion", entry.get("dist"))
    if distortion is not None:
        distortion = _array(distortion, (-1,), f"{where}: distortion")
        if len(distortion) not in (0, 4, 5, 8, 12, 14):
            raise InputError(f"{where}: distortion: expected 4, 5, 8, 12 or 14 coefficients (OpenCV's order), "
                             f"got {len(distortion)}")
        if np.abs(distortion).max(initial=0) > LARGEST_DISTORTION:
            raise InputError(f"{where}: distortion: expected coefficients up to {LARGEST_DISTORTION:g}, "
                             f"got {np.abs(distortion).max():.4g}")
        distortion = distortion if np.any(distortion) else None
    size = None
    if entry.get("width") is not None and entry.get("height") is not None:
        numbers = _array([entry["width"], entry["height"]], (2,), f"{where}: width, height")
        size = tuple(int(v) for v in numbers.clip(0, 1e9))
    return Calibration(K, R, t, distortion, size)


def _array(value, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected numbers: {error}") from error
    if len(shape) == 1 and array.size == max(array.shape, default=0):
        array = array.reshape(-1)  # a column or row vector
    if array.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, array.shape)) or not np.isfinite(array).all():
        wanted = "a list" if shape == (-1,) else f"shape {list(shape)}"
        raise InputError(f"{where}: expected finite numbers, {wanted}, got shape {list(array.shape)}")
    return array
