"""Synthetic subjects in files: what `fitkit synth` writes. The layout is described in docs/synthetic.md.

A subject is made in OUT/.partial and renamed when it is whole, so a run that was stopped goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from fitkit.errors import InputError
from fitkit.io.atomic import written_whole
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.landmark_files import write_pts
from fitkit.io.mesh_files import write_ply
from fitkit.io.options import read_yaml, to_plain
from fitkit.io.outputs import check_folder
from fitkit.io.progress import Progress
from fitkit.io.workers import run_jobs
from fitkit.models import makehuman
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model, model_path
from fitkit.observe.face_parts import PARSE, PARTS
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.synth.mitsuba import head_renderer
from fitkit.synth.recipe import SynthRecipe, check_synth_recipe
from fitkit.synth.scanned_skin import scanned_skin
from fitkit.synth.studio import PAINTED
from fitkit.synth.subject import (
    SubjectPlan,
    SubjectView,
    draw_subject,
    plan_vertices,
    render_subject,
)
from fitkit.tensors import one_thread

log = logging.getLogger("fitkit")

FORMAT = 1
RECIPE_FILE = "synth.yaml"
PARTIAL = ".partial"
DEPTH_UNIT = 0.1  # mm
NORMAL_SCALE = 32767.0


def subject_name(index: int) -> str:
    """Folder of subject `index`."""
    return f"subject_{index:05d}"


def write_subjects(
    recipe: SynthRecipe,
    count: int,
    folder: str | os.PathLike,
    workers: int = 1,
    resume: bool = False,
    progress: Progress = Progress(),
) -> list[Path]:
    """Subjects 0 to count - 1 of the recipe as subject folders with ground_truth/SUBJECT beside them.

    Args:
        workers: processes, each with one thread; the files do not depend on it. resume: keep the subjects
            that are there.
        progress: told of each subject, and first how many are there before the first one is made.
    Returns:
        the subjects' folders in order.
    Raises:
        InputError: nothing to make; the folder holds something else, subjects of another recipe, or subjects
            without `resume`.
        MissingWeightsError: the model, or the renderer, is not on this machine.
    """
    if count < 1 or workers < 1:
        raise InputError(
            f"synth: expected at least one subject and one worker, got {count} subjects and {workers} workers"
        )
    check_synth_recipe(recipe, recipe.name)
    head_renderer(load_model(recipe.model), recipe)  # what is missing shows before the first file
    folder = Path(folder)
    try:
        _claim(folder, recipe, resume)
        left = [i for i in range(count) if not _finished(folder, i)]
        done = count - len(left)
        progress.counted(done, count)
        for _ in run_jobs(_make, [(str(folder), recipe, i) for i in left], workers):
            done += 1
            progress.counted(done, count)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror or error}; what is finished stays, go on with "
            "--resume"
        ) from error
    return [folder / subject_name(i) for i in range(count)]


def _claim(folder: Path, recipe: SynthRecipe, resume: bool) -> None:
    """Make the folder ours, or see that it is."""
    stored, wanted = folder / RECIPE_FILE, _recipe_record(recipe)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder, or a name that is free")
    if stored.is_file():
        check_folder(
            folder,
            (RECIPE_FILE, f"{PARTIAL}/*", "ground_truth/*", "subject_*/*"),
            (RECIPE_FILE,),
            "synth",
            resume,
        )
        differing = _differing(read_yaml(stored), wanted)
        if differing:
            raise InputError(
                f"{folder}: holds subjects of another recipe (different: {', '.join(differing)}); "
                "choose another folder, or repeat the options of the first run"
            )
        if not resume and any(
            _finished(folder, int(p.name[8:]))
            for p in folder.glob("subject_[0-9]*")
            if p.name[8:].isdecimal()
        ):
            raise InputError(
                f"{folder}: holds subjects of this recipe already; add the missing ones with --resume, "
                "or choose another folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no {RECIPE_FILE}; choose another folder")
    with written_whole(stored) as part:
        part.write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True), encoding="utf-8")
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    (folder / PARTIAL).mkdir()
    (folder / "ground_truth").mkdir(exist_ok=True)


def _recipe_record(recipe: SynthRecipe) -> dict[str, Any]:
    if recipe.model == makehuman.NAME:
        name, checksum = makehuman.NAME, makehuman.fingerprint()
    else:
        path = model_path(recipe.model)
        name, checksum = load_model(path).name, hashlib.sha256(path.read_bytes()).hexdigest()
    options = {**to_plain(recipe), "model": name}
    if options["hair"] == "shared":
        del options["hair"]  # folders that were begun before there was this option can be gone on with
    return {"format": FORMAT, "model_sha256": checksum, "recipe": options}


def _differing(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            line
            for key in dict.fromkeys([*wanted, *stored])
            for line in _differing(
                stored.get(key),
                wanted.get(key),
                f"{prefix}.{key}" if prefix and prefix != "recipe" else str(key),
            )
        ]
    return [] if stored == wanted else [prefix]


def _finished(folder: Path, index: int) -> bool:
    # The truth is moved first, the subject's folder last.
    return (folder / subject_name(index)).is_dir()


def _make(job: tuple[str, SynthRecipe, int]) -> int:
    folder, recipe, index = Path(job[0]), job[1], job[2]
    model = load_model(recipe.model)
    with one_thread():
        plan = draw_subject(model, recipe, index)
        views = render_subject(model, recipe, plan, head_renderer(model, recipe))
        name = subject_name(index)
        partial = folder / PARTIAL / name
        shutil.rmtree(partial, ignore_errors=True)
        photos, truth = partial / "photos", partial / "truth"
        photos.mkdir(parents=True)
        truth.mkdir()
        write_subject(model, recipe, plan, views, photos, truth)
    target = folder / "ground_truth" / name
    if target.exists():  # of a run that was stopped between the two moves
        check_folder(
            target, ("*.png", "*.ply", "*.npy", "cameras.json", "params.json"), ("params.json",), "synth"
        )
        shutil.rmtree(target)
    os.replace(truth, target)
    os.replace(photos, folder / name)
    partial.rmdir()
    return index


# ---- one subject ----


def write_subject(
    model: FaceModel,
    recipe: SynthRecipe,
    plan: SubjectPlan,
    views: list[SubjectView],
    photos: Path,
    truth: Path,
) -> None:
    """Files of one subject into two empty folders: what a fit may see, and the truth."""
    state = plan.state
    cameras = _camera_table(plan, recipe)
    for b, view in enumerate(views):
        (photos / f"view{b}.jpg").write_bytes(view.jpeg)
        write_pts(photos / f"view{b}.pts", view.given)
        _png(truth / f"view{b}_depth.png", np.round(view.depth / DEPTH_UNIT).astype(np.uint16))
        _png(truth / f"view{b}_normals.png", encode_normals(view.normals)[..., ::-1])
        for name in ("parse", "parts", "region", "covered"):
            _png(truth / f"view{b}_{name}.png", getattr(view, name))
    if recipe.cameras:
        _json(photos / "cameras.json", {"views": _known_cameras(cameras, recipe)})
    kept, triangles = skin_mesh(model)
    moving = [state.expression] + ([] if state.joints is None else [state.joints])
    same = all(bool((values == values[:1]).all()) for values in moving)
    neutral = plan.neutral
    head = torch.stack(
        [plan_vertices(model, plan, state.select([b])) for b in range(1 if same else len(views))]
    )
    write_ply(truth / "neutral.ply", neutral[kept], triangles)
    points = model.landmarks.points(head, model.triangles).double().numpy()
    neutral_points = model.landmarks.points(neutral[None], model.triangles)[0].double().numpy()
    if same:
        write_ply(truth / "mesh.ply", head[0, kept], triangles)
    else:
        for b in range(len(views)):
            write_ply(truth / f"view{b}.ply", head[b, kept], triangles)
            np.save(truth / f"landmarks3d_view{b}.npy", points[b])
    np.save(truth / "landmarks3d.npy", points[0] if same else neutral_points)
    np.save(truth / "landmarks3d_neutral.npy", neutral_points)
    np.save(truth / "face_region.npy", np.flatnonzero(model.face[kept].numpy()).astype(np.int32))
    np.save(truth / "landmarks2d.npy", np.stack([v.landmarks for v in views]))
    np.save(truth / "visible.npy", np.stack([v.visible for v in views]))
    for camera in cameras:
        camera["mesh"] = "mesh.ply" if same else camera["image"].replace(".jpg", ".ply")
    _json(
        truth / "cameras.json",
        {
            "convention": "OpenCV: x_cam = R x_world + t (mm), x right, y down, z forward; pixel (0, 0) is "
            "the centre of the top-left pixel; world = the head frame of each view",
            "views": cameras,
        },
    )
    _json(truth / "params.json", _parameters(model, recipe, plan))


def skin_mesh(model: FaceModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The written meshes: numbers [N] of their vertices in the model, increasing, and triangles [M, 3] of
    these N vertices.

    The outer skin where the model counts it first, else all of the model; of MakeHuman's people only what a
    scan shows.
    """
    if isinstance(model, makehuman.MakeHumanModel):
        kept = scanned_skin(model)
        number = kept.new_full((model.num_vertices,), -1)
        triangles = number.index_put((kept,), torch.arange(len(kept)))[model.triangles]
        triangles = triangles[(triangles >= 0).all(1)]
        used, triangles = triangles.unique(return_inverse=True)  # without vertices that no triangle uses
        return kept[used], triangles
    painted = model.region.new_tensor([name.startswith(PAINTED) for name in model.region_names]).bool()[
        model.region
    ]
    count = int(painted.sum())
    count = count if bool(painted[:count].all()) else model.num_vertices
    return torch.arange(count), model.triangles[(model.triangles < count).all(1)]


