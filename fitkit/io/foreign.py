"""The one door for files that somebody else made.

    with foreign_file(path, "not a readable landmark file", "expected 68 points", limit=MEGABYTE) as file:
        content = file.json()

Only regular files are opened, so that no pipe blocks; a file may be no larger than the limit, and nothing in
it may ask for more than the constants below, whatever it declares. What a parser, or anything else in the
block, raises becomes one sentence.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import re
import reprlib
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from fitkit.errors import FitkitError, InputError

if TYPE_CHECKING:  # recipes are listed without loading numpy, which the functions below import themselves
    import numpy as np

MEGABYTE = 2**20
TEXT_BYTES = 32 * MEGABYTE  # of a text, unpacked: what a parser makes of it is up to fifty times as large
YAML_BYTES = MEGABYTE // 4  # its parser takes 10 s for a megabyte
DATA_BYTES = 4096 * MEGABYTE  # of a file of weights or pixels
ARRAY_BYTES = 384 * MEGABYTE  # of all arrays that are read from one file
MEMBERS, TENSOR_MEMBERS = 1000, 100_000  # of an archive of arrays, of one of torch
NPY = b"\x93NUMPY"  # how a .npy file begins
DEPTH = 64  # of lists and mappings in each other
NODES = 100_000  # of a YAML document, repetitions counted
DIGITS = 40  # of a whole number
STRING = 20_000  # characters of a text in JSON or YAML
REASON = 300  # characters of a reason in a message
COLOR = 1  # cv2.IMREAD_COLOR
KIND_WORDS = {
    "if": "numbers",
    "iu": "whole numbers",
    "U": "text",
    "b": "true or false",
    "biu": "true or false",
}


@contextmanager
def refused_as(
    sentence: str, remedy: str = "", error: Callable[[str], Exception] = InputError
) -> Iterator[None]:
    """Whatever the block raises becomes `error` with 'SENTENCE (reason); REMEDY'; fitkit's own errors
    pass."""
    try:
        yield
    except FitkitError:
        raise
    except Exception as problem:  # parsers raise whatever comes up on bad bytes
        raise error(f"{sentence} ({_reason(problem)})" + (f"; {remedy}" if remedy else "")) from problem


@contextmanager
def foreign_file(
    path: str | os.PathLike,
    what: str,
    remedy: str = "",
    error: Callable[[str], FitkitError] = InputError,
    limit: int = TEXT_BYTES,
    where: str = "",
) -> Iterator[ForeignFile]:
    """A file that somebody else made, open while the block runs.

    Args:
        what, remedy: of the message for anything that goes wrong in the block, 'PATH: WHAT (reason); REMEDY';
            where: what it begins with instead of the path and a colon.
        error: the kind of error, or what makes one of the message.
        limit: bytes of the file, and of what a packed text may come to.
    """
    with refused_as(f"{where or f'{path}:'} {what}", remedy, error), open_regular(path) as stream:
        yield ForeignFile(Path(path), stream, limit)


class IrregularFileError(OSError):
    """What was to be read is no regular file."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file to read, without waiting for a pipe; raises OSError, IrregularFileError where it is no regular
    file."""
    # Without O_NONBLOCK a pipe that nobody writes to would hold us for ever.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    handle = os.open(path, flags)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, no regular file"
        raise IrregularFileError(f"it is {kind}")
    return os.fdopen(handle, "rb")


class ForeignFile:
    """An open file. Each method reads all of it, in one format; they raise whatever comes up, of which
    `foreign_file` makes a sentence.

    path: of the file; stream: its bytes, to seek and read; size: their number.
    """

    def __init__(self, path: Path, stream: BinaryIO, limit: int):
        self.path, self.stream, self.limit = path, stream, limit
        self.size = os.fstat(stream.fileno()).st_size
        if self.size > limit:
            raise ValueError(
                f"it has {_megabytes(self.size)}, more than the {_megabytes(limit)} that are read"
            )

    def bytes(self) -> bytes:
        """All of it; of a .gz file what is packed in it."""
        self.stream.seek(0)
        if self.path.suffix.lower() != ".gz":
            return self.stream.read(self.size)
        parts, left = [], self.limit
        with gzip.GzipFile(fileobj=self.stream) as packed:
            while part := packed.read(MEGABYTE):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise ValueError(f"unpacked it has more than the {_megabytes(self.limit)} that are read")
        return b"".join(parts)

    def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """encoding: None for Unicode, UTF-8 or what the first bytes say (Windows writes UTF-16)."""
        data = self.bytes()
        return data.decode(encoding or json.detect_encoding(data), errors)

    def json(self) -> Any:
        return parse_json(self.bytes())

    def table(self, columns: Sequence[int] | None = None) -> np.ndarray:
        """Lines of numbers -> [N, columns] float64; '#' begins a comment, empty files give [0, ...]."""
        import numpy as np

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is no line
            return np.loadtxt(self.text().splitlines(), ndmin=2, usecols=columns)

    def npy(self) -> np.ndarray:
        import numpy as np

        def again():
            self.stream.seek(0)
            return self.stream

        _check_header(again(), self.size, "the array")
        return _native(np.lib.format.read_array(again(), allow_pickle=False))

    def npz(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the named arrays that are there; the archive's other members are not unpacked."""
        return self._members(names, pickled=False)

    def pickled(self, names: Sequence[str]) -> dict[str, Any]:
        """The named entries that are there, of a dictionary in a .pkl file, in a .npy file (an array without
        a shape that holds it), or of a .npz file whose members may be pickled: see `unpickle`, which runs
        nothing of it."""
        from fitkit.io.pickles import unpickle

        if zipfile.is_zipfile(self.stream):
            return self._members(names, pickled=True)
        data = self.bytes()
        if data.startswith(NPY):
            stream = io.BytesIO(data)
            _check_header(stream, self.size, "the array", pickled=True)
            data = stream.read()
        return unpickle(data, ARRAY_BYTES, tuple(names))

    def _members(self, names: Sequence[str], pickled: bool) -> dict[str, Any]:
        import numpy as np

        from fitkit.io.pickles import unpickle

        out, left = {}, ARRAY_BYTES
        self._check_directory(MEMBERS)
        with zipfile.ZipFile(self.stream) as archive:
            there = set(archive.namelist())
            for name in names:
                if f"{name}.npy" not in there:
                    if name in there:
                        raise ValueError(f"{name}: expected an array")
                    continue
                member = archive.getinfo(f"{name}.npy")
                with archive.open(member) as stream:
                    kind = _check_header(stream, member.file_size, name, left, pickled)
                    if kind == "O":
                        if member.file_size > left:
                            raise ValueError(f"{name} has more than the {_megabytes(left)} that are read")
                        out[name] = unpickle(stream.read(), left)
                        left -= member.file_size
                        continue
                with (
                    archive.open(member) as stream,
                    refused_as(f"{name} cannot be unpacked", error=ValueError),
                ):
                    out[name] = _native(np.lib.format.read_array(stream, allow_pickle=False))
                left -= out[name].nbytes
        return out

    def _check_directory(self, members: int) -> None:
        """Refuse an archive with a long directory, all of which the package zipfile would make objects of."""
        self.stream.seek(max(0, self.size - 2**16 - 98))
        tail = self.stream.read()
        at = tail.rfind(b"PK\5\6")  # the end record: number of members and bytes of the directory
        if at < 0 or len(tail) < at + 22:
            return  # no archive, as zipfile will say
        count, length = struct.unpack_from("<HI", tail, at + 10)
        if tail[max(0, at - 76) : at - 72] == b"PK\6\6":  # the numbers of 64 bits, before it
            count, length = struct.unpack_from("<QQ", tail, at - 44)
        if max(count, length // 1000) > members:
            raise ValueError(f"the archive has more than the {members} members that are read")

    def mat(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the named arrays of real numbers in a Matlab file (version 5 to 7) that are there; its
        other variables are not unpacked.

        Read here and not by scipy, whose native reader dies of a type that it does not know.
        """
        data = self.bytes()
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None or struct.unpack_from(order + "H", data, 124)[0] != 0x100:
            raise ValueError("no Matlab file of version 5 to 7")
        out, left = {}, ARRAY_BYTES
        for kind, content in _mat_elements(data[128:], order):
            packed = kind == 15
            head = (
                zlib.decompressobj().decompress(content, 1024)[8:]
                if packed
                else content
                if kind == 14
                else b""
            )
            parts = [part for _, part in zip(range(3), _mat_elements(head, order))]
            name = parts[2][1].decode() if len(parts) == 3 else ""
            if name not in names:
                continue
            if packed:
                content = zlib.decompressobj().decompress(content, left + 9)[8:]
            left -= len(content)
            if left < 0:
                raise ValueError(f"unpacked it has more than the {_megabytes(ARRAY_BYTES)} that are read")
            out[name] = _mat_array(content, order, name)
        return out

    def hdf5(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the named arrays of numbers in an HDF5 file that are there, names with '/'; a single text
        becomes its bytes [N] uint8.

        Refused: links and arrays that lead to other files, and all kinds of values but numbers and text.

        Raises:
            InputError: the package h5py is not installed.
        """
        try:
            import h5py
        except ImportError as error:
            raise InputError(
                f"{self.path}: HDF5 files need the package h5py; install it with pip install 'fitkit[hdf5]'"
            ) from error
        out, left = {}, ARRAY_BYTES
        with h5py.File(self.stream, "r") as file:
            for name in names:
                item = _hdf5_item(file, name)
                if item is None:
                    continue
                out[name] = _hdf5_array(item, name, left)
                left -= out[name].nbytes
        return out

    def metadata(self) -> dict[str, str]:
        """The texts beside the tensors of a .safetensors file."""
        from safetensors import safe_open

        with safe_open(os.fspath(self.path), "pt") as file:
            return file.metadata() or {}

    def tensors(self) -> dict[str, Any]:
        """The tensors of a .safetensors file, on the CPU."""
        from safetensors.torch import load_file

        return load_file(os.fspath(self.path))

    def torch(self) -> Any:
        """Content of a file of torch.save, on the CPU; nothing in it is run."""
        import torch

        if zipfile.is_zipfile(self.stream):
            self._check_directory(TENSOR_MEMBERS)
            with zipfile.ZipFile(self.stream) as archive:
                members = archive.infolist()
            stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
            if not stored or sum(m.file_size for m in members) > self.size:
                raise ValueError("its members are packed, which torch.save never does")
        self.stream.seek(0)
        try:
            return torch.load(self.stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own words advise to run what is in the file
            raise ValueError(
                "it is damaged, or holds more than tensors, numbers and texts, which is not loaded"
            ) from error

    def picture(self, flags: int = COLOR) -> np.ndarray | None:
        """As `decode_picture`."""
        return decode_picture(self.bytes(), flags)


def decode_picture(data: bytes, flags: int = COLOR) -> np.ndarray | None:
    """A picture as OpenCV decodes it, BGR; None: it is none. Raises Pillow's DecompressionBombError for an
    absurd size."""
    import cv2
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        Image.open(io.BytesIO(data)).close()  # reads the size only
    except UnidentifiedImageError:
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def parse_json(data: bytes) -> Any:
    """A JSON document; raises whatever comes up, so call it in `refused_as`. Refused: what is nested deeper
    than DEPTH, whole numbers and texts that are too long."""
    text = data.decode(json.detect_encoding(data))
    data = text.encode()
    _check_json(data)
    value = json.loads(text, parse_int=_whole)
    if b"\\ud" in data.lower():
        # Half a pair of surrogates could not be written anywhere.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_yaml(text: str) -> Any:
    """A YAML document as plain Python values; raises whatever comes up, so call it in `refused_as`.

    Refused: what is nested deeper than DEPTH, or has more than NODES values when each repetition of an anchor
    is counted, and whole numbers and texts that are too long.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has more than the {YAML_BYTES // 1024} kB that are read")
    return yaml.load(text, _Yaml)  # a SafeLoader


class _Yaml(yaml.SafeLoader):
    def __init__(self, stream):
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > DEPTH:
            raise ValueError(f"lists or mappings are nested deeper than {DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node, counts: dict) -> int:
        """Values below a node, those of a repeated one each time. What is being counted has None in
        `counts`."""
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > STRING:
                raise ValueError(
                    f"a text has {len(node.value)} characters, more than the {STRING} that are read"
                )
            node.value.encode()  # half a pair of surrogates could not be written anywhere
            return 1
        if node not in counts:
            counts[node] = None
            inner = (
                node.value
                if isinstance(node, yaml.SequenceNode)
                else [n for pair in node.value for n in pair]
            )
            counts[node] = 1 + sum(self._count(part, counts) for part in inner)
        if counts[node] is None:
            raise ValueError("an anchor is used inside of itself")
        if counts[node] > NODES:
            raise ValueError(f"with its anchors repeated it has more than the {NODES} values that are read")
        return counts[node]

    def construct_yaml_int(self, node):
        _check_digits(node.value)
        return super().construct_yaml_int(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.construct_yaml_int)


def readable(text: str) -> str:
    """A file name as text that can be written: bytes of it that are not UTF-8 are read as Latin-1 (archives
    of Windows)."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("latin-1")
    except UnicodeEncodeError:  # not from a file name
        return text.encode("utf-8", "replace").decode("utf-8")


def shown(value: Any) -> str:
    """A value from a file as a message shows it: its repr, cut short."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxset = 2, 6, 6, 6, 6
_REPR.maxstring, _REPR.maxother, _REPR.maxlong = 80, 80, 60


def inside(root: Path, name: str) -> Path:
    """The path that a file names, below `root`.

    Raises:
        InputError: an absolute name, or one with '..'.
    """
    parts = re.split(r"[/\\]", name)
    if (
        not name
        or "\0" in name
        or ".." in parts
        or Path(name).anchor
        or name[0] in "/\\"
        or max(map(len, parts)) > 255
    ):
        raise InputError(f"{shown(name)}: expected the name of something below {root}, without '..'")
    return root / name


def check_shapes(
    arrays: dict[str, np.ndarray], shapes: dict[str, tuple], kinds: dict[str, str], path: str | os.PathLike
) -> dict[str, int]:
    """Refuse arrays of a file that are not what `shapes` says.

    Args:
        shapes: key -> shape, names in it stand for sizes that must agree; kinds: key -> letters of numpy's
            dtype.kind, numbers where none is given.
    Returns: the sizes by name.
    """
    sizes: dict[str, int] = {}
    for key, shape in shapes.items():
        got = arrays[key].shape
        wanted = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in shape)
        if len(got) != len(shape) or any(isinstance(w, int) and w != g for w, g in zip(wanted, got)):
            raise InputError(f"{path}: {key}: expected shape {list(wanted)}, got {list(got)}")
        sizes.update((n, g) for n, g in zip(shape, got) if isinstance(n, str))
        kind = kinds.get(key, "if")
        if arrays[key].dtype.kind not in kind:
            raise InputError(f"{path}: {key}: expected {KIND_WORDS[kind]}, got {arrays[key].dtype}")
    return sizes


def check_indices(array: np.ndarray, count: int, where: str, shape: str = "") -> None:
    """Refuse indices that are not in 0..count - 1, or none at all; `where` names file and array, `shape` the
    shape it should have."""
    if not array.size or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= count:
        got = f"{array.min()} to {array.max()}" if array.size else "none"
        raise InputError(f"{where}: expected {shape}indices in 0..{count - 1}, got {got}")


def _check_json(data: bytes) -> None:
    """Refuse what is nested too deep, and texts that are too long."""
    import numpy as np

    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord('"')) if len(data) > STRING else ()
    if _json_depth(data) > DEPTH or (len(quotes) and np.diff(quotes, append=len(data)).max() > STRING):
        texts = re.findall(_JSON_TEXT, data)  # their brackets were counted, and the stretches between them
        if _json_depth(re.sub(_JSON_TEXT, b"", data)) > DEPTH:
            raise ValueError(f"lists or objects are nested deeper than {DEPTH}")
        if max(map(len, texts), default=0) > STRING:
            raise ValueError(
                f"a text has {max(map(len, texts))} characters, more than the {STRING} that are read"
            )


_JSON_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _json_depth(data: bytes) -> int:
    import numpy as np

    brackets = np.frombuffer(data.translate(None, _NO_BRACKETS), np.int8)
    steps = (brackets & 2) - 1  # this bit tells those that open, 1, from those that close, -1
    return int(steps.cumsum(dtype=np.int64).max(initial=0))


def _whole(text: str) -> int:
    _check_digits(text)
    return int(text)


def _check_digits(text: str) -> None:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits, more than the {DIGITS} that are read")


def _check_header(
    stream: BinaryIO, available: int, name: str, limit: int = ARRAY_BYTES, pickled: bool = False
) -> str:
    """Refuse an array that declares more than there is, or that holds anything but numbers and text, or
    pickled objects where they are read; the kind of what it holds, as numpy's `dtype.kind`."""
    import numpy as np

    try:
        major = np.lib.format.read_magic(stream)[0]
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
    except Exception as error:  # tokenizer and parser raise many kinds, with words for programmers
        raise ValueError(f"{name}: the header cannot be read") from error
    if pickled and dtype.kind == "O":
        return "O"
    if dtype.kind not in "biufcSU":
        raise ValueError(f"{name}: expected numbers or text, got {dtype}")
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted > available:
        raise ValueError(f"{name}: the header states {_megabytes(wanted)}, more than the file holds")
    if wanted > limit:
        raise ValueError(
            f"{name}: the header states {_megabytes(wanted)}, with it the arrays have more than the "
            f"{_megabytes(ARRAY_BYTES)} that are read"
        )
    return dtype.kind


def _native(array: np.ndarray) -> np.ndarray:
    """The same in this machine's byte order, which torch wants. Refuses text of characters that Python cannot
    make or write."""
    import numpy as np

    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "U" and array.nbytes:
        codes = np.frombuffer(array.tobytes(), np.uint32)
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise ValueError("its text has characters that do not exist")
    return array


# Numbers of a Matlab file: as they are written, and as they are meant.
MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MAT_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def _mat_elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements of a Matlab file one after the other. Source: MathWorks, "MAT-File
    Format"."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, at)
        start, after = at + 8, at + 8 + length
        if kind >> 16:  # a small one: type and length in the first four bytes, the content in the others
            kind, length = kind & 0xFFFF, kind >> 16
            start, after = at + 4, at + 8
        elif kind != 15:
            after += -length % 8
        if start + length > len(data) or length > after - start:
            raise ValueError("it is cut off")
        yield kind, data[start : start + length]
        at = after


def _mat_array(content: bytes, order: str, name: str) -> np.ndarray:
    """The array of an element of type 14."""
    import numpy as np

    parts = list(_mat_elements(content, order))
    flags, shape = (
        np.frombuffer(parts[0][1], order + "u4")[0],
        np.frombuffer(parts[1][1], order + "i4").tolist(),
    )
    if flags & 0xFF not in MAT_CLASSES or flags & 0x800 or len(parts) != 4 or parts[3][0] not in MAT_TYPES:
        raise ValueError(f"{name}: expected real numbers")
    values = np.frombuffer(parts[3][1], order + MAT_TYPES[parts[3][0]])
    if min(shape, default=-1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{name}: {len(values)} numbers do not fill the shape {shape}")
    return values.astype(MAT_CLASSES[flags & 0xFF]).reshape(shape, order="F")


def _hdf5_item(group: Any, name: str) -> Any:
    """What the file itself has of this name, or None."""
    import h5py

    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if type(link) is not h5py.HardLink:
            raise ValueError(f"{name}: it is a link to another place, and these are not followed")
        group = group[part]
    return group


def _hdf5_array(item: Any, name: str, limit: int) -> np.ndarray:
    import h5py
    import numpy as np

    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError(f"{name}: expected an array")
    if item.is_virtual or item.external:
        raise ValueError(f"{name}: its numbers are in another file, and these are not read")
    text = h5py.check_string_dtype(item.dtype)
    if (text is None and item.dtype.kind not in "biuf") or (text is not None and item.size != 1):
        raise ValueError(f"{name}: expected numbers or one text, got {item.size} values of {item.dtype}")
    wanted = item.size * item.dtype.itemsize
    if wanted > limit:
        raise ValueError(
            f"{name}: the header states {_megabytes(wanted)}, with it the arrays have more than the "
            f"{_megabytes(ARRAY_BYTES)} that are read"
        )
    if text is None:
        return _native(np.asarray(item[()]))
    value = np.asarray(item[()]).reshape(-1)[0]
    return np.frombuffer(value.encode() if isinstance(value, str) else bytes(value), np.uint8)


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.3g} MB" if count < 10**15 else "more than 1e9 MB"


def _reason(problem: Exception) -> str:
    """An exception of a parser as a part of a sentence."""
    if isinstance(problem, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(problem, RecursionError):
        return "it is nested too deep"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    if isinstance(problem, KeyError) and problem.args:
        return f"no entry {shown(problem.args[0])}"
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= REASON else text[:REASON] + " ..."
