"""The built-in detector with its shipped weights, on rendered faces, a photograph and pictures without a
face."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fitkit.errors import InputError
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.resources import asset_path
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.builtin import WEIGHTS, BuiltinDetector
from fitkit.observe.landmarks.types import MIRRORED
from fitkit.synth.studio import head_shot_state, photograph, studio

SAMPLE = Path(__file__).resolve().parents[3] / "examples/sample"


def shipped() -> bool:
    try:
        return asset_path(WEIGHTS).is_file()
    except InputError:
        return False


pytestmark = pytest.mark.skipif(not shipped(), reason="the weights are not trained yet")


@pytest.fixture(scope="module")
def detector():
    return BuiltinDetector()


@pytest.fixture(scope="module")
def front():
    return read_image(SAMPLE / "front.jpg")[0], read_landmarks(SAMPLE / "front.pts")[:, :2]


@pytest.fixture(scope="module")
def astronaut():
    """A photograph of 512 x 512 px; the face is about 100 px wide."""
    return pytest.importorskip("skimage.data").astronaut()


def error(found, truth, part=slice(17, 68)):
    """Mean distance of points over the square root of the box's area, in per cent."""
    distance = np.linalg.norm(found.points[0].numpy()[part] - truth[part], axis=1)
    return 100 * float(distance.mean() / np.sqrt(np.prod(np.ptp(truth, axis=0))))


def one(detector, image):
    faces = detector.detect_all(np.ascontiguousarray(image))
    assert len(faces) == 1, f"{len(faces)} faces"
    return faces[0]


@pytest.mark.parametrize("name", ["front", "left", "right"])
def test_rendered_faces(detector, name):
    found = one(detector, read_image(SAMPLE / f"{name}.jpg")[0])
    truth = read_landmarks(SAMPLE / f"{name}.pts")[:, :2]
    assert error(found, truth) < 5 and found.valid.all()
    assert (found.sigma > 0).all() and float(found.sigma.median()) < 0.05 * np.ptp(truth)
    assert float(found.confidence[0, 17:].mean()) > 0.6


def test_a_photograph(detector, astronaut):
    found = one(detector, astronaut)
    points = found.points[0].numpy()
    # Read off the picture by hand: eyes, tip of the nose, mouth.
    for part, place in (
        (slice(36, 42), (203, 101)),
        (slice(42, 48), (247, 103)),
        (30, (224, 127)),
        (slice(48, 68), (223, 146)),
    ):
        assert np.linalg.norm(points[part].reshape(-1, 2).mean(0) - place) < 4, part


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-45, -25, 25, 45])
def test_leaning_heads(detector, front, astronaut, degrees):
    image, truth = front
    h, w = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 0.8)
    found = one(detector, cv2.warpAffine(image, turn, (w, h), borderMode=cv2.BORDER_REPLICATE))
    assert error(found, truth @ turn[:, :2].T + turn[:, 2]) < 6
    turn = cv2.getRotationMatrix2D((225.0, 120.0), -degrees, 1.0)
    upright = one(detector, astronaut).points[0].numpy()
    found = one(detector, cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE))
    assert error(found, upright @ turn[:, :2].T + turn[:, 2]) < 6


def test_grey_and_dark_pictures(detector, front):
    image, truth = front
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    assert error(one(detector, grey), truth) < 5
    assert error(one(detector, (image * 0.35).astype(np.uint8)), truth) < 6


def test_mirrored_pictures(detector, front):
    image, _ = front
    plain, mirrored = one(detector, image), one(detector, image[:, ::-1])
    back = (mirrored.points[0].numpy() * [-1, 1] + [image.shape[1] - 1, 0])[MIRRORED]
    assert error(plain, back, slice(68)) < 1.5


