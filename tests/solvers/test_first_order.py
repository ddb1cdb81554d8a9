import torch

from fitkit.solvers.first_order import AdamOptions, adam


class Bowl:
    """Two parameters of very different size; `scales` makes them alike for the solver."""

    size = 2
    scales = torch.tensor([1.0, 100.0])

    def retract(self, x, step):
        return x + step

    def differentiable_cost(self, x, done):
        return ((x - torch.tensor([2.0, -150.0])) / torch.tensor([1.0, 100.0])).square().sum()


def test_lowers_the_cost_to_the_minimum():
    result = adam(Bowl(), torch.zeros(2), AdamOptions(300, 0.05))
    assert result.status == "max_iterations" and result.iterations == len(result.cost_history) == 300
    assert result.cost_history[-1] < 1e-4 * result.cost_history[0]
    torch.testing.assert_close(result.x, torch.tensor([2.0, -150.0]), rtol=0.01, atol=0)
    assert not result.x.requires_grad and "300 Adam iterations" in result.message


def test_not_a_number_is_reported():
    class Bad(Bowl):
        def differentiable_cost(self, x, done):
            return (x - 1).sum() * torch.nan

    start = torch.zeros(2)
    result = adam(Bad(), start)
    assert (
        result.status == "failed"
        and torch.equal(result.x, start)
        and "the cost became nan in iteration 1" in result.message
    )


def test_no_iterations():
    result = adam(Bowl(), torch.ones(2), AdamOptions(0))
    assert (
        torch.equal(result.x, torch.ones(2))
        and result.cost_history == ()
        and result.message == "no iterations"
    )
