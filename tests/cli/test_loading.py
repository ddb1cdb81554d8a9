import gc
import subprocess
import sys
from pathlib import Path

import fitkit
from fitkit.cli.loading import loading


def test_torch_comes_without_collections_and_stays():
    code = """
import gc
from fitkit.cli.loading import loading
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
with loading():
    import torch
assert not collections and gc.isenabled() and gc.get_freeze_count() > 100_000
frozen = gc.get_freeze_count()
with loading():
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
"""
    environment = {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_what_a_program_holds_is_left_alone():
    import torch  # noqa: F401 - as in a program that has it

    frozen = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
