"""For GaussianAvatars and others that read the data sets of VHAP.

Source: the layout that VHAP's export_as_nerf_dataset.py writes and the scene/dataset_readers.py and
    scene/flame_gaussian_model.py of GaussianAvatars read (github.com/ShenhanQian/VHAP, .../GaussianAvatars).
    Its renderer knows the horizontal angle of view and the size of a picture only, so photos are shifted
    until the optical axis is in the middle.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.export.flame import FlameParameters, about_root, flame_parameters, lids_note, numbers
from fitkit.export.pinhole import UPRIGHT, foreground, need_photos, own_pinhole, take
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import encode_png
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_log

OPEN_JAW = (0.3, 0.0, 0.0)  # rad, of the canonical face: lips that do not touch
TEST_FROM = 20  # moments; with fewer, all are needed for the training
TEST_SHARE = 0.1


def write_gaussian_avatars(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`images/`, `fg_masks/`, `flame_param/`, `canonical_flame_param.npz`, `transforms.json` and its parts
    `transforms_train.json`, `_val` and `_test`.

    Each moment is a timestep, in the order of the photos. The world has the axes of the camera of a moment's
    first photo (OpenGL: x right, y up, z back), so that the camera of single photos stands still while the
    head moves, and its origin is in the middle of the places where the root joint is put.
    """
    flame = flame_parameters(result)
    need_photos(result, "gaussian-avatars")
    steps = timesteps(result)
    first = [steps.index(t) for t in range(max(steps) + 1)]
    rotation = UPRIGHT @ flame.rotation[first]
    placed = (UPRIGHT @ flame.translation[first, :, None])[..., 0]
    moved = about_root(rotation, placed, flame.root[first])
    middle = moved.mean(0)
    for name in ("images", "fg_masks", "flame_param"):
        (folder / name).mkdir()
    for t, i in enumerate(first):
        np.savez(folder / "flame_param" / f"{t:05d}.npz", **_moment(flame, i, rotation[t], moved[t] - middle))
    np.savez(folder / "canonical_flame_param.npz", **_canonical(flame))
    frames = []
    for i, t in enumerate(steps):
        pose = _camera_to_world(flame, i, first[t], middle)
        frames.append(_frame(result, folder, i, t, sum(s == t for s in steps[:i]), pose))
    _write_transforms(frames, len(first), folder)
    notes = lids_note(flame, "GaussianAvatars")
    if all(view.mask is None for view in result.subject.views):
        notes.append("no photo has a mask, so backgrounds stay; masks/ beside the photos would remove them")
    return notes


def timesteps(result: FitResult) -> list[int]:
    """For each photo the number of its moment, by first appearance; a photo without one is one by itself."""
    known: dict[Any, int] = {}
    return [known.setdefault(v.moment or i, len(known)) for i, v in enumerate(result.subject.views)]


def _moment(flame: FlameParameters, i: int, rotation: Tensor, translation: Tensor) -> dict[str, np.ndarray]:
    """The parameters of the moment that photo i shows."""
    one = {
        "translation": translation,
        "rotation": so3_log(rotation),
        "neck_pose": flame.neck[i],
        "jaw_pose": flame.jaw[i],
        "eyes_pose": flame.eyes[i],
        "expr": flame.expression[i],
        "static_offset": flame.offset,
    }
    return {"shape": numbers(flame.shape)} | {name: numbers(values[None]) for name, values in one.items()}


def _canonical(flame: FlameParameters) -> dict[str, np.ndarray]:
    zero = flame.shape.new_zeros(3)
    still = _moment(flame, 0, torch.eye(3, dtype=torch.float64), zero)
    for name in ("neck_pose", "eyes_pose", "expr"):
        still[name] = np.zeros_like(still[name])
    return still | {"jaw_pose": np.array([OPEN_JAW], np.float32)}


def _camera_to_world(flame: FlameParameters, i: int, first: int, middle: Tensor) -> np.ndarray:
    """[4, 4] from the OpenGL axes of the camera of photo i; first: the photo whose camera gives the world its
    axes; middle: [3] m in these, the origin of the world."""
    turn = UPRIGHT @ flame.rotation[i] @ flame.rotation[first].T @ UPRIGHT  # world to camera
    moved = UPRIGHT @ flame.translation[i] - turn @ UPRIGHT @ flame.translation[first]
    pose = np.eye(4)
    pose[:3, :3] = turn.T.numpy()
    pose[:3, 3] = (-turn.T @ moved - middle).numpy()
    return pose


def _frame(
    result: FitResult, folder: Path, i: int, step: int, camera: int, pose: np.ndarray
) -> dict[str, Any]:
    """Write picture and mask of photo i -> its entry in transforms.json."""
    view, picture = result.subject.views[i], take(result, i, own_pinhole(result, i))
    name = f"{step:05d}_{camera:02d}.png"
    mask = foreground(result, i, picture)
    image = picture.image
    if picture.mask is not None:  # the tool looks at the picture alone
        image = np.where(mask[..., None], image, np.uint8(255))
    (folder / "images" / name).write_bytes(encode_png(image))
    (folder / "fg_masks" / name).write_bytes(encode_png(255 * mask.astype(np.uint8)))
    (width, height), focal = picture.camera.size, picture.camera.focal
    return {
        "timestep_index": step,
        "timestep_id": view.moment or view.name,
        "camera_index": camera,
        "camera_id": (view.camera.name if view.camera is not None else "") or f"{camera:02d}",
        "cx": width / 2,
        "cy": height / 2,
        "fl_x": focal,
        "fl_y": focal,
        "w": width,
        "h": height,
        "camera_angle_x": 2 * math.atan(width / (2 * focal)),
        "camera_angle_y": 2 * math.atan(height / (2 * focal)),
        "transform_matrix": pose.tolist(),
        "file_path": f"images/{name}",
        "fg_mask_path": f"fg_masks/{name}",
        "flame_param_path": f"flame_param/{step:05d}.npz",
    }


def _write_transforms(frames: list[dict[str, Any]], moments: int, folder: Path) -> None:
    """All frames, and the same split into those of the training and of the test."""
    kept = moments if moments < TEST_FROM else moments - round(TEST_SHARE * moments)
    parts = {
        "transforms.json": frames,
        "transforms_train.json": [f for f in frames if f["timestep_index"] < kept],
        "transforms_val.json": [],
        "transforms_test.json": [f for f in frames if f["timestep_index"] >= kept],
    }
    shared = ("cx", "cy", "fl_x", "fl_y", "w", "h", "camera_angle_x", "camera_angle_y")
    for name, chosen in parts.items():
        table = {
            "frames": chosen,
            **{key: frames[-1][key] for key in shared},
            "timestep_indices": sorted({f["timestep_index"] for f in chosen}),
            "camera_indices": sorted({f["camera_index"] for f in chosen}),
        }
        (folder / name).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
