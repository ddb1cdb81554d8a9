"""The pose that lays the points of a face onto those of a position map, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 16  # of the matrix whose largest eigenvector is wanted: its 65536th power has no other left
LEAST_SCALE = 1e-3  # px per mm


def place_similarity(head: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity seen = scale * rotation @ head + shift, by least squares.

    Args:
        head: [B, N, 3] mm; seen: [B, N, 3] px; weight: [N] or [B, N], points with 0 do
            not count.
    Returns:
        scale [B] px per mm, rotation [B, 3, 3], shift [B, 3] px.
    Source:
        Horn, "Closed-form solution of absolute orientation using unit quaternions", JOSA A 1987. The largest
        eigenvector comes from repeated squaring, which has a gradient everywhere and can be exported; the
        singular vectors of `similarity_align` have none where two singular values are equal.
    """
    s, t, center_s, center_t, w = _centered(head, seen, weight)
    M = s.transpose(1, 2) @ (w * t)  # M[a, b] = sum of s_a t_b
    rotation = _nearest_rotation(M)
    moved = s @ rotation.transpose(1, 2)
    scale = ((w * moved * t).sum((1, 2)) / (w * s * s).sum((1, 2))).clamp_min(LEAST_SCALE)
    return scale, rotation, center_t - scale[:, None] * (rotation @ center_s[..., None])[..., 0]


def place_affine(head: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map that fits best, and of it what a pose can hold: arguments and result as
    `place_similarity`.

    Scale: mean length of its first two rows; rotation: these made orthonormal, and their cross product; the
    middle of the points goes where the affine map takes it.

    Source: PGN eq. 3-4, and the decomposition of PRNet's code, there without making the rows orthogonal.
    """
    s, t, center_s, center_t, w = _centered(head, seen, weight)
    linear = (_inverse(s.transpose(1, 2) @ (w * s)) @ s.transpose(1, 2) @ (w * t)).transpose(1, 2)
    lengths = linear[:, :2].norm(dim=-1).clamp_min(LEAST_SCALE)
    one, two = (linear[:, :2] / lengths[..., None]).unbind(1)
    middle, across = (torch.nn.functional.normalize(x, dim=-1) for x in (one + two, one - two))
    one, two = (middle + across) / 2**0.5, (middle - across) / 2**0.5
    rotation = torch.stack([one, two, torch.linalg.cross(one, two)], 1)
    scale = lengths.mean(1)
    return scale, rotation, center_t - scale[:, None] * (rotation @ center_s[..., None])[..., 0]


def _centered(head: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Both about their middles, the middles [B, 3], and the weights [..., N, 1], which sum to 1."""
    w = (weight / weight.sum(-1, keepdim=True))[..., None]
    center_s, center_t = (w * head).sum(1), (w * seen).sum(1)
    return head - center_s[:, None], seen - center_t[:, None], center_s, center_t, w


def _nearest_rotation(M: Tensor) -> Tensor:
    """The rotation [B, 3, 3] that maximizes the trace of R M for M[a, b] = sum of s_a t_b."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in M.unbind(1))
    rows = (
        (xx + yy + zz, yz - zy, zx - xz, xy - yx),
        (yz - zy, xx - yy - zz, xy + yx, zx + xz),
        (zx - xz, xy + yx, yy - xx - zz, yz + zy),
        (xy - yx, zx + xz, yz + zy, zz - xx - yy),
    )
    power = torch.stack([torch.stack(row, -1) for row in rows], 1)
    power = power / _length(power) + torch.eye(4).to(M)  # no eigenvalue below 0
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / _length(power)
    q = power / power.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]  # the quaternion's products
    w, x, y, z = range(4)

    def p(a: int, b: int) -> Tensor:
        return q[:, a, b]

    return torch.stack(
        [
            torch.stack(
                [p(w, w) + p(x, x) - p(y, y) - p(z, z), 2 * (p(x, y) - p(w, z)), 2 * (p(x, z) + p(w, y))], -1
            ),
            torch.stack(
                [2 * (p(x, y) + p(w, z)), p(w, w) - p(x, x) + p(y, y) - p(z, z), 2 * (p(y, z) - p(w, x))], -1
            ),
            torch.stack(
                [2 * (p(x, z) - p(w, y)), 2 * (p(y, z) + p(w, x)), p(w, w) - p(x, x) - p(y, y) + p(z, z)], -1
            ),
        ],
        1,
    )


def _length(matrix: Tensor) -> Tensor:
    return (matrix.square().sum((1, 2), keepdim=True) + 1e-30).sqrt()


def _inverse(matrix: Tensor) -> Tensor:
    """Of symmetric positive matrices [B, 3, 3], by their cross products: programs have no other."""
    matrix = matrix + 1e-6 * matrix.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None] * torch.eye(3).to(matrix)
    a, b, c = matrix.unbind(1)
    columns = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    return torch.stack(columns, 2) / (a * columns[0]).sum(-1)[:, None, None]
