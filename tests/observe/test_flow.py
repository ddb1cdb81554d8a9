import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from fitkit.errors import InputError, MissingWeightsError
from fitkit.fitting.recipe import load_recipe
from fitkit.observe.flow import NAMES, check_estimator, make_flow_estimator
from fitkit.observe.flow.consistency import consistent
from fitkit.observe.flow.dis import DisFlow
from fitkit.observe.flow.types import DifferentiableFlow, Flow
from fitkit.observe.sampling import sample

SIMPLE = ("dis", "farneback")


def texture(size=128, seed=0):
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.normal(size=(3, size, size)), (0, 2.5, 2.5), mode="wrap")
    image = (image - image.min()) / (image.max() - image.min())
    return torch.from_numpy(image).float()[None]


def inner(flow, margin=20):
    return flow.displacement[..., margin:-margin, margin:-margin]


@pytest.mark.parametrize("shift", [(4, 0), (0, -3), (-5, 6)])
@pytest.mark.parametrize("name", NAMES)
def test_sign_and_direction(name, shift):
    # The target is the source moved by `shift`: source(u) is found at target(u + shift).
    dx, dy = shift
    source = texture()
    target = torch.roll(source, (dy, dx), (2, 3))
    flow = make_flow_estimator(name).estimate(source, target)
    assert (
        flow.displacement.shape == (1, 2, 128, 128)
        and flow.valid.shape == (1, 128, 128)
        and bool(flow.valid.all())
    )
    assert flow.displacement.dtype == source.dtype and not flow.displacement.requires_grad
    found = inner(flow)[0].reshape(2, -1)
    # the quick presets leave out the variational refinement or most of it
    assert np.allclose(
        found.median(1).values.numpy(),
        shift,
        atol=0.1 if name in ("dis", "dis:medium", "dis:fine", "farneback") else 0.3,
    )
    if name != "dis:ultrafast":
        assert float((found - torch.tensor(shift)[:, None]).abs().mean()) < 0.25


@pytest.mark.parametrize("name", SIMPLE)
def test_flow_leads_from_source_to_target(name):
    source = texture()
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    wave = torch.stack([2 * torch.sin(y / 20), 2 * torch.cos(x / 25)])  # target(u) = source(u + wave)
    target = (
        sample(source, (torch.stack([x, y], -1) + wave.permute(1, 2, 0)).reshape(1, -1, 2))[0]
        .transpose(1, 2)
        .reshape(1, 3, 128, 128)
    )
    flow = make_flow_estimator(name).estimate(source, target)
    place = torch.stack([x, y], -1)[None] + flow.displacement.permute(0, 2, 3, 1)
    back = sample(target, place.reshape(1, -1, 2))[0].transpose(1, 2).reshape(1, 3, 128, 128)
    before, after = ((s - source)[..., 16:-16, 16:-16].abs().mean() for s in (target, back))
    assert float(after) < 0.2 * float(before)


