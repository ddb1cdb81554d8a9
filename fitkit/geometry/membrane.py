"""Values that are known at some vertices of a mesh, continued smoothly over the others."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from torch import Tensor

from fitkit.geometry.laplacian import symmetric_factors


class Membrane:
    """Smooth continuation of values over a mesh: minimises sum (x_i - x_j)^2 over edges + data terms."""

    def __init__(self, points: Tensor, triangles: Tensor):
        """points: [V, 3] mm; triangles: [F, 3]; both on the CPU."""
        f = triangles.numpy()
        V = len(points)
        edge = np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), 1)
        edge = np.stack(np.divmod(np.unique(edge[:, 0] * V + edge[:, 1]), V), -1)
        # Short edges bind more strongly, so that the result depends on distance and not on the density of the
        # mesh.
        length = (points[edge[:, 0]] - points[edge[:, 1]]).norm(dim=-1).numpy().astype(np.float64)
        weight = 1 / np.maximum(length, 0.2)
        rows, columns = np.concatenate([edge, edge[:, ::-1]]).T
        adjacency = scipy.sparse.coo_array((np.r_[weight, weight], (rows, columns)), shape=(V, V)).tocsr()
        self.laplacian = (scipy.sparse.diags_array(adjacency.sum(1)) - adjacency).tocsr()

    def solve(self, confidence: np.ndarray, values: np.ndarray, far: np.ndarray) -> np.ndarray:
        """values [V, 3] where confidence [V] in [0, 1] is 1, continued smoothly elsewhere; far away they tend
        to `far` [3]."""
        data = 3.0 * confidence.astype(np.float64) ** 2
        data[confidence < 0.05] = 0
        pull = 2e-4
        # Direct: a tenth of a second for 25 k vertices, several times faster than conjugate gradients.
        factors = symmetric_factors(self.laplacian + scipy.sparse.diags_array(data + pull))
        right = np.where(data[:, None] > 0, values, 0) * data[:, None] + pull * far
        return factors.solve(right.astype(np.float64)).astype(np.float32)
