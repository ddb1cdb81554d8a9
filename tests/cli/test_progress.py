"""Bars on a terminal: what is done, how much of it, the time left; elsewhere nothing."""

import io
import sys
from types import SimpleNamespace

import pytest

from fitkit.cli import progress
from fitkit.cli.progress import share_bar, training_bar
from fitkit.fitting.batch_records import BatchRow


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_fit_says_what_it_does_and_how_long(monkeypatch):
    # Here: between fixtures and test pytest sets it anew.
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with share_bar(False) as progress:
        progress.at(0.05, "reading photos")
        progress.at(0.4, "stage flow")
        progress.at(1.0, "done")
    lines = terminal.getvalue().split("\r")
    assert any(
        "reading photos" in line and "5 % after 00:00" in line and "left" not in line for line in lines
    )
    assert any("stage flow" in line and "40 % after 00:00, about 00:00 left" in line for line in lines)


def test_a_training_says_how_many_steps_are_left(monkeypatch):
    # Here: between fixtures and test pytest sets it anew.
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with training_bar(False) as bar:
        bar.begun(40, 50)
        for step in (41, 42):
            bar.step_done(step, {"total": 0.123456})
        bar.line("checkpoint")
    assert (
        "42/50" in terminal.getvalue()
        and "total=0.123" in terminal.getvalue()
        and "checkpoint\n" in terminal.getvalue()
    )


@pytest.mark.parametrize("quiet", [False, True])
def test_no_bar_where_there_is_no_terminal(monkeypatch, quiet):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with share_bar(quiet) as progress, training_bar(quiet) as bar:
        progress.at(0.4, "stage flow")
        bar.begun(0, 10)
        bar.step_done(1, {"total": 1.0})
        bar.line("a line")
    assert sys.stderr.getvalue() == ("" if quiet else "a line\n")


def test_a_log_of_a_cluster_gets_a_line_now_and_then(monkeypatch, capsys):
    """With the time left; those who are not ok have a line of their own."""
    now = iter(range(0, 1000, 40))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    with progress.batch_bar(False) as told:
        told.counted(2, 10)  # of an earlier run
        for done in (3, 4, 5):
            told.counted(done, 10, BatchRow(f"p{done}", "ok" if done != 4 else "error", "no face"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "3 of 10 subjects, 0.025 per second, 5 min left",
        "p4: error: no face",
        "5 of 10 subjects, 0.025 per second, 3 min left",
    ]
    with progress.batch_bar(True) as told:
        told.counted(0, 1)
        told.counted(1, 1, BatchRow("a", "error"))
    assert capsys.readouterr().err == ""
