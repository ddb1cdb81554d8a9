"""FaceScape's benchmark for single photos: in the wild and in the lab."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, file_of
from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.images import SUFFIXES
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import KnownCamera, Subject, subject_from_images

PUPIL_MM = (64.0 + 61.7) / 2  # mean pupil distance of men and women, the benchmark's unit
FOCALS, VIEWS = 3, 11
YAW_GROUPS = ("yaw 0-5", "yaw 5-30", "yaw 30-60", "yaw 60-90")  # 100 pictures each
FACESCAPE = DataSet(
    "the FaceScape benchmark",
    "https://facescape.nju.edu.cn",
    "a signed licence agreement",
    "{KIND}_img/NAME.jpg, {KIND}_gt_mesh/NAME.obj, for the lab lab_cam/NAME.json, and predef/*.npy of its "
    "evaluator ({KIND}_rotations, {KIND}_head_centers, wild_pupil_scales); KIND = wild or lab",
)


def wild_samples(folder: str | os.PathLike) -> list[EvaluationSample]:
    """FS-Wild: id '000' to '399', group by |yaw|; truth in the wild frame with more = pupil_scale, rotation,
    center (mm).

    The folders of meshes and cameras are the benchmark's; that the pictures lie in wild_img/ and the
    evaluator's predef/ beside them is assumed.

    Raises:
        InputError: not this layout.
    """
    root = FACESCAPE.root(folder)
    tables = {
        name: _table(root, f"wild_{name}.npy") for name in ("pupil_scales", "rotations", "head_centers")
    }
    samples = []
    for mesh in sorted((root / "wild_gt_mesh").glob("*.obj")):
        if mesh.stem.isdecimal() and int(mesh.stem) < min(map(len, tables.values())):
            number = int(mesh.stem)
            truth = partial(
                _wild_truth, mesh, *(tables[k][number] for k in ("pupil_scales", "rotations", "head_centers"))
            )
            samples.append(
                EvaluationSample(
                    mesh.stem,
                    partial(_photo, root / "wild_img", mesh.stem),
                    truth,
                    YAW_GROUPS[min(number // 100, 3)],
                )
            )
    if not samples:
        raise FACESCAPE.missing(root, "no wild_gt_mesh/000.obj")
    return samples


def lab_samples(folder: str | os.PathLike, views: tuple[tuple[int, ...], ...] = ()) -> list[EvaluationSample]:
    """FS-Lab: id 'ID_FOCAL_VIEW' such as '00_0_00', group 'focal 1200, 30 deg'; truth in the camera frame in
    mm with more = K, rotation, center.

    views: empty for the benchmark's single pictures; else lists of view numbers, such as [0, 2, 6], each of
    which is one sample of several pictures, scored in the camera of its first view.

    Raises:
        InputError: not this layout.
    """
    root = FACESCAPE.root(folder)
    tables = {
        name: _table(root, f"lab_{name}.npy", least)
        for name, least in (("rotations", VIEWS), ("head_centers", FOCALS))
    }
    samples = []
    for mesh in sorted((root / "lab_gt_mesh").glob("*.obj")):
        for focal in range(FOCALS):
            for combination in views or [(v,) for v in range(VIEWS)]:
                names = [f"{mesh.stem}_{focal}_{v:02d}" for v in combination]
                if not (root / "lab_cam" / f"{names[0]}.json").is_file():
                    continue
                view = combination[0]
                # The evaluator takes the head's centre by the focal length (the camera's distance) and its
                # rotation by the view.
                truth = partial(
                    _lab_truth, root, mesh, names[0], tables["rotations"][view], tables["head_centers"][focal]
                )
                angle = 0 if view == 0 else 30 if view < 9 else 60
                samples.append(
                    EvaluationSample(
                        "+".join([names[0], *(f"{v:02d}" for v in combination[1:])]),
                        partial(_lab_photos, root, names),
                        truth,
                        f"focal {(1200, 600, 300)[focal]}, {angle} deg",
                    )
                )
    if not samples:
        raise FACESCAPE.missing(root, "no lab_gt_mesh/00.obj with lab_cam/00_0_00.json")
    return samples


def _table(root: Path, name: str, least: int = 1) -> np.ndarray:
    """predef/NAME, a row for each picture, view or focal length; at least that many rows."""
    shape = next(
        shape for key, shape in (("scales", ()), ("rotations", (3, 3)), ("centers", (3,))) if key in name
    )
    with foreign_file(
        root / "predef" / name,
        f"predef/{name} cannot be read",
        FACESCAPE.expected,
        limit=MEGABYTE,
        where=f"{root}:",
    ) as file:
        table = file.npy()
        if table.dtype.kind not in "iuf" or len(table) < least or not np.isfinite(table).all():
            raise ValueError(
                f"expected finite numbers, at least {least} rows, got {table.dtype} {list(table.shape)}"
            )
        return table.astype(np.float64).reshape(len(table), *shape)


def _picture(folder: Path, name: str) -> Path:
    path = file_of(folder, *(f"{name}{s}" for s in SUFFIXES))
    if path is None:
        raise FACESCAPE.missing(folder, f"no picture {name}")
    return path


def _photo(folder: Path, name: str) -> Subject:
    return subject_from_images([_picture(folder, name)], name=name)


def _wild_truth(mesh: Path, pupil_scale: float, rotation: np.ndarray, center: np.ndarray) -> ScanTruth:
    return ScanTruth(
        *read_mesh(mesh),
        more={"pupil_scale": float(pupil_scale), "rotation": rotation, "center": center * float(pupil_scale)},
    )


def _camera(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] px and [R | t] [3, 4], t in mm."""
    path = root / "lab_cam" / f"{name}.json"
    with foreign_file(path, "cannot be read as [K, Rt]", limit=MEGABYTE) as file:
        K, Rt = (np.asarray(part, np.float64) for part in file.json())
    if K.shape != (3, 3) or Rt.shape != (3, 4):
        raise InputError(f"{path}: expected K [3, 3] and Rt [3, 4], got {list(K.shape)} and {list(Rt.shape)}")
    if not (np.isfinite(K).all() and np.isfinite(Rt).all() and K[0, 0] > 0 and K[1, 1] > 0):
        raise InputError(f"{path}: expected finite numbers and focal lengths above 0, got K {K.tolist()}")
    Rt[:, 3] *= PUPIL_MM
    return K, Rt


def _lab_photos(root: Path, names: list[str]) -> Subject:
    cameras = []
    for name in names:
        K, Rt = _camera(root, name)
        K = K.copy()
        K[:2, 2] -= 0.5  # to pixel centres
        cameras.append(KnownCamera(K, Rt[:, :3], Rt[:, 3]) if len(names) > 1 else KnownCamera(K))
    return subject_from_images([_picture(root / "lab_img", n) for n in names], cameras=cameras, name=names[0])


def _lab_truth(root: Path, mesh: Path, name: str, rotation: np.ndarray, center: np.ndarray) -> ScanTruth:
    K, Rt = _camera(root, name)
    vertices, triangles = read_mesh(mesh)
    return ScanTruth(
        PUPIL_MM * vertices @ Rt[:, :3].T + Rt[:, 3],
        triangles,
        more={"K": K, "rotation": rotation, "center": center},
    )
