import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_model, tiny_skinned_model

from fitkit.cli.main import main
from fitkit.errors import MissingWeightsError
from fitkit.models import fetch, registry
from fitkit.models.calibration import shipped_calibrations
from fitkit.models.io import save_model_file

ICT = Path(__file__).resolve().parents[3] / "shared/data/ict/obj"


@pytest.fixture
def run(tmp_path, monkeypatch):
    asset = save_model_file(
        replace(tiny_model(), name="generic", license="MIT", source="made here"),
        tmp_path / "assets/generic.npz",
    )
    monkeypatch.setattr(registry, "asset_path", lambda name: asset)
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    return lambda *arguments: CliRunner().invoke(main, ["model", *map(str, arguments)])


def test_list(run):
    result = run("list")
    assert result.exit_code == 0 and "generic" in result.output and "fitkit model fetch ict" in result.output
    registry.store_model(replace(tiny_model(), name="ict"))
    assert "ict.npz" in run("list").output and "fetch ict" not in run("list").output


def test_info(run, tmp_path):
    output = run("info", "generic").output
    shapes = "6 blend shapes, 0 to 1: jawOpen, mouthSmile_L"
    for text in ("vertices", "315", "8 coefficients", shapes, "MIT", "made here", "generic.npz"):
        assert text in output
    numbers = "inflation 1.25, floor 0.7 mm; expected errors x 1 (one photo), x 1.1 (several)\n"
    assert f"error bars  {numbers}" in output
    signed = replace(tiny_model(), expression_kind="gaussian", expression_sigma=torch.linspace(0.5, 2, 6))
    registry.store_model(replace(signed, region_names=(*signed.region_names, "nobody's")))
    output = run("info", "tiny").output
    assert f"regions     {', '.join(signed.region_names)}\n" in output
    assert "expression  6 coefficients, sigma 0.5 to 2: jawOpen" in output
    assert "landmarks   68 (iBUG 68)\n" in output
    assert f"error bars  not calibrated; {numbers}" in output
    path = save_model_file(tiny_skinned_model(), tmp_path / "joints.npz")
    output = run("import", "npz", path, "--name", "turning").output
    wanted = "315 vertices, 8 identity and 6 expression shapes, 4 joints; use it with --model turning\n"
    assert output.endswith(wanted)
    assert "joints      12 rotations, sigma 0.15: neck_x, neck_y" in run("info", "turning").output
    result = run("info", "ict")
    assert (
        result.exit_code == 1
        and result.output.count("\n") == 1
        and "Error: model 'ict' is not in" in result.output
    )
    assert "did you mean 'generic'" in run("info", "generik").output


@pytest.mark.skipif(not ICT.is_dir(), reason="the shared test data are not here")
def test_import(run, tmp_path):
    result = run("import", "ict", ICT, "--name", "small")
    assert result.exit_code == 0 and "24591 vertices, 3 identity and 2 expression shapes" in result.output
    assert registry.load_model("small").num_identity == 3
    assert registry.load_model("small").calibration == shipped_calibrations()["ict"]
    assert "exists already" in run("import", "ict", ICT, "--name", "small").output


def test_import_refusals(run, tmp_path):
    result = run("import", "ict", tmp_path / "none")
    assert result.exit_code == 1 and "no such file or folder" in result.output
    assert run("import", "flume", tmp_path).exit_code == 2


def test_fetch_ict(run, monkeypatch):
    def fetched(kind, name, url, overwrite, progress):
        assert (kind, name, url, overwrite) == ("ict", "mine", "http://mirror", True)
        progress(0, 154), progress(154, 154)
        return registry.store_model(replace(tiny_model(), name=name))

    monkeypatch.setattr(fetch, "fetch_model", fetched)
    result = run("fetch", "ict", "--name", "mine", "--url", "http://mirror", "--overwrite")
    assert result.exit_code == 0 and "mine.npz: imported; use it with --model mine" in result.output

    def fails(*args, **kwargs):
        raise MissingWeightsError("no network")

    monkeypatch.setattr(fetch, "fetch_model", fails)
    result = run("fetch", "ict")
    assert result.exit_code == 1 and "Error: no network" in result.output


def test_fetch_fan(run, monkeypatch):
    from fitkit.observe.landmarks import fan

    fetched = []
    monkeypatch.setattr(fan, "load_networks", lambda variant: fetched.append(variant))
    for name in ("fan", "fan3d"):
        result = run("fetch", name)
        assert (
            result.exit_code == 0
            and "checkpoints" in result.output
            and f"detector '{name}' are here" in result.output
        )
    assert fetched == ["fan", "fan3d"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    result = run("fetch", "fan")
    assert result.exit_code == 1 and "pip install face-alignment" in result.output


@pytest.mark.parametrize("command", ["list", "info", "import", "fetch"])
def test_help_has_an_example(run, command):
    assert "Example: fitkit model " in run(command, "--help").output
