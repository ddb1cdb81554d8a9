"""Landmark networks that the user has, as ONNX files, behind our detector interface; run by OpenCV in its own
process.

What such a network must be: one input [N, 3, H, W] (or [N, 1, H, W], grey) of declared size, the RGB crop of
a face in [0, 1]; one output of 136 numbers, [N, 136] or [N, 68, 2]: x and y of the iBUG points in turn, as
fractions of the crop or in pixels of it. The crop is upright, its side 1.2 times the larger side of the box
around the points.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.io.foreign import MEGABYTE, foreign_file, refused_as
from fitkit.observe.landmarks import onnx_worker
from fitkit.observe.landmarks.builtin import BuiltinDetector
from fitkit.observe.landmarks.face_crop import MARGIN, cut
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks

ONNX_MARGIN = 1.2  # usual for 68-point regressors
FILE_BYTES = 512 * MEGABYTE
SIDES = (16, 2048)  # px of an input
PATIENCE = 8.0  # seconds for one answer of the network
FRACTION = 2.0  # outputs up to this size are fractions of the crop


class OnnxDetector(EveryFaceDetector):
    """A 68-point regressor in an ONNX file, on the faces that the built-in detector finds. It states no
    sigma.

    Args:
        path: of the ONNX file.
        finder: gives the faces; default: the built-in detector.
    Raises:
        InputError: no such file, not an ONNX file that OpenCV can run, or not a 68-point regressor.
        MissingWeightsError: those of the built-in detector.
    """

    def __init__(self, path: str | os.PathLike, device: str = "cpu", finder: BuiltinDetector | None = None):
        path = Path(path)
        self.name = f"onnx:{path.name}"
        self.where = f"landmark detector {path}"
        with foreign_file(
            path, "cannot be read", "give the path of an ONNX file", limit=FILE_BYTES, where=f"{self.where}:"
        ) as file:
            content = file.bytes()
        self.channels, self.height, self.width = self._input_shape(content)
        self.network = NetworkProcess(content)
        self._run(np.zeros((self.height, self.width, 3), np.uint8))
        self.finder = finder or BuiltinDetector(device)

    def _input_shape(self, content: bytes) -> tuple[int, int, int]:
        with refused_as(f"{self.where}: not an ONNX file"):
            shapes = input_shapes(content)
        if len(shapes) != 1:
            raise InputError(
                f"{self.where}: expected one input, got {len(shapes)}: {', '.join(shapes) or 'none'}"
            )
        name, shape = next(iter(shapes.items()))
        if (
            len(shape) != 4
            or shape[1] not in (1, 3)
            or min(shape[2:]) < SIDES[0]
            or max(shape[2:]) > SIDES[1]
        ):
            told = ", ".join("?" if n < 1 else str(n) for n in shape)
            raise InputError(
                f"{self.where}: expected an input [N, 3, H, W] or [N, 1, H, W] of declared size, "
                f"got {name!r} [{told}]; H and W may be {SIDES[0]} to {SIDES[1]}"
            )
        return shape[1], shape[2], shape[3]

    def _run(self, crop: np.ndarray) -> np.ndarray:
        """Crop [H, W, 3] uint8 -> points [68, 2] in px of it."""
        if self.channels == 1:
            crop = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        with refused_as(
            f"{self.where}: OpenCV cannot run this ONNX file", "export it with a fixed input size"
        ):
            output = self.network(cv2.dnn.blobFromImage(crop, 1 / 255))
        if output.size != 136 or not np.isfinite(output).all():
            raise InputError(
                f"{self.where}: expected 136 finite numbers (x, y of 68 points), got an output "
                f"{list(output.shape)}"
            )
        points = output.reshape(68, 2).astype(np.float64)
        if np.abs(points).max() <= FRACTION:
            # Fractions run from edge to edge, and pixel centres are whole numbers.
            points = points * [self.width, self.height] - 0.5
        return points

    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """image [H, W, 3] uint8 sRGB -> one Landmarks of one view for each face, the largest face first."""
        out = []
        for face in self.finder.find(image):
            square = replace(face.own_square, side=face.own_square.side * ONNX_MARGIN / MARGIN)
            size = max(self.height, self.width)
            matrix = square.matrix(size)
            crop = cv2.resize(
                cut(image, matrix, size), (self.width, self.height), interpolation=cv2.INTER_AREA
            )
            points = (self._run(crop) + 0.5) * [size / self.width, size / self.height] - 0.5
            points = (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
            found = torch.from_numpy(points[None]).float()
            out.append(
                Landmarks(
                    found,
                    torch.full((1, 68), torch.nan),
                    torch.ones(1, 68, dtype=torch.bool),
                    torch.ones(1, 68),
                    self.jaw,
                )
            )
        return out


class NetworkProcess:
    """An ONNX network that another process runs, see `onnx_worker`; it ends with this object, or with our
    process.

    Calls raise ValueError with the reason where there is no output: what OpenCV says, the process crashed, or
    it took too long.
    """

    def __init__(self, content: bytes):
        self.content, self.owner, self.lock = content, 0, threading.Lock()

    def __call__(self, blob: np.ndarray) -> np.ndarray:
        """Input [1, C, H, W] float32 -> the output."""
        with self.lock:
            if self.owner != os.getpid():  # none yet, or it belongs to the process that we are a fork of
                self._start()
            answer = self._ask(onnx_worker.packed(blob))
        output = np.load(io.BytesIO(answer), allow_pickle=False)
        if output.dtype.kind not in "fiu":
            raise ValueError(f"the output is {output.dtype}")
        return output

    def _start(self) -> None:
        # Run by path: beside it lies a types.py, which must not stand for Python's own.
        code = (
            "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
        )
        command = [sys.executable, "-c", code, onnx_worker.__file__, *(p for p in sys.path if p)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.owner = os.getpid()
        weakref.finalize(self, _end, self.process, self.owner)
        self._ask(self.content)

    def _ask(self, message: bytes) -> bytes:
        process, late = self.process, threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(PATIENCE, stop)
        timer.start()
        try:
            onnx_worker.send(process.stdin, message)
            answer = onnx_worker.receive(process.stdout)
        except (EOFError, OSError):
            process.kill()
            code = process.wait()
            raise ValueError(
                f"it took more than {PATIENCE:g} s"
                if late.is_set()
                else f"its importer crashed, exit code {code}"
            ) from None
        finally:
            timer.cancel()
        if answer[:1] != b"+":
            raise ValueError(answer[1:].decode(errors="replace") or "no reason given")
        return answer[1:]


def _end(process: subprocess.Popen, owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()


def input_shapes(content: bytes) -> dict[str, list[int]]:
    """Names and shapes (0 = not fixed) of the inputs of an ONNX file that are no stored weights.

    Read from the protocol buffer itself: ModelProto.graph = 7; GraphProto.initializer = 5, .input = 11;
    TensorProto.name = 8; ValueInfoProto.name = 1, .type = 2; TypeProto.tensor_type = 1; Tensor.shape = 2;
    TensorShapeProto.dim = 1; .dim_value = 1. Raises ValueError or IndexError where the bytes are no such
    message.
    """
    graph = next((v for k, v in _fields(content) if k == 7), None)
    if not isinstance(graph, bytes):
        raise ValueError("no graph")
    stored, shapes = set(), {}
    for key, value in _fields(graph):
        if key == 5:
            stored |= {v.decode() for k, v in _fields(value) if k == 8}
        elif key == 11:
            fields = dict(_fields(value))
            shape = dict(_fields(dict(_fields(fields.get(2, b""))).get(1, b""))).get(2, b"")
            shapes[fields[1].decode() if 1 in fields else "?"] = [
                int(dict(_fields(d)).get(1, 0)) for k, d in _fields(shape) if k == 1
            ]
    return {name: shape for name, shape in shapes.items() if name not in stored}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol-buffer message; messages, text and fixed-size numbers as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            if shift > 63:
                raise ValueError("a number is too long")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        length = varint() if kind == 2 else 8 if kind == 1 else 4
        if at + length > len(message):
            raise ValueError("cut off")
        yield key >> 3, message[at : at + length]
        at += length
