import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from fitkit.errors import InputError
from fitkit.observe.flow import NAMES, make_flow_estimator
from fitkit.observe.flow.consistency import consistent
from fitkit.observe.flow.dis import DisFlow
from fitkit.observe.flow.types import Flow
from fitkit.observe.sampling import sample


def texture(size=128, seed=0):
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.normal(size=(3, size, size)), (0, 2.5, 2.5), mode="wrap")
    image = (image - image.min()) / (image.max() - image.min())
    return torch.from_numpy(image).float()[None]


@pytest.mark.parametrize("shift", [(4, 0), (0, -3), (-5, 6)])
def test_sign_and_direction(shift):
    # The target is the source moved by `shift`: source(u) is found at target(u + shift).
    dx, dy = shift
    source = texture()
    target = torch.roll(source, (dy, dx), (2, 3))
    flow = make_flow_estimator("dis").estimate(source, target)
    assert flow.displacement.shape == (1, 2, 128, 128) and flow.valid.shape == (1, 128, 128) and bool(flow.valid.all())
    inner = flow.displacement[0, :, 20:-20, 20:-20].reshape(2, -1)
    assert np.allclose(inner.median(1).values.numpy(), shift, atol=0.1)
    assert float((inner - torch.tensor(shift)[:, None]).abs().mean()) < 0.25


def test_flow_leads_from_source_to_target():
    source = texture()
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    wave = torch.stack([2 * torch.sin(y / 20), 2 * torch.cos(x / 25)])  # target(u) = source(u + wave)
    target = sample(source, (torch.stack([x, y], -1) + wave.permute(1, 2, 0)).reshape(1, -1, 2))[0].transpose(1, 2).reshape(1, 3, 128, 128)
    flow = DisFlow().estimate(source, target)
    place = torch.stack([x, y], -1)[None] + flow.displacement.permute(0, 2, 3, 1)
    back = sample(target, place.reshape(1, -1, 2))[0].transpose(1, 2).reshape(1, 3, 128, 128)
    before, after = ((s - source)[..., 16:-16, 16:-16].abs().mean() for s in (target, back))
    assert float(after) < 0.2 * float(before)


def test_a_batch_is_what_its_parts_are_and_grey_works():
    source = torch.cat([texture(seed=s) for s in range(2)])
    target = torch.roll(source, 3, 3)
    both = DisFlow("fast").estimate(source, target).displacement
    parts = torch.cat([DisFlow("fast").estimate(source[b:b + 1], target[b:b + 1]).displacement for b in range(2)])
    assert torch.equal(both, parts)
    grey = DisFlow().estimate(source.mean(1, keepdim=True), target.mean(1, keepdim=True)).displacement
    assert abs(float(grey[:, 0, 20:-20, 20:-20].median()) - 3) < 0.1


def test_forward_backward_check():
    def flow(dx, dy):
        displacement = torch.tensor([dx, dy], dtype=torch.float32)[None, :, None, None].expand(1, 2, 20, 30)
        return Flow(displacement.clone(), torch.ones(1, 20, 30, dtype=torch.bool))

    there, back = flow(4.0, 0.0), flow(-4.0, 0.0)
    good = consistent(there, back)
    assert bool(good[0, :, :26].all()) and not bool(good[0, :, 26:].any())  # the last four columns lead out of the image
    assert not bool(consistent(there, there).any())
    assert bool(consistent(flow(4, 0), flow(-4.5, 0))[0, :, :26].all())  # gap^2 0.25 < 0.01 (16 + 20.25) + 0.5 = 0.86
    assert not bool(consistent(flow(4, 0), flow(-5, 0)).any())  # 1 > 0.01 (16 + 25) + 0.5 = 0.91
    back.displacement[0, 0, 7, 14] = 9  # pixel (10, 7) lands on (14, 7)
    assert not bool(consistent(there, back)[0, 7, 10]) and bool(consistent(there, back)[0, 7, 9])
    there.valid[0, 3, 3] = False
    assert not bool(consistent(there, back)[0, 3, 3])


def test_names():
    for name in NAMES:
        assert make_flow_estimator(name).name == "dis"
    assert make_flow_estimator("dis").preset == "medium" and make_flow_estimator("dis:ultrafast").preset == "ultrafast"
    with pytest.raises(InputError, match="flow estimator: unknown name 'dis:fats'; did you mean 'dis:fast'"):
        make_flow_estimator("dis:fats")
    with pytest.raises(InputError, match="unknown name 'zzz'; known: dis, dis:ultrafast"):
        make_flow_estimator("zzz")
    with pytest.raises(InputError, match="DIS flow preset: expected one of ultrafast, fast, medium; got 'slow'"):
        DisFlow("slow")
