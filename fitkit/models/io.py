"""Read and write face-model files (`.npz`)."""

from __future__ import annotations

import os
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, check_indices, check_shapes, foreign_file
from fitkit.models.calibration import Calibration, default_calibration, shipped_calibrations
from fitkit.models.coefficients import shape_and_side
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.skinned import SkinnedModel

# Version 2 has Gaussian expressions, or lacks landmarks, version 3 has joints; all others are written as
# version 1, for older fitkits.
FORMAT, VERSION = "fitkit-model", 3
REQUIRED = (
    "format",
    "version",
    "name",
    "mean",
    "identity_basis",
    "expression_basis",
    "expression_names",
    "triangles",
    "landmark_triangles",
    "landmark_barycentric",
    "region",
    "region_names",
    "skin",
    "face",
)
OPTIONAL = (
    "uv",
    "uv_triangles",
    "albedo_mean",
    "albedo_basis",
    "expression_kind",
    "expression_sigma",
    "calibration",
    "source",
    "license",
    "notes",
    "extra_names",
    "extra_basis",
)
# Of models with joints: all of them, and maybe pose_basis.
JOINTS = ("joint_names", "joint_regressor", "joint_parents", "skinning_weights", "joint_sigma")
EXPRESSION_KINDS = ("blend_shape", "gaussian")
# With shapes.
TEXTS = {
    "format": (),
    "name": (),
    "source": (),
    "license": (),
    "notes": (),
    "expression_kind": (),
    "expression_names": ("K_ex",),
    "region_names": ("R",),
    "extra_names": ("K_x",),
    "joint_names": ("J",),
}
KINDS = (
    dict.fromkeys(TEXTS, "U")
    | {"version": "iu", "skin": "biu", "face": "biu"}
    | dict.fromkeys(("triangles", "landmark_triangles", "region", "uv_triangles", "joint_parents"), "iu")
)
# Millimetres, linear RGB and radians.
LARGEST = {
    "mean": 1e4,
    "identity_basis": 1e3,
    "expression_basis": 1e3,
    "extra_basis": 1e3,
    "albedo_mean": 10,
    "albedo_basis": 10,
    "pose_basis": 1e3,
    "joint_sigma": 4,
}
# Standard deviations that priors can hold: beside the weight of smaller ones all others vanish in float32.
LEAST_SIGMA = 1e-6
SUM_SLACK = 1e-2  # how far sums of weights may be from 1
EYE_CORNERS = (36, 45)  # outer ones; they tell the unit
LEAST_POINTS = 8  # landmarks that place a face in a photo
CALIBRATION = tuple(f.name for f in fields(Calibration))  # the order in the file
SHORT_CALIBRATION = 3  # numbers in files that say nothing of the true error
BARYCENTRIC_SLACK = 0.1  # how far outside of its triangle a landmark may lie, in barycentric coordinates


def load_model_file(path: str | os.PathLike) -> FaceModel:
    """Read a model file; arrays become float32 / int64 tensors on the CPU.

    Raises:
        InputError: not a fitkit model file, a newer version, or arrays that do not fit together.
    """
    path = Path(path)
    with foreign_file(path, "not a readable fitkit model file (.npz)", limit=DATA_BYTES) as file:
        arrays = file.npz((*REQUIRED, *OPTIONAL, *JOINTS, "pose_basis"))
    missing = [k for k in REQUIRED if k not in arrays]
    if missing or str(arrays.get("format")) != FORMAT:
        raise InputError(
            f"{path}: not a fitkit model file (missing {', '.join(missing) or 'format mark'}); "
            "import it with 'fitkit model import'"
        )
    short = np.shape(arrays.get("calibration")) == (SHORT_CALIBRATION,)
    plain = TEXTS | {
        "joint_parents": ("1 + J",),
        "version": (),
        "calibration": (SHORT_CALIBRATION if short else len(CALIBRATION),),
    }
    # `check_model` looks at the other shapes.
    check_shapes(arrays, {k: plain.get(k, v.shape) for k, v in arrays.items()}, KINDS, path)
    if int(arrays["version"]) > VERSION:
        raise InputError(
            f"{path}: model file version {int(arrays['version'])}, this fitkit reads up to {VERSION}; "
            "update fitkit"
        )

    def real(key):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which `check_model` tells
            return (
                torch.from_numpy(np.ascontiguousarray(arrays[key], dtype=np.float32))
                if key in arrays
                else None
            )

    def whole(key):
        return torch.from_numpy(np.ascontiguousarray(arrays[key], dtype=np.int64)) if key in arrays else None

    values = dict(
        name=str(arrays["name"]),
        mean=real("mean"),
        identity_basis=real("identity_basis"),
        expression_basis=real("expression_basis"),
        expression_names=tuple(str(n) for n in arrays["expression_names"]),
        triangles=whole("triangles"),
        landmarks=LandmarkEmbedding(
            tuple(f"ibug68/{i}" for i in range(68)), whole("landmark_triangles"), real("landmark_barycentric")
        ),
        region=whole("region"),
        region_names=tuple(str(n) for n in arrays["region_names"]),
        skin=torch.from_numpy(arrays["skin"].astype(bool)),
        face=torch.from_numpy(arrays["face"].astype(bool)),
        uv=real("uv"),
        uv_triangles=whole("uv_triangles"),
        albedo_mean=real("albedo_mean"),
        source=str(arrays.get("source", "")),
        license=str(arrays.get("license", "")),
        notes=str(arrays.get("notes", "")),
        albedo_basis=real("albedo_basis"),
        expression_kind=cast(Any, str(arrays.get("expression_kind", "blend_shape"))),
        expression_sigma=real("expression_sigma"),
        calibration=_calibration(arrays),
        extra_names=tuple(str(n) for n in arrays.get("extra_names", ())),
        extra_basis=real("extra_basis"),
    )
    given = [k for k in (*JOINTS, "pose_basis") if k in arrays]
    if given and not set(JOINTS) <= set(given):
        lacks = next(k for k in JOINTS if k not in given)
        raise InputError(
            f"{path}: {given[0]}: expected {lacks} with it, got none; a model with joints has "
            f"{', '.join(JOINTS)}"
        )
    model = FaceModel(**values)
    if given:
        model = SkinnedModel(
            **values,
            joint_names=tuple(str(n) for n in arrays["joint_names"]),
            joint_regressor=real("joint_regressor"),
            joint_parents=tuple(arrays["joint_parents"].tolist()),
            skinning_weights=real("skinning_weights"),
            joint_sigma=real("joint_sigma"),
            pose_basis=real("pose_basis"),
        )
    check_model(model, str(path))
    return model


