"""The front of the Basel Face Model of 2009 that Deep3DFaceRecon uses, BFM_model_front.mat -> FaceModel.

Source: Deng et al., "Accurate 3D Face Reconstruction with Weakly-Supervised Learning", CVPR workshops 2019;
    github.com/sicxu/Deep3DFaceRecon_pytorch, models/bfm.py. The file is in units of 10 cm and in the axes of
    the head frame; the mean of its mean shape is subtracted, as there. Its masks of skin and of the front are
    not read: what skin is, is the same for all models.
"""

from __future__ import annotations

import os

import numpy as np

from fitkit.errors import InputError
from fitkit.io.foreign import DATA_BYTES, check_shapes, foreign_file
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.pca import BASEL_LICENSE, columns, face_model, from_1, linear_albedo, numbered

MM = 100.0  # of a unit
SOURCE = (
    "front of the Basel Face Model 2009, faces.dmi.unibas.ch, with expressions of FaceWarehouse, as in "
    "github.com/sicxu/Deep3DFaceRecon_pytorch; Deng et al., CVPR workshops 2019"
)
NOTES = (
    "Identity, expression and albedo coefficients are id, exp and tex of Deep3DFaceRecon's vector of 257, "
    "all standard-normal; vertices are its vertices times 100 mm. Albedo is linear light, the colours of the "
    "file taken as sRGB; its basis holds near the mean."
)
SHAPES = {
    "meanshape": (1, "3 V"),
    "idBase": ("3 V", "K"),
    "exBase": ("3 V", "E"),
    "meantex": (1, "3 V"),
    "texBase": ("3 V", "C"),
    "tri": ("F", 3),
    "keypoints": (1, 68),
}


def import_bfm_front(path: str | os.PathLike, name: str = "bfm-front") -> FaceModel:
    """Read `BFM_model_front.mat`, which the code of Deep3DFaceRecon makes of the Basel Face Model of 2009.

    Raises:
        InputError: no such file, or arrays that do not fit together.
    """
    where = str(path)
    with foreign_file(
        path, "not Deep3DFaceRecon's face model (BFM_model_front.mat)", limit=DATA_BYTES
    ) as file:
        arrays = file.mat(tuple(SHAPES))
        missing = [k for k in SHAPES if k not in arrays]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        triangles, keypoints = from_1(arrays["tri"]), from_1(arrays["keypoints"])
    count = check_shapes(arrays, SHAPES, {}, where)["3 V"]
    if count % 3:
        raise InputError(f"{where}: meanshape: expected x, y, z of each vertex, got {count} numbers")
    mean = arrays["meanshape"].reshape(-1, 3).astype(np.float64)
    return face_model(
        where,
        MM * (mean - mean.mean(0)),
        columns(arrays["idBase"], MM),
        columns(arrays["exBase"], MM),
        triangles,
        keypoints[0].tolist(),
        name=name,
        expression_names=numbered("expression", arrays["exBase"].shape[1]),
        expression_kind="gaussian",
        **linear_albedo(arrays["meantex"].reshape(-1, 3) / 255, columns(arrays["texBase"], 1 / 255), where),
        source=SOURCE,
        license=BASEL_LICENSE,
        notes=NOTES,
    )
