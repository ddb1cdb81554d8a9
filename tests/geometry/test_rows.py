import torch

from fitkit.geometry.rows import blend, rows_at


def test_rows_at_is_indexing():
    table, index = torch.randn(7, 2, 3), torch.tensor([[6, 0], [3, 3]])
    assert torch.equal(rows_at(table, index), table[index])


def test_blend_is_the_weighted_sum_of_rows():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 9, (4, 5, 3), generator=generator)
    weights = torch.rand(4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    found = blend(table, index, weights)
    torch.testing.assert_close(found, torch.einsum("gnk,gnkab->gnab", weights, table[index]))
    assert torch.autograd.gradcheck(lambda t, w: blend(t, index, w), (table, weights))


def test_blend_of_numbers_and_of_no_points():
    table = torch.tensor([1.0, 10.0, 100.0])
    index, weights = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.5, 0.5], [0.25, 0.25]])
    assert blend(table, index, weights).tolist() == [5.5, 50.0]
    assert blend(table, index[:0], weights[:0]).shape == (0,)
