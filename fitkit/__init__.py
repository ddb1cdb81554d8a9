"""fitkit fits a 3D morphable face model to all photos of one person.

    import fitkit
    result = fitkit.fit("photos/")      # -> FitResult
    result.save("photos/fitkit")

`import fitkit` is light: everything below loads when it is first used.
"""

import os
import sys
from importlib import import_module

from fitkit import _moved

__version__ = "0.1.0"

# Public name -> module that holds it.
_PUBLIC = {
    "FaceModel": "fitkit.models.face_model",
    "FitRecipe": "fitkit.fitting.recipe",
    "FitResult": "fitkit.fitting.result",
    "FitkitError": "fitkit.errors",
    "Subject": "fitkit.io.subject",
    "batch": "fitkit.export.batch_table",
    "convert": "fitkit.fitting.convert",
    "fit": "fitkit.fitting.run",
    "fit_many": "fitkit.fitting.run",
    "load_batch": "fitkit.export.batch_table",
    "load_model": "fitkit.models.registry",
    "load_parameters": "fitkit.scene.parameters",
    "load_recipe": "fitkit.fitting.recipe",
    "load_result": "fitkit.export.load",
    "load_subject": "fitkit.io.subject",
    "register_energy": "fitkit.energies.registry",
    "subject_from_images": "fitkit.io.subject",
    "subjects_of": "fitkit.data.subject_sets",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fitkit' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    if name == "fit":  # `fitkit.fit` was a package: `fitkit.fitting.detail` is found on the function
        vars(value).update(_moved.moved_below("fitkit.fit"))
    globals()[name] = value
    return value


_moved.install()


def __dir__():
    return sorted({*globals(), *__all__})


def _after_fork() -> None:
    # A forked child has none of the threads that torch started in its parent, and would wait for them for
    # ever.
    torch = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):  # it may be just being imported
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
