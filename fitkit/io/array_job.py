"""Shards of a batch: which part of the work this process does, and what a cluster says about that."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fitkit.errors import InputError

# Scheduler -> variables of the number of this task, the first and the last one, and the step between two.
ARRAYS = {
    "Slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"),
    "Grid Engine": ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    "LSF": ("LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
}


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, 1 to count."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """For names of files."""
        return f"_{self.number}_of_{self.count}"


def parse_shard(text: str) -> Shard:
    """'3/10', or 'auto': what the scheduler says of the job array that this process runs in.

    Raises:
        InputError: neither, or there is no job array.
    """
    if text == "auto":
        return array_shard(os.environ)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard: expected I/N with I from 1 to N, e.g. 3/10, or auto; got '{text[:40]}'")
    return Shard(int(match[1]), int(match[2]))


def array_shard(environment: Mapping[str, str]) -> Shard:
    """The part of this task of a job array of Slurm, Grid Engine or LSF, from its environment variables.

    Raises:
        InputError: there is no job array, or its numbers make no sense.
    """
    for scheduler, (own, low, high, step) in ARRAYS.items():
        if not environment.get(own, "").isdecimal():
            continue
        texts = [
            environment[own],
            environment.get(low) or "1",
            environment.get(high),
            environment.get(step) or "1",
        ]
        if scheduler == "LSF" and texts[0] == "0":
            continue  # no array
        if (
            scheduler == "Slurm"
            and not texts[2]
            and environment.get("SLURM_ARRAY_TASK_COUNT", "").isdecimal()
        ):
            first = environment.get(low) or "0"
            texts[1:3] = first, str(int(first) + int(environment["SLURM_ARRAY_TASK_COUNT"]) - 1)
        if all(t is not None and t.isdecimal() for t in texts):
            task, lowest, highest, by = (int(t) for t in texts if t is not None)
            number, rest = divmod(task - lowest, max(by, 1))
            count = (highest - lowest) // max(by, 1) + 1
            if rest == 0 and 0 <= number < count:
                return Shard(number + 1, count)
        raise InputError(
            f"shard auto: the job array of {scheduler} says {own}={texts[0]} of {texts[1]} to {texts[2]} by "
            f"{texts[3]}, which makes no sense; give --shard I/N"
        )
    raise InputError(
        "shard auto: this is no task of a job array (of Slurm, Grid Engine or LSF); give --shard I/N"
    )
