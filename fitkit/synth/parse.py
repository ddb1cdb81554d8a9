"""Which part of the face each sample of a rendered head shows: in the ten classes of DF-MVR's parser, and in
those of `face_parts.PARTS`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from fitkit.models.face_model import FaceModel
from fitkit.observe.face_parts import PARSE, PARTS
from fitkit.synth.paint import (
    MAP_SIZE,
    PIXEL_MM,
    HairLook,
    HeadMap,
    SkinLook,
    brow_outlines,
    head_map,
    look_up,
    map_place,
)
from fitkit.synth.random_faces import scalp_cover

FINER = 4  # the classes' map has this many times the rows of the paint's
BACKGROUND, SKIN, LEFT_BROW, RIGHT_BROW, LEFT_EYE, RIGHT_EYE, NOSE, MOUTH, UPPER_LIP, LOWER_LIP = range(
    len(PARSE)
)
HAIR, BEARD, GLASSES, OCCLUDER, NECK, EARS, CLOTHES = range(len(PARSE), len(PARTS))
HIDDEN_SCALP = 0.5  # skin below this cover of hair is skin
GROWN = 0.35  # cover of beard from which skin is beard


@dataclass(frozen=True, eq=False)
class ParsePlan:
    """What is the same for all people of one model.

    classes: [H, W] uint8 of the finer map without brows; inner: [F] class of triangles that are no skin (0:
    look in the map); lower: [V] 1 where the jaw carries the skin, 0 where it does not, or None; ears: [F]
    bool; chin: mm, height of the mean chin."""

    classes: np.ndarray
    inner: np.ndarray
    lower: np.ndarray | None
    ears: np.ndarray
    chin: float


@functools.lru_cache(maxsize=4)
def parse_plan(model: FaceModel) -> ParsePlan:
    """The static part of the classes for this model."""
    head = head_map(model)
    classes = np.zeros((MAP_SIZE[0] * FINER, MAP_SIZE[1] * FINER), np.uint8)
    for name, outline in parse_outlines(head).items():
        _fill(classes, outline, PARSE.index(name))
    inner = np.zeros(len(head.kind), np.uint8)
    side = np.where(model.mean[model.triangles].mean(1)[:, 0].numpy() > 0, LEFT_EYE, RIGHT_EYE)
    inner[head.kind == 1] = side[head.kind == 1]
    names = np.array(model.region_names)[model.region[model.triangles[:, 0]].numpy()]
    socket = np.char.startswith(names.astype(str), "eye_socket")
    inner[head.kind == 2] = np.where(socket, side, MOUTH)[head.kind == 2]
    inner[np.char.startswith(names.astype(str), "nostril")] = NOSE
    lower = None
    if "jawOpen" in model.expression_names:
        carried = model.expression_basis[model.expression_names.index("jawOpen")].norm(dim=-1)
        at_marks = model.landmarks.points(carried[None, :, None].expand(1, -1, 3), model.triangles)[0, :, 0]
        up, down = float(at_marks[62]), float(at_marks[66])
        if down > up + 1:
            lower = ((carried - up) / (down - up)).numpy().astype(np.float32)
    middle = model.mean[model.triangles].mean(1).numpy()
    marks = model.landmarks.points(model.mean[None], model.triangles)[0].numpy()
    if "ears" in model.region_names:
        ears = names == "ears"
    else:  # what stands off the sides of the head between brows and mouth
        aside = np.abs(middle[:, 0]) > abs(float(marks[0, 0])) - 1
        tall = (middle[:, 1] > marks[48, 1]) & (middle[:, 1] < marks[19, 1])
        ears = aside & tall & (np.abs(middle[:, 2] - marks[0, 2] + 30) < 30)
    return ParsePlan(classes, inner, lower, ears, float(marks[8, 1]))


def parse_outlines(head: HeadMap) -> dict[str, np.ndarray]:
    """Outlines [N, 2] px of the paint's map of the classes that are drawn there, later ones over earlier
    ones."""
    p, mm = head.landmarks.astype(np.float64), 1 / PIXEL_MM
    skin = np.concatenate([p[:17], [[p[16, 0], -5.0], [p[0, 0], -5.0]]])
    wing = 5 * mm
    nose = np.array(
        [
            p[27] + [-6 * mm, -2 * mm],
            p[28] + [-6.5 * mm, 0],
            p[29] + [-8 * mm, 0],
            [p[31, 0] - wing, p[30, 1]],
            [p[31, 0] - wing - 0.5 * mm, p[31, 1] - 2 * mm],
            p[31] + [-1.5 * mm, 1.5 * mm],
            p[33] + [0, 2 * mm],
            p[35] + [1.5 * mm, 1.5 * mm],
            [p[35, 0] + wing + 0.5 * mm, p[35, 1] - 2 * mm],
            [p[35, 0] + wing, p[30, 1]],
            p[29] + [8 * mm, 0],
            p[28] + [6.5 * mm, 0],
            p[27] + [6 * mm, -2 * mm],
        ]
    )
    middle = [(p[a] + p[b]) / 2 for a, b in ((63, 65), (62, 66), (61, 67))]
    upper = np.concatenate([p[48:55], [p[64]], middle, [p[60]]])
    lower = np.concatenate([p[54:60], [p[48], p[60]], middle[::-1], [p[64]]])
    return {"skin": skin, "nose": nose, "upper_lip": upper, "lower_lip": lower}


def _fill(classes: np.ndarray, outline: np.ndarray, value: int) -> None:
    points = (outline + 0.5) * FINER - 0.5
    cv2.fillPoly(classes, [np.round(points * 16).astype(np.int32)], value, cv2.LINE_8, 4)


def person_classes(plan: ParsePlan, head: HeadMap, person: SkinLook) -> np.ndarray:
    """The map of the classes with this person's brows."""
    classes = plan.classes.copy()
    right, left = brow_outlines(head, person)
    _fill(classes, right, RIGHT_BROW)
    _fill(classes, left, LEFT_BROW)
    return classes


