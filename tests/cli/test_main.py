import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

import fitkit
from fitkit.cli import main as cli
from fitkit.cli.recipe import USES
from fitkit.fitting.recipe import load_recipe
from fitkit.io.resources import RECIPE_KINDS

ROOT = Path(__file__).resolve().parents[2]


def leaves(command, words=()):
    """Every command below a group: (words, command)."""
    if not isinstance(command, click.Group):
        return [(words, command)]
    context = click.Context(command)
    return [
        leaf
        for name in command.list_commands(context)
        for leaf in leaves(command.get_command(context, name), (*words, name))
    ]


@pytest.mark.parametrize("words", [words for words, _ in leaves(cli.main)], ids=" ".join)
def test_help_has_an_example(run, words):
    result = run(*words, "--help")
    assert result.exit_code == 0 and f"Example: fitkit {' '.join(words)}" in result.output


def test_help_lists_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in ("fit", "model", "recipe"):
        assert f"\n  {name}  " in result.output
    assert run("-h").output == result.output
    assert run("--version").output == f"fitkit, version {fitkit.__version__}\n"


def test_a_command_that_is_not_installed_is_left_out(run, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "paint", ("fitkit.cli.paint:paint", "Paint."))
    assert "paint" not in run("--help").output
    assert "No such command 'paint'" in run("paint").output


def test_help_loads_no_heavy_package():
    code = """
import sys
import fitkit
from click.testing import CliRunner
from fitkit.cli.main import main
for words in (["--help"], ["fit", "--help"], ["model", "list"], ["recipe", "list"]):
    assert CliRunner().invoke(main, words).exit_code == 0, words
heavy = {"torch", "numpy", "cv2", "scipy", "numba", "face_alignment", "ptlflow"} & set(sys.modules)
assert not heavy, heavy
assert "fit" in dir(fitkit) and "FitResult" in dir(fitkit)
"""
    environment = {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_threads_are_settled_before_torch_loads():
    code = """
import os
from fitkit.cli.main import settle_threads
settle_threads()
import torch
print(os.environ["OMP_WAIT_POLICY"], torch.get_num_threads())
"""
    environment = {"PYTHONPATH": str(Path(fitkit.__file__).parents[1])}

    def threads(**given):
        return subprocess.run(
            [sys.executable, "-c", code], check=True, env=environment | given, capture_output=True, text=True
        ).stdout.split()

    policy, number = threads()
    assert policy == "PASSIVE" and 1 <= int(number) <= cli.MAX_THREADS
    assert threads(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["ACTIVE", "1"]  # the user's word counts


def test_recipe_list(run):
    """All kinds, each recipe with a whole sentence."""
    lines = run("recipe", "list").output.splitlines()
    heads = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert heads == list(RECIPE_KINDS) == list(USES) and set(heads) == {
        p.parent.name for p in (ROOT / "recipes").glob("*/*.yaml")
    }
    rows = [line.split(None, 1) for line in lines if line.startswith(" ")]
    assert sorted(name for name, _ in rows) == sorted(p.stem for p in (ROOT / "recipes").glob("*/*.yaml"))
    assert all(sentence.endswith((".", "?")) and sentence[0].isupper() for _, sentence in rows)
    assert [
        "multiview",
        "The default: landmarks, then flow matches between neighbouring views, each pair as good as its "
        "own noise says, and what they show beyond the face model.",
    ] in rows


def test_recipe_show(run, tmp_path):
    result = run("recipe", "show", "multiview", "seed=3")
    assert result.exit_code == 0
    (tmp_path / "shown.yaml").write_text(result.output)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe("multiview", ["seed=3"])
    result = run("recipe", "show", "multiveiw")
    assert result.exit_code == 1 and "did you mean 'multiview'" in result.output
    assert "no fit recipe 'mvfnet' (it is a train recipe); " in run("recipe", "show", "mvfnet").output


@pytest.mark.parametrize("words", [words for words, _ in leaves(cli.main)], ids=" ".join)
def test_every_command_has_verbose(run, words):
    assert "--verbose" in run(*words, "--help").output


def test_verbose_shows_the_traceback(run, monkeypatch):
    def broken(kind):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("fitkit.io.resources.recipe_names", broken)
    assert (
        run("recipe", "list").output
        == "Error: unexpected ZeroDivisionError: a mistake of ours; run with --verbose for details\n"
    )
    result = run("recipe", "list", "--verbose")
    assert "Traceback" in result.output and result.exit_code == 2


def test_a_full_disk_is_no_surprise(run, monkeypatch):
    def full(kind):
        raise OSError(errno.ENOSPC, "No space left on device", "table.csv")

    monkeypatch.setattr("fitkit.io.resources.recipe_names", full)
    result = run("recipe", "list")
    assert (
        result.output
        == "Error: table.csv: cannot be written (No space left on device); make room, or choose another "
        "place\n"
    )
    assert result.exit_code == 1


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    command = subprocess.Popen(
        [sys.executable, "-m", "fitkit", "recipe", "list"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.close()
    assert command.stderr.read() == b"" and command.wait(60) == 1
    command.stderr.close()
