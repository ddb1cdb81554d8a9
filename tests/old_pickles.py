"""Pickles as Python 2 wrote them, of arrays that the package chumpy wraps, without either."""

import io
import pickle
import sys
import types

# Modules of today -> of then.
MODULES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "scipy.sparse._csc": "scipy.sparse.csc",
    "scipy.sparse._csr": "scipy.sparse.csr",
    "builtins": "__builtin__",
    "copyreg": "copy_reg",
}


def _wrapper(module, name):
    """A class of chumpy: its objects are what their state says."""

    def make(self, **state):
        # As chumpy's: names beside the arrays, and a set.
        self.__dict__.update(_dirty_vars={"x"}, _itr=None, _make_dense=False, **state)

    return type(name, (), {"__init__": make, "__module__": module})


Ch = _wrapper("chumpy.ch", "Ch")
Select = _wrapper("chumpy.reordering", "Select")
MatVecMult = _wrapper("chumpy.ch_ops", "MatVecMult")


class _Pickler(pickle._Pickler):
    """Protocol 2 of Python 2: text and bytes are both byte strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin-1")
        self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    def save_global(self, value, name=None):
        module = MODULES.get(value.__module__, value.__module__)
        self.write(f"c{module}\n{name or value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_bytes
    dispatch[types.FunctionType] = dispatch[type] = save_global


def python2(value) -> bytes:
    """A pickle of `value` (plain values, arrays, scipy's matrices, the classes above)."""
    out = io.BytesIO()
    _Pickler(out, 2).dump(value)
    return out.getvalue()


def python3(value, protocol: int) -> bytes:
    """The same by Python 3, which looks each class up where it says it is."""
    modules = {cls.__module__: types.ModuleType(cls.__module__) for cls in (Ch, Select, MatVecMult)}
    for cls in (Ch, Select, MatVecMult):
        setattr(modules[cls.__module__], cls.__name__, cls)
    modules["chumpy"] = types.ModuleType("chumpy")
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        return pickle.dumps(value, protocol)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
