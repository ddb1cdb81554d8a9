"""parse_sup: cross entropies by hand, and small parts that count more."""

from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term
from fitkit.energies.parsing import ParseSupervision
from fitkit.observe.face_parts import PARTS
from fitkit.observe.labels import Labels


@pytest.fixture
def labelled():
    """Three parts: 0 on most of the picture, 1 on a tenth, 2 in a corner; a row is not known."""
    model = tiny_model()
    seen = observe(model, tiny_state(model, views=1), size=40)
    parse = torch.zeros(1, *seen.size, dtype=torch.long)
    parse[:, :4], parse[:, -2:, -2:] = 1, 2
    known = torch.ones_like(parse, dtype=torch.bool)
    known[:, 10] = False
    return replace(seen, labels=Labels(parse=parse, parse_valid=known))


def cost(energy, logits, seen):
    return Objective([Term(energy, kernel=Kernel("sq"))]).cost(logits, seen)[0]


def test_the_cost_is_the_mean_of_the_cross_entropy(labelled):
    logits = torch.randn(1, 3, *labelled.size, generator=torch.Generator().manual_seed(0))
    each = torch.nn.functional.cross_entropy(logits, labelled.labels.parse, reduction="none")
    expected = each[labelled.labels.parse_valid].mean()
    torch.testing.assert_close(cost(ParseSupervision(), logits, labelled).sum(), expected)


def test_with_balance_small_parts_count_more(labelled):
    logits = torch.randn(1, 3, *labelled.size, generator=torch.Generator().manual_seed(0))
    known, parse = labelled.labels.parse_valid, labelled.labels.parse
    each = torch.nn.functional.cross_entropy(logits, parse, reduction="none")
    parts = [each[known & (parse == k)].mean() for k in range(3)]
    whole = cost(ParseSupervision(1.0), logits, labelled).sum()
    torch.testing.assert_close(whole, sum(parts) / 3)  # 1: all parts alike
    between = cost(ParseSupervision(0.5), logits, labelled).sum()
    share = torch.stack([(parse[known] == k).float().mean() for k in range(3)])
    torch.testing.assert_close(between, (share.sqrt() * torch.stack(parts)).sum() / share.sqrt().sum())


def test_a_parser_of_ten_parts_learns_from_labels_of_all(labelled):
    more = labelled.labels.parse.clone()
    more[more == 1] = PARTS.index("beard")  # skin to DF-MVR
    more[more == 2] = PARTS.index("hair")  # background
    few = torch.where(labelled.labels.parse == 2, 0, labelled.labels.parse)
    logits = torch.randn(1, 10, *labelled.size, generator=torch.Generator().manual_seed(0))
    costs = [
        cost(ParseSupervision(0.5), logits, replace(labelled, labels=replace(labelled.labels, parse=parse)))
        for parse in (more, few)
    ]
    torch.testing.assert_close(*costs)


def test_where_nothing_is_known_nothing_counts(labelled):
    nothing = torch.zeros_like(labelled.labels.parse_valid)
    seen = replace(labelled, labels=replace(labelled.labels, parse_valid=nothing))
    assert float(cost(ParseSupervision(0.5), torch.zeros(1, 3, *seen.size), seen).sum()) == 0
