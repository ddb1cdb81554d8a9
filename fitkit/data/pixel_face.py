"""Pixel-Face: three simultaneous photos and a mesh for each expression of 855 people."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, file_of, folders_in, images_in
from fitkit.errors import InputError
from fitkit.io.images import read_image
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, subject_from_images

ANCHORS = (2215, 5828, 10455, 14065, 8192, 5522, 10795)  # vertices of the release's mesh: the 7 points of NoW
VIEWS = ("left", "front", "right")  # camera folders 0, 1, 2
PIXEL_FACE = DataSet(
    "Pixel-Face",
    "https://arxiv.org/abs/2008.12444",
    "given by its authors on request for research",
    "SPLIT/SUBJECT/EXPRESSION/Images/0|1|2/t.jpg and one mesh (.obj or .ply) in Images/fusion/",
)


def pixel_face_samples(
    folder: str | os.PathLike, split: str = "val", unit_mm: float = 1.0, upright: bool = False
) -> list[EvaluationSample]:
    """One sample of three photos for each person and expression, id 'SUBJECT/EXPRESSION', group = expression.

    Assumed: the mesh in Images/fusion/ has the topology whose vertices ANCHORS are; unit_mm: millimetres of
    its unit. The raw photos lie on their side: they are turned 90 degrees clockwise and mirrored, unless
    `upright`.

    Raises:
        InputError: not this layout.
    """
    root = PIXEL_FACE.root(folder)
    samples = []
    for person in folders_in(root / split):
        for expression in folders_in(person):
            if images_in(expression / "Images" / "1"):
                samples.append(
                    EvaluationSample(
                        f"{person.name}/{expression.name}",
                        partial(_photos, expression / "Images", upright),
                        partial(_truth, expression / "Images", unit_mm),
                        expression.name,
                    )
                )
    if not samples:
        raise PIXEL_FACE.missing(root, f"no {split}/SUBJECT/EXPRESSION/Images/1/t.jpg")
    return samples


def _photos(folder: Path, upright: bool) -> Subject:
    images, names = [], []
    for number, name in enumerate(VIEWS):
        path = next(iter(images_in(folder / str(number))), None)
        if path is not None:
            image = read_image(path)[0]
            images.append(image if upright else np.ascontiguousarray(np.rot90(image, -1)[:, ::-1]))
            names.append(name)
    return subject_from_images(images, names=names, name=folder.parent.name)


def _truth(folder: Path, unit_mm: float) -> ScanTruth:
    path = file_of(folder / "fusion", "*.obj", "*.ply")
    if path is None:
        raise PIXEL_FACE.missing(folder, "no mesh in fusion/")
    vertices, triangles = read_mesh(path)
    if len(vertices) <= max(ANCHORS):
        raise InputError(
            f"{path}: expected the topology of the release, at least {max(ANCHORS) + 1} vertices, got "
            f"{len(vertices)}"
        )
    return ScanTruth(unit_mm * vertices, triangles, unit_mm * vertices[list(ANCHORS)])
