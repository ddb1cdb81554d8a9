"""Small files in the layout of FLAME: the head of `tiny_skinned_model` with 300 + 100 shapes, in metres.

Names, shapes and types of the entries are those of the published files; what is in them is made up.
"""

import pickle
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from helpers import tiny_skinned_model
from old_pickles import Ch, python2

SHAPES, EXPRESSIONS, ANGLES = 300, 100, 79  # angles of the dynamic contour
MODEL = tiny_skinned_model()
JOINTS = ("neck", "jaw", "eye_L", "eye_R")  # in the order of the file


def waves(mean, count, amount, rng):
    """Smooth displacements [count, V, 3], smaller and shorter from one to the next."""
    scale = 1 / (1 + np.arange(count)) ** 0.8
    direction = rng.normal(size=(count, 3)) / (90 * scale[:, None] ** 0.3)
    phase = np.sin(mean @ direction.T + rng.uniform(0, 2 * np.pi, count)).T
    return amount * scale[:, None, None] * phase[:, :, None] * rng.normal(size=(count, 1, 3))


def model_arrays(seed=0) -> dict:
    """The entries of the model file, arrays as numpy's, metres."""
    rng, mean = np.random.default_rng(seed), MODEL.mean.double().numpy()
    face = np.exp(-((mean - [0, -20, 70]) ** 2).sum(1) / 60**2)  # expressions move the front
    identity = waves(mean, SHAPES, 3.0, rng)
    expression = waves(mean, EXPRESSIONS, 2.0, rng) * face[:, None]
    parents = np.array([2**32 - 1, 0, 1, 1, 1], np.uint32)
    return {
        "v_template": mean / 1000,
        "shapedirs": np.moveaxis(np.concatenate([identity, expression]), 0, 2) / 1000,
        "posedirs": np.moveaxis(MODEL.pose_basis.double().numpy(), 0, 2) / 1000,
        "J_regressor": MODEL.joint_regressor.double().numpy(),
        "J": MODEL.joint_regressor.double().numpy() @ mean / 1000,
        "weights": MODEL.skinning_weights.double().numpy(),
        "kintree_table": np.stack([parents, np.arange(5, dtype=np.uint32)]),
        "f": MODEL.triangles.numpy().astype(np.uint32),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def write_model(path: Path, arrays: dict) -> None:
    """By its name as FLAME 2023 (a pickle of Python 3, plain arrays), as .npz, where the sparse regressor is
    pickled, or as FLAME 2020 (Python 2, some arrays wrapped by chumpy)."""
    sparse = arrays | {"J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"])}
    if path.suffix == ".npz":
        np.savez(path, **sparse)
    elif "2023" in path.name:
        path.write_bytes(pickle.dumps(sparse, 4))
    else:
        wrapped = {key: Ch(x=arrays[key]) for key in ("v_template", "shapedirs", "posedirs", "weights")}
        path.write_bytes(python2(sparse | wrapped))


def embedding() -> tuple[np.ndarray, np.ndarray]:
    """Triangles [68] and weights [68, 3]."""
    return MODEL.landmarks.triangle.numpy(), MODEL.landmarks.barycentric.double().numpy()


def write_landmarks(folder: Path, kind: str) -> None:
    """kind: 'deca' (all points in one file), 'static' (51 points and the contour by angle) or 'inner'
    (51 points)."""
    triangle, weights = embedding()
    if kind == "deca":
        points = {
            "static_lmk_faces_idx": triangle[17:],
            "static_lmk_bary_coords": weights[17:],
            "full_lmk_faces_idx": triangle[None],
            "full_lmk_bary_coords": weights[None],
            "dynamic_lmk_faces_idx": torch.zeros(ANGLES, 17, dtype=torch.int64),  # as there, and not read
            "dynamic_lmk_bary_coords": torch.zeros(ANGLES, 17, 3),
        }
        np.save(folder / "landmark_embedding.npy", np.array(points, dtype=object), allow_pickle=True)
        return
    static = {"lmk_face_idx": triangle[17:].astype(np.uint32), "lmk_b_coords": weights[17:]}
    (folder / "flame_static_embedding.pkl").write_bytes(python2(static))
    if kind == "static":
        turned = np.stack([np.roll(triangle[:17], angle) for angle in range(ANGLES)])
        contour = {
            "lmk_face_idx": turned,
            "lmk_b_coords": np.stack([np.roll(weights[:17], a, 0) for a in range(ANGLES)]),
        }
        np.save(folder / "flame_dynamic_embedding.npy", np.array(contour, dtype=object), allow_pickle=True)


def masks() -> dict:
    """Indices of vertices by part."""
    mean = MODEL.mean.numpy()
    front = mean[:, 2] > 30

    def near(place, radius):
        return np.linalg.norm(mean - place, axis=1) < radius

    parts = {
        "face": front & (mean[:, 1] < 60),
        "scalp": mean[:, 1] >= 60,
        "neck": (mean[:, 1] < -90) & ~front,
        "boundary": (mean[:, 1] < -110) & ~front,
        "left_ear": (mean[:, 0] > 60) & ~front,
        "right_ear": (mean[:, 0] < -60) & ~front,
        "left_eyeball": near((31, 3, 78), 12),
        "right_eyeball": near((-31, 3, 78), 12),
        "nose": near((0, -20, 100), 25),
    }
    return {name: np.flatnonzero(rows) for name, rows in parts.items()}


def write_template(path: Path, turn: int = 0) -> None:
    """An OBJ file with texture coordinates; turn: of the corners of each triangle, in another order."""
    uv, triangles = MODEL.uv.numpy(), MODEL.triangles.numpy()
    corners = MODEL.uv_triangles.numpy()
    if turn:
        triangles, corners = np.roll(triangles, turn, 1)[::-1], np.roll(corners, turn, 1)[::-1]
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in MODEL.mean.numpy() / 1000]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv]
    lines += ["f " + " ".join(f"{v + 1}/{t + 1}" for v, t in zip(*rows)) for rows in zip(triangles, corners)]
    path.write_text("\n".join(lines) + "\n")


def eyelids() -> tuple[np.ndarray, np.ndarray]:
    """The shapes of the left and the right eyelid, [V, 3] m."""
    mean = MODEL.mean.double().numpy()
    return tuple(
        np.exp(-((mean - [x, 6, 78]) ** 2).sum(1) / 10**2)[:, None] * [0, -0.006, 0] for x in (31, -31)
    )


def write_flame(folder: Path, model: str = "generic_model.pkl", landmarks: str = "static") -> dict:
    """A folder with all that is read. Returns the arrays of the model file."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = model_arrays()
    write_model(folder / model, arrays)
    write_landmarks(folder, landmarks)
    write_template(folder / "head_template_mesh.obj")
    (folder / "FLAME_masks.pkl").write_bytes(python2(masks()))
    for side, lid in zip("lr", eyelids()):
        np.save(folder / f"{side}_eyelid.npy", lid)
    return arrays
