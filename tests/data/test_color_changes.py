"""Random changes of colours and sharpness of the views of a person."""

import numpy as np
import pytest
import torch
from helpers import observe, photograph, tiny_model, tiny_state

from fitkit.data.augment import FaceAugmentation, augment
from fitkit.observe.crop import CropOptions

MODEL = tiny_model()
CROP = CropOptions(1.5, 0.0, 96, 96)


@pytest.fixture(scope="module")
def seen():
    """Three times the same view, so that whatever differs is drawn."""
    state = tiny_state(MODEL, 1)
    images = photograph(MODEL, state, 160).expand(-1, 3, -1, -1).float()
    views = observe(MODEL, state, 160, images)
    return views.select(torch.tensor([0, 0, 0]))


def changed(seen, seed=0, **options):
    options = FaceAugmentation(shift=0.0, gain=0.0, offset=0.0, **options)
    return augment(seen, CROP, options, np.random.default_rng(seed), "a").images


def test_one_draw_for_the_views_of_a_person(seen):
    plain = changed(seen)
    person = changed(seen, jitter=0.5, blur=0.5, colors="person")
    each = changed(seen, jitter=0.5, blur=0.5, colors="view")
    assert torch.equal(person[0], person[1]) and torch.equal(person[0], person[2])
    assert not torch.allclose(person[0], plain[0], atol=0.02)
    assert not torch.allclose(each[0], each[1], atol=0.02)
    assert torch.equal(changed(seen, jitter=0.5, blur=0.5, colors="person"), person)  # the seed alone decides


def test_factors_stay_within_their_range(seen):
    """Brightness is the first change, and the others keep the mean: its factor can be read off."""
    plain = changed(seen)[0].mean()
    factors = [float(changed(seen, s, jitter=0.3, colors="person")[0].mean() / plain) for s in range(30)]
    assert 0.69 < min(factors) < 0.8 and 1.05 < max(factors) < 1.31


def test_a_share_is_blurred(seen):
    plain = changed(seen)[0]
    rough = (plain[:, :, 1:] - plain[:, :, :-1]).abs().mean()
    smoother = 0
    for seed in range(40):
        own = changed(seen, seed, blur=0.3, colors="person")[0]
        smoother += bool((own[:, :, 1:] - own[:, :, :-1]).abs().mean() < 0.995 * rough)
    assert 6 <= smoother <= 18
