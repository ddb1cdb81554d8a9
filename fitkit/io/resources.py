"""Files that come with fitkit: `assets/` and `recipes/`, installed as packages or in the repository
checkout."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from fitkit.errors import InputError, did_you_mean

RECIPE_KINDS = ("fit", "train", "synth", "evaluate", "bench")  # folders of recipes/
CHECKOUT = Path(__file__).resolve().parents[2]


def _folder(name: str) -> Path:
    try:
        # Installed, the folder is the package fitkit.NAME; unzipped packages only (setup.cfg: zip_safe =
        # false).
        folder = Path(str(resources.files(f"fitkit.{name}")))
        if folder.is_dir():
            return folder
    except (ModuleNotFoundError, TypeError):
        pass
    return CHECKOUT / name


def asset_path(name: str) -> Path:
    """Path of a shipped file, e.g. 'generic.npz' or 'sample/front.jpg'.

    Raises:
        InputError: there is no such asset; the installation is incomplete.
    """
    path = _folder("assets") / name
    if not path.exists():
        raise InputError(
            f"{path}: this file should come with fitkit; the installation is incomplete, install fitkit again"
        )
    return path


def recipe_path(kind: str, name: str) -> Path:
    """Path of a shipped recipe, e.g. ('fit', 'multiview') -> .../recipes/fit/multiview.yaml.

    Raises:
        InputError: no such recipe; the message names those there are.
    """
    path = _folder("recipes") / kind / f"{name}.yaml"
    if name not in recipe_names(kind):
        from fitkit.io.foreign import shown  # loads heavy packages

        names = recipe_names(kind)
        other = next((k for k in RECIPE_KINDS if name in recipe_names(k)), None)
        raise InputError(
            f"recipe: no {kind} recipe {shown(name)}{f' (it is a {other} recipe)' if other else ''}; "
            + f"{did_you_mean(name, names)} there are: {', '.join(names) or 'none'}; ".lstrip()
            + "or give the path of a .yaml file"
        )
    return path


def find_recipe(kind: str, name: str | os.PathLike) -> Path:
    """A recipe file by path (it ends in .yaml or .yml, or has a folder), or a shipped one by name, see
    `recipe_path`."""
    text = os.fspath(name)
    return Path(text) if text.endswith((".yaml", ".yml")) or os.sep in text else recipe_path(kind, text)


def recipe_names(kind: str) -> list[str]:
    """Names of the shipped recipes of one kind ('fit', 'bench', ...), sorted."""
    return sorted(p.stem for p in (_folder("recipes") / kind).glob("*.yaml"))


def recipe_summary(kind: str, name: str) -> str:
    """What a shipped recipe is for: the first sentence of the comment that its file begins with."""
    comment = []
    for line in recipe_path(kind, name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(comment).strip(), maxsplit=1)[0]
