"""The command `fitkit`. Each subcommand loads when it is called, so that `--help` is quick."""
from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec

import click

from fitkit import __version__
from fitkit.errors import FitkitError

# name -> (module:attribute, line in `fitkit --help`); a command whose module is not installed is left out.
COMMANDS = {
    "fit": ("fitkit.cli.fit:fit", "Fit a face to all photos of one person."),
    "batch": ("fitkit.cli.batch:batch", "Fit each of many subjects."),
    "predict": ("fitkit.cli.predict:predict", "Predict a face from photos by a trained network, without a fit."),
    "detect": ("fitkit.cli.detect:detect", "Find faces and their 68 landmarks; write them as files to correct by hand."),
    "energies": ("fitkit.cli.energies:energies", "List what a fit or a training can minimize."),
    "recipe": ("fitkit.cli.recipe:recipe", "Show the fit recipes."),
    "model": ("fitkit.cli.model:model", "List, inspect, import and fetch face models."),
    "synth": ("fitkit.cli.synth:synth", "Render people with known shape, for training and tests."),
    "train-landmarks": ("fitkit.cli.train_landmarks:train_landmarks", "Train the built-in landmark detector."),
    "train-regressor": ("fitkit.cli.train_regressor:train_regressor", "Train a network that predicts faces from photos."),
    "export-regressor": ("fitkit.cli.export_regressor:export_regressor", "Write a trained network as TorchScript or ONNX."),
    "distill": ("fitkit.cli.distill:distill", "Fit photos and train a network on the fits, in rounds."),
    "bench": ("fitkit.cli.bench:bench", "Measure accuracy and speed of the fit."),
    "evaluate": ("fitkit.cli.evaluate:evaluate", "Score fits on public benchmarks by their own protocols."),
}
MAX_THREADS = 8  # the matrices of a fit are too small for more


class Commands(click.Group):
    """A group that imports a command when it is called, and turns every error into one sentence and an exit code."""

    def list_commands(self, ctx):
        return [name for name, (path, _) in COMMANDS.items() if find_spec(path.partition(":")[0]) is not None]

    def get_command(self, ctx, name):
        if name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        settle_threads()
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def parse_args(self, ctx, args):
        ctx.meta["fitkit.verbose"] = "--verbose" in args or "-v" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except FitkitError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("\ninterrupted; nothing was written", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a user gets a sentence
            unexpected(error, ctx.meta["fitkit.verbose"])
            ctx.exit(2)


def unexpected(error: Exception, verbose: bool) -> None:
    """Report an error that is our mistake, or that of a package below us."""
    if verbose:
        click.echo("".join(traceback.format_exception(error)), err=True)
    text = " ".join(str(error).split()) or "no message"
    hint = "" if verbose else "; run with --verbose for details"
    click.echo(f"Error: unexpected {type(error).__name__}: {text[:300]}{hint}", err=True)


def settle_threads() -> None:
    """Thread settings that must be made before torch loads; what the user has set stays."""
    if "torch" in sys.modules:
        return
    # Threads of torch that wait by spinning take the cores from numba and OpenCV.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(min(cores, MAX_THREADS)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fitkit")
def main():
    """Fit a 3D face model to all photos of one person.

    Example: fitkit fit photos_of_anna/
    """
