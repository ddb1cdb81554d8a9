"""NeRSemble: people filmed by sixteen calibrated cameras at once, as single frames or as videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from fitkit.data.samples import DataSet, folders_in, images_in
from fitkit.data.video_frames import decode_frames
from fitkit.errors import InputError
from fitkit.io.calibration import UNITS
from fitkit.io.foreign import MEGABYTE, foreign_file
from fitkit.io.images import read_image
from fitkit.io.options import Range
from fitkit.io.subject import KnownCamera, Subject, subject_from_images

CALIBRATION, SEQUENCES, PREFIX = "calibration/camera_params.json", "sequences", "cam_"
WIDTH, HEIGHT = 2200, 3208  # px of the pictures that K is stated for
DATA = DataSet(
    "NeRSemble",
    "https://tobias-kirschstein.github.io/nersemble/",
    "research use only",
    f"PERSON/{CALIBRATION} and PERSON/{SEQUENCES}/SEQUENCE/images/{PREFIX}SERIAL.mp4 (version 2) or "
    f"PERSON/{SEQUENCES}/SEQUENCE/timesteps/frame_00000/images/{PREFIX}SERIAL.jpg (version 1)",
)


@dataclass(frozen=True)
class NersembleOptions:
    """What is fitted together.

    sequences: names, empty = all that are there; frames: instants of each sequence, taken evenly from its
    first frame on; cameras: how many, spread over the rig from its middle on, 0 = all; unit: of the cameras'
    places. The data set states none: `unknown` finds the scale by the size of faces.
    """

    sequences: tuple[str, ...] = ("EXP-1-head",)
    frames: Annotated[int, Range(1, 1000)] = 1
    cameras: Annotated[int, Range(0, 1000)] = 5
    unit: Literal["unknown", "m", "cm", "mm"] = "unknown"


@dataclass(frozen=True)
class Rig:
    """K: [3, 3] px of all cameras, for pictures of WIDTH x HEIGHT; poses: serial -> [R | t] [3, 4]."""

    K: np.ndarray
    poses: dict[str, np.ndarray]

    def spread(self, serials: Sequence[str], count: int) -> list[str]:
        """Some of these cameras, all for 0: the one in their middle, then always the farthest from those
        taken."""
        centers = {s: -self.poses[s][:, :3].T @ self.poses[s][:, 3] for s in serials}
        middle = np.mean(list(centers.values()), 0)
        taken = [min(serials, key=lambda s: np.linalg.norm(centers[s] - middle))]
        while len(taken) < (count or len(serials)) and len(taken) < len(serials):
            left = [s for s in serials if s not in taken]
            taken.append(max(left, key=lambda s: min(np.linalg.norm(centers[s] - centers[t]) for t in taken)))
        return taken

    def camera(self, serial: str, width: int, unit: str) -> KnownCamera:
        """The camera of a picture of this width, px."""
        K = self.K.copy()
        K[:2] *= width / WIDTH
        K[:2, 2] += (width / WIDTH - 1) / 2  # the middle of the first pixel is 0 in both
        pose, mm = self.poses[serial], UNITS[unit]
        return KnownCamera(K, pose[:, :3], pose[:, 3] * (mm or 1.0), None, serial, mm is not None)


def read_rig(path: Path) -> Rig:
    """The cameras of a person.

    Raises:
        InputError: not a file of this kind.
    """
    with foreign_file(path, "cannot be read as cameras", DATA.expected, limit=MEGABYTE) as file:
        data = file.json()
        K = np.asarray(data["intrinsics"], np.float64)
        poses = {str(s): np.asarray(m, np.float64) for s, m in data["world_2_cam"].items()}
        if K.shape != (3, 3) or not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0:
            raise ValueError("intrinsics: expected [3, 3] finite numbers with focal lengths above 0")
        for serial, pose in poses.items():
            turn = pose[:3, :3] if pose.shape in ((3, 4), (4, 4)) else np.zeros((3, 3))
            orthonormal = np.isfinite(pose).all() and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3)
            if not orthonormal or np.linalg.det(turn) < 0:  # a mirror is no rotation
                raise ValueError(f"world_2_cam of {serial}: expected [4, 4] with a rotation in it")
    return Rig(K, {s: pose[:3] for s, pose in poses.items()})


def nersemble_subjects(folder: Path, options: NersembleOptions) -> list[tuple[str, Callable[[], Subject]]]:
    """'PERSON/SEQUENCE' and what reads its photos.

    Raises:
        InputError: not this layout, or none of the sequences.
    """
    root = DATA.root(folder)
    people = [p for p in folders_in(root) if (p / CALIBRATION).is_file()]
    if not people:
        raise DATA.missing(root, f"no PERSON/{CALIBRATION}")
    found: list[tuple[str, Callable[[], Subject]]] = []
    for person in people:
        for place in folders_in(person / SEQUENCES):
            if not options.sequences or place.name in options.sequences:
                name = f"{person.name}/{place.name}"
                found.append((name, partial(_subject, person, place, options, name)))
    if not found:
        asked = ", ".join(options.sequences)
        raise DATA.missing(root, f"nobody has a sequence {asked}" if asked else "nobody has a sequence")
    return found


def _subject(person: Path, place: Path, options: NersembleOptions, name: str) -> Subject:
    """The photos of all instants; they are called 'FRAME_SERIAL', their moments 'FRAME'."""
    rig = read_rig(person / CALIBRATION)
    read = _of_videos if (place / "images").is_dir() else _of_frames
    pictures = read(place, rig, options)
    cameras = []
    for _, serial, picture in pictures:
        height, width = picture.shape[:2]
        if abs(height * WIDTH - width * HEIGHT) > max(WIDTH, HEIGHT):
            raise InputError(
                f"{place}: the pictures of camera {serial} have {width} x {height} px, but the cameras are "
                f"stated for {WIDTH} x {HEIGHT}; give the pictures as they were downloaded, or all of them "
                "reduced alike"
            )
        cameras.append(rig.camera(serial, width, options.unit))
    return subject_from_images(
        [picture for _, _, picture in pictures],
        names=[f"{frame}_{serial}" for frame, serial, _ in pictures],
        cameras=cameras,
        name=name,
        moments=[frame for frame, _, _ in pictures],
    )


def _evenly(count: int, wanted: int) -> list[int]:
    """Numbers from 0 on, with the last one if more than one is wanted."""
    return sorted({round(k * (count - 1) / max(wanted - 1, 1)) for k in range(wanted)})


def _serials(files: Sequence[Path], rig: Rig, wanted: int, place: Path) -> dict[str, Path]:
    """Serial -> file, of those cameras that are taken."""
    named = {p.stem.removeprefix(PREFIX): p for p in files if p.stem.startswith(PREFIX)}
    there = sorted(s for s in named if s in rig.poses)
    if not there:
        raise DATA.missing(place, f"no {PREFIX}SERIAL of a camera of {CALIBRATION}")
    return {s: named[s] for s in rig.spread(there, wanted)}


Pictures = list[tuple[str, str, Any]]  # frame, serial, [H, W, 3] uint8


def _of_videos(place: Path, rig: Rig, options: NersembleOptions) -> Pictures:
    files = [p for p in (place / "images").iterdir() if p.suffix.lower() in (".mp4", ".avi", ".mkv", ".mov")]
    videos = _serials(files, rig, options.cameras, place / "images")
    # The shortest counts: cameras may stop a frame earlier than others.
    numbers = _evenly(min(_length(path) for path in videos.values()), options.frames)
    found: Pictures = []
    for serial, path in videos.items():
        found += [(f"{n:05d}", serial, image) for n, image in zip(numbers, decode_frames(path, numbers))]
    return sorted(found, key=lambda f: f[0])  # stable: the cameras of an instant stay in their order


def _length(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    try:
        return max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
    finally:
        video.release()


def _of_frames(place: Path, rig: Rig, options: NersembleOptions) -> Pictures:
    frames = [p for p in folders_in(place / "timesteps") if p.name.startswith("frame_")]
    if not frames:
        raise DATA.missing(place, "neither images/ nor timesteps/frame_00000/")
    found: Pictures = []
    for number in _evenly(len(frames), options.frames):
        images = frames[number] / "images"
        for serial, path in _serials(images_in(images), rig, options.cameras, images).items():
            found.append((frames[number].name.removeprefix("frame_"), serial, read_image(path)[0]))
    return found
