"""Rows of a table by index, and weighted sums of them: what triangles do with their corners."""

from __future__ import annotations

from torch import Tensor


def rows_at(table: Tensor, index: Tensor) -> Tensor:
    """table [V, ...], index [...] int64 -> [*index.shape, ...]: `table[index]`, several times faster on the
    CPU."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, *table.shape[1:])


def blend(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows, for instance values within triangles.

    Args:
        table: [V, ...]; index: [..., k] int64; weights: [..., k].
    Returns:
        sum over k of weights * table[index], [*index.shape[:-1], *table.shape[1:]]; differentiable.
    """
    flat = table.reshape(len(table), -1)
    # One after the other: an array of all [..., k, ...] takes longer to write than the sums to compute.
    total = sum(rows_at(flat, i) * w[..., None] for i, w in zip(index.unbind(-1), weights.unbind(-1)))
    return total.reshape(*index.shape[:-1], *table.shape[1:])
