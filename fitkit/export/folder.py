"""The result folder: everything a fit gives, written whole or not at all. Contents: docs/results.md."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
import torch
import yaml
from PIL import Image

from fitkit.errors import FitError, InputError, attempt, check_argument
from fitkit.export.cameras import camera_table
from fitkit.export.gltf import write_glb
from fitkit.export.lighting import draw_lighting
from fitkit.export.meshes import write_obj, write_ply
from fitkit.export.overlay import draw_overlay
from fitkit.export.parameters import save_parameters
from fitkit.export.preview import draw_detail, draw_preview, draw_uncertainty
from fitkit.fitting.appearance import decompose_result
from fitkit.geometry.color import srgb_from_linear
from fitkit.io.atomic import litter, remove_litter, temporary_name, writing
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.landmark_files import write_pts
from fitkit.io.outputs import LITTER
from fitkit.io.subject import PREDICTION_MARK, RESULT_MARKS, is_output, readable
from fitkit.render.texture import blend_texture
from fitkit.tensors import one_thread

if TYPE_CHECKING:
    from fitkit.fitting.predicted_maps import PredictedMaps
    from fitkit.fitting.result import FitResult

log = logging.getLogger("fitkit")

# All that a fit writes; `--overwrite` removes nothing else.
FILES = frozenset(
    (*RESULT_MARKS, PREDICTION_MARK)
    + (
        "subject.obj",
        "subject.mtl",
        "subject.ply",
        "subject.glb",
        "texture.png",
        "cameras.json",
        "landmarks.npy",
        "recipe.yaml",
        "preview.png",
        "uncertainty.png",
        "detail.png",
        "albedo.ply",
    )
)
PREDICTED = {  # what a network says beside a scene: folder -> suffix of its one file for each view
    "depth": ".png",
    "confidence": ".png",
    "posmap": ".npy",
    "parse": ".png",
    "landmarks": ".pts",
    "points3d": ".npy",
}
# folder -> suffix of its one file for each view
PER_VIEW = {"views": ".ply", "overlay": ".png", "lighting": ".png"} | PREDICTED
ENTRIES = FILES | PER_VIEW.keys()
NEW, OLD = "new", "old"  # in the hidden folder that a result is written in
TEXTURE_SIZE = 1024
DEPTH_UNIT = 0.1  # mm, of depth maps with 16 bits
REMOVALS = 50  # tries to remove a folder that is written to, 0.1 s apart


def check_output(output: str | os.PathLike, overwrite: bool = False) -> Path:
    """Refuse an output folder that could not be written in the end; call it before the work starts. Writes nothing, but cleans up after
    processes that were killed, see `tidy`.

    Returns: the absolute path.
    Raises:
        InputError: the folder exists and overwrite is False; it exists and is not one of our result folders (then even
            overwrite does not touch it); or its place cannot be written.
    """
    check_argument("output", output, (str, os.PathLike), "the path of a folder")
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(output))))
    with writing(f"output {path}", "choose another --output"):
        if path.is_symlink():
            with suppress(FileNotFoundError):  # then the folder is made where the link points
                os.stat(path)
            path = Path(os.path.realpath(path))
        place = path.parent
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise InputError(
                f"output {path}: {place} is {'a file' if place.is_file() else 'no folder'}, so no folder can be made in it; "
                "choose another --output"
            )
        tidy(path.parent)
        if path.exists():
            _check_replaceable(path, overwrite)
        probe = temporary_name(place / path.name)
        try:
            probe.mkdir()
        finally:
            with suppress(FileNotFoundError):
                probe.rmdir()
    return path


def _check_replaceable(path: Path, overwrite: bool) -> list[Path]:
    """Refuse a folder that is not a result, or holds what a fit does not write -> other results that lie in it, which are kept."""
    if not path.is_dir():
        raise InputError(
            f"output {path}: expected a folder, but a file has that name; choose another --output"
        )
    if not overwrite:
        raise InputError(
            f"output {path}: already exists; use --overwrite to replace it or choose another --output"
        )
    foreign, results = _inspect(path, _stored_stems(path))
    names = {p.name for p in path.iterdir()}
    lacking = [] if PREDICTION_MARK in names else [m for m in RESULT_MARKS if m not in names]
    if foreign is not None or (lacking and names & ENTRIES):
        what = f"it holds '{foreign}'" if foreign is not None else f"it has no {' and '.join(lacking)}"
        raise InputError(
            f"output {path}: not a fitkit result folder ({what}), so it is not replaced; choose another --output"
        )
    return results


def _inspect(folder: Path, stems: set[str] | None) -> tuple[str | None, list[Path]]:
    """The first thing in the tree that a fit does not write, or None; and folders in it that hold other results only.

    stems: names of the files for each view; None = any.
    """
    results = []
    for entry in sorted(folder.iterdir()):
        if _is_file(entry) and entry.name in FILES | LITTER:
            continue
        if entry.is_symlink() or not entry.is_dir():
            return entry.name, []
        if entry.name not in PER_VIEW:
            if not _holds_results_only(entry):
                return entry.name, []
            results.append(entry)
            continue
        for inner in sorted(entry.iterdir()):
            known = inner.suffix == PER_VIEW[entry.name] and (
                stems is None or normalize("NFC", inner.stem) in stems
            )
            if not (_is_file(inner) and (known or inner.name in LITTER)):
                return f"{entry.name}/{inner.name}", []
    return None, results


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _holds_results_only(folder: Path) -> bool:
    if is_output(folder):
        return _inspect(folder, _stored_stems(folder))[0] is None
    inside = [p for p in folder.iterdir() if p.name not in LITTER]
    return bool(inside) and all(p.is_dir() and not p.is_symlink() and _holds_results_only(p) for p in inside)


def _stored_stems(folder: Path) -> set[str]:
    """Names of the files for each view of a result; none where its parameters cannot be read."""
    path = folder / "parameters.npz"
    try:
        if not path.exists():  # of a network that gives no scene
            with foreign_file(folder / PREDICTION_MARK, "not readable as a prediction") as file:
                return {normalize("NFC", str(view["stem"])) for view in file.json()["views"]}
        with foreign_file(path, "not readable as parameters of a fit", limit=DATA_BYTES) as file:
            names = [str(n) for n in file.npz(("view_names",))["view_names"]]
    except InputError:  # damaged, or not ours; then such files are not known to be ours
        return set()
    return {normalize("NFC", s) for s in _stems(names)}


def tidy(folder: Path) -> None:
    """Clean up after processes that were killed while they wrote into `folder`: a result that one had moved aside gets its place back,
    and what they left half written is removed, if all of it is ours."""
    remove_litter(folder)
    for holder in litter(folder):
        if holder.is_dir() and not holder.is_symlink():
            with suppress(OSError):
                _put_back(holder)
                if _is_ours(holder):
                    shutil.rmtree(holder, ignore_errors=True)


def _is_ours(holder: Path) -> bool:
    """Nothing lies in it but (parts of) results."""

    def result(folder: Path) -> bool:
        return _inspect(folder, None)[0] is None

    parts = {p.name: p for p in holder.iterdir()}
    if parts.keys() - {NEW, OLD}:
        return result(holder)  # earlier versions wrote without folders in between
    return (
        all(p.is_dir() and not p.is_symlink() for p in parts.values())
        and (NEW not in parts or result(parts[NEW]))
        and (
            OLD not in parts
            or all(p.is_dir() and not p.is_symlink() and result(p) for p in parts[OLD].iterdir())
        )
    )


def _remove(holder: Path) -> None:
    """The folder and all in it, also while a thread that was interrupted writes its last file."""
    for _ in range(REMOVALS):
        shutil.rmtree(holder, ignore_errors=True)
        if not holder.exists():
            return
        time.sleep(0.1)


def _put_back(holder: Path) -> None:
    """Give the result that was moved into `holder` its place again, unless a new one is there already; other results that lay in it are
    never left behind. OSError: one cannot be moved."""
    for moved in (holder / OLD).glob("*"):
        target = holder.parent / moved.name
        home = target if os.path.lexists(target) else moved
        for place in {holder / NEW, moved} - {home}:
            for other in [p for p in place.glob("*") if p.name not in ENTRIES | LITTER]:
                other.rename(home / other.name)
        if home is moved:
            moved.rename(target)


def write_result(
    result: FitResult, output: str | os.PathLike, overwrite: bool = False, light: bool = False
) -> Path:
    """Write all files of a fit into a new folder; light: only parameters.npz (without light), metrics.json and recipe.yaml.

    They are written into a hidden folder beside `output`, from which they move when all are there; after any error or Ctrl-C
    nothing is left behind and an older result stays as it was. After a kill, the next call (`tidy`) does that. Other results that lie
    in the older one stay.

    Returns: the absolute path of the folder.
    Raises:
        InputError: see `check_output`; or writing failed (disk full, ...). FitError: the result holds NaN or infinity.
    """
    path = check_output(output, overwrite)
    _check_finite(result)
    write = _write_numbers if light else _write_all
    return _in_place(path, overwrite, lambda folder: write(result, folder))


def write_maps(maps: PredictedMaps, output: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write what a network without a scene says into a new folder, as `write_result` does: prediction.json and a folder for each part.

    Returns: the absolute path of the folder.
    Raises:
        InputError: see `check_output`; or writing failed (disk full, ...).
    """

    def write(folder: Path) -> None:
        views = [{"name": n, "stem": s} for n, s in zip(maps.names, _stems(maps.names))]
        content = {"views": views, "gives": maps.gives, "network": maps.about, "notes": maps.notes}
        _write_maps(maps, folder)
        _write_json(folder / PREDICTION_MARK, content)

    return _in_place(check_output(output, overwrite), overwrite, write)


