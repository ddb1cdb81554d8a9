"""What a network says of photos beside a scene, as files: one for each part and photo. Contents:
docs/regressor.md."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from fitkit.fitting.predicted_maps import PredictedMaps
from fitkit.io.landmark_files import write_pts
from fitkit.io.options import plain
from fitkit.io.result_folder import PREDICTED, check_output, replaced, stems_of
from fitkit.io.subject import PREDICTION_MARK

DEPTH_UNIT = 0.1  # mm, of depth maps with 16 bits


def write_maps(maps: PredictedMaps, output: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write what a network without a scene says into a new folder: prediction.json and a folder for each
    part; whole or not at all.

    Returns: the absolute path of the folder.
    Raises:
        InputError: see `check_output`; or writing failed (disk full, ...).
    """
    path = check_output(output, overwrite)
    views = [{"name": n, "stem": s} for n, s in zip(maps.names, stems_of(maps.names))]
    content = {"views": views, "gives": maps.gives, "network": maps.about, "notes": maps.notes}
    with replaced(path, overwrite) as folder:
        write_parts(maps, folder)
        text = json.dumps(plain(content), indent=1, ensure_ascii=False)
        (folder / PREDICTION_MARK).write_text(text + "\n", encoding="utf-8")
    return path


def write_parts(maps: PredictedMaps, folder: Path) -> None:
    """The folders of the parts. Depth: 16 bits, tenths of a millimetre; suitability: 8 bits, 255 = 1."""
    for number, stem in enumerate(stems_of(maps.names)):

        def place(name: str, stem: str = stem) -> Path:
            (folder / name).mkdir(exist_ok=True)
            return folder / name / (stem + PREDICTED[name])

        if maps.depth is not None:
            tenths = np.clip(np.round(maps.depth[number] / DEPTH_UNIT), 0, 65535).astype(np.uint16)
            place("depth").write_bytes(_png(tenths))
        if maps.confidence is not None:
            share = np.clip(np.round(255 * maps.confidence[number]), 0, 255).astype(np.uint8)
            place("confidence").write_bytes(_png(share))
        if maps.position_map is not None:
            np.save(place("posmap"), maps.position_map[number])
        if maps.parse is not None:
            place("parse").write_bytes(_png(maps.parse[number]))
        if maps.landmarks is not None:
            write_pts(place("landmarks"), maps.landmarks[number])
        if maps.points3d is not None:
            np.save(place("points3d"), maps.points3d[number])


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG", compress_level=3)
    return out.getvalue()
