"""The first scene state: a face at scaled-orthographic poses, lifted to the cameras that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.errors import FitError
from fitkit.fitting.cameras import CameraKnowledge, CameraPrior
from fitkit.fitting.recipe import CameraOptions
from fitkit.fitting.rig import unit_of
from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.subject import View, some
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

APART = 0.02  # distance between cameras over that to the head, below which they are in one place


@dataclass(frozen=True)
class Start:
    """Where a fit begins, in B views: scaled-orthographic poses in px of the crops."""

    scale: Tensor  # [B] px per mm
    rotation: Tensor  # [B, 3, 3] camera_from_head
    origin: Tensor  # [B, 2] px where the head's origin lies
    identity: Tensor  # [1, K_id]
    expression: Tensor  # [B, K_ex]
    # [B] bool, a network has seen the view; the others are where their landmarks put the mean face
    predicted: Tensor
    distance: Tensor  # [B] mm from the camera to the middle of the face, NaN: as far as the recipe assumes
    joints: Tensor | None = None  # [B, J, 3] rad, None: at rest


def to_photos(state: SceneState, observations: Observations) -> SceneState:
    """The state with its camera in pixels of the photos instead of the crops."""
    camera = state.camera.scaled(1 / observations.scale, -observations.offset * observations.scale[:, None])
    return state.replace(camera=camera)


def landmark_start(model: FaceModel, observations: Observations) -> Start:
    """The mean face in every view, at the pose of its landmarks in closed form.

    Raises:
        DegenerateInputError: landmarks that show no face.
    """
    marks = observations.landmarks
    scale, rotation, origin = weak_perspective_pose(
        model.landmark_basis.mean[None],
        torch.nan_to_num(marks.points),
        marks.valid.float() * marks.confidence.clamp_min(1e-3),
    )
    B, device = observations.num_views, observations.images.device
    identity = torch.zeros(1, model.num_identity, device=device)
    expression = torch.zeros(B, model.num_expression, device=device)
    predicted = torch.zeros(B, dtype=torch.bool, device=device)
    return Start(scale, rotation, origin, identity, expression, predicted, torch.full_like(scale, torch.nan))


def initial_state(
    model: FaceModel, views: Sequence[View], observations: Observations, options: CameraOptions
) -> tuple[SceneState, CameraPrior]:
    """The mean face at the pose of the landmarks, under the cameras that are known or assumed.

    Raises:
        DegenerateInputError: landmarks that show no face; FitError: a camera that sees none; it names the
            view.
    """
    knowledge = CameraKnowledge.of(views, observations, options)
    return lift(landmark_start(model, observations), knowledge, model)


def lift(start: Start, knowledge: CameraKnowledge, model: FaceModel) -> tuple[SceneState, CameraPrior]:
    """The scene at a start, its scaled-orthographic poses lifted to the cameras that are known or assumed,
    and what the fit assumes about these.

    Raises:
        FitError: a camera that sees no face; it names the view.
    """
    kind, aspect, principal = knowledge.options.kind, knowledge.aspect, knowledge.principal
    prior, rotation = knowledge.prior(start.scale, start.distance), start.rotation
    focal, views = prior.focal_mean.clone(), knowledge.views
    middle = model.landmark_basis.mean.mean(0).to(rotation)[:, None]
    position = line_of_sight(middle, start.scale, rotation, start.origin - principal, focal, aspect)
    if kind == "perspective":
        # The closed form sees the head along its line of sight, the camera along its axis.
        rotation = rotation_between_axis_and(position) @ rotation
    translation = position - (rotation @ middle)[..., 0]
    if kind == "orthographic":
        translation[:, 2] = Camera.REFERENCE_DEPTH  # without meaning there
    pose = Pose(rotation, translation)
    _check_finite(views, prior.source, pose, focal[:, None], principal)
    pose, prior = _on_rig(pose, knowledge, prior)
    B, device = len(views), rotation.device
    joints = start.joints
    if joints is None and model.num_joints:
        joints = torch.zeros(B, model.num_joints, 3, device=device)
    state = SceneState(
        start.identity,
        torch.zeros(B, dtype=torch.int64, device=device),
        start.expression,
        pose,
        Camera(focal, principal, aspect, kind),
        torch.zeros(B, 9, 1, device=device),
        joints=joints,
    )
    return state, prior


def _on_rig(pose: Pose, knowledge: CameraKnowledge, prior: CameraPrior) -> tuple[Pose, CameraPrior]:
    """The views of a rig with one head pose between those of a moment; the other views each move on their
    own. A unit that nobody knows is the one in which the head is as large as the views alone have it."""
    views, rigs, B = knowledge.views, knowledge.rigs, len(knowledge.views)
    if not rigs:
        if not knowledge.rig or B == 1:
            return pose, prior
        names = some(views[i].name for i in knowledge.rig)
        note = f"view {names}: R and t of a single camera tell nothing and were not used"
        return pose, replace(prior, notes=(*prior.notes, note))
    single = torch.ones(B, dtype=torch.int64)
    single[[view for rig in rigs for view in rig]] = 0
    groups = single.cumsum(0) + len(rigs) - 1
    rotation, translation = pose.rotation.clone(), pose.translation.clone()
    unit = 1.0 if knowledge.metric else unit_of(views, pose)
    for number, rig in enumerate(rigs):
        placed = _rig_pose([views[i] for i in rig], pose.select(rig), unit)
        rotation[rig], translation[rig], groups[rig] = placed.rotation, placed.translation, number
    pose = Pose(rotation, translation)
    _check_finite(views, prior.source, pose)
    known = single == 0
    apart = unit * knowledge.baseline > APART * float(translation[known].norm(dim=-1).mean())
    notes = prior.notes
    if not apart:
        notes += ("the cameras are in one place, so their positions do not tell the size of the head",)
    elif not known.all():
        notes += (
            f"the positions of {int(known.sum())} of {B} cameras are known; those of the others were "
            "estimated",
        )
    prior = replace(prior, pose_groups=groups, metric=apart and knowledge.metric, notes=notes)
    return pose, replace(prior, unit_mm=unit if apart and not knowledge.metric else None)


def line_of_sight(
    middle: Tensor, scale: Tensor, rotation: Tensor, shift: Tensor, focal: Tensor, aspect: Tensor
) -> Tensor:
    """Where a camera sees the middle of the face, [B, 3] mm in its frame.

    middle: [3, 1] mm, head frame; scale, rotation: scaled-orthographic pose; shift: [B, 2] px of the head's
    origin from the principal point; focal: [B] px; aspect: [B].
    The scale is that of the face, which is nearer to the camera than the origin of the head; its middle keeps
    its place.
    """
    place = scale[:, None] * (rotation @ middle)[:, :2, 0] + shift
    position = (
        torch.cat([place / focal[:, None], torch.ones_like(place[:, :1])], 1) * (focal / scale)[:, None]
    )
    position[:, 1] /= aspect
    return position


def _check_finite(views: Sequence[View], source: Sequence[str], pose: Pose, *more: Tensor) -> None:
    """FitError: a start that is no number, in the view that it names; pose and `more` [B, n] are of the
    views."""
    good = torch.isfinite(torch.cat([pose.rotation.flatten(1), pose.translation, *more], 1)).all(1).tolist()
    for view, known, fine in zip(views, source, good):
        if not fine:
            raise FitError(
                f"view '{view.name}': no head pose fits its landmarks and its camera "
                + (
                    "(estimated); check the landmarks"
                    if known == "estimated"
                    else f"(from {known}); check the camera, in px and mm"
                )
            )


def _rig_pose(views: Sequence[View], single: Pose, unit: float) -> Pose:
    """One head pose for a calibrated rig: the mean of the views' own estimates in the world frame; unit: of
    the cameras' positions, mm."""
    dtype, device = single.rotation.dtype, single.rotation.device
    R = torch.stack([torch.as_tensor(v.camera.R, dtype=dtype) for v in views]).to(device)  # camera_from_world
    t = torch.stack([torch.as_tensor(v.camera.t, dtype=dtype).reshape(3) for v in views]).to(device) * unit
    world_rotation = (R.transpose(1, 2) @ single.rotation).mean(0)
    U, _, Vh = torch.linalg.svd(world_rotation)
    rotation = (
        U
        @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(U @ Vh))], dtype=dtype, device=device))
        @ Vh
    )
    # Each view places the head well across its line of sight and badly along it: intersect the lines of
    # sight.
    direction = torch.nn.functional.normalize(
        (R.transpose(1, 2) @ single.translation[..., None])[..., 0], dim=-1
    )
    center = -(R.transpose(1, 2) @ t[..., None])[..., 0]
    # Lines that do not meet (cameras in one place) leave the distance to the views' own estimates.
    own = (R.transpose(1, 2) @ (single.translation - t)[..., None])[..., 0]
    eye = torch.eye(3, dtype=dtype, device=device)
    across = eye - direction[:, :, None] * direction[:, None]
    weak = 1e-4 * eye
    place = torch.linalg.solve(
        (across + weak).sum(0), (across @ center[..., None] + weak @ own[..., None]).sum(0)[:, 0]
    )
    return Pose(R @ rotation, (R @ place) + t)
