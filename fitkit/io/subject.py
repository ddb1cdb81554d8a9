"""A subject: all photos of one person and what is known about them. The folder is described in
docs/subject_folder.md."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from fitkit.errors import InputError, check_argument
from fitkit.io.calibration import Calibration, check_name, read_cameras
from fitkit.io.foreign import readable
from fitkit.io.images import (
    RAW,
    SUFFIXES,
    Distortion,
    ImageFile,
    open_image,
    picture_from_array,
    picture_from_pillow,
    small_picture,
    usable_pixels,
)
from fitkit.io.landmark_files import (
    LandmarkFile,
    NoLandmarksError,
    check_inside,
    check_landmarks,
    open_landmarks,
    without_strays,
)
from fitkit.io.sidecars import LANDMARKS, MASKS, Beside, files_beside, natural_key, without_copies

log = logging.getLogger("fitkit")

OUTPUT_FOLDER = "fitkit"  # results, inside the subject folder
RESULT_MARKS = ("metrics.json", "parameters.npz")  # by these a result folder is known
PREDICTION_MARK = "prediction.json"  # by this that of a network that gives no scene
# File stems of pictures that lie in it.
RESULT_PICTURES = frozenset(("preview", "texture", "uncertainty", "detail"))
NO_SUBJECTS = frozenset((OUTPUT_FOLDER, *MASKS, *LANDMARKS, "ground_truth"))  # folders of files about photos
CUT_OUT = "its transparent pixels (alpha below 128) are not used"
DECODERS = min(4, os.cpu_count() or 1)  # threads; a 48-megapixel photo takes 0.4 GB while it is decoded


@dataclass(frozen=True)
class KnownCamera:
    """What is known of one view's camera (OpenCV convention, undistorted image).

    K: [3, 3] pixels; R: [3, 3] and t: [3] mm with x_camera = R x_world + t, or None when only K is known;
    removed: the distortion of the lens that the view's image is already without, or None; name: views with
    the same one are of one camera, whose focal length changes in all of them alike; "" = none stated;
    metric: t is in mm; False: in a unit that nobody knows, the same for all cameras of the person.
    """

    K: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None
    removed: Distortion | None = None
    name: str = ""
    metric: bool = True

    def __repr__(self) -> str:
        return (
            f"KnownCamera(focal length {self.K[0][0]:.1f} px, pose "
            f"{'not known' if self.R is None else 'known'})"
        )


T = TypeVar("T")


class _OnDemand(Generic[T]):
    """A field that holds an array, or a function without arguments that loads it each time the field is
    read."""

    def __init__(self, *default: T):
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = f"_{name}_source"

    def __get__(self, view: Any, owner: type | None = None) -> T:
        if view is None:  # the dataclass asks for the default
            if self.default:
                return self.default[0]
            raise AttributeError(self.key)
        source = view.__dict__[self.key]
        return source() if callable(source) else source

    def __set__(self, view: Any, value: T | Callable[[], T]) -> None:
        view.__dict__[self.key] = value


@dataclass(frozen=True)
class MissingPhoto:
    """The image of a view whose photo is not there: its size (W, H) is known, reading it is refused."""

    name: str
    size: tuple[int, int]
    result: Path  # the result folder that names it

    def __call__(self) -> np.ndarray:
        raise InputError(
            f"view {self.name}: the photo of {self.result} is not there; give the folder of the photos "
            "(--photos, in Python `photos` of load_result)"
        )


@dataclass(frozen=True, repr=False, eq=False)
class View:
    """One photo. Pixel (0, 0) is the centre of the top-left pixel of the upright (EXIF-rotated) image.

    name: file stem; path: the image file or None for arrays; image: [H, W, 3] uint8 sRGB, decoded when it is
    read (any thread may; recent ones are kept), so hold it in a variable while you work on it, and do not
    write into it; landmarks: [68, 3] float64 (x, y, confidence), NaN = not seen, or None;
    focal_px: focal length in pixels from EXIF, or None; camera: from cameras.json, or None (with distortion
    stated there, `image`, `mask` and `landmarks` are those of the undistorted image); mask: [H, W] bool, True
    = usable, or None; moment: views with the same one were taken at once and share the expression and, by
    cameras with R and t, the pose of the head; "" = none stated. Use `view.replace(...)` instead of
    dataclasses.replace, which would decode the image and keep it.
    """

    name: str
    image: _OnDemand[np.ndarray] = _OnDemand()
    path: Path | None = None
    landmarks: np.ndarray | None = None
    landmark_source: str = ""
    focal_px: float | None = None
    camera: KnownCamera | None = None
    mask: _OnDemand[np.ndarray | None] = _OnDemand(None)
    moment: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) of the image; does not decode it."""
        source = self.__dict__["_image_source"]
        if isinstance(source, (ImageFile, MissingPhoto)):
            return source.size
        return self.image.shape[1], self.image.shape[0]

    @property
    def has_photo(self) -> bool:
        """Whether there is an image; of a result that was read back without its photos there is none."""
        return not isinstance(self.__dict__["_image_source"], MissingPhoto)

    @property
    def small(self) -> np.ndarray:
        """[96, 96] uint8 grey, by which photos that are the same can be known; does not decode the image."""
        source = self.__dict__["_image_source"]
        return (
            source.small
            if isinstance(source, ImageFile) and source.small is not None
            else small_picture(self.image)
        )

    def replace(self, **changes) -> View:
        """The same view with other values of some fields."""
        return replace(
            self,
            **{"image": self.__dict__["_image_source"], "mask": self.__dict__["_mask_source"], **changes},
        )

    def __repr__(self) -> str:
        return (
            f"View({self.name!r}, {self.size[0]} x {self.size[1]} px, landmarks: "
            f"{self.landmark_source or 'none'})"
        )


