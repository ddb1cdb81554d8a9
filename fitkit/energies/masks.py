"""Which pixels and vertices count: visibility, what two views share, weights of the parts of a face. Pure
functions.

Masks of pixels are [B, 1, H, W] in [0, 1], of vertices [B, V] bool; all are constants without gradient: an
energy that could move its mask would fall by shrinking it. They combine by product (`combine`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.errors import InputError
from fitkit.geometry.normals import vertex_normals
from fitkit.models.face_model import FaceModel
from fitkit.observe.face_parts import PARSE, ten
from fitkit.observe.sampling import erode
from fitkit.render.rasterizer import Fragments, interpolate, rasterize
from fitkit.render.visibility import seen_by_depth
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import back_project, carry, pixel_grid
from fitkit.scene.pose import Pose

Side = Literal["left", "right"]  # of the subject: 'left' holds points 8-16 and 22-26 of the 68
MIDLINE = (27, 28, 29, 30, 33, 8)  # of the 68, below the middle between the brows 21 and 22
HALF = {
    "right": ((17, 18, 19, 20, 21), tuple(range(0, 9))),
    "left": ((22, 23, 24, 25, 26), tuple(range(8, 17))),
}  # brow, jaw
RIDGE = (27, 28, 29, 30)
OUTER_LIPS = slice(48, 60)
FEATURE_MM = 12.0  # from a landmark of eyes, nose or mouth, see `weight_features`
# named classes weigh the first number, the rest of the face the second, the background the third
PARSE_WEIGHTS = {
    "dfmvr": (frozenset(PARSE[2:]), 254.0, 128.0, 32.0),  # DF-MVR eq. 2
    "pgn": (frozenset(PARSE[4:]), 5.0, 1.0, 0.0),  # PGN eq. 9: eyes, nose, mouth
}


# ---- vertices ----


def vis_normal(vertices: Tensor, triangles: Tensor, kind: str = "perspective") -> Tensor:
    """Vertices whose normal faces the camera; hidden ones behind the nose pass, see `vis_zbuf`.

    Args:
        vertices: [B, V, 3] mm, camera frame (z forward); triangles: [F, 3] int64, counter-clockwise seen from
            outside;
        kind: of the camera; 'orthographic' tests n_z < 0, 'perspective' the angle with the vertex's own ray.
    Returns:
        [B, V] bool.
    Source:
        PGN eq. 5 (there n_z > 0, with z towards the viewer).
    """
    with torch.no_grad():
        normals = vertex_normals(vertices, triangles)
        return (normals * vertices).sum(-1) < 0 if kind == "perspective" else normals[..., 2] < 0


def vis_zbuf(
    vertices: Tensor, triangles: Tensor, camera: Camera, size: tuple[int, int], tolerance_mm: float = 2.0
) -> Tensor:
    """Vertices at most `tolerance_mm` behind the nearest surface at their pixel, [B, V] bool.

    vertices: [B, V, 3] mm, camera frame; size: (H, W) of the pictures; outside of them nothing is visible.
    """
    with torch.no_grad():
        depth = rasterize(camera.clip(vertices), triangles, size).depth
        pixels, in_front = camera.project(vertices)
        return seen_by_depth(pixels, vertices[..., 2], depth, 1.0, tolerance_mm) & in_front


# ---- pixels: what two views share ----


def render_mask(fragments: Fragments) -> Tensor:
    """Pixels that the mesh covers, [B, 1, H, W]."""
    return fragments.covered[:, None].to(fragments.depth)


def covis_tri(triangle_a: Tensor, triangle_b: Tensor, triangles: Tensor) -> Tensor:
    """Pixels of view b that show a triangle touching a vertex of a triangle that both views see.

    Args:
        triangle_a, triangle_b: [G, H, W] int64 from `Fragments.triangle` (-1 where nothing), sizes may
            differ; triangles: [F, 3].
    Returns:
        [G, 1, H, W] of view b.
    Source:
        MGCNet (Shang et al., ECCV 2020), public code; its ring of touching triangles closes the holes between
        pixels.
    """
    with torch.no_grad():
        masks = []
        for a, b in zip(triangle_a, triangle_b):
            seen = torch.zeros(2, len(triangles), dtype=torch.bool, device=a.device)
            seen[0, a[a >= 0]] = True
            seen[1, b[b >= 0]] = True
            shared = torch.zeros(int(triangles.max()) + 1, dtype=torch.bool, device=a.device)
            shared[triangles[seen.all(0)].reshape(-1)] = True
            touching = shared[triangles].any(1)
            masks.append(touching[b.clamp_min(0)] & (b >= 0))
        return torch.stack(masks)[:, None].to(torch.get_default_dtype())


def covis_vertex(visible_a: Tensor, visible_b: Tensor, fragments_b: Fragments, triangles: Tensor) -> Tensor:
    """Product of both views' vertex visibilities [G, V], interpolated into view b: [G, 1, H, W]. Source: PGN
    eq. 5-6."""
    with torch.no_grad():
        both = visible_a.to(fragments_b.depth) * visible_b.to(fragments_b.depth)
        return interpolate(fragments_b, triangles, both[..., None])[..., 0][:, None]


def covis_lmk(points: Tensor, covered: Tensor, side: Side, band: float = 0.1) -> Tensor:
    """The half of the face towards one side, cut along the midline brows - nose ridge - chin.

    Args:
        points: [B, 68, 2] px; covered: [B, H, W] bool, the rendered face; side: which half of the subject is
            kept;
        band: share of the face width that is kept beyond the midline.
    Returns:
        [B, 1, H, W]. The midline continues straight along the line from the brows to the chin above and
        below.
    Source:
        MVF-Net section 3, which shows the cut in figures only; the straight continuation and the band are
        ours.
    """
    _check_side(side)
    with torch.no_grad():
        top = points[:, 21:23].mean(1)
        line = torch.cat([top[:, None], points[:, list(MIDLINE)]], 1)
        down = F.normalize(points[:, 8] - top, dim=-1)
        across = _turned(down, points[:, 16] - points[:, 0])  # to the subject's left
        s, t = (
            ((line - top[:, None]) * down[:, None]).sum(-1),
            ((line - top[:, None]) * across[:, None]).sum(-1),
        )
        s = s.cummax(1).values  # a nose that points down keeps the line a function of s
        place = pixel_grid(covered.shape[-2:], top)[None] - top[:, None]  # [B, H W, 2]
        ps, pt = (place * down[:, None]).sum(-1), (place * across[:, None]).sum(-1)
        middle = _piecewise(ps, s, t)
        width = ((points - top[:, None]) * across[:, None]).sum(-1)
        reach = band * (width.amax(1) - width.amin(1))[:, None]
        sign = 1.0 if side == "left" else -1.0
        keep = sign * (pt - middle) >= -reach
        return (keep.reshape(covered.shape) & covered)[:, None].to(points.dtype)


def covis_bbox(points: Tensor, face: Tensor, side: Side, pad: float = 3.0, level_eyes: bool = True) -> Tensor:
    """The face within the box of one half's brow (top), jaw (bottom and outer side) and nose ridge (inner
    side).

    Args:
        points: [B, 68, 2] px; face: [B, H, W] bool or in [0, 1], the rendered face, see `outside_mouth`;
        side: of the subject;
        pad: px around the box; level_eyes: False keeps the box axis-aligned, as printed.
    Returns:
        [B, 1, H, W].
    Source:
        MFNet eq. 5 (MB * MF); the box is turned with the line through the eyes (ours).
    """
    _check_side(side)
    with torch.no_grad():
        right, left = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
        along = (
            F.normalize(left - right, dim=-1)
            if level_eyes
            else torch.zeros_like(left) + points.new_tensor([1.0, 0.0])
        )
        down = torch.stack([-along[:, 1], along[:, 0]], -1)

        def turned(p):
            return torch.stack([(p * along[:, None]).sum(-1), (p * down[:, None]).sum(-1)], -1)

        p = turned(points)
        brow, jaw = HALF[side]
        around = p[:, list(brow + jaw)]
        ridge = p[:, list(RIDGE), 0]
        top, bottom = p[:, list(brow), 1].amin(1) - pad, p[:, list(jaw), 1].amax(1) + pad
        low, high = (
            (around[..., 0].amin(1), ridge.amax(1))
            if side == "right"
            else (ridge.amin(1), around[..., 0].amax(1))
        )
        x, y = turned(pixel_grid(face.shape[-2:], points)[None]).unbind(-1)
        inside = (
            (x >= low[:, None] - pad)
            & (x <= high[:, None] + pad)
            & (y >= top[:, None])
            & (y <= bottom[:, None])
        )
        return (inside.reshape(face.shape).to(points.dtype) * face.to(points.dtype))[:, None]


def outside_mouth(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels that lie outside of the outline of the lips, [B, H, W] bool; points: [B, 68, 2] px.

    Source: MFNet eq. 5, whose text leaves out the mouth. Even-odd rule along the rows.
    """
    with torch.no_grad():
        a = points[:, OUTER_LIPS]
        b = a.roll(-1, 1)
        x, y = (p[None, None] for p in pixel_grid(size, points).unbind(-1))
        (ax, ay), (bx, by) = (p.unbind(-1) for p in (a[:, :, None], b[:, :, None]))
        across = (ay <= y) != (by <= y)
        rise = torch.where(by == ay, torch.ones_like(ay), by - ay)
        left = x < ax + (y - ay) * (bx - ax) / rise
        inside = (across & left).sum(1) % 2 == 1
        return ~inside.reshape(-1, *size)


