"""What a network that gives depth says of a face, as a prediction that protocols can measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace, names_of, sizes_of
from fitkit.fitting.network_start import Predicted
from fitkit.io.subject import Subject
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.camera import Camera
from fitkit.scene.depth_mesh import depth_mesh


def face_of_depth(predicted: Predicted, subject: Subject, found: Landmarks, name: str = "") -> PredictedFace:
    """What a network that gives depth says of the face in its first photo: a posed mesh without a neutral
    one.

    Its landmarks are those of the photo at the depth of the nearest pixel that has one.

    Args:
        subject, found: photos that the network got, and their landmarks in px of the photos.
    Raises:
        InputError: no surface in the depth map.
    """
    said: Any = predicted.prediction.depth
    crops, first = predicted.observations, predicted.order[0]
    depth, camera = said.depth[0].cpu(), said.camera.select([0])
    camera = replace(
        camera, **{k: getattr(camera, k).cpu().double() for k in ("focal", "principal", "aspect")}
    )
    if not bool((depth > 0).any()):
        raise InputError(f"{name}: the predicted depth map is empty")
    vertices, triangles = depth_mesh(depth, camera)
    marks = _at_depth(crops.landmarks.points[0].cpu().double(), depth, camera)
    scale, offset = crops.scale[:1].cpu().double(), crops.offset[:1].cpu().double()
    photo = camera.scaled(1 / scale, -offset * scale[:, None])
    shown = replace(subject, views=(subject.views[first],))
    return PredictedFace(
        name,
        triangles=triangles,
        posed=vertices[None].astype(np.float32),
        posed_landmarks=marks[None],
        pixels=found.points[first : first + 1].double().numpy(),
        focal=photo.focal.numpy(),
        principal=photo.principal.numpy(),
        sizes=sizes_of(shown),
        views=names_of(shown),
        camera_kind=camera.kind,
    )


def _at_depth(pixels: Tensor, depth: Tensor, camera: Camera) -> np.ndarray:
    """Points [L, 3] mm in the camera frame that are seen at pixels [L, 2] of the map; NaN where a pixel is
    not known."""
    there = (depth > 0).nonzero().flip(1)  # x, y
    known = torch.isfinite(pixels).all(1)
    nearest = there[cKDTree(there.numpy()).query(torch.nan_to_num(pixels).numpy())[1]]
    z = depth[nearest[:, 1], nearest[:, 0]].double()
    unit = z if camera.kind == "perspective" else torch.full_like(z, camera.REFERENCE_DEPTH)
    side = (pixels - camera.principal) * (unit / camera.focal)[:, None]
    points = torch.stack([side[:, 0], side[:, 1] / camera.aspect, z], 1)
    return torch.where(known[:, None], points, torch.nan).numpy()
