"""Batches: how fast, how much memory, and the same results by every engine.

    python benchmarks/batches.py --subjects 200 --singles 10 --compared 40

Renders people of `generic` with three small photos each. Throughput: seconds per person of single `fitkit
fit` calls one after the other, as in a loop of a shell, against one `fitkit batch`. Memory: the resident
memory of each process of that batch, twice a second; compared are the second and the last tenth of its time
(in the first, libraries load). Engines: the same people by one process, by processes, by
three shards that are gathered, by Slurm (submitit's executor for one machine) and by Ray; every file must be
the same, times apart. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kills import contents, run, session, start

PEOPLE = "clean"  # recipe of the people
FAST = ("--recipe", "landmarks", "--no-pictures", "-q")


def people(place: Path, count: int, size: int) -> Path:
    command = ["synth", place, "--recipe", PEOPLE, "--model", "generic", "--subjects", count]
    wrong = run([*command, "--views", 3, "--size", size, "--workers", 2, "-q"])
    if wrong:
        raise SystemExit(f"the people could not be rendered: {wrong}")
    return place


def resident(number: int) -> dict[int, float]:
    """MB of each process of a session."""
    out = {}
    for process in session(number):
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:  # it has just ended
            continue
        out[process] = pages * 4096 / 2**20
    return out


def cpu() -> float:
    """CPU seconds of all processes that have ended; says more than the clock on a machine that is busy."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def finished(output: Path) -> int:
    log = output / "batch.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def measured(arguments: Sequence[Any], output: Path) -> tuple[float, list[tuple[int, dict[int, float]]]]:
    """Run a batch -> its seconds, and at each look how many were finished, and what memory its processes
    had."""
    began, looks = time.monotonic(), []
    process = start([*arguments, "-o", output])
    while process.poll() is None:
        looks.append((finished(output), resident(process.pid)))
        time.sleep(0.5)
    if process.returncode not in (0, 1):  # 1: somebody could not be fitted
        raise SystemExit(f"the batch ended with exit code {process.returncode}")
    return time.monotonic() - began, looks


def memory(looks: Sequence[tuple[int, dict[int, float]]]) -> dict[str, float]:
    """MB of all processes together: medians over the second and the last tenth of the time in which people
    were finished and all processes ran."""
    working = [m for done, m in looks if done]
    whole = [sum(m.values()) for m in working if len(m) == max(map(len, working))]
    tenth = max(len(whole) // 10, 1)
    first, last = whole[tenth : 2 * tenth] or whole, whole[-tenth:]
    out = {"second_tenth_mb": float(np.median(first)), "last_tenth_mb": float(np.median(last))}
    return out | {"change_percent": 100 * (out["last_tenth_mb"] / out["second_tenth_mb"] - 1)}


def throughput(place: Path, folder: Path, singles: int, workers: int, size: int) -> dict[str, Any]:
    chosen = sorted(folder.glob("subject_*"))
    began, used = time.monotonic(), cpu()
    for person in chosen[:singles]:
        wrong = run(["fit", person, *FAST, "-o", place / "single" / person.name])
        if wrong:
            print(f"{person.name}: {wrong}", file=sys.stderr)
    single, single_cpu = (time.monotonic() - began) / singles, (cpu() - used) / singles
    report: dict[str, Any] = {
        "people": len(chosen),
        "singles": singles,
        "single_s": round(single, 3),
        "single_cpu_s": round(single_cpu, 3),
    }
    for name, more in (("batch", ()), (f"batch of {size} side by side", ("--batch-size", size))):
        output = place / name.replace(" ", "_")
        used = cpu()
        seconds, looks = measured(["batch", folder, *FAST, "--workers", workers, *more], output)
        each = seconds / len(chosen)
        report[name] = {
            "seconds_each": round(each, 3),
            "cpu_s_each": round((cpu() - used) / len(chosen), 3),
            "times_faster": round(single / each, 2),
            "memory": {k: round(v, 1) for k, v in memory(looks).items()},
        }
        print(f"{name}: {report[name]}; single fits {single:.2f} s each", flush=True)
    return report


def engine_runs(folder: Path) -> dict[str, list[list[Any]]]:
    """Engine -> the commands that make its results."""
    batch = ["batch", folder, *FAST]
    return {
        "processes": [[*batch, "--workers", 2]],
        "shards": [*([*batch, "--shard", f"{i}/3"] for i in (3, 1, 2)), ["batch", folder, "--collect"]],
        "slurm": [[*batch, "--workers", 2, "--engine", "slurm", "--engine-option", "cluster=local"]],
        "ray": [[*batch, "--workers", 2, "--engine", "ray"]],
    }


def engines(place: Path, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Files of each engine that are not those of one process."""
    expected, report = None, {}
    for name, commands in {"one process": [["batch", folder, *FAST]], **engine_runs(folder)}.items():
        if expected is not None and name not in names:
            continue
        output, began = place / name.replace(" ", "_"), time.monotonic()
        wrong = [said for command in commands if (said := run([*command, "-o", output]))]
        shutil.rmtree(output / "batch_engine", ignore_errors=True)  # logs of Slurm
        found = {k: v for k, v in contents(output).items() if not k.endswith(".jsonl")}
        expected = found if expected is None else expected
        different = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
        seconds = round(time.monotonic() - began, 1)
        report[name] = {"seconds": seconds, "files": len(found), "different": different, "said": wrong}
        print(
            f"{name}: {len(found)} files, {len(different)} different, {seconds} s {wrong or ''}", flush=True
        )
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subjects", type=int, default=200, help="people of the throughput; 0: not measured")
    parser.add_argument("--singles", type=int, default=10, help="of them fitted by single calls")
    parser.add_argument("--compared", type=int, default=40, help="people of the engines; 0: not compared")
    parser.add_argument("--engines", nargs="+", default=["processes", "shards", "slurm", "ray"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=192, help="of the photos, px")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"size_px": options.size, "workers": options.workers}
    with tempfile.TemporaryDirectory(prefix="fitkit_batches_") as folder:
        place = Path(folder)
        if options.compared:
            group = people(place / "compared", options.compared, options.size)
            report["engines"] = engines(place / "by_engine", group, options.engines)
        if options.subjects:
            crowd = people(place / "crowd", options.subjects, options.size)
            report["throughput"] = throughput(
                place / "speed", crowd, options.singles, options.workers, options.batch_size
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(e["different"] or e["said"] for e in report.get("engines", {}).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
