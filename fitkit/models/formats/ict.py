"""ICT-FaceKit (MIT licence): the original OBJ files, or their packed `.npz`, -> FaceModel.

Source: Li et al., "Learning Formation of Physically-Based Face Attributes", CVPR 2020;
    github.com/ICT-VGL/ICT-FaceKit. Differs: millimetres instead of centimetres; quads split along their first
    diagonal; lashes, lacrimal fluid and the eye blend and occlusion meshes are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, MEGABYTE, check_indices, check_shapes, foreign_file, refused_as
from fitkit.io.mesh_files import obj_arrays
from fitkit.models.calibration import shipped_calibrations
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.parts import at_vertices, real
from fitkit.models.formats.tiles import pack_tiles
from fitkit.models.io import check_model

NUM_VERTICES = 26719  # of the original files
# Vertices in file order: name and one past the last index. Those after iris_right are dropped, so that a kept
# vertex has the same index as in the original files.
REGIONS = (
    ("face_narrow", 6706),
    ("face_rest", 9409),
    ("head_neck", 11248),
    ("mouth_socket", 13294),
    ("eye_socket_left", 13678),
    ("eye_socket_right", 14062),
    ("gums_tongue", 17039),
    ("teeth", 21451),
    ("sclera_left", 22221),
    ("iris_left", 23021),
    ("sclera_right", 23791),
    ("iris_right", 24591),
)
KEPT = REGIONS[-1][1]
# iBUG 68 as vertex indices, for the vertex order of the present files (`idx_to_landmark_verts` of the
# project). The file vertex_indices.json is not read: those of earlier releases belong to another vertex
# order.
# fmt: off
LANDMARKS = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443,  # jaw
    268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509,  # brows
    978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360,  # nose
    1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732,  # eyes
    5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841,  # outer lip
    5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,  # inner lip
)
# fmt: on
# Mirrored landmarks.
PAIRS = ((0, 16), (4, 12), (17, 26), (21, 22), (31, 35), (36, 45), (39, 42), (48, 54), (60, 64))
EXPRESSIONS = tuple(
    (
        "browDown_L browDown_R browInnerUp_L browInnerUp_R browOuterUp_L browOuterUp_R cheekPuff_L "
        "cheekPuff_R cheekSquint_L cheekSquint_R eyeBlink_L eyeBlink_R eyeLookDown_L eyeLookDown_R "
        "eyeLookIn_L eyeLookIn_R eyeLookOut_L eyeLookOut_R eyeLookUp_L eyeLookUp_R eyeSquint_L eyeSquint_R "
        "eyeWide_L eyeWide_R jawForward jawLeft jawOpen jawRight mouthClose mouthDimple_L mouthDimple_R "
        "mouthFrown_L mouthFrown_R mouthFunnel mouthLeft mouthLowerDown_L mouthLowerDown_R mouthPress_L "
        "mouthPress_R mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper "
        "mouthSmile_L mouthSmile_R mouthStretch_L mouthStretch_R mouthUpperUp_L mouthUpperUp_R noseSneer_L "
        "noseSneer_R"
    ).split()
)
NUM_IDENTITY = 100
SOURCE = "ICT-FaceKit, github.com/ICT-VGL/ICT-FaceKit; Li et al., CVPR 2020"
OBJ_BYTES = 32 * MEGABYTE  # the largest of the files has 4
LICENSE = "MIT, Copyright (c) 2020 USC Institute for Creative Technologies"


def import_ict(source: str | os.PathLike, name: str = "ict") -> FaceModel:
    """Read ICT-FaceKit from its original folder of OBJ files or from a packed `ict_facekit.npz`.

    Args:
        source: folder `FaceXModel` (or the repository that holds it) with `generic_neutral_mesh.obj`,
            `identity000.obj` ... (as many as there are, without a gap) and the expression files by name, each
            also as `.obj.gz`; or the `.npz` file.
        name: of the model.
    Returns:
        the model, float32; identities and expressions in file order.
    Raises:
        InputError: files missing, not readable, or of another release (vertex count or order).
    """
    source = Path(source)
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give the FaceXModel folder of ICT-FaceKit "
            "or ict_facekit.npz, or download it with 'fitkit model fetch ict'"
        )
    arrays = _read_folder(source) if source.is_dir() else _read_packed(source)
    mean, triangles, corners = arrays["mean"], arrays["faces"], arrays["faces_uv"]
    landmarks = mean[list(LANDMARKS)]
    mirror = np.abs(landmarks[[a for a, _ in PAIRS]] * [-1, 1, 1] - landmarks[[b for _, b in PAIRS]]).max()
    if (
        mirror > 1.0 or landmarks[:, 2].argmax() != 30
    ):  # measured: mirrored to 0.01 mm, the nose tip is foremost
        raise InputError(
            f"{source}: the landmark vertices are not where they belong; this is another release of "
            "ICT-FaceKit with another vertex order, use the present files ('fitkit model fetch ict')"
        )

    with refused_as(
        f"{source}: not usable as ICT-FaceKit", "use the present files ('fitkit model fetch ict')"
    ):
        if not np.isfinite(arrays["uv"]).all():
            raise ValueError("uv holds values that are not finite")
        kept = (triangles < KEPT).all(1)
        triangles, corners = triangles[kept], corners[kept]
        mean = mean[:KEPT]
        region = np.repeat(np.arange(len(REGIONS)), np.diff([0] + [end for _, end in REGIONS]))
        uv, corners = _pack_uv(arrays["uv"], corners, region[triangles[:, 0]])
        model = FaceModel(
            name=name,
            mean=real(mean),
            identity_basis=real(arrays["identity_basis"][:, :KEPT]),
            expression_basis=real(arrays["expression_basis"][:, :KEPT]),
            expression_names=tuple(arrays["expression_names"]),
            triangles=torch.from_numpy(triangles.astype(np.int64)),
            landmarks=at_vertices(triangles, LANDMARKS),
            region=torch.from_numpy(region.astype(np.int64)),
            region_names=tuple(n for n, _ in REGIONS),
            skin=torch.from_numpy(_skin(mean, region)),
            face=torch.from_numpy(region == 0),
            uv=real(uv),
            uv_triangles=torch.from_numpy(corners.astype(np.int64)),
            albedo_mean=real(_paint(mean, region)),
            source=SOURCE,
            license=LICENSE,
            calibration=shipped_calibrations()["ict"],
        )
    check_model(model, str(source))
    return model


def _read_packed(path: Path) -> dict:
    """The arrays of a packed `ict_facekit.npz`."""
    wanted = ("mean", "identity_basis", "expression_basis", "expression_names", "faces", "faces_uv", "uv")
    with foreign_file(
        path, "expected a folder of OBJ files or ict_facekit.npz; not readable as .npz", limit=DATA_BYTES
    ) as file:
        arrays = file.npz(wanted)
    missing = [k for k in wanted if k not in arrays]
    if missing:
        raise InputError(
            f"{path}: not a packed ICT-FaceKit, it lacks {', '.join(missing)}; give the FaceXModel folder"
        )
    shapes = {
        "mean": ("V", 3),
        "identity_basis": ("K_id", "V", 3),
        "expression_basis": ("K_ex", "V", 3),
        "expression_names": ("K_ex",),
        "faces": ("F", 3),
        "faces_uv": ("F", 3),
        "uv": ("T", 2),
    }
    check_shapes(arrays, {"mean": ("V", 3)}, {}, path)
    _check_count(arrays["mean"], path)  # first: it tells another release
    sizes = check_shapes(arrays, shapes, {"expression_names": "U", "faces": "iu", "faces_uv": "iu"}, path)
    for key, count in (("faces", sizes["V"]), ("faces_uv", sizes["T"])):
        check_indices(arrays[key], count, f"{path}: {key}")
    arrays["expression_names"] = [str(n) for n in arrays["expression_names"]]
    return arrays


def _read_folder(folder: Path) -> dict:
    """The same arrays from the original OBJ files, centimetres -> millimetres."""
    if _obj(folder, "generic_neutral_mesh") is None and (folder / "FaceXModel").is_dir():
        folder = folder / "FaceXModel"
    neutral = _obj(folder, "generic_neutral_mesh")
    if neutral is None:
        raise InputError(
            f"{folder}: no generic_neutral_mesh.obj; expected the FaceXModel folder of ICT-FaceKit"
        )
    identities = [_obj(folder, f"identity{i:03d}") for i in range(NUM_IDENTITY)]
    count = identities.index(None) if None in identities else NUM_IDENTITY
    if count == 0 or any(identities[count:]):
        raise InputError(
            f"{folder}: identity{count:03d}.obj is missing; "
            "expected identity000.obj, identity001.obj, ... without a gap"
        )
    names = [n for n in EXPRESSIONS if _obj(folder, n)]
    if not names:
        raise InputError(
            f"{folder}: no expression file (jawOpen.obj, ...); expected the FaceXModel folder of ICT-FaceKit"
        )

    mean, uv, faces, faces_uv = read_obj(neutral)
    _check_count(mean, folder)

    def offsets(paths):
        basis = np.empty((len(paths), len(mean), 3), np.float32)
        for row, path in zip(basis, paths):
            vertices = read_obj(path, only_vertices=True)[0]
            if len(vertices) != len(mean):
                raise InputError(
                    f"{path}: expected {len(mean)} vertices as in generic_neutral_mesh, got {len(vertices)}"
                )
            row[:] = 10 * (vertices - mean)
        return basis

    return {
        "mean": 10 * mean,
        "uv": uv,
        "faces": faces,
        "faces_uv": faces_uv,
        "identity_basis": offsets(identities[:count]),
        "expression_basis": offsets([_obj(folder, n) for n in names]),
        "expression_names": names,
    }


def _check_count(mean: np.ndarray, source: Path) -> None:
    if len(mean) != NUM_VERTICES:
        raise InputError(f"{source}: expected {NUM_VERTICES} vertices of ICT-FaceKit, got {len(mean)}")


def _obj(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / f"{stem}.obj", folder / f"{stem}.obj.gz") if p.is_file()), None)


def read_obj(
    path: Path, only_vertices: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], texture coordinates [T, 2], triangles [F, 3] and their texture corners [F, 3] of an
    OBJ file, see `obj_arrays`.

    Raises:
        InputError: not such a file, or faces of vertices that it does not have.
    """
    points, uv, triangles, corners = obj_arrays(path, corners=True, faces=not only_vertices, limit=OBJ_BYTES)
    inside = [
        len(i) and i.min() >= 0 and i.max() < n for i, n in ((triangles, len(points)), (corners, len(uv)))
    ]
    if not only_vertices and not all(inside):
        raise InputError(
            f"{path}: faces refer to vertices that the file does not have (cut off?); download it again"
        )
    return points, uv, triangles, corners


