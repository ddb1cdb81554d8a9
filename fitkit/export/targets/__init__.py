"""Results as files that other tools read: one file for each tool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from fitkit.errors import InputError, check_argument
from fitkit.export.arkit import Spelling

if TYPE_CHECKING:  # the list of targets comes without torch
    from fitkit.fitting.result import FitResult

SPELLINGS: tuple[Spelling, ...] = ("apple", "suffix")
COARSER = ("blender", "usd")  # targets whose mesh may have fewer vertices
LEAST_VERTICES = 500


@dataclass(frozen=True)
class ExportOptions:
    """What users choose of an export."""

    arkit_names: Spelling = "apple"  # of expression shapes: browDownLeft, or browDown_L
    texture_size: int | None = None  # px, side of texture.png and albedo.png; None: as the recipe says
    vertices: int | None = (
        None  # of targets blender and usd: about how many the mesh has, more where it would tear; None: all
    )
    wireframe: bool = False  # of target turntable: whether the edges of the mesh are drawn
    texture_layout: str = ""  # of target textures: the face model that has the UV layout; '' = the result's


@dataclass(frozen=True)
class Target:
    """A tool that `fitkit export RESULT --for NAME` writes for.

    about: what it is, for the help; writer: 'module:function' of `write(result, folder, options)`, which
    writes into a folder that is there and empty, raises InputError for results that it cannot take, and
    returns a sentence for each thing that the user should know.
    """

    about: str
    writer: str

    def write(self, result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
        module, _, function = self.writer.partition(":")
        return getattr(import_module(module), function)(result, folder, options)


TARGETS = {
    "blender": Target(
        "OBJ set for rigs, glTF with morph targets, and with the photos as animation; Maya and Unity, too",
        "fitkit.export.targets.blender:write_blender",
    ),
    "usd": Target(
        "OpenUSD with blend shapes, joints, texture and the photos as animation; needs 'fitkit[usd]'",
        "fitkit.export.targets.usd:write_usd",
    ),
    "metahuman": Target(
        "one textured OBJ for Unreal's MetaHuman from a custom mesh",
        "fitkit.export.targets.metahuman:write_metahuman",
    ),
    "textures": Target(
        "texture.png and albedo.png of any size, in the UV layout of any face model; with the photos",
        "fitkit.export.targets.textures:write_textures",
    ),
    "turntable": Target(
        "a film of the head turning round, turntable.mp4; --wireframe draws the mesh over it",
        "fitkit.export.targets.turntable:write_turntable",
    ),
    "gaussian-avatars": Target(
        "the data set of VHAP; of the face model FLAME, with the photos",
        "fitkit.export.targets.gaussian_avatars:write_gaussian_avatars",
    ),
    "cap4d": Target(
        "fit.npz and reference images; of the face model FLAME, with the photos",
        "fitkit.export.targets.cap4d:write_cap4d",
    ),
    "insta": Target(
        "frames of metrical-tracker, FlashAvatar reads them, too; of the face model FLAME, with the photos",
        "fitkit.export.targets.insta:write_insta",
    ),
    "mica": Target(
        "identity.npy with the shape of the person; of the face model FLAME",
        "fitkit.export.targets.mica:write_mica",
    ),
    "deep3d": Target(
        "coefficients of Deep3DFaceRecon; of the face model bfm-front, with the photos",
        "fitkit.export.targets.deep3d:write_deep3d",
    ),
}


def export_result(
    result: FitResult,
    target: str,
    output: str | os.PathLike,
    options: ExportOptions = ExportOptions(),
) -> tuple[Path, list[str]]:
    """Write a result for another tool, one of TARGETS, into a new folder, whole or not at all.

    Returns: the absolute path of the folder, and what the user should know, one sentence each.
    Raises:
        InputError: no such target; the folder exists or cannot be written; or the tool cannot take this
            result: another face model, photos that are not there, ... FitError: it holds NaN or infinity.
    """
    from fitkit.export.folder import check_finite
    from fitkit.export.texture import with_texture_size
    from fitkit.io.result_folder import EXPORT, check_output, replaced

    check_argument("output", output, (str, os.PathLike), "the path of a folder")
    if target not in TARGETS:
        raise InputError(f"export: expected one of {', '.join(TARGETS)}, got {target!r}")
    if os.path.lexists(output):
        raise InputError(f"output {output}: already exists; remove it or choose another --output")
    if options.texture_layout and target != "textures":
        raise InputError(f"export: texture_layout is for target textures, got target {target!r}")
    if options.wireframe and target != "turntable":
        raise InputError(f"export: wireframe is for target turntable, got target {target!r}")
    if options.vertices is not None:
        if target not in COARSER:
            raise InputError(
                f"export: vertices is for targets {' and '.join(COARSER)}, got target '{target}'"
            )
        check_argument("export: vertices", options.vertices, Integral, "a whole number")
        if options.vertices < LEAST_VERTICES:
            raise InputError(f"export: vertices: expected {LEAST_VERTICES} or more, got {options.vertices}")
    path = check_output(output)
    check_finite(result)
    result = with_texture_size(result, options.texture_size)
    with replaced(path, False, EXPORT) as folder:
        notes = TARGETS[target].write(result, folder, options)
    return path, notes
