"""`fitkit bench ...`: accuracy and speed of the fit, worth of its energies, and the landmark detectors."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory

import click


def numbers(context, parameter, value):
    """'0,2,4' -> (0, 2, 4)."""
    if value is None:
        return None
    try:
        return tuple(int(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers like 0,2,4; got '{value}'") from None


def _names(context, parameter, value):
    """('a,b', 'c') -> ('a', 'b', 'c')."""
    return tuple(name for text in value for name in text.split(",") if name)


def _tell(line):
    click.echo(line, err=True)


def _finish(report, text, path):
    from fitkit.evaluate.bench.report import write_report
    from fitkit.evaluate.machine import describe

    click.echo(text)
    click.echo(f"\n{describe(report['machine'])}")
    if path:
        click.echo(f"written: {write_report(report, path)}")


@click.group()
def bench():
    """Measure accuracy and speed of the fit and of the landmark detectors."""


_json_option = click.option(
    "--json", "path", type=click.Path(), help="Write all numbers, versions and the machine to this file."
)
_subjects_option = click.option(
    "--subjects", multiple=True, callback=_names, help="Only these, separated by commas."
)


@bench.command()
@click.argument("data", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Face model; may be repeated.  [default: ict and generic; without DATA generic]",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=("landmarks", "multiview"),
    show_default=True,
    help="Recipe; may be repeated.",
)
@_subjects_option
@click.option("--views", callback=numbers, help="Only these views by position, e.g. 0,2,4.")
@click.option(
    "--photos",
    callback=numbers,
    help="Numbers of photos, e.g. 1,2,5: a fit with each, of photos spread evenly over all.",
)
@click.option(
    "--people", type=int, default=8, show_default=True, help="Without DATA: how many people are rendered."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Without DATA: which people.")
@click.option(
    "--keep",
    type=click.Path(),
    metavar="DIR",
    help="Keep the predictions here; those that are there are not made again.",
)
@_json_option
def accuracy(data, overrides, models, recipes, subjects, views, photos, people, seed, keep, path):
    """Scan-to-mesh errors of the neutral shape, and of the face in the photos, for all subjects of DATA.

    DATA holds SUBJECT/ folders with photos and landmarks, and ground_truth/SUBJECT/ with neutral.ply,
    landmarks3d_neutral.npy and face_region.npy, as `fitkit synth` writes them; or, of a scan, with mesh.ply,
    landmarks3d.npy and face_region_front.npy. Without DATA people of the model generic are rendered for it.

    --photos N takes N photos by name, spread evenly: cut into N equal parts, the middle one of each. Of five:
    1 the third, 2 the second and fourth, 3 the first, third and last. The exit code is 1 when a fit failed.

    Example: fitkit bench accuracy shared/data/bench --model ict --photos 1,3,5 --json results.json
    """
    from fitkit.evaluate.bench import accuracy as run
    from fitkit.evaluate.bench.photos import rendered_people

    if data is not None and "=" in data and not os.path.exists(data):
        data, overrides = None, (data, *overrides)
    with TemporaryDirectory(prefix="fitkit_bench_") as folder:
        if data is None:
            data, models = (
                rendered_people(os.path.join(folder, f"rendered_seed_{seed}"), people, seed, tell=_tell),
                models or ("generic",),
            )
        report = run.accuracy(
            data, models or ("ict", "generic"), recipes, subjects, views, overrides, _tell, photos or (), keep
        )
    _finish(report, run.accuracy_text(report), path)
    if any(row["error"] for row in report["rows"]):
        raise click.ClickException("some fits failed; they are listed above and not in the means")


@bench.command()
@click.argument("data", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--recipe",
    "recipe_name",
    default="ablation",
    show_default=True,
    help="What is compared: a recipe of recipes/bench/ or a file.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("ict", "generic"),
    show_default=True,
    help="Face model; may be repeated.",
)
@_subjects_option
@_json_option
def ablation(data, overrides, recipe_name, models, subjects, path):
    """What each energy between the photos is worth, by number of views and kind of subject.

    DATA as for `fitkit bench accuracy`. The recipe names the arms, the views and the sets of subjects;
    overrides change it. The exit code is 1 when a fit failed.

    Example: fitkit bench ablation shared/data/bench --model ict "views=[[0, 2, 4]]"
    """
    from fitkit.evaluate.bench import ablation as run

    report = run.ablation(data, run.load_ablation(recipe_name, overrides), models, subjects, _tell)
    _finish(report, run.ablation_text(report), path)
    if any(row["error"] for row in report["rows"]):
        raise click.ClickException("some fits failed; they are listed above and not in the means")


@bench.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o", "--output", type=click.Path(), required=True, help="Folder of the trainings and evaluations."
)
@click.option("--resume", is_flag=True, help="Go on with what is in the folder.")
@click.option("--device", default="cpu", show_default=True, help="Torch device of the evaluations.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def trainings(recipe_name, overrides, output, resume, device, quiet):
    """What each part of a training is worth: a training recipe with changes, each trained and measured.

    RECIPE (of recipes/bench/, or a file) names the training, the arms, and the evaluations of each network;
    KEY=VALUE changes it, train.KEY=VALUE all trainings. OUTPUT/ablation.json has all numbers. The exit code
    is 1 when a training failed.

    Example: fitkit bench trainings pgn-losses train.data.synthetic.folder=people
    train.data.makehuman.folder=others train.data.frames.folder=frames train.data.fits.folder=fits -o losses
    """
    import sys

    from fitkit.cli.progress import training_bar
    from fitkit.evaluate.machine import describe
    from fitkit.train import ablation as run

    settled = run.load_training_ablation(recipe_name, overrides)
    try:
        with training_bar(quiet) as bar:
            report = run.training_ablation(
                settled, output, resume, device, progress=bar.line, step_done=bar.step_done, begun=bar.begun
            )
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on with --resume -o {output}", err=True)
        sys.exit(130)
    click.echo(run.training_ablation_text(report))
    click.echo(f"\n{describe(report['machine'])}\nwritten: {os.path.join(output, run.REPORT)}")
    if any(row["error"] for row in report["rows"]):
        raise click.ClickException("some trainings failed; they are listed above and not in the means")


@bench.command()
@click.argument("subject", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", "model_name", default="ict", show_default=True, help="Face model.")
@click.option(
    "--recipe", "recipe_name", default="multiview", show_default=True, help="The recipe that is timed."
)
@click.option(
    "--views",
    callback=numbers,
    default="0,2,4",
    show_default=True,
    help="The views that are fitted, by position.",
)
@click.option(
    "--repeats", type=int, default=5, show_default=True, help="Timed runs after a first one that is not."
)
@click.option("--parts", multiple=True, callback=_names, help="Only some of fit,adam,views,rasterizer.")
@_json_option
def speed(subject, overrides, model_name, recipe_name, views, repeats, parts, path):
    """Wall and CPU times of the fit on one SUBJECT folder.

    fit: the recipe; adam: our first-order fit on every pixel, which takes minutes; views: time per view from
    3 to 24 rendered views; rasterizer: one picture of the face, 512 x 512 px.

    Example: fitkit bench speed shared/data/bench/multiview_00 --json speed.json
    """
    from fitkit.evaluate.bench import speed as run

    report = run.speed(
        subject, model_name, recipe_name, views, repeats, parts or run.SPEED_PARTS, overrides, _tell
    )
    _finish(report, run.speed_text(report), path)


@bench.command()
@click.argument("data", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("generic",),
    show_default=True,
    help="Face model; may be repeated.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=("landmarks", "multiview"),
    show_default=True,
    help="Recipe; may be repeated.",
)
@click.option(
    "--weights", default="", metavar="FILE", help="Network; default: the one that comes with fitkit."
)
@click.option(
    "--trials",
    type=int,
    default=200,
    show_default=True,
    help="Fits with perturbed landmarks or poses from each start; 0 = none.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the perturbed fits.")
@_json_option
def init(data, overrides, models, recipes, weights, trials, seed, path):
    """What the start of a fit is worth: from the landmarks, from a network, and from the better of the two.

    DATA is a folder of subject folders; where it holds ground_truth/ as for `fitkit bench accuracy`, shapes
    are scored. Then fits of the recipe 'landmarks' whose landmarks are wrong, missing or one-sided, or whose
    heads start turned away.

    Example: fitkit bench init shared/data/bench --json init.json
    """
    from fitkit.evaluate.bench import robustness as run

    report = run.measure(data, models, recipes, weights, trials, seed, overrides, _tell)
    _finish(report, run.text(report), path)


@bench.command()
@click.argument("data", type=click.Path())
@click.option(
    "--landmarks", "detector", default="builtin", show_default=True, help="The detector that is measured."
)
@click.option("--everyone", is_flag=True, help="Pictures of people that the training has seen too.")
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@_json_option
def landmarks(data, detector, everyone, device, path):
    """Errors of a landmark detector on labelled pictures.

    DATA is a tree of images with .pts files, one folder for each person (only people held out from training
    count); or pictures of AFLW2000-3D with their .mat files; or a benchmark of `fitkit bench accuracy`.

    Example: fitkit bench landmarks shared/data/faces68
    """
    from fitkit.evaluate import landmark_accuracy as run

    report = run.measure(data, detector, everyone, device, _tell)
    _finish(report, run.summary_text(report), path)


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
    callback=numbers,
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
@_json_option
def verdicts(arguments, models, recipe_name, views, faults, subjects, seed, limit, path):
    """Verdicts and expected errors against the truth, on photos as they are and with planted faults.

    DATA are folders as for `fitkit bench accuracy`. Faults: one photo shows another person, is mirrored, is
    covered by a third, or is blurred. Landmarks are found by the built-in detector. Or DATA are JSON files of
    this command: their fits are judged again, by the thresholds and constants of today, without fitting.

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
            else f"'{overrides[0]}': stored fits are judged again as they are, options of the recipe change "
            "nothing"
        )
    if stored:
        reports = [run.read_report(a) for a in stored]
        report = reports[0] | {
            "rows": list({run.key(row): row for r in reports for row in r["rows"]}.values())
        }  # each fit once
    else:
        report = run.measure(data, models, recipe_name, views, faults, subjects, seed, overrides, _tell)
    _finish(report, run.text(report, **({} if limit is None else {"limit": limit})), path)
