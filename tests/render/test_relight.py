import numpy as np
import pytest
import torch

from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.render.relight import leftover_light, usable_colors


def half_sphere(n=3000, seed=0):
    """Normals [n, 3] of points before a camera, and of their mirror images."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(n, 3))
    normals[:, 2] = np.abs(normals[:, 2])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals, normals * [-1, 1, 1]


def albedo(normals, even=True):
    """Colours of a face whose halves are alike, or not."""
    x = np.abs(normals[:, 0]) if even else normals[:, 0]
    return np.stack([0.5 + 0.2 * np.sin(4 * normals[:, 1]) * x + 0.2 * x, 0.4 + 0.1 * x, 0.3 + 0 * x], 1)


def photos(lights, even=True, seed=0):
    """What `leftover_light` is given: views under lights [B, 9, 3] (log), each seeing one side better."""
    normals, mirrored = half_sphere(seed=seed)
    basis = [sh_basis(torch.as_tensor(n)).numpy() for n in (normals, mirrored)]
    given = []
    for n, values in zip((normals, mirrored), basis):
        sides = [0.0, 0.6, -0.6]
        weight = [(n[:, 2] + side * n[:, 0]).clip(0) for side in sides]
        given.append([(albedo(n, even) * np.exp(values @ x), w) for x, w in zip(lights, weight)])
    return given, tuple(basis), np.ones(len(normals), bool)


def left_over(lights, found, basis):
    """Largest ratio, log units, between the colours of two views once they are corrected, after one gain."""
    rest = [basis[0] @ (x - y) for x, y in zip(lights, found)]
    return max(np.abs(a - b - np.median(a - b, 0)).max() for a in rest for b in rest)


def random_lights(seed, views=3):
    lights = np.random.default_rng(seed).normal(size=(views, 9, 3)) * 0.15
    lights[:, 4:] *= 0.3
    return lights


def test_views_under_different_lights_become_alike():
    lights = random_lights(1)
    given, basis, skin = photos(lights)
    found = leftover_light(*given, basis, skin)
    before, after = left_over(lights, 0 * found, basis), left_over(lights, found, basis)
    assert found.shape == (3, 9, 3) and before > 0.4
    assert after < 0.3 * before  # held back by what is expected


def test_one_view_lit_from_the_side_becomes_even():
    side = np.zeros((1, 9, 3))
    side[0, 3] = 0.5  # more light where x is larger
    given, basis, skin = photos(side)
    found = leftover_light(*given, basis, skin)
    assert np.abs(found[0, 3] - 0.5).max() < 0.1  # held back by what is expected
    assert np.abs(np.delete(found[0], 3, 0)).max() < 0.05


def test_halves_may_differ_where_views_agree():
    """Nothing says that the light is wrong then."""
    given, basis, skin = photos(np.zeros((3, 9, 3)), even=False)
    assert np.abs(given[0][0][0] - given[1][0][0]).mean() > 0.1
    found = np.abs(leftover_light(*given, basis, skin))
    assert found[:, 1:].max() < 1e-3 and found[:, 0].max() < 0.05


def test_a_shadow_is_no_light():
    lights = random_lights(2)
    given, basis, skin = photos(lights)
    rgb, weight = given[0][1]
    normals, _ = half_sphere()
    rgb[(normals[:, 0] > 0.2) & (normals[:, 1] < -0.3)] *= 0.2
    found = leftover_light(*given, basis, skin)
    assert left_over(lights, found, basis) < 0.5 * left_over(lights, 0 * found, basis)


def test_few_texels_tell_nothing():
    given, basis, skin = photos(random_lights(3))
    skin[20:] = False
    assert np.abs(leftover_light(*given, basis, skin)).max() == 0


@pytest.mark.parametrize(("weight", "usable"), [(0.1, False), (0.2, True)])
def test_weights_count_by_the_largest_of_their_photo(weight, usable):
    rgb = np.full((2, 3), 0.3)
    for scale in (1.0, 0.01):
        assert usable_colors(rgb, np.array([1.0, weight]) * scale)[1] == usable
    assert not usable_colors(rgb * 0.01, np.ones(2)).any()
