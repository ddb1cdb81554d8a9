"""`fitkit batch`: fits of all subjects below a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fitkit.cli.fit import pictures_option, recipe_changes, recipe_options, tell_log
from fitkit.errors import FitError, InputError
from fitkit.io.progress import Progress


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the results, laid out as FOLDER.",
)
@recipe_options
@click.option(
    "--workers", type=int, default=1, show_default=True, metavar="W", help="Processes, each with one thread."
)
@click.option(
    "--batch-size",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Subjects that a process fits side by side.",
)
@click.option("--resume", is_flag=True, help="Keep the results that are there, fit the rest.")
@click.option("--light", is_flag=True, help="Write parameters and numbers only, no meshes and pictures.")
@pictures_option
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def batch(
    folder, overrides, output, recipe, workers, batch_size, resume, light, pictures, device, quiet, **options
):
    """Fit one face to each subject folder below FOLDER.

    OUTPUT/batch.json says what became of each subject: its status, its expected error, and the reason why it
    is not ok; OUTPUT/report.html shows it, to open in a browser ('fitkit view OUTPUT'). A subject that cannot
    be fitted does not end the batch, whatever the reason; with two workers or more not even when its process
    is killed. The exit code is 0 when each has a face, ok or doubtful.

    Example: fitkit batch people/ -o fits --workers 8
    """
    from tqdm import tqdm

    from fitkit.fitting.batch import REPORT, fit_folder, summary
    from fitkit.fitting.recipe import load_recipe

    settled = load_recipe(recipe, overrides, recipe_changes(**options))
    try:
        verbose = click.get_current_context().meta.get("fitkit.verbose", False)
        with tqdm(unit="subject", disable=quiet or None) as bar, tell_log(verbose):

            def show(step):
                bar.total, row = step.count, step.item
                bar.update(step.done - bar.n)
                if row is not None and row.status != "ok" and not quiet:
                    error = "" if row.expected_mm is None else f", expected error {row.expected_mm:.1f} mm"
                    bar.write(f"{row.subject}: {row.status}{error}: {row.message}", file=sys.stderr)

            rows = fit_folder(
                folder,
                output,
                settled,
                workers,
                resume,
                light,
                device,
                Progress(show),
                pictures,
                batch_size,
            )
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; what is finished is in {output}, go on with --resume", err=True)
        sys.exit(130)
    numbers, page = summary(rows), _write_page(output)
    expected = (
        ""
        if numbers["expected_mm"] != numbers["expected_mm"]
        else f"expected error {numbers['expected_mm']:.1f} mm, "
    )
    means = ""
    if numbers["subjects"] > numbers["error"]:
        means = (
            f"; mean {expected}reprojection error {100 * numbers['reprojection_share']:.1f} % of the face "
            f"size, {numbers['seconds']:.2f} s and {numbers['iterations']:.0f} iterations in the solver"
        )
    click.echo(
        f"{numbers['subjects']} subjects: "
        + ", ".join(f"{numbers[s]} {s}" for s in ("ok", "doubtful", "failed", "error"))
        + f"{means}; {page or output / REPORT}"
    )
    lost = [r for r in rows if r.status not in ("ok", "doubtful")]
    if lost:
        again = (
            "; --resume tries those with status error again" if any(r.status == "error" for r in lost) else ""
        )
        raise FitError(
            f"{'none' if len(lost) == len(rows) else f'{len(lost)}'} of the {len(rows)} subjects of {folder} "
            f"could {'' if len(lost) == len(rows) else 'not '}be fitted; {output / REPORT} says why{again}"
        )


def _write_page(output: Path) -> Path | None:
    """report.html of the batch; None, and a warning, where it cannot be written, which costs no fit."""
    from fitkit.export.pages.batch import write_batch_page

    try:
        return write_batch_page(output)
    except InputError as error:
        click.echo(f"warning: no page of the batch: {error}", err=True)
        return None
