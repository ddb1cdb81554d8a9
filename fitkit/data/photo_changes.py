"""Random changes of single photos in a training: mirrored, covered, and what cameras and files do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fitkit.data.landmark_frames import Augmentation, cover, degrade
from fitkit.errors import InputError
from fitkit.io.options import Share
from fitkit.observe.face_parts import MIRRORED_PARTS, PARTS
from fitkit.observe.landmarks.types import MIRRORED
from fitkit.observe.observations import Observations

MOVABLE = frozenset({"parse", "parse_valid", "person", "moment"})  # labels that follow
OCCLUDER = PARTS.index("occluder")


@dataclass(frozen=True)
class PhotoChanges:
    """What is changed at random in each photo. Shares are probabilities.

    mirror: share; cover: share of photos that patches are laid over, which are `occluder` in the labelled
    parse; degrade: share whose light, colours, sharpness and noise change as in trainings of the landmark
    network. `mirror` moves no labels but the parse. `cover` leaves all others as they are: what lies behind
    a patch is still known.
    """

    mirror: Share = 0.0
    cover: Share = 0.0
    degrade: Share = 0.0


def change_photos(
    observations: Observations, options: PhotoChanges, rng: np.random.Generator, where: str
) -> Observations:
    """The same views changed; `rng` alone decides. A parse has to be in the numbers of `face_parts.PARTS`.

    Raises:
        InputError: labels that cannot follow; `where` names the sample.
    """
    if options == PhotoChanges():
        return observations
    labels = observations.labels
    lost = sorted((frozenset() if labels is None else labels.parts) - MOVABLE)
    if options.mirror > 0 and lost:
        raise InputError(
            f"{where}: photos that are mirrored can have a face parse as label, this one has "
            f"{', '.join(lost)}; set mirror of augmentation.photo to 0"
        )
    views = [
        _change(observations.select(torch.tensor([b])), options, rng) for b in range(observations.num_views)
    ]
    joined = Observations.join([replace(v, labels=None) for v in views])
    if labels is None or labels.parse is None:
        return replace(joined, labels=labels)
    parse, known = (torch.cat([getattr(v.labels, name) for v in views]) for name in ("parse", "parse_valid"))
    return replace(joined, labels=replace(labels, parse=parse, parse_valid=known))


def _change(view: Observations, options: PhotoChanges, rng: np.random.Generator) -> Observations:
    """One view; its parse, where it has one, is given with what is known of it."""
    image = (view.images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    points, valid = view.landmarks.points[0].numpy(), view.landmarks.valid
    mask, labels = view.mask[0].numpy(), view.labels
    parse, known = np.zeros(mask.shape, np.uint8), np.ones_like(mask)
    if labels is not None and labels.parse is not None:
        parse = labels.parse[0].numpy().astype(np.uint8)
        known = known if labels.parse_valid is None else labels.parse_valid[0].numpy()
    W = image.shape[1]
    if rng.random() < options.mirror:
        image, mask, known = (x[:, ::-1] for x in (image, mask, known))
        parse = MIRRORED_PARTS[parse[:, ::-1]]
        points, valid = (points * [-1, 1] + [W - 1, 0])[MIRRORED], valid[:, MIRRORED.tolist()]
    if rng.random() < options.cover:
        image, hidden = cover(image, rng, Augmentation().covers)
        parse, known = np.where(hidden & mask, OCCLUDER, parse), known | (hidden & mask)
    if rng.random() < options.degrade:
        image = degrade(np.ascontiguousarray(image), rng, Augmentation())
    if labels is not None and labels.parse is not None:
        labels = replace(labels, parse=_tensor(parse).long(), parse_valid=_tensor(known))
    return replace(
        view,
        images=_tensor(image).permute(0, 3, 1, 2).float() / 255,
        landmarks=replace(view.landmarks, points=_tensor(points).float(), valid=valid),
        mask=_tensor(mask),
        labels=labels,
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    """[1, ...], of one view."""
    return torch.from_numpy(np.ascontiguousarray(array))[None]
