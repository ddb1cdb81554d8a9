"""Pickles of plain values and arrays, read without running anything that they name.

A pickle is a program, and some of its instructions call what they name. Here a name stays a name: the
first pass (`_Machine`) turns the instructions into lists, dictionaries and `_Object`s, which say what would
have been called, and with what; the second one (`_Values`) makes arrays of those that are arrays. So arrays
that a class wraps (chumpy) are had without its package, and all else is refused.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTH = 64  # of lists and dictionaries in each other
VALUES = 1_000_000  # instructions, and values of what is asked for, repetitions counted
AXES = 64  # of an array, as numpy's
# What modules have been called -> what they are called here.
MOVED = {
    "numpy._core.": "numpy.core.",
    "scipy.sparse._": "scipy.sparse.",
    "__builtin__.": "builtins.",
    "copy_reg.": "copyreg.",
}
MADE = (
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "_codecs.encode",
    "builtins.bytes",
    "chumpy.ch.Ch",
    "chumpy.reordering.Select",
    *(f"scipy.sparse.{k}.{k}_{kind}" for k in ("csc", "csr") for kind in ("matrix", "array")),
)
# Found inside of those, or beside them in the files of face models: kept as names, not to be asked for.
NAMED = (
    "numpy.ndarray",
    "copyreg._reconstructor",
    "builtins.object",
    "builtins.set",
    "collections.OrderedDict",
)
NAMED_MODULES = ("chumpy.", "torch.")
KEPT = "plain values, numpy arrays, sparse matrices (csc, csr) and chumpy arrays"
ARRAY_TYPE = re.compile(r"[biufcO]\d{1,2}")


def unpickle(data: bytes, limit: int, names: tuple[str, ...] | None = None) -> Any:
    """What a pickle of any protocol holds, of Python 2 as well: None, numbers, text, bytes, lists, tuples,
    dictionaries and arrays. Sparse matrices come with their zeros; of arrays of objects the objects come as a
    list, or as they are where there is one without a shape.

    Args:
        limit: bytes of all arrays; names: of the entries of a dictionary that are wanted, the others are left
            out; None: all of whatever it is.
    Raises:
        ValueError: it holds anything else, more than the limits, or is damaged; names what.
    """
    try:
        content = _Machine(data).run()
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError("the pickle is damaged") from error
    values = _Values(limit)
    if names is None:
        return values.of(content)
    content = _only_object(content)
    if not isinstance(content, dict):
        raise ValueError("expected a pickled dictionary, got something else")
    return {name: values.of(content[name]) for name in names if name in content}


def _only_object(content: Any) -> Any:
    """What an array without a shape holds, as `numpy.save` writes a dictionary; anything else as it is."""
    if isinstance(content, _Object) and isinstance(content.state, tuple) and len(content.state) == 5:
        _, shape, _, _, objects = content.state
        if shape == () and isinstance(objects, list) and len(objects) == 1:
            return objects[0]
    return content


@dataclass(frozen=True)
class _Name:
    """Of a class or function, by its old module."""

    name: str


@dataclass(eq=False)
class _Object:
    """What a pickle says how to make: name(*args), then given its state."""

    name: str
    args: tuple = ()
    state: Any = None


def _named(module: Any, name: Any) -> _Name:
    """Refuse names of what is neither made nor kept as a name."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the pickle is damaged")
    full = f"{module}.{name}"
    for new, old in MOVED.items():
        if full.startswith(new):
            full = old + full[len(new) :]
    if full not in MADE and full not in NAMED and not full.startswith(NAMED_MODULES):
        raise ValueError(f"it holds {full[:100]!r}, read are {KEPT} only")
    return _Name(full)


