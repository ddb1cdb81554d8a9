"""Labels that depend on the picture or the camera, moved along when a picture is cut or its camera is
replaced."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.observe.labels import MAPS, Labels
from fitkit.observe.sampling import sample
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import JUMP_MM, back_project, carry, pixel_grid
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

PLACES = ("crop_points", "crop_vertices")  # labels in px of the crop


def in_crop(points: Tensor, camera: Camera, among: Tensor | None = None) -> Tensor:
    """Camera-frame points [B, N, 3] mm -> `Labels.crop_points`: x, y px of the camera's pictures, and how far
    each lies behind the nearest of the points `among` [B, M, 3], or of its own frame's, in px of the scale at
    the mean depth of these."""
    pixels, _ = camera.project(points)
    z = (points if among is None else among)[..., 2:]
    far = z.mean(1) if camera.kind == "perspective" else torch.full_like(z[:, 0], camera.REFERENCE_DEPTH)
    behind = points[..., 2:] - z.amin(1, keepdim=True)
    return torch.cat([pixels, behind * (camera.focal[:, None] / far)[..., None]], -1)


def cut_labels(labels: Labels, scale: Tensor, offset: Tensor, size: tuple[int, int]) -> Labels:
    """Labels of pictures -> those of their crops.

    Maps are read at the place of each pixel of the crop: classes and validity from the nearest pixel; depth
    and normals in between where all four pixels around show one surface, else from the nearest, so that no
    edge is mixed. Beyond the picture nothing is known: no surface, class 0 that is not valid.

    Args:
        scale [B], offset [B, 2]: crop pixel = scale * (pixel - offset); size: (H, W) of the crops.
    """
    state = labels.state
    if state is not None:
        focal = state.camera.focal
        state = state.replace(camera=state.camera.scaled(scale.to(focal), offset.to(focal)))

    def placed(points: Tensor) -> Tensor:
        moved = points[..., :2] - offset.to(points)[:, None]
        return torch.cat([moved, points[..., 2:]], -1) * scale.to(points)[:, None, None]

    pixels = pixel_grid(size, offset)[None] / scale[:, None, None] + offset[:, None]  # [B, h w, 2]
    return _maps_at(replace(labels.each(placed, PLACES), state=state), pixels, size)


def roll_labels(labels: Labels, turn: Tensor, center: Tensor) -> Labels:
    """Labels of pictures that are turned in their plane: pixel p is then at center + turn @ (p - center).

    The same is seen by cameras with square pixels that roll about their axes and move their principal points.

    Args:
        turn: [B, 2, 2] rotations; center: [B, 2] px.
    """

    def moved(places: Tensor) -> Tensor:  # [B, N, 2]
        at = center.to(places)[:, None]
        return (places - at) @ turn.to(places).transpose(1, 2) + at

    roll = torch.eye(3).to(turn).repeat(len(turn), 1, 1)
    roll[:, :2, :2] = turn
    state = labels.state
    if state is not None:
        pose, own = state.pose, roll.to(state.pose.rotation)
        pose = Pose(own @ pose.rotation, (own @ pose.translation[..., None])[..., 0])
        camera = replace(state.camera, principal=moved(state.camera.principal[:, None])[:, 0])
        state = state.replace(pose=pose, camera=camera)
    labels = replace(labels, state=state)
    labels = labels.each(lambda points: torch.cat([moved(points[..., :2]), points[..., 2:]], -1), PLACES)
    labels = labels.each(lambda x: x @ roll.to(x).transpose(1, 2), ("vertices",))
    labels = labels.each(lambda x: torch.einsum("bij,bjhw->bihw", roll.to(x), x), ("normals",))
    size = next((tuple(x.shape[-2:]) for m in MAPS if (x := getattr(labels, m)) is not None), None)
    if size is None:
        return labels
    at = center[:, None]
    return _maps_at(labels, (pixel_grid(size, center)[None] - at) @ turn + at, size)


def _maps_at(labels: Labels, pixels: Tensor, size: tuple[int, int]) -> Labels:
    """With maps of `size` (H, W) read at `pixels` [B, H W, 2] of those that are there."""

    def shaped(values: Tensor) -> Tensor:  # [B, h w, C] -> [B, C, h, w]
        return values.transpose(1, 2).unflatten(2, size)

    parse, known = labels.parse, labels.parse_valid
    if parse is not None:
        everywhere = torch.ones_like(parse, dtype=torch.bool) if known is None else known
        values, inside = _nearest(torch.stack([parse, everywhere.to(parse)], 1), pixels)
        parse, valid = shaped(values * inside[..., None]).unbind(1)
        known = None if known is None and bool(inside.all()) else valid > 0
    cut = replace(labels, parse=parse, parse_valid=known)
    cut = cut.each(lambda depth: shaped(_depth(depth[:, None], pixels))[:, 0], ("depth", "prior_depth"))
    cut = cut.each(
        lambda trust: shaped(sample(trust[:, None], pixels)[0])[:, 0] * (cut.prior_depth > 0),
        ("prior_trust",),
    )
    return cut.each(lambda normals: shaped(_normals(normals, pixels)), ("normals",))


def turn_labels(labels: Labels, state: SceneState) -> Labels:
    """Labels in the camera frames of `labels.state` -> in those of `state`, which shows the same heads
    through other cameras.

    Maps stay at their pixels: the new cameras are thought to take the same pictures.
    """
    old = labels.state
    turn = state.pose.rotation @ old.pose.rotation.transpose(-1, -2)  # camera_from_camera

    def carried(points: Tensor) -> Tensor:
        return carry(points.to(turn), old.pose, state.pose).to(points)

    def deep(depth: Tensor) -> Tensor:
        z = carried(back_project(depth.to(turn), old.camera))[..., 2]
        return torch.where(depth > 0, z.reshape(depth.shape).to(depth), 0)

    moved = labels.each(deep, ("depth", "prior_depth")).each(carried, ("vertices",))
    moved = moved.each(
        lambda normals: torch.einsum("bij,bjhw->bihw", turn.to(normals), normals), ("normals",)
    )
    return replace(moved, state=state)


def _nearest(maps: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, N, C] of maps [B, C, H, W] at the pixels nearest to `pixels` [B, N, 2], and [B, N] whether
    that is one of the map's."""
    H, W = maps.shape[-2:]
    x, y = (pixels + 0.5).floor().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < W) & (y < H)
    place = y.clamp(0, H - 1) * W + x.clamp(0, W - 1)
    values = maps.flatten(2).gather(2, place[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
    return values, inside


def _depth(depth: Tensor, pixels: Tensor) -> Tensor:
    """[B, N, 1] from [B, 1, H, W]."""
    nearest, inside = _nearest(depth, pixels)
    between, within = sample(depth, pixels)
    return torch.where(_one_surface(depth, pixels) & within[..., None], between, nearest * inside[..., None])


def _normals(normals: Tensor, pixels: Tensor) -> Tensor:
    """[B, N, 3] from [B, 3, H, W]."""
    there = (normals != 0).any(1, keepdim=True)
    nearest, inside = _nearest(normals, pixels)
    between, within = sample(normals, pixels)
    whole = sample(there.to(normals), pixels)[0] > 0.999
    return torch.where(whole & within[..., None], F.normalize(between, dim=-1), nearest * inside[..., None])


def _one_surface(depth: Tensor, pixels: Tensor) -> Tensor:
    """Whether the four pixels around each of `pixels` show a surface without a jump, [B, N, 1]."""
    corner = pixels.floor()
    moves = [(0, 0), (1, 0), (0, 1), (1, 1)]
    around = torch.stack([_nearest(depth, corner + corner.new_tensor(move))[0] for move in moves])
    low, high = around.amin(0), around.amax(0)
    return (low > 0) & (high - low < JUMP_MM)
