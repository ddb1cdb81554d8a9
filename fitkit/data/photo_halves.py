"""The photos of each person in two disjoint halves, from any folder of subject folders."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from fitkit.data.samples import EvaluationSample, images_in, no_truth, people_in
from fitkit.errors import InputError
from fitkit.io.options import Natural, NonNegative, Range, Seed, check_options
from fitkit.io.subject import Subject, load_subject
from fitkit.observe.landmarks.detectors import detect_landmarks
from fitkit.observe.landmarks.types import larger_side


@dataclass(frozen=True)
class PhotoHalves:
    """photos: in each half; people: the first so many by name of those with enough photos, 0 = all; skip: so
    many of them are passed over first, so that people for tuning (people=24) and for reporting (skip=24) are
    disjoint; draw: of 2 * photos pictures spread evenly over the name order, 'alternate' deals them out in
    turn, 'blocks' gives the earlier ones to one half and the later ones to the other (frames of one video,
    which are alike, stay together); 'random': any photos, by `seed` and the person's name;
    min_face_px, max_face_px: photos with a smaller or larger face are passed over (larger side of the box
    around the 68 points), 0 = no bound; landmarks: source of the points that tell the size, as in a fit
    recipe."""

    photos: Annotated[int, Range(1, 10**6)] = 4
    people: Natural = 0
    skip: Natural = 0
    draw: Literal["alternate", "blocks", "random"] = "alternate"
    seed: Seed = 0
    min_face_px: NonNegative = 0.0
    max_face_px: NonNegative = 0.0
    landmarks: str = "auto"


def half_samples(folder: str | os.PathLike, options: PhotoHalves) -> list[EvaluationSample]:
    """Two samples for each person, ids 'PERSON/half0' and 'PERSON/half1'; their truth is None.

    Raises:
        InputError: options that cannot be used, or nobody with enough photos.
    """
    check_options(options, "options", ".")
    low, high = options.min_face_px, options.max_face_px
    if high and high < low:
        raise InputError(
            f"min_face_px, max_face_px: expected min <= max (max 0: no bound), got {low:g} and {high:g}"
        )
    samples, enough = [], 0
    for person in people_in(folder, 2 * options.photos):
        if options.people and enough == options.skip + options.people:
            break
        names = _names(person, low, high, options.landmarks)
        if len(names) < 2 * options.photos:
            continue
        enough += 1
        if enough > options.skip:
            halves = draw_halves(names, options.photos, options.draw, options.seed, person.name)
            samples += [
                EvaluationSample(f"{person.name}/half{k}", partial(_photos, person, half), no_truth)
                for k, half in enumerate(halves)
            ]
    if not samples:
        bounds = (
            f" whose face is at least {low:g}" + (f" and at most {high:g} px" if high else " px")
            if low or high
            else ""
        )
        raise InputError(
            f"{folder}: {enough} people have at least {2 * options.photos} photos{bounds}, {options.skip} "
            "of them are skipped; expected a folder of subject folders with more, or a lower "
            "options.photos or options.skip"
        )
    return samples


def draw_halves(
    names: Sequence[str], photos: int, draw: str = "alternate", seed: int = 0, person: str = ""
) -> tuple[list[str], list[str]]:
    """Two disjoint lists of `photos` names each, in the order of `names`; see PhotoHalves for `draw`."""
    count = 2 * photos
    if len(names) < count:
        raise InputError(f"{person or 'halves'}: expected at least {count} photos, got {len(names)}")
    if draw == "random":
        chosen = np.random.default_rng([seed, zlib.crc32(person.encode())]).permutation(len(names))[:count]
        parts = np.sort(chosen[:photos]), np.sort(chosen[photos:])
    else:
        chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
        parts = (chosen[::2], chosen[1::2]) if draw == "alternate" else (chosen[:photos], chosen[photos:])
    return tuple([names[i] for i in part] for part in parts)


def _names(folder: Path, low: float, high: float, landmarks: str) -> list[str]:
    """Photos of a person with a face of the right size, in natural order."""
    if not low and not high:
        return [p.stem for p in images_in(folder)]
    out = []
    for view in load_subject(folder).views:
        found, _ = detect_landmarks(Subject(folder.name, (view,)), landmarks)
        if max(low, 1e-6) <= larger_side(found) <= (high or np.inf):
            out.append(view.name)
    return out


def _photos(folder: Path, names: Sequence[str]) -> Subject:
    subject = load_subject(folder)
    views = tuple(v for v in subject.views if v.name in names)
    if len(views) < len(names):
        lost = next(n for n in names if n not in {v.name for v in views})
        raise InputError(f"{folder}: the photo '{lost}' cannot be read; take it out of the folder")
    return replace(subject, views=views)
