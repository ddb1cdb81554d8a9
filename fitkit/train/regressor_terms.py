"""The cost of a predicted state: the energies of a stage, each on the people of a batch that it can be used for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.energies.base import Energy
from fitkit.energies.census import CrossViewCensus
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages
from fitkit.energies.flow_magnitude import FlowMagnitude
from fitkit.energies.landmarks import LandmarkReprojection, eye_offsets, lip_offsets
from fitkit.energies.objective import Objective, Term
from fitkit.energies.photometric import CrossViewPhotometric
from fitkit.energies.priors import ExpressionPrior, IdentityPrior, MeanCoefficientPrior
from fitkit.energies.supervision import (
    ExpressionSupervision,
    IdentityLikelihood,
    IdentitySupervision,
    PoseSupervision,
    VertexSupervision,
)
from fitkit.errors import InputError
from fitkit.fitting.recipe import EnergyOptions
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import join_landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState
from fitkit.train.regressor_recipe import FlowTerm, TrainingStage

# What of the labels an energy compares with; people who lack it are left out of that energy.
NEEDS = {
    "identity_sup": {"identity"},
    "identity_nll": {"identity"},
    "expression_sup": {"expression"},
    "pose_sup": {"pose"},
    "vertex_sup": {"identity", "expression"},
}
CROSS_VIEW = {"photo_xview", "census_xview", "flow_corr", "flow_mag"}  # need two views of a person
ONE_BY_ONE = {"photo_xview"}  # takes the mean over all views it is given, so they must be of one person
MEANS = {"prior_l1"}  # sums weights that sum to 1 over the people


@dataclass(frozen=True)
class TermValue:
    """value: weighted robust cost, mean over the people of the batch; people: for how many it could be used; rms: root mean square
    of its valid residuals, in sigmas."""

    value: float
    people: int
    rms: float


class StageCost:
    """The cost of one stage.

    Energies that sum count per person: the cost is the mean over the people of the batch of what `Objective.cost` gives for one
    person. Energies that take means are weighted with the number of people they could be used for.
    """

    def __init__(
        self,
        stage: TrainingStage,
        model: FaceModel,
        seed: int = 0,
        make_estimator: Callable[[str, str | None, str], FlowEstimator] = make_flow_estimator,
    ):
        self.stage, self.model, self.seed, self.make_estimator = stage, model, seed, make_estimator
        self._estimators: dict[tuple[str, str], FlowEstimator] = {}

    def __call__(
        self, state: SceneState, people: Sequence[Observations], identity_sigma: Tensor | None = None
    ) -> tuple[Tensor, dict[str, TermValue]]:
        """Total cost (a differentiable scalar) and a report for each energy.

        state: of all people, views person by person; people: what is seen of each of them, on the state's device;
        identity_sigma: [S, K_id], see `Prediction`.

        Raises:
            InputError: none of the energies can be used for these people.
        """
        total, report = None, {}
        for name, options in self.stage.energies.items():
            groups = self._groups(name, people)
            value, squares, count = 0.0, 0.0, 0
            for group in groups:
                part, observations = (
                    select_people(state, group),
                    join_observations([people[i] for i in group]),
                )
                sigma = None if identity_sigma is None else identity_sigma[group]
                term = Term(
                    self._energy(name, options, part, observations, sigma), options.weight, options.kernel
                )
                if name == "photo_xview" and options.light == "estimate":
                    part = part.replace(illumination=_light(term.energy, part, observations))
                cost, terms = Objective([term]).freeze(part, observations).cost(part, observations)
                (only,) = terms.values()
                share = (1 if term.energy.reduction == "sum" and name not in MEANS else len(group)) / len(
                    people
                )
                total = cost * share if total is None else total + cost * share
                value, squares, count = (
                    value + only.value * share,
                    squares + only.rms**2 * only.valid,
                    count + only.valid,
                )
            report[name] = TermValue(value, sum(map(len, groups)), (squares / max(count, 1)) ** 0.5)
        if total is None:
            raise InputError(
                f"stage '{self.stage.name}': none of its energies ({', '.join(self.stage.energies)}) can be used for these "
                "samples: supervised ones need labels, those between the views two views of a person; "
                "choose other data for the stage"
            )
        return total, report

    def load_estimators(self, device: str) -> None:
        """Make the flow estimators of the stage now, so that missing weights are told before anything is trained.

        Raises:
            InputError, MissingWeightsError: one that cannot be had.
        """
        for options in self.stage.energies.values():
            if isinstance(options, FlowTerm):
                self._estimator(options.estimator, options.weights, device)

    def _groups(self, name: str, people: Sequence[Observations]) -> list[list[int]]:
        """People whose views one energy takes together."""
        usable = [i for i, o in enumerate(people) if NEEDS.get(name, set()) <= _known(o.labels)]
        if name in CROSS_VIEW:
            usable = [i for i in usable if people[i].num_views > 1]
        if name in ONE_BY_ONE:
            return [[i] for i in usable]
        if name == "lmk2d":  # one rule for the jaw points of all views
            rules = {i: self._jaw(people[i]) for i in usable}
            return [
                [i for i in usable if rules[i] == rule]
                for rule in ("surface", "outline")
                if rule in rules.values()
            ]
        return [usable] if usable else []

    def _jaw(self, observations: Observations) -> str:
        known = observations.landmarks.jaw
        return known if known != "auto" else self.stage.energies["lmk2d"].jaw

    def _energy(
        self,
        name: str,
        options: EnergyOptions,
        state: SceneState,
        observations: Observations,
        identity_sigma: Tensor | None,
    ) -> Energy:
        model, o = self.model, options
        if name.startswith("lmk2d"):
            sigma = torch.full_like(
                observations.landmarks.points[..., 0], o.sigma_px * observations.pixel_unit
            )
            if name == "lmk2d":
                return LandmarkReprojection(model, sigma, self._jaw(observations))
            return (eye_offsets if name == "lmk2d_eye" else lip_offsets)(model, sigma)
        if name == "identity_sup":
            return IdentitySupervision(o.sigma)
        if name == "identity_nll":
            if identity_sigma is None:
                raise InputError(
                    f"stage '{self.stage.name}': energy 'identity_nll' needs a network that predicts standard deviations, "
                    "such as fitkit_init; leave it out"
                )
            return IdentityLikelihood(identity_sigma)
        if name == "expression_sup":
            return ExpressionSupervision(o.sigma)
        if name == "pose_sup":
            return PoseSupervision(o.sigma_deg, o.sigma_mm, o.sigma_focal)
        if name == "vertex_sup":
            return VertexSupervision(model, o.sigma_mm, o.frame, o.region)
        if name == "identity_prior":
            return IdentityPrior()
        if name == "expression_prior":
            return ExpressionPrior(o.sigma, o.sigma_negative)
        if name == "prior_l1":
            return MeanCoefficientPrior(o.sigma, o.expression)
        chosen = replace(o.options, seed=self.seed)
        if name == "photo_xview":
            return CrossViewPhotometric.prepare(model, observations, chosen)
        if name == "census_xview":
            return CrossViewCensus.prepare(model, observations, chosen)
        estimator = self._estimator(o.estimator, o.weights, str(state.identity.device))
        if name == "flow_mag":
            return FlowMagnitude.prepare(model, observations, estimator, chosen)
        return FlowCorrespondence(
            model,
            chosen,
            estimator,
            chosen.sigma_px * observations.pixel_unit,
            FlowImages.of(observations, chosen),
        )

    def _estimator(self, name: str, weights: str, device: str) -> FlowEstimator:
        if (name, weights) not in self._estimators:
            self._estimators[name, weights] = self.make_estimator(name, weights or None, device)
        return self._estimators[name, weights]


def _known(labels: Labels | None) -> set[str]:
    return set() if labels is None or labels.state is None else set(labels.known)


@torch.no_grad()
def _light(photo: CrossViewPhotometric, state: SceneState, observations: Observations) -> Tensor:
    return photo.freeze(state, observations).estimate_light(state)


def select_people(state: SceneState, people: Sequence[int]) -> SceneState:
    """The state of some of its people, in this order, with all their views."""
    if list(people) == list(range(len(state.identity))):
        return state
    views = torch.cat([(state.subject == s).nonzero()[:, 0] for s in people])
    new = torch.full((len(state.identity),), -1, device=views.device)
    new[torch.tensor(people, device=views.device)] = torch.arange(len(people), device=views.device)
    return SceneState(
        state.identity[list(people)],
        new[state.subject[views]],
        state.expression[views],
        state.pose.select(views),
        state.camera.select(views),
        state.illumination[views],
        None if state.albedo is None else state.albedo[list(people)],
    )


def join_observations(parts: Sequence[Observations]) -> Observations:
    """Observations of several people as one; of the labels what all of them have (their states and how sure these are)."""
    if len(parts) == 1:
        return parts[0]
    images, mask, scale, offset = (
        torch.cat([getattr(p, k) for p in parts]) for k in ("images", "mask", "scale", "offset")
    )
    return Observations(
        images,
        join_landmarks([p.landmarks for p in parts]),
        mask,
        scale,
        offset,
        _join_labels([p.labels for p in parts]),
    )


def _join_labels(parts: Sequence[Labels | None]) -> Labels | None:
    if any(p is None or p.state is None for p in parts):
        return None
    state, sigma = join_states([p.state for p in parts]), None
    if any(p.identity_sigma is not None for p in parts):
        sigma = torch.cat(
            [
                torch.zeros_like(p.state.identity) if p.identity_sigma is None else p.identity_sigma
                for p in parts
            ]
        )
    return Labels(state, sigma, known=tuple(k for k in parts[0].known if all(k in p.known for p in parts)))


def join_states(parts: Sequence[SceneState]) -> SceneState:
    """People of several states as one state; the light is left out, their cameras must be of one kind."""
    offsets = torch.tensor([0, *(len(p.identity) for p in parts[:-1])]).cumsum(0).tolist()
    focal, principal, aspect = (
        torch.cat([getattr(p.camera, k) for p in parts]) for k in ("focal", "principal", "aspect")
    )
    camera = Camera(focal, principal, aspect, parts[0].camera.kind)
    pose = Pose(torch.cat([p.pose.rotation for p in parts]), torch.cat([p.pose.translation for p in parts]))
    expression = torch.cat([p.expression for p in parts])
    return SceneState(
        torch.cat([p.identity for p in parts]),
        torch.cat([p.subject + o for p, o in zip(parts, offsets)]),
        expression,
        pose,
        camera,
        expression.new_zeros(len(expression), 9, 1),
    )
