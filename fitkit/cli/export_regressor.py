"""`fitkit export-regressor`: a trained network as a program that runs without fitkit."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export-regressor")
@click.argument("weights", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The program: NAME.pt or NAME.onnx; NAME.json explains it (of a second NAME: NAME.onnx.json).",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["torchscript", "onnx"]),
    default=None,
    help="Default: by the suffix of the output.",
)
@click.option(
    "--views",
    type=int,
    default=0,
    metavar="V",
    help="Photos of a person; default: the network's views, or 3.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def export_regressor(weights, output, kind, views, overwrite):
    """Write the network in WEIGHTS (default: the one that comes with fitkit) as TorchScript or ONNX.

    The file is run and compared with the network before it is kept. ONNX needs pip install 'fitkit[export]'.

    Example: fitkit export-regressor training/regressor.safetensors -o face.onnx
    """
    from fitkit.export.regressor import card_of
    from fitkit.export.regressor import export_regressor as run
    from fitkit.fitting.network_start import shipped_weights

    path = run(weights or shipped_weights(), output, kind or "", views, overwrite)
    click.echo(f"written: {path} and {card_of(path)}")