@dataclass(frozen=True)
class Subject:
    """All views of one person, sorted by name. notes: one line for each thing left out or assumed."""

    name: str
    views: tuple[View, ...]
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        names = [v.name for v in self.views]
        return f"Subject({self.name!r}, {len(names)} views: {some(names)})"


def is_result(folder: Path) -> bool:
    """The folder is a result of `fitkit fit`."""
    return all((folder / mark).is_file() for mark in RESULT_MARKS)


def is_output(folder: Path) -> bool:
    """The folder is a result of `fitkit fit` or of `fitkit predict`."""
    return is_result(folder) or (folder / PREDICTION_MARK).is_file()


def subject_folders(root: str | os.PathLike, min_views: int = 1) -> list[Path]:
    """`root` and the folders below it that hold at least `min_views` pictures, sorted; results, masks,
    pictures of `fitkit detect`, the truth of rendered people and hidden folders are passed over.

    Raises:
        InputError: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a folder of subject folders")
    return sorted(
        p
        for p, entries in photo_folders(root)
        if sum(e.suffix.lower() in SUFFIXES for e in entries) >= min_views
    )


def photo_folders(folder: Path, below: bool = False) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and those below it that may hold photos of a person, with what lies in each; results, masks,
    pictures of `fitkit detect`, the truth of rendered people and hidden folders are passed over. Links count,
    what lies deeper in them not."""
    try:
        entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        log.warning("%s: passed over, it cannot be read: %s", folder, error.strerror or error)
        return
    if is_output(folder):
        return
    yield folder, entries
    if not (below and folder.is_symlink()):
        for p in entries:
            if p.name.casefold() not in NO_SUBJECTS and p.is_dir():
                yield from photo_folders(p, below=True)


