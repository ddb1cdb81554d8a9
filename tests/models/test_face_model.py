import torch
from helpers import tiny_model

from fitkit.models.coefficients import Coefficients


def test_another_mean_moves_all_points_and_shares_the_rows():
    model = tiny_model()
    offset = torch.randn(model.mean.shape, generator=torch.Generator().manual_seed(0))
    moved = model.with_mean(model.mean + offset)
    identity, expression = torch.ones(1, model.num_identity), torch.full((1, model.num_expression), 0.5)
    before, after = (m.vertices(identity, expression)[0] for m in (model, moved))
    torch.testing.assert_close(after - before, offset, rtol=0, atol=1e-4)
    assert moved.rows is model.rows
    some = torch.tensor([3, 0])
    points = moved.at_vertices(some).points(identity, expression)[0]
    torch.testing.assert_close(points, after[some], rtol=0, atol=1e-4)


def test_long_rows_of_names_are_cut_short():
    names = tuple(f"expression_{k + 1}" for k in range(100))
    few, many = (
        str(Coefficients("expression", n, "frame", "gaussian", torch.ones(n), names[:n])) for n in (2, 100)
    )
    assert few == "2 coefficients, sigma 1: expression_1, expression_2"
    assert many == "100 coefficients, sigma 1: expression_1 ... expression_100"
