"""Broken and misleading inputs, each with the command that a user would give it, and what comes back.

    python benchmarks/faults.py ../shared/data/faults

For every entry of the folder, and of its `use/`: exit code, seconds, most memory, status of the result, and
the last thing said. Faults: a traceback, a signal, more than --seconds or --memory. Whether a status `ok` is
right, the notes have to be read for: each entry of `use/` has an EXPECTED.txt. Linux only: memory is measured
by wait4.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FITKIT = (sys.executable, "-m", "fitkit")
SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sample"
# What reads an entry, by the beginning of its name; IN and OUT stand for the entry and an output folder.
# Folders of photos are fitted.
COMMANDS = {
    "batch_": "batch PEOPLE -o IN --resume --recipe landmarks",
    "bench_2d": "bench accuracy IN",
    "bench_npy": "bench accuracy IN",
    "lmacc": "bench landmarks IN",
    "report_": "evaluate --compare IN IN",
    "fs_": "evaluate facescape_wild IN predictor=mean -o OUT",
    "now_": "evaluate now IN predictor=mean -o OUT",
    "ict_": "model import ict IN --name broken",
    "npz_": "model info IN",
    "onnx_": f"detect {SAMPLE} -o OUT --landmarks onnx:IN",
    "st_": f"predict {SAMPLE} --weights IN -o OUT",
    "yaml_": "recipe show IN",
}
PYTHON = {
    "mesh_": "from fitkit.io.mesh_files import read_mesh; print(read_mesh(IN))",
    "lm_": "from pathlib import Path; from fitkit.observe.landmarks.builtin import load_network; "
    "load_network('cpu', Path(IN))",
    "vgg_": "from fitkit.models.registry import load_model; from fitkit.nets import net_kind, start_from; "
    "m = load_model('generic'); k = net_kind('mvfnet'); start_from(k.make(m, (), k.options()), IN, m)",
    "fits_": "from fitkit.data.fit_results import FitResults, FitResultsOptions; from "
    "fitkit.models.registry import load_model; d = FitResults(__import__('pathlib').Path(IN), "
    "FitResultsOptions(photos=IN), load_model('generic')); print(len(d), d[0])",
}


def command_of(entry: Path, out: Path, people: Path) -> tuple[list[str], Path]:
    """What is run for an entry, and where."""
    target = next((p for p in (entry / "a.yaml", entry / "a.obj") if p.is_file()), entry)
    code = next(
        (
            c
            for start, c in PYTHON.items()
            if entry.name.startswith(start) and not (entry.is_dir() and start == "lm_")
        ),
        None,
    )
    if code is not None:
        code = (
            f"import sys\nfrom fitkit.errors import FitkitError\nIN = {os.fspath(target)!r}\n"
            f"try:\n    {code}\nexcept FitkitError as error:\n    sys.exit('Error: ' + str(error))"
        )
        return [sys.executable, "-c", code], entry.parent
    if (entry / "run.py").is_file():
        return [sys.executable, "run.py"], entry
    if (entry / "COMMAND.md").is_file():
        words = re.search(r"fitkit (fit .*)", (entry / "COMMAND.md").read_text()).group(1)
        return [*FITKIT, *shlex.split(words.replace("PATH", str(out)))], entry
    line = next((c for start, c in COMMANDS.items() if entry.name.startswith(start)), None)
    if line is None:
        expected = entry / "EXPECTED.txt"
        model = "--model ict " if expected.is_file() and "--model ict" in expected.read_text() else ""
        line = f"fit IN {model}-o OUT"
    places = {"IN": str(target), "OUT": str(out), "PEOPLE": str(people)}
    return [
        *FITKIT,
        *(re.sub(r"IN$|^OUT$|^PEOPLE$", lambda m: places[m[0]], word) for word in line.split()),
    ], entry.parent


def run(entry: Path, seconds: float) -> dict:
    """Row of an entry. It is copied first, so that nothing in it changes."""
    with tempfile.TemporaryDirectory() as place:
        copy, out = Path(place) / entry.name, Path(place) / "out"
        (shutil.copytree if entry.is_dir() else shutil.copy)(entry, copy)
        (Path(place) / "people").mkdir()
        shutil.copytree(SAMPLE, Path(place) / "people" / "anna")
        if (copy / "make.sh").is_file():
            subprocess.run(["sh", "make.sh"], cwd=copy, check=True, capture_output=True)
            copy = copy / "DIR2" if (copy / "DIR2").is_dir() else copy
        command, folder = command_of(copy, out, Path(place) / "people")
        with open(Path(place) / "log", "w+b") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SAMPLE.parent.parent)},
            )
            while time.monotonic() - began < 10 * seconds:
                ended, code, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                time.sleep(0.05)
            else:
                os.killpg(process.pid, 9)
                _, code, usage = os.wait4(process.pid, 0)
            spent = usage.ru_utime + usage.ru_stime
            log.seek(0)
            text = log.read().decode("utf-8", "replace").replace(str(place) + "/", "")
        results = [
            json.loads(p.read_text(encoding="utf-8"))
            for p in Path(place).rglob("metrics.json")
            if "verdict" in p.read_text(errors="replace")
        ]
        said = [f["message"] for r in results[:1] for f in r["verdict"]["findings"]] or [
            line for line in text.splitlines() if line.strip()
        ][-1:]
        return {
            "input": entry.name,
            "exit_code": os.waitstatus_to_exitcode(code),
            "seconds": round(spent, 1),
            "memory_gb": round(usage.ru_maxrss / 2**20, 2),
            "status": results[0]["status"] if results else "",
            "said": said,
            "traceback": (
                "Traceback" in text and not re.search(r"^fitkit\.errors\.\w+: .*\s*\Z", text, re.MULTILINE)
            )
            or "unexpected" in text,
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument(
        "--seconds", type=float, default=10.0, help="most CPU seconds of an input that is refused"
    )
    options.add_argument("--memory", type=float, default=2.0, help="most memory in GB")
    options.add_argument("--only", default="", help="entries whose name holds this")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    entries = [
        p
        for p in sorted(given.folder.iterdir())
        if p.name not in ("use", "README.md") and given.only in p.name
    ]
    entries += [p for p in sorted((given.folder / "use").glob("*")) if given.only in p.name]
    rows = []
    for entry in entries:
        rows.append(run(entry, given.seconds))
        r = rows[-1]
        slow = r["exit_code"] and r["seconds"] > given.seconds
        r["fault"] = bool(r["traceback"] or r["exit_code"] < 0 or slow or r["memory_gb"] > given.memory)
        print(
            f"{'FAULT ' if r['fault'] else ''}{r['input']}: exit {r['exit_code']}, {r['seconds']} s, "
            f"{r['memory_gb']} GB, {r['status']} | " + " | ".join(r["said"])[:300],
            flush=True,
        )
    print(f"{len(rows)} inputs, {sum(r['fault'] for r in rows)} faults")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(any(r["fault"] for r in rows))


if __name__ == "__main__":
    main()