def load_subject(path: str | os.PathLike, ignore: Sequence[str | os.PathLike] = ()) -> Subject:
    """Read a subject folder: images and, beside them, landmark files, cameras.json and masks/.

    Args:
        path: the folder.
        ignore: files or folders in it to pass over without a note, e.g. another output folder than `fitkit/`.
    Returns:
        the subject, named after the folder; images that cannot be read are left out with a note if others
        remain.
    Raises:
        InputError: no such folder, no usable image in it, or a landmark, camera or mask file that is wrong.
    """
    check_argument("path", path, (str, os.PathLike), "the path of a folder with photos of one person")
    folder = Path(path)
    views, notes, error = _read_folder(folder, ignore)
    if error is not None and not views:
        raise error
    return Subject(readable(folder.resolve().name), tuple(views), folder, tuple(notes))


def _read_folder(
    folder: Path, ignore: Sequence[str | os.PathLike] = (), only: Collection[str] | None = None
) -> tuple[list[View], list[str], InputError | None]:
    """Views, notes, and what is wrong with the first image that cannot be read, if any. only: file names of
    the images that are wanted; all else in the folder is then passed over without a note."""
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give a folder with photos of one person")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder with photos of one person, got a file; give the folder that holds "
            "it"
        )
    try:
        entries = sorted(
            (p for p in folder.iterdir() if not p.name.startswith(".") or p.name in (only or ())),
            key=lambda p: natural_key(p.name),
        )
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error
    files = [p for p in entries if p.is_file()]
    photos = [p for p in files if p.suffix.lower() in (*SUFFIXES, *RAW)]
    if is_output(folder) and {p.stem for p in photos} <= RESULT_PICTURES:
        raise InputError(
            f"{folder}: is a result of fitkit fit, no folder with photos; give the folder with the photos "
            "it was made of"
        )
    images, copies = without_copies(p for p in photos if only is None or p.name in only)
    raw = [p for p in images if p.suffix.lower() in RAW]
    images = [p for p in images if p not in raw]
    if not images:
        raise InputError(
            f"{folder}: no images in this folder; expected at least one of "
            f"{', '.join('*' + s for s in SUFFIXES)}"
            + (f" (found {some(p.name for p in files)})" if files else "")
        )
    _check_names([(readable(p.stem), readable(p.name)) for p in images], folder)

    cameras_file = next((p for p in files if p.name.lower() == "cameras.json"), None)
    silent = {Path(p).name for p in ignore} | {OUTPUT_FOLDER}
    beside = files_beside(entries, images, lambda p: p.name in silent or is_output(p))

    def read(image: Path):
        try:
            return _read_view(image, beside)
        except _LeftOutError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        results = list(pool.map(read, images))
    notes, read_views, remarks = [], [], []
    for result in results:
        if isinstance(result, _LeftOutError):
            notes.append(f"left out: {result}")
        else:
            read_views.append(result)
            remarks += result.remarks
    notes += _grouped(remarks)
    views = [r.view for r in read_views]
    if cameras_file and views:
        views, camera_notes = _add_cameras(
            views, read_cameras(cameras_file), {p.stem for p in photos}, cameras_file
        )
        notes += camera_notes
    if only is None:
        notes += _about_files(beside)
    if copies:
        notes.append(
            f"left out: {some(p.name for p in copies)}, beside a photo of the same name in a usual format"
        )
    if raw and only is None:
        notes.append(f"left out: {some(p.name for p in raw)}; raw photos are not read, convert them to JPEG")
    used = {
        *images,
        *copies,
        *raw,
        *(p for paths in beside.landmarks.values() for p in paths),
        *beside.elsewhere,
        cameras_file,
        *(p for p in entries if p.name in silent or p.name.casefold() in (*MASKS, *LANDMARKS)),
    }
    others = [p for p in entries if p not in used and not is_output(p)]
    if others and only is None:
        notes.append(f"ignored, not images or files of an image: {some(p.name for p in others)}")
    return views, notes, next((r for r in results if isinstance(r, InputError)), None)


