"""Many random faces in files.

A folder holds `shard_00000.npz`, `shard_00001.npz`, ...; the faces of shard k have the seeds seed + k *
shard_size + i, and model i mod (number of models). Arrays of a shard of n faces:
    jpeg [total] uint8 and jpeg_end [n] int64: the pictures as JPEG files one after the other, each up to its
    `jpeg_end`; landmarks [n, 68, 2] float32 px; visible [n, 68] bool; outline [n, 17, 2] float32 px;
    yaw_pitch_roll [n, 3] float32 degrees; model [n] names; seed [n] int64; size: side of the pictures, px.
The fields mean what they mean in `random_faces.RandomFace`. A shard is written under another name and renamed
when it is whole, so a folder can be read while it grows, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fitkit.errors import InputError
from fitkit.io.atomic import remove_litter, written_whole
from fitkit.io.foreign import DATA_BYTES, check_shapes, decode_picture, foreign_file, refused_as
from fitkit.io.workers import run_jobs
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.synth.random_faces import FaceVariation, random_face

JPEG_QUALITY = 95
NO_SHARD = ("not a readable shard of rendered faces", "delete it and render it again")
FIELDS = {"landmarks": (68, 2), "visible": (68,), "outline": (17, 2), "yaw_pitch_roll": (3,)}


@dataclass(frozen=True)
class FaceShard:
    """n rendered faces: images uint8 [n, S, S, 3] RGB; landmarks float32 [n, 68, 2] px; visible bool [n, 68];
    outline float32 [n, 17, 2] px; yaw_pitch_roll float32 [n, 3] degrees; model: n names; seed int64 [n]."""

    images: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray
    outline: np.ndarray
    yaw_pitch_roll: np.ndarray
    model: tuple[str, ...]
    seed: np.ndarray


def render_faces(
    models: Sequence[str],
    count: int,
    folder: str | os.PathLike,
    seed: int = 0,
    size: int = 160,
    workers: int = 1,
    variation: FaceVariation | None = None,
    shard_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render `count` faces of these models in turn into shards; shards that are already there are kept.

    Args:
        models: names or files for `load_model`; seed: of the first face; workers: processes, each with one
            thread; progress: called with (faces done, count) after each shard; a bar in the terminal without
            it.
    Returns:
        the shards' paths in order.
    Raises:
        InputError: nothing to render, or the folder holds faces of another size, seed or other models.
    """
    if not models or count < 1 or workers < 1 or shard_size < 1:
        raise InputError(
            f"render_faces: expected at least one model, face, worker and face per shard, got {len(models)} "
            f"models, {count} faces, {workers} workers, {shard_size} per shard"
        )
    folder = Path(folder)
    remove_litter(folder)
    for name in models:
        load_model(name)  # a name that is not known stops here, with its own message
    starts = range(0, count, shard_size)
    jobs = [
        (
            folder / f"shard_{k:05d}.npz",
            tuple(models),
            start,
            min(shard_size, count - start),
            seed,
            size,
            variation or FaceVariation(),
        )
        for k, start in enumerate(starts)
    ]
    left = [job for job in jobs if not _is_there(job)]
    done = count - sum(job[3] for job in left)
    bar = None if progress is not None else tqdm(total=count, initial=done, unit="face")
    try:
        for number in run_jobs(_render_shard, left, workers):
            done += number
            if bar is not None:
                bar.update(number)
            elif progress is not None:
                progress(done, count)
    finally:
        if bar is not None:
            bar.close()
    return [job[0] for job in jobs]


def _is_there(job) -> bool:
    path, models, start, number, seed, size, _ = job
    if not path.exists():
        return False
    arrays = _read(path)
    wanted = [load_model(models[(start + i) % len(models)]).name for i in range(number)]
    same = (
        list(arrays["seed"]) == list(range(seed + start, seed + start + number))
        and list(arrays["model"]) == wanted
    )
    if int(arrays["size"]) != size or not same:
        raise InputError(
            f"{path}: holds other faces than asked for (size, seed, count or models differ); choose another "
            "folder"
        )
    return True


def _render_shard(job) -> int:
    path, models, start, number, seed, size, variation = job
    loaded = [load_model(name) for name in models]
    rows = {key: [] for key in FIELDS}
    pictures, names = [], []
    for i in range(start, start + number):
        model: FaceModel = loaded[i % len(loaded)]
        face = random_face(model, seed + i, size, variation)
        pictures.append(
            cv2.imencode(".jpg", face.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].reshape(
                -1
            )
        )
        names.append(model.name)
        for key in FIELDS:
            rows[key].append(getattr(face, key))
    with written_whole(path) as part, open(part, "wb") as file:
        np.savez(
            file,
            jpeg=np.concatenate(pictures),
            jpeg_end=np.cumsum([len(p) for p in pictures]),
            model=np.array(names),
            seed=np.arange(seed + start, seed + start + number),
            size=size,
            **{k: np.stack(v) for k, v in rows.items()},
        )
    return number


def _read(path: Path) -> dict[str, np.ndarray]:
    shapes = {
        "jpeg": ("total",),
        "jpeg_end": ("n",),
        "model": ("n",),
        "seed": ("n",),
        "size": (),
        **{k: ("n", *v) for k, v in FIELDS.items()},
    }
    kinds = {"model": "U", "visible": "b", **dict.fromkeys(("jpeg", "jpeg_end", "seed", "size"), "iu")}
    with foreign_file(path, *NO_SHARD, limit=DATA_BYTES) as file:
        arrays = file.npz(tuple(shapes))
        check_shapes({k: arrays[k] for k in shapes}, shapes, kinds, path)
        ends = arrays["jpeg_end"]
        inside = (np.diff(ends, prepend=0) >= 0).all() and ends.max(initial=0) <= len(arrays["jpeg"])
        if arrays["jpeg"].dtype != np.uint8 or not inside:
            raise ValueError("jpeg_end does not cut jpeg into pictures")
    return arrays


def read_shard(path: str | os.PathLike) -> FaceShard:
    """One shard with its pictures decoded.

    Raises:
        InputError: the file is missing, damaged, or no shard.
    """
    path = Path(path)
    arrays = _read(path)
    parts = np.split(arrays["jpeg"], arrays["jpeg_end"][:-1])
    with refused_as(f"{path}: {NO_SHARD[0]}", NO_SHARD[1]):
        images = [decode_picture(part.tobytes()) for part in parts]
    size = int(arrays["size"])
    if any(image is None or image.shape != (size, size, 3) for image in images):
        raise InputError(f"{path}: a picture in this shard cannot be decoded; delete it and render it again")
    return FaceShard(
        np.stack(images)[..., ::-1].copy(),
        *(arrays[key] for key in FIELDS),
        tuple(str(m) for m in arrays["model"]),
        arrays["seed"],
    )


def shard_paths(folder: str | os.PathLike) -> list[Path]:
    """The whole shards of a folder in order.

    Raises:
        InputError: there are none.
    """
    paths = sorted(Path(folder).glob("shard_*.npz"))
    if not paths:
        raise InputError(
            f"{folder}: no shards of rendered faces here; make them with fitkit.synth.shards.render_faces"
        )
    return paths