def covis_depth(
    depth_a: Tensor,
    camera_a: Camera,
    pose_a: Pose,
    depth_b: Tensor,
    camera_b: Camera,
    pose_b: Pose,
    tolerance_mm: float = 10.0,
) -> Tensor:
    """Pixels of view a whose surface point lies on the surface that view b sees.

    Args:
        depth_a: [G, H, W] mm, depth_b: [G, h, w] mm, 0 = nothing; cameras: in pixels of these maps; poses:
            head to camera;
        tolerance_mm: largest difference of depth in view b.
    Returns:
        [G, 1, H, W] of view a; 0 where the point falls outside view b or where view b shows nothing.
    Source:
        MVD (Shu et al.) eq. 12-13, whose 0.05 is of a depth without unit; 10 mm are ours.
    """
    with torch.no_grad():
        G, H, W = depth_a.shape
        z = depth_a.flatten(1)
        in_b = carry(back_project(depth_a, camera_a), pose_a, pose_b)
        pixels, in_front = camera_b.project(in_b)
        h, w = depth_b.shape[1:]
        place = torch.nan_to_num(pixels.round(), nan=-1.0).clamp(-1, max(h, w)).long()
        x, y = place.unbind(-1)
        inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
        there = depth_b.flatten(1).gather(1, y.clamp(0, h - 1) * w + x.clamp(0, w - 1))
        keep = (z > 0) & in_front & inside & (there > 0) & ((in_b[..., 2] - there).abs() < tolerance_mm)
        return keep.reshape(G, 1, H, W).to(depth_a.dtype)


