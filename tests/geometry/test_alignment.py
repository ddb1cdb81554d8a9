import pytest
import torch
from scipy.spatial.transform import Rotation

from fitkit.errors import DegenerateInputError
from fitkit.geometry.alignment import similarity_align


def pairs(dtype=torch.float64, noise=0.0):
    gen = torch.Generator().manual_seed(0)
    source = 50 * torch.randn(4, 12, 3, generator=gen, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.random(4, rng=0).as_matrix())
    scale = torch.tensor([0.5, 1.0, 2.0, 1.3], dtype=torch.float64)
    shift = 100 * torch.randn(4, 3, generator=gen, dtype=torch.float64)
    target = scale[:, None, None] * source @ rotation.transpose(1, 2) + shift[:, None]
    target = target + noise * torch.randn(target.shape, generator=gen, dtype=torch.float64)
    return source.to(dtype), target.to(dtype), scale.to(dtype), rotation.to(dtype), shift.to(dtype)


def test_ground_truth_is_found():
    source, target, scale, rotation, shift = pairs()
    found = similarity_align(source, target)
    torch.testing.assert_close(found.scale, scale)
    torch.testing.assert_close(found.rotation, rotation)
    torch.testing.assert_close(found.translation, shift)
    torch.testing.assert_close(found.apply(source), target)


def test_rigid_rotation_equals_scipy_and_keeps_the_scale():
    source, target, *_ = pairs(noise=5.0)
    found = similarity_align(source, target, with_scale=False)
    assert torch.equal(found.scale, torch.ones(4, dtype=torch.float64))
    for b in range(4):
        s, t = (x[b] - x[b].mean(0) for x in (source, target))
        torch.testing.assert_close(
            found.rotation[b], torch.from_numpy(Rotation.align_vectors(t.numpy(), s.numpy())[0].as_matrix())
        )


def test_noisy_solution_is_a_minimum():
    source, target, *_ = pairs(noise=5.0)
    best = similarity_align(source, target)

    def error(s, R, t):
        return ((s[:, None, None] * source @ R.transpose(1, 2) + t[:, None] - target) ** 2).sum((1, 2))

    least = error(best.scale, best.rotation, best.translation)
    for seed in range(20):
        turn = torch.from_numpy(Rotation.random(4, rng=seed).as_rotvec()) * 0.01
        R = torch.from_numpy(Rotation.from_rotvec(turn.numpy()).as_matrix()) @ best.rotation
        gen = torch.Generator().manual_seed(seed)
        s = best.scale * (1 + 0.01 * torch.randn(4, generator=gen, dtype=torch.float64))
        t = best.translation + torch.randn(4, 3, generator=gen, dtype=torch.float64)
        assert bool((error(s, R, t) > least).all())


def test_a_mirrored_target_still_gives_a_rotation():
    source, target, *_ = pairs()
    found = similarity_align(source, target * torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(4, dtype=torch.float64))
    flat = source.clone()
    flat[..., 2] = 0  # points in one plane: the mirror image of a plane is a rotation of it
    mirrored = flat * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    found = similarity_align(flat, mirrored)
    torch.testing.assert_close(found.apply(flat), mirrored, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(4, dtype=torch.float64))


def test_masked_pairs_change_nothing_even_when_nan():
    source, target, *_ = pairs(noise=2.0)
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[:, 3] = valid[1, 7] = False
    expected = [similarity_align(source[b : b + 1, valid[b]], target[b : b + 1, valid[b]]) for b in range(4)]
    source[~valid], target[~valid] = torch.nan, 1e9
    found = similarity_align(source, target, valid)
    torch.testing.assert_close(found.rotation, torch.cat([e.rotation for e in expected]))
    torch.testing.assert_close(found.translation, torch.cat([e.translation for e in expected]))
    torch.testing.assert_close(found.scale, torch.cat([e.scale for e in expected]))


def test_too_few_pairs_are_refused():
    source, target, *_ = pairs()
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[2, 2:] = False
    with pytest.raises(DegenerateInputError, match="expected at least 3 pairs of points, got 2"):
        similarity_align(source, target, valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_one_line_are_refused(dtype):
    line = (torch.linspace(-1, 1, 9, dtype=dtype)[:, None] * torch.tensor([3.0, 1.7, 2.2], dtype=dtype) + 5)[
        None
    ]
    other = torch.randn(1, 9, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for source, target in ((line, other), (other, line), (line * 0, other)):
        with pytest.raises(DegenerateInputError, match="all points lie on one line"):
            similarity_align(source, target)


def test_points_that_are_missing_in_one_of_the_sets_do_not_count():
    source = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = 2 * source + 1
    source[0, 1], target[0, 4, 2] = torch.nan, torch.nan
    found = similarity_align(source, target)
    assert float(found.scale) == pytest.approx(2)
    torch.testing.assert_close(found.translation, torch.ones_like(found.translation))
