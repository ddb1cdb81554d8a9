"""What a trained network says about the photos of one person, and a fit that starts there."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import Objective, Term
from fitkit.errors import InputError, MissingWeightsError
from fitkit.fitting.initialize import Start, to_photos
from fitkit.fitting.recipe import InitOptions
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.weak_perspective import lay_onto, weak_perspective_pose
from fitkit.io.resources import asset_path
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, read_about
from fitkit.nets.predictor import Prediction, StatePredictor, assign_views
from fitkit.observe.crop import crop_views
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

WEIGHTS = "fitkit-init.safetensors"
STRAY = 0.15  # of the face size: good landmarks lie within a third of it
ENOUGH = 8  # landmarks of a view to place a face by
POINT_MM = (
    1.5  # how far off a network's landmarks are, where the shape of one face model is carried over to another
)


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
    """prediction: its state's cameras in px of the crops; observations: the crops that the network saw, of the views `order` of the
    subject, in this order; model: the network's face model."""

    prediction: Prediction
    observations: Observations
    order: tuple[int, ...]
    model: FaceModel


@torch.no_grad()
def predict_views(
    network: StatePredictor,
    model: FaceModel,
    subject: Subject,
    found: Landmarks,
    device: str = "cpu",
    weights: str = "the network",
) -> Predicted:
    """Run a network on the photos of a subject.

    A network with named views takes one photo for each, by the yaw of the head or by its name, so others are left out.

    Args:
        found: landmarks in px of the photos; they say where to cut. weights: names the network in messages.
    Raises:
        InputError: no photo fits a view of the network.
    """
    order = tuple(range(len(subject.views)))
    there = list(order)
    if network.views:
        weight = found.valid.float() * found.confidence.clamp_min(1e-3)
        _, rotation, _ = weak_perspective_pose(
            model.landmark_basis.mean[None].cpu(), torch.nan_to_num(found.points), weight
        )
        slots = assign_views(
            network.views, yaw_pitch_roll(rotation)[:, 0].tolist(), [v.name for v in subject.views]
        )
        there = [s for s, view in enumerate(slots) if view is not None]
        if not there:
            wanted = ", ".join(f"{v.name} {v.yaw[0]:g} to {v.yaw[1]:g}" for v in network.views)
            raise InputError(
                f"{subject.path or subject.name}: none of its photos fits a view of {weights} (yaw in degrees: {wanted})"
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
    return Predicted(network.predict(images, valid), seen, order, model)


def regressor_start(
    subject: Subject, found: Landmarks, model: FaceModel, options: InitOptions, device: str = "cpu"
) -> Start:
    """Where a network would start the fit of `model`.

    Raises:
        InputError, MissingWeightsError: weights that cannot be used, or no photo that fits the network.
    """
    path = options.weights or shipped_weights()
    about = read_about(path)
    own = (
        model
        if (model.name, model.num_identity) == (about["model"], about["num_identity"])
        else load_model(about["model"])
    )
    own = own.to(device)
    network = load_predictor(path, own).to(device)
    return start_of(
        predict_views(network, own, subject, found, device, os.fspath(path)), len(subject.views), model
    )


def start_of(predicted: Predicted, num_views: int, model: FaceModel) -> Start:
    """The start of a fit of `model` from a network's prediction, in px of the photos.

    A network of another face model gives the places of its landmarks: their pose comes in closed form from these, the identity by
    least squares under the prior after a similarity (which hardly differs between heads of millimetres), the expression by the
    names of the blend shapes.
    """
    state = predicted.prediction.state
    if state.camera.kind != "orthographic":
        raise InputError(
            f"init: expected a network that predicts scaled-orthographic cameras, got camera kind '{state.camera.kind}'"
        )
    photos = to_photos(state, predicted.observations)
    rotation, scale = state.pose.rotation, photos.camera.focal / Camera.REFERENCE_DEPTH
    origin = photos.camera.principal + scale[:, None] * state.pose.translation[:, :2]
    identity, expression = state.identity, state.expression
    same = (model.name, model.num_identity, model.expression_names)
    if same != (predicted.model.name, predicted.model.num_identity, predicted.model.expression_names):
        basis = predicted.model.landmark_basis
        identity = carry_identity(basis.points(state.identity, torch.zeros_like(state.expression[:1])), model)
        expression = carry_expression(state.expression, predicted.model, model)
        posed = basis.points(state.identity[state.subject], state.expression) @ rotation.transpose(1, 2)
        pixels = scale[:, None, None] * posed[..., :2] + origin[:, None]
        ours = model.landmark_basis.points(identity[state.subject], expression)
        scale, rotation, origin = weak_perspective_pose(ours, pixels, torch.ones_like(pixels[..., 0]))
    B = num_views
    order = torch.tensor(predicted.order, device=scale.device)

    def table(values: Tensor, fill: float) -> Tensor:
        out = values.new_full((B, *values.shape[1:]), fill)
        out[order] = values
        return out

    known = torch.zeros(B, dtype=torch.bool, device=scale.device)
    known[order] = True
    return Start(
        table(scale, 1.0), table(rotation, 0.0), table(origin, 0.0), known, identity, table(expression, 0.0)
    )


def carry_identity(points: Tensor, model: FaceModel) -> Tensor:
    """Identity [1, K_id] of `model` whose neutral landmarks lie nearest to points [1, 68, 3] mm of another head frame, under the prior."""
    basis = model.landmark_basis
    mean = basis.mean[None].to(points)
    best = similarity_align(
        points, mean, torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    )
    moved = points @ best.rotation.transpose(
        1, 2
    )  # the size is kept, and the middle of the two clouds agrees
    offset = moved - moved.mean(1, keepdim=True) - (mean - mean.mean(1, keepdim=True))
    rows = basis.rows[..., : basis.num_identity].to(points)
    rows = (rows - rows.mean(0)).reshape(-1, basis.num_identity)
    normal = rows.T @ rows / POINT_MM**2 + torch.eye(basis.num_identity).to(rows)
    return torch.linalg.solve(normal, rows.T @ offset.reshape(-1, 1) / POINT_MM**2).T


def carry_expression(expression: Tensor, source: FaceModel, target: FaceModel) -> Tensor:
    """Blend-shape weights [B, K] of one model as those of another, [B, K'], by their names; shapes that the other lacks are left out."""
    place = {name: i for i, name in enumerate(source.expression_names)}
    out = expression.new_zeros(len(expression), target.num_expression)
    for i, name in enumerate(target.expression_names):
        if name in place:
            out[:, i] = expression[:, place[name]]
    return out


@torch.no_grad()
def stray_points(state: SceneState, observations: Observations, model: FaceModel) -> Tensor:
    """Landmarks [B, 68] bool that lie farther than STRAY face sizes from where `state` has them, jaw points under either rule, also after
    the state's points were laid onto them by the affine map under which most agree: a network sees a face at the edge of a wide photo
    stretched and turned.

    Where this is more than half of a view's points, the state is more likely wrong than the points, and none of them is named; nor
    where fewer than ENOUGH would be left.
    """
    unit = torch.ones_like(observations.landmarks.points[..., 0])
    energies = (
        LandmarkReprojection(model, unit, rule).freeze(state, observations) for rule in ("surface", "outline")
    )
    found = [energy.residuals(state, observations).value for energy in energies]
    points = project_points(model.landmark_basis, state).pixels
    size = (points.amax(1) - points.amin(1)).prod(-1).sqrt()
    valid = observations.landmarks.valid
    far = valid & (torch.minimum(*(r.norm(dim=-1) for r in found)) > STRAY * size[:, None])
    stray = far & (
        torch.minimum(*(_after_affine(r, points, valid, size) for r in found)) > STRAY * size[:, None]
    )
    count, left = far.sum(1), valid.sum(1) - far.sum(1)
    return stray & ((count <= left) & (left >= ENOUGH))[:, None]


def _after_affine(residual: Tensor, points: Tensor, valid: Tensor, size: Tensor) -> Tensor:
    """Lengths [B, 68] of what a robust affine map of the points leaves of the residuals [B, 68, 2]; jaw points have no say in it."""
    frame = torch.cat(
        [(points - points.mean(1, keepdim=True)) / size[:, None, None], torch.ones_like(points[..., :1])], -1
    )
    inner = valid.to(residual).clone()
    inner[:, :17] = 0
    left, eye = torch.nan_to_num(residual), torch.eye(3).to(residual)
    for _ in range(10):
        weight = (
            inner / (1 + (left / (STRAY / 3 * size)[:, None, None]).square().sum(-1)).square()
        )  # Geman-McClure
        rows = frame.mT * weight[:, None]
        left = torch.nan_to_num(residual) - frame @ torch.linalg.solve(
            rows @ frame + 1e-3 * eye, rows @ torch.nan_to_num(residual)
        )
    return left.norm(dim=-1)


@torch.no_grad()
def settled(start: Start, observations: Observations, model: FaceModel) -> Start:
    """The start with each face laid onto its inner landmarks: what they say about scale and place is better than a prediction.

    A view with fewer than ENOUGH of them stays as it is.
    """
    marks = observations.landmarks
    weight = marks.valid.float() * marks.confidence.clamp_min(1e-3)
    weight[:, :17] = 0
    head = model.landmark_basis.points(start.identity.expand(len(weight), -1), start.expression)
    photo = torch.nan_to_num(marks.points) / observations.scale[:, None, None] + observations.offset[:, None]
    scale, origin = lay_onto((head @ start.rotation.transpose(1, 2))[..., :2], photo, weight.clamp_min(1e-12))
    enough = start.known & ((weight > 0).sum(1) >= ENOUGH)
    return replace(
        start,
        scale=torch.where(enough, scale, start.scale),
        origin=torch.where(enough[:, None], origin, start.origin),
    )


@torch.no_grad()
def start_cost(state: SceneState, observations: Observations, model: FaceModel, sigma: Tensor) -> float:
    """How badly a start fits the inner landmarks, with a kernel that forgives single wrong points. Priors would speak for the mean
    face, although the fit will leave it."""
    marks = observations.landmarks
    inner = marks.valid.clone()
    inner[:, :17] = False  # what they are is not known yet
    seen = replace(observations, landmarks=replace(marks, valid=inner))
    term = Term(LandmarkReprojection(model, sigma, "surface"), 1.0, Kernel("gm", 6.0))
    return float(Objective([term]).freeze(state, seen).cost(state, seen)[0])