def _in_place(path: Path, overwrite: bool, write: Callable[[Path], None]) -> Path:
    """`write` fills a hidden folder beside `path`, which takes its place when it is done; see `write_result`."""
    made = _missing_parents(path)
    holder = temporary_name(path)
    new, old = holder / NEW, holder / OLD / path.name
    try:
        new.mkdir(parents=True)
        # Threads within the many short operations of a picture cost more than they bring; files are made side by side.
        with one_thread():
            write(new)
        if path.exists():
            results = _check_replaceable(
                path, overwrite
            )  # the fit took a while: it may have changed meanwhile
            old.parent.mkdir()
            path.rename(old)
            for other in results:
                (old / other.name).rename(new / other.name)
        new.rename(path)
        shutil.rmtree(holder, ignore_errors=True)
    except BaseException as error:
        with suppress(OSError):
            _put_back(holder)
            _remove(holder)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # somebody else uses it by now
                break
        if isinstance(error, OSError):
            raise InputError(
                f"output {path}: cannot be written ({error.strerror or error}); nothing was left behind"
            ) from error
        raise
    return path


def _missing_parents(path: Path) -> list[Path]:
    """The folders that writing will have to make, innermost first."""
    return [p for p in path.parents if not p.exists()]


def _check_finite(result: FitResult) -> None:
    state = result.state
    for name, value in (
        ("identity", state.identity),
        ("expression", state.expression),
        ("rotation", state.pose.rotation),
        ("translation", state.pose.translation),
        ("focal length", state.camera.focal),
        ("principal point", state.camera.principal),
        ("illumination", state.illumination),
        ("displacement", result.displacement),
    ):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise FitError(
                f"result of {result.subject.name}: {name} holds values that are not finite; nothing was written"
            )


