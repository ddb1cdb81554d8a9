"""A smooth displacement of the surface along its normals: Gaussian-process prior and sparse normal
equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.kernels import Kernel
from fitkit.geometry.laplacian import cotangent_laplacian, symmetric_factors

Solve = Callable[[np.ndarray], np.ndarray]  # right side [V] or [V, n] -> solution, 0 where nothing may move


@dataclass(frozen=True)
class DisplacementPrior:
    """Energy d' precision d / 2 of a displacement d [V] mm: a Gaussian process on the surface.

    precision: [V, V] 1/mm^2 sparse, zero outside of `free`; free: [n] indices of the vertices that may move;
    order: the same in an order in which `factorized` is fast; log_determinant: logarithm of the determinant
    of the precision of the free vertices.
    """

    precision: sparse.csr_matrix
    free: np.ndarray
    order: np.ndarray
    log_determinant: float

    @staticmethod
    def of(
        vertices: np.ndarray, triangles: np.ndarray, mask: np.ndarray, sigma_mm: float, length_mm: float
    ) -> DisplacementPrior:
        """Standard deviation sigma_mm at each vertex and a correlation that falls to 0.14 at a distance of
        length_mm.

        Vertices that are not connected with the mask [V] bool stay where they are; loose ones as well.
        Source: Lindgren, Rue and Lindstrom, "An explicit link between Gaussian fields and Gaussian Markov
        random fields: the stochastic partial differential equation approach", J. R. Statist. Soc. B 2011: the
        Matern covariance sigma^2 k r K_1(k r) with k = sqrt(8) / length is the solution of a differential
        equation, whose finite elements give the precision (k^2 C + G) C^-1 (k^2 C + G) / (4 pi k^2 sigma^2),
        G the stiffness, C the lumped areas.
        """
        stiffness, area = cotangent_laplacian(vertices, triangles)
        V = len(vertices)
        edges = sparse.coo_matrix(
            (np.ones(3 * len(triangles)), (triangles.reshape(-1), np.roll(triangles, 1, 1).reshape(-1))),
            shape=(V, V),
        )
        part = connected_components(edges, directed=False)[1]
        free = np.nonzero(np.isin(part, np.unique(part[mask & (area > 0)])) & (area > 0))[0]
        k2 = 8 / length_mm**2
        K = sparse.diags(k2 * area) + stiffness
        inverse = np.divide(1, area, out=np.zeros_like(area), where=area > 0)
        precision = (K @ sparse.diags(inverse) @ K / (4 * pi * k2 * sigma_mm**2)).tocsr()
        chosen = np.zeros(V)
        chosen[free] = 1
        precision = (sparse.diags(chosen) @ precision @ sparse.diags(chosen)).tocsr()
        factor = symmetric_factors(precision[free][:, free])
        return DisplacementPrior(precision, free, free[np.argsort(factor.perm_c)], _log_determinant(factor))


def displacement_equations(
    residuals: Residuals, by_corner: Tensor, corner: Tensor, normal: Tensor, kernel: Kernel
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Gauss-Newton matrix [V, V] and gradient [V] of matches by the displacement of the vertices along their
    normals.

    Args:
        residuals: [G, N, 2]; by_corner: [G, N, 2, 3, 3] derivatives by offsets of the corners; corner: [G, N,
            3] vertices;
        normal: [V, 3].
    Returns: the matrix of their squared weighted length / 2, and its gradient.
    """
    V = len(normal)
    J = (by_corner * normal[corner][:, :, None]).sum(-1)[residuals.valid].double()  # [M, 2, 3]
    value, index = residuals.value[residuals.valid].double(), corner[residuals.valid]
    trust = 1 if residuals.weight is None else residuals.weight[residuals.valid].double()[:, None]
    w = (trust * kernel.weights(value))[..., None]  # [M, 2 or 1, 1]
    block = (J.transpose(1, 2) @ (w * J)).cpu().numpy()
    gradient = (w * J * value[..., None]).sum(1).cpu().numpy()
    index = index.cpu().numpy()
    rows, columns = np.repeat(index, 3, 1).reshape(-1), np.tile(index, (1, 3)).reshape(-1)
    matrix = sparse.coo_matrix((block.reshape(-1), (rows, columns)), shape=(V, V)).tocsr()
    return matrix, np.bincount(index.reshape(-1), gradient.reshape(-1), minlength=V)


def factorized(matrix: sparse.spmatrix, free: np.ndarray) -> tuple[Solve, float]:
    """What solves matrix x = right [V] or [V, n] on the free vertices, with x = 0 elsewhere, and the
    logarithm of the determinant of the free part. The matrix is symmetric and positive definite there.

    free: [n] indices; in the order of `DisplacementPrior.order` the factors are the sparsest.
    """
    factor = symmetric_factors(matrix[free][:, free], ordered=True)

    def solve(right: np.ndarray) -> np.ndarray:
        out = np.zeros_like(right)
        out[free] = factor.solve(np.ascontiguousarray(right[free]))
        return out

    return solve, _log_determinant(factor)


def _log_determinant(factor: SuperLU) -> float:
    return float(np.log(factor.U.diagonal()).sum())
