"""The table of energies is complete and says what the classes say."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import replace
from math import exp, log, sqrt  # noqa: F401 - the formulas of KERNELS use them
from pathlib import Path

import pytest
import torch

import fitkit
import fitkit.energies
from fitkit.energies import masks, registry
from fitkit.energies.base import PlainEnergy
from fitkit.energies.kernels import NAMES, Kernel
from fitkit.energies.registry import (
    KERNELS,
    LISTED,
    PAPERS,
    REGISTRY,
    describe,
    find,
    fit_options,
    mask_functions,
    page,
    present,
    role_of,
    text,
)
from fitkit.energies.spec import OURS, EnergyDoc, EnergyOptions, EnergySpec
from fitkit.errors import InputError
from fitkit.train.regressor_recipe import parse_regressor_training

PAGE = Path(__file__).resolve().parents[2] / "docs" / "energies.md"


def energy_classes():
    """Every public class below fitkit.energies that has a name and residuals, but for the bases."""
    found = set()
    for module in pkgutil.iter_modules(fitkit.energies.__path__, "fitkit.energies."):
        for name, cls in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(cls)
                and cls.__module__ == module.name != "fitkit.energies.base"
                and not name.startswith("_")
            ):
                named = hasattr(cls, "name") or "name" in inspect.get_annotations(cls)
                if named and hasattr(cls, "residuals"):
                    found.add(cls)
    return found


def test_every_energy_class_is_listed_and_nothing_else():
    classes = energy_classes()
    assert len(classes) > 25
    assert {cls.__name__ for cls in classes} == {row.cls.__name__ for row in REGISTRY} and classes == {
        row.cls for row in REGISTRY
    }


def test_a_training_recipe_can_name_every_energy():
    energies = {spec.name: None for spec in REGISTRY}
    recipe = parse_regressor_training(
        {"name": "all", "stages": [{"name": "s", "steps": 1, "energies": energies}]}, "file"
    )
    for spec in REGISTRY:
        assert type(recipe.stages[0].energies[spec.name]) is spec.training_options()


def test_names_are_unique_and_ids_are_of_the_list():
    names = [row.name for row in REGISTRY]
    assert len(set(names)) == len(names)
    ids = [row.doc.id for row in REGISTRY if row.doc.id]
    assert set(ids) <= {f"E{n}" for n in range(1, LISTED + 1)} and set(present()) == set(ids)
    assert ids == sorted(ids, key=lambda i: int(i[1:]))


@pytest.mark.parametrize("row", REGISTRY, ids=lambda r: r.name)
def test_row(row):
    doc = row.doc
    assert doc.formula and doc.unit and doc.source and doc.gradient and doc.uses
    assert set(doc.used_by) <= {*PAPERS, OURS} and len(set(doc.used_by)) == len(doc.used_by)
    assert all(kernel in NAMES for use in doc.uses for kernel in use.kernels)
    assert row.reduction in ("sum", "mean")
    if isinstance(inspect.getattr_static(row.cls, "name", None), str) and row.builder is None:
        assert row.cls.name == row.name
    if row.doc.id:
        documented = " ".join(
            inspect.getdoc(part) or "" for part in (row.cls, row.builder, inspect.getmodule(row.cls)) if part
        )
        covered = {int(n) for part in re.findall(r"E(\d+(?:-E?\d+)?)", documented) for n in _range(part)}
        assert int(row.doc.id[1:]) in covered, f"{row.where} does not say that it is {row.doc.id}"
    module, _, name = row.where.rpartition(".")
    assert getattr(importlib.import_module(module), name) in (row.cls, row.builder)
    assert f"python     {row.where}" in describe(row) and find(row.name) is row


def _range(part):
    first, _, last = part.replace("E", "").partition("-")
    return range(int(first), int(last or first) + 1)


def test_the_page_is_the_output():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it anew: fitkit energies --markdown > docs/energies.md"
    )


def test_the_page_counts_from_the_table():
    first = page().splitlines()[4]
    assert first.startswith(f"{len({r.doc.id for r in REGISTRY if r.doc.id})} of the 29 energies E1 to E29")
    assert f"and {sum(not r.doc.id for r in REGISTRY)} of our own" in first
    for row in REGISTRY:
        assert page().count(f"| `{row.name}` |") == 3
    assert len(text().splitlines()) == len(REGISTRY) + 1


def test_energies_of_the_list_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", tuple(r for r in REGISTRY if r.doc.id not in ("E4", "E29")))
    assert (
        "27 of the 29 energies E1 to E29 of the papers below are there, all but E4, E29, and "
        in registry.page()
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_of_the_kernels_are_those_of_the_kernels(name):
    assert set(KERNELS) == set(NAMES)
    for e in (0.3, 2.0):
        for s in (0.0, 0.01, 0.7, 3.0, 50.0):
            value = eval(KERNELS[name].replace("^", "**"), globals(), {"s": s, "e": e})
            assert value == pytest.approx(
                float(Kernel(name, e).rho(torch.tensor(s, dtype=torch.float64))), rel=1e-9, abs=1e-12
            )


def test_every_mask_is_described():
    public = {
        name
        for name, f in inspect.getmembers(masks, inspect.isfunction)
        if f.__module__ == masks.__name__ and name[0] != "_"
    }
    assert {name for name, _ in mask_functions()} == public
    table = page().partition("## Masks")[2]
    for name in public:
        assert re.search(rf"^\| `{name}` \| \S.* \|", table, re.M)


def test_an_unknown_energy_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="energies: unknown key 'lmk2b'; did you mean 'lmk2d'"):
        find("lmk2b")


# ---- energies of users ----


class Own(PlainEnergy):
    name = "own"

    def residuals(self, state, observations):
        raise NotImplementedError


OWN = EnergySpec("own", Own, lambda context, options: Own(), "label", EnergyDoc("r"), needs=("depth",))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    return fitkit.register_energy


def test_an_own_energy_is_known_to_recipes_and_reports(registered):
    assert role_of("own") is None
    registered(OWN)
    registered(replace(OWN, role="prior"))  # a file that is loaded again
    assert find("own").role == role_of("own") == "prior" and fit_options("own", "x") is EnergyOptions
    stages = [{"name": "s", "steps": 1, "energies": {"own": {"weight": 2.0}}}]
    assert (
        parse_regressor_training({"name": "t", "stages": stages}, "file").stages[0].energies["own"].weight
        == 2.0
    )
    assert "own" in text() and "`own`" not in page()


def test_an_own_energy_must_be_one(registered):
    with pytest.raises(InputError, match="energy 'lmk2d': fitkit has one of that name; choose another"):
        registered(replace(OWN, name="lmk2d"))
    with pytest.raises(InputError, match="energy 'own': expected a class with freeze and residuals, got int"):
        registered(replace(OWN, cls=int))
    with pytest.raises(
        InputError, match="energy 'own': expected options that extend .*EnergyOptions, got dict"
    ):
        registered(replace(OWN, options=dict))
