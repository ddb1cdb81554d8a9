"""`fitkit bench verdicts`: do fits know when they are wrong? Registered by `fitkit.cli.bench`."""

from __future__ import annotations

import os

import click

from fitkit.cli.bench import _finish, _names, _numbers, _tell, bench
from fitkit.cli.model import _one_sentence


@bench.command()
@click.argument("arguments", nargs=-1, required=True, metavar="DATA... [KEY=VALUE]...")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("generic",),
    show_default=True,
    help="Face model; may be repeated.",
)
@click.option("--recipe", "recipe_name", default="multiview", show_default=True, help="Recipe of the fits.")
@click.option(
    "--views",
    callback=_numbers,
    default="1,3,5",
    show_default=True,
    help="Numbers of photos, spread evenly over those there are.",
)
@click.option(
    "--faults",
    callback=_names,
    multiple=True,
    default=("person,half,mirror,occluder,blur",),
    show_default=True,
    help="What is planted into one photo (half: into half of them), separated by commas; '' = nothing.",
)
@click.option(
    "--subjects",
    type=int,
    default=0,
    show_default=True,
    help="Only the first so many of each folder; 0 = all.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which photo gets a fault, and where.")
@click.option("--limit", type=float, default=None, help="mm from which on a fit is bad.  [default: 1.5]")
@click.option(
    "--json", "path", type=click.Path(), help="Write all numbers, versions and the machine to this file."
)
@_one_sentence
def verdicts(arguments, models, recipe_name, views, faults, subjects, seed, limit, path):
    """Verdicts and expected errors against the truth, on photos as they are and with planted faults.

    DATA are folders as for `fitkit bench accuracy`. Faults: one photo shows another person, is mirrored, is covered by a third, or
    is blurred. Landmarks are found by the built-in detector. Or DATA are JSON files of this command: their fits are judged again,
    by the thresholds and constants of today, without fitting.

    Example: fitkit bench verdicts people/ --subjects 6 --json verdicts.json
    """
    from fitkit.errors import InputError
    from fitkit.evaluate.bench import planted_faults as run

    data = [a for a in arguments if "=" not in a or os.path.exists(a)]
    overrides = [a for a in arguments if a not in data]
    stored = [a for a in data if a.endswith(".json")]
    if stored and (len(stored) < len(data) or overrides):
        raise InputError(
            "DATA: expected either folders or JSON files of this command, got both"
            if len(stored) < len(data)
            else f"'{overrides[0]}': stored fits are judged again as they are, options of the recipe change nothing"
        )
    if stored:
        reports = [run.read_report(a) for a in stored]
        report = reports[0] | {
            "rows": list({run.key(row): row for r in reports for row in r["rows"]}.values())
        }  # each fit once
    else:
        report = run.measure(data, models, recipe_name, views, faults, subjects, seed, overrides, _tell)
    _finish(report, run.text(report, **({} if limit is None else {"limit": limit})), path)
