"""Engines of a batch: the same jobs, with one that is killed and one that takes too long, come out alike.
Processes: tests/io/test_workers.py."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fitkit.errors import FitkitError, InputError
from fitkit.io import engines
from fitkit.io.engines import EngineOptions, Work, check_engine, run_engine

posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def work(folder, job):
    """The square of a number, left on the disk and given."""
    if job == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == -2:
        time.sleep(600)
    return answer(folder, job, job * job)


def answer(folder, job, value):
    part = Path(folder) / f".{job}-{os.getpid()}"
    part.write_text(str(value))
    part.rename(Path(folder) / str(job))
    return job, value


def lost(folder, job, loss):
    return answer(folder, job, loss.kind)


def found(folder, job):
    path = Path(folder) / str(job)
    if not path.exists():
        return None
    text = path.read_text()
    return job, int(text) if text.isdecimal() else text


def limit(job):
    return 2.0 if job == -2 else None


def results(name, folder, jobs, parameters=None, workers=2):
    folder.mkdir(exist_ok=True)
    task = Work(partial(work, folder), jobs, partial(lost, folder), partial(found, folder), limit)
    options = EngineOptions(workers, False, True, folder / "files", parameters or {})
    return sorted(run_engine(name, task, options))


JOBS, ANSWERS = [1, -1, 2, -2, 3], [(-2, "timeout"), (-1, "killed"), (1, 1), (2, 4), (3, 9)]


@pytest.fixture
def importable(monkeypatch):
    """Processes that know nothing of pytest find this file."""
    paths = [str(Path(__file__).parent), str(Path(engines.__file__).parents[3]), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))


@pytest.mark.slow
@posix
def test_slurm_on_this_machine(tmp_path, importable):
    pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")
    assert results("slurm", tmp_path / "a", JOBS, {"cluster": "local", "timeout_min": 5}) == ANSWERS


@pytest.mark.slow
@posix
def test_ray_on_this_machine(tmp_path, importable):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    assert results("ray", tmp_path / "a", JOBS) == ANSWERS


class Handle:
    """A job of Slurm whose machine fails after `after` of its subjects, as submitit shows it."""

    state = "NODE_FAIL"

    def __init__(self, share, after):
        function, jobs, lost_, timeout = share
        for job in jobs[:after]:
            function(job)

    def done(self, at_once):
        return True

    def exception(self):
        return RuntimeError("Job not requeued\nNODE_FAIL")

    def cancel(self, check):
        raise AssertionError("it has ended")


class Executor:
    """Stands in for a cluster, which is not here: each share is done up to its third job."""

    def __init__(self):
        self.shares = []

    def batch(self):
        return open(os.devnull)

    def submit(self, function, *share):
        self.shares.append(list(share[1]))
        return Handle(share, 2)


def test_a_share_of_slurm_whose_machine_fails_is_submitted_again(tmp_path, monkeypatch):
    """What is open is; a job that is the first one open twice is given up."""
    from fitkit.io.engines import slurm

    executor = Executor()
    monkeypatch.setattr(slurm, "_executor", lambda *arguments: executor)
    monkeypatch.setattr(slurm, "LOOK", {"slurm": 0.0})
    assert results("slurm", tmp_path / "a", [1, 2, 3, 4, 5, 6, 7], {}) == [(i, i * i) for i in range(1, 8)]
    assert executor.shares == [[1, 3, 5, 7], [2, 4, 6], [5, 7], [6]]
    executor.shares.clear()
    monkeypatch.setattr(Executor, "submit", lambda self, f, *s: self.shares.append(s[1]) or Handle(s, 0))
    assert results("slurm", tmp_path / "b", [1, 2], {}, workers=1) == [(1, "killed"), (2, "killed")]
    assert executor.shares == [[1, 2], [1, 2], [2], [2]]


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("slurm", {"cluster": "lsf"}, "engine 'slurm': cluster: expected slurm or local, got 'lsf'"),
        ("slurm", {"partition": None}, "engine 'slurm': partition: expected a text or a number, got None"),
        ("ray", {"adress": "auto"}, "engine 'ray': unknown option 'adress'; known: address, memory"),
        ("processes", {"x": 1}, "engine 'processes' has no options, got 'x'"),
        ("dask", {}, "no engine 'dask'; there are: processes, slurm, ray"),
    ],
)
def test_refusals(name, parameters, message, monkeypatch):
    if name == "slurm":
        pytest.importorskip("submitit")
    if name == "ray":
        pytest.importorskip("ray")
    with pytest.raises(InputError, match=message):
        check_engine(name, parameters)


@pytest.mark.parametrize("name, package", [("slurm", "submitit"), ("ray", "ray")])
def test_what_is_not_installed_is_one_sentence(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        FitkitError, match=rf"engine '{name}' needs {package} .*; pip install 'fitkit\[{name}\]'"
    ):
        check_engine(name, {})


def test_unknown_options_of_submitit_are_refused(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="engine 'slurm': .*nonsense"):
        results("slurm", tmp_path / "a", [1], {"cluster": "local", "nonsense": 1})