@pytest.mark.parametrize("name", SIMPLE)
def test_twice_the_size_is_twice_the_flow(name):
    source = texture(96)
    target = torch.roll(source, (-2, 3), (2, 3))
    large = [
        torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear") for image in (source, target)
    ]
    estimator = make_flow_estimator(name)
    small = inner(estimator.estimate(source, target))[0].reshape(2, -1).median(1).values
    twice = inner(estimator.estimate(*large), 40)[0].reshape(2, -1).median(1).values
    torch.testing.assert_close(twice, 2 * small, atol=0.2, rtol=0)
    torch.testing.assert_close(twice, torch.tensor([6.0, -4.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize("name", SIMPLE)
def test_the_same_images_have_no_flow(name):
    image = texture()
    assert float(make_flow_estimator(name).estimate(image, image).displacement.abs().max()) < 1e-3


@pytest.mark.parametrize("name", SIMPLE)
def test_identical_fill_outside_the_mask(name):
    """Where both images hold the same fill nothing moves, and what moves inside is found up to a rim."""
    source = texture()
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1
    moved = torch.roll(source, 3, 3)
    fill = texture(seed=5)
    flow = (
        make_flow_estimator(name)
        .estimate(source * mask + fill * (1 - mask), moved * mask + fill * (1 - mask))
        .displacement[0]
    )
    assert float(flow[:, :, :12].abs().max()) < 0.1 and float(flow[:, :, 116:].abs().max()) < 0.1
    assert np.allclose(flow[:, 48:80, 48:80].reshape(2, -1).median(1).values.numpy(), (3, 0), atol=0.15)


@pytest.mark.parametrize("name", SIMPLE)
def test_contrast_and_brightness(name):
    source = 0.25 + 0.5 * texture()
    target = torch.roll(source, (2, -3), (2, 3))
    estimator = make_flow_estimator(name)
    plain = inner(estimator.estimate(source, target))
    # A gain and an offset of both images.
    common = inner(estimator.estimate(0.7 * source + 0.1, 0.7 * target + 0.1))
    assert float((plain - common).abs().mean()) < 0.1
    if name == "dis":  # patches without their means: an offset of one image
        assert float((plain - inner(estimator.estimate(source, target + 0.1))).abs().mean()) < 0.1


@pytest.mark.parametrize("name", SIMPLE)
def test_a_batch_is_what_its_parts_are_and_grey_works(name):
    estimator = make_flow_estimator(name)
    source = torch.cat([texture(seed=s) for s in range(2)])
    target = torch.roll(source, 3, 3)
    both = estimator.estimate(source, target).displacement
    parts = torch.cat(
        [estimator.estimate(source[b : b + 1], target[b : b + 1]).displacement for b in range(2)]
    )
    assert torch.equal(both, parts)
    assert torch.equal(both, make_flow_estimator(name).estimate(source, target).displacement)
    grey = estimator.estimate(source.mean(1, keepdim=True), target.mean(1, keepdim=True)).displacement
    assert abs(float(grey[:, 0, 20:-20, 20:-20].median()) - 3) < 0.1
    assert estimator.estimate(source.double(), target.double()).displacement.dtype == torch.float64


@pytest.mark.parametrize("name", SIMPLE)
def test_what_is_covered_in_one_image_fails_the_forward_backward_check(name):
    # A patch slides 8 px to the right over a background that stands still: the strip in front of it is
    # covered.
    back, patch = texture(seed=1), texture(seed=2)
    source, target = back.clone(), back.clone()
    source[..., 40:88, 40:80] = patch[..., 40:88, 40:80]
    target[..., 40:88, 48:88] = patch[..., 40:88, 40:80]
    estimator = make_flow_estimator(name)
    good = consistent(estimator.estimate(source, target), estimator.estimate(target, source))[0]
    assert float(good[46:82, 46:74].float().mean()) > 0.9  # the patch
    assert float(good[:, :24].float().mean()) > 0.95  # the background far from it
    assert float(good[46:82, 81:87].float().mean()) < 0.5  # the covered strip; windows reach over it


def test_forward_backward_check():
    def flow(dx, dy):
        displacement = torch.tensor([dx, dy], dtype=torch.float32)[None, :, None, None].expand(1, 2, 20, 30)
        return Flow(displacement.clone(), torch.ones(1, 20, 30, dtype=torch.bool))

    there, back = flow(4.0, 0.0), flow(-4.0, 0.0)
    good = consistent(there, back)
    assert bool(good[0, :, :26].all()) and not bool(
        good[0, :, 26:].any()
    )  # the last four columns lead out of the image
    assert not bool(consistent(there, there).any())
    assert bool(
        consistent(flow(4, 0), flow(-4.5, 0))[0, :, :26].all()
    )  # gap^2 0.25 < 0.01 (16 + 20.25) + 0.5 = 0.86
    assert not bool(consistent(flow(4, 0), flow(-5, 0)).any())  # 1 > 0.01 (16 + 25) + 0.5 = 0.91
    back.displacement[0, 0, 7, 14] = 9  # pixel (10, 7) lands on (14, 7)
    assert not bool(consistent(there, back)[0, 7, 10]) and bool(consistent(there, back)[0, 7, 9])
    there.valid[0, 3, 3] = False
    assert not bool(consistent(there, back)[0, 3, 3])


def test_names():
    for name in NAMES:
        assert make_flow_estimator(name).name == name.partition(":")[0]
        assert not isinstance(make_flow_estimator(name), DifferentiableFlow)
    assert (
        make_flow_estimator("dis").preset == "medium"
        and make_flow_estimator("dis:ultrafast").preset == "ultrafast"
    )
    with pytest.raises(InputError, match="flow estimator: unknown name 'dis:fats'; did you mean 'dis:fast'"):
        make_flow_estimator("dis:fats")
    with pytest.raises(InputError, match="unknown name 'farnebeck'; did you mean 'farneback'"):
        make_flow_estimator("farnebeck")
    with pytest.raises(
        InputError,
        match="unknown name 'zzz'; known: dis, dis:ultrafast, dis:fast, dis:medium, dis:fine, farneback, "
        "ptlflow:NAME",
    ):
        make_flow_estimator("zzz")
    with pytest.raises(
        InputError, match="DIS flow preset: expected one of ultrafast, fast, medium, fine; got 'slow'"
    ):
        DisFlow("slow")
    with pytest.raises(
        InputError,
        match="flow estimator 'dis' has no weights, got 'a.ckpt'; choose ptlflow:NAME or leave the weights "
        "out",
    ):
        make_flow_estimator("dis", "a.ckpt")
    # Known to be right or wrong only when the package is loaded.
    check_estimator("ptlflow:raft_small", "a.ckpt")


@pytest.mark.parametrize("name", SIMPLE)
def test_images_of_different_shapes_are_refused(name):
    message = (
        rf"flow estimator '{name}': expected two stacks of images \[B, 3 or 1, H, W\] of one shape, "
        r"got \[1, 3, 32, 32\] and \[1, 1, 32, 32\]"
    )
    with pytest.raises(InputError, match=message):
        make_flow_estimator(name).estimate(texture(32), texture(32)[:, :1])
    with pytest.raises(InputError, match="expected two stacks of images"):
        make_flow_estimator(name).estimate(texture(32)[0], texture(32)[0])


# ---- in a recipe ----


def test_recipes_choose_the_estimator():
    recipe = load_recipe("multiview")
    assert recipe.flow.estimator == "dis" and recipe.flow.weights == ""
    recipe = load_recipe("multiview", ["flow.estimator=ptlflow:raft_small", "flow.weights=a.ckpt"])
    assert (recipe.flow.estimator, recipe.flow.weights) == ("ptlflow:raft_small", "a.ckpt")
    recipe = load_recipe("multiview", ["stages.flow.energies.flow_corr.estimator=farneback"])
    assert [s.energies["flow_corr"].estimator for s in recipe.stages if "flow_corr" in s.energies] == [
        "farneback",
        "",
    ]
    with pytest.raises(InputError, match="unknown name 'farnback'; did you mean 'farneback'"):
        load_recipe("multiview", ["flow.estimator=farnback"])
    with pytest.raises(InputError, match="unknown name 'diss'; did you mean 'dis'"):
        load_recipe("multiview", ["stages.fine.energies.flow_corr.estimator=diss"])
    with pytest.raises(InputError, match="flow estimator 'dis' has no weights, got 'a.ckpt'"):
        load_recipe("multiview", ["flow.weights=a.ckpt"])
    with pytest.raises(
        InputError, match="flow weights 'a.ckpt': expected the estimator they belong to beside them"
    ):
        load_recipe("multiview", ["stages.fine.energies.flow_corr.weights=a.ckpt"])


def test_a_fit_uses_the_chosen_estimator(anna, monkeypatch):
    import fitkit
    from fitkit.observe.flow.farneback import FarnebackFlow

    calls = []
    estimate = FarnebackFlow.estimate
    monkeypatch.setattr(
        FarnebackFlow, "estimate", lambda self, a, b: calls.append(len(a)) or estimate(self, a, b)
    )
    result = fitkit.fit(anna, overrides=["flow.estimator=farneback"])
    assert (
        result.status == "ok" and calls and result.recipe["flow"] == {"estimator": "farneback", "weights": ""}
    )


def test_missing_weights_are_told_before_the_fit(anna, monkeypatch):
    import fitkit
    from fitkit.fitting.stages import StageRunner

    monkeypatch.setitem(sys.modules, "ptlflow", None)
    monkeypatch.setattr(StageRunner, "_stage", lambda *args: pytest.fail("a stage was run"))
    with pytest.raises(MissingWeightsError, match="flow estimator 'ptlflow:raft' needs the package ptlflow"):
        fitkit.fit(anna, overrides=["flow.estimator=ptlflow:raft"])


def test_the_command_line_chooses_it(anna, monkeypatch):
    from click.testing import CliRunner

    from fitkit.cli.main import main
    from fitkit.errors import FitkitError

    def error(*options):
        result = CliRunner().invoke(main, ["fit", str(anna), *options])
        return result.output + (str(result.exception) if isinstance(result.exception, FitkitError) else "")

    assert "unknown name 'farnebak'; did you mean 'farneback'" in error("--flow", "farnebak")
    assert "flow estimator 'farneback' has no weights, got 'a.ckpt'" in error(
        "--flow", "farneback", "--flow-weights", "a.ckpt"
    )
    monkeypatch.setitem(sys.modules, "ptlflow", None)
    assert "flow estimator 'ptlflow:raft' needs the package ptlflow" in error(
        "--flow", "ptlflow:raft", "--flow-weights", "a.ckpt"
    )
