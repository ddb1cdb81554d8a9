"""The one summary and the one table printer."""

import math

import pytest

from fitkit.evaluate.tables import grouped, known, mean_or_none, means, medians, number, percent, text_table

ROWS = [
    {"arm": "b", "x": 1.0},
    {"arm": "a", "x": None},
    {"arm": "b", "x": 4.0, "y": 2},
    {"arm": "a", "x": math.nan},
    {"x": 10.0},
]


def test_rows_are_grouped_in_the_order_in_which_they_come():
    groups = grouped(ROWS, "arm")
    assert list(groups) == [("b",), ("a",), (None,)] and groups["b",] == [ROWS[0], ROWS[2]]
    assert list(grouped(ROWS[:3], "arm", "y")) == [("b", None), ("a", None), ("b", 2)]


def test_means_leave_out_what_is_not_known():
    assert known(ROWS, "x").tolist() == [1.0, 4.0, 10.0] and known(ROWS, "z").tolist() == []
    assert means(ROWS, ("x", "y", "z")) == {"x": 5.0, "y": 2.0, "z": None}
    assert medians(ROWS, ("x", "z")) == {"x": 4.0, "z": None}
    assert mean_or_none([1.0, math.inf, 3.0]) == 2.0 and mean_or_none([]) is None


@pytest.mark.parametrize(
    "text, want",
    [
        (number(1.23456), "1.235"),
        (number(1.2, 1, sign=True), "+1.2"),
        (number(None), "-"),
        (number(math.nan), "-"),
        (percent(0.683), "68 %"),
        (percent(0.683, 1), "68.3 %"),
        (percent(None), "-"),
        (percent(math.nan), "-"),
    ],
)
def test_numbers_as_text(text, want):
    assert text == want


def test_columns_of_numbers_are_set_to_the_right():
    got = text_table(("name", "mm", "note"), [("a", "1.5", "x"), ("bcdef", "+12.25", ""), ("c", "-", "yz")])
    assert got.splitlines() == [
        "name       mm  note",
        "a         1.5  x",
        "bcdef  +12.25",
        "c           -  yz",
    ]
    assert text_table((), [("a", "1"), ("bc", "10")]).splitlines() == ["a    1", "bc  10"]
    assert text_table(("name", "mm"), []) == "name  mm"
