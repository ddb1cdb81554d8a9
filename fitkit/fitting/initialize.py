"""The first scene state: mean face, closed-form pose, a camera from what is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import FitError, InputError
from fitkit.fitting.recipe import CameraOptions
from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.subject import View, some
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

LARGEST = 1e9  # px or mm, beyond what any camera has


NEAREST_MM = (
    270.0  # no photo is taken from nearer; a focal length that says so is of a picture that was cropped
)
NOT_BELIEVED = "the focal length in the EXIF data of {} was not used: {}, so the picture was probably cropped"
APART = 0.02  # distance between cameras over that to the head, below which they are in one place


@dataclass(frozen=True)
class Start:
    """Where a fit begins. Of B views, scaled-orthographic, in px of the photos: scale [B] px per mm, rotation [B, 3, 3]
    camera_from_head, origin [B, 2] px where the head's origin lies, known [B] bool, of the others these are empty;
    identity [1, K_id]; expression [B, K_ex]."""

    scale: Tensor
    rotation: Tensor
    origin: Tensor
    known: Tensor
    identity: Tensor
    expression: Tensor


@dataclass(frozen=True)
class CameraKnowledge:
    """focal_mean [B] px of the crop and focal_sigma [B] (log units): prior; focal_groups [B]: views with one camera;
    first [B] bool: one view per camera; pose_groups [B] or None: views of a calibrated rig move together;
    metric: known camera positions fix the scale of the head; names: of the views; source: per view 'cameras.json', 'exif' or 'estimated';
    notes: what of the given cameras is not used, one line each."""

    focal_mean: Tensor
    focal_sigma: Tensor
    focal_groups: Tensor
    first: Tensor
    pose_groups: Tensor | None
    metric: bool
    names: tuple[str, ...]
    source: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def without_exif(
        self, wrong: Sequence[int], state: SceneState, options: CameraOptions, model: FaceModel
    ) -> CameraKnowledge:
        """The same, but views `wrong` have cameras that are not known, now that their heads are where `state` puts them."""
        rows = torch.tensor(wrong, device=self.focal_mean.device)
        depth = state.pose.apply(model.landmark_basis.mean.mean(0).expand(1, 1, 3).to(state.pose.rotation))[
            :, 0, 2
        ]
        usual = (state.camera.focal / depth * options.distance_mm)[rows]
        shared = len(self.focal_groups.unique()) < len(self.source)
        names = some([self.names[i] for i in wrong])
        return replace(
            self,
            focal_mean=self.focal_mean.index_copy(
                0, rows, usual.median().expand_as(usual) if shared else usual
            ),
            focal_sigma=self.focal_sigma.index_fill(0, rows, options.focal_sigma),
            source=tuple("estimated" if i in wrong else s for i, s in enumerate(self.source)),
            notes=(
                *self.notes,
                NOT_BELIEVED.format(names, "the perspective of the landmarks contradicts it"),
            ),
        )


def to_photos(state: SceneState, observations: Observations) -> SceneState:
    """The state with its camera in pixels of the photos instead of the crops."""
    camera = state.camera.scaled(1 / observations.scale, -observations.offset * observations.scale[:, None])
    return state.replace(camera=camera)


def initial_state(
    model: FaceModel,
    views: Sequence[View],
    observations: Observations,
    options: CameraOptions,
    start: Start | None = None,
) -> tuple[SceneState, CameraKnowledge]:
    """Mean face in every view, or `start`: scaled-orthographic pose, in closed form without a start, lifted to the camera that is known
    or assumed.

    An unknown focal length f is that of a camera `distance_mm` away: f = scale [px/mm] * distance. The photos alone
    hardly tell the two apart.

    Raises:
        DegenerateInputError: landmarks that show no face; FitError: a camera that sees none; it names the view.
    """
    for view in views:
        _check_camera(view)
    marks = observations.landmarks
    B = observations.num_views
    device = observations.images.device
    scale, rotation, shift = weak_perspective_pose(
        model.landmark_basis.mean[None],
        torch.nan_to_num(marks.points),
        marks.valid.float() * marks.confidence.clamp_min(1e-3),
    )
    if start is not None:
        known = start.known
        scale = torch.where(known, start.scale * observations.scale, scale)
        rotation = torch.where(known[:, None, None], start.rotation, rotation)
        shift = torch.where(
            known[:, None], (start.origin - observations.offset) * observations.scale[:, None], shift
        )
    sizes = torch.tensor([v.size for v in views], dtype=torch.float32, device=device)
    center = (sizes - 1) / 2
    crop_scale = observations.scale
    focal_photo = scale / crop_scale * options.distance_mm
    sigma = torch.full((B,), options.focal_sigma, device=device)
    aspect = torch.ones(B, device=device)
    source = ["estimated"] * B
    nearest = torch.tensor([(v.focal_px or torch.inf) for v in views], device=device) / (scale / crop_scale)
    cropped = [v.camera is None and float(d) < NEAREST_MM for v, d in zip(views, nearest)]
    exif = [None if bad else v.focal_px for v, bad in zip(views, cropped)]
    exif_shared = len(set(exif)) == 1
    share = options.share_focal == "yes" or (
        options.share_focal == "auto" and len({v.size for v in views}) == 1 and exif_shared
    )
    if share:
        focal_photo = focal_photo.median().expand(B).clone()
    for i, view in enumerate(views):
        if view.camera is not None:
            K = view.camera.K
            focal_photo[i], aspect[i] = float(K[0, 0]), float(K[1, 1] / K[0, 0])
            center[i] = torch.tensor([K[0, 2], K[1, 2]], dtype=torch.float32)
            sigma[i], source[i] = options.known_sigma, "cameras.json"
        elif exif[i]:
            focal_photo[i], sigma[i], source[i] = exif[i], options.exif_sigma, "exif"
    known = [v.camera is not None for v in views]
    share = share and (not any(known) or (all(known) and float(focal_photo.max() - focal_photo.min()) < 1e-3))
    if options.kind == "orthographic":
        if any(known):
            raise InputError(
                "camera.kind=orthographic cannot use cameras.json; leave the file out or use perspective"
            )
        focal_photo, share = scale / crop_scale * Camera.REFERENCE_DEPTH, False
        sigma = torch.full_like(sigma, 10.0)  # the scale is free
        source = ["estimated"] * B
    groups = torch.zeros(B, dtype=torch.int64) if share else torch.arange(B)
    first = torch.zeros(B, dtype=torch.bool, device=device)
    first[0 if share else slice(None)] = True
    principal = (center - observations.offset) * crop_scale[:, None]
    focal = focal_photo * crop_scale
    middle = model.landmark_basis.mean.mean(0).to(rotation)[:, None]
    position = line_of_sight(middle, scale, rotation, shift - principal, focal, aspect)
    if options.kind == "perspective":
        # The closed form sees the head along its line of sight, the camera along its axis.
        rotation = rotation_between_axis_and(position) @ rotation
    translation = position - (rotation @ middle)[..., 0]
    if options.kind == "orthographic":
        translation[:, 2] = Camera.REFERENCE_DEPTH  # without meaning there
    pose = Pose(rotation, translation)
    pose_groups, metric, notes = None, False, []
    if any(cropped):
        notes.append(
            NOT_BELIEVED.format(
                some([v.name for v, bad in zip(views, cropped) if bad]),
                f"by it the camera would have been {10 * round(float(nearest.min()) / 10)} mm from the face",
            )
        )
    _check_finite(views, source, pose, focal[:, None], principal)
    rig = [i for i, v in enumerate(views) if v.camera is not None and v.camera.R is not None]
    if len(rig) > 1:
        placed = _rig_pose([views[i] for i in rig], pose.select(rig))
        pose_groups = torch.ones(B, dtype=torch.int64)
        pose_groups[rig] = 0
        pose_groups = torch.where(
            pose_groups > 0, pose_groups.cumsum(0), 0
        )  # the other views each move on their own
        pose = Pose(
            pose.rotation.index_copy(0, torch.tensor(rig, device=device), placed.rotation),
            pose.translation.index_copy(0, torch.tensor(rig, device=device), placed.translation),
        )
        _check_finite(views, source, pose)
        metric = _baseline(views, rig) > APART * float(placed.translation.norm(dim=-1).mean())
        if not metric:
            notes.append("the cameras are in one place, so their positions do not tell the size of the head")
        elif len(rig) < B:
            notes.append(
                f"the positions of {len(rig)} of {B} cameras are known; those of the others were estimated"
            )
    elif rig and B > 1:
        notes.append(f"view {views[rig[0]].name}: R and t of a single camera tell nothing and were not used")
    identity = torch.zeros(1, model.num_identity, device=device) if start is None else start.identity
    expression = torch.zeros(B, model.num_expression, device=device) if start is None else start.expression
    state = SceneState(
        identity,
        torch.zeros(B, dtype=torch.int64, device=device),
        expression,
        pose,
        Camera(focal, principal, aspect, options.kind),
        torch.zeros(B, 9, 1, device=device),
    )
    return state, CameraKnowledge(
        focal.clone(),
        sigma,
        groups,
        first,
        pose_groups,
        metric,
        tuple(v.name for v in views),
        tuple(source),
        tuple(notes),
    )


def line_of_sight(
    middle: Tensor, scale: Tensor, rotation: Tensor, shift: Tensor, focal: Tensor, aspect: Tensor
) -> Tensor:
    """Where a camera sees the middle of the face, [B, 3] mm in its frame.

    middle: [3, 1] mm, head frame; scale, rotation: scaled-orthographic pose; shift: [B, 2] px of the head's origin from the principal
    point; focal: [B] px; aspect: [B].
    The scale is that of the face, which is nearer to the camera than the origin of the head; its middle keeps its place.
    """
    place = scale[:, None] * (rotation @ middle)[:, :2, 0] + shift
    position = (
        torch.cat([place / focal[:, None], torch.ones_like(place[:, :1])], 1) * (focal / scale)[:, None]
    )
    position[:, 1] /= aspect
    return position


def _check_camera(view: View) -> None:
    """FitError: numbers that no camera has, as of one that was made in Python."""
    camera = view.camera
    known = (
        [view.focal_px or 0.0]
        if camera is None
        else [camera.K]
        if camera.R is None
        else [camera.K, camera.R, camera.t]
    )
    numbers = np.concatenate([np.ravel(np.asarray(n, dtype=np.float64)) for n in known])
    if not (np.abs(numbers) <= LARGEST).all() or (
        camera is not None and min(camera.K[0, 0], camera.K[1, 1]) < 1 / LARGEST
    ):
        raise FitError(
            f"view '{view.name}': its {'focal length from EXIF' if camera is None else 'camera'} cannot be used; expected numbers "
            f"up to {LARGEST:g} and focal lengths above 0, in px and mm, got {', '.join(f'{n:.4g}' for n in numbers)}"
        )


def _check_finite(views: Sequence[View], source: Sequence[str], pose: Pose, *more: Tensor) -> None:
    """FitError: a start that is no number, in the view that it names; pose and `more` [B, n] are of the views."""
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


def _baseline(views: Sequence[View], rig: Sequence[int]) -> float:
    """Largest distance between two cameras, mm."""
    centers = torch.stack(
        [
            -torch.as_tensor(v.camera.R.T @ v.camera.t.reshape(3), dtype=torch.float64)
            for v in (views[i] for i in rig)
        ]
    )
    return float(torch.cdist(centers, centers).max())


def _rig_pose(views: Sequence[View], single: Pose) -> Pose:
    """One head pose for a calibrated rig: the mean of the views' own estimates in the world frame."""
    dtype, device = single.rotation.dtype, single.rotation.device
    R = torch.stack([torch.as_tensor(v.camera.R, dtype=dtype) for v in views]).to(device)  # camera_from_world
    t = torch.stack([torch.as_tensor(v.camera.t, dtype=dtype).reshape(3) for v in views]).to(device)
    world_rotation = (R.transpose(1, 2) @ single.rotation).mean(0)
    U, _, Vh = torch.linalg.svd(world_rotation)
    rotation = (
        U
        @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(U @ Vh))], dtype=dtype, device=device))
        @ Vh
    )
    # Each view places the head well across its line of sight and badly along it: intersect the lines of sight.
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
