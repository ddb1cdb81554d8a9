import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from fitkit.observe.observations import halve
from fitkit.observe.sampling import blur_radius, gaussian_blur, sample, sample_with_gradient


def scene(H=9, W=12, n=200):
    gen = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, H, W, generator=gen, dtype=torch.float64)
    pixels = torch.rand(2, n, 2, generator=gen, dtype=torch.float64) * torch.tensor([W + 3.0, H + 3.0]) - 2
    return images, pixels


def test_values_equal_scipy_also_beyond_the_borders():
    images, pixels = scene()
    value, inside = sample(images, pixels)
    for b in range(2):
        for c in range(3):
            expected = map_coordinates(
                images[b, c].numpy(), pixels[b].numpy()[:, ::-1].T, order=1, mode="nearest"
            )
            np.testing.assert_allclose(value[b, :, c].numpy(), expected, atol=1e-12)
    x, y = pixels.unbind(-1)
    assert (
        torch.equal(inside, (x >= 0) & (x <= 11) & (y >= 0) & (y <= 8))
        and 0 < int(inside.sum()) < inside.numel()
    )


def test_pixel_centres_are_exact():
    images, _ = scene()
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    grid = torch.stack([x, y], -1).reshape(1, -1, 2).double().expand(2, -1, -1)
    value, inside = sample(images, grid)
    assert bool(inside.all())
    torch.testing.assert_close(value.transpose(1, 2).reshape(images.shape), images)


def test_gradient_equals_differences_and_autograd():
    images, pixels = scene()
    value, by_pixel, inside = sample_with_gradient(images, pixels)
    assert torch.equal(value, sample(images, pixels)[0]) and torch.equal(inside, sample(images, pixels)[1])
    h = 1e-7
    for k, unit in enumerate(torch.eye(2, dtype=torch.float64)):
        numeric = (sample(images, pixels + h * unit)[0] - sample(images, pixels - h * unit)[0]) / (2 * h)
        torch.testing.assert_close(by_pixel[..., k], numeric, atol=1e-6, rtol=0)
    moving = pixels.clone().requires_grad_()
    for c in range(3):
        (grad,) = torch.autograd.grad(sample(images, moving)[0][..., c].sum(), moving)
        torch.testing.assert_close(by_pixel[:, :, c], grad)


def test_derivative_by_the_image():
    images, pixels = scene(4, 5, 6)
    assert torch.autograd.gradcheck(lambda i: sample(i, pixels)[0], (images.requires_grad_(),))


def test_not_a_number_and_infinity_are_outside():
    images, _ = scene()
    pixels = torch.tensor([[[torch.nan, 1.0], [torch.inf, 2], [3, -torch.inf]]], dtype=torch.float64).expand(
        2, -1, -1
    )
    value, inside = sample(images, pixels)
    assert not bool(inside.any()) and bool(torch.isfinite(value).all())


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_images_one_pixel_wide(shape):
    images = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = torch.tensor([[[0.0, 0.0], [3.5, 0.2], [0.1, 2.25]]], dtype=torch.float64)
    expected = map_coordinates(images[0, 0].numpy(), pixels[0].numpy()[:, ::-1].T, order=1, mode="nearest")
    np.testing.assert_allclose(sample(images, pixels)[0][0, :, 0].numpy(), expected, atol=1e-12)


def test_blur_equals_scipy():
    images, _ = scene(20, 23)
    for sigma in (0.7, 2.0):
        expected = np.stack(
            [
                [
                    gaussian_filter(c.numpy(), sigma, mode="nearest", radius=max(1, int(3 * sigma + 0.5)))
                    for c in b
                ]
                for b in images
            ]
        )
        np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-12)
        moving = images.clone().requires_grad_()  # takes the differentiable path
        torch.testing.assert_close(gaussian_blur(moving, sigma).detach(), gaussian_blur(images, sigma))
        assert torch.autograd.grad(gaussian_blur(moving, sigma).sum(), moving)[0].sum() == pytest.approx(
            images.numel()
        )
    assert gaussian_blur(images, 0.0) is images


def test_blur_reaches_as_far_as_it_says():
    for sigma in (0.0, 0.2, 0.7, 2.0):
        dot = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
        dot[..., 15, 15] = 1
        reached = (gaussian_blur(dot, sigma)[0, 0] > 0).nonzero()
        assert int((reached - 15).abs().max()) == blur_radius(sigma)


def test_pyramid_level_lies_where_its_formula_says():
    # A linear image stays linear, so fine pixel p must read the same at (p + 1/2) / 2 - 1/2 of the coarse
    # one.
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    image = (0.3 * x.double() - 0.7 * y.double() + 2)[None, None]
    pixels = 2 + 10 * torch.rand(1, 30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(sample(halve(image), (pixels + 0.5) / 2 - 0.5)[0], sample(image, pixels)[0])