def load_photos(paths: Sequence[str | os.PathLike]) -> Subject:
    """Read photos of one person, from one folder or several, with the files that lie beside them as in a
    subject folder.

    Returns:
        the subject, named after the first photo, its views sorted by name. Photos of the same name from
        different folders are called FOLDER_STEM. Poses of cameras from several cameras.json are not used,
        only their K: each may count from another origin.
    Raises:
        InputError: nothing given, a path that is no photo, or as `load_subject`.
    """
    folders: dict[Path, dict[str, Path]] = {}
    for path in map(Path, paths):
        check_photo(path)
        folders.setdefault(Path(os.path.realpath(path.parent)), {}).setdefault(path.name, path)
    if not folders:
        raise InputError("no photos given; expected at least one file")
    views: list[View] = []
    notes: list[str] = []
    errors: list[InputError | None] = []
    for chosen in folders.values():
        mine, more, error = _read_folder(next(iter(chosen.values())).parent, only=chosen)
        views, notes, errors = views + mine, notes + more, errors + [error]
    if not views:
        raise next(e for e in errors if e is not None)
    count = Counter(v.name.casefold() for v in views)
    if len(folders) > 1:
        views = [_named_by_folder(v) for v in views]
    views = [
        v.replace(name=f"{readable(v.path.absolute().parent.name)}_{v.name}")
        if count[v.name.casefold()] > 1
        else v
        for v in views
    ]
    _check_names([(v.name, readable(str(v.path))) for v in views], None)
    if len({v.path.parent for v in views if v.camera is not None and v.camera.R is not None}) > 1:
        views = [
            v if v.camera is None else v.replace(camera=KnownCamera(v.camera.K, name=v.camera.name))
            for v in views
        ]
        notes.append(
            "the photos have several cameras.json: their K is used, their R and t are not, since each may "
            "count from another origin"
        )
    first = readable(Path(paths[0]).stem)
    return Subject(first, tuple(sorted(views, key=lambda v: natural_key(v.name))), None, tuple(notes))


def _named_by_folder(view: View) -> View:
    """The view whose moment and camera are not those of the same names in other folders."""
    folder, camera = view.path.absolute().parent, view.camera
    if camera is not None and camera.name:
        camera = replace(camera, name=f"{folder}/{camera.name}")
    return view.replace(camera=camera, moment=view.moment and f"{folder}/{view.moment}")


def read_subject(paths: Sequence[str | os.PathLike], ignore: Sequence[str | os.PathLike] = ()) -> Subject:
    """One subject folder, as `load_subject` reads it, or photos, as `load_photos` does."""
    return load_photos(paths) if len(paths) != 1 or is_photo(paths[0]) else load_subject(paths[0], ignore)


def as_subject(given: str | os.PathLike | Subject | Sequence, landmarks: Sequence | None = None) -> Subject:
    """What the Python functions take for a subject: a folder, the path of a photo, a Subject, or a list of
    images.

    landmarks: for each image or view as in `subject_from_images`, or None.
    """
    check_argument(
        "subject",
        given,
        (str, os.PathLike, Subject, Iterable),
        "a folder, the path of a photo, a Subject, or a list of images",
    )
    if isinstance(given, np.ndarray) and given.ndim < 4:
        raise InputError(
            f"subject: expected a list of images, got one array of shape {list(given.shape)}; put it into a "
            "list"
        )
    if not isinstance(given, (str, os.PathLike, Subject)):
        return subject_from_images(given, landmarks)
    subject = given if isinstance(given, Subject) else read_subject([given])
    if landmarks is None:
        return subject
    _check_entries("landmarks", landmarks, len(subject.views), f"views of {subject.path or subject.name}")
    given = [
        ({}, []) if points is None else _given_points(v, points)
        for v, points in zip(subject.views, landmarks)
    ]
    views = tuple(v.replace(**fields) for v, (fields, _) in zip(subject.views, given))
    return replace(
        subject, views=views, notes=(*subject.notes, *_grouped([r for _, more in given for r in more]))
    )


