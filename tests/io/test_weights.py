import subprocess
import sys

import pytest
import torch
from torch import nn

from fitkit.io.weights import network_from


def make(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def test_the_weights_are_those_of_the_file():
    first = make().eval()
    nn.init.normal_(first[1].running_mean)
    stored = {k: v.half() for k, v in first.state_dict().items() if not k.endswith("num_batches_tracked")}
    second = network_from(make, stored).eval()
    assert (
        all(v.device.type == "cpu" for v in second.state_dict().values()) and second[0].weight.requires_grad
    )
    assert second[0].weight.dtype == torch.float32
    torch.testing.assert_close(second(torch.ones(2, 3)), first(torch.ones(2, 3)), atol=1e-2, rtol=0)
    stored["0.weight"].zero_()
    assert second[0].weight.abs().sum() > 0, "they are copies"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"0.bias": None}, "tensors missing: 0.bias"),
        ({"2.bias": torch.zeros(1)}, "tensors unknown: 2.bias"),
        ({"0.weight": torch.zeros(9, 3)}, "tensors of another shape: 0.weight"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    stored = {
        k: v
        for k, v in {**make().state_dict(), **change}.items()
        if v is not None and not k.endswith("num_batches_tracked")
    }
    with pytest.raises(ValueError, match=message):
        network_from(make, stored)


def test_nothing_is_allocated_for_options_that_are_too_large():
    with pytest.raises(ValueError, match="tensors of another shape"):
        network_from(
            lambda: make(10**11),
            {k: v for k, v in make().state_dict().items() if not k.endswith("num_batches_tracked")},
        )


def test_making_a_network_does_not_load_the_compiler():
    code = (
        "import sys, torch\n"
        "from fitkit.io.weights import network_from\n"
        "from fitkit.nets.fitkit_init.network import _head\n"
        "from fitkit.observe.landmarks.network import LandmarkNetwork\n"
        "for make in (LandmarkNetwork, lambda: _head(4, 4, 4), lambda: torch.nn.MultiheadAttention(4, 2)):\n"
        "    state = make().state_dict()\n"
        "    network_from(make, {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')})\n"
        "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
