"""What the README and the pages in docs/ say can be done, can be done."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fitkit
from fitkit.io.resources import recipe_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_python_example_runs(tmp_path):
    shutil.copytree(ROOT / "examples/sample", tmp_path / "examples/sample", ignore=shutil.ignore_patterns("fitkit"))
    code, = re.findall(r"```python\n(.*?)```", README, re.S)
    environment = {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok") and (tmp_path / "sample_result/subject.glb").is_file()


def test_every_recipe_is_described():
    table = README.partition("## Recipes")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(recipe_names("fit"))


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    install, _, test = re.search(r"^(pip install '\.\[test\]') (&&) (.+)$", README, re.M).groups()
    lines = script.splitlines()
    assert install.replace("install", "install -q") in lines and test == lines[-1]
