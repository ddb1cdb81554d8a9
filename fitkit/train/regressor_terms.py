"""The cost of a predicted state: the energies of a stage, each on the people of a batch that it can be used
for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fitkit.energies.objective import Objective, Term, TermReport
from fitkit.energies.registry import find
from fitkit.energies.rendered_depth import model_depth
from fitkit.energies.spec import PARTS, Context, EnergyOptions, EnergySpec, Networks
from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import white_light
from fitkit.models.face_model import FaceModel
from fitkit.nets import load_network
from fitkit.nets.predictor import Prediction
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations
from fitkit.train.regressor_recipe import TrainingStage


@dataclass(frozen=True)
class TermValue:
    """value: weighted robust cost, mean over the people of the batch; people: for how many it could be used;
    rms: root mean square of its valid residuals, in sigmas."""

    value: float
    people: int
    rms: float


class StageCost:
    """The cost of one stage.

    Energies that sum count per person: the cost is the mean over the people of the batch of what
    `Objective.cost` gives for one person. Energies that take means are weighted with the number of people
    they could be used for.
    """

    def __init__(
        self,
        stage: TrainingStage,
        model: FaceModel,
        seed: int = 0,
        make_estimator: Callable[[str, str | None, str], FlowEstimator] = make_flow_estimator,
        make_network: Callable[[str, str, str], nn.Module] = load_network,
    ):
        self.stage, self.model, self.seed = stage, model, seed
        self.specs = {name: find(name) for name in stage.energies}
        self.networks = Networks(str(model.device), make_flow=make_estimator, make_network=make_network)

    def __call__(
        self, prediction: Prediction, people: Sequence[Observations], done: float = 0.0
    ) -> tuple[Tensor, dict[str, TermValue]]:
        """Total cost (a differentiable scalar) and a report for each energy.

        prediction: of all people; people: what is seen of each of them, on the prediction's device;
        done: share of the stage that is done.

        Raises:
            InputError: none of the energies can be used for these people, or the network does not predict
                what one needs.
        """
        total, report, joined = None, {}, {}
        people = self._with_model_depth(prediction, people)
        for name, options in self.stage.energies.items():
            spec, groups = self.specs[name], self._groups(name, people)
            value, squares, count = 0.0, 0.0, 0
            for group in groups:
                if group not in joined:
                    mine = [people[i] for i in group]
                    joined[group] = prediction.select(group), Observations.join(mine)
                cost, only, mean = self._cost(spec, options, *joined[group], done)
                share = (len(group) if mean else 1) / len(people)
                total = cost * share if total is None else total + cost * share
                value += only.value * share
                squares, count = squares + only.rms**2 * only.valid, count + only.valid
            report[name] = TermValue(value, sum(map(len, groups)), (squares / max(count, 1)) ** 0.5)
        if total is None:
            raise InputError(self._nothing(people))
        return total, report

    def _with_model_depth(
        self, prediction: Prediction, people: Sequence[Observations]
    ) -> Sequence[Observations]:
        """People with the depth of the face model in the pose that the same network predicts (a constant) as
        the label `prior_depth`, where an energy of the stage looks at it, the network gives scenes and depth,
        and the data know none."""
        wanted = any("prior_depth" in self._all_labels(name) for name in self.stage.energies)
        if not wanted or prediction.state is None or prediction.depth is None:
            return people
        drawn = model_depth(self.model, prediction.state, prediction.depth.size)
        out = []
        for number, seen in enumerate(people):
            labels = Labels() if seen.labels is None else seen.labels
            if labels.prior_depth is None:
                labels = replace(labels, prior_depth=drawn[prediction.subject == number])
            out.append(replace(seen, labels=labels))
        return out

    def _all_labels(self, name: str) -> frozenset[str]:
        spec = self.specs[name]
        return spec.labels_for(self.stage.energies[name]) | set(spec.optional)

    def load_networks(self) -> None:
        """Make the flow estimators and networks of the stage now, so that missing weights are told before
        anything is trained.

        Raises:
            InputError, MissingWeightsError: one that cannot be had.
        """
        for name, options in self.stage.energies.items():
            if self.specs[name].load is not None:
                self.specs[name].load(self.networks, options)

    def _groups(self, name: str, people: Sequence[Observations]) -> list[tuple[int, ...]]:
        """People whose views one energy takes together; those are left out whom it cannot be used for."""
        spec, options = self.specs[name], self.stage.energies[name]
        usable = [i for i, o in enumerate(people) if not self._missing(name, o)]
        if spec.one_person:
            return [(i,) for i in usable]
        groups: dict[object, list[int]] = {}
        for i in usable:
            groups.setdefault(None if spec.apart is None else spec.apart(people[i], options), []).append(i)
        return [tuple(group) for group in groups.values()]

    def _missing(self, name: str, observations: Observations) -> list[str]:
        """What an energy lacks to be used for a person."""
        spec, options = self.specs[name], self.stage.energies[name]
        known = frozenset() if observations.labels is None else observations.labels.parts
        missing = sorted(spec.labels_for(options) - known)
        alone = spec.cross_view and observations.num_views < 2
        return [f"label '{part}'" for part in missing] + (["a second view of a person"] if alone else [])

    def _nothing(self, people: Sequence[Observations]) -> str:
        lacking = {name: {m for o in people for m in self._missing(name, o)} for name in self.stage.energies}
        needed = "; ".join(f"{name} lacks {', '.join(sorted(what))}" for name, what in lacking.items())
        return (
            f"stage '{self.stage.name}': none of its energies ({', '.join(self.stage.energies)}) can be "
            f"used for these samples: {needed}; choose other data for the stage"
        )

    def _cost(
        self,
        spec: EnergySpec,
        options: EnergyOptions,
        prediction: Prediction,
        observations: Observations,
        done: float,
    ) -> tuple[Tensor, TermReport, bool]:
        """Cost of one energy for one group of people, its report, and whether it is a mean."""
        self._check_parts(spec, options, prediction)
        state = getattr(prediction, spec.takes)
        context = Context(
            self.model,
            observations,
            state,
            self.networks,
            self.seed,
            done,
            expression_owner=prediction.expression_owner,
            joint_owner=prediction.expression_owner,
            prediction=prediction,
        )
        term = Term(spec.make(context, options), options.weight, options.kernel)
        light = getattr(options, "light", "predicted")
        if light != "predicted":
            state = state.replace(illumination=white_light(state.illumination))
        if light == "estimate":
            with torch.no_grad():
                lit = term.energy.freeze(state, observations).estimate_light(state)
            state = state.replace(illumination=lit)
        cost, terms = Objective([term]).freeze(state, observations).cost(state, observations)
        return cost.sum(), terms[term.energy.name], spec.takes_means or term.energy.reduction == "mean"

    def _check_parts(self, spec: EnergySpec, options: EnergyOptions, prediction: Prediction) -> None:
        for part in spec.parts_for(options):
            there = prediction
            for name in part.split("."):
                there = None if there is None else getattr(there, name)
            if there is None:
                raise not_predicted(self.stage.name, spec.name, part, prediction.gives)


def not_predicted(stage: str, energy: str, part: str, gives: Sequence[str]) -> InputError:
    """The refusal of an energy that needs what a network does not give."""
    return InputError(
        f"stage '{stage}': energy '{energy}' needs a network that predicts {PARTS[part]} ({part}), and this "
        f"one gives {', '.join(gives)}; leave it out or choose another network"
    )
