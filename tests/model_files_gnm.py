"""Small files in the layout of GNM Head 3.0: the head of `tiny_model` with eyeballs, teeth and a tongue.

Names, axes and types of the arrays are those of the published file, which has more vertices and shapes; what
is in them is made up. Metres.
"""

from pathlib import Path

import numpy as np
import torch
from helpers import JOINTS, tiny_model, with_joints
from model_files_flame import waves

# Of the 170, 3, 80 and 100, 100, 150, 32, 1 shapes of the file.
IDENTITY = {"head": 14, "eyes": 2, "teeth": 3}
EXPRESSION = {"left_eye_region": 4, "right_eye_region": 4, "lower_face_region": 8, "tongue": 3, "pupils": 1}
PARTS = ("skin", "left_eye", "right_eye", "upper_teeth_and_gums", "lower_teeth_and_gums", "tongue")
SQUARES = (0, 1, 1, 2, 2, 3)  # of the parts, where a file has textures in several
SKIN = with_joints(
    tiny_model(dtype=torch.float64),
    {
        "head": ("root", (0, 0, 0), 0, (0, -80, -10)),
        "eye_L": ("head", *JOINTS["eye_L"][1:]),
        "eye_R": ("head", *JOINTS["eye_R"][1:]),
    },
)
EYES = (np.array([31.0, 3.0, 60.0]), np.array([-31.0, 3.0, 60.0]))
NAMES = [f"{part}_{k:03d}" for part, count in IDENTITY.items() for k in range(count)]
EXPRESSION_NAMES = [
    "tongue_mean" if (part, k) == ("tongue", 0) else f"{part}_{max(0, k - (part == 'tongue')):03d}"
    for part, count in EXPRESSION.items()
    for k in range(count)
]


def grid(rows, columns):
    """Triangles of a sheet of rows x columns vertices, and its texture coordinates [rows * columns, 2]."""
    cell = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    quads = np.stack([cell, cell + 1, cell + columns + 1, cell + columns], 1)
    triangles = np.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], 1).reshape(-1, 3)
    u, v = np.meshgrid(np.linspace(0.05, 0.95, columns), np.linspace(0.05, 0.95, rows))
    return triangles, np.stack([u.ravel(), v.ravel()], 1)


def sheets():
    """Vertices mm, triangles and texture coordinates of each part of the mesh."""
    out = [(SKIN.mean.numpy(), SKIN.triangles.numpy(), SKIN.uv.numpy())]
    triangles, uv = grid(7, 9)
    angle = np.pi * (uv - 0.5)
    ball = np.stack(
        [
            np.sin(angle[:, 0]) * np.cos(angle[:, 1]),
            np.sin(angle[:, 1]),
            np.cos(angle[:, 0]) * np.cos(angle[:, 1]),
        ],
        1,
    )
    out += [(middle + 11 * ball, triangles, uv) for middle in EYES]
    triangles, uv = grid(3, 5)
    for y, z in ((-58, 70), (-70, 70), (-66, 60)):
        sheet = np.stack([40 * (uv[:, 0] - 0.5), y + 10 * (uv[:, 1] - 0.5), np.full(len(uv), z)], 1)
        out.append((sheet, triangles, uv))
    return out


