"""For Unreal: a MetaHuman from a custom mesh.

Source: Epic's pages "From Mesh" and "From Custom Mesh" (dev.epicgames.com/documentation/metahuman): OBJ,
    textured, the eyes open with their whites visible. Unreal counts in centimetres, and its importer takes
    OBJ files as right-handed with z up; a MetaHuman looks along +y, that is -y of the file.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fitkit.export.meshes import write_obj
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import TEXTURE, write_texture
from fitkit.export.topology import topology_of, with_quads
from fitkit.fitting.result import FitResult

CM = 0.1  # in a millimetre
EYES = ("eye", "sclera", "iris")  # in names of parts


def write_metahuman(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`head.obj`, `head.mtl` and `texture.png`: the neutral face in centimetres, z up, looking along -y."""
    notes: list[str] = []
    png = write_texture(result, folder, notes)
    x, y, z = (CM * result.neutral.detach().double()).unbind(1)
    vertices, model = torch.stack([x, -z, y], 1), result.personal_model
    texture = None if png is None else TEXTURE
    frame = "centimetres; z up, the face looks along -y"
    write_obj(
        folder / "head.obj", vertices, model, texture, frame, with_quads(result.model, topology_of(model))
    )
    parts = [model.region_names[number] for number in model.region.unique().tolist()]
    if not any(eye in name for name in parts for eye in EYES):
        notes.append(f"face model '{model.name}' has no eyeballs, which MetaHuman needs to find the eyelids")
    return notes
