"""Face models of every kind as files that `fitkit model import` reads; test_every_model.py does with each of
them what users do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from helpers import tiny_model, with_joints
from model_files_bfm import write_3ddfa, write_bfm17, write_bfm_front
from model_files_flame import write_flame
from model_files_gnm import write_gnm
from model_files_own import gltf_head, head, write_folder
from model_files_surrey import write_surrey

from fitkit.models.face_model import FaceModel
from fitkit.models.io import save_model_file

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
# Points of the Surrey model that do not exist: 1-8, 10-17, 61 and 65, counted from 1.
NOT_IN_SURREY = (*range(8), *range(9, 17), 60, 64)


@dataclass(frozen=True)
class Kind:
    """label: its row in the table of docs/face_models.md; write: writes its files into a folder and gives
    KIND and PATH of `fitkit model import`; None: the model comes with fitkit under the name of its label;
    needs: files that are not part of fitkit; unwrapped: the files have no texture coordinates."""

    label: str
    write: Callable[[Path], tuple[str, Path]] | None = None
    needs: Path | None = None
    unwrapped: bool = False

    def __repr__(self) -> str:
        return self.label


def published(
    label: str, kind: str, write: Callable[[Path], object], file: str = "", unwrapped: bool = False
) -> Kind:
    """Files that `fitkit model import KIND` reads, which `write` makes in a folder, or as one file of this
    name in it."""

    def written(folder: Path) -> tuple[str, Path]:
        write(folder / file)
        return kind, folder / file

    return Kind(label, written, unwrapped=unwrapped)


def real(label: str, kind: str, path: Path) -> Kind:
    """The files of a published model, where they are."""
    return Kind(label, lambda folder: (kind, path), path)


def own(label: str, make: Callable[[], FaceModel]) -> Kind:
    """A model in fitkit's own format."""
    return published(label, "npz", lambda path: save_model_file(make(), path), "model.npz")


def gaussian() -> FaceModel:
    tiny, sigma = tiny_model(), torch.tensor([0.5, 0.8, 1.0, 1.0, 1.5, 3.0])
    basis = 0.5 * tiny.expression_basis / sigma[:, None, None]
    warmth = torch.tensor([0.05, 0.02, 0.01]) * torch.cos(tiny.mean / 60)
    return replace(
        tiny,
        expression_kind="gaussian",
        expression_sigma=sigma,
        expression_basis=basis,
        expression_names=tuple(f"expression{k}" for k in range(6)),
        albedo_basis=torch.stack([warmth, 0.03 * torch.ones_like(warmth)]),
    )


def without_uv() -> FaceModel:
    return replace(tiny_model(), uv=None, uv_triangles=None)


def without_colors() -> FaceModel:
    return replace(without_uv(), albedo_mean=None)


def without_points() -> FaceModel:
    tiny = tiny_model()
    triangle = tiny.landmarks.triangle.clone()
    triangle[list(NOT_IN_SURREY)] = -1
    return replace(tiny, landmarks=replace(tiny.landmarks, triangle=triangle))


KINDS = (
    Kind("generic"),
    real("ict", "ict", SHARED / "ict/obj"),
    own("npz", tiny_model),
    own("npz, Gaussian expressions", gaussian),
    own("npz without UV", without_uv),
    own("npz without UV and albedo", without_colors),
    own("npz without some landmarks", without_points),
    own("npz with joints", lambda: with_joints(tiny_model())),
    published("flame", "flame", write_flame),
    published("gnm", "gnm", write_gnm),
    published("surrey", "surrey", write_surrey),
    published("bfm09 of 3DDFA", "bfm09", write_3ddfa, unwrapped=True),
    published("bfm-front", "bfm-front", write_bfm_front, "BFM_model_front.mat", unwrapped=True),
    published("bfm17", "bfm17", write_bfm17, "model2017-1_face12_nomouth.h5", unwrapped=True),
    published("own: OBJ files", "own", lambda folder: write_folder(folder, head()), unwrapped=True),
    published("own: glTF", "own", lambda path: gltf_head(head()).write(path), "head.glb", unwrapped=True),
)
