"""A subject: all photos of one person and what is known about them. The folder is described in docs/subject_folder.md."""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fitkit.errors import InputError
from fitkit.io import landmark_files
from fitkit.io.calibration import Calibration, read_cameras
from fitkit.io.images import SUFFIXES, Distortion, ImageFile, array_to_rgb, open_image, to_rgb
from fitkit.io.landmark_files import check_inside, check_landmarks, read_landmarks, without_strays

log = logging.getLogger("fitkit")

OUTPUT_FOLDER = "fitkit"  # results, inside the subject folder
RESULT_MARKS = ("metrics.json", "parameters.npz")  # by these a result folder is known
NO_SUBJECTS = frozenset((OUTPUT_FOLDER, "masks", "landmarks", "ground_truth"))  # folders of files about photos
DECODERS = min(4, os.cpu_count() or 1)  # threads; a 48-megapixel photo takes 0.4 GB while it is decoded


@dataclass(frozen=True)
class KnownCamera:
    """What is known of one view's camera (OpenCV convention, undistorted image).

    K: [3, 3] pixels; R: [3, 3] and t: [3] mm with x_camera = R x_world + t, or None when only K is known.
    """

    K: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None


class _OnDemand:
    """A field that holds an array, or a function without arguments that loads it each time the field is read."""

    def __init__(self, *default):
        self.default = default

    def __set_name__(self, owner, name):
        self.key = f"_{name}_source"

    def __get__(self, view, owner=None):
        if view is None:  # the dataclass asks for the default
            if self.default:
                return self.default[0]
            raise AttributeError(self.key)
        source = view.__dict__[self.key]
        return source() if callable(source) else source

    def __set__(self, view, value):
        view.__dict__[self.key] = value


@dataclass(frozen=True, repr=False, eq=False)
class View:
    """One photo. Pixel (0, 0) is the centre of the top-left pixel of the upright (EXIF-rotated) image.

    name: file stem; path: the image file or None for arrays; image: [H, W, 3] uint8 sRGB, decoded when it is read (any
    thread may; recent ones are kept), so hold it in a variable while you work on it, and do not write into it;
    landmarks: [68, 3] float64 (x, y, confidence), NaN = not seen, or None;
    focal_px: focal length in pixels from EXIF, or None; camera: from cameras.json, or None (with distortion stated
    there, `image`, `mask` and `landmarks` are those of the undistorted image); mask: [H, W] bool, True = usable, or None.
    Use `view.replace(...)` instead of dataclasses.replace, which would decode the image and keep it.
    """

    name: str
    image: np.ndarray | Callable[[], np.ndarray] = _OnDemand()
    path: Path | None = None
    landmarks: np.ndarray | None = None
    landmark_source: str = ""
    focal_px: float | None = None
    camera: KnownCamera | None = None
    mask: np.ndarray | Callable[[], np.ndarray] | None = _OnDemand(None)

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) of the image; does not decode it."""
        source = self.__dict__["_image_source"]
        return source.size if isinstance(source, ImageFile) else (self.image.shape[1], self.image.shape[0])

    def replace(self, **changes) -> "View":
        """The same view with other values of some fields."""
        return replace(self, **{"image": self.__dict__["_image_source"], "mask": self.__dict__["_mask_source"], **changes})

    def __repr__(self) -> str:
        return f"View({self.name!r}, {self.size[0]} x {self.size[1]} px, landmarks: {self.landmark_source or 'none'})"


@dataclass(frozen=True)
class Subject:
    """All views of one person, sorted by name. notes: one line for each thing left out or assumed."""

    name: str
    views: tuple[View, ...]
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())


def natural_key(name: str) -> list:
    """Sort key that puts 'view2' before 'view10'."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts] + [(0, 0, name)]


