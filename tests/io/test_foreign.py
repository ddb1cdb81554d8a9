import gzip
import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import save_file

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io import foreign
from fitkit.io.foreign import MEGABYTE, check_indices, foreign_file, inside, parse_yaml, refused_as, shown


def read(path, method, *args, **options):
    with foreign_file(path, "not readable", "mend it", **options) as file:
        return getattr(file, method)(*args)


def refused(path, message, method="bytes", *args, **options):
    with pytest.raises(InputError, match=message) as caught:
        read(path, method, *args, **options)
    assert str(caught.value).startswith(f"{path}: not readable (") and str(caught.value).endswith(
        "); mend it"
    )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.timeout(10)
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for somebody who writes
    refused(tmp_path / "pipe", r"it is a pipe or a device, no regular file")
    refused("/dev/zero", "it is a pipe or a device")
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "none", "No such file or directory")
    refused(tmp_path / ("x" * 300), "File name too long")
    refused("a\0b", "embedded null byte")


def test_what_a_block_raises_becomes_one_sentence(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    for error, reason in (
        (KeyError("k"), "no entry 'k'"),
        (MemoryError(), "it asks for more memory than there is"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (RecursionError("maximum recursion"), "it is nested too deep"),
        (ValueError("two\nlines " + "x" * 5000), "two lines x+ [.]{3}"),
    ):
        with (
            pytest.raises(MissingWeightsError, match=rf"^net: not readable \({reason}\)$") as caught,
            foreign_file(tmp_path / "a", "not readable", error=MissingWeightsError, where="net:"),
        ):
            raise error
        assert caught.value.__cause__ is error
    with pytest.raises(InputError, match="^as it is$"), foreign_file(tmp_path / "a", "not readable"):
        raise InputError("as it is")
    with pytest.raises(KeyboardInterrupt), refused_as("x"):
        raise KeyboardInterrupt


def test_sizes_are_limited(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    assert len(read(tmp_path / "a.txt", "bytes", limit=1000)) == 1000
    refused(tmp_path / "a.txt", r"it has 0.000954 MB, more than the 0.000953 MB that are read", limit=999)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(40 * MEGABYTE)))
    refused(tmp_path / "bomb.gz", "unpacked it has more than the 32 MB that are read", "text")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text"))
    assert read(tmp_path / "a.gz", "text") == "text"


@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 5000, "lists or objects are nested deeper than 64"),
        ('{"a": ' * 5000, "nested deeper than 64"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("1" + "0" * 400, "a whole number has 401 digits, more than the 40 that are read"),
        (json.dumps(["x" * 30_000]), "a text has 30002 characters, more than the 20000"),
        ("{", "Expecting property name"),
        ("\xff", "codec can't decode"),
    ],
)
def test_json(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    refused(tmp_path / "a.json", message, "json")


def test_json_that_only_looks_deep_or_long(tmp_path):
    deep = [[]]
    for _ in range(60):
        deep = [deep]
    good = {
        "brackets": "[" * 500 + '"\\',
        "numbers": [0.5] * 20_000,
        "nan": None,
        "deep": deep,
        "whole": 10**39,
    }
    (tmp_path / "a.json").write_text(json.dumps(good), encoding="utf-8-sig")
    assert read(tmp_path / "a.json", "json") == good


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGED = "a0: &a0 {k: x}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text, message",
    [
        (LAUGHS, "with its anchors repeated it has more than the 100000 values"),
        (MERGED, "with its anchors repeated it has more than"),
        ("a: &a [*a]", "an anchor is used inside of itself"),
        ("[" * 3000, "nested deeper than 64"),
        ("a: " + "x" * 30_000, "a text has 30000 characters"),
        ("x" * 300_000, "it has more than the 256 kB"),
        ("a: " + "9" * 5000, "a whole number has 5000 digits"),
        ("a: 0x" + "f" * 100, "a whole number has 102 digits"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: 0x_", "invalid literal"),
        ("a: !!int x", "invalid literal"),
        ("a: !!float ''", "index out of range"),
        ("a: !!bool x", "no entry 'x'"),
        ('a: "\\UFFFFFFFF"', "too large"),
        ("a: 2001-12-14t21:59:43.10-48:00", "offset must be"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: {", "expected the node content"),
    ],
)
def test_yaml(text, message):
    with pytest.raises(InputError, match=message), refused_as("a.yaml"):
        parse_yaml(text)


def test_yaml_with_anchors_as_recipes_have_them():
    assert parse_yaml("a: &a {k: 1, l: [2]}\nb: {<<: *a, k: 3}\nc: *a") == {
        "a": {"k": 1, "l": [2]},
        "b": {"k": 3, "l": [2]},
        "c": {"k": 1, "l": [2]},
    }


def with_header(shape, data=bytes(8), descr="<f8"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


@pytest.mark.parametrize(
    "content, message",
    [
        (with_header("(1000000000000,)"), r"the header states 7.63e\+06 MB, more than the file holds"),
        (with_header("(10**30,)"), "the header cannot be read"),
        (with_header("(-1,)"), "more than the file holds"),
        (with_header(f"({10**30},)"), "states more than 1e9 MB"),
        (with_header("(2"), "the header cannot be read"),
        (with_header("()", descr="|O"), "expected numbers or text, got object"),
        (with_header("(2,)", bytes(8)), "Failed to read all data"),
        (b"", "the header cannot be read"),
        (b"PK\3\4", "the header cannot be read"),
    ],
)
def test_npy(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", message, "npy")


def test_arrays_come_in_the_byte_order_of_the_machine(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=">f4"))
    np.savez(tmp_path / "a.npz", a=np.arange(3, dtype=">i8"), b=np.array(["x"]))
    assert read(tmp_path / "a.npy", "npy").dtype == np.dtype("=f4")
    arrays = read(tmp_path / "a.npz", "npz", ("a", "b", "c"))
    assert torch.from_numpy(arrays["a"]).tolist() == [0, 1, 2] and arrays.keys() == {"a", "b"}


@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF, 0xD800])
def test_text_of_characters_that_do_not_exist(tmp_path, code):
    text = np.array([code, ord("a")], np.uint32).view("<U2")
    (tmp_path / "a.npy").write_bytes(with_header("(1,)", text.tobytes(), "<U2"))
    refused(tmp_path / "a.npy", "its text has characters that do not exist", "npy")
    np.savez(tmp_path / "a.npz", a=np.array(["é", "", "\U0010ffff"]), b=text)
    assert read(tmp_path / "a.npz", "npz", ("a",))["a"].tolist() == ["é", "", "\U0010ffff"]
    refused(
        tmp_path / "a.npz", "b cannot be unpacked .its text has characters that do not exist", "npz", ("b",)
    )


def test_half_a_pair_of_surrogates(tmp_path):
    (tmp_path / "a.json").write_text(r'{"a": "\uD83D\uDE00"}')
    assert read(tmp_path / "a.json", "json") == {"a": "\U0001f600"}
    (tmp_path / "a.json").write_text(r'{"a": "\ud83d"}')
    refused(tmp_path / "a.json", "surrogates not allowed", "json")
    with pytest.raises(InputError, match="surrogates not allowed"), refused_as("a.yaml"):
        parse_yaml('a: "\\ud83d"')


def bomb(path, name, size):
    """An archive whose member `name` unpacks to `size` MB of zeros, beside a good member 'a'."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        file = io.BytesIO()
        np.save(file, np.ones(3))
        archive.writestr("a.npy", file.getvalue())
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            member.write(with_header(f"({size * MEGABYTE},)", b"", "|u1"))
            for _ in range(size):
                member.write(bytes(MEGABYTE))


def test_members_that_nobody_asked_for_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "ARRAY_BYTES", 4 * MEGABYTE)
    bomb(tmp_path / "b.npz", "b", 8)
    assert read(tmp_path / "b.npz", "npz", ("a",))["a"].tolist() == [1, 1, 1]
    refused(
        tmp_path / "b.npz",
        "b: the header states 8 MB, with it the arrays have more than the 4 MB that are read",
        "npz",
        ("a", "b"),
    )


def test_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(1001):
            archive.writestr(f"{i}.npy", b"")
    refused(tmp_path / "many.npz", "the archive has more than the 1000 members that are read", "npz", ("a",))
    np.savez(tmp_path / "a.npz", a=np.ones(10_000))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:-30])
    refused(tmp_path / "cut.npz", "File is not a zip file", "npz", ("a",))
    at = data.index(b"\x93NUMPY") + 20_000
    (tmp_path / "sum.npz").write_bytes(data[:at] + b"x" + data[at + 1 :])
    refused(tmp_path / "sum.npz", "a cannot be unpacked .Bad CRC-32", "npz", ("a",))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("a", b"x")
    refused(tmp_path / "raw.npz", "a: expected an array", "npz", ("a",))


def test_mat_files_as_scipy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 68)),
        "bb": np.arange(12, dtype=np.int32).reshape(3, 4),
        "long_name_of_it": rng.integers(0, 9, (2, 3, 4)).astype(np.uint8),
        "c": np.float32(3),
        "none": np.zeros((0, 3)),
        "text": "hello",
        "complex": np.array([1j]),
    }
    for packed in (False, True):
        scipy.io.savemat(tmp_path / "a.mat", arrays, do_compression=packed)
        wanted = scipy.io.loadmat(tmp_path / "a.mat")
        got = read(tmp_path / "a.mat", "mat", ("a", "bb", "c", "long_name_of_it", "none", "missing"))
        assert got.keys() == {"a", "bb", "c", "long_name_of_it", "none"}
        for key, value in got.items():
            assert value.dtype == wanted[key].dtype and np.array_equal(value, wanted[key])
        for key in ("text", "complex"):
            refused(tmp_path / "a.mat", f"{key}: expected real numbers", "mat", (key,))
    with pytest.raises(InputError, match="no Matlab file of version 5 to 7"):
        (tmp_path / "b.mat").write_bytes(b"text")
        read(tmp_path / "b.mat", "mat", ("a",))


def test_mat_files_that_are_damaged(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.ones((3, 68)), "b": np.ones(1)})
    data = (tmp_path / "a.mat").read_bytes()
    # The type of the numbers: scipy's reader dies of one that it does not know.
    at = data.index(b"a\0\0\0") + 4
    (tmp_path / "b.mat").write_bytes(data[:at] + b"\0" + data[at + 1 :])
    refused(tmp_path / "b.mat", "a: expected real numbers", "mat", ("a",))
    (tmp_path / "b.mat").write_bytes(data.replace(b"\3\0\0\0\x44\0\0\0", b"\3\0\0\0\xff\xff\xff\x7f"))
    refused(tmp_path / "b.mat", r"a: 204 numbers do not fill the shape \[3, 2147483647\]", "mat", ("a",))
    (tmp_path / "b.mat").write_bytes(data[:400])
    refused(tmp_path / "b.mat", "it is cut off", "mat", ("a",))
    monkeypatch.setattr(foreign, "ARRAY_BYTES", MEGABYTE)
    scipy.io.savemat(
        tmp_path / "b.mat", {"bomb": np.zeros((1000, 1000)), "b": np.ones(1)}, do_compression=True
    )
    refused(tmp_path / "b.mat", "unpacked it has more than the 1 MB that are read", "mat", ("bomb",))
    assert read(tmp_path / "b.mat", "mat", ("b",))["b"].tolist() == [[1]], (
        "what is not asked for is not unpacked"
    )


def test_weights(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"k": "v"})
    assert read(tmp_path / "a.safetensors", "metadata") == {"k": "v"} and read(
        tmp_path / "a.safetensors", "tensors"
    )["a"].tolist() == [1, 1]
    (tmp_path / "b.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    refused(tmp_path / "b.safetensors", "header", "tensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt", "torch")["a"].tolist() == [1, 1]
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "packed.pt", "its members are packed, which torch.save never does", "torch")
    torch.save({"f": os.system}, tmp_path / "evil.pt")
    refused(
        tmp_path / "evil.pt",
        r"\(it is damaged, or holds more than tensors, numbers and texts, which is not loaded\)",
        "torch",
    )


def test_tables(tmp_path, recwarn):
    (tmp_path / "a.txt").write_text("# points\n1 2 3\n4 5 6 # last\n")
    assert read(tmp_path / "a.txt", "table").tolist() == [[1, 2, 3], [4, 5, 6]] and read(
        tmp_path / "a.txt", "table", (0, 2)
    ).tolist() == [[1, 3], [4, 6]]
    (tmp_path / "a.txt").write_text("")
    assert not len(read(tmp_path / "a.txt", "table")) and not recwarn.list
    (tmp_path / "a.txt").write_text("1 2\n3\n")
    refused(tmp_path / "a.txt", "number of columns changed", "table")


def test_values_in_messages_are_short():
    value = "x"
    for _ in range(20):
        value = [value] * 10
    assert (
        len(shown(value)) < 300
        and shown("a") == "'a'"
        and shown([1, 2]) == "[1, 2]"
        and len(shown("y" * 10**6)) < 100
    )


def test_names_stay_below_a_folder(tmp_path):
    assert inside(tmp_path, "a/b") == tmp_path / "a/b"
    for name in ("", "..", "a/../../b", "/etc/passwd", "..\\b", "\\b"):
        with pytest.raises(
            InputError, match=re.escape(f"expected the name of something below {tmp_path}, without '..'")
        ):
            inside(tmp_path, name)


@pytest.mark.parametrize(
    "array, got", [([3], "3 to 3"), ([-1, 2], "-1 to 2"), (np.zeros(0, int), "none"), ([0.0], "0.0 to 0.0")]
)
def test_indices(array, got):
    check_indices(np.array([0, 2]), 3, "a.npz: triangles")
    with pytest.raises(InputError, match=rf"a.npz: triangles: expected \[N\] indices in 0..2, got {got}"):
        check_indices(np.array(array), 3, "a.npz: triangles", "[N] ")
