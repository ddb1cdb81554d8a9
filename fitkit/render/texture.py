"""One UV map of a person's skin without light, and one with it, from all views.

Order of work: each photo is cut to the head and scaled once (`CroppedView`), and its colours are divided by
the light that falls on the surface (`ViewColors`); the photos are matched to each other, and to their own
mirror images, by what is left of the light (`leftover_light`). Smooth colours are a robust mean over the
views, found in a small map, and details come from the best view, texel by texel (two bands); one photo, the
main one, is preferred for both. The eyes, which turn between photos, come from one photo. Towards hair and
clothes the photos fade out. Texels that no photo shows are taken from the other half of the face, then spread
over the surface, guided by the model's albedo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np
import scipy.spatial
import torch

from fitkit.geometry.color import srgb_from_linear
from fitkit.geometry.membrane import Membrane
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.appearance import EYES, INSIDE, default_albedo, in_region
from fitkit.models.correspondence import Correspondence
from fitkit.models.face_model import FaceModel
from fitkit.render.relight import FEWEST, leftover_light, usable_colors
from fitkit.render.texels import Texels
from fitkit.render.view_colors import (
    DARK,
    SHARP,
    CroppedView,
    LookupOptions,
    ViewColors,
    pixels_per_mm,
    sharpness,
    sight_cosine,
)

INSIDE_LIGHT = 0.35
FULL = 0.05  # blending weight from which a texel counts as fully seen
SMALL = 256  # side of the map of the smooth colours, at most
EARS, BESIDE = ("ear",), ("neck", "ear")  # how the names of parts begin
CHIN, BEHIND_CHIN_MM = 8, 12.0  # landmark, and what is below it and farther back is no face any more
BROWS_AND_EYES = np.r_[17:27, 36:48]  # of the 68
FOREHEAD_MM = 9.0, 20.0  # from brows and eyes: hair may hang into what is farther, surely beyond the second
BEYOND = 1e-4  # weight of smooth colours beyond what is seen
FEATHER_MM = 8.0  # how far from their border colours of photos fade out where hair and clothes begin
LEAST_LIGHT = 0.4  # of a view's usual light: where less is expected it is not believed


@dataclass(frozen=True)
class TextureOptions:
    """How views are blended.

    lookup: visibility and trust in single views; detail_power: how much the best view is preferred for
    details; blur: sigma of the split between the bands as a share of the map's side; max_views: photos used
    at most; prefer: how many times as well the photo that shows the face best is taken to show it, because
    brows and lips from photos of different moments do not lie on each other; spread: deviation of a view's
    smooth colour from the mean, as a share of it, from which on it loses weight.
    """

    lookup: LookupOptions = field(default_factory=LookupOptions)
    detail_power: float = 4.0
    blur: float = 0.012
    max_views: int = 12
    prefer: float = 4.0
    spread: float = 0.15


@dataclass(frozen=True)
class UvMaps:
    """Linear RGB maps [S, S, 3] float32, row 0 is v = 1. color: as in the photos, in their mean light;
    albedo: without light; seen: [S, S] in [0, 1], how far a texel is taken from where the photos show it."""

    color: np.ndarray
    albedo: np.ndarray
    seen: np.ndarray


def choose_views(model: FaceModel, state, sizes: list[tuple[int, int]], most: int) -> list[int]:
    """The at most `most` views that together show the surface best, in their order; sizes: (H, W) of each
    photo.

    Greedy: each choice adds most to the sum over the vertices of the best (cosine of the viewing angle x
    resolution).
    """
    if state.num_views <= most:
        return list(range(state.num_views))
    score = np.zeros((state.num_views, model.num_vertices), np.float32)
    for i, (H, W) in enumerate(sizes):
        vertices = state.posed(model, [i])
        camera = state.camera.select([i])
        pixels, in_front = camera.project(vertices)
        inside = in_front & (pixels >= 0).all(-1) & (pixels[..., 0] <= W - 1) & (pixels[..., 1] <= H - 1)
        density = pixels_per_mm(vertices, camera)
        score[i] = (
            sight_cosine(vertices[0], model.triangles, camera).clamp_min(0) * inside[0] * min(density, SHARP)
        ).numpy()
    best = np.zeros(model.num_vertices, np.float32)
    chosen: list[int] = []
    for _ in range(most):
        gain = np.maximum(score, best).sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, score[chosen[-1]])
    return sorted(chosen)


@dataclass(frozen=True)
class Layout:
    """A UV layout that is not that of the fitted model: the model it belongs to, and where its vertices lie
    on the fitted one."""

    model: FaceModel
    onto: Correspondence


def blend_views(
    model: FaceModel,
    views: list[CroppedView],
    size: int,
    light: np.ndarray | None = None,
    options: TextureOptions = TextureOptions(),
    layout: Layout | None = None,
) -> UvMaps:
    """The maps of a person, size x size; see the module's head for the method.

    Args:
        views: B of them, at least one.
        light: [B, V, 3] that falls on the vertices in each view, linear RGB; None = white: then the albedo is
            the colour.
        layout: UV of another model; None = the model's own.
    """
    light = None if light is None else usable_light(light)
    doubt = _hair_or_clothes(model)
    lookups = [
        ViewColors.of(view, model.triangles, None if light is None else light[i], options.lookup, doubt)
        for i, view in enumerate(views)
    ]
    lookups = [
        replace(look, weight=look.weight * float(s)) for look, s in zip(lookups, sharpness(views, lookups))
    ]
    return _Blend(model, lookups, doubt, options).maps(size, layout)


def usable_light(light: np.ndarray) -> np.ndarray:
    """Light [B, V, 3] that colours can be divided by: never below LEAST_LIGHT of the view's usual one, since
    harmonics are wrong in folds and shadows; white in views without any."""
    usual = np.quantile(light.max(-1), 0.9, axis=1)[:, None, None]
    with np.errstate(over="ignore"):
        lit = (np.maximum(light, 0) ** 4 + (LEAST_LIGHT * usual) ** 4) ** 0.25
    return np.where(usual > 1e-4, lit, 1.0).astype(np.float32)


class _Blend:
    """What is known of a person before a map is made: smooth colours in the small map of the model's own
    layout, which view shows the eyes, and what the vertices look like that nobody saw."""

    def __init__(
        self, model: FaceModel, lookups: list[ViewColors], doubt: np.ndarray, options: TextureOptions
    ):
        self.model, self.options = model, options
        self.texels = Texels.of(model, SMALL)
        self.doubt = self.texels.matrix @ doubt
        self.fades = self.texels.matrix @ (doubt * ~_named(model, EARS))
        self.eye = in_region(model, EYES).astype(np.float32)
        self.partner, self.paired = _mirror(model)
        self.lookups = lookups
        samples = self._evened()
        self.main = self._main_view(samples)
        self.prefer = np.where(np.arange(len(samples)) == self.main, options.prefer, 1.0).astype(np.float32)
        self.eye_view = self._choose_eye_views(samples)
        samples = [(rgb, self._eyes_once(i, self.texels, weight)) for i, (rgb, weight) in enumerate(samples)]
        low = [
            low_band(self.texels, rgb, weight > 0, options.blur * self.texels.size) for rgb, weight in samples
        ]
        # Smooth colours reach beyond what is seen, so that they can be interpolated at its border.
        weights = [
            weight * prefer + BEYOND * reach
            for (_, weight), (_, reach), prefer in zip(samples, low, self.prefer)
        ]
        self.low, self.reach = [values for values, _ in low], [reach for _, reach in low]
        self.base = _robust_mean(self.low, weights, options.spread)
        seen = np.minimum(1, np.sum([weight for _, weight in samples], 0) / FULL)
        self.soft_seen = self._soft(seen)
        self.seen = seen * self.soft_seen
        self._continue()

    def _evened(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Albedo and weights of all views in the small map, made alike by what their lights leave over, which
        becomes part of them. Each view has its own light, or all have one, whichever makes them agree better:
        lights that are found one by one differ a little even where they are the same."""
        skin = (self.texels.matrix @ (self.model.skin | self.model.face).numpy().astype(np.float32)) > 0.99
        own = [self._sample(i, self.texels) for i in range(len(self.lookups))]
        shared = np.exp(self._log_light())
        ratio = [self.texels.matrix @ (look.light / shared) for look in self.lookups]
        choices = []
        for lights, samples in (
            ([shared] * len(own), [(rgb * r, w) for (rgb, w), r in zip(own, ratio)]),
            ([look.light for look in self.lookups], own),
        ):
            gains = _view_gains(samples, skin)
            samples = [(rgb * gain, w) for (rgb, w), gain in zip(samples, gains)]
            choices.append((_disagreement(samples, skin), lights, gains, samples))
        _, lights, gains, samples = min(choices, key=lambda choice: choice[0])
        self.lookups = [
            replace(look, light=light / gain) for look, light, gain in zip(self.lookups, lights, gains)
        ]
        at_vertices = sh_basis(vertex_normals(self.model.mean[None], self.model.triangles)[0]).numpy()
        basis, mirrored_basis = (
            self.texels.matrix @ values for values in (at_vertices, at_vertices[self.partner])
        )
        left = leftover_light(
            samples,
            [self._sample(i, self.texels, moved=self.partner) for i in range(len(samples))],
            (basis, mirrored_basis),
            skin,
        )
        self.lookups = [
            replace(look, light=look.light * np.exp(at_vertices @ x)) for look, x in zip(self.lookups, left)
        ]
        return [(rgb / np.exp(basis @ x), weight) for (rgb, weight), x in zip(samples, left)]

    def _main_view(self, samples: list[tuple[np.ndarray, np.ndarray]]) -> int:
        """The view that shows both halves of the face well, and as the others do: their shadows are
        elsewhere."""
        face = self.doubt < 0.01
        left = self.texels.matrix @ (self.model.mean[:, 0].numpy() > 0).astype(np.float32)
        apart: list[list[float]] = [[] for _ in samples]
        for i, j, log in _pairs(samples, face):
            apart[i].append(np.abs(log).mean())
            apart[j].append(np.abs(log).mean())
        score = []
        for (_, weight), away in zip(samples, apart):
            halves = [(weight * face * side).sum() for side in (left, 1 - left)]
            shown = np.sqrt(halves[0] * halves[1]) + 0.01 * sum(halves)
            score.append(shown / (1 + np.square(np.mean(away or [0.0]) / (2 * self.options.spread))))
        return int(np.argmax(score))

    def _sample(
        self, i: int, texels: Texels, moved: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.lookups[i].sample(texels.matrix, moved, None if moved is None else self.paired)

    def _choose_eye_views(self, samples: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """[V] the view that each vertex of an eye is taken from, -1 elsewhere: the main one or else one for
        both eyes, where it shows them about as well as any."""
        side = self.model.mean[:, 0].numpy() > 0
        view = np.full(self.model.num_vertices, -1)
        if not self.eye.any():
            return view
        scores = []
        for one in (side, ~side):
            here = self.texels.matrix @ (self.eye * one) > 0.5
            scores.append(np.array([w[here].sum() for _, w in samples]))
        both = int(np.sqrt(scores[0] * scores[1]).argmax())
        for one, score in zip((side, ~side), scores):
            best = int(score.argmax())
            for choice in (self.main, both, best):
                if score[choice] >= 0.5 * score[best]:
                    view[(self.eye > 0) & one] = choice
                    break
        return view

    def _eyes_once(self, i: int, texels: Texels, weight: np.ndarray) -> np.ndarray:
        other = ((self.eye_view >= 0) & (self.eye_view != i)).astype(np.float32)
        return weight * (texels.matrix @ other < 0.5) if other.any() else weight

    def _continue(self) -> None:
        """What the vertices that nobody saw have: the ratio of the two halves of the face, the light of all
        views, and the albedo."""
        model, smooth = self.model, Membrane(self.model.mean, self.model.triangles)
        partner, texels = self.partner, self.texels
        color, trust = texels.to_vertices(self.base, self.seen)
        log = np.concatenate([np.log(color.clip(DARK)), self._log_light()], 1)
        both = np.minimum(trust, trust[partner]) * self.paired * (1 - self.eye)
        self.ratio = smooth.solve(both, log - log[partner], np.zeros(6, np.float32))

        mirrored, weight = self._mirrored(texels)
        known, full = self._completed(self.base, self.seen, mirrored, weight)
        self.soft_known = self._soft(known)
        known = known * self.soft_known
        color, trusted = texels.to_vertices(full, known)
        there = trust[partner] * self.paired
        other = log[partner, 3:] + self.ratio[:, 3:]
        light = (trust[:, None] * log[:, 3:] + ((1 - trust) * there)[:, None] * other) / np.maximum(
            trust + (1 - trust) * there, 1e-8
        )[:, None]
        plain = default_albedo(model)
        inside, wet = in_region(model, INSIDE), in_region(model, INSIDE) | (self.eye > 0)
        # Inside the mouth it is dark: an unseen tooth in full light would shine through lips that do not
        # quite close.
        log_plain = np.log((plain * np.where(inside, INSIDE_LIGHT, 1.0)[:, None]).clip(DARK))
        detail = np.log(color.clip(DARK)) - log_plain
        skin = (trusted > 0.5) & (model.skin | model.face).numpy()
        usual = np.zeros(6, np.float32)
        if skin.sum() >= 10:
            usual = np.median(np.concatenate([detail, light], 1)[skin], 0)
        # Ratios to nearly black paint (pupils, nostrils) are noise, and highlights on eyes and teeth must not
        # spread: both would end as white blots.
        trusted = trusted * (plain.mean(1) / 0.1).clip(0.05, 1)
        detail[wet] = np.minimum(detail[wet], usual[:3] + 0.6)
        solved = smooth.solve(trusted, np.concatenate([detail, light], 1), usual)
        self.unseen = np.exp(solved[:, :3] + log_plain).astype(np.float32)
        self.unseen[wet] = self.unseen[wet].clip(0, 0.7)
        seen = np.maximum(trust, there)[:, None]
        self.light = np.exp(np.where(seen > 0.5, light, solved[:, 3:])).astype(np.float32)

    def _log_light(self) -> np.ndarray:
        """[V, 3] log of one light for all views, of those that look at a vertex, without steps where one is
        hidden; each brought to the views' mean exposure."""
        total = np.zeros((self.model.num_vertices, 3), np.float32)
        weight = np.full((self.model.num_vertices, 1), 1e-12, np.float32)
        facing = [look.attributes[:, 3].clip(0, 1) for look in self.lookups]
        skin = (self.model.skin | self.model.face).numpy()
        gains = _view_gains([(look.light, f) for look, f in zip(self.lookups, facing)], skin)
        for look, f, gain in zip(self.lookups, facing, gains):
            own = look.weight * (f[:, None] + 0.1) ** self.options.lookup.angle_power
            total += own * np.log(look.light * gain)
            weight += own
        return total / weight

    def _mirrored(self, texels: Texels) -> tuple[np.ndarray, np.ndarray]:
        """Albedo [N, 3] of the photos at the mirrored surface points, made like this half by the ratio of the
        halves, and its weight [N]."""
        total, weight = np.zeros((len(texels.index), 3), np.float32), np.zeros(len(texels.index), np.float32)
        skin = texels.matrix @ self.eye < 0.5  # a mirrored eye would squint
        for i in range(len(self.lookups)):
            rgb, own = self._sample(i, texels, moved=self.partner)
            total += rgb * (own * skin)[:, None]
            weight += own * skin
        ratio = np.exp(texels.matrix @ self.ratio[:, :3])
        return total / np.maximum(weight, 1e-8)[:, None] * ratio, weight

    def _soft(self, known: np.ndarray) -> np.ndarray:
        """[N] in [0, 1], of the small map: 0 at the border of what is known, `known` [N], where hair or
        clothes may begin, 1 far from it and elsewhere."""
        size, there = self.texels.size, np.ones(self.texels.size**2, np.uint8)
        there[self.texels.index] = known > 0.5
        distance = cv2.distanceTransform(there.reshape(size, size), cv2.DIST_L2, 5).reshape(-1)
        t = (distance[self.texels.index] * self.texels.mm_per_texel(self.model) / FEATHER_MM).clip(0, 1)
        return 1 - self.fades * (1 - t * t * (3 - 2 * t))

    @staticmethod
    def _completed(
        albedo: np.ndarray, seen: np.ndarray, mirrored: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Trust [N] and albedo [N, 3] of what is seen and, where it is not, mirrored."""
        share = (1 - seen) * np.minimum(1, weight / FULL)
        known = seen + share
        total = seen[:, None] * albedo + share[:, None] * mirrored
        return known, total / np.maximum(known, 1e-8)[:, None]

    def maps(self, size: int, layout: Layout | None) -> UvMaps:
        """The maps in the model's own layout or another one."""
        texels, there = Texels.of(self.model if layout is None else layout.model, size), None
        if layout is not None:
            texels, there = texels.carried(self.model, layout.onto)
        base = None
        # Vertices without a texel in the small map do not fade.
        small = (1 - np.stack([self.soft_seen, self.soft_known], 1), self.base, *self.low)
        if layout is None:
            base = [self.texels.picture(values) for values in small]
        else:
            reached = [np.ones(len(self.base)), np.sum(self.reach, 0), *self.reach]
            at_vertices = [self.texels.to_vertices(values, reach)[0] for values, reach in zip(small, reached)]
        n = len(texels.index)
        detail, total = np.zeros((n, 3), np.float32), np.full(n, 1e-20, np.float32)
        seen = np.zeros(n, np.float32)

        def smooth(k: int) -> np.ndarray:
            return texels.from_picture(base[k]) if base is not None else texels.matrix @ at_vertices[k]

        for i in range(len(self.lookups)):
            rgb, weight = self._sample(i, texels)
            weight = self._eyes_once(i, texels, weight)
            seen += weight
            sharp = (weight * self.prefer[i]) ** self.options.detail_power
            detail += (rgb - smooth(2 + i)) * sharp[:, None]
            total += sharp
        albedo = np.maximum(smooth(1) + detail / total[:, None], 0)
        soft_seen, soft_known = 1 - smooth(0).T
        seen = np.minimum(1, seen / FULL) * soft_seen
        hole = np.flatnonzero(seen < 1)
        if len(hole):
            rows = texels.matrix[hole]
            part = replace(texels, index=texels.index[hole], triangle=texels.triangle[hole], matrix=rows)
            known, full = self._completed(albedo[hole], seen[hole], *self._mirrored(part))
            known *= soft_known[hole]
            albedo[hole] = known[:, None] * full + (1 - known[:, None]) * (rows @ self.unseen)
        if layout is not None:
            self._plain_elsewhere(layout.model, texels, albedo, there)
        color = albedo * (texels.matrix @ self.light)
        return UvMaps(texels.picture(color), texels.picture(albedo), texels.picture(seen[:, None])[..., 0])

    def _plain_elsewhere(
        self, other: FaceModel, texels: Texels, albedo: np.ndarray, there: np.ndarray
    ) -> None:
        """In place: texels of another layout without a point on this face take their model's albedo."""
        plain = default_albedo(other)[other.triangles.numpy()[texels.triangle[~there]]].mean(1)
        albedo[~there] = plain


def _pairs(
    samples: list[tuple[np.ndarray, np.ndarray]], skin: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Pairs of views, i > j, and log c_j / c_i [n, 3] of the texels at which both see skin, if there are
    enough."""
    good = [usable_colors(rgb, w) & skin for rgb, w in samples]
    for i in range(len(samples)):
        for j in range(i):
            both = good[i] & good[j]
            if both.sum() >= FEWEST:
                yield i, j, np.log(samples[j][0][both] / samples[i][0][both])


def _disagreement(samples: list[tuple[np.ndarray, np.ndarray]], skin: np.ndarray) -> float:
    """How far the colours of two views are apart, log units; 0 without any pair."""
    apart = [np.abs(log).mean() for _, _, log in _pairs(samples, skin)]
    return float(np.mean(apart)) if apart else 0.0


def _view_gains(samples: list[tuple[np.ndarray, np.ndarray]], skin: np.ndarray) -> np.ndarray:
    """Factors [B, 3] that make the views agree where two of them see the same skin; their geometric mean is
    1.

    Solves log g_i - log g_j = median log (c_j / c_i) over all pairs by least squares, weighted by the number
    of texels.
    """
    B = len(samples)
    normal, right = np.eye(B) * 1e-3, np.zeros((B, 3))
    for i, j, log in _pairs(samples, skin):
        ratio, weight = np.median(log, 0), np.sqrt(len(log))
        normal[i, i] += weight
        normal[j, j] += weight
        normal[i, j] -= weight
        normal[j, i] -= weight
        right[i] += weight * ratio
        right[j] -= weight * ratio
    log = np.linalg.solve(normal, right)
    return np.exp((log - log.mean(0)).clip(-1.5, 1.5)).astype(np.float32)


def _robust_mean(low: list[np.ndarray], given: list[np.ndarray], spread: float) -> np.ndarray:
    """Mean [N, 3] of the views' smooth colours [N, 3] under the given weights [N] and those of a Cauchy
    kernel: a highlight or a shadow that one view alone shows counts little."""
    values, trust = np.stack(low), np.stack(given)
    weight = trust
    for _ in range(4):
        mean = (values * weight[..., None]).sum(0) / np.maximum(weight.sum(0), 1e-20)[:, None]
        scale = spread * (mean.mean(-1) + DARK)
        away = np.square((values - mean) / scale[:, None]).mean(-1)
        weight = trust / (1 + away)
    return mean.astype(np.float32)


def low_band(
    texels: Texels, rgb: np.ndarray, valid: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian mean over the valid texels of the layout [N, 3], and their share in it [N]."""
    size = texels.size
    picture = np.zeros((size * size, 4), np.float32)
    picture[texels.index] = np.concatenate([rgb, np.ones_like(rgb[:, :1])], 1) * valid[:, None]
    picture = cv2.GaussianBlur(
        picture.reshape(size, size, 4), (0, 0), max(0.5, sigma), borderType=cv2.BORDER_CONSTANT
    ).reshape(-1, 4)[texels.index]
    return picture[:, :3] / np.maximum(picture[:, 3:], 1e-6), picture[:, 3]


def _hair_or_clothes(model: FaceModel) -> np.ndarray:
    """[V] in [0, 1], how likely photos show these there: on ears and neck, below the chin, and above or
    beside brows and eyes."""
    named = _named(model, BESIDE)
    points = model.landmarks.points(model.mean[None], model.triangles)[0].numpy()
    mean = model.mean.numpy()
    below = (mean[:, 1] < points[CHIN, 1]) & (mean[:, 2] < points[CHIN, 2] - BEHIND_CHIN_MM)
    upper = points[BROWS_AND_EYES][model.landmarks.present[BROWS_AND_EYES].numpy()]
    above = np.zeros(len(mean), np.float32)
    if len(upper):
        near, far = FOREHEAD_MM
        distance, _ = scipy.spatial.cKDTree(upper).query(mean)
        height = (mean[:, 1] - upper[:, 1].min()) / near
        above = ((distance - near) / (far - near)).clip(0, 1) * (1 + height).clip(0, 1)
    return np.maximum((named & ~model.face.numpy()) | below, above).astype(np.float32)


def _named(model: FaceModel, words: tuple[str, ...]) -> np.ndarray:
    """[V] bool: the vertex lies in a part whose name begins with one of the words."""
    return np.array([name.startswith(words) for name in model.region_names])[model.region.numpy()]


def _mirror(model: FaceModel) -> tuple[np.ndarray, np.ndarray]:
    """Per vertex the one on the other half of the mean face, [V] int64, and whether there is one within 4 mm,
    [V] float32."""
    mean = model.mean.numpy()
    distance, partner = scipy.spatial.cKDTree(mean).query(mean * np.array([-1, 1, 1], np.float32))
    return partner, (distance < 4.0).astype(np.float32)


@lru_cache(maxsize=1)
def srgb_table() -> np.ndarray:
    """8-bit sRGB codes of 4096 equal steps of linear light, rounded."""
    return np.round(srgb_from_linear(torch.linspace(0, 1, 4096)).numpy() * 255)
