"""`fitkit export`: a result as files that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.cli.fit import texture_size_option
from fitkit.cli.loading import loading
from fitkit.export.targets import LEAST_VERTICES, SPELLINGS, TARGETS, ExportOptions


def _help() -> str:
    targets = "\n".join(f"  {name:17} {target.about}" for name, target in TARGETS.items())
    return (
        "Write the result folder RESULT as files that another tool reads:\n\n\b\n"
        f"{targets}\n\nSteps for each tool: docs/export.md.\n\n"
        "Example: fitkit export photos_of_anna/fitkit --for blender"
    )


@click.command(help=_help())
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--for", "target", type=click.Choice(list(TARGETS)), required=True, help="The tool.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="New folder to write; default: SUBJECT_TOOL in the current folder.",
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the photos; default: the folder around RESULT.",
)
@click.option(
    "--arkit-names",
    type=click.Choice(SPELLINGS),
    default="apple",
    show_default=True,
    help="Spelling of expression shapes: browDownLeft (apple) or browDown_L (suffix).",
)
@click.option(
    "--vertices",
    type=click.IntRange(min=LEAST_VERTICES),
    default=None,
    metavar="N",
    help="With --for blender and usd: a coarser mesh of about N vertices, more where it would tear.",
)
@click.option("--wireframe", is_flag=True, help="With --for turntable: draw the edges of the mesh.")
@texture_size_option
@click.option(
    "--texture-layout",
    default="",
    metavar="NAME|PATH",
    help="With --for textures: the face model whose UV layout the maps have; default: that of RESULT.",
)
def export(result, target, output, photos, arkit_names, vertices, wireframe, texture_size, texture_layout):
    with loading():
        from fitkit.export.load import load_result
        from fitkit.export.targets import export_result
        from fitkit.io.result_folder import stems_of

    loaded = load_result(result, photos=photos)
    place = output or Path(f"{stems_of([loaded.subject.name])[0]}_{target}")
    size = None if texture_size is None else int(texture_size)
    options = ExportOptions(arkit_names, size, vertices, wireframe, texture_layout)
    path, notes = export_result(loaded, target, place, options)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {path}")
