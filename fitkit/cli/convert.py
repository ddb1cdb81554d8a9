"""`fitkit convert`: the result of a fit with another face model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fitkit.cli.fit import pictures_option, texture_size_option
from fitkit.cli.loading import loading


@click.command()
@click.argument("result", type=click.Path(path_type=Path), metavar="RESULT")
@click.option(
    "--to",
    "model",
    required=True,
    metavar="NAME|PATH",
    help="Face model of the new result; see 'fitkit model list'.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the new result; default: RESULT_MODEL, beside RESULT.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@click.option(
    "--expression",
    type=click.Choice(["auto", "names", "surface"]),
    default="auto",
    show_default=True,
    help="How expressions come over: weights by the names of the blend shapes, the nearest surface, or by "
    "names where the new model has all shapes that are on.",
)
@click.option(
    "--detail/--no-detail",
    default=True,
    show_default=True,
    help="A displacement for what the shapes of the new model cannot show.",
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the photos that were fitted; default: that around RESULT.",
)
@pictures_option
@texture_size_option
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and doubts about the result.")
def convert(result, model, output, overwrite, expression, detail, photos, pictures, texture_size, quiet):
    """Write the face in the result folder RESULT, of 'fitkit fit' or 'fitkit predict', with another face
    model, as a result folder of its own.

    The first conversion between two models takes some seconds more: it finds which point of one is which of
    the other, and keeps that beside the models.

    Example: fitkit convert anna/fitkit --to ict
    """
    with loading():
        from fitkit.export.load import load_result
        from fitkit.export.texture import with_texture_size
        from fitkit.fitting.convert import convert as run
        from fitkit.io.result_folder import check_output, stems_of
        from fitkit.models.registry import load_model

    target = load_model(model)
    place = Path(os.path.abspath(result))
    beside = place.with_name(f"{place.name}_{stems_of([target.name])[0]}")
    path = check_output(output or beside, overwrite)
    converted = run(load_result(result, photos=photos), target, expression, detail)
    converted = with_texture_size(converted, None if texture_size is None else int(texture_size))
    path = converted.save(path, overwrite, pictures=pictures)
    tell(converted, path, quiet)


def tell(result, path: Path, quiet: bool) -> None:
    """Print the status, what is wrong, how far the two faces are apart, and the notes."""
    from fitkit.fitting.report import status_line

    for line in result.warnings:
        click.echo(f"warning: {line}", err=True)
    if quiet:
        return
    c = result.report.conversion
    rows = {
        "status": status_line(result.report),
        "model": f"{c.source} -> {result.model.name}, expressions by {c.expression}",
        "neutral": f"{c.neutral_mean_mm:.2f} mm mean distance, {c.neutral_largest_mm:.1f} mm at most; by "
        f"coefficients alone {c.coefficients_mean_mm:.2f} and {c.coefficients_largest_mm:.1f} mm",
        "photos": f"{c.views_mean_mm:.2f} mm mean distance, {c.views_largest_mm:.1f} mm at most",
        "result": str(path),
    }
    for key, value in rows.items():
        click.echo(f"{key:11}{value}")
    for line in result.notes:
        click.echo(f"note: {line}", err=True)
