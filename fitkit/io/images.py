"""Image files -> upright [H, W, 3] uint8 sRGB arrays, decoded when they are needed."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from fitkit.errors import InputError
from fitkit.geometry.color import srgb_from_linear
from fitkit.io.foreign import IrregularFileError, open_regular

with suppress(ImportError):  # not needed otherwise
    from pillow_heif import register_heif_opener

    register_heif_opener()

COMMON = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MODERN = (".avif", ".heic", ".heif", ".hif")  # not read on every machine
SUFFIXES = COMMON + (".jfif", ".jpe", ".jp2", ".ppm", ".pgm", ".pnm") + MODERN
# Not read: their image may be a small preview.
RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf")
Image.init()  # registers the formats
# What a file may be, whatever its suffix; no EPS, PDF, ...
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF")
DEEP = ("PNG", "TIFF", "PPM", "JPEG2000")  # those that may have 16 bits
RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))  # what cameras write into files for more
LABELS = 32  # a mask of whole numbers below is 0 and 1, or numbers of parts of the face
MIN_SIDE = 32  # px; a face in less is no use
# Long over short side; phones cut their pictures to the first and the last themselves.
SENSORS = (1.0, 4 / 3, 3 / 2, 16 / 9)
FAR_AWAY = 5e5  # px
CACHE_BYTES = 512 * 2**20
FILM_DIAGONAL = 43.2666  # mm, of the 36 x 24 mm frame that EXIF's 35 mm focal length refers to
# Pillow warns above 89 megapixels and refuses above 178; phones make 108, so only the refusal is for users.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", module="PIL")


@dataclass(frozen=True)
class Distortion:
    """Lens distortion to remove: K [3, 3] px; coefficients [4, 5, 8, 12 or 14] in OpenCV's order, or [4] of
    OpenCV's fisheye model."""

    K: np.ndarray
    coefficients: np.ndarray
    fisheye: bool = False

    def undistort_image(self, image: np.ndarray, nearest: bool = False) -> np.ndarray:
        """[H, W(, 3)] -> the same size and K without distortion; what the lens did not see becomes 0."""
        h, w = image.shape[:2]
        init = cv2.fisheye.initUndistortRectifyMap if self.fisheye else cv2.initUndistortRectifyMap
        maps = init(self.K, self.coefficients, np.eye(3), self.K, (w, h), cv2.CV_32FC1)
        return cv2.remap(
            image, *maps, cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )

    def undistort_points(self, points: np.ndarray) -> np.ndarray:
        """[N, 2] px of the photo -> [N, 2] px of the undistorted image; NaN stays NaN, and is what such an
        image cannot show."""
        result = points.astype(np.float64).copy()
        seen = np.isfinite(points).all(1)
        if seen.any():
            undistort = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
            result[seen] = undistort(result[seen][:, None], self.K, self.coefficients, P=self.K)[:, 0]
        result[np.abs(result).max(1) > FAR_AWAY] = np.nan  # OpenCV's mark for no solution is -1e6
        return result


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image on disk that is known to be readable; calling it gives [H, W, 3] uint8 (or [H, W] bool for a
    mask).

    size: (W, H) of the upright image; focal_px: from EXIF, or None; mask: read as mask, see `usable_pixels`;
    distortion: removed after decoding, or None; cut_out: parts of it are transparent, as a mask the file says
    which; notes: what was assumed, as parts of a sentence about the file; small: see `small_picture`, None
    for a mask. Recently used arrays are kept, 512 MB in all; any thread may call.
    """

    path: Path
    size: tuple[int, int]
    focal_px: float | None = None
    mask: bool = False
    distortion: Distortion | None = None
    cut_out: bool = False
    notes: tuple[str, ...] = ()
    small: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        array = _CACHE.get(self)
        if array is None:
            array = self._decode()
            _CACHE.put(self, array)
        return array

    def _decode(self) -> np.ndarray:
        array = _decode(self.path, self.mask).pixels
        if self.distortion is not None:
            array = self.distortion.undistort_image(array.astype(np.uint8), nearest=self.mask)
        return array.astype(bool) if self.mask else array

    def undistorted(self, distortion: Distortion) -> ImageFile:
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
        InputError: missing, corrupt, cut off, no image at all, too large or too small; the message names the
            file.
    """
    picture = _decode(Path(path), mask)
    size = (picture.pixels.shape[1], picture.pixels.shape[0])
    file = ImageFile(
        Path(path),
        size,
        picture.focal_px,
        mask,
        None,
        picture.usable is not None,
        picture.notes,
        None if mask else small_picture(picture.pixels),
    )
    _CACHE.put(file, picture.pixels)
    return file


