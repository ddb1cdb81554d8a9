"""Runs the stages of a recipe on one subject."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import replace
from types import NoneType
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from fitkit.energies.base import Energy
from fitkit.energies.landmarks import LandmarkReprojection, offset_sigma
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term, TermReport
from fitkit.energies.priors import LandmarkOffsetPrior
from fitkit.energies.registry import energy_of_fit, find
from fitkit.energies.spec import Context, Networks
from fitkit.errors import FitError, InputError, check_argument
from fitkit.fit.detail import Detail, personal_model, solve_detail
from fitkit.fit.initialize import CameraKnowledge, initial_state, to_photos
from fitkit.fit.recipe import FitRecipe, FlowSource, Stage, load_recipe
from fitkit.fit.regress import regressor_start, settled, start_cost, stray_points
from fitkit.fit.report import attempt, build_metrics, judge_safely
from fitkit.fit.result import FitResult
from fitkit.fit.rig_check import check_rig
from fitkit.fit.uncertainty import error_bars, summary
from fitkit.geometry.spherical_harmonics import white_light
from fitkit.io.options import to_plain
from fitkit.io.subject import Subject, as_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_network
from fitkit.observe.crop import crop_views
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.given import check_given
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

log = logging.getLogger("fitkit")


def fit(
    subject: str | os.PathLike | Subject | Sequence,
    *,
    model: str | FaceModel | None = None,
    recipe: str | os.PathLike | FitRecipe = "multiview",
    overrides: Sequence[str] = (),
    landmarks: Sequence | None = None,
    share_expression: bool | None = None,
    seed: int | None = None,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> FitResult:
    """Fit one face to all photos of one person.

    Args:
        subject: a subject folder, the path of one photo, a Subject, or a list of images (paths, PIL images, [H, W, 3] arrays).
        model: name or path of a face model, or the model itself; None takes the recipe's.
        recipe: name or path of a recipe; overrides: 'key=value' changes of it.
        landmarks: one [68, 2] or [68, 3] array, path of a landmark file, or None for each image, in the order of the list or of the
            subject's views (of a folder: sorted by name, 'view2' before 'view10'); px of the upright photo, counted from 0. They replace
            those in files.
        share_expression, seed: shortcuts for expression.shared and seed.
        device: torch device the fit runs on.
        progress: called with (what is done next, share done in 0..1).
    Raises:
        FitkitError: bad input, missing files or weights, or nothing that could be fitted.
    """
    check_argument(
        "model",
        model,
        (str, os.PathLike, FaceModel, NoneType),
        "the name or path of a face model, or a FaceModel",
    )
    check_argument(
        "recipe", recipe, (str, os.PathLike, FitRecipe), "the name or path of a recipe, or a FitRecipe"
    )
    if progress is not None and not callable(progress):
        raise InputError(f"progress: expected a function of (text, share), got {type(progress).__name__}")
    tell = progress or (lambda text, share: None)
    changes: dict[str, Any] = {}
    if isinstance(model, (str, os.PathLike)):
        changes["model"] = os.fspath(model)
    if share_expression is not None:
        changes["expression"] = {"shared": share_expression}
    if seed is not None:
        changes["seed"] = seed
    if not isinstance(recipe, FitRecipe):
        recipe = load_recipe(recipe, overrides, changes)
    elif overrides or changes:
        raise InputError(
            "overrides, model, seed and share_expression change a recipe given by name or path, not a FitRecipe"
        )
    check_device(device)
    face_model = model if isinstance(model, FaceModel) else load_model(recipe.model)
    tell("reading photos", 0.0)
    subject = as_subject(subject, landmarks)
    count = iter(range(1, len(subject.views) + 1))
    tell("finding landmarks", 0.05)
    found, sources = detect_landmarks(
        subject,
        recipe.landmarks.source,
        device,
        lambda view: tell("finding landmarks", 0.05 + 0.15 * next(count) / len(subject.views)),
    )
    found = check_given(subject, found, sources, recipe.landmarks.source == "auto", device)
    subject, found, notes = usable_views(subject, found)
    return fit_observed(subject, found, face_model, recipe, device, tell, subject.notes + tuple(notes))


def check_device(device: str) -> None:
    """Refuse a torch device that is not there."""
    check_argument("device", device, (str, torch.device), "the name of a torch device, e.g. cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{device}': cannot be used here ({str(error).splitlines()[0]}); use cpu"
        ) from error


def fit_observed(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    device: str = "cpu",
    tell: Callable[[str, float], None] = lambda text, share: None,
    notes: Sequence[str] = (),
) -> FitResult:
    """`fit` from views and landmarks that are already there; the timed part of a fit."""
    start, cpu = time.perf_counter(), time.process_time()
    subject, contradictions = check_rig(subject, found, model)
    tell("cropping", 0.2)
    observations = crop_views(
        (v.image for v in subject.views), (v.mask for v in subject.views), found, recipe.crop
    ).to(device)
    local = model.to(device) if str(model.device) != device else model
    began = time.perf_counter()
    run, state, chosen = begin_fit(subject, found, local, recipe, observations, device)
    found = replace(found, valid=run.observations.landmarks.valid.to(found.valid))
    stray = [
        f"view {v.name}: {n} of its landmarks lie far from where the network sees them and were left out"
        for v, n in zip(subject.views, chosen.get("stray", ()))
        if n
    ]
    state = run.solve(state, tell)
    detail = None
    if recipe.detail.enabled:
        tell("detail", 0.85)
        detail = run.solve_detail(state)
    solved = time.perf_counter()
    tell("judging the fit", 0.97)
    final = to_photos(state, observations).to("cpu")
    metrics = build_metrics(run.model, subject, final, found, run, run.cameras)
    metrics["start"] = chosen | {"iterations": run.iterations}
    failures = metrics.pop("not_computed", [])
    bars = None
    if run.shape is not None:
        known = None if detail is None else detail.known
        bars = attempt("the error bars", lambda: error_bars(*run.shape, local, known=known), None, failures)
    metrics["error_bars"] = summary(bars, model)
    metrics["time_s"] = {
        "solve": round(solved - began, 3),
        "total": round(time.perf_counter() - start, 3),
        "cpu": round(time.process_time() - cpu, 3),
    }
    metrics["notes"] = [*notes, *run.cameras.notes, *stray]
    if contradictions:
        metrics["camera_contradictions"] = contradictions
    if detail is not None:
        metrics["detail"] = detail.metrics
    if failures:
        metrics["not_computed"] = failures
    status, warnings = judge_safely(metrics)
    for finding in metrics["verdict"]["findings"]:
        log.info("%s: %s", "note" if finding["severity"] == "note" else "warning", finding["message"])
    tell("done", 1.0)
    cpu_model = model.to("cpu") if model.device.type != "cpu" else model
    return FitResult(
        cpu_model,
        subject,
        final,
        replace(found, sigma=run.sigma_photo()),
        status,
        warnings,
        metrics,
        to_plain(recipe),
        run.cameras.source,
        *((bars.identity_covariance, bars.vertex_sigma) if bars is not None else (None, None)),
        displacement=detail.displacement if detail is not None and detail.metrics["sigma_mm"] else None,
    )


def begin_fit(
    subject: Subject,
    found: Landmarks,
    model: FaceModel,
    recipe: FitRecipe,
    observations: Observations,
    device: str,
) -> tuple[FitRun, SceneState, dict[str, Any]]:
    """The fit at its start, and which start that is: 'source', for 'auto' how badly either fits ('cost'), and where a network was asked
    how many landmarks of each view it takes for wrong ('stray'): the fit does without them."""
    starts, chosen = {}, {"source": recipe.init.source}
    if recipe.init.source != "landmarks":
        guess = regressor_start(subject, found, model, recipe.init, device)
        if recipe.expression.shared:
            mean = guess.expression[guess.known].mean(0, keepdim=True)
            guess = replace(guess, expression=mean.expand_as(guess.expression).clone())
        starts["regressor"] = initial_state(model, subject.views, observations, recipe.camera, guess)
        stray = guess.known[:, None] & stray_points(starts["regressor"][0], observations, model)
        marks = observations.landmarks
        observations = replace(observations, landmarks=replace(marks, valid=marks.valid & ~stray))
        chosen["stray"] = stray.sum(1).tolist()
        starts["regressor"] = initial_state(
            model, subject.views, observations, recipe.camera, settled(guess, observations, model)
        )
    starts["landmarks"] = initial_state(model, subject.views, observations, recipe.camera)
    run = FitRun(model, recipe, observations, starts["landmarks"][1])
    if recipe.init.source == "auto":
        chosen["cost"] = {
            name: start_cost(state, observations, model, run.sigma) for name, (state, _) in starts.items()
        }
        chosen["source"] = min(chosen["cost"], key=chosen["cost"].get)
    run.start = chosen["source"]
    state, run.cameras = starts[run.start]
    return run, state, chosen


def _stated(sigma: Tensor) -> Tensor:
    """Where the source of landmarks gives a standard deviation."""
    return torch.isfinite(sigma) & (sigma > 0)


class FitRun:
    """The moving parts of one fit: energies of a stage from its recipe, landmark noise, stage log."""

    def __init__(
        self, model: FaceModel, recipe: FitRecipe, observations: Observations, cameras: CameraKnowledge
    ):
        self.model, self.recipe, self.observations, self.cameras = model, recipe, observations, cameras
        self.start = "landmarks"  # where the fit begins: 'landmarks' or 'regressor'
        self.sigma = self._given_sigma()
        self.stages: list[dict[str, Any]] = []
        self.offset_spread = 1.0  # of the landmarks' offsets, over what their prior states
        self.iterations = 0  # of the solver, trial fits included
        self.light: Tensor | None = None
        self.terms: dict[str, TermReport] = {}
        known = observations.landmarks.jaw
        self.jaw_rule = known if recipe.landmarks.jaw == "auto" else recipe.landmarks.jaw
        self._last: tuple[LeastSquaresProblem, SceneState] | None = None
        self.networks = Networks(
            str(observations.images.device),
            (recipe.flow.estimator, recipe.flow.weights),
            make_flow=make_flow_estimator,
            make_network=load_network,
        )
        self.shape: tuple[LeastSquaresProblem, SceneState] | None = (
            None  # problem and solution of the last stage that moved the identity
        )

    # ---- landmark noise ----

    def _face_size(self) -> Tensor:
        """Square root of the landmark box area, [B] px of the crop."""
        marks = self.observations.landmarks
        low = torch.where(marks.valid[..., None], marks.points, torch.inf).amin(1)
        high = torch.where(marks.valid[..., None], marks.points, -torch.inf).amax(1)
        return (high - low).clamp_min(1.0).prod(-1).sqrt()

    def _given_sigma(self) -> Tensor:
        """[B, 68] px of the crop: the detector's own standard deviations, or the recipe's share of the face size."""
        assumed = (self.recipe.landmarks.sigma * self._face_size())[:, None].expand(-1, 68)
        given = self.observations.landmarks.sigma
        return torch.where(_stated(given), given, assumed)

    def measure_noise(self, state: SceneState) -> None:
        """Rescale the landmark sigmas so that they agree with the residuals of the inner points at `state`.

        The median length of a 2D Gaussian residual is 1.1774 sigma; the fit has absorbed part of the noise, which the
        factor NOISE_ABSORBED makes good. Sigmas that a detector states are raised only: part of its errors are alike in all
        photos of a person, so the fit follows them and the residuals do not show them.
        """
        energy = LandmarkReprojection(self.model, self.sigma, "surface")
        r = energy.residuals(state, self.observations)
        length = r.value.norm(dim=-1)[:, 17:][r.valid[:, 17:]]
        if len(length) < 20:
            return
        factor = NOISE_ABSORBED * float(length.median()) / 1.1774
        if state.landmark_offset is not None:
            factor *= self._absorbed_by_offsets(state, factor)
        size = self._face_size()[:, None]
        options = self.recipe.landmarks
        given = self.observations.landmarks.sigma
        limited = (self.sigma * factor).clamp(options.min_sigma * size, options.max_sigma * size)
        self.sigma = torch.where(_stated(given), torch.maximum(self.sigma * factor, given), limited)

    def _absorbed_by_offsets(self, state: SceneState, factor: float) -> float:
        """How much larger the noise is than the residuals show, because the offsets of the points have taken a part of it.

        A point seen by all views with noise s_v [mm] has an offset of posterior variance p = 1 / (1 / prior^2 + sum 1 / s_v^2); of its
        residual's variance p / s_v^2 is missing. Both depend on each other and are iterated; at most three quarters are made good.
        """
        depth = (
            state.pose.translation[:, 2]
            if state.camera.kind == "perspective"
            else state.camera.REFERENCE_DEPTH
        )
        mm = self.sigma * (depth / state.camera.focal)[:, None]  # [B, 68]
        more = 1.0
        for _ in range(10):
            precision = 1 / (factor * more * mm) ** 2
            posterior = 1 / (1 / self._offset_sigma() ** 2 + precision.sum(0))
            more = max(1 - float((posterior * precision)[:, 17:].median()), 0.25) ** -0.5
        return more

    def _offset_sigma(self) -> Tensor:
        """[68] mm: standard deviation of the landmarks' offsets."""
        return self.offset_spread * self.recipe.landmarks.offset * offset_sigma().to(self.sigma)

    def sigma_photo(self) -> Tensor:
        """[B, 68] px of the photos, on the CPU."""
        return (self.sigma / self.observations.scale[:, None]).cpu()

    # ---- energies ----

    def energy(self, name: str, options: Any, state: SceneState) -> Energy:
        """Energy `name` with the options of its stage."""
        return energy_of_fit(name, self.context(state), options)

    def context(self, state: SceneState) -> Context:
        """What the energies of a stage that starts at `state` are made from."""
        return Context(
            self.model,
            self.observations,
            state,
            self.networks,
            self.recipe.seed,
            light=state.illumination if self.light is None else self.light,
            shared_expression=self.recipe.expression.shared,
            landmark_sigma=self.sigma,
            offset_sigma=self._offset_sigma(),
            jaw=self.jaw_rule,
            cameras=self.cameras,
            expression=self.recipe.expression,
        )

    def flow_estimator(self, source: FlowSource) -> FlowEstimator:
        """The estimator that is asked for; each is made once."""
        return self.networks.flow(source.estimator, source.weights)

    # ---- stages ----

    def solve(self, state: SceneState, tell: Callable[[str, float], None]) -> SceneState:
        """All stages in turn."""
        stages = self._stages_here()
        if not stages:
            raise FitError(
                f"recipe '{self.recipe.name}' has no stage for {self.observations.num_views} view(s) and a start from "
                f"{self.start}"
            )
        for name, options in (pair for stage in stages for pair in stage.energies.items()):
            load = find(name).load
            if load is not None:
                load(self.networks, options)  # missing weights are told before anything is solved
        if self.recipe.detail.enabled:
            self.flow_estimator(self.recipe.detail_flow)
        tell(f"stage {stages[0].name}", 0.35)
        state, done = self._leading_stages(stages, state)
        wrong = self._wrong_exif(state) if done else []
        if wrong:
            self.cameras = self.cameras.without_exif(wrong, state, self.recipe.camera, self.model)
            state, done = self._leading_stages(stages, state)
        effort = [_effort(stage) for stage in stages]
        for number, stage in enumerate(stages[done:], done):
            begun = sum(effort[:number])
            state = self._stage(
                stage,
                state,
                lambda share: tell(
                    f"stage {stage.name}", 0.35 + 0.5 * (begun + share * effort[number]) / sum(effort)
                ),
            )
        return state

    def _stages_here(self) -> list[Stage]:
        """The stages that are for this number of views and this start."""
        return [
            s
            for s in self.recipe.stages
            if self.observations.num_views >= s.min_views and s.start in ("any", self.start)
        ]

    def solve_detail(self, state: SceneState) -> Detail:
        """The displacement beyond the face model after all stages; `model` carries it from then on."""
        estimator = self.flow_estimator(self.recipe.detail_flow)
        detail = solve_detail(
            self.model, state, self.observations, estimator, self.recipe.detail, self.recipe.seed
        )
        self.model = personal_model(self.model, state, detail.displacement)
        return detail

    def _leading_stages(self, stages: Sequence[Stage], state: SceneState) -> tuple[SceneState, int]:
        """The leading landmark stages. What the jaw points are, where that is not known, is the rule under which they fit better.

        A fit under the wrong rule bends the face to the jaw points, so the rules are compared by their own solutions.
        Points on fixed skin cost an outline fit several times more once the head is turned; outline points fit both rules
        about as well. So 'surface' has to win clearly, by SURFACE_WINS.

        Returns:
            the solution under the rule that won, and the number of stages that it has behind it.
        """
        leading = []
        for stage in stages:
            if stage.measure_noise or _looks_at_pictures(stage):
                break
            leading.append(stage)
        if not leading:
            return state, 0
        costs, after = {}, {}
        for rule in ("surface", "outline") if self.jaw_rule == "auto" else (self.jaw_rule,):
            self.jaw_rule, self.stages, self.shape, trial = rule, [], None, state
            for stage in leading:
                trial = self._stage(stage, trial)
            costs[rule] = sum(t.value for t in self.terms.values())
            after[rule] = trial, self.stages, self.shape, self.terms, self._last
        if len(costs) > 1:
            self.jaw_rule = "surface" if costs["surface"] < SURFACE_WINS * costs["outline"] else "outline"
        state, self.stages, self.shape, self.terms, self._last = after[self.jaw_rule]
        log.info("jaw points: %s (costs: %s)", self.jaw_rule, costs)
        return state, len(leading)

    def _wrong_exif(self, state: SceneState) -> list[int]:
        """Views whose focal length from EXIF the perspective of the landmarks contradicts, after stages that had it as a prior.

        A prior that agrees with the rest moves by N(0, prior variance - posterior variance) in log units.
        """
        prior, wrong = self.cameras, []
        sigmas = self.focal_uncertainty() if "exif" in prior.source else [None] * len(prior.source)
        for i, sigma in enumerate(sigmas):
            moved = abs(math.log(float(state.camera.focal[i] / prior.focal_mean[i])))
            if (
                prior.source[i] == "exif"
                and sigma is not None
                and moved > EXIF_SIGMAS * max(float(prior.focal_sigma[i]) ** 2 - sigma**2, 1e-6) ** 0.5
            ):
                wrong.append(i)
        return wrong

    def _stage(
        self, stage: Stage, state: SceneState, tell: Callable[[float], None] = lambda share: None
    ) -> SceneState:
        """One stage. tell: called with the share of it that is done."""
        tell(0.0)
        began, before = time.perf_counter(), state.identity
        if stage.measure_noise:
            self.measure_noise(state)
        here = self.context(state)
        chosen = {n: o for n, o in stage.energies.items() if find(n).applies(here)}
        lights = {n: find(n).light(o) for n, o in chosen.items() if find(n).light is not None}
        free = [b for b in stage.free if not (b == "illumination" and not lights)]
        if lights:
            state = self._lit(state, chosen, lights)
        energies = {name: self.energy(name, options, state) for name, options in chosen.items()}
        layout = ParameterLayout.of(
            state, free, self.recipe.expression.shared, self.cameras.focal_groups, self.cameras.pose_groups
        )
        objective = Objective(
            [Term(energies[name], options.weight, options.kernel) for name, options in chosen.items()]
        )
        solver = stage.solver
        messages = []
        if solver.name == "adam":
            problem = LeastSquaresProblem(objective, self.observations, layout, first_order=True)
            result = adam(problem, state, AdamOptions(solver.max_iterations, solver.learning_rate), tell)
            self.iterations += result.iterations
            state, messages = self._accept(stage, state, result), [result.message]
            objective = objective.at_share(1.0).freeze(state, self.observations)
        else:
            for number in range(solver.refresh):
                tell(number / solver.refresh)
                objective = objective.freeze(state, self.observations)
                problem = LeastSquaresProblem(objective, self.observations, layout)
                result = levenberg_marquardt(
                    problem, state, LMOptions(solver.max_iterations, min_decrease=solver.min_decrease)
                )
                self.iterations += result.iterations
                state = self._accept(stage, state, result)
                messages.append(result.message)
                if stage.measure_offsets:
                    objective = self._measure_offset_spread(objective, problem, state)
        with torch.no_grad():
            self.terms = objective.cost(state, self.observations)[1]
        first_order = solver.name == "adam"
        self._last = (LeastSquaresProblem(objective, self.observations, layout, first_order), state)
        change = (
            None
            if self.shape is None or "identity" not in free
            else float((state.identity - before).square().mean().sqrt())
        )
        self.stages.append(
            {
                "name": stage.name,
                "status": result.status,
                "seconds": round(time.perf_counter() - began, 4),
                "identity_change": change,
                "messages": messages,
                "terms": {
                    n: {"cost": t.value, "valid": t.valid, "rms": t.rms} for n, t in self.terms.items()
                },
            }
        )
        if "identity" in free:
            self.shape = self._last
        log.info("stage %s: %s", stage.name, "; ".join(messages))
        return state

    def _measure_offset_spread(
        self, objective: Objective, problem: LeastSquaresProblem, state: SceneState
    ) -> Objective:
        """Estimate how far the landmarks of this person lie from the model's points, and give it to their prior.

        The scale s of offsets o ~ N(0, s^2 sigma^2): the sum of (o / sigma)^2 over the number of offsets that the photos determine,
        with SPREAD_PRIOR observations of s = 1 added, so that it stays 1 as long as the photos say nothing. Exact points get a small s and
        count in full beside the matches.
        Source: MacKay, "Bayesian interpolation", Neural Computation 1992, evidence approximation with well-determined parameters.
        """
        term = next((t for t in objective.terms if isinstance(t.energy, LandmarkOffsetPrior)), None)
        layout = problem.layout
        if (
            term is None or "landmarks" not in layout.sizes or state.landmark_offset is None
        ):  # None: no step was taken yet
            return objective
        start, width = layout.shared_offsets["landmarks"], layout.sizes["landmarks"]
        with torch.no_grad():
            system = problem.linearize(state)
            diagonal = system.diagonal()
            unit = diagonal.new_zeros(layout.total, width)
            unit[start : start + width] = torch.eye(width, dtype=unit.dtype, device=unit.device)
            columns = system.solve_columns(unit, 1e-9 * diagonal.clamp_min(1e-9 * float(diagonal.max())))
        if columns is None:
            return objective
        sigma = term.energy.sigma_mm.repeat_interleave(3)
        left = columns[start : start + width].diagonal() / sigma**2  # 1: the photos say nothing
        known = float((1 - left).clamp(0, 1).sum())
        over = float((state.landmark_offset[0].reshape(-1) / (sigma / self.offset_spread)).square().sum())
        before, self.offset_spread = (
            self.offset_spread,
            ((SPREAD_PRIOR + over) / (SPREAD_PRIOR + known)) ** 0.5,
        )
        prior = replace(term.energy, sigma_mm=term.energy.sigma_mm * (self.offset_spread / before))
        return Objective([replace(t, energy=prior) if t is term else t for t in objective.terms])

    def _lit(self, state: SceneState, chosen: dict[str, Any], lights: dict[str, int]) -> SceneState:
        """The state under light that was estimated: now, if it was not before with the channels that the energies ask for."""
        name = max(lights, key=lights.__getitem__)  # one that estimates colours, if there is one
        if self.light is None or lights[name] not in (0, self.light.shape[-1]):
            photo = self.energy(name, chosen[name], state)
            with torch.no_grad():
                lit = state.replace(illumination=white_light(state.illumination))
                self.light = photo.freeze(lit, self.observations).estimate_light(lit)
            state = state.replace(illumination=self.light)
        return state

    def focal_uncertainty(self) -> list[float | None]:
        """Relative standard deviation of each view's focal length at the solution (Laplace approximation), None when
        it was not solved for, the problem is not `linearizable` or the system is too large for a dense inverse."""
        problem, state = self._last
        layout = problem.layout
        if (
            "focal" not in layout.sizes
            or layout.total > 3000
            or not problem.linearizable
        ):
            return [None] * layout.num_views
        H = problem.linearize(state).dense()
        H.diagonal().add_(1e-9 * H.diagonal().max())
        factor, info = torch.linalg.cholesky_ex(H)
        if int(info):
            return [None] * layout.num_views
        before = sum(layout.sizes[n] for n in layout.order[: layout.order.index("focal")])
        columns = layout.index[:, before].to(H.device)
        unit = torch.zeros(layout.total, layout.num_views, dtype=H.dtype, device=H.device)
        unit[columns, torch.arange(layout.num_views, device=H.device)] = 1
        variance = torch.cholesky_solve(unit, factor)[
            columns, torch.arange(layout.num_views, device=H.device)
        ]
        return [float(v) for v in variance.clamp_min(0).sqrt()]

    def _accept(self, stage: Stage, state: SceneState, result) -> SceneState:
        if result.status == "failed":
            raise FitError(
                f"stage '{stage.name}': {result.message}; check the landmarks and the cameras of the subject"
            )
        return result.x


NOISE_ABSORBED = 1.25
EXIF_SIGMAS = 3.0  # right focal lengths moved by 0.2 to 0.7; of half the right length, as after a crop to half the picture, by 3.6 to 5.9
SPREAD_PRIOR = 10.0  # in observations
SURFACE_WINS = 0.8  # measured ratios: 0.05 to 0.9 on fixed points (0.2 and less with a view beyond 40 degrees), 0.83 to 1.4 on outlines


def _looks_at_pictures(stage: Stage) -> bool:
    """Whether anything but landmarks and priors has a say in it."""
    return any(find(name).role not in ("landmark", "prior") for name in stage.energies)


def _effort(stage: Stage) -> float:
    """How long a stage takes, about, in units of one that looks at landmarks only."""
    images = _looks_at_pictures(stage)
    if stage.solver.name == "adam":
        return stage.solver.max_iterations * (1.0 if images else 0.1)
    return stage.solver.refresh * (4.0 if images else 1.0)
