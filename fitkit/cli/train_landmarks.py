"""`fitkit train-landmarks`: train the network of the built-in landmark detector."""

from __future__ import annotations

import sys

import click

from fitkit.cli.progress import training_bar


@click.command("train-landmarks")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o", "--output", type=click.Path(), required=True, help="Folder for weights, checkpoint and log."
)
@click.option("--resume", is_flag=True, help="Go on with the training that is in the folder.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def train_landmarks(recipe, overrides, output, resume, device, quiet):
    """Train the landmark network as RECIPE says (a name, or the path of a .yaml file).

    The folder of pictures with .pts files is given as frames.folder=FOLDER. Rendered faces are made on first
    use. log.csv in the output folder gets one line at each checkpoint.

    Example: fitkit train-landmarks landmarks frames.folder=faces68 -o training
    """
    from fitkit.train.landmark_recipe import load_landmark_training
    from fitkit.train.landmarks import train_landmarks as train

    settings = load_landmark_training(recipe, overrides)
    try:
        with training_bar(quiet) as bar:
            path = train(settings, output, device, resume, bar.step_done, bar.line, bar.begun)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on from the last checkpoint with --resume -o {output}", err=True)
        sys.exit(130)
    click.echo(f"written: {path}")
