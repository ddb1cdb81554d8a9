"""`parameters.npz`: everything that was estimated, written and read back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError, check_argument
from fitkit.io.foreign import DATA_BYTES, check_shapes, foreign_file
from fitkit.models.face_model import FaceModel
from fitkit.scene.camera import KINDS, Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

# Version 4 has joints; all others are written as version 3, for older fitkits.
FORMAT, VERSION = "fitkit-parameters", 4
UNITS = (
    "mm, px, rotation matrices, linear RGB; pixel (0, 0) is the centre of the top-left pixel; x_camera "
    "= rotation @ x_head + translation"
)
# Key -> shape; B views, K coefficients, C colour channels of the light. Names stand for sizes that must
# agree.
SHAPES = {
    "identity": ("K_id",),
    "expression": ("B", "K_ex"),
    "expression_names": ("K_ex",),
    "rotation": ("B", 3, 3),
    "translation": ("B", 3),
    "focal": ("B",),
    "principal": ("B", 2),
    "aspect": ("B",),
    "illumination": ("B", 9, "C"),
    "view_names": ("B",),
    "image_size": ("B", 2),
    "camera_source": ("B",),
}
OPTIONAL = {
    "identity_covariance": ("K_id", "K_id"),
    "displacement": ("V",),
    "light": ("B", 9, 3),
    "landmarks": ("B", 68, 3),
    "joints": ("B", "J", 3),
    "albedo": ("K_al",),
}  # since versions 2, 3, 3, 3, 4, and of 3 and 4 later on
OF_STATE = ("joints", "albedo")
NAMES = ("expression_names", "view_names", "camera_source")
TEXTS = ("format", "units", "model_name", "camera_kind", "subject_name")


@dataclass(frozen=True)
class Parameters:
    """Content of a parameter file.

    state: the estimate (S = 1, on the CPU); model_name: the face model it belongs to; expression_names: K_ex
    names; subject_name; view_names: B names; image_size: [B, 2] int64 (width, height) px of the upright
    photos; camera_source: per view 'cameras.json', 'exif' or 'estimated'; identity_covariance: [K_id, K_id]
    of the coefficients, or None; displacement: [V] mm along the normals of the neutral mesh, or None
    (`fitkit.fitting.detail.personal_model` applies it); light: [B, 9, 3] of each photo, see
    `fitkit.fitting.appearance`, or None;
    landmarks: [B, 68, 3] px of the photos, the observed points and their standard deviation, 0 where none was
    used, or None.
    """

    state: SceneState
    model_name: str
    expression_names: tuple[str, ...]
    subject_name: str
    view_names: tuple[str, ...]
    image_size: np.ndarray
    camera_source: tuple[str, ...]
    identity_covariance: torch.Tensor | None = None
    displacement: torch.Tensor | None = None
    light: torch.Tensor | None = None
    landmarks: torch.Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"Parameters({self.subject_name!r}: {len(self.view_names)} views, face model {self.model_name!r})"
        )

    def write(self, path: str | os.PathLike) -> Path:
        """Write the file; floating-point arrays keep the type of the state. Keys: docs/results.md."""
        state = self.state
        arrays = {
            "format": FORMAT,
            "version": 3 if state.joints is None else VERSION,
            "units": UNITS,
            "model_name": self.model_name,
            "subject_name": self.subject_name,
            "identity": state.identity[0],
            "expression": state.expression,
            "expression_names": np.array(self.expression_names, str),
            "rotation": state.pose.rotation,
            "translation": state.pose.translation,
            "focal": state.camera.focal,
            "principal": state.camera.principal,
            "aspect": state.camera.aspect,
            "camera_kind": state.camera.kind,
            "illumination": state.illumination,
            "view_names": np.array(self.view_names, str),
            "image_size": self.image_size,
            "camera_source": np.array(self.camera_source, str),
        }
        optional = {key: getattr(self, key) for key in OPTIONAL if key not in OF_STATE}
        optional |= {"joints": state.joints, "albedo": None if state.albedo is None else state.albedo[0]}
        arrays |= {key: value for key, value in optional.items() if value is not None}
        arrays = {
            k: v.detach().cpu().contiguous().numpy() if isinstance(v, torch.Tensor) else v
            for k, v in arrays.items()
        }
        path = Path(path)
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)
        return path

    def check_model(self, model: FaceModel) -> None:
        """Refuse a face model that these coefficients were not made for."""
        joints = 0 if self.state.joints is None else self.state.joints.shape[1]
        if joints not in (0, model.num_joints):
            raise InputError(
                f"parameters: expected face model '{self.model_name}' with {joints} joints, got one with "
                f"{model.num_joints}; load the model that the fit used"
            )
        sizes = (model.name, model.num_identity, tuple(model.expression_names))
        wanted = (self.model_name, self.state.identity.shape[1], self.expression_names)
        if sizes != wanted:
            raise InputError(
                f"parameters: expected face model '{wanted[0]}' with {wanted[1]} identity and "
                f"{len(wanted[2])} expression shapes, got '{sizes[0]}' with {sizes[1]} and {len(sizes[2])}; "
                "load the model that the fit used"
            )
        if self.displacement is not None and len(self.displacement) != model.num_vertices:
            raise InputError(
                f"parameters: expected face model '{self.model_name}' with {len(self.displacement)} "
                f"vertices, as many as the displacement has, got {model.num_vertices}; load the model that "
                "the fit used"
            )


def load_parameters(path: str | os.PathLike) -> Parameters:
    """Read a parameter file; nothing in it is executed.

    Args:
        path: of parameters.npz, the file itself, not its folder.
    Returns:
        its content as `Parameters`; `state` is on the CPU in the type that was written (float32), optional
        arrays are None where the file lacks them. The face model is not in it: load `model_name`, then
        `state.vertices(model)` are the meshes, without the `displacement`. With that:
        `state.vertices(fitkit.fitting.detail.personal_model(model, state, displacement))`.
    Raises:
        InputError: no such file, not a parameter file, written by a newer fitkit, or arrays that do not fit
            together.
    """
    check_argument("load_parameters", path, (str, os.PathLike), "the path of a parameter file")
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; expected the parameters.npz of a result folder")
    with foreign_file(path, "not a readable fitkit parameter file (.npz)", limit=DATA_BYTES) as file:
        arrays = file.npz(("format", "version", *SHAPES, *OPTIONAL, *TEXTS))
    if str(arrays.get("format")) != FORMAT or "version" not in arrays:
        raise InputError(
            f"{path}: not a fitkit parameter file (expected format '{FORMAT}', got '{arrays.get('format')}')"
        )
    check_shapes(arrays, {"version": ()}, {"version": "iu"}, path)
    if int(arrays["version"]) > VERSION:
        raise InputError(
            f"{path}: parameter file version {int(arrays['version'])}, this fitkit reads up to {VERSION}; "
            "update fitkit"
        )
    _check(arrays, path)

    def real(key):
        return torch.from_numpy(np.ascontiguousarray(arrays[key]))

    B = len(arrays["focal"])
    state = SceneState(
        real("identity")[None],
        torch.zeros(B, dtype=torch.int64),
        real("expression"),
        Pose(real("rotation"), real("translation")),
        Camera(real("focal"), real("principal"), real("aspect"), str(arrays["camera_kind"])),
        real("illumination"),
        real("albedo")[None] if "albedo" in arrays else None,
        joints=real("joints") if "joints" in arrays and arrays["joints"].shape[1] else None,
    )
    return Parameters(
        state,
        str(arrays["model_name"]),
        tuple(map(str, arrays["expression_names"])),
        str(arrays["subject_name"]),
        tuple(map(str, arrays["view_names"])),
        arrays["image_size"].astype(np.int64),
        tuple(map(str, arrays["camera_source"])),
        *(real(key) if key in arrays else None for key in OPTIONAL if key not in OF_STATE),
    )


def _check(arrays: dict[str, np.ndarray], path: Path) -> None:
    missing = [k for k in (*SHAPES, *TEXTS) if k not in arrays]
    if missing:
        raise InputError(
            f"{path}: the parameter file lacks {', '.join(missing)}; write it again with FitResult.save"
        )
    shapes = SHAPES | {k: v for k, v in OPTIONAL.items() if k in arrays} | dict.fromkeys(TEXTS, ())
    check_shapes(arrays, shapes, dict.fromkeys((*NAMES, *TEXTS), "U"), path)
    for key in (*SHAPES, *OPTIONAL):
        if key in arrays and arrays[key].dtype.kind == "f" and not np.isfinite(arrays[key]).all():
            raise InputError(f"{path}: {key} holds values that are not finite")
    if str(arrays["camera_kind"]) not in KINDS:
        raise InputError(
            f"{path}: camera_kind: expected one of {', '.join(KINDS)}; got '{arrays['camera_kind']}'"
        )