def readable(text: str) -> str:
    """A file name as text that can be written: bytes of it that are not UTF-8 are read as Latin-1 (archives from Windows)."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("latin-1")
    except UnicodeEncodeError:  # not from a file name
        return text.encode("utf-8", "replace").decode("utf-8")


def is_result(folder: Path) -> bool:
    """The folder is a result of `fitkit fit`."""
    return all((folder / mark).is_file() for mark in RESULT_MARKS)


def subject_folders(root: str | os.PathLike, min_views: int = 1) -> list[Path]:
    """`root` and the folders below it that hold at least `min_views` pictures, sorted; results, masks, pictures of `fitkit detect`, the
    truth of rendered people and hidden folders are passed over.

    Raises:
        InputError: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a folder of subject folders")
    return sorted(p for p, entries in _folders(root) if sum(e.suffix.lower() in SUFFIXES for e in entries) >= min_views)


def _folders(folder: Path, below: bool = False) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and those below it that may hold photos of a person, with what lies in each. Links count, what lies deeper in them not."""
    try:
        entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        log.warning("%s: passed over, it cannot be read: %s", folder, error.strerror or error)
        return
    if is_result(folder):
        return
    yield folder, entries
    if not (below and folder.is_symlink()):
        for p in entries:
            if p.name not in NO_SUBJECTS and p.is_dir():
                yield from _folders(p, below=True)


def load_subject(path: str | os.PathLike, ignore: Sequence[str | os.PathLike] = ()) -> Subject:
    """Read a subject folder: images and, beside them, landmark files, cameras.json and masks/.

    Args:
        path: the folder.
        ignore: files or folders in it to pass over without a note, e.g. another output folder than `fitkit/`.
    Returns:
        the subject, named after the folder; images that cannot be read are left out with a note if others remain.
    Raises:
        InputError: no such folder, no usable image in it, or a landmark, camera or mask file that is wrong.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give a folder with photos of one person")
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with photos of one person, got a file; give the folder that holds it")
    try:
        entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error
    files = [p for p in entries if p.is_file()]
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not images:
        raise InputError(f"{folder}: no images in this folder; expected at least one of {', '.join('*' + s for s in SUFFIXES)}"
                         + (f" (found {_some(p.name for p in files)})" if files else ""))
    _check_names([(readable(p.stem), readable(p.name)) for p in images], folder)

    stems = {p.stem for p in images}
    cameras_file = next((p for p in files if p.name.lower() == "cameras.json"), None)
    sidecars: dict[str, list[Path]] = {}
    for p in files:
        if p.suffix.lower() in landmark_files.SUFFIXES and p.stem in stems and p != cameras_file:
            sidecars.setdefault(p.stem, []).append(p)
    masks = _masks(folder)

    def read(image: Path):
        try:
            file = open_image(image)
        except InputError as error:
            return error
        return _read_view(image, file, sidecars.get(image.stem, []), masks.get(image.stem))

    with ThreadPoolExecutor(DECODERS) as pool:
        results = list(pool.map(read, images))
    notes, views = [], []
    for image, result in zip(images, results):
        if isinstance(result, InputError):
            notes.append(f"left out: {result}")
        else:
            views.append(result[0])
            notes += result[1]
    if not views:
        raise next(r for r in results if isinstance(r, InputError))

    if cameras_file:
        views, camera_notes = _add_cameras(views, read_cameras(cameras_file), stems, cameras_file)
        notes += camera_notes
    silent = {Path(p).name for p in ignore} | {OUTPUT_FOLDER, "masks", "landmarks"}  # the last: pictures of `fitkit detect`
    used = {*images, *(p for paths in sidecars.values() for p in paths), cameras_file}
    others = [p for p in entries if p not in used and p.name not in silent]
    if others:
        notes.append(f"ignored, not images or files of an image: {_some(p.name for p in others)}")
    lost = sorted(set(masks) - stems, key=natural_key)
    if lost:
        notes.append(f"ignored, masks without an image: {_some(masks[s].name for s in lost)}")
    return Subject(readable(folder.resolve().name), tuple(views), folder, tuple(notes))


