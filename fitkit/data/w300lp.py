"""300W-LP: pictures of faces turned step by step, with the pose and the coefficients of a fitted Basel Face
Model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fitkit.data.aflw2000 import LABEL_BYTES
from fitkit.data.face_dataset import FaceDataset, Sample
from fitkit.data.samples import DataSet
from fitkit.errors import InputError
from fitkit.io.foreign import foreign_file
from fitkit.io.images import SUFFIXES, read_image
from fitkit.io.options import Degrees, Pixels, Range
from fitkit.io.subject import Subject, subject_from_images
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.bfm09 import DenseModel, read_3ddfa_model
from fitkit.nets.mvfnet.convention import UNITS_PER_MM, pose_of_labels
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.label_crops import in_crop
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import MIRRORED, Landmarks
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

DATA = DataSet(
    "300W-LP",
    "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm",
    "research use only",
    "AFW, HELEN, IBUG, LFPW and the same with _Flip, each with NAME_K.jpg and NAME_K.mat (Pose_Para, "
    "Shape_Para, Exp_Para), and landmarks/AFW ... with NAME_K_pts.mat (pts_3d, pts_2d)",
)
JAW = {"pts_3d": "surface", "pts_2d": "outline"}  # what points 0-16 of a file of points are
SETS = ("AFW", "HELEN", "IBUG", "LFPW")


@dataclass(frozen=True)
class W300LPOptions:
    front: Degrees = 15.0  # most |yaw| of the frontal view
    side: tuple[Degrees, Degrees] = (20.0, 70.0)  # least and most |yaw| of those to the left and to the right
    triplets: Annotated[int, Range(1, 10**6)] = 4  # drawn from each source; 18 make the 140,000 of MVF-Net
    flips: bool = True  # the mirrored copies too, as people of their own
    mirror: bool = True  # a side that a source lacks is its other side, mirrored
    # Jaw points on the model's own jaw, or on the visible outline.
    points: Literal["surface", "outline"] = "surface"
    # Folder with 3DDFA's Model_Shape.mat and Model_Exp.mat, made from the Basel Face Model: with it, and a
    # face model of the same mesh, coefficients become labels, and points can be had without the folder
    # landmarks.
    bfm: str = ""
    size: Pixels = 272  # side of the pictures that are read, px


@dataclass(frozen=True)
class LpLabels:
    """Content of a .mat file. pose: [7] pitch, yaw, roll rad, tx, ty, tz px, f px per micrometre; points:
    [68, 2] px counted from 0, NaN = not labelled, or None; jaw: what points 0-16 are, see Landmarks; shape,
    expression: coefficients as written."""

    pose: np.ndarray
    points: np.ndarray | None
    jaw: str
    shape: np.ndarray
    expression: np.ndarray

    @property
    def yaw(self) -> float:
        """Degrees; positive: the nose points to the right side of the picture, the reverse of what is
        written."""
        return -float(np.degrees(self.pose[1]))

    def mirrored(self, width: int) -> LpLabels:
        """Of the picture of `width` px turned left to right; the coefficients stay, for a face is nearly
        symmetric."""
        pitch, yaw, roll, x, y, z, scale = self.pose
        pose = np.array([pitch, -yaw, -roll, width + 1 - x, y, z, scale])
        return replace(self, pose=pose, points=mirrored_points(self.points, width))


def mirrored_points(points: np.ndarray, width: int) -> np.ndarray:
    """The 68 points [68, 2] px of a picture turned left to right."""
    return (points * [-1, 1] + [width - 1, 0])[MIRRORED]


def read_lp_labels(path: Path) -> LpLabels:
    """Labels of a picture of 300W-LP or AFLW2000-3D; of 300W-LP without points, see `with_points`.

    Raises:
        InputError: not such a file; names it.
    """
    with foreign_file(
        path, "cannot be read as labels of 300W-LP (Pose_Para, Shape_Para, Exp_Para)", limit=LABEL_BYTES
    ) as file:
        content = file.mat(("Pose_Para", "Shape_Para", "Exp_Para", "pt3d_68"))
        pose, shape, expression = (
            np.asarray(content[k], np.float64).ravel() for k in ("Pose_Para", "Shape_Para", "Exp_Para")
        )
        points = np.asarray(content["pt3d_68"], np.float64)[:2].T if "pt3d_68" in content else None
    found = {"Pose_Para": (pose, (7,)), "Shape_Para": (shape, (199,)), "Exp_Para": (expression, (29,))}
    for key, (value, size) in found.items():
        _check(path, key, value, size)
    if not pose[6] > 0:
        raise InputError(f"{path}: Pose_Para: expected a scale above 0 as its last number, got {pose[6]:g}")
    if points is not None:
        # Written by Matlab, which counts pixels from 1. The rows are already those of the picture, y down.
        points = _check(path, "pt3d_68", points, (68, 2)) - 1.0
    return LpLabels(pose, _seen(points), "surface", shape, expression)


def with_points(
    labels: LpLabels, path: Path, width: int, height: int, points: str, dense: DenseModel | None = None
) -> LpLabels:
    """The labels with the points of the picture's `points_file`, or else with the key points of `dense`,
    where they have none.

    pt2d of the picture's own .mat is no help: it belongs to the picture before it was turned and is the same
    in all turns.

    Args:
        path: the .mat of the picture; width, height: of the picture, px; points: 'surface' or 'outline',
            which of the two sets.
    Raises:
        InputError: neither is there, or not such a file.
    """
    if labels.points is not None:
        return labels
    if points_file(path) is not None:
        return replace(labels, points=_seen(_read_points(path, points, width)), jaw=points)
    if dense is None:
        raise _no_points(path)
    vertices = dense.in_picture(labels.shape, labels.expression, labels.pose, height)
    return replace(labels, points=vertices[dense.keypoints, :2])


def _seen(points: np.ndarray | None) -> np.ndarray | None:
    """With NaN for hidden points; -1 marks them, which is -2 counted from 0."""
    return points if points is None else np.where((points < -1).any(1)[:, None], np.nan, points)


def points_file(labels: Path) -> Path | None:
    """The file of points that belongs to NAME.mat: landmarks/SET/NAME_pts.mat beside the folder SET. A
    mirrored copy, of the folder SET_Flip, has that of its original, unless it has its own."""
    names = dict.fromkeys((labels.parent.name, labels.parent.name.removesuffix("_Flip")))
    places = (labels.parents[1] / "landmarks" / name / f"{labels.stem}_pts.mat" for name in names)
    return next((p for p in places if p.is_file()), None)


def _read_points(labels: Path, points: str, width: int) -> np.ndarray:
    """Points [68, 2] px of `points_file`, counted from 0."""
    path, key = points_file(labels), next(k for k, jaw in JAW.items() if jaw == points)
    with foreign_file(path, f"cannot be read as points of 300W-LP ({key})", limit=LABEL_BYTES) as file:
        seen = np.asarray(file.mat((key,))[key], np.float64)
    seen = _check(path, key, seen, (68, 2)) - 1.0
    return seen if path.parent.name == labels.parent.name else mirrored_points(seen, width)


def _no_points(labels: Path) -> InputError:
    name = labels.parent.name.removesuffix("_Flip")
    return InputError(
        f"{labels}: expected its points in {labels.parents[1] / 'landmarks' / name / labels.stem}_pts.mat "
        "(pt2d shows the face before it was turned); unpack the folder landmarks of 300W-LP beside the "
        "pictures, or give the option bfm"
    )


def _check(path: Path, key: str, value: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if value.shape != size or not np.isfinite(value).all():
        raise InputError(
            f"{path}: {key}: expected {list(size)} finite numbers, got shape {list(value.shape)}"
        )
    return value


@dataclass(frozen=True)
class _Source:
    """One sample: pictures of one source picture, and which of their triplets is drawn."""

    id: str
    paths: tuple[Path, ...]
    number: int


def _sources(folder: Path, options: W300LPOptions) -> list[_Source]:
    root = DATA.root(folder)
    sets = [
        root / (s + end)
        for s in SETS
        for end in (("", "_Flip") if options.flips else ("",))
        if (root / (s + end)).is_dir()
    ]
    sources: dict[str, list[Path]] = {}
    for place in sets or [root]:
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.with_suffix(".mat").is_file():
                stem = re.sub(r"_\d+$", "", path.stem) if sets else path.stem
                sources.setdefault(f"{place.name}/{stem}" if sets else stem, []).append(path)
    if not sources:
        raise DATA.missing(root, "no picture with a .mat beside it")
    first = next(iter(sources.values()))[0].with_suffix(".mat")
    if sets and not options.bfm and points_file(first) is None:
        raise _no_points(first)
    found = []
    for name, paths in sources.items():
        # The mirrored copy of a person belongs to the person: what is held out is held out in both.
        place_name, source = name.split("/") if sets else ("picture", name)
        for k in range(options.triplets if sets else 1):
            found.append(_Source(f"{source}/{place_name}/{k}", tuple(paths), k))
    return found


@lru_cache(maxsize=2)
def _dense(folder: str) -> DenseModel | None:
    return read_3ddfa_model(Path(folder)) if folder else None


def _views(
    source: _Source, options: W300LPOptions
) -> tuple[list[Path], list[np.ndarray], list[LpLabels], list[bool]]:
    """Files, pictures, labels with points, and which pictures are mirrored, of one triplet."""
    read = [read_lp_labels(p.with_suffix(".mat")) for p in source.paths]
    chosen = [(0, False)]
    if len(source.paths) > 1:
        chosen = _choose([label.yaw for label in read], source.number, options)
    paths = [source.paths[i] for i, _ in chosen]
    views = [_view(p, read[i], turned, options) for p, (i, turned) in zip(paths, chosen)]
    return (
        paths,
        [image for image, _ in views],
        [label for _, label in views],
        [turned for _, turned in chosen],
    )


def _view(path: Path, labels: LpLabels, turned: bool, options: W300LPOptions) -> tuple[np.ndarray, LpLabels]:
    """Picture and labels with points, mirrored or as they are."""
    image = read_image(path)[0]
    height, width = image.shape[:2]
    dense = _dense(options.bfm)
    labels = with_points(labels, path.with_suffix(".mat"), width, height, options.points, dense)
    return (np.ascontiguousarray(image[:, ::-1]), labels.mirrored(width)) if turned else (image, labels)


def _choose(yaw: list[float], number: int, options: W300LPOptions) -> list[tuple[int, bool]]:
    """A frontal view, one to the left and one to the right: index, and whether it is mirrored. Another
    triplet for each `number`."""
    low, high = options.side
    front = [(i, False) for i, y in enumerate(yaw) if abs(y) <= options.front]
    left, right = ([(i, False) for i, y in enumerate(yaw) if low <= sign * y <= high] for sign in (-1, 1))
    if options.mirror:
        left, right = left or [(i, True) for i, _ in right], right or [(i, True) for i, _ in left]
    rng = np.random.default_rng([number, len(yaw)])
    chosen = [group[int(rng.integers(len(group)))] for group in (front, left, right) if group]
    return chosen or [(int(np.argmin(np.abs(yaw))), False)]


def lp_subjects(folder: Path, options: W300LPOptions) -> list[tuple[str, Callable[[], Subject]]]:
    """The id of each sample of `W300LP`, and what reads its pictures with their labelled points.

    Raises:
        InputError: not this layout, or a BFM that cannot be used.
    """
    return [(source.id, partial(_subject, source, options)) for source in _sources(folder, options)]


def _subject(source: _Source, options: W300LPOptions) -> Subject:
    """The turned pictures of one face: one expression."""
    paths, images, labels, turned = _views(source, options)
    names = [p.stem + "_mirrored" * t for p, t in zip(paths, turned)]
    points, moments = [label.points for label in labels], ["instant"] * len(paths)
    return subject_from_images(images, points, names=names, name=source.id, moments=moments)


class W300LP(FaceDataset):
    """Triplets of one source picture: frontal, turned to the left, turned to the right, as far as they are
    there.

    300W-LP turns a face only away from the front, so a source often has one side; with `mirror` the other
    view is then its mirrored one, else missing. The labels hold the pose; identity and expression only with
    `bfm`. For another face model than that one the labelled rotation is kept, and scale and shift are those
    that lay its mean landmarks onto the labelled points, for its origin and size differ.
    Also reads a plain folder of pictures with .mat files beside them (AFLW2000-3D): then each is a sample.
    """

    name, terms = "300W-LP", DATA.terms

    def __init__(self, folder: Path, options: W300LPOptions, model: FaceModel):
        """Raises InputError: not this layout, or a BFM that cannot be used."""
        self.options, self.model = options, model
        self._sources = _sources(folder, options)
        self.ids = tuple(source.id for source in self._sources)
        self.dense = _dense(options.bfm)
        self.codes = None if self.dense is None else BfmCodes.of(self.dense, model)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        paths, images, labels, _ = _views(self._sources[index], self.options)
        points = torch.from_numpy(np.stack([label.points for label in labels])).float()
        valid = torch.isfinite(points).all(-1)
        jaw = labels[0].jaw
        marks = Landmarks(points, torch.full_like(points[..., 0], torch.nan), valid, valid.float(), jaw)
        few = valid.sum(1) < 8
        if bool(few.any()):
            path = paths[int(few.nonzero()[0])].with_suffix(".mat")
            raise InputError(f"{path}: expected at least 8 labelled points, got {int(valid.sum(1).min())}")
        crop = CropOptions(1.9, 0.1, self.options.size, self.options.size)
        seen = crop_views(images, [None] * len(images), marks, crop)
        state, known = self._state(labels, images, marks)
        state = state.replace(camera=state.camera.scaled(seen.scale, seen.offset))
        truth = Labels(state, known=known, moment=torch.zeros(len(labels), dtype=torch.int64))
        if "identity" in known:
            head = self.model.landmarks.points(state.vertices(self.model), self.model.triangles)
            places = in_crop(state.pose.apply(head), state.camera)
            truth = replace(
                truth, points3d=head, crop_points=torch.cat([seen.landmarks.points, places[..., 2:]], -1)
            )
        return Sample(self.ids[index], replace(seen, labels=truth), truth)

    def _state(
        self, labels: Sequence[LpLabels], images: Sequence[np.ndarray], marks: Landmarks
    ) -> tuple[SceneState, tuple[str, ...]]:
        """The labelled state of the views in pixels of the pictures, and which parts of it are labels."""
        parts = [
            pose_of_labels(torch.from_numpy(label.pose)[None].float(), image.shape[1], image.shape[0])
            for label, image in zip(labels, images)
        ]
        pose = Pose(torch.cat([p.rotation for p, _ in parts]), torch.cat([p.translation for p, _ in parts]))
        camera = Camera(
            *(torch.cat([getattr(c, k) for _, c in parts]) for k in ("focal", "principal", "aspect")),
            kind="orthographic",
        )
        B, model = len(labels), self.model
        identity, expression, known = (
            torch.zeros(1, model.num_identity),
            torch.zeros(B, model.num_expression),
            ("pose",),
        )
        if self.codes is not None:
            # One person: the coefficients of the first view (the frontal one, whose fit is the base of the
            # others).
            codes, offset = self.codes(labels[0].shape, labels[0].expression)
            identity, expression = (
                codes[None, : model.num_identity],
                codes[None, model.num_identity :].expand(B, -1),
            )
            pose = Pose(
                pose.rotation, pose.translation + (pose.rotation @ offset) * torch.tensor([1.0, 1.0, 0.0])
            )
            known = ("identity", "expression", "pose")
        else:
            pose, camera = onto_points(model, pose, camera, marks)
        state = SceneState(
            identity, torch.zeros(B, dtype=torch.int64), expression, pose, camera, torch.zeros(B, 9, 1)
        )
        return state, known


def onto_points(model: FaceModel, pose: Pose, camera: Camera, marks: Landmarks) -> tuple[Pose, Camera]:
    """Scaled-orthographic views of the mean face with the given rotations, and the scale and shift that lay
    its landmarks 17-67 onto the points best."""
    points = model.landmark_basis.mean.to(pose.rotation)
    turned = (points @ pose.rotation.transpose(-1, -2))[:, 17:, :2]
    used = marks.valid[:, 17:, None].to(turned)
    target = torch.where(marks.valid[:, 17:, None], marks.points[:, 17:], torch.zeros_like(turned)).to(turned)
    total = used.sum(1, keepdim=True).clamp_min(1)
    x, y = ((v * used).sum(1, keepdim=True) / total for v in (turned, target))
    scale = ((turned - x) * (target - y) * used).sum((1, 2)) / ((turned - x).square() * used).sum(
        (1, 2)
    ).clamp_min(1e-9)
    shift = y[:, 0] - scale[:, None] * x[:, 0]
    translation = torch.cat(
        [(shift - camera.principal) / scale[:, None], torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH)],
        1,
    )
    return Pose(pose.rotation, translation), replace(camera, focal=scale * Camera.REFERENCE_DEPTH)


@dataclass(frozen=True)
class BfmCodes:
    """Coefficients of 300W-LP -> those of a fitkit model of the same mesh, by least squares over all
    vertices, whatever the scales and signs of the two bases are."""

    dense: DenseModel
    mean: np.ndarray
    offset: np.ndarray  # [3] mm: origin of the fitkit model's head frame in theirs
    inverse: np.ndarray  # [K, V * 3]

    @staticmethod
    def of(dense: DenseModel, model: FaceModel) -> BfmCodes:
        """Raises InputError: the model has another mesh."""
        own, theirs = model.mean.double().numpy(), dense.mean.reshape(-1, 3) / UNITS_PER_MM
        if own.shape != theirs.shape:
            raise InputError(
                f"300W-LP: its coefficients belong to a mesh of {len(theirs)} vertices, face model "
                f"'{model.name}' has {len(own)}; leave the option bfm out, or train for that model"
            )
        basis = (
            torch.cat([model.identity_basis, model.expression_basis]).double().numpy().reshape(-1, own.size)
        )
        return BfmCodes(dense, own, (theirs - own).mean(0), np.linalg.pinv(basis.T))

    def __call__(self, shape: np.ndarray, expression: np.ndarray) -> tuple[Tensor, Tensor]:
        """Coefficients [K], and the origin [3] mm of our head frame in theirs."""
        theirs = (self.dense.mean + self.dense.shape @ shape + self.dense.expression @ expression).reshape(
            -1, 3
        ) / UNITS_PER_MM
        codes = self.inverse @ (theirs - self.offset - self.mean).ravel()
        return torch.from_numpy(codes).float(), torch.from_numpy(self.offset).float()
