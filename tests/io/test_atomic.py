"""Files that are written whole or not at all."""

import os
import subprocess
import sys

import pytest

from fitkit.errors import InputError
from fitkit.io import atomic
from fitkit.io.atomic import is_temporary, litter, remove_litter, temporary_name, written_whole


@pytest.fixture
def ended():
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with written_whole(path) as part:
        part.write_text("new")
        assert (
            not path.exists()
            and part.parent == path.parent
            and is_temporary(part.name)
            and part.suffix == ".txt"
        )
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]
    with pytest.raises(ValueError), written_whole(path) as part:
        part.write_text("half")
        raise ValueError
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_permissions_are_those_of_a_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "a") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries do
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_what_the_disk_refuses_is_one_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=r"a.txt: cannot be written \(No space left on device\); make room"),
        written_whole(tmp_path / "a.txt", "make room"),
    ):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"a.txt: cannot be written \(.*\); choose another place"),
        written_whole(tmp_path / "file" / "a.txt"),
    ):
        pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="there nobody can be asked whether a process lives")
def test_litter_is_that_of_processes_that_have_ended(tmp_path, ended, monkeypatch):
    machine = atomic._machine()
    mine = temporary_name(tmp_path / "a.npz")
    dead = [
        f".fitkit-{ended}-{machine}0123abcd",
        f".fitkit-{ended}-0123abcd",
        f".fitkit-{ended}-{machine}0123abcd.npz",
        f".fitkit-{os.getpid()}-{machine}0123abcd",
    ]  # the last: of a process that had our number before us
    other = "0000" if machine != "0000" else "1111"
    kept = [
        mine.name,
        f".fitkit-{os.getppid()}-{machine}0123abcd",
        f".fitkit-{ended}-{other}0123abcd",
        ".fitkit-notes",
        f".fitkit-{ended}-mine",
        "photo.png",
    ]
    for name in dead + kept:
        (tmp_path / name).write_text("")
    (tmp_path / f".fitkit-{ended}-{machine}ffffffff").mkdir()
    (tmp_path / f".fitkit-{ended}-{machine}aaaaaaaa").symlink_to(tmp_path / "photo.png")
    assert len(litter(tmp_path)) == len(dead) + 2
    remove_litter(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file() and not p.is_symlink()) == sorted(kept)
    monkeypatch.setattr(atomic, "_FORGOTTEN", -1.0)
    remove_litter(tmp_path)
    assert not (tmp_path / kept[2]).exists()  # nobody on another machine writes for a day
    remove_litter(tmp_path / "nowhere")
