"""The face that a position map shows, as a prediction that protocols can measure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fitkit.energies.landmarks3d import map_places
from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace, names_of, outer_of, sizes_of
from fitkit.fitting.network_start import Predicted
from fitkit.geometry.alignment import similarity_align
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.sampling import sample
from fitkit.scene.camera import Camera


def vertex_places(model: FaceModel, size: tuple[int, int]) -> Tensor:
    """Where the V vertices lie in a position map of (H, W) px over the model's texture coordinates, [V, 2] px
    (x, y); a vertex on a seam at one of its places.

    Raises:
        InputError: the model has no texture coordinates.
    """
    if model.uv is None or model.uv_triangles is None:
        raise InputError(f"model '{model.name}' has no texture coordinates, so it has no position map")
    corner = torch.zeros(model.num_vertices, dtype=torch.int64)
    corner[model.triangles.cpu().flatten()] = model.uv_triangles.cpu().flatten().long()
    uv = model.uv.cpu()[corner]
    # As `landmark_places` counts: v points up, the centre of a texel lies half a texel inside.
    return torch.stack([uv[:, 0] * size[1] - 0.5, (1 - uv[:, 1]) * size[0] - 0.5], -1)


def face_of_map(predicted: Predicted, subject: Subject, name: str = "") -> PredictedFace:
    """What a network that gives position maps says of the face in each photo: the 68 points and a posed mesh,
    both read from the map, without a neutral mesh.

    The map has one scale for x, y and depth, so its camera is scaled orthographic; millimetres are those of
    the mean face, laid onto the 68 points. A network that gives the 68 points alone has no mesh.

    Args:
        subject: the photos that the network got.
    Raises:
        InputError: a face model without texture coordinates.
    """
    maps, crops = predicted.prediction.position_map, predicted.observations
    assert maps is not None  # the caller has looked
    model, points = predicted.model.to("cpu"), maps.points.detach().cpu().double()
    views = [subject.views[i] for i in predicted.order]
    shown = Subject(subject.name, tuple(views), subject.path)
    B = len(points)
    scale, offset = crops.scale.cpu().double()[:, None, None], crops.offset.cpu().double()[:, None]

    def in_photos(places: Tensor) -> Tensor:
        """Places [N, 2] of the map -> [B, N, 3] px of the photos."""
        found = sample(points, places.double()[None].expand(B, -1, -1))[0] / scale
        return found + torch.cat([offset, torch.zeros_like(offset[..., :1])], -1)

    present = model.landmarks.present
    places = map_places(model, maps).cpu()
    marks = in_photos(torch.nan_to_num(places))
    mean = model.landmark_basis.mean.double()[None].expand(B, -1, -1)
    size = similarity_align(torch.nan_to_num(mean), marks, present.expand(B, -1)).scale  # px per mm
    middle = torch.tensor([v.size for v in views], dtype=torch.float64) / 2 - 0.5

    def in_camera(found: Tensor) -> np.ndarray:
        """px of the photos -> mm in the camera frame, z forwards as in the map."""
        away = found.new_tensor([0.0, 0.0, Camera.REFERENCE_DEPTH])
        start = torch.cat([middle, torch.zeros_like(middle[:, :1])], 1)[:, None]
        return ((found - start) / size[:, None, None] + away).numpy()

    lacking = ~present[None, :, None]
    whole = maps.places is None
    return PredictedFace(
        name,
        triangles=model.triangles.numpy() if whole else None,
        posed=in_camera(in_photos(vertex_places(model, points.shape[-2:]))).astype(np.float32)
        if whole
        else None,
        posed_landmarks=np.where(lacking, np.nan, in_camera(marks)),
        pixels=marks[..., :2].masked_fill(lacking, torch.nan).numpy(),
        outer=outer_of(model) if whole else None,
        focal=(size * Camera.REFERENCE_DEPTH).numpy(),
        principal=middle.numpy(),
        sizes=sizes_of(shown),
        views=names_of(shown),
        camera_kind="orthographic",
        model=model.name,
    )
