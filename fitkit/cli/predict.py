"""`fitkit predict`: photos of one person -> one face, by a trained network alone."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fitkit.cli.fit import (
    OUTPUT_HELP,
    default_output,
    pictures_option,
    read,
    split_arguments,
    tell_result,
    texture_size_option,
)
from fitkit.cli.loading import loading
from fitkit.cli.progress import share_bar
from fitkit.errors import FitError, InputError


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="FOLDER|PHOTO...")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    help="regressor.safetensors of fitkit train-regressor; default: the network that comes with fitkit.",
)
@click.option(
    "--model",
    default=None,
    metavar="NAME|PATH",
    help="Face model of the result, converted if the network has another; default: that of the network.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help=OUTPUT_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@pictures_option
@texture_size_option
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
@click.option(
    "--landmarks",
    default="auto",
    show_default=True,
    metavar="auto|files|builtin|...",
    help="Where the 68 points come from.",
)
@click.option(
    "--pose",
    type=click.Choice(["network", "landmarks"]),
    default="network",
    show_default=True,
    help="Where heads are and how they are turned: as the network says, or as the landmarks have it.",
)
@click.option(
    "--repeat",
    is_flag=True,
    help="Put a single photo into all views of a network with named views.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and doubts about the result.")
def predict(
    photos, weights, model, output, overwrite, pictures, texture_size, device, landmarks, pose, repeat, quiet
):
    """Predict the face in the photos in FOLDER, or in each PHOTO given, with a trained network, without a
    fit.

    The result folder is that of 'fitkit fit'; of a network that gives depth, position maps, parts of the face
    or 3D points, it has a folder with one file for each photo of these. Landmarks say where the faces are and
    how they are turned.

    Example: fitkit predict photos_of_anna/
    """
    with loading():
        from fitkit.export.texture import with_texture_size
        from fitkit.fitting.convert import convert
        from fitkit.fitting.predict import predict as run
        from fitkit.fitting.predict import predict_maps
        from fitkit.io.result_folder import check_output
        from fitkit.models.registry import load_model
        from fitkit.nets import read_about

    paths, stray = split_arguments(photos)
    if stray:
        raise InputError(f"{stray[0]}: expected a folder or photos, and nothing else")
    target = output or default_output(paths)
    began = time.perf_counter()
    if paths[0].exists():
        target = check_output(target, overwrite)
    scene = weights is None or "state" in read_about(weights)["gives"]
    if model is not None and not scene:
        raise InputError(f"{weights}: this network gives no scene, so no face model; leave --model out")
    if not scene and (repeat or pose != "network"):
        raise InputError(f"{weights}: this network gives no scene; leave --repeat and --pose out")
    if not scene and texture_size is not None:
        raise InputError(f"{weights}: this network gives no scene, so no texture; leave --texture-size out")
    model = None if model is None else load_model(model)
    with share_bar(quiet) as progress:
        result = (run if scene else predict_maps)(
            read(paths, target),
            weights,
            landmarks=landmarks,
            device=device,
            progress=progress.part(0.0, 0.85),
            **({"repeat": repeat, "pose": pose} if scene else {}),
        )
        if model is not None and result.model.name != model.name:
            result = convert(result, model)
        if texture_size is not None:
            result = with_texture_size(result, int(texture_size))
        progress.at(0.85, "writing the result")
        path = result.save(target, overwrite, pictures=pictures) if scene else result.save(target, overwrite)
        progress.at(1.0, "done")
    if not scene:
        tell_maps(result, path, quiet)
        return
    tell_result(result, time.perf_counter() - began, path, quiet, solver="network")
    if result.status == "failed":
        raise FitError(
            f"the prediction failed, so the face is not to be used: {result.warnings[0]}; "
            + (f"look at {path / 'overlay'}, or " if pictures else "")
            + "fit the photos"
        )


def tell_maps(maps, path: Path, quiet: bool) -> None:
    """Print what a network without a scene has said of how many photos, and the notes."""
    if quiet:
        return
    click.echo(f"{', '.join(maps.gives)} of {len(maps.names)} photo(s), written: {path}")
    for line in maps.notes:
        click.echo(f"note: {line}", err=True)