class _Machine:
    """The instructions of a pickle, with names in the place of what they name.

    Source: the package pickletools of Python, which documents each of them.
    """

    def __init__(self, data: bytes):
        self.stream = io.BytesIO(data)
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(VALUES):
            code = self.stream.read(1).decode("latin-1")
            if code == STOP:
                return self.stack.pop()
            if code not in OPCODES:
                raise ValueError("it is no pickle" if code else "the pickle is cut off")
            self.step(OPCODES[code])
        raise ValueError(f"it has more than the {VALUES} instructions that are read")

    def step(self, op: pickletools.OpcodeInfo) -> None:
        argument = self.argument(op)
        if op.name in ("PROTO", "FRAME"):
            return
        if op.name in EMPTY:
            self.stack.append(EMPTY[op.name]())
        elif op.name in STEPS:
            STEPS[op.name](self, argument)
        elif op.name in CONSTANTS:
            self.stack.append(argument)
        else:
            raise ValueError(f"it holds the instruction {op.name}, read are {KEPT} only")

    def argument(self, op: pickletools.OpcodeInfo) -> Any:
        if op.arg is None:
            return None
        if op.name == "STRING":  # bytes of Python 2, written as in its source text
            text = pickletools.read_stringnl(self.stream, decode=False)
            return codecs.escape_decode(text)[0].decode("latin-1")
        try:
            return op.arg.reader(self.stream)
        except ValueError as error:
            if op.name not in WRITTEN:
                raise
            raise ValueError("the pickle is damaged, or it is none") from error

    def collect(self, make: Callable[[list[Any]], Any]) -> None:
        """Put what lies above the mark there as one value."""
        items = self.since_mark()
        self.stack.append(make(items))

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def put(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def put_tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickle is damaged")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        filled = self.stack[-1]
        if isinstance(filled, _Object):  # an OrderedDict, whose items nobody asks for
            return
        if not isinstance(filled, dict):
            raise ValueError("the pickle is damaged")
        filled.update(_pairs(items))

    def name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.stack.append(_named(module, name))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(module, name))

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: what would be called, or made, becomes an object with a name."""
        args, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, _Name) or not isinstance(args, tuple):
            raise ValueError("the pickle is damaged")
        if what.name == "copyreg._reconstructor":  # of Python 2: (class, object, None)
            what, args = args[0], ()
            if not isinstance(what, _Name):
                raise ValueError("the pickle is damaged")
        self.stack.append(_Object(what.name, args))

    def build(self, _: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _Object):
            raise ValueError("the pickle is damaged")
        built.state = state


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dictionary of keys and values by turns."""
    if len(items) % 2:
        raise ValueError("the pickle is damaged")
    for key in items[::2]:
        if not isinstance(key, (str, bytes, int, float)):  # the hash of others may never end
            raise ValueError(f"a key of a dictionary is a {type(key).__name__}, read are text and numbers")
    return dict(zip(items[::2], items[1::2]))


def _is_shape(value: Any) -> bool:
    sizes = isinstance(value, tuple) and len(value) <= AXES
    return sizes and all(isinstance(n, int) and 0 <= n < 2**63 for n in value)


STOP = "."
OPCODES = {op.code: op for op in pickletools.opcodes}
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: _Object("builtins.set"),
}
WRITTEN = ("INT", "LONG", "FLOAT", "GET", "PUT")  # with numbers in letters
CONSTANTS = (
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": lambda m, _: m.stack.pop() if m.stack else m.since_mark(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda m, _: m.collect(tuple),
    "TUPLE1": lambda m, _: m.put_tuple(1),
    "TUPLE2": lambda m, _: m.put_tuple(2),
    "TUPLE3": lambda m, _: m.put_tuple(3),
    "LIST": lambda m, _: m.collect(list),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "DICT": lambda m, _: m.collect(_pairs),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, _: m.since_mark(),
    "FROZENSET": lambda m, _: m.collect(lambda _: _Object("builtins.set")),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}


