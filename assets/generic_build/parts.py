"""Parts that are drawn, not measured: lid rims, nostrils, mouth lining, eyeballs; ears, teeth and tongue have
files of their own.

Every part is built for the left side (or for both at once) and says, per vertex, which skin vertex it follows
in identity and expression and by how much.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

CARUNCLE = {
    "reach": 3.2,  # mm from the inner corner of the eye
    "towards": np.array([0.93, 0.28, 0.05]),  # from the corner to the middle of the opening
    # Rows from the lids into the eyeball: way from the corner and depth
    # below it in mm, share of the gap between the lids that is filled.
    "profile": ((0.7, 0.55, 0.8), (1.7, 0.35, 0.75), (2.6, 0.8, 0.65), (3.6, 3.0, 0.5)),
    "still": 0.8,  # share of the motion of the lids in which it has no part
}


@dataclass(frozen=True)
class Part:
    """A patch whose first `len(seam)` vertices are existing skin vertices.

    `vertices` and the rows below describe the new vertices only; triangle indices below `len(seam)` mean the
    seam.
    """

    seam: np.ndarray  # [N] skin rows
    vertices: np.ndarray  # [M, 3] mm
    layout: np.ndarray  # [M, 2] place inside the hole of the skin layout; NaN: a part with a map of its own
    triangles: np.ndarray  # [F, 3]
    follow: np.ndarray  # [M] row of `seam` whose displacement is copied ...
    amount: np.ndarray  # [M] ... times this factor


def strip(upper: np.ndarray, lower: np.ndarray, closed: bool, turn_at: int | None = None) -> np.ndarray:
    """Triangles between two rows of vertices; from column `turn_at` on with the other diagonal (for
    symmetry)."""
    n = len(upper)
    k = np.arange(n if closed else n - 1)
    j = (k + 1) % n
    first = np.c_[upper[k], lower[k], lower[j], upper[k], lower[j], upper[j]]
    other = np.c_[upper[k], lower[k], upper[j], lower[k], lower[j], upper[j]]
    turned = k >= (n if turn_at is None else turn_at)
    return np.where(turned[:, None], other, first).reshape(-1, 3)


def rings(
    seam: np.ndarray, loops: list[np.ndarray], plane: list[np.ndarray], amount: list, hub, turn_at=None
) -> Part:
    """Closed rings from the seam inwards; `hub` = (position, layout, amount, row) closes the last ring, or
    None."""
    n = len(seam)
    rows = [np.arange(n)] + [n * (k + 1) + np.arange(n) for k in range(len(loops))]
    faces = [strip(a, b, closed=True, turn_at=turn_at) for a, b in itertools.pairwise(rows)]
    vertices, layout = list(loops), list(plane)
    follow = [np.arange(n)] * len(loops)
    factor = [np.broadcast_to(a, n) for a in amount]
    if hub is not None:
        tip = n * (len(loops) + 1)
        k = np.arange(n)
        faces.append(np.c_[rows[-1], np.full(n, tip), rows[-1][(k + 1) % n]])
        vertices.append(hub[0][None])
        layout.append(hub[1][None])
        follow.append(np.array([hub[3]]))
        factor.append(np.array([hub[2]]))
    return Part(
        seam,
        np.concatenate(vertices),
        np.concatenate(layout),
        np.concatenate(faces),
        np.concatenate(follow),
        np.concatenate(factor).astype(float),
    )


def lid_rim(
    seam: np.ndarray,
    margin: np.ndarray,
    margin_layout: np.ndarray,
    centre: np.ndarray,
    radius: float,
    corner: np.ndarray,
) -> Part:
    """What lies behind the margin of the left lids: a short wall into the eyeball; at the inner corner [3]
    the caruncle, a small body that fills it."""
    ray = margin - centre
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    axis = ray.mean(0)
    axis /= np.linalg.norm(axis)
    away = ray - (ray @ axis)[:, None] * axis
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    # First straight back from the margin to the eyeball, so that the corner towards the nose has a wall.
    back = margin + 0.35 * away
    across = back - centre - ((back - centre) @ axis)[:, None] * axis
    depth = np.sqrt(np.maximum(radius**2 - (across**2).sum(1), 0.0))
    depth = np.minimum(depth - 1.2, (margin - centre) @ axis - 0.6)
    # Then on into the eyeball, so that no gap opens when a person's eyeball lies deeper.
    loops = [centre + across + (depth - d)[:, None] * axis for d in (0.0, 1.2, 2.5, 6.0)]
    at_corner = np.exp(-((np.linalg.norm(margin - corner, axis=1) / CARUNCLE["reach"]) ** 2))
    at_corner = np.clip(at_corner * 1.25, 0, 1)[:, None]
    aside = (margin - corner) * [0, 1, 0] - CARUNCLE["towards"] * [0, 1, 0]
    for k, (way, sink, width) in enumerate(CARUNCLE["profile"]):
        # Rounded to the eyeball and to the lids, and below their edges.
        round_off = np.minimum((aside[:, 1:2] / 2.2) ** 2, 1)
        body = corner + CARUNCLE["towards"] * way * (1 - 0.35 * round_off)
        body = body + width * aside - (sink + 0.35 * round_off) * axis
        loops[k] = loops[k] * (1 - at_corner) + body * at_corner
    middle = margin_layout.mean(0)
    plane = [middle + (margin_layout - middle) * s for s in (0.9, 0.75, 0.6, 0.35)]
    follows = [1 - CARUNCLE["still"] * at_corner[:, 0] * s for s in (0.4, 1.0, 1.0, 1.0)]
    return rings(seam, loops, plane, follows, None)


def nostril(
    seam: np.ndarray, rim: np.ndarray, rim_layout: np.ndarray, inner: np.ndarray, inner_layout, deep
) -> Part:
    """Left nostril: a short tunnel from the rim [N, 3] to a measured inner ring [M, 3] and the deepest point
    [3]."""
    hub = deep[1]
    turn = lambda u: np.unwrap(np.arctan2(u[:, 1] - hub[1], u[:, 0] - hub[0]))
    at, own = turn(inner_layout), turn(rim_layout)
    order = np.argsort(at % (2 * np.pi))
    angle = np.r_[at[order] % (2 * np.pi)]
    angle = np.r_[angle - 2 * np.pi, angle, angle + 2 * np.pi]
    inner = np.concatenate([inner[order]] * 3)
    floor = np.stack([np.interp(own % (2 * np.pi), angle, inner[:, k]) for k in range(3)], axis=1)
    loops = [rim * (1 - s) + floor * s for s in (0.25, 0.55, 0.82, 1.0)] + [floor * 0.5 + deep[0] * 0.5]
    plane = [hub + (rim_layout - hub) * s for s in (0.8, 0.6, 0.45, 0.3, 0.15)]
    return rings(seam, loops, plane, [1.0] * 5, (deep[0], hub, 1.0, 0))


# The bag of the mouth around teeth and tongue, from behind the lips to the throat, in mm from where the lips
# meet: depth in the middle of the upper and of the lower half, depth at the sides, half width, height
# above and below.
BAG = (
    (-4.2, -8.8, -18.0, 23.0, 13.0, 6.6),
    (-12.0, -20.0, -32.0, 26.0, 20.0, 16.0),
    (-34.0, -34.0, -38.0, 31.0, 21.0, 22.0),
    (-56.0, -56.0, -56.0, 24.0, 13.0, 19.0),
)
BAG_END = -61.0


def mouth_lining(seam: np.ndarray, lip: np.ndarray, lip_layout: np.ndarray) -> Part:
    """Inner lips and a closed bag behind them. `lip` starts at the upper midline and runs over the left
    corner."""
    n = len(lip)
    turn = np.arange(n) / n * 2 * np.pi  # 0: upper midline, 90 deg: left corner, 180: lower midline
    up = np.cos(turn)
    side = np.sin(turn)
    bag_y = 0.5 * (lip[0, 1] + lip[n // 2, 1])
    lift = np.sign(up) * np.abs(up) ** 0.5
    loops = []
    # (inwards, up/down, towards the middle) of the inner lip
    # The lips touch just behind the visible line: there both rows lie at the same height.
    opposite = lip[(n // 2 - np.arange(n)) % n]
    touch = 0.5 * (lip[:, 1] + opposite[:, 1])
    for depth, spread, narrow in ((0.8, 0.0, 0.0), (1.8, 0.0, 0.005), (2.8, 2.0, 0.02), (4.0, 5.0, 0.03)):
        ring = lip.copy()
        ring[:, 1] = spread * lift + (touch if spread < 1 else lip[:, 1])
        ring[:, 2] -= depth + 1.2 * np.abs(side) ** 6
        ring[:, 0] *= 1 - narrow
        loops.append(ring)
    for upper, lower, beside, half_width, above, below in BAG:
        ring = np.empty_like(lip)
        ring[:, 0] = half_width * np.sign(side) * np.abs(side) ** 0.7
        ring[:, 1] = bag_y + np.where(up > 0, above, below) * np.sign(up) * np.abs(up) ** 0.7
        front = 0.5 * (upper + lower) + 0.5 * (upper - lower) * up
        ring[:, 2] = lip[0, 2] + front + (beside - front) * side**2
        loops.append(ring)
    centre = np.array([0.0, lip_layout[:, 1].mean()])
    plane = [centre + (lip_layout - centre) * s for s in (0.93, 0.86, 0.78, 0.68, 0.56, 0.42, 0.28, 0.12)]
    amount = [1.0, 1.0, 1.0, 0.9, 0.55, 0.35, 0.2, 0.1]
    hub = (np.array([0.0, bag_y, lip[0, 2] + BAG_END]), centre, 0.2, n // 2)
    return rings(seam, loops, plane, amount, hub, turn_at=n // 2)


def eyeball(
    centre: np.ndarray, radius: float, iris_radius: float, pole: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Left eyeball as rings around its visual axis.

    Returns:
        vertices [M, 3], triangles [F, 3], unit-disc coordinates [M, 2] for the texture map, and the polar
        distance of each vertex in units of the iris radius [M].
    """
    pole = pole / np.linalg.norm(pole)
    right = np.cross([0.0, 1.0, 0.0], pole)
    right /= np.linalg.norm(right)
    up = np.cross(pole, right)
    iris = np.degrees(np.arcsin(iris_radius / radius))
    polar = np.r_[0.40 * iris, 0.5 * iris, 0.92 * iris, 1.06 * iris, 32, 42, 53, 66, 82, 105, 135]
    count = 28
    turn = np.arange(count) / count * 2 * np.pi
    vertices, disc, relative = [centre + pole * (radius + 0.45)], [np.zeros(2)], [0.0]
    for angle in polar:
        tilt = np.radians(angle)
        bulge = 0.45 * max(0.0, 1 - (angle / (1.25 * iris)) ** 2)
        ring = np.cos(tilt) * pole + np.sin(tilt) * (
            np.cos(turn)[:, None] * right + np.sin(turn)[:, None] * up
        )
        vertices.extend(centre + ring * (radius + bulge))
        disc.extend(np.c_[np.cos(turn), np.sin(turn)] * (angle / 180) ** 0.6)
        relative.extend([angle / iris] * count)
    vertices.append(centre - pole * radius)
    # The far pole closes the map: a ring of zero size in space, on the rim of the disc.
    faces = [np.c_[np.zeros(count, int), 1 + np.arange(count), 1 + (np.arange(count) + 1) % count]]
    for k in range(len(polar) - 1):
        faces.append(
            strip(1 + k * count + np.arange(count), 1 + (k + 1) * count + np.arange(count), closed=True)
        )
    vertices = np.array(vertices[:-1])
    return vertices, np.concatenate(faces), np.array(disc), np.array(relative)
