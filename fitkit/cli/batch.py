"""`fitkit batch`: fits of all subjects of a data set."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fitkit.cli.fit import pictures_option, recipe_changes, recipe_options, tell_log
from fitkit.cli.progress import batch_bar
from fitkit.errors import FitError, InputError

DATA_OPTIONS = (
    click.option(
        "--data",
        "data_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change an option of the kind of data set; may be repeated.",
    ),
    click.option(
        "--landmark-folder",
        default="",
        metavar="DIR",
        help="Tree of landmark files like that of the photos, as fitkit detect --tree writes it.",
    ),
)


def data_options(command):
    """The options that say where subjects come from, beside the argument DATA."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("data")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the results, laid out as DATA.",
)
@recipe_options
@data_options
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    metavar="W",
    help="Processes, each with one thread; of slurm jobs, of ray tasks at a time.",
)
@click.option(
    "--batch-size",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Subjects that a process fits side by side.",
)
@click.option(
    "--engine",
    default="processes",
    show_default=True,
    metavar="processes|slurm|ray",
    help="What runs the fits: this machine, or a cluster.",
)
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of slurm (e.g. partition=gpu) or ray (e.g. address=auto); may be repeated.",
)
@click.option(
    "--shard",
    default=None,
    metavar="I/N|auto",
    help="Fit part I of N only; auto: the job array that this process is a task of says which.",
)
@click.option("--collect", is_flag=True, help="Fit nothing; gather what shards have done, and judge it.")
@click.option(
    "--timeout",
    type=float,
    default=None,
    metavar="SECONDS",
    help="End the fit of a subject that takes longer.",
)
@click.option(
    "--retries",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Further tries for subjects whose process was killed, or that ran out of time or memory.",
)
@click.option("--resume", is_flag=True, help="Keep the results that are there, fit the rest.")
@click.option("--light", is_flag=True, help="Write parameters and numbers only, no meshes and pictures.")
@pictures_option
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def batch(
    data,
    overrides,
    output,
    recipe,
    data_options,
    landmark_folder,
    workers,
    batch_size,
    engine,
    engine_options,
    shard,
    collect,
    timeout,
    retries,
    resume,
    light,
    pictures,
    device,
    quiet,
    **options,
):
    """Fit one face to each subject of DATA: a folder of subject folders, a table of photos (.csv or .jsonl
    with the columns subject, photo, camera, moment, landmarks, mask), or KIND:PATH of a public data set.

    OUTPUT/batch.json says what became of each subject: its status, its expected error, and the reason why it
    is not ok; OUTPUT/report.html shows it, to open in a browser ('fitkit view OUTPUT'). A subject that cannot
    be fitted does not end the batch, whatever the reason; with two workers or more, or a timeout, not even
    when its process is killed. The exit code is 0 when each has a face, ok or doubtful.

    Kinds: 300vw, 300wlp, aflw2000, bosphorus, bu3dfe, facescape-lab, facescape-wild, facewarehouse,
    florence-renders, folders, manifest, micc, multipie, nersemble, now, pixel-face, realy.

    Example: fitkit batch people/ -o fits --workers 8

    Example: fitkit batch multipie:MultiPIE -o fits --data triplets=1 --shard 3/10
    """
    from fitkit.data.subject_sets import SubjectSource
    from fitkit.fitting import batch as run
    from fitkit.fitting.batch_records import REPORT, summary_text
    from fitkit.fitting.recipe import load_recipe
    from fitkit.io.array_job import parse_shard

    source = SubjectSource(data, tuple(data_options), landmark_folder)
    part = None if shard is None else parse_shard(shard)
    if collect and part is not None:
        raise InputError("--collect gathers what all shards have done; leave out --shard")
    if collect:
        rows = run.collect(source, output)
    else:
        settled = load_recipe(recipe, overrides, recipe_changes(**options))
        chosen = run.BatchOptions(
            workers,
            batch_size,
            resume,
            light,
            pictures,
            device,
            engine,
            tuple(engine_options),
            timeout,
            retries,
            part,
        )
        verbose = click.get_current_context().meta.get("fitkit.verbose", False)
        try:
            with batch_bar(quiet) as progress, tell_log(verbose):
                rows = run.fit_batch(source, output, settled, chosen, progress)
        except KeyboardInterrupt:
            click.echo(f"\ninterrupted; what is finished is in {output}, go on with --resume", err=True)
            sys.exit(130)
    click.echo(summary_text(rows) if rows else f"shard {part}: no subjects")
    whole = part is None or collect
    where = (_write_page(output) or output / REPORT) if whole else f"{output}; --collect gathers the shards"
    click.echo(f"{'result':10}{where}")
    lost = [r for r in rows if not r.usable]
    if lost:
        again = (
            "; --resume tries those with status error again" if any(r.status == "error" for r in lost) else ""
        )
        raise FitError(
            f"{'none' if len(lost) == len(rows) else f'{len(lost)}'} of the {len(rows)} subjects of {data} "
            f"could {'' if len(lost) == len(rows) else 'not '}be fitted; {where} says why{again}"
            if whole
            else f"{len(lost)} of the {len(rows)} subjects of shard {part} could not be fitted{again}"
        )


def _write_page(output: Path) -> Path | None:
    """report.html of the batch; None, and a warning, where it cannot be written, which costs no fit."""
    from fitkit.export.pages.batch import write_batch_page

    try:
        return write_batch_page(output)
    except InputError as error:
        click.echo(f"warning: no page of the batch: {error}", err=True)
        return None
