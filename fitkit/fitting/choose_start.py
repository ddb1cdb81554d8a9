"""The start of a fit: from the landmarks, from a network, or from the better of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import Objective, Term
from fitkit.fitting.cameras import CameraKnowledge, CameraPrior, expression_owner, moments_of
from fitkit.fitting.initialize import Start, landmark_start, lift
from fitkit.fitting.network_start import regressor_start
from fitkit.fitting.noise import given_sigma
from fitkit.fitting.recipe import FitRecipe
from fitkit.geometry.weak_perspective import lay_onto
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import Landmarks, box_size
from fitkit.observe.observations import Observations
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

FAR = 0.15  # of the face size: good landmarks lie within a third of it
ENOUGH = 8  # landmarks of a view to place a face by


@dataclass(frozen=True)
class ChosenStart:
    """Where a fit begins."""

    source: str  # 'landmarks' or 'regressor'
    state: SceneState  # its camera in px of the crops
    cameras: CameraPrior
    observations: Observations  # the crops, without the landmarks that a network takes for wrong
    outliers: tuple[int, ...] | None = None  # how many these are in each view; None: no network was asked
    cost: dict[str, float] | None = None  # how badly each start fits the landmarks, where both were tried


def choose_start(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    observations: Observations,
    device: str = "cpu",
) -> ChosenStart:
    """The start that the recipe asks for; of both, the one that fits the landmarks better.

    Args:
        found: landmarks in px of the photos; observations: the crops that are fitted.
    Raises:
        FitkitError: a network that cannot be used, landmarks that show no face, cameras that see none.
    """
    knowledge = CameraKnowledge.of(subject.views, observations, recipe.camera)
    starts, outliers = {}, None
    if recipe.init.source != "landmarks":
        guess = regressor_start(subject, found, observations, model, recipe.init, device)
        guess = with_owners(guess, expression_owner(moments_of(subject.views), recipe.expression.shared))
        wrong = landmark_outliers(lift(guess, knowledge, model)[0], observations, model)
        wrong &= guess.predicted[:, None]
        marks = observations.landmarks
        observations = replace(observations, landmarks=replace(marks, valid=marks.valid & ~wrong))
        outliers = tuple(wrong.sum(1).tolist())
        starts["regressor"] = lift(align_to_landmarks(guess, observations, model), knowledge, model)
    if recipe.init.source != "regressor":
        starts["landmarks"] = lift(landmark_start(model, observations), knowledge, model)
    source: str = recipe.init.source
    cost = None
    if source == "auto":
        sigma = given_sigma(observations.landmarks, recipe.landmarks)
        cost = {name: landmark_cost(state, observations, model, sigma) for name, (state, _) in starts.items()}
        source = min(cost, key=cost.__getitem__)
    state, cameras = starts[source]
    return ChosenStart(source, state, cameras, observations, outliers, cost)


def with_owners(start: Start, owner: Tensor) -> Start:
    """The start with one expression for the views of each owner [B]: the mean of those that were
    predicted."""
    expression = start.expression.clone()
    for number in owner.unique().tolist():
        mine = (owner == number).to(start.predicted.device)
        if (seen := mine & start.predicted).any():
            expression[mine] = start.expression[seen].mean(0)
    return replace(start, expression=expression)


@torch.no_grad()
def landmark_outliers(state: SceneState, observations: Observations, model: FaceModel) -> Tensor:
    """Landmarks [B, 68] bool that lie farther than FAR face sizes from where `state` has them, jaw points
    under either rule, also after the state's points were laid onto them by the affine map under which most
    agree: a network sees a face at the edge of a wide photo stretched and turned.

    Where this is more than half of a view's points, the state is more likely wrong than the points, and none
    of them is named; nor where fewer than ENOUGH would be left.
    """
    unit = torch.ones_like(observations.landmarks.points[..., 0])
    energies = (
        LandmarkReprojection(model, unit, rule).freeze(state, observations) for rule in ("surface", "outline")
    )
    found = [energy.residuals(state, observations).value for energy in energies]
    points = project_points(model.landmark_basis, state).pixels
    size = box_size(points)
    valid = observations.landmarks.valid
    far = valid & (torch.minimum(*(r.norm(dim=-1) for r in found)) > FAR * size[:, None])
    outliers = far & (
        torch.minimum(*(_after_affine(r, points, valid, size) for r in found)) > FAR * size[:, None]
    )
    count, left = far.sum(1), valid.sum(1) - far.sum(1)
    return outliers & ((count <= left) & (left >= ENOUGH))[:, None]


def _after_affine(residual: Tensor, points: Tensor, valid: Tensor, size: Tensor) -> Tensor:
    """Lengths [B, 68] of what a robust affine map of the points leaves of the residuals [B, 68, 2]; jaw
    points have no say in it."""
    frame = torch.cat(
        [(points - points.mean(1, keepdim=True)) / size[:, None, None], torch.ones_like(points[..., :1])], -1
    )
    inner = valid.to(residual).clone()
    inner[:, :17] = 0
    left, eye = torch.nan_to_num(residual), torch.eye(3).to(residual)
    for _ in range(10):
        # Geman-McClure.
        weight = inner / (1 + (left / (FAR / 3 * size)[:, None, None]).square().sum(-1)).square()
        rows = frame.mT * weight[:, None]
        left = torch.nan_to_num(residual) - frame @ torch.linalg.solve(
            rows @ frame + 1e-3 * eye, rows @ torch.nan_to_num(residual)
        )
    return left.norm(dim=-1)


@torch.no_grad()
def align_to_landmarks(start: Start, observations: Observations, model: FaceModel) -> Start:
    """The start with each face laid onto its inner landmarks: what they say about scale and place is better
    than a prediction.

    A view with fewer than ENOUGH of them stays as it is.
    """
    marks = observations.landmarks
    weight = marks.valid.float() * marks.confidence.clamp_min(1e-3)
    weight[:, :17] = 0
    head = model.landmark_basis.points(start.identity.expand(len(weight), -1), start.expression)
    turned = (head @ start.rotation.transpose(1, 2))[..., :2]
    # In px of the photos: rounding that differs ends in another solution, and stored results are from these.
    crop, offset = observations.scale, observations.offset
    photo = torch.nan_to_num(marks.points) / crop[:, None, None] + offset[:, None]
    scale, origin = lay_onto(turned, photo, weight.clamp_min(1e-12))
    scale, origin = scale * crop, (origin - offset) * crop[:, None]
    enough = start.predicted & ((weight > 0).sum(1) >= ENOUGH)
    return replace(
        start,
        scale=torch.where(enough, scale, start.scale),
        origin=torch.where(enough[:, None], origin, start.origin),
    )


@torch.no_grad()
def landmark_cost(state: SceneState, observations: Observations, model: FaceModel, sigma: Tensor) -> float:
    """How badly a start fits the inner landmarks, with a kernel that forgives single wrong points. Priors
    would speak for the mean face, although the fit will leave it."""
    marks = observations.landmarks
    inner = marks.valid.clone()
    inner[:, :17] = False  # what they are is not known yet
    seen = replace(observations, landmarks=replace(marks, valid=inner))
    term = Term(LandmarkReprojection(model, sigma, "surface"), 1.0, Kernel("gm", 6.0))
    return float(Objective([term]).freeze(state, seen).cost(state, seen)[0])
