"""Fits, batches and trainings that are killed at random moments, and what is left of them.

    python benchmarks/kills.py --fits 10 --batches 5 --batch-workers 5 --shards 5 --trainings 2

Each is run once undisturbed, then killed (SIGKILL and SIGTERM in turn) at moments drawn with --seed, and run
again; of a batch the first process is killed, or one of its workers (SIGKILL only), which it survives, or a
shard. Checked: the result is whole or absent after the kill; no process is left after 5 seconds; the second
run gives the same files, times apart; no temporary file is left after it. Linux only: processes are found in
/proc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "fitkit")
LEFT_AFTER = 5.0  # seconds in which all processes must have ended
TIMES = ("time_s", "seconds", "machine")  # what differs from run to run
# Not compared: event files of TensorBoard hold times, checkpoints are an archive that does.
# The logs of a batch say when a subject was done.
UNCOMPARED = ("tensorboard/", "checkpoint.ckpt", "distill.json", "batch.jsonl", "batch_1_of", "batch_2_of")
PAGE = "report.html"  # shows times


@dataclass(frozen=True)
class Command:
    """What is killed. arguments: of fitkit, without the output; again: more of them for the run after the
    kill; whole: whether a folder, which is there, is a whole result; worker: one of its workers is killed and
    not itself; after: arguments of commands that follow the second run, and the undisturbed one."""

    kind: str
    arguments: Sequence[str]
    again: Sequence[str]
    whole: Callable[[Path], bool]
    worker: bool = False
    after: Sequence[Sequence[str]] = ()


def start(command: Sequence[str], stderr: int = subprocess.DEVNULL) -> subprocess.Popen:
    """`fitkit COMMAND` as a process with a session of its own, by which its children are found."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(command: Sequence[str]) -> str:
    """`fitkit COMMAND` to its end -> what went wrong; empty if nothing did."""
    process = start(command, subprocess.PIPE)
    error = process.communicate()[1].decode(errors="replace").strip()
    return f"exit code {process.returncode}: {error[-300:]}" if process.returncode else ""


