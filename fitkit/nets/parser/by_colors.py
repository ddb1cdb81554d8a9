"""Parts of a head by its 68 landmarks and its colours, without a trained network: what is sure is told, the
rest is left open.

Brows, eyes, nose, lips and mouth follow the landmarks. The mean head, laid onto them, says where skin, scalp,
ears and neck are to be expected. Which of these pixels are skin, and which are hair, colours decide: two cuts
(Rother et al., "GrabCut", SIGGRAPH 2004), the first seeded with cheeks and nose, the second with the scalp
that is no skin. Beards, glasses and hands look like neither and are left open, as are the borders.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch

from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.crop import CropOptions
from fitkit.observe.face_parts import HEAD, PARTS, UNKNOWN, numbers
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera

ROOM = CropOptions(margin=3.2, up=0.15, max_size=224, min_size=224)  # how heads are cut out for it
SKIN, NOSE, HAIR, NECK, EARS, CLOTHES = numbers(("skin", "nose", "hair", "neck", "ears", "clothes"))
FACE, SCALP, EAR, THROAT = 1, 2, 3, 4  # what the mean head says
# Height over depth in mm of the line on the mean head from nape to forehead above which hair is expected.
EXPECTED = np.array([[-80, -40], [-30, -30], [0, 5], [25, 40], [45, 55], [70, 84], [100, 98]], float)
POLYGONS = {  # of the 68
    "right_brow": (17, 18, 19, 20, 21),
    "left_brow": (22, 23, 24, 25, 26),
    "right_eye": (36, 37, 38, 39, 40, 41),
    "left_eye": (42, 43, 44, 45, 46, 47),
    "upper_lip": (48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60),
    "lower_lip": (54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64),
    "mouth": (60, 61, 62, 63, 64, 65, 66, 67),
}
ROUNDS = 2  # of each cut
BORDER_MM = 2.0  # what lies so near to another part is not sure
HOLE_MM = 10.0  # side of an opening in the head up to which it is closed, whatever its colour
FOREIGN = 6.0  # standard deviations from skin beyond which nothing at the eyes is taken for it
LEAST_SKIN = 0.3  # share of the inner face, eyes and lips included, that has to look like skin
BELOW_NOSE, AT_EYES = [*range(2, 15), 31, 35], [*range(17, 28), *range(36, 48)]  # of the 68
# Standard deviations up to which a colour is surely skin, and beyond which it is not.
ALIKE, UNLIKE = 2.5, 3.5
LEAST_SPREAD = np.array([14.0, 4.0, 4.0], np.float32)  # of skin in one picture, in L, a, b of OpenCV


@lru_cache(maxsize=1)
def _head() -> tuple[FaceModel, np.ndarray]:
    """The embedded model and what each of its triangles is: FACE, SCALP, EAR, THROAT."""
    model = load_model("generic")
    names = np.array(model.region_names)[model.region[model.triangles[:, 0]].numpy()]
    middle = model.mean[model.triangles].mean(1).numpy()
    kind = np.full(len(names), FACE)
    kind[middle[:, 1] > np.interp(middle[:, 2], EXPECTED[:, 0], EXPECTED[:, 1])] = SCALP
    kind[names == "ears"] = EAR
    kind[names == "neck"] = THROAT
    return model, kind


def expected_parts(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """What the mean head in the pose of the landmarks shows at each pixel, [size, size] uint8, 0 = nothing;
    unit vector [2] up the head in the picture; px per mm."""
    model, kind = _head()
    valid = np.isfinite(points).all(1)
    scale, rotation, shift = weak_perspective_pose(
        model.landmark_basis.mean[None].double(),
        torch.from_numpy(np.nan_to_num(points))[None],
        torch.from_numpy(valid)[None].double(),
    )
    posed = (model.mean.double() @ rotation[0].T) * scale[0]
    w = torch.full_like(posed[:, 0], Camera.REFERENCE_DEPTH)
    clip = torch.stack([*((posed[:, :2] + shift[0]) * w[:, None]).T, posed[:, 2] + w, w], -1)
    seen = rasterize(clip[None].float(), model.triangles, (size, size)).triangle[0].numpy()
    out = np.where(seen >= 0, kind[seen.clip(0)], 0).astype(np.uint8)
    up = rotation[0, :2, 1].numpy()
    return out, up / max(float(np.linalg.norm(up)), 1e-6), float(scale[0])


def guess_parts(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Numbers of `face_parts.PARTS` [S, S] uint8 of a square picture [S, S, 3] uint8, UNKNOWN where nothing
    is sure; points: [68, 2] px, outline of the jaw, NaN = not known."""
    return _guess(image, points)[0]