def read_image(path: str | os.PathLike) -> tuple[np.ndarray, float | None]:
    """Decode an image file, upright as its EXIF orientation says.

    Returns:
        [H, W, 3] uint8 sRGB; focal length in px from EXIF, or None.
    Raises:
        InputError: as `open_image`.
    """
    picture = _decode(Path(path), False)
    return picture.pixels, picture.focal_px


@dataclass(frozen=True)
class Picture:
    """pixels: [H, W, 3] uint8 sRGB, upright, or [H, W] bool of a mask; usable: [H, W] bool where parts are
    transparent, or None; notes: what was assumed, as parts of a sentence; focal_px: from EXIF, or None."""

    pixels: np.ndarray
    usable: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    focal_px: float | None = None


def _decode(path: Path, mask: bool) -> Picture:
    """An image file, checked as `open_image` says."""
    suffix = path.suffix.lower()
    if suffix in RAW:
        raise InputError(f"{path}: raw photos are not read; convert it to JPEG")
    try:
        with open_regular(path) as file:
            picture = _decode_stream(file, mask)
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise InputError(f"{path}: the image is larger than {limit} megapixels; reduce it") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image file") from error
    except PermissionError as error:
        raise InputError(f"{path}: the image may not be read (permission denied)") from error
    except IrregularFileError as error:
        raise InputError(f"{path}: {error}; expected an image file") from error
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on bad bytes
        if suffix in MODERN or isinstance(error, _ModernFormatError):
            package = "" if "HEIF" in Image.OPEN else " here without the package pillow-heif"
            raise InputError(
                f"{path}: not readable as a HEIC or AVIF photo{package}; convert it to JPEG"
            ) from error
        raise InputError(
            f"{path}: not a readable image (corrupt, cut off or another file type); "
            "save it again as JPEG or PNG, or remove it"
        ) from error
    if not mask and min(picture.pixels.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"{path}: the image has {picture.pixels.shape[1]} x {picture.pixels.shape[0]} px; "
            f"expected at least {MIN_SIDE} x {MIN_SIDE}"
        )
    return picture


class _ModernFormatError(ValueError):
    """By its first bytes a HEIC or AVIF file, whatever its suffix."""


def _decode_stream(file: BinaryIO, mask: bool) -> Picture:
    try:
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    except UnidentifiedImageError as error:
        head = _bytes(file)[:12]
        if head[4:8] == b"ftyp":
            raise _ModernFormatError from error
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _decode_deep_tiff(file, mask)
        raise
    with image:
        image.load()
        focal, orientation = focal_from_exif(image), _orientation(image)
        # Of colours of 16 bits Pillow keeps the upper 8, and of JPEG 2000 less.
        deep = (
            not mask
            and image.format in DEEP
            and image.mode in ("RGB", "RGBA", "LA")
            and (
                image.format == "JPEG2000"
                or max(top for _, top in image.getextrema()[: len(image.mode.rstrip("A"))]) <= 64
            )
        )
        picture = _mask_picture(image) if mask else _convert(image)
    del image  # a large one takes as much memory as the array
    values = cv2.imdecode(np.frombuffer(_bytes(file), np.uint8), cv2.IMREAD_UNCHANGED) if deep else None
    if values is not None and values.dtype == np.uint16 and values.ndim == 3:
        order = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        picture = picture_from_array(cv2.cvtColor(values, order), "")
    return replace(_turned(picture, orientation), focal_px=None if mask else focal)


