"""Pictures of what a network says while it is trained."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import Prediction
from fitkit.observe.landmarks.types import CURVES
from fitkit.render.lit import lit_pictures
from fitkit.render.shading import render_shaded
from fitkit.scene.state import SceneState

# Of the parts of a face, RGB; the background stays as it is.
PART_COLORS = np.array(
    [
        [0, 0, 0],
        [230, 180, 150],
        [120, 60, 20],
        [120, 90, 20],
        [30, 90, 220],
        [30, 180, 220],
        [240, 150, 60],
        [120, 20, 60],
        [220, 50, 50],
        [220, 50, 150],
    ],
    np.uint8,
)


@torch.no_grad()
def draw_batch(
    images: Tensor, valid: Tensor, prediction: Prediction, model: FaceModel, most: int = 4
) -> np.ndarray:
    """The pictures of the first people with what is predicted of them, uint8 [h, w, 3]: a row for each
    person; for each view the picture and a column for each of mesh, depth, position map and parse that the
    network gives, or else its landmarks; of a network that predicts light also the model in that light and
    how far the photo differs from it; a missing view stays grey."""
    size = images.shape[-1]
    rows, frame = [], 0
    for person, there in enumerate(valid[:most].cpu()):
        row = []
        for slot, exists in enumerate(there):
            photo = images[person, slot].cpu().permute(1, 2, 0)
            plain = (photo * 255).round().byte().numpy()
            panels = (
                _panels(photo, prediction, model, frame, size) if exists else [plain] * _count(prediction)
            )
            row += [plain, *panels]
            frame += int(exists)
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows)


def _count(prediction: Prediction) -> int:
    drawn = {"state", "depth", "position_map", "parse"} & set(prediction.gives)
    return len(drawn) + 2 * prediction.lit or int(prediction.landmarks is not None)


def _panels(
    photo: Tensor, prediction: Prediction, model: FaceModel, frame: int, size: int
) -> list[np.ndarray]:
    plain, out = (photo * 255).round().byte().numpy(), []
    if prediction.state is not None:
        own = model.to("cpu") if model.device.type != "cpu" else model
        state = prediction.state.to("cpu")
        out.append(_over(photo, state, own, frame, size))
        if prediction.lit:
            out += lit_pictures(photo.permute(2, 0, 1), own, state.select([frame]))
    if prediction.depth is not None:
        out.append(_fitting(depth_picture(prediction.depth.depth[frame].cpu().numpy()), size))
    if prediction.position_map is not None:
        points = prediction.position_map.points[frame, :2].flatten(1).T
        out.append(_dotted(plain, points[:: max(1, len(points) // 2000)]))
    if prediction.parse is not None:
        parts = prediction.parse[frame].argmax(0).cpu().numpy()
        out.append(_fitting(part_picture(parts, plain), size))
    if not out and prediction.landmarks is not None:
        out.append(_dotted(plain, prediction.landmarks.points[frame]))
    return out


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """A depth map [H, W] mm, 0 = nothing, as grey values, near is light, uint8 [H, W, 3]."""
    there = depth > 0
    near, far = np.percentile(depth[there], (2, 98)) if there.any() else (0.0, 1.0)
    shade = np.where(there, 255 - 200 * np.clip((depth - near) / max(far - near, 1e-6), 0, 1), 0)
    return np.repeat(shade.round().astype(np.uint8)[..., None], 3, 2)


def part_picture(parts: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Parts of a face [H, W] in colours over a photo, uint8 [h, w, 3] each."""
    parts = _fitting(parts.astype(np.uint8), len(photo), cv2.INTER_NEAREST)
    color = PART_COLORS[parts % len(PART_COLORS)]
    return np.where((parts > 0)[..., None], (photo // 3 + color // 3 * 2), photo).astype(np.uint8)


def _fitting(picture: np.ndarray, size: int, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    return cv2.resize(picture, (size, size), interpolation=how)


def _dotted(photo: np.ndarray, points: Tensor) -> np.ndarray:
    """points: [N, 2] px."""
    panel, at = photo.copy(), points.round().long().cpu().numpy()
    inside = ((at >= 0) & (at < (panel.shape[1], panel.shape[0]))).all(1)
    panel[at[inside, 1], at[inside, 0]] = (60, 230, 90)
    return panel


def _over(photo: Tensor, state: SceneState, model: FaceModel, frame: int, size: int) -> np.ndarray:
    vertices = state.pose.select([frame]).apply(
        model.vertices(state.identity[state.subject[[frame]]], state.expression[[frame]])
    )
    camera = state.camera.select([frame])
    shaded = render_shaded(
        vertices,
        model.triangles,
        camera,
        (size, size),
        select=(model.skin | model.face)[model.triangles].any(1),
    )
    alpha = 0.65 * shaded.skin[0, ..., None]
    panel = np.ascontiguousarray(
        ((photo * (1 - alpha) + shaded.rgb[0].clamp(0, 1) * alpha) * 255).round().byte().numpy()
    )
    points = (
        camera.project(model.landmarks.points(vertices, model.triangles))[0][0]
        .clamp(-size, 2 * size)
        .double()
        .numpy()
    )
    for indices, closed in CURVES:
        line = np.round(points[list(indices)] * 16).astype(np.int32)
        cv2.polylines(panel, [line[:, None]], closed, (255, 60, 50), 1, cv2.LINE_AA, shift=4)
    return panel