def _camera_table(plan: SubjectPlan, recipe: SynthRecipe) -> list[dict[str, Any]]:
    pose, K, angles = (
        plan.state.pose,
        plan.state.camera.matrix().double(),
        yaw_pitch_roll(plan.state.pose.rotation),
    )
    return [
        {
            "image": f"view{b}.jpg",
            "K": K[b].tolist(),
            "R": pose.rotation[b].double().tolist(),
            "t": pose.translation[b].double().tolist(),
            "width": recipe.size,
            "height": recipe.size,
            "yaw_pitch_roll_deg": angles[b].tolist(),
            "frame": int(plan.moment[b]),
            "viewpoint": int(plan.viewpoint[b]),
        }
        for b in range(recipe.pictures)
    ]


def _known_cameras(cameras: list[dict[str, Any]], recipe: SynthRecipe) -> list[dict[str, Any]]:
    """What a fit is told of the cameras. Those of a rig that sees several moments stand still: R and t are
    those of the first moment, whose head is their world. Otherwise the world is the head frame of each
    view."""
    views = [{k: v[k] for k in ("image", "K", "R", "t", "width", "height")} for v in cameras]
    if recipe.frames == 1 or recipe.setup != "rig" or recipe.expression == "per_view":
        return views
    return [
        view
        | {k: cameras[camera["viewpoint"]][k] for k in ("R", "t")}
        | {"moment": str(camera["frame"]), "camera_id": str(camera["viewpoint"])}
        for view, camera in zip(views, cameras)
    ]


