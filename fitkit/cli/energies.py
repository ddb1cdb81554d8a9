"""`fitkit energies`: what a fit or a training can minimize."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the page docs/energies.md.")
def energies(name, markdown):
    """List the energies, or describe the one called NAME.

    Example: fitkit energies flow_corr
    """
    from fitkit.energies.registry import describe, find, page, text

    if name is not None:
        click.echo(describe(find(name)))
    elif markdown:
        click.echo(page(), nl=False)
    else:
        click.echo(text())