# ---- weights from a face parse ----


def weight_parse(labels: Tensor, mask: Tensor, scheme: str = "dfmvr", grow: int = 5) -> Tensor:
    """Weights by face part, mean 1 over the mask.

    Args:
        labels: [B, H, W] int64, index into PARSE, or into `face_parts.PARTS`; mask: [B, 1, H, W] in [0, 1];
        scheme: 'dfmvr' (254 features, 128 skin, 32 background) or 'pgn' (5 eyes, nose and mouth, 1 rest of
            the face);
        grow: px by which the features are dilated within the face.
    Returns:
        [B, 1, H, W], 0 outside the mask.
    Source:
        DF-MVR eq. 2 (its text dilates by 20 px, its code by about 5); PGN eq. 9.
    """
    if scheme not in PARSE_WEIGHTS:
        raise InputError(f"weight_parse: expected scheme {' or '.join(PARSE_WEIGHTS)}; got '{scheme}'")
    with torch.no_grad():
        named, high, middle, low = PARSE_WEIGHTS[scheme]
        labels = ten(labels)
        features = torch.isin(
            labels, torch.tensor([k for k, name in enumerate(PARSE) if name in named], device=labels.device)
        )
        face = labels > 0
        grown = -erode(-features[:, None].to(mask), grow)[:, 0] > 0 if grow > 0 else features
        weight = torch.where(grown & face, high, torch.where(face, middle, low))[:, None].to(mask) * mask
        return weight * (
            mask.sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
        )