def file_stems(result: FitResult) -> list[str]:
    """One file name per view, without extension: the view's name, made safe and distinct."""
    return _stems([view.name for view in result.subject.views])


def _stems(names: Sequence[str]) -> list[str]:
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip(" .") or "view"
        stem, n = base, 2
        while stem.casefold() in taken:  # some file systems do not tell upper from lower case
            stem, n = f"{base}_{n}", n + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _write_numbers(result: FitResult, folder: Path) -> None:
    save_parameters(result, folder / "parameters.npz")
    _write_report(result, folder)


def _write_report(result: FitResult, folder: Path, lacking: Sequence[str] = ()) -> None:
    """lacking: a sentence for each thing that could not be drawn."""
    report = {"status": result.status, "warnings": list(result.warnings)} | dict(result.metrics)
    _write_json(folder / "metrics.json", report | ({"not_written": list(lacking)} if lacking else {}))
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(plain(result.recipe), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _write_all(result: FitResult, folder: Path) -> None:
    """Parameters, meshes and numbers have to be written; what is drawn from them is left out where it fails, and metrics.json says so."""
    model = result.personal_model
    neutral, vertices = result.neutral.detach(), result.vertices.detach()
    stems = file_stems(result)
    (folder / "views").mkdir()
    (folder / "overlay").mkdir()
    (folder / "lighting").mkdir()
    lacking: list[str] = []

    def write_picture(name: str, draw: Callable[[], np.ndarray]) -> None:
        picture = attempt(name, draw, None, lacking)
        if picture is not None:
            (folder / name).write_bytes(_png(picture))

    def appearance() -> None:
        texture = (
            attempt("the texture", lambda: blend_texture(result, TEXTURE_SIZE), None, lacking)
            if model.uv is not None
            else None
        )
        png = None
        if texture is not None:
            png = _png(texture)
            (folder / "texture.png").write_bytes(png)
        write_obj(folder / "subject.obj", neutral, model, None if texture is None else "texture.png")
        write_glb(folder / "subject.glb", neutral, model, png, name=result.subject.name)
        write_picture("preview.png", lambda: draw_preview(neutral, model, texture))

    def meshes() -> None:
        sigma = result.vertex_sigma
        write_ply(
            folder / "subject.ply",
            neutral,
            model.triangles,
            {k: v for k, v in (("sigma_mm", sigma), ("detail_mm", result.displacement)) if v is not None},
        )
        if sigma is not None:
            write_picture("uncertainty.png", lambda: draw_uncertainty(neutral, sigma, model))
        if result.displacement is not None:
            write_picture("detail.png", lambda: draw_detail(neutral, result.displacement, model))

    def view(i: int) -> None:
        write_ply(folder / "views" / f"{stems[i]}.ply", vertices[i], model.triangles)
        write_picture(f"overlay/{stems[i]}.png", lambda: draw_overlay(result, i))

    def lighting() -> None:
        found = attempt("albedo and light", lambda: decompose_result(result), None, lacking)
        save_parameters(result, folder / "parameters.npz", None if found is None else found[0].light)
        if found is None:
            return
        parts, state, observations = found
        single = model.to(dtype=torch.float32)
        write_ply(
            folder / "albedo.ply",
            neutral,
            model.triangles,
            {"seen": parts.seen},
            srgb_from_linear(parts.albedo),
        )
        for i, stem in enumerate(stems):
            write_picture(
                f"lighting/{stem}.png", lambda: draw_lighting(parts, single, state, observations, i)
            )

    def numbers() -> None:
        _write_json(folder / "cameras.json", camera_table(result))
        np.save(folder / "landmarks.npy", result.landmarks3d.detach().numpy().astype(np.float32))

    if result.maps is not None:
        _write_maps(result.maps, folder)
    _side_by_side([numbers, lighting, appearance, meshes] + [lambda i=i: view(i) for i in range(len(stems))])
    for line in lacking:
        log.warning("%s", line)
    _write_report(result, folder, lacking)


def _write_maps(maps: PredictedMaps, folder: Path) -> None:
    """One file for each part and photo. Depth: 16 bits, tenths of a millimetre; suitability: 8 bits, 255 = 1."""
    for number, stem in enumerate(_stems(maps.names)):

        def place(name: str) -> Path:
            (folder / name).mkdir(exist_ok=True)
            return folder / name / (stem + PREDICTED[name])

        if maps.depth is not None:
            tenths = np.clip(np.round(maps.depth[number] / DEPTH_UNIT), 0, 65535).astype(np.uint16)
            place("depth").write_bytes(_png(tenths))
        if maps.confidence is not None:
            share = np.clip(np.round(255 * maps.confidence[number]), 0, 255).astype(np.uint8)
            place("confidence").write_bytes(_png(share))
        if maps.position_map is not None:
            np.save(place("posmap"), maps.position_map[number])
        if maps.parse is not None:
            place("parse").write_bytes(_png(maps.parse[number]))
        if maps.landmarks is not None:
            write_pts(place("landmarks"), maps.landmarks[number])
        if maps.points3d is not None:
            np.save(place("points3d"), maps.points3d[number])


def _side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Run all tasks on two threads; after the first failure, or Ctrl-C, the waiting ones are dropped."""
    pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fitkit-export")
    try:
        # no_grad holds for one thread, so each task gets its own.
        for done in [pool.submit(torch.no_grad()(task)) for task in tasks]:
            done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(
        out, format="PNG", compress_level=3
    )  # a fifth of the time of the default, 5 % larger
    return out.getvalue()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def plain(value: Any) -> Any:
    """Tensors, arrays, tuples, paths and numbers as what JSON and YAML know; NaN and infinity become None."""
    if isinstance(value, dict):
        return {readable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, str):
        return readable(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return readable(str(value))
