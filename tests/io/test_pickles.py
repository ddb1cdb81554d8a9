"""Pickles of others: what is read, and that nothing in them runs."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse
import torch
from old_pickles import Ch, MatVecMult, Select, python2, python3

from fitkit.errors import InputError
from fitkit.io import pickles
from fitkit.io.foreign import foreign_file
from fitkit.io.pickles import unpickle

LIMIT = 10**6


def content():
    rng = np.random.default_rng(0)
    sparse = scipy.sparse.random(5, 30, 0.2, format="csc", random_state=1)
    return {
        "a": rng.normal(size=(4, 3)),
        "columns": np.asfortranarray(rng.normal(size=(4, 3))),
        "other_end": np.arange(6, dtype=">u4"),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "csc": sparse,
        "csr": sparse.tocsr(),
        "plain": {"list": [1, -2.5, True, None, 10**30], "pair": (1, "text")},
        "objects": np.array([1, "text", None], dtype=object),
        "number": np.float32(0.5),
    }


def same(read, value):
    if isinstance(value, (np.ndarray, scipy.sparse.csc_matrix, scipy.sparse.csr_matrix)):
        wanted = value.toarray() if scipy.sparse.issparse(value) else value
        if wanted.dtype == object:
            assert read == wanted.tolist()
            return
        assert read.dtype == wanted.dtype.newbyteorder("=") and read.flags.writeable
        np.testing.assert_array_equal(read, wanted)
    else:
        assert read == value


@pytest.mark.parametrize("protocol", ["python 2", 0, 1, 2, 3, 4, 5])
def test_plain_values_and_arrays(protocol):
    """Of every protocol: numbers, texts, arrays of either order of bytes and axes, sparse ones."""
    written = python2(content()) if protocol == "python 2" else pickle.dumps(content(), protocol)
    read = unpickle(written, LIMIT)
    assert list(read) == list(content())
    for name, value in content().items():
        same(read[name], value)


def test_byte_strings_of_the_oldest_protocol():
    """Python 2's protocol 0 writes arrays as quoted text."""
    old = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'u2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\x00\\'\\xff'\ntb."
    )
    np.testing.assert_array_equal(unpickle(old, LIMIT), np.array([1, 0xFF27], np.uint16))


@pytest.mark.parametrize(
    "write", [python2, lambda v: python3(v, 0), lambda v: python3(v, 2), lambda v: python3(v, 4)]
)
def test_arrays_that_chumpy_wraps(write):
    inner = np.arange(12.0).reshape(4, 3)
    chosen = Select(a=Ch(x=inner), idxs=np.array([11, 0, 4]), preferred_shape=(3, 1))
    flat = Select(a=Ch(x=inner), idxs=np.array([1, 2]))
    written = write({"x": Ch(x=inner), "some": chosen, "flat": flat, "J": MatVecMult(mtx=1)})
    read = unpickle(written, LIMIT, ("x", "some", "flat"))
    np.testing.assert_array_equal(read["x"], inner)
    np.testing.assert_array_equal(read["some"], [[11.0], [0.0], [4.0]])
    np.testing.assert_array_equal(read["flat"], [1.0, 2.0])
    with pytest.raises(ValueError, match="holds 'chumpy.ch_ops.MatVecMult', read are plain values"):
        unpickle(written, LIMIT, ("J",))


class Runs:
    """Would make a file if it were unpickled as usual."""

    def __init__(self, how, path):
        self.how, self.path = how, path

    def __reduce__(self):
        return {
            "system": (os.system, (f"touch {self.path}",)),
            "eval": (eval, (f"open({self.path!r}, 'w').close()",)),
        }[self.how]


class Owned:
    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        open(state["path"], "w").close()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "make, name",
    [
        (lambda path: Runs("system", path), "(posix|nt).system"),
        (lambda path: Runs("eval", path), "builtins.eval"),
        (Owned, "test_pickles.Owned"),
        (lambda path: {"a": np.ones(3), "beside": [Runs("eval", path)]}, "builtins.eval"),
        (lambda path: np.array([Runs("system", path)], dtype=object), "(posix|nt).system"),
        (lambda path: __import__("fractions").Fraction(1, 2), "fractions.Fraction"),
    ],
)
def test_nothing_runs(make, name, protocol, tmp_path):
    canary = tmp_path / "ran"
    written = pickle.dumps(make(str(canary)), protocol)
    for names in (None, ("a",)):
        with pytest.raises(ValueError, match=f"^it holds '[^']*{name}', read are plain values, numpy"):
            unpickle(written, LIMIT, names)
    assert not canary.exists()
    if name != "fractions.Fraction":
        pickle.loads(written)
        assert canary.exists(), "the canary sings"


