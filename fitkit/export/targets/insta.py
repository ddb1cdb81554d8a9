"""For INSTA, FlashAvatar and others that read what metrical-tracker leaves.

Source: the frames that tracker.py of metrical-tracker saves, and scripts/transforms.py of INSTA and
    scene/__init__.py of FlashAvatar, which read them (github.com/Zielon/metrical-tracker, .../Zielon/INSTA,
    .../USTC3DV/FlashAvatar-code). The head stands still in FLAME's frame and cameras move. INSTA takes the
    intrinsics of the first frame for all, FlashAvatar knows angles of view only, and they read the size in
    opposite orders: all photos are brought before one square camera with its axis in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.export.flame import METRES, FlameParameters, flame_parameters, need_flame, numbers
from fitkit.export.meshes import write_obj
from fitkit.export.pinhole import Pinhole, foreground, head_pinhole, need_photos, take
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import encode_png
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_exp
from fitkit.io.mesh_files import write_ply

SIDE = 512  # px, of both readers
TEXTURE_SHAPES = 140  # coefficients of FLAME's texture, which fits do not estimate
OPEN_JAW = (0.2094, 0.0, 0.0)  # rad, 12 degrees: of the canonical face


def write_insta(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`checkpoint/NUMBER.frame`, `mesh/NUMBER.ply`, `input/NUMBER.png`, `mask/NUMBER.png`, `canonical.obj`
    and `identity.npy`, as MICA writes it."""
    flame = flame_parameters(result)
    need_photos(result, "insta")
    camera = head_pinhole(result, SIDE)
    for name in ("checkpoint", "mesh", "input", "mask"):
        (folder / name).mkdir()
    model = result.personal_model
    vertices = result.vertices.detach()
    for i in range(len(vertices)):
        number, picture = f"{i:05d}", take(result, i, camera)
        torch.save(_frame(flame, i, number, camera), folder / "checkpoint" / f"{number}.frame")
        write_ply(folder / "mesh" / f"{number}.ply", METRES * vertices[i], model.triangles)
        (folder / "input" / f"{number}.png").write_bytes(encode_png(picture.image))
        mask = np.uint8(255) * foreground(result, i, picture)
        (folder / "mask" / f"{number}.png").write_bytes(encode_png(mask))
    write_obj(folder / "canonical.obj", METRES * _canonical(result), model, frame="metres; FLAME's own frame")
    np.save(folder / "identity.npy", numbers(flame.shape))
    return _notes(flame)


def _frame(flame: FlameParameters, i: int, number: str, camera: Pinhole) -> dict[str, Any]:
    """What the tracker saves of photo i: arrays of numpy, for one frame each."""
    focal, side = camera.focal, camera.size[0]
    # PyTorch3D: x left, y up, z forward, points as rows; the shorter side of the picture runs from -1 to 1.
    mirrored = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    rows = (mirrored @ flame.rotation[i]).T
    K = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]], dtype=torch.float64)
    eyes = [_six(so3_exp(v)) for v in (flame.eyes[i, :3], flame.eyes[i, 3:])]
    return {
        "flame": {
            "exp": numbers(flame.expression[i : i + 1]),
            "shape": numbers(flame.shape[None]),
            "tex": np.zeros((1, TEXTURE_SHAPES), np.float32),
            "sh": np.zeros((1, 9, 3), np.float32),
            "eyes": numbers(torch.cat(eyes)[None]),
            "eyelids": numbers(flame.eyelids[i : i + 1]),
            "jaw": numbers(_six(so3_exp(flame.jaw[i]))[None]),
        },
        "camera": {
            "R": numbers(_six(rows)[None]),
            "t": numbers((mirrored @ flame.translation[i])[None]),
            "fl": np.array([[2 * focal / side]], np.float32),
            "pp": np.zeros((1, 2), np.float32),
        },
        "opencv": {
            "R": numbers(flame.rotation[i : i + 1]),
            "t": numbers(flame.translation[i : i + 1]),
            "K": numbers(K[None]),
        },
        "img_size": np.array([side, side], np.int64),
        "frame_id": number,
        "global_step": 0,
    }


def _six(rotation: Tensor) -> Tensor:
    """[3, 3] -> [6]: its first two rows, as PyTorch3D has it. Source: Zhou et al., "On the continuity of
    rotation representations in neural networks", CVPR 2019."""
    return rotation[:2].reshape(6)


def _canonical(result: FitResult) -> Tensor:
    """[V, 3] mm: the person without expression, the jaw a little open."""
    model, state = result.personal_model, result.state
    joints = state.identity.new_zeros(1, model.num_joints, 3)
    joints[0, need_flame(result).joint_names.index("jaw")] = torch.tensor(OPEN_JAW)
    expression = state.identity.new_zeros(1, model.num_expression)
    return model.vertices(state.identity, expression, joints)[0].detach()


def _notes(flame: FlameParameters) -> list[str]:
    """What the frames cannot hold."""
    turned = np.degrees(float(flame.neck.norm(dim=1).max()))
    if turned < 1:
        return []
    return [f"FlashAvatar knows no neck: turns of up to {turned:.0f} degrees are in the meshes only"]
