"""What a network says of the photos of one person beside a scene: depth, position maps, parts of the face,
landmarks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fitkit.errors import FitError
from fitkit.fitting.network_start import Predicted
from fitkit.io.subject import Subject

# Field of PredictedMaps -> part of a prediction that it is of.
PART_OF = {
    "depth": "depth",
    "confidence": "depth",
    "position_map": "position_map",
    "parse": "parse",
    "landmarks": "landmarks",
    "points3d": "points3d",
}


@dataclass(frozen=True)
class PredictedMaps:
    """What a network says of each photo, in px of the photos; a part that it does not give is None."""

    names: tuple[str, ...]  # of the photos
    about: dict[str, Any]  # of the network
    depth: tuple[np.ndarray, ...] | None = None  # [H, W] float32 mm along the camera's axis, 0 = nothing
    confidence: tuple[np.ndarray, ...] | None = None  # [H, W] float32 0 to 1, how far colours can be compared
    position_map: tuple[np.ndarray, ...] | None = None  # [3, h, w] float32 px, see PositionMap
    parse: tuple[np.ndarray, ...] | None = None  # [H, W] uint8, the likeliest part of a face
    landmarks: tuple[np.ndarray, ...] | None = None  # [68, 2] float32 px
    points3d: tuple[np.ndarray, ...] | None = None  # [N, 3] float32 mm, in a frame of each photo's own
    notes: tuple[str, ...] = ()  # what is worth knowing

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of the parts that are there."""
        return tuple(dict.fromkeys(PART_OF[name] for name in PART_OF if getattr(self, name) is not None))

    def save(self, output: str | os.PathLike, overwrite: bool = False) -> Path:
        """Write a folder with depth/, confidence/, posmap/, parse/, landmarks/, points3d/, one file for each
        photo, and prediction.json; see docs/results.md. Returns: its absolute path.

        Raises:
            InputError: the folder exists, or cannot be written.
        """
        from fitkit.export.maps import write_maps

        return write_maps(self, output, overwrite)


def maps_of(
    predicted: Predicted, subject: Subject, about: dict[str, Any], notes: Sequence[str] = ()
) -> PredictedMaps:
    """The parts of a prediction that are no state, carried from the crops to the photos `predicted.order` of
    a subject.

    Raises:
        FitError: values that are not finite.
    """
    found, seen = predicted.prediction, predicted.observations
    views = [subject.views[i] for i in predicted.order]
    scale, offset = seen.scale.cpu().double().numpy(), seen.offset.cpu().double().numpy()

    def each(part: torch.Tensor, carry: Callable[[np.ndarray, int], np.ndarray]) -> tuple[np.ndarray, ...]:
        values = part.float().cpu().numpy()
        if not np.isfinite(values).all():
            raise FitError(
                f"prediction of {subject.name}: a map holds values that are not finite; nothing was written"
            )
        return tuple(carry(values[b], b) for b in range(len(views)))

    def moved(points: np.ndarray, b: int) -> np.ndarray:  # [..., 2] px of the crop -> of the photo
        return (points / scale[b] + offset[b]).astype(np.float32)

    def position(points: np.ndarray, b: int) -> np.ndarray:
        flat = moved(np.moveaxis(points[:2], 0, -1), b)
        return np.concatenate([np.moveaxis(flat, -1, 0), (points[2:] / scale[b]).astype(np.float32)])

    def spread(values: np.ndarray, b: int) -> np.ndarray:
        return to_photo(values, float(scale[b]), offset[b], views[b].size)

    depth, parse, maps = found.depth, found.parse, found.position_map
    trust = None if depth is None else depth.suitability
    return PredictedMaps(
        tuple(v.name for v in views),
        about,
        None if depth is None else each(depth.depth.clamp_min(0), spread),
        None if trust is None else each(trust, spread),
        None if maps is None else each(maps.points, position),
        None if parse is None else each(parse.argmax(1), lambda p, b: spread(p, b).round().astype(np.uint8)),
        None if found.landmarks is None else each(found.landmarks.points, moved),
        None if found.points3d is None else each(found.points3d, lambda p, b: p),
        tuple(notes),
    )


def to_photo(values: np.ndarray, scale: float, offset: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of a crop -> of its photo, the nearest value at each pixel, 0 beyond the crop.

    Args:
        values: [h, w] float32; scale, offset [2]: crop pixel = scale * (photo pixel - offset); size: (width,
            height) of the photo.
    """
    crop_of_photo = np.array([[scale, 0.0, -scale * offset[0]], [0.0, scale, -scale * offset[1]]])
    return cv2.warpAffine(
        values, crop_of_photo, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=0
    )
