"""What each part of a training is worth: one recipe with changes, each trained and measured, in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from fitkit.errors import FitError, InputError, MissingWeightsError
from fitkit.evaluate.bench.arms import Arm, expanded
from fitkit.evaluate.machine import machine
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.evaluate.tables import Row, grouped, known, number, text_table
from fitkit.io.foreign import foreign_file
from fitkit.io.options import (
    Length,
    Seed,
    apply_overrides,
    build,
    check_options,
    read_yaml,
    to_plain,
    unknown_key,
)
from fitkit.io.outputs import check_folder
from fitkit.io.resources import find_recipe
from fitkit.train.records import RECIPE, claim_folder, write_json, write_recipe
from fitkit.train.regressor import CARD, CHECKPOINT, FILES, WEIGHTS, train_regressor
from fitkit.train.regressor_recipe import (
    RegressorTraining,
    load_regressor_training,
    parse_regressor_training,
)
from fitkit.train.validation import VALIDATED

REPORT, SHARED, ARMS, TRAINING = "ablation.json", "shared", "arms", "training"
OF_RECIPE = "train."  # how overrides of the trainings begin
WRITER = "bench trainings"


@dataclass(frozen=True)
class Measured:
    """An evaluation of every network. protocol: of `fitkit evaluate`, by name or file; folder: of its data,
    empty: it is left out; overrides: of its recipe; metrics: of the table, empty: all."""

    name: str
    protocol: str
    folder: str = ""
    overrides: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingAblation:
    """training: recipe of the arms that name none; overrides: of all trainings; arms: what is compared;
    shared: the first stages, by name, where all arms do the same: they are trained once, and each arm goes on
    from there;
    seeds: each arm is trained with each of them; held_out: errors of people held out in the table, empty: all
    there are; evaluations: of each network."""

    name: str
    training: str
    arms: Annotated[tuple[Arm, ...], Length(1)]
    overrides: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Length(1)] = (0,)
    held_out: tuple[str, ...] = ()
    evaluations: tuple[Measured, ...] = field(default_factory=tuple)

    def __post_init__(self):
        where = f"ablation '{self.name}'"
        check_options(self, where)
        object.__setattr__(self, "arms", expanded(self.arms, where))
        for what, names in (
            ("arms", [folder_name(arm.name) for arm in self.arms]),
            ("evaluations", [folder_name(e.name) for e in self.evaluations]),
        ):
            twice = next((n for n in names if names.count(n) > 1), None)
            if twice is not None:
                raise InputError(f"{where}: {what}: two would have the folder '{twice}'; rename one")
        if len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"{where}: seeds: one occurs twice in {list(self.seeds)}; leave it out")
        for name in self.held_out:
            if name not in VALIDATED:
                raise unknown_key(name, VALIDATED, f"{where}: held_out")


def folder_name(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name.replace("+", "with")).strip("_.") or "_"


def load_training_ablation(name: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainingAblation:
    """A shipped recipe by name or any recipe file by path, with 'a.b=value' lines laid over it; those that
    begin with 'train.' change all trainings: train.data.lp.folder=300W_LP.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types.
    """
    path = find_recipe("bench", name)
    own = [line for line in overrides if not line.startswith(OF_RECIPE)]
    recipe = build(TrainingAblation, apply_overrides(read_yaml(path), own), path.name)
    more = [line.removeprefix(OF_RECIPE) for line in overrides if line.startswith(OF_RECIPE)]
    return replace(recipe, overrides=(*recipe.overrides, *more))


@dataclass(frozen=True)
class _Plan:
    """What is trained: `first`, the shared stages, or None; the rest of each arm."""

    first: RegressorTraining | None
    arms: tuple[tuple[Arm, RegressorTraining], ...]


def _plan(recipe: TrainingAblation) -> _Plan:
    """The trainings, every option with its value.

    Raises:
        InputError: a training recipe that cannot be used, or an arm that changes what is shared.
    """
    base, count = load_regressor_training(recipe.training, recipe.overrides), len(recipe.shared)
    names = [stage.name for stage in base.stages]
    if list(recipe.shared) != names[:count] or count == len(names):
        raise InputError(
            f"ablation '{recipe.name}': shared: expected the first of the stages {', '.join(names)} of "
            f"recipe '{recipe.training}', and not all of them; got {', '.join(recipe.shared)}"
        )
    arms = []
    for arm in recipe.arms:
        mine = load_regressor_training(arm.recipe or recipe.training, (*recipe.overrides, *arm.overrides))
        if count:
            for what in ("model", "net", "views"):
                if getattr(mine, what) != getattr(base, what):
                    raise _changed(recipe, arm, f"'{what}'")
            for stage, theirs in zip(base.stages[:count], mine.stages):
                if stage != theirs:
                    raise _changed(recipe, arm, f"stage '{stage.name}'")
        arms.append((arm, replace(mine, stages=mine.stages[count:])))
    return _Plan(replace(base, stages=base.stages[:count]) if count else None, tuple(arms))


def _changed(recipe: TrainingAblation, arm: Arm, what: str) -> InputError:
    return InputError(
        f"ablation '{recipe.name}': arm '{arm.name}' changes {what}, and the stages "
        f"{', '.join(recipe.shared)} are trained once for all arms; change a later stage, or leave out "
        "'shared'"
    )


def training_ablation(
    recipe: TrainingAblation,
    folder: str | os.PathLike,
    resume: bool = False,
    device: str = "cpu",
    train: Callable[..., Path] = train_regressor,
    progress: Callable[[str], None] = lambda line: None,
    **watched: Any,
) -> dict[str, Any]:
    """Train and measure every arm.

    Writes into `folder`: ablation.json, after each arm; recipe.yaml; shared/ and arms/ARM/ with the files of
    each training in training/ and those of each evaluation in a folder of its name; with several seeds
    seed_N/ above them.

    Args:
        resume: go on where a run was stopped: networks and predictions that are there are not made again;
            arms and evaluations may have been added.
        device: torch device of the evaluations; that of the trainings stands in their recipe.
        train: what trains, with the arguments of `train_regressor`; progress: lines about what is done;
            watched: more arguments of `train`, as `step_done`.
    Returns:
        what ablation.json holds: machine, resolved recipe, a row for each arm and seed, their means by arm.
        A training or an evaluation that fails is a row with its error.
    Raises:
        InputError: a recipe that cannot be used, a folder with something else in it, or with other trainings.
    """
    folder, plan = Path(folder), _plan(recipe)
    for item in recipe.evaluations:
        # What is wrong with it shows before the first training.
        load_evaluate_recipe(item.protocol, item.overrides, {"predictor": "regressor"})
        if item.folder and not Path(item.folder).is_dir():
            raise InputError(
                f"ablation '{recipe.name}': evaluations.{item.name}.folder: no such folder: {item.folder}"
            )
    check_folder(folder, (REPORT, RECIPE, f"{SHARED}/*", f"{ARMS}/*"), (RECIPE,), WRITER, resume)
    # The recipe alone is left by a run whose data were not there.
    if not resume and any((folder / name).exists() for name in (REPORT, SHARED, ARMS)):
        raise InputError(f"{folder}: there is an ablation in it; go on with --resume, or give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder, recipe)
    report: dict[str, Any] = {
        "benchmark": "training ablation",
        "machine": machine(),
        "ablation": to_plain(recipe),
        "rows": [],
        "summary": [],
    }

    def trained(settings: RegressorTraining, place: Path) -> dict[str, Any]:
        return _trained(settings, place, train, progress, watched)

    for seed in recipe.seeds:
        part = f"seed_{seed}" if len(recipe.seeds) > 1 else ""
        start = None
        if plan.first is not None:
            start = folder / SHARED / part / TRAINING
            progress(f"shared, seed {seed}: training")
            trained(replace(plan.first, seed=seed), start)
        for arm, settings in plan.arms:
            row: Row = {"arm": arm.name, "seed": seed, "error": ""}
            place = folder / ARMS / folder_name(arm.name) / part
            settings = replace(settings, seed=seed)
            if start is not None:
                net = replace(settings.net, start=os.fspath(start / WEIGHTS))
                settings = replace(settings, net=net)
            progress(f"{arm.name}, seed {seed}: training")
            try:
                metrics = trained(settings, place / TRAINING)
                row |= {
                    name: metrics[name]
                    for name in recipe.held_out or VALIDATED
                    if metrics.get(name) is not None
                }
                for item in recipe.evaluations:
                    if item.folder:
                        progress(f"{arm.name}, seed {seed}: {item.name}")
                        row |= dict(_measured(item, place, device))
            except (FitError, MissingWeightsError) as error:  # of this arm alone
                row["error"] = str(error)
            report["rows"].append(row)
            report["summary"] = summarize(report["rows"])
            write_json(folder / REPORT, report)
    return report


def _trained(
    settings: RegressorTraining,
    folder: Path,
    train: Callable[..., Path],
    progress: Callable[[str], None],
    watched: dict[str, Any],
) -> dict[str, Any]:
    """The errors of people held out of a training, which is done unless it is there."""
    if not ((folder / WEIGHTS).is_file() and (folder / CARD).is_file()):
        train(settings, folder, resume=(folder / CHECKPOINT).is_file(), progress=progress, **watched)
    else:
        claim_folder(
            folder,
            FILES,
            folder / CHECKPOINT,
            settings,
            lambda d: parse_regressor_training(d, RECIPE),
            WRITER,
            resume=True,
        )
    with foreign_file(folder / CARD, "not readable as the card of a training") as file:
        return dict(file.json()["metrics"])


def _measured(item: Measured, place: Path, device: str) -> Iterator[tuple[str, Any]]:
    """The means of one evaluation, by 'EVALUATION METRIC', and how many of its samples failed."""
    network = {"predictor": "regressor", "weights": os.fspath(place / TRAINING / WEIGHTS)}
    settled = load_evaluate_recipe(item.protocol, item.overrides, network)
    out = place / folder_name(item.name)
    report = evaluate(settled, item.folder, out, resume=out.exists(), device=device)
    everyone = report["summary"][0]
    for metric in item.metrics or report["units"]:
        if metric in everyone:
            yield f"{item.name} {metric}", everyone[metric]["mean"]
    yield f"{item.name} failed", everyone["failed"]


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds by arm; spread: standard deviation between the seeds, 0 with one; failed:
    trainings or evaluations that ended with an error."""
    out = []
    for (arm,), group in grouped(rows, "arm").items():
        line: Row = {"arm": arm, "seeds": len(group), "failed": sum(bool(r["error"]) for r in group)}
        for name in dict.fromkeys(k for r in group for k in r if k not in ("arm", "seed", "error")):
            values = known(group, name)
            if len(values):
                line[name] = {"mean": float(values.mean()), "spread": float(values.std())}
        out.append(line)
    return out


def training_ablation_text(report: dict[str, Any]) -> str:
    """Arms down, what was measured across; several seeds: with the spread between them."""
    lines = report["summary"]
    columns = list(dict.fromkeys(k for s in lines for k in s if k not in ("arm", "seeds", "failed")))
    several = any(s["seeds"] > 1 for s in lines)

    def cell(value: dict[str, float] | None, name: str) -> str:
        digits = 0 if name.endswith(" failed") else 3
        if value is None:
            return "-"
        text = number(value["mean"], digits)
        return f"{text} +- {number(value['spread'], digits)}" if several else text

    body = [[s["arm"], *(cell(s.get(name), name) for name in columns)] for s in lines]
    parts = [text_table(("arm", *columns), body)]
    left_out = [e["name"] for e in report["ablation"]["evaluations"] if not e["folder"]]
    if left_out:
        parts.append(
            f"\nleft out, without a folder: {', '.join(left_out)}; give "
            f"evaluations.{left_out[0]}.folder=FOLDER"
        )
    parts += [f"{r['arm']}, seed {r['seed']}: {r['error']}" for r in report["rows"] if r["error"]]
    return "\n".join(parts)
