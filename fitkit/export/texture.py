"""`texture.png`: the face's colours in the layout of the face model."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fitkit.errors import InputError, attempt
from fitkit.fitting.result import FitResult
from fitkit.render.texture import CroppedView, TextureOptions, blend_views, choose_views, srgb_table

TEXTURE, TEXTURE_SIZE = "texture.png", 1024


@torch.no_grad()
def blend_texture(
    result: FitResult, size: int = 1024, options: TextureOptions = TextureOptions()
) -> np.ndarray:
    """The face's colours as seen in the photos (light included), uint8 sRGB [size, size, 3]; row 0 is v = 1.

    Raises:
        InputError: the face model has no UV coordinates.
    """
    model, state = result.personal_model, result.state
    if model.uv is None:
        raise InputError(
            f"texture: face model '{model.name}' has no UV coordinates; choose a model with UV or leave the "
            "texture out"
        )
    photos = result.subject.views
    chosen = choose_views(model, state, [view.image.shape[:2] for view in photos], options.max_views)
    views = [CroppedView.make(photos[i].image, result.texture_mask(i), state, i, model, 1024) for i in chosen]
    linear = blend_views(model, views, size, options)
    return (srgb_table()[(linear.clip(0, 1) * (len(srgb_table()) - 1)).astype(np.int32)]).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the content of a PNG file."""
    out = io.BytesIO()
    # A fifth of the time of the default at the same size: filtered rows hold few repeats but of single bytes.
    Image.fromarray(image).save(out, format="PNG", compress_level=3, compress_type=zlib.Z_RLE)
    return out.getvalue()


def write_texture(result: FitResult, folder: Path, notes: list[str]) -> bytes | None:
    """`texture.png`, and its content; None, and a note, where there is none."""
    if result.model.uv is None:
        notes.append(f"no texture: face model '{result.model.name}' has no UV coordinates")
        return None
    texture = attempt("the texture", lambda: blend_texture(result, TEXTURE_SIZE), None, notes)
    if texture is None:
        return None
    png = encode_png(texture)
    (folder / TEXTURE).write_bytes(png)
    return png
