"""What a trained network says about the photos of one person, and the start of a fit from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fitkit.errors import InputError, MissingWeightsError
from fitkit.fitting.initialize import Start, landmark_start, to_photos
from fitkit.fitting.recipe import InitOptions
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.resources import asset_path
from fitkit.io.subject import Subject
from fitkit.models.coefficients import shapes_by_name
from fitkit.models.face_model import FaceModel
from fitkit.nets import load_predictor, model_of, read_about
from fitkit.nets.predictor import Prediction, Predictor, assign_views
from fitkit.nets.weak_perspective import to_focal, to_orthographic
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.state import SceneState

WEIGHTS = "fitkit-init.safetensors"
# How far off a network's landmarks are, where the shape of one face model is carried over to another.
POINT_MM = 1.5
LEAST_POINTS = 8  # landmarks 17 to 67 that a pose is told from; of fewer the jaw helps


def shipped_weights() -> Path:
    """The network that comes with fitkit.

    Raises:
        MissingWeightsError: it is not there.
    """
    try:
        return asset_path(WEIGHTS)
    except InputError as error:
        raise MissingWeightsError(
            f"regressor: its weights {WEIGHTS}, which come with fitkit, are missing; install fitkit again, "
            "or use --init landmarks"
        ) from error


@dataclass(frozen=True)
class Predicted:
    """prediction: its state's cameras in px of the crops; observations: the crops that the network saw, of
    the views `order` of the subject, in this order; model: the network's face model."""

    prediction: Prediction
    observations: Observations
    order: tuple[int, ...]
    model: FaceModel


@torch.no_grad()
def predict_views(
    network: Predictor,
    model: FaceModel,
    subject: Subject,
    found: Landmarks,
    device: str = "cpu",
    weights: str = "the network",
    repeat: bool = False,
) -> Predicted:
    """Run a network on the photos of a subject.

    A network with named views takes one photo for each, by the yaw of the head or by its name, so others are
    left out.

    Args:
        found: landmarks in px of the photos; they say where to cut. weights: names the network in messages.
        repeat: a single photo goes into every named view; what is told is the frame of the view that it
            shows, or comes nearest to.
    Raises:
        InputError: no photo fits a view of the network, or several are to be repeated.
    """
    if repeat:
        return _predict_repeated(network, model, subject, found, device, weights)
    order = tuple(range(len(subject.views)))
    there = list(order)
    if network.views:
        slots = assign_views(network.views, _yaw(model, found), [v.name for v in subject.views])
        there = [s for s, view in enumerate(slots) if view is not None]
        if not there:
            wanted = ", ".join(f"{v.name} {v.yaw[0]:g} to {v.yaw[1]:g}" for v in network.views)
            raise InputError(
                f"{subject.path or subject.name}: none of its photos fits a view of {weights} (yaw in "
                f"degrees: {wanted})"
            )
        order = tuple(slots[s] for s in there)
    views = [subject.views[i] for i in order]
    seen = crop_views(
        (v.image for v in views), (v.mask for v in views), found.select(order), network.crop
    ).to(device)
    count = len(network.views) or len(views)
    images = torch.full((1, count, 3, network.size, network.size), 0.5, device=device)
    valid = torch.zeros(1, count, dtype=torch.bool, device=device)
    images[0, there], valid[0, there] = seen.images, True
    return Predicted(network(images, valid), seen, order, model)


def _yaw(model: FaceModel, found: Landmarks) -> list[float]:
    """Degrees by which the head is turned in each photo."""
    weight = found.only(model.landmarks.present).valid.float() * found.confidence.clamp_min(1e-3)
    mean = model.landmark_basis.mean[None].cpu()
    _, rotation, _ = weak_perspective_pose(mean, torch.nan_to_num(found.points), weight)
    return yaw_pitch_roll(rotation)[:, 0].tolist()


def check_named_views(network: Predictor, weights: str) -> None:
    """Refuse to `repeat` a photo where no named views take it. weights: named in the message."""
    if not network.views:
        raise InputError(
            f"repeat: expected a network with named views, but {weights} takes any number of photos; leave "
            "repeat out"
        )


