"""The unknowns of a fit: who owns their copies, how far they usually change, how they move the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.scene.state import SceneState, first_views

Retract = Callable[[SceneState, Tensor], SceneState]


@dataclass(frozen=True)
class Within:
    """Each change of a block is, to first order, one of another block, so that energies give derivatives of
    that one alone.

    block: its name; matrix: state -> [B, width of that block, width]: what a change amounts to in each view.
    """

    block: str
    matrix: Callable[[SceneState], Tensor]


@dataclass(frozen=True)
class Block:
    """One unknown of the people in B views, with one copy for each of its owners, which have one person each.

    name; width: numbers in a copy; owner: [B] int64, the copy that each view uses, 0 to `copies` - 1; step:
    [width] typical change in the unit of the block, for solvers that know no curvature; retract: state and
    change of each view [B, width] -> moved state; of_person: the person owns it, even in a single view;
    within: see `Within`.
    """

    name: str
    width: int
    owner: Tensor
    step: Tensor
    retract: Retract
    of_person: bool = False
    within: Within | None = None

    @property
    def copies(self) -> int:
        return int(self.owner.max()) + 1


@dataclass(frozen=True)
class Unknown:
    """What a `Block` is for every state: declare a new unknown of fits as one more in `UNKNOWNS`."""

    name: str
    width: Callable[[SceneState], int]
    step: float | tuple[float, ...]  # one for all numbers of a copy, or one for each
    retract: Retract
    of_person: bool = False
    within: Within | None = None

    def block(self, state: SceneState, owner: Tensor | None = None) -> Block:
        """The block for `state`; owner: [B] whole numbers, views of a person with the same one share a copy;
        None: the person owns it, or each view its own."""
        width, B = self.width(state), state.num_views
        if owner is None:
            owner = torch.zeros(B, dtype=torch.int64) if self.of_person else torch.arange(B)
        elif self.of_person:
            raise InputError(f"owner of '{self.name}': the person owns it; name no other owner for it")
        step = torch.as_tensor(self.step, dtype=torch.float32).expand(width)
        owner = numbered(owner, B, f"owner of '{self.name}'")
        owner = numbered(state.subject.cpu() * B + owner, B, f"owner of '{self.name}'")
        return Block(self.name, width, owner, step, self.retract, self.of_person, self.within)


def numbered(owner: Tensor, views: int, what: str) -> Tensor:
    """The owners [B] as numbers from 0 without gaps, int64, on the CPU."""
    if owner.shape != (views,):
        raise InputError(f"{what}: expected a number for each of the {views} views, got {list(owner.shape)}")
    return owner.cpu().unique(return_inverse=True)[1]


def _identity(state: SceneState, change: Tensor) -> SceneState:
    return state.replace(identity=state.identity + change[first_views(state.subject)])


def _landmarks(state: SceneState, change: Tensor) -> SceneState:
    moved = change[first_views(state.subject)].reshape(-1, 68, 3)
    before = state.landmark_offset
    return state.replace(landmark_offset=moved if before is None else before + moved)


def _joints(state: SceneState, change: Tensor) -> SceneState:
    assert state.joints is not None
    return state.replace(joints=state.joints + change.reshape(state.joints.shape))


def _focal(state: SceneState, change: Tensor) -> SceneState:
    return state.replace(camera=replace(state.camera, focal=state.camera.focal * change[:, 0].exp()))


def _principal(state: SceneState, change: Tensor) -> SceneState:
    """The principal point shifted by `change` focal lengths: the same for all photos of a camera, however
    large their crops are."""
    camera = state.camera
    return state.replace(camera=replace(camera, principal=camera.principal + camera.focal[:, None] * change))


def _aspect(state: SceneState, change: Tensor) -> SceneState:
    return state.replace(camera=replace(state.camera, aspect=state.camera.aspect * change[:, 0].exp()))


def _rig_scale(state: SceneState, change: Tensor) -> SceneState:
    """All cameras move along their lines to the head's origin, exp(change) times as far away: the
    translations of camera_from_head are multiplied.

    Where camera i of a rig sees the head at R_i p + s t_i (p mm: its place in the world; s mm: the unit of
    the world), that multiplies s and p alike, and the pose is free to take p back.
    """
    pose = state.pose
    return state.replace(pose=replace(pose, translation=pose.translation * change.exp()))


def _away_from_head(state: SceneState) -> Tensor:
    """[B, 6, 1]: the change of the pose that a change of `rig_scale` amounts to, no turn and a shift along
    the line to the camera."""
    shift = -state.pose.centers()
    return torch.cat([torch.zeros_like(shift), shift], 1)[..., None]


UNKNOWNS = (
    Unknown(
        "identity",
        lambda s: s.identity.shape[1],
        1.0,
        _identity,
        of_person=True,
    ),
    Unknown("landmarks", lambda s: 3 * 68, 1.0, _landmarks, of_person=True),  # mm
    Unknown(
        "expression",
        lambda s: s.expression.shape[1],
        0.2,
        lambda s, change: s.replace(expression=s.expression + change),
    ),
    Unknown("joints", lambda s: 0 if s.joints is None else s.joints[0].numel(), 0.1, _joints),  # rad
    Unknown(  # rad and mm, on the head side
        "pose",
        lambda s: 6,
        (0.05, 0.05, 0.05, 5.0, 5.0, 20.0),
        lambda s, change: s.replace(pose=s.pose.retract(change)),
    ),
    Unknown(  # log units
        "rig_scale", lambda s: 1, 0.2, _rig_scale, of_person=True, within=Within("pose", _away_from_head)
    ),
    Unknown("principal", lambda s: 2, 0.05, _principal),  # focal lengths
    Unknown("focal", lambda s: 1, 0.2, _focal),  # log units
    Unknown("aspect", lambda s: 1, 0.05, _aspect),  # log units
    Unknown(
        "illumination",
        lambda s: s.illumination[0].numel(),
        0.2,
        lambda s, change: s.replace(illumination=s.illumination + change.reshape(s.illumination.shape)),
    ),
)
BLOCKS = tuple(unknown.name for unknown in UNKNOWNS)
