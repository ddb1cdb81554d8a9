"""Depth maps as meshes."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from torch import Tensor

from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import JUMP_MM, back_project


def depth_mesh(depth: Tensor, camera: Camera, jump_mm: float = JUMP_MM) -> tuple[np.ndarray, np.ndarray]:
    """The surface that a depth map shows.

    Args:
        depth: [H, W] mm, 0 = nothing; camera: of one frame, px of the map; jump_mm: see JUMP_MM.
    Returns:
        vertices [H * W, 3] mm, camera frame, one for each pixel; triangles [F, 3] between neighbouring pixels
        that lie on one surface, counter-clockwise seen from the camera.
    """
    H, W = depth.shape
    vertices = back_project(depth[None].double(), camera)[0].numpy()
    index = np.arange(H * W).reshape(H, W)
    a, right, down, across = (
        c.ravel() for c in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:])
    )
    triangles = np.concatenate([np.stack([a, down, right], 1), np.stack([right, down, across], 1)])
    z = depth.double().numpy().ravel()[triangles]
    return vertices, triangles[(z > 0).all(1) & (np.ptp(z, axis=1) < jump_mm)]


def largest_piece(triangles: np.ndarray, count: int) -> np.ndarray:
    """Those of the triangles [F, 3] of `count` vertices that belong to the piece with the most of them, [F',
    3]."""
    if not len(triangles):
        return triangles
    ends = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    links = sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    piece = sparse.csgraph.connected_components(links, directed=False)[1][triangles[:, 0]]
    return triangles[piece == np.bincount(piece).argmax()]
