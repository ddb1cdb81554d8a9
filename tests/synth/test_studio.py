import numpy as np
import pytest
import torch
from helpers import tiny_model

from fitkit.scene.pose import yaw_pitch_roll
from fitkit.synth.studio import Appearance, Scene, head_shot_state, photograph, studio

SIZE = (120, 100)


def shot(angles, **options):
    model = tiny_model()
    angles = torch.tensor(angles)
    return model, head_shot_state(
        model,
        torch.zeros(model.num_identity),
        torch.zeros(len(angles), model.num_expression),
        angles,
        SIZE,
        **options,
    )


def test_angles_are_those_that_were_asked_for():
    angles = [[-40.0, 5.0, -3.0], [0.0, 0.0, 0.0], [25.0, -12.0, 8.0]]
    _, state = shot(angles)
    assert torch.allclose(
        yaw_pitch_roll(state.pose.rotation), torch.tensor(angles), atol=1e-3
    )  # float32 degrees


@pytest.mark.parametrize("row", [0.5, 0.6])
def test_face_has_the_size_and_place_that_was_asked_for(row):
    model, state = shot([[0.0, 0.0, 0.0]], face_share=0.4, row=row)
    points, _ = state.camera.project(
        state.pose.apply(model.landmark_points(state.identity, state.expression))
    )
    height = float(points[0, 8, 1] - points[0, 17:27, 1].mean())
    assert height == pytest.approx(0.4 * SIZE[0], rel=0.1)  # perspective: brows and chin lie at other depths
    middle = points[0, [27, 33, 8, 0, 16]].mean(0)
    assert float(middle[0]) == pytest.approx((SIZE[1] - 1) / 2, abs=1) and float(middle[1]) == pytest.approx(
        row * SIZE[0], abs=3
    )


def test_pictures_depend_on_the_seeds_only():
    model, state = shot([[0.0, 0.0, 0.0]])
    first, again = (photograph(model, state, SIZE, studio(), seed=3) for _ in range(2))
    assert first.shape == (1, *SIZE, 3) and first.dtype == np.uint8 and (first == again).all()
    other = photograph(model, state, SIZE, studio(), Appearance(seed=5), seed=3)
    assert (first != other).any()


def test_light_from_the_left_of_the_picture_makes_that_side_brighter():
    model, state = shot([[0.0, 0.0, 0.0]])
    light = torch.zeros(9, 3)
    light[0], light[3] = 1.5, -0.8  # real harmonics: entry 3 is x, to the right of the picture
    image = photograph(
        model, state, SIZE, Scene(light, lamp_strength=0.0, gloss=0.0), Appearance(0, 0, 0, 0, 0, 0)
    )[0].astype(float)
    face = image[40:80]
    assert face[:, 30:50].mean() > face[:, 50:70].mean() + 10


def test_skin_pattern_moves_with_the_head():
    """The same spot of the face has the same colour in two views under even light."""
    model, state = shot([[-15.0, 0.0, 0.0], [15.0, 0.0, 0.0]])
    even = torch.zeros(9, 3)
    even[0] = 0.8 / 0.28209479177387814
    images = photograph(
        model,
        state,
        SIZE,
        Scene(even, lamp_strength=0.0, gloss=0.0, noise=0.0),
        Appearance(pores=0.0, freckles=0.0, blotches=0.2),
    )
    middle = [17 + i for i in range(10)] + [48, 54, 57]
    vertices = state.pose.apply(state.vertices(model))
    points, _ = state.camera.project(model.landmarks.points(vertices, model.triangles))
    values = np.stack(
        [
            image[points[b, middle, 1].round().long(), points[b, middle, 0].round().long()]
            for b, image in enumerate(images)
        ]
    ).astype(float)
    assert np.abs(values[0] - values[1]).mean() < 4 < values.std()  # grey levels; pixels are rounded