def model_arrays(correctives=False, in_squares=False, seed=0) -> dict:
    """The 23 arrays of the file. correctives: of poses, which are all zero in version 3.0; in_squares: the
    textures of the parts in different squares, not on top of each other in one."""
    rng = np.random.default_rng(seed)
    parts = sheets()
    count = [len(vertices) for vertices, _, _ in parts]
    first = np.cumsum([0, *count[:-1]])
    mean = np.concatenate([vertices for vertices, _, _ in parts])
    triangles = np.concatenate([t + at for (_, t, _), at in zip(parts, first)])
    uvs = np.concatenate([uv[t] + [in_squares * square, 0] for (_, t, uv), square in zip(parts, SQUARES)])
    groups = np.zeros((len(PARTS), len(mean)))
    for row, (at, size) in enumerate(zip(first, count)):
        groups[row, at : at + size] = 1
    skin, eyes, teeth, tongue = groups[0], groups[1] + groups[2], groups[3] + groups[4], groups[5]
    left, right = (np.exp(-((mean - m) ** 2).sum(1) / 25**2) * skin for m in EYES)
    low = np.exp(-((mean - [0, -70, 70]) ** 2).sum(1) / 40**2) * skin
    moved = {"head": np.ones(len(mean)), "eyes": eyes, "teeth": teeth}
    identity = np.concatenate(
        [waves(mean, n, 3.0 if k == "head" else 1.0, rng) * moved[k][:, None] for k, n in IDENTITY.items()]
    )
    moved = dict(zip(EXPRESSION, (left, right, low, tongue, eyes)))
    expression = np.concatenate([waves(mean, n, 3.0, rng) * moved[k][:, None] for k, n in EXPRESSION.items()])
    regressor, weights = np.zeros((4, len(mean))), np.zeros((4, len(mean)))
    regressor[:2, skin > 0] = SKIN.joint_regressor[:2].numpy()
    weights[:, skin > 0] = SKIN.skinning_weights.T.numpy()
    weights[1, (skin == 0) & (eyes == 0)] = 1
    for joint, row in ((2, 1), (3, 2)):
        regressor[joint], weights[joint, groups[row] > 0] = groups[row] / groups[row].sum(), 1
    shapes = 0.3 * rng.normal(size=(36, 3 * len(mean))) if correctives else np.zeros((36, 3 * len(mean)))
    outside = skin * (mean[:, 2] > -30)
    metres = {
        "template_vertex_positions": mean,
        "vertex_identity_basis": identity,
        "expression_basis": expression,
        "template_joint_positions": regressor @ mean,
        "joint_identity_basis": regressor @ identity,
        "pose_correctives_regressor": shapes,
    }
    floats = {
        "skinning_weights": weights,
        "joint_regressor": regressor,
        "triangle_uvs": uvs,
        "quad_uvs": np.concatenate([uvs[::2], uvs[1::2, 2:]], 1),
        "vertex_groups": np.concatenate([groups, outside[None]]),
        "bone_aligned_template_joint_orientations": np.tile(np.eye(3), (4, 1, 1)),
    }
    return {
        "version": np.array("3.0"),
        "variant": np.array("head"),
        **{key: (value / 1000).astype(np.float32) for key, value in metres.items()},
        **{key: value.astype(np.float32) for key, value in floats.items()},
        "identity_names": np.array(NAMES),
        "expression_names": np.array(EXPRESSION_NAMES),
        "joint_names": np.array(["neck", "head", "left_eye", "right_eye"]),
        "joint_parent_indices": np.array([-1, 0, 1, 1], np.int32),
        "triangles": triangles.astype(np.int32),
        "quads": np.concatenate([triangles[::2], triangles[1::2, 2:]], 1).astype(np.int32),
        "mesh_component_names": np.array(PARTS),
        "vertex_group_names": np.array([*PARTS, "skin_exterior"]),
        "mirror_indices": ((mean * [-1, 1, 1] - mean[:, None]) ** 2).sum(-1).argmin(1).astype(np.int32),
    }


def landmark_lines(first_release=False) -> list[str]:
    """Three vertices, each with its weight, for each point. first_release: five points of the jaw are the
    other way round."""
    corners = SKIN.triangles[SKIN.landmarks.triangle].tolist()
    lines = [
        " ".join(f"{v} {w:.5f}" for v, w in zip(*row))
        for row in zip(corners, SKIN.landmarks.barycentric.tolist())
    ]
    if first_release:
        lines[2:7] = lines[2:7][::-1]
    return lines


def write_gnm(folder: Path, arrays: dict | None = None, first_release=False) -> dict:
    """`gnm_head.npz` and `head_sparse_68.txt`. Returns the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = model_arrays() if arrays is None else arrays
    np.savez_compressed(folder / "gnm_head.npz", **arrays)
    (folder / "head_sparse_68.txt").write_text("\n".join(landmark_lines(first_release)) + "\n")
    return arrays
