"""The Surrey Face Model as eos keeps it: cereal archives and a text file of landmarks -> FaceModel.

Source: Huber et al., "A Multiresolution 3D Morphable Face Model and Fitting Framework", VISAPP 2016;
    layout of the files: github.com/patrikhuber/eos, `MorphableModel`, `PcaModel` and `Blendshape`, versions 1
    to 4. The files are in millimetres and in the axes of the head frame; their texture coordinates count v
    from the top.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.foreign import ARRAY_BYTES, check_indices, check_shapes, foreign_file, shown
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.parts import real
from fitkit.models.formats.pca import columns, face_model, linear_albedo, numbered

LANDMARKS = "ibug_to_sfm.txt"
SOURCE = "Surrey Face Model, cvssp.org/facemodel; Huber et al., VISAPP 2016"
LICENSE = "free for non-commercial use (University of Surrey), cvssp.org/facemodel"
NOTES = (
    "Identity coefficients are eos' shape coefficients, standard-normal as there. Expression coefficients "
    "are eos' blendshape coefficients, 0 to 1."
)
PCA_NOTES = (
    "Identity coefficients are eos' shape coefficients, expression coefficients those of its expression "
    "model; both are standard-normal as there. With all at 0 the face is the mean of shapes plus that of "
    "expressions."
)
VERSIONS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Pca:
    """mean [3 V, 1]; basis [3 V, K], orthonormal; variance [K, 1]; triangles [F, 3] from 0."""

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray
    triangles: np.ndarray


class Archive:
    """A cereal binary archive of a machine that is little-endian, read from its beginning; raises ValueError
    where it states more than it holds."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def array(self, dtype: str, *shape: int) -> np.ndarray:
        count = 1
        for size in shape:
            count *= size
        length = count * np.dtype(dtype).itemsize
        if min(shape) < 0 or length > len(self.data) - self.at:
            raise ValueError(f"it states an array of {list(shape)} numbers, which it does not hold")
        self.at += length
        return np.frombuffer(self.data, dtype, count, self.at - length).reshape(shape).copy()

    def number(self, code: str = "Q") -> int:
        """A number by its letter of `struct`; the default is how lists state their lengths."""
        return int(struct.unpack("<" + code, self.array("u1", struct.calcsize(code)).tobytes())[0])

    def text(self) -> str:
        return self.array("u1", self.number()).tobytes().decode()

    def matrix(self) -> np.ndarray:
        """[rows, columns] float32."""
        rows, cols = self.number("i"), self.number("i")
        return self.array("<f4", cols, rows).T

    def pca(self) -> Pca:
        return Pca(self.matrix(), self.matrix(), self.matrix(), self.array("<i4", self.number(), 3))

    def blend_shapes(self) -> dict[str, np.ndarray]:
        """Name -> [3 V, 1]."""
        return {self.text(): self.matrix() for _ in range(self.number())}

    def expressions(self) -> Pca | dict[str, np.ndarray] | None:
        """An optional value, of one of two kinds."""
        if self.number("?"):  # true where there is none
            return None
        kind = self.number("i")
        if kind not in (0, 1):
            raise ValueError(f"expected expressions of kind 0 or 1, got {kind}")
        return self.blend_shapes() if kind else self.pca()

    def names(self) -> None:
        """An optional list of names of vertices, which is not used."""
        if not self.number("?"):
            for _ in range(self.number()):
                self.text(), self.number("i")

    def end(self) -> None:
        if self.at < len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes are left over")


@dataclass(frozen=True)
class MorphableModel:
    """Content of a model file; uv [T, 2], v from the top, and uv_triangles [F, 3] may be empty."""

    shape: Pca
    color: Pca
    expressions: Pca | dict[str, np.ndarray] | None
    uv: np.ndarray
    uv_triangles: np.ndarray


def import_surrey(path: str | os.PathLike, name: str = "surrey") -> FaceModel:
    """Read the Surrey Face Model, or another model in its layout with landmarks beside it.

    Args:
        path: eos' folder `share`, or a model file `sfm_shape_NUMBER.bin` in it; `ibug_to_sfm.txt` lies beside
            it, and `expression_blendshapes_NUMBER.bin`, unless the model file holds expressions.
        name: of the model.
    Raises:
        InputError: files missing, not readable, or not made for each other.
    """
    path = _model_file(Path(path))
    where = str(path)
    content = _read_model(path)
    marks = read_landmarks(path.parent / LANDMARKS)
    shape, found = content.shape, content.expressions
    if found is None:
        found = _read_blend_shapes(path)
    mean = _vertices(shape.mean, f"{where}: mean of shapes")
    count = len(mean)
    if isinstance(found, Pca):
        names, notes, kind = numbered("expression", found.basis.shape[1]), PCA_NOTES, "gaussian"
        mean = mean + _vertices(found.mean, f"{where}: mean of expressions", count)
        basis = _basis(found, f"{where}: expressions", count)
    else:
        names, notes, kind = tuple(found), NOTES, "blend_shape"
        shapes = [_vertices(v, f"{where}: expression {shown(k)}", count) for k, v in found.items()]
        basis = np.stack(shapes) if shapes else np.zeros((0, count, 3), np.float32)
    return face_model(
        where,
        mean,
        _basis(shape, f"{where}: shapes", count),
        basis,
        shape.triangles,
        marks,
        name=name,
        expression_names=names,
        expression_kind=kind,
        **_uv(content, where),
        **_albedo(content.color, count, where),
        source=SOURCE,
        license=LICENSE,
        notes=notes,
    )


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("sfm_shape_*.bin"))
    if len(files) != 1:
        raise InputError(
            f"{path}: expected one sfm_shape_NUMBER.bin, got {len(files)}; give the model file itself, from "
            "the folder share of github.com/patrikhuber/eos"
        )
    return files[0]


