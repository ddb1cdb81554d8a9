"""Networks from the tensors of a file that somebody else made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def network_from(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that `make` makes, with these weights in float32; counters of batches need not be among
    them.

    Nothing is allocated before the weights are known to fit, whatever size of network the options in the file
    ask for. Buffers that are not among the weights must be made from tensors that are there.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape.
    """
    with torch.device("meta"), _NoRandomNumbers():
        network = make()
    known = network.state_dict()
    counts = {
        k: torch.zeros(v.shape, dtype=v.dtype) for k, v in known.items() if k.endswith("num_batches_tracked")
    }
    known = {k: v for k, v in known.items() if k not in counts}
    for word, wrong in (
        ("missing", known.keys() - tensors.keys()),
        ("unknown", tensors.keys() - known.keys()),
        ("of another shape", [k for k, v in known.items() if k in tensors and v.shape != tensors[k].shape]),
    ):
        if wrong:
            raise ValueError(f"tensors {word}: {min(wrong)}")
    # Copied: those of a mapped file lie at odd addresses, from which sums come out with other last digits.
    network.load_state_dict(
        {k: v.to(known[k].dtype, copy=True) for k, v in tensors.items()} | counts, assign=True
    )
    return network


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out the initial weights: on the device 'meta' there is nothing to fill, but asking for random
    numbers there makes torch load its compiler, which takes seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
