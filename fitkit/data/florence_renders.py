"""Renders of the Florence scans in 20 poses each (the VRN / PRNet protocol)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from fitkit.data.samples import (
    DataSet,
    EvaluationSample,
    ScanTruth,
    file_of,
    folders_in,
    images_in,
    read_points,
)
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, subject_from_images

# (yaw, pitch) in degrees of render 00 to 19; our fixed choice where the papers give ranges: pitch -15, 20,
# 25, yaw within 80.
POSES = tuple((round(-80 + 160 * i / 19, 1), (-15, 20, 25)[i % 3]) for i in range(20))
RENDERS = DataSet(
    "renders of MICC Florence scans",
    "https://www.micc.unifi.it/resources/datasets/florence-3d-faces/",
    "a signed licence form",
    "SUBJECT/scan.obj, scan_points.txt (7 lines 'x y z': the points of NoW) and renders/00.png to 19.png",
)


def florence_render_samples(folder: str | os.PathLike) -> list[EvaluationSample]:
    """One sample for each render, id 'SUBJECT/NN', group = its yaw; the poses are POSES.

    The papers did not publish their renders: these are made from the licensed scans by the user. Scans in
    millimetres.

    Raises:
        InputError: not this layout.
    """
    root, samples = RENDERS.root(folder), []
    for person in folders_in(root):
        for image in images_in(person / "renders"):
            if image.stem.isdecimal() and int(image.stem) < len(POSES):
                yaw = abs(POSES[int(image.stem)][0])
                group = "yaw 0-30" if yaw <= 30 else "yaw 30-60" if yaw <= 60 else "yaw 60-90"
                samples.append(
                    EvaluationSample(
                        f"{person.name}/{image.stem}", partial(_photo, image), partial(_truth, person), group
                    )
                )
    if not samples:
        raise RENDERS.missing(root, "no SUBJECT/renders/00.png")
    return samples


def _photo(path: Path) -> Subject:
    return subject_from_images([path], name=f"{path.parent.parent.name}_{path.stem}")


def _truth(person: Path) -> ScanTruth:
    mesh, picks = (
        file_of(person, "scan.obj", "scan.ply"),
        file_of(person, "scan_points.txt", "scan_points.npy"),
    )
    if mesh is None or picks is None:
        raise RENDERS.missing(person, f"no {'scan.obj' if mesh is None else 'scan_points.txt'}")
    return ScanTruth(*read_mesh(mesh), read_points(picks, 7))
