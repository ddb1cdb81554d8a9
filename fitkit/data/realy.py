"""REALY: photos whose predicted meshes its own evaluator scores."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from fitkit.data.samples import DataSet, EvaluationSample, images_in, no_truth
from fitkit.io.subject import Subject, subject_from_images

REALY = DataSet(
    "the REALY benchmark",
    "https://realy3dface.com",
    "a signed licence form (its scans come from LYHM, Headspace)",
    "a folder of its pictures (.jpg or .png)",
)


def realy_samples(folder: str | os.PathLike) -> list[EvaluationSample]:
    """One sample for each picture, id = its name without suffix; the truth stays with REALY's evaluator:
    None.

    Raises:
        InputError: no picture in the folder.
    """
    root = REALY.root(folder)
    samples = [EvaluationSample(p.stem, partial(_photo, p), no_truth) for p in images_in(root)]
    if not samples:
        raise REALY.missing(root, "no pictures")
    return samples


def _photo(path: Path) -> Subject:
    return subject_from_images([path], name=path.stem)
