"""Texture coordinates that are laid out in several unit squares -> one, without overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MARGIN = 0.01  # of a square's side, kept free around what lies in it
# Lower left corner and side of eight squares in one: the first gets most of it.
BOXES = (
    (0.0, 0.25, 0.75),
    (0.75, 0.75, 0.25),
    (0.75, 0.5, 0.25),
    (0.75, 0.25, 0.25),
    (0.0, 0.0, 0.25),
    (0.25, 0.0, 0.25),
    (0.5, 0.0, 0.25),
    (0.75, 0.0, 0.25),
)


def pack_tiles(
    uv: np.ndarray,
    corners: np.ndarray,
    place: np.ndarray,
    boxes: Sequence[tuple[float, float, float]] = BOXES,
) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates [T, 2] of triangles whose corners are `corners` [F, 3] -> those in the unit square,
    and their corners.

    place: [F] int, the row of `boxes` that each triangle goes to. In which unit square it lies now (n to
    n + 1 in either direction) its middle says.
    """
    tile = np.floor(uv[corners].mean(1)).astype(int)  # [F, 2]
    key, new = np.unique(corners + len(uv) * place[:, None], return_inverse=True)
    new = new.reshape(-1, 3)
    place_of, old = np.divmod(key, len(uv))
    tile_of = np.zeros((len(key), 2), int)
    tile_of[new] = tile[:, None]
    box = np.array(boxes)[place_of]  # [T', 3]
    local = (uv[old] - tile_of).clip(0, 1)
    return box[:, :2] + box[:, 2:] * (MARGIN + (1 - 2 * MARGIN) * local), new
