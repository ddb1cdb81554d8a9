"""Normals of triangle meshes."""

from __future__ import annotations

import torch
from torch import Tensor


def triangle_normals(vertices: Tensor, triangles: Tensor, unit: bool = True) -> Tensor:
    """Normals of counter-clockwise triangles, pointing outside.

    Args:
        vertices: [B, V, 3].
        triangles: [F, 3] int64.
        unit: False leaves the cross product (b - a) x (c - a), whose length is twice the triangle's area.
    Returns:
        [B, F, 3]; zero for triangles without area.
    """
    a, b, c = (vertices[:, triangles[:, i]] for i in range(3))
    normals = torch.linalg.cross(b - a, c - a)
    return _unit(normals) if unit else normals


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Area-weighted mean of the normals of the triangles around each vertex.

    Args:
        vertices: [B, V, 3].
        triangles: [F, 3] int64, counter-clockwise seen from outside.
    Returns:
        [B, V, 3] unit vectors, zero for vertices that no triangle with an area touches. Differentiable.
    """
    faces = triangle_normals(vertices, triangles, unit=False)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, triangles[:, corner], faces)
    return _unit(total)


def _unit(vectors: Tensor) -> Tensor:
    length2 = (vectors * vectors).sum(-1, keepdim=True)
    tiny = torch.finfo(vectors.dtype).tiny
    # The inner where keeps the derivative of the square root finite for zero vectors.
    return vectors * torch.where(length2 > tiny, length2, torch.ones_like(length2)).rsqrt()
