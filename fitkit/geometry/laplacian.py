"""The Laplace-Beltrami operator of a triangle mesh."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import SuperLU, splu

# Needle-shaped triangles have cotangents without bound; beyond this their matrix is scaled down, or one of
# them would outweigh all others at its vertex.
LARGEST_COTANGENT = 20.0


def cotangent_laplacian(vertices: np.ndarray, triangles: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Linear finite elements of minus the Laplacian.

    Args:
        vertices: [V, 3]; triangles: [F, 3] int.
    Returns:
        stiffness [V, V], symmetric and positive semidefinite: f' stiffness f is the integral of |grad f|^2
            over the surface;
        area [V], a third of the area of the triangles at each vertex, 0 for loose ones: f' (area * f) is the
        integral of f^2. stiffness @ f / area is then minus the Laplacian of f.
    Source: Pinkall and Polthier, "Computing discrete minimal surfaces and their conjugates", 1993; the lumped
    mass matrix is
        the barycentric one. Differs: LARGEST_COTANGENT.
    """
    corner = np.asarray(vertices, np.float64)[triangles]
    V, rows, columns, values = len(vertices), [], [], []
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    double_area = np.linalg.norm(normal, axis=1)
    dot = np.stack(
        [
            ((corner[:, (k + 1) % 3] - corner[:, k]) * (corner[:, (k + 2) % 3] - corner[:, k])).sum(1)
            for k in range(3)
        ]
    )
    cotangent = dot / np.maximum(double_area, np.abs(dot).max(0) / LARGEST_COTANGENT).clip(1e-30)
    for k in range(3):
        i, j, half = (k + 1) % 3, (k + 2) % 3, cotangent[k] / 2
        rows += [triangles[:, i], triangles[:, j], triangles[:, i], triangles[:, j]]
        columns += [triangles[:, j], triangles[:, i], triangles[:, i], triangles[:, j]]
        values += [-half, -half, half, half]
    stiffness = sparse.coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(V, V)
    ).tocsr()
    area = np.bincount(triangles.reshape(-1), np.repeat(double_area / 6, 3), minlength=V)
    return stiffness, area


def bending(vertices: np.ndarray, triangles: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The bending energy of functions on a mesh.

    Args:
        vertices: [V, 3]; triangles: [F, 3] int.
    Returns:
        energy [V, V]: f' energy f is the integral of the square of the Laplacian of f over the surface; area
        [V] of each vertex as in `cotangent_laplacian`, at least a hundredth of the mean one.
    """
    stiffness, area = cotangent_laplacian(vertices, triangles)
    area = area.clip(0.01 * area.mean())
    return stiffness @ sparse.diags_array(1 / area) @ stiffness, area


def symmetric_factors(matrix: sparse.spmatrix, ordered: bool = False) -> SuperLU:
    """Factors of a sparse matrix [n, n] that is symmetric and positive definite: in this mode L has ones on
    its diagonal and U is D L'.

    ordered: its rows and columns are in an order already that leaves the factors sparse, so none is looked
    for: `argsort` of the `perm_c` of the factors of a matrix with the same zeros.
    """
    return splu(
        matrix.tocsc(),
        permc_spec="NATURAL" if ordered else "MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        # Small blocks suit the few numbers in the rows of a mesh.
        relax=1,
        panel_size=4,
        options={"SymmetricMode": True},
    )
