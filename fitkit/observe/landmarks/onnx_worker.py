"""Runs an ONNX network in a process of its own, a script that `onnx.NetworkProcess` starts: OpenCV's importer
can crash on a damaged file, and must not take us with it. Imports nothing of fitkit, so that it is there in a
third of a second.

Messages in both directions are a length (uint64, little-endian) and as many bytes. The first one to it is the
ONNX file, the others are inputs as .npy; an answer is b'+' with the output as .npy (nothing for the file), or
b'-' with the reason why there is none.
"""

from __future__ import annotations

import io
import os
import struct
import sys

import cv2
import numpy as np

MEMORY = 4 * 2**30  # bytes of address space


def send(stream, message: bytes) -> None:
    stream.write(struct.pack("<Q", len(message)) + message)
    stream.flush()


def receive(stream) -> bytes:
    """The next message. Raises EOFError where the other side is gone."""
    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    message = stream.read(length)
    if len(head) < 8 or len(message) < length:
        raise EOFError
    return message


def packed(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on this system
    network = None
    while True:
        try:
            message = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = b""
            if network is None:
                network = cv2.dnn.readNetFromONNX(np.frombuffer(message, np.uint8))
                if network.empty():
                    raise ValueError("no layers")
            else:
                network.setInput(np.load(io.BytesIO(message), allow_pickle=False))
                answer = packed(np.asarray(network.forward()))
            send(answers, b"+" + answer)
        except Exception as error:  # noqa: BLE001 - cv2.error, MemoryError, ...
            send(answers, b"-" + " ".join(str(error).split())[:200].encode())


if __name__ == "__main__":
    main()
