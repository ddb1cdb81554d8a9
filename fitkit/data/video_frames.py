"""Single frames of a video file, by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fitkit.errors import InputError


def decode_frames(path: Path, numbers: Sequence[int]) -> list[np.ndarray]:
    """Some frames of a video by number, from 0 and rising, as [H, W, 3] uint8 RGB.

    Raises:
        InputError: a video that cannot be opened, or without such a frame.
    """
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise InputError(f"{path}: cannot be opened as a video; download it again, or remove its folder")
        frames, following = [], 0
        for number in numbers:
            if number != following:
                video.set(cv2.CAP_PROP_POS_FRAMES, number)
            read, frame = video.read()
            if not read:
                count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
                raise InputError(
                    f"{path}: frame {number}, counted from 0, cannot be decoded; the video says that it has "
                    f"{count}; ask for others, or download it again"
                )
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            following = number + 1
        return frames
    finally:
        video.release()