def subject_from_images(images: Sequence, landmarks: Sequence | None = None, names: Sequence[str] | None = None,
                        cameras: Sequence[KnownCamera | None] | None = None, masks: Sequence | None = None,
                        name: str = "subject") -> Subject:
    """A subject from image files, Pillow images and/or arrays.

    Args:
        images: paths, PIL images, or arrays [H, W], [H, W, 3], [H, W, 4] (uint8, uint16, or float in 0..1; RGB order).
        landmarks: per image [68, 2] or [68, 3] (x, y[, confidence]; NaN = not seen; counted from 0), the path of a
            landmark file, or None; without `landmarks`, files beside image files are used as in a subject folder.
        names: per image, unique; default: file stem, or view0, view1, ...
        cameras: per image, for undistorted images, or None.
        masks: per image [H, W], nonzero = usable, or None.
    Returns:
        the subject, views in the given order.
    Raises:
        InputError: nothing given, lists of different lengths, or an image, landmarks or mask that cannot be used.
    """
    images = list(images)
    if not images:
        raise InputError("no images given; expected at least one path, PIL image or array")
    for label, values in (("landmarks", landmarks), ("names", names), ("cameras", cameras), ("masks", masks)):
        if values is not None and len(values) != len(images):
            raise InputError(f"{label}: expected one entry for each of the {len(images)} images, got {len(values)}")
    paths = [Path(i) if isinstance(i, (str, os.PathLike)) else None for i in images]
    if names is None:
        names = [readable(p.stem) if p else f"view{i}" for i, p in enumerate(paths)]
    _check_names([(n, f"image {i}") for i, n in enumerate(names)], None)

    views, notes = [], []
    for i, (image, path, view_name) in enumerate(zip(images, paths, names)):
        if path:
            beside = []
            if landmarks is None:
                # Not Path.is_file, for which a name that is too long is an error.
                beside = [p for s in landmark_files.SUFFIXES if os.path.isfile(p := path.with_suffix(s))]
            view, more = _read_view(path, open_image(path), beside, None)
            view, notes = view.replace(name=view_name), notes + more
        else:
            array = to_rgb(image) if isinstance(image, Image.Image) else array_to_rgb(image, view_name)
            view = View(view_name, array)
        given = landmarks[i] if landmarks is not None else None
        if given is not None:
            from_file = isinstance(given, (str, os.PathLike))
            points = read_landmarks(given) if from_file else check_landmarks(given, view_name)
            points, strays = _placed(points, view.size, str(given) if from_file else view_name)
            notes += strays
            view = view.replace(landmarks=points, landmark_source="file" if from_file else "given")
        if cameras is not None and cameras[i] is not None:
            view = view.replace(camera=cameras[i])
        if masks is not None and masks[i] is not None:
            view = view.replace(mask=_checked_mask(np.asarray(masks[i]) != 0, view.size, f"{view_name}: mask"))
        views.append(view)
    return Subject(name, tuple(views), None, tuple(notes))


def _read_view(path: Path, file: ImageFile, sidecars: list[Path], mask: Path | None) -> tuple[View, list[str]]:
    """One view with the landmark file and the mask that lie beside it; notes."""
    notes, points, source = [], None, ""
    if sidecars:
        order = {s: i for i, s in enumerate(landmark_files.SUFFIXES)}
        sidecars = sorted(sidecars, key=lambda p: (order[p.suffix.lower()], p.name))
        points, notes = _placed(read_landmarks(sidecars[0]), file.size, str(sidecars[0]))
        source = "file"
        if len(sidecars) > 1:
            notes.append(f"{path.name}: landmarks from {sidecars[0].name}; not used: {', '.join(p.name for p in sidecars[1:])}")
    loader = None
    if mask:
        loader = open_image(mask, mask=True)
        _checked_mask(loader(), file.size, str(mask))
    return View(readable(path.stem), file, path, points, source, file.focal_px, None, loader), notes


def _placed(points: np.ndarray, size: tuple[int, int], where: str) -> tuple[np.ndarray, list[str]]:
    """Given points of an image of this size without strays, and notes about these. Raises InputError: they cannot belong to the image."""
    points, notes = without_strays(points, size, os.path.basename(where))
    check_inside(points, size, where)
    return points, notes


