"""Teeth, gums and tongue, drawn from tables: every tooth has a crown of its own, and each row is one sheet
with the gum above or below it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .parts import strip


@dataclass(frozen=True)
class Row:
    """One row of teeth, mm; heights and depths count from where the lips of the mean face meet in the middle.

    front: depth of the middle of the front.  edge: height of the biting edges.  down: -1 where the crowns
    hang down, 1 where they stand up.  teeth: from the middle to the back: width, height of the crown, how
    much shorter it is at the biting edge than the row, thickness at the biting edge, bulge of its front.
    """

    front: float
    edge: float
    down: int
    teeth: tuple[tuple[float, float, float, float, float], ...]


UPPER = Row(
    front=-5.6,
    edge=-1.9,
    down=-1,
    teeth=(
        (8.5, 10.2, 0.0, 1.5, 0.9),  # incisors
        (6.7, 9.0, 0.7, 1.5, 0.8),
        (7.6, 9.9, 0.0, 2.4, 1.3),  # canine
        (7.0, 8.4, 0.8, 6.5, 1.1),  # premolars
        (6.8, 7.8, 1.2, 7.0, 1.1),
        (9.8, 7.4, 1.6, 9.0, 1.1),  # first molar
    ),
)
LOWER = Row(
    front=-8.4,
    edge=-0.8,
    down=1,
    teeth=(
        (5.3, 8.8, 0.0, 1.5, 0.6),
        (5.9, 9.0, 0.1, 1.5, 0.6),
        (6.9, 10.2, -0.4, 2.2, 1.1),
        (7.0, 8.6, 0.2, 6.0, 1.0),
        (7.1, 8.2, 0.4, 6.5, 1.0),
        (10.8, 7.6, 0.6, 8.5, 1.0),
    ),
)
# The arch seen from below: the front lies ARCH_DEPTH mm further back where it is ARCH_WIDTH mm from the
# middle.
ARCH_WIDTH, ARCH_DEPTH, ARCH_POWER = 18.0, 8.6, 2.5
# Columns of a tooth: share of its width from the one end; share of its bulge, in the groove between two
# teeth mm; mm by which its biting edge is rounded off, and by which the line of the gum comes down.
COLUMNS = ((0.0, -1.1, 0.9, 1.6), (0.12, 0.35, 0.25, 0.6), (0.5, 1.0, 0.0, 0.0), (0.88, 0.35, 0.25, 0.6))
# Rows from the fold of the lip over gum, front, biting edge and back to the gum inside. Heights: `gum` mm
# from the line of the gum away from the tooth, or `crown`, share of the crown from there; outwards mm,
# plus so much of the bulge, minus so much of the thickness.
PROFILE = (
    # gum, crown, outwards, bulge, thickness, region
    (7.0, 0.0, -2.6, 0.0, 0.0, "gums"),
    (3.2, 0.0, -0.7, 0.2, 0.0, "gums"),
    (0.45, 0.0, 0.55, 0.45, 0.0, "gums"),
    (0.0, 0.0, 0.15, 0.45, 0.0, "teeth"),
    (0.0, 0.36, 0.0, 1.0, 0.0, "teeth"),
    (0.0, 0.76, 0.0, 0.75, 0.0, "teeth"),
    (0.0, 0.985, -0.15, 0.3, 0.1, "teeth"),
    (0.0, 1.0, 0.0, 0.0, 0.85, "teeth"),
    (0.0, 0.55, -0.9, 0.0, 1.1, "teeth"),
    (0.0, 0.05, -2.0, 0.0, 1.2, "gums"),
    (5.0, 0.0, -3.6, 0.0, 1.2, "gums"),
)

# The tongue from the tip backwards: depth, half width, top and bottom, mm as above.
TONGUE = (
    (-15.0, 5.0, -4.6, -7.6),
    (-17.6, 9.5, -3.4, -10.0),
    (-22.0, 12.4, -2.2, -12.5),
    (-29.0, 14.2, -0.4, -15.0),
    (-36.0, 15.8, 2.2, -16.5),
    (-42.0, 16.2, 3.4, -16.5),
    (-47.0, 14.0, 2.0, -15.5),
    (-50.0, 8.0, -1.0, -12.0),
)
TONGUE_TIP = (-14.0, -6.0)  # depth and height
TONGUE_ROUND = 16  # points of a ring
# Put out, while the jaw is at rest: over the lower teeth and the lower lip. Nearly straight, so that on the
# straight way there, which shapes go, it comes out above the lip.
TONGUE_OUT = (
    (21.0, 5.5, 2.8, -0.5),
    (17.6, 9.2, 4.8, -0.2),
    (11.6, 11.6, 6.2, 0.4),
    (4.6, 12.6, 6.7, 0.8),
    (-3.5, 12.9, 6.7, 0.9),
    (-12.5, 13.5, 6.2, 0.2),
    (-28.0, 14.5, 5.0, -10.0),
    (-50.0, 8.0, -1.0, -12.0),
)
TONGUE_OUT_TIP = (22.4, 0.7)
OUT_JAW = 0.33  # of jawOpen, which makes room for it
FURROW, FURROW_WIDTH = 1.1, 2.6  # mm, along the middle of the tongue


@dataclass(frozen=True)
class Drawn:
    """A part with a texture map of its own; it is symmetric in itself."""

    vertices: np.ndarray  # [M, 3] mm
    triangles: np.ndarray  # [F, 3] counter-clockwise from outside
    region: np.ndarray  # [M] names
    map: np.ndarray  # [M, 2] in [0, 1]
    mirror: np.ndarray  # [M] row of the mirror image
    groove: np.ndarray  # [M] in [0, 1]: 1 between two teeth


def arch(front: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Length along the front of a row from its middle [N], and x and z there [N, 2]."""
    x = np.linspace(0, reach, 4000)
    at = np.c_[x, front - ARCH_DEPTH * (x / ARCH_WIDTH) ** ARCH_POWER]
    return np.r_[0, np.cumsum(np.linalg.norm(np.diff(at, axis=0), axis=1))], at


