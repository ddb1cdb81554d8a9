import gc
import struct

import numpy as np
import pytest

from fitkit.errors import InputError
from fitkit.observe.landmarks import onnx
from fitkit.observe.landmarks.builtin import Look
from fitkit.observe.landmarks.detectors import make_detector
from fitkit.observe.landmarks.face_crop import FaceSquare
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.onnx import OnnxDetector, input_shapes

FACE = mean_face()[:, :2] * [1, -1] / 2 + [150, 120]


def number(key, value):
    out = bytes([key << 3])
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def block(key, *parts):
    content = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return bytes([key << 3 | 2]) + number(0, len(content))[1:] + content


def tensor(name, values, stated=None):
    return block(
        5,
        *(number(1, n) for n in stated or values.shape),
        number(2, 1),
        block(8, name),
        block(9, values.astype("<f4").tobytes()),
    )


def value(key, name, shape):
    dims = (block(1, number(1, n) if n else block(2, "n")) for n in shape)
    return block(key, block(1, name), block(2, block(1, number(1, 1), block(2, *dims))))


def regressor(points, shape=(1, 3, 32, 32), outputs=136, inputs=1, stated=None):
    """An ONNX file: flatten the crop, multiply by nought, add `points`; as messages by hand, the package onnx
    is not needed.

    stated: the shape that the file says the nought has."""
    size = int(np.prod([max(n, 1) for n in shape]))
    bias = np.resize(np.asarray(points, dtype=np.float32).ravel(), outputs)
    nodes = (
        block(1, block(1, "x"), block(2, "flat"), block(4, "Flatten")),
        block(1, *(block(1, n) for n in ("flat", "w", "b")), block(2, "y"), block(4, "Gemm")),
    )
    graph = block(
        7,
        *nodes,
        block(2, "g"),
        tensor("w", np.zeros((size, outputs)), stated),
        tensor("b", bias),
        *(value(11, "x" if i == 0 else f"x{i}", shape) for i in range(inputs)),
        value(11, "w", (size, outputs)),
        value(12, "y", (1, outputs)),
    )
    return number(1, 7) + graph + block(8, block(1, ""), number(2, 13))


class Finder:
    """Sees one face, that of FACE, unless the picture is black."""

    def find(self, image):
        look = Look(
            np.concatenate([FACE, FACE[:17]]), np.ones(85), np.ones(85), FaceSquare((0.0, 0.0), 1.0), 1.0, 0.0
        )
        return [look] if image.any() else []


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 48, 40)])
@pytest.mark.parametrize("unit", ["fraction", "px"])
def test_points_land_in_the_photo(tmp_path, shape, unit):
    low, side = (FACE.min(0) + FACE.max(0)) / 2, 1.2 * np.ptp(FACE, axis=0).max()
    share = (FACE - low) / side + 0.5  # of the crop, which is centred on the box of the points
    size = np.array([shape[3], shape[2]])
    content = regressor(share if unit == "fraction" else share * size - 0.5, shape)
    network = OnnxDetector(write(tmp_path / "net.onnx", content), finder=Finder())
    (found,) = network.detect_all(np.full((240, 300, 3), 90, np.uint8))
    np.testing.assert_allclose(found.points[0].numpy(), FACE, atol=0.02)
    assert (
        found.sigma.isnan().all()
        and found.valid.all()
        and (found.confidence == 1).all()
        and found.jaw == "auto"
    )
    assert network.name == "onnx:net.onnx" and network.detect_all(np.zeros((64, 64, 3), np.uint8)) == []


def test_input_shapes():
    assert input_shapes(regressor(FACE, (0, 3, 32, 48))) == {"x": [0, 3, 32, 48]}
    assert input_shapes(regressor(FACE, inputs=2)) == {"x": [1, 3, 32, 32], "x1": [1, 3, 32, 32]}
    # Numbers of 32 bits are passed over.
    assert input_shapes(bytes([2 << 3 | 5]) + struct.pack("<f", 1.0) + regressor(FACE)) == {
        "x": [1, 3, 32, 32]
    }


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not onnx at all, just text", "not an ONNX file"),
        (b"", "not an ONNX file"),
        (regressor(FACE)[:2000], "not an ONNX file"),
        (regressor(FACE, inputs=2), "expected one input, got 2: x, x1"),
        (
            regressor(FACE, (1, 3, 0, 0)),
            r"expected an input \[N, 3, H, W\] or \[N, 1, H, W\] of declared size, got 'x' \[1, 3, \?, \?\]",
        ),
        (regressor(FACE, (1, 136)), r"expected an input .* got 'x' \[1, 136\]"),
        (
            regressor(FACE, outputs=10),
            r"expected 136 finite numbers .x, y of 68 points., got an output \[1, 10\]",
        ),
        (regressor(FACE * np.nan), "expected 136 finite numbers"),
        (regressor(FACE).replace(b"Gemm", b"Gemn"), "OpenCV cannot run this ONNX file"),
    ],
)
def test_refusals(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        OnnxDetector(write(tmp_path / "net.onnx", content), finder=Finder())
    assert "net.onnx" in str(caught.value) and "\n" not in str(caught.value)


def test_a_crash_of_the_importer_is_no_crash_of_ours(tmp_path):
    """The weights state more numbers than they hold, which OpenCV reads past the end of."""
    path = write(tmp_path / "net.onnx", regressor(FACE, stated=(10**6, 136)))
    with pytest.raises(
        InputError, match="OpenCV cannot run this ONNX file .*; export it with a fixed input size"
    ) as caught:
        OnnxDetector(path, finder=Finder())
    assert "\n" not in str(caught.value)


def test_a_process_that_is_gone_or_late(tmp_path, monkeypatch):
    detector = OnnxDetector(write(tmp_path / "net.onnx", regressor(FACE)), finder=Finder())
    detector.network.process.kill()
    with pytest.raises(InputError, match="its importer crashed, exit code -9"):
        detector.detect_all(np.full((240, 300, 3), 90, np.uint8))
    monkeypatch.setattr(onnx, "PATIENCE", 0.01)
    with pytest.raises(InputError, match="it took more than 0.01 s"):
        OnnxDetector(tmp_path / "net.onnx", finder=Finder())


def test_the_process_ends_with_the_detector(tmp_path):
    detector = OnnxDetector(write(tmp_path / "net.onnx", regressor(FACE)), finder=Finder())
    process = detector.network.process
    del detector
    gc.collect()
    assert process.poll() is not None


def test_missing_file(tmp_path):
    with pytest.raises(
        InputError,
        match="none.onnx: cannot be read .No such file or directory.; give the path of an ONNX file",
    ):
        make_detector(f"onnx:{tmp_path / 'none.onnx'}")
