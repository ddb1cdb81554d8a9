import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import fitkit
from fitkit.cli.main import main


@pytest.fixture
def run():
    """Run `fitkit ARGUMENTS` in this process -> click's Result; `output` holds stdout and stderr."""
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def start(tmp_path):
    """Start `fitkit ARGUMENTS` as a process of its own -> Popen with text pipes."""
    processes = []

    def start(*arguments, **options):
        environment = os.environ | {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
        command = [sys.executable, "-m", "fitkit", *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=environment,
                **options,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