def _predict_repeated(
    network: Predictor, model: FaceModel, subject: Subject, found: Landmarks, device: str, weights: str
) -> Predicted:
    """`predict_views` with one photo in all named views."""
    check_named_views(network, weights)
    if len(subject.views) != 1:
        raise InputError(
            f"{subject.path or subject.name}: repeat: expected one photo to be put into all views of "
            f"{weights}, got {len(subject.views)}; leave repeat out, or give one photo"
        )
    yaw = _yaw(model, found)[0]
    slots = assign_views(network.views, [yaw], [subject.views[0].name])
    shown = next(
        (i for i, view in enumerate(slots) if view is not None),
        min(range(len(slots)), key=lambda i: abs(network.views[i].middle - yaw)),
    )
    view = subject.views[0]
    seen = crop_views([view.image], [view.mask], found, network.crop).to(device)
    images = seen.images[None].expand(1, len(slots), *seen.images.shape[1:])
    said = network(images, torch.ones(1, len(slots), dtype=torch.bool, device=device))
    return Predicted(_frame(said, shown), seen, (0,), model)


def _frame(said: Prediction, number: int) -> Prediction:
    """What a prediction says of one of its frames."""
    views, state, depth, maps = [number], said.state, said.depth, said.position_map
    return Prediction(
        None if state is None else state.select(views),
        said.identity_sigma,
        None if said.landmarks is None else said.landmarks.select(views),
        None if depth is None else depth.select(views),
        None if maps is None else maps.select(views),
        None if said.parse is None else said.parse[views],
        None if said.points3d is None else said.points3d[views],
        said.subject[views],
    )


def on_landmarks(predicted: Predicted) -> Predicted:
    """The same face, and depth around it, in the poses that lay it onto the landmarks of the photos, in
    closed form, instead of those that the network predicts.

    Raises:
        DegenerateInputError: landmarks of a photo that tell no pose.
    """
    said = predicted.prediction
    assert said.state is not None  # the caller has looked
    state = pose_on_landmarks(said.state, predicted.model, predicted.observations.landmarks)
    depth = said.depth
    if depth is not None and depth.pose is not None:
        depth = depth.placed(state.pose, state.camera)
    return replace(predicted, prediction=replace(said, state=state, depth=depth))


def pose_on_landmarks(state: SceneState, model: FaceModel, marks: Landmarks) -> SceneState:
    """Poses, and scales of orthographic cameras, by least squares over landmarks 17 to 67: those of the jaw
    may lie on the outline. marks: in px of the cameras; perspective cameras keep their focal length.

    Raises:
        DegenerateInputError: too few landmarks, or all of them on one line.
    """
    known = marks.only(model.landmarks.present)
    weight = known.valid.float() * known.confidence.clamp_min(1e-3)
    inner = weight.clone()
    inner[:, :17] = 0
    enough = (inner > 0).sum(1, keepdim=True) >= LEAST_POINTS
    points = model.landmark_basis.points(*state.coefficients())
    scale, rotation, shift = weak_perspective_pose(
        points, torch.nan_to_num(marks.points), torch.where(enough, inner, weight)
    )
    camera = replace(state.camera, focal=scale * Camera.REFERENCE_DEPTH, kind="orthographic")
    camera = replace(camera, aspect=torch.ones_like(camera.aspect))
    at = (shift - camera.principal) / scale[:, None]
    translation = torch.cat([at, torch.full_like(at[:, :1], Camera.REFERENCE_DEPTH)], 1)
    laid = state.replace(pose=Pose(rotation, translation), camera=camera)
    if state.camera.kind == "orthographic":
        return laid
    return to_focal(laid, model, state.camera.focal, state.camera.principal)


def regressor_start(
    subject: Subject,
    found: Landmarks,
    observations: Observations,
    model: FaceModel,
    options: InitOptions,
    device: str = "cpu",
) -> Start:
    """Where a network would start the fit of `model` to the crops `observations`.

    Raises:
        InputError, MissingWeightsError: weights that cannot be used, or no photo that fits the network.
    """
    path = options.weights or shipped_weights()
    about = read_about(path)
    if "state" not in about["gives"]:
        raise InputError(
            f"{path}: expected a network that gives a scene, it gives {', '.join(about['gives'])}, from "
            "which no fit can start; use another network, or --init landmarks"
        )
    own = (
        model
        if (model.name, model.num_identity) == (about["model"], about["num_identity"])
        else model_of(about, path)
    )
    network = _network(os.fspath(path), os.stat(path).st_mtime_ns, own, str(device))
    predicted = predict_views(network, own.to(device), subject, found, device, os.fspath(path))
    return start_of(predicted, landmark_start(model, observations), observations, model)