def parse_samples(
    plan: ParsePlan,
    classes: np.ndarray,
    hair: HairLook,
    rest: np.ndarray,
    triangle: np.ndarray,
    lower: np.ndarray | None,
) -> np.ndarray:
    """Classes [N] uint8 of samples of the bare head.

    Args:
        classes: from `person_classes`; rest: [N, 3] mm, places on the mean head; triangle: [N];
        lower: [N] `plan.lower` at the samples, or None.
    """
    place = (map_place(rest) + 0.5) * FINER - 0.5
    column, row = (np.round(place[:, k]).astype(np.int64) for k in (0, 1))
    inside = (column >= 0) & (column < classes.shape[1]) & (row >= 0) & (row < classes.shape[0])
    out = np.where(
        inside, classes[row.clip(0, classes.shape[0] - 1), column.clip(0, classes.shape[1] - 1)], BACKGROUND
    ).astype(np.uint8)
    if lower is not None:
        # The lips touch in the map; which of them a sample belongs to, the jaw knows.
        lips = (out == UPPER_LIP) | (out == LOWER_LIP)
        out[lips] = np.where(lower[lips] > 0.5, LOWER_LIP, UPPER_LIP)
    if not hair.bald:
        out[scalp_cover(rest, hair) > HIDDEN_SCALP] = BACKGROUND
    inner = plan.inner[triangle]
    return np.where(inner > 0, inner, out)


def beard_cover(head: HeadMap, person: SkinLook) -> np.ndarray:
    """How far grown hair hides the skin, [H, W] of the paint's map: `paint_skin` without strands."""
    cover = np.zeros(MAP_SIZE, np.float32)
    if person.beard > 0:
        for name in dict.fromkeys((person.beard_area, "moustache")):
            grown = head.masks[name] * np.clip(person.beard * 1.6 - 0.3, 0, 1) * 1.25
            cover = np.maximum(cover, grown)
    return cover


def part_samples(
    plan: ParsePlan,
    classes: np.ndarray,
    beard: np.ndarray,
    hair: HairLook,
    rest: np.ndarray,
    triangle: np.ndarray,
) -> np.ndarray:
    """Parts [N] uint8 of samples of the bare head, see `face_parts.PARTS`.

    Args:
        classes: [N] from `parse_samples`; beard: from `beard_cover`; rest: [N, 3] mm, places on the mean
            head; triangle: [N].
    """
    out = classes.copy()
    ears, rows = plan.ears[triangle], classes == BACKGROUND
    below = rest[:, 1] < plan.chin + 0.35 * (100.0 - rest[:, 2])  # the line of the jaw falls to the front
    out[rows] = np.where(below[rows], NECK, SKIN)
    out[ears] = EARS
    grown = look_up(beard[..., None], map_place(rest))[:, 0] > GROWN
    out[grown & np.isin(out, (SKIN, NECK))] = BEARD
    if not hair.bald:
        out[(scalp_cover(rest, hair) > HIDDEN_SCALP) & ~ears & (plan.inner[triangle] == 0)] = HAIR
    return out