def _parameters(model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan) -> dict[str, Any]:
    state = plan.state
    lights = [
        {
            "illumination_head": state.illumination[b].tolist(),
            "surroundings": scene.illumination.tolist(),
            "lamp": list(scene.lamp),
            "lamp_strength": scene.lamp_strength,
            "lamp_color": list(scene.lamp_color),
            "gloss": scene.gloss,
            "shininess": scene.shininess,
            "scene_from_head": plan.scene_from_head[b].tolist(),
        }
        for b, scene in enumerate(plan.scenes)
    ]
    return {
        "format": FORMAT,
        "model": model.name,
        "seed": recipe.seed,
        "index": plan.index,
        "renderer": recipe.renderer,
        "identity": state.identity[0].tolist(),
        "expression_per_view": [
            {n: float(v) for n, v in zip(model.expression_names, row) if v != 0} for row in state.expression
        ],
        **({} if state.joints is None else {"joints_per_view": state.joints.tolist()}),
        "gaze_deg": plan.gaze.tolist(),
        "light_per_view": lights,
        "appearance": _plain(plan.person),
        "hair": _plain(plan.hair),
        "glasses": plan.glasses,
        "photos": [_plain(p) for p in plan.photos],
        "landmark_noise_px": recipe.landmark_noise,
        **({} if plan.hairs is None else {"hair_per_view": [_plain(h) for h in plan.hairs]}),
        **({} if plan.traits is None else {"traits": _plain(plan.traits)}),
        "jaw": recipe.jaw,
        "parse_names": list(PARSE),
        "part_names": list(PARTS),
        "region_names": ["nothing", *model.region_names],
        "depth_unit_mm": DEPTH_UNIT,
    }