@lru_cache(maxsize=2)
def _network(path: str, modified: int, model: FaceModel, device: str) -> Predictor:
    """Read once per process; nothing changes it."""
    return load_predictor(path, model).to(device).requires_grad_(False)


def start_of(predicted: Predicted, base: Start, observations: Observations, model: FaceModel) -> Start:
    """The start of a fit of `model` to the crops `observations` from a network's prediction; views that the
    network has not seen start as in `base`.

    A network of another face model gives the places of its landmarks: their pose comes in closed form from
    these, the identity by least squares under the prior after a similarity (which hardly differs between
    heads of millimetres), the expression by the names of the blend shapes. Where the network predicts
    perspective cameras, the face begins as far away as in these, unless the focal length of the photo is
    known.
    """
    state = predicted.prediction.state
    distance = torch.full_like(state.camera.focal, torch.nan)
    if state.camera.kind == "perspective":
        seen = state.camera.focal
        state = to_orthographic(state, predicted.model)
        distance = seen * Camera.REFERENCE_DEPTH / state.camera.focal
    photos = to_photos(state, predicted.observations)
    rotation, scale = state.pose.rotation, photos.camera.focal / Camera.REFERENCE_DEPTH
    origin = photos.camera.principal + scale[:, None] * state.pose.translation[:, :2]
    identity, expression, joints = state.identity, state.expression, state.joints
    same = (model.name, model.num_identity, model.expression_names)
    if same != (predicted.model.name, predicted.model.num_identity, predicted.model.expression_names):
        basis, joints = predicted.model.landmark_basis, None
        neutral = basis.points(state.identity, torch.zeros_like(state.expression[:1]))
        identity = carry_identity(neutral, model, predicted.model.landmarks.present)
        expression = carry_expression(state.expression, predicted.model, model)
        posed = basis.points(*state.coefficients()) @ rotation.transpose(1, 2)
        pixels = scale[:, None, None] * posed[..., :2] + origin[:, None]
        ours = model.landmark_basis.points(identity[state.subject], expression)
        both = (model.landmarks.present & predicted.model.landmarks.present).to(pixels)
        scale, rotation, origin = weak_perspective_pose(ours, pixels, both.expand(len(pixels), -1))
    order = torch.tensor(predicted.order, device=scale.device)
    if joints is not None:
        rest = joints.new_zeros(len(base.scale), *joints.shape[1:])
        joints = rest.index_copy(0, order, joints)
    crop, offset = observations.scale[order], observations.offset[order]
    return Start(
        base.scale.index_copy(0, order, scale * crop),
        base.rotation.index_copy(0, order, rotation),
        base.origin.index_copy(0, order, (origin - offset) * crop[:, None]),
        identity,
        base.expression.index_copy(0, order, expression),
        base.predicted.index_fill(0, order, True),
        base.distance.index_copy(0, order, distance),
        joints,
    )


def carry_identity(points: Tensor, model: FaceModel, present: Tensor | None = None) -> Tensor:
    """Identity [1, K_id] of `model` whose neutral landmarks lie nearest to points [1, 68, 3] mm of another
    head frame, under the prior. present: [68] bool, points that count; None: all that `model` has."""
    present = model.landmarks.present if present is None else model.landmarks.present & present
    basis, points = model.landmark_basis.select(present), points[:, present]
    mean = basis.mean[None].to(points)
    best = similarity_align(
        points, mean, torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    )
    # The size is kept, and the middle of the two clouds agrees.
    moved = points @ best.rotation.transpose(1, 2)
    offset = moved - moved.mean(1, keepdim=True) - (mean - mean.mean(1, keepdim=True))
    rows = basis.rows[..., : basis.num_identity].to(points)
    rows = (rows - rows.mean(0)).reshape(-1, basis.num_identity)
    normal = rows.T @ rows / POINT_MM**2 + torch.eye(basis.num_identity).to(rows)
    return torch.linalg.solve(normal, rows.T @ offset.reshape(-1, 1) / POINT_MM**2).T


def carry_expression(expression: Tensor, source: FaceModel, target: FaceModel) -> Tensor:
    """Blend-shape weights [B, K] of one model as those of another, [B, K'], by their names; shapes that the
    other lacks are left out, and so are Gaussian coefficients, whose names say nothing."""
    if any(m.coefficients["expression"].kind != "blend_shape" for m in (source, target)):
        return expression.new_zeros(len(expression), target.num_expression)
    return expression @ shapes_by_name(source.expression_names, target.expression_names).to(expression).T