def weight_features(model: FaceModel, factor: float) -> Tensor:
    """Weights by triangle of the model, [F]: 1 on eyes, nose and mouth, 1 / factor elsewhere.

    A triangle belongs to them whose corners lie within 12 mm of landmarks 27 to 67 on the mean face.
    Source: W of PGN eq. 9 and 10 (factor 5), which is painted on the model; the distance is ours.
    """
    points = model.landmark_basis.mean[27:][model.landmarks.present[27:]]
    near = torch.cdist(model.mean, points.to(model.mean)).amin(1) <= FEATURE_MM
    inside = near[model.triangles].all(1)
    return torch.where(inside, 1.0, 1.0 / factor).to(model.mean)


def occl_parse(labels: Tensor, occluders: Sequence[int]) -> Tensor:
    """1 where the parse shows none of `occluders` (the parser's classes for hair, glasses, hand ...): labels
    [B, H, W] -> [B, 1, H, W]."""
    with torch.no_grad():
        hidden = torch.isin(labels, torch.tensor(list(occluders), dtype=labels.dtype, device=labels.device))
        return (~hidden)[:, None].to(torch.get_default_dtype())


# ---- combinations ----


def combine(*masks: Tensor, erosion: int = 2) -> Tensor:
    """Product of masks [B, 1, H, W], eroded by `erosion` px; beyond the picture nothing counts (a 7 x 7
    census: 3 px more)."""
    with torch.no_grad():
        product = math.prod(masks[1:], start=masks[0]) if masks else None
        if product is None:
            raise InputError("combine: expected at least one mask, got none")
        if erosion <= 0:
            return product.clone()
        return erode(F.pad(product, (erosion,) * 4), erosion)[..., erosion:-erosion, erosion:-erosion]


def union(*masks: Tensor) -> Tensor:
    """Largest of masks [B, 1, H, W]; MVF-Net joins the masks of photo and rendering this way in its photo
    loss."""
    with torch.no_grad():
        return torch.stack(masks).amax(0)


# ---- helpers ----


def _check_side(side: str) -> None:
    if side not in HALF:
        raise InputError(f"side of the face: expected left or right (the subject's), got '{side}'")


def _turned(down: Tensor, towards: Tensor) -> Tensor:
    """Unit vectors [B, 2] at a right angle to `down`, on the side of `towards`."""
    across = torch.stack([down[:, 1], -down[:, 0]], -1)
    return torch.where((across * towards).sum(-1, keepdim=True) < 0, -across, across)


def _piecewise(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear function through (at, values) [B, K] (`at` rising) at x [B, N], constant beyond the
    ends."""
    place = torch.searchsorted(at.contiguous(), x.contiguous()).clamp(1, at.shape[1] - 1)
    x0, x1, y0, y1 = (table.gather(1, index) for table in (at, values) for index in (place - 1, place))
    share = ((x - x0) / (x1 - x0).clamp_min(1e-9)).clamp(0, 1)
    return y0 + share * (y1 - y0)
