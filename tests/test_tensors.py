from dataclasses import dataclass, replace

import torch
from helpers import tiny_model

from fitkit.tensors import move, one_thread


@dataclass(frozen=True)
class Inner:
    place: torch.Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple
    count: torch.Tensor
    nothing: torch.Tensor | None = None


def test_all_tensors_change_their_type_and_nothing_else_does():
    value = Outer(Inner(torch.ones(2), "a"), (torch.zeros(1), 7), torch.arange(3))
    moved = move(value, dtype=torch.float64)
    assert moved.inner.place.dtype == moved.pair[0].dtype == torch.float64
    assert moved.count.dtype == torch.int64  # no floating point
    assert (moved.inner.name, moved.pair[1], moved.nothing) == ("a", 7, None)
    assert value.inner.place.dtype == torch.float32


def test_what_is_in_place_is_returned_itself():
    model = tiny_model()
    assert move(model, "cpu") is model and model.to("cpu") is model
    assert model.to(dtype=torch.float64).mean.dtype == torch.float64
    assert replace(model, name="other").to("cpu").name == "other"


def test_one_thread_and_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
