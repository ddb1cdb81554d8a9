"""What a training keeps in its folder: the claim on it, checkpoints, the log, files that are whole or not
there."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from fitkit.errors import InputError
from fitkit.io.atomic import writing, written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.options import read_yaml, to_plain
from fitkit.io.outputs import check_folder

RECIPE, LOG = "recipe.yaml", "log.csv"
MAKE_ROOM = "make room, and go on from the last checkpoint with --resume"
LEAST = {"step", "network", "optimizer"}  # what every checkpoint holds


def claim_folder(
    folder: Path,
    files: Sequence[str],
    checkpoint: Path,
    recipe: Any,
    parse: Callable[[dict], Any],
    writer: str,
    resume: bool,
) -> None:
    """See that a training may write into a folder: nothing but files of it lie there, and recipe.yaml, if
    there, says `recipe`.

    parse: mappings -> a recipe, in which options that came later have their defaults.

    Raises:
        InputError: something else is there, or a training that is not to be gone on with.
    """
    if checkpoint.exists() and not resume:
        raise InputError(
            f"{folder}: there is a training in it; continue it with --resume, or give another folder"
        )
    check_folder(folder, files, (RECIPE, checkpoint.name), writer, resume=checkpoint.exists())
    stored = folder / RECIPE
    if stored.is_file() and not _says(stored, recipe, parse):
        if not checkpoint.exists():
            raise InputError(
                f"{stored}: is another recipe than that of this training, which would overwrite it; give "
                "another folder"
            )
        raise InputError(
            f"{checkpoint}: belongs to another recipe; continue with the options in {stored}, or give "
            "another folder"
        )


def write_recipe(folder: Path, recipe: Any) -> None:
    """recipe.yaml: every option with its value."""
    write_text(folder / RECIPE, yaml.safe_dump(to_plain(recipe), sort_keys=False))


def _says(path: Path, recipe: Any, parse: Callable[[dict], Any]) -> bool:
    try:
        return to_plain(parse(read_yaml(path))) == to_plain(recipe)
    except InputError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


class CsvLog:
    """log.csv: one line for each row that is added. After an interruption it goes on behind the last line of
    the checkpoint, which was made after step number `step`."""

    def __init__(self, path: Path, columns: Sequence[str], step: int):
        self.columns = list(columns)
        self.path, kept = path, []
        if path.exists() and step > 0:
            with foreign_file(path, "not readable as the log of a training", "remove it") as file:
                rows = csv.DictReader(file.text().splitlines())
                kept = [
                    row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) <= step
                ]
        with written_whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, row: dict[str, Any]) -> None:
        with writing(self.path, MAKE_ROOM), open(self.path, "a", newline="", encoding="utf-8") as file:
            plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            csv.DictWriter(file, self.columns, extrasaction="ignore", restval="").writerow(plain)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint: step, network, optimizer, random and whatever else the training keeps. Those of earlier
    versions are read as well.

    Raises:
        InputError: not readable, or no checkpoint.
    """
    with foreign_file(
        path, "not a readable checkpoint", "remove it to start again", limit=DATA_BYTES
    ) as file:
        state = file.torch()
    if isinstance(state, dict) and {"state_dict", "optimizer_states", "global_step", "fitkit"} <= set(state):
        state = _of_lightning(state)
    missing = LEAST - set(state if isinstance(state, dict) else ())
    if missing:
        raise InputError(
            f"{path}: not a checkpoint of this training, it lacks {', '.join(sorted(missing))}; remove it "
            "to start again"
        )
    return state


def _of_lightning(state: dict[str, Any]) -> dict[str, Any]:
    """Of versions whose loop was that of Lightning's Trainer: there one optimizer holds all parameters that
    learn in any stage."""
    return {
        "step": state["global_step"],
        "network": {k.removeprefix("network."): v for k, v in state["state_dict"].items()},
        "optimizer": state["optimizer_states"][0],
        "whole_optimizer": True,
        "precision": state.get("MixedPrecision", {}),
        **state["fitkit"],
    }


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    with (
        written_whole(path, MAKE_ROOM) as part,
        open(part, "wb") as file,
    ):  # torch's own writer has errors of another kind
        torch.save(state, file)


def random_state() -> dict[str, Any]:
    """Of torch, for a checkpoint."""
    device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random": torch.get_rng_state(), "device_random": device}


def restore_random(state: dict[str, Any]) -> None:
    """The reverse of `random_state`; checkpoints of the landmark network of earlier versions have none."""
    if "random" in state:
        torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state.get("device_random"):
        torch.cuda.set_rng_state_all(state["device_random"])
