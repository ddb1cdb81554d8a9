"""Training crops of observations: cut around the landmarks, shifted and exposed at random, with all labels
moved along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from fitkit.data.color_match import match_colors
from fitkit.data.photo_changes import PhotoChanges, change_photos
from fitkit.errors import InputError
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.options import Range, Share
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.label_crops import cut_labels, roll_labels
from fitkit.observe.observations import Observations
from fitkit.scene.depth_state import pixel_grid
from fitkit.scene.pose import yaw_pitch_roll

MIN_POINTS = 8  # a view with fewer landmarks cannot be cut


@dataclass(frozen=True)
class FaceAugmentation:
    """What is changed at random in a sample of a training."""

    # Most by which a crop is moved, share of its side; MVF-Net: 0.05.
    shift: Annotated[float, Range(0.0, 10.0)] = 0.05
    zoom: Annotated[float, Range(0.0, 3.0)] = 0.0  # most logarithm of the change of its side
    rotate: Annotated[float, Range(0.0, 180.0)] = 0.0  # most degrees by which a picture is turned; PGN: 45
    gain: Annotated[float, Range(0.0, 10.0)] = 0.15  # most change of the exposure, factor
    offset: Annotated[float, Range(0.0, 10.0)] = 0.03  # and share of white
    missing: Share = 0.0  # of views, beyond the first of a person, that are taken away
    # Share of the people of whom one view alone is left, any with the same probability; DF-MVR: 1/3.
    alone: Share = 0.0
    # Most change of brightness, contrast, saturation and sharpness, each a factor; DF-MVR: 0.5.
    jitter: Share = 0.0
    blur: Share = 0.0  # share of the pictures that are blurred, of people with `colors` 'person'; DF-MVR: 0.3
    # The same exposure and colours for all views of a person, or each its own; 'auto': the same in stages
    # with an energy that compares views, as Shu et al. have it.
    colors: Literal["auto", "person", "view"] = "auto"
    photo: PhotoChanges = PhotoChanges()  # of each photo for itself
    # Folder of pictures whose colours the photos of a person take, see `color_match`; empty: none.
    references: str = ""
    matched: Share = 0.5  # of the people that take some


PLAIN = FaceAugmentation(shift=0.0, gain=0.0, offset=0.0)


def recrop(
    observations: Observations, crop: CropOptions, where: str, shift: Tensor | None = None
) -> Observations:
    """The views cut anew around their landmarks to squares of crop.max_size; all labels move along.

    shift: [B, 2], by how much the crops are moved, share of the side.

    Raises:
        InputError: a view with too few landmarks; `where` names it.
    """
    marks = observations.landmarks
    few = (marks.valid.sum(1) < MIN_POINTS).nonzero().flatten().tolist()
    if few:
        raise InputError(
            f"{where}: view {few[0] + 1}: expected at least {MIN_POINTS} landmarks to cut it around, "
            f"got {int(marks.valid[few[0]].sum())}"
        )
    moved = marks.points
    if shift is not None:
        low = torch.where(marks.valid[..., None], moved, torch.inf).amin(1)
        high = torch.where(marks.valid[..., None], moved, -torch.inf).amax(1)
        by = shift * crop.margin * (high - low).amax(1, keepdim=True)
        moved = moved + by[:, None]
    images = observations.images
    if crop.fill == "black":  # what was filled before lies beyond the mask
        images = torch.where(observations.mask[:, None], images, 0.0)
    images = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    cut = crop_views(list(images), list(observations.mask.numpy()), replace(marks, points=moved), crop)
    points = (marks.points - cut.offset[:, None]) * cut.scale[:, None, None]
    labels = observations.labels
    if labels is not None:
        labels = cut_labels(labels, cut.scale, cut.offset, cut.size)
    return Observations(
        cut.images,
        replace(cut.landmarks, points=points),
        cut.mask,
        observations.scale * cut.scale,
        observations.offset + cut.offset / observations.scale[:, None],
        labels,
    )


def roll(observations: Observations, degrees: Tensor) -> Observations:
    """The views turned in their plane, each around the middle of its landmarks; all labels move along.

    degrees: [B], clockwise as one sees it. What comes from beyond a picture is grey and not usable. The
    place of a crop in its photo, `scale` and `offset`, stays as it was, which is no longer true.
    """
    marks, size = observations.landmarks, observations.size
    angle = torch.deg2rad(degrees).to(marks.points)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    weight = marks.valid[..., None].to(marks.points)
    center = (torch.nan_to_num(marks.points) * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    at = center[:, None]
    pixels = (pixel_grid(size, center)[None] - at) @ turn + at  # where each pixel comes from
    last = pixels.new_tensor([size[1] - 1, size[0] - 1])
    inside = ((pixels >= 0) & (pixels <= last)).all(-1).unflatten(1, size)
    both = torch.cat([observations.images, observations.mask[:, None].to(observations.images)], 1)
    places = (pixels * (2 / last.clamp_min(1)) - 1).to(both).unflatten(1, size)
    values = F.grid_sample(both, places, padding_mode="border", align_corners=True)
    labels = observations.labels
    return replace(
        observations,
        images=torch.where(inside[:, None], values[:, :-1], 0.5),
        mask=inside & (values[:, -1] > 0.5),
        landmarks=replace(marks, points=(marks.points - at) @ turn.transpose(1, 2) + at),
        labels=None if labels is None else roll_labels(labels, turn, center),
    )


def augment(
    observations: Observations,
    crop: CropOptions,
    options: FaceAugmentation,
    rng: np.random.Generator,
    where: str,
) -> Observations:
    """`roll` and `recrop` with random shift and exposure; `rng` alone decides. See `FaceAugmentation`; here
    'auto' is 'view'."""
    B = observations.num_views
    draws = torch.from_numpy(rng.uniform(-1, 1, (B, 4))).float()
    if options.rotate > 0:
        turns = torch.from_numpy(rng.uniform(-1, 1, B)).float()
        observations = roll(observations, options.rotate * turns)
    if options.colors == "person":
        draws[:, 2:] = draws[:1, 2:].clone()
    if options.zoom > 0:  # one for all views of a sample, which are cut to one size
        crop = replace(crop, margin=crop.margin * float(np.exp(rng.uniform(-1, 1) * options.zoom)))
    out = recrop(observations, crop, where, options.shift * draws[:, :2] if options.shift > 0 else None)
    if options.references and rng.random() < options.matched:
        out = match_colors(out, options.references, rng)
    if options.gain > 0 or options.offset > 0:
        images = (
            out.images * (1 + options.gain * draws[:, 2, None, None, None])
            + options.offset * draws[:, 3, None, None, None]
        )
        out = replace(out, images=images.clamp(0, 1))
    if options.jitter > 0 or options.blur > 0:
        out = replace(out, images=_jittered(out.images, options, rng))
    return change_photos(out, options.photo, rng, where)


BLUR = (0.0009, 0.0045)  # standard deviations, share of the side: 0.2 to 1 px of 224


def _jittered(images: Tensor, options: FaceAugmentation, rng: np.random.Generator) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with other brightness, contrast, saturation and sharpness, in this order,
    and blurred. Source: DF-MVR, public code; contrast and sharpness as Pillow defines them."""
    factors = 1 + options.jitter * rng.uniform(-1, 1, (len(images), 4))
    blurred, sigma = rng.random(len(images)) < options.blur, rng.uniform(*BLUR, len(images))
    if options.colors == "person":
        factors, blurred, sigma = (np.broadcast_to(x[:1], x.shape) for x in (factors, blurred, sigma))
    out = []
    for image, own, soft, width in zip(images, factors, blurred, sigma):
        picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        if options.jitter > 0:
            for change, factor in zip(CHANGES, own):
                picture = change(picture).enhance(float(factor))
        if soft:
            picture = picture.filter(ImageFilter.GaussianBlur(float(width) * picture.width))
        out.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
    return torch.stack(out)


CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)


def without_missing(there: list[int], options: FaceAugmentation, rng: np.random.Generator) -> list[int]:
    """Of the views (slots) of a person those that are left, see `FaceAugmentation`; at least one."""
    if options.alone > 0 and rng.random() < options.alone:
        return [there[rng.integers(len(there))]]
    absent = rng.random(len(there)) < options.missing
    absent[rng.integers(len(there))] = False  # somebody has to be there
    return [s for s, gone in zip(there, absent) if not gone]


def head_yaw(observations: Observations, model: FaceModel) -> list[float]:
    """Yaw of each view's head in degrees (`yaw_pitch_roll`): that of the labelled pose, or of the landmarks
    on the mean face."""
    labels = observations.labels
    if labels is not None and labels.state is not None and "pose" in labels.known:
        return yaw_pitch_roll(labels.state.pose.rotation)[:, 0].tolist()
    marks = observations.landmarks
    _, rotation, _ = weak_perspective_pose(
        model.landmark_basis.mean[None].to(marks.points),
        torch.nan_to_num(marks.points),
        marks.valid.float() * marks.confidence.clamp_min(1e-3),
    )
    return yaw_pitch_roll(rotation)[:, 0].tolist()
