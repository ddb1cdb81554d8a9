"""Jobs on several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitkit.errors import FitkitError
from fitkit.io.workers import Loss, _portable, run_jobs


def square(number):
    return number * number


def vanish(number):
    os._exit(3)


def refuse(number):
    raise FitkitError(f"job {number} cannot be done")


class Unusual(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def square_or_die(number):
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL if number == -1 else signal.SIGSEGV)
    return number * number


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_all_jobs_are_done(workers):
    assert (
        sorted(run_jobs(square, [1, 2, 3], workers)) == [1, 4, 9]
        and list(run_jobs(square, [], workers)) == []
    )


def threads(number):
    import torch

    return torch.get_num_threads()


@pytest.mark.slow
def test_a_worker_uses_one_thread(monkeypatch):
    for library in ("OMP", "MKL"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "2")
    assert list(run_jobs(threads, [1, 2], 2)) == [1, 1]


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_reaches_the_caller():
    with pytest.raises(FitkitError, match="job 1 cannot be done"):
        list(run_jobs(refuse, [1, 1], 2))
    with pytest.raises(
        FitkitError, match=r"a worker process ended by force \(out of memory\?\); use fewer --workers"
    ):
        list(run_jobs(vanish, [1, 2], 2))
    assert str(_portable(Unusual(1, 2))) == "Unusual: 1 2"  # an exception that cannot be sent as it is


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_worker_costs_its_own_job_only():
    done = list(run_jobs(square_or_die, [1, -1, 2, -2, 3], 2, lambda job, loss: (job, loss)))
    assert sorted(d for d in done if isinstance(d, int)) == [1, 4, 9]
    assert dict(d for d in done if isinstance(d, tuple)) == {
        -1: Loss("killed", "its process was ended by SIGKILL (out of memory?)"),
        -2: Loss("killed", "its process was ended by SIGSEGV"),
    }


def square_or_hang(number):
    if number < 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # deaf to all but SIGKILL
        time.sleep(600)
    return number * number


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_job_that_takes_too_long_costs_itself_only():
    """Also one worker is then a process; a job without a limit may take its time."""
    jobs, limits = [1, -1, 2, 3], {-1: 0.3, 2: 100.0}
    done = list(run_jobs(square_or_hang, jobs, 1, lambda job, loss: (job, loss), limits.get, apart=True))
    assert done == [1, (-1, Loss("timeout", "it took longer than 0.3 seconds")), 4, 9]


SLEEPERS = """
import os, signal, sys, time
from pathlib import Path
# A shell that runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from test_workers import sleep_long
from fitkit.io.termination import sigterm_raises
from fitkit.io.workers import run_jobs
if __name__ == "__main__":
    with sigterm_raises():
        print(list(run_jobs(sleep_long, [{folder!r}] * 2, 2)), flush=True)
"""


def sleep_long(folder):
    mark = Path(folder) / str(os.getpid())
    try:
        mark.write_text("")
        time.sleep(2 if Path(folder).name == "short" else 60)
    finally:
        mark.unlink()
    return "done"


@pytest.fixture
def sleepers(tmp_path):
    """Start two workers that sleep: the process, the numbers of the two, and their folder."""
    processes = []

    def start(folder="long"):
        (tmp_path / folder).mkdir()
        script = tmp_path / "script.py"
        script.write_text(SLEEPERS.format(tests=str(Path(__file__).parent), folder=str(tmp_path / folder)))
        processes.append(
            subprocess.Popen(
                [sys.executable, script],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        end = time.monotonic() + 60
        while len(found := os.listdir(tmp_path / folder)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 2
        return processes[-1], [int(n) for n in found], tmp_path / folder

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def gone(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(sleepers, number):
    process, children, folder = sleepers()
    process.send_signal(number)
    end = time.monotonic() + 5
    while not all(map(gone, [process.pid, *children])) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(gone, [process.pid, *children]))
    assert number == signal.SIGKILL or os.listdir(folder) == []  # after SIGTERM they clean up


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_waits_for_the_jobs_under_way_and_says_so(sleepers):
    process, _, folder = sleepers("short")
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert "interrupted; waiting for the 2 under way, Ctrl-C again ends them" in error
    assert "KeyboardInterrupt" in error and os.listdir(folder) == []  # they came to their end
