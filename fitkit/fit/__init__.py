"""Runs the stages of a recipe. The package can be called: `fitkit.fit(...)` is `fitkit.fit.run.fit(...)`."""

from __future__ import annotations

import inspect
import sys
import types


class _CallableModule(types.ModuleType):
    # The folder is named after what it does and so is the function: Python binds `fitkit.fit` to the package as soon as
    # any module in it is imported, so only a package that can be called gives one meaning at all times.

    def __call__(self, *args, **kwargs):
        """See `fitkit.fit.run.fit`."""
        from fitkit.fit.run import fit

        return fit(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from fitkit.fit.run import fit

        return inspect.signature(fit)


sys.modules[__name__].__class__ = _CallableModule
