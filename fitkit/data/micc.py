"""MICC Florence 3D faces: scans and videos of 53 people."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from fitkit.data.samples import (
    DataSet,
    EvaluationSample,
    ScanTruth,
    file_of,
    folders_in,
    images_in,
    read_points,
)
from fitkit.io.foreign import foreign_file, shown
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, subject_from_images

SEQUENCES = ("indoor-cooperative", "PTZ-indoor")
FLAWED = ("02", "27")  # scans that the papers leave out
MICC = DataSet(
    "MICC Florence 2D/3D faces",
    "https://www.micc.unifi.it/resources/datasets/florence-3d-faces/",
    "a signed licence form",
    "SUBJECT/frontal1.obj with frontal1_points.txt (8 lines 'x y z': the 7 points of NoW, then the nose "
    "tip) and SUBJECT/SEQUENCE/ frames",
)


def micc_samples(
    folder: str | os.PathLike, sequences: tuple[str, ...] = SEQUENCES, frames: int = 3
) -> list[EvaluationSample]:
    """One sample for each person and sequence, id 'SUBJECT/SEQUENCE', group = sequence; people 02 and 27 are
    left out.

    Assumed, as the release is not described further: SUBJECT is a folder whose name ends in the person's
    number; frontal1.obj or .ply (else frontal2) lies in it, with our picks beside it; a sequence is a folder
    of its frames. triplet.txt in that folder names the frames to use, one a line (the papers picked left,
    front and right by hand and did not publish the list); without it `frames` frames are taken evenly. Scans
    in millimetres.

    Raises:
        InputError: not this layout.
    """
    root, samples = MICC.root(folder), []
    for person in folders_in(root):
        if person.name[-2:] in FLAWED:
            continue
        for sequence in sequences:
            if images_in(person / sequence):
                samples.append(
                    EvaluationSample(
                        f"{person.name}/{sequence}",
                        partial(_frames, person / sequence, frames),
                        partial(_truth, person),
                        sequence,
                    )
                )
    if not samples:
        raise MICC.missing(root, f"no SUBJECT/{sequences[0]}/ with frames")
    return samples


def _frames(folder: Path, count: int) -> Subject:
    listed = folder / "triplet.txt"
    images = images_in(folder)
    if listed.exists():
        with foreign_file(listed, "cannot be read", MICC.expected) as file:
            names = [line.strip() for line in file.text().splitlines() if line.strip()]
        found = [next((p for p in images if n in (p.name, p.stem)), None) for n in names]
        if not names or None in found:
            raise MICC.missing(
                listed,
                "names no frame" if not names else f"no frame {shown(names[found.index(None)])} beside it",
            )
        images = found
    else:
        images = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, count).round().astype(int))]
    return subject_from_images(images, name=folder.parent.name)


def _truth(person: Path) -> ScanTruth:
    for name in ("frontal1", "frontal2"):
        mesh, picks = (
            file_of(person, f"{name}.obj", f"{name}.ply"),
            file_of(person, f"{name}_points.txt", f"{name}_points.npy"),
        )
        if mesh is not None and picks is not None:
            points = read_points(picks, 8)
            return ScanTruth(*read_mesh(mesh), points[:7], more={"nose_tip": points[7]})
    raise MICC.missing(person, "no frontal1 or frontal2 scan with its picked points")
