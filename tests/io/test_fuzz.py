"""A few damaged files for every reader; benchmarks/fuzz.py tries many."""

import importlib.util
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not FUZZ.exists(), reason="needs fork and the repository's benchmarks/"
)
SLOW = {"synth", "ict_packed", "flame", "gnm"}  # to make their seeds, or to read


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_damaged_files_are_read_or_refused(fuzz, tmp_path):
    names = [name for name in fuzz.SEEDS if name not in SLOW]
    results = fuzz.run(fuzz.seeds(tmp_path, names), tmp_path, inputs=250, seed=7)
    assert [r.reader for r in results] == names
    assert not [(r.reader, r.foreign, r.hangs, r.deaths) for r in results if r.faults]
    assert sum(r.read for r in results) > 25 and sum(r.refused for r in results) > 100, (
        "changes that matter, and some that do not"
    )


def test_what_is_no_error_of_fitkit_is_counted(fuzz, tmp_path):
    """A reader that fails in every way."""
    import os
    import time

    from fitkit.errors import InputError

    def read(folder):
        data = (folder / "a.txt").read_bytes()
        if data == b"seed\n":
            return
        way = len(data) % 4
        if way == 0:
            raise InputError("refused")
        if way == 1:
            raise KeyError("foreign")
        if way == 2:
            os._exit(1)
        time.sleep(60)

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"seed\n")
    fuzz.SECONDS, before = 0.2, fuzz.SECONDS
    try:
        (result,) = fuzz.run({"bad": fuzz.Reader(("a.txt",), read)}, tmp_path, inputs=12, seed=0)
    finally:
        fuzz.SECONDS = before
    assert result.refused and sum(result.foreign.values()) and result.hangs and result.deaths
    assert result.read + result.refused + result.faults == result.inputs == 12
    assert (tmp_path / "bad" / "a.txt").read_bytes() == b"seed\n"
    assert f"| bad | 12 | {result.read} | {result.refused} |" in fuzz.table([result])
