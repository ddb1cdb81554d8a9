"""The lids: their thickness and folds in the mean face, and how they slide over the eyeball.

Round each eye the skin is described in polar coordinates of the eyeball: a direction and a height above the
ball. A spoke runs from the lid margin outwards; `along` is the way along it. The lid is a plate of nearly
even height with a rounded edge; where it ends, the skin of the brow hangs over it: the fold. A lid that moves
turns about the centre of the ball, most at its margin; the plate slides below the fold, and where it is drawn
out far, as in a blink, the fold opens into a smooth surface.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from .appearance import smooth_step
from .fine_skin import CREASE, EYE_REACH, FineSkin

EDGE = {"upper": 0.8, "lower": 1.15}  # mm, radius of the outer edge of a lid
PLATE = {"upper": 1.7, "lower": 1.25}  # mm, least height of a lid above the ball
FACE = {"upper": 1.0, "lower": 0.65}  # mm, least height of the outer edge above the inner one
GROOVE = {"upper": 0.35, "lower": 0.2}  # mm, depth of the fold and of the hollow below the lower lid
HOOD = 0.25  # mm, by which the skin above the fold stands out
REACH = 10.5  # mm, how far from the margin the skin slides with it
SPREAD = 3.0  # spokes, over which motion is averaged 4 mm and more from the margin
EVEN = (2.0, 3.0)  # spokes, the same for the motion that follows from it; at the inner corner
TAUT = 0.9  # share of its height over the ball that skin at the inner corner keeps
FADE = (7.0, 11.5)  # mm from the margin: from here to there what was measured takes over
MEET = 0.10  # where the lids meet, from the lower (0) to the upper (1) margin
CORNEA = (0.45, 29.6)  # mm, degrees: bulge of the ball and where it ends


def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + width**2))


class Lids:
    """The skin round the left eye; the right one is its mirror image.

    skin: with loops; rest: [V, 3] smooth mean skin; centre, radius: of the left eyeball as it is drawn;
    corners: positions of the inner and the outer corner [2, 3].
    """

    def __init__(
        self, skin: FineSkin, rest: np.ndarray, centre: np.ndarray, radius: float, corners: np.ndarray
    ):
        self.skin, self.centre, self.radius = skin, centre, radius
        self.rows = skin.eye
        base = rest[self.rows]  # [R, N, 3]
        self.count = n = base.shape[1]
        step = np.linalg.norm(np.diff(base, axis=0), axis=2)
        along = np.r_[np.zeros((1, n)), np.cumsum(step, axis=0)]
        # The loops take even shares of each spoke: ways are told in mm of a spoke of usual length.
        self.along = along / along[-1] * EYE_REACH
        self.scale = along[-1] / EYE_REACH
        arm = base - centre
        distance = np.linalg.norm(arm, axis=2)
        self.direction, self.height = arm / distance[..., None], distance - radius
        self.margin = self.height[0]
        self.outwards = base[3] - base[0]
        self.outwards /= np.linalg.norm(self.outwards, axis=1, keepdims=True)
        inner, outer = cKDTree(base[0]).query(corners)[1]
        one = np.arange(inner, inner + (outer - inner) % n + 1) % n
        two = np.arange(inner, inner - (inner - outer) % n - 1, -1) % n
        self.upper, self.lower = sorted((one, two), key=lambda ring: -base[0, ring, 1].mean())
        # 0 at the inner, 1 at the outer corner.
        self.share = np.zeros(n)
        for ring in (self.upper, self.lower):
            step = np.linalg.norm(np.diff(base[0, ring], axis=0), axis=1)
            self.share[ring] = np.r_[0, np.cumsum(step)] / step.sum()
        self.is_upper = np.isin(np.arange(n), self.upper[1:-1])
        away = smooth_step(self.share / 0.22) * smooth_step((1 - self.share) / 0.2)
        ring_smooth = lambda x, width=1.0: gaussian_filter1d(x, width, mode="wrap")
        self.fold = ring_smooth(np.where(self.is_upper, away, 0.0))
        self.below = ring_smooth(np.where(self.is_upper, 0.0, away))
        self.face = ring_smooth(0.45 + 0.55 * away)  # how much of its thickness the lid has
        # The corners stay where they are measured.
        self.moves = smooth_step(self.share / 0.15) * smooth_step((1 - self.share) / 0.15)
        self.taut = TAUT * (1 - smooth_step(self.share / 0.4))
        self.ring_smooth = ring_smooth
        upper = ring_smooth(np.where(self.is_upper, 1.0, 0.0), 2.0)
        self.of = lambda figure: figure["lower"] + (figure["upper"] - figure["lower"]) * upper
        self.surface = [PchipInterpolator(self.along[:, k], self.height[:, k]) for k in range(n)]
        self.resting = self.place(self.direction, self.lift(self.margin, self.along, 0.0))
        # As drawn, the resting lids are where a motion of zero leaves them.
        self.detail = self.resting - base

    def plate_above(self, margin: np.ndarray) -> np.ndarray:
        """Height [N] of the plate on a margin of given height."""
        return margin + self.face * (smooth_max(margin + self.of(FACE), self.of(PLATE), 0.4) - margin)

    def place(self, direction: np.ndarray, height: np.ndarray) -> np.ndarray:
        return self.centre + direction * (self.radius + height)[..., None]

    def brow(self, along: np.ndarray) -> np.ndarray:
        """Height [R, N] of the smooth skin at a way from the resting margin; flat within the opening."""
        out = np.empty_like(along)
        for k, curve in enumerate(self.surface):
            end = self.along[-1, k]
            slope = float(curve(end, 1))
            inside = np.clip(along[:, k], 0, end)
            out[:, k] = curve(inside) + slope * np.maximum(along[:, k] - end, 0)
        return out

    def lift(self, margin: np.ndarray, at: np.ndarray, drawn: float) -> np.ndarray:
        """Heights [R, N] of lids whose margin has the height `margin` [N] and whose points lie at the ways
        `at` [R, N] from the resting margin; drawn: mm by which the margin closes at most: so far the fold
        opens."""
        plate = self.plate_above(margin)
        brow = self.brow(at)
        # How far from the corners and from the end of the loops: details fade out there.
        calm = 1 - smooth_step((at - 6.2) / 1.6)
        sharp = smooth_step((at - CREASE + 0.7) / 1.6)
        soft = smooth_step((at - 0.4) / 5.2)
        over = self.fold * sharp + (1 - self.fold) * soft
        hood = HOOD * self.fold * np.exp(-(((at - CREASE - 1.5) / 1.2) ** 2)) * calm
        cut = GROOVE["upper"] * self.fold * np.exp(-(((at - CREASE) / 0.7) ** 2))
        cut = cut + GROOVE["lower"] * self.below * np.exp(-(((at - 5.2) / 1.4) ** 2)) * calm
        folded = (1 - over) * plate + over * (brow + hood) - cut
        opened = smooth_max(np.broadcast_to(plate, brow.shape), brow, 0.8)
        open_share = self.is_upper * smooth_step(drawn / 6.0)
        top = (1 - open_share) * folded + open_share * opened
        edge = np.sin(0.5 * np.pi * np.clip(self.along * self.scale / self.of(EDGE), 0, 1))
        return margin + (top - margin) * edge

    def moved(self, goal: np.ndarray) -> np.ndarray:
        """Positions [R, N, 3] of the skin when the margin goes to `goal` [N, 3]."""
        arm = goal - self.centre
        distance = np.linalg.norm(arm, axis=1)
        towards = arm / distance[:, None]
        axis = np.cross(self.direction[0], towards)
        sine = np.linalg.norm(axis, axis=1)
        angle = np.arctan2(sine, (self.direction[0] * towards).sum(1))
        turn = axis * (angle / np.maximum(sine, 1e-12))[:, None]
        way = goal - self.place(self.direction[0], self.margin)
        drawn = -(way * self.outwards).sum(1)
        # What is far from the margin goes with more of it.
        spread = lambda x: np.stack(
            [
                gaussian_filter1d(x, SPREAD * min(a / 4, 1) + 1e-3, axis=0, mode="wrap")
                for a in self.along[:, 0]
            ]
        )
        slide = 1 - smooth_step(self.along / REACH)  # [R, N]
        turned = rotate(self.direction, spread(turn) * slide[..., None])
        at = self.along - spread(drawn) / self.scale * slide
        # Beside the nose the skin is drawn taut across the hollow instead of following the ball.
        at = at + self.taut * (self.along - at)
        return self.place(turned, self.lift(distance - self.radius, at, drawn.max()))

    def clear(self, goal: np.ndarray) -> np.ndarray:
        """`goal` [N, 3], lifted so far off the ball that the straight way there does not cut into it."""
        start = self.place(self.direction[0], self.margin)
        half = 0.5 * (start + goal) - self.centre
        from_pole = np.degrees(np.arccos(np.clip(half[:, 2] / np.linalg.norm(half, axis=1), -1, 1)))
        bulge = CORNEA[0] * np.maximum(1 - (from_pole / CORNEA[1]) ** 2, 0)
        arm = goal - self.centre
        distance = np.linalg.norm(arm, axis=1)
        step = np.linalg.norm(goal - start, axis=1)
        sagitta = step**2 / (8 * self.radius)
        need = 2 * (sagitta + bulge + 0.05) - self.margin
        need = np.minimum(need, np.maximum(self.margin, 0) + 1.2)
        height = distance - self.radius
        height = height + self.moves * smooth_step(step / 2.0) * np.maximum(
            self.ring_smooth(need) - height, 0
        )
        return self.centre + arm * ((self.radius + height) / distance)[:, None]

    def closed(self, margin: np.ndarray) -> np.ndarray:
        """Where the margin [N, 3] goes in a blink: upper and lower one meet.

        margin: as measured, not quite closed."""
        pick = lambda ring, t: np.stack(
            [np.interp(t, self.share[ring], margin[ring, k]) for k in range(3)], axis=1
        )
        t = np.linspace(0, 1, 81)
        line = (1 - MEET) * pick(self.lower, t) + MEET * pick(self.upper, t)
        line = gaussian_filter1d(line, 2.0, axis=0, mode="nearest")
        for end, near in ((0, t), (-1, 1 - t)):
            line = line + np.exp(-near / 0.06)[:, None] * (pick(self.lower, t[[end]]) - line[[end]])
        to = lambda ring: np.stack([np.interp(self.share[ring], t, line[:, k]) for k in range(3)], axis=1)
        # The lower margin follows the upper one below. Until then it is far off, where `clear` lifts most.
        goal = np.zeros((self.count, 3))
        goal[self.upper] = to(self.upper)
        lifted = self.clear(goal)[self.upper] - self.centre
        height = np.linalg.norm(lifted, axis=1)
        even = gaussian_filter1d(height, 1.5, mode="nearest")
        even = smooth_max(even, np.full_like(even, self.radius + 0.1), 0.2)
        even = height + smooth_step(self.share[self.upper] / 0.3) * (even - height)
        lifted = self.centre + lifted * (even / height)[:, None]
        goal[self.upper] = lifted
        goal[self.lower] = np.stack(
            [np.interp(self.share[self.lower], self.share[self.upper], lifted[:, k]) for k in range(3)], 1
        )
        return goal

    def field(self, name: str, measured: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Displacement [V, 3] of the skin in a shape of the left eye.

        measured: [V, 3] the smooth interpolation of the sites; rest: [V, 3] the drawn mean skin.
        """
        loop = self.rows[0]
        goal = rest[loop] + measured[loop]
        goal = self.closed(goal) if name.startswith("eyeBlink") else self.clear(goal)
        motion = self.moved(goal) - self.resting
        inner = (1 - smooth_step(self.share / 0.5))[:, None]
        for k, along in enumerate(self.along[:, 0]):
            even = [
                gaussian_filter1d(motion[k], width * min(along / 4, 1) + 1e-3, axis=0, mode="wrap")
                for width in EVEN
            ]
            motion[k] = even[0] + inner * (even[1] - even[0])
        out = measured.copy()
        keep = 1 - smooth_step((self.along - FADE[0]) / (FADE[1] - FADE[0]))[..., None]
        out[self.rows] = keep * motion + (1 - keep) * measured[self.rows]
        # Beyond the outermost loop the motion of its nearest points dies away.
        last = rest[self.rows[-1]]
        gap, _ = cKDTree(last).query(rest)
        beyond = np.setdiff1d(np.flatnonzero(gap < FADE[1] - 6.0), self.rows)
        weight = np.exp(
            -0.5 * (((rest[beyond][:, None] - last) ** 2).sum(-1) - gap[beyond, None] ** 2) / 2.0**2
        )
        weight /= weight.sum(1, keepdims=True)
        way = weight @ self.along[-1] + gap[beyond]
        slide = lambda a: 1 - smooth_step(a / REACH)
        carried = (
            weight @ motion[-1] * (slide(way) / np.maximum(slide(weight @ self.along[-1]), 1e-3))[:, None]
        )
        keep = 1 - smooth_step((way - FADE[0]) / (FADE[1] - FADE[0]))[:, None]
        out[beyond] = keep * carried + (1 - keep) * measured[beyond]
        return out


def rotate(vectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Rodrigues' rotation of [..., 3] by rotation vectors [..., 3] in radians."""
    angle = np.linalg.norm(turn, axis=-1, keepdims=True)
    axis = turn / np.maximum(angle, 1e-12)
    along = (vectors * axis).sum(-1, keepdims=True) * axis
    return vectors * np.cos(angle) + np.cross(axis, vectors) * np.sin(angle) + along * (1 - np.cos(angle))
