"""For whoever paints: the maps alone, of any size and in the UV layout of any face model."""

from __future__ import annotations

from pathlib import Path

from fitkit.errors import InputError
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import fuse_result, write_maps
from fitkit.fitting.result import FitResult
from fitkit.models.registry import load_model


def write_textures(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`texture.png` and `albedo.png`, in the layout of the face model `texture_layout`, or the result's own.

    Raises:
        InputError: no photos, a face model without UV coordinates, or two faces that cannot be laid onto each
            other. MissingWeightsError: the other model is not on this machine.
    """
    layout = load_model(options.texture_layout) if options.texture_layout else None
    for model in (result.model, *([] if layout is None else [layout])):
        if model.uv is None:
            raise InputError(f"textures: face model '{model.name}' has no UV coordinates; choose another one")
    lacking = [view.name for view in result.subject.views if not view.has_photo]
    if lacking:
        raise InputError(
            f"textures: the photo '{lacking[0]}' of the result is not there; give the folder of the photos "
            "(--photos)"
        )
    write_maps(fuse_result(result, layout=layout), folder)
    return []