def _check_entries(label: str, values: Sequence, count: int, what: str) -> None:
    check_argument(
        label, values, (list, tuple, np.ndarray), f"a list with one entry for each of the {count} {what}"
    )
    if len(values) != count:
        raise InputError(f"{label}: expected one entry for each of the {count} {what}, got {len(values)}")


def _given_points(view: View, given) -> tuple[dict[str, np.ndarray | str], list[tuple[str, str]]]:
    """Points from the caller, of the photo as it is: an array, or the path of a landmark file -> fields of
    the view, and remarks."""
    from_file = isinstance(given, (str, os.PathLike))
    read = open_landmarks(given) if from_file else check_landmarks(given, view.name)
    points, notes = _placed(read, view.size, str(given) if from_file else view.name)
    distortion = getattr(view.__dict__["_image_source"], "distortion", None)
    if distortion is not None:
        points = np.column_stack([distortion.undistort_points(points[:, :2]), points[:, 2]])
    label = Path(given).name if from_file else f"{view.name}: landmarks"
    return {"landmarks": points, "landmark_source": "file" if from_file else "given"}, [
        (label, note) for note in notes
    ]


def _placed(read: LandmarkFile, size: tuple[int, int], where: str) -> tuple[np.ndarray, list[str]]:
    """Given points of an image of this size without strays, and what there is to say about them. InputError:
    they cannot belong to it."""
    points, strays = without_strays(read.points, size)
    check_inside(points, size, where)
    return points, [*read.notes, *strays]


def is_photo(path: str | os.PathLike) -> bool:
    """A path that is meant to be a photo, not a folder; whether it is there and can be read is not asked."""
    return not os.path.isdir(path) and (os.path.isfile(path) or Path(path).suffix.lower() in SUFFIXES)


def check_photo(path: Path) -> None:
    """Refuse a path that is no file with the name of a photo; it is not read."""
    if os.path.isdir(path):
        raise InputError(f"{path}: expected a photo, got a folder; give one folder, or photos only")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such photo; give a folder with photos of one person, or the photos")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: expected a photo ({', '.join('*' + s for s in SUFFIXES)}) or a folder of photos; "
            "landmarks, cameras.json and masks/ beside a photo are read with it"
        )


