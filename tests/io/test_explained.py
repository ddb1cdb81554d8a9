import dataclasses
import typing
from dataclasses import dataclass, field

import pytest
import yaml

from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.explained import COLUMNS, explained_yaml, field_comments
from fitkit.io.options import plain, to_plain


@dataclass(frozen=True)
class Base:
    weight: float = 1.0  # factor


@dataclass(frozen=True)
class Inner(Base):
    """Text: with a colon."""

    # Said above,
    # in two lines.
    above: str = "#"
    silent: int = 3

    other: tuple[int, ...] = ()  # a list

    def method(self):
        local: int = 1  # no field
        return local


@dataclass(frozen=True)
class Outer:
    # This one is so long that there is no room for it behind a line of a hundred and ten columns.
    text: str = "a few words"
    folded: str = "words " * 30  # of a text that YAML folds nothing can be said
    inner: Inner = Inner()  # nested
    many: tuple[Inner, ...] = (Inner(), Inner(2.0))
    named: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})


def test_a_field_has_the_comment_behind_or_above_it():
    said = {"weight": "factor", "above": "Said above, in two lines.", "other": "a list"}
    assert field_comments(Inner) == said


def test_the_text_is_the_same_yaml_with_comments():
    text = explained_yaml(Outer())
    assert yaml.safe_load(text) == plain(to_plain(Outer()))
    assert text.count("# factor") == text.count("# Said above, in two lines.") == text.count("# a list") == 4
    assert "inner:  # nested" in text and "weight: 2.0  # factor" in text and "silent: 3\n" in text
    assert "nothing can be said" not in text
    above, option = text.splitlines()[:2]
    assert above.startswith("# This one is so long") and option == "text: a few words"
    assert all(len(line) <= COLUMNS for line in text.splitlines())


@pytest.mark.parametrize("name", ["multiview", "landmarks", "adam"])
def test_a_recipe_reads_the_same_with_comments(name):
    recipe = load_recipe(name)
    assert yaml.safe_load(explained_yaml(recipe)) == plain(to_plain(recipe))


def test_options_of_fits_say_what_they_mean():
    """Those alone are silent that hold other options or say it by their name."""

    def silent(kind):
        for name, hint in typing.get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint):
                yield from silent(hint)
            elif name not in field_comments(kind):
                yield name

    assert set(silent(FitRecipe)) <= {"name", "stages", "energies", "seed"}
