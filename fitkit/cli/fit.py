"""`fitkit fit`: photos of one person -> one face, as a folder of results."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from fitkit.cli.loading import loading
from fitkit.cli.progress import share_bar
from fitkit.errors import FitError, InputError
from fitkit.io.termination import Terminated

texture_size_option = click.option(
    "--texture-size",
    type=click.Choice(["512", "1024", "2048", "4096"]),
    default=None,
    help="Side of texture.png and albedo.png in pixels; default: the recipe's, 1024.",
)
RECIPE_OPTIONS = (
    click.option(
        "--recipe",
        default="multiview",
        show_default=True,
        metavar="NAME|PATH",
        help="What is fitted in which stages; see 'fitkit recipe list'.",
    ),
    click.option(
        "--model",
        default=None,
        metavar="NAME|PATH",
        help="Face model; default: the recipe's. See 'fitkit model list'.",
    ),
    click.option(
        "--landmarks",
        default=None,
        metavar="auto|files|builtin|builtin3d|fan|fan3d|mediapipe|onnx:PATH",
        help="Where the 68 points come from; auto: files, and for photos without fan, if its weights are "
        "here, or builtin.",
    ),
    click.option(
        "--jaw",
        type=click.Choice(["auto", "outline", "surface"]),
        default=None,
        help="What landmarks 0-16 are: the visible outline, or fixed points on the skin.",
    ),
    click.option(
        "--init",
        type=click.Choice(["auto", "landmarks", "regressor"]),
        default=None,
        help="Where the fit starts: the mean face at the pose of the landmarks, a network's prediction, or "
        "the better of both (the recipes' default).",
    ),
    click.option(
        "--init-weights",
        default=None,
        metavar="FILE",
        help="Network for --init auto and regressor; default: the one that comes with fitkit.",
    ),
    click.option("--share-expression", is_flag=True, help="One expression for all photos."),
    click.option(
        "--detail/--no-detail",
        default=None,
        help="A smooth displacement beyond the face model, where the matches between the photos show one.  "
        "[default: as the recipe says]",
    ),
    texture_size_option,
    click.option("--seed", type=int, default=None, help="Seed of everything random."),
    click.option(
        "--flow",
        default=None,
        metavar="dis[:PRESET]|farneback|ptlflow:NAME",
        help="What finds the matches between photos; default: the recipe's, dis.",
    ),
    click.option(
        "--flow-weights",
        default=None,
        metavar="FILE",
        help="Weights for --flow ptlflow:NAME; default: published ones, fetched on first use.",
    ),
)


pictures_option = click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Draw texture, overlays, preview and the other pictures, or leave them out.",
)


def recipe_options(command):
    """The options that choose a recipe and change it; `recipe_changes` takes their values."""
    for option in reversed(RECIPE_OPTIONS):
        command = option(command)
    return command


def recipe_changes(
    model,
    landmarks,
    jaw,
    init,
    init_weights,
    share_expression,
    detail,
    texture_size,
    seed,
    flow,
    flow_weights,
) -> dict:
    """What the options change in a recipe."""
    nested = {
        "landmarks": {"source": landmarks, "jaw": jaw},
        "init": {"source": init, "weights": init_weights},
        "flow": {"estimator": flow, "weights": flow_weights},
        "expression": {"shared": share_expression or None},
        "detail": {"enabled": detail},
        "texture": {"size": None if texture_size is None else int(texture_size)},
    }
    changes: dict = {key: {k: v for k, v in part.items() if v is not None} for key, part in nested.items()}
    return changes | {k: v for k, v in (("model", model), ("seed", seed)) if v is not None}


OUTPUT_HELP = (
    "Folder of the results; default: FOLDER/fitkit, or for photos STEM_fitkit beside the first one, STEM.jpg."
)


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], tuple[str, ...]]:
    """A folder or photos, then KEY=VALUE -> (paths, overrides).

    Raises:
        InputError: a folder together with something else, or a file that is no photo.
    """
    with loading():
        from fitkit.io.subject import check_photo, is_photo

    count = 1
    while count < len(arguments) and (
        os.path.exists(arguments[count]) or (is_photo(arguments[count]) and "=" not in arguments[count])
    ):
        count += 1
    paths = [Path(a) for a in arguments[:count]]
    folders = [p for p in paths if p.is_dir()]
    if folders and count > 1:
        other = paths[1] if paths[0] is folders[0] else paths[0]
        raise InputError(
            f"{folders[0]}: a folder was given together with {other}; give one folder, or photos only"
        )
    for path in paths if count > 1 or is_photo(paths[0]) else ():
        check_photo(path)
    return paths, tuple(arguments[count:])


def default_output(paths: Sequence[Path]) -> Path:
    """Where the result of a folder, or of photos, goes unless it is said."""
    from fitkit.io.subject import OUTPUT_FOLDER, is_photo

    return (
        paths[0].with_name(f"{paths[0].stem}_{OUTPUT_FOLDER}")
        if is_photo(paths[0])
        else paths[0] / OUTPUT_FOLDER
    )


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="FOLDER|PHOTO... [KEY=VALUE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help=OUTPUT_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@recipe_options
@pictures_option
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and doubts about the result.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Print what each stage does; traceback of unexpected errors."
)
def fit(arguments, recipe, output, overwrite, pictures, device, quiet, verbose, **options):
    """Fit one face to all photos in FOLDER, or to each PHOTO given; all must show the same person.

    Beside the photos may lie landmarks (photo.pts, .npy, .json, .txt), cameras.json and masks/. KEY=VALUE
    changes an option of the recipe, e.g. camera.focal_sigma=0.1 or stages.fine.solver.max_iterations=10.

    The exit code is 0 when the result can be used, 1 when the fit failed or the input cannot be used.

    Example: fitkit fit photos_of_anna/ --model ict -o anna_3d

    Example: fitkit fit front.jpg left.jpg
    """
    paths, overrides = split_arguments(arguments)
    changes = recipe_changes(**options)
    target, written = output or default_output(paths), None
    try:
        with share_bar(quiet or verbose) as progress, tell_log(verbose):
            began = time.perf_counter()
            progress.at(0.0, "loading")
            result, path = _run(
                paths, recipe, overrides, changes, target, overwrite, pictures, device, progress
            )
            written = path
            seconds = time.perf_counter() - began
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted; the result is in {written}" if written else "\ninterrupted; nothing was written",
            err=True,
        )
        sys.exit(130)
    tell_result(result, seconds, path, quiet, told=verbose)
    if result.status == "failed":
        raise FitError(
            f"the fit failed, so the face is not to be used: {result.warnings[0]}; "
            + (f"look at {path / 'overlay'}" if pictures else "fit without --no-pictures to see it")
        )


def tell_result(
    result, seconds: float, path: Path, quiet: bool, told: bool = False, solver: str = "solver"
) -> None:
    """Print the status with the expected error, what is wrong (unless it was told before), the numbers of the
    result, and then the notes."""
    from fitkit.fitting.report import status_line

    if not quiet:
        click.echo(f"{'status':11}{status_line(result.report)}")
    for line in () if told else result.warnings:
        click.echo(f"warning: {line}", err=True)
    if quiet:
        return
    click.echo(_summary(result, seconds, path, solver))
    for line in () if told else result.notes:
        click.echo(f"note: {line}", err=True)


def _run(paths, recipe, overrides, changes, output, overwrite, pictures, device, progress):
    """Check everything that can be checked at once, then load, fit and save -> (FitResult, path)."""
    from fitkit.fitting.depth_evidence import check_depth
    from fitkit.fitting.recipe import load_recipe
    from fitkit.fitting.run import check_device
    from fitkit.fitting.run import fit as run_fit
    from fitkit.io.result_folder import check_output
    from fitkit.models.registry import load_model

    with _insistent_interrupt():
        settled = load_recipe(recipe, overrides, changes)
        if paths[0].exists():  # otherwise reading it says what is wrong
            output = check_output(output, overwrite)
        check_device(device)
        check_depth(settled)
        model = load_model(settled.model)
        progress.at(0.02, "reading photos")
        subject = read(paths, output)
        result = run_fit(
            subject,
            model=model,
            recipe=settled,
            device=device,
            progress=progress.part(0.05, 0.7),
        )
    progress.at(0.7, "writing the result")
    path = result.save(output, overwrite, pictures=pictures)
    progress.at(1.0, "done")
    return result, path


def read(paths: Sequence[Path], output: Path):
    """The subject in a folder, or in photos; an output folder among the photos is none of them."""
    from fitkit.io.subject import read_subject

    return read_subject(paths, ignore=[output] if output.parent.resolve() == paths[0].resolve() else [])


@contextmanager
def _insistent_interrupt():
    """Ctrl-C and SIGTERM end the block, also when numba, interrupted while it compiles, drops the
    KeyboardInterrupt or fails with another error: it is raised again every half second, and any error after
    it counts as it. Not for blocks that clean up."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    pressed = None

    def interrupt(number, frame):
        nonlocal pressed
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        if number == signal.SIGTERM:
            with suppress(Terminated):  # `sigterm_raises` takes note
                before[number](number, frame)
        pressed = pressed or (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise pressed

    taken = [signal.SIGINT, signal.SIGALRM] + [signal.SIGTERM] * callable(signal.getsignal(signal.SIGTERM))
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    except Exception as error:
        if not pressed:
            raise
        raise pressed from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed:
        raise pressed


def _summary(result, seconds: float, path: Path, solver: str) -> str:
    from fitkit.io.result_folder import PAGE

    metrics = result.metrics
    left_out = sum(f["code"] == "left_out" for f in metrics["verdict"]["findings"])
    rows = {
        "views": f"{metrics['num_views']}" + (f" ({left_out} left out)" if left_out else ""),
        "landmarks": f"{metrics['reprojection_px']:.2f} px mean reprojection error, "
        f"{100 * metrics['reprojection_share']:.1f} % of the face size",
        "verdict": metrics["verdict"]["summary"],
    }
    if "detail" in metrics:
        detail = metrics["detail"]
        rows["detail"] = (
            f"{detail['mean_mm']:.2f} mm mean displacement of the face, from {detail['matches']} matches"
            if detail["sigma_mm"]
            else "none: "
            + (
                "it needs two photos"
                if len(metrics["views"]) < 2
                else "the matches show none beyond the face model"
            )
        )
    rows |= {
        "time": f"{seconds:.1f} s ({metrics['time_s']['solve']:.1f} s of it in the {solver})",
        "result": str(path),
    }
    if (path / PAGE).is_file():
        rows["page"] = str(path / PAGE)
    return "\n".join(f"{key:11}{value}" for key, value in rows.items())


@contextmanager
def tell_log(verbose: bool):
    """With `verbose`, what the library logs goes to stderr."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("fitkit"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