def subject_from_images(
    images: Sequence,
    landmarks: Sequence | None = None,
    names: Sequence[str] | None = None,
    cameras: Sequence[KnownCamera | None] | None = None,
    masks: Sequence | None = None,
    name: str = "subject",
    moments: Sequence[str | None] | None = None,
) -> Subject:
    """A subject from image files, Pillow images and/or arrays.

    Args:
        images: paths, PIL images, or arrays [H, W], [H, W, 3], [H, W, 4] (uint8, uint16, or float in 0..1;
            RGB order). PIL images are turned upright as their EXIF data say.
        landmarks: per image [68, 2] or [68, 3] (x, y[, confidence]; NaN = not seen; counted from 0), the path
            of a landmark file, or None; without `landmarks`, files beside image files are used as in a
            subject folder.
        names: per image, unique; default: file stem, or view0, view1, ...
        cameras: per image, for undistorted images, or None.
        masks: per image [H, W] (bool, or numbers: at least half of the largest = usable), the path of a mask,
            or None; without `masks`, those beside image files are used as in a subject folder.
        moments: per image a name, the same for images that several cameras took at once, or None.
    Returns:
        the subject, views in the given order.
    Raises:
        InputError: nothing given, lists of different lengths, or an image, landmarks, mask or moment that
            cannot be used.
    """
    check_argument("name", name, str, "the subject's name")
    check_argument("images", images, Iterable, "a list of paths, PIL images or arrays")
    if isinstance(images, (str, bytes, os.PathLike, Image.Image, Mapping)):
        raise InputError(
            f"images: expected a list of paths, PIL images or arrays, got {type(images).__name__}"
        )
    if isinstance(images, np.ndarray) and (
        images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (3, 4))
    ):
        raise InputError(
            f"images: expected a list of images, got one of shape {list(images.shape)}; put it into a list"
        )
    images = list(images)
    if not images:
        raise InputError("no images given; expected at least one path, PIL image or array")
    lists = {
        "landmarks": landmarks,
        "names": names,
        "cameras": cameras,
        "masks": masks,
        "moments": moments,
    }
    for label, values in lists.items():
        if values is not None:
            _check_entries(label, values, len(images), "images")
    paths = [Path(i) if isinstance(i, (str, os.PathLike)) else None for i in images]
    if names is None:
        names = [readable(p.stem) if p else f"view{i}" for i, p in enumerate(paths)]
    _check_names([(n, f"image {i}") for i, n in enumerate(names)], None)

    beside = _beside_paths([p for p in paths if p], landmarks is None, masks is None)
    views, remarks = [], []
    for i, (image, path, view_name) in enumerate(zip(images, paths, names)):
        if path:
            found = _read_view(path, beside)
            view, more = found.view.replace(name=view_name), found.remarks
        else:
            pillow = isinstance(image, Image.Image)
            picture = picture_from_pillow(image) if pillow else picture_from_array(image, view_name)
            view = View(view_name, picture.pixels, mask=picture.usable)
            more = [(view_name, note) for note in (*picture.notes, *[CUT_OUT] * (picture.usable is not None))]
        if landmarks is not None and landmarks[i] is not None:
            fields, remarks_on_points = _given_points(view, landmarks[i])
            view, more = view.replace(**fields), more + remarks_on_points
        if cameras is not None and cameras[i] is not None:
            check_argument(f"{view_name}: camera", cameras[i], KnownCamera, "a KnownCamera or None")
            view = view.replace(camera=cameras[i])
        if moments is not None and moments[i] is not None:
            check_name(moments[i], f"{view_name}: moment", "all photos taken at once")
            view = view.replace(moment=moments[i])
        if masks is not None and masks[i] is not None:
            mask, mask_notes = _given_mask(masks[i], view.size, view_name)
            view, more = view.replace(mask=mask), [r for r in more if r[1] != CUT_OUT] + mask_notes
        views.append(view)
        remarks += more
    return Subject(name, tuple(views), None, tuple(_grouped(remarks)))


class _LeftOutError(InputError):
    """A photo that cannot be read, while those beside it can."""


@dataclass(frozen=True)
class _Read:
    """A view as it was read; remarks: (file, what is to say about it)."""

    view: View
    remarks: list[tuple[str, str]]


def _read_view(path: Path, beside: Beside) -> _Read:
    """One view with the landmark file and the mask that lie beside it."""
    try:
        file = open_image(path)
    except InputError as error:
        raise _LeftOutError(str(error)) from error
    remarks = [(path.name, note) for note in file.notes]
    points, source = None, ""
    sidecars = list(beside.landmarks.get(path, ()))
    while sidecars and points is None:
        first, *sidecars = sidecars
        where = _below(path, first)
        try:
            read = open_landmarks(first)
        except NoLandmarksError:
            remarks.append((where, "not read as landmarks: there are no points in it"))
            continue
        points, said = _placed(read, file.size, str(first))
        source = "file"
        remarks += [(where, note) for note in said]
        if first.parent != path.parent:
            remarks.append((where, "read as landmarks; none lie beside the photo"))
        if sidecars:
            rest = ", ".join(_below(path, p) for p in sidecars)
            remarks.append((path.name, f"landmarks from {where}; not used: {rest}"))
    masks = beside.masks.get(path, ())
    mask = None
    if file.cut_out and not masks:
        mask = replace(file, mask=True)
        remarks.append((path.name, CUT_OUT))
    elif masks:
        mask, where = open_image(masks[0], mask=True), _below(path, masks[0])
        usable = _checked_mask(mask(), file.size, str(masks[0]))
        remarks += [(where, note) for note in (*mask.notes, *_no_effect(usable))]
        if len(masks) > 1 or file.cut_out:
            rest = [_below(path, p) for p in masks[1:]] + ["its transparency"] * file.cut_out
            remarks.append((path.name, f"mask from {where}; not used: {', '.join(rest)}"))
    return _Read(View(readable(path.stem), file, path, points, source, file.focal_px, None, mask), remarks)


