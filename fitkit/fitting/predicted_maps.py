"""What a network says of the photos of one person beside a scene: depth, position maps, parts of the face,
landmarks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fitkit.errors import FitError
from fitkit.fitting.network_start import Predicted
from fitkit.io.subject import Subject, View
from fitkit.scene.camera import Camera
from fitkit.scene.depth_mesh import depth_mesh, largest_piece
from fitkit.scene.depth_state import DepthState, depth_normals

# Field of PredictedMaps -> part of a prediction that it is of.
PART_OF = {
    "depth": "depth",
    "confidence": "depth",
    "normals": "depth",
    "surface": "depth",
    "position_map": "position_map",
    "parse": "parse",
    "landmarks": "landmarks",
    "points3d": "points3d",
}


MOST_TEXELS = 1024  # of a side of a texture
STEEPEST = 6.0  # mm of depth for a mm beside it: what is steeper lies across a silhouette


@dataclass(frozen=True)
class Surface:
    """What a depth map shows, as a mesh with the photo on it.

    vertices: [N, 3] mm in the head frame, or where no pose is known in a frame with its axes (x right, y up,
    z towards the viewer) at the camera; triangles: [F, 3]; uv: [N, 2] of the texture, v upwards; texture: [h,
    w, 3] uint8, the part of the photo that shows it.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


@dataclass(frozen=True)
class PredictedMaps:
    """What a network says of each photo, in px of the photos; a part that it does not give is None."""

    names: tuple[str, ...]  # of the photos
    about: dict[str, Any]  # of the network
    depth: tuple[np.ndarray, ...] | None = None  # [H, W] float32 mm along the camera's axis, 0 = nothing
    confidence: tuple[np.ndarray, ...] | None = None  # [H, W] float32 0 to 1, how far colours can be compared
    normals: tuple[np.ndarray, ...] | None = None  # [H, W, 3] float32 camera frame, 0 = nothing
    surface: tuple[Surface, ...] | None = None  # of the depth; without triangles where there is none
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
        """Write a folder with depth/, confidence/, normals/, surface/, posmap/, parse/, landmarks/ and
        points3d/, one file for each photo, and prediction.json; see docs/regressor.md. Returns: its absolute
        path.

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
        None if depth is None else each(_normals(depth), spread),
        None
        if depth is None
        else tuple(_surface(depth, b, views[b], scale[b], offset[b]) for b in range(len(views))),
        None if maps is None else each(maps.points, position),
        None if parse is None else each(parse.argmax(1), lambda p, b: spread(p, b).round().astype(np.uint8)),
        None if found.landmarks is None else each(found.landmarks.points, moved),
        None if found.points3d is None else each(found.points3d, lambda p, b: p),
        tuple(notes),
    )


def _normals(depth: DepthState) -> torch.Tensor:
    """[B, h, w, 3], 0 where there is none."""
    normals, known = depth_normals(depth.depth.float(), depth.camera)
    return torch.where(known[..., None], normals, 0)


def _surface(depth: DepthState, b: int, view: View, scale: np.ndarray, offset: np.ndarray) -> Surface:
    """The mesh of frame b with its part of the photo."""
    one = depth.select([b])
    values, camera = one.depth[0].cpu().float(), _on_cpu(one.camera)
    there = values > 0
    middle = float(values[there].median()) if bool(there.any()) else 0.0
    across = (
        camera.depth_divisor(torch.tensor([[[0.0, 0.0, middle]]])) / camera.focal[:, None]
    )  # mm of a pixel
    vertices, triangles = depth_mesh(values, camera, STEEPEST * float(across))
    triangles = largest_piece(triangles, len(vertices))
    used, triangles = np.unique(triangles, return_inverse=True)
    triangles, vertices = triangles.reshape(-1, 3), vertices[used]
    if one.pose is None:
        vertices = vertices * [1.0, -1.0, -1.0]
    else:
        pose = one.pose.rotation[0].cpu().double().numpy(), one.pose.translation[0].cpu().double().numpy()
        vertices = (vertices - pose[1]) @ pose[0]
    y, x = np.divmod(used, values.shape[1])
    pixels = np.stack([x, y], 1) / scale + offset
    return Surface(vertices, triangles, *_texture(view.image, pixels))


def _on_cpu(camera: Camera) -> Camera:
    return replace(camera, **{k: getattr(camera, k).cpu().float() for k in ("focal", "principal", "aspect")})


def _texture(photo: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a photo [H, W, 3] around pixels [N, 2], at most MOST_TEXELS a side, and their uv [N, 2]."""
    H, W = photo.shape[:2]
    if not len(pixels):
        return np.zeros((0, 2)), photo[:1, :1]
    low = np.clip(np.floor(pixels.min(0)), 0, (W - 1, H - 1)).astype(int)
    high = np.clip(np.ceil(pixels.max(0)), low, (W - 1, H - 1)).astype(int) + 1
    part = photo[low[1] : high[1], low[0] : high[0]]
    uv = (pixels - low + 0.5) / (high - low)
    less = MOST_TEXELS / max(part.shape[:2])
    if less < 1:
        part = cv2.resize(part, None, fx=less, fy=less, interpolation=cv2.INTER_AREA)
    return np.stack([uv[:, 0], 1 - uv[:, 1]], 1), part


def to_photo(values: np.ndarray, scale: float, offset: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of a crop -> of its photo, the nearest value at each pixel, 0 beyond the crop.

    Args:
        values: [h, w] or [h, w, C] float32; scale, offset [2]: crop pixel = scale * (photo pixel - offset);
            size: (width, height) of the photo.
    """
    crop_of_photo = np.array([[scale, 0.0, -scale * offset[0]], [0.0, scale, -scale * offset[1]]])
    return cv2.warpAffine(
        values, crop_of_photo, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=0
    )
