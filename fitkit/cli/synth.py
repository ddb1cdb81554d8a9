"""`fitkit synth`: rendered subjects with known shape."""

from __future__ import annotations

import click

from fitkit.io.progress import Progress


@click.command()
@click.argument("output", type=click.Path(), metavar="OUT")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--subjects", type=int, default=10, show_default=True, metavar="N", help="People.")
@click.option("--views", type=int, default=None, metavar="V", help="Cameras; default: the recipe's.")
@click.option(
    "--frames",
    type=int,
    default=None,
    metavar="F",
    help="Moments, each seen by every camera; default: the recipe's.",
)
@click.option(
    "--model", default=None, metavar="NAME|PATH", help="Face model, or makehuman; default: the recipe's."
)
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    metavar="NAME|PATH",
    help="default, clean, outside, casual, or a .yaml.",
)
@click.option(
    "--size", type=int, default=None, metavar="PX", help="Side of the square pictures; default: the recipe's."
)
@click.option("--seed", type=int, default=None, help="Another seed, other people; default: the recipe's.")
@click.option(
    "--landmark-noise",
    type=float,
    default=None,
    metavar="PX",
    help="Standard deviation of the points in the .pts files.",
)
@click.option("--cameras", is_flag=True, help="Write cameras.json, with the moments of a rig.")
@click.option(
    "--renderer",
    type=click.Choice(["own", "mitsuba"]),
    default=None,
    help="mitsuba: path tracing, from fitkit[synth].",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    metavar="W",
    help="Processes; the files do not depend on it.",
)
@click.option("--resume", is_flag=True, help="Keep the subjects that are in OUT and make the missing ones.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def synth(
    output,
    overrides,
    subjects,
    views,
    frames,
    model,
    recipe,
    size,
    seed,
    landmark_noise,
    cameras,
    renderer,
    workers,
    resume,
    quiet,
):
    """Render people who do not exist, as subject folders OUT/subject_00000 ... with their truth in
    OUT/ground_truth.

    The folders can be given to `fitkit fit`, OUT to `fitkit bench accuracy`. KEY=VALUE changes the recipe,
    e.g. light=per_view, expression=per_view, variation.yaw=80 or variation.backgrounds=PICTURES/. What the
    files mean: docs/synthetic.md.

    Example: fitkit synth people/ --model ict --subjects 50 --views 3 --workers 2
    """
    from tqdm import tqdm

    from fitkit.synth.folder import write_subjects
    from fitkit.synth.recipe import load_synth_recipe

    given = {
        "views": views,
        "frames": frames,
        "model": model,
        "size": size,
        "seed": seed,
        "landmark_noise": landmark_noise,
        "cameras": cameras or None,
        "renderer": renderer,
    }
    settled = load_synth_recipe(
        recipe, overrides, {key: value for key, value in given.items() if value is not None}
    )
    with tqdm(total=subjects * settled.pictures, unit="picture", disable=quiet or None) as bar:

        def made(step):
            if bar.n == 0 and step.done:
                # What was there before is not counted into the speed.
                bar.initial = step.done * settled.pictures
            bar.update(step.done * settled.pictures - bar.n)

        try:
            write_subjects(settled, subjects, output, workers, resume, Progress(made))
        except KeyboardInterrupt:
            bar.close()
            click.echo("\ninterrupted; finished subjects stay, go on with --resume", err=True)
            raise click.exceptions.Exit(130) from None
    click.echo(f"written: {subjects} subjects with {settled.pictures} pictures each in {output}")
