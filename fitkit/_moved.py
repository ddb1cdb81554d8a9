"""Module paths of version 0.1.0 whose modules moved as they were: each still leads to what it held, with one
line of warning."""

import sys
import warnings
from importlib import import_module
from types import ModuleType

MOVED = {
    "fitkit.data.face_paint": "fitkit.synth.paint",
    "fitkit.data.face_shards": "fitkit.synth.shards",
    "fitkit.data.photo_effects": "fitkit.synth.photo_effects",
    "fitkit.data.random_faces": "fitkit.synth.random_faces",
    "fitkit.data.synth_dataset": "fitkit.synth.dataset",
    "fitkit.data.synth_folder": "fitkit.synth.folder",
    "fitkit.data.synth_mitsuba": "fitkit.synth.mitsuba",
    "fitkit.data.synth_parse": "fitkit.synth.parse",
    "fitkit.data.synth_people": "fitkit.synth.people",
    "fitkit.data.synth_raster": "fitkit.synth.raster",
    "fitkit.data.synth_recipe": "fitkit.synth.recipe",
    "fitkit.data.synth_subject": "fitkit.synth.subject",
    "fitkit.data.synthetic": "fitkit.synth.studio",
    "fitkit.fit": "fitkit.fitting",
    "fitkit.fit.agreement": "fitkit.fitting.view_consistency",
    "fitkit.fit.batch": "fitkit.fitting.batch",
    "fitkit.fit.decompose": "fitkit.fitting.appearance",
    "fitkit.fit.detail": "fitkit.fitting.detail",
    "fitkit.fit.initialize": "fitkit.fitting.initialize",
    "fitkit.fit.predict": "fitkit.fitting.predict",
    "fitkit.fit.recipe": "fitkit.fitting.recipe",
    "fitkit.fit.regress": "fitkit.fitting.network_start",
    "fitkit.fit.report": "fitkit.fitting.report",
    "fitkit.fit.result": "fitkit.fitting.result",
    "fitkit.fit.rig_check": "fitkit.fitting.rig_check",
    "fitkit.fit.run": "fitkit.fitting.run",
    "fitkit.fit.uncertainty": "fitkit.fitting.uncertainty",
    "fitkit.models.ict": "fitkit.models.formats.ict",
}


class _MovedModule(ModuleType):
    """Stands at an old path in sys.modules; loads nothing before one of its names is asked for."""

    def __getattr__(self, name: str):
        if name.startswith("__"):  # the import system asks for __path__ and others
            raise AttributeError(name)
        new = MOVED[self.__name__]
        value = getattr(import_module(new), name)
        warnings.warn(f"{self.__name__} is now {new}", FutureWarning, stacklevel=2)
        return value


def install() -> None:
    """Make the old paths importable."""
    for old in MOVED:
        sys.modules.setdefault(old, _MovedModule(old))


def moved_below(old: str) -> dict[str, ModuleType]:
    """The modules that were at `old`.NAME, by NAME."""
    return {name.removeprefix(f"{old}."): sys.modules[name] for name in MOVED if name.startswith(f"{old}.")}
