"""What all networks have in common: named views in, a scene state out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.io.options import Range, check_options
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class ViewSlot:
    """A named input of a network. yaw: (least, most) degrees of the heads it takes; positive: the nose points to the right side of
    the picture, as `fitkit.scene.pose.yaw_pitch_roll`."""

    name: str
    yaw: tuple[Annotated[float, Range(-180.0, 180.0)], Annotated[float, Range(-180.0, 180.0)]] = (-15.0, 15.0)

    def __post_init__(self):
        check_options(self, f"view '{self.name}'")
        if not self.yaw[0] < self.yaw[1]:
            raise InputError(f"view '{self.name}': yaw: expected [least, most] degrees, got {list(self.yaw)}")

    @property
    def middle(self) -> float:
        return (self.yaw[0] + self.yaw[1]) / 2


@dataclass(frozen=True)
class Prediction:
    """What a network says about S people in B frames. identity_sigma: [S, K_id] standard deviations of the identity, None: it does not
    say; landmarks: in px of the pictures, None: it finds none of its own."""

    state: SceneState
    identity_sigma: Tensor | None = None
    landmarks: Landmarks | None = None


class StatePredictor(nn.Module, ABC):
    """Pictures of people -> SceneState.

    size: side of the square pictures, px; crop: how they are cut; views: the named inputs, empty: any number of photos in any
    order; model_name, num_identity, num_expression: of the face model whose coefficients are predicted; camera_kind: of the
    predicted cameras.
    """

    size: int
    crop: CropOptions
    views: tuple[ViewSlot, ...]
    model_name: str
    num_identity: int
    num_expression: int
    camera_kind: str

    @abstractmethod
    def forward(self, images: Tensor, valid: Tensor) -> SceneState:
        """images: [S, V, 3, size, size] sRGB in [0, 1] of S people in the V named views, or in up to V views where they have no names;
        valid: [S, V] bool, False: that view is missing. Every person has at least one view.

        Returns:
            the state of the B = valid.sum() frames that are there, person by person, views in their order; cameras in pixels of
            the pictures.
        """

    def predict(self, images: Tensor, valid: Tensor) -> Prediction:
        """As `forward`, with all else that the network says."""
        return Prediction(self(images, valid))

    @abstractmethod
    def predict_padded(self, images: Tensor, valid: Tensor) -> Prediction:
        """As `predict` of all S * V frames, view by view for each person; the rows of missing views mean nothing. No shape depends on
        what `valid` holds, as exported programs want it."""

    @abstractmethod
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """Names under which a training frees parts of the network, and the modules they stand for."""


def padded_subjects(valid: Tensor) -> Tensor:
    """Person of each of the S * V frames of `StatePredictor.predict_padded`, [S * V] int64."""
    return (
        torch.arange(valid.shape[0], device=valid.device)[:, None]
        .expand(valid.shape[0], valid.shape[1])
        .flatten()
    )


def assign_views(
    slots: Sequence[ViewSlot], yaw: Sequence[float], names: Sequence[str] = ()
) -> list[int | None]:
    """Which view goes into which slot: index of the view for each slot, None = missing.

    A view whose name is that of a slot goes there; of the others, a slot takes the one with the yaw nearest to the middle of its
    range, if any lies inside. yaw: degrees, NaN = not known.
    """
    by_name = {name: i for i, name in enumerate(names)}
    chosen: list[int | None] = [by_name.get(slot.name) for slot in slots]
    free = [i for i in range(len(yaw)) if i not in chosen]
    for number, slot in enumerate(slots):
        if chosen[number] is None:
            inside = [i for i in free if slot.yaw[0] <= yaw[i] <= slot.yaw[1]]
            if inside:
                best = min(inside, key=lambda i: abs(yaw[i] - slot.middle))
                chosen[number] = best
                free.remove(best)
    return chosen
