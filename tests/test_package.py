"""The package as Python sees it: what is shipped, what loads when, and the name `fitkit.fit`."""

import configparser
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fitkit
from fitkit._moved import MOVED

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}


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
        _ = fitkit.fti


@pytest.mark.parametrize(
    "first", ["", "import fitkit.fitting.run", "import fitkit.fit.detail", "from fitkit.fit import detail"]
)
def test_fit_is_a_function_whatever_was_imported(first):
    code = f"{first}\nimport fitkit, inspect\nassert inspect.isfunction(fitkit.fit), fitkit.fit"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("fitkit.fit.detail", "personal_model"),
        ("fitkit.fit.decompose", "Decomposition"),
        ("fitkit.fit.report", "notes"),
        ("fitkit.fit.result", "FitResult"),
        ("fitkit.fit.run", "fit_observed"),
        ("fitkit.data.synth_dataset", "SynthDataset"),
        ("fitkit.data.synth_recipe", "load_synth_recipe"),
        ("fitkit.data.synth_folder", "read_depth"),
        ("fitkit.data.random_faces", "FaceVariation"),
        ("fitkit.data.face_shards", "render_faces"),
        ("fitkit.data.synthetic", "photograph"),
    ],
)
def test_names_of_the_first_version_are_found_with_a_warning(old, name):
    new = MOVED[old]
    with pytest.warns(FutureWarning, match=f"^{old} is now {new}$"):
        moved = getattr(importlib.import_module(old), name)
    assert moved is getattr(importlib.import_module(new), name)
    if old.startswith("fitkit.fit."):
        with pytest.warns(FutureWarning):
            assert getattr(getattr(fitkit.fit, old.rpartition(".")[2]), name) is moved


def test_moved_modules_are_there():
    assert [new for new in MOVED.values() if importlib.util.find_spec(new) is None] == []


def test_shipped_files_are_found():
    assert fitkit.load_model("generic").name == "generic"
    assert fitkit.load_recipe().name == "multiview"


def test_scripts_of_pages_are_shipped_with_their_licence():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = config["options.package_data"]["fitkit.assets"].replace(",", " ").split()
    shipped = {p for pattern in patterns for p in (ROOT / "assets").glob(pattern)}
    assert set((ROOT / "assets" / "report").iterdir()) <= shipped
    script = ROOT / "assets" / "report" / "three.min.js"
    build = json.loads((ROOT / "assets" / "report_build" / "package.json").read_text(encoding="utf-8"))
    version = build["dependencies"]["three"]
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_size < 1e6 and text.startswith(f"/*! three.js {version}, ")
    licence = " ".join(text[: text.index("*/")].split())
    assert "The MIT License" in licence and "The above copyright notice and this permission notice" in licence
    assert f"three.js {version}" in (ROOT / "assets" / "README.md").read_text(encoding="utf-8")
