"""Options from YAML and from the command line into frozen dataclasses, strictly."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fitkit.errors import InputError, check_argument, did_you_mean
from fitkit.io.foreign import YAML_BYTES, foreign_file, parse_yaml, readable, refused_as, shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number of a recipe may be: sigma: Annotated[float, Range(0.0, 1.0)]; whole numbers have whole
    bounds. below: less than `high`; multiple: of this only."""

    low: float
    high: float
    below: bool = False
    multiple: int = 0

    def allows(self, value: float) -> bool:
        inside = self.low <= value < self.high if self.below else self.low <= value <= self.high
        return inside and not (self.multiple and value % self.multiple)

    def __str__(self) -> str:
        kind = (
            f"multiple of {self.multiple}"
            if self.multiple
            else "whole number"
            if isinstance(self.low, int)
            else "number"
        )
        low, high = (f"{bound:g}" if isinstance(bound, float) else bound for bound in (self.low, self.high))
        return f"a {kind} from {low} to {'less than ' if self.below else ''}{high}"


@dataclasses.dataclass(frozen=True)
class Length:
    """How many items a list of a recipe may have: free: Annotated[tuple[str, ...], Length(1)]."""

    least: int
    most: int = 1000

    def allows(self, value: typing.Sequence) -> bool:
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        return (
            f"a list of {self.least} items"
            if self.least == self.most
            else f"a list of {self.least} to {self.most} items"
        )


# Squares and inverse squares of all of these are numbers in single precision.
Positive = Annotated[float, Range(1e-9, 1e9)]
NonNegative = Annotated[float, Range(0.0, 1e9)]
Share = Annotated[float, Range(0.0, 1.0)]
Count = Annotated[int, Range(1, 10**9)]
Natural = Annotated[int, Range(0, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Pixels = Annotated[int, Range(16, 4096)]  # side of a picture
Degrees = Annotated[float, Range(0.0, 180.0)]
Cosine = Annotated[float, Range(-1.0, 1.0)]
Workers = Annotated[int, Range(0, 1024)]  # processes


def read_yaml(path: str | os.PathLike) -> dict:
    """A YAML file that holds one mapping."""
    with foreign_file(path, "cannot be read", limit=YAML_BYTES) as file:
        text = file.text()
    with refused_as(f"{path}: not valid YAML"):
        data = parse_yaml(text)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of options, got {type(data).__name__}")
    return data


def merge(base: Any, changes: Any) -> Any:
    """`changes` laid over `base`: mappings are merged key by key, everything else is replaced."""
    if isinstance(base, dict) and isinstance(changes, dict):
        return {**base, **{k: merge(base[k], v) if k in base else v for k, v in changes.items()}}
    return changes


def unknown_key(key: str, known, where: str) -> InputError:
    """The error for a key that does not exist, with the nearest one that does."""
    known = sorted(known)
    key = _name(key)
    hint = did_you_mean(key, known, cutoff=0.5) or f"known: {', '.join(known)}"
    return InputError(f"{where}: unknown key '{key}'; {hint}")


def _name(key: Any) -> str:
    """A key or name from a file, as a message shows it within quotation marks."""
    return key if isinstance(key, str) and len(key) < 80 else shown(key)


def apply_overrides(data: dict, overrides: typing.Sequence[str]) -> dict:
    """`a.b.c=value` lines laid over nested mappings; values are read as YAML. Items of lists are named by
    their `name`."""
    check_argument("overrides", overrides, (list, tuple), "a list of 'key=value'")
    for line in overrides:
        check_argument("overrides", line, str, "texts 'key=value' in the list")
        key, sign, text = line.partition("=")
        if not sign or not key.strip():
            raise InputError(f"override {shown(line)}: expected key=value, for example seed=1")
        with refused_as(f"override {shown(line)}: the value is not valid YAML"):
            value = parse_yaml(text)
        data = _set(data, key.strip().split("."), value, line)
    return data


def _set(data: Any, path: list[str], value: Any, line: str) -> Any:
    if isinstance(data, list):
        names = [str(item["name"]) for item in data if isinstance(item, dict) and item.get("name")]
        if path[0] not in names:
            raise unknown_key(path[0], names, f"override {shown(line)}")
        return [
            _set(item, path[1:], value, line)
            if isinstance(item, dict) and str(item.get("name")) == path[0]
            else item
            for item in data
        ]
    if data is None:
        data = {}
    if not isinstance(data, dict) or not path:
        raise InputError(f"override {shown(line)}: '{path[0] if path else line}' has no options of its own")
    key = path[0]
    return {**data, key: value if len(path) == 1 else _set(data.get(key), path[1:], value, line)}


@functools.cache
def option_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name, with their ranges (`Annotated`)."""
    return typing.get_type_hints(cls, include_extras=True)


def check_options(options: Any, where: str, joint: str = ": ") -> None:
    """Types and ranges of options that were made without `build`. Raises InputError; its message begins with
    `where`, `joint` and the key."""
    for key, kind in option_types(type(options)).items():
        value = getattr(options, key)
        if dataclasses.is_dataclass(value):
            check_options(value, f"{where}{joint}{key}", ".")
        else:
            _convert(kind, value, f"{where}{joint}{key}")


def build(cls: type[T], data: Any, where: str, joint: str = ": ") -> T:
    """Dataclass `cls` from a mapping; unknown keys, wrong types and numbers out of their `Range` are refused.
    `where` begins the message, then come `joint` and the key."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping, got {shown(data)}")
    hints = option_types(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise unknown_key(key, fields, where)
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: '{name}' is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}{joint}{key}") for key, value in data.items()})


def _convert(kind: Any, value: Any, where: str, expected: str = "") -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:  # what it is to be follows from another option
        return value
    if origin is Annotated:
        rule = kind.__metadata__[0]
        value = _convert(args[0], value, where, str(rule))
        if not rule.allows(value):
            raise InputError(
                f"{where}: expected {rule}, got {shown(list(value) if isinstance(value, tuple) else value)}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, where)
            except InputError as error:
                last = error
        raise last
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected {expected or 'a list'}, got {shown(value)}")
        if args[-1] is Ellipsis:
            args = args[:1] * len(value)
        elif len(args) != len(value):
            raise InputError(f"{where}: expected a list of {len(args)} items, got {shown(value)}")
        return tuple(
            _convert(a, v, f"{where}.{_name(v['name'])}" if isinstance(v, dict) and v.get("name") else where)
            for a, v in zip(args, value)
        )
    if origin is typing.Literal:
        if isinstance(value, bool):  # YAML reads yes and no as truth values
            value = {True: "yes", False: "no"}[value] if "yes" in args else value
        if value not in args:
            raise InputError(f"{where}: expected one of {', '.join(map(str, args))}; got {shown(value)}")
        return args[args.index(value)]  # 512, also where 512.0 is meant
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a mapping, got {shown(value)}")
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where, ".")
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError):  # a whole number can be too large
            number = math.nan
        if math.isfinite(number):
            return number
    if (kind in (int, bool, str) and type(value) is kind) or (kind is Path and isinstance(value, Path)):
        return value
    raise InputError(f"{where}: expected {expected or getattr(kind, '__name__', kind)}, got {shown(value)}")


