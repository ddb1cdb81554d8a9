"""Options as YAML, each with the comment that it has in its dataclass."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

import yaml

from fitkit.io.options import plain, to_plain

COLUMNS = 110  # a comment that would go beyond stands above its line


@functools.cache
def field_comments(kind: type) -> dict[str, str]:
    """What the fields of a dataclass and of its bases mean: the comment behind a field, else the lines of
    comment right above it. Fields without one are left out."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def _own_comments(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # made where no file is, as in a notebook
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        said, above = [], comments.get(node.lineno - 1)
        while above and above.line.lstrip().startswith("#"):
            said.insert(0, above)
            above = comments.get(above.start[0] - 1)
        if node.end_lineno in comments:
            said = [comments[node.end_lineno]]
        if said:
            found[node.target.id] = " ".join(t.string.lstrip("# ") for t in said)
    return found


def explained_yaml(options: Any) -> str:
    """A dataclass of options, with those inside it, as YAML with a comment for each option that has one."""
    text = yaml.safe_dump(plain(to_plain(options)), sort_keys=False, allow_unicode=True)
    said = dict(_comments(yaml.compose(text), options))
    lines = []
    for number, line in enumerate(text.splitlines()):
        comment = said.get(number, "")
        if not comment or len(line) + len(comment) + 4 <= COLUMNS:
            lines.append(f"{line}  # {comment}" if comment else line)
        else:
            indent = " " * (len(line) - len(line.lstrip(" ")))
            lines += [f"{indent}# {part}" for part in textwrap.wrap(comment, COLUMNS - len(indent) - 2)]
            lines.append(line)
    return "\n".join(lines) + "\n"


def _comments(node: yaml.Node, value: Any) -> Iterator[tuple[int, str]]:
    """(line, comment) for each option of `value` that has one, counted from 0; node: `value` as YAML."""
    if isinstance(node, yaml.SequenceNode) and isinstance(value, (list, tuple)):
        for child, item in zip(node.value, value):
            yield from _comments(child, item)
    if not isinstance(node, yaml.MappingNode):
        return
    kind: Any = type(value)
    meaning = field_comments(kind) if dataclasses.is_dataclass(value) else {}
    for key, child in node.value:
        inside = value[key.value] if isinstance(value, dict) else getattr(value, key.value)
        one_line = key.start_mark.line == child.end_mark.line or not isinstance(child, yaml.ScalarNode)
        if key.value in meaning and one_line:
            yield key.start_mark.line, meaning[key.value]
        yield from _comments(child, inside)