def _below(photo: Path, file: Path) -> str:
    """The name of a file of a photo for a message, with that of the folder it lies in."""
    return readable(file.relative_to(photo.parent).as_posix())


def _beside_paths(paths: Sequence[Path], landmarks: bool, masks: bool) -> Beside:
    """The landmark files and masks beside photos in any folders, whichever are wanted."""
    out = Beside()
    for folder in {p.parent for p in paths} if landmarks or masks else ():
        try:
            entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
        except (OSError, ValueError):  # ValueError: a name with a zero byte
            continue  # the photos cannot be read either, and say so
        # Other photos of the folder own the files of just their name.
        photos = [
            *(p for p in paths if p.parent == folder),
            *(p for p in entries if p.suffix.lower() in SUFFIXES),
        ]
        found = files_beside(entries, list(dict.fromkeys(photos)), lambda p: True)
        out.landmarks |= found.landmarks if landmarks else {}
        out.masks |= found.masks if masks else {}
    return out


def _about_files(beside: Beside) -> list[str]:
    """Notes on files of photos that are not used."""
    notes = [
        f"{place.name}/ holds files with the names of photos, which are not read: {some(names)}; "
        f"landmarks lie beside the photos or in {LANDMARKS[0]}/"
        for place, names in beside.elsewhere.items()
    ]
    if beside.lost:
        notes.append(
            f"ignored in masks/, not pictures with the name of a photo: {some(p.name for p in beside.lost)}"
        )
    return notes


def _grouped(remarks: Sequence[tuple[str, str]]) -> list[str]:
    """(file, what is to say about it) -> a line for each thing that is to say."""
    files: dict[str, list[str]] = {}
    for file, text in remarks:
        files.setdefault(text, []).append(file)
    return [f"{some(names)}: {text}" for text, names in files.items()]


