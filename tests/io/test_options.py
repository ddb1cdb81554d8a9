from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fitkit.errors import InputError
from fitkit.io.options import apply_overrides, build, merge, read_yaml, to_plain


@dataclass(frozen=True)
class Inner:
    sigma: float = 0.5
    kind: Literal["auto", "yes", "no"] = "auto"
    side: Literal[512, 1024] = 1024


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    on: bool = False
    tags: tuple[str, ...] = ()
    limit: float | None = None
    inner: Inner = Inner()


FULL = {
    "name": "a",
    "count": 2,
    "on": True,
    "tags": ["x", "y"],
    "limit": 3.0,
    "inner": {"sigma": 0.25, "kind": "no", "side": 512},
}


def test_build_and_back():
    value = build(Outer, FULL, "file")
    assert value == Outer("a", 2, True, ("x", "y"), 3.0, Inner(0.25, "no", 512))
    assert to_plain(value) == FULL and build(Outer, to_plain(Outer("b")), "file") == Outer("b")
    assert to_plain({"path": Path("a/b")}) == {"path": "a/b"}


def test_what_yaml_makes_of_values(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nlimit: 1e-3\ninner: {sigma: 1, kind: yes}\n")
    value = build(Outer, read_yaml(tmp_path / "a.yaml"), "a.yaml")
    assert value.limit == 0.001  # YAML reads 1e-3 as text
    assert value.inner == Inner(1.0, "yes") and isinstance(value.inner.sigma, float)  # and yes as true
    assert build(Outer, {"name": "a", "limit": None}, "a").limit is None
    assert isinstance(build(Inner, {"side": 512.0}, "a").side, int)


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, "file: 'name' is missing"),
        ([1], r"file: expected a mapping, got \[1\]"),
        ({"name": "a", "cuont": 1}, "file: unknown key 'cuont'; did you mean 'count'"),
        ({"name": "a", "zzz": 1}, "file: unknown key 'zzz'; known: count, inner, limit, name, on, tags"),
        ({"name": "a", "inner": {"sgima": 1}}, "file: inner: unknown key 'sgima'; did you mean 'sigma'"),
        ({"name": "a", "inner": None}, "file: inner: expected a mapping, got None"),
        ({"name": 1}, "file: name: expected str, got 1"),
        ({"name": "a", "count": 1.5}, "file: count: expected int, got 1.5"),
        ({"name": "a", "count": True}, "file: count: expected int, got True"),
        ({"name": "a", "on": 1}, "file: on: expected bool, got 1"),
        ({"name": "a", "tags": "x"}, "file: tags: expected a list, got 'x'"),
        ({"name": "a", "limit": "high"}, "file: limit: expected float, got 'high'"),
        ({"name": "a", "inner": {"sigma": False}}, "file: inner.sigma: expected float, got False"),
        (
            {"name": "a", "inner": {"kind": "maybe"}},
            "file: inner.kind: expected one of auto, yes, no; got 'maybe'",
        ),
    ],
)
def test_wrong_options_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        build(Outer, data, "file")


def test_merge_leaves_the_original_alone():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3], "e": 5}}) == {"a": {"b": 1, "c": [3], "e": 5}, "d": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_overrides():
    data = {"seed": 0, "stages": [{"name": "one", "solver": {"n": 1}}, {"name": "two"}]}
    changed = apply_overrides(
        data, ["seed=3", "stages.two.solver.n=5", "new.key=[a, b]", "text=a=b", "empty="]
    )
    assert changed == {
        "seed": 3,
        "stages": [{"name": "one", "solver": {"n": 1}}, {"name": "two", "solver": {"n": 5}}],
        "new": {"key": ["a", "b"]},
        "text": "a=b",
        "empty": None,
    }
    assert data["seed"] == 0 and "solver" not in data["stages"][1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("seed", "override 'seed': expected key=value, for example seed=1"),
        ("=1", "override '=1': expected key=value"),
        ("seed=[1", r"override 'seed=\[1': the value is not valid YAML"),
        ("seed.deep=1", "override 'seed.deep=1': 'deep' has no options of its own"),
        ("stages.tow.n=1", "override 'stages.tow.n=1': unknown key 'tow'; did you mean 'two'"),
        ("stages.two=1", "override 'stages.two=1': .* has no options of its own"),
        ("seed=2024-13-45", "override 'seed=2024-13-45': the value is not valid YAML .month must be"),
        ("seed=0x_", "the value is not valid YAML"),
        (
            "seed=" + "9" * 5000,
            "override 'seed=9+[.]{3}9+': the value is not valid YAML .a whole number has 5000 digits",
        ),
        ("seed=" + "[" * 2000, "nested deeper than 64"),
        ("stages.3.n=1", "unknown key '3'; known: 5, two"),
    ],
)
def test_wrong_overrides_are_refused(line, message):
    with pytest.raises(InputError, match=message):
        apply_overrides({"seed": 0, "stages": [{"name": "two"}, {"name": 5}, {"name": None}, {}]}, [line])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1\n", "a.yaml: not valid YAML"),
        (b"- 1\n", "a.yaml: expected a mapping of options, got list"),
        (b"", "a.yaml: expected a mapping of options, got NoneType"),
        (b"\xff\xfe\x00", "a.yaml: cannot be read"),
    ],
)
def test_files_that_hold_no_options(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_values_in_messages_are_short():
    value = "x"
    for _ in range(30):
        value = [value] * 9
    for wrong in (
        {"name": value},
        {"count": "y" * 10**6, "name": "n"},
        {"y" * 10**6: 1},
        {"name": "n", "limit": 10**400},
    ):
        with pytest.raises(InputError) as caught:
            build(Outer, wrong, "a.yaml")
        assert len(str(caught.value)) < 500


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")
