"""What all networks have in common: named views in, a prediction out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.io.options import Range, check_options
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.depth_state import DepthState
from fitkit.scene.position_map import PositionMap
from fitkit.scene.state import SceneState, views_of


@dataclass(frozen=True)
class ViewSlot:
    """A named input of a network. yaw: (least, most) degrees of the heads it takes; positive: the nose points
    to the right side of the picture, as `fitkit.scene.pose.yaw_pitch_roll`."""

    name: str
    yaw: tuple[Annotated[float, Range(-180.0, 180.0)], Annotated[float, Range(-180.0, 180.0)]] = (-15.0, 15.0)

    def __post_init__(self):
        check_options(self, f"view '{self.name}'")
        if not self.yaw[0] < self.yaw[1]:
            raise InputError(f"view '{self.name}': yaw: expected [least, most] degrees, got {list(self.yaw)}")

    @property
    def middle(self) -> float:
        return (self.yaw[0] + self.yaw[1]) / 2


PARTS = ("state", "identity_sigma", "landmarks", "depth", "position_map", "parse", "points3d")


@dataclass(frozen=True)
class Prediction:
    """What a network says about S people in B frames, person by person. A part is None where it says nothing
    of it.

    state: the scene, cameras in px of the pictures; identity_sigma: [S, K_id] standard deviations of its
    identity; landmarks: 68 points [B, 68, 2] px of the pictures; depth: maps [B, size, size] mm, as large as
    the pictures, with their suitability in [0, 1]; position_map: [B, 3, H, W] px of the pictures over the
    face model's texture map; parse: [B, C, size, size] logits of the C parts of a face that a pixel may show,
    `masks.PARSE` where C = 10; points3d: [B, N, 3] mm in any frame of each frame's own;
    subject: [B] int64, the person of each frame; None: as the state or the depth says.

    Raises:
        InputError: neither of these two, and no `subject`.
    """

    state: SceneState | None = None
    identity_sigma: Tensor | None = None
    landmarks: Landmarks | None = None
    depth: DepthState | None = None
    position_map: PositionMap | None = None
    parse: Tensor | None = None
    points3d: Tensor | None = None
    subject: Tensor | None = None
    shared_expression: bool = False  # one expression for all frames of a person, repeated

    def __post_init__(self):
        if self.subject is None:
            whose = self.state or self.depth
            if whose is None:
                raise InputError(
                    "prediction: expected 'subject', the person of each frame, where there is no state and "
                    "no depth; give valid.nonzero()[:, 0]"
                )
            object.__setattr__(self, "subject", whose.subject)

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of the parts that are there."""
        return tuple(name for name in PARTS if getattr(self, name) is not None)

    @property
    def lit(self) -> bool:
        """Whether light is predicted. It has three channels then; who knows none says white in one."""
        return self.state is not None and self.state.illumination.shape[-1] == 3

    @property
    def expression_owner(self) -> Tensor | None:
        """[B] int64, frames with the same one share an expression; None: each has its own."""
        return self.subject if self.shared_expression else None

    def select(self, people: Sequence[int]) -> Prediction:
        """What it says of some people, in this order. Where the state has an identity for each frame, they go
        with the frames."""
        views, subject = views_of(self.subject, people)
        rows = [] if self.state is None else list(dict.fromkeys(self.state.subject[views].tolist()))
        maps = self.position_map
        return Prediction(
            None if self.state is None else self.state.select_people(rows),
            None if self.identity_sigma is None else self.identity_sigma[rows],
            None if self.landmarks is None else self.landmarks.select(views.tolist()),
            None if self.depth is None else self.depth.select_people(people),
            None if maps is None else maps.select(views),
            None if self.parse is None else self.parse[views],
            None if self.points3d is None else self.points3d[views],
            subject,
            self.shared_expression,
        )


