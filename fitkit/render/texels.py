"""The texels of a face model's UV layout and the surface points behind them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from fitkit.models.correspondence import Correspondence
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import Surface


def uv_clip(uv: Tensor, size: int) -> Tensor:
    """UV [T, 2] -> clip coordinates [T, 4] of a size x size picture whose top edge is v = 1."""
    w = torch.full_like(uv[:, 0], 2.0)
    x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
    return torch.stack([x * w, y * w, w, w], -1)


@dataclass(frozen=True, eq=False)
class Texels:
    """The N covered texels of a UV layout.

    size: side of the map; index: [N] int64, row * size + column; triangle: [N] int64, of the model whose
    layout it is; matrix: sparse [N, V], whose product with vertex values are the values at the texels.
    """

    size: int
    index: np.ndarray
    triangle: np.ndarray
    matrix: scipy.sparse.csr_array

    @classmethod
    def of(cls, model: FaceModel, size: int) -> Texels:
        """The layout of the model itself; it has UV coordinates."""
        assert model.uv is not None and model.uv_triangles is not None
        # Skin lies on top where parts share UV space: rasterize with one clip vertex per triangle corner.
        skin = (model.skin | model.face)[model.triangles].all(1)
        corners = uv_clip(model.uv[model.uv_triangles].reshape(-1, 2), size)
        corners[:, 2] = torch.where(skin, 2.0, 3.0).repeat_interleave(3)
        surface = Surface.visible(corners, torch.arange(len(corners)).reshape(-1, 3), (size, size))
        triangle = surface.triangle.numpy()
        bary = surface.interpolate(torch.eye(3).expand(len(skin), 3, 3)).numpy()
        columns = model.triangles.numpy().astype(np.int32)[triangle]
        matrix = scipy.sparse.csr_array(
            (bary.reshape(-1), columns.reshape(-1), np.arange(0, 3 * len(triangle) + 1, 3, dtype=np.int32)),
            shape=(len(triangle), model.num_vertices),
        )
        return cls(size, surface.pixel.numpy(), triangle, matrix)

    def mm_per_texel(self, model: FaceModel) -> float:
        """Usual length of the side of a texel on the model's mean, mm."""
        corners = model.mean[model.triangles[torch.as_tensor(self.triangle)]]
        area = (
            torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
        )
        count = np.bincount(self.triangle)[self.triangle]
        return float(np.median(np.sqrt(area.numpy() / count)))

    def carried(self, model: FaceModel, onto: Correspondence) -> tuple[Texels, np.ndarray]:
        """The same texels as surface points of `model`, and which of them correspond to one, [N] bool.

        onto: where the vertices of the model whose layout it is lie on `model`.
        """
        found = (onto.weight > 0).numpy()
        corners = model.triangles[onto.triangle.clamp_min(0)].numpy()
        weights = onto.barycentric.numpy() * found[:, None]
        row = np.repeat(np.arange(len(corners)), 3)
        vertices = scipy.sparse.csr_array(
            (weights.reshape(-1).astype(np.float32), (row, corners.reshape(-1))),
            shape=(len(corners), model.num_vertices),
        )
        there = self.matrix @ found.astype(np.float32) > 0.99
        return Texels(self.size, self.index, self.triangle, (self.matrix @ vertices).tocsr()), there

    def picture(self, values: np.ndarray) -> np.ndarray:
        """[N, C] -> [size, size, C]; texels outside the layout take the nearest covered texel's value."""
        out = np.zeros((self.size * self.size, values.shape[1]), np.float32)
        out[self.index] = values
        empty = np.ones(self.size * self.size, np.uint8)
        empty[self.index] = 0
        if len(self.index) == 0 or len(self.index) == len(empty):
            return out.reshape(self.size, self.size, -1)
        _, label = cv2.distanceTransformWithLabels(
            empty.reshape(self.size, -1), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        label = label.reshape(-1)
        source = np.zeros(label.max() + 1, np.int64)
        source[label[self.index]] = self.index
        return out[source[label]].reshape(self.size, self.size, -1)

    def from_picture(self, picture: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Values [n, C] of some of the texels in a smaller map [s, s, C] of the same layout, bilinear."""
        small = picture.shape[0]
        row, column = np.divmod(self.index[rows], self.size)
        x, y = ((c + 0.5) * (small / self.size) - 0.5 for c in (column, row))
        return bilinear(picture, x, y)

    def to_vertices(self, values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Texel values [N, C] -> per-vertex mean [V, C] (weighted) and mean weight [V]."""
        total = self.matrix.T @ np.concatenate(
            [values * weight[:, None], weight[:, None], np.ones_like(weight[:, None])], 1
        )
        mean = total[:, :-2] / np.maximum(total[:, -2:-1], 1e-8)
        return mean.astype(np.float32), (total[:, -2] / np.maximum(total[:, -1], 1e-8)).astype(np.float32)


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values [N, C] of an image [H, W, C] at the pixels x, y [N], edge values outside."""
    if len(x) == 0:  # cv2.remap refuses empty maps
        return np.zeros((0, image.shape[2]), image.dtype)
    n, columns = len(x), 4096  # cv2.remap takes at most 32767 rows or columns
    pad = -n % columns
    grid = [np.pad(c.astype(np.float32), (0, pad)).reshape(-1, columns) for c in (x, y)]
    parts = [
        cv2.remap(image, *(g[k : k + 8192] for g in grid), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for k in range(0, len(grid[0]), 8192)
    ]
    return np.concatenate(parts).reshape(-1, image.shape[2])[:n]