# The files put each material into a tile of its own, u in n ... n + 1; both eyes share tile 0 with the face.
# Here: the order of the squares `BOXES` that the parts go to; the tile tells where all others go.
SQUARES = ("face", "head", "gums", "teeth", "sclera_left", "iris_left", "sclera_right", "iris_right")


def _pack_uv(uv: np.ndarray, corners: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates of the kept triangles [F, 3], whose part is `region` [F], without tiles and
    overlap."""
    place = np.floor(uv[corners].mean(1)[:, 0]).astype(int)  # [F]
    for i, (part, _) in enumerate(REGIONS):
        if part in SQUARES:
            place[region == i] = SQUARES.index(part)
    return pack_tiles(uv, corners, place)


def _skin(mean: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Bare skin in most photos: no ears, scalp, nape or anything a collar covers. Bounds read off renders, in
    mm."""
    x, y, z = np.abs(mean[:, 0]), mean[:, 1], mean[:, 2]
    ear = (x > 66) & (z < 30) & (y > -38) & (y < 64)
    hair = z < 12 + 0.5 * np.maximum(y - 30, 0)  # nape, sideburns, temples
    return (region <= 1) & ~ear & ~hair & (y < 90) & (y > -135)


def _paint(mean: np.ndarray, region: np.ndarray) -> np.ndarray:
    """A plain mean albedo [V, 3], linear RGB: colours by part, lips and brows around their landmarks."""
    skin, lips, brows = (
        np.array([0.47, 0.27, 0.19]),
        np.array([0.40, 0.14, 0.12]),
        np.array([0.12, 0.07, 0.05]),
    )
    by_region = {
        "mouth_socket": [0.22, 0.06, 0.05],
        "eye_socket_left": skin * 0.8,
        "eye_socket_right": skin * 0.8,
        "gums_tongue": [0.40, 0.13, 0.12],
        "teeth": [0.65, 0.60, 0.50],
    }
    albedo = np.tile(skin, (len(mean), 1))
    for i, (name, _) in enumerate(REGIONS):
        albedo[region == i] = by_region.get(name, skin)

    points = mean[list(LANDMARKS)]
    outer = np.flatnonzero(region == 0)

    def blend(rows, weight, color):
        albedo[rows] += weight[:, None] * (color - albedo[rows])

    contour = points[48:60, :2].astype(np.float32)
    # mm
    inside = np.array([cv2.pointPolygonTest(contour, tuple(map(float, p)), True) for p in mean[outer, :2]])
    front = mean[outer, 2] > points[48, 2] - 6
    blend(outer, np.clip(0.5 + inside / 2.0, 0, 1) * front, lips)
    for brow in (points[17:22], points[26:21:-1]):  # from the outer to the inner end
        line = np.array([np.interp(np.linspace(0, 4, 41), np.arange(5), brow[:, k]) for k in range(3)]).T
        line[:, 1] -= 2.0  # the landmarks lie on the upper edge
        distance = np.linalg.norm(mean[outer, None] - line[None], axis=2)
        width = 2.0 + 2.0 * distance.argmin(1) / 40  # thin outside, thicker inside
        blend(outer, 0.75 * np.exp(-0.5 * (distance.min(1) / width) ** 2), brows)
    # The outer eyeball mesh ('sclera') also covers the iris, so both carry the same rings around the optical
    # axis.
    for side in ("left", "right"):
        names = [n for n, _ in REGIONS]
        outer_ball = region == names.index(f"sclera_{side}")
        for part in (f"sclera_{side}", f"iris_{side}"):
            rows = np.flatnonzero(region == names.index(part))
            center = (mean[outer_ball].min(0) + mean[outer_ball].max(0)) / 2
            radius = np.linalg.norm((mean[rows] - center)[:, :2], axis=1)  # mm
            radius[mean[rows, 2] < center[2]] = np.inf
            albedo[rows] = [0.68, 0.64, 0.60]
            blend(rows, np.clip(0.5 + (5.8 - radius) / 0.8, 0, 1), np.array([0.13, 0.07, 0.035]))
            blend(rows, np.clip(0.5 + (2.2 - radius) / 0.6, 0, 1), np.array([0.01, 0.01, 0.01]))
    return albedo
