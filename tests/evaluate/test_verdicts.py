import math

import numpy as np
import pytest
import scipy.stats

from fitkit.errors import InputError
from fitkit.evaluate.verdicts import LIMIT_MM, Confusion, verdict_table, verdict_text

NAN = math.nan


def test_table_that_can_be_counted_by_hand():
    status = ["ok", "ok", "ok", "doubtful", "doubtful", "failed", "failed"]
    error = [0.9, 1.5, 1.6, 1.2, 2.0, 3.0, NAN]
    table = verdict_table(status, error, [1.0, 1.8, NAN, 1.4, 1.7, NAN, 2.0])
    assert LIMIT_MM == 1.5 and table.counts == {
        "ok": (2, 1),
        "doubtful": (1, 1),
        "failed": (0, 1),
    }  # 1.5 mm is still good
    assert table.unknown == {"ok": 0, "doubtful": 0, "failed": 1}
    assert table.by_status == Confusion(caught=2, missed=1, false_alarm=1, passed=2)
    assert table.by_failed == Confusion(1, 2, 0, 3)
    assert table.by_expected == Confusion(
        caught=1, missed=0, false_alarm=1, passed=2
    )  # of the four whose errors are both known
    assert table.by_either == Confusion(caught=2, missed=1, false_alarm=2, passed=1)
    c = table.by_status
    assert (c.caught_share, c.alarm_share, c.right_share, c.missed_share) == pytest.approx(
        (2 / 3, 1 / 3, 2 / 3, 1 / 3)
    )


def test_counts_agree_with_brute_force():
    rng = np.random.default_rng(0)
    status = rng.choice(["ok", "doubtful", "failed"], 500)
    error, expected = rng.gamma(4, 0.4, 500), rng.gamma(4, 0.4, 500)
    error[rng.random(500) < 0.1], expected[rng.random(500) < 0.2] = NAN, NAN
    table = verdict_table(status, error, expected, limit=2.0)
    count = dict.fromkeys(("caught", "missed", "false_alarm", "passed"), 0)
    for s, e, x in zip(status, error, expected):
        if e == e:
            flag = s != "ok" or x > 2.0
            count[("caught" if flag else "missed") if e > 2.0 else ("false_alarm" if flag else "passed")] += 1
    assert vars(table.by_either) == count
    known = np.isfinite(error) & np.isfinite(expected)
    assert sum(vars(table.by_expected).values()) == known.sum()
    assert sum(sum(v) for v in table.counts.values()) + sum(table.unknown.values()) == 500
    assert table.ratio == pytest.approx(np.median(error[known] / expected[known]))
    ranks = [scipy.stats.rankdata(v[known]) for v in (error, expected)]
    assert table.rank == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_what_is_not_defined():
    table = verdict_table(["ok", "ok"], [1.0, 1.1])
    assert (
        table.by_expected is None and table.by_either is None and table.ratio is None and table.rank is None
    )
    assert (
        math.isnan(table.by_status.caught_share)
        and math.isnan(table.by_status.right_share)
        and table.by_status.alarm_share == 0
    )
    table = verdict_table(["ok", "ok", "ok"], [1.0, 1.1, 1.2], [NAN, NAN, NAN])
    assert math.isnan(table.ratio) and math.isnan(table.rank) and sum(vars(table.by_expected).values()) == 0
    assert math.isnan(verdict_table(["ok"] * 3, [1.0, 1.1, 1.2], [1.0, 1.0, 1.0]).rank)
    assert verdict_table([], []).counts == {"ok": (0, 0), "doubtful": (0, 0), "failed": (0, 0)}


def test_text():
    text = verdict_text(
        verdict_table(["ok", "ok", "doubtful", "failed"], [1.0, 2.0, 2.0, NAN], [0.9, 1.0, 2.0, NAN])
    )
    lines = text.splitlines()
    assert lines[0].split() == ["status", "error", "<=", "1.5", "mm", ">", "1.5", "mm", "not", "known"]
    assert lines[1].split() == ["ok", "1", "1", "0"] and lines[3].split() == ["failed", "0", "0", "1"]
    assert "status not ok" in text and "either" in text and "median 1.11; rank correlation" in text
    short = verdict_text(verdict_table(["ok"], [1.0]))
    assert (
        "either" not in short
        and "rank" not in short
        and short.splitlines()[-1].split()[-5:] == ["-", "0", "%", "0", "%"]
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["good"], [1.0]), "status: expected ok, doubtful, failed; got 'good'"),
        ((["ok"], [1.0, 2.0]), r"expected \[N\] each, got \[1\], \[2\]"),
        ((["ok"], [1.0], [1.0, 2.0]), r"expected \[N\] each, got \[1\], \[1\], \[2\]"),
        ((["ok"], [1.0], None, 0.0), "limit: expected more than 0 mm, got 0.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        verdict_table(*arguments)