def _guess(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """`guess_parts`; how far each colour is from skin, [S, S] standard deviations; px per mm."""
    size = len(image)
    expected, up, mm = expected_parts(points, size)
    y, x = np.mgrid[:size, :size]
    nose = points[[27, 30, 33]]
    center = np.nanmean(nose, 0)
    height = ((x - center[0]) * up[0] + (y - center[1]) * up[1]) / mm  # mm above the nose
    chin = ((points[8] - center) @ up) / mm if np.isfinite(points[8]).all() else -80.0
    head = cv2.distanceTransform((expected == 0).astype(np.uint8), cv2.DIST_L2, 5) / mm  # mm beside it
    far = color_distance(image, cheeks(points, expected))
    skin = _skin(image, points, expected, head, far)
    hair = _hair(image, expected, head, height, chin, skin, far)
    out = np.full((size, size), UNKNOWN, np.uint8)
    inside = expected > 0
    out[(skin > 0) & (expected == FACE) & (far < UNLIKE)] = SKIN
    out[(skin > 0) & (expected == SCALP) & (far < ALIKE)] = SKIN
    out[(skin > 0) & (expected == EAR) & (far < UNLIKE)] = EARS
    out[(skin > 0) & (expected == THROAT) & (height < chin) & (far < UNLIKE)] = NECK
    # Over the face hair falls only where there is surely no skin.
    falls = (expected != FACE) | ((height > 45) & (far > UNLIKE))
    out[(hair > 0) & (skin == 0) & (far > ALIKE) & falls] = HAIR
    apart = (hair == 0) & (skin == 0) & ~inside
    out[apart & (head > 40) & (height > chin)] = 0
    out[apart & (head > 70) & (height > chin - 60)] = 0
    torso = (hair == 0) & (skin == 0) & (height < chin - 45) & ~inside & (head < 70)
    out[torso] = CLOTHES
    out = _without_borders(out, max(1, round(BORDER_MM * mm)))
    return _with_features(out, points, mm), far, mm


def cheeks(points: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where cheeks and nose are that the mean head shows, [S, S] bool."""
    sure = np.zeros_like(expected)
    for cheek in ((1, 2, 3, 48, 31, 39, 40, 41, 36), (15, 14, 13, 54, 35, 42, 47, 46, 45), (27, 31, 33, 35)):
        outline = points[list(cheek)]
        if np.isfinite(outline).all():
            middle = outline.mean(0)
            _fill(sure, middle + 0.75 * (outline - middle), 1)
    return (sure > 0) & (expected == FACE)


def color_distance(image: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """How many standard deviations the colour of each pixel [S, S] lies from those where `sample` is True,
    infinite where that is hardly anywhere. Dark and bright are more alike than colours are: faces are
    shaded."""
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), 1.0), cv2.COLOR_RGB2LAB).astype(np.float32)
    if sample.sum() < 20:
        return np.full(sample.shape, np.inf, np.float32)
    seen = lab[sample]
    middle = np.median(seen, 0)
    spread = np.maximum(1.4826 * np.median(np.abs(seen - middle), 0), LEAST_SPREAD)
    return np.sqrt((((lab - middle) / spread) ** 2).sum(-1))


def _skin(
    image: np.ndarray, points: np.ndarray, expected: np.ndarray, head: np.ndarray, far: np.ndarray
) -> np.ndarray:
    """1 where the colours are those of cheeks and nose, [S, S] uint8."""
    state = np.full(expected.shape, cv2.GC_BGD, np.uint8)
    state[head < 12] = cv2.GC_PR_BGD
    state[(expected == FACE) | (expected == EAR) | (expected == THROAT)] = cv2.GC_PR_FGD
    state[(expected == SCALP) & (far > UNLIKE)] = cv2.GC_BGD
    state[cheeks(points, expected) & (far < UNLIKE)] = cv2.GC_FGD
    return _cut(image, state)


def _hair(
    image: np.ndarray,
    expected: np.ndarray,
    head: np.ndarray,
    height: np.ndarray,
    chin: float,
    skin: np.ndarray,
    far: np.ndarray,
) -> np.ndarray:
    """1 where the colours are those of the scalp that is no skin, [S, S] uint8."""
    state = np.full(expected.shape, cv2.GC_BGD, np.uint8)
    state[(head < 45) & (height > chin - 90)] = cv2.GC_PR_BGD
    state[(head < 10) & (height > 20)] = cv2.GC_PR_FGD
    seeds = (expected == SCALP) & (skin == 0) & (far > UNLIKE)
    seeds = cv2.erode(seeds.astype(np.uint8), np.ones((3, 3), np.uint8))
    state[seeds > 0] = cv2.GC_FGD
    state[skin > 0] = cv2.GC_BGD
    cut = _cut(image, state)
    # Hair hangs together with the scalp.
    number, label = cv2.connectedComponents(cut)
    kept = np.isin(np.arange(number), np.unique(label[seeds > 0]))
    kept[0] = False
    return kept[label].astype(np.uint8)


def _cut(image: np.ndarray, state: np.ndarray) -> np.ndarray:
    """1 in the foreground, [S, S] uint8."""
    if not (state == cv2.GC_FGD).any() or not np.isin(state, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        return np.zeros_like(state)
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    state = state.copy()
    cv2.grabCut(image, state, None, background, foreground, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = ((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)).astype(np.uint8)
    return cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def _without_borders(parts: np.ndarray, width: int) -> np.ndarray:
    """Parts with what lies within `width` px of another part left open."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    low, high = cv2.erode(parts, square), cv2.dilate(parts, square)
    known = parts != UNKNOWN
    high = cv2.dilate(np.where(known, parts, 0), square)
    low = cv2.erode(parts, square)  # UNKNOWN is the largest number
    return np.where(known & (low == parts) & (high == parts), parts, UNKNOWN).astype(np.uint8)


def _with_features(parts: np.ndarray, points: np.ndarray, mm: float) -> np.ndarray:
    """Brows, eyes, nose, lips and mouth drawn by the landmarks; around the eyes only what is sure."""
    out = parts.copy()
    nose = points[[27, 31, 32, 33, 34, 35]].copy()
    if np.isfinite(nose).all():
        side = (nose[5] - nose[1]) * 0.25
        nose[1], nose[5] = nose[1] - side, nose[5] + side
        drawn = np.zeros_like(out)
        _fill(drawn, np.concatenate([nose, [points[27]]]), 1)
        out[(drawn > 0) & (out == SKIN)] = NOSE
    for name, indices in POLYGONS.items():
        outline = points[list(indices)]
        if not np.isfinite(outline).all():
            continue
        drawn, rim = np.zeros_like(out), np.zeros_like(out)
        if "brow" in name:
            line = np.round(outline * 16).astype(np.int32)
            cv2.polylines(drawn, [line], False, 1, max(1, round(4.5 * mm)), cv2.LINE_8, 4)
        else:
            _fill(drawn, outline, 1)
        wide = max(1, round(1.5 * mm))
        rim = cv2.dilate(drawn, np.ones((2 * wide + 1, 2 * wide + 1), np.uint8))
        out[rim > 0] = UNKNOWN
        out[drawn > 0] = PARTS.index(name)
    return out


def _fill(picture: np.ndarray, outline: np.ndarray, value: int) -> None:
    cv2.fillPoly(picture, [np.round(outline * 16).astype(np.int32)], value, cv2.LINE_8, 4)


class ByColors:
    """A face parser for `parse_photo`. Of what `guess_parts` leaves open, skin is what lies between parts of
    the head, what is below the nose (beards, shadows), and what is not too unlike skin at eyes and brows."""

    crops: tuple[CropOptions, ...] = (ROOM,)

    def scores(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        """See PhotoParser; 1 at the part of `face_parts.PARTS` that is seen, or at the last one, not known.
        Nothing is known of a face whose cheeks do not look like the rest of it."""
        return np.stack([self._scores(image, own) for image, own in zip(images, points)])

    def _scores(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        parts, far, mm = _guess(image, points)
        unknown, head = parts == UNKNOWN, np.isin(parts, numbers(HEAD)).astype(np.uint8)
        wide = 2 * max(1, round(BORDER_MM * mm)) + 3
        gaps = cv2.morphologyEx(head, cv2.MORPH_CLOSE, np.ones((wide, wide), np.uint8)) > 0
        low, high = (_within(points[rows], len(image)) for rows in (BELOW_NOSE, AT_EYES))
        if np.isin(parts[low | high], (SKIN, NOSE)).sum() < LEAST_SKIN * (low | high).sum():
            parts = np.full_like(parts, UNKNOWN)
        else:
            parts[unknown & (gaps | low | (high & (far < FOREIGN)))] = SKIN
            parts = _without_holes(parts, HOLE_MM * mm)
        numbered = np.where(parts == UNKNOWN, len(PARTS), parts)
        return (numbered == np.arange(len(PARTS) + 1)[:, None, None]).astype(np.float32)


def _within(points: np.ndarray, size: int) -> np.ndarray:
    """The hull of points [N, 2] px, NaN = not known, without its rim; [size, size] bool."""
    out, known = np.zeros((size, size), np.uint8), points[np.isfinite(points).all(1)]
    if len(known) >= 3:
        cv2.fillConvexPoly(out, cv2.convexHull(np.round(known).astype(np.int32)), 1)
    return cv2.erode(out, np.ones((3, 3), np.uint8)) > 0


def _without_holes(parts: np.ndarray, side: float) -> np.ndarray:
    """Parts with openings in the head of up to side x side px taken for skin."""
    number, label, about, _ = cv2.connectedComponentsWithStats(
        (~np.isin(parts, numbers(HEAD))).astype(np.uint8), connectivity=4
    )
    small = about[:, cv2.CC_STAT_AREA] <= side**2
    small[0] = False  # the head itself
    return np.where(small[label], SKIN, parts).astype(np.uint8)
