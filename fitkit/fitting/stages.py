"""Runs the stages of a recipe on the crops of one subject."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.priors import LandmarkOffsetPrior
from fitkit.energies.registry import energy_of_fit, find
from fitkit.energies.spec import Context, Networks
from fitkit.errors import FitError
from fitkit.fitting.cameras import CameraPrior, expression_owner
from fitkit.fitting.choose_start import ChosenStart
from fitkit.fitting.detail import solve_detail
from fitkit.fitting.noise import given_sigma, measured_sigma, measured_spread, offset_prior, wrong_exif
from fitkit.fitting.one_expression import ENOUGH, shared_problem, shows_one
from fitkit.fitting.recipe import FitRecipe, Stage
from fitkit.fitting.report import StageReport
from fitkit.fitting.solution import Solution
from fitkit.fitting.together import Clock, Request, Steps, alone
from fitkit.geometry.spherical_harmonics import white_light
from fitkit.io.progress import Progress
from fitkit.models.face_model import FaceModel
from fitkit.nets import load_network
from fitkit.observe.flow import make_flow_estimator
from fitkit.scene.layout import ParameterLayout
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, SolverResult

log = logging.getLogger("fitkit")

# Measured ratios: 0.05 to 0.9 on fixed points (0.2 and less with a view beyond 40 degrees), 0.83 to 1.4 on
# outlines.
SURFACE_WINS = 0.8


def at_start(chosen: ChosenStart, model: FaceModel, recipe: FitRecipe) -> Solution:
    """The fit before its first stage. model: on the device of the crops."""
    marks, rule = chosen.observations.landmarks, recipe.landmarks.jaw
    return Solution(
        model,
        chosen.observations,
        chosen.cameras,
        chosen.state,
        given_sigma(marks, recipe.landmarks),
        marks.jaw if rule == "auto" else rule,
        chosen.source,
    )


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of a recipe: each makes a new Solution of the one before it."""

    recipe: FitRecipe
    device: str = "cpu"  # of the crops
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def networks(self) -> Networks:
        """Flow estimators and frozen networks, each made once."""
        flow = self.recipe.flow.estimator, self.recipe.flow.weights
        return Networks(self.device, flow, make_flow=make_flow_estimator, make_network=load_network)

    def solve(self, at: Solution, progress: Progress = Progress()) -> Solution:
        """All stages in turn, and the detail layer; see `steps`."""
        return alone(self.steps(at, progress))

    def steps(self, at: Solution, progress: Progress = Progress()) -> Steps[Solution]:
        """`solve` as something that asks for the solution of its problems, see `together`.

        Raises:
            FitError: no stage is for this number of views and this start, or the solver failed.
                MissingWeightsError: of a flow network.
        """
        stages = self._stages_for(at)
        for stage, name, options in ((s, *pair) for s in stages for pair in s.energies.items()):
            spec = find(name)
            if spec.load is not None:
                spec.load(self.networks, options)  # missing weights are told before anything is solved
            heavy = spec.load is not None or spec.role in ("image", "flow")
            if heavy and stage.solver.name != "adam" and not spec.least_squares:
                log.warning(
                    "stage '%s': energy '%s' looks at pictures and has no derivatives of its own, so that "
                    "solver '%s' may take many minutes; 'adam' is faster",
                    *(stage.name, name, stage.solver.name),
                )
        detail = self.recipe.detail_flow
        if self.recipe.detail.enabled:
            self.networks.flow(detail.estimator, detail.weights)
        progress.at(0.0, f"stage {stages[0].name}")
        at, done = yield from self._leading_stages(stages, at)
        wrong = wrong_exif(at) if done else []
        if wrong:
            cameras = at.cameras.without_exif(wrong, at.state, self.recipe.camera, at.model)
            again = replace(at, cameras=cameras, stages=(), shape=None)
            at, done = yield from self._leading_stages(stages, again)
        effort = [_effort(stage) for stage in stages]
        for number, stage in enumerate(stages[done:], done):
            begun, end = (0.8 * sum(effort[:n]) / sum(effort) for n in (number, number + 1))
            at = yield from self._stage(stage, at, progress.part(begun, end, f"stage {stage.name}"))
        if not self.recipe.detail.enabled:
            return at
        progress.at(0.8, "detail")
        flow, wanted = self.networks.flow(detail.estimator, detail.weights), self.recipe.detail
        return replace(
            at, detail=solve_detail(at.model, at.state, at.observations, flow, wanted, self.recipe.seed)
        )

    def _stages_for(self, at: Solution) -> list[Stage]:
        """The stages that are for this number of views and this start."""
        views = at.observations.num_views
        stages = [s for s in self.recipe.stages if views >= s.min_views and s.start in ("any", at.start)]
        if not stages:
            raise FitError(
                f"recipe '{self.recipe.name}' has no stage for {views} view(s) and a start from {at.start}"
            )
        return stages

    def _leading_stages(self, stages: Sequence[Stage], at: Solution) -> Steps[tuple[Solution, int]]:
        """The leading landmark stages. What the jaw points are, where that is not known, is the rule under
        which they fit better.

        A fit under the wrong rule bends the face to the jaw points, so the rules are compared by their own
        solutions.
        Points on fixed skin cost an outline fit several times more once the head is turned; outline points
        fit both rules about as well. So 'surface' has to win clearly, by SURFACE_WINS.

        Returns:
            the solution under the rule that won, and the number of stages that it has behind it.
        """
        leading = []
        for stage in stages:
            if stage.measure_noise or _looks_at_pictures(stage):
                break
            leading.append(stage)
        if not leading:
            return at, 0
        trials, iterations = {}, at.iterations
        for rule in ("surface", "outline") if at.jaw_rule == "auto" else (at.jaw_rule,):
            trial = replace(at, jaw_rule=rule, iterations=iterations)
            for stage in leading:
                trial = yield from self._stage(stage, trial)
            trials[rule], iterations = trial, trial.iterations
        costs = {rule: sum(t.value for t in trial.terms.values()) for rule, trial in trials.items()}
        rule = next(iter(trials))
        if len(costs) > 1:
            rule = "surface" if costs["surface"] < SURFACE_WINS * costs["outline"] else "outline"
        log.info("jaw points: %s (costs: %s)", rule, costs)
        return replace(trials[rule], iterations=iterations), len(leading)

    def _stage(self, stage: Stage, at: Solution, progress: Progress = Progress()) -> Steps[Solution]:
        progress.at(0.0)
        began, before = self.clock.wall(), at
        if stage.measure_noise:
            at = replace(at, sigma=measured_sigma(at, self.recipe.landmarks))
        at, objective, layout = self._set_up(stage, at)
        first_order = stage.solver.name == "adam"
        if first_order:
            at, objective, status, messages = self._first_order(stage, at, objective, layout, progress)
        else:
            steps = self._least_squares(stage, at, objective, layout, progress)
            at, objective, status, messages = yield from steps
            if self._may_share(stage, at):
                at, objective, layout, more = yield from self._sharing(stage, at, objective, layout)
                messages = (*messages, *more)
        with torch.no_grad():
            terms = objective.cost(at.state, at.observations)[1]
        last = (LeastSquaresProblem(objective, at.observations, layout, first_order), at.state)
        moved = "identity" in stage.free
        change = None
        if moved and before.shape is not None:
            change = float((at.state.identity - before.state.identity).square().mean().sqrt())
        seconds = round(self.clock.wall() - began, 4)
        numbers = {n: {"cost": t.value, "valid": t.valid, "rms": t.rms} for n, t in terms.items()}
        report = StageReport(stage.name, status, seconds, change, messages, numbers)
        log.info("stage %s: %s", stage.name, "; ".join(messages))
        shape = last if moved else at.shape
        return replace(at, terms=terms, last=last, shape=shape, stages=(*at.stages, report))

    def _untold(self, at: Solution) -> bool:
        """Whether there are too few photos to tell if they show one expression, and nobody states it."""
        return at.observations.num_views < ENOUGH and not at.cameras.moments_stated

    def _may_share(self, stage: Stage, at: Solution) -> bool:
        """Whether it is asked after a stage if the photos show one expression."""
        known = self.recipe.expression.shared or at.one_expression or at.cameras.moments_stated
        asked = stage.find_one_expression and not known and at.observations.num_views >= ENOUGH
        matched = any(find(name).role == "flow" for name in stage.energies)
        return asked and matched and {"identity", "expression"} <= set(stage.free)

    def _sharing(
        self, stage: Stage, at: Solution, objective: Objective, layout: ParameterLayout
    ) -> Steps[tuple[Solution, Objective, ParameterLayout, tuple[str, ...]]]:
        """A solution, its objective and layout with one expression for all photos, where the evidence allows
        it, and what to say of it."""
        problem, x = shared_problem(at, objective, layout)
        options = LMOptions(stage.solver.max_iterations, min_decrease=stage.solver.min_decrease)
        result = yield Request(problem, x, options, self.recipe.stages.index(stage), self.clock)
        at = replace(at, iterations=at.iterations + result.iterations)
        with torch.no_grad():
            own, shared = (
                o.cost(s, at.observations)[1]
                for o, s in ((objective, at.state), (problem.objective, result.x))
            )
        if result.status == "failed" or not shows_one(own, shared, at.observations.num_views):
            return at, objective, layout, ()
        at = replace(at, state=result.x, one_expression=True)
        message = f"one expression for all photos: {result.message}"
        return at, problem.objective, problem.layout, (message,)

    def _set_up(self, stage: Stage, at: Solution) -> tuple[Solution, Objective, ParameterLayout]:
        """What a stage minimizes over what; where it needs the light and nobody has estimated it, that comes
        first."""
        here = self.context(at)
        chosen = {n: o for n, o in stage.energies.items() if find(n).applies(here)}
        lights = {n: find(n).light(o) for n, o in chosen.items() if find(n).light is not None}
        free = _free(stage, bool(lights), at.cameras)
        if lights:
            at = self._lit(at, chosen, lights)
        here = self.context(at)
        energies = {name: energy_of_fit(name, here, options) for name, options in chosen.items()}
        owners = {"focal": at.cameras.focal_groups, "aspect": at.cameras.focal_groups}
        owners |= {"pose": at.cameras.pose_groups, "principal": at.cameras.cameras}
        owners |= {"expression": here.expression_owner, "joints": here.joint_owner}
        layout = ParameterLayout.of(at.state, free, owners, at.cameras.moments)
        terms = [Term(energies[name], options.weight, options.kernel) for name, options in chosen.items()]
        return at, Objective(terms), layout

    def _first_order(
        self, stage: Stage, at: Solution, objective: Objective, layout: ParameterLayout, progress: Progress
    ) -> tuple[Solution, Objective, str, tuple[str, ...]]:
        """Adam: the solution, what was minimized last, status and messages of the solver."""
        options = AdamOptions(stage.solver.max_iterations, stage.solver.learning_rate)
        problem = LeastSquaresProblem(objective, at.observations, layout, first_order=True)
        result = adam(problem, at.state, options, progress.at)
        at = _accepted(stage, at, result)
        objective = objective.at_share(1.0).freeze(at.state, at.observations)
        return at, objective, result.status, (result.message,)

    def _least_squares(
        self, stage: Stage, at: Solution, objective: Objective, layout: ParameterLayout, progress: Progress
    ) -> Steps[tuple[Solution, Objective, str, tuple[str, ...]]]:
        """Levenberg-Marquardt, with visibility, matches and weights computed anew in each round: as
        `_first_order`."""
        solver, messages, order = stage.solver, [], self.recipe.stages.index(stage)
        options = LMOptions(solver.max_iterations, min_decrease=solver.min_decrease)
        for number in range(solver.refresh):
            progress.at(number / solver.refresh)
            objective = objective.freeze(at.state, at.observations)
            problem = LeastSquaresProblem(objective, at.observations, layout)
            result = yield Request(problem, at.state, options, order, self.clock)
            at = _accepted(stage, at, result)
            messages.append(result.message)
            if stage.measure_offsets:
                at, objective = _with_measured_spread(at, problem)
        return at, objective, result.status, tuple(messages)

    def context(self, at: Solution) -> Context:
        """What the energies of a stage that starts at a solution are made from."""
        shared = self.recipe.expression.shared
        return Context(
            at.model,
            at.observations,
            at.state,
            self.networks,
            self.recipe.seed,
            light=at.state.illumination if at.light is None else at.light,
            expression_owner=expression_owner(at.cameras.moments, shared or at.one_expression),
            # Of two photos nobody can tell.
            expression_alike=torch.zeros_like(at.cameras.moments) if self._untold(at) else None,
            joint_owner=expression_owner(at.cameras.moments, shared),  # a neck turns under one expression
            landmark_sigma=at.sigma,
            offset_sigma=offset_prior(at, self.recipe.landmarks),
            jaw=at.jaw_rule,
            cameras=at.cameras,
            expression=self.recipe.expression,
        )

    def _lit(self, at: Solution, chosen: dict[str, Any], lights: dict[str, int]) -> Solution:
        """The same under light that was estimated: now, if it was not before with the channels that the
        energies ask for."""
        name = max(lights, key=lights.__getitem__)  # one that estimates colours, if there is one
        if at.light is not None and lights[name] in (0, at.light.shape[-1]):
            return at
        photo = energy_of_fit(name, self.context(at), chosen[name])
        with torch.no_grad():
            lit = at.state.replace(illumination=white_light(at.state.illumination))
            light = photo.freeze(lit, at.observations).estimate_light(lit)
        return replace(at, light=light, state=at.state.replace(illumination=light))


