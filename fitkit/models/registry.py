"""Face models by name: 'generic' comes with fitkit, others live in a per-user folder."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from fitkit.errors import InputError, MissingWeightsError, check_argument, did_you_mean
from fitkit.io.resources import asset_path
from fitkit.models.formats import FORMATS

if TYPE_CHECKING:
    from fitkit.models.face_model import FaceModel

# What reads models needs torch and loads with the first one: lists of names come without it.
PACKAGED = {"generic": "generic.npz"}  # name -> asset
FETCHABLE = ("ict", "gnm")  # `DOWNLOADS` of `models.fetch`
LONGEST_NAME = 100  # of a model; file names end at 255
MAKEHUMAN = "makehuman"  # NAME of `models.makehuman`


def models_folder() -> Path:
    """Where imported models live: environment variable FITKIT_MODELS, else the platform's data folder."""
    named = os.environ.get("FITKIT_MODELS")
    return (
        Path(named).expanduser()
        if named
        else Path(platformdirs.user_data_dir("fitkit", appauthor=False)) / "models"
    )


def list_models() -> dict[str, Path]:
    """Name -> file of every model on this machine, the packaged ones first."""
    found = {}
    for name, asset in PACKAGED.items():
        try:
            found[name] = asset_path(asset)
        except InputError:
            continue  # an incomplete installation; loading this model says so
    found.update({p.stem: p for p in sorted(models_folder().glob("*.npz")) if p.stem not in PACKAGED})
    return found


def model_path(name: str | os.PathLike) -> Path:
    """The file of a model given by name, or by the path of a `.npz` file.

    Raises:
        MissingWeightsError: a known model that is not on this machine; says how to get it.
        InputError: no such file, or an unknown name; says the nearest known one.
    """
    text = os.fspath(name)
    if text in PACKAGED:
        return asset_path(PACKAGED[text])
    if text.endswith(".npz") or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        if not os.path.isfile(path):  # as Path.is_file, but a name that is too long is no error
            raise InputError(
                f"{text}: no such model file; give the path of a .npz model or one of: "
                f"{', '.join(list_models())}"
            )
        return path
    models = list_models()
    if text in models:
        return models[text]
    if text in FETCHABLE:
        raise MissingWeightsError(
            f"model {text!r} is not in {models_folder()}; get it with 'fitkit model fetch {text}', or with "
            f"'fitkit model import {text} PATH' if you have its files"
        )
    if text in FORMATS:
        raise MissingWeightsError(
            f"model {text!r} is not in {models_folder()}; import it from its files with 'fitkit model import "
            f"{text} PATH'"
        )
    known = sorted({*models, *PACKAGED, *FETCHABLE})
    hint = f"{did_you_mean(text, known)} known: {', '.join(known)}".lstrip()
    raise InputError(f"unknown model {text!r}; {hint}")


def load_model(name: str | os.PathLike = "generic") -> FaceModel:
    """The face model of this name, or in this `.npz` file; float32 on the CPU. Read once per process.

    'makehuman', which `models.makehuman` builds from an installed package, is for rendering people: it is not
    listed.

    Raises:
        MissingWeightsError, InputError: as `model_path`, `load_model_file` and `load_makehuman`.
    """
    check_argument("load_model", name, (str, os.PathLike), "the name or path of a face model")
    if os.fspath(name) == MAKEHUMAN:
        from fitkit.models.makehuman import load_makehuman

        return load_makehuman()
    path = model_path(name)
    return _load(str(path.resolve()), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int) -> FaceModel:
    from fitkit.models.io import load_model_file

    return load_model_file(path)


def store_model(model: FaceModel, overwrite: bool = False) -> Path:
    """Save a model under its name in the models folder.

    Raises:
        InputError: the name is taken, reserved or not a plain file name; the folder cannot be written.
    """
    from fitkit.models.io import save_model_file

    return save_model_file(model, free_place(model.name, overwrite))


def stored_place(name: str | os.PathLike) -> Path:
    """The file of a model in the models folder, which may be written anew.

    Raises:
        MissingWeightsError, InputError: as `model_path`; a model that comes with fitkit, or a file elsewhere.
    """
    path = model_path(name)
    if path.resolve().parent != models_folder().resolve():
        raise InputError(
            f"model: expected the name of one that was imported into {models_folder()}, got "
            f"{os.fspath(name)!r}; store a copy with 'fitkit model import npz {path} --name NAME'"
        )
    return path


def free_place(name: str, overwrite: bool = False) -> Path:
    """The file that a model of this name is stored in.

    Raises:
        InputError: the name is taken, reserved or not a plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.endswith(".npz"):
        raise InputError(f"model name: expected letters, digits, '.', '_', '-', got {name!r}")
    if len(name) > LONGEST_NAME:
        raise InputError(f"model name: expected up to {LONGEST_NAME} characters, got {len(name)}")
    if name in PACKAGED:
        raise InputError(f"model name: {name!r} comes with fitkit; choose another with --name")
    path = models_folder() / f"{name}.npz"
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; use --overwrite, or another --name")
    return path