class Predictor(nn.Module, ABC):
    """Pictures of people -> Prediction.

    gives: names of the parts of its predictions, of PARTS; options: dataclass of its options; size: side of
    the square pictures, px; crop: how they are cut; closer: another way to cut them that it learns as often,
    or None; views: the named inputs, empty: any number of photos in
    any order.
    feature_parts, parse_parts: names of the parts, see `parts`, that `features` and `parse_of` come from,
    empty where it has none.
    Where it gives a state: model_name, num_identity, num_expression: of the face model whose coefficients are
    predicted. camera_kind: of the cameras of state and depth;
    focal: px of the pictures, of perspective cameras that all have the same, else 0.
    needs: the weights that a training has to start from, empty: none; trunk_file: what file of others
    `load_trunk` takes, where a network has it.
    """

    gives: tuple[str, ...]
    options: Any
    size: int
    crop: CropOptions
    views: tuple[ViewSlot, ...]
    closer: CropOptions | None = None
    feature_parts: tuple[str, ...] = ()
    parse_parts: tuple[str, ...] = ()
    model_name: str = ""
    num_identity: int = 0
    num_expression: int = 0
    camera_kind: str = ""
    focal: float = 0.0
    needs: str = ""
    trunk_file: str = ""

    @abstractmethod
    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        """images: [S, V, 3, size, size] sRGB in [0, 1] of S people in the V named views, or in up to V views
        where they have no names; valid: [S, V] bool, False: that view is missing. Every person has at least
        one view.

        Returns:
            what it says of the B = valid.sum() frames that are there, person by person, views in their order.
            padded: of all S * V frames, in that order; the rows of missing views mean nothing, and no shape
            depends on what `valid` holds, as exported programs want it. See `frames_of` and `table_of`.
        """

    def features(self, images: Tensor) -> Tensor:
        """Features [B, K] of pictures [B, 3, size, size], one by one, for energies that compare them.

        Raises:
            InputError: the network has none.
        """
        raise InputError(f"{type(self).__name__}: has no features of single pictures")

    def parse_of(self, images: Tensor) -> Tensor:
        """Logits [B, C, h, w] of the parts of a face in pictures [B, 3, h, w] of any size, cut as `crop`
        says, one by one; for energies that look through the network.

        Raises:
            InputError: the network says nothing about parts, or not of single pictures.
        """
        if "parse" not in self.gives or self.views:
            raise InputError(f"{type(self).__name__}: tells no parts of the face of single pictures")
        seen = resized(images, (self.size, self.size))[:, None]
        valid = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        return resized(self(seen, valid).parse, images.shape[-2:])

    @abstractmethod
    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        """Names under which a training frees parts of the network, and what they stand for: together, all of
        it."""


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images [B, C, h, w] at another size (H, W), bilinear."""
    if images.shape[-2:] == torch.Size(size):
        return images
    return nn.functional.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)


def frames_of(images: Tensor, valid: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    """The pictures [B, 3, size, size] that `Predictor.forward` is to look at, and the person of each, [B]
    int64."""
    if not padded:
        return images[valid], valid.nonzero()[:, 0]
    people = torch.arange(valid.shape[0], device=valid.device)[:, None].expand(valid.shape).flatten()
    return images.flatten(0, 1), people


def table_of(rows: Tensor, valid: Tensor, padded: bool, absent: Tensor) -> Tensor:
    """Rows [B, C] of the frames as [S, V, C], with `absent` (anything that broadcasts to it) where a view is
    missing."""
    if padded:
        return torch.where(valid[..., None], rows.unflatten(0, valid.shape), absent)
    table = absent.expand(*valid.shape, rows.shape[1]).clone()
    table[valid] = rows
    return table


def mean_of_views(rows: Tensor, valid: Tensor, padded: bool) -> Tensor:
    """Mean [S, C] of the rows [B, C] of each person's frames."""
    table, share = table_of(rows, valid, padded, rows.new_zeros(())), valid.to(rows)[..., None]
    return (table * share).sum(1) / share.sum(1)


TURNED = 10.0  # degrees of yaw beyond which a head is surely turned to this side


def assign_views(
    slots: Sequence[ViewSlot], yaw: Sequence[float], names: Sequence[str] = ()
) -> list[int | None]:
    """Which view goes into which slot: index of the view for each slot, None = missing.

    A view whose name is that of a slot goes there, unless its head is turned to the other side: who took the
    picture may have meant the subject's left and right. Of the others, a slot takes the one with the yaw
    nearest to the middle of its range, if any lies inside. yaw: degrees, NaN = not known.
    """
    middles = {slot.name: slot.middle for slot in slots}
    by_name = {
        name: i
        for i, name in enumerate(names)
        if not (abs(yaw[i]) > TURNED and yaw[i] * middles.get(name, 0.0) < 0)
    }
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
