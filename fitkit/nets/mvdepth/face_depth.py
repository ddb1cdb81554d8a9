"""The depth of a face model as a network sees it: by points alone, so that it can be part of an exported
program."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import resized
from fitkit.scene.depth_state import BEFORE_MM, BEHIND_MM

CELLS = 96  # a side, of the map that points are drawn into
HIDDEN_MM = 4.0  # a point that far behind the nearest one of its cell is hidden: more than a cell is deep
EDGE_MM = 3.0  # points on a triangle lie so far apart: as many as leave hardly a cell of the face empty
MOST = 32  # parts of an edge
OTHERS = 0.1  # weight of the cells around, for those with few points
ENOUGH = 0.3  # of the cells around that have points: then the cell has a surface


class FaceDepth(nn.Module):
    """Normalized depth of the face model in pictures: vertices and points on the triangles that face the
    camera are drawn with bilinear weights, and cells between them take the mean of those around."""

    def __init__(self, model: FaceModel):
        super().__init__()
        mean, triangles = model.mean.detach().float().cpu(), model.triangles.cpu()
        corner, weight = _between(mean, triangles)
        normals = vertex_normals(mean[None], triangles)[0]
        between = (weight[..., None] * normals[corner]).sum(1)
        basis = torch.cat([model.identity_basis, model.expression_basis]).detach().float().cpu()
        fixed = {
            "mean": mean.flatten().clone(),
            "basis": basis.flatten(1),
            "corner": corner,
            "weight": weight,
            "normals": F.normalize(torch.cat([normals, between]), dim=-1),
        }
        for name, value in fixed.items():  # no weights: the model's file has them
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, codes: Tensor, rotation: Tensor, translation: Tensor, away: Tensor, focal: float, size: int
    ) -> Tensor:
        """codes: [B, K_id + K_ex] coefficients; rotation [B, 3, 3], translation [B, 3] mm: camera_from_head;
        away: [B] mm, how far away the nose tip is; focal: px of pictures of `size`, whose middle is the
        principal point. Returns the normalized depth [B, size, size] (`from_normalized`), 0 where no face is.
        """
        B, cells = codes.shape[0], min(CELLS, size)
        vertices = (self.mean + codes @ self.basis).unflatten(1, (-1, 3))
        between = (self.weight[..., None] * vertices[:, self.corner]).sum(2)
        points = torch.cat([vertices, between], 1) @ rotation.transpose(1, 2) + translation[:, None]
        facing = ((self.normals @ rotation.transpose(1, 2)) * points).sum(-1) < 0
        z = points[..., 2].clamp_min(1.0)
        at = points[..., :2] * (focal / z)[..., None] + (size - 1) / 2
        at = (at + 0.5) * (cells / size) - 0.5
        value = ((away[:, None] + BEHIND_MM - z) / (BEFORE_MM + BEHIND_MM)).clamp(0, 1)
        cell = torch.floor(at)
        part = at - cell
        cell = cell.clamp(-2, cells).long()
        inside = ((cell >= 0) & (cell < cells - 1)).all(-1) & facing
        cell = cell.clamp(0, cells - 2)
        # What lies in front hides what lies behind it.
        own = cell[..., 1] * cells + cell[..., 0]
        nothing = torch.zeros_like(value[:, :1])
        nearest = nothing.expand(B, cells * cells).scatter_reduce(1, own, value * inside, "amax")
        hidden = nearest.gather(1, own) - value > HIDDEN_MM / (BEFORE_MM + BEHIND_MM)
        counted = (inside & ~hidden).to(value)
        drawn = nothing[:, None].expand(B, 2, cells * cells)
        for dy in (0, 1):
            for dx in (0, 1):
                share = counted * (part[..., 0] if dx else 1 - part[..., 0])
                share = share * (part[..., 1] if dy else 1 - part[..., 1])
                pair = torch.stack([share, share * value], 1)
                at_cell = (own + dy * cells + dx)[:, None].expand(B, 2, -1)
                drawn = drawn.scatter_add(2, at_cell, pair)
        drawn = drawn.unflatten(2, (cells, cells))
        there = (drawn[:, :1] > 0).to(value)
        mixed = drawn + OTHERS * F.avg_pool2d(drawn, 3, 1, 1)
        filled = mixed[:, 1:] / mixed[:, :1].clamp_min(1e-6)
        face = F.avg_pool2d(there, 3, 1, 1) > ENOUGH
        return resized(torch.where(face, filled, torch.zeros_like(filled)), (size, size))[:, 0]


def _between(mean: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the triangles of a mesh with vertices [V, 3], about EDGE_MM from each other: corners [N, 3]
    int64 and barycentric weights [N, 3]."""
    at = mean[triangles]
    edge = (at - at.roll(1, 1)).norm(dim=-1).amax(1)
    parts = torch.ceil(edge / EDGE_MM).clamp(1, MOST).long()
    corners, weights = [], []
    for number in parts.unique().tolist():
        i, j = torch.triu_indices(number, number, device="cpu")
        inner = torch.stack([i, j - i, number - 1 - j], 1).to(mean) + 1 / 3
        own = triangles[parts == number]
        corners.append(own.repeat_interleave(len(inner), 0))
        weights.append((inner / number).repeat(len(own), 1))
    return torch.cat(corners), torch.cat(weights)