class _Values:
    """Makes values of what `_Machine` found. limit: bytes of all arrays."""

    def __init__(self, limit: int):
        self.limit, self.left, self.count = limit, limit, VALUES
        self.made: dict[int, Any] = {}  # by the id of the object

    def of(self, item: Any, depth: int = 0) -> Any:
        self.count -= 1
        if self.count < 0:
            raise ValueError(f"it has more than the {VALUES} values that are read, repetitions counted")
        if depth > DEPTH:
            raise ValueError(f"lists or dictionaries are nested deeper than {DEPTH}")
        if isinstance(item, dict):
            return {key: self.of(value, depth + 1) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(self.of(value, depth + 1) for value in item)
        if isinstance(item, _Name):
            raise ValueError(f"it holds {item.name[:100]!r}, read are {KEPT} only")
        if not isinstance(item, _Object):
            return item
        if id(item) not in self.made:
            self.made[id(item)] = self.object(item, depth + 1)
        return self.made[id(item)]

    def object(self, item: _Object, depth: int) -> Any:
        try:
            return self._object(item, depth)
        except (TypeError, IndexError, KeyError, AttributeError) as error:
            raise ValueError(f"{item.name}: its content is damaged") from error

    def _object(self, item: _Object, depth: int) -> Any:
        if item.name not in MADE:
            raise ValueError(f"it holds {item.name[:100]!r}, read are {KEPT} only")
        if item.name == "numpy.core.multiarray._reconstruct":
            _, shape, dtype, columns_first, content = item.state
            return self.array(content, dtype, shape, "F" if columns_first else "C", depth)
        if item.name == "numpy.core.numeric._frombuffer":
            content, dtype, shape, order = item.args
            return self.array(content, dtype, shape, order, depth)
        if item.name == "numpy.core.multiarray.scalar":
            dtype, content = item.args
            return self.array(content, dtype, (), "C", depth).item()
        if item.name == "builtins.bytes":
            return b""
        if item.name == "_codecs.encode":
            return self.raw(item.args[0])
        if item.name == "numpy.dtype":
            raise ValueError(f"it holds {item.name!r}, read are {KEPT} only")
        state = item.state
        if item.name == "chumpy.ch.Ch":
            return self.of(state["x"], depth)
        if item.name == "chumpy.reordering.Select":
            inner, chosen = self.of(state["a"], depth).ravel(), self.of(state["idxs"], depth)
            self.take(chosen.size * inner.itemsize)
            return inner[chosen].reshape(self.of(state.get("preferred_shape", (-1,)), depth))
        return self.sparse({key: self.of(value, depth) for key, value in state.items()}, "csc" in item.name)

    def array(self, content: Any, dtype: Any, shape: Any, order: str, depth: int) -> Any:
        kind = self.array_type(dtype)
        if not _is_shape(shape):
            raise ValueError("an array has no shape")
        if kind.kind == "O":
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError(f"an array has other objects than its shape {shape} says")
            items = self.of(content, depth)
            return items if shape else items[0]
        data = self.raw(content)
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of {kind} with {len(data)} bytes does not fill its shape {shape}")
        made = np.frombuffer(data, kind).reshape(shape, order=order)
        return made.astype(kind.newbyteorder("="))

    def array_type(self, dtype: Any) -> np.dtype:
        code = dtype.args[0] if isinstance(dtype, _Object) and dtype.name == "numpy.dtype" else None
        if not isinstance(code, str) or not ARRAY_TYPE.fullmatch(code):
            kind = code[:40] if isinstance(code, str) else type(code).__name__
            raise ValueError(f"an array holds {kind!r}, read are numbers and objects")
        order = dtype.state[1] if dtype.state else "="
        return np.dtype("O") if code[0] == "O" else np.dtype(code).newbyteorder(order)

    def raw(self, content: Any) -> bytes:
        """Bytes as Python 3 or 2 pickle them."""
        if isinstance(content, _Object) and content.name == "_codecs.encode":
            content = content.args[0]
        if isinstance(content, _Object) and content.name == "builtins.bytes":
            content = b""
        if not isinstance(content, (str, bytes, bytearray)):
            raise ValueError("an array has no bytes")
        self.take(len(content))
        return content.encode("latin-1") if isinstance(content, str) else bytes(content)

    def sparse(self, state: dict[str, Any], by_column: bool) -> np.ndarray:
        """The array of a matrix in compressed columns or rows, its zeros filled in."""
        shape = state["_shape"] if "_shape" in state else state["shape"]
        data, index, start = state["data"], state["indices"], state["indptr"]
        if not _is_shape(shape) or len(shape) != 2:
            raise ValueError("a sparse matrix has no shape of two sizes")
        lines, places = reversed(shape) if by_column else shape
        count = np.diff(start.astype(np.int64))
        sizes = len(start) == lines + 1 and len(data) == len(index) == start[-1]
        if not sizes or start[0] != 0 or count.min(initial=0) < 0:
            raise ValueError("the parts of a sparse matrix do not fit together")
        if len(index) and not 0 <= index.min() <= index.max() < places:
            raise ValueError(f"a sparse matrix has entries outside of its shape {shape}")
        self.take(lines * places * data.dtype.itemsize)
        dense = np.zeros((lines, places), data.dtype)
        np.add.at(dense, (np.repeat(np.arange(lines), count), index), data)
        return dense.T if by_column else dense

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"its arrays have more than the {self.limit / 2**20:.3g} MB that are read")
