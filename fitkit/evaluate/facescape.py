"""Metrics of the FaceScape benchmark: alignment in depth, cylinder maps, CD, MNE and CR.

Source: Zhu et al., "FaceScape: 3D facial dataset and benchmark for single-view 3D face reconstruction", TPAMI
2023, and its public evaluator as of 2023-10, whose quirks are kept and named. Pose and expression count:
nothing is rotated, only scale or depth is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fitkit.errors import DegenerateInputError
from fitkit.evaluate.distances import chamfer
from fitkit.geometry.normals import triangle_normals
from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera

SIZE = 256  # px of the depth maps and cells of the cylinder map
HEIGHT_MM = 150.0  # the cylinder map reaches from this height above the head's centre to as much below
JUMP_MM = 15.0  # faces of the rebuilt surface do not bridge larger jumps of the radius


# ---- alignment ----


def wild_frame(
    posed: np.ndarray, px_per_mm: float, principal: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Camera-frame vertices [V, 3] mm (x right, y down, z forward) -> the frame of FS-Wild: the picture is
    [-1, 1]^2, y up, z towards the viewer, mean z -2.

    The perspective is taken out at the mean depth, as the benchmark does for perspective methods. px_per_mm:
    focal length over that depth; principal [2] px, size (W, H) px of the picture.
    """
    depth = float(posed[:, 2].mean())
    scale = 2 * px_per_mm / max(size)
    center = (2 * (np.asarray(principal) + 0.5) - size) / max(size)
    out = scale * np.asarray(posed, np.float64) * [1, -1, -1]
    out[:, :2] += center * [1, -1]
    out[:, 2] += scale * depth - 2.0
    return out