def columns_of(row: Row) -> np.ndarray:
    """Left half of a row from the middle to the back, [C, 6]: place along the arch, how far the front
    stands out, height of the gum line and of the biting edge, thickness, 1 for the groove between two
    teeth."""
    out, start = [], 0.0
    teeth = np.array(row.teeth)
    for k, (width, height, short, thick, bulge) in enumerate(teeth):
        before = teeth[max(k - 1, 0)]
        for share, out_by, rounded, down in COLUMNS:
            mean = lambda own, other: 0.5 * (own + other) if share == 0 else own
            edge = row.edge - row.down * (mean(short, before[2]) + rounded)
            gum = row.edge - row.down * (mean(short + height, before[2] + before[1]) - down)
            push = out_by if share == 0 else out_by * bulge  # a groove is as deep for all
            out.append((start + share * width, push, gum, edge, mean(thick, before[3]), share == 0))
        start += width
    share, out_by, rounded, down = COLUMNS[0]
    out.append(
        (
            start,
            out_by,
            row.edge - row.down * (short + height - down),
            row.edge - row.down * (short + rounded),
            thick,
            1,
        )
    )
    return np.array(out, float)


def teeth(row: Row, lips: tuple[float, float]) -> Drawn:
    """A row of teeth with its gum; lips: height and depth in mm where the lips of the mean face meet."""
    column = columns_of(row)
    length, at = arch(row.front, 45.0)
    place = np.stack([np.interp(column[:, 0], length, at[:, k]) for k in range(2)], axis=1)
    along = np.stack(
        [np.interp(column[:, 0], length, np.gradient(at[:, k], length)) for k in range(2)], axis=1
    )
    out = np.c_[-along[:, 1], along[:, 0]]
    out[0] = (0.0, 1.0)
    sheet, region, down = [], [], np.arange(len(PROFILE))[:, None] / (len(PROFILE) - 1)
    _, push, gum, edge, thick, groove = column.T
    for above, crown, outwards, bulge, thickness, name in PROFILE:
        # The gum fills the grooves between the teeth.
        own = np.where(groove > 0, push * (0.2 if name == "gums" else 1.0), push * bulge)
        offset = outwards + own - thickness * thick
        xz = place + out * offset[:, None]
        y = gum - row.down * above + crown * (edge - gum)
        sheet.append(np.c_[xz[:, 0], y, xz[:, 1]])
        region.append(name)
    left = np.stack(sheet)  # [rows, columns, 3]
    whole = np.concatenate([left[:, :0:-1] * [-1, 1, 1], left], axis=1)
    whole[:, len(column) - 1, 0] = 0.0
    rows, count = whole.shape[:2]
    number = np.arange(rows * count).reshape(rows, count)
    faces = np.concatenate(
        [strip(a, b, closed=False, turn_at=count // 2) for a, b in itertools.pairwise(number)]
    )
    if row.down > 0:  # rows that run upwards
        faces = faces[:, [0, 2, 1]]
    span = np.r_[-column[:0:-1, 0], column[:, 0]] / column[-1, 0]
    grid = np.stack(np.broadcast_arrays((span[None] + 1) / 2, down if row.down > 0 else 1 - down), axis=-1)
    both = np.r_[groove[:0:-1], groove]
    return Drawn(
        whole.reshape(-1, 3) + [0.0, lips[0], lips[1]],
        faces,
        np.repeat(region, count),
        grid.reshape(-1, 2),
        number[:, ::-1].ravel(),
        np.tile(both, rows) * np.repeat([name == "teeth" for name in region], count),
    )


def tongue(lips: tuple[float, float]) -> Drawn:
    """A tongue on the floor of the mouth, open at its root; lips: as of `teeth`."""
    up, side = _tongue_turn()
    disc = [np.zeros((1, 2))]
    disc += [np.c_[side, up] * (k + 1) / len(TONGUE) for k in range(len(TONGUE))]
    n, count = len(up), 1 + len(up) * len(TONGUE)
    number = np.arange(1, count).reshape(-1, n)
    faces = [np.c_[np.zeros(n, int), np.roll(number[0], -1), number[0]]]
    faces += [strip(a, b, closed=True, turn_at=n // 2)[:, [0, 2, 1]] for a, b in itertools.pairwise(number)]
    return Drawn(
        _tongue_points(TONGUE, TONGUE_TIP, lips),
        np.concatenate(faces),
        np.repeat("tongue", count),
        0.5 + 0.5 * np.concatenate(disc),
        np.r_[0, number[:, -np.arange(n)].ravel()],
        np.zeros(count),
    )


def tongue_out(lips: tuple[float, float]) -> np.ndarray:
    """The vertices of `tongue` [M, 3] where it is put out, while the jaw is at rest."""
    return _tongue_points(TONGUE_OUT, TONGUE_OUT_TIP, lips)


def _tongue_turn() -> tuple[np.ndarray, np.ndarray]:
    """Up and sidewards, -1 to 1, of the points of a ring: from the top over the left side."""
    turn = np.arange(TONGUE_ROUND) / TONGUE_ROUND * 2 * np.pi
    return np.cos(turn).round(9), np.sin(turn).round(9)


def _tongue_points(rings, tip: tuple[float, float], lips: tuple[float, float]) -> np.ndarray:
    up, side = _tongue_turn()
    vertices = [np.array([[0.0, tip[1], tip[0]]])]
    for depth, half, top, bottom in rings:
        x = half * np.sign(side) * np.abs(side) ** 0.8
        y = 0.5 * (top + bottom) + 0.5 * (top - bottom) * np.sign(up) * np.abs(up) ** 0.7
        furrow = FURROW * min(1.0, half / 12) * np.exp(-0.5 * (x / FURROW_WIDTH) ** 2)
        vertices.append(np.c_[x, y - np.where(up > 0, furrow, 0.0), np.full(len(up), depth)])
    return np.concatenate(vertices) + [0.0, lips[0], lips[1]]
