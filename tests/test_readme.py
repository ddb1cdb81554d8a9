"""What the README and the pages in docs/ say can be done, can be done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import fitkit
from fitkit.cli.main import main
from fitkit.io.resources import recipe_names
from fitkit.models.io import JOINTS, OPTIONAL, REQUIRED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_python_example_runs(tmp_path):
    shutil.copytree(
        ROOT / "examples/sample", tmp_path / "examples/sample", ignore=shutil.ignore_patterns("fitkit")
    )
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    environment = os.environ | {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok") and (tmp_path / "sample_result/subject.glb").is_file()


def test_the_script_for_an_own_model_writes_one(tmp_path, monkeypatch):
    """As the page says: it is checked, stored, and can be fitted; every array is in the table, and said to be
    required or not."""
    page = (ROOT / "docs/face_models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    exec(compile(code, "face_models.md", "exec"), {})
    info = CliRunner().invoke(main, ["model", "info", "mine.npz"])
    assert (
        info.exit_code == 0
        and "identity    40 coefficients" in info.output
        and "uv          no" in info.output
    )
    stored = CliRunner().invoke(main, ["model", "import", "npz", "mine.npz"])
    assert stored.exit_code == 0 and fitkit.load_model("mine").num_identity == 40, stored.output
    assert CliRunner().invoke(main, ["model", "import", "npz", "mine.npz", "--name", "other"]).exit_code == 0
    assert fitkit.load_model("other").name == "other"
    refused = CliRunner().invoke(main, ["model", "import", "npz", "mine.npz"])
    assert refused.exit_code == 1 and "exists already; use --overwrite, or another --name" in refused.output
    rows = re.findall(r"^\| (`.+?) \|.*\| (\w+)[^|]* \|$", page, re.M)
    need = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert need == dict.fromkeys(REQUIRED, "required") | dict.fromkeys(
        (*OPTIONAL, *JOINTS, "pose_basis"), "optional"
    )


def test_every_recipe_is_described():
    table = README.partition("## Recipes")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(recipe_names("fit"))


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    install, _, test = re.search(r"^(pip install '\.\[test\]') (&&) (.+)$", README, re.M).groups()
    lines = script.splitlines()
    assert install.replace("install", "install -q") in lines and test == lines[-1]
