"""The landmark object and the detector interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Point i of a mirrored picture is point MIRRORED[i] of the picture (iBUG 68).
# fmt: off
MIRRORED = np.array([
    *range(16, -1, -1), *range(26, 16, -1),  # jaw, brows
    27, 28, 29, 30, 35, 34, 33, 32, 31,  # nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,  # lips
])
# fmt: on
# Polylines of the points inside the face: brows, nose, eyes, lips; True = closed.
CURVES = (
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
)


@dataclass(frozen=True)
class Landmarks:
    """68 iBUG points per view.

    points: [B, 68, 2] px, pixel (0, 0) is the centre of the top-left pixel; sigma: [B, 68] px standard
    deviation of each coordinate, NaN where the source states none; valid: [B, 68] bool; confidence: [B, 68]
    in [0, 1]; jaw: what points 0-16 are: 'outline' (visible silhouette), 'surface' (fixed skin points, hidden
    ones included) or 'auto' (not known); notes: one line for each thing about their origin that a user should
    know; doubts: (name of a view, one sentence) for each view whose points cannot be relied on.
    """

    points: Tensor
    sigma: Tensor
    valid: Tensor
    confidence: Tensor
    jaw: str = "auto"
    notes: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return (
            f"Landmarks({int(self.valid.sum())} valid points in {len(self.points)} views, jaw {self.jaw!r})"
        )

    def select(self, views: Sequence[int] | Tensor) -> Landmarks:
        """Those of some views, in this order."""
        rows = views if isinstance(views, Tensor) else list(views)
        return replace(
            self, **{k: getattr(self, k)[rows] for k in ("points", "sigma", "valid", "confidence")}
        )

    def only(self, present: Tensor) -> Landmarks:
        """The same, but points where `present` [68] bool is False, as those that a face model lacks, are not
        valid."""
        return replace(self, valid=self.valid & present.to(self.valid.device))


class LandmarkDetector(Protocol):
    """Finds the 68 points of faces."""

    name: str
    scheme: str  # 'ibug68'
    jaw: str  # as in Landmarks

    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """image [H, W, 3] uint8 sRGB -> one Landmarks of one view for each face, the largest face first."""
        ...


def no_landmarks(jaw: str = "auto") -> Landmarks:
    """Landmarks of one view without a face."""
    nan = torch.full((1, 68, 2), torch.nan)
    return Landmarks(nan, nan[..., 0], torch.zeros(1, 68, dtype=torch.bool), torch.zeros(1, 68), jaw)


def join_landmarks(parts: list[Landmarks]) -> Landmarks:
    """Landmarks of several views as one object; views without points have no say in what the jaw points
    are."""
    jaws = {p.jaw for p in parts if p.valid.any()}
    return Landmarks(
        *(torch.cat([getattr(p, k) for p in parts]) for k in ("points", "sigma", "valid", "confidence")),
        jaw=jaws.pop() if len(jaws) == 1 else "auto",
        notes=sum((p.notes for p in parts), ()),
    )


def box_size(points: Tensor, valid: Tensor | None = None, least: float = 0.0) -> Tensor:
    """Square root of the area of the tight box around points [..., L, 2], [...] px.

    Points that are not valid [..., L] (None: all are) or NaN do not count; least: of each side, px.
    """
    if valid is not None:
        points = torch.where(valid[..., None], points, torch.nan)
    low = torch.nan_to_num(points, nan=torch.inf).amin(-2)
    high = torch.nan_to_num(points, nan=-torch.inf).amax(-2)
    return (high - low).clamp_min(least).prod(-1).sqrt()


def larger_side(landmarks: Landmarks) -> float:
    """Larger side of the box around the points of the first view, px; 0 without points."""
    points = landmarks.points[0][landmarks.valid[0]]
    return float((points.amax(0) - points.amin(0)).max()) if len(points) else 0.0


class EveryFaceDetector(ABC):
    """What follows from `detect_all`: the largest face of each picture of a batch."""

    scheme = "ibug68"
    jaw = "auto"

    @abstractmethod
    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """As in LandmarkDetector."""

    def detect(self, images: Tensor) -> Landmarks:
        """images [B, 3, H, W] in [0, 1] -> Landmarks of the largest faces, B views; no face: valid = False
        everywhere."""
        pictures = (
            (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        )
        found = [next(iter(self.detect_all(np.ascontiguousarray(p))), None) for p in pictures]
        return replace(join_landmarks([no_landmarks() if f is None else f for f in found]), jaw=self.jaw)