def _bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _decode_deep_tiff(file: BinaryIO, mask: bool) -> Picture:
    """Colours of 32 bits or in floating point, which Pillow does not know."""
    data = _bytes(file)
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file.seek(tags.next)
    tags.load(file)
    if tags[TiffImagePlugin.IMAGEWIDTH] * tags[TiffImagePlugin.IMAGELENGTH] > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values.ndim == 3:
        values = values[..., 2::-1]
    pixels, notes = (
        usable_pixels(values.max(-1) if values.ndim == 3 else values) if mask else _eight_bits(values)
    )
    return _turned(Picture(pixels, notes=notes), int(tags.get(ORIENTATION, 1)))


def small_picture(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [96, 96] uint8 grey: what stays alike when a photo is saved again."""
    return cv2.cvtColor(cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


ORIENTATION = 274  # the EXIF tag
_TURNS = {
    2: lambda a: cv2.flip(a, 1),
    3: lambda a: cv2.rotate(a, cv2.ROTATE_180),
    4: lambda a: cv2.flip(a, 0),
    5: cv2.transpose,
    6: lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE),
    7: lambda a: cv2.flip(cv2.transpose(a), -1),
    8: lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE),
}  # EXIF orientation: what makes the image upright


def _turned(picture: Picture, orientation: int) -> Picture:
    if orientation not in _TURNS:
        return picture

    def turn(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else _TURNS[orientation](array.view(np.uint8)).view(array.dtype)

    return replace(picture, pixels=turn(picture.pixels), usable=turn(picture.usable))


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it writes the EXIF data anew, which fails on damaged ones.
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF data leave the photo usable
        return 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode -> [H, W, 3] uint8. Transparent pixels become white; colour profiles are
    ignored."""
    return _convert(image).pixels


def picture_from_pillow(image: Image.Image) -> Picture:
    """A Pillow image of any mode, turned upright as its EXIF data say."""
    orientation = _orientation(image)
    picture = _turned(_convert(image), orientation)
    notes = ("turned upright, as its EXIF data say",) if orientation in _TURNS else ()
    return replace(picture, notes=picture.notes + notes)


def _convert(image: Image.Image) -> Picture:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        pixels, losses = _eight_bits(values.astype(np.uint16) if image.mode.startswith("I;16") else values)
        return Picture(pixels, notes=losses)
    usable: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        if alpha.max() < 128:
            notes = ("its alpha channel says that all of it is transparent; it was not used",)
        else:
            usable = _opaque(alpha)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Picture(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), usable, notes)


def _opaque(alpha: np.ndarray) -> np.ndarray | None:
    """[H, W] bool: what an alpha channel leaves; None where it tells nothing apart."""
    usable = alpha >= 128
    return None if usable.all() or not usable.any() else usable


def _mask_picture(image: Image.Image) -> Picture:
    """The mask in an image: its transparency where there is some, else its colours."""
    if image.has_transparency_data:
        usable = _opaque(np.asarray(image.convert("RGBA").getchannel("A")))
        if usable is not None:
            return Picture(usable, notes=("the mask is in its alpha channel",))
    labels = image.mode in ("P", "PA")  # the colours of a palette have no order
    if labels or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        values = values[..., [b.upper() != "A" for b in image.getbands()]].max(-1)
    usable, notes = (values != 0, ()) if labels else usable_pixels(values)
    return Picture(usable, notes=notes)


