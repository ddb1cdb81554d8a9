"""`texture.png` and `albedo.png`: the face's colours in a UV layout, with light and without."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fitkit.errors import InputError, attempt
from fitkit.export.lighting import decompose_result
from fitkit.fitting.appearance import Decomposition
from fitkit.fitting.recipe import MapOptions
from fitkit.fitting.result import FitResult
from fitkit.io.options import build
from fitkit.models.correspondence import correspondence
from fitkit.models.face_model import FaceModel
from fitkit.render.texture import (
    Layout,
    TextureOptions,
    UvMaps,
    blend_views,
    choose_views,
    srgb_table,
)
from fitkit.render.view_colors import CroppedView

TEXTURE, ALBEDO = "texture.png", "albedo.png"
PHOTO_PX = 1024  # longer side that a photo's head has at least, before it is scaled down


@torch.no_grad()
def fuse_result(
    result: FitResult,
    size: int | None = None,
    options: TextureOptions = TextureOptions(),
    parts: Decomposition | None = None,
    layout: FaceModel | None = None,
) -> UvMaps:
    """The face's colours as seen in the photos, and its albedo, as maps.

    Args:
        size: side of the maps, px; None = as the recipe of the result says.
        parts: light of the views, from `decompose_result`; None = found here.
        layout: another face model, whose UV layout the maps have; None = that of the result.
    Raises:
        InputError: the face model, or `layout`, has no UV coordinates, or the two faces cannot be laid onto
            each other.
    """
    model, state = result.personal_model, result.state
    for one in (model, layout):
        if one is not None and one.uv is None:
            raise InputError(
                f"texture: face model '{one.name}' has no UV coordinates; choose a model with UV or leave "
                "the texture out"
            )
    photos = result.subject.views
    chosen = choose_views(model, state, [view.image.shape[:2] for view in photos], options.max_views)
    light = (decompose_result(result)[0] if parts is None else parts).shading[chosen].numpy()
    size = texture_size(result) if size is None else size
    longest = max(PHOTO_PX, size)
    views = [
        CroppedView.make(photos[i].image, result.texture_mask(i), state, i, model, longest) for i in chosen
    ]
    other = (
        None
        if layout is None or _same_layout(model, layout)
        else Layout(layout, correspondence(result.model, layout))
    )
    return blend_views(model, views, size, light, options, other)


def _same_layout(model: FaceModel, other: FaceModel) -> bool:
    """Whether texels of one are the same surface points of the other; names do not tell, as different files
    may have the same."""
    return all(
        a is not None and b is not None and torch.equal(a, b)
        for a, b in (
            (model.triangles, other.triangles),
            (model.uv, other.uv),
            (model.uv_triangles, other.uv_triangles),
        )
    )


def blend_texture(
    result: FitResult, size: int | None = None, options: TextureOptions = TextureOptions()
) -> np.ndarray:
    """The face's colours as seen in the photos (light included), uint8 sRGB [size, size, 3]; row 0 is v = 1.

    Raises:
        InputError: as `fuse_result`.
    """
    return codes(fuse_result(result, size, options).color)


def codes(linear: np.ndarray) -> np.ndarray:
    """Linear colours as 8-bit sRGB."""
    table = srgb_table()
    return table[(linear.clip(0, 1) * (len(table) - 1) + 0.5).astype(np.int32)].astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the content of a PNG file."""
    out = io.BytesIO()
    # A fifth of the time of the default at the same size: filtered rows hold few repeats but of single bytes.
    Image.fromarray(image).save(out, format="PNG", compress_level=3, compress_type=zlib.Z_RLE)
    return out.getvalue()


def texture_size(result: FitResult) -> int:
    """Side of the maps that the recipe of a result asks for, px."""
    return build(MapOptions, result.recipe.get("texture") or {}, "texture", ".").size


def with_texture_size(result: FitResult, size: int | None) -> FitResult:
    """The result with maps of another size; None: those of its recipe."""
    if size is None:
        return result
    return replace(result, recipe=dict(result.recipe) | {"texture": {"size": size}})


def write_maps(maps: UvMaps, folder: Path) -> tuple[np.ndarray, bytes]:
    """`texture.png` and `albedo.png`; returns the texture, uint8 sRGB [S, S, 3], and the content of its
    file."""
    texture = codes(maps.color)
    png = encode_png(texture)
    (folder / TEXTURE).write_bytes(png)
    (folder / ALBEDO).write_bytes(encode_png(codes(maps.albedo)))
    return texture, png


def write_texture(result: FitResult, folder: Path, notes: list[str]) -> bytes | None:
    """`texture.png` and `albedo.png`, and the content of the first; None, and a note, where there is none."""
    if result.model.uv is None:
        notes.append(f"no texture: face model '{result.model.name}' has no UV coordinates")
        return None
    maps = attempt("the texture", lambda: fuse_result(result), None, notes)
    return None if maps is None else write_maps(maps, folder)[1]