def _read_model(path: Path) -> MorphableModel:
    with foreign_file(path, "not a model file of eos (.bin)", limit=ARRAY_BYTES) as file:
        archive = Archive(file.bytes())
        version = archive.number("I")
        if version not in VERSIONS:
            raise ValueError(f"version {version} of the file, {VERSIONS[0]} to {VERSIONS[-1]} are read")
        shape, color = archive.pca(), archive.pca()
        expressions = archive.expressions() if version > 1 else None
        if version > 2:
            archive.names()
        uv = archive.array("<f8", archive.number(), 2)
        uv_triangles = archive.array("<i4", archive.number(), 3) if version > 3 else np.zeros((0, 3), int)
        archive.end()
    return MorphableModel(shape, color, expressions, uv, uv_triangles)


def _read_blend_shapes(model: Path) -> dict[str, np.ndarray]:
    """The expressions that belong to a model file."""
    number = (re.findall(r"\d+", model.stem) or ["NUMBER"])[-1]
    path = model.parent / f"expression_blendshapes_{number}.bin"
    what = "not a file of expressions of eos, which this model needs"
    with foreign_file(path, what, "from the folder share of eos", limit=ARRAY_BYTES) as file:
        archive = Archive(file.bytes())
        shapes = archive.blend_shapes()
        archive.end()
    return shapes


def read_landmarks(path: Path) -> list[int]:
    """Vertices [68], -1 where there is none, of a text file with lines 'POINT = VERTEX', points from 1 and
    vertices from 0, in a section [landmark_mappings]; '#' begins a comment.

    Raises:
        InputError: not such a file.
    """
    with foreign_file(path, "not a file of landmarks of eos", "from the folder share of eos") as file:
        section = re.search(r"^\s*\[landmark_mappings\](.*?)(^\s*\[|\Z)", file.text(), re.M | re.S)
        if section is None:
            raise ValueError("no section [landmark_mappings]")
        vertices = [-1] * 68
        for point, vertex in re.findall(r"^\s*(\d{1,9})\s*=\s*(\d{1,9})\s*(?:#.*)?$", section[1], re.M):
            if not 1 <= int(point) <= 68:
                raise ValueError(f"expected points 1 to 68, got {point}")
            vertices[int(point) - 1] = int(vertex)
    return vertices


def _vertices(column: np.ndarray, where: str, count: int | None = None) -> np.ndarray:
    """[3 V, 1] -> [V, 3]."""
    if column.shape[1] != 1 or len(column) % 3 or len(column) != 3 * (count or len(column) // 3):
        raise InputError(
            f"{where}: expected one column of x, y, z of {count or 'the'} vertices, got {list(column.shape)}"
        )
    return column.reshape(-1, 3)


def _basis(pca: Pca, where: str, count: int) -> np.ndarray:
    """[K, V, 3] per standard deviation."""
    arrays = {"basis": pca.basis, "variance": pca.variance}
    check_shapes(arrays, {"basis": (3 * count, "K"), "variance": ("K", 1)}, {}, where)
    if not (pca.variance >= 0).all():
        raise InputError(f"{where}: variance: expected numbers of 0 or more, got {pca.variance.min():.4g}")
    return columns(pca.basis, np.sqrt(pca.variance[:, 0]))


def _uv(content: MorphableModel, where: str) -> dict[str, torch.Tensor]:
    """uv and uv_triangles, where the file has some."""
    uv, corners = content.uv, content.uv_triangles
    if not len(uv):
        return {}
    corners = corners if len(corners) else content.shape.triangles
    check_indices(corners, len(uv), f"{where}: texture triangles")
    return {"uv": real(uv * [1, -1] + [0, 1]), "uv_triangles": torch.from_numpy(corners.astype(np.int64))}


def _albedo(color: Pca, count: int, where: str) -> dict[str, torch.Tensor]:
    if not color.mean.size:
        return {}
    mean = _vertices(color.mean, f"{where}: mean of colours", count)
    return linear_albedo(mean, _basis(color, f"{where}: colours", count), where)
