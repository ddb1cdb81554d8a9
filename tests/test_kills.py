"""The kill runs of benchmarks/kills.py, on a program that takes seconds less than a fit."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "kills", Path(__file__).resolve().parents[1] / "benchmarks" / "kills.py"
)
kills = importlib.util.module_from_spec(spec)
sys.modules["kills"] = kills
spec.loader.exec_module(kills)
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")

# Arguments: what it does wrong, then any, then -o and the output.
PROGRAM = """
import json, os, subprocess, sys, time
from pathlib import Path
from fitkit.io.atomic import remove_litter, written_whole
wrong, out = sys.argv[1], Path(sys.argv[-1])
if wrong == "orphan" and "--resume" not in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
if wrong != "litter":
    remove_litter(out)
with written_whole(out / "metrics.json") as part:
    part.write_text(json.dumps({"seconds": time.time(), "value": os.getpid() if wrong == "different" else 1}))
    for again in range(100 if "--resume" not in sys.argv else 1):
        time.sleep(0.1 if wrong != "quick" else 0.0)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(kills, "PROGRAM", (sys.executable, script))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(kills, "LEFT_AFTER", 1.0)
    return lambda wrong: kills.Command("batch", [wrong], ["--resume"], lambda folder: True)


@pytest.mark.parametrize(
    "wrong, faults",
    [
        ("", []),
        ("litter", ["different: .fitkit-", "litter: "]),
        ("orphan", ["a process was left"]),
        ("different", ["different: metrics.json"]),
    ],
)
def test_what_is_wrong_after_a_kill_is_found(command, tmp_path, wrong, faults):
    assert kills.run([wrong, "--resume", "-o", tmp_path / "whole" / "out"]) == ""
    expected = kills.contents(tmp_path / "whole" / "out")
    found = kills.killed_once(command(wrong), signal.SIGKILL, 1.0, tmp_path / "killed", expected)
    assert len(found) == len(faults) and all(f.startswith(e) for f, e in zip(found, faults)), found


def test_times_do_not_count(tmp_path):
    for name, seconds in (("a", 1), ("b", 2)):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(f'{{"stages": [{{"seconds": {seconds}}}], "rms": 0.1}}')
        (tmp_path / name / "tensorboard" / "events").write_text(name)
    assert kills.contents(tmp_path / "a") == kills.contents(tmp_path / "b") and list(
        kills.contents(tmp_path / "a")
    ) == ["metrics.json"]


def test_a_run_of_all_kinds_is_reported(command, tmp_path, capsys):
    import random

    report = kills.measure(command("quick"), 2, random.Random(0), tmp_path)
    assert [row["signal"] for row in report["kills"]] == ["SIGKILL", "SIGTERM"] and all(
        row["faults"] == [] for row in report["kills"]
    )
    assert "batch 2/2: SIGTERM after " in capsys.readouterr().out
