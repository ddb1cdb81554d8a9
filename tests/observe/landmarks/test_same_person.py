import numpy as np

from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.same_person import appearance, choose_face, unlikeness

FACE = mean_face()[:, :2] * [1, -1] / 1.5 + [128, 128]


def person(seed, light=1.0, shift=0):
    """A blotchy 'face' with hair and clothes of its own colours."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.uniform(60, 200, (16, 16, 1)), np.ones((16, 16, 1))) * rng.uniform(0.7, 1.0, 3)
    image[:60] = rng.uniform(0, 200, 3)
    image[200:] = rng.uniform(0, 200, 3)
    image = np.roll(image * light, shift, 1) + np.random.default_rng(99).normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def looks(seed, **change):
    return appearance(person(seed, **change), FACE + [change.get("shift", 0), 0])


def test_the_same_person_is_more_alike():
    same = unlikeness(looks(1), looks(1, light=0.8, shift=5))
    assert all(same + 1 < unlikeness(looks(1), looks(other)) for other in range(2, 8))
    assert unlikeness(looks(1), looks(1)) < 1e-3
    mirrored = appearance(np.ascontiguousarray(person(1)[:, ::-1]), FACE * [-1, 1] + [255, 0])
    assert unlikeness(looks(1), mirrored) < unlikeness(looks(1), looks(2)) - 1


def test_choice():
    me, other = looks(1, light=0.9), looks(2)
    assert choose_face([other, me], [looks(1)]) == (1, True)
    assert choose_face([me, other], [looks(1), looks(5)]) == (0, True)
    assert choose_face([other, looks(3)], [looks(4)]) == (0, False)  # neither: the largest
    assert choose_face([other, None], [looks(1)])[0] == 0 and choose_face([None, None], [me]) == (0, False)
    assert (
        choose_face([other, me], []) == (0, False)
        and choose_face([me], [me]) == (0, False)
        and choose_face([], [me]) == (0, False)
    )


def test_points_that_are_not_seen():
    points = FACE.copy()
    points[30:] = np.nan
    assert appearance(person(1), points) is not None
    points[24:] = np.nan
    assert appearance(person(1), points) is None
