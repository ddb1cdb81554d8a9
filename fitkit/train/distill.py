"""From photos without labels to a better network: fit them, train on the fits, start the next fits from the
network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fitkit.data.subject_sets import FOLDERS, SubjectSource, source_of
from fitkit.errors import InputError
from fitkit.fitting.batch import BatchOptions, fit_batch
from fitkit.fitting.batch_records import REPORT as BATCH_REPORT
from fitkit.fitting.batch_records import summary
from fitkit.fitting.recipe import load_recipe
from fitkit.io.foreign import foreign_file
from fitkit.io.outputs import check_folder
from fitkit.io.progress import Progress
from fitkit.train.records import write_json
from fitkit.train.regressor import CARD, WEIGHTS, train_regressor
from fitkit.train.regressor_recipe import RegressorTraining, load_regressor_training

REPORT = "distill.json"
FITS = "fits"  # name of the data set that the rounds fill


def distill(
    photos: str | os.PathLike | SubjectSource,
    training: str | os.PathLike,
    folder: str | os.PathLike,
    rounds: int = 2,
    fit_recipe: str = "landmarks",
    overrides: Sequence[str] = (),
    fit_overrides: Sequence[str] = (),
    workers: int = 1,
    resume: bool = False,
    init_weights: str = "",
    fit_done: Progress = Progress(),
    step_done: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    progress: Callable[[str], None] = lambda line: None,
    begun: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Rounds of fits and trainings.

    Round r fits all subjects of `photos` into folder/round_r/fits, from the landmarks or from the
    network of the round before, whichever fits better ('auto'), and trains the recipe `training` into
    folder/round_r/training with these fits as its data set 'fits', from the weights of the round before.
    folder/distill.json lists what each round came to.

    Args:
        photos: a folder of subject folders, a table of photos, or 'KIND:PATH', see `fit_batch`.
        training: recipe with a data set of kind 'fits' and name 'fits'; overrides: 'key=value' changes of it.
        fit_recipe, fit_overrides: of the fits. init_weights: network that the first round's fits may start
            from; empty = none.
        resume: go on where a run with the same arguments was stopped.
        fit_done: see the progress of `fit_batch`; step_done, progress, begun: see `train_regressor`.
    Returns:
        the content of distill.json.
    Raises:
        InputError: a recipe without such a data set, no subjects, or a folder that holds other rounds.
    """
    if rounds < 1:
        raise InputError(f"distill: rounds: expected at least 1, got {rounds}")
    folder, source = Path(folder), source_of(photos)
    # What is wrong with the recipe shows before the first fit.
    settled(training, overrides, source, folder, "")
    if (folder / REPORT).exists() and not resume:
        raise InputError(f"{folder}: holds rounds already; go on with --resume, or choose another folder")
    check_folder(folder, (REPORT, "round_*/*"), (REPORT, f"round_1/{FITS}/{BATCH_REPORT}"), "distill", resume)
    report: dict[str, Any] = {
        "photos": source.data if source.kind != FOLDERS else source.path.resolve().name,
        "training": os.fspath(training),
        "fit_recipe": fit_recipe,
        "rounds": [],
    }
    weights = init_weights
    for number in range(1, rounds + 1):
        place = folder / f"round_{number}"
        start = (
            {"init": {"source": "auto", "weights": weights}} if weights else {"init": {"source": "landmarks"}}
        )
        progress(f"round {number}: fits" + (f" from {weights}" if weights else ""))
        rows = fit_batch(
            source,
            place / FITS,
            load_recipe(fit_recipe, fit_overrides, start),
            BatchOptions(workers, resume=(place / FITS).exists(), light=True),
            fit_done,
        )
        recipe = settled(training, overrides, source, place / FITS, weights if number > 1 else "")
        progress(f"round {number}: training")
        weights = os.fspath(
            train_regressor(
                recipe,
                place / "training",
                resume=(place / "training").exists(),
                step_done=step_done,
                progress=progress,
                begun=begun,
            )
        )
        with foreign_file(place / "training" / CARD, "not readable as the card of a training") as file:
            metrics = file.json()["metrics"]
        taken = sum(r.start == "regressor" for r in rows)
        report["rounds"].append(
            {
                "fits": summary(rows) | {"from_the_network": taken},
                "training": metrics,
                "weights": f"round_{number}/training/{WEIGHTS}",
            }
        )
        write_json(folder / REPORT, report)
    return report


def settled(
    training: str | os.PathLike, overrides: Sequence[str], source: SubjectSource, fits: Path, weights: str
) -> RegressorTraining:
    """The training of one round.

    Raises:
        InputError: no data set 'fits' of that kind, or a network whose predictions no fit can start from.
    """
    recipe = load_regressor_training(training, overrides)
    rounds = next((s for s in recipe.data if s.name == FITS), None)
    if rounds is None or rounds.kind != FITS:
        raise InputError(
            f"recipe '{recipe.name}': expected a data set with the name '{FITS}' and the kind '{FITS}' in "
            "'data', which the rounds fill; it has "
            f"{', '.join(f'{s.name} ({s.kind})' for s in recipe.data) or 'none'}"
        )
    place = f"data.{FITS}"
    changes = [*overrides, f"{place}.folder={fits}", f"{place}.options.photos={source.data}"]
    changes += [f"{place}.options.photo_options={json.dumps(source.options)}"] * bool(source.options)
    changes += [f"{place}.options.landmark_folder={source.landmark_folder}"] * bool(source.landmark_folder)
    return load_regressor_training(training, changes + ([f"net.start={weights}"] if weights else []))
