"""The package as Python sees it: what is shipped, what loads when, and the name `fitkit.fit`."""

import configparser
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fitkit

ROOT = Path(__file__).resolve().parents[1]


def test_setup_cfg_names_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(config["options"]["packages"].split())
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fitkit").rglob("*.py")}
    assert named == folders | {"fitkit.assets", "fitkit.recipes"}
    for name in named:
        assert (
            (
                ROOT / name.removeprefix("fitkit.")
                if name in ("fitkit.assets", "fitkit.recipes")
                else ROOT / name.replace(".", "/")
            )
            .joinpath("__init__.py")
            .is_file()
        )


def test_public_names():
    for name in fitkit.__all__:
        assert callable(getattr(fitkit, name)), name
    with pytest.raises(AttributeError, match="module 'fitkit' has no attribute 'fti'"):
        fitkit.fti


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import fitkit.fit",
        "import fitkit.fit.run",
        "from fitkit.fit.run import fit",
        "from fitkit.fit.recipe import load_recipe",
        "from fitkit import fit",
        "from fitkit import FitResult",
        "import importlib, fitkit.fit; importlib.reload(fitkit.fit)",
    ],
)
def test_fit_can_be_called_whatever_was_imported(first):
    code = f"""
{first}
import fitkit
try:
    fitkit.fit([])
except fitkit.FitkitError as error:
    assert "no images given" in str(error)
else:
    raise SystemExit("not called")
import fitkit.fit.run
assert callable(fitkit.fit) and fitkit.fit.run.fit is not fitkit.fit
from fitkit import fit
assert fit is fitkit.fit
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
    )


def test_fit_shows_its_signature():
    run = importlib.import_module("fitkit.fit.run")
    assert inspect.signature(fitkit.fit) == inspect.signature(run.fit)
    assert "fitkit.fit.run.fit" in fitkit.fit.__doc__


def test_shipped_files_are_found():
    assert fitkit.load_model("generic").name == "generic"
    assert fitkit.load_recipe().name == "multiview"
