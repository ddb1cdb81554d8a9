"""cameras.json -> calibrated cameras per view, in OpenCV's convention."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file, shown

# What no camera of a face is beyond: focal length and principal point in px, translation in mm, distortion
# coefficients.
FOCAL_RANGE, FARTHEST_PX, FARTHEST_MM, LARGEST_DISTORTION = (1.0, 1e6), 5e4, 1e8, 1e6
NAME_KEYS = ("image", "name", "view", "file")
# mm in the unit of t; None: nobody knows.
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "unknown": None}
MODEL_KEYS = ("camera_model", "distortion_model", "lens_model", "projection")
FISHEYE = ("OPENCV_FISHEYE", "FISHEYE", "EQUIDISTANT", "KANNALA_BRANDT", "KANNALA_BRANDT4", "KB4")
PINHOLE = (
    "PINHOLE",
    "SIMPLE_PINHOLE",
    "PERSPECTIVE",
    "OPENCV",
    "FULL_OPENCV",
    "PLUMB_BOB",
    "RATIONAL_POLYNOMIAL",
    "RADTAN",
    "BROWN",
    "BROWN_CONRADY",
    "RADIAL",
    "SIMPLE_RADIAL",
    "NONE",
)
DISTORTION_KEYS = (
    "distortion",
    "dist",
    "dist_coeffs",
    "dist_coefs",
    "distCoeffs",
    "distortion_coefficients",
    "distortion_coeffs",
    "D",
)
# OpenCV's order; fisheye has k1 to k4.
NAMED = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class Calibration:
    """One view's entry: x_camera = R x_world + t, x right, y down, z forward.

    K: [3, 3] px of the upright image; R: [3, 3], t: [3], or both None; distortion: OpenCV coefficients or
    None; size: (W, H) of the image that K belongs to, or None; fisheye: the coefficients are the four of
    OpenCV's fisheye model; moment, camera_id: names of the moment that the view shows and of the camera that
    took it, "" = none stated; metric: t is in mm; else in a unit that nobody knows, the same in all views.
    """

    K: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None
    distortion: np.ndarray | None = None
    size: tuple[int, int] | None = None
    fisheye: bool = False
    moment: str = ""
    camera_id: str = ""
    metric: bool = True


def read_cameras(path: str | os.PathLike) -> dict[str, Calibration]:
    """Read `{"views": [{"image": "a.jpg", "K": ...}, ...]}` or `{"a": {"K": ...}, ...}`; what stands beside
    the views holds for all of them.

    Returns:
        image name, as written in the file, -> Calibration.
    Raises:
        InputError: not readable, or an entry that is no camera; names file, view and key.
    """
    path = Path(path)
    with foreign_file(path, "not a readable JSON file") as file:
        content = file.json()
    views = content.get("views", content) if isinstance(content, dict) else content
    beside = content.items() if isinstance(content, dict) else ()
    shared = {k: v for k, v in beside if k != "views" and (views is not content or not isinstance(v, dict))}
    if isinstance(views, dict):
        entries = {name: v for name, v in views.items() if isinstance(v, dict)}
    elif isinstance(views, list) and all(isinstance(v, dict) for v in views):
        entries = {}
        for i, view in enumerate(views):
            name = next((view[k] for k in NAME_KEYS if isinstance(view.get(k), str)), None)
            if name is None:
                raise InputError(f'{path}: view {i}: no image name; expected "image": "FILE"')
            if name in entries:
                raise InputError(f"{path}: view {shown(name)} occurs twice")
            entries[name] = view
    else:
        entries = {}
    if not entries:
        raise InputError(
            f'{path}: no cameras; expected {{"views": [{{"image": ..., "K": ..., "R": ..., "t": ...}}]}} '
            'or {"IMAGE": {"K": ...}}'
        )
    return {
        name: parse_camera({**shared, **entry}, f"{path}: view {shown(name)}")
        for name, entry in entries.items()
    }


def parse_camera(entry: dict, where: str) -> Calibration:
    """One camera with the keys K, R, t, unit, distortion, width, height, moment, camera_id; `where` begins
    each message.

    Raises:
        InputError: K missing or not an intrinsic matrix, R not a rotation, R without t, a unit or distortion
            that is not known, a moment or camera that is no name.
    """
    if entry.get("K") is None:
        raise InputError(f"{where}: K is missing; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    K = _array(entry["K"], (3, 3), f"{where}: K")
    # Our cameras have no skew; a calibration that needs one is not of a usual lens.
    if not (
        K[0, 0] > 0
        and K[1, 1] > 0
        and np.allclose(K[2], [0, 0, 1])
        and K[1, 0] == 0
        and abs(K[0, 1]) < 1e-3 * K[0, 0]
    ):
        raise InputError(
            f"{where}: K: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, got {K.tolist()}"
        )
    (fx, _, cx), (_, fy, cy), _ = K.tolist()
    low, high = min(fx, fy), max(fx, fy)
    if not (
        FOCAL_RANGE[0] <= low
        and high <= min(FOCAL_RANGE[1], 10 * low)
        and max(abs(cx), abs(cy)) <= FARTHEST_PX
    ):
        raise InputError(
            f"{where}: K: expected focal lengths of {FOCAL_RANGE[0]:g} to {FOCAL_RANGE[1]:g} px, at most 10 "
            f"times apart, and a principal point up to {FARTHEST_PX:g} px away, got {K.tolist()}; give K in "
            "pixels of the image"
        )
    R, t, mm = entry.get("R"), entry.get("t"), _unit(entry, where)
    if (R is None) != (t is None):
        raise InputError(f"{where}: {'R' if R is None else 't'} is missing; give R and t, or neither")
    if R is not None:
        R, t = _array(R, (3, 3), f"{where}: R"), _array(t, (3,), f"{where}: t")
        t = t * (1.0 if mm is None else mm)
        if max(map(abs, t.tolist())) > FARTHEST_MM:
            raise InputError(f"{where}: t: expected millimetres, up to {FARTHEST_MM:g}, got {t.tolist()}")
        if (largest := max(map(abs, R.ravel().tolist()))) > 2:
            raise InputError(
                f"{where}: R: not a rotation (it has an element {largest:.4g}, should be at most 1)"
            )
        u, _, vt = np.linalg.svd(R)
        if np.linalg.det(R) < 0 or np.abs(u @ vt - R).max() > 1e-2:
            raise InputError(
                f"{where}: R: not a rotation (det {np.linalg.det(R):.4g}, should be 1 with orthonormal rows)"
            )
        R = u @ vt  # digits lost in the file would add a scale
    distortion, fisheye = _distortion(entry, where)
    size = None
    if entry.get("width") is not None and entry.get("height") is not None:
        numbers = _array([entry["width"], entry["height"]], (2,), f"{where}: width, height")
        width, height = numbers.clip(0, 1e9)
        size = int(width), int(height)
    names = []
    for key, shared_by in (("moment", "all photos taken at once"), ("camera_id", "all photos of a camera")):
        names.append("" if entry.get(key) is None else entry[key])
        if entry.get(key) is not None:
            check_name(entry[key], f"{where}: {key}", shared_by)
    return Calibration(K, R, t, distortion, size, fisheye, names[0], names[1], mm is not None)


def _unit(entry: dict, where: str) -> float | None:
    """mm in the unit of t; None: it is not known."""
    unit = entry.get("unit") or "mm"
    if not isinstance(unit, str) or unit not in UNITS:
        raise InputError(f"{where}: unit: expected one of {', '.join(UNITS)}, got {shown(unit)}")
    return UNITS[unit]


def check_name(name: object, where: str, shared_by: str) -> None:
    """Refuse what cannot be the name of a moment or a camera."""
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: expected a name in quotes, the same for {shared_by}, got {shown(name)}")


def _distortion(entry: dict, where: str) -> tuple[np.ndarray | None, bool]:
    """The distortion of one camera's lens, None without, and whether its coefficients are those of the
    fisheye model.

    Raises:
        InputError: a model or a key that is not known, or another number of coefficients than the model has.
    """
    if entry.get("kind") == "orthographic":
        raise InputError(f"{where}: kind 'orthographic': such a camera has no K; remove its entry")
    models = [
        entry[k].upper().replace("-", "_").replace(" ", "_")
        for k in MODEL_KEYS
        if isinstance(entry.get(k), str)
    ]
    unknown = next((m for m in models if m not in PINHOLE + FISHEYE), None)
    if unknown is not None:
        raise InputError(
            f"{where}: the camera model {shown(unknown)} is not known; expected PINHOLE, OPENCV (distortion "
            "in OpenCV's order) or OPENCV_FISHEYE, or no camera model"
        )
    fisheye = any(m in FISHEYE for m in models)
    odd = next(
        (
            k
            for k in entry
            if k not in DISTORTION_KEYS + NAMED + MODEL_KEYS
            and re.search("^[kps][0-9]+$|dist(ort|_?c)|radial|tangential|fisheye", k.lower())
            and _says_something(entry[k])
        ),
        None,
    )
    if odd is not None:
        raise InputError(
            f"{where}: the key {shown(odd)} is not known, and looks like distortion of the lens; give "
            '"distortion": [k1, k2, p1, p2, ...] '
            "in OpenCV's order, or undistort the photos"
        )
    given = [k for k in DISTORTION_KEYS if entry.get(k) is not None]
    named = [k for k in NAMED if entry.get(k) is not None]
    if len(given) + bool(named) > 1:
        raise InputError(
            f"{where}: {given[0]} and {(given + named)[1]} are both given; expected the distortion once"
        )
    if named:
        order = ("k1", "k2", "k3", "k4") if fisheye else NAMED
        wrong = next((k for k in named if k not in order), None)
        if wrong is not None:
            raise InputError(f"{where}: {wrong}: a fisheye camera has the coefficients k1, k2, k3, k4 only")
        last = next(n for n in (4, 5, 8, 12) if n >= 1 + max(map(order.index, named)))
        coefficients = np.array(
            [float(_array([entry.get(k) or 0], (1,), f"{where}: {k}")[0]) for k in order[:last]]
        )
    elif given:
        value = entry[given[0]]
        # A matrix of OpenCV's FileStorage.
        value = value["data"] if isinstance(value, dict) and "data" in value else value
        coefficients = _array(value, (-1,), f"{where}: {given[0]}")
    else:
        coefficients = np.zeros(4)
    allowed = (4,) if fisheye else (0, 4, 5, 8, 12, 14)
    if len(coefficients) not in allowed:
        expected = (
            "4 coefficients of OpenCV's fisheye model"
            if fisheye
            else "4, 5, 8, 12 or 14 coefficients (OpenCV's order)"
        )
        raise InputError(f"{where}: distortion: expected {expected}, got {len(coefficients)}")
    if np.abs(coefficients).max(initial=0) > LARGEST_DISTORTION:
        raise InputError(
            f"{where}: distortion: expected coefficients up to {LARGEST_DISTORTION:g}, got "
            f"{np.abs(coefficients).max():.4g}"
        )
    return (coefficients if fisheye or np.any(coefficients) else None), fisheye


def _says_something(value) -> bool:
    """Not only zeros and empty values."""
    if isinstance(value, (dict, list)):
        return any(map(_says_something, value.values() if isinstance(value, dict) else value))
    return bool(value)


def _array(value, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected numbers: {error}") from error
    if len(shape) == 1 and array.size == max(array.shape, default=0):
        array = array.reshape(-1)  # a column or row vector
    if (
        array.ndim != len(shape)
        or any(n not in (-1, m) for n, m in zip(shape, array.shape))
        or not np.isfinite(array).all()
    ):
        wanted = "a list" if shape == (-1,) else f"shape {list(shape)}"
        raise InputError(f"{where}: expected finite numbers, {wanted}, got shape {list(array.shape)}")
    return array
