"""The skin of MakeHuman's head that a scanner would see: the truth of rendered people holds no more."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.geometry.normals import vertex_normals
from fitkit.models.makehuman import OUTER, MakeHumanModel
from fitkit.render.rasterizer import rasterize

# What a scan of the mean head shows: directions, degrees; size of a pixel, mm; the widest slit that it does
# not look into, mm; how far behind the nearest surface a vertex may lie, mm; least cosine between normal and
# direction.
SCAN_YAWS, SCAN_DISTANCE_MM = (0.0, 45.0, -45.0, 80.0, -80.0), 1000.0
SCAN_PIXEL_MM, SCAN_GAP_MM, SCAN_TOLERANCE_MM, SCAN_COSINE = 0.25, 1.5, 0.5, 0.1


@functools.lru_cache(maxsize=1)
def scanned_skin(model: MakeHumanModel) -> Tensor:
    """Vertices [N] of the outer skin that a scan of the closed-mouth mean head shows: seen in one of
    SCAN_YAWS at least. The insides of lips, nostrils and lids are left out, also where a slit narrower than
    SCAN_GAP_MM would let a ray through.
    """
    mean, pixel = model.mean.double(), SCAN_PIXEL_MM
    normals = vertex_normals(model.mean[None], model.triangles)[0].double()
    side = 2 * round(SCAN_GAP_MM / pixel / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    seen = torch.zeros(model.num_vertices, dtype=torch.bool)
    for yaw in np.radians(SCAN_YAWS):
        toward = mean.new_tensor([np.sin(yaw), 0, np.cos(yaw)])
        across, near = mean @ mean.new_tensor([np.cos(yaw), 0, -np.sin(yaw)]), mean @ toward
        u, v, depth = (
            (across - across.min()) / pixel,
            (mean[:, 1].max() - mean[:, 1]) / pixel,
            SCAN_DISTANCE_MM - near,
        )
        w = torch.full_like(depth, SCAN_DISTANCE_MM)
        found = rasterize(
            torch.stack([u * w, v * w, depth, w], -1)[None],
            model.triangles,
            (int(v.max()) + 2, int(u.max()) + 2),
        )
        surface = torch.where(found.covered, SCAN_DISTANCE_MM - found.depth, -SCAN_DISTANCE_MM)[0].numpy()
        closed = torch.from_numpy(cv2.morphologyEx(surface, cv2.MORPH_CLOSE, disc))
        front = near >= closed[v.round().long(), u.round().long()] - SCAN_TOLERANCE_MM
        seen |= front & (normals @ toward > SCAN_COSINE)
    return (seen & (model.region < len(OUTER))).nonzero()[:, 0]
