"""Folders that commands write into."""

import os
import signal
import subprocess
import sys

import pytest

from fitkit.errors import InputError
from fitkit.io.outputs import check_folder, locked

KNOWN, MARKS = ("recipe.yaml", "log.csv", "pictures/*.png"), ("recipe.yaml",)


def test_only_what_the_command_writes_may_be_there(tmp_path):
    out = tmp_path / "out"
    check_folder(out, KNOWN, MARKS, "train")
    (out / "pictures").mkdir(parents=True)
    check_folder(out, KNOWN, MARKS, "train")
    (out / "log.csv").write_text("")
    with pytest.raises(
        InputError,
        match="out: holds 'log.csv', which train would overwrite, but no recipe.yaml of an earlier run",
    ):
        check_folder(out, KNOWN, MARKS, "train")
    check_folder(out, KNOWN, (), "train")
    (out / "recipe.yaml").write_text("")
    (out / "pictures" / "1.png").write_text("")
    (out / ".DS_Store").write_text("")
    check_folder(out, KNOWN, MARKS, "train")
    (out / "pictures" / "notes.txt").write_text("")
    with pytest.raises(
        InputError,
        match="out: holds 'pictures/notes.txt', which train does not write, so nothing is written there",
    ):
        check_folder(out, KNOWN, MARKS, "train")
    check_folder(out, KNOWN, MARKS, "train", resume=True)
    (out / "recipe.yaml").unlink()
    with pytest.raises(InputError, match="holds"):
        check_folder(out, KNOWN, MARKS, "train", resume=True)


def test_a_link_is_foreign(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").symlink_to(tmp_path)
    with pytest.raises(InputError, match="holds 'mine'"):
        check_folder(tmp_path / "out", KNOWN, MARKS, "train")


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    with (
        locked(tmp_path / "out", "batch", "batch"),
        pytest.raises(InputError, match="out: another batch writes there; wait for its end"),
        locked(tmp_path / "out", "batch", "batch"),
    ):
        pass
    with locked(tmp_path / "out", "batch", "batch"):
        pass
    assert os.listdir(tmp_path / "out") == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="file: cannot be written"),
        locked(tmp_path / "file", "batch", "batch"),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from fitkit.io.outputs import locked\n"
        "with locked(Path(sys.argv[1]), 'batch', 'batch'): os.kill(os.getpid(), signal.SIGTERM)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == -signal.SIGTERM and os.listdir(tmp_path) == [".batch.lock"]
    with locked(tmp_path, "batch", "batch"):
        pass
    assert os.listdir(tmp_path) == []
