"""Faces of people whose shape is known, predicted and measured: the step that the benchmarks have in
common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.bench.scores import COVERAGE, ERRORS, PHOTOS, score_neutral, score_photos
from fitkit.evaluate.bench.truth import Truth, load_photo_truths
from fitkit.evaluate.engine import make_predictions, open_predictions, score_predictions
from fitkit.evaluate.methods import Method
from fitkit.evaluate.predictions import Outcome, PredictedFace, face_of_model, marks_of, read_outcome
from fitkit.evaluate.protocols.base import Pairs, Scored, Scorer
from fitkit.evaluate.tables import Row
from fitkit.fitting.detail import personal_model
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.types import Landmarks


@dataclass(frozen=True, eq=False)
class Person:
    """name; subject, found: decoded photos that are used, with landmarks; neutral: the true face; photos: the
    true face in each photo, by view, where that is known."""

    name: str
    subject: Subject
    found: Landmarks
    neutral: Truth
    photos: dict[str, Truth]


def load_person(data: Path, name: str, neutral: Truth, subject: Subject, found: Landmarks) -> Person:
    """A person with what is known of the face in these photos."""
    names = [v.name for v in subject.views]
    return Person(
        name, subject, found, neutral, load_photo_truths(data / "ground_truth" / name, neutral, names)
    )


class KnownShape(Scorer):
    """The errors of the neutral face and of the face in the photos; a fit that says that it failed is
    measured too."""

    scores_failed = True

    def prepare(self, pairs: Pairs, options: Any, model: str) -> FaceModel:
        return load_model(model)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: Any, context: FaceModel
    ) -> Scored:
        prediction.need("vertices", "landmarks")
        person: Person = sample.truth()
        face = _exact(prediction, context)
        neutral = score_neutral(face, person.neutral)
        return Scored(neutral.values | score_photos(face, person.photos))


def _exact(prediction: PredictedFace, model: FaceModel) -> PredictedFace:
    """The same with meshes from its parameters, posed ones in the head frame: those in the files are rounded
    for others to read. One without parameters is the mean face."""
    if prediction.parameters is None:
        return face_of_model(model, prediction.id)
    parameters = prediction.parameters()
    state = parameters.state
    if parameters.displacement is not None:
        model = personal_model(model, state, parameters.displacement)
    posed = state.vertices(model)
    return replace(
        prediction,
        vertices=state.neutral(model)[0].double().numpy(),
        posed=posed.double().numpy(),
        posed_landmarks=marks_of(model, posed).double().numpy(),
    )


def measure(
    people: Sequence[Person],
    model: str,
    recipe: FitRecipe | None,
    keep: Path | None = None,
    fitted: Callable[[Person, Outcome], None] = lambda person, outcome: None,
) -> list[Row]:
    """Predict everybody, then score all of them.

    Args:
        model: name or path; recipe: of the fits; None: the model's mean face; keep: folder for the
            predictions, where those that are there
        are not made again; None: they are not kept; fitted: called after each.
    Returns:
        for each person keys ERRORS, COVERAGE, PHOTOS (None where there is no number), seconds: wall time of
        the solver, cpu_seconds, status, expected_mm, upper_mm, error_bar_mm (see Outcome) and error: why
        there is no face.
    Raises:
        InputError: other predictions in the folder.
    """
    by_name = {p.name: p for p in people}
    method = Method("fit" if recipe else "mean", model, recipe or load_recipe("landmarks"))
    samples = [
        EvaluationSample(p.name, partial(getattr, p, "subject"), partial(by_name.get, p.name)) for p in people
    ]
    with TemporaryDirectory(prefix="fitkit_bench_") as thrown_away:
        root = Path(thrown_away) if keep is None else keep
        photos = {p.name: [v.name for v in p.subject.views] for p in people}
        open_predictions(root, method.made() | {"photos": photos}, resume=True)
        make_predictions(
            samples,
            root,
            method,
            photos=lambda sample, source: (by_name[sample.id].subject, by_name[sample.id].found),
            done=lambda number, sample, outcome: fitted(by_name[sample.id], outcome),
        )
        rows, _ = score_predictions(KnownShape(), None, samples, root, model)
        return [_row(row, read_outcome(root, row["id"])) for row in rows]


def _row(row: Row, outcome: Outcome) -> Row:
    return {
        **{key: row.get(key) for key in (*ERRORS, *COVERAGE, *PHOTOS)},
        "seconds": outcome.solve_seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "status": row["status"],
        "expected_mm": outcome.expected_mm,
        "upper_mm": outcome.upper_mm,
        "error_bar_mm": outcome.error_bar_mm,
        "error": row["error"],
    }


def outcome_text(outcome: Outcome) -> str:
    """One line for people."""
    if outcome.solve_seconds is None:
        return outcome.error or outcome.status
    return f"{outcome.solve_seconds:.2f} s, {outcome.status}"