def _calibration(arrays: dict[str, np.ndarray]) -> Calibration | None:
    """That of the file, or what is known of a model with its name: older files hold none."""
    name = str(arrays["name"])
    if "calibration" not in arrays:
        return shipped_calibrations().get(name)
    given = arrays["calibration"].astype(np.float64).tolist()
    return Calibration(*given, *astuple(default_calibration(name))[len(given) :])


def check_model(model: FaceModel, where: str) -> None:
    """Refuse a model whose arrays do not fit together, or that no fit could use; `where` names the file in
    the message.

    Raises:
        InputError: shapes that differ; numbers that are not finite or absurdly large; indices that point
            nowhere; no triangle, shape, skin or face; too few landmarks, or landmarks outside of their
            triangles; another unit than millimetres; coefficients whose meaning is not known; a calibration
            out of range.
    """
    V, F, K = len(model.mean), len(model.triangles), len(model.expression_names)
    wanted = {
        "mean": (model.mean, (V, 3)),
        "identity_basis": (model.identity_basis, (model.num_identity, V, 3)),
        "expression_basis": (model.expression_basis, (K, V, 3)),
        "triangles": (model.triangles, (F, 3)),
        "landmark_barycentric": (model.landmarks.barycentric, (68, 3)),
        "landmark_triangles": (model.landmarks.triangle, (68,)),
        "region": (model.region, (V,)),
        "skin": (model.skin, (V,)),
        "face": (model.face, (V,)),
    }
    if (model.uv is None) != (model.uv_triangles is None) or (
        model.uv_triangles is not None and model.uv_triangles.shape != (F, 3)
    ):
        raise InputError(
            f"{where}: uv and uv_triangles must both be given, uv_triangles with one row per triangle"
        )
    if model.uv is not None:
        wanted["uv"] = (model.uv, (len(model.uv), 2))
    if model.albedo_mean is not None:
        wanted["albedo_mean"] = (model.albedo_mean, (V, 3))
    if model.albedo_basis is not None:
        wanted["albedo_basis"] = (model.albedo_basis, (len(model.albedo_basis), V, 3))
    if model.extra_basis is not None and model.extra_names:
        wanted["extra_basis"] = (model.extra_basis, (len(model.extra_names), V, 3))
    if isinstance(model, SkinnedModel):
        J = model.num_joints
        wanted["joint_regressor"] = (model.joint_regressor, (1 + J, V))
        wanted["skinning_weights"] = (model.skinning_weights, (V, 1 + J))
        wanted["joint_sigma"] = (model.joint_sigma, (J, 3))
        if model.pose_basis is not None:
            wanted["pose_basis"] = (model.pose_basis, (9 * J, V, 3))
    for key, (value, shape) in wanted.items():
        if tuple(value.shape) != shape:
            raise InputError(f"{where}: {key}: expected shape {shape}, got {tuple(value.shape)}")
        if value.is_floating_point() and value.numel():
            largest = float(value.abs().max())  # nan where one is
            if not largest < float("inf"):
                raise InputError(f"{where}: {key} holds values that are not finite")
            if largest > LARGEST.get(key, float("inf")):
                raise InputError(
                    f"{where}: {key}: expected values up to {LARGEST[key]:g}, got {largest:.4g} (wrong unit?)"
                )
    for key in ("skin", "face"):
        if not bool(getattr(model, key).any()):
            raise InputError(f"{where}: {key}: expected at least one vertex, got none")
    for key in ("identity_basis", "expression_basis"):
        if not len(getattr(model, key)):
            raise InputError(f"{where}: {key}: expected at least one shape, got none")
    _check_present(model.landmarks, where)
    indices = {
        "triangles": ("[F, 3] ", V),
        "region": ("", len(model.region_names)),
    }
    if model.uv is not None:
        wanted["uv_triangles"], indices["uv_triangles"] = (
            (model.uv_triangles, (F, 3)),
            ("[F, 3] ", len(model.uv)),
        )
    for key, (kind, count) in indices.items():
        check_indices(wanted[key][0].numpy(), count, f"{where}: {key}", kind)
    present = model.landmarks.present.numpy()
    check_indices(model.landmarks.triangle.numpy()[present], F, f"{where}: landmark_triangles", "")
    weights = model.landmarks.barycentric.numpy()[present]
    if weights.min() < -BARYCENTRIC_SLACK or np.abs(weights.sum(1) - 1).max() > 1e-2:
        wrong = int(
            np.maximum(-BARYCENTRIC_SLACK - weights.min(1), np.abs(weights.sum(1) - 1) - 1e-2).argmax()
        )
        raise InputError(
            f"{where}: landmark_barycentric: expected weights of the corners, 0 to 1 with the sum 1, got "
            f"{weights[wrong].tolist()} for point {present.nonzero()[0][wrong]}"
        )
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    right, left = EYE_CORNERS
    width = float((points[left] - points[right]).norm())
    if not 70 <= width <= 120:
        raise InputError(
            f"{where}: outer eye corners are {width:.4g} apart; a model in millimetres has 80 to 110 (wrong "
            "unit?)"
        )
    if model.albedo_basis is not None and model.albedo_mean is None:
        raise InputError(f"{where}: albedo_basis: expected albedo_mean with it, got none")
    _check_expression(model, where)
    _check_extra(model, where)
    if isinstance(model, SkinnedModel):
        _check_joints(model, where)
    if model.calibration is not None:
        _check_calibration(model.calibration, where)