def align_wild(
    truth: np.ndarray,
    truth_triangles: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    pupil_scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """FS-Wild: both meshes (wild frame) times the pupil scale, the prediction shifted in z -> both in mm, [W,
    3] and [V, 3].

    The shift minimises sum |z_truth - dz - z_prediction| over the pixels that both orthographic depth maps
    cover: their median difference, in closed form.
    """
    gt, ours = pupil_scale * np.asarray(truth, np.float64), pupil_scale * np.asarray(vertices, np.float64)
    maps = [_orthographic_depth(*mesh, pupil_scale) for mesh in ((gt, truth_triangles), (ours, triangles))]
    return gt, ours - [0, 0, _depth_difference(*maps)]


def through_lens(posed: np.ndarray, px_per_mm: float, principal: np.ndarray, K: np.ndarray) -> np.ndarray:
    """A scaled-orthographic view as the true camera sees it most nearly: camera-frame vertices [V, 3] mm ->
    the same. The middle of the mesh stays in its place of the picture, as large, and is seen from the same
    side.

    px_per_mm, principal [2] px: of the orthographic camera; K: [3, 3] px, of the picture as for `align_lab`.
    """
    posed = np.asarray(posed, np.float64)
    middle = posed.mean(0)
    pixel = px_per_mm * middle[:2] + np.asarray(principal, np.float64)
    focal, center = np.array([K[0, 0], K[1, 1]]), np.array([K[0, 2], K[1, 2]]) - 0.5
    line = np.append((pixel - center) / focal, 1.0)
    turn = rotation_between_axis_and(torch.from_numpy(line)[None])[0].numpy()
    return (posed - middle) @ turn.T + line * focal[0] / px_per_mm


def align_lab(
    truth: np.ndarray, truth_triangles: np.ndarray, vertices: np.ndarray, triangles: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """FS-Lab: the prediction scaled about the camera so that its depth agrees -> [V, 3] mm; both in the
    camera frame (OpenCV), mm.

    K: [3, 3] px of the 256 px picture. With d the median difference of the depth maps and m the mean true
    depth of the common pixels, the scale is m / (m - d), which leaves the picture of the mesh unchanged.
    """
    camera = Camera(
        torch.tensor([K[0, 0]]).float(),
        torch.tensor([[K[0, 2] - 0.5, K[1, 2] - 0.5]]).float(),
        torch.tensor([K[1, 1] / K[0, 0]]).float(),
    )
    maps = [
        _depth(camera.clip(torch.from_numpy(np.asarray(v)).float()[None]), t)
        for v, t in ((truth, truth_triangles), (vertices, triangles))
    ]
    difference = _depth_difference(*maps)
    middle = float(maps[0][(maps[0] > 0) & (maps[1] > 0)].mean())
    return np.asarray(vertices, np.float64) * (middle / (middle - difference))


def _orthographic_depth(vertices: np.ndarray, triangles: np.ndarray, reach: float) -> np.ndarray:
    """Depth [256, 256] mm along -z of a mesh seen by an orthographic camera that spans -reach to reach; 0 =
    nothing."""
    focal = Camera.REFERENCE_DEPTH * SIZE / 2 / reach
    camera = Camera(
        torch.tensor([focal]).float(), torch.full((1, 2), (SIZE - 1) / 2), torch.ones(1), "orthographic"
    )
    return _depth(camera.clip(torch.from_numpy(vertices * [1, -1, -1]).float()[None]), triangles)


def _depth(clip: torch.Tensor, triangles: np.ndarray) -> np.ndarray:
    return (
        rasterize(clip, torch.from_numpy(np.asarray(triangles, np.int64)), (SIZE, SIZE))
        .depth[0]
        .double()
        .numpy()
    )


def _depth_difference(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Median of truth - prediction where both maps are covered."""
    common = (truth > 0) & (prediction > 0)
    if not common.any():
        raise DegenerateInputError(
            "FaceScape: prediction and ground truth cover no common pixel; the prediction must be in the "
            "camera of its picture"
        )
    return float(np.median((truth - prediction)[common]))


# ---- cylinder maps ----


@dataclass(frozen=True)
class CylinderMap:
    """What rays from the head's vertical axis meet, 256 heights x 256 angles.

    radius: [256, 256] mm, 0 = nothing; triangle: [256, 256] the hit triangle, -1 = nothing. Row 0 lies at
    +150 mm, column j at the angle 2 pi j / 255 (the last column repeats the first), direction (-sin, 0,
    -cos).
    """

    radius: np.ndarray
    triangle: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        return self.triangle >= 0


def cylinder_map(vertices: np.ndarray, triangles: np.ndarray) -> CylinderMap:
    """The cylinder map of a mesh in the head's frame (mm, centre of the head at 0, y up).

    Where a ray meets several surfaces the farthest counts: the evaluator writes its hits in the order of the
    ray tracer, from near to far, and the last one stays.
    """
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    heights = np.linspace(HEIGHT_MM, -HEIGHT_MM, SIZE)
    step = heights[0] - heights[1]
    radius, winner = np.zeros((SIZE, SIZE)), np.full((SIZE, SIZE), -1)
    y = vertices[triangles][..., 1]
    first = np.clip(np.ceil((HEIGHT_MM - y.max(1)) / step - 1e-9), 0, SIZE).astype(int)
    last = np.clip(np.floor((HEIGHT_MM - y.min(1)) / step + 1e-9), -1, SIZE - 1).astype(int)
    owner, row = _runs(first, last)
    level = heights[row]
    a, b = _cut_at_height(vertices[triangles[owner]], level)
    start = np.arctan2(-a[:, 0], -a[:, 1]) % (2 * np.pi)
    sweep = (np.arctan2(-b[:, 0], -b[:, 1]) - start + np.pi) % (2 * np.pi) - np.pi  # the short way round
    low = np.where(sweep < 0, start + sweep, start)
    unit = 2 * np.pi / (SIZE - 1)
    piece, column = _runs(
        np.ceil(low / unit - 1e-9).astype(int), np.floor((low + np.abs(sweep)) / unit + 1e-9).astype(int)
    )
    angle = column * unit
    direction = np.stack([-np.sin(angle), -np.cos(angle)], 1)
    p, edge = a[piece], (b - a)[piece]
    cross = edge[:, 0] * direction[:, 1] - edge[:, 1] * direction[:, 0]
    usable = np.abs(cross) > 1e-12
    r = np.where(usable, (edge[:, 0] * p[:, 1] - edge[:, 1] * p[:, 0]) / np.where(usable, cross, 1.0), 0.0)
    column = column % (SIZE - 1)
    order = np.argsort(r, kind="stable")
    order = order[r[order] > 0]
    radius[row[piece[order]], column[order]] = r[order]
    winner[row[piece[order]], column[order]] = owner[piece[order]]
    radius[:, -1], winner[:, -1] = radius[:, 0], winner[:, 0]
    return CylinderMap(radius, winner)


def _runs(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For ranges first..last (inclusive; empty when last < first): the index of each range and each number in
    it."""
    count = np.maximum(last - first + 1, 0)
    owner = np.repeat(np.arange(len(first)), count)
    return owner, first[owner] + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _cut_at_height(corners: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [M, 3, 3] cut by the planes y = level [M] -> both ends (x, z) of each cut, [M, 2]."""
    order = np.argsort(corners[..., 1], axis=1)
    low, mid, high = (np.take_along_axis(corners, order[:, k : k + 1, None], 1)[:, 0] for k in range(3))

    def at(p, q):
        rise = q[:, 1] - p[:, 1]
        t = np.clip((level - p[:, 1]) / np.where(rise > 0, rise, 1.0), 0, 1)
        return (p + t[:, None] * (q - p))[:, [0, 2]]

    return at(low, high), np.where((level > mid[:, 1])[:, None], at(mid, high), at(low, mid))


def cylinder_mesh(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a radius map [256, 256] mm (0 = nothing): vertices [V, 3] and triangles [F, 3]; jumps
    stay open."""
    N = SIZE
    angle = np.arange(N) * 2 * np.pi / (N - 1)
    heights = np.linspace(HEIGHT_MM, -HEIGHT_MM, N)
    grid = np.stack(
        [-radius * np.sin(angle), np.broadcast_to(heights[:, None], (N, N)), -radius * np.cos(angle)], -1
    ).reshape(-1, 3)
    here = radius[:-1, :-1]
    jump = np.max(
        [np.abs(here - radius[1:, :-1]), np.abs(here - radius[:-1, 1:]), np.abs(here - radius[1:, 1:])],
        axis=0,
    )
    cell = np.flatnonzero(np.pad((jump < JUMP_MM) & (here > 0), ((0, 1), (0, 1))).ravel())
    triangles = np.concatenate(
        [np.stack([cell, cell + N, cell + 1], 1), np.stack([cell + N + 1, cell + 1, cell + N], 1)]
    )
    index, inverse = np.unique(triangles, return_inverse=True)
    return grid[index], inverse.reshape(-1, 3)


# ---- metrics ----


@dataclass(frozen=True)
class FaceScapeErrors:
    """cd: mm; mne_facescape: radians with the evaluator's quirk, for its tables; mne_true: radians; cr: share
    of the truth covered."""

    cd: float
    mne_facescape: float
    mne_true: float
    cr: float


def colour_normal_angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The evaluator's angle [N] rad between unit normals [N, 3]: each n is replaced by (n + 1) / |n + 1|, as
    if it were a colour, so that it comes out smaller than the true angle and depends on the direction."""
    return true_normal_angle(
        *((n + 1) / np.maximum(np.linalg.norm(n + 1, axis=-1, keepdims=True), 1e-12) for n in (one, other))
    )


def true_normal_angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angle [N] rad between unit vectors [N, 3]."""
    return np.arccos(np.clip((one * other).sum(-1), -1, 1))


def facescape_errors(
    truth: np.ndarray,
    truth_triangles: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    rotation: np.ndarray,
    center: np.ndarray,
) -> FaceScapeErrors:
    """CD, MNE and CR of a prediction that `align_wild` or `align_lab` has placed.

    Args:
        truth [W, 3] mm, truth_triangles [G, 3]; vertices [V, 3] mm, triangles [F, 3]; rotation [3, 3] and
        center [3] mm: the true pose of the head, x = rotation @ x_head + center.
    Raises:
        DegenerateInputError: no cell of the cylinder map is covered by both.
    """
    frames = [(np.asarray(v, np.float64) - center) @ rotation for v in (truth, vertices)]
    gt, ours = (cylinder_map(v, t) for v, t in zip(frames, (truth_triangles, triangles)))
    common = gt.hit & ours.hit
    if not common.any():
        raise DegenerateInputError(
            "FaceScape: the cylinder maps of prediction and ground truth have no common cell"
        )
    normals = [
        triangle_normals(torch.from_numpy(v)[None], torch.from_numpy(np.asarray(t, np.int64)))[0].numpy()[
            m.triangle[common]
        ]
        for v, t, m in zip(frames, (truth_triangles, triangles), (gt, ours))
    ]
    keep = np.logical_and(*((n != 0).any(1) for n in normals))
    one, other = (n[keep] for n in normals)
    meshes = [cylinder_mesh(np.where(common, m.radius, 0)) for m in (gt, ours)]
    # Too few cells for a single triangle: the distance is not defined, as with the evaluator's empty meshes.
    cd = chamfer(*meshes[0], *meshes[1]) if all(len(t) for _, t in meshes) else float("nan")
    return FaceScapeErrors(
        cd,
        float(colour_normal_angle(one, other).mean()),
        float(true_normal_angle(one, other).mean()),
        float(common.sum() / gt.hit.sum()),
    )
