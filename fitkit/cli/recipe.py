"""`fitkit recipe ...`: the recipes that can be given to `fitkit fit --recipe`."""
from __future__ import annotations

import click


@click.group()
def recipe():
    """Show the fit recipes.

    Example: fitkit recipe list
    """


@recipe.command("list")
def list_command():
    """List the recipes that come with fitkit.

    Example: fitkit recipe list
    """
    from fitkit.io.resources import recipe_names, recipe_path

    for name in recipe_names("fit"):
        first = recipe_path("fit", name).read_text(encoding="utf-8").partition("\n")[0]
        click.echo(f"{name:12} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())


@recipe.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def show(name, overrides):
    """Print recipe NAME (or the file of that path) with every option and its value, as YAML.

    Example: fitkit recipe show multiview expression.shared=true
    """
    import yaml

    from fitkit.export.folder import plain
    from fitkit.fit.recipe import load_recipe
    from fitkit.io.options import to_plain

    click.echo(yaml.safe_dump(plain(to_plain(load_recipe(name, overrides))), sort_keys=False, allow_unicode=True), nl=False)
