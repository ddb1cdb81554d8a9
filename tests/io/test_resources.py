import importlib.util
import sys

import pytest

from fitkit.errors import InputError
from fitkit.io import resources


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "CHECKOUT", tmp_path)
    for name in ("assets", "recipes"):
        monkeypatch.setitem(sys.modules, f"fitkit.{name}", None)  # as in a checkout that is not installed
    (tmp_path / "recipes/fit").mkdir(parents=True)
    (tmp_path / "recipes/fit/quick.yaml").write_text("model: generic\n")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/a.npz").write_text("")
    return tmp_path


def test_files_of_the_checkout(checkout):
    assert resources.asset_path("a.npz") == checkout / "assets/a.npz"
    assert resources.recipe_path("fit", "quick") == checkout / "recipes/fit/quick.yaml"
    assert resources.recipe_names("fit") == ["quick"] and resources.recipe_names("bench") == []


def test_files_of_an_installed_package(checkout, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "b.npz").write_text("")
    (folder / "__init__.py").write_text("")
    spec = importlib.util.spec_from_file_location(
        "fitkit.assets", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setitem(sys.modules, "fitkit.assets", importlib.util.module_from_spec(spec))
    assert resources.asset_path("b.npz") == folder / "b.npz"


def test_missing_resources(checkout):
    with pytest.raises(
        InputError, match="none.npz: this file should come with fitkit; .*install fitkit again"
    ):
        resources.asset_path("none.npz")
    with pytest.raises(
        InputError, match="no fit recipe 'slow'; there are: quick; or give the path of a .yaml file"
    ):
        resources.recipe_path("fit", "slow")
    with pytest.raises(InputError, match="there are: quick"):
        resources.recipe_path("fit", "../fit/quick")
