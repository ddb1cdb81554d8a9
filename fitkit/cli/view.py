"""`fitkit view`: the page of a result, or of a batch, in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

import click

from fitkit.cli.loading import loading
from fitkit.errors import InputError


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="The page to write; default: RESULT/report.html.",
)
@click.option(
    "--open/--no-open", "opened", default=True, help="Open it in a browser, or only print its path."
)
def view(result, output, opened):
    """Show a result, or a batch, in a browser.

    RESULT is the folder of a result, that of the photos around it, or the output of 'fitkit batch'. The page
    is one file that needs no network and nothing beside it: photos with the mesh over them, the face in 3D,
    the numbers in words; of a batch a row for each subject. It is made anew from the files of the result.

    Example: fitkit view photos_of_anna/fitkit
    """
    with loading():
        from fitkit.export.pages.batch import write_batch_page
        from fitkit.export.pages.fit import write_fit_page
        from fitkit.fitting.batch_records import REPORT
        from fitkit.io.subject import OUTPUT_FOLDER, is_result

    if (result / REPORT).is_file():
        page = write_batch_page(result, output)
    elif is_result(result):
        page = write_fit_page(result, output)
    elif is_result(result / OUTPUT_FOLDER):
        page = write_fit_page(result / OUTPUT_FOLDER, output)
    else:
        raise InputError(
            f"{result}: expected the folder of a result, with metrics.json and parameters.npz, or of a "
            f"batch, with {REPORT}"
        )
    click.echo(page)
    if opened and not (has_screen() and webbrowser.open(page.resolve().as_uri())):
        click.echo("note: no browser was found here; open the page in one", err=True)


def has_screen() -> bool:
    """Whether a browser can open a window; without one, `webbrowser` would start one in the terminal."""
    if sys.platform != "linux" or "BROWSER" in os.environ:
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