def _plain(value: Any) -> Any:
    value = value if isinstance(value, dict) else {k: getattr(value, k) for k in value.__dataclass_fields__}
    return {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in value.items()}


def _json(path: Path, value: Any) -> None:
    # Without indents, which only the slow encoder of the standard library writes.
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _png(path: Path, picture: np.ndarray) -> None:
    # Run lengths are smaller and faster here than the default strategy.
    ok, data = cv2.imencode(
        ".png",
        picture,
        [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE],
    )
    assert ok
    path.write_bytes(data.tobytes())


# ---- pictures of the truth ----


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals [..., 3] (0 = nothing) -> uint16 [..., 3]: 32768 + round(32767 n), and 0 where nothing
    is."""
    code = np.round(normals * NORMAL_SCALE) + 32768
    return np.where((normals == 0).all(-1, keepdims=True), 0, code).astype(np.uint16)


def read_depth(path: str | os.PathLike) -> np.ndarray:
    """view*_depth.png -> [H, W] float32 mm along the camera's axis, 0 = nothing.

    Raises:
        InputError: no such file, or not a 16-bit grey picture.
    """
    return _read_png(path, np.uint16, 2).astype(np.float32) * np.float32(DEPTH_UNIT)


def read_normals(path: str | os.PathLike) -> np.ndarray:
    """view*_normals.png -> [H, W, 3] float32 normals in the camera frame, 0 = nothing.

    Raises:
        InputError: no such file, or not a 16-bit colour picture.
    """
    code = _read_png(path, np.uint16, 3)[..., ::-1].astype(np.float32)
    return np.where((code == 0).all(-1, keepdims=True), 0, (code - 32768) / np.float32(NORMAL_SCALE))


def read_classes(path: str | os.PathLike) -> np.ndarray:
    """view*_parse.png, view*_parts.png, view*_region.png or view*_covered.png -> [H, W] uint8.

    Raises:
        InputError: no such file, or not an 8-bit grey picture.
    """
    return _read_png(path, np.uint8, 2)


def _read_png(path: str | os.PathLike, kind: type, dimensions: int) -> np.ndarray:
    with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
        picture = file.picture(cv2.IMREAD_UNCHANGED)
    if (
        picture is None
        or picture.dtype != kind
        or picture.ndim != dimensions
        or (dimensions == 3 and picture.shape[2] != 3)
    ):
        raise InputError(
            f"{path}: expected a PNG of {8 * np.dtype(kind).itemsize} bits and "
            f"{3 if dimensions == 3 else 1} channel(s), as fitkit synth writes it, got "
            f"{'no picture' if picture is None else f'{picture.dtype} {list(picture.shape)}'}"
        )
    return picture
