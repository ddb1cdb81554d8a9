"""Small files of the Basel Face Models in the layouts of the published ones: a head of few shapes, `generic`
bent, in their fields, types, units and orders. Each `write_...` returns the arrays it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.io

import fitkit

NAMED = {  # landmarks of the files of 2017 and 2019 by their names; more than the reader knows
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "right.nose.wing.tip": 31,
    "center.nose.attachement_to_philtrum": 33,
    "left.nose.wing.tip": 35,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "right.lips.philtrum_ridge": 50,
    "center.lips.upper.outer": 51,
    "left.lips.philtrum_ridge": 52,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
    "right.eyebrow.inner_upper": 21,
}

LAST = fitkit.load_model("generic").num_vertices - 1  # vertex of these heads
NUMBERS = 3 * (LAST + 1)  # of their coordinates
EXPRESSIONS = ("jawOpen", "mouthPucker", "mouthSmile_L", "browInnerUp_L")  # that landmarks show


@dataclass(frozen=True)
class Face:
    """mean [V, 3] mm, head frame; triangles [F, 3] from 0, counter-clockwise; landmarks [68].

    shapes [3 V, K] and expressions [3 V, E] are orthonormal, with standard deviations `sigma` [K] and
    `expression_sigma` [E] mm; expression_mean [3 V] mm; colors [V, 3] sRGB, 0 to 1, with color_shapes
    [3 V, C] and color_sigma [C].
    """

    mean: np.ndarray
    shapes: np.ndarray
    sigma: np.ndarray
    expression_mean: np.ndarray
    expressions: np.ndarray
    expression_sigma: np.ndarray
    colors: np.ndarray
    color_shapes: np.ndarray
    color_sigma: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray


@lru_cache
def small_face(shapes: int = 6) -> Face:
    """`generic`, a little wider and shorter, with its first shapes."""
    generic, rng = fitkit.load_model("generic"), np.random.default_rng(5)
    bend = np.array([1.04, 0.97, 1.0])

    def principal(basis):
        basis, sigma, _ = np.linalg.svd((basis * bend).reshape(len(basis), -1).T, full_matrices=False)
        return basis, sigma

    identity, sigma = principal(generic.identity_basis[:shapes].double().numpy())
    some = [generic.expression_names.index(n) for n in EXPRESSIONS]
    moves, expression_sigma = principal(0.3 * generic.expression_basis[some].double().numpy())
    mean = generic.mean.double().numpy() * bend
    waves = np.sin(mean @ rng.normal(size=(3, 3)) / 40)
    colors = np.clip([0.72, 0.55, 0.47] + 0.08 * waves, 0, 1)
    color_shapes = np.linalg.qr(np.cos(mean @ rng.normal(size=(3, 6)) / 50).reshape(-1, 3 * 2).repeat(3, 0))[
        0
    ]
    corners = generic.triangles[generic.landmarks.triangle].numpy()
    return Face(
        mean,
        identity,
        sigma,
        0.2 * (moves @ expression_sigma),
        moves,
        expression_sigma,
        colors,
        color_shapes[:, :2],
        np.array([8.0, 5.0]),
        generic.triangles.numpy(),
        corners[np.arange(68), generic.landmarks.barycentric.argmax(1).numpy()],
    )


def write_mat(path: Path, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    scipy.io.savemat(path, arrays, do_compression=True)
    return arrays


def write_bfm09(folder: Path, face: Face | None = None, front: bool = False) -> dict[str, np.ndarray]:
    """01_MorphableModel.mat (micrometres, colours 0 to 255, triangles from 1 and clockwise) with vertices
    that the expressions lack, and BFM_exp_idx.mat, Exp_Pca.bin and std_exp.txt; front: also
    facemodel_info.mat and BFM_front_idx.mat, which hold 68 landmarks."""
    face = face or small_face()
    V, folder = len(face.mean), Path(folder)
    more = V + 20
    trim = np.sort(
        np.random.default_rng(0).permutation(more)[:V]
    )  # of `more` vertices those with expressions

    def spread(values, fill):  # [3 V, ...] -> [3 more, ...]
        out = np.full((more, 3, *values.shape[1:]), fill, np.float32)
        out[trim] = values.reshape(V, 3, *values.shape[1:])
        return out.reshape(3 * more, *values.shape[1:])

    lost = np.setdiff1d(np.arange(more), trim)
    loose = np.stack([lost[:-2], lost[1:-1], lost[2:]], 1)  # triangles of the vertices that go
    arrays = write_mat(
        folder / "01_MorphableModel.mat",
        shapeMU=1e3 * spread(face.mean.reshape(-1, 1), 0.0),
        shapePC=spread(face.shapes, 0.0),
        shapeEV=np.float32(1e3 * face.sigma)[:, None],
        texMU=255 * spread(face.colors.reshape(-1, 1), 0.5),
        texPC=spread(face.color_shapes, 0.0),
        texEV=np.float32(255 * face.color_sigma)[:, None],
        tl=1.0 + np.concatenate([trim[face.triangles], loose])[:, [0, 2, 1]],
        segbin=np.zeros((more, 4), np.uint8),
    )
    write_mat(folder / "BFM_exp_idx.mat", trimIndex=trim[:, None].astype(np.int32) + 1)
    arrays |= write_expressions(folder, face) | {"trimIndex": trim}
    if front:
        order = np.random.default_rng(1).permutation(V)  # of the front: all vertices, in another order
        place = np.argsort(order)
        write_mat(folder / "BFM_front_idx.mat", idx=order[:, None].astype(np.int32) + 1)
        write_mat(folder / "facemodel_info.mat", keypoints=place[face.landmarks][None].astype(np.int32) + 1)
    return arrays


def write_expressions(folder: Path, face: Face) -> dict[str, np.ndarray]:
    """Exp_Pca.bin: number of shapes, mean and shapes, micrometres; std_exp.txt. Their unit is such that the
    standard deviations are near 1."""
    sigma = np.linspace(1.5, 0.5, face.expressions.shape[1])
    mean = np.float32(1e3 * face.expression_mean)
    shapes = np.float32(1e3 * face.expressions * face.expression_sigma / sigma)
    (folder / "Exp_Pca.bin").write_bytes(np.int32(len(sigma)).tobytes() + mean.tobytes() + shapes.T.tobytes())
    np.savetxt(folder / "std_exp.txt", sigma[None])
    return {"expMU": mean, "expPC": shapes, "expEV": sigma}


def write_3ddfa(folder: Path, face: Face | None = None) -> dict[str, np.ndarray]:
    """Model_Shape.mat and Model_Exp.mat of 3DDFA and 300W-LP: micrometres, triangles [3, F] from 1 and
    clockwise."""
    face, folder = face or small_face(), Path(folder)
    sigma = np.linspace(1.5, 0.5, face.expressions.shape[1])
    shape = write_mat(
        folder / "Model_Shape.mat",
        mu_shape=np.float32(1e3 * face.mean).reshape(-1, 1),
        w=np.float32(face.shapes),
        sigma=np.float32(1e3 * face.sigma)[:, None],
        tex=np.float32(255 * face.colors.T),
        tri=1.0 + face.triangles.T[[0, 2, 1]],
        keypoints=1.0 + face.landmarks[None],
    )
    expression = write_mat(
        folder / "Model_Exp.mat",
        mu_exp=1e3 * face.expression_mean[:, None],
        w_exp=1e3 * face.expressions * face.expression_sigma / sigma,
        sigma_exp=sigma[:, None],
    )
    return shape | expression


def write_bfm_front(path: Path, face: Face | None = None) -> dict[str, np.ndarray]:
    """BFM_model_front.mat of Deep3DFaceRecon: units of 10 cm around a place that is not the mean."""
    face = face or small_face()
    F = len(face.triangles)
    return write_mat(
        Path(path),
        meanshape=(np.float32(face.mean + [1.0, -7.0, 75.0]) / np.float32(100)).reshape(1, -1),
        idBase=np.float32(face.shapes * face.sigma / 100),
        exBase=face.expressions * face.expression_sigma / 100,
        meantex=np.float32(255 * face.colors).reshape(1, -1),
        texBase=np.float32(255 * face.color_shapes * face.color_sigma),
        tri=face.triangles.astype(np.int32) + 1,
        point_buf=np.full((len(face.mean), 8), F + 1, np.int32),
        tri_mask2=face.triangles[: F // 2].astype(np.int32) + 1,
        keypoints=face.landmarks[None].astype(np.int32) + 1,
        frontmask2_idx=np.arange(1, 100, dtype=np.int32)[:, None],
        skinmask=np.ones((1, len(face.mean)), np.uint8),
    )


def write_bfm17(path: Path, face: Face | None = None, landmarks: dict | None = None, text: str = "fixed"):
    """model2017-1_*.h5 or model2019_*.h5; landmarks: name -> [3] mm, those of NAMED by default; text: how
    they are kept, 'fixed' or 'variable' length, or 'bytes'. Returns the arrays by their paths in the file."""
    import h5py

    face = face or small_face()
    if landmarks is None:
        landmarks = {n: face.mean[face.landmarks[k]].tolist() for n, k in NAMED.items()}
    listed = json.dumps([{"id": n, "coordinates": list(p)} for n, p in landmarks.items()]).encode()
    parts = {
        "shape": (face.mean.reshape(-1), face.shapes, face.sigma),
        "expression": (face.expression_mean, face.expressions, face.expression_sigma),
        "color": (face.colors.reshape(-1), face.color_shapes, face.color_sigma),
    }
    arrays = {}
    with h5py.File(path, "w") as file:
        for part, (mean, basis, sigma) in parts.items():
            arrays |= {
                f"{part}/model/mean": np.float32(mean),
                f"{part}/model/pcaBasis": np.float32(basis),
                f"{part}/model/pcaVariance": np.float32(sigma**2),
                f"{part}/model/noiseVariance": np.float32([0.0]),
                f"{part}/representer/points": np.float32(face.mean.T),
                f"{part}/representer/cells": face.triangles.T.astype(np.int32),
            }
        for key, value in arrays.items():
            file[key] = value
        if text == "bytes":
            file["metadata/landmarks/json"] = np.frombuffer(listed, np.int8)
        elif text == "variable":
            file["metadata/landmarks/json"] = listed.decode()
        else:
            file["metadata/landmarks/json"] = np.array([listed])
        file["version/majorVersion"] = np.int32(0)
    return arrays