def build_stages(
    cls: type[T], energies: typing.Callable[[str, str], type], stages: Any, where: str
) -> typing.Iterator[tuple[T, str]]:
    """The stages of a recipe, each a `cls` whose `energies` maps names to options of the class that
    `energies(name, where)` gives or refuses, and what a message about it begins with. An energy that is
    `false` is left out: switched off over an extended recipe or by an override; one that is `true` has its
    defaults.

    Raises:
        InputError: no list of mappings with energies, or an unknown energy; `where` begins the message.
    """
    if not isinstance(stages, list) or not stages:
        raise InputError(f"{where}: expected 'stages', a list with at least one stage")
    for number, stage in enumerate(stages):
        if not isinstance(stage, dict):
            raise InputError(f"{where}: stage {number + 1}: expected a mapping, got {shown(stage)}")
        label = f"{where}: stage '{_name(stage.get('name', number + 1))}'"
        chosen = stage.get("energies")
        if not isinstance(chosen, dict) or not chosen:
            raise InputError(f"{label}: expected 'energies', a mapping of energy names to options")
        classes = {name: energies(_name(name), f"{label}: energies") for name in chosen}
        terms = {
            name: build(
                classes[name], {} if options is True else options or {}, f"{label}: energies.{name}", "."
            )
            for name, options in chosen.items()
            if options is not False
        }
        if not terms:
            raise InputError(f"{label}: energies: all of them are false; expected at least one that is not")
        yield build(cls, {**stage, "energies": terms}, label), label


def to_plain(value: Any) -> Any:
    """The reverse of `build`: nested mappings and lists that YAML and JSON can write."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def plain(value: Any) -> Any:
    """Tensors, arrays, tuples, paths and numbers as what JSON and YAML know; NaN and infinity become None."""
    if isinstance(value, dict):
        return {readable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # a tensor or an array
        return plain(value.tolist())
    if isinstance(value, str):
        return readable(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return readable(str(value))
