import os
from dataclasses import replace

import pytest
from helpers import tiny_model

from fitkit.errors import InputError, MissingWeightsError
from fitkit.models import makehuman, registry
from fitkit.models.io import save_model_file
from fitkit.models.registry import list_models, load_model, model_path, models_folder, store_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty models folder, and a packaged 'generic'."""
    asset = save_model_file(replace(tiny_model(), name="generic"), tmp_path / "assets/generic.npz")
    monkeypatch.setattr(registry, "asset_path", lambda name: asset)
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_models_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    monkeypatch.delenv("FITKIT_MODELS")
    assert models_folder().name == "models" and "fitkit" in str(models_folder())


def test_load_by_name_and_path(folder, tmp_path):
    assert load_model().name == "generic"
    path = store_model(replace(tiny_model(), name="mine"))
    assert path == folder / "mine.npz" and load_model("mine").name == "mine"
    assert load_model(path) is load_model("mine") is load_model(str(path)), "read once"
    assert list(list_models()) == ["generic", "mine"]
    store_model(replace(tiny_model(seed=1), name="mine"), overwrite=True)
    os.utime(path, ns=(1, 1))
    assert not (load_model("mine").identity_basis == tiny_model().identity_basis).all(), (
        "a new file is read again"
    )


def test_missing_models_say_how_to_get_them(folder, tmp_path):
    with pytest.raises(
        MissingWeightsError,
        match="'ict' is not in .*models; get it with 'fitkit model fetch ict', or with 'fitkit model "
        "import ict PATH'",
    ):
        load_model("ict")
    with pytest.raises(
        MissingWeightsError,
        match="'flame' is not in .*models; import it from its files with 'fitkit model import flame PATH'",
    ):
        load_model("flame")
    with pytest.raises(
        InputError, match="unknown model 'genric'; did you mean 'generic'\\? known: generic, gnm, ict"
    ):
        load_model("genric")
    with pytest.raises(InputError, match="unknown model 'xyz'; known: generic, gnm, ict"):
        model_path("xyz")
    with pytest.raises(
        InputError, match="none.npz: no such model file; give the path of a .npz model or one of: generic"
    ):
        load_model(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "name, message",
    [
        ("generic", "'generic' comes with fitkit; choose another"),
        ("../a", "expected letters, digits"),
        ("", "expected letters"),
        ("a.npz", "expected letters"),
    ],
)
def test_names_that_cannot_be_stored(folder, name, message):
    with pytest.raises(InputError, match=message):
        store_model(replace(tiny_model(), name=name))


def test_storing_does_not_replace_unasked(folder, tmp_path, monkeypatch):
    model = replace(tiny_model(), name="a")
    store_model(model)
    with pytest.raises(InputError, match="a.npz: exists already; use --overwrite, or another --name"):
        store_model(model)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written .*set FITKIT_MODELS"):
        store_model(model)


def test_incomplete_installation(monkeypatch, tmp_path):
    def missing(name):
        raise InputError(f"{name}: this file should come with fitkit")

    monkeypatch.setattr(registry, "asset_path", missing)
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "none"))
    assert list_models() == {}
    with pytest.raises(InputError, match="should come with fitkit"):
        load_model("generic")


def test_makehuman_has_the_name_that_it_is_known_by():
    assert registry.MAKEHUMAN == makehuman.NAME