def _masks(folder: Path) -> dict[str, Path]:
    masks = folder / "masks"
    if not masks.is_dir():
        return {}
    return {p.stem: p for p in sorted(masks.iterdir()) if p.suffix.lower() == ".png" and not p.name.startswith(".")}


def _checked_mask(mask: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    if mask.shape != (size[1], size[0]):
        raise InputError(f"{where}: a mask must have the size of its image, {size[0]} x {size[1]} px, got shape {list(mask.shape)}")
    if not mask.any():
        raise InputError(f"{where}: the mask is zero everywhere, nothing would be usable; nonzero marks usable pixels")
    return mask


def _add_cameras(views: list[View], cameras: dict[str, Calibration], stems: set[str], path: Path) -> tuple[list[View], list[str]]:
    """Give each view its camera; undistort where distortion is stated. `stems`: of all images, also unreadable ones."""
    by_view: dict[str, tuple[str, Calibration]] = {}
    unknown, known = [], {s.casefold() for s in stems}
    for key, camera in cameras.items():
        file = Path(key.replace("\\", "/")).name.casefold()  # programs write paths; only the name counts
        stem = next((v.name for v in views if file in (readable(v.path.name).casefold(), v.name.casefold())), None)
        if stem is None:
            if not {file, Path(file).stem} & known:
                unknown.append(key)
            continue
        if stem in by_view:
            raise InputError(f"{path}: {by_view[stem][0]!r} and {key!r} are both cameras of the image {stem!r}; remove one")
        by_view[stem] = (key, camera)

    result = []
    for view in views:
        key, camera = by_view.get(view.name, ("", None))
        if camera is None:
            result.append(view)
            continue
        if camera.size not in (None, view.size):
            raise InputError(f"{path}: view {key!r}: K belongs to an image of {camera.size[0]} x {camera.size[1]} px, "
                             f"but {view.path.name} has {view.size[0]} x {view.size[1]} px (upright); "
                             "scale K to the image, or give the original image")
        view = view.replace(camera=KnownCamera(camera.K, camera.R, camera.t))
        result.append(view if camera.distortion is None else _undistorted(view, Distortion(camera.K, camera.distortion)))
    notes = [f"{path.name}: no image for: {_some(unknown)}"] if unknown else []
    bare = [v.path.name for v in result if v.camera is None]
    if bare:
        notes.append(f"{path.name}: no camera for: {_some(bare)}")
    return result, notes


def _undistorted(view: View, distortion: Distortion) -> View:
    """The view as a lens without distortion would have taken it."""
    file, mask = view.__dict__["_image_source"], view.__dict__["_mask_source"]
    landmarks = view.landmarks
    if landmarks is not None:
        landmarks = np.column_stack([distortion.undistort_points(landmarks[:, :2]), landmarks[:, 2]])
    seen = distortion.undistort_image(np.ones(view.size[::-1], np.uint8), nearest=True).astype(bool)
    if mask is not None:
        mask = mask.undistorted(distortion)
    elif not seen.all():
        mask = seen  # the border that the lens did not see is black, not skin
    return view.replace(image=file.undistorted(distortion), mask=mask, landmarks=landmarks)


def _check_names(names: list[tuple[str, str]], folder: Path | None) -> None:
    """Results are files named after the view, so names must be unique, in lower case too, and plain."""
    first: dict[str, str] = {}
    for name, owner in names:
        if not isinstance(name, str) or not name.strip() or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise InputError(f"{owner}: {name!r} cannot be the name of a view, results are files of that name")
        if name.casefold() in first:
            raise InputError((f"{folder}: " if folder else "") + f"{first[name.casefold()]} and {owner} share the name "
                             f"{name!r}, after which results are named; rename or remove one"
                             + ("" if folder else ", or give names"))
        first[name.casefold()] = owner


def _some(names, limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
