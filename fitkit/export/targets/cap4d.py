"""For CAP4D: its reference images with `fit.npz`.

Source: what cap4d/inference/data/reference_data.py, cap4d/flame/flame.py and cap4d/datasets/utils.py read
    (github.com/felixtaubner/cap4d). Its FLAME turns about the origin, in axes with y up, and is put before
    cameras in OpenCV axes; expression 65 of 65 is a blink of both eyes. It has no jaw, and no neck, whose
    turn goes into the pose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fitkit.export.flame import EYELIDS, FlameParameters, detail_note, flame_parameters, need_flame, numbers
from fitkit.export.pinhole import UPRIGHT, need_photos
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import encode_png
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_log
from fitkit.models.skinned import SkinnedModel

SHAPE, EXPRESSION = 150, 65  # the last expression is the blink
LOST_MM = 0.05
NOISE_MM, POINTS = 0.3, 200  # how well expressions stand in for others, beside the prior of each
PIXEL = 0.5  # its pixels count from the corner of the picture


def write_cap4d(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`fit.npz`, `reference_images.json`, `images/CAMERA/` and, of photos with masks, `bg/CAMERA/`.

    Each photo is a timestep, seen by a camera with its focal length that stands at the origin; photos of one
    size and focal length share a camera if all do, as the frames of a video, otherwise each has its own.
    """
    flame = flame_parameters(result).neck_in_pose()
    need_photos(result, "cap4d")
    cameras = [0] * len(flame.expression) if _alike(result) else list(range(len(flame.expression)))
    names = [f"cam{k}" for k in range(max(cameras) + 1)]
    first = [cameras.index(k) for k in range(len(names))]
    expressions, off = _expressions(result)
    fit = _fit(result, flame, first, expressions)
    np.savez(folder / "fit.npz", **fit, camera_order=np.array(names))
    table = [[names[k], t] for t, k in enumerate(cameras)]
    (folder / "reference_images.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    masks = any(view.mask is not None for view in result.subject.views)
    for t, k in enumerate(cameras):
        _write_photo(result, t, folder, names[k], masks)
    notes = detail_note(result, "CAP4D")
    if off > LOST_MM:
        parts = f"{SHAPE} shapes, {EXPRESSION - 1} expressions and no jaw"
        notes.append(f"CAP4D has {parts}: its face is {off:.1f} mm off in the mean")
    if not masks:
        notes.append("no photo has a mask: the backgrounds should be white, or have masks in bg/")
    return notes


def _alike(result: FitResult) -> bool:
    """One camera has taken all photos."""
    K = result.state.camera.matrix()
    return len({view.size for view in result.subject.views}) == 1 and torch.allclose(K, K[:1].expand_as(K))


def _fit(
    result: FitResult, flame: FlameParameters, first: list[int], expressions: Tensor
) -> dict[str, np.ndarray]:
    """first: a photo of each camera; expressions: [T, 64]."""
    K = result.state.camera.matrix().double()[first]
    sizes = [result.subject.views[i].size for i in first]
    values = {
        "fx": K[:, 0, 0, None],
        "fy": K[:, 1, 1, None],
        "cx": K[:, 0, 2, None] + PIXEL,
        "cy": K[:, 1, 2, None] + PIXEL,
        "extr": torch.eye(4, dtype=torch.float64).expand(len(first), -1, -1),
        "shape": flame.shape[:SHAPE],
        "expr": torch.cat([expressions, flame.eyelids.mean(1, keepdim=True)], 1),
        "rot": so3_log(UPRIGHT @ flame.rotation),
        "tra": (UPRIGHT @ flame.translation[..., None])[..., 0],
        "eye_rot": (flame.eyes[:, :3] + flame.eyes[:, 3:]) / 2,
    }
    resolutions = np.array([(height, width) for width, height in sizes])
    return {name: numbers(v) for name, v in values.items()} | {"resolutions": resolutions}


def _write_photo(result: FitResult, t: int, folder: Path, camera: str, masks: bool) -> None:
    """Photo t and, with masks, what of it is no background."""
    view = result.subject.views[t]
    pictures = {"images": view.image}
    if masks:
        usable = np.ones(view.image.shape[:2], bool) if view.mask is None else view.mask
        pictures["bg"] = np.uint8(255) * usable
    for name, picture in pictures.items():
        (folder / name / camera).mkdir(parents=True, exist_ok=True)
        (folder / name / camera / f"{t:05d}.png").write_bytes(encode_png(picture))


def _expressions(result: FitResult) -> tuple[Tensor, float]:
    """The 64 coefficients of each photo, [B, 64], and how far the face of CAP4D then is from that of the fit,
    mm: those of the fit, changed so that they stand in for what CAP4D leaves out, the jaw most of all."""
    model = cast(SkinnedModel, need_flame(result).to(dtype=torch.float64))
    identity, expression, joints = result.state.to(dtype=torch.float64).coefficients()
    own = [k for k, name in enumerate(model.expression_names) if name not in EYELIDS]
    used = own[: EXPRESSION - 1]
    fewer, kept = identity.clone(), expression.clone()
    fewer[:, SHAPE:], kept[:, own[EXPRESSION - 1 :]] = 0, 0
    jaw = expression.new_zeros(len(expression), model.num_joints, 3)
    if joints is not None:
        at = model.joint_names.index("jaw")
        jaw[:, at] = joints[:, at]
    lost = (model.vertices(identity, expression, jaw) - model.vertices(fewer, kept))[:, model.face]
    basis = model.expression_basis[used][:, model.face].flatten(1)
    weight = POINTS / (lost.shape[1] * NOISE_MM**2)
    normal = weight * basis @ basis.T + torch.eye(len(used), dtype=torch.float64)
    change = torch.linalg.solve(normal, weight * basis @ lost.flatten(1).T).T
    left = lost - (change @ basis).reshape(lost.shape)
    return expression[:, used] + change, float(left.norm(dim=-1).mean())
