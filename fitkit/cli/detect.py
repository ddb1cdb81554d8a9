"""`fitkit detect`: the 68 landmarks of photos as .pts files and pictures, to look at and to correct by hand;
masks of the heads, too."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from fitkit.errors import FitkitError, InputError

ELSEWHERE = "choose another folder with -o"
PICTURES = "landmarks"  # folder of the pictures: beside the photos they would count as photos of the subject
MASKS = "masks"


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Folder of the results; default: beside each photo.",
)
@click.option(
    "--landmarks",
    default="auto",
    show_default=True,
    metavar="auto|builtin|builtin3d|fan|fan3d|mediapipe|onnx:PATH",
    help="Detector; auto: fan, if its weights are here, or builtin.",
)
@click.option(
    "--masks",
    is_flag=True,
    help="Write masks/STEM.png, too: white where the head is seen, without hair, glasses, hands, clothes.",
)
@click.option(
    "--parser",
    "weights",
    default="",
    metavar="FILE|colors",
    help="Weights of the parser, regressor.safetensors; default: those that come with fitkit; colors: "
    "without a network, landmarks and colours tell the head.",
)
@click.option(
    "--tree",
    is_flag=True,
    help="IMAGES is one folder: fill DIR (-o) with a .pts for every photo below it, laid out alike.",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    metavar="W",
    help="Processes of --tree, each with one thread.",
)
@click.option("--overwrite", is_flag=True, help="Replace landmark files that are there, and masks.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cuda.")
def detect(images, output, landmarks, masks, weights, tree, workers, overwrite, device):
    """Find the face in each of IMAGES (files or folders of photos) and write its 68 landmarks.

    Writes STEM.pts, which `fitkit fit` takes instead of a detector, and landmarks/STEM_landmarks.png to look
    at: disks show the standard deviations, hollow dots are probably hidden. Photos that have a landmark file
    are passed over. Of several faces the largest is taken. `fitkit fit` uses the pixels that are white in
    masks/STEM.png and no others.

    With --tree a data set that nothing is written into gets its landmarks once: fitkit batch and other
    commands take them with --landmark-folder. What is there stays, so a run that was stopped goes on.

    The exit code is 0 when nothing failed; with --tree photos without a face are no failure.

    Example: fitkit detect photos_of_anna/

    Example: fitkit detect MultiPIE/ --tree -o marks --workers 8
    """
    from fitkit.fitting.head_masks import load_parser
    from fitkit.fitting.run import check_device
    from fitkit.io.atomic import remove_litter
    from fitkit.io.outputs import check_folder
    from fitkit.observe.landmarks.detectors import make_detector

    if landmarks == "files":
        raise InputError("--landmarks files: nothing would be detected; name a detector, e.g. builtin")
    if weights and not masks:
        raise InputError("--parser tells which masks are made; add --masks, or leave it out")
    if tree:
        _detect_tree(images, output, landmarks, masks, overwrite, device, workers)
        return
    photos, failed = _photos(images)
    for line in failed:
        click.echo(f"Error: {line}", err=True)
    if photos:
        if output is not None and os.path.realpath(output) not in {
            os.path.realpath(p.parent) for p in photos
        }:
            check_folder(output, ("*.pts", f"{PICTURES}/*_landmarks.png", f"{MASKS}/*.png"), (), "detect")
        for folder in {output or p.parent for p in photos}:
            remove_litter(folder)
            remove_litter(folder / PICTURES)
        check_device(device)
        parser = load_parser(weights, device) if masks else None
        detector = make_detector(landmarks, device)
        click.echo(f"detector: {detector.name}")
        done: dict[Path, Path] = {}
        for photo in photos:
            folder = output or photo.parent
            try:
                target = (folder / f"{photo.stem}.pts").absolute()
                if target in done:
                    raise InputError(
                        f"{photo}: {target} already holds the landmarks of {done[target]}; rename one of "
                        "the two"
                    )
                done[target] = photo
                click.echo(_detect_one(detector, photo, folder, overwrite))
                if parser is not None:
                    click.echo(_mask_one(parser, photo, folder, overwrite))
            except FitkitError as error:
                failed.append(str(error))
                click.echo(f"Error: {error}", err=True)
    if failed:
        sys.exit(1)


def _detect_tree(images, output, landmarks, masks, overwrite, device, workers) -> None:
    from fitkit.cli.progress import photo_bar
    from fitkit.data.landmark_mirror import NO_FACE, fill_mirror
    from fitkit.fitting.run import check_device

    if len(images) != 1 or output is None:
        raise InputError("--tree: expected one folder and -o DIR for the landmark files")
    if masks:
        raise InputError("--tree writes landmark files only; leave --masks out")
    check_device(device)
    with photo_bar() as progress:
        done = fill_mirror(images[0], output, landmarks, device, workers, overwrite, progress)
    counts = {status: sum(one.status == status for one in done) for status in ("written", "no face", "error")}
    click.echo(
        f"{len(done)} photos: {counts['written']} landmark files written, {counts['no face']} without a face "
        f"({output / NO_FACE}), {counts['error']} with an error; {output}"
    )
    if counts["error"]:
        sys.exit(1)


def _photos(given: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """The photos that are meant, in the order given and sorted within folders; one sentence for each path
    that is none."""
    from fitkit.io import landmark_files
    from fitkit.io.images import SUFFIXES
    from fitkit.io.sidecars import natural_key, without_copies

    photos: list[Path] = []
    wrong: list[str] = []
    for path in given:
        if path.is_dir():
            inside = [
                p
                for p in path.iterdir()
                if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
            ]
            photos += sorted(without_copies(inside)[0], key=lambda p: natural_key(p.name))
            if not inside:
                wrong.append(f"{path}: no images in this folder")
        elif path.suffix.lower() in landmark_files.SUFFIXES:
            wrong.append(
                f"{path}: expected a photo or a folder of photos, got a file with the name of landmarks"
            )
        else:
            photos.append(path)
    return list(dict.fromkeys(photos)), wrong


def _detect_one(detector, photo: Path, folder: Path, overwrite: bool) -> str:
    """Write the results of one photo, both or none; the line that says what was done."""
    from fitkit.io.images import read_image
    from fitkit.observe.landmarks.detectors import faces_of

    there = _there(photo, folder)
    if there and not overwrite:
        return (
            f"{photo.name}: kept {there.relative_to(folder).as_posix()}, which is there (--overwrite "
            "replaces it)"
        )
    image = read_image(photo)[0]
    faces = faces_of(detector, image)
    if not faces:
        raise InputError(f"{photo}: no face found")
    path = _write(folder, photo.stem, image, faces[0])
    face, valid = faces[0], faces[0].valid[0]
    hidden = int((face.confidence[0][valid] < 0.5).sum())
    line = f"{photo.name}: {path}"
    if bool(face.sigma[0][valid].isfinite().all()):
        line += f", sigma {float(face.sigma[0][valid].median()):.1f} px (median)"
    line += f", {hidden} points hidden" if hidden else ""
    return line + (f", {len(faces)} faces, the largest was taken" if len(faces) > 1 else "")


def _mask_one(parser, photo: Path, folder: Path, overwrite: bool) -> str:
    """Write the mask of one photo, whose landmark file is there; the line that says what was done."""
    import numpy as np
    from PIL import Image

    from fitkit.fitting.head_masks import head_mask
    from fitkit.io.atomic import written_whole
    from fitkit.io.images import read_image
    from fitkit.io.landmark_files import read_landmarks
    from fitkit.nets.parser.photos import parse_photo

    path = folder / MASKS / f"{photo.stem}.png"
    if path.exists() and not overwrite:
        return f"{photo.name}: kept {MASKS}/{path.name}, which is there (--overwrite replaces it)"
    marks = _there(photo, folder)
    assert marks is not None  # `_detect_one` has written them or seen that they are there
    image, points = read_image(photo)[0], read_landmarks(marks)[:, :2]
    mask = head_mask(parse_photo(parser, image, points))
    with written_whole(path, ELSEWHERE) as part:
        Image.fromarray(mask.astype(np.uint8) * 255).save(part, format="PNG")
    return f"{photo.name}: {path}, {100 * mask.mean():.0f} % of the photo is the head"


def _there(photo: Path, folder: Path) -> Path | None:
    """The landmark file that a fit of the folder would take for the photo."""
    from fitkit.io.landmark_files import NoLandmarksError, open_landmarks
    from fitkit.io.sidecars import files_beside

    inside = folder.iterdir() if folder.is_dir() else ()
    for path in files_beside(inside, [photo], lambda p: True).landmarks.get(photo, ()):
        try:
            open_landmarks(path)
        except NoLandmarksError:
            continue  # a caption
        except InputError:
            pass  # to be mended or replaced
        return path
    return None


def _write(folder: Path, stem: str, image, face) -> Path:
    """STEM.pts and its picture, written under temporary names and renamed when both are there."""
    from PIL import Image

    from fitkit.export.landmark_picture import draw_landmarks
    from fitkit.io.atomic import writing, written_whole
    from fitkit.io.landmark_files import write_pts

    points = face.points[0].double().numpy()
    points[~face.valid[0].numpy()] = float("nan")
    targets = (folder / f"{stem}.pts", folder / PICTURES / f"{stem}_landmarks.png")
    try:
        # The points take their place last: they are what counts.
        with (
            written_whole(targets[0]) as points_part,
            written_whole(targets[1]) as picture_part,
            writing(targets[0], ELSEWHERE),
        ):
            write_pts(points_part, points)
            Image.fromarray(draw_landmarks(image, face)).save(picture_part, format="PNG")
    finally:
        with suppress(OSError):  # it stays when something lies in it
            targets[1].parent.rmdir()
    return targets[0]
