"""Runs the stages of a recipe on the crops of one subject."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fitkit.energies.appearance_priors import LightMono
from fitkit.energies.base import Energy
from fitkit.energies.census import CrossViewCensus
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages
from fitkit.energies.flow_magnitude import FlowMagnitude
from fitkit.energies.flow_triangulated import TriangulatedFlow
from fitkit.energies.landmarks import LandmarkReprojection, eye_offsets, lip_offsets
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.photo_model import ModelPhotometric
from fitkit.energies.photometric import CrossViewPhotometric
from fitkit.energies.priors import (
    ExpressionPrior,
    FocalPrior,
    IdentityPrior,
    LandmarkOffsetPrior,
    LightPrior,
    SizePrior,
    shape_spread,
)
from fitkit.errors import FitError
from fitkit.fit.choose_start import ChosenStart
from fitkit.fit.detail import solve_detail
from fitkit.fit.noise import given_sigma, measured_sigma, measured_spread, offset_prior, wrong_exif
from fitkit.fit.recipe import FitRecipe, FlowSource, FlowTerm, Stage
from fitkit.fit.report import StageReport
from fitkit.fit.solution import Solution
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.progress import Progress
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, SolverResult, levenberg_marquardt

log = logging.getLogger("fitkit")

# Measured ratios: 0.05 to 0.9 on fixed points (0.2 and less with a view beyond 40 degrees), 0.83 to 1.4 on outlines.
SURFACE_WINS = 0.8
LANDMARK_ENERGIES = {
    "lmk2d",
    "lmk2d_eye",
    "lmk2d_lip",
    "identity_prior",
    "expression_prior",
    "focal_prior",
    "size_prior",
    "landmark_prior",
}


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
    estimators: dict[tuple[str, str], FlowEstimator] = field(default_factory=dict)  # that were made so far

    def solve(self, at: Solution, progress: Progress = Progress()) -> Solution:
        """All stages in turn, and the detail layer.

        Raises:
            FitError: no stage is for this number of views and this start, or the solver failed. MissingWeightsError: of a flow network.
        """
        stages = self._stages_for(at)
        for term in (t for s in stages for t in s.energies.values() if isinstance(t, FlowTerm)):
            self.flow_estimator(term, at)  # missing weights are told before anything is solved
        if self.recipe.detail.enabled:
            self.flow_estimator(self.recipe.detail_flow, at)
        progress.at(0.0, f"stage {stages[0].name}")
        at, done = self._leading_stages(stages, at)
        wrong = wrong_exif(at) if done else []
        if wrong:
            cameras = at.cameras.without_exif(wrong, at.state, self.recipe.camera, at.model)
            at, done = self._leading_stages(stages, replace(at, cameras=cameras, stages=(), shape=None))
        effort = [_effort(stage) for stage in stages]
        for number, stage in enumerate(stages[done:], done):
            begun = sum(effort[:number])
            share = [0.8 * e / sum(effort) for e in (begun, begun + effort[number])]
            at = self._stage(stage, at, progress.part(*share, f"stage {stage.name}"))
        if not self.recipe.detail.enabled:
            return at
        progress.at(0.8, "detail")
        estimator = self.flow_estimator(self.recipe.detail_flow, at)
        detail = solve_detail(
            at.model, at.state, at.observations, estimator, self.recipe.detail, self.recipe.seed
        )
        return replace(at, detail=detail)

    def _stages_for(self, at: Solution) -> list[Stage]:
        """The stages that are for this number of views and this start."""
        views = at.observations.num_views
        stages = [s for s in self.recipe.stages if views >= s.min_views and s.start in ("any", at.start)]
        if not stages:
            raise FitError(
                f"recipe '{self.recipe.name}' has no stage for {views} view(s) and a start from {at.start}"
            )
        return stages

    def _leading_stages(self, stages: Sequence[Stage], at: Solution) -> tuple[Solution, int]:
        """The leading landmark stages. What the jaw points are, where that is not known, is the rule under which they fit better.

        A fit under the wrong rule bends the face to the jaw points, so the rules are compared by their own solutions.
        Points on fixed skin cost an outline fit several times more once the head is turned; outline points fit both rules
        about as well. So 'surface' has to win clearly, by SURFACE_WINS.

        Returns:
            the solution under the rule that won, and the number of stages that it has behind it.
        """
        leading = []
        for stage in stages:
            if stage.measure_noise or not stage.energies.keys() <= LANDMARK_ENERGIES:
                break
            leading.append(stage)
        if not leading:
            return at, 0
        trials, iterations = {}, at.iterations
        for rule in ("surface", "outline") if at.jaw_rule == "auto" else (at.jaw_rule,):
            trial = replace(at, jaw_rule=rule, iterations=iterations)
            for stage in leading:
                trial = self._stage(stage, trial)
            trials[rule], iterations = trial, trial.iterations
        costs = {rule: sum(t.value for t in trial.terms.values()) for rule, trial in trials.items()}
        rule = next(iter(trials))
        if len(costs) > 1:
            rule = "surface" if costs["surface"] < SURFACE_WINS * costs["outline"] else "outline"
        log.info("jaw points: %s (costs: %s)", rule, costs)
        return replace(trials[rule], iterations=iterations), len(leading)

    def _stage(self, stage: Stage, at: Solution, progress: Progress = Progress()) -> Solution:
        progress.at(0.0)
        began, before = time.perf_counter(), at
        if stage.measure_noise:
            at = replace(at, sigma=measured_sigma(at, self.recipe.landmarks))
        at, objective, layout = self._set_up(stage, at)
        solve = self._first_order if stage.solver.name == "adam" else self._least_squares
        at, objective, status, messages = solve(stage, at, objective, layout, progress)
        with torch.no_grad():
            terms = objective.cost(at.state, at.observations)[1]
        last = (LeastSquaresProblem(objective, at.observations, layout), at.state)
        moved = "identity" in stage.free
        change = None
        if moved and before.shape is not None:
            change = float((at.state.identity - before.state.identity).square().mean().sqrt())
        seconds = round(time.perf_counter() - began, 4)
        numbers = {n: {"cost": t.value, "valid": t.valid, "rms": t.rms} for n, t in terms.items()}
        report = StageReport(stage.name, status, seconds, change, messages, numbers)
        log.info("stage %s: %s", stage.name, "; ".join(messages))
        shape = last if moved else at.shape
        return replace(at, terms=terms, last=last, shape=shape, stages=(*at.stages, report))

    def _set_up(self, stage: Stage, at: Solution) -> tuple[Solution, Objective, ParameterLayout]:
        """What a stage minimizes over what; where it needs the light and nobody has estimated it, that comes first."""
        chosen = {n: o for n, o in stage.energies.items() if not (n == "size_prior" and at.cameras.metric)}
        energies = {name: self.energy(name, options, at) for name, options in chosen.items()}
        photo = energies.get("photo_model", energies.get("photo_xview"))
        free = [b for b in stage.free if not (b == "illumination" and photo is None)]
        if photo is not None and not _lit_for(photo, at.light):
            with torch.no_grad():
                lit = at.state.replace(illumination=_plain_light(at.state))
                light = photo.freeze(lit, at.observations).estimate_light(lit)
            at = replace(at, light=light, state=at.state.replace(illumination=light))
            if "light_prior" in energies:
                energies["light_prior"] = replace(energies["light_prior"], anchor=light)
        groups = at.cameras.focal_groups, at.cameras.pose_groups
        layout = ParameterLayout.of(at.state, free, self.recipe.expression.shared, *groups)
        terms = [Term(energies[name], options.weight, options.kernel) for name, options in chosen.items()]
        return at, Objective(terms), layout

    def _first_order(
        self, stage: Stage, at: Solution, objective: Objective, layout: ParameterLayout, progress: Progress
    ) -> tuple[Solution, Objective, str, tuple[str, ...]]:
        """Adam: the solution, what was minimized last, status and messages of the solver."""
        options = AdamOptions(stage.solver.max_iterations, stage.solver.learning_rate)
        problem = LeastSquaresProblem(objective, at.observations, layout)
        result = adam(problem, at.state, options, progress.at)
        at = _accepted(stage, at, result)
        return at, objective.freeze(at.state, at.observations), result.status, (result.message,)

    def _least_squares(
        self, stage: Stage, at: Solution, objective: Objective, layout: ParameterLayout, progress: Progress
    ) -> tuple[Solution, Objective, str, tuple[str, ...]]:
        """Levenberg-Marquardt, with visibility, matches and weights computed anew in each round: as `_first_order`."""
        solver, messages = stage.solver, []
        options = LMOptions(solver.max_iterations, min_decrease=solver.min_decrease)
        for number in range(solver.refresh):
            progress.at(number / solver.refresh)
            objective = objective.freeze(at.state, at.observations)
            problem = LeastSquaresProblem(objective, at.observations, layout)
            result = levenberg_marquardt(problem, at.state, options)
            at = _accepted(stage, at, result)
            messages.append(result.message)
            if stage.measure_offsets:
                at, objective = _with_measured_spread(at, problem)
        return at, objective, result.status, tuple(messages)

    # ---- energies ----

    def energy(self, name: str, options: Any, at: Solution) -> Energy:
        """Energy `name` with the options of its stage, for the stage that begins at a solution."""
        model, recipe, cameras = at.model, self.recipe, at.cameras
        if name == "lmk2d":
            return LandmarkReprojection(model, at.sigma, at.jaw_rule)
        if name == "lmk2d_eye":
            return eye_offsets(model, at.sigma)
        if name == "lmk2d_lip":
            return lip_offsets(model, at.sigma)
        if name == "identity_prior":
            return IdentityPrior()
        if name == "landmark_prior":
            return LandmarkOffsetPrior(offset_prior(at, recipe.landmarks))
        if name == "expression_prior":
            return ExpressionPrior(
                recipe.expression.sigma,
                recipe.expression.sigma_negative,
                recipe.expression.shared,
                options.group_radius,
                shape_spread(model.expression_names),
            )
        if name == "focal_prior":
            return FocalPrior(cameras.focal_mean, cameras.focal_sigma, cameras.first)
        if name == "light_prior":
            return LightPrior(at.light if at.light is not None else at.state.illumination, options.sigma)
        if name == "size_prior":
            return SizePrior.of(model, options.sigma)
        if name == "photo_xview":
            return CrossViewPhotometric.prepare(
                model, at.observations, replace(options.options, seed=recipe.seed)
            )
        if name == "photo_model":
            return ModelPhotometric.prepare(
                model, at.observations, replace(options.options, seed=recipe.seed)
            )
        if name == "light_mono":
            return LightMono(options.sigma)
        if name == "census_xview":
            return CrossViewCensus.prepare(model, at.observations, replace(options.options, seed=recipe.seed))
        estimator = self.flow_estimator(options, at)
        if name == "flow_mag":
            return FlowMagnitude.prepare(
                model, at.observations, estimator, replace(options.options, seed=recipe.seed)
            )
        sigma = options.options.sigma_px * at.observations.pixel_unit
        flow = replace(options.options, seed=recipe.seed)
        matcher = FlowCorrespondence(model, flow, estimator, sigma, FlowImages.of(at.observations, flow))
        return matcher if name == "flow_corr" else TriangulatedFlow(matcher, flow)

    def flow_estimator(self, term: FlowTerm | FlowSource, at: Solution) -> FlowEstimator:
        """The estimator a term asks for, or the recipe's; each is made once."""
        source = term if term.estimator else self.recipe.flow
        key = source.estimator, source.weights
        if key not in self.estimators:
            self.estimators[key] = make_flow_estimator(
                source.estimator, source.weights or None, str(at.observations.images.device)
            )
        return self.estimators[key]


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
    term = next(t for t in objective.terms if t.energy.name == "landmark_prior")
    prior = replace(term.energy, sigma_mm=term.energy.sigma_mm * (spread / at.offset_spread))
    terms = [replace(t, energy=prior) if t is term else t for t in objective.terms]
    return replace(at, offset_spread=spread), Objective(terms)


def _lit_for(photo: CrossViewPhotometric | ModelPhotometric, light: Tensor | None) -> bool:
    """The light was estimated before, with the channels that `photo` asks for; 'photo_xview' takes any."""
    if light is None or isinstance(photo, CrossViewPhotometric):
        return light is not None
    return light.shape[-1] == (3 if photo.options.light == "rgb" else 1)


def _effort(stage: Stage) -> float:
    """How long a stage takes, about, in units of one that looks at landmarks only."""
    images = not stage.energies.keys() <= LANDMARK_ENERGIES
    if stage.solver.name == "adam":
        return stage.solver.max_iterations * (1.0 if images else 0.1)
    return stage.solver.refresh * (4.0 if images else 1.0)


def _plain_light(state: SceneState) -> Tensor:
    """White light from everywhere, [B, 9, C]: shading 1."""
    light = torch.zeros_like(state.illumination)
    light[:, 0] = 1 / Y0
    return light
