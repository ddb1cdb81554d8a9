"""FLAME 2020, 2023 and 2023 Open: the model file, and what its publishers and public loaders keep beside it.

Source: Li et al., "Learning a model of facial shape and expression from 4D scans", SIGGRAPH Asia 2017;
    flame.is.tue.mpg.de. Differs: millimetres instead of metres; the root joint does not turn, the pose of the
    head does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, check_indices, check_shapes, foreign_file, refused_as
from fitkit.io.mesh_files import obj_arrays
from fitkit.models.face_model import LandmarkEmbedding
from fitkit.models.formats.joints import joint_sigma
from fitkit.models.formats.parts import NAMES, Parts, parts_of, real
from fitkit.models.io import check_model
from fitkit.models.skinned import SkinnedModel

LICENSE, OPEN_LICENSE = "of FLAME: research, see flame.is.tue.mpg.de", "CC BY 4.0"
SOURCE = "FLAME, flame.is.tue.mpg.de; Li et al., SIGGRAPH Asia 2017"
MM = 1000.0  # in a metre
IDENTITY, EXPRESSION = 300, 100  # of the 400 shapes
JOINTS = 5  # root, neck, jaw, two eyes
# Names that the publishers and public loaders give to the files of one folder; the first that is there
# counts.
MODELS = tuple(
    f"{stem}.{kind}"
    for stem in (
        *("flame2023", "flame2023_Open", "flame2023_no_jaw", "generic_model", "FLAME_NEUTRAL"),
        *("female_model", "male_model"),
    )
    for kind in ("pkl", "npz")
)
LANDMARKS = (  # of all 68 points, or of the 51 without the jaw
    "landmark_embedding_with_eyes.npy",
    "landmark_embedding.npy",
    "flame_static_embedding_68_v4.npz",
    "flame_static_embedding.pkl",
    "flame_static_embedding.npy",
    "flame_static_embedding.npz",
)
CONTOURS = ("flame_dynamic_embedding.npy", "flame_dynamic_embedding.npz")
TEMPLATES = ("head_template_mesh.obj", "head_template.obj", "uv_template.obj")
TEXTURES = ("FLAME_texture.npz",)
MASKS = ("FLAME_masks.pkl", "FLAME_masks.npz")
EYELIDS = (("l_eyelid.npy", "eyeBlink_L"), ("r_eyelid.npy", "eyeBlink_R"))
JAW_POINTS, INNER_POINTS, ALL_POINTS = 17, 51, 68
EYELID_SIGMA = 0.5  # of a shape that is 1 where the eye is shut
REGIONS = {  # of `generic` by those of the masks, later ones first
    "face": ("face",),
    "head": ("scalp",),
    "ears": ("left_ear", "right_ear"),
    "neck": ("neck", "boundary"),
    "eye_left": ("left_eyeball",),
    "eye_right": ("right_eyeball",),
}
NOTES = (
    "Identity and expression coefficients are FLAME's shape and expression parameters, 300 and 100 as "
    "published, in standard deviations. The head frame is FLAME's own in millimetres (x 1000): its axes and "
    "its origin. Rotation vectors of neck, jaw and eyes are FLAME's. FLAME turns the head about its root "
    "joint, fitkit about the origin: global rotation = R of the pose, translation = t - J + R J in metres, "
    "with J the root joint at rest (row 0 of joint_regressor)."
)
EYELID_NOTES = (
    " eyeBlink_L and eyeBlink_R are the two eyelid parameters (0 open, 1 shut) of metrical-tracker and "
    "SMIRK, added before the joints turn."
)


def import_flame(source: str | os.PathLike, name: str = "flame") -> SkinnedModel:
    """Read FLAME from its model file, .pkl or .npz, and from the files in its folder.

    Args:
        source: the model file, or the folder that holds it under one of the names `MODELS`. Beside it must
            lie an embedding of the landmarks (`LANDMARKS`: all 68 points, or 51, which `CONTOURS` completes);
            there may be texture coordinates (`TEMPLATES`, `TEXTURES`), masks (`MASKS`) and the shapes of the
            eyelids (`EYELIDS`).
        name: of the model.
    Returns:
        the model, float32; 300 identity and 100 expression shapes in file order, then the eyelids.
    Raises:
        InputError: files missing, not readable, or of another layout.
    """
    path = _model_file(Path(source))
    arrays, vertices = _read_model(path)
    with refused_as(f"{path}: not usable as FLAME", "give the files as they were downloaded"):
        model = _model(path, arrays, _read_eyelids(path.parent, vertices), name)
    check_model(model, str(path))
    return model


def _model(path: Path, arrays: dict[str, np.ndarray], lids: dict[str, np.ndarray], name: str) -> SkinnedModel:
    """The model of these arrays, with what else lies in their folder."""
    folder, triangles = path.parent, arrays["f"].astype(np.int64)
    mean = MM * arrays["v_template"]
    shapes = MM * np.moveaxis(arrays["shapedirs"], 2, 0)
    landmarks = _read_landmarks(folder, len(triangles))
    uv, uv_triangles = _read_uv(folder, triangles)
    parts = _parts(folder, mean, triangles, landmarks)
    joints = _joint_names(arrays["J_regressor"] @ mean)
    return SkinnedModel(
        name=name,
        mean=real(mean),
        identity_basis=real(shapes[:IDENTITY]),
        expression_basis=real(np.stack([*shapes[IDENTITY:], *(MM * lid for lid in lids.values())])),
        expression_names=(*(f"expression_{k:03d}" for k in range(EXPRESSION)), *lids),
        triangles=torch.from_numpy(triangles),
        landmarks=landmarks,
        region=parts.region,
        region_names=parts.region_names,
        skin=parts.skin,
        face=parts.face,
        uv=uv,
        uv_triangles=uv_triangles,
        source=f"{SOURCE} ({path.name})",
        license=OPEN_LICENSE if "open" in path.stem.lower() else LICENSE,
        expression_kind="gaussian",
        expression_sigma=torch.tensor([1.0] * EXPRESSION + [EYELID_SIGMA] * len(lids)),
        notes=NOTES + (EYELID_NOTES if lids else ""),
        joint_names=joints,
        joint_regressor=real(arrays["J_regressor"]),
        joint_parents=(-1, *arrays["kintree_table"][0, 1:].astype(np.int64).tolist()),
        skinning_weights=real(arrays["weights"]),
        joint_sigma=joint_sigma(joints),
        pose_basis=real(MM * np.moveaxis(arrays["posedirs"], 2, 0)),
    )


def _model_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = _first(source, MODELS)
    if found is None:
        raise InputError(
            f"{source}: no model file of FLAME; expected one of {', '.join(n for n in MODELS if 'pkl' in n)} "
            "(or .npz), or give the path of the file"
        )
    return found


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Entries of a pickled dictionary, as FLAME's files are, or of a .npz."""
    with foreign_file(
        path, "not readable as a file of FLAME", "give the file as it was downloaded", limit=DATA_BYTES
    ) as file:
        return file.pickled(names)


