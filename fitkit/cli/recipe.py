"""`fitkit recipe ...`: the recipes that come with fitkit."""

from __future__ import annotations

import click

# Kind -> what takes its recipes.
USES = {
    "fit": "fitkit fit FOLDER --recipe NAME",
    "train": "fitkit train-regressor NAME; of 'landmarks' fitkit train-landmarks NAME",
    "synth": "fitkit synth OUT --recipe NAME",
    "evaluate": "fitkit evaluate NAME DATA",
    "bench": "fitkit bench ablation DATA --recipe NAME; of trainings fitkit bench trainings NAME",
}


@click.group()
def recipe():
    """Show the recipes that come with fitkit.

    Example: fitkit recipe list
    """


@recipe.command("list")
def list_command():
    """List the recipes of fits, trainings, rendered people, evaluations and benchmarks, with what each is
    for.

    Example: fitkit recipe list
    """
    from fitkit.io.resources import RECIPE_KINDS, recipe_names, recipe_summary

    for kind in RECIPE_KINDS:
        names = recipe_names(kind)
        width = max(12, *map(len, names))
        click.echo(f"{kind}: {USES[kind]}")
        for name in names:
            click.echo(f"  {name:{width}} {recipe_summary(kind, name)}")


@recipe.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def show(name, overrides):
    """Print fit recipe NAME (or the file of that path) as YAML: all options with their values and what they
    mean.

    Example: fitkit recipe show multiview expression.shared=true
    """
    from fitkit.fitting.recipe import load_recipe
    from fitkit.io.explained import explained_yaml

    click.echo(explained_yaml(load_recipe(name, overrides)), nl=False)
