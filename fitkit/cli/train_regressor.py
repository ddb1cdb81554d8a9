"""`fitkit train-regressor`: train a network that predicts faces from photos."""

from __future__ import annotations

import sys

import click

from fitkit.cli.progress import training_bar


@click.command("train-regressor")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Folder for weights, card, checkpoint, log and pictures.",
)
@click.option("--resume", is_flag=True, help="Go on with the training that is in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def train_regressor(recipe, overrides, output, resume, quiet):
    """Train a network that predicts the face model from photos as RECIPE says (a name, or the path of a .yaml
    file).

    Folders of data sets are given as data.NAME.folder=FOLDER, options of a stage as stages.NAME.steps=1000,
    the device as accelerator=gpu devices=2 strategy=ddp precision=bf16-mixed. log.csv and tensorboard/ in the
    output folder show the energies.

    Example: fitkit train-regressor mvfnet data.lp.folder=300W_LP data.pie.folder=MULTIPIE -o training
    """
    from fitkit.train.regressor import train_regressor as train
    from fitkit.train.regressor_recipe import load_regressor_training

    settings = load_regressor_training(recipe, overrides)
    try:
        with training_bar(quiet) as bar:
            path = train(
                settings, output, resume, step_done=bar.step_done, progress=bar.line, begun=bar.begun
            )
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on from the last checkpoint with --resume -o {output}", err=True)
        sys.exit(130)
    click.echo(f"written: {path}")
