"""The command `fitkit`. Each subcommand loads when it is called, so that `--help` is quick."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec

import click

from fitkit import __version__
from fitkit.errors import FitkitError, unexpected
from fitkit.io.termination import sigterm_raises

# name -> (module:attribute, line in `fitkit --help`); a command whose module is not installed is left out.
COMMANDS = {
    "fit": ("fitkit.cli.fit:fit", "Fit a face to all photos of one person."),
    "batch": ("fitkit.cli.batch:batch", "Fit each of many subjects."),
    "predict": (
        "fitkit.cli.predict:predict",
        "Predict a face from photos by a trained network, without a fit.",
    ),
    "view": ("fitkit.cli.view:view", "Look at a result, or at a batch of them, in a browser."),
    "convert": ("fitkit.cli.convert:convert", "Write a result with another face model."),
    "detect": (
        "fitkit.cli.detect:detect",
        "Find faces and their 68 landmarks; write them as files to correct by hand.",
    ),
    "energies": ("fitkit.cli.energies:energies", "List what a fit or a training can minimize."),
    "recipe": ("fitkit.cli.recipe:recipe", "List the recipes that come with fitkit, show one."),
    "model": ("fitkit.cli.model:model", "List, inspect, import and fetch face models."),
    "synth": ("fitkit.cli.synth:synth", "Render people with known shape, for training and tests."),
    "train-landmarks": (
        "fitkit.cli.train_landmarks:train_landmarks",
        "Train the built-in landmark detector.",
    ),
    "train-regressor": (
        "fitkit.cli.train_regressor:train_regressor",
        "Train a network that predicts faces from photos.",
    ),
    "export": ("fitkit.cli.export:export", "Write a result as files that other tools read."),
    "export-regressor": (
        "fitkit.cli.export_regressor:export_regressor",
        "Write a trained network as TorchScript or ONNX.",
    ),
    "distill": ("fitkit.cli.distill:distill", "Fit photos and train a network on the fits, in rounds."),
    "bench": ("fitkit.cli.bench:bench", "Measure accuracy and speed of the fit."),
    "evaluate": ("fitkit.cli.evaluate:evaluate", "Score fits on public benchmarks by their own protocols."),
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what a disk says when it takes no more
MAX_THREADS = 8  # the matrices of a fit are too small for more


class Commands(click.Group):
    """A group that imports a command when it is called, and turns every error into one sentence and an exit
    code."""

    def list_commands(self, ctx):
        return [name for name, (path, _) in COMMANDS.items() if find_spec(path.partition(":")[0]) is not None]

    def get_command(self, ctx, name):
        if name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        settle_threads()
        return offer_verbose(getattr(import_module(module), attribute))

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def main(self, *args, **kwargs):
        settle_streams()
        with sigterm_raises() as came:
            try:
                return super().main(*args, **kwargs)
            except SystemExit:
                if came():
                    raise SystemExit(143) from None  # 128 + SIGTERM, as shells count
                raise

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
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # of a pipe whose reader has gone, click says nothing
        except OSError as error:
            if error.errno not in FULL:
                tell_unexpected(error, ctx.meta["fitkit.verbose"])
                ctx.exit(2)
            raise click.ClickException(
                f"{error.filename or 'a file'}: cannot be written ({error.strerror}); make room, or choose "
                "another place"
            ) from error
        except Exception as error:  # noqa: BLE001 - whatever it is, a user gets a sentence
            tell_unexpected(error, ctx.meta["fitkit.verbose"])
            ctx.exit(2)


def tell_unexpected(error: Exception, verbose: bool) -> None:
    """Report an error that is our mistake, or that of a package below us."""
    if verbose:
        click.echo("".join(traceback.format_exception(error)), err=True)
    click.echo(f"Error: {unexpected(error)}{'' if verbose else '; run with --verbose for details'}", err=True)


def offer_verbose(command: click.Command) -> click.Command:
    """Give a command, or each of a group, the option --verbose unless it has one; `Commands` sees to what it
    does."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            offer_verbose(inner)
    elif not any("--verbose" in option.opts for option in command.params):
        command.params.append(
            click.Option(
                ["-v", "--verbose"], is_flag=True, expose_value=False, help="Traceback of unexpected errors."
            )
        )
    return command


def settle_streams() -> None:
    """Standard streams that can be written: closed ones (2>&-) lead nowhere; file names that are not UTF-8
    show with escapes."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as we run
        elif name == "stdout" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _occupy(number: int) -> None:
    """Give a closed standard stream's number to the null device: the next file would get it, and what
    libraries print."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != number:
            os.dup2(null, number)
            os.close(null)


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