def _given_mask(mask: Any, size: tuple[int, int], name: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """A mask from the caller, and remarks on it."""
    if isinstance(mask, (str, os.PathLike)):
        file = open_image(mask, mask=True)
        usable, notes, label, where = file(), file.notes, Path(mask).name, str(mask)
    else:
        values = np.asarray(mask)
        if values.dtype.kind not in "biuf":
            raise InputError(
                f"{name}: mask: expected [H, W] numbers or bool, got {type(mask).__name__} ({values.dtype})"
            )
        usable, notes = usable_pixels(values)
        label, where = f"{name}: mask", f"{name}: mask"
    _checked_mask(usable, size, where)
    return usable, [(label, note) for note in (*notes, *_no_effect(usable))]


def _no_effect(usable: np.ndarray) -> tuple[str, ...]:
    return ("this mask marks every pixel as usable, so it has no effect",) if usable.all() else ()


def _checked_mask(mask: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    if mask.shape != (size[1], size[0]):
        raise InputError(
            f"{where}: a mask must have the size of its image, {size[0]} x {size[1]} px, got shape "
            f"{list(mask.shape)}"
        )
    if not mask.any():
        raise InputError(
            f"{where}: the mask is zero everywhere, nothing would be usable; nonzero marks usable pixels"
        )
    return mask


def _add_cameras(
    views: list[View], cameras: dict[str, Calibration], stems: set[str], path: Path
) -> tuple[list[View], list[str]]:
    """Give each view its camera; undistort where distortion is stated. `stems`: of all images, also
    unreadable ones."""
    by_view: dict[str, tuple[str, Calibration]] = {}
    unknown, known = [], {s.casefold() for s in stems}
    for key, camera in cameras.items():
        file = Path(key.replace("\\", "/")).name.casefold()  # programs write paths; only the name counts
        stem = next(
            (v.name for v in views if file in (readable(v.path.name).casefold(), v.name.casefold())), None
        )
        if stem is None:
            if not {file, Path(file).stem} & known:
                unknown.append(key)
            continue
        if stem in by_view:
            raise InputError(
                f"{path}: {by_view[stem][0]!r} and {key!r} are both cameras of the image {stem!r}; remove one"
            )
        by_view[stem] = (key, camera)

    result = []
    for view in views:
        if view.name not in by_view:
            result.append(view)
            continue
        key, camera = by_view[view.name]
        if camera.size not in (None, view.size):
            raise InputError(
                f"{path}: view {key!r}: K belongs to an image of {camera.size[0]} x {camera.size[1]} px, "
                f"but {view.path.name} has {view.size[0]} x {view.size[1]} px (upright); "
                "scale K to the image, or give the original image"
            )
        lens = None if camera.distortion is None else Distortion(camera.K, camera.distortion, camera.fisheye)
        known = KnownCamera(camera.K, camera.R, camera.t, lens, camera.camera_id, camera.metric)
        view = view.replace(camera=known, moment=camera.moment)
        result.append(view if lens is None else _undistorted(view, lens))
    notes = [f"{path.name}: no image for: {some(unknown)}"] if unknown else []
    bare = [v.path.name for v in result if v.camera is None]
    if bare:
        notes.append(f"{path.name}: no camera for: {some(bare)}")
    return result, notes


def with_masks(subject: Subject, files: Sequence[Path | None]) -> Subject:
    """The subject whose views have these files as masks, one for each view; None leaves what it has.

    Raises:
        InputError: a file that is no mask of its view.
    """
    views, remarks = list(subject.views), []
    for i, file in enumerate(files):
        if file is not None:
            mask = open_image(file, mask=True)
            usable = _checked_mask(mask(), views[i].size, str(file))
            remarks += [(file.name, note) for note in (*mask.notes, *_no_effect(usable))]
            views[i] = views[i].replace(mask=mask)
    return replace(subject, views=tuple(views), notes=(*subject.notes, *_grouped(remarks)))


def with_cameras(subject: Subject, files: Sequence[Path | None]) -> Subject:
    """The subject whose views have the cameras that these files, one cameras.json for each view or None, hold
    for them. Of several files only K is used: each may count from another origin.

    Raises:
        InputError: a file that cannot be read, that has no camera for its view, or one of another size.
    """
    views, notes = list(subject.views), list(subject.notes)
    chosen = list(dict.fromkeys(file for file in files if file is not None))
    for file in chosen:
        mine = [i for i, f in enumerate(files) if f == file]
        placed, _ = _add_cameras([views[i] for i in mine], read_cameras(file), set(), file)
        for i, view in zip(mine, placed):
            if view.camera is None:
                raise InputError(f"{file}: no camera for {view.path or view.name}")
            if len(chosen) > 1:
                view = view.replace(camera=KnownCamera(view.camera.K, removed=view.camera.removed))
            views[i] = view.replace(moment=views[i].moment or view.moment)
    if len(chosen) > 1:
        notes.append(f"cameras from {some(f.name for f in chosen)}: of several files only K is used")
    return replace(subject, views=tuple(views), notes=tuple(notes))


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
        if (
            not isinstance(name, str)
            or not name.strip()
            or name in (".", "..")
            or re.search(r"[/\\\0]", name)
        ):
            raise InputError(
                f"{owner}: {name!r} cannot be the name of a view, results are files of that name"
            )
        if name.casefold() in first:
            raise InputError(
                (f"{folder}: " if folder else "") + f"{first[name.casefold()]} and {owner} share the name "
                f"{name!r}, after which results are named; rename or remove one"
                + ("" if folder else ", or give names")
            )
        first[name.casefold()] = owner


def some(names: Iterable[str], limit: int = 5) -> str:
    """'a, b, c, d, e and 3 more'."""
    names = [readable(n) for n in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
