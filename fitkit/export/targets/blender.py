"""For artists: Blender, Maya, Unity. OBJ files that a rig is built from, and glTF."""

from __future__ import annotations

from pathlib import Path

import torch

from fitkit.export.arkit import write_names
from fitkit.export.gltf import write_glb
from fitkit.export.meshes import write_obj
from fitkit.export.morphs import Morph, morphs_of, track_of
from fitkit.export.rig import rig_of
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import TEXTURE, write_texture
from fitkit.export.topology import Topology, topology_of, with_quads
from fitkit.fitting.result import FitResult
from fitkit.io.result_folder import stems_of

NEUTRAL = "neutral"


def write_blender(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`obj/`: the neutral face and one OBJ for each expression shape, vertices in the same order, mm;
    and their texture; `subject.glb`: the same as morph targets, with joints; `photos.glb`: with an animation
    that has one frame for each photo; `arkit_names.json`."""
    model, notes = result.personal_model, []
    morphs = morphs_of(model, options.arkit_names)
    (folder / "obj").mkdir()
    png = write_texture(result, folder / "obj", notes)
    shown = with_quads(result.model, topology_of(result.model, options.vertices, notes))
    write_shapes(result, morphs, folder / "obj", png is not None, shown)
    neutral, name = result.neutral.detach(), result.subject.name
    rig = rig_of(model, neutral)
    write_glb(folder / "subject.glb", neutral, model, png, name, morphs, topology=shown, rig=rig)
    if result.state.camera.kind == "perspective":
        track = track_of(result, morphs)
        write_glb(folder / "photos.glb", neutral, model, png, name, morphs, track, shown, rig)
    else:
        notes.append("no photos.glb: orthographic cameras do not say where the head is")
    write_names([m.name for m in morphs], options.arkit_names, folder / "arkit_names.json")
    return notes


def write_shapes(
    result: FitResult, morphs: list[Morph], folder: Path, textured: bool, shown: Topology
) -> None:
    """One OBJ for the neutral face and one for each morph target at weight 1, mm. textured: `write_texture`
    has written a texture into the folder."""
    neutral, model = result.neutral.detach().double(), result.personal_model
    write_obj(folder / f"{NEUTRAL}.obj", neutral, model, TEXTURE if textured else None, topology=shown)
    for stem, morph in zip(stems_of([NEUTRAL, *(m.name for m in morphs)])[1:], morphs):
        write_obj(folder / f"{stem}.obj", neutral + torch.from_numpy(morph.delta), model, topology=shown)