def _check_present(landmarks: LandmarkEmbedding, where: str) -> None:
    """Refuse a model with so few landmarks that no photo tells its pose."""
    count = len(landmarks.names) - len(landmarks.missing)
    corners = landmarks.triangle[list(EYE_CORNERS)].tolist()
    if count < LEAST_POINTS or -1 in corners:
        raise InputError(
            f"{where}: landmark_triangles: expected at least {LEAST_POINTS} of the 68 points (-1: the mesh "
            f"lacks it), the outer eye corners {EYE_CORNERS[0]} and {EYE_CORNERS[1]} among them, got "
            f"{count}, the corners on triangles {corners[0]} and {corners[1]}"
        )


def _check_expression(model: FaceModel, where: str) -> None:
    """Refuse expression coefficients whose meaning is not known."""
    kind, sigma = model.expression_kind, model.expression_sigma
    if kind not in EXPRESSION_KINDS:
        raise InputError(
            f"{where}: expression_kind: expected {' or '.join(map(repr, EXPRESSION_KINDS))}, got {kind!r}"
        )
    if sigma is None:
        return
    if kind != "gaussian":
        raise InputError(
            f"{where}: expression_sigma: expected with expression_kind 'gaussian' only, got it with "
            f"{kind!r}; the strength of blend shapes is an option of recipes"
        )
    if tuple(sigma.shape) != (model.num_expression,):
        raise InputError(
            f"{where}: expression_sigma: expected shape ({model.num_expression},), got {tuple(sigma.shape)}"
        )
    if not bool(((sigma >= LEAST_SIGMA) & (sigma < float("inf"))).all()):
        raise InputError(
            f"{where}: expression_sigma: expected finite standard deviations of {LEAST_SIGMA:g} or more, got "
            f"{float(sigma.min()):.4g} to {float(sigma.max()):.4g}"
        )


