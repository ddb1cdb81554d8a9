"""`fitkit distill`: rounds of fits of photos and trainings on these fits."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fitkit.cli.batch import data_options
from fitkit.cli.progress import training_bar
from fitkit.io.progress import Progress


@click.command()
@click.argument("photos", metavar="DATA")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the rounds.")
@click.option("--rounds", type=int, default=2, show_default=True, help="Fits and a training each.")
@click.option(
    "--fit-recipe", default="landmarks", show_default=True, metavar="NAME|PATH", help="Recipe of the fits."
)
@click.option(
    "--fit",
    "fit_overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change an option of the fits' recipe; may be repeated.",
)
@click.option(
    "--init-weights",
    default="",
    metavar="FILE",
    help="Network that the first fits may start from; default: none.",
)
@data_options
@click.option("--workers", type=int, default=1, show_default=True, metavar="W", help="Processes that fit.")
@click.option("--resume", is_flag=True, help="Go on with the rounds that are in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def distill(
    photos,
    recipe,
    overrides,
    output,
    rounds,
    fit_recipe,
    fit_overrides,
    init_weights,
    data_options,
    landmark_folder,
    workers,
    resume,
    quiet,
):
    """Fit all subjects of DATA (as of fitkit batch: a folder of subject folders, a table of photos,
    KIND:PATH), train the network of RECIPE on the fits, fit again from where it starts, and so on.

    RECIPE is one of fitkit train-regressor with a data set 'fits'; KEY=VALUE changes it. OUTPUT/distill.json
    compares the rounds.

    Example: fitkit distill people/ fitkit-init data.synthetic.folder=rendered data.frames.folder=people -o
    rounds
    """
    from fitkit.data.subject_sets import SubjectSource
    from fitkit.train.distill import distill as run

    try:
        with training_bar(quiet) as bar:

            def fit_done(step):
                if step.item is None:
                    bar.begun(step.done, step.count, "subject")
                else:
                    bar.step_done(step.done, {})

            report = run(
                SubjectSource(photos, tuple(data_options), landmark_folder),
                recipe,
                output,
                rounds,
                fit_recipe,
                overrides,
                fit_overrides,
                workers,
                resume,
                init_weights,
                Progress(fit_done),
                bar.step_done,
                bar.line,
                bar.begun,
            )
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on with --resume -o {output}", err=True)
        sys.exit(130)
    for number, entry in enumerate(report["rounds"], 1):
        fits, metrics = entry["fits"], entry["training"]
        click.echo(
            f"round {number}: {fits['ok']} of {fits['subjects']} fits ok, {fits['from_the_network']} from "
            f"the network, reprojection {100 * fits['reprojection_share']:.2f} %, {fits['iterations']:.0f} "
            "iterations; network: " + ", ".join(f"{k} {v:.3g}" for k, v in metrics.items())
        )
