"""What a result folder holds, see docs/results.md, written from a finished fit."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fitkit.errors import FitError, InputError, attempt
from fitkit.export.cameras import camera_table
from fitkit.export.gltf import write_glb
from fitkit.export.lighting import decompose_result, draw_lighting, draw_lit, has_light
from fitkit.export.maps import write_parts
from fitkit.export.meshes import write_obj
from fitkit.export.overlay import draw_overlay
from fitkit.export.pages.fit import write_fit_page
from fitkit.export.pages.pictures import THUMBNAIL, draw_thumbnail
from fitkit.export.parameters import save_parameters
from fitkit.export.preview import TILE, Sides, draw_detail, draw_preview, draw_uncertainty
from fitkit.export.texture import TEXTURE, encode_png, fuse_result, texture_size, write_maps
from fitkit.export.topology import topology_of
from fitkit.fitting.appearance import Decomposition
from fitkit.fitting.result import FitResult
from fitkit.geometry.color import srgb_from_linear
from fitkit.io.mesh_files import write_ply
from fitkit.io.options import plain
from fitkit.io.result_folder import PAGE, check_output, replaced, stems_of
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState
from fitkit.tensors import one_thread

log = logging.getLogger("fitkit")


def write_result(
    result: FitResult,
    output: str | os.PathLike,
    overwrite: bool = False,
    light: bool = False,
    pictures: bool = True,
) -> Path:
    """Write all files of a fit into a new folder; light: only parameters.npz (without light), metrics.json
    and recipe.yaml; pictures: False leaves out all that is drawn, texture.png too, and so the texture of
    the meshes, and report.html.

    After any error or Ctrl-C nothing is left behind and an older result stays as it was, see `replaced`.
    Other results that lie in the older one stay.

    Returns: the absolute path of the folder.
    Raises:
        InputError: see `check_output`; a result without its photos over an older one; or writing failed
            (disk full, ...). FitError: the result holds NaN or infinity.
    """
    path = check_output(output, overwrite)
    check_finite(result)
    missing = [view.name for view in result.subject.views if not view.has_photo]
    if missing and path.exists() and not light:
        raise InputError(
            f"output {path}: already exists, and without the photo of {missing[0]} its texture and overlays "
            "would be lost; give the folder of the photos (--photos, in Python `photos` of load_result), or "
            "choose another folder"
        )
    # Threads within the many short operations of a picture cost more than they bring; files are made side by
    # side.
    with replaced(path, overwrite) as folder, one_thread():
        if light:
            _write_numbers(result, folder)
        else:
            _write_all(result, folder, pictures)
    return path


def check_finite(result: FitResult) -> None:
    """Refuse a result that holds NaN or infinity: FitError."""
    state = result.state
    for name, value in (
        ("identity", state.identity),
        ("expression", state.expression),
        ("joints", state.joints),
        ("rotation", state.pose.rotation),
        ("translation", state.pose.translation),
        ("focal length", state.camera.focal),
        ("principal point", state.camera.principal),
        ("illumination", state.illumination),
        ("displacement", result.displacement),
    ):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise FitError(
                f"result of {result.subject.name}: {name} holds values that are not finite; nothing was "
                "written"
            )


def file_stems(result: FitResult) -> list[str]:
    """One file name per view, without extension: the view's name, made safe and distinct."""
    return stems_of([view.name for view in result.subject.views])


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


def _write_all(result: FitResult, folder: Path, pictures: bool) -> None:
    """Parameters, meshes and numbers have to be written; what is drawn from them is left out where it fails,
    and metrics.json says so."""
    model = result.personal_model
    neutral, vertices = result.neutral.detach(), result.vertices.detach()
    stems, sides = file_stems(result), Sides.of_head(neutral, model, TILE)
    drawn = ["overlay", "lighting", *(["lit"] if has_light(result) else [])] if pictures else []
    for name in ("views", *drawn):
        (folder / name).mkdir()
    lacking: list[str] = []

    def write_picture(name: str, draw: Callable[[], np.ndarray]) -> None:
        picture = attempt(name, draw, None, lacking) if pictures else None
        if picture is not None:
            (folder / name).write_bytes(encode_png(picture))

    # Found by whichever of its two users comes first.
    lock = threading.Lock()
    known: list[tuple[Decomposition, SceneState, Observations] | None] = []

    def albedo_and_light() -> tuple[Decomposition, SceneState, Observations] | None:
        with lock:
            if not known:
                known.append(attempt("albedo and light", lambda: decompose_result(result), None, lacking))
            return known[0]

    def appearance() -> None:
        maps, texture, png = None, None, None
        if pictures and model.uv is not None:
            found = albedo_and_light()
            size, parts = texture_size(result), None if found is None else found[0]
            maps = attempt("the texture", lambda: fuse_result(result, size, parts=parts), None, lacking)
        if maps is not None:
            texture, png = write_maps(maps, folder)
        shown, name = topology_of(model), result.subject.name
        picture = None if texture is None else TEXTURE
        write_obj(folder / "subject.obj", neutral, model, picture, topology=shown)
        write_glb(folder / "subject.glb", neutral, model, png, name, topology=shown)
        write_picture("preview.png", lambda: draw_preview(sides, model, texture))

    def meshes() -> None:
        sigma = result.vertex_sigma
        write_ply(
            folder / "subject.ply",
            neutral,
            model.triangles,
            {k: v for k, v in (("sigma_mm", sigma), ("detail_mm", result.displacement)) if v is not None},
        )
        if sigma is not None:
            write_picture("uncertainty.png", lambda: draw_uncertainty(sides, sigma))
        if result.displacement is not None:
            write_picture("detail.png", lambda: draw_detail(sides, result.displacement))

    def view(i: int) -> None:
        write_ply(folder / "views" / f"{stems[i]}.ply", vertices[i], model.triangles)
        write_picture(f"overlay/{stems[i]}.png", lambda: draw_overlay(result, i))

    def lighting() -> None:
        found = albedo_and_light()
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

    def lit(i: int) -> None:
        write_picture(f"lit/{stems[i]}.png", lambda: draw_lit(result, i))

    def numbers() -> None:
        _write_json(folder / "cameras.json", camera_table(result))
        np.save(folder / "landmarks.npy", result.landmarks3d.detach().numpy().astype(np.float32))

    if result.maps is not None:
        write_parts(result.maps, folder)
    # Once, for texture and light, which are made side by side.
    attempt("masks of the head", lambda: result.texture_mask(0), None, [])
    each = [view, lit] if "lit" in drawn else [view]
    tasks = [lambda i=i, write=write: write(i) for i in range(len(stems)) for write in each]
    _side_by_side([appearance, meshes, lighting, numbers, *tasks])
    _write_report(result, folder, lacking)
    if pictures:
        # Made of the files, as `fitkit view` does it later.
        found = len(lacking)
        thumbnail = attempt(THUMBNAIL, lambda: draw_thumbnail(folder, result.report), None, lacking)
        if thumbnail is not None:
            (folder / THUMBNAIL).write_bytes(thumbnail)
        attempt(PAGE, lambda: write_fit_page(folder), None, lacking)
        if len(lacking) > found:
            _write_report(result, folder, lacking)
    for line in lacking:
        log.warning("%s", line)


def _side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Run all tasks on two threads; after the first failure, or Ctrl-C, the waiting ones are dropped."""
    pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fitkit-export")
    try:
        # no_grad holds for one thread, so each task gets its own.
        for done in [pool.submit(torch.no_grad()(task)) for task in tasks]:
            done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
