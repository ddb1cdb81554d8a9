"""The photos of a benchmark: which of them are used, and people that are rendered for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fitkit.data.samples import EvaluationSample, no_truth
from fitkit.errors import InputError
from fitkit.evaluate.methods import decoded, load_photos
from fitkit.io.subject import Subject, load_subject
from fitkit.observe.landmarks.types import Landmarks
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

Tell = Callable[[str], None]


def rendered_people(
    folder: str | os.PathLike,
    count: int = 8,
    seed: int = 0,
    model: str = "generic",
    tell: Tell = lambda line: None,
) -> Path:
    """A benchmark of people of a face model, rendered into `folder`: five 512 px photos each, yaw -55 to 55
    degrees, one light and one expression, landmarks with 1.2 px noise.

    Raises:
        InputError: count below 1, or the folder cannot be written.
    """
    tell(f"rendering {count} people of {model}")
    changes = {
        "model": model,
        "views": 5,
        "size": 512,
        "seed": seed,
        "landmark_noise": 1.2,
        "variation": {"yaw": 55},
    }
    write_subjects(load_synth_recipe("clean", (), changes), count, folder)
    return Path(folder)


def spread_positions(count: int, number: int) -> list[int]:
    """Positions of `number` of `count` photos, spread evenly: the photos in order are cut into `number` equal
    parts, and the middle one of each is taken. Of 5: 1 -> 2; 2 -> 1, 3; 3 -> 0, 2, 4; 5 -> all."""
    return [(2 * i + 1) * count // (2 * number) for i in range(number)]


def photos_at(folder: Path, positions: Sequence[int] | None = None) -> Subject:
    """The photos of a subject folder at these positions, from 0, in the order of their names; None: all.

    Raises:
        InputError: unusable subject, or no such photo.
    """
    subject = load_subject(folder)
    if positions is None:
        return subject
    if not positions or not all(0 <= p < len(subject.views) for p in positions):
        raise InputError(
            f"{folder}: views: expected numbers from 0 to {len(subject.views) - 1}, got {list(positions)}"
        )
    return replace(subject, views=tuple(subject.views[p] for p in positions))


def some_photos(folder: Path, count: int) -> Subject:
    """So many photos of a subject folder, chosen by `spread_positions`.

    Raises:
        InputError: unusable subject, or not so many photos.
    """
    there = len(load_subject(folder).views)
    if not 1 <= count <= there:
        raise InputError(f"{folder}: photos: expected a number from 1 to {there}, got {count}")
    return photos_at(folder, spread_positions(there, count))


def load_views(
    folder: str | os.PathLike,
    views: Sequence[int] | None = None,
    source: str = "auto",
    photos: int | None = None,
) -> tuple[Subject, Landmarks]:
    """A subject with decoded images, since reading files is no part of what is timed, and its landmarks.

    Args:
        views: keep those by position, from 0, in the order of their names; photos: keep so many, chosen by
            `spread_positions`.
        source: as in a recipe.
    Raises:
        InputError: unusable subject, no such view, or not so many photos.
    """
    folder = Path(folder)
    read = partial(photos_at, folder, views) if photos is None else partial(some_photos, folder, photos)
    return decoded(load_photos(EvaluationSample(folder.name, read, no_truth), source))
