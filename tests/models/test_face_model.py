import torch
from helpers import tiny_model


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
