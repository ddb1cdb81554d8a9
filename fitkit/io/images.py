"""Image files -> upright [H, W, 3] uint8 sRGB arrays, decoded when they are needed."""
from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fitkit.errors import InputError
from fitkit.io.foreign import IrregularFileError, open_regular

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Image.init()  # registers the formats
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF")  # what a file may be, whatever its suffix; no EPS, PDF, ...
MIN_SIDE = 32  # px; a face in less is no use
SENSORS = (1.0, 4 / 3, 3 / 2, 16 / 9)  # long over short side; phones cut their pictures to the first and the last themselves
FAR_AWAY = 5e5  # px
CACHE_BYTES = 512 * 2**20
FILM_DIAGONAL = 43.2666  # mm, of the 36 x 24 mm frame that EXIF's 35 mm focal length refers to
# Pillow warns above 89 megapixels and refuses above 178; phones make 108, so only the refusal is for users.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", module="PIL")


@dataclass(frozen=True)
class Distortion:
    """Lens distortion to remove: K [3, 3] px; coefficients [4, 5, 8, 12 or 14] in OpenCV's order, or [4] of OpenCV's fisheye model."""

    K: np.ndarray
    coefficients: np.ndarray
    fisheye: bool = False

    def undistort_image(self, image: np.ndarray, nearest: bool = False) -> np.ndarray:
        """[H, W(, 3)] -> the same size and K without distortion; what the lens did not see becomes 0."""
        h, w = image.shape[:2]
        init = cv2.fisheye.initUndistortRectifyMap if self.fisheye else cv2.initUndistortRectifyMap
        maps = init(self.K, self.coefficients, np.eye(3), self.K, (w, h), cv2.CV_32FC1)
        return cv2.remap(image, *maps, cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def undistort_points(self, points: np.ndarray) -> np.ndarray:
        """[N, 2] px of the photo -> [N, 2] px of the undistorted image; NaN stays NaN, and is what such an image cannot show."""
        result = points.astype(np.float64).copy()
        seen = np.isfinite(points).all(1)
        if seen.any():
            undistort = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
            result[seen] = undistort(result[seen][:, None], self.K, self.coefficients, P=self.K)[:, 0]
        result[np.abs(result).max(1) > FAR_AWAY] = np.nan  # OpenCV's mark for no solution is -1e6
        return result


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image on disk that is known to be readable; calling it gives [H, W, 3] uint8 (or [H, W] bool for a mask).

    size: (W, H) of the upright image; focal_px: from EXIF, or None; mask: read as mask, nonzero = True;
    distortion: removed after decoding, or None. Recently used arrays are kept, 512 MB in all; any thread may call.
    """

    path: Path
    size: tuple[int, int]
    focal_px: float | None = None
    mask: bool = False
    distortion: Distortion | None = None

    def __call__(self) -> np.ndarray:
        array = _CACHE.get(self)
        if array is None:
            array = self._decode()
            _CACHE.put(self, array)
        return array

    def _decode(self) -> np.ndarray:
        array, _ = read_image(self.path, mask=self.mask)
        if self.distortion is not None:
            array = self.distortion.undistort_image(array.astype(np.uint8), nearest=self.mask)
        return array.astype(bool) if self.mask else array

    def undistorted(self, distortion: Distortion) -> "ImageFile":
        return replace(self, distortion=distortion)


class _Cache:
    """Least recently used arrays up to a number of bytes."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self.items: OrderedDict[ImageFile, np.ndarray] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key):
        with self.lock:
            if key in self.items:
                self.items.move_to_end(key)
                return self.items[key]
        return None

    def put(self, key, array):
        array.setflags(write=False)  # everyone gets the same array
        with self.lock:
            self.used += array.nbytes - (self.items[key].nbytes if key in self.items else 0)
            self.items[key] = array
            while self.used > self.limit and self.items:
                self.used -= self.items.popitem(last=False)[1].nbytes


_CACHE = _Cache(CACHE_BYTES)


def open_image(path: str | os.PathLike, mask: bool = False) -> ImageFile:
    """Check that an image can be decoded from beginning to end.

    Raises:
        InputError: missing, corrupt, cut off, no image at all, too large or too small; the message names the file.
    """
    array, focal = read_image(path, mask=mask)
    file = ImageFile(Path(path), (array.shape[1], array.shape[0]), focal, mask)
    _CACHE.put(file, array)
    return file


def read_image(path: str | os.PathLike, mask: bool = False) -> tuple[np.ndarray, float | None]:
    """Decode an image file, upright as its EXIF orientation says.

    Returns:
        [H, W, 3] uint8 sRGB (or [H, W] bool, nonzero = True, with `mask`); focal length in px from EXIF, or None.
    Raises:
        InputError: as `open_image`.
    """
    path = Path(path)
    try:
        with open_regular(path) as file, Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            image.load()
            focal = focal_from_exif(image)
            orientation = _orientation(image)
            array = _to_mask(image).view(np.uint8) if mask else to_rgb(image)
        del image  # a large one takes as much memory as the array
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise InputError(f"{path}: the image is larger than {limit} megapixels; reduce it") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image file") from error
    except PermissionError as error:
        raise InputError(f"{path}: the image may not be read (permission denied)") from error
    except IrregularFileError as error:
        raise InputError(f"{path}: {error}; expected an image file") from error
    except Exception as error:  # noqa: BLE001 - decoders raise anything from SyntaxError to struct.error on bad bytes
        raise InputError(f"{path}: not a readable image (corrupt, cut off or another file type); "
                         "save it again as JPEG or PNG, or remove it") from error
    if orientation in _TURNS:
        array = _TURNS[orientation](array)
    if mask:
        return array.view(bool), None
    if min(array.shape[:2]) < MIN_SIDE:
        raise InputError(f"{path}: the image has {array.shape[1]} x {array.shape[0]} px; "
                         f"expected at least {MIN_SIDE} x {MIN_SIDE}")
    return array, focal


_TURNS = {2: lambda a: cv2.flip(a, 1), 3: lambda a: cv2.rotate(a, cv2.ROTATE_180), 4: lambda a: cv2.flip(a, 0), 5: cv2.transpose,
          6: lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE), 7: lambda a: cv2.flip(cv2.transpose(a), -1),
          8: lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE)}  # EXIF orientation: what makes the image upright


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it writes the EXIF data anew, which fails on damaged ones.
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF data leave the photo usable
        return 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode -> [H, W, 3] uint8. Transparent pixels become white; colour profiles are ignored."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16) / 257.0)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = values.max(initial=0)
        # Neither mode states its range: floats up to 1, 8 or 16 bit are what programs write.
        return _grey(values * (255 if image.mode == "F" and top <= 1 else 1 if top <= 255 else 255 / max(top, 65535)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _to_mask(image: Image.Image) -> np.ndarray:
    """[H, W] bool: any colour band is not zero; transparency does not count."""
    image = image.convert("RGB") if image.mode in ("P", "PA") else image
    nonzero = np.asarray(image) != 0
    return nonzero if nonzero.ndim == 2 else nonzero[..., [b != "A" for b in image.getbands()]].any(-1)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(np.round(values), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def array_to_rgb(array: np.ndarray, where: str) -> np.ndarray:
    """An array from the caller -> [H, W, 3] uint8: grey, RGB or RGBA; uint8, uint16, bool or float in [0, 1].

    Raises:
        InputError: another shape, type or range; `where` names the image in the message.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or min(array.shape[:2]) < MIN_SIDE:
        raise InputError(f"{where}: expected an image [H, W], [H, W, 3] or [H, W, 4] of at least {MIN_SIDE} x {MIN_SIDE} px, "
                         f"got shape {list(array.shape)}")
    if array.dtype == np.uint16:
        array = np.round(array / 257.0).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError(f"{where}: a floating-point image must lie in 0..1, got {array.min():.4g}..{array.max():.4g}; "
                             "give uint8, or divide by 255")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{where}: expected uint8, uint16 or float in 0..1, got {array.dtype}")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        return to_rgb(Image.fromarray(array, "RGBA"))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def focal_from_exif(image: Image.Image) -> float | None:
    """Focal length in px of the whole image from its EXIF data, or None.

    FocalLengthIn35mmFilm f35: f = f35 * diagonal / 43.2666 mm; else FocalLength with the sensor's resolution.
    A picture whose sides are not in the proportion that EXIF states, or in that of any sensor, was cropped: None.
    """
    try:
        exif = image.getexif().get_ifd(0x8769)
        numbers = {tag: float(exif[tag]) for tag in (41989, 37386, 41486, 40962, 40963) if tag in exif}
        unit = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(exif.get(41488, 2)))  # mm
    except Exception:  # noqa: BLE001 - damaged EXIF data leave the photo usable
        return None
    long, short = max(image.size), min(image.size)
    if min(abs(long / (short * aspect) - 1) for aspect in SENSORS) > 0.015:
        return None
    long0 = max(numbers.get(40962, 0), numbers.get(40963, 0))
    short0 = min(numbers.get(40962, 0), numbers.get(40963, 0))
    if short0 > 0 and abs(long * short0 / (short * long0) - 1) > 0.02:
        return None
    focal = None
    if numbers.get(41989, 0) > 0:
        focal = numbers[41989] * float(np.hypot(long, short)) / FILM_DIAGONAL
    elif numbers.get(37386, 0) > 0 and numbers.get(41486, 0) > 0 and unit and long0 > 0:
        focal = numbers[37386] * numbers[41486] / unit * long / long0
    # Outside of 5 mm to 1 m (in 35 mm terms) it is a broken entry.
    return focal if focal and 0.1 < focal / np.hypot(long, short) < 25 else None
