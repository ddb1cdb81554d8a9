"""What a network says of photos beside a scene, as files: one for each part and photo. Contents:
docs/regressor.md."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fitkit.fitting.predicted_maps import PredictedMaps, Surface
from fitkit.io.landmark_files import write_pts
from fitkit.io.options import plain
from fitkit.io.result_folder import PREDICTED, check_output, replaced, stems_of
from fitkit.io.subject import PREDICTION_MARK
from fitkit.synth.folder import encode_normals

DEPTH_UNIT = 0.1  # mm, of depth maps with 16 bits
MM = 1e-3  # glTF counts in metres


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
    """The folders of the parts. Depth: 16 bits, tenths of a millimetre; suitability: 8 bits, 255 = 1;
    normals: as those of `fitkit synth`. A photo without a surface has no file in surface/."""
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
        if maps.normals is not None:
            place("normals").write_bytes(_png48(encode_normals(maps.normals[number])))
        if maps.surface is not None and len(maps.surface[number].triangles):
            place("surface").write_bytes(_glb(maps.surface[number]))
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


def _png48(image: np.ndarray) -> bytes:
    """RGB with 16 bits a channel, which Pillow cannot write."""
    done, out = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done  # the format is built in
    return out.tobytes()


def _glb(surface: Surface) -> bytes:
    """A surface with its texture as binary glTF 2.0, metres."""
    # Takes a third of a second, which a command without meshes is spared.
    from trimesh import Trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    material = PBRMaterial(
        baseColorTexture=Image.fromarray(np.ascontiguousarray(surface.texture)),
        metallicFactor=0.0,
        roughnessFactor=0.85,
        doubleSided=True,
    )
    mesh = Trimesh(
        surface.vertices * MM,
        surface.triangles,
        visual=TextureVisuals(uv=surface.uv, material=material),
        process=False,
    )
    return mesh.export(file_type="glb")