# Instructions that name classes in other ways, take them from elsewhere, or set what is none of theirs.
@pytest.mark.parametrize(
    "written, message",
    [
        (b"(S'ls'\nios\nsystem\n.", "holds the instruction INST"),
        (b"(cos\nsystem\nS'ls'\no.", "'os.system'"),
        (b"(cnumpy\ndtype\nS'ls'\no.", "holds the instruction OBJ"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x04]\x8c\x06system\x93.", "damaged"),
        (b"\x82\x01.", "holds the instruction EXT1"),
        (b"Pid\n.", "holds the instruction PERSID"),
        (b"cnumpy\ndtype\n}b.", "damaged"),
        (b"}(S'a'\nI1\nub.", "damaged"),
        (b"}}b.", "damaged"),
        (b"cnumpy\ndtype\n.", "holds 'numpy.dtype'"),
        (b"cbuiltins\nset\n)R.", "holds 'builtins.set'"),
        (b"cchumpy.os\nsystem\n(S'ls'\ntR.", "holds 'chumpy.os.system'"),
        (b"cchumpy.ch\nCh\n)\x81.", "chumpy.ch.Ch: its content is damaged"),
        (b"c_codecs\nencode\n(I1\ntR.", "an array has no bytes"),
        (b"I1\n)R.", "damaged"),
        (b"cnumpy\ndtype\nI1\nR.", "damaged"),
        (b"ccopy_reg\n_reconstructor\n(I1\ntR.", "damaged"),
        (b"}((I1\nttI2\nu.", "damaged"),
        (b"}((I1\nti2\n.", "INST|cut off|no newline"),
        (b"MATLAB 5.0 MAT-file, Platform: posix\n.", "the pickle is damaged, or it is none"),
        (b"}(I1\ntI2\ns.", "a key of a dictionary is a tuple"),
        (b"}(I1\nu.", "damaged"),
        (b"]I1\nI2\ns.", "damaged"),
        (b"I1\nI2\na.", "damaged"),
        (b"h\x07.", "damaged"),
        (b".", "damaged"),
        (b"", "the pickle is cut off"),
        (b"I1\n", "the pickle is cut off"),
        (b"\xffabc", "it is no pickle"),
        (b"T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes in a string4"),
        (b"\x96\xff\xff\xff\xff\xff\xff\x00\x00abc.", "expected 281474976710655 bytes"),
    ],
)
def test_other_instructions_are_refused(written, message):
    with pytest.raises(ValueError, match=message) as caught:
        unpickle(written, LIMIT)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def array_of(shape, data=b"12345678", kind="f8", state=(3, "<", None, None, None, -1, -1, 0)):
    """A pickled array that says what is not so."""
    dtype = type(
        "dtype", (), {"__module__": "numpy", "__reduce__": lambda _: (np.dtype, (kind, 0, 1), state)}
    )()
    made = type(
        "ndarray",
        (),
        {
            "__module__": "numpy",
            "__reduce__": lambda _: (
                np._core.multiarray._reconstruct,
                (np.ndarray, (0,), b"b"),
                (1, shape, dtype, False, data),
            ),
        },
    )
    return python2(made())


@pytest.mark.parametrize(
    "written, message",
    [
        (array_of((10**9, 10**9)), r"8 bytes does not fill its shape \(1000000000, 1000000000\)"),
        (array_of((-1,)), "an array has no shape"),
        (array_of([1]), "an array has no shape"),
        (array_of((1,), data=7), "an array has no bytes"),
        (array_of((1,), kind="V8"), "an array holds 'V8', read are numbers and objects"),
        (array_of((1,), kind="f8,f8"), "an array holds 'f8,f8'"),
        (array_of((1,), kind=8), "an array holds 'int'"),
        (array_of((2**64, 2**64)), "an array has no shape"),
        (array_of((1,) * 65), "an array has no shape"),
        (array_of((1,), kind="f7"), "data type 'f7' not understood|damaged"),
        (array_of((3,), data=[1], kind="O8"), r"other objects than its shape \(3,\)"),
        (array_of((1,), state=5), "its content is damaged"),
    ],
)
def test_arrays_that_say_what_is_not_so(written, message):
    with pytest.raises(ValueError, match=message):
        unpickle(written, LIMIT)


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"_shape": (10**6, 10**6), "indptr": np.r_[np.zeros(10**6, np.int32), 2]},
            "more than the 20 MB that are read",
        ),
        ({"indices": np.array([0, 9], np.int32)}, r"entries outside of its shape \(3, 2\)"),
        ({"indices": np.array([0, -1], np.int32)}, "entries outside of its shape"),
        ({"indptr": np.array([0, 2], np.int32)}, "do not fit together"),
        ({"indptr": np.array([0, 3, 2], np.int32)}, "do not fit together"),
        ({"indptr": np.array([1, 1, 2], np.int32)}, "do not fit together"),
        ({"data": np.ones(3)}, "do not fit together"),
        ({"_shape": (3,)}, "no shape of two sizes"),
        ({"_shape": (-3, -2)}, "no shape of two sizes"),
        ({"_shape": "ab"}, "no shape of two sizes"),
        ({"data": [1.0, 2.0]}, "csc_matrix: its content is damaged"),
    ],
)
def test_sparse_matrices_that_do_not_fit(parts, message):
    matrix = scipy.sparse.csc_matrix(([1.0, 2.0], ([0, 1], [0, 1])), shape=(3, 2))
    matrix.__dict__.update(parts)
    with pytest.raises(ValueError, match=message):
        unpickle(pickle.dumps(matrix, 2), 20 * 2**20)