def _arrays(
    path: Path, found: Mapping[str, Any], shapes: dict[str, tuple], kinds: dict[str, str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The arrays of these names and shapes and their sizes, see `check_shapes`."""
    missing = [key for key in shapes if not isinstance(found.get(key), np.ndarray)]
    if missing:
        raise InputError(
            f"{path}: expected arrays {', '.join(shapes)} as in the files of FLAME, got none for "
            f"{', '.join(missing)}"
        )
    arrays = {key: found[key] for key in shapes}
    return arrays, check_shapes(arrays, shapes, kinds or {}, path)


def _read_model(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of the model file, as published, and the number of vertices."""
    shapes = {
        "v_template": ("V", 3),
        "shapedirs": ("V", 3, IDENTITY + EXPRESSION),
        "posedirs": ("V", 3, 9 * (JOINTS - 1)),
        "J_regressor": (JOINTS, "V"),
        "weights": ("V", JOINTS),
        "kintree_table": (2, JOINTS),
        "f": ("F", 3),
    }
    arrays, sizes = _arrays(path, _read(path, tuple(shapes)), shapes, {"f": "iu", "kintree_table": "iu"})
    check_indices(arrays["f"], sizes["V"], f"{path}: f", "[F, 3] ")
    check_indices(arrays["kintree_table"][:1, 1:], JOINTS - 1, f"{path}: kintree_table, first row")
    return arrays, sizes["V"]


def _joint_names(places: np.ndarray) -> tuple[str, ...]:
    """Of the joints that turn; places: [5, 3] mm. The left eye is the one with the larger x."""
    eyes = ("eye_L", "eye_R") if places[3, 0] > places[4, 0] else ("eye_R", "eye_L")
    return ("neck", "jaw", *eyes)


def _read_landmarks(folder: Path, count: int) -> LandmarkEmbedding:
    """The 68 points on `count` triangles; those of the jaw are missing where no file has them."""
    path = _first(folder, LANDMARKS)
    if path is None:
        raise InputError(
            f"{folder}: no landmark embedding beside FLAME's model file; put landmark_embedding.npy (DECA) "
            "or flame_static_embedding.pkl, and flame_dynamic_embedding.npy with it, there"
        )
    keys = [
        ("full_lmk_faces_idx", "full_lmk_bary_coords"),
        ("static_lmk_faces_idx", "static_lmk_bary_coords"),
        ("lmk_face_idx", "lmk_b_coords"),
    ]
    found = _read_any(path, keys)
    triangle, weights = _points(path, *found)
    if len(triangle) >= ALL_POINTS:  # more: the pupils
        triangle, weights = triangle[:ALL_POINTS], weights[:ALL_POINTS]
    elif len(triangle) == INNER_POINTS:
        jaw = _read_contour(folder)
        triangle, weights = np.concatenate([jaw[0], triangle]), np.concatenate([jaw[1], weights])
    else:
        raise InputError(f"{path}: expected {INNER_POINTS} or {ALL_POINTS} points, got {len(triangle)}")
    check_indices(triangle[triangle != -1], count, f"{path}: triangles of the landmarks")
    return LandmarkEmbedding(NAMES, torch.from_numpy(triangle), real(weights))


def _read_any(path: Path, keys: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles and weights under the first pair of names that the file has."""
    for pair in keys:
        found = _read(path, pair)
        if len(found) == 2:
            triangle, weights = (found[key] for key in pair)
            if isinstance(triangle, (np.ndarray, list)) and isinstance(weights, (np.ndarray, list)):
                return np.asarray(triangle), np.asarray(weights)
    raise InputError(
        f"{path}: expected an embedding of landmarks with {' or '.join(' and '.join(k) for k in keys)}"
    )


def _points(path: Path, triangle: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [N] int64 and weights [N, 3] of the points of an embedding."""
    arrays = {"triangles": triangle.reshape(-1), "weights": weights.reshape(-1, weights.shape[-1])}
    check_shapes(arrays, {"triangles": ("N",), "weights": ("N", 3)}, {"triangles": "iu"}, path)
    return arrays["triangles"].astype(np.int64), arrays["weights"]


def _read_contour(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 17 points of the jaw seen from the front; -1 for each where no file has them."""
    path = _first(folder, CONTOURS)
    if path is None:
        return np.full(JAW_POINTS, -1), np.eye(3)[np.zeros(JAW_POINTS, int)]
    triangle, weights = _read_any(path, [("lmk_face_idx", "lmk_b_coords")])
    arrays = {"lmk_face_idx": triangle, "lmk_b_coords": weights}
    shapes = {"lmk_face_idx": ("A", JAW_POINTS), "lmk_b_coords": ("A", JAW_POINTS, 3)}
    check_shapes(arrays, shapes, {"lmk_face_idx": "iu"}, path)
    if not len(triangle):
        raise InputError(f"{path}: lmk_face_idx: expected the points of at least one angle, got none")
    return _points(path, triangle[0], weights[0])  # row k: the outline of a head turned by k degrees


def _read_eyelids(folder: Path, vertices: int) -> dict[str, np.ndarray]:
    """The shapes of the eyelids [V, 3] m by their names, those of both eyes or none."""
    lids = {}
    for file_name, name in EYELIDS:
        path = folder / file_name
        if not path.is_file():
            continue
        with foreign_file(path, "not a readable eyelid shape", limit=DATA_BYTES) as file:
            lids[name] = file.npy()
        if lids[name].shape == (1, vertices, 3):
            lids[name] = lids[name][0]
        check_shapes(lids, {name: (vertices, 3)}, {}, path)
    if len(lids) == 1:
        raise InputError(f"{folder}: expected l_eyelid.npy and r_eyelid.npy, got one of them")
    return lids


def _read_uv(folder: Path, triangles: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Texture coordinates, and their rows for the corners of each triangle; None where no file has them."""
    template, texture = _first(folder, TEMPLATES), _first(folder, TEXTURES)
    if template is not None:
        path = template
        _, uv, faces, corners = obj_arrays(path, corners=True)
        corners = _in_order(path, faces, corners, triangles)
    elif texture is not None:
        path = texture
        arrays, _ = _arrays(
            path, _read(path, ("vt", "ft")), {"vt": ("T", 2), "ft": (len(triangles), 3)}, {"ft": "iu"}
        )
        uv, corners = arrays["vt"], arrays["ft"]
    else:
        return None, None
    check_indices(corners, len(uv), f"{path}: texture coordinates of the triangles")
    return real(uv), torch.from_numpy(corners.astype(np.int64))


def _in_order(path: Path, faces: np.ndarray, corners: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Texture corners of the same triangles in another order, with the corners turned maybe."""

    def first(rows):
        """Each triangle from its smallest vertex on."""
        turn = (rows.argmin(1)[:, None] + [0, 1, 2]) % 3
        return np.take_along_axis(rows, turn, 1), turn

    (mine, turned), (wanted, turns) = first(faces), first(triangles)
    order, place = np.lexsort(mine.T), np.lexsort(wanted.T)
    if mine.shape != wanted.shape or not np.array_equal(mine[order], wanted[place]):
        raise InputError(
            f"{path}: its triangles are not those of the model file; leave it out, or give FLAME's"
        )
    out, rows = np.empty_like(corners), np.empty_like(corners)
    rows[place] = np.take_along_axis(corners, turned, 1)[order]
    np.put_along_axis(out, turns, rows, 1)
    return out


def _parts(folder: Path, mean: np.ndarray, triangles: np.ndarray, landmarks: LandmarkEmbedding) -> Parts:
    """The parts of the head by those of `generic`, and by FLAME's masks where these are given."""
    parts, path = parts_of(mean, triangles, landmarks), _first(folder, MASKS)
    if path is None:
        return parts
    found = _read(path, [mask for masks in REGIONS.values() for mask in masks])
    region, names = parts.region.clone(), parts.region_names
    inside: dict[str, torch.Tensor] = {}
    for part, masks in REGIONS.items():
        inside[part] = torch.zeros(len(mean), dtype=torch.bool)
        for mask in masks:
            rows = np.asarray(found.get(mask, []))
            if rows.size:
                check_shapes({mask: rows}, {mask: ("N",)}, {mask: "iu"}, path)
                check_indices(rows, len(mean), f"{path}: {mask}")
                inside[part][torch.from_numpy(rows.astype(np.int64))] = True
        region[inside[part]] = names.index(part)
    other = inside["eye_left"] | inside["eye_right"] | inside["ears"]
    face = inside["face"] & ~other
    return Parts(region, names, parts.skin & ~other, parts.face & face if bool(face.any()) else parts.face)
