import pytest
import torch

from fitkit.energies.kernels import NAMES, Kernel
from fitkit.errors import InputError

ALL = [Kernel(name, radius) for name in NAMES for radius in (0.5, 1.0, 3.0)]
SQUARE = [k for k in ALL if k.name != "ddf"]  # 'ddf' has a corner at 0
PAPERS = [Kernel("l1", 1e-3), Kernel("l2n", 1e-3), Kernel("charb", 1e-3), Kernel("ddf", 1e-2)]


@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_weight_is_the_derivative_of_rho(kernel):
    # The points keep clear of huber's kink at radius^2.
    s = torch.tensor([0.0, 0.01, 0.2, 0.24, 0.26, 0.9, 1.1, 5, 8.9, 9.1, 400], dtype=torch.float64)
    if kernel.name == "ddf":
        s = s[1:]  # its curvature at 0 is too large for a one-sided difference
    h = 1e-7 * (1 + s)
    low = (s - h).clamp_min(0)
    numeric = (kernel.rho(s + h) - kernel.rho(low)) / (s + h - low)
    torch.testing.assert_close(kernel.weight(s), numeric, rtol=1e-5, atol=1e-8)
    moving = s.clone().requires_grad_()
    (grad,) = torch.autograd.grad(kernel.rho(moving).sum(), moving)
    torch.testing.assert_close(kernel.weight(s), grad)


@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_weight_is_half_the_pull_over_the_length(kernel):
    # IRLS: the weight of a residual is rho'(r) / r, up to the factor 2 of rho(r^2) / 2.
    r = torch.tensor([0.1, 0.4, 0.7, 2.0, 5.0, 30.0], dtype=torch.float64)
    h = 1e-6
    pull = (kernel.rho((r + h) ** 2) - kernel.rho((r - h) ** 2)) / (4 * h)
    torch.testing.assert_close(kernel.weight(r * r), pull / r, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kernel", SQUARE, ids=str)
def test_starts_as_the_plain_square_and_never_exceeds_it(kernel):
    s = torch.tensor([0.0, 1e-8, 1e-6, 1e-4], dtype=torch.float64) * kernel.radius**2
    torch.testing.assert_close(kernel.rho(s), s, rtol=1e-4, atol=1e-12)
    wide = torch.logspace(-3, 5, 200, dtype=torch.float64)
    assert bool((kernel.rho(wide) <= wide * (1 + 1e-12)).all())
    assert bool((kernel.rho(wide).diff() >= 0).all()) and bool((kernel.weight(wide).diff() <= 1e-15).all())


def test_printed_formulas():
    s = torch.tensor([0.25, 16.0], dtype=torch.float64)
    r = s.sqrt()

    def check(name, radius, expected):
        torch.testing.assert_close(Kernel(name, radius).rho(s), expected)

    check("sq", 1.0, s)
    check("l1", 0.1, 0.2 * ((s + 0.01).sqrt() - 0.1))
    check("huber", 2.0, torch.tensor([0.25, 2 * 2 * 4 - 4.0], dtype=torch.float64))
    check("cauchy", 2.0, 4 * torch.log(1 + s / 4))
    check("gm", 2.0, 4 * s / (4 + s))
    assert float(Kernel("gm", 2.0).rho(torch.tensor(1e9))) == pytest.approx(
        4.0
    )  # redescending: an outlier costs radius^2
    torch.testing.assert_close(Kernel("l1", 1e-3).rho(s) / 2e-3, r, atol=2e-3, rtol=0)


def test_l1_adds_components_and_l2n_takes_the_length():
    residual = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    cost = {name: Kernel(name, 1e-6).cost(residual) / 2e-6 for name in ("l1", "l2n")}
    assert float(cost["l1"]) == pytest.approx(7, abs=1e-4)
    assert float(cost["l2n"]) == pytest.approx(5, abs=1e-4)
    assert Kernel("l1").weights(residual).shape == (1, 2) and Kernel("l2n").weights(residual).shape == (1, 1)


@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_weights_times_the_residual_are_half_the_derivative_of_the_cost(kernel):
    value = torch.tensor([[0.3, -0.2, 0.9], [4.0, 0.1, -7.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(kernel.cost(value).sum(), value)
    torch.testing.assert_close(kernel.weights(value.detach()) * value.detach(), grad / 2)


def test_published_formulas():
    r = torch.tensor([0.0, 3e-4, 0.02, 0.5, 4.0], dtype=torch.float64)
    l1, l2n, charb, ddf = (k.published(r * r) for k in PAPERS)
    torch.testing.assert_close(l1, (r * r + 1e-6).sqrt())
    torch.testing.assert_close(l2n, l1)
    torch.testing.assert_close(charb, (r * r + 1e-6) ** 0.45)
    torch.testing.assert_close(ddf, (r + 0.01) ** 0.4, atol=2e-3, rtol=0)  # |r| is rounded at 0, by 1e-4
    torch.testing.assert_close(Kernel("gm", 2.0).published(r), Kernel("gm", 2.0).rho(r))


@pytest.mark.parametrize("kernel", PAPERS, ids=str)
def test_published_formula_is_rho_up_to_factor_and_offset(kernel):
    s = torch.logspace(-8, 4, 60, dtype=torch.float64)
    a, b = kernel.rho(s), kernel.published(s)
    factor = (b[-1] - b[0]) / (a[-1] - a[0])
    torch.testing.assert_close(b - b[0], factor * (a - a[0]), rtol=1e-9, atol=1e-12)


def test_ddf_is_a_length_near_zero():
    kernel = Kernel("ddf", 1.0)
    r = torch.tensor([0.03, 0.05], dtype=torch.float64)
    torch.testing.assert_close(kernel.rho(r * r) / (2 * r), torch.ones_like(r), rtol=0.35, atol=0)
    assert float(kernel.weight(torch.zeros(()))) == pytest.approx(100)


def test_huge_and_zero_stay_finite_in_single_precision():
    for kernel in ALL:
        s = torch.tensor([0.0, 1e30], requires_grad=True)
        kernel.rho(s).sum().backward()
        assert bool(torch.isfinite(s.grad).all()) and bool(torch.isfinite(kernel.rho(s)).all())


def test_refusals():
    with pytest.raises(
        InputError,
        match="kernel: name: expected one of sq, l1, l2n, charb, ddf, huber, cauchy, gm; got 'tukey'",
    ):
        Kernel("tukey")
    for radius in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="kernel: radius: expected a number from 1e-09 to 1e\\+09, got"):
            Kernel("gm", radius)


@pytest.mark.parametrize("name", [name for name in NAMES if Kernel(name).exact])
def test_exact_kernels_give_a_number_the_same_bits_in_any_array(name):
    kernel, gen = Kernel(name, 0.7), torch.Generator().manual_seed(5)
    values = 2 * torch.randn(67, 3, 2, generator=gen)
    for first, last in ((0, 1), (3, 20), (40, 67)):
        part = values[first:last].clone()
        assert torch.equal(kernel.cost(part), kernel.cost(values)[first:last])
        assert torch.equal(kernel.weights(part), kernel.weights(values)[first:last])
    assert not any(Kernel(other).exact for other in ("cauchy", "charb", "ddf"))
