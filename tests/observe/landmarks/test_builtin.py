"""The chain from boxes to landmarks, with a stand-in network that knows where the face is."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fitkit.errors import InputError, MissingWeightsError
from fitkit.observe.landmarks import builtin
from fitkit.observe.landmarks.builtin import (
    BuiltinDetector,
    BuiltinOptions,
    JudgeOptions,
    distinct,
    face_score,
    load_network,
    mean_of_mirrored,
)
from fitkit.observe.landmarks.face_crop import FaceSquare
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions, NetworkOutput
from fitkit.observe.landmarks.types import MIRRORED

SIZE = 128
SWAP = np.concatenate([MIRRORED, 68 + np.arange(16, -1, -1)])
PICTURE = 256


def face(center=(128.0, 120.0), width=90.0, lean=0.0):
    """The 85 points of a frontal face of this width in px, leaning clockwise by `lean` radians; fixed jaw
    points 3 px lower."""
    points = mean_face()[:, :2] * [1, -1]
    points = points / np.ptp(points[:, 0]) * width
    c, s = np.cos(lean), np.sin(lean)
    points = (points - points.mean(0)) @ np.array([[c, -s], [s, c]]).T + center
    return np.concatenate([points, points[:17] + [0, 3]])


def coordinates():
    """A picture whose red and green are the x and y of the pixel."""
    y, x = np.mgrid[:PICTURE, :PICTURE]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


class Knows:
    """Reads from a crop of `coordinates()` where it lies and gives the points of the faces there, noise where
    there is none."""

    def __init__(self, *faces, sigma=2.0):
        self.faces, self.sigma, self.crops = faces, sigma, 0

    def __call__(self, crops):
        self.crops += len(crops)
        points = np.stack([self.read(c.permute(1, 2, 0).double().numpy() * 255) for c in crops])
        n = len(points)
        return NetworkOutput(
            torch.from_numpy(points), torch.full((n, 85), float(np.log(self.sigma))), torch.full((n, 85), 2.0)
        )

    def read(self, crop):
        v, u = np.mgrid[:SIZE, :SIZE]
        inside = ((crop[..., :2] > 4) & (crop[..., :2] < PICTURE - 5)).all(-1)
        noise = np.random.default_rng(int(crop.sum())).uniform(10, 118, (85, 2))
        if inside.sum() < 100:
            return noise
        to_photo = np.linalg.lstsq(
            np.column_stack([u[inside], v[inside], np.ones(inside.sum())]), crop[inside][:, :2], rcond=None
        )[0]
        for points in self.faces:
            # A mirrored face: left and right change places.
            points = points[SWAP] if np.linalg.det(to_photo[:2]) < 0 else points
            found = (points - to_photo[2]) @ np.linalg.inv(to_photo[:2])
            side = np.ptp(found[:68], axis=0).max()
            if np.abs(found[:68].mean(0) - 64).max() < 40 and 30 < side < 160:
                return found
        return noise


def detector(*faces, **options):
    return BuiltinDetector(network=Knows(*faces), size=SIZE, options=BuiltinOptions(**options))


@pytest.mark.parametrize("lean", [0.0, 0.6, -0.7])
def test_points_sigma_and_confidence_in_px_of_the_photo(lean):
    truth = face(lean=lean)
    (found,) = detector(truth).detect_all(coordinates())
    # The picture's values are whole numbers; read from a whole crop they place the points to a few hundredths
    # of a pixel.
    np.testing.assert_allclose(found.points[0].numpy(), truth[:68], atol=0.3)
    c, s = np.cos(-lean), np.sin(-lean)
    upright = truth[:68] @ np.array([[c, -s], [s, c]]).T
    side = 1.5 * np.ptp(upright, axis=0).max()
    np.testing.assert_allclose(
        found.sigma[0].numpy(), np.hypot(2 * side / SIZE, np.hypot(0.003 * side, 0.3)), rtol=0.05
    )
    np.testing.assert_allclose(found.confidence[0].numpy(), 1 / (1 + np.exp(-2)), rtol=1e-5)
    assert found.valid.all() and found.jaw == "outline" and found.points.dtype == torch.float32


def test_both_kinds_of_jaw():
    truth = face()
    assert BuiltinDetector(network=Knows(truth)).name == "builtin"
    surface = BuiltinDetector(jaw="surface", network=Knows(truth))
    (found,) = surface.detect_all(coordinates())
    assert surface.name == "builtin3d" and found.jaw == "surface"
    np.testing.assert_allclose(found.points[0].numpy(), np.concatenate([truth[68:], truth[17:68]]), atol=0.3)
    with pytest.raises(InputError, match="jaw must be 'outline' or 'surface', got 'auto'"):
        BuiltinDetector(jaw="auto", network=Knows(truth))


def test_several_faces_largest_first():
    faces = face((75.0, 80.0), 55.0), face((170.0, 150.0), 75.0)
    looks = detector(*faces).find(coordinates())
    assert len(looks) == 2 and [k.points[:68, 0].mean() for k in looks] == pytest.approx(
        [f[:68, 0].mean() for f in faces[::-1]], abs=0.3
    )


def test_no_face():
    found = detector()
    assert found.detect_all(coordinates()) == []
    batch = found.detect(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert batch.points.shape == (2, 68, 2) and not batch.valid.any() and batch.jaw == "outline"


def test_the_search_ends_with_a_sure_face(monkeypatch):
    asked = []

    def two(image, most):
        for number in range(2):
            asked.append(number)
            yield [builtin_candidate(FaceSquare((125.0, 125.0), 140.0))]

    def builtin_candidate(square):
        from fitkit.observe.landmarks.boxes import Candidate

        return Candidate(square, 1.0)

    monkeypatch.setattr(builtin, "propose", two)
    detector(face()).find(coordinates())
    assert asked == [0]
    network = Knows(face(), sigma=9.0)  # less sure: goes on
    assert len(BuiltinDetector(network=network).find(coordinates())) == 1 and asked == [0, 0, 1]
    asked.clear()  # a small frontal face may have a larger one beside it that is turned away
    assert len(
        detector(face(width=35.0), judge=JudgeOptions(shift=9.0, zoom=9.0)).find(coordinates())
    ) == 1 and asked == [0, 1]


def test_it_repeats_itself():
    a, b = (detector(face(lean=0.3)).detect_all(coordinates())[0] for _ in range(2))
    assert torch.equal(a.points, b.points) and torch.equal(a.sigma, b.sigma)


def test_mirrored_look():
    rng = np.random.default_rng(0)
    points, sigma, seen = (
        rng.uniform(0, 127, (1, 85, 2)),
        rng.uniform(1, 3, (1, 85)),
        rng.normal(size=(1, 85)),
    )
    other = ((points + [2.0, 0]) * [-1, 1] + [127, 0])[:, SWAP]
    both = (np.concatenate(v) for v in ((points, other), (sigma, sigma[:, SWAP]), (seen, seen[:, SWAP])))
    mean, spread, visible, apart = mean_of_mirrored(*both, 128)
    np.testing.assert_allclose(mean, points + [1, 0])
    # The two differ by 2 px in x: variance 1 in x, 1/2 on average.
    np.testing.assert_allclose(spread, np.sqrt(sigma**2 + 0.5))
    np.testing.assert_allclose(visible, seen)
    assert apart == pytest.approx([2.0])


def test_score():
    points = face((63.5, 63.5), 70.0)
    sigma, seen = np.full(85, 1.5), np.full(85, 0.95)
    good = face_score(points, sigma, seen, 1.0, 0.0, SIZE)
    assert good > 0.7
    assert face_score(points, 4 * sigma, seen, 1.0, 0.0, SIZE) < good  # unsure
    assert face_score(points, sigma, seen, 8.0, 0.0, SIZE) < 0.2  # two looks that do not agree
    assert face_score(points, sigma, 0.1 * seen, 1.0, 0.0, SIZE) < 0.3 * good  # hidden
    assert face_score(points + [40, 0], sigma, seen, 1.0, 0.0, SIZE) < 0.6 * good  # not where it looked
    assert (
        face_score((points - 63.5) * 0.4 + 63.5, sigma * 0.4, seen, 0.4, 0.0, SIZE) < 0.3 * good
    )  # too small
    assert (
        face_score(points, sigma, seen, 1.0, 0.7, SIZE)
        > 0.9 * good
        > face_score(points, sigma, seen, 1.0, 3.1, SIZE) * 2
    )  # upside down
    assert (
        face_score(np.random.default_rng(0).permutation(points), sigma, seen, 1.0, 0.0, SIZE) < 0.1
    )  # no face's shape
    assert face_score(np.full((85, 2), 64.0), sigma, seen, 0.0, 0.0, SIZE) == 0
    assert face_score(points * np.nan, sigma, seen, 0.0, 0.0, SIZE) == 0


def test_one_look_for_each_face():
    def look(center, width, score):
        return builtin.Look(
            face(center, width), np.ones(85), np.ones(85), FaceSquare(center, width), score, 0.0
        )

    a, b = look((80.0, 80.0), 60.0, 0.6), look((84.0, 80.0), 60.0, 0.7)
    inner, apart = look((80.0, 100.0), 20.0, 0.5), look((200.0, 80.0), 60.0, 0.4)
    assert [k.score for k in distinct([a, b, inner, apart])] == [0.7, 0.4]


def weights(path, **changes):
    network = LandmarkNetwork(NetworkOptions(widths=(4, 4, 4, 4, 4), decoder=(4, 4, 4)))
    tensors = {
        k: v.half().contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    } | changes
    save_file(
        tensors,
        path,
        {"network": json.dumps({"size": 128, "widths": [4] * 5, "blocks": [1, 1, 2, 1], "decoder": [4] * 3})},
    )
    return network.eval(), path


def test_loading_weights(tmp_path):
    network, path = weights(tmp_path / "w.safetensors")
    loaded = load_network("cpu", path)
    assert loaded.options == network.options and not loaded.training
    crops = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        # Half precision in the file.
        torch.testing.assert_close(loaded(crops).points, network(crops).points, atol=0.1, rtol=0)


def test_weights_are_read_once(tmp_path):
    assert load_network() is load_network()
    _, path = weights(tmp_path / "w.safetensors")
    loaded = load_network("cpu", path)
    weights(path)
    os.utime(path, ns=(1, 1))
    assert load_network("cpu", path) is not loaded, "a new file is read again"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.write_bytes(b"cut off"), "its weights .*w.safetensors are damaged"),
        (
            lambda p: p.unlink(),
            "its weights .*w.safetensors, which come with fitkit, are missing; install fitkit again, or "
            "put the 68 points",
        ),
        (lambda p: weights(p, odd=torch.zeros(1)), "damaged .tensors unknown: odd."),
        (lambda p: weights(p, detail=torch.zeros(3)), "are damaged"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"network": "{}"}), "damaged .tensors missing: "),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "damaged .no entry 'network'."),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"network": '{"depth": 3}'}), "are damaged"),
    ],
)
def test_weights_that_cannot_be_used(tmp_path, spoil, message):
    _, path = weights(tmp_path / "w.safetensors")
    spoil(path)
    with pytest.raises(MissingWeightsError, match=message) as caught:
        load_network("cpu", path)
    assert "\n" not in str(caught.value)


def test_an_incomplete_installation(monkeypatch):
    monkeypatch.setattr(builtin, "WEIGHTS", "not-there.safetensors")
    with pytest.raises(
        MissingWeightsError, match="its weights .*not-there.safetensors, which come with fitkit, are missing"
    ):
        BuiltinDetector()
