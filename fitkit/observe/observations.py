"""What is seen of one person: everything the energies compare a scene with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.geometry.color import LUMINANCE, linear_from_srgb
from fitkit.observe.labels import Labels, join_labels
from fitkit.observe.landmarks.types import Landmarks, join_landmarks
from fitkit.tensors import move


@dataclass(frozen=True)
class Observations:
    """B views, cropped around the face to one size.

    images: [B, 3, H, W] sRGB in [0, 1]; landmarks: in pixels of these crops; mask: [B, H, W] bool, usable
    pixels (inside the photo and the user's mask); scale [B], offset [B, 2]: crop pixel = scale * (photo pixel
    - offset); labels: what is known to be true, for training and tests; moment: [B] int64, views of a person
    with the same number show one moment, None: each view one of its own.
    """

    images: Tensor
    landmarks: Landmarks
    mask: Tensor
    scale: Tensor
    offset: Tensor
    labels: Labels | None = None
    moment: Tensor | None = None

    def to(self, device: str) -> Observations:
        """On another device; labels, which no fit looks at, stay where they are."""
        if device == "cpu":
            return self
        return replace(move(replace(self, labels=None), device), labels=self.labels)

    def select(self, views: Tensor) -> Observations:
        """What is seen in the views [n] int64, in this order; labels included."""
        labels = None if self.labels is None else self.labels.select(views)
        return Observations(
            self.images[views],
            self.landmarks.select(views),
            self.mask[views],
            self.scale[views],
            self.offset[views],
            labels,
            None if self.moment is None else self.moment[views],
        )

    @staticmethod
    def join(parts: Sequence[Observations]) -> Observations:
        """What is seen of several people as one; of the labels what all of them have, see `join_labels`."""
        if len(parts) == 1:
            return parts[0]
        images, mask, scale, offset = (
            torch.cat([getattr(p, k) for p in parts]) for k in ("images", "mask", "scale", "offset")
        )
        marks, labels = join_landmarks([p.landmarks for p in parts]), join_labels([p.labels for p in parts])
        return Observations(images, marks, mask, scale, offset, labels, _joined_moments(parts))

    @property
    def num_views(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def pixel_unit(self) -> float:
        """Residuals in pixels are stated for a 224-pixel crop; this many crop pixels are one of those."""
        return max(self.size) / 224.0

    @cached_property
    def linear_luminance(self) -> Tensor:
        """[B, 1, H, W] linear luminance in [0, 1] (Rec. 709 weights)."""
        weights = self.images.new_tensor(LUMINANCE)
        return torch.einsum("c,bchw->bhw", weights, linear_from_srgb(self.images))[:, None]


def _joined_moments(parts: Sequence[Observations]) -> Tensor | None:
    """Those of several people as one: nobody's moment is another's."""
    if all(part.moment is None for part in parts):
        return None
    joined, start = [], 0
    for part in parts:
        own = torch.arange(part.num_views, device=part.images.device) if part.moment is None else part.moment
        joined.append(start + own)
        start = int(joined[-1].max()) + 1
    return torch.cat(joined)


def halve(images: Tensor) -> Tensor:
    """Next pyramid level of [B, C, H, W]: 2x2 means, so fine pixel p lies at (p - 0.5) / 2 in the coarse
    image."""
    return F.avg_pool2d(images, 2)
