"""FaceWarehouse: meshes of one topology and photos of 150 people in 20 poses."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from fitkit.data.samples import DataSet, EvaluationSample, ScanTruth, file_of, folders_in
from fitkit.io.images import SUFFIXES
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, natural_key, subject_from_images

# Ours; the papers do not list their nine.
IDENTITIES = tuple(f"Tester_{i}" for i in (3, 12, 36, 49, 74, 88, 107, 121, 138))
FACEWAREHOUSE = DataSet(
    "FaceWarehouse",
    "http://kunzhou.net/zjugaps/facewarehouse",
    "a signed agreement",
    "Tester_1/TrainingPose/pose_0.obj and pose_0.png to pose_19",
)


def facewarehouse_samples(
    folder: str | os.PathLike, identities: tuple[str, ...] = IDENTITIES, views: int = 1
) -> list[EvaluationSample]:
    """One sample for each pose, id 'Tester_3/pose_0', group = identity; identities: empty = everyone.

    views: photos of a fit: the pose itself and the next ones of the same person, each with its own
    expression; the mesh of the first photo is scored.

    Raises:
        InputError: not this layout.
    """
    root, samples = FACEWAREHOUSE.root(folder), []
    for person in folders_in(root):
        if identities and person.name not in identities:
            continue
        meshes = (
            [p for p in (person / "TrainingPose").glob("pose_*.obj") if re.fullmatch(r"pose_\d+", p.stem)]
            if (person / "TrainingPose").is_dir()
            else []
        )
        meshes.sort(key=lambda p: natural_key(p.name))
        for i, mesh in enumerate(meshes):
            chosen = [meshes[(i + k) % len(meshes)].stem for k in range(min(views, len(meshes)))]
            samples.append(
                EvaluationSample(
                    f"{person.name}/{mesh.stem}",
                    partial(_photos, mesh.parent, chosen),
                    partial(_truth, mesh),
                    person.name,
                )
            )
    if not samples:
        raise FACEWAREHOUSE.missing(
            root, "no TrainingPose/pose_0.obj" + (f" of {', '.join(identities)}" if identities else "")
        )
    return samples


def _photos(folder: Path, stems: list[str]) -> Subject:
    paths = [file_of(folder, *(f"{stem}{s}" for s in SUFFIXES)) for stem in stems]
    if None in paths:
        raise FACEWAREHOUSE.missing(folder, f"no picture {stems[paths.index(None)]}")
    return subject_from_images(paths, name=folder.parent.name)


def _truth(mesh: Path) -> ScanTruth:
    return ScanTruth(*read_mesh(mesh))