def _free(stage: Stage, lit: bool, cameras: CameraPrior) -> list[str]:
    """The blocks that a stage moves: the light only where an energy sees it, aspects where photos may differ
    in them; with the poses of a rig the unit of its positions, where nobody knows it."""
    needless = {"illumination": not lit, "rig_scale": True, "aspect": not cameras.aspect_differs}
    free = [block for block in stage.free if not needless.get(block)]
    return [*free, "rig_scale"] if cameras.unit_mm is not None and "pose" in free else free


def _accepted(stage: Stage, at: Solution, result: SolverResult) -> Solution:
    if result.status == "failed":
        raise FitError(
            f"stage '{stage.name}': {result.message}; check the landmarks and the cameras of the subject"
        )
    return replace(at, state=result.x, iterations=at.iterations + result.iterations)


def _with_measured_spread(at: Solution, problem: LeastSquaresProblem) -> tuple[Solution, Objective]:
    """The solution and its objective with the spread of the landmarks' offsets that this person has."""
    objective = problem.objective
    spread = measured_spread(problem, at.state, at.offset_spread)
    if spread is None:
        return at, objective
    term = next(t for t in objective.terms if isinstance(t.energy, LandmarkOffsetPrior))
    prior = replace(term.energy, sigma_mm=term.energy.sigma_mm * (spread / at.offset_spread))
    terms = [replace(t, energy=prior) if t is term else t for t in objective.terms]
    return replace(at, offset_spread=spread), Objective(terms)


def _looks_at_pictures(stage: Stage) -> bool:
    """Whether anything but landmarks and priors has a say in it."""
    return any(find(name).role not in ("landmark", "prior") for name in stage.energies)


def _effort(stage: Stage) -> float:
    """How long a stage takes, about, in units of one that looks at landmarks only."""
    images = _looks_at_pictures(stage)
    if stage.solver.name == "adam":
        return stage.solver.max_iterations * (1.0 if images else 0.1)
    return stage.solver.refresh * (4.0 if images else 1.0)