def nested(depth, make):
    value = 1
    for _ in range(depth):
        value = make(value)
    return value


def test_bombs(monkeypatch):
    deep = b"]" * 20000 + b"a" * 19999 + b"."
    with pytest.raises(ValueError, match="nested deeper than 64"):
        unpickle(deep, LIMIT)
    unpickle(pickle.dumps(nested(64, lambda v: [v])), LIMIT)
    itself = []
    itself.append(itself)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        unpickle(pickle.dumps(itself), LIMIT)
    with pytest.raises(ValueError, match="values that are read, repetitions counted"):  # 2 ** 40
        unpickle(pickle.dumps(nested(40, lambda v: [v, v])), LIMIT)
    # What a list of memory for a memo of this length would take, the native reader asks for.
    assert unpickle(b"I1\nr\xff\xff\xff\x7f0j\xff\xff\xff\x7f.", LIMIT) == 1
    array = np.ones(1000)
    with pytest.raises(ValueError, match="its arrays have more than the 0.0076"):
        unpickle(pickle.dumps([array, array + 1]), 8000)
    assert len(unpickle(pickle.dumps([array] * 9), 8000)) == 9  # the same one
    chosen = Select(a=Ch(x=np.ones(1000)), idxs=np.zeros(10**4, np.int8))
    with pytest.raises(ValueError, match="its arrays have more than the 0.0763 MB"):  # 8 bytes of each byte
        unpickle(python2(chosen), 80_000)
    assert len(unpickle(python2(chosen), 100_000)) == 10**4
    text = b"X\x00\x10\x00\x00" + b"a" * 4096 + b"q\x00" + b"h\x00" * 300 + b"."
    assert len(unpickle(text, LIMIT)) == 4096
    monkeypatch.setattr(pickles, "VALUES", 1000)
    with pytest.raises(ValueError, match="more than the 1000 instructions"):
        unpickle(b"I1\n0" * 1000 + b"N.", LIMIT)


def read(path, *names):
    with foreign_file(path, "not readable", "mend it") as file:
        return file.pickled(names)


def test_files(tmp_path):
    """A dictionary in .pkl and .npy, members of .npz; entries that nobody asks for may be anything known."""
    value = {"a": np.arange(3.0), "beside": torch.ones(2), "n": 3}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    np.save(tmp_path / "a.npy", np.array(value, dtype=object), allow_pickle=True)
    sparse = scipy.sparse.csc_matrix(np.eye(3))
    np.savez(
        tmp_path / "a.npz", a=value["a"], s=np.array(sparse, dtype=object), o=np.array(Runs("eval", "x"))
    )
    for name in ("a.pkl", "a.npy"):
        got = read(tmp_path / name, "a", "n", "none")
        assert list(got) == ["a", "n"] and got["n"] == 3
        np.testing.assert_array_equal(got["a"], value["a"])
    got = read(tmp_path / "a.npz", "a", "s", "none")
    assert list(got) == ["a", "s"]
    np.testing.assert_array_equal(got["s"], np.eye(3))
    with pytest.raises(InputError, match=r"a.npz: not readable \(it holds 'builtins.eval'.*\); mend it$"):
        read(tmp_path / "a.npz", "o")
    with pytest.raises(InputError, match=r"a.pkl: not readable \(it holds 'torch._utils._rebuild"):
        read(tmp_path / "a.pkl", "beside")
    np.save(tmp_path / "plain.npy", np.ones(3))
    for name, data, message in (
        ("list.pkl", pickle.dumps([1]), "expected a pickled dictionary, got something else"),
        ("cut.pkl", pickle.dumps(value)[:-20], "cut off|damaged|bytes"),
        ("plain.npy", (tmp_path / "plain.npy").read_bytes(), "it is no pickle|cut off|damaged"),
        ("text.pkl", b"<html>", "it is no pickle"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            read(tmp_path / name, "a")


def test_members_have_a_limit(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        member = io.BytesIO()
        np.save(member, np.array({"a": np.zeros(10**5)}, dtype=object), allow_pickle=True)
        archive.writestr("a.npy", member.getvalue())
    assert len(read(tmp_path / "a.npz", "a")["a"]["a"]) == 10**5
    monkeypatch.setattr("fitkit.io.foreign.ARRAY_BYTES", 10**5)
    with pytest.raises(InputError, match="a has more than the 0.0954 MB that are read"):
        read(tmp_path / "a.npz", "a")