def usable_pixels(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """A mask [H, W] of numbers -> bool, True = usable, and what was assumed. Usable is what has at least half
    of the largest value, so that soft edges and backgrounds that are not quite 0 do no harm; of small whole
    numbers, labels, all but 0."""
    if values.dtype == bool:
        return values, ()
    values = np.nan_to_num(values) if values.dtype.kind == "f" else values
    top = values.max(initial=0)
    if values.dtype.kind in "iu" and top < LABELS:
        return values != 0, ()
    between = bool(((values > 0) & (values < top)).any())
    notes = (f"of its values, 0 to {top:g}, those from {top / 2:g} on count as usable",) if between else ()
    return (values >= top / 2) & (values > 0), notes


def _eight_bits(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Brightness [H, W] or [H, W, 3] of a range that the file does not state -> [H, W, 3] uint8, and what was
    assumed.

    Floating point up to 1 is what programs write; whole numbers reach to the end of one of RANGES; fractions
    beyond 1 whose median is far below are linear light of a large range.
    """
    values = np.where(np.isfinite(values), values, 0) if values.dtype.kind == "f" else values
    if (
        -1.05 <= values.min(initial=0) < -0.5 and 0.5 < values.max(initial=0) <= 1.05
    ):  # as networks take pictures
        scaled, _ = _eight_bits((values + 1) / 2)
        return scaled, ("its values go from -1 to 1; -1 was taken as black",)
    top, curve = float(values.max(initial=0)), False
    white = next((float(r) for r in RANGES if top <= 1.02 * r), top)  # lossy files go a little beyond
    if values.dtype.kind == "f" and top <= 1.05:  # resampling goes a little beyond 1
        white = 1.0
    elif values.dtype.kind == "f" and (values != np.round(values)).any():
        some = values[::4, ::4][values[::4, ::4] > 0]
        middle = float(np.median(some)) if len(some) else white
        curve = middle < 0.02 * white
        if curve:  # the middle of a photo is about as light as a grey card
            white = min(float(np.percentile(some, 99)), middle / 0.18)
    told = white not in (1, 65535) and (
        white != 255 or values.dtype == np.uint16 or (values != np.round(values)).any()
    )
    notes = (
        (f"its values go up to {top:g}; " + "linear light, " * curve + f"{white:.5g} was taken as white",)
        if told
        else ()
    )
    scaled = np.clip(values * np.float32(1 / white), 0, 1)
    if curve:
        scaled = srgb_from_linear(torch.from_numpy(scaled)).numpy()
    scaled = np.round(255 * scaled).astype(np.uint8)
    return (scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=-1)), notes


def picture_from_array(array: Any, where: str) -> Picture:
    """An array from the caller: [H, W], [H, W, 1], RGB or RGBA; uint8, uint16, bool or float in [0, 1].

    Raises:
        InputError: another shape, type or range; `where` names the image in the message.
    """
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise InputError(
            f"{where}: expected an image [H, W], [H, W, 3] or [H, W, 4], got {type(array).__name__} ({error})"
        ) from error
    if (
        array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
        or min(array.shape[:2]) < MIN_SIDE
    ):
        raise InputError(
            f"{where}: expected an image [H, W], [H, W, 3] or [H, W, 4] of at least {MIN_SIDE} x {MIN_SIDE} "
            "px, got " + (f"shape {list(array.shape)}" if array.ndim else type(array.item()).__name__)
        )
    notes: tuple[str, ...] = ()
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint16:
        colors, notes = _eight_bits(array[..., :3])
        array = np.dstack([colors[..., : array.shape[2]], np.round(array[..., 3:] / 257.0).astype(np.uint8)])
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"{where}: a floating-point image must lie in 0..1, got "
                f"{array.min():.4g}..{array.max():.4g}; give uint8, or divide by 255"
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{where}: expected uint8, uint16 or float in 0..1, got {array.dtype}")
    if array.shape[2] == 4:
        picture = _convert(Image.fromarray(array))
        return replace(picture, notes=(*notes, *picture.notes))
    return Picture(np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3))), notes=notes)


def focal_from_exif(image: Image.Image) -> float | None:
    """Focal length in px of the whole image from its EXIF data, or None.

    FocalLengthIn35mmFilm f35: f = f35 * diagonal / 43.2666 mm; else FocalLength with the sensor's resolution.
    A picture whose sides are not in the proportion that EXIF states, or in that of any sensor, was cropped:
    None.
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