@pytest.mark.parametrize("width", [40, 80, 2000, 4000])
def test_sizes(detector, front, width):
    """Faces from 40 to 4000 px wide; the small ones in a photo of 1000 px."""
    image, truth = front
    scale = width / np.ptp(truth[:, 0])
    size = tuple(round(n * scale) for n in image.shape[1::-1])
    scale = np.array(size) / image.shape[1::-1]
    face = cv2.resize(image, size, interpolation=cv2.INTER_AREA if width < 300 else cv2.INTER_LINEAR)
    points = (truth + 0.5) * scale - 0.5
    if width < 300:
        photo = cv2.resize(image[:4, :4], (1000, 750), interpolation=cv2.INTER_LINEAR)
        photo[300 : 300 + size[1], 600 : 600 + size[0]] = face
        face, points = photo, points + [600, 300]
    assert error(one(detector, face), points) < (10 if width < 60 else 6)


@pytest.mark.slow
@pytest.mark.parametrize("yaw", [-80, -60, 60, 80])
def test_profiles(detector, yaw):
    model = load_model("generic")
    state = head_shot_state(
        model,
        torch.zeros(model.num_identity),
        torch.zeros(1, model.num_expression),
        torch.tensor([[float(yaw), 0.0, 0.0]]),
        (400, 400),
    )
    image = photograph(model, state, (400, 400), studio())[0]
    points, _ = state.camera.project(
        state.pose.apply(model.landmark_points(state.identity, state.expression))
    )
    found = BuiltinDetector(jaw="surface").detect_all(image)
    assert len(found) == 1
    # Positive yaw: the nose points right.
    near = np.r_[22:27, 27:36, 42:48] if yaw < 0 else np.r_[17:22, 27:36, 36:42]
    assert error(found[0], points[0].numpy(), near) < 7
    far = np.r_[0:5] if yaw < 0 else np.r_[12:17]
    assert float(found[0].confidence[0, far].mean()) < float(found[0].confidence[0, near].mean())


def test_several_faces(detector, front, astronaut):
    image, truth = front
    both = np.full((512, 960, 3), 120, np.uint8)
    both[:, :512], both[:, 512:] = astronaut, image
    faces = detector.detect_all(both)
    assert len(faces) == 2
    assert error(faces[0], truth + [512, 0]) < 6 and abs(float(faces[1].points[0, 30, 0]) - 224) < 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "noise", "grey", "gradient"])
def test_no_face(detector, name):
    if name in ("coffee", "chelsea", "rocket"):  # a cup, a cat, a launch pad
        image = getattr(pytest.importorskip("skimage.data"), name)()
    else:
        x = np.linspace(0, 255, 500)
        image = (
            {
                "noise": np.random.default_rng(0).uniform(0, 255, (400, 500, 1)),
                "grey": np.full((400, 500, 1), 128),
                "gradient": np.tile(x[None, :, None], (400, 1, 1)),
            }[name]
            .astype(np.uint8)
            .repeat(3, 2)
        )
    assert detector.detect_all(image) == []


def test_the_same_twice(front):
    a, b = (BuiltinDetector().detect_all(front[0])[0] for _ in range(2))
    assert (
        torch.equal(a.points, b.points)
        and torch.equal(a.sigma, b.sigma)
        and torch.equal(a.confidence, b.confidence)
    )


def test_hidden_points_have_a_larger_sigma(detector, front):
    image, truth = front
    covered = image.copy()
    low, high = truth[48:68].min(0).astype(int) - 15, truth[48:68].max(0).astype(int) + 15
    covered[low[1] : high[1], low[0] : high[0]] = (30, 60, 120)
    plain, hidden = one(detector, image), one(detector, covered)
    assert float((hidden.sigma[0, 48:] / plain.sigma[0, 48:]).median()) > 1.3
    assert float(hidden.confidence[0, 48:].mean()) < float(plain.confidence[0, 48:].mean()) - 0.2
    assert float((hidden.sigma[0, 36:48] / plain.sigma[0, 36:48]).median()) < 1.3


def test_the_two_kinds_of_jaw_differ_in_turned_views(detector):
    image, truth = read_image(SAMPLE / "left.jpg")[0], read_landmarks(SAMPLE / "left.pts")[:, :2]
    outline, surface = one(detector, image), one(BuiltinDetector(jaw="surface"), image)
    assert error(surface, truth, slice(17)) < error(
        outline, truth, slice(17)
    )  # the sample's points lie on the skin
    assert torch.equal(outline.points[0, 17:], surface.points[0, 17:])
