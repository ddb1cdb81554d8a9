"""`fitkit evaluate`: the papers' protocols on their data sets, and comparisons of two evaluations."""

from __future__ import annotations

import click

from fitkit.errors import InputError


@click.command()
@click.argument("protocol", required=False)
@click.argument("data", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default=None,
    metavar="DIR",
    help="Folder of the results; default: evaluation/PROTOCOL.",
)
@click.option(
    "--predictions",
    type=click.Path(),
    default=None,
    metavar="DIR",
    help="Score the predictions in this folder; nothing is fitted.",
)
@click.option("--model", default=None, metavar="NAME|PATH", help="Face model; default: the recipe's.")
@click.option(
    "--recipe",
    default=None,
    metavar="NAME|PATH",
    help="Recipe of the fits; default: the evaluation recipe's.",
)
@click.option("--limit", type=int, default=None, metavar="N", help="Only the first N samples.")
@click.option("--resume", is_flag=True, help="Go on with the predictions that are in the output folder.")
@click.option(
    "--device", default="cpu", show_default=True, help="Torch device of the fits and networks, e.g. cuda."
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that predict and score; with a GPU they read the photos, and one predicts.",
)
@click.option(
    "--compare",
    type=click.Path(),
    nargs=2,
    default=None,
    metavar="A B",
    help="Compare two metrics.json; nothing else is done.",
)
@click.option("--list", "listing", is_flag=True, help="List the protocols.")
@click.option("-q", "--quiet", is_flag=True, help="No line for each sample.")
def evaluate(
    protocol,
    data,
    overrides,
    output,
    predictions,
    model,
    recipe,
    limit,
    resume,
    device,
    workers,
    compare,
    listing,
    quiet,
):
    """Fit every sample of the data set in DATA, then measure what PROTOCOL measures (`fitkit evaluate
    --list`, or a .yaml file).

    First the predictions are written, then the metrics are computed from them: metrics.json, metrics.csv,
    error_maps/. KEY=VALUE changes the evaluation recipe, e.g. predictor=landmarks or options.metrical=true;
    fit.KEY=VALUE that of the fits, e.g. fit.landmarks.source=builtin. predictor=regressor weights=FILE
    measures a trained network instead of fits. The exit code is 1 when a sample failed.

    Example: fitkit evaluate aflw2000 AFLW2000/ --limit 20 -o evaluation/aflw
    """
    if listing:
        _list()
        return
    if compare is not None:
        _compare(*compare)
        return
    if protocol is None or data is None:
        raise click.UsageError("expected PROTOCOL and DATA, or --compare A B, or --list")
    if resume and predictions is not None:
        raise click.UsageError(
            "--resume goes on with predictions of the output folder, --predictions takes others; give one "
            "of them"
        )
    from pathlib import Path

    from fitkit.evaluate import run
    from fitkit.evaluate.predictions import NOT_SCORED
    from fitkit.evaluate.recipe import load_evaluate_recipe
    from fitkit.evaluate.report import REPORT, report_text

    stray = [line for line in overrides if "=" not in line]
    if stray:
        raise InputError(f"'{stray[0]}': expected KEY=VALUE after PROTOCOL and DATA")
    changes = {key: value for key, value in (("model", model), ("fit", recipe)) if value is not None}
    settled = load_evaluate_recipe(protocol, overrides, changes)
    folder = Path(output) if output else Path("evaluation") / settled.name
    try:
        report = run.evaluate(
            settled,
            data,
            folder,
            predictions,
            limit,
            resume,
            (lambda line: None) if quiet else lambda line: click.echo(line, err=True),
            device,
            workers,
        )
    except KeyboardInterrupt:
        kept = folder / run.PREDICTIONS
        if predictions is not None or not kept.is_dir():
            raise
        click.echo(
            f"\ninterrupted; the predictions so far are in {kept}, --resume goes on with them", err=True
        )
        raise click.exceptions.Exit(130) from None
    click.echo(report_text(report))
    click.echo(f"written: {folder / REPORT}")
    failed = sum(row["status"] in NOT_SCORED for row in report["rows"])
    if failed:
        raise click.ClickException(
            f"{failed} of {len(report['rows'])} samples failed or are missing; "
            "they are listed above and not in the means"
        )


def _list() -> None:
    from fitkit.io.resources import recipe_names, recipe_summary

    for name in recipe_names("evaluate"):
        click.echo(f"{name:17} {recipe_summary('evaluate', name)}")


def _compare(first: str, second: str) -> None:
    from fitkit.evaluate.compare import compare, compare_text, read_report

    click.echo(compare_text(compare(read_report(first), read_report(second))))