def _check_extra(model: FaceModel, where: str) -> None:
    """Refuse shapes for other tools that would be mixed up with others."""
    names = model.extra_names
    if bool(names) != (model.extra_basis is not None):
        raise InputError(
            f"{where}: extra_names and extra_basis must both be given, with a name for each shape"
        )
    known = {shape_and_side(name) for name in model.expression_names}
    for name in names:  # 'mouthSmile_L' and 'mouthSmileLeft' are one name for other tools
        if shape_and_side(name) in known:
            raise InputError(
                f"{where}: extra_names: expected names that no other shape has, got {name!r} twice"
            )
        known.add(shape_and_side(name))


def _check_joints(model: SkinnedModel, where: str) -> None:
    """Refuse joints that could not turn anything, or not as skinning needs it."""
    names, parents = model.joint_names, model.joint_parents
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"{where}: joint_names: expected at least one name, and no two that are equal, got {list(names)}"
        )
    if (
        len(parents) != 1 + len(names)
        or parents[0] != -1
        or any(not 0 <= p < j for j, p in enumerate(parents) if j)
    ):
        raise InputError(
            f"{where}: joint_parents: expected -1 for the root and then, for each of the {len(names)} "
            f"joint_names, the number of a joint before it (0: the root), got {list(parents)}"
        )
    for key, weights in (
        ("joint_regressor", model.joint_regressor),
        ("skinning_weights", model.skinning_weights),
    ):
        away = (weights.sum(1) - 1).abs()
        if float(away.max()) > SUM_SLACK:
            row = int(away.argmax())
            total = float(weights[row].sum())
            raise InputError(f"{where}: {key}: expected rows with the sum 1, got {total:.4g} in row {row}")
    weights = model.skinning_weights
    if float(weights.min()) < -SUM_SLACK:
        raise InputError(
            f"{where}: skinning_weights: expected weights of 0 to 1, got {float(weights.min()):.4g}"
        )
    if not bool((model.joint_sigma >= LEAST_SIGMA).all()):
        raise InputError(
            f"{where}: joint_sigma: expected standard deviations of {LEAST_SIGMA:g} rad or more, got "
            f"{float(model.joint_sigma.min()):.4g}"
        )


def _check_calibration(calibration: Calibration, where: str) -> None:
    """Refuse numbers that no error bar could be made with."""
    c = calibration
    positive = all(0 < v < float("inf") for v in (c.inflation, c.single, c.several))
    if not (positive and 0 <= c.floor_mm < float("inf") and 0 <= c.left <= 1):
        raise InputError(
            f"{where}: calibration: expected {', '.join(CALIBRATION)}: finite, floor_mm at least 0, left 0 "
            f"to 1, the others above 0, got {list(astuple(c))}"
        )


def save_model_file(model: FaceModel, path: str | os.PathLike) -> Path:
    """Write a model file (bases in half precision, which is made for millimetres: not where expressions
    have a unit of their own), whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    gaussian = model.expression_kind == "gaussian"
    arrays = {
        "format": FORMAT,
        "version": VERSION if model.num_joints else 2 if gaussian or model.landmarks.missing else 1,
        "name": model.name,
        "source": model.source,
        "license": model.license,
        "notes": model.notes,
        "mean": model.mean.numpy().astype(np.float32),
        "identity_basis": model.identity_basis.numpy().astype(np.float16),
        "expression_basis": model.expression_basis.numpy().astype(
            np.float16 if model.expression_sigma is None else np.float32
        ),
        "expression_names": np.array(model.expression_names),
        "triangles": model.triangles.numpy().astype(np.int32),
        "landmark_triangles": model.landmarks.triangle.numpy().astype(np.int32),
        "landmark_barycentric": model.landmarks.barycentric.numpy().astype(np.float32),
        "region": model.region.numpy().astype(np.int8),
        "region_names": np.array(model.region_names),
        "skin": model.skin.numpy(),
        "face": model.face.numpy(),
        **({"expression_kind": model.expression_kind} if gaussian else {}),
        **({"calibration": np.array(astuple(model.calibration))} if model.calibration else {}),
    }
    for key, dtype in (
        ("uv", np.float32),
        ("uv_triangles", np.int32),
        ("albedo_mean", np.float32),
        ("albedo_basis", np.float16),
        ("expression_sigma", np.float32),
        ("joint_regressor", np.float32),
        ("skinning_weights", np.float32),
        ("joint_sigma", np.float32),
        ("pose_basis", np.float16),
        ("extra_basis", np.float16),
    ):
        if getattr(model, key, None) is not None:
            arrays[key] = getattr(model, key).numpy().astype(dtype)
    if model.extra_names:
        arrays["extra_names"] = np.array(model.extra_names)
    if isinstance(model, SkinnedModel):
        arrays |= {"joint_names": np.array(model.joint_names), "joint_parents": np.array(model.joint_parents)}
    with (
        written_whole(path, "set FITKIT_MODELS to a folder you may write to") as part,
        open(part, "wb") as file,
    ):
        np.savez_compressed(file, **arrays)
    return path