def session(number: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has just ended
                continue
            if int(sid) == number and state not in "ZX":
                found.append(int(entry.name))
    return found


def workers_of(number: int) -> list[int]:
    """Worker processes of the session of a batch."""
    found = []
    for process in session(number):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def contents(folder: Path) -> dict[str, str]:
    """Path -> checksum of every file below a folder, without times."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(UNCOMPARED) and path.name != PAGE:
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(_timeless(json.loads(data))).encode()
            out[name] = hashlib.sha256(data).hexdigest()
    return out


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def litter(folder: Path) -> list[str]:
    """Temporary files and locks below a folder and beside it."""
    inside = [
        *folder.parent.glob(".*"),
        *(p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".part"),
    ]
    return sorted({p.name for p in inside})


def killed_once(
    command: Command, number: int, moment: float, place: Path, expected: dict[str, str]
) -> list[str]:
    """Run, kill after `moment` seconds, run again -> what is wrong."""
    output, faults = place / "out", []
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    process = start([*command.arguments, "-o", output])
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        if command.worker:
            for victim in workers_of(process.pid)[:1]:
                os.kill(victim, signal.SIGKILL)
        else:
            process.send_signal(number)
    process.wait()
    time_left = time.monotonic() + LEFT_AFTER
    while session(process.pid) and time.monotonic() < time_left:
        time.sleep(0.1)
    for orphan in session(process.pid):
        faults.append("a process was left")
        os.kill(orphan, signal.SIGKILL)
    if output.exists() and not command.whole(output):
        faults.append("half a result")
    if number == signal.SIGTERM and litter(output) and command.kind == "fit":
        faults.append(f"litter after SIGTERM: {litter(output)}")
    there = command.kind == "fit" and output.exists()
    wrong = run([*command.arguments, *(["--overwrite"] if there else command.again), "-o", output])
    if wrong:
        faults.append(f"the second run: {wrong}")
    for more in command.after:
        wrong = run([*more, "-o", output])
        if wrong:
            faults.append(f"{more[0]}: {wrong}")
    found = contents(output)
    different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
    if different:
        faults.append(f"different: {', '.join(different[:3])}")
    if litter(output):
        faults.append(f"litter: {litter(output)}")
    return faults


def measure(command: Command, count: int, draw: random.Random, place: Path) -> dict[str, Any]:
    """`count` kills of one kind -> seconds of the undisturbed run, and a row for each kill."""
    began = time.monotonic()
    wrong = run([*command.arguments, "-o", place / "whole" / "out"])
    for more in command.after:
        wrong = wrong or run([*more, "-o", place / "whole" / "out"])
    if wrong:
        raise SystemExit(f"{command.kind}: the undisturbed run failed: {wrong}")
    seconds, expected, rows = time.monotonic() - began, contents(place / "whole" / "out"), []
    for i in range(count):
        number = (signal.SIGKILL, signal.SIGTERM)[i % 2 if not command.worker else 0]
        # The last quarter of a fit is the writing of its result.
        moment = seconds * (draw.uniform(0.05, 1.0) if i % 3 else draw.uniform(0.75, 1.0))
        faults = killed_once(command, number, moment, place / "killed", expected)
        rows.append({"signal": number.name, "after_s": round(moment, 2), "faults": faults})
        print(
            f"{command.kind} {i + 1}/{count}: {number.name} after {moment:.1f} s: "
            f"{'; '.join(faults) or 'fine'}",
            flush=True,
        )
    return {"undisturbed_s": round(seconds, 2), "kills": rows}


def commands(place: Path, people: Path, workers: int) -> dict[str, Command]:
    """What is killed: a fit of one of `people` (a folder of `fitkit synth`), a batch of all of them, a
    training on them."""
    from fitkit.fitting.batch_records import RECORDS, read_report
    from fitkit.io.result_folder import ENTRIES, PREDICTED, PREDICTION_MARK
    from fitkit.io.subject import is_result

    def whole_result(folder: Path) -> bool:
        names = {p.name for p in folder.iterdir()}
        return ENTRIES - PREDICTED.keys() - {PREDICTION_MARK, "detail.png"} <= names

    def whole_batch(folder: Path) -> bool:
        read_report(folder)
        results = [p for p in folder.iterdir() if not p.name.startswith((".", RECORDS)) and p.is_dir()]
        return all(is_result(p) for p in results)

    recipe = place / "tiny.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "tiny",
                "views": [],
                "net": {"name": "fitkit_init", "options": {"size": 64}},
                "data": [{"name": "synthetic", "kind": "synthetic", "folder": str(people)}],
                "batch": 2,
                "save": 2,
                "log": 1,
                "pictures": 0,
                "accelerator": "cpu",
                "validation": {"share": 0.3},
                "stages": [{"name": "supervised", "steps": 12, "energies": {"identity_sup": {"sigma": 0.3}}}],
            }
        ),
        encoding="utf-8",
    )
    fast = ["--recipe", "landmarks", "--init", "landmarks", "-q"]
    several = ["batch", people, *fast, "--workers", str(workers)]
    part = ["batch", people, *fast, "--shard"]
    return {
        "fit": Command("fit", ["fit", people / "subject_00000", *fast], [], whole_result),
        "batch": Command("batch", several, ["--resume"], whole_batch),
        "worker": Command("worker", [*several, "--retries", "2"], ["--resume"], whole_batch, worker=True),
        "shard": Command(
            "shard",
            [*part, "1/2"],
            ["--resume"],
            whole_batch,
            after=([*part, "2/2", "--resume"], ["batch", people, "--collect"]),
        ),
        "training": Command("training", ["train-regressor", recipe, "-q"], ["--resume"], lambda folder: True),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    counts = {"fits": 10, "batches": 5, "batch-workers": 5, "shards": 5, "trainings": 2}
    for name, count in counts.items():
        parser.add_argument(
            f"--{name}", type=int, default=count, help=f"{name} that are killed (default {count})"
        )
    parser.add_argument("--subjects", type=int, default=4, help="people of a batch")
    parser.add_argument("--workers", type=int, default=2, help="processes of a batch")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"seed": options.seed, "workers": options.workers, "subjects": options.subjects}
    with tempfile.TemporaryDirectory(prefix="fitkit_kills_") as folder:
        place = Path(folder)
        people = place / "people"
        wrong = run(
            [
                "synth",
                people,
                "--recipe",
                "clean",
                "--model",
                "generic",
                "--subjects",
                options.subjects,
                "--views",
                "2",
                "--size",
                "192",
                "-q",
            ]
        )
        if wrong:
            raise SystemExit(f"the people could not be rendered: {wrong}")
        for kind, count in (
            ("fit", options.fits),
            ("batch", options.batches),
            ("worker", options.batch_workers),
            ("shard", options.shards),
            ("training", options.trainings),
        ):
            if count:
                command = commands(place, people, options.workers)[kind]
                report[kind] = measure(command, count, random.Random(f"{options.seed} {kind}"), place / kind)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    kinds = ("fit", "batch", "worker", "shard", "training")
    kills = [row for kind in kinds if kind in report for row in report[kind]["kills"]]
    bad = sum(bool(row["faults"]) for row in kills)
    print(f"{len(kills)} kills, {bad} with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
