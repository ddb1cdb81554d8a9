import pytest
import yaml

from fitkit.energies.registry import REGISTRY
from fitkit.errors import InputError
from fitkit.fitting.recipe import FitRecipe, load_recipe, parse_recipe
from fitkit.io.options import to_plain
from fitkit.io.resources import recipe_names
from fitkit.render.rasterizer import BACKENDS

STAGE = {"name": "pose", "free": ["pose"], "energies": {"lmk2d": {}}}


@pytest.mark.parametrize("name", recipe_names("fit"))
def test_shipped_recipes(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.model == "generic" and recipe.stages
    # The resolved recipe, as it is saved with a result, is the same recipe.
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_plain(recipe)))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_multiview_begins_like_landmarks():
    landmarks, multiview = load_recipe("landmarks"), load_recipe("multiview")
    assert multiview.stages[: len(landmarks.stages)] == landmarks.stages
    assert all(s.min_views == 2 for s in multiview.stages[len(landmarks.stages) :])


def test_changes_then_overrides():
    recipe = load_recipe(
        "landmarks",
        [
            "seed=2",
            "stages.shape.solver.max_iterations=3",
            "stages.shape.energies.lmk2d.weight=2",
            "stages.shape.energies.focal_prior=false",
            "stages.shape.energies.light_prior=true",
        ],
        {"seed": 1, "landmarks": {"jaw": "outline"}},
    )
    shape = next(s for s in recipe.stages if s.name == "shape")
    assert recipe.seed == 2 and recipe.landmarks.jaw == "outline" and shape.solver.max_iterations == 3
    assert shape.energies["lmk2d"].weight == 2 and shape.energies["lmk2d"].kernel.name == "huber"
    assert "focal_prior" not in shape.energies and shape.energies["light_prior"].weight == 1.0


def test_a_recipe_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: landmarks\nname: mine\nseed: 7\nstages:\n"
        "  - {name: shape, solver: {max_iterations: 1}}\n"
        "  - {name: last, free: [pose], energies: {lmk2d: {}}}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: mine\nname: child\n")
    mine, base = load_recipe(tmp_path / "mine.yaml"), load_recipe("landmarks")
    assert mine.seed == 7 and [s.name for s in mine.stages] == [*(s.name for s in base.stages), "last"]
    shape = {s.name: s for s in mine.stages}["shape"]
    assert (
        shape.solver.max_iterations == 1
        and shape.energies == {s.name: s for s in base.stages}["shape"].energies
    )
    assert load_recipe(tmp_path / "child.yaml").stages == mine.stages  # the parent lies beside it


def test_circles_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a\nname: b\n")
    with pytest.raises(InputError, match="recipes extend each other in a circle"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stages": None}, "file: expected 'stages', a list with at least one stage"),
        ({"stages": [1]}, "file: stage 1: expected a mapping, got 1"),
        ({"stages": [{**STAGE, "energies": {}}]}, "stage 'pose': expected 'energies'"),
        (
            {"stages": [{**STAGE, "energies": {"lmk3d": {}}}]},
            "stage 'pose': energies: unknown key 'lmk3d'; did you mean 'lmk2d'",
        ),
        (
            {"stages": [{**STAGE, "energies": {"lmk2d": {"wieght": 1}}}]},
            "lmk2d: unknown key 'wieght'; did you mean 'weight'",
        ),
        (
            {"stages": [{**STAGE, "free": ["poes"]}]},
            "stage 'pose': free: unknown key 'poes'; did you mean 'pose'",
        ),
        (
            {"stages": [{**STAGE, "solver": {"name": "newton"}}]},
            "solver.name: expected one of levenberg_marquardt, adam",
        ),
        ({"stages": [{**STAGE, "slover": {}}]}, "stage 'pose': unknown key 'slover'; did you mean 'solver'"),
        ({"modle": "ict"}, "file: unknown key 'modle'; did you mean 'model'"),
        ({"name": None}, "file: name: expected str, got None"),
    ],
)
def test_wrong_recipes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        parse_recipe({"name": "test", "stages": [STAGE], **change}, "file")


@pytest.mark.parametrize(
    "text, message",
    [
        ("extends: 5", "a.yaml: extends: expected the name of a recipe, got 5"),
        (f"extends: {'a' * 300}", "no fit recipe 'aaa.*[.]{3}a+'; there are:"),
        (
            "extends: landmarks\nstages: abc",
            "a.yaml: stages: expected a list of mappings, got 'abc' in a.yaml",
        ),
        (
            "extends: landmarks\nstages: [3]",
            r"a.yaml: stages: expected a list of mappings, got \[3\] in a.yaml",
        ),
        ("extends: ./x/../a", "recipes extend each other in a circle"),
        ("stages: [{name: 2024-13-45}]", "a.yaml: not valid YAML"),
    ],
)
def test_recipes_that_cannot_be_extended(tmp_path, text, message):
    (tmp_path / "x").mkdir()
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_every_energy_has_defaults():
    names = [spec.name for spec in REGISTRY if spec.in_fit]
    recipe = parse_recipe({"name": "test", "stages": [{**STAGE, "energies": dict.fromkeys(names)}]}, "file")
    assert isinstance(recipe, FitRecipe) and set(recipe.stages[0].energies) == set(names)


@pytest.mark.parametrize("spec", [s for s in REGISTRY if not s.in_fit], ids=lambda s: s.name)
def test_an_energy_that_a_fit_cannot_use_is_refused_with_the_reason(spec):
    stages = [{**STAGE, "energies": {spec.name: None}}]
    with pytest.raises(InputError, match=f"energies: '{spec.name}' is for trainings: {spec.not_in_fits}"):
        parse_recipe({"name": "test", "stages": stages}, "file")


def test_every_backend_can_be_asked_for():
    for backend in BACKENDS:
        assert load_recipe("multiview", [f"render.backend={backend}"]).render.backend == backend
    expected = f"render.backend: expected one of {', '.join(BACKENDS)}; got 'opengl'"
    with pytest.raises(InputError, match=expected):
        load_recipe("multiview", ["render.backend=opengl"])
