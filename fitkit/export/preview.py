"""`preview.png`: the neutral face from five sides, as clay and with its texture."""
from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.rotation import so3_exp
from fitkit.models.face_model import FaceModel
from fitkit.render.rasterizer import clip_vertices
from fitkit.render.shading import Surface, average_surface, light_surface, shade, supersampled, surface_normals
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

YAWS = (-90, -45, 0, 45, 90)  # degrees; positive: the nose points to the right side of the picture
TILE = (384, 320)  # (H, W) px of one picture
DISTANCE = 1200.0  # mm from the camera to the middle of the face
SUPERSAMPLE = 2
TOP, BOTTOM = (246, 247, 249), (214, 218, 224)  # background


@torch.no_grad()
def draw_preview(vertices: Tensor, model: FaceModel, texture: np.ndarray | None = None, tile: tuple[int, int] = TILE) -> np.ndarray:
    """Contact sheet of a head-frame mesh [V, 3] mm, uint8 [H, W, 3]; one column per yaw.

    First row clay, second row textured (or, without texture, coloured by the model's albedo; no second row without either).
    """
    shown = _shown_part(vertices, model)
    rows = 1 if texture is None and model.albedo_mean is None else 2
    columns = [_column(vertices, model, texture, math.radians(yaw), shown, tile, rows) for yaw in YAWS]
    return np.concatenate(columns, 1)


def _shown_part(vertices: Tensor, model: FaceModel) -> tuple[Tensor, float]:
    """Middle of the head [3] and the height in mm that a tile shows: the head without most of the neck and shoulders."""
    skin = vertices[model.skin | model.face]
    top, chin = vertices[:, 1].max(), model.landmarks.points(vertices[None], model.triangles)[0, 8, 1]
    bottom = torch.maximum(vertices[:, 1].min(), chin - 0.22 * (top - chin))
    height = float(top - bottom)
    width = float(2 * vertices[:, [0, 2]].sub(skin[:, [0, 2]].mean(0)).norm(dim=-1).quantile(0.98))
    low, high = vertices.amin(0), vertices.amax(0)
    center = torch.stack([(low[0] + high[0]) / 2, (top + bottom) / 2, (low[2] + high[2]) / 2])
    return center, max(height, width * TILE[0] / TILE[1] * 0.8) * 1.12


def _column(vertices, model, texture, yaw, shown, tile, rows) -> np.ndarray:
    center, height = shown
    flip = torch.diag(vertices.new_tensor([1.0, -1.0, -1.0]))
    rotation = (flip @ so3_exp(vertices.new_tensor([0.0, yaw, 0.0])))[None]
    translation = vertices.new_tensor([[0.0, 0.0, DISTANCE]]) - center @ rotation[0].T
    points = Pose(rotation, translation).apply(vertices[None])
    H, W = tile
    camera = Camera(vertices.new_tensor([DISTANCE * H / height]), vertices.new_tensor([[(W - 1) / 2, (H - 1) / 2]]), vertices.new_ones(1))
    clip = clip_vertices(supersampled(camera, SUPERSAMPLE), points)[0]
    surface = Surface.visible(clip, model.triangles, (H * SUPERSAMPLE, W * SUPERSAMPLE))
    pictures = [light_surface(surface, points[0], model.triangles, supersample=SUPERSAMPLE)]
    if rows == 2:
        if texture is not None:
            own = _texture_colour(surface, model, texture)
            # The texture has the photos' light in it, so only a touch of shape is added.
            diffuse, _ = shade(surface_normals(surface, points[0], model.triangles))
            own = own * (0.72 + 0.28 * diffuse[:, None] / 0.8)
            rgba = torch.cat([own.clamp(0, 1), torch.ones_like(own[:, :2])], -1)
            pictures.append(average_surface(surface, rgba, SUPERSAMPLE))
        else:
            colour = surface.interpolate(model.albedo_mean.to(vertices)[model.triangles])
            pictures.append(light_surface(surface, points[0], model.triangles, colour, supersample=SUPERSAMPLE))
    ramp = torch.linspace(0, 1, H)[:, None, None]
    ground = (vertices.new_tensor(TOP) * (1 - ramp) + vertices.new_tensor(BOTTOM) * ramp) / 255
    out = [(p.rgb * p.alpha[..., None] + ground * (1 - p.alpha[..., None])) for p in pictures]
    return (torch.cat(out, 0) * 255).round().clamp(0, 255).byte().numpy()


def _texture_colour(surface: Surface, model: FaceModel, texture: np.ndarray) -> Tensor:
    """Linear texture colour at the covered samples, [N, 3]."""
    size = texture.shape[0]
    uv = surface.interpolate(model.uv[model.uv_triangles]).numpy()
    n, columns = len(uv), 4096
    pad = ((0, -n % columns), (0, 0))
    x, y = np.pad(np.stack([uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5], -1).astype(np.float32), pad).T.reshape(2, -1, columns)
    if n == 0:
        return torch.zeros(0, 3)
    colour = cv2.remap(texture, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return linear_from_srgb(torch.from_numpy(colour.reshape(-1, 3)[:n]).float() / 255)
